"""The datatypes of the Open Inference Protocol, and tensors as its JSON and its bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.tensors import numpy_dtype

# Datatype -> the element type of ONNX. BYTES are strings.
ELEMENTS = {
    "BOOL": 9, "UINT8": 2, "UINT16": 4, "UINT32": 12, "UINT64": 13, "INT8": 3, "INT16": 5, "INT32": 6, "INT64": 7,
    "FP16": 10, "FP32": 1, "FP64": 11, "BF16": 16, "BYTES": 8,
}  # fmt: skip
# The largest product of the sizes but 0 of an empty tensor: as bytes of the largest elements it is below 2^63.
MAX_EMPTY = 2**59
FLOAT32_MAX = float(np.finfo(np.float32).max)
_DTYPES: dict[str, np.dtype[Any]] = {}
_NAMES: dict[np.dtype[Any], str] = {}


def dtype_of(datatype: Any, where: str) -> np.dtype[Any]:
    """The dtype of a datatype.

    Raises:
        InputError: The protocol has no such datatype.
    """
    dtype = _DTYPES.get(datatype) if type(datatype) is str else None
    if dtype is None:
        if type(datatype) is not str or datatype not in ELEMENTS:
            raise InputError(f"{where} has datatype {datatype!r}, expected one of {', '.join(ELEMENTS)}")
        dtype = _DTYPES[datatype] = numpy_dtype(ELEMENTS[datatype])
    return dtype


def datatype_of(dtype: np.dtype[Any], where: str) -> str:
    """The datatype of a dtype.

    Raises:
        UnsupportedError: The protocol has no datatype for it.
    """
    if dtype not in _NAMES:
        if not _NAMES:
            _NAMES.update({dtype_of(name, ""): name for name in ELEMENTS})
        if dtype not in _NAMES:
            raise UnsupportedError(f"{where} is {dtype.name}, for which the Open Inference Protocol has no datatype")
    return _NAMES[dtype]


def checked_shape(shape: Any, where: str) -> tuple[int, ...]:
    """The shape of a tensor as it came.

    Raises:
        InputError: It is no list of sizes.
    """
    if not isinstance(shape, (list, tuple)) or any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
        raise InputError(f"{where} has shape {shape!r}, expected a list of sizes")
    if len(shape) > 32:
        raise InputError(f"{where} has {len(shape)} axes, expected at most 32")
    # NumPy refuses the others though they have no elements.
    if 0 in shape and math.prod(n or 1 for n in shape) > MAX_EMPTY:
        raise InputError(f"{where} has shape {list(shape)}, whose sizes but 0 have a product above 2^59")
    return tuple(shape)


def from_bytes(data: bytes | memoryview, datatype: Any, shape: Any, where: str) -> np.ndarray:
    """The tensor that bytes are: little-endian, row-major; of BYTES each element behind its length of 4 bytes.

    Raises:
        InputError: The datatype, the shape or the number of bytes is wrong.
    """
    dtype, shape = dtype_of(datatype, where), checked_shape(shape, where)
    count = math.prod(shape)
    if dtype.kind == "O":
        return _strings(bytes(data), count, where).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{where} has {len(data)} bytes, expected {count * dtype.itemsize} for {datatype} of shape {list(shape)}"
        )
    if dtype.kind == "b" and count and np.frombuffer(data, np.uint8).max() > 1:
        raise InputError(f"{where} holds a byte that is neither 0 nor 1, expected {datatype}")
    return np.frombuffer(data, dtype).reshape(shape)


def _strings(data: bytes, count: int, where: str) -> np.ndarray:
    strings, at = list[str](), 0
    while at < len(data):
        if len(strings) == count or at + 4 > len(data):
            break
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise InputError(f"{where}: element {len(strings)} has {size} bytes, but {len(data) - at} are left")
        strings.append(_text(data[at : at + size], where))
        at += size
    if len(strings) != count or at != len(data):
        raise InputError(f"{where} has {len(data)} bytes, which are not those of {count} strings behind their lengths")
    array = np.empty(count, object)
    array[:] = strings
    return array


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where} holds bytes that are not UTF-8, which strings of a model are") from None


def to_bytes(array: np.ndarray) -> bytes:
    """The bytes of a tensor, as `from_bytes` reads them."""
    if array.dtype.kind != "O":
        return array.tobytes()
    texts = [text.encode() if type(text) is str else bytes(text) for text in array.ravel().tolist()]
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))


def from_json(data: Any, datatype: Any, shape: Any, where: str) -> np.ndarray:
    """The tensor of a JSON request: its numbers in one flat list or in nested ones.

    Raises:
        InputError: The datatype, the shape, the number of elements or one of them is wrong.
    """
    dtype, shape = dtype_of(datatype, where), checked_shape(shape, where)
    if not isinstance(data, list):
        raise InputError(f"{where} has data of type {type(data).__name__}, expected a list")
    if data and isinstance(data[0], list):
        data = _flat(data, shape, where)
    if len(data) != math.prod(shape):
        raise InputError(f"{where} has {len(data)} elements, expected {math.prod(shape)} for shape {list(shape)}")
    if dtype.kind == "O":
        if not all(type(v) is str for v in data):
            raise InputError(f"{where} holds an element that is no string, expected {datatype}")
        array = np.empty(len(data), object)
        array[:] = data
        return array.reshape(shape)
    return _numbers(data, dtype, datatype, where).reshape(shape)


def _numbers(data: list[Any], dtype: np.dtype[Any], datatype: str, where: str) -> np.ndarray:
    """Numbers in a datatype that holds each of them; floats are rounded to it."""
    kinds = set(map(type, data))
    allowed = {bool} if dtype.kind == "b" else {int} if dtype.kind in "iu" else {int, float}
    if not kinds <= allowed:
        bad = next(v for v in data if type(v) not in allowed)
        raise InputError(f"{where} holds {bad!r}, expected {datatype}")
    try:
        array = np.array(data, np.float64 if dtype.kind in "fV" else dtype)
    except OverflowError:
        raise InputError(f"{where} holds a value that {datatype} does not") from None
    if dtype.kind not in "fV" or dtype == np.float64:
        return array
    if dtype == np.float32 and np.abs(array).max(initial=0) <= FLOAT32_MAX:
        return array.astype(dtype)
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if (~np.isfinite(result.astype(np.float64)) & np.isfinite(array)).any():
            raise InputError(f"{where} holds a value beyond the range of {datatype}")
    return result


def _flat(data: list[Any], shape: Sequence[int], where: str) -> list[Any]:
    """The elements of nested lists, which must have the declared shape."""
    for axis, size in enumerate(shape):
        if not all(isinstance(part, list) and len(part) == size for part in ([data] if axis == 0 else data)):
            raise InputError(f"{where} has nested lists that do not have the shape {list(shape)}")
        data = data if axis == 0 else [v for part in data for v in part]
    return data


def to_json(array: np.ndarray) -> Any:
    """The elements of a tensor as `orjson` writes them in one flat list; which writes null for NaN and infinities."""
    if array.dtype.kind == "V":  # bfloat16
        return array.ravel().astype(np.float32)
    return array.ravel().tolist() if array.dtype.kind == "O" else np.ascontiguousarray(array).reshape(-1)
