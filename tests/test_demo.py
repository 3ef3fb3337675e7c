"""The loop and the segments of models/vad_demo.py; what Silero VAD finds in speech.wav, `make demo` itself checks."""
import pathlib
import runpy

import numpy as np
import pytest

demo = runpy.run_path(str(pathlib.Path(__file__).parent.parent / "models" / "vad_demo.py"))
CHUNK = 0.032
MARGIN = demo["MARGIN"]


@pytest.mark.parametrize("runs, expected", [
    ([(0.1, 5), (0.9, 10), (0.1, 10)], [(5, 15)]),
    ([(0.9, 10), (0.1, 10)], [(0, 10)]),                            # from the very start: no margin before it
    ([(0.1, 5), (0.9, 10)], [(5, 15)]),                             # to the very end: none behind it
    ([(0.1, 5), (0.9, 7), (0.1, 9)], []),                           # 7 chunks are 0.224 s: too short
    ([(0.1, 5), (0.9, 9), (0.1, 4), (0.9, 9), (0.1, 9)], [(5, 27)]),     # 4 chunks are no pause yet
    ([(0.1, 5), (0.9, 9), (0.1, 5), (0.9, 9), (0.1, 9)], [(5, 14), (19, 28)]),
    ([(0.4, 9), (0.9, 9), (0.4, 9), (0.1, 9)], [(9, 27)]),          # between the thresholds speech goes on
    ([(0.4, 20)], []),
    ([], []),
])
def test_segments(runs, expected):
    probabilities = [p for p, count in runs for _ in range(count)]
    length = CHUNK * len(probabilities)
    expected = [(max(0, CHUNK * start - MARGIN), min(length, CHUNK * end + MARGIN)) for start, end in expected]
    found = demo["segments"](probabilities, length)
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.reshape(found, -1), np.reshape(expected, -1))


def test_chunks_are_led_by_context_and_state_goes_on():
    calls = []

    def run(input, state, sr):
        calls.append((input.copy(), state.copy(), sr))
        return {"output": input[:, -1:], "stateN": state + 1.0}

    samples = np.arange(1, 1201, dtype=np.float32)
    assert demo["probabilities"](run, samples) == [512, 1024, 0]
    padded = np.concatenate([np.zeros(64), samples, np.zeros(3 * 512 - 1200)])
    for i, (input, state, sr) in enumerate(calls):
        assert np.array_equal(input, padded[None, 512 * i:512 * i + 576]) and np.all(state == i) and sr == 16000
        assert input.dtype == state.dtype == np.float32
