"""Pooling over sliding windows and over all positions (ONNX operator specification, for example MaxPool-12)."""

import math

import numpy as np

from rnnfast.errors import InputError, LimitError, UnsupportedError
from rnnfast.onnx.ops.numeric import flatten_axes, floating, is_floating, numeric, shaped
from rnnfast.onnx.ops.types import Flag, Ints, check_size
from rnnfast.onnx.ops.windows import AutoPad, windows_for

# Positions are computed in int64, which larger windows and strides could overflow.
MAX_SPAN = 2**62
# Most operations of a pooling along one axis, which take tens of seconds; one pass of a loop counts as LOOP_COST more.
MAX_WORK = 2**33
LOOP_COST = 1000
DEFAULTS = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None, "ceil_mode": 0}


def windows_of(x, kernel_shape, auto_pad, **attributes):
    """Return the Windows of a pooling over x; raise an error if a window has no tap in x or a size is too large."""
    windows = windows_for(x.shape[2:], kernel_shape, auto_pad=auto_pad, **attributes)
    if auto_pad.startswith("SAME") and any(windows.covered(axis) < size - 1 for axis, size in enumerate(windows.size)):
        raise UnsupportedError(
            f"auto_pad = {auto_pad} with windows that leave a gap of more than one position at the "
            f"ends, where ONNX's formula gives a negative padding"
        )
    for axis in range(len(windows.size)):
        _check_reach(windows, axis)
    check_size((*x.shape[:2], *windows.output), x.dtype)
    for axis, size in enumerate(windows.size):
        _check_work((*x.shape[:2], *windows.output[: axis + 1], *windows.size[axis + 1 :]), windows, axis)
        check_size((windows.output[axis],), np.int64)
        # Between the first and the last window, which reach the input, only dilated ones can miss it.
        if windows.dilations[axis] != 1 and not windows.taps(axis, 0, size).all():
            raise _no_input_error(windows, axis)
    return windows


def windows_of_node(x, attributes):
    """Return the Windows of a MaxPool or an AveragePool with these attributes."""
    settings = DEFAULTS | {name: attributes[name] for name in DEFAULTS if name in attributes}
    return windows_of(x, attributes["kernel_shape"], **settings)


def _check_reach(windows, axis):
    """Raise an error unless the first and the last window reach the input and all positions fit into int64."""
    span = windows.extent(axis)
    last = (windows.output[axis] - 1) * windows.strides[axis] - windows.begin[axis]
    if windows.output[axis] and (windows.begin[axis] >= span or last >= windows.size[axis]):
        raise _no_input_error(windows, axis)
    if max(span, windows.strides[axis]) >= MAX_SPAN:
        raise LimitError(
            f"a window of {span} positions and a stride of {windows.strides[axis]}, more than the limit of {MAX_SPAN}"
        )


def _no_input_error(windows, axis):
    """Return the error for a window without a tap in the input."""
    return InputError(
        f"padding of {windows.begin[axis]} and {windows.end[axis]} on spatial axis {axis} leaves a "
        f"window without any input"
    )


