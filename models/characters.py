"""Many to many: a character language model of the documentation that comes with Python, sampled as a stream.

python models/characters.py [--text FILE] [--epochs N] [--seed N] [--out FOLDER]

characters.md describes the model and its results.
"""

import pathlib
import re
import sys

import click
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ngram import NGram

import rnnfast
from rnnfast import nn, train

CHARACTERS = "\ufffd\n" + "".join(map(chr, range(32, 127)))  # the first stands for every other character
EMBEDDING, HIDDEN, DROPOUT, RATE = 32, 224, 0.2, 4e-3
STREAMS, STEPS = 16, 80  # places of the text that are read at once; steps that gradients reach back
ORDERS = (2, 3, 4, 5, 6, 7, 8)  # n of the n-grams
TEMPERATURES = (0.3, 0.7, 1.0)
TARGET = 1.81  # bits per character on the held-out tenth; the best n-gram has 1.826


def python_topics():
    """Return the text of `help("assert")` and of all other topics; a paragraph that several repeat is taken once."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return "\n\n".join(dict.fromkeys(re.split(r"\n\s*\n", text)))


def encoded(text):
    """Return the numbers of the text's characters."""
    return np.array([CHARACTERS.find(character) for character in text]).clip(0)


def streams(numbers, count):
    """Cut the text into `count` parts side by side; return inputs and targets, [count, time] each."""
    time = (len(numbers) - 1) // count
    return numbers[: count * time].reshape(count, time), numbers[1 : count * time + 1].reshape(count, time)


def bits_of_ngram(training, held_out, order):
    """Return -log2 p of each character of held_out except the first, by an n-gram model of `training`."""

    def windows(numbers):
        return np.lib.stride_tricks.sliding_window_view(numbers, order)

    before = np.concatenate([training[len(training) - order + 2 :], held_out])
    return -np.log2(NGram(windows(training), len(CHARACTERS))(windows(before)))


def bits_of_model(model, numbers):
    """Return -log2 p of each character except the first, read by the model as one long stream."""
    h0 = np.zeros((1, 1, HIDDEN), np.float32)
    scores = model(x=numbers[None, :-1], h0=h0).y[0].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, numbers[1:, None], 1)[:, 0] / np.log(2)


def written(model, begin, count, temperature, rng):
    """Return `begin` and `count` characters after it.

    Each character is drawn from softmax(scores / temperature) and becomes the next input.
    """
    stream = model.stream()
    *before, number = encoded(begin)
    for read in before:
        stream.step(x=[[read]])
    for _ in range(count):
        scores = stream.step(x=[[number]])[0, 0] / temperature
        number = (scores + rng.gumbel(size=scores.shape)).argmax()  # a draw from the softmax
        begin += CHARACTERS[number]
    return begin


def picture(history, of_ngrams, held_out, of_model, of_best):
    """Draw the losses next to the n-grams' results, and the bits of each character of some held-out text."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(2, 1))
    epochs = 1 + np.arange(history.epochs)
    for name, label, colour in (("loss", "training (with dropout)", "#1971c2"), ("val_loss", "held out", "#d6336c")):
        upper.plot(epochs, np.array(history[name]) / np.log(2), "o-", markersize=3, color=colour, label=label)
    for order, bits in of_ngrams.items():
        if order in (3, 4) or bits == min(of_ngrams.values()):
            upper.axhline(bits, color="#868e96", linewidth=0.8, linestyle=":")
            upper.text(1, bits, f"{order}-gram", fontsize=8, va="bottom", color="#495057")
    upper.set(xlabel="epoch", ylabel="bits per character")
    upper.xaxis.get_major_locator().set_params(integer=True)
    upper.legend(frameon=False)

    part = slice(len(of_model) // 2, len(of_model) // 2 + 80)
    letters = held_out[1:][part]
    places = np.arange(len(letters))
    lower.bar(places - 0.2, of_model[part], 0.4, color="#d6336c", label="GRU")
    lower.bar(places + 0.2, of_best[part], 0.4, color="#868e96", label="best n-gram")
    lower.set(ylabel="bits", xlim=(-1, len(places)), xticks=places)
    lower.set_xticklabels([CHARACTERS[n].replace("\n", "¶") for n in letters], fontsize=8, family="monospace")
    lower.legend(frameon=False, ncols=2)
    return figure


@click.command()
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="Another text, UTF-8.  [default: Python's pydoc_data.topics]",
)
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, exists=True, path_type=pathlib.Path),
    default=pathlib.Path(__file__).parent,
    help="Folder for characters.onnx and .svg.",
)
def main(text, epochs, seed, out):
    """Train a character language model, compare it with n-grams and let it write."""
    numbers = encoded(text.read_text("utf-8") if text else python_topics())
    training, held_out = np.split(numbers, [len(numbers) * 9 // 10])
    print(f"{len(training):,} characters to learn from, the {len(held_out):,} after them held out")

    rng = np.random.default_rng(seed)
    net = nn.Sequential(
        nn.Embedding(len(CHARACTERS), EMBEDDING, rng=rng),
        nn.Dropout(DROPOUT / 2),
        nn.GRU(EMBEDDING, HIDDEN, batch_first=True, threads=2, rng=rng),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, len(CHARACTERS), rng=rng),
    )
    print(net.summary())
    x, y = streams(training, STREAMS)
    steps = epochs * -(-x.shape[1] // STEPS)
    history = net.fit(
        x,
        y,
        loss=train.CrossEntropy(),
        clip_norm=1.0,
        epochs=epochs,
        batch_size=STREAMS,
        tbptt=STEPS,
        optimizer=train.Adam(train.CosineDecay(RATE, steps, steps // 20, RATE / 50)),
        shuffle=False,
        validation_data=streams(held_out, 1),
        seed=seed,
    )
    net.save(out / "characters.onnx", states=True)

    model = rnnfast.load(out / "characters.onnx")
    of_model, of_ngrams = bits_of_model(model, held_out), {o: bits_of_ngram(training, held_out, o) for o in ORDERS}
    means = {order: bits.mean() for order, bits in of_ngrams.items()}
    best = min(means, key=means.get)
    both = -np.log2((2**-of_model + 2 ** -of_ngrams[best]) / 2).mean()
    print("\nbits per character, held out")
    for name, bits in [
        *((f"{o}-gram, Kneser-Ney", b) for o, b in means.items()),
        ("GRU", of_model.mean()),
        (f"GRU and {best}-gram, the mean of both", both),
    ]:
        print(f"{name:40}{bits:8.3f}")
    for temperature in TEMPERATURES:
        sample = written(model, "The ", 280, temperature, np.random.default_rng(seed))
        print(f"\n--- temperature {temperature}\n{sample}")
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        picture(history, means, held_out, of_model, of_ngrams[best]).savefig(
            out / "characters.svg", metadata={"Date": None}
        )
    if not text and of_model.mean() > TARGET:
        sys.exit(f"{of_model.mean():.3f} bits per character, expected at most {TARGET}")


if __name__ == "__main__":
    main()
