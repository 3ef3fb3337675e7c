"""Linear quantization: y = saturate(round(x / scale) + zero_point), ties to even (ONNX operator specification,
QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear).
"""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.cast import convert, is_integer, limits
from rnnfast.onnx.ops.numeric import axis_index, floating, is_floating, is_half, quiet, widen
from rnnfast.onnx.ops.types import Dtype, Flag

NOT_A_NUMBER = "the input contains NaN, which no quantized number stands for"
LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""The least scale of DynamicQuantizeLinear, as denormals count as zero."""


def centred(x, zero_point):
    """Return x - zero_point in float64, where sums of products of 8-bit numbers are exact and BLAS multiplies."""
    x = x.astype(np.float64)
    return x if zero_point is None else x - zero_point.astype(np.float64)


def quantized(quotient, zero_point, dtype, saturate=1):
    """Return round(quotient) + zero_point in the range of `dtype`; for float types the conversion itself rounds."""
    if not is_integer(dtype):
        if zero_point is not None:
            quotient = quotient + zero_point.astype(quotient.dtype)
        return convert(quotient, dtype, saturate)
    quotient = widen(np.rint(quotient))  # float16 does not hold the sums with 16-bit zero points
    if zero_point is not None:
        quotient = quotient + zero_point.astype(quotient.dtype)
    return np.clip(quotient, *limits(dtype)).astype(np.int32).astype(dtype)


def requantize(product, scale, y_scale, zero_point, dtype):
    """Quantize a product of quantized numbers, which is given in float64 and has the scale `scale`, to y_scale."""
    dtype = np.dtype(np.float32) if is_half(dtype) else dtype
    factor = scale.astype(dtype) / y_scale.astype(dtype)
    return quantized(product.astype(dtype) * factor, zero_point, zero_point.dtype)


def _broadcast_parameter(parameter, x, axis, block_size, name):
    """Return a scale or zero point shaped to broadcast to x: one for all, or one per index or block of `axis`."""
    if parameter is None or parameter.size == 1 and parameter.ndim <= 1:
        return parameter if parameter is None else parameter.reshape(())
    axis = axis_index(axis, x)
    if parameter.ndim == 1 and not block_size:
        if parameter.shape[0] != x.shape[axis]:
            raise InputError(
                f"{name} has {parameter.shape[0]} elements, but axis {axis} of the input of shape "
                f"{x.shape} has {x.shape[axis]}"
            )
        return parameter.reshape(-1, *(1,) * (x.ndim - axis - 1))
    blocks = -(-x.shape[axis] // block_size) if block_size > 0 else 0
    expected = (*x.shape[:axis], blocks, *x.shape[axis + 1 :])
    if block_size <= 0 or parameter.shape != expected:
        raise InputError(
            f"{name} has shape {parameter.shape}, which does not fit blocks of {block_size} along "
            f"axis {axis} of an input of shape {x.shape}"
        )
    return np.repeat(parameter, block_size, axis)[(*(slice(None),) * axis, slice(x.shape[axis]))]


def _check_zero_point(scale, zero_point):
    """Raise InputError unless the zero point is absent or has as many elements as the scale."""
    if zero_point is not None and zero_point.size != scale.size:
        raise InputError(f"zero point of shape {zero_point.shape} with a scale of shape {scale.shape}")


def _output_type(zero_point, output_dtype):
    """Return the type of the zero point, else output_dtype, else uint8; InputTypeError if the first two differ."""
    if zero_point is None:
        return output_dtype or np.dtype(np.uint8)
    if output_dtype is not None and output_dtype != zero_point.dtype:
        raise InputTypeError(f"output_dtype {output_dtype} with a zero point of type {zero_point.dtype}")
    return zero_point.dtype


@quiet
def quantize_linear(
    x,
    y_scale,
    y_zero_point=None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: Dtype | None = None,
    precision: Dtype | None = None,
    saturate: Flag = 1,
):
    """QuantizeLinear: saturate(round(x / y_scale) + y_zero_point), divided in the type of y_scale, or `precision`."""
    dtype = _output_type(y_zero_point, output_dtype)
    _check_zero_point(y_scale, y_zero_point)
    scale = _broadcast_parameter(y_scale, x, axis, block_size, "y_scale")
    zero_point = _broadcast_parameter(y_zero_point, x, axis, block_size, "y_zero_point")
    precision = precision or (scale.dtype if scale.dtype.itemsize > 1 and is_floating(scale.dtype) else x.dtype)
    if not is_floating(precision):
        precision = np.dtype(np.float64)
    quotient = widen(x.astype(precision)) / widen(scale.astype(precision))
    if np.isnan(quotient).any():
        if is_floating(x.dtype) and np.isnan(x).any():
            raise InputError(NOT_A_NUMBER)
        # 0 / 0 comes from a row of zeros whose scale was computed from the row.
        quotient = np.where(np.isnan(quotient), 0, quotient)
    return quantized(quotient.astype(precision) if is_half(precision) else quotient, zero_point, dtype, saturate)


@quiet
def dequantize_linear(
    x, x_scale, x_zero_point=None, *, axis: int = 1, block_size: int = 0, output_dtype: Dtype | None = None
):
    """DequantizeLinear: (x - x_zero_point) * x_scale in the type of x_scale, or output_dtype."""
    if x_zero_point is not None and x_zero_point.dtype != x.dtype:
        raise InputTypeError(f"zero point of type {x_zero_point.dtype} for an input of type {x.dtype}")
    _check_zero_point(x_scale, x_zero_point)
    dtype = output_dtype or x_scale.dtype
    wide = np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)
    scale = _broadcast_parameter(x_scale, x, axis, block_size, "x_scale").astype(wide)
    # Smaller integers than int32 are exact in float32; int32, which is not, has no zero point.
    value = x.astype(wide)
    if x_zero_point is not None:
        value = value - _broadcast_parameter(x_zero_point, x, axis, block_size, "x_zero_point").astype(wide)
    return (value * scale).astype(dtype)


@floating
def dynamic_quantize_linear(x):
    """DynamicQuantizeLinear: x quantized to uint8, the scale, and the zero point.

    The scale is (max - min) / 255 of the range of x and 0, or 1 if that is zero or denormal.
    """
    if np.isnan(x).any():
        raise InputError(NOT_A_NUMBER)
    lowest, highest = x.min(initial=0), x.max(initial=0)
    scale = (highest - lowest) / x.dtype.type(255)
    if scale < LEAST_SCALE:
        scale = x.dtype.type(1)
    zero_point = np.asarray(np.rint(np.clip(-lowest / scale, 0, 255))).astype(np.uint8)
    return quantized(x / scale, zero_point, zero_point.dtype), np.asarray(scale, x.dtype), zero_point


OPS = {
    "DequantizeLinear": {10: dequantize_linear},
    "DynamicQuantizeLinear": {11: dynamic_quantize_linear},
    "QuantizeLinear": {10: quantize_linear},
}
