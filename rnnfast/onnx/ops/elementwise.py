"""Elementwise arithmetic, comparison and logic (ONNX operator specification, for example Add-7).

Broadcasting is multidirectional, as in NumPy; before opset 7 it was limited (Add-1).
"""

import functools
import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.cast import limits
from rnnfast.onnx.ops.numeric import (
    broadcast,
    check_broadcasts_to,
    check_numbers,
    floating,
    is_floating,
    numeric,
    quiet,
    same_dtype,
    shaped,
    unchanged,
    widen,
)
from rnnfast.onnx.ops.pieces import in_pieces
from rnnfast.onnx.ops.types import Flag

# Default bounds of Clip-6: the range of float32.
FLOAT32_MAX = 3.4028234663852886e38

_erf = np.frompyfunc(math.erf, 1, 1)


@in_pieces
def _erf_of(x):
    return np.asarray(_erf(x.astype(np.float64))).astype(x.dtype)


def _unary(ufunc, decorate=floating):
    """Return the operator that applies a NumPy function to each element of a tensor of numbers."""

    whole = in_pieces(ufunc)

    @decorate
    @shaped(unchanged)
    def operator(x):
        check_numbers(x)
        return whole(x)

    operator.__name__ = ufunc.__name__
    return operator


def _arithmetic(ufunc):
    """Return the operator that applies a NumPy function to two tensors of numbers, elementwise."""
    whole = in_pieces(ufunc)

    @numeric
    @shaped(broadcast)
    def operator(a, b):
        check_numbers(a)
        return whole(a, b)

    operator.__name__ = ufunc.__name__
    return operator


def _variadic(ufunc):
    """Return the operator that combines any number of tensors by a NumPy function, elementwise from left to right."""
    whole = in_pieces(ufunc)

    @numeric
    @shaped(broadcast)
    def operator(*xs):
        check_numbers(xs[0])
        return functools.reduce(whole, xs)

    operator.__name__ = ufunc.__name__
    return operator


@numeric
@shaped(broadcast)
def equal(a, b):
    """Equal: a == b for numbers, bools or strings."""
    return np.equal(a, b)


def _logical(ufunc):
    """Return the operator that applies a NumPy function to two bool tensors, elementwise."""

    @quiet
    @shaped(broadcast)
    def operator(a, b):
        if a.dtype != bool or b.dtype != bool:
            raise InputTypeError(f"inputs of types {a.dtype} and {b.dtype}, expected bool")
        return ufunc(a, b)

    operator.__name__ = ufunc.__name__
    return operator


def _bitwise(ufunc):
    """Return the operator that applies a NumPy function to two integer tensors, elementwise."""

    @numeric
    @shaped(broadcast)
    def operator(a, b):
        if a.dtype.kind not in "iu":
            raise InputTypeError(f"inputs of type {a.dtype}, expected an integer type")
        return ufunc(a, b)

    operator.__name__ = ufunc.__name__
    return operator


def _aligned(a, b, axis):
    """Return B with axes of length 1 behind its own, so that its first one meets the axis `axis` of A."""
    start = a.ndim - b.ndim if axis is None else axis + a.ndim if axis < 0 else axis
    if not 0 <= start <= a.ndim - b.ndim:
        raise InputError(f"B of shape {b.shape} at axis {axis} does not lie in A of shape {a.shape}")
    return b.reshape(b.shape + (1,) * (a.ndim - start - b.ndim))


def _limited(a, b, *, axis, broadcast):
    """Shape rule of the operators before opset 7: with broadcast = 1, the shape of B is a run of A's axes that begins
    at `axis`; without it, the shapes are equal.
    """
    if broadcast:
        check_broadcasts_to(_aligned(a, b, axis), a.shape, "B")
    elif a.shape != b.shape:
        raise InputError(f"inputs of shapes {a.shape} and {b.shape} without broadcast = 1")
    return (a.shape,)


def _limited_broadcast(operator):
    """Return the operator before opset 7."""

    @shaped(_limited)
    def limited(a, b, *, axis: int | None = None, broadcast: Flag = 0):
        return operator(a, _aligned(a, b, axis) if broadcast else b)

    limited.__name__ = operator.__name__
    return limited


