"""Conversions between element types (ONNX operator specification, Cast, CastLike and BitCast)."""

from typing import Literal

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.ops.numeric import is_floating, quiet
from rnnfast.onnx.ops.pieces import in_pieces
from rnnfast.onnx.ops.types import Dtype, Flag

RoundMode = Literal["up", "down", "nearest"]

# The float8 types in which a too large value becomes infinity or NaN unless `saturate` is set.
SATURATING = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def is_integer(dtype):
    """Return whether a type is an integer of NumPy, or int4, uint4, int2 or uint2 of ml_dtypes."""
    return dtype.kind in "iu" or dtype.kind == "V" and "int" in dtype.name


def limits(dtype):
    """Return the smallest and the largest finite value of an integer or floating-point type."""
    if dtype.kind == "V" or dtype.itemsize == 1 and dtype.kind == "f":
        import ml_dtypes

        info = ml_dtypes.finfo(dtype) if is_floating(dtype) else ml_dtypes.iinfo(dtype)
    else:
        info = np.finfo(dtype) if is_floating(dtype) else np.iinfo(dtype)
    return info.min, info.max


def _truncated(x):
    """Truncate floating-point numbers toward zero to int64; NaN and numbers that int64 cannot hold become -2^63.

    ONNX leaves these open, and processors differ: this is what x86 does.
    """
    x = x.astype(np.float32) if x.dtype.kind == "V" or x.dtype.itemsize < 4 else x
    return np.where((x >= -(2.0**63)) & (x < 2.0**63), x, x.dtype.type(-(2.0**63))).astype(np.int64)


def _to_integer(x, dtype):
    """Convert to an integer type: values are truncated toward zero to int64, or to uint64 if that is the type, and
    higher bits are dropped, as ONNX asks of integers.
    """
    if x.dtype == np.uint64:
        return x.astype(dtype)
    wide = _truncated(x) if is_floating(x.dtype) else x.astype(np.int64)
    if dtype == np.uint64 and is_floating(x.dtype):
        large = (x >= 2.0**63) & (x < 2.0**64)
        return np.where(large, np.where(large, x, 0).astype(np.uint64), wide.astype(np.uint64))
    if dtype.kind in "iu":
        return wide.astype(dtype)
    bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}[dtype.name]
    offset = 0 if dtype.name.startswith("u") else 1 << bits - 1
    return ((wide + offset & (1 << bits) - 1) - offset).astype(dtype)


def _to_scale(x, dtype, saturate, round_mode):
    """Convert to float8_e8m0fnu, a power of two 2^(e - 127) without sign, zero or infinity, where e = 255 is NaN."""
    x = x.astype(np.float32)
    mantissa, exponent = np.frexp(np.abs(x))
    # mantissa is in [0.5, 1): the power of two at or below |x| is 2^(exponent - 1).
    up = {"up": mantissa > 0.5, "down": np.zeros(x.shape, bool), "nearest": mantissa >= 0.75}[round_mode]
    code = exponent - 1 + up + 127
    code = np.where(np.isinf(x), 255, np.where(x == 0, -1, code))
    code = np.clip(code, 0, 254) if saturate else np.where((code < 0) | (code > 254), 255, code)
    return np.where(np.isnan(x), 255, code).astype(np.uint8).view(dtype)


def _to_string(x):
    """Convert to strings; bools become True and False."""
    if x.dtype == bool:
        return np.where(x, "True", "False").astype(object)
    return x.astype(np.str_).astype(object)


def _from_string(x, dtype):
    """Parse strings as numbers of a floating-point or integer type."""
    if is_floating(dtype):
        return np.array([float(s) for s in x.ravel()], np.float64).reshape(x.shape).astype(dtype)
    if is_integer(dtype):
        return _to_integer(np.array([int(s) for s in x.ravel()], np.int64).reshape(x.shape), dtype)
    raise UnsupportedError(f"a cast from strings to {dtype}")


def convert(x, dtype, saturate=1, round_mode="up"):
    """Convert x to elements of `dtype` by the rules of Cast."""
    if x.dtype.kind in "OUT":
        return x if dtype.kind == "O" else _from_string(x, dtype)
    if dtype.kind == "O":
        return _to_string(x)
    if x.dtype == dtype:
        return x
    if dtype == np.bool_:
        return x.astype(np.float32) != 0 if x.dtype.kind == "V" else x != 0
    if is_integer(dtype):
        return _to_integer(x, dtype)
    if dtype.name == "float8_e8m0fnu":
        return _to_scale(x, dtype, saturate, round_mode)
    if x.dtype.kind == "V" and dtype.kind == "V":
        x = x.astype(np.float32)
    if saturate and dtype.name in SATURATING:
        x = np.clip(x.astype(np.float32) if x.dtype.kind in "biuV" else x, *map(float, limits(dtype)))
    return x.astype(dtype)


def _converted(x, dtype, saturate, round_mode):
    """The same for tensors of any size, in pieces."""
    if x.dtype == dtype:
        return x
    return in_pieces(lambda part: convert(part, dtype, saturate, round_mode))(x)


@quiet
def cast(x, *, to: Dtype, saturate: Flag = 1, round_mode: RoundMode = "up"):
    """Cast: convert to the element type `to`."""
    return _converted(x, to, saturate, round_mode)


@quiet
def cast_like(x, target_type, *, saturate: Flag = 1, round_mode: RoundMode = "up"):
    """CastLike: convert to the element type of the second input."""
    return _converted(x, target_type.dtype, saturate, round_mode)


@quiet
def bit_cast(x, *, to: Dtype):
    """BitCast: read the same bits as another type of the same width."""
    if "O" in (x.dtype.kind, to.kind) or x.dtype.itemsize != to.itemsize:
        raise InputError(f"the bits of {x.dtype} cannot be read as {to}")
    if x.dtype.kind == "V" and x.dtype.itemsize == 1 or to.kind == "V" and to.itemsize == 1:
        raise UnsupportedError(f"a bit cast from {x.dtype} to {to}")
    return np.ascontiguousarray(x).view(to).reshape(x.shape)


OPS = {"BitCast": {26: bit_cast}, "Cast": {6: cast}, "CastLike": {15: cast_like}}
