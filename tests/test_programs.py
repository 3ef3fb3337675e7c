"""Programs of others, unmodified: with rnnfast imported in onnxruntime's place they give what they give with it."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

import rnnfast
from rnnfast.cli.input_files import read_wav
from tests.paths import MODELS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
onnxruntime = pytest.importorskip("onnxruntime")

SPEECH = MODELS / "speech.wav"
# What float32 operations in another order may change in the numbers that programs hand on; measured: 2.3e-6.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Fetches a package without what it depends on; gives the folder to import it from."""

    def fetch(requirement):
        folder = tmp_path_factory.mktemp("package")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), requirement]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if result.returncode:
            pytest.skip(f"{requirement} cannot be fetched: {result.stderr.strip().splitlines()[-1]}")
        return folder

    return fetch


@pytest.fixture
def with_each(monkeypatch):
    """Runs a function of a freshly imported module once with onnxruntime and once with rnnfast in its place."""

    def run(folder, module, function):
        monkeypatch.syspath_prepend(str(folder))
        results = []
        for engine in (onnxruntime, rnnfast):
            monkeypatch.setitem(sys.modules, "onnxruntime", engine)
            top = module.partition(".")[0]
            for name in [n for n in sys.modules if n == top or n.startswith(top + ".")]:
                monkeypatch.delitem(sys.modules, name)
            results.append(function(importlib.import_module(module)))
        return results

    return run


@pytest.fixture(scope="module")
def silero(package):
    pytest.importorskip("torch")
    return package("silero-vad==6.2.3")


@pytest.mark.parametrize("rate", [16000, 8000])
def test_silero_vad(silero, with_each, rate):
    """Its OnnxWrapper, alone and on a batch, get_speech_timestamps and VADIterator."""
    import torch

    samples = torch.from_numpy(read_wav(str(SPEECH))[:: 16000 // rate].copy())
    chunks = [chunk for chunk in samples.split(rate * 32 // 1000) if len(chunk) == rate * 32 // 1000]

    def program(silero_vad):
        model = silero_vad.load_silero_vad(onnx=True)
        timestamps = silero_vad.get_speech_timestamps(samples, model, sampling_rate=rate)
        iterator = silero_vad.VADIterator(model, sampling_rate=rate)
        events = [iterator(chunk) for chunk in chunks]
        alone = model.audio_forward(samples, rate).numpy()
        model.reset_states()
        pairs = np.stack([model(torch.stack(pair), rate).numpy() for pair in zip(chunks, reversed(chunks))])
        return type(model.session), timestamps, events, alone, pairs

    theirs, ours = with_each(silero, "silero_vad", program)
    assert (theirs[0], ours[0]) == (onnxruntime.InferenceSession, rnnfast.InferenceSession)
    assert ours[1] == theirs[1] and len(ours[1]) >= 3
    assert ours[2] == theirs[2] and any(ours[2])
    for mine, other in zip(ours[3:], theirs[3:]):
        np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE)


def test_plcmos(package, with_each):
    """Microsoft's score of packet loss concealment: convolutions and bidirectional GRUs, random rater embeddings."""
    samples = read_wav(str(SPEECH))
    lossy = samples.copy()
    for start in range(16000, len(samples) - 320, 4800):
        lossy[start : start + 320] = 0

    def program(plcmos):
        scores = []
        for degraded in (samples, lossy):
            np.random.seed(0)
            scores.append(plcmos.run(degraded, 16000)["plcmos"])
        return type(plcmos.plcmos.session), scores

    theirs, ours = with_each(package("speechmos==0.0.1.1"), "speechmos.plcmos", program)
    assert (theirs[0], ours[0]) == (onnxruntime.InferenceSession, rnnfast.InferenceSession)
    assert abs(ours[1][0] - ours[1][1]) > 0.1
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=TOLERANCE)
