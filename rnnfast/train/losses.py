"""Losses: `loss(y, target, mask=None)` -> (value, dy), the mean over the elements that the mask keeps and its gradient.

y: float32, what the network gives; mask: bool, of the shape of the target or of its first axes, True where an element
counts; what it leaves out may hold any value. value: a float, summed in float64; dy: float32, of y's shape.
"""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn.checks import as_array, as_input, check_number, check_shape


def check_mask(mask, shape):
    """`mask` as bool of `shape`, and how many elements it keeps; None keeps all."""
    size = int(np.prod(shape))
    if mask is None:
        if not size:
            raise InputError(f"target: shape is {list(shape)}: no element to take the mean of")
        return None, size
    mask = as_array(mask, "mask")
    if mask.dtype != bool:
        raise InputTypeError(f"mask: dtype is {mask.dtype}, expected bool")
    if mask.shape != shape[: mask.ndim]:
        raise InputError(
            f"mask: shape is {list(mask.shape)}, expected {list(shape)}, that of the target, or its first axes"
        )
    mask = np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
    count = int(mask.sum())
    if not count:
        raise InputError(f"mask: none of the {size} elements is left")
    return mask, count


class CrossEntropy:
    """-log softmax(y)[target], y [..., classes], target [...] integers from 0 to classes - 1.

    label_smoothing s: the target has probability 1 - s + s / classes, each other class s / classes, as in torch.
    """

    def __init__(self, label_smoothing=0.0):
        self.label_smoothing = check_number(label_smoothing, "label_smoothing", 0.0, 1.0)

    @np.errstate(all="ignore")
    def __call__(self, y, target, mask=None):
        y, target = as_input(y, "y"), as_array(target, "target")
        if y.ndim == 0 or y.shape[-1] == 0:
            raise InputError(f"y: shape is {list(y.shape)}, expected [..., classes]")
        classes, smoothing = y.shape[-1], self.label_smoothing
        if target.dtype.kind not in "iu":
            raise InputTypeError(f"target: dtype is {target.dtype}, expected integers")
        check_shape(target, y.shape[:-1], "target", "that of y without its classes")
        mask, count = check_mask(mask, target.shape)
        outside = (target < 0) | (target >= classes)
        _check_range(target, outside, mask, f"0 to {classes - 1}")
        if mask is not None:
            target = np.where(mask & ~outside, target, 0)

        logs = y.reshape(-1, classes)
        logs = logs - logs.max(1, keepdims=True)
        dy = np.exp(logs)
        total = dy.sum(1, keepdims=True)
        logs -= np.log(total)
        dy *= 1 / (total * np.float32(count))
        places = np.arange(len(logs)), target.ravel()
        lost = (1 - smoothing) * logs[places].astype(np.float64)
        dy[places] -= np.float32((1 - smoothing) / count)
        if smoothing:
            lost += smoothing * logs.mean(1, dtype=np.float64)
            dy -= np.float32(smoothing / (classes * count))
        if mask is not None:
            kept = mask.ravel()
            lost = lost[kept]
            dy[~kept] = 0
        return -float(lost.sum()) / count, dy.reshape(y.shape)


class _Elementwise:
    """A loss of each element of y with that of a target of its shape."""

    @np.errstate(all="ignore")
    def __call__(self, y, target, mask=None):
        y, target = as_input(y, "y"), self._target(target, mask)
        check_shape(target, y.shape, "target", "that of y")
        mask, count = check_mask(mask, y.shape)
        if mask is not None:
            target = np.where(mask, target, np.float32(0))
        values, dy = self.elements(y, target)
        dy *= np.float32(1 / count)
        if mask is not None:
            values, dy[~mask] = values[mask], 0
        return float(values.sum(dtype=np.float64)) / count, dy

    def _target(self, target, mask):
        return as_input(target, "target")


class MSE(_Elementwise):
    """(y - target)^2, both float32 of one shape."""

    def elements(self, y, target):
        difference = y - target
        return difference * difference, 2 * difference


class MAE(_Elementwise):
    """|y - target|, both float32 of one shape; the gradient at 0 is 0."""

    def elements(self, y, target):
        difference = y - target
        return np.abs(difference), np.sign(difference)


class BinaryCrossEntropy(_Elementwise):
    """-t log p - (1 - t) log(1 - p), p = sigmoid(y), computed from y, the logits; t = target, float32 from 0 to 1, bool
    or integers 0 and 1, of y's shape."""

    def elements(self, y, target):
        small = np.exp(-np.abs(y))
        p = np.where(y >= 0, 1, small) / (1 + small)
        return np.maximum(y, 0) - y * target + np.log1p(small), p - target

    def _target(self, target, mask):
        target = as_array(target, "target")
        if target.dtype.kind not in "biu":
            target = as_input(target, "target")
        outside = ~((target >= 0) & (target <= 1))
        if outside.any():
            _check_range(target, outside, check_mask(mask, target.shape)[0], "0 to 1")
        return target.astype(np.float32)


def _check_range(target, outside, mask, expected):
    """Refuse values where `outside` is True and that count."""
    if outside.any():
        wrong = np.argwhere(outside if mask is None else outside & mask)
        if len(wrong):
            where = wrong[0].tolist()
            raise InputError(f"target: {target[tuple(where)]} at {where}, expected {expected}")
