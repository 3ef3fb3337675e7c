"""The language model that recurrent ones have to beat: n-grams by interpolated Kneser-Ney smoothing."""

import numpy as np


class NGram:
    """p(c | h) = (max(N(h c) - d, 0) + d * T(h) * p(c | h')) / N(h), down to the uniform 1 / symbols

    h' is the context h without its first symbol, d the discount, T(h) how many symbols were seen after h. N counts, in
    the longest contexts, how often h c was seen, and in shorter ones how many different symbols stood before it
    (Kneser and Ney, 1995).

    windows: [count, order] integers below `symbols`: each symbol (last) and the order - 1 before it.
    begin: the symbol that stands before the beginning, which has nothing before it: what begins with it is counted as
        often as it was seen.
    """

    def __init__(self, windows, symbols, discount=0.75, begin=None):
        self.symbols, self.discount, self.order = symbols, discount, windows.shape[1]
        codes, counts = np.unique(self._codes(windows), return_counts=True)
        seen, self.tables = counts, []
        for length in range(self.order, 0, -1):
            contexts, first = np.unique(codes // symbols, return_index=True)
            kinds = np.diff(first, append=len(codes))
            self.tables.insert(0, ((codes, counts), (contexts, np.add.reduceat(counts, first)), (contexts, kinds)))
            codes, shorter = np.unique(codes % symbols ** (length - 1), return_inverse=True)
            seen, counts = np.bincount(shorter, seen), np.bincount(shorter)
            if begin is not None and length > 2:
                counts = np.where(codes // symbols ** (length - 2) == begin, seen, counts)

    def __call__(self, windows):
        """[count, order] -> the probability of each window's last symbol."""
        p = np.full(len(windows), 1 / self.symbols)
        for length, (counts, totals, kinds) in enumerate(self.tables, 1):
            codes = self._codes(windows[:, self.order - length :])
            total = _found(*totals, codes // self.symbols)
            held = np.maximum(_found(*counts, codes) - self.discount, 0)
            kept = self.discount * _found(*kinds, codes // self.symbols)
            p = np.where(total > 0, (held + kept * p) / np.maximum(total, 1), p)
        return p

    def after(self, contexts):
        """[count, order - 1] -> the probabilities of all symbols, [count, symbols]."""
        contexts = np.repeat(contexts, self.symbols, axis=0)
        following = np.tile(np.arange(self.symbols), len(contexts) // self.symbols)
        return self(np.column_stack([contexts, following])).reshape(-1, self.symbols)

    def _codes(self, windows):
        """Each row as one number."""
        return windows @ self.symbols ** np.arange(windows.shape[1] - 1, -1, -1, dtype=np.int64)


def _found(keys, values, wanted):
    """The values of the `wanted` among the sorted keys, 0 where there is none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
