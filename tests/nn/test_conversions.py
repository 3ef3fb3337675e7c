"""Floats of other widths and lists of numbers where float32 is meant give the bits of their rounded values."""

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError
from rnnfast.nn.module import takes_floats

X = np.random.default_rng(5).standard_normal((3, 4, 5))  # float64
ROUNDED = X.astype(np.float32)
LAYERS = {
    "Linear": lambda: nn.Linear(5, 7, rng=1),
    "LayerNorm": lambda: nn.LayerNorm(5),
    "Dropout": lambda: nn.Dropout(0.5),
    "Tanh": lambda: nn.Tanh(),
    "LSTM": lambda: nn.LSTM(5, 7, 2, rng=1),
    "GRU": lambda: nn.GRU(5, 7, batch_first=True, return_sequences=False, rng=1),
    "RNN": lambda: nn.RNN(5, 7, bidirectional=True, rng=1),
    "Sequential": lambda: nn.Sequential(nn.LSTM(5, 7, rng=1), nn.Linear(7, 3, rng=2)),
}


def output(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", LAYERS)
def test_calls(name):
    layer = LAYERS[name]()
    assert takes_floats(layer)
    expected = output(layer(ROUNDED))
    for x in (X, X.tolist(), X.astype(">f8"), list(X)):
        y = output(layer(x))
        assert y.dtype == np.float32 and np.array_equal(y, expected)
    assert np.array_equal(output(layer(np.float16(X))), output(layer(np.float16(X).astype(np.float32))))
    whole = np.arange(60).reshape(3, 4, 5)
    assert np.array_equal(output(layer(whole.tolist())), output(layer(whole.astype(np.float32))))


def test_states_and_gradients():
    layer, h = nn.LSTM(5, 7, rng=1), X[:1, :, :1].repeat(7, 2)
    y, (hn, cn), saved = layer.forward(X, (h, h.tolist()), training=True)
    expected = layer.forward(ROUNDED, (h.astype(np.float32),) * 2, training=True)
    assert np.array_equal(y, expected[0]) and np.array_equal(cn, expected[1][1])
    gradients = layer.backward(y.astype(np.float64), None, saved)[2]
    for name, gradient in layer.backward(y, None, saved)[2].items():
        assert np.array_equal(gradients[name], gradient)


@pytest.mark.parametrize("name", ["LSTM", "Sequential"])
def test_streams_and_pools(name):
    layer = LAYERS[name]()
    expected = output(layer(ROUNDED))[:, 0]
    stream = layer.stream()
    assert np.array_equal(np.stack([stream.step(x) for x in (X[0, 0].tolist(), X[1, 0], ROUNDED[2, 0])]), expected)
    assert np.array_equal(layer.stream().run(X[:, 0]), expected)
    pool = layer.pool(2)
    pool.open()
    rows = [pool.step([0], x)[0] for x in (X[0, :1], X[1, :1].tolist(), ROUNDED[2, :1])]
    assert np.array_equal(rows, expected)
    assert np.array_equal(pool.run([pool.open()], X[:, :1].swapaxes(0, 1))[0], expected)
    with rnnfast.Batcher(layer) as batcher:
        stream = batcher.open()
        rows = [batcher.submit(stream, x).result(20) for x in (X[0, 0], ROUNDED[1, 0], X[2, 0].tolist())]
        assert np.array_equal(rows, expected)


def test_an_embedding_keeps_integers():
    net = nn.Sequential(nn.Embedding(9, 5, rng=1), nn.GRU(5, 3, rng=2))
    assert not takes_floats(net)
    assert np.array_equal(net([[1, 2], [3, 8]]), net(np.array([[1, 2], [3, 8]], np.uint8)))


@pytest.mark.parametrize("layer", [nn.LSTM(5, 7), nn.Embedding(9, 5), nn.Sequential(nn.Embedding(9, 5), nn.GRU(5, 7))])
def test_rows_of_different_lengths_name_what_takes_them(layer):
    rows = [[1, 2, 3], [4, 5]] if not takes_floats(layer) else [ROUNDED[0], ROUNDED[1, :2]]
    with pytest.raises(InputError, match="different lengths; expected one padded array and lengths=, or a packed"):
        layer(rows)
