"""Conv1d against the sum of its definition in float64, torch and finite differences; and its ONNX form."""

import itertools

import numpy as np
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import Error, InputError, InputTypeError, UnsupportedError
from tests.graphs import onnxruntime
from tests.nn.helpers import uniform

TOLERANCE = 1e-6
"""Largest difference from float64 relative to the largest value: roundings of float32 (6e-8) in sums of up to 30 terms.
Measured: 2.9e-7."""

CASES = {
    "plain": {},
    "stride": {"stride": 3},
    "padding": {"padding": 2},
    "stride and padding": {"stride": 2, "padding": 5},
    "dilation": {"dilation": 3},
    "same": {"padding": "same", "dilation": 3},
    "valid": {"padding": "valid", "stride": 2},
    "causal": {"padding": "causal", "dilation": 2},
    "groups": {"groups": 2, "padding": 1},
    "no bias": {"bias": False},
    "all": {"stride": 2, "padding": 3, "dilation": 2, "groups": 2, "bias": False},
}
WAYS = list(itertools.product(CASES, (False, True)))


def layer_of(case, channels_last=False, **options):
    return nn.Conv1d(4, 6, 4, channels_last=channels_last, rng=1, **CASES[case], **options)


def defined(layer, x):
    """y [N, out, steps] for x [N, in, L] by the definition, in float64."""
    weights = {name: a.astype(np.float64) for name, a in layer.state_dict().items()}
    before, after = layer.margins
    padded = np.zeros((*x.shape[:2], before + x.shape[2] + after))
    padded[:, :, before : before + x.shape[2]] = x
    steps = 1 + (padded.shape[2] - layer.dilation * (layer.kernel_size - 1) - 1) // layer.stride
    y = np.zeros((len(x), layer.out_channels, steps))
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for o, t in itertools.product(range(layer.out_channels), range(steps)):
        group = slice(o // outputs * inputs, (o // outputs + 1) * inputs)
        taps = [layer.stride * t + layer.dilation * k for k in range(layer.kernel_size)]
        products = weights["weight"][o] * padded[:, group][:, :, taps]
        y[:, o, t] = products.sum((1, 2)) + (weights["bias"][o] if layer.bias else 0)
    return y


def near(got, want, tolerance=TOLERANCE):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=0)


