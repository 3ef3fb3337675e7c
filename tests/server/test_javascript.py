"""A client in JavaScript: fetch with JSON and with bytes, and a WebSocket."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import rnnfast
from tests.paths import MODELS, ROOT


def test_a_client_in_javascript_gets_the_bits_of_a_stream_alone(server):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    version = int(re.match(r"v(\d+)", subprocess.check_output([node, "--version"], text=True))[1])
    if version < 20:
        pytest.skip(f"node {version} has no WebSocket")
    x = np.random.default_rng(0).standard_normal((6, 1, 22), dtype=np.float32)
    stream = rnnfast.load(MODELS / "denoiser.onnx").stream()
    right = [stream.step(bands=frame)[0].tolist() for frame in x]
    flags = ["--experimental-websocket"] if version < 22 else []
    run = subprocess.run(
        [node, *flags, str(ROOT / "tests" / "server" / "client.mjs"), server.url],
        input=json.dumps(x[:, 0].tolist()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["ready"] == 200 and found["metadata"]["inputs"][0]["name"] == "bands"
    for way in "json", "bytes", "websocket":
        assert np.array(found[way], np.float32).tobytes() == np.array(right, np.float32).tobytes(), way
    assert found["closed"] == 1000
    assert found["error"]["status"] == 400 and "failed to parse the request JSON" in found["error"]["error"]
