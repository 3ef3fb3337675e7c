"""One to many: a language goes in, and a word of it comes out letter by letter.

python models/words.py [--epochs N] [--seed N] [--out FOLDER]

A row of symbols is a language, the letters of a word of it, its end, and further ends that fill it up. The words are
the lists of the PyPI package wordfreq (pip install 'rnnfast[models]'); change `word_lists` for others. words.md
describes the results.
"""

import pathlib
import sys
from functools import partial

import click
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ngram import NGram

import rnnfast
from rnnfast import nn, train

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "fi": "Finnish"}
LETTERS = "abcdefghijklmnopqrstuvwxyzàâäåæçèéêëîïôöùûüœß"
COUNT, LONGEST = 20_000, 15  # the commonest words of each language, of 2 to 15 letters
END, FIRST_LETTER = 0, 1 + len(LANGUAGES)  # symbols are the end, the languages and the letters
NUMBERS = range(1, FIRST_LETTER)  # the languages' symbols
SYMBOLS = FIRST_LETTER + len(LETTERS)
EMBEDDING, HIDDEN, DROPOUT, RATE, BATCH = 32, 192, 0.15, 6e-3, 128
ORDERS = (2, 3, 4, 5, 6)  # n of the n-grams
WRITTEN, TEMPERATURES, SHOWN = 500, (0.4, 0.6, 0.8, 1.0, 1.2), 0.8
TARGET = 2.60  # bits per letter of held-out words; trigrams need 3.021


def word_lists():
    """Return the commonest words of each language, and a larger set of its words.

    A common word belongs to the language that uses it most.
    """
    try:
        from wordfreq import top_n_list, word_frequency
    except ImportError:
        sys.exit("words.py needs the word lists of wordfreq: pip install 'rnnfast[models]'")
    common = {
        language: [
            word
            for word in top_n_list(language, COUNT)
            if 2 <= len(word) <= LONGEST
            and set(word) <= set(LETTERS)
            and language == max(LANGUAGES, key=lambda other: word_frequency(word, other))
        ]
        for language in LANGUAGES
    }
    return common, {language: set(top_n_list(language, 50_000)) for language in LANGUAGES}


def encoded(words, language):
    """Return rows of symbols, [words, LONGEST + 2]: the language, the word, its end and further ends."""
    rows = np.full((len(words), LONGEST + 2), END)
    rows[:, 0] = 1 + list(LANGUAGES).index(language)
    for row, word in zip(rows, words):
        row[1 : 1 + len(word)] = [FIRST_LETTER + LETTERS.index(letter) for letter in word]
    return rows


def lengths_of(rows):
    """Return how many symbols of each row are predicted: its letters and one end."""
    return 1 + (rows[:, 1:] != END).sum(1)


