"""Decodes ONNX tensors to NumPy arrays.

Sizes are checked against the data, and external data are read from inside the model's folder only.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import Error, ModelError, UnsupportedError, raise_if_from_handler
from rnnfast.onnx.ops.types import check_size

if TYPE_CHECKING:
    from rnnfast.onnx.model_folder import ModelFolder

# TensorProto.DataType -> (name in type strings, name in NumPy or ml_dtypes, field that holds the values, bits of an
# element in raw data)
ELEMENT_TYPES: dict[int, tuple[str, str, str, int | None]] = {
    1: ("float", "float32", "float_data", 32),
    2: ("uint8", "uint8", "int32_data", 8),
    3: ("int8", "int8", "int32_data", 8),
    4: ("uint16", "uint16", "int32_data", 16),
    5: ("int16", "int16", "int32_data", 16),
    6: ("int32", "int32", "int32_data", 32),
    7: ("int64", "int64", "int64_data", 64),
    8: ("string", "object", "string_data", None),
    9: ("bool", "bool", "int32_data", 8),
    10: ("float16", "float16", "int32_data", 16),
    11: ("double", "float64", "double_data", 64),
    12: ("uint32", "uint32", "uint64_data", 32),
    13: ("uint64", "uint64", "uint64_data", 64),
    16: ("bfloat16", "bfloat16", "int32_data", 16),
    17: ("float8e4m3fn", "float8_e4m3fn", "int32_data", 8),
    18: ("float8e4m3fnuz", "float8_e4m3fnuz", "int32_data", 8),
    19: ("float8e5m2", "float8_e5m2", "int32_data", 8),
    20: ("float8e5m2fnuz", "float8_e5m2fnuz", "int32_data", 8),
    21: ("uint4", "uint4", "int32_data", 4),
    22: ("int4", "int4", "int32_data", 4),
    23: ("float4e2m1", "float4_e2m1fn", "int32_data", 4),
    24: ("float8e8m0", "float8_e8m0fnu", "int32_data", 8),
    25: ("uint2", "uint2", "int32_data", 2),
    26: ("int2", "int2", "int32_data", 2),
}
EXTERNAL = 1  # TensorProto.DataLocation


@functools.lru_cache(64)
def numpy_dtype(element_type: int) -> np.dtype:
    """The dtype of an ONNX element type, given as its number; raises UnsupportedError if there is none."""
    if element_type not in ELEMENT_TYPES:
        raise UnsupportedError(f"element type {element_type} is not supported")
    name = ELEMENT_TYPES[element_type][1]
    try:
        return np.dtype(name)
    except TypeError:
        return _ml_dtype(name)


def _ml_dtype(name: str) -> np.dtype:
    """A dtype that NumPy lacks, from the package ml_dtypes."""
    try:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError):
        raise UnsupportedError(f"element type {name} needs a newer ml_dtypes package") from None


@functools.lru_cache(64)
def type_name(dtype: np.dtype) -> str:
    """ONNX's name of a dtype, as in type strings: float, double, int64 ..."""
    return next((row[0] for row in ELEMENT_TYPES.values() if row[1] == dtype.name), dtype.name)


def dtype_of_type(text: str) -> np.dtype | None:
    """The dtype of a type string of a tensor, such as tensor(float); None of any other."""
    number = next((number for number, row in ELEMENT_TYPES.items() if text == f"tensor({row[0]})"), None)
    return None if number is None else numpy_dtype(number)


def decode(
    tensor: Any, where: str, folder: ModelFolder | None = None, count: Callable[[int, str], None] | None = None
) -> np.ndarray:
    """Decode a TensorProto to a read-only array. External data are read from inside `folder` only.

    count: called with the bytes and the location, and before data of other files are read; it may raise.
    """
    where = f"{where}: tensor {tensor.name!r}" if tensor.name else where
    try:
        dtype = numpy_dtype(tensor.data_type)
    except UnsupportedError as e:
        raise type(e)(f"{where}: {e}") from None
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0:
        raise ModelError(f"{where}: negative dimension in {list(shape)}")
    if tensor.HasField("segment"):
        raise UnsupportedError(f"{where}: segmented tensors are not supported")
    if tensor.data_location == EXTERNAL:
        if count is not None:
            count(_nbytes(tensor, shape), where)
        array = _from_bytes(_external(tensor, where, folder, _nbytes(tensor, shape)), tensor, dtype, shape, where)
    elif tensor.HasField("raw_data"):
        array = _from_bytes(tensor.raw_data, tensor, dtype, shape, where)
    else:
        array = _from_fields(tensor, shape, where)
    if count is not None and tensor.data_location != EXTERNAL:  # no more than the file has
        count(array.nbytes, where)
    array.flags.writeable = False
    return array


