"""Infer requests and responses as HTTP has them: JSON, with tensors in it or as bytes behind it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from rnnfast.errors import InputError
from rnnfast.server.datatypes import datatype_of, from_bytes, from_json, to_bytes, to_json
from rnnfast.server.requests import MAX_TENSORS, InferRequest, InferResponse, Output, refuse_parameters

# JSON in front of the bytes of tensors is the same for many requests. What it means is remembered, for up to so many
# texts of so many bytes: such a request takes 3.6 us in place of 15.8.
KNOWN_BYTES, MAX_KNOWN = 1024, 4096


class Known(NamedTuple):
    """What the JSON of a request means that has only tensors as bytes behind it.

    Attributes:
        tensors: Name, dtype, number of elements, place among the bytes, and shape of each input.
        size: The bytes of all of them.
        outputs, parameters, id, binary: Those of the request.
    """

    tensors: tuple[tuple[str, np.dtype[Any], int, int, tuple[int, ...]], ...]
    size: int
    outputs: list[Output]
    parameters: dict[str, Any]
    id: str
    binary: bool


_known: dict[bytes, Known] = {}


def parse(body: bytes, header_length: int | None, model: str, version: str) -> tuple[InferRequest, bool]:
    """The request that a body is.

    Args:
        body: JSON, and behind it the bytes of tensors.
        header_length: The bytes of JSON; None if there is nothing behind it.
        model: The model's name.
        version: Its version, or "".

    Returns:
        (the request, whether outputs come as bytes where it names none of them)

    Raises:
        InputError: The body is not such a request; the message names the tensor.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise InputError(f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes")
    text = body if header_length is None else body[:header_length]
    known = _known.get(text) if len(text) <= KNOWN_BYTES else None  # which would take the time of a long text's hash
    if known is not None and known.size == len(body) - len(text):
        begin = len(text)
        arrays = {
            name: np.frombuffer(body, dtype, count, begin + at).reshape(shape)
            for name, dtype, count, at, shape in known.tensors
        }
        return InferRequest(model, version, known.id, arrays, known.outputs, known.parameters), known.binary
    message = loads(text)
    if type(message) is not dict:
        raise InputError(f"the request is a {type(message).__name__} of JSON, expected an object")
    parameters = _parameters(message, "the request")
    tail = memoryview(body)[len(text) :]
    inputs, at = dict[str, np.ndarray](), 0
    for tensor in _members(message, "inputs", True):
        name = _name(tensor, "input")
        where = f"input '{name}'"
        if name in inputs:
            raise InputError(f"{where} is given twice")
        settings = _parameters(tensor, where)
        refuse_parameters(settings, where)
        size = settings.get("binary_data_size")
        datatype, shape = tensor.get("datatype"), tensor.get("shape")
        if size is None:
            if "data" not in tensor:
                raise InputError(f"{where} has neither data nor the parameter binary_data_size")
            inputs[name] = from_json(tensor["data"], datatype, shape, where)
        else:
            if type(size) is not int or not 0 <= size <= len(tail) - at:
                raise InputError(f"{where}: binary_data_size is {size!r}, but {len(tail) - at} bytes are left")
            if "data" in tensor:
                raise InputError(f"{where} has both data and the parameter binary_data_size")
            inputs[name] = from_bytes(tail[at : at + size], datatype, shape, where)
            at += size
    if at != len(tail):
        raise InputError(f"{len(tail) - at} bytes are left behind the last input")
    outputs = []
    for tensor in _members(message, "outputs", False):
        name = _name(tensor, "output")
        settings = _parameters(tensor, f"output '{name}'")
        refuse_parameters(settings, f"output '{name}'")
        outputs.append(Output(name, _flag(settings, "binary_data", f"output '{name}'")))
    binary = _flag(parameters, "binary_data_output", "the request") or False
    id = message.get("id", "")
    if type(id) is not str:
        raise InputError(f"the request's id is {id!r}, expected a string")
    request = InferRequest(model, version, id, inputs, outputs, parameters)
    if tail and len(text) <= KNOWN_BYTES:
        _remember(text, len(tail), request, binary)
    return request, binary


def _remember(text: bytes, size: int, request: InferRequest, binary: bool) -> None:
    """Remember what the JSON of a request means, if all its inputs are numbers in the bytes behind it."""
    if any(type(value) in (dict, list) for value in request.parameters.values()):
        return  # They mean nothing, but take many times the bytes of their text.
    tensors, at = [], 0
    for name, array in request.inputs.items():
        if array.dtype.kind in "Ob" or not array.size:
            return
        tensors.append((name, array.dtype, array.size, at, array.shape))
        at += array.nbytes
    if at != size:
        return  # Some are in the JSON.
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    _known[text] = Known(tuple(tensors), size, request.outputs, request.parameters, request.id, binary)


def _members(message: dict[str, Any], name: str, required: bool) -> list[dict[str, Any]]:
    """The list of tensors that a request has under a name."""
    members = message.get(name)
    if members is None and not required:
        return []
    if type(members) is not list or not all(type(member) is dict for member in members) or len(members) > MAX_TENSORS:
        if members is None:
            raise InputError(f"the request has no list of {name}")
        raise InputError(f"{name} is no list of up to {MAX_TENSORS} objects")
    return members


def _name(tensor: dict[str, Any], kind: str) -> str:
    name = tensor.get("name")
    if type(name) is not str:
        raise InputError(f"an {kind} has the name {name!r}, expected a string")
    return name


def _parameters(message: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = message.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InputError(f"{where}: parameters is a {type(parameters).__name__} of JSON, expected an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, where: str) -> bool | None:
    flag = parameters.get(name)
    if flag is not None and type(flag) is not bool:
        raise InputError(f"{where}: {name} is {flag!r}, expected true or false")
    return flag


def dump(response: InferResponse, request: InferRequest, binary: bool) -> tuple[list[bytes], int | None]:
    """A response as HTTP has it.

    Args:
        response: The response.
        request: Its request, whose outputs say which of them are to be bytes.
        binary: Whether outputs come as bytes where the request names none of them.

    Returns:
        (the parts of the body, the bytes of its JSON if there are bytes behind it)
    """
    asked = {output.name: output.binary for output in request.outputs}
    forms, elements, tails = list[Form](), list[Any](), list[bytes]()
    for name, array in response.outputs.items():
        if asked.get(name) if asked else binary:
            data = to_bytes(array)
            tails.append(data)
            forms.append((name, array.dtype, array.shape, len(data)))
        else:
            elements.append(_elements(array))
            forms.append((name, array.dtype, array.shape, None))
    if elements or response.id:
        text = _text(response.model, response.version, tuple(forms), response.id, elements)
    else:
        text = _known_text(response.model, response.version, tuple(forms))
    return ([text, *tails], len(text)) if tails else ([text], None)


# Name, dtype and shape of an output, and the number of its bytes behind the JSON; None where its elements are in it.
Form = tuple[str, np.dtype[Any], tuple[int, ...], int | None]


def _text(model: str, version: str, forms: tuple[Form, ...], id: str = "", elements: Sequence[Any] = ()) -> bytes:
    """The JSON of a response; `elements` are those of the outputs that are in it."""
    outputs, rest = [], iter(elements)
    for name, dtype, shape, size in forms:
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(dtype, name), "shape": shape}
        if size is None:
            output["data"] = next(rest)
        else:
            output["parameters"] = {"binary_data_size": size}
        outputs.append(output)
    message: dict[str, Any] = {"model_name": model, "model_version": version}
    if id:
        message["id"] = id
    message["outputs"] = outputs
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


# Where all outputs are bytes, the JSON of many responses is the same.
_known_text = functools.lru_cache(1024)(_text)


def _elements(array: np.ndarray) -> Any:
    """The elements of a tensor as `orjson` writes them, or as JSON where it would lose NaN and infinities."""
    if array.dtype.kind in "fV":
        values = array if array.dtype.kind == "f" else array.astype(np.float32)
        if not np.isfinite(values).all():
            return orjson.Fragment(json.dumps(values.ravel().tolist()))
    return to_json(array)


def loads(text: bytes) -> Any:
    """Return what JSON says, with NaN, Infinity and -Infinity for the numbers that JSON has no words for.

    Raises:
        InputError: It is no JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as e:
        if b"NaN" in text or b"Infinity" in text:
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(text.decode())
                if b"\\u" in text:  # Halves of surrogate pairs are no text: no answer could repeat them.
                    json.dumps(message, ensure_ascii=False).encode()
                return message
        raise InputError(f"failed to parse the request JSON buffer: {e}") from None
