"""Quantised layers: copies for inference whose weights are of a type, in calls, streams, pools, pickles and files."""

import copy
import pickle
import re

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError, ModelError, UnsupportedError
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests.cases import bits, type_options
from tests.graphs import random

typed = pytest.mark.parametrize("key", WEIGHT_TYPES)
# Integer products round activations, to 15 bits by 1e-4 of a layer's result, to 8 bits by 1e-2. Others are float32's.
INTEGERS = {"int8": 5e-3, "int8_a8": 0.2}


def recurrent(kind, *args, **options):
    return lambda: kind(*args, rng=1, **options)


# name -> (layer, shape of x; that of a pair of sequences of tokens for Seq2Seq)
LAYERS = {
    "Linear": (recurrent(nn.Linear, 9, 7), (3, 9)),
    "Linear without bias": (recurrent(nn.Linear, 9, 7, bias=False), (2, 3, 9)),
    "Conv1d": (recurrent(nn.Conv1d, 6, 8, 3, groups=2, padding="causal"), (2, 6, 11)),
    "RNN": (recurrent(nn.RNN, 9, 13, 2, nonlinearity="relu"), (5, 3, 9)),
    "GRU": (recurrent(nn.GRU, 9, 13, bidirectional=True), (5, 3, 9)),
    "GRU reset first": (recurrent(nn.GRU, 9, 13, linear_before_reset=False), (5, 3, 9)),
    "LSTM": (recurrent(nn.LSTM, 9, 17, 2, batch_first=True), (3, 5, 9)),
    "LSTM with projection": (recurrent(nn.LSTM, 9, 17, proj_size=6), (5, 3, 9)),
    "LSTM with peepholes": (recurrent(nn.LSTM, 9, 17, peepholes=True), (5, 3, 9)),
    "RNNCell": (recurrent(nn.RNNCell, 9, 13), (3, 9)),
    "GRUCell": (recurrent(nn.GRUCell, 9, 13), (3, 9)),
    "LSTMCell": (recurrent(nn.LSTMCell, 9, 13), (3, 9)),
    "Sequential": (
        lambda: nn.Sequential(
            nn.LayerNorm(9),
            nn.LSTM(9, 11, rng=2),
            nn.Sequential(nn.Linear(11, 12, rng=3), nn.Tanh()),
            nn.GRU(12, 5, rng=4),
        ),
        (5, 3, 9),
    ),
    "Seq2Seq": (recurrent(nn.Seq2Seq, 20, 21, 8, 12, cell="LSTM", bidirectional=True, attention="additive"), None),
}


# Those of which an ONNX file has the layer's bits; others are rounded once more, or are two files.
EXACT = ("RNN", "GRU", "GRU reset first", "LSTM", "LSTM with peepholes", "Linear")


def input_of(name):
    shape = LAYERS[name][1]
    if shape is not None:
        return random(5, *shape)
    rng = np.random.default_rng(5)
    return rng.integers(0, 20, (3, 6)), rng.integers(0, 21, (3, 4))


def arrays(value):
    """The arrays of a result, which may be nested in tuples."""
    return [a for part in value for a in arrays(part)] if isinstance(value, tuple) else [value]


def same(one, other):
    return bits(arrays(one)) == bits(arrays(other))


def rounded(layer, key):
    """The state dict of a layer rounded to a type, by the names and shapes of matrices alone."""
    values = {}
    for name, array in layer.state_dict().items():
        product = re.search(r"weight(_[ih]h|_hr)?(_l\d.*)?$", name) and array.ndim > 1 and "embedding" not in name
        values[name] = array
        if product:
            rows = array.reshape(len(array), -1)
            values[name] = WEIGHT_TYPES[key].rounded(rows.T.copy()).T.reshape(array.shape)
    return values


@typed
@pytest.mark.parametrize("name", LAYERS)
def test_calls(name, key):
    layer, x = LAYERS[name][0](), input_of(name)
    before = layer.state_dict()
    plain, twin = layer(x), layer.quantized(**type_options(key))
    assert type(twin) is type(layer) and twin.shapes() == layer.shapes()
    expected, held = rounded(layer, key), twin.state_dict()
    assert held.keys() == expected.keys() and all(same(held[n], expected[n]) for n in held)
    assert any(not same(held[n], before[n]) for n in held)
    layer.load_state_dict(held)  # the rounded weights in float32
    ours, theirs = arrays(twin(x)), arrays(layer(x))
    for y, other, was in zip(ours, theirs, arrays(plain)):
        largest = np.abs(other).max()
        assert np.abs(y - other).max() <= INTEGERS.get(key, 0) * largest
        assert 1e-5 * largest < np.abs(y - was).max() < (0.05 + 5 * INTEGERS.get(key, 0)) * max(1, largest)


