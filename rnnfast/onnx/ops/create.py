"""Operators that make tensors from values (ONNX operator specification, Constant, ConstantOfShape, Range, EyeLike)."""

import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.onnx.ops.arguments import integers
from rnnfast.onnx.ops.numeric import is_floating, same_dtype, widen
from rnnfast.onnx.ops.types import Dtype, Floats, Ints, Strs, Tensor, check_size


def constant_1(*, value: Tensor):
    """Constant before opset 12: the tensor attribute."""
    return value


def constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Floats | None = None,
    value_int: int | None = None,
    value_ints: Ints | None = None,
    value_string: str | None = None,
    value_strings: Strs | None = None,
):
    """Constant: the one value attribute that is present, as a tensor."""
    values = [
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
        (value_string, object),
        (value_strings, object),
    ]
    given = [value] if value is not None else []
    given += [np.array(plain, dtype) for plain, dtype in values if plain is not None]
    if len(given) != 1:
        raise ModelError(f"{len(given)} value attributes, expected one")
    return given[0]


def constant_of_shape(shape, *, value: Tensor | None = None):
    """ConstantOfShape: a tensor of the shape in the input, filled with `value`, by default float32 zero."""
    if value is None:
        value = np.zeros((), np.float32)
    if value.size != 1:
        raise InputError(f"value has shape {value.shape}, expected one element")
    dimensions = integers(shape, "the shape")
    if shape.ndim != 1 or min(dimensions, default=0) < 0:
        raise InputError(f"the shape is {shape}, expected a vector of dimensions of 0 or more")
    check_size(dimensions, value.dtype)
    return np.full(dimensions, value.reshape(()), value.dtype)


def range_11(start, limit, delta):
    """Range: start + i * delta for each i < ceil((limit - start) / delta)."""
    dtype = same_dtype((start, limit, delta))
    if not start.size == limit.size == delta.size == 1:
        raise InputError(
            f"start, limit and delta of shapes {start.shape}, {limit.shape} and {delta.shape}, expected scalars"
        )
    if dtype.kind != "i" and not is_floating(dtype):
        raise InputTypeError(f"inputs of type {dtype}, expected a signed integer or floating-point type")
    first, end, step = (widen(x).item() for x in (start, limit, delta))
    if step == 0 or not all(map(math.isfinite, (first, end, step))):
        raise InputError(
            f"start {first}, limit {end} and delta {step}, expected finite numbers and a delta other than 0"
        )
    with np.errstate(all="ignore"):
        if dtype.kind == "i":
            count = max(-((first - end) // step), 0)
        else:
            # Computed in float64 for inputs of any type, as in onnxruntime.
            count = math.ceil(min(max((end - first) / step, 0), 2**62))
        check_size((count,), np.float64)
        values = np.arange(count, dtype=np.int64 if dtype.kind == "i" else np.float64)
        # Integer products may wrap around; adding the start wraps them back into range.
        values *= step
        values += first
        return values.astype(dtype, copy=False)


def range_27(start, limit, delta, *, stash_type: Literal[1] = 1):
    """Range-27: the same values; stash_type other than 1 is not supported."""
    return range_11(start, limit, delta)


def eye_like(x, *, dtype: Dtype | None = None, k: int = 0):
    """EyeLike: a matrix of the shape of x with ones on diagonal k, zeros elsewhere."""
    dtype = dtype or x.dtype
    if x.ndim != 2 or dtype == np.object_:
        raise InputError(f"a tensor of shape {x.shape} and result type {dtype}, expected a matrix of numbers")
    n, m = x.shape
    check_size((n, m), dtype)
    return np.eye(n, m, min(max(k, -n), m), dtype)


OPS = {
    "Constant": {1: constant_1, 12: constant},
    "ConstantOfShape": {9: constant_of_shape},
    "Range": {11: range_11, 27: range_27},
    "EyeLike": {9: eye_like},
}
