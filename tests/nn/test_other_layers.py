"""Linear, Embedding, activation layers, Sequential and their summaries."""

import re

import numpy as np
import pytest

from rnnfast import nn, reference
from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.native import cell_activations
from tests.nn.helpers import TOLERANCE, sigmoid, uniform


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5), (2, 0, 3, 5)])
def test_linear(shape, bias):
    rng = np.random.default_rng(3)
    layer = nn.Linear(5, 17, bias, rng=rng)
    weights = layer.state_dict()
    assert list(weights) == (["weight", "bias"] if bias else ["weight"])
    x = uniform(rng, *shape)
    want = x.astype(np.float64) @ weights["weight"].T + weights.get("bias", 0)
    got = layer(x)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.zeros((3, 4), np.float32), InputError, r"x: shape is \[3, 4\], expected \[..., 5\] \(in_features\)"),
        (np.float32(1), InputError, r"x: shape is \[\]"),
        (np.zeros((3, 5), int), InputTypeError, "x: dtype is int64"),
    ],
)
def test_linear_refuses(x, error, message):
    with pytest.raises(error, match=message):
        nn.Linear(5, 3)(x)


def test_embedding():
    layer = nn.Embedding(11, 3, padding_idx=2, rng=1)
    weight = layer.state_dict()["weight"]
    assert not weight[2].any() and weight[1].all()
    x = np.array([[1, 10, 2], [0, 0, 5]], np.int32)
    y = layer(x)
    np.testing.assert_array_equal(y, weight[x])
    y[...] = 7
    np.testing.assert_array_equal(layer(x), weight[x])
    assert layer(np.zeros((0, 4), np.int64)).shape == (0, 4, 3)
    assert layer(3).shape == (3,)


@pytest.mark.parametrize(
    "x, error, message",
    [
        ([1, 11], InputError, r"x: 11 at \[1\], expected 0 to 10"),
        ([[1], [-1]], InputError, r"x: -1 at \[1, 0\], expected 0 to 10"),
        ([1.0], InputTypeError, "x: dtype is float64, expected integers"),
    ],
)
def test_embedding_refuses(x, error, message):
    with pytest.raises(error, match=message):
        nn.Embedding(11, 3)(x)


