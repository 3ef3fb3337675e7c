"""Validates a caller's values: arrays of the declared type and shape, or an error that says what was received."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError, raise_if_from_handler
from rnnfast.onnx.graph import Graph, Type
from rnnfast.onnx.tensors import type_name

# Names for messages of the kinds of NumPy dtypes that are not numbers, which go by ONNX's names.
DTYPE_KINDS = {"O": "object", "S": "bytes", "U": "str"}
# The type of elements where the file declares none.
ANY = Type("tensor")


def validate(value: Any, expected: Type, where: str) -> Any:
    """Return a value as a graph takes it, or raise InputError or InputTypeError.

    Arrays must have the expected type; Python numbers and lists of them are converted to it if it can hold them. In
    lists True is 1, and 1 is True; a bool or a number alone is taken for itself only.
    """
    if expected.kind == "optional":
        return None if value is None else validate(value, expected.element or ANY, where)
    if expected.kind == "seq":
        if not isinstance(value, (list, tuple)):
            raise InputTypeError(f"{where} is {type(value).__name__}, expected a list of {expected.element}")
        return [validate(v, expected.element or ANY, f"{where}[{i}]") for i, v in enumerate(value)]
    array = value if type(value) is np.ndarray else _as_array(value, where)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__") and not isinstance(value, np.generic):
        array = _same_type(array, expected.dtype, where)
    else:
        array = _converted(value, array, expected.dtype, where)
    _check_shape(array, expected.shape, where)
    return array


def lengths_inputs(graph: Graph) -> frozenset[str]:
    """Names of the int32 inputs that are nothing but the sequence_lens of recurrent nodes."""
    names = {v.name for v in graph.inputs if v.type.dtype == np.int32}
    names -= {v.name for v in graph.outputs}
    used: set[str] = set()
    for node in graph.nodes:
        is_length = node.op_type in ("RNN", "GRU", "LSTM") and node.domain in ("", "ai.onnx")
        lens = node.inputs[4:5] if is_length else ()
        used.update(lens)
        names -= node.needs - set(lens)
        names -= {name for name in lens if node.inputs.count(name) > 1}
    return frozenset(names & used)


def _as_array(value: Any, where: str) -> np.ndarray:
    """The value as NumPy reads it."""
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as e:
        raise_if_from_handler(e)
        raise InputError(f"{where} is no array: {e}") from e
    except Exception as e:  # foreign array types raise whatever they like
        raise_if_from_handler(e)
        raise InputTypeError(
            f"{where} is {type(value).__name__}, which cannot be read as an array: {type(e).__name__}: {e}"
        ) from e


def _same_type(array: np.ndarray, dtype: np.dtype | None, where: str) -> np.ndarray:
    """The array if it has this type; arrays of text, and of the other byte order, are converted."""
    if dtype is not None and dtype.kind == "O" and array.dtype.kind in "OSUT":
        return _of_text(array, where)
    if dtype is None or array.dtype == dtype:
        return array
    if array.dtype == dtype.newbyteorder():
        return array.astype(dtype)
    received = (
        f"an array of {DTYPE_KINDS[array.dtype.kind]}" if array.dtype.kind in DTYPE_KINDS else type_name(array.dtype)
    )
    raise InputTypeError(f"{where} is {received}, expected {type_name(dtype)}")


def _converted(value: Any, array: np.ndarray, dtype: np.dtype | None, where: str) -> np.ndarray:
    """A Python number or nested list of them in the declared type, which must hold each of them (floats are rounded).

    `array` is `value` as NumPy reads it.
    """
    if dtype is not None and dtype.kind == "O" and array.dtype.kind in "OSU":
        return _of_text(array, where)
    if dtype is None or array.dtype == dtype:
        return array
    if array.dtype == object and array.size and {type(v) for v in array.flat} == {int} and dtype.kind in "iufV":
        array = _from_large_ints(array, dtype, where)
    if array.size and not _convertible(array, dtype, isinstance(value, (list, tuple))):
        raise InputTypeError(f"{where} is {_described(value, array)}, expected {type_name(dtype)}")
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if ("int" in dtype.name or dtype.kind == "b") and not (
            _in_range(array, dtype) and np.array_equal(result.astype(array.dtype), array)
        ):
            raise InputError(f"{where} holds a value that {type_name(dtype)} does not")
        if np.any(~np.isfinite(result.astype(np.float64)) & np.isfinite(array.astype(np.float64))):
            raise InputError(f"{where} holds a value beyond the range of {type_name(dtype)}")
    return result


def _from_large_ints(array: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """Python integers too large for NumPy's integer types, as float64."""
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise InputError(f"{where} holds a value beyond the range of {type_name(dtype)}") from None


def _in_range(array: np.ndarray, dtype: np.dtype) -> bool:
    """Return whether an integer type holds all values; NaN is in no range.

    Values are compared as Python numbers, which neither round nor wrap around.
    """
    if array.size == 0 or dtype.kind not in "iu":  # types of fewer than 8 bits cannot wrap around to equal values
        return True
    limits = np.iinfo(dtype)
    return limits.min <= array.min().item() and array.max().item() <= limits.max


def _described(value: Any, array: np.ndarray) -> str:
    """The type of a Python value for messages, with the type of its members if it is a list."""
    name = type(value).__name__
    if array.dtype.kind == "O":
        members = {type(v).__name__ for v in array.flat}
        return name if members == {name} else f"{name} of {' and '.join(sorted(members))}"
    if not isinstance(value, (list, tuple)):
        return name
    return f"{name} of {DTYPE_KINDS.get(array.dtype.kind) or type_name(array.dtype)}"


def _convertible(array: np.ndarray, dtype: np.dtype, listed: bool) -> bool:
    """Return whether both are types of numbers; bool is one in a list only."""
    numbers = "biuf" if listed else "iuf"
    return array.dtype.kind in numbers and (dtype.kind in numbers or dtype.kind == "V")


def _of_text(array: np.ndarray, where: str) -> np.ndarray:
    """Text as an array of str: str as it is, bytes as UTF-8."""
    texts = array.astype(object)
    for i, text in enumerate(texts.flat):
        if isinstance(text, bytes):
            try:
                texts.flat[i] = text.decode()
            except UnicodeDecodeError as e:
                raise InputError(f"{where} holds bytes that are not UTF-8: {e}") from e
        elif not isinstance(text, str):
            raise InputTypeError(f"{where} holds {type(text).__name__}, expected string")
    return texts


def _check_shape(array: np.ndarray, shape: tuple[int | str | None, ...] | None, where: str) -> None:
    """Raise InputError if the array does not fit a declared shape."""
    if shape is None:
        return
    if len(shape) != array.ndim or any(isinstance(n, int) and n != m for n, m in zip(shape, array.shape)):
        raise InputError(f"{where} has shape {array.shape}, expected ({', '.join(map(_dimension, shape))})")


def _dimension(n: int | str | None) -> str:
    return "?" if n is None else str(n)
