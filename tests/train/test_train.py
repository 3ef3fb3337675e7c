"""Training: losses and optimisers against torch, fit against a loop written out, resumed training to the bit."""

import io
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import DivergedError, InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.train import checkpoint as checkpoints
from rnnfast.train import progress

TOLERANCE = 2e-6
"""Largest difference from torch in float64 relative to the largest value: a few roundings of float32 (6e-8 each).
Measured over the losses and 30 steps of the optimisers below: 9.6e-7."""


def uniform(rng, *shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def assert_close(got, want, tolerance=TOLERANCE):
    want = np.asarray(want)
    assert np.shape(got) == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=0)


# ---------------------------------------------------------------------------------------------------------- losses
LOSSES = {
    "CrossEntropy": (train.CrossEntropy(), lambda f, y, t: f.cross_entropy(y.reshape(-1, y.shape[-1]), t.reshape(-1))),
    "CrossEntropy smoothed": (
        train.CrossEntropy(0.2),
        lambda f, y, t: f.cross_entropy(y.reshape(-1, y.shape[-1]), t.reshape(-1), label_smoothing=0.2),
    ),
    "MSE": (train.MSE(), lambda f, y, t: f.mse_loss(y, t)),
    "MAE": (train.MAE(), lambda f, y, t: f.l1_loss(y, t)),
    "BinaryCrossEntropy": (train.BinaryCrossEntropy(), lambda f, y, t: f.binary_cross_entropy_with_logits(y, t)),
}


def a_target(name, rng, shape):
    if name.startswith("CrossEntropy"):
        return rng.integers(0, shape[-1], shape[:-1])
    return rng.random(shape, np.float32)


