"""Convolutions over any number of spatial axes (ONNX operator specification, Conv, ConvTranspose and others)."""

import math

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.native._interrupts import check
from rnnfast.onnx.ops.numeric import floating, per_channel, quiet, same_dtype, shaped
from rnnfast.onnx.ops.quantize import centred, requantize
from rnnfast.onnx.ops.types import Ints, check_size
from rnnfast.onnx.ops.windows import (
    AutoPad,
    attribute,
    explicit_pads,
    extent,
    pad,
    split_padding,
    window_view,
    windows_for,
)

# Windows are copied to be multiplied, about so many bytes of them at a time.
COLUMN_BYTES = 2**25


def check_kernel(w, kernel_shape, group):
    """Raise InputError unless w [M, C / group, *kernel] fits the attributes."""
    if w.ndim < 3:
        raise InputError(f"W has shape {w.shape}, expected a rank of at least 3")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise InputError(f"kernel_shape = {tuple(kernel_shape)}, but W has shape {w.shape}")
    if group < 1 or w.shape[0] % group:
        raise InputError(f"W of shape {w.shape} does not fit group = {group}")


def _check(x, w, kernel_shape, channels, group):
    """Raise InputError unless x, which must have so many channels, and w [M, C / group, *kernel] fit each other."""
    check_kernel(w, kernel_shape, group)
    if x.ndim != w.ndim or x.shape[1] != channels:
        raise InputError(f"X of shape {x.shape} and W of shape {w.shape} do not fit group = {group}")


def check_bias(bias, channels):
    """Raise InputError unless the bias is absent or has one element per output channel."""
    if bias is not None and bias.shape != (channels,):
        raise InputError(f"the bias has shape {bias.shape}, expected ({channels},)")


def _windows(x, w, kernel_shape, group, **attributes):
    """Check the shapes and return the Windows of a convolution of x by w."""
    _check(x, w, kernel_shape, w.shape[1] * group, group)
    return windows_for(x.shape[2:], w.shape[2:], **attributes)


