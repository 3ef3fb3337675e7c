"""The baseline of the language models: n-grams with interpolated Kneser-Ney smoothing."""

import numpy as np


class NGram:
    """The probability of a symbol c after a context h.

    p(c | h) = (max(N(h c) - d, 0) + d * T(h) * p(c | h')) / N(h), and 1 / symbols below the empty context. h' is the
    context h without its first symbol, d the discount, and T(h) the number of different symbols seen after h. For the
    longest contexts N counts how often h c was seen, and for shorter ones how many different symbols stood before it
    (Kneser and Ney, 1995).

    windows: [count, order] integers below `symbols`: each symbol (last) behind the order - 1 before it.
    begin: the symbol that stands for the beginning. As nothing stands before it, what begins with it is counted as
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
        """Return the probability of the last symbol of each window, [count]."""
        p = np.full(len(windows), 1 / self.symbols)
        for length, (counts, totals, kinds) in enumerate(self.tables, 1):
            codes = self._codes(windows[:, self.order - length :])
            total = _found(*totals, codes // self.symbols)
            held = np.maximum(_found(*counts, codes) - self.discount, 0)
            kept = self.discount * _found(*kinds, codes // self.symbols)
            p = np.where(total > 0, (held + kept * p) / np.maximum(total, 1), p)
        return p

    def after(self, contexts):
        """Return the probabilities of all symbols after contexts [count, order - 1], as [count, symbols]."""
        contexts = np.repeat(contexts, self.symbols, axis=0)
        following = np.tile(np.arange(self.symbols), len(contexts) // self.symbols)
        return self(np.column_stack([contexts, following])).reshape(-1, self.symbols)

    def _codes(self, windows):
        """Return each row as one number."""
        return windows @ self.symbols ** np.arange(windows.shape[1] - 1, -1, -1, dtype=np.int64)


def _found(keys, values, wanted):
    """Return the values of the `wanted` among the sorted keys, 0 where a key is absent."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
