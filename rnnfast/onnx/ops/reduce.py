"""Reductions, the indices of extremes, and running sums (ONNX operator specification, for example ReduceSum-13)."""

import math

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from rnnfast.errors import InputError
from rnnfast.onnx.ops.numeric import axis_index, flatten_axes, is_floating, numeric
from rnnfast.onnx.ops.types import Flag, Ints


def _sum(x, axes):
    """Return the sum over the axes."""
    return flatten_axes(x, axes).sum(axis=-1, dtype=x.dtype)


def _mean(x, axes):
    """Return the mean over the axes, truncated toward zero for integers."""
    count = math.prod(x.shape[axis] for axis in axes)
    if is_floating(x.dtype):
        return _sum(x, axes) / np.asarray(count, x.dtype)
    if count == 0:
        raise InputError("the mean of no integers")
    wide = np.uint64 if x.dtype.kind == "u" else np.int64
    total = flatten_axes(x, axes).sum(axis=-1, dtype=wide)
    return (np.sign(total) * (np.abs(total) // np.asarray(count, wide))).astype(x.dtype)


def _product(x, axes):
    """Return the product over the axes."""
    return flatten_axes(x, axes).prod(axis=-1, dtype=x.dtype)


def _extreme(x, axes, find, empty_value):
    """Return the largest or smallest element over the axes, by `find`; `empty_value` where there are no elements."""
    shape = [x.shape[axis] for axis in range(x.ndim) if axis not in axes]
    if any(x.shape[axis] == 0 for axis in axes):
        return np.full(shape, empty_value, x.dtype)
    return find(flatten_axes(x, axes), axis=-1)


def _lowest(dtype):
    """Return the lowest value of a type."""
    return False if dtype == np.bool_ else -math.inf if is_floating(dtype) else np.iinfo(dtype).min


def _highest(dtype):
    """Return the highest value of a type."""
    return True if dtype == np.bool_ else math.inf if is_floating(dtype) else np.iinfo(dtype).max


def _max(x, axes):
    """Return the largest element over the axes."""
    return _extreme(x, axes, np.max, _lowest(x.dtype))


def _min(x, axes):
    """Return the smallest element over the axes."""
    return _extreme(x, axes, np.min, _highest(x.dtype))


def _l1(x, axes):
    """Return sum(|x|)."""
    return _sum(np.abs(x), axes)


def _sum_square(x, axes):
    """Return sum(x^2)."""
    return _sum(x * x, axes)


def _through_float(function):
    """Decorate a reduction that computes integers in float64 and truncates the result to their type."""

    def reduce(x, axes):
        if is_floating(x.dtype):
            return function(x, axes)
        return np.trunc(function(x.astype(np.float64), axes)).astype(x.dtype)

    return reduce


@_through_float
def _l2(x, axes):
    """Return sqrt(sum(x^2))."""
    return np.sqrt(_sum_square(x, axes))


@_through_float
def _log_sum(x, axes):
    """Return log(sum(x))."""
    return np.log(_sum(x, axes))


@_through_float
def _log_sum_exp(x, axes):
    """Return m + log(sum(exp(x - m))), where m is the largest x, or 0 if that is infinite."""
    peak = _max(x, axes)
    shift = np.where(np.isfinite(peak), peak, 0).astype(x.dtype)
    shifted = x - np.expand_dims(shift, tuple(axes))
    return shift + np.log(_sum(np.exp(shifted), axes))


def _reduce(reduce, x, axes, keepdims):
    """Return x reduced over the axes, which stay with length 1 if `keepdims`."""
    axes = normalize_axis_tuple(axes, x.ndim)
    y = reduce(x, axes)
    if keepdims:
        y = np.reshape(y, [1 if axis in axes else n for axis, n in enumerate(x.shape)])
    return y


def _axes_attribute(reduce):
    """Return the operator whose axes are an attribute (ReduceMax before opset 18)."""

    @numeric
    def operator(x, *, axes: Ints | None = None, keepdims: Flag = 1):
        return _reduce(reduce, x, axes or range(x.ndim), keepdims)

    operator.__name__ = reduce.__name__
    return operator


def _axes_input(reduce):
    """Return the operator whose axes are an input (ReduceMax-18)."""
    compute = numeric(lambda x, axes, keepdims: _reduce(reduce, x, axes, keepdims))

    def operator(x, axes=None, *, keepdims: Flag = 1, noop_with_empty_axes: Flag = 0):
        if axes is None or axes.size == 0:
            axes = () if noop_with_empty_axes else range(x.ndim)
        else:
            axes = axes.ravel().tolist()
        return compute(x, axes=axes, keepdims=keepdims)

    operator.__name__ = reduce.__name__
    return operator


def _reduction(reduce, input_since=18):
    """Return the versions of a reduction, whose axes are an input from opset `input_since` on."""
    return {1: _axes_attribute(reduce), input_since: _axes_input(reduce)}


def _arg(find):
    """Return ArgMax or ArgMin: the index of the extreme element along an axis, of equal ones the first or the last."""

    @numeric
    def operator(x, *, axis: int = 0, keepdims: Flag = 1, select_last_index: Flag = 0):
        axis = axis_index(axis, x)
        if x.shape[axis] == 0:
            raise InputError(f"axis {axis} of a tensor of shape {x.shape} is empty")
        if select_last_index:
            index = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis, keepdims=bool(keepdims))
        else:
            index = find(x, axis=axis, keepdims=bool(keepdims))
        return np.asarray(index, np.int64)

    operator.__name__ = find.__name__
    return operator


def _running(accumulate, neutral):
    """Return CumSum or CumProd; `neutral` is the first result if a result excludes its own element."""
    compute = numeric(lambda x, axis, exclusive, reverse: _accumulate(accumulate, neutral, x, axis, exclusive, reverse))

    def operator(x, axis, *, exclusive: Flag = 0, reverse: Flag = 0):
        if axis.size != 1:
            raise InputError(f"axis has shape {axis.shape}, expected a scalar")
        return compute(x, axis=axis_index(axis.item(), x), exclusive=exclusive, reverse=reverse)

    operator.__name__ = accumulate.__name__
    return operator


def _accumulate(accumulate, neutral, x, axis, exclusive, reverse):
    """Return the running sums or products along an axis, from its end if `reverse`."""
    if reverse:
        x = np.flip(x, axis)
    if exclusive:
        x = np.moveaxis(x, axis, 0)
        x = np.moveaxis(np.concatenate([np.full_like(x[:1], neutral), x[:-1]]), 0, axis)
    y = accumulate(x, axis=axis, dtype=x.dtype)
    return np.flip(y, axis) if reverse else y


OPS = {
    "ArgMax": {1: _arg(np.argmax)},
    "ArgMin": {1: _arg(np.argmin)},
    "CumProd": {26: _running(np.cumprod, 1)},
    "CumSum": {11: _running(np.cumsum, 0)},
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(_max),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_min),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_sum, input_since=13),
    "ReduceSumSquare": _reduction(_sum_square),
}
