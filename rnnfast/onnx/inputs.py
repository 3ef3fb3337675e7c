"""What a caller hands over -> arrays of the declared type and shape, or an error that says what received."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.tensors import type_name

# Kinds of NumPy dtypes in words; numbers have ONNX's names.
KINDS = {"O": "object", "S": "bytes", "U": "str"}


def validate(value, expected, where):
    """`value` as the graph takes it; `expected` is a Type. Arrays keep their type, Python values are converted."""
    if expected.kind == "optional":
        return None if value is None else validate(value, expected.element, where)
    if expected.kind == "seq":
        if not isinstance(value, (list, tuple)):
            raise InputTypeError(f"{where} is {type(value).__name__}, expected a list of {expected.element}")
        return [validate(v, expected.element, f"{where}[{i}]") for i, v in enumerate(value)]
    array = value if type(value) is np.ndarray else _as_array(value, where)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__") and not isinstance(value, np.generic):
        array = _same_type(array, expected.dtype, where)
    else:
        array = _converted(value, array, expected.dtype, where)
    _check_shape(array, expected.shape, where)
    return array


def _as_array(value, where):
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as e:
        raise InputError(f"{where} is no array: {e}") from e
    except Exception as e:  # foreign array types raise whatever they like
        raise InputTypeError(
            f"{where} is {type(value).__name__}, which cannot be read as an array: {type(e).__name__}: {e}"
        ) from e


def _same_type(array, dtype, where):
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == object and array.dtype.kind in "US" or array.dtype == dtype.newbyteorder():
        return array.astype(dtype)
    received = f"an array of {KINDS[array.dtype.kind]}" if array.dtype.kind in KINDS else type_name(array.dtype)
    raise InputTypeError(f"{where} is {received}, expected {type_name(dtype)}")


def _converted(value, array, dtype, where):
    """A Python number, or nested lists of them, where the declared type holds each of them (float32 rounds).

    array: `value` as NumPy reads it.
    """
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == object and array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype == object and array.size and {type(v) for v in array.flat} == {int} and dtype.kind in "iufV":
        array = _from_large_ints(array, dtype, where)
    if array.size and not _convertible(array, dtype):
        raise InputTypeError(f"{where} is {_described(value, array)}, expected {type_name(dtype)}")
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if "int" in dtype.name and not (_in_range(array, dtype) and np.array_equal(result.astype(array.dtype), array)):
            raise InputError(f"{where} holds a value that {type_name(dtype)} does not")
        if np.any(~np.isfinite(result.astype(np.float64)) & np.isfinite(array.astype(np.float64))):
            raise InputError(f"{where} holds a value beyond the range of {type_name(dtype)}")
    return result


def _from_large_ints(array, dtype, where):
    """Python integers that no integer type of NumPy holds."""
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise InputError(f"{where} holds a value beyond the range of {type_name(dtype)}") from None


def _in_range(array, dtype):
    """Compared as Python numbers, which neither round nor wrap around. NaN is in no range."""
    if array.size == 0 or dtype.kind not in "iu":  # the types of fewer than 8 bits cannot wrap around to equality
        return True
    limits = np.iinfo(dtype)
    return limits.min <= array.min().item() and array.max().item() <= limits.max


def _described(value, array):
    """A Python value in words: its type, and of a list that of its members."""
    name = type(value).__name__
    if array.dtype.kind == "O":
        members = {type(v).__name__ for v in array.flat}
        return name if members == {name} else f"{name} of {' and '.join(sorted(members))}"
    if not isinstance(value, (list, tuple)):
        return name
    return f"{name} of {KINDS.get(array.dtype.kind) or type_name(array.dtype)}"


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
