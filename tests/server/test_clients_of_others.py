"""kserve's client, from PyPI and unchanged."""

import json
import subprocess

import numpy as np
import pytest

import rnnfast
from tests.fetched import pip
from tests.paths import MODELS, ROOT
from tests.server.conftest import running


@pytest.mark.slow
def test_kserve(index, environment, tmp_path):
    python = environment / "bin" / "python"
    done = pip(python, "install", "kserve==0.21.0")
    assert done.returncode == 0, done.stderr.decode()
    x = np.random.default_rng(0).standard_normal((5, 1, 22), dtype=np.float32)
    np.save(tmp_path / "frames.npy", x)
    with running("denoiser") as server:
        script = ROOT / "tests" / "server" / "kserve_client.py"
        addresses = server.address("http"), server.address("grpc")
        done = subprocess.run(
            [python, script, *addresses, tmp_path / "frames.npy"], capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    stream = rnnfast.load(MODELS / "denoiser.onnx").stream()
    expected = [stream.step(bands=frame).ravel() for frame in x]
    assert all(found[name] == [True, True] for name in ("live", "ready", "model ready"))
    for name in "http", "binary", "grpc":
        assert np.array_equal(np.array(found[name], np.float32), expected)
