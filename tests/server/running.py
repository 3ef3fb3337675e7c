"""Servers in processes of their own, and clients that send them frames of sequences over HTTP."""

import contextlib
import functools
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np

import rnnfast
from tests.paths import ROOT

DENOISER = str(ROOT / "models" / "denoiser.onnx")
# Seconds after which a test gives up on a server.
PATIENCE = 20


class Server:
    """`rnnfast serve` in a process of its own, listening.

    Attributes:
        process: The Popen.
        port, grpc_port: The ports of HTTP and gRPC.
        lines: What it wrote on stderr.
    """

    def __init__(self, *options, sources=(DENOISER,), port=0):
        command = [sys.executable, "-m", "rnnfast", "serve", *sources, "--http-port", str(port)]
        if "--grpc-port" not in options:
            command += ["--grpc-port", "0"]
        self.process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ports = dict(re.findall(r"(http|grpc)://[^:]*:(\d+)", "".join(itertools.islice(self.process.stdout, 2))))
        if len(ports) < 2:
            self.wait()
            raise AssertionError(f"the server ended: {self.lines}")
        self.port, self.grpc_port = int(ports["http"]), int(ports["grpc"])

    def _read(self):
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip())

    def end(self, number=signal.SIGTERM):
        """Send a signal and wait for the end: the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def kill(self):
        """End it in any case."""
        if self.process.poll() is None:
            self.end(signal.SIGKILL)

    def wait(self):
        """The exit status, when the server has ended."""
        status = self.process.wait(PATIENCE)
        self.process.stdout.close()
        self._reader.join()
        return status


@contextlib.contextmanager
def running(*options, **where):
    """A Server, which is killed if it has not ended afterwards."""
    server = Server(*options, **where)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGTERM if "--processes" in options else signal.SIGKILL)


class Refused(Exception):
    """An answer with another status than 200: (status, text of the error, headers)."""


class Client:
    """A connection that is opened when it is needed.

    Attributes:
        port: The port of the server.
        sent: The requests that were answered, by status.
    """

    def __init__(self, port):
        self.port, self.sent, self._connection = port, {}, None

    def request(self, method, path, body=None, headers=None):
        """(status, body, headers) of an answer."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            self._connection.request(method, path, body, headers or {})
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        self.sent[answer.status] = self.sent.get(answer.status, 0) + 1
        return answer.status, data, answer.headers

    def get(self, path):
        """The JSON of an answer."""
        status, data, headers = self.request("GET", path)
        if status != 200:
            raise Refused(status, data.decode(), headers)
        return json.loads(data)

    def step(self, id, frame, start=False, end=False, model="denoiser", headers=None):
        """The result of a frame of a sequence of the denoiser."""
        message = {
            "id": repr(id),
            "inputs": [
                {"name": "bands", "datatype": "FP32", "shape": frame.shape,
                 "parameters": {"binary_data_size": frame.nbytes}}
            ],
            "parameters": {"sequence_id": id, "sequence_start": start, "sequence_end": end, "binary_data_output": True},
        }  # fmt: skip
        text = json.dumps(message).encode()
        headers = {"Inference-Header-Content-Length": str(len(text)), **(headers or {})}
        status, data, answered = self.request("POST", f"/v2/models/{model}/infer", text + frame.tobytes(), headers)
        if status != 200:
            # A proxy's own errors are no JSON.
            text = json.loads(data)["error"] if answered["Content-Type"] == "application/json" else data.decode()
            raise Refused(status, text, answered)
        length = int(answered["Inference-Header-Content-Length"])
        assert json.loads(data[:length])["id"] == repr(id)
        return np.frombuffer(data[length:], np.float32)

    def patient_step(self, *args, **options):
        """As `step`, again and again while the server ends and another one begins."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.step(*args, **options)
            except Refused as e:
                if e.args[0] != 503 or time.monotonic() > deadline:
                    raise
                assert e.args[2]["Retry-After"]
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def close(self):
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    __del__ = close


@functools.cache
def denoiser():
    """The model, for what a stream alone gives."""
    return rnnfast.load(DENOISER)


def frames_of(id, count):
    """Random frames [count, 1, 22] of a sequence of the denoiser."""
    seed = [ord(letter) for letter in str(id)]
    return np.random.default_rng(seed).random((count, 1, 22), dtype=np.float32)


def alone(frames):
    """What a stream of its own gives for frames: [count, 22]."""
    with denoiser().stream() as stream:
        return np.stack([stream.step({"bands": frame}).reshape(-1).copy() for frame in frames])


def resident(pid):
    """The bytes of memory that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def in_threads(function, items, threads=8):
    """Call a function with lists of items, one list for each thread; raise the first error of one."""
    errors = []

    def call(part):
        try:
            function(part)
        except BaseException as e:
            errors.append(e)

    workers = [threading.Thread(target=call, args=(items[i::threads],)) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    except BaseException:
        if errors:
            raise errors[0] from None
        raise
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
