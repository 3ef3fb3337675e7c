"""Cells are one step of the recurrent layers: bits of these, torch's values and gradients, files."""

import copy
import pickle

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError
from tests.graphs import onnxruntime
from tests.nn.helpers import uniform

TOLERANCE = 2e-6
"""Largest difference from torch in float64 relative to the largest value: a few roundings of float32 (6e-8 each).
Measured: 5.3e-7."""

CELLS = {
    "RNNCell": (nn.RNNCell, nn.RNN, {}),
    "RNNCell relu": (nn.RNNCell, nn.RNN, {"nonlinearity": "relu"}),
    "GRUCell": (nn.GRUCell, nn.GRU, {}),
    "LSTMCell": (nn.LSTMCell, nn.LSTM, {}),
    "LSTMCell no bias": (nn.LSTMCell, nn.LSTM, {"bias": False}),
}


def states(kind, rng, *shape):
    return tuple(uniform(rng, *shape, 7) for _ in range(2)) if kind is nn.LSTM else uniform(rng, *shape, 7)


def flat(state):
    return state if isinstance(state, tuple) else (state,)


def near(got, want, tolerance=TOLERANCE):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=0)


def test_each_cell_has_a_case():
    assert {cell for cell, _, _ in CELLS.values()} == {getattr(nn, name) for name in nn.__all__ if "Cell" in name}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(3,), (), (0,)])
def test_steps_are_those_of_the_layer(name, batch):
    cell_class, layer_class, options = CELLS[name]
    cell = cell_class(5, 7, rng=1, **options)
    layer = layer_class(5, 7, rng=1, **options)
    for key, array in cell.state_dict().items():
        np.testing.assert_array_equal(array, layer.state_dict()[f"{key}_l0"])
    rng = np.random.default_rng(2)
    x, state = uniform(rng, 4, *batch, 5), states(layer_class, rng, *batch)
    first = tuple(s[None] for s in state) if isinstance(state, tuple) else state[None]
    y, last = layer(x, first)
    for t in range(4):
        state = cell(x[t], state)
        np.testing.assert_array_equal(flat(state)[0], y[t])
    for got, want in zip(flat(state), flat(last), strict=True):
        np.testing.assert_array_equal(got, want[0])
    for got, want in zip(flat(cell(x[0])), flat(layer(x[:1])[1]), strict=True):
        np.testing.assert_array_equal(got, want[0])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(3,), ()])
def test_torch(name, batch):
    torch = pytest.importorskip("torch")
    cell_class, layer_class, options = CELLS[name]
    cell, other = cell_class(5, 7, **options), getattr(torch.nn, cell_class.__name__)(5, 7, **options)
    cell.load_state_dict(other.state_dict())
    other = other.double()
    rng = np.random.default_rng(3)
    x, state = uniform(rng, *batch, 5), states(layer_class, rng, *batch)
    y, after, saved = cell.forward(x, state, training=True)
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, *flat(state))]
    result = other(tensors[0], tuple(tensors[1:]) if len(tensors) == 3 else tensors[1])
    result = result if isinstance(result, tuple) else (result,)
    for got, want in zip(flat(after), result, strict=True):
        near(got, want.detach().numpy())
    np.testing.assert_array_equal(y, flat(after)[0])
    dy, dafter = uniform(rng, *y.shape), states(layer_class, rng, *batch)
    loss = (result[0] * torch.tensor(dy)).sum()
    for value, d in zip(result, flat(dafter), strict=True):
        loss = loss + (value * torch.tensor(d)).sum()
    loss.backward()
    dx, dstate, dweights = cell.backward(dy, dafter, saved)
    for got, want in zip((dx, *flat(dstate)), tensors, strict=True):
        near(got, want.grad.numpy())
    assert list(dweights) == list(cell.shapes())
    for key, parameter in other.named_parameters():
        near(dweights[key], parameter.grad.numpy())


