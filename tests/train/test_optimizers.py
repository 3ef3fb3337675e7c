"""Optimisers, schedules and clipping against torch and against NumPy."""

import math

import numpy as np
import pytest

from rnnfast import train
from rnnfast.errors import InputError, InputTypeError, ModelError
from tests.train.helpers import assert_close, uniform

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