ACTIVATIONS = {
    nn.ReLU: ({}, lambda x: np.maximum(x, 0)),
    nn.Tanh: ({}, np.tanh),
    nn.Sigmoid: ({}, sigmoid),
    nn.Softplus: ({}, lambda x: np.log1p(np.exp(x))),
    nn.Softsign: ({}, lambda x: x / (1 + np.abs(x))),
    nn.Hardsigmoid: ({}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    nn.LeakyReLU: ({"negative_slope": 0.3}, lambda x: np.where(x > 0, x, 0.3 * x)),
    nn.ELU: ({"alpha": 1.7}, lambda x: np.where(x > 0, x, 1.7 * np.expm1(x))),
}


@pytest.mark.parametrize("layer_class", ACTIVATIONS)
def test_activation_layers(layer_class):
    keywords, function = ACTIVATIONS[layer_class]
    layer = layer_class(**keywords)
    x = np.linspace(-9, 9, 222, dtype=np.float32).reshape(2, 3, 37)
    for given in (x, x[:, ::2, ::-3], x[0, 0, 0], x[:0]):
        got = layer(given)
        assert got.shape == given.shape
        np.testing.assert_allclose(got, function(np.float64(given)), rtol=TOLERANCE, atol=TOLERANCE)
    assert layer.state_dict() == {}


def test_every_activation_has_the_defaults_of_the_reference():
    assert list(cell_activations.DEFAULTS) == list(reference.ACTIVATIONS)
    for name, values in cell_activations.DEFAULTS.items():
        assert tuple(v or 0.0 for v in values) == reference.defaults(name)


def test_sequential():
    rng = np.random.default_rng(2)
    parts = [
        nn.Embedding(11, 5),
        nn.GRU(5, 7, bidirectional=True),
        nn.Sequential(nn.LSTM(14, 6), nn.Tanh()),
        nn.Linear(6, 3),
    ]
    net = nn.Sequential(*parts)
    x, lengths = rng.integers(0, 11, (6, 4)), [6, 1, 0, 4]
    y = parts[1](parts[0](x), lengths=lengths)[0]
    y = parts[2].layers[0](y, lengths=lengths)[0]
    want = parts[3](nn.Tanh()(y))
    np.testing.assert_array_equal(net(x, lengths=lengths), want)
    assert list(net.state_dict())[:2] == ["0.weight", "1.weight_ih_l0"]
    assert "2.0.weight_ih_l0" in net.state_dict()

    other = nn.Sequential(
        nn.Embedding(11, 5), nn.GRU(5, 7, bidirectional=True), nn.Sequential(nn.LSTM(14, 6), nn.Tanh()), nn.Linear(6, 3)
    )
    other.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(other(x, lengths=lengths), want)
    with pytest.raises(ModelError, match="missing 3.bias, unexpected nothing"):
        other.load_state_dict({name: a for name, a in net.state_dict().items() if name != "3.bias"})


def test_summary():
    net = nn.Sequential(
        nn.Embedding(11, 5),
        nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True, proj_size=3),
        nn.GRU(6, 9, bias=False, batch_first=True),
        nn.Linear(9, 2),
        nn.Sigmoid(),
    )
    rows = net.summary_rows()
    first, second = 2 * (28 * (5 + 3) + 3 * 7), 2 * (28 * (6 + 3) + 3 * 7)
    assert [row.output for row in rows] == [
        ("...", 5),
        ("B", "T", 6),
        ("B", "T", 6),
        ("B", "T", 9),
        ("B", "T", 2),
        ("B", "T", 2),
    ]
    assert [row.parameters for row in rows] == [55, first + 4 * 28, second + 4 * 28, 27 * (6 + 9), 20, 0]
    assert [row.flops for row in rows] == [0, 2 * first, 2 * second, 2 * 27 * (6 + 9), 36, 0]
    assert [row.bytes for row in rows] == [20, 4 * (first + 112), 4 * (second + 112), 4 * 405, 80, 0]
    assert sum(row.parameters for row in rows) == sum(a.size for a in net.state_dict().values())
    lines = net.summary().splitlines()
    assert len(lines) == 12 and re.split("  +", lines[0]) == [
        "Layer (type)",
        "Output shape",
        "Param #",
        "Flops/step",
        "Bytes/step",
    ]
    assert lines[-3].split()[1:] == [f"{sum(row[i] for row in rows):,}" for i in (2, 3, 4)]
    assert lines[-2:] == ["Trainable params: 1,740 (0.01 MB)", "Non-trainable params: 0"]
    assert "[32, 10, 6]" in net.summary((32, 10)) and "[32, 10, 2]" in net.summary((32, 10))
    for empty in (nn.Sequential(), nn.Sequential(nn.Sequential())):
        assert empty.summary().splitlines()[-3].split() == ["total", "0", "0", "0"]


@pytest.mark.parametrize(
    "layer, text",
    [
        (nn.LSTM(5, 7), "LSTM(5, 7)"),
        (
            nn.GRU(5, 7, 2, batch_first=True, bidirectional=True, merge="sum"),
            "GRU(5, 7, num_layers=2, batch_first=True, bidirectional=True, merge='sum')",
        ),
        (nn.RNN(5, 7, nonlinearity="relu", bias=False), "RNN(5, 7, nonlinearity='relu', bias=False)"),
        (nn.Sequential(nn.Linear(5, 3), nn.LeakyReLU(0.2)), "Sequential(Linear(5, 3), LeakyReLU(negative_slope=0.2))"),
    ],
    ids=repr,
)
def test_repr(layer, text):
    assert repr(layer) == text