def _since_7(operator):
    """Return the versions of a binary operator whose broadcasting opset 7 changed."""
    return {1: _limited_broadcast(operator), 7: operator}


def logical_not(x):
    """Not: the negation of bools."""
    if x.dtype != bool:
        raise InputTypeError(f"input of type {x.dtype}, expected bool")
    return np.asarray(np.logical_not(x))


def bitwise_not(x):
    """BitwiseNot: the complement of the bits of integers."""
    if x.dtype.kind not in "iu":
        raise InputTypeError(f"input of type {x.dtype}, expected an integer type")
    return np.asarray(np.invert(x))


@numeric
@shaped(broadcast)
def bit_shift(x, y, *, direction: Literal["LEFT", "RIGHT"]):
    """BitShift: x shifted by y bits to the left or right."""
    if x.dtype.kind not in "iu":
        raise InputTypeError(f"inputs of type {x.dtype}, expected an integer type")
    return np.left_shift(x, y) if direction == "LEFT" else np.right_shift(x, y)


@numeric
@shaped(unchanged)
def erf(x):
    """Erf: 2 / sqrt(pi) * integral of exp(-t^2) dt from 0 to x.

    This calls math.erf for each element, as NumPy has no erf; float32 tensors run on the native kernel.
    """
    check_numbers(x)
    return _erf_of(x)


@numeric
@shaped(broadcast)
def mean(*xs):
    """Mean: the elementwise mean of the inputs."""
    check_numbers(xs[0])
    total = functools.reduce(np.add, xs)
    return np.divide(total, np.asarray(len(xs), total.dtype))


@numeric
@shaped(broadcast)
def divide(a, b):
    """Div: a / b; the quotient of integers is truncated toward zero, as in C."""
    check_numbers(a)
    if is_floating(a.dtype):
        return np.true_divide(a, b)
    if not b.all():
        raise InputError("integer division by zero")
    quotient = np.floor_divide(a, b)
    inexact = quotient * b != a
    return quotient + (inexact & ((a < 0) != (b < 0)))


@numeric
@shaped(broadcast)
def mod(a, b, *, fmod: Flag = 0):
    """Mod: the remainder of a / b, which has the sign of b, or with fmod = 1 that of a."""
    check_numbers(a)
    if not is_floating(a.dtype) and not b.all():
        raise InputError("integer remainder of a division by zero")
    return np.fmod(a, b) if fmod else np.mod(a, b)


def _integer_power(x, exponent):
    """Return x to an integer power in int64; negative exponents give results truncated toward zero."""
    exponent = exponent.astype(np.int64)
    power = np.power(x.astype(np.int64), np.maximum(exponent, 0))
    if (exponent < 0).any():
        inverse = np.power(x.astype(np.float64), np.minimum(exponent, 0))
        if np.isinf(inverse).any():
            raise InputError("integer zero to a negative power")
        power = np.where(exponent < 0, np.trunc(inverse).astype(np.int64), power)
    return power


@quiet
@shaped(broadcast)
def power(x, y):
    """Pow: x to the power y, in the type of x; an integer result is truncated toward zero."""
    if y.size == 1 and y.ndim <= x.ndim and is_floating(x.dtype) and y.item() == 2:
        x32 = widen(x)
        return np.asarray(x32 * x32).astype(x.dtype)
    if is_floating(x.dtype):
        return np.asarray(np.power(widen(x), widen(y))).astype(x.dtype)
    if is_floating(y.dtype):
        return np.asarray(np.trunc(np.power(x.astype(np.float64), y.astype(np.float64)))).astype(x.dtype)
    return np.asarray(_integer_power(x, y)).astype(x.dtype)


def _bound(bound, name):
    """Return a one-element bound of Clip as a scalar."""
    if bound.size != 1:
        raise InputError(f"{name} has shape {bound.shape}, expected a scalar")
    return bound.reshape(())


