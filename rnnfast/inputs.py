"""What a caller hands over -> arrays of the declared type and shape, or an error that says what came."""
import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.tensors import type_name


def admit(value, expected, where):
    """`value` as the graph takes it; `expected` is a Type. Arrays keep their type, Python values are converted."""
    if expected.kind == "optional":
        return None if value is None else admit(value, expected.element, where)
    if expected.kind == "seq":
        if not isinstance(value, (list, tuple)):
            raise InputTypeError(f"{where} is {type(value).__name__}, expected a list of {expected.element}")
        return [admit(v, expected.element, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, np.ndarray) or hasattr(value, "__array__") and not isinstance(value, np.generic):
        array = _same_type(np.asarray(value), expected.dtype, where)
    else:
        array = _converted(value, expected.dtype, where)
    _check_shape(array, expected.shape, where)
    return array


def _same_type(array, dtype, where):
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == object and array.dtype.kind in "US" or array.dtype == dtype.newbyteorder():
        return array.astype(dtype)
    raise InputTypeError(f"{where} is {type_name(array.dtype)}, expected {type_name(dtype)}")


def _converted(value, dtype, where):
    """A Python number, or nested lists of them, where the declared type holds each of them (float32 rounds)."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as e:
        raise InputError(f"{where} is no array: {e}") from None
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == object and array.dtype.kind == "U":
        return array.astype(object)
    if array.size and not _convertible(array, dtype):
        raise InputTypeError(f"{where} is {type(value).__name__} of {type_name(array.dtype)}, "
                             f"expected {type_name(dtype)}")
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if dtype.kind in "iu" and array.dtype.kind != "b" and not np.array_equal(result.astype(array.dtype), array):
            raise InputError(f"{where} holds a value that {type_name(dtype)} does not")
        if np.any(np.isinf(result.astype(np.float64)) & np.isfinite(array.astype(np.float64))):
            raise InputError(f"{where} holds a value beyond the range of {type_name(dtype)}")
    return result


def _convertible(array, dtype):
    """Numbers to numbers, but not to and from bool."""
    return array.dtype.kind in "iuf" and (dtype.kind in "iuf" or dtype.kind == "V")


def _check_shape(array, shape, where):
    if shape is None:
        return
    if len(shape) != array.ndim or any(isinstance(n, int) and n != m for n, m in zip(shape, array.shape)):
        raise InputError(f"{where} has shape {array.shape}, expected ({', '.join(map(_dimension, shape))})")


def _dimension(n):
    return "?" if n is None else str(n)