@typed
@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_later_weights(name, key):
    layer, x = LAYERS[name][0](), input_of(name)
    twin = layer.quantized(**type_options(key))
    y = twin(x)
    for other in (copy.copy(twin), copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert same(other(x), y) and repr(other) == repr(twin)
    if key != "int8_a8":
        assert f".quantized('{WEIGHT_TYPES[key].weights}')" in repr(twin) or name == "Seq2Seq"
    twin.load_state_dict({n: np.zeros_like(a) for n, a in layer.state_dict().items()})
    assert not same(twin(x), y)
    twin.load_state_dict(layer.state_dict())  # float32 weights, which are rounded anew
    assert same(twin(x), y)


@typed
@pytest.mark.parametrize("name", LAYERS)
def test_files(name, key, tmp_path):
    pytest.importorskip("safetensors")
    layer, x = LAYERS[name][0](), input_of(name)
    twin = layer.quantized(**type_options(key))
    for ending in (".safetensors", "" if name == "Seq2Seq" else ".onnx"):
        if ending == ".onnx" and ("projection" in name):
            continue
        twin.save(tmp_path / f"m{ending}")
        other = nn.load(tmp_path / f"m{ending}")
        assert same(other(x), twin(x)) and repr(other) == repr(twin)
    if name in (
        "RNN",
        "GRU",
        "GRU reset first",
        "LSTM",
        "LSTM with peepholes",
        "Linear",
    ):  # of which the file has the layer's bits
        for options in (type_options(key), {})[: 1 if WEIGHT_TYPES[key].integers else 2]:
            assert same(rnnfast.load(tmp_path / "m.onnx", **options)(x=x).y, arrays(twin(x))[0])


@typed
def test_ways_to_run_give_the_same_bits(key):
    net = LAYERS["Sequential"][0]().quantized(**type_options(key))
    x = random(6, 12, 4, 9)
    y = net(x)
    for row in range(4):
        assert same(net(np.ascontiguousarray(x[:, row : row + 1])), y[:, row : row + 1].copy())
        stream = net.stream()
        assert same(np.array([stream.step(frame) for frame in x[:, row]]), y[:, row].copy())
        stream.reset()
        assert same(np.concatenate([stream.run(x[:5, row].copy()), stream.run(x[5:, row].copy())]), y[:, row].copy())
    pool = net.pool(4)
    streams = np.array([pool.open() for _ in range(4)])
    assert same(np.array([pool.step(streams, frame) for frame in x]), y)
    lengths = [12, 3, 7, 1]
    ragged = net(x, lengths=lengths)
    for row, n in enumerate(lengths):
        assert same(ragged[:n, row].copy(), y[:n, row].copy())


@pytest.mark.parametrize("name", LAYERS)
def test_training_is_refused(name):
    layer, x = LAYERS[name][0](), input_of(name)
    saved = None if name == "LSTM with peepholes" else layer.forward(x, training=True)[-1]
    twin = layer.quantized("int8")
    with pytest.raises(UnsupportedError, match="is quantised, for inference: it has no gradients"):
        twin.forward(x, training=True)
    with pytest.raises(UnsupportedError, match="is quantised, for inference: it has no gradients"):
        twin.backward(None, None, saved)
    with pytest.raises(UnsupportedError, match="is quantised, for inference: it has no gradients"):
        twin.fit(x, x, loss="mse", optimizer="adam")


def test_quantised_networks_predict():
    net = nn.Sequential(nn.LSTM(9, 11, batch_first=True, rng=2), nn.Linear(11, 3, rng=3)).quantized("int8")
    x = random(1, 7, 5, 9)
    assert same(net.predict(x, batch_size=3), net(x))
    assert net.evaluate(x, random(2, 7, 5, 3), loss="mse")["loss"] > 0


def test_a_member_may_be_quantised_alone():
    net = nn.Sequential(nn.Linear(9, 7, rng=1).quantized("int8"), nn.Linear(7, 5, rng=2))
    assert repr(net) == "Sequential(Linear(9, 7).quantized('int8'), Linear(7, 5))"
    with pytest.raises(UnsupportedError, match=re.escape("Linear(9, 7).quantized('int8') is quantised")):
        net.forward(random(1, 3, 9), training=True)
    assert nn.Linear(9, 7).quantized("int8", activations=8).__repr__().endswith(".quantized('int8', activations=8)")


def test_summary():
    layer = nn.LSTM(9, 17, proj_size=6)
    rows = 4 * 17
    assert layer.summary_rows()[0].bytes == 4 * (rows * (9 + 6) + 6 * 17 + 2 * rows)
    products = rows * (9 + 6) + 6 * 17
    assert layer.quantized("int8").summary_rows()[0].bytes == products + 4 * (2 * rows + 6) + 4 * 2 * rows
    assert layer.quantized("bf16").summary_rows()[0].bytes == 2 * products + 4 * 2 * rows
    assert "int8" in layer.quantized("int8").summary()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": None}, "weights: got None, expected a type"),
        ({"weights": "int4"}, "weights is 'int4', expected None or one of"),
        ({"weights": "int8", "activations": 7}, "activations is 7, expected 15 or 8"),
        ({"weights": "fp16", "activations": 8}, "activations is 8 with weights 'fp16'"),
    ],
    ids=str,
)
def test_wrong_arguments(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        nn.Linear(3, 2).quantized(**options)


@pytest.mark.parametrize("value, weights", [(np.nan, "int8"), (np.inf, "bf16"), (1e5, "fp16")])
def test_weights_beyond_the_type(value, weights):
    net = nn.Sequential(nn.LSTM(3, 4, rng=1), nn.Linear(4, 2, rng=2))
    values = net.state_dict()
    values["0.weight_hh_l0"][2, 1] = value
    net.load_state_dict(values)
    with pytest.raises(UnsupportedError, match="weight_hh_l0: the weights are"):
        net.quantized(weights)
    twin = LAYERS["Linear"][0]().quantized(weights)
    before = twin.state_dict()
    with pytest.raises(UnsupportedError, match="weight: the weights are"):
        twin.load_state_dict(before | {"weight": np.full((7, 9), value, np.float32)})
    assert same(twin.state_dict()["weight"], before["weight"])


def test_a_description_with_another_type_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    nn.Linear(3, 2, rng=1).quantized("int8").save(tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data.replace(b'\\"int8\\"', b'\\"int4\\"'))
    with pytest.raises(ModelError, match="weights is 'int4'"):
        nn.load(tmp_path / "m.safetensors")
