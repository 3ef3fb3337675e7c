"""The chunks and the programs of models/vad_demo.py; what Silero VAD finds in speech.wav, `make demo` itself checks."""

import runpy
from types import SimpleNamespace

import numpy as np
import pytest

from tests.paths import MODELS

demo = runpy.run_path(str(MODELS / "vad_demo.py"))
CHUNK = 0.032
MARGIN = demo["MARGIN"]


@pytest.mark.parametrize(
    "runs, expected",
    [
        ([(0.1, 5), (0.9, 10), (0.1, 10)], [(5, 15)]),
        ([(0.9, 10), (0.1, 10)], [(0, 10)]),  # from the very start: no margin before it
        ([(0.1, 5), (0.9, 10)], [(5, 15)]),  # to the very end: none behind it
        ([(0.1, 5), (0.9, 7), (0.1, 9)], []),  # 7 chunks are 0.224 s: too short
        ([(0.1, 5), (0.9, 9), (0.1, 4), (0.9, 9), (0.1, 9)], [(5, 27)]),  # 4 chunks are no pause yet
        ([(0.1, 5), (0.9, 9), (0.1, 5), (0.9, 9), (0.1, 9)], [(5, 14), (19, 28)]),
        ([(0.4, 9), (0.9, 9), (0.4, 9), (0.1, 9)], [(9, 27)]),  # between the thresholds speech goes on
        ([(0.4, 20)], []),
        ([], []),
    ],
)
def test_segments(runs, expected):
    probabilities = [p for p, count in runs for _ in range(count)]
    length = CHUNK * len(probabilities)
    expected = [(max(0, CHUNK * start - MARGIN), min(length, CHUNK * end + MARGIN)) for start, end in expected]
    following = demo["Segments"]()
    found = [following.add(p) for p in probabilities] + [following.finish(length)]
    found = [program for program in found if program is not None]
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.reshape(found, -1), np.reshape(expected, -1))


def test_a_segment_is_told_as_soon_as_it_is_over():
    following = demo["Segments"]()
    told = [following.add(p) for p in [0.1] * 5 + [0.9] * 10 + [0.1] * 10]
    silence = int(np.ceil(demo["SILENCE"] / CHUNK))
    assert [i for i, program in enumerate(told) if program] == [15 + silence] and following.finish(1) is None


def test_chunks_are_led_by_context():
    samples = np.arange(1, 1201, dtype=np.float32)
    padded = np.concatenate([np.zeros(64), samples, np.zeros(3 * 512 - 1200)])
    chunks = demo["chunks"](samples)
    assert chunks.shape == (3, 1, 576) and chunks.dtype == np.float32
    for i, chunk in enumerate(chunks):
        assert np.array_equal(chunk, padded[None, 512 * i : 512 * i + 576])


def test_reference_hands_the_state_on():
    def reference(input, state, sr):
        assert sr == 16000 and state.dtype == np.float32
        return {"output": input[:, -1:] + state[0, 0, 0], "stateN": state + 1.0}

    samples = np.arange(1, 1201, dtype=np.float32)
    assert demo["referenced"](SimpleNamespace(reference=reference), samples) == [512, 1025, 2]
