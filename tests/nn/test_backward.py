"""Gradients of layers without a state, and of Sequential, against finite differences and torch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, UnsupportedError

TOLERANCE = 2e-6
"""Largest difference from torch in float64 relative to the largest gradient: a few roundings of float32 (6e-8 each).
Measured over the layers below: 6.6e-7."""

DIFFERENCE = 1e-3
"""Largest difference of float32 gradients from central differences with steps of 2^-7, relative to the largest one.
Measured: 3.2e-4."""

# name -> (layer, the same in torch)
LAYERS = {
    "Linear": (lambda: nn.Linear(5, 7, rng=1), lambda t: t.Linear(5, 7)),
    "Linear without bias": (lambda: nn.Linear(5, 3, bias=False, rng=2), lambda t: t.Linear(5, 3, bias=False)),
    "LayerNorm": (lambda: nn.LayerNorm(5, eps=1e-3), lambda t: t.LayerNorm(5, eps=1e-3)),
    "Dropout": (lambda: nn.Dropout(0.0), lambda t: t.Dropout(0.0)),
    **{
        name: (getattr(nn, name), lambda t, name=name: getattr(t, name)())
        for name in ("ReLU", "Tanh", "Sigmoid", "Softplus", "Softsign", "Hardsigmoid")
    },
    "Softmax": (lambda: nn.Softmax(), lambda t: t.Softmax(-1)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.3), lambda t: t.LeakyReLU(0.3)),
    "ELU": (lambda: nn.ELU(1.7), lambda t: t.ELU(1.7)),
    "Sequential": (
        lambda: nn.Sequential(
            nn.Linear(5, 6, rng=3), nn.Sequential(nn.Tanh(), nn.LayerNorm(6)), nn.Linear(6, 2, rng=4)
        ),
        lambda t: t.Sequential(t.Linear(5, 6), t.Sequential(t.Tanh(), t.LayerNorm(6)), t.Linear(6, 2)),
    ),
}


def uniform(rng, *shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def filled(layer, rng):
    """Return the layer with random weights, so that no default hides an error."""
    layer.load_state_dict({name: uniform(rng, *shape) for name, shape in layer.shapes().items()})
    return layer


def assert_close(got, want, tolerance=TOLERANCE):
    want = np.asarray(want)
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=0)


def test_every_layer_is_in_the_table():
    kinds = {name: kind for name in nn.__all__ if isinstance(kind := getattr(nn, name), type)}
    stateless = [
        name for name, kind in kinds.items() if "_forward" in vars(kind) or issubclass(kind, nn.activation.Activation)
    ]
    elsewhere = {"Embedding", "Module", "Conv1d", "BatchNorm1d"}  # test_convolution.py, test_batch_norm.py
    assert {*stateless} - elsewhere <= {*LAYERS}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_torchs(name):
    torch = pytest.importorskip("torch")
    make, make_torch = LAYERS[name]
    rng = np.random.default_rng(len(name))
    layer, other = filled(make(), rng), make_torch(torch.nn).double()
    with torch.no_grad():
        other.load_state_dict({name: torch.tensor(a).double() for name, a in layer.state_dict().items()})
    for shape in ((5,), (3, 5), (4, 3, 5), (0, 5)):
        x = (3 * uniform(rng, *shape)).astype(np.float32)
        y, state, saved = layer.forward(x, training=True)
        dy = uniform(rng, *y.shape)
        dx, dstate, dweights = layer.backward(dy, None, saved)
        want = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        other.zero_grad()
        other(want).backward(torch.tensor(dy, dtype=torch.float64))
        np.testing.assert_array_equal(y, layer(x))
        assert_close(dx, want.grad)
        assert list(dweights) == list(layer.state_dict()) and state in (None, ()) and dstate in (None, ())
        for name, parameter in other.named_parameters():
            assert_close(dweights[name], parameter.grad, 2 * TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_differences(name):
    rng = np.random.default_rng(len(name))
    layer = filled(LAYERS[name][0](), rng)
    # away from the kinks of the piecewise functions, which are at -3, 0 and 3
    x = (rng.uniform(0.1, 2.5, (3, 5)) * rng.choice([-1, 1], (3, 5))).astype(np.float32)
    y, _, saved = layer.forward(x, training=True)
    dy, step = uniform(rng, *y.shape), 2.0**-7
    dx = layer.backward(dy, None, saved)[0]
    want = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            sides.append((layer(moved).astype(np.float64) * dy).sum())
        want[place] = (sides[0] - sides[1]) / (2 * step)
    assert_close(dx, want, DIFFERENCE)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 9999), st.data())
def test_embedding(count, size, shape, seed, data):
    rng = np.random.default_rng(seed)
    padding = data.draw(st.none() | st.integers(-count, count - 1))
    layer = nn.Embedding(count, size, padding_idx=padding, rng=rng)
    x = rng.integers(0, count, shape, dtype=data.draw(st.sampled_from([np.int64, np.uint8, np.int32])))
    y, _, saved = layer.forward(x, training=True)
    dy = uniform(rng, *y.shape)
    dx, dstate, dweights = layer.backward(dy, None, saved)
    want = np.zeros((count, size))
    np.add.at(want, x, dy)
    if padding is not None:
        want[padding] = 0
    assert dx is None and dstate is None and saved.nbytes == 0
    assert_close(dweights["weight"], want)


# --------------------------------------------------------------------------------------------- saved, dropout, state
@pytest.mark.parametrize("name", LAYERS)
def test_saved_is_a_value(name):
    layer = filled(LAYERS[name][0](), np.random.default_rng(1))
    x = uniform(np.random.default_rng(2), 3, 5)
    y, _, saved = layer.forward(x, training=True)
    dy = uniform(np.random.default_rng(3), *y.shape)
    before = layer.backward(dy, None, saved)
    layer.forward(x + 1, training=True)
    layer.load_state_dict({name: a + 1 for name, a in layer.state_dict().items()})
    after = layer.backward(dy, None, saved)
    np.testing.assert_array_equal(before[0], after[0])
    for name, gradient in before[2].items():
        np.testing.assert_array_equal(gradient, after[2][name])
    none = layer.forward(x)
    assert none[2] is None and np.array_equal(none[0], layer(x))
    assert not np.any(layer.backward(None, None, saved)[0])


def test_what_is_saved_has_its_size():
    x = np.ones((4, 5), np.float32)
    sizes = {name: LAYERS[name][0]().forward(x, training=True)[2].nbytes for name in LAYERS}
    between = 4 * 4 * (6 + 6 + 6)
    assert sizes.pop("Sequential") == between + 4 * 4 * (6 + 1)
    assert {name: size for name, size in sizes.items() if size} == {"LayerNorm": 4 * 4 * (5 + 1), "Dropout": 4 * 5}


def test_dropout():
    x = uniform(np.random.default_rng(1), 400, 250)
    layer = nn.Dropout(0.3)
    assert layer(x) is x and layer.forward(x)[0] is x
    y, _, saved = layer.forward(x, training=True, rng=5)
    kept = y != 0
    assert abs(kept.mean() - 0.7) < 0.01
    np.testing.assert_array_equal(y, np.where(kept, x * np.float32(1 / 0.7), 0))
    dy = uniform(np.random.default_rng(2), *x.shape)
    np.testing.assert_array_equal(layer.backward(dy, None, saved)[0], np.where(kept, dy * np.float32(1 / 0.7), 0))
    np.testing.assert_array_equal(layer.forward(x, training=True, rng=np.random.default_rng(5))[0], y)
    assert not np.array_equal(layer.forward(x, training=True, rng=6)[0], y)
    assert not np.any(nn.Dropout(1.0).forward(x, training=True)[0])
    net = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    first = net.forward(x, training=True, rng=7)[0]
    np.testing.assert_array_equal(net.forward(x, training=True, rng=7)[0], first)
    assert abs(np.mean(first != 0) - 0.25) < 0.01


def test_layer_norm_rows_stand_alone():
    x = uniform(np.random.default_rng(1), 6, 37, 5)
    layer = filled(nn.LayerNorm(37), np.random.default_rng(2))
    y = layer(x.swapaxes(1, 2))
    for i, j in ((0, 0), (5, 4)):
        np.testing.assert_array_equal(layer(x[i, :, j].copy()), y[i, j])
    assert np.isnan(layer(np.full((2, 37), np.inf, np.float32))).all()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: nn.Dropout(1.5), InputError, "p: 1.5, expected 0.0 to 1.0"),
        (lambda: nn.Dropout("a"), InputTypeError, "p: 'a' is no number"),
        (lambda: nn.LayerNorm(0), InputError, "normalized_shape: 0 is less than 1"),
        (
            lambda: nn.LayerNorm(3)(np.ones((2, 4), np.float32)),
            InputError,
            r"x: shape is \[2, 4\], expected \[..., 3\] \(normalized_shape\)",
        ),
        (
            lambda: nn.Tanh().forward(np.ones(3, np.float32), np.ones(3)),
            InputError,
            "state: Tanh has none, expected None",
        ),
        (
            lambda: nn.Tanh().forward(np.ones(3, np.float32), training=2),
            InputError,
            "training: 2 is none of False, True",
        ),
        (
            lambda: nn.Module().forward(np.ones(3, np.float32), training=True),
            UnsupportedError,
            "Module has no gradient",
        ),
        (lambda: nn.Dropout().forward(np.ones(3, np.float32), training=True, rng="a"), InputTypeError, "rng: 'a' is"),
        (
            lambda: nn.Tanh().backward(np.ones(3, np.float32), None, None),
            InputTypeError,
            r"saved: got a NoneType, expected what forward\(training=True\) returned",
        ),
        (
            lambda: nn.Sequential(nn.Tanh()).forward(np.ones(3, np.float32), (1,)),
            InputTypeError,
            "state: got a tuple of 1, expected a tuple with the states of 0 recurrent layers",
        ),
        (
            lambda: nn.Sequential(nn.LSTM(3, 4)).forward(np.ones((2, 3), np.float32), np.ones(3)),
            InputTypeError,
            "state: got a ndarray, expected a tuple with the states of 1 recurrent layers",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_errors_of_a_sequential_name_the_layer():
    net = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Tanh(), nn.GRU(5, 2, rng=1)))
    x = np.ones((2, 3, 4), np.float32)
    message = r"^layer 1: layer 1 GRU\(5, 2\): x: shape is \[2, 3, 4\], expected \[T, B, 5\]"
    for call in (net, net.forward, lambda x: net.forward(x, training=True)):
        with pytest.raises(InputError, match=message):
            call(x)


def test_wrong_gradients():
    layer = nn.Linear(5, 3)
    saved = layer.forward(np.ones((2, 5), np.float32), training=True)[2]
    with pytest.raises(InputError, match=r"dy: shape is \[2, 5\], expected \[2, 3\] \(that of y\)"):
        layer.backward(np.ones((2, 5), np.float32), None, saved)
    with pytest.raises(InputTypeError, match="dy: dtype is int64, expected float32"):
        layer.backward(np.ones((2, 3), int), None, saved)
    with pytest.raises(InputError, match="dstate: Linear has no state"):
        layer.backward(np.ones((2, 3), np.float32), 1, saved)
