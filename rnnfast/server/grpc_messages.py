"""Infer requests and responses as gRPC has them: protobuf, with tensors as typed contents or as bytes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.server.datatypes import checked_shape, datatype_of, dtype_of, from_bytes, to_bytes
from rnnfast.server.protocol import methods
from rnnfast.server.requests import MAX_TENSORS, InferRequest, InferResponse, Output, refuse_parameters

# Datatype -> the field of InferTensorContents that has its elements. FP16 and BF16 have none.
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
# Parameters of requests whose names begin so are Triton's own. Of them only the one that follows changes nothing here.
RESERVED = "triton_"
EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
# A message of more bytes than the first is parsed only if it and its tensors have at most so many fields: a field of
# two bytes can become an object of a hundred.
LARGE_BYTES, MAX_FIELDS = 2**16, 16 * MAX_TENSORS
# The fields inputs and outputs of a ModelInferRequest.
TENSORS = (5, 6)
# What stands in front of the elements of tensors is remembered for so many messages, if it has no more bytes: a frame
# of a sequence is decoded in 1.2 us in place of 6.6.
MAX_KNOWN, KNOWN_BYTES = 4096, 1024


class Known(NamedTuple):
    """What a message means but for the elements of its tensors, which come as raw_input_contents at its end.

    Attributes:
        request: The request, without inputs.
        tensors: Name, dtype, shape, begin and end in the message of each input.
        between: Begin and end of what stands in front of each tensor's bytes but the first one's, and these bytes.
    """

    request: InferRequest
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, int], ...]
    between: tuple[tuple[int, int, bytes], ...]


class Decoder:
    """Decodes ModelInferRequests, and remembers what those mean that differ in the elements of their tensors alone.

    Such are the requests of a live sequence. What is remembered of one is found by its bytes in front of the elements.
    """

    def __init__(self) -> None:
        self._heads: dict[int, int] = {}  # bytes of a message -> of those in front of the elements in the last such one
        self._known: dict[bytes, Known | None] = {}  # the latter bytes; None where they came once

    def decode(self, data: bytes) -> InferRequest:
        """The request that a message is, as `decode` finds it."""
        head = data[: self._heads.get(len(data), 0)]
        known = self._known.get(head)
        if known is not None and all(data[begin:end] == part for begin, end, part in known.between):
            request = known.request
            inputs = {
                name: np.frombuffer(data[begin:end], dtype).reshape(shape)
                for name, dtype, shape, begin, end in known.tensors
            }
            return InferRequest(request.model, request.version, request.id, inputs, request.outputs, request.parameters)
        request = decode(data)
        self._learn(data, request)
        return request

    def _learn(self, data: bytes, request: InferRequest) -> None:
        """Remember a message if it came before with other elements."""
        tensors, between, at = [], [], len(data)
        for name, array in reversed(request.inputs.items()):
            if array.dtype.kind not in "fiu":
                return
            part = b":" + _number(array.nbytes)
            end, begin = at, at - array.nbytes
            at = begin - len(part)
            if at < 0 or data[at:begin] != part:
                return
            tensors.append((name, array.dtype, array.shape, begin, end))
            between.append((at, begin, part))
        if not tensors or tensors[-1][3] > KNOWN_BYTES:
            return
        begin = tensors[-1][3]
        head = data[:begin]
        self._heads[len(data)] = begin
        if len(self._heads) > MAX_KNOWN or len(self._known) > MAX_KNOWN:
            self._heads.clear()
            self._known.clear()
        elif head not in self._known:
            self._known[head] = None
        else:
            # The bytes in front are whole fields, and none of them has elements: then those at the end are all.
            try:
                fields = methods()["ModelInfer"].request.FromString(data[:at])
            except DecodeError:
                return
            if not fields.raw_input_contents:
                self._known[head] = Known(
                    dataclasses.replace(request, inputs={}), tuple(reversed(tensors)), tuple(reversed(between[:-1]))
                )


def decode(data: bytes) -> InferRequest:
    """The request that a message is.

    Raises:
        InputError: The bytes are no ModelInferRequest, or it is wrong; the message names the tensor.
        UnsupportedError: It asks for what this server does not do.
    """
    message = parsed("ModelInfer", data)
    raw, tensors = message.raw_input_contents, message.inputs
    if len(tensors) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise InputError(f"the request has more than {MAX_TENSORS} inputs or outputs")
    inputs = dict[str, np.ndarray]()
    for i, tensor in enumerate(tensors):
        name = tensor.name
        where = f"input '{name}'"
        if name in inputs:
            raise InputError(f"{where} is given twice")
        if tensor.parameters:
            refuse_parameters(_parameters(tensor.parameters, where), where)
        if not raw:
            inputs[name] = _from_contents(tensor, where)
        elif tensor.HasField("contents"):
            raise InputError(f"contents field must not be specified when using raw_input_contents for {where}")
        elif i >= len(raw):
            raise InputError(f"unable to find data for {where} in the request")
        else:
            inputs[name] = from_bytes(raw[i], tensor.datatype, tuple(tensor.shape), where)
    if len(raw) > len(tensors):
        raise InputError(f"the request has {len(raw)} raw_input_contents for {len(tensors)} inputs")
    outputs = []
    for tensor in message.outputs:
        where = f"output '{tensor.name}'"
        refuse_parameters(_parameters(tensor.parameters, where), where)
        outputs.append(Output(tensor.name, True))
    parameters = _parameters(message.parameters, "the request") if message.parameters else {}
    return InferRequest(
        message.model_name, message.model_version, message.id, inputs, outputs, checked_parameters(parameters)
    )


def parsed(method: str, data: bytes) -> Any:
    """The message of a request of a method.

    Raises:
        InputError: The bytes are no such message.
    """
    kind = methods()[method].request
    if len(data) > LARGE_BYTES and _has_many_fields(data):
        raise InputError(f"unable to parse the request: it has more than {MAX_FIELDS} fields")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InputError(f"unable to parse the request: its bytes are no {kind.DESCRIPTOR.name}") from None


def _has_many_fields(data: bytes) -> bool:
    """Return whether a message and its tensors have more than MAX_FIELDS fields; other bytes may seem to have them."""
    count = 0
    spans: list[tuple[int, int, tuple[int, ...]]] = [(0, len(data), TENSORS)]
    for begin, end, tensors in spans:
        at = begin
        while at < end:
            count += 1
            if count > MAX_FIELDS:
                return True
            tag, at = _read_number(data, at)
            kind, size = tag & 7, 0
            if kind in (0, 2):
                size, at = _read_number(data, at)
            if kind == 2:
                if tag >> 3 in tensors:
                    spans.append((at, min(at + size, end), ()))
                at += size
            else:
                at += {1: 8, 5: 4}.get(kind, 0)
    return False


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return value, at


def _parameters(parameters: Any, where: str) -> dict[str, Any]:
    """The values of a map of parameters."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InputError(f"{where}: parameter {name!r} has no value")
        values[name] = getattr(parameter, choice)
    return values


