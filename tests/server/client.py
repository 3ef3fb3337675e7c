"""What tests send to a server of the denoiser, and what a stream alone gives."""

import http.client
import json
import time

import numpy as np

import rnnfast
from tests.paths import MODELS

BANDS = 22
# Seconds within which something has to happen.
SECONDS = 20


def frames(seed, count):
    """Random frames [count, 1, BANDS]."""
    return np.random.default_rng(seed).standard_normal((count, 1, BANDS), dtype=np.float32)


def frame(seed=0):
    """A random frame [1, BANDS]."""
    return frames(seed, 1)[0]


def alone(x):
    """What a stream of its own gives for frames: a list of [1, BANDS]."""
    stream = rnnfast.load(MODELS / "denoiser.onnx").stream()
    return [stream.step(bands=frame) for frame in x]


def ask(server, method, path, body=None, headers={}):
    """(status, headers, body) of a request to a server of `running`; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection(server.address("http"), timeout=SECONDS)
    body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, data


def bands(x):
    """An array as the input of the denoiser in a request."""
    return {"name": "bands", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}


def infer(server, x, headers={}, path="/v2/models/denoiser/infer", **parameters):
    """(status, the object of the answer) of a request with a frame and parameters."""
    status, _, body = ask(server, "POST", path, {"inputs": [bands(x)], "parameters": parameters}, headers)
    return status, json.loads(body)


def eventually(condition):
    """Wait until a function returns something true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