@pytest.mark.parametrize("masked", ["no mask", "first axes", "all axes"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_torchs(name, masked):
    torch = pytest.importorskip("torch")
    loss, other = LOSSES[name]
    rng = np.random.default_rng(len(name))
    for shape in ((4,), (3, 7), (3, 5, 4)):
        y, target = (20 * uniform(rng, *shape)).astype(np.float32), a_target(name, rng, shape)
        axes = {"no mask": None, "first axes": min(1, target.ndim), "all axes": target.ndim}[masked]
        mask = None if axes is None else np.asarray(rng.random(target.shape[:axes]) < 0.6)
        if mask is not None and not mask.any():
            mask[...] = True
        value, dy = loss(y, target, mask)
        want = torch.tensor(y, dtype=torch.float64, requires_grad=True)
        kept = ... if mask is None else torch.tensor(mask)
        t = torch.tensor(target)
        of = other(torch.nn.functional, want[kept], t[kept].double() if t.is_floating_point() else t[kept])
        of.backward()
        assert isinstance(value, float) and dy.dtype == np.float32
        assert_close(value, of.item())
        assert_close(dy, want.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_mask_leaves_out_may_be_anything(name):
    loss, rng = LOSSES[name][0], np.random.default_rng(1)
    y, target = uniform(rng, 4, 3), a_target(name, rng, (4, 3))
    mask = np.array([True, False, True, False])
    value, dy = loss(y, target, mask)
    target[~mask] = -7
    other, other_dy = loss(y, target, mask)
    assert value == other and np.array_equal(dy, other_dy) and not dy[~mask].any()
    assert value == pytest.approx(loss(y[mask], target[mask])[0], rel=1e-12)


def test_losses_of_large_logits_are_finite():
    y = np.array([[3e4, -3e4], [-88.0, 120.0]], np.float32)
    for name, (loss, _) in LOSSES.items():
        target = np.array([1, 0]) if name.startswith("Cross") else np.array([[0, 1], [1, 0]], np.float32)
        value, dy = loss(y, target)
        assert math.isfinite(value) and np.isfinite(dy).all()
    assert train.BinaryCrossEntropy()(y, np.array([[True, False], [False, True]]))[0] < 1e-30
    assert train.CrossEntropy()(y, np.array([0, 1], np.uint8))[0] == 0


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: train.CrossEntropy()(np.ones((2, 3), np.float32), [1, 3]),
            InputError,
            r"target: 3 at \[1\], expected 0 to 2",
        ),
        (
            lambda: train.CrossEntropy()(np.ones((2, 3), np.float32), [-1, 2]),
            InputError,
            r"target: -1 at \[0\], expected 0 to 2",
        ),
        (
            lambda: train.CrossEntropy()(np.ones((2, 3), np.float32), [1.0, 2.0]),
            InputTypeError,
            "target: dtype is float64, expected integers",
        ),
        (
            lambda: train.CrossEntropy()(np.ones((2, 3), np.float32), [1, 2, 0]),
            InputError,
            r"target: shape is \[3\], expected \[2\] \(that of y without its classes\)",
        ),
        (lambda: train.CrossEntropy()(np.float32(1), 1), InputError, r"y: shape is \[\], expected \[..., classes\]"),
        (lambda: train.CrossEntropy(1.5), InputError, "label_smoothing: 1.5, expected 0.0 to 1.0"),
        (
            lambda: train.MSE()(np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)),
            InputError,
            r"target: shape is \[2, 1\], expected \[2, 3\] \(that of y\)",
        ),
        (lambda: train.MAE()(np.ones(2, np.float32), np.ones(2)), InputTypeError, "target: dtype is float64"),
        (lambda: train.MSE()(np.ones(2), np.ones(2, np.float32)), InputTypeError, "y: dtype is float64"),
        (
            lambda: train.BinaryCrossEntropy()(np.ones(2, np.float32), [0, 2]),
            InputError,
            r"target: 2 at \[1\], expected 0 to 1",
        ),
        (lambda: train.MSE()(np.ones((0, 2), np.float32), np.ones((0, 2), np.float32)), InputError, "no element"),
        (
            lambda: train.MSE()(np.ones(2, np.float32), np.ones(2, np.float32), [1, 0]),
            InputTypeError,
            "mask: dtype is int64, expected bool",
        ),
        (
            lambda: train.MSE()(np.ones(2, np.float32), np.ones(2, np.float32), [False, False]),
            InputError,
            "mask: none of the 2 elements is left",
        ),
        (
            lambda: train.MSE()(np.ones(2, np.float32), np.ones(2, np.float32), [False] * 3),
            InputError,
            r"mask: shape is \[3\], expected \[2\], that of the target, or its first axes",
        ),
    ],
)
def test_wrong_targets(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_accuracy():
    y = np.array([[1, 3, 2], [5, 1, 0], [0, 0, 9]], np.float32)
    assert train.accuracy(y, [1, 0, 1]) == 2 / 3
    assert train.accuracy(y, np.array([1, 0, 1]), np.array([True, False, True])) == 1 / 2
    assert train.accuracy(np.array([0.5, -2, 3], np.float32), np.array([1, 1, 1])) == 2 / 3


# ------------------------------------------------------------------------------------------- optimisers, schedules
OPTIMIZERS = {
    "SGD": (lambda: train.SGD(0.1), lambda o, p: o.SGD(p, 0.1)),
    "SGD momentum": (lambda: train.SGD(0.1, momentum=0.8), lambda o, p: o.SGD(p, 0.1, momentum=0.8)),
    "SGD nesterov": (
        lambda: train.SGD(0.1, 0.8, True, weight_decay=0.03),
        lambda o, p: o.SGD(p, 0.1, 0.8, nesterov=True, weight_decay=0.03),
    ),
    "RMSprop": (lambda: train.RMSprop(), lambda o, p: o.RMSprop(p)),
    "RMSprop momentum": (
        lambda: train.RMSprop(0.02, 0.9, 1e-3, 0.05, 0.7),
        lambda o, p: o.RMSprop(p, 0.02, 0.9, 1e-3, 0.05, 0.7),
    ),
    "Adam": (lambda: train.Adam(), lambda o, p: o.Adam(p)),
    "Adam all": (
        lambda: train.Adam(0.02, (0.8, 0.95), 1e-3, 0.04),
        lambda o, p: o.Adam(p, 0.02, (0.8, 0.95), 1e-3, 0.04),
    ),
    "AdamW": (lambda: train.AdamW(), lambda o, p: o.AdamW(p)),
    "AdamW all": (
        lambda: train.AdamW(0.02, (0.8, 0.95), 1e-3, 0.04),
        lambda o, p: o.AdamW(p, 0.02, (0.8, 0.95), 1e-3, 0.04),
    ),
}
SIZE = 2 * train.optimizers.BLOCK + 37


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torchs(name):
    torch = pytest.importorskip("torch")
    make, make_torch = OPTIMIZERS[name]
    rng = np.random.default_rng(len(name))
    values, optimizer = uniform(rng, SIZE), make()
    want = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    other = make_torch(torch.optim, [want])
    for step in range(30):
        gradients = uniform(rng, SIZE) * np.float32(10.0 ** -(step % 4))
        want.grad = torch.tensor(gradients, dtype=torch.float64)
        other.step()
        optimizer.step(values, gradients)
        assert_close(values, want.detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_state(name):
    rng = np.random.default_rng(1)
    gradients = [uniform(rng, 5) for _ in range(6)]
    values, first = uniform(rng, 5), OPTIMIZERS[name][0]()
    for g in gradients[:3]:
        first.step(values, g.copy())
    second, copy = OPTIMIZERS[name][0](), values.copy()
    second.load_state_dict(first.state_dict())
    for g in gradients[3:]:
        first.step(values, g.copy())
        second.step(copy, g.copy())
    np.testing.assert_array_equal(values, copy)
    assert second.steps == 6
    if first.slots:
        with pytest.raises(InputError, match=f"{type(first).__name__}: got 4 values, expected 5, as before"):
            first.step(values[:4], gradients[0][:4])
    with pytest.raises(ModelError, match="state has nothing, expected steps"):
        first.load_state_dict({})


def test_schedules():
    torch = pytest.importorskip("torch")
    assert [train.InverseTimeDecay(0.5, 0.25)(step) for step in (0, 1, 4)] == [0.5, 0.4, 0.25]
    assert [train.StepDecay(0.5, 0.1, 3)(step) for step in (0, 2, 3, 7)] == pytest.approx([0.5, 0.5, 0.05, 0.005])
    assert train.ExponentialDecay(0.5, 0.5, 10)(20) == 0.125
    cosine = train.CosineDecay(0.4, 14, warmup=4, least=0.1)
    assert [cosine(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], 0.4)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 10, 0.1)
    for step in range(4, 15):
        assert cosine(step) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        other.step()
    assert cosine(100) == 0.1
    values, optimizer = np.zeros(1, np.float32), train.SGD(train.StepDecay(1.0, 0.5, 2))
    for _ in range(4):
        optimizer.step(values, np.ones(1, np.float32))
    assert values[0] == -3 and optimizer.rate() == 0.25
    assert repr(optimizer).startswith("SGD(learning_rate=StepDecay(learning_rate=1.0")


def test_clipping():
    torch = pytest.importorskip("torch")
    g = uniform(np.random.default_rng(1), 1000)
    for most in (1.0, 100.0):
        parameter = torch.nn.Parameter(torch.zeros(1000))
        parameter.grad = torch.tensor(g)
        mine = g.copy()
        assert train.clip_norm(mine, most) == pytest.approx(
            torch.nn.utils.clip_grad_norm_([parameter], most).item(), rel=1e-6
        )
        assert_close(mine, parameter.grad)
    mine = g.copy()
    train.clip_value(mine, 0.5)
    np.testing.assert_array_equal(mine, np.clip(g, -0.5, 0.5))
    large = np.array([3e30, 4e30], np.float32)
    assert train.clip_norm(large, 5) == pytest.approx(5e30) and large == pytest.approx([3, 4])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: train.SGD(-1), InputError, "learning_rate: -1, expected 0.0 to inf"),
        (lambda: train.SGD("1"), InputTypeError, "learning_rate: '1' is no number"),
        (lambda: train.SGD(nesterov=True), InputError, "nesterov: needs a momentum above 0"),
        (lambda: train.Adam(betas=0.9), InputTypeError, "betas: got 0.9, expected two numbers"),
        (lambda: train.Adam(betas=(0.9, 1.0)), InputError, r"betas: \(0.9, 1.0\), expected less than 1"),
        (lambda: train.SGD(lambda step: math.nan).rate(), InputError, "gave nan at step 0"),
        (lambda: train.StepDecay(0.1, 0.5, 0), InputError, "steps: 0 is less than 1"),
        (lambda: train.ExponentialDecay(0.1, -0.5, 3), InputError, "rate: -0.5, expected 0.0 to inf"),
        (lambda: train.InverseTimeDecay("0.1", 1), InputTypeError, "learning_rate: '0.1' is no number"),
        (lambda: train.CosineDecay(0.1, 10, warmup=1.5), InputTypeError, "warmup: 1.5 is no integer"),
    ],
)
def test_wrong_optimizers(make, error, message):
    with pytest.raises(error, match=message):
        make()