def _correlate(x, w, windows, group):
    """Return y[n,m,o] = sum over c,k of w[m,c,k] x[n,c,o * stride + k * dilation]."""
    samples, outputs, rank = x.shape[0], w.shape[0], len(windows.kernel)
    check_size((samples, outputs, *windows.output), x.dtype)
    y = np.empty((samples, outputs, *windows.output), x.dtype)
    if y.size == 0:
        return y
    taps = window_view(pad(x, windows, 0), windows)
    taps = taps.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    weight = w.reshape(group, outputs // group, math.prod(w.shape[1:]))
    line_bytes = x.shape[1] * math.prod(windows.kernel) * math.prod(windows.output[1:]) * x.itemsize
    lines = max(1, COLUMN_BYTES // max(1, line_bytes))
    batch = max(1, lines // windows.output[0])
    for n in range(0, samples, batch):
        for start in range(0, windows.output[0], lines):
            check()
            part = y[n : n + batch, :, start : start + lines]
            block = taps[(slice(n, n + batch), *(slice(None),) * (1 + rank), slice(start, start + lines))]
            columns = np.ascontiguousarray(block).reshape(
                part.shape[0], group, weight.shape[2], math.prod(part.shape[2:])
            )
            part[...] = np.matmul(weight, columns).reshape(part.shape)
    return y


def _convolved(x, w, bias=None, *, kernel_shape, group, **attributes):
    """Shape rule of Conv."""
    windows = _windows(x, w, kernel_shape, group, **attributes)
    check_bias(bias, w.shape[0])
    shape = (x.shape[0], w.shape[0], *windows.output)
    check_size(shape, x.dtype)
    return (shape,)


@floating
@shaped(_convolved)
def conv(
    x,
    w,
    bias=None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """Conv: y[n,m,o] = bias[m] + sum over c,k of w[m,c,k] x[n,c,o * stride + k * dilation - begin]."""
    windows = _windows(x, w, kernel_shape, group, auto_pad=auto_pad, pads=pads, strides=strides, dilations=dilations)
    y = _correlate(x, w, windows, group)
    if bias is not None:
        y += per_channel(bias, y)
    return y


def _integer_correlate(x, x_zero_point, w, w_zero_point, windows, group):
    """Convolve x - x_zero_point by w - w_zero_point in float64; w may have one zero point per output channel."""
    if x_zero_point is not None and x_zero_point.size != 1:
        raise InputError(f"the zero point of x has shape {x_zero_point.shape}, expected a scalar")
    if w_zero_point is not None and w_zero_point.shape not in ((), (1,), w.shape[:1]):
        raise InputError(f"the zero point of w has shape {w_zero_point.shape}, expected a scalar or {w.shape[:1]}")
    x_zero_point, w_zero_point = (
        None if point is None else point.reshape(-1, *(1,) * (w.ndim - 1)) for point in (x_zero_point, w_zero_point)
    )
    return _correlate(centred(x, x_zero_point), centred(w, w_zero_point), windows, group)


@quiet
def conv_integer(
    x,
    w,
    x_zero_point=None,
    w_zero_point=None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """ConvInteger: the convolution of x - x_zero_point by w - w_zero_point in int32."""
    windows = _windows(x, w, kernel_shape, group, auto_pad=auto_pad, pads=pads, strides=strides, dilations=dilations)
    y = _integer_correlate(x, x_zero_point, w, w_zero_point, windows, group)
    return y.astype(np.int64).astype(np.int32)


@quiet
def qlinear_conv(
    x,
    x_scale,
    x_zero_point,
    w,
    w_scale,
    w_zero_point,
    y_scale,
    y_zero_point,
    bias=None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """QLinearConv: the quantized convolution of quantized x by w; bias is int32 of scale x_scale * w_scale."""
    windows = _windows(x, w, kernel_shape, group, auto_pad=auto_pad, pads=pads, strides=strides, dilations=dilations)
    check_bias(bias, w.shape[0])
    y = _integer_correlate(x, x_zero_point, w, w_zero_point, windows, group)
    if bias is not None:
        y += per_channel(bias, y)
    dtype = same_dtype((x_scale, w_scale, y_scale))
    return requantize(y, x_scale * per_channel(w_scale, y), y_scale, y_zero_point, dtype)


def _transposed_axis(size, kernel, stride, dilation, padding, output_padding, output_shape, auto_pad):
    """Return (positions cut off at the beginning, output size) for one spatial axis of ConvTranspose."""
    full = (size - 1) * stride + output_padding + extent(kernel, dilation)
    if output_shape is None and not auto_pad.startswith("SAME"):
        output = full - sum(padding)
        if size == 0 or output <= 0:
            raise InputError(f"an input of {size} with pads {padding} leaves an output of {output}")
        return padding[0], output
    output = size * stride if output_shape is None else output_shape
    total = full - output
    if output_shape is None and total < 0:
        raise UnsupportedError(f"auto_pad = {auto_pad} with a kernel that spans less than the stride of {stride}")
    return split_padding(max(0, total), auto_pad)[0], output


def transposed_windows_for(
    size, kernel, *, auto_pad="NOTSET", dilations=None, output_padding=None, output_shape=None, pads=None, strides=None
):
    """Return (strides, dilations, positions cut off at the beginning, output sizes) of ConvTranspose's spatial axes."""
    rank = len(size)
    strides = attribute(strides, 1, rank, 1, "strides")
    dilations = attribute(dilations, 1, rank, 1, "dilations")
    output_padding = attribute(output_padding, 0, rank, 0, "output_padding")
    if any(extra >= max(s, d) for extra, s, d in zip(output_padding, strides, dilations)):
        raise InputError(
            f"output_padding = {output_padding}, expected less than strides {strides} or dilations {dilations}"
        )
    shape = (None,) * rank if output_shape is None else attribute(output_shape, 0, rank, 1, "output_shape")
    padding = zip(*explicit_pads(None if output_shape else pads, auto_pad, rank))
    begin, output = zip(
        *(
            _transposed_axis(*axis, auto_pad)
            for axis in zip(size, kernel, strides, dilations, padding, output_padding, shape)
        )
    )
    return strides, dilations, begin, output


@floating
def conv_transpose(
    x,
    w,
    bias=None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """ConvTranspose: y[n,m,i * stride + k * dilation - begin] is the sum of all w[c,m,k] x[n,c,i], and the bias is
    added; w is [C,M/group,*kernel].
    """
    _check(x, w, kernel_shape, w.shape[0], group)
    samples, channels, *size = x.shape
    kernel, outputs = w.shape[2:], w.shape[1] * group
    check_bias(bias, outputs)
    strides, dilations, begin, output = transposed_windows_for(
        size,
        kernel,
        auto_pad=auto_pad,
        dilations=dilations,
        output_padding=output_padding,
        output_shape=output_shape,
        pads=pads,
        strides=strides,
    )
    spans = [
        max((n - 1) * s + extent(k, d), b + out)
        for n, s, k, d, b, out in zip(size, strides, kernel, dilations, begin, output)
    ]
    check_size((samples, outputs, *spans), x.dtype)
    y = np.zeros((samples, outputs, *spans), x.dtype)
    weight = w.reshape(group, channels // group, math.prod(w.shape[1:])).swapaxes(1, 2)
    columns = np.matmul(weight, np.ascontiguousarray(x).reshape(samples, group, channels // group, math.prod(size)))
    columns = columns.reshape(samples, outputs, *kernel, *size)
    for tap in np.ndindex(*kernel):
        outputs_of_tap = (slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in zip(tap, dilations, size, strides))
        y[(..., *outputs_of_tap)] += columns[(slice(None), slice(None), *tap)]
    y = y[(..., *(slice(b, b + out) for b, out in zip(begin, output)))]
    return y if bias is None else y + per_channel(bias, y)


OPS = {
    "Conv": {1: conv},
    "ConvInteger": {10: conv_integer},
    "ConvTranspose": {1: conv_transpose},
    "QLinearConv": {10: qlinear_conv},
}
