"""The service of models/vad_service.py and its load generator, each a process of its own, and rude clients."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

import rnnfast
from tests.graphs import parse, random

pytest.importorskip("picows")
pytest.importorskip("click")
from picows import WSListener, WSMsgType, ws_connect
from picows.websockets.asyncio.client import connect
from picows.websockets.exceptions import ConnectionClosed

from tests.paths import ROOT

SILERO = "models/silero_vad_6.2.3__silero_vad.onnx"
# A small graph with the inputs, outputs and states of Silero VAD.
SMALL = """agraph (float[batch, n] input, float[2, batch, 7] state, int64 sr)
    => (float[batch, 1] output, float[2, batch, 7] stateN)
{
    half = Constant <value = int64[2] {1, 1}> ()
    first = Constant <value = int64[1] {0}> ()
    h, c = Split <axis = 0> (state, half)
    x = Unsqueeze (input, first)
    y, hn, cn = LSTM <hidden_size = 7> (x, w, r, b, , h, c)
    stateN = Concat <axis = 0> (hn, cn)
    last = Squeeze (hn, first)
    score = Gemm (last, v)
    output = Sigmoid (score)
}"""
PCM = (random(5, 20, 512) * 3000).astype("<i2")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("service") / "small.onnx"
    path.write_bytes(
        parse(SMALL, w=random(0, 1, 28, 576) / 5, r=random(1, 1, 28, 7), b=random(2, 1, 56), v=random(3, 7, 1))
    )
    return str(path)


@contextmanager
def service(model, *options):
    """The address of a running service, which SIGTERM ends without a complaint."""
    command = [sys.executable, str(ROOT / "models" / "vad_service.py"), model, "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on ws://127.0.0.1:"), process.communicate()
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and "Traceback" not in errors, errors
        assert re.fullmatch(r"[\d,]+ frames in batches of [\d.]+\n", out)
    finally:
        process.kill()


def load(url, model, *options):
    return subprocess.run(
        [sys.executable, str(ROOT / "models" / "vad_load.py"), url, model, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )


def expected(model):
    samples = np.concatenate([np.zeros(64), PCM.ravel() / 2.0**15]).astype(np.float32)
    stream = rnnfast.load(model).stream(sr=16000)
    return [stream.step(input=samples[None, 512 * i : 512 * i + 576]).item() for i in range(len(PCM))]


async def ask(client, chunk):
    await client.send(chunk.tobytes())
    return np.frombuffer(await client.recv(), "<f4").item()


async def reason(client, message=None):
    """Why the service closes a connection."""
    with pytest.raises(ConnectionClosed):
        if message is not None:
            await client.send(message)
        await client.recv()
    return client.close_code, client.close_reason


@pytest.mark.parametrize("silero", [False, True], ids=["small", "silero"])
def test_load(silero, small, published):
    model = str(published(SILERO)) if silero else small
    with service(model) as url:
        result = load(url, model, "--streams", "40", "--seconds", "1", "--kill", "7")
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
        assert "40 microphones" in result.stdout
        assert "\n0 lost, 0 with other bits than a stream alone, 7 microphones vanished\n" in result.stdout
        with urllib.request.urlopen(url.replace("ws:", "http:") + "/stats") as reply:
            stats = json.load(reply)
        assert stats["streams"] == 0 and 33 * 31 <= stats["frames"] <= 40 * 31 and stats["failed"] == 0


def test_readme(small):
    """The console session of docs/tutorials/streaming-service.md, with a small model and few microphones."""

    def comparable(text):
        return re.sub(r"[\d.,]*\d", "N", text)

    block = next(
        block
        for block in re.findall(
            r"```console\n(.*?)```", (ROOT / "docs" / "tutorials" / "streaming-service.md").read_text(), re.S
        )
        if "vad_service" in block
    ).splitlines(keepends=True)
    assert block[0] == "$ python models/vad_service.py build/silero_vad/data/silero_vad.onnx &\n"
    assert block[2] == (
        "$ python models/vad_load.py ws://127.0.0.1:8765 build/silero_vad/data/silero_vad.onnx "
        "--streams 400 --seconds 10\n"
    )
    with service(small) as url:
        assert comparable(f"listening on {url}\n") == comparable(block[1])
        result = load(url, small, "--streams", "9", "--seconds", "0.2")
    assert result.returncode == 0 and comparable(result.stdout) == comparable("".join(block[3:]))


def test_load_tells_other_bits(small, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(
        parse(SMALL, w=random(9, 1, 28, 576), r=random(1, 1, 28, 7), b=random(2, 1, 56), v=random(3, 7, 1))
    )
    with service(small) as url:
        result = load(url, str(other), "--streams", "2", "--seconds", "0.2")
    assert result.returncode == 1 and "\n0 lost, 12 with other bits" in result.stdout


def test_rude_clients(small):
    right = expected(small)

    async def run(url):
        async with connect(url) as good:
            answers = [await ask(good, chunk) for chunk in PCM[:5]]
            for message, came in [
                (b"\0" * 1022, "bytes of length 1022"),
                (b"", "bytes of length 0"),
                ("a" * 1024, "str of length 1024"),
            ]:
                async with connect(url) as client:
                    assert await reason(client, message) == (
                        1003,
                        f"{came} came, expected 1024 bytes: 512 samples of 16 bits",
                    )
            async with connect(url) as client:
                assert (await reason(client, b"\0" * 5000))[0] == 1009  # too big to be taken at all
            gone, _ = await ws_connect(WSListener, url)
            for chunk in PCM:
                gone.send(WSMsgType.BINARY, chunk.tobytes())
            gone.disconnect(False)
            answers += [await ask(good, chunk) for chunk in PCM[5:]]
            async with connect(url) as again:  # from the beginning
                assert await ask(again, PCM[0]) == right[0]
        return answers

    with service(small) as url:
        assert asyncio.run(run(url)) == right


def test_limits(small):
    async def run(url):
        async with connect(url) as first, connect(url) as second:
            assert await ask(second, PCM[0]) == expected(small)[0]
            async with connect(url) as third:
                assert await reason(third) == (1013, "small.onnx: all 2 streams are open")
            assert await reason(first) == await reason(second) == (1001, "no audio came")
        async with connect(url) as later:
            return await ask(later, PCM[0])

    with service(small, "--max-streams", "2", "--idle", "1") as url:
        assert asyncio.run(run(url)) == expected(small)[0]


def test_end_of_the_service(small):
    """Clients are told, and one that sends all the time cannot keep it up."""

    async def run(url, stop):
        async with connect(url) as quiet, connect(url) as busy:
            await ask(busy, PCM[0])
            for chunk in PCM:
                await busy.send(chunk.tobytes())
            stop()
            for client in quiet, busy:
                with pytest.raises(ConnectionClosed):
                    while True:
                        await client.recv()
                assert client.close_code == 1001 and client.close_reason

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "models" / "vad_service.py"), small, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    asyncio.run(run(process.stdout.readline().split()[-1], process.terminate))
    assert process.wait(20) == 0 and "frames in batches" in process.stdout.read()
