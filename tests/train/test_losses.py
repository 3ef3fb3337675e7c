"""Losses and metrics against torch, with masks, and the targets that they refuse."""

import math

import numpy as np
import pytest

from rnnfast import train
from rnnfast.errors import InputError, InputTypeError
from tests.train.helpers import assert_close, uniform

LOSSES = {
    "CrossEntropy": (train.CrossEntropy(), lambda f, y, t: f.cross_entropy(y.reshape(-1, y.shape[-1]), t.reshape(-1))),
    "CrossEntropy smoothed": (
        train.CrossEntropy(0.2),
        lambda f, y, t: f.cross_entropy(y.reshape(-1, y.shape[-1]), t.reshape(-1), label_smoothing=0.2),
    ),
    "MSE": (train.MSE(), lambda f, y, t: f.mse_loss(y, t)),
    "CrossEntropy ignoring": (
        train.CrossEntropy(0.2, ignore_index=-3),
        lambda f, y, t: f.cross_entropy(
            y.reshape(-1, y.shape[-1]), t.reshape(-1), label_smoothing=0.2, ignore_index=-3
        ),
    ),
    "MAE": (train.MAE(), lambda f, y, t: f.l1_loss(y, t)),
    "Huber": (train.Huber(), lambda f, y, t: f.huber_loss(y, t)),
    "Huber wide": (train.Huber(7.5), lambda f, y, t: f.huber_loss(y, t, delta=7.5)),
    "BinaryCrossEntropy": (train.BinaryCrossEntropy(), lambda f, y, t: f.binary_cross_entropy_with_logits(y, t)),
}


def a_target(name, rng, shape):
    if name.startswith("CrossEntropy"):
        target = rng.integers(0, shape[-1], shape[:-1])
        if name == "CrossEntropy ignoring" and target.size > 2:
            target.flat[1::3] = -3
        return target
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
        if mask is not None and not (mask.any() and (target[mask] != -3).any()):
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
        (lambda: train.MAE()(np.ones(2, np.float32), ["1", "2"]), InputTypeError, "target: dtype is <U1"),
        (lambda: train.MAE()(np.ones(2, np.float32), [1, 1e39]), InputError, "target: holds numbers beyond the range"),
        (lambda: train.MSE()(np.ones(2, int), np.ones(2, np.float32)), InputTypeError, "y: dtype is int64"),
        (
            lambda: train.BinaryCrossEntropy()(np.ones(2, np.float32), [0, 2]),
            InputError,
            r"target: 2 at \[1\], expected 0 to 1",
        ),
        (lambda: train.MSE()(np.ones((0, 2), np.float32), np.ones((0, 2), np.float32)), InputError, "no element"),
        (
            lambda: train.MSE()(np.ones(2, np.float32), np.ones(2, np.float32), [1j, 0]),
            InputTypeError,
            "mask: dtype is complex128, expected bool",
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
