"""Pooling over sliding windows and over all positions."""
import math

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.ops.numeric import floating, is_floating, numeric, rows
from rnnfast.onnx.ops.types import Flag, Ints
from rnnfast.onnx.ops.windows import AutoPad, pad, place, view


def _windows(x, kernel_shape, auto_pad, **attributes):
    windows = place(x.shape[2:], kernel_shape, auto_pad=auto_pad, **attributes)
    if auto_pad.startswith("SAME") and any(windows.covered(axis) < size - 1 for axis, size in enumerate(windows.size)):
        raise UnsupportedError(f"auto_pad = {auto_pad} with windows that leave a gap of more than one position at the "
                               f"ends, where ONNX's formula gives a negative padding")
    if any(windows.begin) or any(windows.end):
        for axis, size in enumerate(windows.size):
            positions = windows.positions(axis)
            if not ((0 <= positions) & (positions < size)).any(axis=1).all():
                raise InputError(f"padding of {windows.begin[axis]} and {windows.end[axis]} on spatial axis {axis} "
                                 f"leaves a window without any input")
    return windows


def _slide(combine, padded, windows):
    """[N,C,*output]: `combine` over the taps of each window, axis after axis."""
    for axis in range(len(windows.size)):
        step, stride = windows.dilations[axis], windows.strides[axis]
        lead = (slice(None),) * (2 + axis)
        last = (windows.output[axis] - 1) * stride + 1 if windows.output[axis] else 0
        taps = [padded[(*lead, slice(k * step, k * step + last, stride))] for k in range(windows.kernel[axis])]
        padded = taps[0]
        for tap in taps[1:]:
            padded = combine(padded, tap)
    return padded


def _indices(x, y, windows, column_major):
    """The position in x, flattened, of each window's first largest element; column_major counts the spatial axes'
    positions from the first axis on."""
    rank = len(windows.size)
    flat = np.zeros((1,) * (2 * rank), np.int64)
    inside = np.ones((1,) * (2 * rank), bool)
    for axis, size in enumerate(windows.size):
        others = windows.size[:axis] if column_major else windows.size[axis + 1:]
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = windows.output[axis], windows.kernel[axis]
        positions = windows.positions(axis).reshape(shape)
        flat = flat + positions * math.prod(others)
        inside = inside & (0 <= positions) & (positions < size)
    taps = view(pad(x, windows, 0), windows)
    largest = y.reshape(*y.shape, *(1,) * rank)
    found = ((taps == largest) | (taps != taps)) & inside
    first = found.reshape(*y.shape, -1).argmax(axis=-1)
    flat = np.broadcast_to(flat.reshape(*windows.output, -1), (*y.shape, math.prod(windows.kernel)))
    image = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * rank) * math.prod(windows.size)
    return image + np.take_along_axis(flat, first[..., None], axis=-1)[..., 0]


@numeric
def max_pool(x, *, kernel_shape: Ints, auto_pad: AutoPad = "NOTSET", ceil_mode: Flag = 0,
             dilations: Ints | None = None, pads: Ints | None = None, storage_order: Flag = 0,
             strides: Ints | None = None, n_outputs: int = 1):
    windows = _windows(x, kernel_shape, auto_pad, pads=pads, strides=strides, dilations=dilations,
                       ceil_mode=ceil_mode)
    lowest = -math.inf if is_floating(x.dtype) else np.iinfo(x.dtype).min
    y = _slide(np.maximum, pad(x, windows, lowest), windows)
    return y, _indices(x, y, windows, storage_order == 1) if n_outputs > 1 else None


def _counts(windows, include_pad):
    """[*output]: how many taps of each window an average divides by; those beyond the padding never count."""
    counts = np.ones((1,) * len(windows.size), np.int64)
    for axis, size in enumerate(windows.size):
        low, high = (-windows.begin[axis], size + windows.end[axis]) if include_pad else (0, size)
        positions = windows.positions(axis)
        counted = ((low <= positions) & (positions < high)).sum(axis=1)
        counts = counts * counted.reshape(-1, *(1,) * (len(windows.size) - axis - 1))
    return counts


@floating
def average_pool(x, *, kernel_shape: Ints, auto_pad: AutoPad = "NOTSET", ceil_mode: Flag = 0,
                 count_include_pad: Flag = 0, dilations: Ints | None = None, pads: Ints | None = None,
                 strides: Ints | None = None):
    windows = _windows(x, kernel_shape, auto_pad, pads=pads, strides=strides, dilations=dilations,
                       ceil_mode=ceil_mode)
    total = _slide(np.add, pad(x, windows, 0), windows)
    return total / _counts(windows, count_include_pad).astype(x.dtype)


@floating
def lp_pool(x, *, kernel_shape: Ints, auto_pad: AutoPad = "NOTSET", ceil_mode: Flag = 0, dilations: Ints | None = None,
            p: int = 2, pads: Ints | None = None, strides: Ints | None = None):
    """sum(|x|^p)^(1/p)"""
    windows = _windows(x, kernel_shape, auto_pad, pads=pads, strides=strides, dilations=dilations,
                       ceil_mode=ceil_mode)
    return _root(_slide(np.add, _power(pad(x, windows, 0), p), windows), p)


def _power(x, p):
    if p < 1:
        raise InputError(f"p = {p}, expected at least 1")
    return np.abs(x) if p == 1 else np.square(x) if p == 2 else np.power(np.abs(x), p)


def _root(x, p):
    return x if p == 1 else np.sqrt(x) if p == 2 else np.power(x, 1 / p)


@floating
def global_average_pool(x):
    return _global(x, lambda taps: taps.sum(axis=-1) / np.asarray(taps.shape[-1], x.dtype))


@floating
def global_max_pool(x):
    return _global(x, lambda taps: taps.max(axis=-1))


@floating
def global_lp_pool(x, *, p: int = 2):
    return _global(x, lambda taps: _root(_power(taps, p).sum(axis=-1), p))


def _global(x, reduce):
    """[N,C,1,...]: `reduce` over all positions of each channel."""
    if x.ndim < 2 or math.prod(x.shape[2:]) == 0:
        raise InputError(f"input of shape {x.shape}, expected [N, C, ...] with at least one position")
    return reduce(rows(x, tuple(range(2, x.ndim)))).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


OPS = {
    "AveragePool": {1: average_pool},
    "GlobalAveragePool": {1: global_average_pool},
    "GlobalLpPool": {2: global_lp_pool},
    "GlobalMaxPool": {1: global_max_pool},
    "LpPool": {2: lp_pool},
    "MaxPool": {1: max_pool},
}