@pytest.mark.parametrize("case, channels_last", WAYS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_call(case, channels_last, rows):
    layer, x = layer_of(case, channels_last), uniform(np.random.default_rng(2), rows, 4, 15)
    want = defined(layer, x)
    y = layer(x.swapaxes(1, 2) if channels_last else x)
    assert y.flags.c_contiguous
    near(y.swapaxes(1, 2) if channels_last else y, want)
    for row, one in zip(x, y):
        np.testing.assert_array_equal(layer(row.T if channels_last else row), one)
    if case in ("same", "causal"):
        assert y.shape[1 if channels_last else 2] == 15


def test_causal_sees_no_later_steps():
    layer, x = layer_of("causal"), uniform(np.random.default_rng(3), 2, 4, 12)
    later = x.copy()
    later[:, :, 7:] += 1
    np.testing.assert_array_equal(layer(later)[:, :, :7], layer(x)[:, :, :7])
    assert (layer(later)[:, :, 7:] != layer(x)[:, :, 7:]).all()


@pytest.mark.parametrize("case, channels_last", WAYS)
def test_gradients(case, channels_last):
    """The layer is linear in x and in its weights, so that its gradients are the differences of the definition."""
    rng = np.random.default_rng(4)
    layer, x = layer_of(case, channels_last), uniform(rng, 2, 4, 10)
    given = x.swapaxes(1, 2) if channels_last else x
    y, state, saved = layer.forward(given, training=True)
    np.testing.assert_array_equal(y, layer(given))
    dy = uniform(rng, *y.shape)
    dx, dstate, dweights = layer.backward(dy, None, saved)
    assert state is dstate is None and list(dweights) == list(layer.shapes())
    by_channels = dy.swapaxes(1, 2) if channels_last else dy
    base = (defined(layer, x) * by_channels).sum()
    want = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        moved = x.astype(np.float64)
        moved[place] += 1
        want[place] = (defined(layer, moved) * by_channels).sum() - base
    near(dx.swapaxes(1, 2) if channels_last else dx, want)
    weights = layer.state_dict()
    for name, array in weights.items():
        want = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            moved = {n: a.copy() for n, a in weights.items()}
            moved[name][place] += 1
            other = layer_of(case, channels_last)
            other.load_state_dict(moved)
            want[place] = (defined(other, x) * by_channels).sum() - base
        near(dweights[name], want, 2e-6)
    again = layer.backward(dy[0], None, layer.forward(given[0], training=True)[2])[0]
    assert again.shape == given[0].shape
    near(again, dx[0].astype(np.float64))


@pytest.mark.parametrize("case", [case for case in CASES if case != "causal"])
def test_torch(case):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    layer, other = layer_of(case), torch.nn.Conv1d(4, 6, 4, **CASES[case]).double()
    layer.load_state_dict({name: value.float() for name, value in other.state_dict().items()})
    other.load_state_dict({name: torch.tensor(a) for name, a in layer.state_dict().items()})
    x = uniform(rng, 3, 4, 15)
    y, _, saved = layer.forward(x, training=True)
    want = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    result = other(want)
    near(y, result.detach().numpy())
    dy = uniform(rng, *y.shape)
    result.backward(torch.tensor(dy, dtype=torch.float64))
    dx, _, dweights = layer.backward(dy, None, saved)
    near(dx, want.grad.numpy(), 2e-6)
    for name, parameter in other.named_parameters():
        near(dweights[name], parameter.grad.numpy(), 2e-6)


@pytest.mark.parametrize("case, channels_last", WAYS)
@pytest.mark.parametrize("rank", [None, 2])
def test_onnx(case, channels_last, rank, tmp_path):
    layer = nn.Sequential(layer_of(case, channels_last), nn.Tanh())
    layer.save(tmp_path / "net.onnx", rank=rank)
    model = rnnfast.load(tmp_path / "net.onnx")
    expected = ("time", 4) if channels_last else (4, "time")
    assert model.inputs[0].type.shape == (expected if rank else ("batch", *expected))
    x = uniform(np.random.default_rng(6), 3, 4, 15)
    x = x.swapaxes(1, 2) if channels_last else x
    x = x[0] if rank else x
    near(model(x=x).y, layer(x).astype(np.float64))
    near(onnxruntime((tmp_path / "net.onnx").read_bytes(), {"x": x})["y"], layer(x).astype(np.float64))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_onnx_between_recurrent_layers(batch_first, channels_last, tmp_path):
    """The file does with the axes what the layers do, whatever these mean."""
    first = nn.GRU(5, 4, batch_first=batch_first, rng=1)
    second = nn.GRU(6 if channels_last else 5, 3, batch_first=batch_first, rng=2)
    between = nn.Conv1d(4, 6, 3, padding="same", channels_last=channels_last, rng=3)
    net = nn.Sequential(first, between, nn.Softmax(1), nn.BatchNorm1d(6, channels_last=channels_last), second)
    rng = np.random.default_rng(7)
    net[3].load_state_dict({name: rng.uniform(0.5, 1, 6).astype(np.float32) for name in net[3].shapes()})
    x = uniform(rng, 4, 3, 5)
    if not channels_last:  # the channels are the second axis of the GRU's output
        x = uniform(rng, 7, 4, 5)
        net = nn.Sequential(nn.GRU(5, 5, batch_first=batch_first, rng=1), *net.layers[1:])
    net.save(tmp_path / "net.onnx")
    want = net(x).astype(np.float64)
    near(rnnfast.load(tmp_path / "net.onnx")(x=x).y, want)
    near(onnxruntime((tmp_path / "net.onnx").read_bytes(), {"x": x})["y"], want)


def test_training_before_a_recurrent_layer():
    rng = np.random.default_rng(8)
    x, y = uniform(rng, 40, 12, 3), rng.integers(0, 2, 40)
    x[y == 1, 5:7, 0] += 2
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding="same", channels_last=True, rng=1),
        nn.BatchNorm1d(8, channels_last=True),
        nn.ReLU(),
        nn.GRU(8, 8, batch_first=True, return_sequences=False, rng=2),
        nn.Linear(8, 2, rng=3),
    )
    history = net.fit(x, y, loss="cross_entropy", optimizer=train.Adam(0.01), epochs=30, batch_size=10, seed=0)
    assert history["loss"][-1] < history["loss"][0] / 3
    assert net.evaluate(x, y, loss="cross_entropy", metrics="accuracy")["accuracy"] > 0.9


