"""Losses: `loss(y, target, mask=None)` returns (value, dy), the mean over the elements that count and its gradient.

y is the network's float32 output. The mask has the target's shape or its first axes. It is bool, True where an element
counts, or the weight of each element: the value is then sum(weight * loss) / sum(weight). Elements that do not count,
or have weight 0, may hold any value. The value is a float, summed in float64; dy is float32 of y's shape.
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn.checks import as_array, as_input, check_number, check_shape, to_float32

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from rnnfast.nn.types import FloatArray


def check_weights(weights, name):
    """Raise an error unless the weights are finite numbers of 0 or more; bool is let pass."""
    if weights.dtype.kind not in "biuf":
        raise InputTypeError(f"{name}: dtype is {weights.dtype}, expected bool, or float32 weights")
    if weights.dtype != bool and not np.all((weights >= 0) & (weights < np.inf)):
        raise InputError(f"{name}: holds {weights[~((weights >= 0) & (weights < np.inf))][0]}, expected 0 or more")


def check_mask(mask, shape):
    """Return which elements of this shape count, their weights, and the sum of these.

    The first two are arrays of the shape, bool and float64; None if all count, or if all weights are 1.
    """
    size = int(np.prod(shape))
    if mask is None:
        if not size:
            raise InputError(f"target: shape is {list(shape)}: no element to take the mean of")
        return None, None, size
    mask = as_array(mask, "mask")
    check_weights(mask, "mask")
    if mask.shape != shape[: mask.ndim]:
        raise InputError(
            f"mask: shape is {list(mask.shape)}, expected {list(shape)}, that of the target, or its first axes"
        )
    mask = np.array(mask)  # a copy: NumPy counts a mask before it uses it, and another thread may write the caller's
    mask = np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
    if not mask.any():
        raise InputError(f"mask: none of the {size} elements is left")
    if mask.dtype == bool:
        return mask, None, int(mask.sum())
    weights = mask.astype(np.float64)
    return mask > 0, weights, float(weights.sum())


class CrossEntropy:
    """Cross-entropy of logits y [..., classes] and classes target [...]: -log softmax(y)[target].

    The formula is that of torch.nn.CrossEntropyLoss. With label_smoothing s the target has probability
    1 - s + s / classes, and each other class s / classes.

    Args:
        label_smoothing: s, from 0 to 1.
        weight: The weight of each class, [classes]: an element weighs as much as its target's class, so that the mean
            is sum(weight * loss) / sum(weight). None is 1 for all.
        ignore_index: The target of elements that do not count, such as torch's -100 or the class of padding; in `fit`
            and `evaluate` metrics do not count them either. None is no target.

    Raises:
        InputError: label_smoothing is out of range, or weight is not a vector of numbers of 0 or more.
        InputTypeError: label_smoothing is no number, weight has a wrong dtype, or ignore_index is no integer.
    """

    def __init__(
        self, label_smoothing: float = 0.0, weight: ArrayLike | None = None, ignore_index: int | None = None
    ) -> None:
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
            raise InputTypeError(f"ignore_index: {ignore_index!r} is no integer")
        self.ignore_index = None if ignore_index is None else int(ignore_index)
        self.label_smoothing = check_number(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.weight: Any = None
        if weight is not None:
            weight = as_array(weight, "weight")
            check_weights(weight, "weight")
            if weight.ndim != 1 or not weight.any():
                raise InputError(f"weight: shape is {list(weight.shape)}, expected [classes] with a number above 0")
            self.weight = weight.astype(np.float64)

    @np.errstate(all="ignore")
    def __call__(self, y: FloatArray, target: ArrayLike, mask: NDArray[Any] | None = None) -> tuple[float, FloatArray]:
        """Compute the loss and its gradient.

        Args:
            y: The logits, float32 [..., classes].
            target: Integers [...] from 0 to classes - 1, or `ignore_index`.
            mask: bool or weights, of the target's shape or its first axes: which elements count, and how much; None is
                all.

        Returns:
            The mean over the elements that count, and its gradient, float32 of y's shape.

        Raises:
            InputError: A shape or class does not fit, or no element counts.
            InputTypeError: A dtype does not fit.
        """
        return self._loss(as_input(y, "y"), np.array(as_array(target, "target")), mask)

    def _loss(self, y, target, mask):
        if y.ndim == 0 or y.shape[-1] == 0:
            raise InputError(f"y: shape is {list(y.shape)}, expected [..., classes]")
        classes, smoothing = y.shape[-1], self.label_smoothing
        if target.dtype.kind not in "iu":
            raise InputTypeError(f"target: dtype is {target.dtype}, expected integers")
        check_shape(target, y.shape[:-1], "target", "that of y without its classes")
        if self.weight is not None and self.weight.shape != (classes,):
            raise InputError(f"weight: shape is {list(self.weight.shape)}, expected [{classes}], one for each class")
        mask, weights, count = check_mask(mask, target.shape)
        if self.ignore_index is not None:
            counts = target != self.ignore_index if mask is None else mask & (target != self.ignore_index)
            if not counts.any():
                raise InputError(f"target: holds {self.ignore_index} (ignore_index) alone where the mask counts")
            mask, count = counts, int(counts.sum())
        outside = (target < 0) | (target >= classes)
        _check_range(target, outside, mask, f"0 to {classes - 1}")
        if mask is not None:
            target = np.where(mask & ~outside, target, 0)

        logs = y.reshape(-1, classes)
        logs = logs - logs.max(1, keepdims=True)
        dy = np.exp(logs)
        total = dy.sum(1, keepdims=True)
        logs -= np.log(total)
        if weights is not None or self.weight is not None:
            weights = np.ones(target.shape) if weights is None else weights
            return self._weighted(logs, dy / total, target.ravel(), weights.ravel(), mask, y.shape)
        dy *= 1 / (total * np.float32(count))
        at_target = np.arange(len(logs)), target.ravel()
        losses = (smoothing - 1) * logs[at_target].astype(np.float64)
        dy[at_target] -= np.float32((1 - smoothing) / count)
        if smoothing:
            losses -= smoothing * logs.mean(1, dtype=np.float64)
            dy -= np.float32(smoothing / (classes * count))
        if mask is not None:
            counts = mask.ravel()
            losses = losses[counts]
            dy[~counts] = 0
        return float(losses.sum()) / count, dy.reshape(y.shape)

    def _weighted(self, logs, p, target, weights, mask, shape):
        """Return the loss and its gradient where rows or classes have weights; p are the probabilities, logs theirs."""
        classes = logs.shape[1]
        of_class = np.ones(classes) if self.weight is None else self.weight
        rows = np.arange(len(logs))
        if mask is not None:
            weights = np.where(mask.ravel(), weights, 0)
        total = float((weights * of_class[target]).sum())
        if not total:
            raise InputError("weight: all elements that count are of classes of weight 0")
        share = np.zeros_like(logs)  # of each class in the loss of a row: -sum(share * log p)
        share[:] = self.label_smoothing / classes * of_class
        share[rows, target] += (1 - self.label_smoothing) * of_class[target]
        share *= (weights / total)[:, None]
        dy = share.sum(1, keepdims=True) * p - share
        counts = weights > 0
        dy[~counts] = 0
        value = -(share[counts].astype(np.float64) * logs[counts]).sum()
        return float(value), dy.reshape(shape)


class _Elementwise:
    """The base class of losses of each element of y and that of a target of the same shape."""

    @np.errstate(all="ignore")
    def __call__(self, y: FloatArray, target: ArrayLike, mask: NDArray[Any] | None = None) -> tuple[float, FloatArray]:
        """Compute the loss and its gradient.

        Args:
            y: float32 of any shape.
            target: Numbers of y's shape, which are rounded to float32. If y is [..., 1], they may be [...].
            mask: bool or weights, of the target's shape or its first axes: which elements count, and how much; None is
                all.

        Returns:
            The mean over the elements that count, and its gradient, float32 of y's shape.

        Raises:
            InputError: A shape or value does not fit, or no element counts.
            InputTypeError: A dtype does not fit.
        """
        return self._loss(as_input(y, "y"), self._target(target, mask), mask)

    def _loss(self, y, target, mask):
        if y.shape == (*target.shape, 1):
            target = target[..., None]
        check_shape(target, y.shape, "target", "that of y")
        mask, weights, count = check_mask(mask, y.shape)
        if mask is not None:
            target = np.where(mask, target, np.float32(0))
        values, dy = self.elements(y, target)
        dy *= np.float32(1 / count) if weights is None else (weights / count).astype(np.float32)
        if weights is not None:
            values = values * weights
        if mask is not None:
            values, dy[~mask] = values[mask], 0
        return float(values.sum(dtype=np.float64)) / count, dy

    def elements(self, y: FloatArray, target: FloatArray, /) -> tuple[FloatArray, FloatArray]:
        """Return the loss of each element and its derivative by y."""
        raise NotImplementedError

    def _target(self, target, mask):
        """Return the target as float32."""
        target = as_array(target, "target")
        if target.dtype.kind not in "biuf":
            raise InputTypeError(f"target: dtype is {target.dtype}, expected float32")
        return to_float32(target, "target")


class MSE(_Elementwise):
    """Mean squared error, (y - target)^2, as torch.nn.MSELoss; y and target have one shape."""

    def elements(self, y, target):
        difference = y - target
        return difference * difference, 2 * difference


class MAE(_Elementwise):
    """Mean absolute error, |y - target|, as torch.nn.L1Loss; y and target have one shape.

    The gradient at y = target is 0.
    """

    def elements(self, y, target):
        difference = y - target
        return np.abs(difference), np.sign(difference)


class Huber(_Elementwise):
    """Huber loss, d^2 / 2 where |d| < delta, else delta * (|d| - delta / 2), of d = y - target, as torch.nn.HuberLoss.

    y and target have one shape.

    Args:
        delta: Where the square ends; a number above 0.

    Raises:
        InputError: delta is out of range.
        InputTypeError: delta is no number.
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = check_number(delta, "delta", 0.0, float(np.finfo(np.float32).max))
        if not self.delta:
            raise InputError(f"delta: {delta!r}, expected more than 0")

    def elements(self, y, target):
        difference, delta = y - target, np.float32(self.delta)
        bounded = np.clip(difference, -delta, delta)
        return bounded * (difference - bounded / 2), bounded


class BinaryCrossEntropy(_Elementwise):
    """Binary cross-entropy of logits y: -t log p - (1 - t) log(1 - p), where p = sigmoid(y) and t is the target.

    The formula is that of torch.nn.BCEWithLogitsLoss. The target has y's shape, and is from 0 to 1, or bool.
    """

    def elements(self, y, target):
        small = np.exp(-np.abs(y))
        p = np.where(y >= 0, 1, small) / (1 + small)
        return np.maximum(y, 0) - y * target + np.log1p(small), p - target

    def _target(self, target, mask):
        target, values = super()._target(target, mask), as_array(target, "target")
        outside = ~((target >= 0) & (target <= 1))
        if outside.any():
            _check_range(values, outside, check_mask(mask, target.shape)[0], "0 to 1")
        return target


def _check_range(target, outside, mask, expected):
    """Refuse targets that count and where `outside` is True."""
    if outside.any():
        wrong = np.argwhere(outside if mask is None else outside & mask)
        if len(wrong):
            where = wrong[0].tolist()
            raise InputError(f"target: {target[tuple(where)]} at {where}, expected {expected}")
