"""Shared by all arithmetic operators: element types, half precision, NumPy's warnings and axes."""

import functools
import inspect

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.arguments import broadcast_shapes
from rnnfast.onnx.ops.types import check_size


def is_floating(dtype):
    """Return whether a type is float16/32/64, or bfloat16, float8, float6 or float4 of ml_dtypes (kind V or f)."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def is_half(dtype):
    """Return whether a type is float16 or bfloat16, without importing ml_dtypes."""
    return dtype.itemsize == 2 and dtype.kind in "fV"


def widen(x):
    """Return float16 and bfloat16 arrays as float32, any other array as it is."""
    return x.astype(np.float32) if x is not None and is_half(x.dtype) else x


def same_dtype(inputs):
    """Return the one element type of all inputs that are present, the first always being; InputTypeError otherwise."""
    dtype = inputs[0].dtype
    for x in inputs:
        if x is not None and x.dtype != dtype:
            raise InputTypeError(f"inputs of types {dtype} and {x.dtype}, expected one type")
    return dtype


def _results(results, half):
    """Return results as arrays (NumPy returns scalars for 0-d arrays), float32 ones rounded to `half` if given."""
    if isinstance(results, tuple):
        return tuple(None if y is None else _results(y, half) for y in results)
    results = np.asarray(results)
    return results.astype(half) if half is not None and results.dtype == np.float32 else results


def numeric(function):
    """Decorate an operator on inputs of one type; float16 and bfloat16 are computed in float32 and rounded once."""

    @functools.wraps(function)
    def operator(*inputs, **attributes):
        dtype = same_dtype(inputs)
        with np.errstate(all="ignore"):
            if is_half(dtype):
                return _results(function(*map(widen, inputs), **attributes), dtype)
            return _results(function(*inputs, **attributes), None)

    return operator


def floating(function):
    """Decorate an operator that is `numeric`, and defined by ONNX for floating-point tensors only."""
    compute = numeric(function)

    @functools.wraps(function)
    def operator(*inputs, **attributes):
        dtype = same_dtype(inputs)
        if not is_floating(dtype):
            raise InputTypeError(f"input of type {dtype}, expected a floating-point type")
        return compute(*inputs, **attributes)

    return operator


def quiet(function):
    """Decorate an operator that handles element types itself: NumPy's warnings are off, and results are arrays."""

    @functools.wraps(function)
    def operator(*inputs, **attributes):
        with np.errstate(all="ignore"):
            return _results(function(*inputs, **attributes), None)

    return operator


def shaped(rule):
    """Decorate an operator with its shape rule, which checks it apart from computing it.

    `rule` takes the inputs and all attributes of the operator, raises an error if they do not fit, and returns the
    shapes of the results. The operator applies it first. Native forms and traces that do not compute the results apply
    it too: it is the operator's attribute `shapes`.
    """

    def decorate(function):
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

        def shapes(*inputs, **attributes):
            return rule(*inputs, **(defaults | attributes))

        @functools.wraps(function)
        def operator(*inputs, **attributes):
            shapes(*inputs, **attributes)
            return function(*inputs, **attributes)

        operator.shapes = shapes
        return operator

    return decorate


def unchanged(x, **attributes):
    """Shape rule: the result has the shape of the first input."""
    return (x.shape,)


def broadcast(*inputs, **attributes):
    """Shape rule: the inputs broadcast to a tensor within the size limit."""
    first = inputs[0].shape
    if all(len(x.shape) == len(first) and x.shape == first for x in inputs):
        return (first,)
    try:
        shape = broadcast_shapes(*(x.shape for x in inputs))
    except ValueError:
        raise InputError(f"inputs of shapes {', '.join(str(x.shape) for x in inputs)} do not broadcast") from None
    check_size(shape, inputs[0].dtype)
    return (shape,)


def check_numbers(x):
    """Raise InputTypeError for bools and strings, for which NumPy would compute something too."""
    if x.dtype.kind not in "iuf" and not is_floating(x.dtype):
        raise InputTypeError(f"input of type {x.dtype}, expected numbers")


def check_broadcasts_to(parameter, shape, name):
    """Raise InputError unless `parameter` broadcasts to the shape (unidirectional broadcasting of ONNX)."""
    if parameter.ndim > len(shape) or any(n not in (1, m) for n, m in zip(parameter.shape[::-1], shape[::-1])):
        raise InputError(f"{name} of shape {parameter.shape} does not broadcast to shape {shape}")


def axis_index(axis, x):
    """Return an axis counted from the front; AxisError, a ValueError, if it is out of range."""
    return normalize_axis_index(int(axis), x.ndim)


def flatten_axes(x, axes):
    """Return x with `axes` flattened into a last, contiguous axis.

    NumPy adds a contiguous last axis pairwise, in an order that depends on its length only. Over other axes the order
    depends on the whole shape, so that the bits of one row would change with the batch.
    """
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    shape = [x.shape[axis] for axis in kept]
    length = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    return np.ascontiguousarray(x.transpose(kept + list(axes))).reshape(*shape, length)


def per_channel(vector, x):
    """Return a vector [C] shaped to broadcast along axis 1 of x [N,C,...]."""
    return vector.reshape(-1, *(1,) * (x.ndim - 2))
