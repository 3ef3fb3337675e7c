"""The microphones of models/vad_load.py, in a process of their own, as clients of a server."""

import os
import re
import subprocess
import sys

import pytest

from tests.graphs import parse, random
from tests.paths import ROOT
from tests.server.conftest import running
from tests.server.test_websocket import VAD

pytest.importorskip("click")
SILERO = "models/silero_vad_6.2.3__silero_vad.onnx"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vad") / "small.onnx", 0)


def write(path, seed):
    """A file like Silero VAD, with weights of a seed."""
    path.write_bytes(
        parse(VAD, w=random(seed, 1, 28, 576) / 5, r=random(1, 1, 28, 7), b=random(2, 1, 56), v=random(3, 7, 1))
    )
    return path


def load(server, name, model, *options):
    url = f"ws://{server.address('http')}/v2/models/{name}/stream"
    return subprocess.run(
        [sys.executable, str(ROOT / "models" / "vad_load.py"), url, str(model), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )


@pytest.mark.parametrize("silero", [False, True], ids=["small", "silero"])
def test_load(silero, small, published):
    model = published(SILERO) if silero else small
    with running(model) as server:
        result = load(server, model.stem, model, "--streams", "40", "--seconds", "1", "--kill", "7")
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
        assert "40 microphones" in result.stdout
        assert "\n0 lost, 0 with other bits than a stream alone, 7 microphones vanished\n" in result.stdout
        (model,) = server.service.models()
        counts = model.statistics
        assert 33 * 31 <= sum(counts.durations.counts) <= 40 * 31 and not counts.failed
        assert counts.opened == counts.ended + counts.dropped and server.service.live_sequences() == 0


def test_documented_session(small):
    """The console session of docs/tutorials/streaming-service.md, with a small model and few microphones."""

    def comparable(text):
        return re.sub(r"[\d.,]*\d", "N", text)

    page = (ROOT / "docs" / "tutorials" / "streaming-service.md").read_text()
    block = next(block for block in re.findall(r"```console\n(.*?)```", page, re.S) if "vad_load" in block)
    block = block.splitlines(keepends=True)
    assert block[0] == "$ rnnfast serve build/silero_vad/data/silero_vad.onnx &\n"
    assert block[3] == (
        "$ python models/vad_load.py ws://127.0.0.1:8000/v2/models/silero_vad/stream "
        "build/silero_vad/data/silero_vad.onnx --streams 400 --seconds 10\n"
    )
    with running(small) as server:
        assert comparable("\n".join(server.lines) + "\n") == comparable("".join(block[1:3]))
        result = load(server, "small", small, "--streams", "9", "--seconds", "0.2")
    assert result.returncode == 0 and comparable(result.stdout) == comparable("".join(block[4:]))


def test_load_tells_other_bits(small, tmp_path):
    with running(small) as server:
        other = write(tmp_path / "other.onnx", 9)
        result = load(server, "small", other, "--streams", "2", "--seconds", "0.2")
    assert result.returncode == 1 and "\n0 lost, 12 with other bits" in result.stdout