X = np.ones((2, 4, 9), np.float32)
NET = nn.Sequential(nn.Conv1d(4, 4, 3, padding="same", channels_last=True), nn.GRU(4, 2, batch_first=True))
ROWS = np.ones((2, 9, 4), np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nn.Conv1d(4, 6, 0), InputError, "kernel_size: 0 is less than 1"),
        (lambda: nn.Conv1d(4, 6, 3, stride=0), InputError, "stride: 0 is less than 1"),
        (lambda: nn.Conv1d(4, 6, 3, padding=-1), InputError, "padding: -1 is less than 0"),
        (lambda: nn.Conv1d(4, 6, 3, padding="full"), InputError, "padding: 'full' is none of 'valid', 'same'"),
        (lambda: nn.Conv1d(4, 6, 3, padding=(1,)), InputTypeError, r"padding: \(1,\) is no integer"),
        (lambda: nn.Conv1d(4, 6, 3, groups=3), InputError, "groups: 3 does not divide 4 and 6 channels"),
        (lambda: nn.Conv1d(4, 6, 3, 2, "same"), InputError, "padding: 'same' needs stride=1, got 2"),
        (lambda: nn.Conv1d(4, 6, 3)(X[:, :3]), InputError, r"x: shape is \[2, 3, 9\], expected \[N, 4, L\]"),
        (
            lambda: nn.Conv1d(4, 6, 3, channels_last=True)(X),
            InputError,
            r"x: shape is \[2, 4, 9\], expected \[N, L, 4\] or, without a batch, \[L, 4\]",
        ),
        (lambda: nn.Conv1d(4, 6, 3)(X[0, 0]), InputError, r"x: shape is \[9\]"),
        (lambda: nn.Conv1d(4, 6, 8, padding=1, dilation=2)(X), InputError, "x: 9 steps with 2 zeros, .* least 15"),
        (lambda: NET.stream(), InputError, "Conv1d.* mixes time steps, which a stream does not do"),
        (lambda: NET.pool(3), InputError, "Conv1d.* mixes time steps, which a stream does not do"),
        (lambda: rnnfast.Batcher(NET), InputError, "mixes time steps"),
        (lambda: NET(ROWS, lengths=[3, 9]), InputError, "lengths: Conv1d.* mixes time steps"),
        (lambda: NET.forward(ROWS, lengths=[3, 9], training=True), InputError, "lengths: Conv1d.* mixes time steps"),
        (lambda: NET(nn.pack_sequence([ROWS[0]])), UnsupportedError, "x: a packed sequence, whose rows Conv1d"),
        (
            lambda: NET.fit(ROWS, ROWS[..., :2], loss="mse", optimizer="adam", tbptt=3),
            InputError,
            "tbptt: Conv1d.* mixes time steps",
        ),
        (lambda: NET.predict([ROWS[0], ROWS[1, :4]]), InputError, "lengths: Conv1d.* mixes time steps"),
        (lambda: NET[0].save("net.onnx", rank=4), InputError, "rank: 4, expected 3, or 2 without a batch"),
        (lambda: nn.Softmax(0).stream(), (Error, AttributeError), "stream"),
        (lambda: nn.Softmax(1.0), InputTypeError, "dim: 1.0 is no integer"),
        (lambda: nn.Softmax(2)(X[0]), InputError, r"x: shape is \[4, 9\], without the axis 2 \(dim\)"),
        (lambda: nn.Sequential(nn.GRU(4, 4), nn.Softmax(1)).stream(), InputError, r"Softmax\(dim=1\) mixes time"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dim", [-3, -2, -1, 0, 1, 2])
def test_softmax_of_each_axis(dim):
    x = uniform(np.random.default_rng(9), 3, 4, 5)
    y, _, saved = nn.Softmax(dim).forward(x, training=True)
    want = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(dim, keepdims=True)
    near(y, want)
    dy = uniform(np.random.default_rng(10), 3, 4, 5)
    near(nn.Softmax(dim).backward(dy, None, saved)[0], want * (dy - (want * dy).sum(dim, keepdims=True)))
    np.testing.assert_array_equal(nn.Softmax(-1)(x[1]), nn.Softmax(-1)(x)[1])
    assert nn.Softmax()(x[:0]).shape == (0, 4, 5) and nn.Softmax()(x[:, :, :0]).shape == (3, 4, 0)