def _nbytes(tensor: Any, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor as raw data; elements of fewer than 8 bits are packed."""
    bits = ELEMENT_TYPES[tensor.data_type][3]
    return 0 if bits is None else (math.prod(shape) * bits + 7) // 8


def _from_bytes(raw: bytes, tensor: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The array of a tensor's raw data, which are little-endian."""
    bits = ELEMENT_TYPES[tensor.data_type][3]
    if bits is None:
        raise ModelError(f"{where}: strings as raw data")
    if len(raw) != _nbytes(tensor, shape):
        raise ModelError(
            f"{where}: {len(raw)} bytes of data, but {ELEMENT_TYPES[tensor.data_type][0]} of shape "
            f"{list(shape)} has {_nbytes(tensor, shape)}"
        )
    if bits < 8:
        from onnx import TensorProto, numpy_helper

        return numpy_helper.to_array(TensorProto(data_type=tensor.data_type, dims=shape, raw_data=raw)).astype(dtype)
    array = np.frombuffer(raw, np.uint8 if dtype.kind == "b" else dtype).reshape(shape)
    if dtype.kind == "b":
        return np.asarray(array != 0)
    return array.byteswap() if sys.byteorder == "big" else array


def _from_fields(tensor: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The array of a tensor whose values are in a field of their type."""
    name, _, field, bits = ELEMENT_TYPES[tensor.data_type]
    values = getattr(tensor, field)
    size = math.prod(shape)
    expected = -(-size * bits // 8) if bits is not None and bits < 8 else size
    if len(values) != expected:
        raise ModelError(f"{where}: {len(values)} values in {field}, but {name} of shape {list(shape)} has {expected}")
    if tensor.data_type == 8:
        return np.array([_text(v, where) for v in values], object).reshape(shape)
    from onnx import numpy_helper

    return np.array(numpy_helper.to_array(tensor))


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ModelError(f"{where}: a string that is not UTF-8") from None


def _external(tensor: Any, where: str, folder: ModelFolder | None, nbytes: int) -> bytes:
    """The bytes of a tensor in another file, which must be inside the model's folder."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entries.setdefault(entry.key, entry.value) != entry.value:
            raise ModelError(f"{where}: external data has two values of {entry.key!r}")
    where = f"{where}: external data {entries.get('location', '')!r}"
    if folder is None:
        raise ModelError(f"{where}: not read: the model is given as bytes and has no folder, or external_data is False")
    offset, length = (
        _integer(entries.get(key, default), key, where) for key, default in (("offset", 0), ("length", nbytes))
    )
    if offset < 0 or length != nbytes:
        raise ModelError(f"{where}: offset {offset} and length {length}, the tensor has {nbytes} bytes")
    try:
        with folder.open_data(entries.get("location", "")) as file:
            size = os.fstat(file.fileno()).st_size
            if offset + nbytes > size:
                raise ModelError(f"bytes {offset} to {offset + nbytes} asked for, it has {size}")
            file.seek(offset)
            return file.read(nbytes)
    except Error as e:
        raise type(e)(f"{where}: {e}") from None
    except (OSError, ValueError) as e:
        raise_if_from_handler(e)
        raise ModelError(f"{where}: {e}") from None


def _integer(value: str | int, key: str, where: str) -> int:
    """The value of an entry that is an integer in decimal digits."""
    if isinstance(value, str) and not re.fullmatch("-?[0-9]{1,20}", value):
        raise ModelError(f"{where}: {key} is no integer: {value[:40]!r}")
    return int(value)


def decode_sparse(
    sparse: Any, where: str, folder: ModelFolder | None = None, count: Callable[[int, str], None] | None = None
) -> np.ndarray:
    """Decode a SparseTensorProto to a dense read-only array."""
    values, indices = decode(sparse.values, where, folder, count), decode(sparse.indices, where, folder, count)
    shape = tuple(sparse.dims)
    if min(shape, default=0) < 0 or values.ndim != 1 or indices.dtype != np.int64:
        raise ModelError(
            f"{where}: sparse tensor of shape {list(shape)} with values of shape {values.shape} and "
            f"indices of type {indices.dtype}"
        )
    check_size(shape, values.dtype)
    if count is not None:
        count(math.prod(shape) * values.dtype.itemsize, where)
    if indices.shape == (len(values), len(shape)):
        places, limit = indices.T, np.array(shape)[:, None]  # one coordinate for each axis
    elif indices.shape == (len(values),):
        places, limit = indices, np.array(math.prod(shape))  # positions in the flattened tensor
    else:
        raise ModelError(f"{where}: sparse tensor with {len(values)} values and indices of shape {indices.shape}")
    if np.any(places < 0) or np.any(places >= limit):
        raise ModelError(f"{where}: an index of a sparse tensor is outside {list(shape)}")
    dense = np.zeros(shape, values.dtype)
    if indices.ndim == 2:
        dense[tuple(places)] = values
    else:
        dense.reshape(-1)[places] = values
    dense.flags.writeable = False
    return dense
