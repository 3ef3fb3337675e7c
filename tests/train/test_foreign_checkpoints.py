"""A checkpoint that a stranger wrote is read, or refused by an rnnfast.Error; whatever its JSON and its header say."""

import copy
import json
import os
import struct

import numpy as np
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import ModelError

pytest.importorskip("safetensors")

KEY = "rnnfast.train"
VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    -(10**400),
    float("inf"),
    float("nan"),
    "x",
    "1" * 5000,
    [],
    {},
    [10**400],
    {"loss": [10**400]},
    {"loss": 10**400},
    2**64,
]


def network():
    return nn.Sequential(nn.GRU(3, 4, batch_first=True, rng=0), nn.Linear(4, 2, rng=1))


def fit(net, epochs, **options):
    x = np.linspace(-1, 1, 72, dtype=np.float32).reshape(6, 4, 3)
    return net.fit(
        x, x[..., :2], loss=train.MSE(), optimizer=train.Adam(), epochs=epochs, seed=0, tbptt=2, patience=5, **options
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The header, the metadata and the arrays' bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("c") / "c"
    fit(network(), 1, checkpoint=path)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"][KEY]), data[8 + size :]


def tried(path, header, meta, rest):
    """Both ways of reading a checkpoint give a result or an rnnfast.Error; return the number of errors."""
    if meta is not None:
        header = header | {"__metadata__": {KEY: meta if isinstance(meta, str) else json.dumps(meta)}}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    errors = 0
    for read in (
        lambda: train.load_checkpoint(path, network()),
        lambda: fit(network(), 2, checkpoint=path, resume=True),
    ):
        try:
            read()
        except rnnfast.Error:
            errors += 1
    return errors


def places(value, path=()):
    """The paths to all values within nested dicts and lists."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(min(2, len(value))):
            yield from places(value[key], (*path, key))


def changed(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize("new", VALUES, ids=lambda value: str(value)[:12])
def test_any_value_in_any_place_of_the_metadata(parts, tmp_path, new):
    header, meta, rest = parts
    errors = [tried(tmp_path / "c", header, changed(meta, path, new), rest) for path in places(meta) if path]
    assert sum(errors) > 10


@pytest.mark.parametrize("depth", [10**3, 10**5, 10**6])
def test_deep_json(parts, tmp_path, depth):
    header, meta, rest = parts
    deep = "[" * depth + "]" * depth
    assert tried(tmp_path / "c", header, deep, rest) == 2
    tried(tmp_path / "c", header, json.dumps(meta)[:-1] + f', "more": {deep}}}', rest)
    for name in ("history", "settings", "state", "generator", "sums"):
        assert tried(tmp_path / "c", header, json.dumps(meta | {name: "HERE"}).replace('"HERE"', deep), rest) >= 1


@pytest.mark.parametrize(
    "new", [*VALUES, "BF16", "F8_E4M3", "F64", "I64", "BOOL", [0, 0], [0, 2**64], [-1, 5], [2**40]]
)
def test_any_value_in_the_header(parts, tmp_path, new):
    header, _, rest = parts
    for path in places(header):
        if path and path[0] in ("net.1.bias", "optimizer.mean", "best"):
            tried(tmp_path / "c", changed(header, path, new), None, rest)
    assert tried(tmp_path / "c", changed(header, ("net.1.bias",), new), None, rest) == 2


@pytest.mark.parametrize("size", [0, 1, 100, 2**31, 2**32, 2**63, 2**64 - 1])
def test_headers_whose_size_lies(parts, tmp_path, size):
    header, _, rest = parts
    (tmp_path / "c").write_bytes(struct.pack("<Q", size) + json.dumps(header).encode() + rest)
    with pytest.raises(ModelError, match="is no checkpoint"):
        train.load_checkpoint(tmp_path / "c", network())


@pytest.mark.parametrize("kind", ["fifo", "device", "link to a fifo", "empty"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "c"
    if kind == "device":
        path = "/dev/zero"
    elif kind == "empty":
        path.touch()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
        path = tmp_path / "pipe" if kind == "fifo" else path
    for read in (
        lambda: train.load_checkpoint(path, network()),
        lambda: fit(network(), 1, checkpoint=path, resume=True),
    ):
        with pytest.raises(ModelError, match="is no checkpoint"):
            read()