# -------------------------------------------------------------------------------------------------------------- fit
def tagger(**options):
    """Of sequences of 6 kinds of words; 3 tags."""
    return nn.Sequential(
        nn.Embedding(6, 5, padding_idx=0, rng=1),
        nn.Dropout(0.2),
        nn.LSTM(5, 7, batch_first=True, rng=2, **options),
        nn.LayerNorm(7),
        nn.GRU(7, 4, batch_first=True, rng=3),
        nn.Linear(4, 3, rng=4),
    )


def tagged(count=10, steps=9, seed=0):
    """x, y, lengths: the tag of a word is the one before it, modulo 3."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (count, steps))
    lengths = rng.integers(0, steps + 1, count)
    lengths[0] = steps
    y = np.roll(x, 1, axis=1) % 3
    y[:, 0] = 0
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    return x, y, lengths


def assert_same_weights(a, b):
    for name, array in a.state_dict().items():
        np.testing.assert_array_equal(array, b.state_dict()[name], err_msg=name)


def test_fit_is_the_loop_written_out():
    x, y, lengths = tagged()
    net, other = tagger(), tagger()
    loss = train.CrossEntropy(0.1)
    history = net.fit(
        x,
        y,
        lengths=lengths,
        loss=loss,
        optimizer=train.Adam(0.01),
        epochs=3,
        batch_size=4,
        seed=5,
        metrics="accuracy",
        clip_norm=0.3,
        clip_value=0.1,
    )
    rng, optimizer = np.random.default_rng(5), train.Adam(0.01)
    for epoch in range(3):
        order, sums, count = rng.permutation(10), np.zeros(2), 0
        for start in (0, 4, 8):
            places = order[start : start + 4]
            mask = np.arange(9) < lengths[places, None]
            out, _, saved = other.forward(x[places], lengths=lengths[places], training=True, rng=rng)
            value, dy = loss(out, y[places], mask)
            dweights = other.backward(dy, None, saved)[2]
            gradients = np.concatenate([g.ravel() for g in dweights.values()])
            train.clip_norm(gradients, 0.3)
            train.clip_value(gradients, 0.1)
            values = np.concatenate([a.ravel() for a in other.state_dict().values()])
            optimizer.step(values, gradients)
            ends = np.cumsum([a.size for a in dweights.values()])[:-1]
            other.load_state_dict(
                {name: part.reshape(dweights[name].shape) for name, part in zip(dweights, np.split(values, ends))}
            )
            sums += mask.sum() * np.array([value, train.accuracy(out, y[places], mask)])
            count += mask.sum()
        assert [history["loss"][epoch], history["accuracy"][epoch]] == pytest.approx(list(sums / count), rel=1e-12)
    assert_same_weights(net, other)
    assert history.epochs == 3 and history["learning_rate"] == [0.01] * 3


def test_training_learns():
    x, y, lengths = tagged(200)
    net = nn.Sequential(nn.Embedding(6, 8, rng=1), nn.GRU(8, 16, batch_first=True, rng=2), nn.Linear(16, 3, rng=3))
    history = net.fit(
        x,
        y,
        lengths=lengths,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(0.02),
        epochs=8,
        seed=1,
        batch_size=16,
        metrics=["accuracy"],
        validation_data=(*tagged(50, seed=1),),
    )
    assert history["accuracy"][-1] > 0.97 and history["val_accuracy"][-1] > 0.97
    assert {len(values) for values in history.values()} == {8}
    result = net.evaluate(
        *tagged(50, seed=1)[:2], lengths=tagged(50, seed=1)[2], loss=train.CrossEntropy(), metrics=["accuracy"]
    )
    assert result == {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}


def test_last_step_output_and_regression():
    rng = np.random.default_rng(1)
    x = uniform(rng, 300, 7, 2)
    y = x[:, -1:, 0] - x[:, -2:-1, 1]
    net = nn.Sequential(nn.RNN(2, 12, batch_first=True, return_sequences=False, rng=1), nn.Linear(12, 1, rng=2))
    before = net.evaluate(x, y, loss=train.MSE())["loss"]
    history = net.fit(x, y, loss=train.MSE(), optimizer=train.RMSprop(0.01), epochs=15, seed=1)
    assert history["loss"][-1] < 0.03 * before
    np.testing.assert_array_equal(net.predict(x, batch_size=7), net(x))


@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_sequential_of_recurrent_layers(return_sequences):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    net = nn.Sequential(
        nn.Linear(3, 5, rng=rng),
        nn.Sequential(nn.GRU(5, 4, batch_first=True, rng=rng), nn.Tanh()),
        nn.LSTM(4, 6, batch_first=True, return_sequences=return_sequences, rng=rng),
        nn.Linear(6, 2, rng=rng),
    )
    x, h, states = uniform(rng, 2, 5, 3), uniform(rng, 1, 2, 4), (uniform(rng, 1, 2, 6), uniform(rng, 1, 2, 6))
    y, (h1, (h2, c2)), saved = net.forward(x, (h, states), training=True)
    dy, dlast = uniform(rng, *y.shape), (uniform(rng, 1, 2, 4), (None, uniform(rng, 1, 2, 6)))
    dx, (dh, (dh2, dc2)), dweights = net.backward(dy, dlast, saved)

    t = torch.nn
    parts = [t.Linear(3, 5), t.GRU(5, 4, batch_first=True), t.LSTM(4, 6, batch_first=True), t.Linear(6, 2)]
    with torch.no_grad():
        for part, name in zip(parts, ("0.", "1.0.", "2.", "3.")):
            part.load_state_dict(
                {n.removeprefix(name): torch.tensor(a) for n, a in net.state_dict().items() if n.startswith(name)}
            )
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, h, *states)]
    out, last = parts[1](parts[0](inputs[0]), inputs[1])
    out, (_, c) = parts[2](torch.tanh(out), (inputs[2], inputs[3]))
    out = parts[3](out if return_sequences else out[:, -1])
    torch.autograd.backward([out, last, c], [torch.tensor(a) for a in (dy, dlast[0], dlast[1][1])])
    assert_close(y, out.detach(), 1e-5)
    for got, want in zip((dx, dh, dh2, dc2), inputs):
        assert_close(got, want.grad, 1e-5)
    assert list(dweights) == list(net.state_dict())
    for part, name in zip(parts, ("0.", "1.0.", "2.", "3.")):
        for n, parameter in part.named_parameters():
            assert_close(dweights[name + n], parameter.grad, 1e-5)
    np.testing.assert_array_equal(net.forward(x)[0], net(x))


def test_no_recurrent_layer_follows_one_that_returns_no_sequences():
    with pytest.raises(InputError, match=r"Sequential: LSTM\(4, 3\) follows GRU\(3, 4.*which returns no sequences"):
        nn.Sequential(nn.GRU(3, 4, return_sequences=False), nn.Tanh(), nn.Sequential(nn.LSTM(4, 3)))


def test_tbptt_carries_the_state_and_cuts_the_gradient():
    x, y, lengths = tagged(3, steps=10)
    net, other = tagger(), tagger()
    net.fit(x, y, lengths=lengths, loss=train.CrossEntropy(), optimizer=train.SGD(0.1), seed=2, tbptt=4, shuffle=False)
    rng, state = np.random.default_rng(2), None
    for start in (0, 4, 8):
        part, of_part = slice(start, min(start + 4, 10)), np.clip(lengths - start, 0, min(4, 10 - start))
        mask = np.arange(10)[part] < lengths[:, None]
        out, state, saved = other.forward(x[:, part], state, lengths=of_part, training=True, rng=rng)
        dweights = other.backward(train.CrossEntropy()(out, y[:, part], mask)[1], None, saved)[2]
        other.load_state_dict({name: a - np.float32(0.1) * dweights[name] for name, a in other.state_dict().items()})
    assert_same_weights(net, other)


def test_the_loss_of_an_epoch_in_chunks_is_the_mean_of_all_steps():
    x, y, _ = tagged(5, steps=9)
    net = nn.Sequential(nn.Embedding(6, 5, rng=1), nn.GRU(5, 3, batch_first=True, rng=2))
    options = {"loss": train.CrossEntropy(), "batch_size": 2}
    history = net.fit(x, y, optimizer=train.SGD(0.0), tbptt=4, **options)
    assert history["loss"][0] == pytest.approx(net.evaluate(x, y, **options)["loss"], rel=1e-6)


def test_early_stopping_restores_the_best():
    x, y, lengths = tagged(20)
    net = tagger()
    history = net.fit(
        x,
        y,
        lengths=lengths,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(0.1),
        epochs=100,
        seed=1,
        validation_data=tagged(20, seed=1),
        patience=3,
    )
    assert history.stopped and history.epochs == history.best_epoch + 4 < 100
    assert min(history["val_loss"]) == history["val_loss"][history.best_epoch] < history["val_loss"][-1]
    a, b, n = tagged(20, seed=1)
    assert net.evaluate(a, b, lengths=n, loss=train.CrossEntropy())["loss"] == history["val_loss"][history.best_epoch]
    last = tagger()
    last.fit(
        x,
        y,
        lengths=lengths,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(0.1),
        epochs=100,
        seed=1,
        validation_data=tagged(20, seed=1),
        patience=3,
        restore_best=False,
    )
    assert last.evaluate(a, b, lengths=n, loss=train.CrossEntropy())["loss"] == history["val_loss"][-1]


def test_a_batch_without_a_counted_element_makes_no_step():
    x, y, _ = tagged(4)
    optimizer, mask = train.Adam(), np.zeros((4, 9), bool)
    mask[2] = True
    history = tagger().fit(x, y, mask=mask, loss=train.CrossEntropy(), optimizer=optimizer, batch_size=1, seed=1)
    assert optimizer.steps == 1 and history["loss"][0] > 0


class Half:
    """A metric, and a loss, that gives a float32."""

    def __call__(self, y, target, mask=None):
        return np.float32(0.5)


def test_metrics_of_ones_own(tmp_path):
    x, y = np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32)
    loss = train.MSE()
    options = {
        "loss": lambda *of: (np.float32(loss(*of)[0]), loss(*of)[1]),
        "metrics": [Half(), train.MAE()],
        "checkpoint": tmp_path / "c",
        "seed": 1,
        "batch_size": 2,
    }
    nets = [nn.Linear(3, 2, rng=1) for _ in range(2)]
    first = nets[0].fit(x, y, optimizer=train.SGD(0.1), **options)
    assert first["Half"] == [0.5] and first["MAE"][0] > 0
    assert {type(value) for values in first.values() for value in values} == {float}
    assert nets[1].fit(x, y, optimizer=train.SGD(0.1), resume=True, **options) == first
    assert_same_weights(*nets)
    found = nets[0].evaluate(x, y, loss=loss, metrics=train.MAE())
    assert found["MAE"] == pytest.approx(train.MAE()(nets[0](x), y)[0])


# ------------------------------------------------------------------------------------------------------ checkpoints
class Interrupt(Exception):
    pass


class Interrupted:
    """A loss that fails at one of its calls."""

    def __init__(self, at):
        self.loss, self.at = train.CrossEntropy(), at

    def __call__(self, y, target, mask=None):
        self.at -= 1
        if self.at == 0:
            raise Interrupt
        return self.loss(y, target, mask)


@pytest.mark.parametrize(
    "optimizer, options",
    [
        (train.Adam, {}),
        (train.Adam, {"tbptt": 5, "checkpoint_every": 1}),
        (train.RMSprop, {"checkpoint_every": 3, "validation_data": tagged(5, seed=1), "patience": 2}),
        (lambda: train.SGD(0.3, momentum=0.9), {"checkpoint_every": 2, "shuffle": False, "metrics": "accuracy"}),
        (train.SGD, {"tbptt": 2, "checkpoint_every": 7}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_resumed_training_has_the_same_bits(tmp_path, optimizer, options):
    x, y, lengths = tagged(13)
    options = {"lengths": lengths, "epochs": 4, "batch_size": 5, "seed": 7, **options}
    whole, loss = tagger(), train.CrossEntropy()
    history = whole.fit(x, y, loss=loss, optimizer=optimizer(), checkpoint=tmp_path / "whole", **options)
    done = 0
    for at in (3, 8, 11):
        path = tmp_path / f"{at}"
        first, second, used = tagger(), tagger(), optimizer()
        with pytest.raises(Interrupt):
            first.fit(x, y, loss=Interrupted(at), optimizer=optimizer(), checkpoint=path, resume=True, **options)
        done += path.exists()
        again = second.fit(x, y, loss=loss, optimizer=used, checkpoint=path, resume=True, **options)
        assert_same_weights(whole, second)
        assert again == history and again.stopped == history.stopped and used.steps
    assert done >= 2
    third = tagger()
    again = third.fit(x, y, loss=Interrupted(1), optimizer=optimizer(), checkpoint=path, resume=True, **options)
    assert again == history
    assert_same_weights(whole, third)
    loaded = tagger()
    assert train.load_checkpoint(path, loaded) == history
    assert ("patience" in options) or assert_same_weights(whole, loaded) is None


def test_trained_on_from_a_checkpoint(tmp_path):
    x, y, lengths = tagged(13)
    options = {"lengths": lengths, "loss": train.CrossEntropy(), "seed": 1, "checkpoint": tmp_path / "c"}
    whole, part = tagger(), tagger()
    history = whole.fit(x, y, optimizer=train.Adam(), epochs=5, **options)
    with pytest.raises(ModelError, match="c: has no weights of a best epoch, as its training had no patience"):
        tagger().fit(x, y, optimizer=train.Adam(), epochs=9, patience=2, resume=True, **options)
    (tmp_path / "c").unlink()
    part.fit(x, y, optimizer=train.Adam(), epochs=2, **options)
    assert part.fit(x, y, optimizer=train.Adam(), epochs=5, resume=True, **options) == history
    assert_same_weights(whole, part)


def test_a_checkpoint_is_whole_or_as_before(tmp_path, monkeypatch):
    x, y, lengths = tagged(8)
    path = tmp_path / "c.safetensors"
    options = {"lengths": lengths, "loss": train.CrossEntropy(), "checkpoint": path}
    net = tagger()
    net.fit(x, y, optimizer=train.Adam(), **options)
    before = path.read_bytes()
    assert os.listdir(tmp_path) == ["c.safetensors"]

    def fail(*names):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="c.safetensors cannot be written: no room"):
        net.fit(x, y, optimizer=train.Adam(), **options)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.safetensors"]


def test_checkpoints_that_do_not_fit(tmp_path):
    x, y, lengths = tagged(8)
    path = tmp_path / "c"
    options = {"lengths": lengths, "loss": train.CrossEntropy(), "checkpoint": path, "batch_size": 4}
    tagger().fit(x, y, optimizer=train.Adam(), **options)
    whole = path.read_bytes()
    net, optimizer = tagger(), train.Adam()
    weights = net.state_dict()

    def refused(message, optimizer=optimizer, net=net, **changed):
        with pytest.raises(ModelError, match=message):
            net.fit(x, y, optimizer=optimizer, resume=True, **options | changed)

    refused("is of another training: optimizer 'Adam', expected 'SGD'", train.SGD())
    refused("is of another training: batch_size 4, expected 2", batch_size=2)
    refused(r"c: optimizer and best have .*607.*, expected mean, square of shape \(24,\)", net=nn.Embedding(6, 4))
    refused("missing weight, unexpected 0.weight, ", net=nn.Embedding(607, 1))
    for broken in (
        whole[:-3],
        whole[:40],
        b"",
        b"{}",
        whole.replace(b"version", b"versiom"),
        whole.replace(b"generator", b"generatox"),
        whole.replace(b"PCG64", b"PCG65"),
        whole.replace(b"optimizer.mean", b"optimizer.meen"),
        whole.replace(b"steps_done", b"steps_dome"),
        whole.replace(b"history", b"histery"),
        whole.replace(rb"\"weight\": ", rb"\"weight\":-1"),
        whole.replace(rb"\"sums\": {", rb"\"sums\": ["),
    ):
        assert broken != whole
        path.write_bytes(broken)
        refused(r"c: (is no|optimizer and best)")
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])
    assert optimizer.steps == 0


def test_a_checkpoint_is_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    x, y, lengths = tagged(8)
    net = tagger()
    net.fit(x, y, lengths=lengths, loss=train.CrossEntropy(), optimizer=train.Adam(), checkpoint=str(tmp_path / "c"))
    arrays = safetensors.load_file(tmp_path / "c")
    assert {name.partition(".")[0] for name in arrays} == {"net", "optimizer"}
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(arrays[f"net.{name}"], array)


# ------------------------------------------------------------------------------------------------------- divergence
class Exploding(nn.Module):
    """Infinite from its third training call on."""

    calls = 0

    def __call__(self, x):
        return x

    def _forward(self, x, rng):
        self.calls += 1
        return (x * np.float32(np.inf), x) if self.calls > 2 else (x, x)

    def _backward(self, dy, x):
        return dy, {}


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    x, y, lengths = tagged(8)
    net = nn.Sequential(nn.Embedding(6, 5, rng=1), nn.Sequential(nn.Tanh(), Exploding()), nn.Linear(5, 3, rng=2))
    path = tmp_path / "c"
    with pytest.raises(
        DivergedError,
        match=r"epoch 2, batch 1 of 2, step 3 \(examples 0, 1, 2, 3\): the loss is nan; "
        r"the first output that is not finite is that of layer 1.1 Exploding\(\)",
    ):
        net.fit(
            x,
            y,
            loss=train.CrossEntropy(),
            optimizer=train.SGD(0.1),
            epochs=9,
            batch_size=4,
            shuffle=False,
            checkpoint=path,
        )
    saved = nn.Sequential(nn.Embedding(6, 5), nn.Sequential(nn.Tanh(), nn.Tanh()), nn.Linear(5, 3))
    assert train.load_checkpoint(path, saved).epochs == 1
    assert_same_weights(net, saved)


def test_divergence_names_what_is_wrong():
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    options = {"loss": train.MSE(), "optimizer": train.SGD(1e30), "epochs": 5, "seed": 1}
    net = nn.Linear(3, 2, rng=1)
    with pytest.raises(DivergedError, match=r"step [23] .*: the loss is inf; all outputs are finite"):
        net.fit(x, y, **options)
    for wrong, message in (
        ((x * np.nan, y), "the input x is not finite"),
        ((x, y * np.inf), "the target is not finite"),
    ):
        with pytest.raises(DivergedError, match=message):
            nn.Linear(3, 2, rng=1).fit(*wrong, **options)
    with pytest.raises(DivergedError, match="the loss is inf; all outputs are finite"):
        nn.Linear(3, 2, rng=1).fit(x * np.float32(1e30), y, **options)
    with pytest.raises(DivergedError, match="epoch 1: the loss of validation_data is nan"):
        nn.Linear(3, 2, rng=1).fit(x, y, validation_data=(x * np.nan, y), **options)
    dead = nn.Sequential(nn.Linear(3, 2, rng=1))
    with pytest.raises(DivergedError, match=r"step \d .*: the loss is 1, the gradient of 0.weight is not finite"):
        dead.fit(x, y, **options | {"loss": lambda y, t, mask: (1.0, y * np.float32(np.nan))})


# -------------------------------------------------------------------------------------------------------- bad input
GOOD = {"loss": train.CrossEntropy(), "optimizer": train.SGD(), "seed": 1}
X, Y, _ = tagged(4)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((X[:0], Y[:0]), {}, InputError, r"x: shape is \[0, 9\]: no example"),
        ((X, Y[:3]), {}, InputError, r"y: shape is \[3, 9\], expected 4 examples, as in x"),
        ((X, None), {}, InputTypeError, "y: got None, expected the targets"),
        ((3, Y), {}, InputError, "x: got a single number"),
        (
            (X, Y + 3),
            {},
            InputError,
            r"epoch 1, batch 1 of 1, step 1 \(examples .*\): target: \d at .*, expected 0 to 2",
        ),
        ((X, Y[:, :5]), {}, InputError, r"target: shape is \[4, 5\], expected \[4, 9\]"),
        ((X - 1, Y), {}, InputError, "x: -1 at .*, expected 0 to 5"),
        ((X, Y), {"lengths": [1, 2, 3]}, InputError, r"lengths: shape is \[3\], expected \[4\]"),
        ((X, Y), {"lengths": [1, 2, 3, 10]}, InputError, "lengths: 10 at row 3, expected 0 to 9"),
        ((X, Y), {"lengths": [0, 0, 0, 0]}, InputError, "mask: nothing is left"),
        ((X, Y), {"mask": np.ones((4, 8), bool)}, InputError, r"mask: shape is \[4, 8\], expected \[4, 9\], that of y"),
        ((X, Y), {"mask": np.ones((4, 9))}, InputTypeError, "mask: dtype is float64, expected bool"),
        ((X, Y), {"batch_size": 0}, InputError, "batch_size: 0 is less than 1"),
        ((X, Y), {"epochs": 0}, InputError, "epochs: 0 is less than 1"),
        ((X, Y), {"loss": "mse"}, InputTypeError, r"loss: got a str, expected a callable \(y, target, mask\)"),
        ((X, Y), {"loss": train.CrossEntropy}, InputTypeError, "loss: got the class CrossEntropy, expected a callable"),
        ((X, Y), {"loss": lambda y, t, mask: 1.0}, InputTypeError, r"step 1 .*: loss: gave a float, expected \(value"),
        ((X, Y), {"loss": lambda y, t, mask: (y, y)}, InputTypeError, "loss: gave a ndarray, expected a number"),
        ((X, Y), {"optimizer": "adam"}, InputTypeError, "optimizer: got a str, expected an Optimizer"),
        ((X, Y), {"optimizer": train.Adam}, InputTypeError, "optimizer: got the class Adam, expected an Optimizer"),
        ((X, Y), {"metrics": "acc"}, InputError, "metrics: 'acc' is none of accuracy, nor a callable"),
        ((X, Y), {"metrics": None}, InputTypeError, "metrics: got a NoneType, expected names and callables"),
        ((X, Y), {"metrics": [train.MAE]}, InputTypeError, "metrics: got the class MAE, expected a callable"),
        ((X, Y), {"metrics": ["accuracy", train.accuracy]}, InputError, "another value is called 'accuracy' already"),
        ((X, Y), {"validation_data": X}, InputTypeError, r"validation_data: got a ndarray, expected \(x, y\)"),
        ((X, Y), {"validation_data": (X, Y[:2])}, InputError, "validation_data: y: shape is"),
        ((X, Y), {"clip_norm": -1}, InputError, "clip_norm: -1, expected 0.0 to inf"),
        ((X, Y), {"resume": True}, InputError, "resume: needs checkpoint, a file"),
        ((X, Y), {"checkpoint_every": 2}, InputError, "checkpoint_every: needs checkpoint, a file"),
        ((X, Y), {"checkpoint": "/no/such/c"}, InputError, "'/no/such/c' is no file in a folder that exists"),
        ((X, Y), {"checkpoint": 3}, InputTypeError, "checkpoint: 3 is no path"),
        ((X, Y[:, 0]), {"tbptt": 3}, InputError, r"tbptt: x is of shape \[4, 9\], y of shape \[4\]"),
        ((X, Y), {"tbptt": 3, "mask": np.ones(4, bool)}, InputError, r"tbptt: mask has shape \[4\]"),
        ((X, Y), {"seed": "a"}, InputTypeError, "seed: 'a' is neither a seed nor a numpy Generator"),
    ],
    ids=str,
)
def test_wrong_input(arguments, options, error, message):
    net = tagger()
    before = net.state_dict()
    with pytest.raises(error, match=message):
        net.fit(*arguments, **GOOD | options)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_input_of_validation_and_evaluation():
    with pytest.raises(InputError, match=r"^validation_data: target: \d at .*, expected 0 to 2"):
        tagger().fit(X, Y, validation_data=(X, Y + 3), **GOOD)
    with pytest.raises(InputTypeError, match="loss: got the class MSE"):
        tagger().evaluate(X, Y, loss=train.MSE)


def test_networks_that_do_not_fit():
    with pytest.raises(InputError, match=r"LSTM\(5, 7\): batch_first is False, expected True: examples lie along"):
        nn.Sequential(nn.Embedding(6, 5), nn.LSTM(5, 7)).fit(X, Y, **GOOD)
    with pytest.raises(InputError, match=r"tbptt: LSTM\(5, 7.*\) begins at the end of a sequence"):
        tagger(reverse=True).fit(X, Y, tbptt=3, **GOOD)
    with pytest.raises(InputError, match="tbptt: a recurrent layer has return_sequences=False"):
        nn.GRU(6, 3, batch_first=True, return_sequences=False).fit(X, Y, tbptt=3, **GOOD)
    with pytest.raises(InputError, match=r"Tanh\(\) has no parameters to train"):
        nn.Tanh().fit(uniform(np.random.default_rng(1), 3, 2), np.array([0, 1, 0]), **GOOD)
    shared = nn.Linear(3, 3, rng=1)
    with pytest.raises(UnsupportedError, match=r"^Linear\(3, 3\) stands in Sequential\(.*\) more than once"):
        nn.Sequential(nn.Embedding(6, 3), shared, nn.Sequential(nn.Tanh(), shared)).fit(X, Y, **GOOD)
    used = train.Adam()
    nn.Embedding(6, 3).fit(X, Y, **GOOD | {"optimizer": used})
    with pytest.raises(InputError, match="Adam: got 607 values, expected 18, as before"):
        tagger().fit(X, Y, **GOOD | {"optimizer": used})


# --------------------------------------------------------------------------------------------- progress, light import
def test_progress_on_a_terminal(monkeypatch):
    rich = pytest.importorskip("rich.console")
    screen = io.StringIO()
    console = rich.Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setattr(progress, "make", lambda wanted: progress.Bar(console))
    net = tagger()
    net.fit(X, Y, epochs=2, batch_size=2, metrics="accuracy", **GOOD)
    text = screen.getvalue()
    assert "epoch 1/2  loss 1." in text and "epoch 2/2  loss 1." in text and "accuracy 0." in text and "━" in text
    net.evaluate(X, Y, loss=train.CrossEntropy(), batch_size=2)
    net.predict(X, batch_size=3)
    assert "evaluate " in screen.getvalue() and "predict " in screen.getvalue()


def test_no_progress_elsewhere(capfd):
    tagger().fit(X, Y, **GOOD)
    assert capfd.readouterr() == ("", "")


def test_import_is_light():
    code = (
        "import sys, rnnfast; print([m for m in ('rnnfast.train', 'numpy', 'safetensors') if m in sys.modules]); "
        "rnnfast.train.Adam; print([m for m in ('safetensors', 'rich') if m in sys.modules])"
    )
    root = pathlib.Path(rnnfast.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_without_safetensors(monkeypatch):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="needs safetensors, which is not installed: pip install"):
        tagger().fit(X, Y, checkpoint="c", **GOOD)


def test_history_is_plain():
    history = train.History()
    assert history.best_epoch is None and history.epochs == 0
    for loss in (3.0, 1.0, 2.0):
        history.append({"loss": loss})
    assert json.loads(json.dumps(history)) == {"loss": [3.0, 1.0, 2.0]} and history.best_epoch == 1


@pytest.mark.parametrize(
    "values, gradients, message",
    [
        (np.zeros(3), np.zeros(3), r"values: got float64 \[3\], expected a contiguous, writeable float32 vector of 3"),
        (np.zeros(3, np.float32), np.zeros(4, np.float32), r"gradients: got float32 \[4\], expected .* of 3"),
        (np.zeros(3, np.float32), [0.0, 0.0, 0.0], "gradients: got list"),
        (np.zeros(6, np.float32)[::2], np.zeros(3, np.float32), r"values: got float32 \[3\]"),
    ],
)
def test_an_optimiser_takes_vectors(values, gradients, message):
    with pytest.raises(InputTypeError, match=message):
        train.Adam().step(values, gradients)


def test_adam_has_the_bits_of_numpy(isa):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100003).astype(np.float32)
    right, m, s = values.copy(), np.zeros_like(values), np.zeros_like(values)
    optimizer = train.Adam(0.01, betas=(0.8, 0.95), eps=1e-3)
    for t in range(1, 4):
        g = rng.standard_normal(values.size).astype(np.float32)
        optimizer.step(values, g.copy())
        m = np.float32(0.8) * m + np.float32(1 - 0.8) * g
        s = np.float32(0.95) * s + np.float32(1 - 0.95) * np.square(g)
        scale = np.sqrt(1 - 0.95**t)
        right -= np.float32(0.01 * scale / (1 - 0.8**t)) * (m / (np.sqrt(s) + np.float32(1e-3 * scale)))
    assert values.tobytes() == right.tobytes()
