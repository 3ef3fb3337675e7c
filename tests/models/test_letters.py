"""The models of letters: committed files run alike here and in onnxruntime; models made anew are as good (slow)."""

import os
import subprocess
import sys

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from tests.paths import MODELS

CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # two float32 engines; 4e-6 was seen


def script(name, monkeypatch):
    """models/name.py as a module."""
    pytest.importorskip("click")
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(MODELS))
    return __import__(name)


def examples(name, monkeypatch):
    """The inputs of a model for text that it is for, and the size of its state."""
    module = script(name, monkeypatch)
    if name == "step_by_hand":
        return module.X.astype(np.float32), (1, 1, module.HIDDEN)
    if name == "characters":
        return module.encoded(module.python_topics()[5000:5300])[None], (1, 1, module.HIDDEN)
    rows = [
        module.encoded([word], language)
        for language, word in (("en", "through"), ("de", "größe"), ("fr", "françaises"), ("fi", "yhdeksän"))
    ]
    return np.concatenate(rows), (1, len(rows), module.HIDDEN)


def agree(path, x, h0):
    """rnnfast, onnxruntime and a stream of the model, a step at a time, say the same."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    h0 = np.zeros(h0, np.float32)
    model = rnnfast.load(path)
    ours, theirs = model(x=x, h0=h0), session.run(None, {"x": x, "h0": h0})
    for mine, other in zip((ours.y, ours.hn), theirs, strict=True):
        np.testing.assert_allclose(mine, other, **CLOSE)
    time = 1 if x.dtype == np.int64 else 0
    stream = model.stream(state={"h0": h0})
    steps = [stream.step(x=np.take(x, [t], time)) for t in range(x.shape[time])]
    np.testing.assert_array_equal(np.concatenate(steps, time), ours.y)


NAMES = "step_by_hand", "characters", "words"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_file(name, monkeypatch):
    agree(MODELS / f"{name}.onnx", *examples(name, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_made_anew(name, monkeypatch, tmp_path):
    inputs = examples(name, monkeypatch)
    if name == "words":
        pytest.importorskip("wordfreq")
    here = os.pathsep.join(filter(None, (str(MODELS.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, MODELS / f"{name}.py", "--out", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": here},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    agree(tmp_path / f"{name}.onnx", *inputs)
    assert (tmp_path / f"{name}.svg").stat().st_size > 1000


def test_the_step_by_hand(monkeypatch):
    """One step and the gradients by the equations of step_by_hand.md, for weights that no symmetry hides in."""
    module = script("step_by_hand", monkeypatch)
    net = nn.Sequential(nn.RNN(4, module.HIDDEN, rng=5), nn.Linear(module.HIDDEN, 4, rng=6))
    losses, gradients, weights = module.on_reference(net.state_dict(), 3)
    nn_losses, nn_gradients = module.on_nn(net, 3)
    np.testing.assert_allclose(losses, nn_losses, atol=1e-6)
    for name, dw in gradients.items():
        np.testing.assert_allclose(nn_gradients[name], dw, atol=1e-6)
        np.testing.assert_allclose(net.state_dict()[name], weights[name], atol=1e-6)


def test_characters_are_foretold(monkeypatch):
    """The committed model on English of its kind: far below the 6.6 bits of all characters alike; chance alone tells
    samples of one seed and temperature from others."""
    module = script("characters", monkeypatch)
    model = rnnfast.load(MODELS / "characters.onnx")
    bits = module.bits_of_model(model, module.encoded("The following example shows how the statement is used.\n"))
    assert bits.mean() < 2.2
    samples = [
        module.written(model, "The ", 40, temperature, np.random.default_rng(seed))
        for temperature, seed in ((1.0, 1), (1.0, 1), (1.0, 2), (0.5, 1))
    ]
    assert samples[0] == samples[1] and len(set(samples)) == 3
    assert all(sample.startswith("The ") and len(sample) == 44 for sample in samples)


def test_words_are_written(monkeypatch):
    """The committed model on its words: the languages differ by them, what is written ends and is letters."""
    module = script("words", monkeypatch)
    model = rnnfast.load(MODELS / "words.onnx")
    rows = np.concatenate(
        [
            module.encoded(words, language)
            for language, words in (
                ("en", ["through", "nothing"]),
                ("de", ["zwischen", "geschichte"]),
                ("fr", ["françaises"]),
                ("fi", ["yhdeksän", "mitään"]),
            )
        ]
    )
    lengths = module.lengths_of(rows)
    assert lengths.tolist() == [8, 8, 9, 11, 11, 9, 7]
    bits = module.bits_of_model(model, rows)
    assert bits.shape == (lengths.sum(),) and bits.mean() < 3
    assert module.language_of(rows, lambda rows: module.bits_of_model(model, rows)).tolist() == rows[:, 0].tolist()
    assert module.texts(rows)[-1] == "mitään"

    monkeypatch.setattr(module, "WRITTEN", 20)
    written = module.written_by(model, 0.8, np.random.default_rng(3))
    np.testing.assert_array_equal(written, module.written_by(model, 0.8, np.random.default_rng(3)))
    assert written.shape == (80, module.LONGEST + 2) and (written[:, -1] == module.END).all()
    assert all(set(text) <= set(module.LETTERS) and len(text) <= module.LONGEST for text in module.texts(written))
    assert len(set(module.texts(written))) > 60


def test_words_by_ngrams(monkeypatch):
    """A model of each language holds its own words likelier than the other ones do, and writes them again."""
    module = script("words", monkeypatch)
    lists = {"en": ["through", "enough"], "de": ["durch", "zwar"], "fr": ["dans", "avec"], "fi": ["kanssa", "vaan"]}
    rows = np.concatenate([module.encoded(words, language) for language, words in lists.items()])
    ngrams = module.NGrams(rows, 4)
    assert module.language_of(rows, ngrams.bits).tolist() == rows[:, 0].tolist()
    scores = ngrams.scores(rows[:, :3])
    np.testing.assert_allclose(np.exp(scores).sum(1), 1)
    np.testing.assert_array_equal(scores.argmax(1), rows[:, 3])


def test_ngrams_are_probabilities(monkeypatch):
    """Probabilities sum to 1 after contexts seen and unseen; a bigram agrees with the formula, counted by hand."""
    NGram = script("ngram", monkeypatch).NGram
    rng = np.random.default_rng(7)
    numbers = rng.integers(0, 5, 300)
    for order in (1, 2, 3, 5):
        windows = np.lib.stride_tricks.sliding_window_view(numbers, order)
        for begin in (None, 4):
            model = NGram(windows, 7, begin=begin)
            np.testing.assert_allclose(model.after(rng.integers(0, 7, (50, order - 1))).sum(1), 1, rtol=1e-12)

    text = [0, 1, 0, 1, 0, 2, 0]
    model = NGram(np.lib.stride_tricks.sliding_window_view(np.array(text), 2), 3, discount=0.5)
    # before 0 stood 1 and 2, before 1 and 2 only 0: of four kinds of pairs, three symbols less 0.5 each
    of_one = (1 - 0.5) / 4 + 0.5 * 3 / 4 / 3
    of_zero_one = (2 - 0.5) / 3 + 0.5 * 2 / 3 * of_one
    np.testing.assert_allclose(model(np.array([[0, 1]])), [of_zero_one], rtol=1e-12)