@floating
def clip_6(x, *, min: float = -FLOAT32_MAX, max: float = FLOAT32_MAX):
    """Clip before opset 11: min(max(x, min), max) with bounds that are attributes."""
    return np.minimum(np.maximum(x, np.asarray(min, x.dtype)), np.asarray(max, x.dtype))


@quiet
def clip(x, low=None, high=None):
    """Clip: min(max(x, low), high); an absent bound is the smallest or largest finite value of the type."""
    dtype = same_dtype((x, low, high))
    smallest, largest = limits(dtype)
    low = np.asarray(smallest, dtype) if low is None else _bound(low, "min")
    high = np.asarray(largest, dtype) if high is None else _bound(high, "max")
    return np.minimum(np.maximum(x, low), high)


@quiet
@shaped(broadcast)
def where(condition, x, y):
    """Where: x where the condition is true, otherwise y."""
    if condition.dtype != bool:
        raise InputTypeError(f"condition of type {condition.dtype}, expected bool")
    same_dtype((x, y))
    return np.where(condition, x, y)


@quiet
def is_nan(x):
    """IsNaN: whether each element is NaN."""
    return np.isnan(x)


@quiet
def is_inf(x, *, detect_negative: Flag = 1, detect_positive: Flag = 1):
    """IsInf: whether each element is infinite, of the signs that the attributes select."""
    infinite = np.isinf(x)
    if not detect_negative:
        infinite &= x > 0
    if not detect_positive:
        infinite &= x < 0
    return infinite


OPS = {
    "Abs": {1: _unary(np.abs, numeric)},
    "Acos": {7: _unary(np.arccos)},
    "Acosh": {9: _unary(np.arccosh)},
    "Add": _since_7(_arithmetic(np.add)),
    "And": _since_7(_logical(np.logical_and)),
    "Asin": {7: _unary(np.arcsin)},
    "Asinh": {9: _unary(np.arcsinh)},
    "Atan": {7: _unary(np.arctan)},
    "Atanh": {9: _unary(np.arctanh)},
    "BitShift": {11: bit_shift},
    "BitwiseAnd": {18: _bitwise(np.bitwise_and)},
    "BitwiseNot": {18: bitwise_not},
    "BitwiseOr": {18: _bitwise(np.bitwise_or)},
    "BitwiseXor": {18: _bitwise(np.bitwise_xor)},
    "Ceil": {1: _unary(np.ceil)},
    "Clip": {6: clip_6, 11: clip},
    "Cos": {7: _unary(np.cos)},
    "Cosh": {9: _unary(np.cosh)},
    "Div": _since_7(divide),
    "Equal": _since_7(equal),
    "Erf": {9: erf},
    "Exp": {1: _unary(np.exp)},
    "Floor": {1: _unary(np.floor)},
    "Greater": _since_7(_arithmetic(np.greater)),
    "GreaterOrEqual": {12: _arithmetic(np.greater_equal)},
    "IsInf": {10: is_inf},
    "IsNaN": {9: is_nan},
    "Less": _since_7(_arithmetic(np.less)),
    "LessOrEqual": {12: _arithmetic(np.less_equal)},
    "Log": {1: _unary(np.log)},
    "Max": {1: _variadic(np.maximum)},
    "Mean": {1: mean},
    "Min": {1: _variadic(np.minimum)},
    "Mod": {10: mod},
    "Mul": _since_7(_arithmetic(np.multiply)),
    "Neg": {1: _unary(np.negative, numeric)},
    "Not": {1: logical_not},
    "Or": _since_7(_logical(np.logical_or)),
    "Pow": _since_7(power),
    "Reciprocal": {1: _unary(np.reciprocal)},
    "Round": {11: _unary(np.rint)},
    "Sign": {9: _unary(np.sign, numeric)},
    "Sin": {7: _unary(np.sin)},
    "Sinh": {9: _unary(np.sinh)},
    "Sqrt": {1: _unary(np.sqrt)},
    "Sub": _since_7(_arithmetic(np.subtract)),
    "Sum": {1: _variadic(np.add)},
    "Tan": {7: _unary(np.tan)},
    "Tanh": {1: _unary(np.tanh)},
    "Where": {9: where},
    "Xor": _since_7(_logical(np.logical_xor)),
}
