"""BatchNorm1d against its definition in float64 and torch, what `fit` does with its running values, and its file."""

import numpy as np
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import InputError, LimitError
from tests.graphs import onnxruntime
from tests.nn.helpers import uniform

TOLERANCE = 2e-6
"""Largest difference from float64 relative to the largest value: a few roundings of float32 (6e-8 each), which the
gradient of x has of differences. Measured: 6.1e-7."""

SHAPES = {"[N, C]": ((7, 5), False), "[N, C, L]": ((3, 5, 4), False), "[N, L, C]": ((3, 4, 5), True)}


def filled(channels_last=False, seed=1):
    layer = nn.BatchNorm1d(5, eps=1e-3, momentum=0.3, channels_last=channels_last)
    rng = np.random.default_rng(seed)
    layer.load_state_dict({name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in layer.shapes()})
    return layer


def near(got, want, tolerance=TOLERANCE):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=0)


def defined(x, axis, weight, bias, eps, mean=None, variance=None):
    """y in float64 for channels along an axis; mean and variance are those of x where they are not given."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    mean = x.mean(tuple(range(x.ndim - 1))) if mean is None else mean
    variance = x.var(tuple(range(x.ndim - 1))) if variance is None else variance
    return np.moveaxis((x - mean) / np.sqrt(variance + eps) * weight + bias, -1, axis), mean, variance, others


@pytest.mark.parametrize("name", SHAPES)
def test_calls_and_training(name):
    shape, channels_last = SHAPES[name]
    layer, rng = filled(channels_last), np.random.default_rng(2)
    axis, x = (len(shape) - 1 if channels_last else 1), 3 * uniform(rng, *shape) + 1
    p = {name: a.astype(np.float64) for name, a in layer.state_dict().items()}
    near(layer(x), defined(x, axis, p["weight"], p["bias"], 1e-3, p["running_mean"], p["running_var"])[0])
    for row, one in zip(x, layer(x), strict=True):
        np.testing.assert_array_equal(layer(row[None])[0], one)
    y, state, saved = layer.forward(x, training=True)
    want, mean, variance, others = defined(x, axis, p["weight"], p["bias"], 1e-3)
    near(y, want)
    dy = uniform(rng, *shape)
    dx, dstate, dweights = layer.backward(dy, None, saved)
    assert state is dstate is None and list(dweights) == ["weight", "bias", "running_mean", "running_var"]
    numeric = np.zeros(shape)
    for place in np.ndindex(shape):
        sides = []
        for sign in (1, -1):
            moved = x.astype(np.float64)
            moved[place] += sign * 1e-5
            sides.append((defined(moved, axis, p["weight"], p["bias"], 1e-3)[0] * dy).sum())
        numeric[place] = (sides[0] - sides[1]) / 2e-5
    near(dx, numeric, 1e-5)
    near(dweights["bias"], dy.astype(np.float64).sum(others))
    near(dweights["weight"], (dy * defined(x, axis, 1, 0, 1e-3)[0]).sum(others))
    count = x.size // 5
    near(p["running_mean"].astype(np.float32) - dweights["running_mean"], 0.7 * p["running_mean"] + 0.3 * mean)
    unbiased = variance * count / (count - 1)
    near(p["running_var"].astype(np.float32) - dweights["running_var"], 0.7 * p["running_var"] + 0.3 * unbiased)
    for key, array in layer.state_dict().items():  # training has changed nothing
        np.testing.assert_array_equal(array, p[key])


@pytest.mark.parametrize("name", ["[N, C]", "[N, C, L]"])
def test_torch(name):
    torch = pytest.importorskip("torch")
    shape, layer, rng = SHAPES[name][0], nn.BatchNorm1d(5, eps=1e-3, momentum=0.3), np.random.default_rng(3)
    other = torch.nn.BatchNorm1d(5, eps=1e-3, momentum=0.3)
    for value in other.state_dict().values():
        value.copy_(torch.tensor(rng.uniform(0.5, 2, 5)) if value.ndim else torch.tensor(7))
    layer.load_state_dict(other.state_dict())  # with num_batches_tracked
    nn.Sequential(nn.Tanh(), layer).load_state_dict({f"1.{name}": a for name, a in other.state_dict().items()})
    other.double().load_state_dict({name: torch.tensor(a) for name, a in layer.state_dict().items()})
    x = 3 * uniform(rng, *shape) + 1
    near(layer(x), other.eval()(torch.tensor(x).double()).detach().numpy())
    y, _, saved = layer.forward(x, training=True)
    want = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    result = other.train()(want)
    near(y, result.detach().numpy())
    dy = uniform(rng, *shape)
    result.backward(torch.tensor(dy).double())
    dx, _, dweights = layer.backward(dy, None, saved)
    near(dx, want.grad.numpy(), 1e-5)
    for key, parameter in other.named_parameters():
        near(dweights[key], parameter.grad.numpy())
    for key in layer.buffers:
        near(layer.state_dict()[key] - dweights[key], getattr(other, key).numpy())


def network():
    return nn.Sequential(
        nn.Linear(4, 5, rng=1), nn.Sequential(nn.BatchNorm1d(5, momentum=0.3), nn.Tanh()), nn.Linear(5, 1, rng=2)
    )


X = np.random.default_rng(4).uniform(-1, 3, (24, 4)).astype(np.float32)
Y = X[:, :1] * X[:, 1:2]


def test_fit_moves_the_running_values():
    """Without a step of the optimizer the weights stay, and the running values follow the batches."""
    net, options = network(), {"loss": "mse", "batch_size": 8, "shuffle": False}
    before = net.state_dict()
    net.fit(X, Y, optimizer=train.SGD(0.0, weight_decay=0.5), **options)
    mean, variance = np.zeros(5), np.ones(5)
    hidden = net[0](X).astype(np.float64)
    for batch in np.split(hidden, 3):
        mean, variance = 0.7 * mean + 0.3 * batch.mean(0), 0.7 * variance + 0.3 * batch.var(0, ddof=1)
    after = net.state_dict()
    near(after["1.0.running_mean"], mean)
    near(after["1.0.running_var"], variance)
    for name, array in before.items():
        assert "running" in name or np.array_equal(array, after[name])


@pytest.mark.parametrize(
    "optimizer", [train.AdamW(0.05, weight_decay=0.3), train.SGD(0.1, momentum=0.9)], ids=["AdamW", "SGD"]
)
def test_clipping_and_decay_leave_the_running_values_alone(optimizer):
    net = network()
    net.fit(X, Y, loss="mse", optimizer=optimizer, epochs=3, batch_size=8, seed=0, clip_norm=1e-3, clip_value=1e-4)
    state = net.state_dict()
    hidden = net[0](X)
    assert np.abs(state["1.0.running_mean"] - hidden.mean(0)).max() < 0.4
    assert np.abs(state["1.0.running_var"] - hidden.var(0)).max() < 0.4


def test_fit_learns_and_resumes_to_the_same_bits(tmp_path):
    pytest.importorskip("safetensors")
    options = {"loss": "mse", "batch_size": 8, "seed": 0, "patience": 30}
    whole = network()
    history = whole.fit(X, Y, optimizer=train.Adam(0.02), epochs=60, **options)
    assert whole.evaluate(X, Y, loss="mse")["loss"] < history["loss"][0] / 5
    parts = network()
    for epochs in (20, 60):
        again = parts.fit(X, Y, optimizer=train.Adam(0.02), epochs=epochs, checkpoint=tmp_path / "c.safetensors",
                          resume=True, **options)  # fmt: skip
    assert again == history
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(parts.state_dict()[name], array)
    fresh = network()
    train.load_checkpoint(tmp_path / "c.safetensors", fresh)


@pytest.mark.parametrize("name", SHAPES)
def test_onnx(name, tmp_path):
    shape, channels_last = SHAPES[name]
    layer, x = filled(channels_last), uniform(np.random.default_rng(5), *shape)
    layer.save(tmp_path / "net.onnx", rank=len(shape))
    model = rnnfast.load(tmp_path / "net.onnx")
    assert model.inputs[0].type.shape[-1 if channels_last or len(shape) == 2 else 1] == 5
    near(model(x=x).y, layer(x).astype(np.float64))
    near(onnxruntime((tmp_path / "net.onnx").read_bytes(), {"x": x})["y"], layer(x).astype(np.float64))


def test_streams_and_lengths():
    """With the channels behind the time a step is normalized by itself; else a square batch would hide another axis."""
    rng = np.random.default_rng(6)
    gru, x = nn.GRU(5, 5, batch_first=True, rng=1), uniform(rng, 5, 4, 5)
    net = nn.Sequential(gru, filled(True))
    want = net(x)
    assert np.array_equal(net.stream().run(x.swapaxes(0, 1)).swapaxes(0, 1), want)
    pool = net.pool(5)
    ids = [pool.open() for _ in range(5)]
    assert np.array_equal(pool.run(ids, x), want)
    assert np.array_equal(net(x, lengths=[4, 3, 4, 1, 2])[0], want[0])
    for call in (nn.Sequential(gru, filled()).stream, lambda: nn.Sequential(gru, filled()).pool(5)):
        with pytest.raises(InputError, match=r"BatchNorm1d\(5, .* mixes time steps, which a stream does not do"):
            call()
    with pytest.raises(InputError, match="lengths: BatchNorm1d.* mixes time steps"):
        nn.Sequential(nn.GRU(5, 5, batch_first=True), filled())(x[:, :1].repeat(5, 1), lengths=[1] * 5)
    last = nn.Sequential(nn.GRU(5, 5, batch_first=True, return_sequences=False, rng=1), filled())
    lengths = [4, 3, 4, 1, 2]
    last.forward(x, lengths=lengths, training=True)
    assert np.array_equal(last(x, lengths=lengths)[1:2], last(x[1:2, :3]))


def test_summary():
    text = network().summary()
    assert "Trainable params: 41 " in text and text.endswith("Non-trainable params: 10")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nn.BatchNorm1d(0), InputError, "num_features: 0 is less than 1"),
        (lambda: nn.BatchNorm1d(5, momentum=1.5), InputError, "momentum: 1.5, expected 0.0 to 1.0"),
        (lambda: nn.BatchNorm1d(2**40), LimitError, "more than the limit"),
        (lambda: filled()(X), InputError, r"x: shape is \[24, 4\], expected \[N, 5\] or \[N, 5, L\]"),
        (lambda: filled(True)(np.ones((2, 5, 3))), InputError, r"expected \[N, 5\] or \[N, L, 5\]"),
        (lambda: filled()(np.ones(5)), InputError, r"x: shape is \[5\]"),
        (
            lambda: filled().forward(np.ones((1, 5)), training=True),
            InputError,
            "expected more than one value of each channel in training",
        ),
        (
            lambda: filled(True).forward(np.ones((2, 3, 5)), lengths=[3, 1], training=True),
            InputError,
            "lengths: BatchNorm1d.* mean and variance over all steps, those of padding too",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