@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_those_of_the_layer(name):
    cell_class, layer_class, options = CELLS[name]
    cell, layer = (kind(5, 7, rng=1, **options) for kind in (cell_class, layer_class))
    rng = np.random.default_rng(4)
    x, dy = uniform(rng, 3, 5), uniform(rng, 3, 7)
    saved = cell.forward(x, training=True)[2]
    dx, dstate, dweights = cell.backward(dy, None, saved)
    want = layer.backward(dy[None], None, layer.forward(x[None], training=True)[2])
    np.testing.assert_array_equal(dx, want[0][0])
    for key, gradient in dweights.items():
        np.testing.assert_array_equal(gradient, want[2][f"{key}_l0"])
    for got, expected in zip(flat(dstate), flat(want[1]), strict=True):
        np.testing.assert_array_equal(got, expected[0])
    dx, none, _ = cell.backward(None, states(layer_class, rng, 3), saved, dx=False)
    assert dx is None and none is not None


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("with_states", [False, True])
def test_onnx(name, with_states, tmp_path):
    cell_class, layer_class, options = CELLS[name]
    cell = cell_class(5, 7, rng=1, **options)
    cell.save(tmp_path / "net.onnx", states=with_states)
    model, rng = rnnfast.load(tmp_path / "net.onnx"), np.random.default_rng(5)
    x, state = uniform(rng, 3, 5), states(layer_class, rng, 3) if with_states else None
    feed = {"x": x} | dict(zip(("h0", "c0"), flat(state))) if with_states else {"x": x}
    assert [v.type.shape for v in model.inputs] == [("batch", 5), *[("batch", 7)] * (len(feed) - 1)]
    want = flat(cell(x, state))
    outputs = model(feed)
    np.testing.assert_array_equal(outputs.y, want[0])
    others = onnxruntime((tmp_path / "net.onnx").read_bytes(), feed)
    for key, array in zip(("hn", "cn"), want if with_states else ()):
        np.testing.assert_array_equal(outputs[key], array)
        near(others[key], array.astype(np.float64), 1e-5)
    near(others["y"], want[0].astype(np.float64), 1e-5)
    if with_states:
        stream, state = model.stream(), None
        for frame in uniform(rng, 4, 3, 5):
            state = cell(frame, state)
            np.testing.assert_array_equal(stream.step(x=frame), flat(state)[0])


@pytest.mark.parametrize("name", CELLS)
def test_copies_and_weights(name):
    cell_class, _, options = CELLS[name]
    cell, x = cell_class(5, 7, rng=1, **options), uniform(np.random.default_rng(6), 2, 5)
    want = flat(cell(x))
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), cell_class(5, 7, **options)):
        other.load_state_dict(cell.state_dict())
        assert repr(other) == repr(cell) and "Param" in other.summary()
        for got, expected in zip(flat(other(x)), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_fit_of_a_cell():
    rng = np.random.default_rng(7)
    x, y = uniform(rng, 20, 3), uniform(rng, 20, 4) / 2
    cell = nn.GRUCell(3, 4, rng=1)
    history = cell.fit(x, y, loss="mse", optimizer="adam", epochs=20)
    assert history["loss"][-1] < history["loss"][0]


X, H = np.ones((2, 5), np.float32), np.ones((2, 7), np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nn.LSTMCell(5, 7)(X[:, :4]), InputError, r"x: shape is \[2, 4\], expected \[B, 5\]"),
        (lambda: nn.LSTMCell(5, 7)(X[None]), InputError, r"x: shape is \[1, 2, 5\], expected \[B, 5\]"),
        (lambda: nn.LSTMCell(5, 7)(X.astype(int)), InputTypeError, "x: dtype is int64"),
        (lambda: nn.LSTMCell(5, 7)(X, H), InputTypeError, r"state: got a ndarray, expected \(h, c\)"),
        (lambda: nn.LSTMCell(5, 7)(X, (H, H[:1])), InputError, r"state: c has shape \[1, 7\], expected \[2, 7\]"),
        (lambda: nn.GRUCell(5, 7)(X, H[0]), InputError, r"state: h has shape \[7\], expected \[2, 7\]"),
        (lambda: nn.GRUCell(5, 7)(X[0], H), InputError, r"state: h has shape \[2, 7\], expected \[7\]"),
        (lambda: nn.GRUCell(5, 7).forward(X, lengths=[1, 1]), InputError, r"lengths: GRUCell\(5, 7\) takes one step"),
        (lambda: nn.RNNCell(5, 7, nonlinearity="elu"), InputError, "nonlinearity: 'elu' is none of"),
        (
            lambda: nn.Sequential(nn.Tanh(), nn.GRUCell(5, 7)),
            InputError,
            "Sequential: layer 1 is a GRUCell, which takes one step, expected GRU",
        ),
        (lambda: nn.GRUCell(5, 7).save("net.onnx", lengths=True), InputError, r"lengths: GRUCell\(5, 7\) takes one"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
