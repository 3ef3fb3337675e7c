"""Servers for tests in processes of their own, as users start them, and requests on raw sockets."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys

import numpy as np
import pytest

from tests.paths import ROOT

PACKAGES = ("click", "rich", "httptools", "uvloop", "orjson")


class Server:
    """A server's process and where it listens."""

    def __init__(self, process):
        self.process, self.lines = process, []

    def port(self, scheme="http"):
        """The port that it said it listens at for a scheme; it is read until it says so."""
        while True:
            for line in self.lines:
                if found := re.search(rf"listening on {scheme}://\S*:(\d+)", line):
                    return int(found[1])
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.lines.append(line)


def command(*args):
    """The command line of a server with any free ports."""
    return [sys.executable, "-m", "rnnfast", "serve", "--http-port=0", "--grpc-port=0", "--drain=0", *map(str, args)]


def environment(**variables):
    """The environment of a server."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RNNFAST_SERVE_")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path} | variables


@contextlib.contextmanager
def started(*args, scheme="http", stderr=None, **variables):
    """A server with arguments, until the block ends; it has to end well and, without `stderr`, to say nothing there."""
    for package in PACKAGES:
        pytest.importorskip(package)
    process = subprocess.Popen(
        command(*args), cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr or subprocess.PIPE, text=True,
        env=environment(**variables),
    )  # fmt: skip
    server = Server(process)
    try:
        server.port(scheme)
        yield server
        assert process.poll() in (None, 0)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and not errors, errors


def connected(port, context=None):
    """A connection to a server."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    return connection if context is None else context.wrap_socket(connection, server_hostname="localhost")


def received(connection):
    """All bytes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def answer(connection):
    """(status, headers, body) of one answer with a Content-Length; status 0 if the connection ends before it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(2**16)
        if not part:
            return 0, {}, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        part = connection.recv(2**16)
        assert part, (head, body)
        body += part
    return int(first.split()[1]), headers, body


def request(method, path, body=b"", **headers):
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def ask(port, method, path, body=b"", context=None, **headers):
    """(status, headers, body) of one request on a connection of its own."""
    with connected(port, context) as connection:
        connection.sendall(request(method, path, body, connection="close", **headers))
        return answer(connection)


def frame(bands, sequence=0, start=False, end=False):
    """The body of an infer request of the denoiser."""
    message = {"inputs": [{"name": "bands", "datatype": "FP32", "shape": [1, 22], "data": np.ravel(bands).tolist()}]}
    if sequence:
        message["parameters"] = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    return json.dumps(message).encode()


def gains(body):
    """The result of the denoiser in an answer."""
    outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
    return np.array(outputs["gains"]["data"], np.float32).reshape(outputs["gains"]["shape"])
