"""Windows of convolutions and pooling: padding, strides and dilations over any number of axes (ONNX operator
specification, Conv and MaxPool).
"""

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.ops.types import check_size

# Some exporters write an empty string for NOTSET.
AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", ""]

LONGEST = 2**40  # an axis of more elements is in no memory


class Windows(NamedTuple):
    """Where windows lie, by spatial axis: tap k of window o is at input position o * stride + k * dilation - begin."""

    size: tuple  # of the input
    kernel: tuple
    strides: tuple
    dilations: tuple
    begin: tuple  # padding before the input
    end: tuple  # padding after it
    output: tuple  # number of windows

    def extent(self, axis):
        """Return the number of input positions that a window spans."""
        return extent(self.kernel[axis], self.dilations[axis])

    def covered(self, axis):
        """Return the number of padded input positions from the start of the first window to the end of the last."""
        return (self.output[axis] - 1) * self.strides[axis] + self.extent(axis) if self.output[axis] else 0

    def taps(self, axis, low, high):
        """Return [output]: the number of taps of each window at input positions of [low, high)."""
        starts = np.arange(self.output[axis]) * self.strides[axis] - self.begin[axis]
        dilation = self.dilations[axis]
        first = np.maximum(-((starts - low) // dilation), 0)
        last = np.minimum((high - 1 - starts) // dilation, self.kernel[axis] - 1)
        return np.maximum(last - first + 1, 0)


def extent(kernel, dilation):
    """Return the number of positions that a kernel spans."""
    return (kernel - 1) * dilation + 1


def attribute(values, default, rank, least, name):
    """Return an attribute with one value per axis, `default` if it is absent; InputError for values below `least`."""
    if values is None:
        return (default,) * rank
    if len(values) != rank:
        raise InputError(f"{name} = {tuple(values)} has {len(values)} values, expected {rank}")
    if min(values, default=least) < least:
        raise InputError(f"{name} = {tuple(values)}, expected values of at least {least}")
    return tuple(values)


def explicit_pads(pads, auto_pad, rank):
    """Return the pads attribute as (begin, end); UnsupportedError for pads together with auto_pad."""
    pads = attribute(pads, 0, 2 * rank, 0, "pads")
    if auto_pad not in ("NOTSET", "") and any(pads):
        raise UnsupportedError(f"pads = {pads} together with auto_pad = {auto_pad}")
    return pads[:rank], pads[rank:]


def split_padding(total, auto_pad):
    """Return half of `total` for each side; an odd one is at the end for SAME_UPPER, otherwise at the beginning."""
    smaller = total // 2
    return (smaller, total - smaller) if auto_pad == "SAME_UPPER" else (total - smaller, smaller)


def windows_for(size, kernel, **attributes):
    """Return the Windows over an input of spatial shape `size`, from the attributes of Conv or a pooling operator."""
    kept = all(type(n) is int for n in size)  # symbolic sizes have no hash
    return (_kept_windows_for if kept else _windows_for)(size, kernel, **attributes)


def _windows_for(size, kernel, *, auto_pad, pads, strides, dilations, ceil_mode=0):
    rank = len(size)
    if rank == 0:
        raise InputError("the input has no spatial axes")
    kernel = attribute(kernel, 1, rank, 1, "kernel_shape")
    # No axis is longer than LONGEST, so that from there on a stride leads to no second window; C could not multiply it.
    strides = tuple([min(stride, LONGEST) for stride in attribute(strides, 1, rank, 1, "strides")])
    dilations = attribute(dilations, 1, rank, 1, "dilations")
    # Of one tap there is no distance to another one, which may be so large that C could not add to it.
    dilations = tuple([distance if taps > 1 else 1 for distance, taps in zip(dilations, kernel)])
    begin, end = map(list, explicit_pads(pads, auto_pad, rank))
    output = []
    for axis in range(rank):
        span, stride = extent(kernel[axis], dilations[axis]), strides[axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-size[axis] // stride)
            total = max(0, (count - 1) * stride + span - size[axis])
            begin[axis], end[axis] = split_padding(total, auto_pad)
        else:
            room = size[axis] + begin[axis] + end[axis] - span
            count = room // stride + 1
            # A window that ceil_mode adds must begin in the input or in the padding before it. The specification's
            # formula for VALID has no ceil_mode, so none is added there, although onnxruntime adds one.
            if ceil_mode and auto_pad != "VALID" and room % stride and count * stride < size[axis] + begin[axis]:
                count += 1
            if count < 1:
                raise InputError(
                    f"spatial axis {axis} of {size[axis]}, padded by {begin[axis]} and {end[axis]}, "
                    f"is shorter than a window of {span}"
                )
        output.append(count)
    return Windows(tuple(size), kernel, strides, dilations, tuple(begin), tuple(end), tuple(output))


_kept_windows_for = functools.lru_cache(256)(_windows_for)


def pad(x, windows, fill):
    """Return x [N,C,*size] surrounded by `fill`, cropped or extended to exactly what the windows cover."""
    rank = len(windows.size)
    covered = tuple(windows.covered(axis) for axis in range(rank))
    kept = tuple(min(size, max(0, total - begin)) for size, total, begin in zip(windows.size, covered, windows.begin))
    x = x[(..., *(slice(0, n) for n in kept))]
    if kept == covered:
        return x
    check_size(x.shape[:-rank] + covered, x.dtype)
    padded = np.full(x.shape[:-rank] + covered, fill, x.dtype)
    padded[(..., *(slice(begin, begin + n) for begin, n in zip(windows.begin, kept)))] = x
    return padded


def window_view(padded, windows):
    """Return a view [N,C,*output,*kernel] of all windows over the result of `pad`."""
    rank = len(windows.size)
    if math.prod(windows.output) == 0:
        return np.zeros(padded.shape[:-rank] + windows.output + windows.kernel, padded.dtype)
    spans = tuple(windows.extent(axis) for axis in range(rank))
    taps = sliding_window_view(padded, spans, axis=tuple(range(-rank, 0)))
    return taps[(..., *(slice(None, None, step) for step in windows.strides + windows.dilations))]