def _overlaps(windows, axis):
    """Yield pairs of slices along an axis: of windows, and of the input positions of one tap of each, without padding.

    The pairs go by taps or by positions, whichever are fewer. Each window gets its positions in ascending order.
    """
    size, kernel, stride = windows.size[axis], windows.kernel[axis], windows.strides[axis]
    dilation, begin, count = windows.dilations[axis], windows.begin[axis], windows.output[axis]
    if kernel <= size:
        for shift in range(-begin, kernel * dilation - begin, dilation):
            first, last = max(0, -(shift // stride)), min(count - 1, (size - 1 - shift) // stride)
            if first <= last:
                position = first * stride + shift
                yield slice(first, last + 1), slice(position, last * stride + shift + 1, stride)
        return
    common = math.gcd(stride, dilation)
    step = dilation // common
    for i in range(size):
        if (i + begin) % common:
            continue
        # Window o has a tap at i: o * stride = i + begin - k * dilation for some k of [0, kernel).
        residue = (i + begin) // common * pow(stride // common, -1, step)
        first, last = max(0, -(-(i + begin - (kernel - 1) * dilation) // stride)), min(count - 1, (i + begin) // stride)
        first += (residue - first) % step
        if first <= last:
            yield slice(first, last + 1, step), slice(i, i + 1)


def _check_work(shape, windows, axis):
    """Raise LimitError if a pooling along one axis would take too many operations."""
    loops = min(windows.kernel[axis], windows.size[axis])
    if loops * (math.prod(shape) + LOOP_COST) > MAX_WORK:
        raise LimitError(
            f"windows of {windows.kernel[axis]} over {windows.size[axis]} positions for an output of "
            f"shape {shape} need more than the limit of {MAX_WORK} operations"
        )


def _combine_taps(combine, x, windows, start):
    """Return [N,C,*output]: `combine` over the taps of each window, axis after axis, from the initial value `start`."""
    for axis in range(len(windows.size)):
        lead = (slice(None),) * (2 + axis)
        shape = (*x.shape[: 2 + axis], windows.output[axis], *x.shape[3 + axis :])
        check_size(shape, x.dtype)
        y = np.full(shape, start, x.dtype)
        for outputs, inputs in _overlaps(windows, axis):
            windows_part = y[(*lead, outputs)]
            combine(windows_part, x[(*lead, inputs)], out=windows_part)
        x = y
    return x


def _indices(x, windows, column_major):
    """Return the position of each window's first largest element in x, flattened.

    column_major: whether positions count the first spatial axis fastest.
    """
    order = "F" if column_major else "C"
    # The last axis goes first, so that of equal elements the first in row-major order stays.
    where = np.broadcast_to(np.arange(math.prod(windows.size)).reshape(windows.size, order=order), x.shape)
    for axis in reversed(range(len(windows.size))):
        lead = (slice(None),) * (2 + axis)
        shape = (*x.shape[: 2 + axis], windows.output[axis], *x.shape[3 + axis :])
        check_size(shape, np.int64)
        y, found = np.zeros(shape, x.dtype), np.full(shape, -1)
        for outputs, inputs in _overlaps(windows, axis):
            largest, index, taps = y[(*lead, outputs)], found[(*lead, outputs)], x[(*lead, inputs)]
            better = (index < 0) | (taps > largest) | ((taps != taps) & (largest == largest))
            np.copyto(largest, taps, where=better)
            np.copyto(index, where[(*lead, inputs)], where=better)
        x, where = y, found
    image = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(windows.size))
    return image * math.prod(windows.size) + where


def _pooled(x, **attributes):
    """Shape rule of MaxPool, whose two results have one shape, and of AveragePool."""
    return ((*x.shape[:2], *windows_of_node(x, attributes).output),)


@numeric
@shaped(_pooled)
def max_pool(
    x,
    *,
    kernel_shape: Ints,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: Flag = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: Flag = 0,
    strides: Ints | None = None,
    n_outputs: int = 1,
):
    """MaxPool: the largest element of each window, and its position in the flattened input."""
    windows = windows_of(
        x, kernel_shape, auto_pad, pads=pads, strides=strides, dilations=dilations, ceil_mode=ceil_mode
    )
    lowest = -math.inf if is_floating(x.dtype) else np.iinfo(x.dtype).min
    y = _combine_taps(np.maximum, x, windows, lowest)
    return y, _indices(x, windows, storage_order == 1) if n_outputs > 1 else None


def _tap_counts(windows, include_pad):
    """Return [*output]: the number of taps by which the average of each window is divided.

    Taps in the padding count if include_pad is set; taps beyond the padding never count.
    """
    counts = np.ones((1,) * len(windows.size), np.int64)
    for axis, size in enumerate(windows.size):
        low, high = (-windows.begin[axis], size + windows.end[axis]) if include_pad else (0, size)
        counts = counts * windows.taps(axis, low, high).reshape(-1, *(1,) * (len(windows.size) - axis - 1))
    return counts


@floating
@shaped(_pooled)
def average_pool(
    x,
    *,
    kernel_shape: Ints,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: Flag = 0,
    count_include_pad: Flag = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """AveragePool: the mean of each window."""
    windows = windows_of(
        x, kernel_shape, auto_pad, pads=pads, strides=strides, dilations=dilations, ceil_mode=ceil_mode
    )
    total = _combine_taps(np.add, x, windows, 0)
    return total / _tap_counts(windows, count_include_pad).astype(x.dtype)


@floating
def lp_pool(
    x,
    *,
    kernel_shape: Ints,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: Flag = 0,
    dilations: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """LpPool: sum(|x|^p)^(1/p) over each window."""
    windows = windows_of(
        x, kernel_shape, auto_pad, pads=pads, strides=strides, dilations=dilations, ceil_mode=ceil_mode
    )
    return _root(_combine_taps(np.add, _power(x, p), windows, 0), p)


def _power(x, p):
    """Return |x|^p."""
    if p < 1:
        raise InputError(f"p = {p}, expected at least 1")
    return np.abs(x) if p == 1 else np.square(x) if p == 2 else np.power(np.abs(x), p)


def _root(x, p):
    """Return x^(1/p)."""
    return x if p == 1 else np.sqrt(x) if p == 2 else np.power(x, 1 / p)


@floating
def global_average_pool(x):
    """GlobalAveragePool: the mean of each channel."""
    return _over_positions(x, lambda taps: taps.sum(axis=-1) / np.asarray(taps.shape[-1], x.dtype))


@floating
def global_max_pool(x):
    """GlobalMaxPool: the largest element of each channel."""
    return _over_positions(x, lambda taps: taps.max(axis=-1))


@floating
def global_lp_pool(x, *, p: int = 2):
    """GlobalLpPool: sum(|x|^p)^(1/p) over each channel."""
    return _over_positions(x, lambda taps: _root(_power(taps, p).sum(axis=-1), p))


def _over_positions(x, reduce):
    """Return [N,C,1,...]: `reduce` over all positions of each channel."""
    if x.ndim < 2 or math.prod(x.shape[2:]) == 0:
        raise InputError(f"input of shape {x.shape}, expected [N, C, ...] with at least one position")
    return reduce(flatten_axes(x, tuple(range(2, x.ndim)))).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


OPS = {
    "AveragePool": {1: average_pool},
    "GlobalAveragePool": {1: global_average_pool},
    "GlobalLpPool": {2: global_lp_pool},
    "GlobalMaxPool": {1: global_max_pool},
    "LpPool": {2: lp_pool},
    "MaxPool": {1: max_pool},
}
