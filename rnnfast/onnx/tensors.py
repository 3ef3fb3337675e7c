"""Decodes ONNX tensors to NumPy arrays.

Sizes are checked against the data, and external data are read from inside the model's folder only.
"""

from __future__ import annotations

import functools
import math
import os
import stat
import sys
from typing import Any

import numpy as np

from rnnfast.errors import ModelError, UnsupportedError
from rnnfast.onnx.ops.types import check_size

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


def decode(tensor: Any, where: str, folder: str | None = None) -> np.ndarray:
    """Decode a TensorProto to a read-only array. External data are read from inside `folder` only."""
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
        array = _from_bytes(_external(tensor, where, folder, _nbytes(tensor, shape)), tensor, dtype, shape, where)
    elif tensor.HasField("raw_data"):
        array = _from_bytes(tensor.raw_data, tensor, dtype, shape, where)
    else:
        array = _from_fields(tensor, shape, where)
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


def _external(tensor: Any, where: str, folder: str | None, nbytes: int) -> bytes:
    """The bytes of a tensor in another file, which must be inside the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"{where}: external data {location!r}"
    if folder is None:
        raise ModelError(f"{where}: a model given as bytes has no folder to read it from")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", nbytes))
    except ValueError:
        raise ModelError(f"{where}: offset or length is no integer") from None
    if offset < 0 or length != nbytes:
        raise ModelError(f"{where}: offset {offset} and length {length}, the tensor has {nbytes} bytes")
    try:
        path = _inside(folder, location, where)
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ModelError(f"{where}: not a regular file")
            if offset + nbytes > info.st_size:
                raise ModelError(f"{where}: bytes {offset} to {offset + nbytes} asked for, it has {info.st_size}")
            file.seek(offset)
            return file.read(nbytes)
    except (OSError, ValueError) as e:
        if isinstance(e, ModelError):
            raise
        raise ModelError(f"{where}: {e}") from None


def _inside(folder: str, location: str, where: str) -> str:
    """The real path of `location`, which must be inside `folder`: neither ".." nor a symbolic link may leave it."""
    if not location or os.path.isabs(location) or ".." in location.replace("\\", "/").split("/"):
        raise ModelError(f"{where}: not a path inside the model's folder")
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, location))
    if os.path.commonpath([root, path]) != root:
        raise ModelError(f"{where}: outside the model's folder")
    if not os.path.isfile(path):
        raise ModelError(f"{where}: no such file in the model's folder")
    return path


def decode_sparse(sparse: Any, where: str, folder: str | None = None) -> np.ndarray:
    """Decode a SparseTensorProto to a dense read-only array."""
    values, indices = decode(sparse.values, where, folder), decode(sparse.indices, where, folder)
    shape = tuple(sparse.dims)
    if min(shape, default=0) < 0 or values.ndim != 1 or indices.dtype != np.int64:
        raise ModelError(
            f"{where}: sparse tensor of shape {list(shape)} with values of shape {values.shape} and "
            f"indices of type {indices.dtype}"
        )
    check_size(shape, values.dtype)
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
