"""The small files in models/ hold what their page says and give the reference's results."""

import json
import runpy
import wave

import numpy as np
import onnx
import pytest

from rnnfast.errors import UnsupportedError
from rnnfast.model import load
from tests.paths import MODELS

FOLDER = MODELS
MAKERS = runpy.run_path(str(FOLDER / "make_models.py"))
# float32 against float64; measured: 2.2e-7 on the largest state of 2.
TOLERANCE = 1e-6


def feeds(rng):
    """file -> inputs"""
    lengths = np.array([7, 0, 3], np.int32)
    bands, state, audio = (rng.standard_normal(s).astype(np.float32) for s in ((4, 22), (1, 4, 32), (2, 700)))
    return {
        "tagger": [{"tokens": rng.integers(0, 40, (3, 7)), "lengths": lengths}],
        "denoiser": [{"bands": bands, "state": state}],
        "detector": [{"audio": audio, "rate": 16000}, {"audio": audio, "rate": 8000}],
    }


@pytest.mark.parametrize("name, case", [("tagger", 0), ("denoiser", 0), ("detector", 0), ("detector", 1)])
def test_against_reference(name, case):
    model, feed = load(FOLDER / f"{name}.onnx"), feeds(np.random.default_rng(1))[name][case]
    outputs, reference = model(feed), model.reference(feed)
    assert list(outputs) == list(reference) == [v.name for v in model.outputs]
    for output in outputs:
        assert outputs[output].dtype == np.float32
        np.testing.assert_allclose(outputs[output], reference[output], rtol=0, atol=TOLERANCE)


def test_tagger_does_not_look_past_a_length():
    model, feed = load(FOLDER / "tagger.onnx"), feeds(np.random.default_rng(1))["tagger"][0]
    tags = model(feed)["tags"]
    short = model(tokens=feed["tokens"][2:, :3], lengths=np.array([3], np.int32))["tags"]
    np.testing.assert_array_equal(tags[2, :3], short[0])
    assert np.ptp(tags[1], axis=0).max() == 0  # length 0: the dense layer's bias alone, at every step


def test_detector_branches_differ():
    first, second = feeds(np.random.default_rng(1))["detector"]
    model = load(FOLDER / "detector.onnx")
    assert np.all(model(first)["probability"] != model(second)["probability"])


def test_refused():
    with pytest.raises(UnsupportedError, match="refused.onnx"):
        load(FOLDER / "refused.onnx")


@pytest.mark.parametrize("seed, name", list(enumerate(["tagger", "denoiser", "detector", "refused"])))
def test_files_are_what_the_script_makes(seed, name):
    file = FOLDER / f"{name}.onnx"
    assert onnx.load(file) == MAKERS[name](np.random.default_rng(seed))
    assert file.stat().st_size < 100_000 and f"`{name}.onnx`" in (FOLDER / "README.md").read_text()


def test_speech_is_where_its_times_say():
    said = json.loads((FOLDER / "speech.json").read_text())
    with wave.open(str(FOLDER / "speech.wav")) as file:
        assert file.getframerate() == said["sample_rate"] == 16000
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    words = [word for phrase in said["phrases"] for word in phrase["words"]]
    assert all(p["start"] == p["words"][0]["start"] and p["end"] == p["words"][-1]["end"] for p in said["phrases"])
    edges = [round(16000 * word[edge]) for word in words for edge in ("start", "end")]
    assert edges == sorted(edges) and edges[-1] < len(samples)
    loudness = [np.sqrt(np.mean(part**2)) for part in np.split(samples, edges)]
    assert max(loudness[0::2]) < 0.0015 and min(loudness[1::2]) > 0.09