def windows_of(rows, order):
    """Return each predicted symbol behind the order - 1 before it; the language fills the places before a row."""
    rows_before = np.concatenate([np.repeat(rows[:, :1], order - 2, axis=1), rows], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(rows_before, order, axis=1)
    return windows[np.arange(windows.shape[1]) < lengths_of(rows)[:, None]]


class NGrams:
    """An n-gram model for each language."""

    def __init__(self, rows, order):
        self.order = order
        self.models = [
            NGram(windows_of(rows[rows[:, 0] == number], order), SYMBOLS, begin=number) for number in NUMBERS
        ]

    def bits(self, rows):
        """Return -log2 p of each predicted symbol, row by row."""
        windows, bits = windows_of(rows, self.order), np.empty(lengths_of(rows).sum())
        of_row = np.repeat(rows[:, 0], lengths_of(rows))
        for number, model in zip(NUMBERS, self.models):
            bits[of_row == number] = -np.log2(model(windows[of_row == number]))
        return bits

    def scores(self, rows):
        """Return log p of all symbols after each row."""
        before = np.column_stack([*[rows[:, :1]] * (self.order - 2), rows])[:, 1 - self.order :]
        logs = np.empty((len(rows), SYMBOLS))
        for number, model in zip(NUMBERS, self.models):
            logs[rows[:, 0] == number] = np.log(model.after(before[rows[:, 0] == number]))
        return logs


def bits_of_model(model, rows):
    """Return -log2 p of each predicted symbol by the ONNX model, as NGrams.bits does."""
    scores = model(x=rows[:, :-1], h0=np.zeros((1, len(rows), HIDDEN), np.float32)).y.astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    bits = -np.take_along_axis(logs, rows[:, 1:, None], -1)[..., 0] / np.log(2)
    return bits[np.arange(bits.shape[1]) < lengths_of(rows)[:, None]]


def language_of(rows, bits):
    """Return the language in which each row's word is likeliest; `bits` is NGrams.bits or that of the model."""
    starts = np.cumsum(lengths_of(rows)) - lengths_of(rows)
    words = [np.column_stack([np.full(len(rows), number), rows[:, 1:]]) for number in NUMBERS]
    return 1 + np.argmin([np.add.reduceat(bits(of_language), starts) for of_language in words], axis=0)


def written(scores, rng):
    """Return WRITTEN rows for each language; each symbol is drawn from `scores` of the row so far, until the end."""
    rows = np.repeat(NUMBERS, WRITTEN)[:, None]
    while rows.shape[1] < LONGEST + 1:
        p = scores(rows) + rng.gumbel(size=(len(rows), SYMBOLS))  # the largest is a draw from the softmax
        p[:, 1:FIRST_LETTER] = -np.inf  # no language within a word
        rows = np.column_stack([rows, p.argmax(-1)])
    rows = np.where((rows == END).cumsum(1) > 0, END, rows)
    return np.column_stack([rows, np.full(len(rows), END)])


def written_by(model, temperature, rng):
    """Return rows written by a stream of the model; each symbol that is drawn is its next input."""
    stream = model.stream()
    return written(lambda rows: stream.step(x=rows[:, -1:])[:, 0] / temperature, rng)


def texts(rows):
    """Return the words of rows as text."""
    return ["".join(LETTERS[symbol - FIRST_LETTER] for symbol in row[1:] if symbol != END) for row in rows]


def shares(rows, judge, lexicon, known):
    """Return three shares of written words.

    The first is the share that `judge` takes for the right language. The others are shares of the words of five letters
    or more, which chance seldom hits: those in the lexicon of the language, and those in it that were not learned from.
    """
    words = [
        (text, text in lexicon[list(LANGUAGES)[row[0] - 1]]) for row, text in zip(rows, texts(rows)) if len(text) >= 5
    ]
    real = [text for text, there in words if there]
    return (
        np.mean(language_of(rows, judge.bits) == rows[:, 0]),
        len(real) / len(words),
        len([text for text in real if text not in known]) / len(words),
    )


def picture(by_position, by_temperature, of_trigram):
    """Draw the bits of each letter of a word, and the shares of written words at each temperature."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, bits), colour in zip(by_position.items(), ("#868e96", "#495057", "#d6336c")):
        left.plot(1 + np.arange(len(bits)), bits, "o-", markersize=3, color=colour, label=name)
    left.set(title="held-out words", xlabel="letter of the word", ylabel="bits", ylim=0)
    for share, label, other, colour in zip(
        np.transpose(by_temperature),
        ("right language", "real", "real and new"),
        of_trigram,
        ("#1971c2", "#2f9e44", "#e8590c"),
    ):
        right.plot(TEMPERATURES, share, "o-", markersize=3, color=colour, label=label)
        right.plot(1.0, other, "x", color=colour)
    right.set(title="words written (x: by the trigram)", xlabel="temperature", ylim=(0, 1.02))
    left.legend(frameon=False)
    right.legend(frameon=False)
    return figure


@click.command()
@click.option("--epochs", default=13, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, exists=True, path_type=pathlib.Path),
    default=pathlib.Path(__file__).parent,
    help="Folder for words.onnx and .svg.",
)
def main(epochs, seed, out):
    """Train a model that writes words and compare it with n-grams."""
    common, lexicon = word_lists()
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.concatenate([encoded(words, language) for language, words in common.items()]))
    held_out, rows = np.split(rows, [len(rows) // 10])
    print(f"{len(rows):,} words to learn from, {len(held_out):,} held out")

    net = nn.Sequential(
        nn.Embedding(SYMBOLS, EMBEDDING, rng=rng),
        nn.GRU(EMBEDDING, HIDDEN, batch_first=True, threads=2, rng=rng),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, SYMBOLS, rng=rng),
    )
    print(net.summary())
    steps = epochs * -(-len(rows) // BATCH)
    net.fit(
        rows[:, :-1],
        rows[:, 1:],
        lengths=lengths_of(rows),
        epochs=epochs,
        batch_size=BATCH,
        seed=seed,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(train.CosineDecay(RATE, steps, steps // 20, RATE / 50)),
        validation_data=(held_out[:, :-1], held_out[:, 1:], lengths_of(held_out)),
        clip_norm=1.0,
    )
    net.save(out / "words.onnx", states=True)

    model = rnnfast.load(out / "words.onnx")
    ngrams = {order: NGrams(rows, order) for order in ORDERS}
    bits = {f"{order}-gram": of_order.bits(held_out) for order, of_order in ngrams.items()}
    bits["GRU"] = bits_of_model(model, held_out)
    best = min(ORDERS, key=lambda order: bits[f"{order}-gram"].mean())
    judge = ngrams[best]
    print(f"\n{'held-out words':40}{'bits per letter':>16}{'language told':>16}")
    for name, of_name in [*((f"{o}-gram", ngrams[o].bits) for o in ORDERS), ("GRU", partial(bits_of_model, model))]:
        told = np.mean(language_of(held_out, of_name) == held_out[:, 0])
        print(f"{name:40}{bits[name].mean():16.3f}{told:16.1%}")

    known = set(texts(rows))
    of_trigram = shares(written(ngrams[3].scores, rng), judge, lexicon, known)
    print(f"\n{f'words written, {WRITTEN} of each language':40}{'right language':>16}{'real':>10}{'and new':>10}")
    print(f"{'3-gram':40}{of_trigram[0]:16.1%}{of_trigram[1]:10.1%}{of_trigram[2]:10.1%}")
    by_temperature, shown = [], None
    for temperature in TEMPERATURES:
        drawn = written_by(model, temperature, rng)
        by_temperature.append(shares(drawn, judge, lexicon, known))
        right, real, new = by_temperature[-1]
        print(f"{f'GRU, temperature {temperature}':40}{right:16.1%}{real:10.1%}{new:10.1%}")
        if temperature == SHOWN:
            shown = drawn
    print(f"\ntemperature {SHOWN}")
    for number, language in zip(NUMBERS, LANGUAGES.values()):
        print(f"{language:10}{' '.join(texts(shown[shown[:, 0] == number][:9]))}")

    position = np.concatenate([np.arange(length) for length in lengths_of(held_out)])
    by_position = {
        name: (np.bincount(position, bits[name]) / np.bincount(position))[:12]
        for name in ("3-gram", f"{best}-gram", "GRU")
    }
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        picture(by_position, by_temperature, of_trigram).savefig(out / "words.svg", metadata={"Date": None})
    if bits["GRU"].mean() > TARGET:
        sys.exit(f"{bits['GRU'].mean():.3f} bits per letter, expected at most {TARGET}")


if __name__ == "__main__":
    main()