def checked_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request, after those of Triton's own.

    Raises:
        UnsupportedError: There is one that this server does not know.
    """
    for name in list(parameters):
        if name == EMPTY_FINAL_RESPONSE:
            del parameters[name]  # Each request has one response, which says that it is the final one.
        elif name.startswith(RESERVED):
            raise UnsupportedError(f"parameter {name!r} is not supported: names that begin with 'triton_' are reserved")
    sequence = parameters.get("sequence_id")
    if type(sequence) is int and sequence < 0:
        parameters["sequence_id"] = sequence + 2**64  # int64_param has the ids above 2^63 so
    return parameters


def _from_contents(tensor: Any, where: str) -> np.ndarray:
    """The tensor whose elements are numbers or strings of the message."""
    datatype = tensor.datatype
    dtype, shape = dtype_of(datatype, where), checked_shape(tuple(tensor.shape), where)
    count = math.prod(shape)
    if not tensor.HasField("contents"):
        if count:
            raise InputError(f"unable to find data for {where} in the request")
        return np.empty(shape, dtype)
    field = CONTENTS.get(datatype)
    if field is None:
        raise InputError(f"{where} is {datatype}, whose elements come as raw_input_contents only")
    others = [other.name for other, _ in tensor.contents.ListFields() if other.name != field]
    if others:
        raise InputError(f"{where} has {others[0]}, but {datatype} has {field}")
    elements = getattr(tensor.contents, field)
    if len(elements) != count:
        raise InputError(f"{where} has {len(elements)} elements, expected {count} for shape {list(shape)}")
    if dtype.kind == "O":
        return from_bytes(
            b"".join(part for text in elements for part in (len(text).to_bytes(4, "little"), text)),
            datatype, shape, where,
        )  # fmt: skip
    try:
        return np.array(list(elements), dtype).reshape(shape)
    except OverflowError:
        raise InputError(f"{where} holds a value that {datatype} does not") from None


# ------------------------------------------------------------------------------------------ responses
# They are written by hand: what is the same in all responses of a model is encoded once. Field f of bytes is the tag
# 8 * f + 2, the number of bytes, and the bytes.


def _number(value: int) -> bytes:
    """A varint."""
    if value < 128:
        return bytes((value,))
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(field: int, data: bytes) -> bytes:
    return _number(8 * field + 2) + _number(len(data)) + data


# The parameter triton_final_response of a ModelInferResponse: an entry of a map, whose value has bool_param = 1.
FINAL = _field(4, _field(1, b"triton_final_response") + _field(2, b"\x08\x01"))


@functools.lru_cache(1024)
def _head(model: str, version: str) -> bytes:
    """The fields model_name and model_version of a ModelInferResponse."""
    return _field(1, model.encode()) + _field(2, version.encode())


@functools.lru_cache(1024)
def _tensor(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The field outputs of a ModelInferResponse, with one tensor."""
    sizes = b"".join(map(_number, shape))
    return _field(
        5,
        _field(1, name.encode()) + _field(2, datatype_of(dtype, name).encode()) + (_field(3, sizes) if shape else b""),
    )


def encode(response: InferResponse, final: bytes = b"") -> bytes:
    """A ModelInferResponse; `final` is FINAL where its parameters are to say that it is the request's only one."""
    parts = [_head(response.model, response.version)]
    if response.id:
        parts.append(_field(3, response.id.encode()))
    parts.append(final)
    for name, array in response.outputs.items():
        parts.append(_tensor(name, array.dtype, array.shape))
    for array in response.outputs.values():
        data = to_bytes(array)
        parts += (b"2", _number(len(data)), data)
    return b"".join(parts)


def encode_in_stream(response: InferResponse) -> bytes:
    """A ModelStreamInferResponse with a response."""
    data = encode(response, FINAL)
    return b"\x12" + _number(len(data)) + data


def encode_error_in_stream(text: str, id: str) -> bytes:
    """A ModelStreamInferResponse with the error of a request."""
    return _field(1, text.encode(errors="backslashreplace")) + _field(2, _field(3, id.encode()) if id else b"")
