"""The baseline of models/pronunciation.py: the most frequent phonemes of a letter between its neighbours.

A word's phonemes are divided among its letters, with none, one or two for each. The division is the most likely one
(Viterbi) under counts from the previous round of divisions. Each letter of a new word then gets the phonemes that it
had most often between the same three letters on each side, or if these were never seen the same two, one or none.
"""

import numpy as np

WIDTHS = 3, 2, 1, 0
RARE = 1e-3
"""The count of a letter and phonemes that never came together."""


def divided(letters, of_letters, phonemes, of_phonemes, silent, size, rounds=5):
    """Divide each word's phonemes among its letters.

    letters: [N, L], below `silent`; phonemes: [N, P], below `size`; of_letters, of_phonemes: their lengths, [N].
    Returns a code for each letter, [N, L]: 0 for no phoneme, 1 + p for p, 1 + size + p * size + q for p and q.
    """
    count, longest = letters.shape
    rows = np.arange(count)
    letters = np.where(np.arange(longest) < of_letters[:, None], letters, silent)
    one = 1 + np.concatenate(
        [np.zeros((count, 1), np.int64), phonemes], axis=1
    )  # the code of the phoneme before place j
    two = size + one + (np.roll(one, 1, axis=1) - 1) * size
    scores = np.full((silent + 1, 1 + size + size * size), np.log(RARE))
    scores[:silent, 1 : 1 + size] += 2  # at first one phoneme for each letter is likely
    for _ in range(rounds):
        scores[silent], scores[silent, 0] = -np.inf, 0  # behind a word's end there is no phoneme
        best, ways = np.full(one.shape, -np.inf), []
        best[:, 0] = 0
        for letter in letters.T:
            scored = np.stack(
                [
                    best + scores[letter, :1],
                    np.roll(best, 1, axis=1) + scores[letter[:, None], one],
                    np.roll(best, 2, axis=1) + scores[letter[:, None], two],
                ]
            )
            scored[1, :, 0] = scored[2, :, :2] = -np.inf
            ways.append(scored.argmax(0))
            best = scored.max(0)
        codes, j = np.empty_like(letters), of_phonemes
        for i in reversed(range(longest)):
            way = ways[i][rows, j]
            codes[:, i] = np.choose(way, [0, one[rows, j], two[rows, j]])
            j = j - way
        seen = np.zeros(scores.shape)
        np.add.at(seen, (letters, codes), 1)
        scores = np.log((seen + RARE) / (seen.sum(1, keepdims=True) + 1))
    return codes


def windows(letters, of_letters, silent, width):
    """Return one number for each letter with its `width` neighbours on each side, [N, L]."""
    letters = np.where(np.arange(letters.shape[1]) < of_letters[:, None], letters, silent)
    padded = np.pad(letters, ((0, 0), (width, width)), constant_values=silent)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1, axis=1)
    return around @ (silent + 1) ** np.arange(2 * width + 1)


class LetterContexts:
    """The most frequent phonemes of each letter between its neighbours; the arguments are those of `divided`."""

    def __init__(self, letters, of_letters, phonemes, of_phonemes, silent, size):
        self.silent, self.size, self.tables = silent, size, {}
        codes, most = divided(letters, of_letters, phonemes, of_phonemes, silent, size), 1 + size + size * size
        for width in WIDTHS:
            pairs, counts = np.unique(windows(letters, of_letters, silent, width) * most + codes, return_counts=True)
            order = np.lexsort((counts, pairs // most))  # a dict keeps the last of equal keys
            self.tables[width] = dict(zip((pairs // most)[order].tolist(), (pairs % most)[order].tolist()))

    def __call__(self, letters, of_letters):
        """Return a list of phonemes for each word."""
        said = [[] for _ in letters]
        around = {width: windows(letters, of_letters, self.silent, width).tolist() for width in WIDTHS}
        for n, length in enumerate(of_letters):
            for i in range(length):
                code = next(self.tables[w][around[w][n][i]] for w in WIDTHS if around[w][n][i] in self.tables[w])
                if code > self.size:
                    said[n] += divmod(code - 1 - self.size, self.size)
                elif code:
                    said[n].append(code - 1)
        return said
