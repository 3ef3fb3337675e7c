"""models/languages.py: its file gives the same in nn's layers and onnxruntime and reaches the stated accuracy; so does
a new one."""

import importlib.util
import os
import runpy
import subprocess
import sys

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast import nn
from tests.paths import MODELS

FOLDER = MODELS
PATH = FOLDER / "languages.onnx"
for package in ("matplotlib", "click"):
    pytest.importorskip(package)
MODEL = runpy.run_path(str(FOLDER / "languages.py"))
needs_words = pytest.mark.skipif(
    importlib.util.find_spec("wordfreq") is None, reason="the words are in the package wordfreq, which is not installed"
)

WORDS = {
    "which": "English",
    "zwischen": "German",
    "voorbeeld": "Dutch",
    "människor": "Swedish",
    "também": "Portuguese",
    "beaucoup": "French",
    "również": "Polish",
    "yhteydessä": "Finnish",
    "quello": "Italian",
    "años": "Spanish",
}

TOLERANCE = 1e-4
"""Largest difference of logits up to 22 from onnxruntime's. Measured: 7e-6."""


def about(path):
    """The letters and the languages that a file's numbers stand for."""
    found = {p.key: p.value for p in onnx.load(path).metadata_props}
    return found["letters"], found["languages"].split()


def check_same(path, words):
    letters, languages = about(path)
    x, lengths = MODEL["encode"](words, letters)
    inputs = {"x": x, "lengths": lengths.astype(np.int32)}
    y = rnnfast.load(path)(**inputs)["y"]
    assert y.shape == (len(words), len(languages)) and np.isfinite(y).all()
    (theirs,) = pytest.importorskip("onnxruntime").InferenceSession(str(path)).run(None, inputs)
    np.testing.assert_allclose(y, theirs, rtol=0, atol=TOLERANCE)
    return y


def check_accuracy(path):
    pairs = MODEL["read"]()
    assert len(pairs) == len({word for word, _ in pairs}) == 10 * MODEL["WORDS"]
    np.random.default_rng(0).shuffle(pairs)
    pairs = pairs[: len(pairs) // 10]
    y = check_same(path, [word for word, _ in pairs])
    names = about(path)[1]
    assert np.mean([names[k] == language for k, (_, language) in zip(y.argmax(1), pairs)]) >= MODEL["TARGET"]


def test_the_same_in_layers_and_onnxruntime():
    y = check_same(PATH, list(WORDS))
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(PATH).graph.initializer}
    embedding = nn.Embedding(*weights["0.weight"].shape)
    embedding.load_state_dict({"weight": weights["0.weight"]})
    lstm = nn.LSTM.from_onnx(*(weights[f"1.{name}_l0"] for name in "WRB"), direction="bidirectional", layout=1)
    linear = nn.Linear(*weights["3.weight"].shape[::-1])
    linear.load_state_dict({name: weights[f"3.{name}"] for name in ("weight", "bias")})
    x, lengths = MODEL["encode"](list(WORDS), about(PATH)[0])
    _, (h, _) = lstm(embedding(x), lengths=lengths)
    assert y.tobytes() == linear(np.concatenate(list(h), axis=1)).tobytes()


def test_words_that_everybody_knows():
    y = check_same(PATH, list(WORDS))
    assert [about(PATH)[1][k] for k in y.argmax(1)] == list(WORDS.values())


def test_other_letters_and_lengths():
    codes, lengths = MODEL["encode"](["ba", "c?bba"], "abc")
    assert codes.tolist() == [[3, 2, 0, 0, 0], [4, 1, 3, 3, 2]] and lengths.tolist() == [2, 5]


def test_trigrams_by_hand():
    """One language has words of a, the other of b."""
    x, lengths = MODEL["encode"](["aa", "bb", "b", "aaa", "bbb"], "ab")
    for answers in MODEL["trigrams"](x, lengths, np.array([0, 1, 1, 0, 1]), 3, 2, 2):
        assert answers.tolist() == [0, 1, 1]


@pytest.mark.slow
@needs_words
def test_accuracy():
    check_accuracy(PATH)


def test_words_of_a_file(tmp_path):
    rng = np.random.default_rng(2)
    lines = [
        "".join(rng.choice(list(letters), rng.integers(2, 9))) + f" {language}\n"
        for letters, language in (("abcd", "one"), ("cdef", "two"))
        for _ in range(150)
    ]
    (tmp_path / "words.txt").write_text("".join(lines), "utf-8")
    done = subprocess.run(
        [
            sys.executable,
            FOLDER / "languages.py",
            "--data",
            tmp_path / "words.txt",
            "--out",
            tmp_path,
            "--merge",
            "mul",
            "--epochs",
            "2",
        ],
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
        capture_output=True,
        text=True,
    )
    assert "270 words for training, 30 for the test; 2 languages, 6 letters" in done.stdout, done.stderr
    assert about(tmp_path / "languages.onnx") == ("abcdef", ["one", "two"])
    check_same(tmp_path / "languages.onnx", ["abba", "fed", "cdcdcdcd"])


@pytest.mark.slow
@needs_words
def test_made_anew(tmp_path):
    subprocess.run(
        [sys.executable, FOLDER / "languages.py", "--out", tmp_path, "--merge", "concat"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
    )
    check_accuracy(tmp_path / "languages.onnx")
