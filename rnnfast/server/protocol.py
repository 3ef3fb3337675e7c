"""The messages of gRPC as classes, made from inference.proto when they are first wanted.

There is no generated code, which would work with some versions of protobuf only. The classes are in a pool of
descriptors of their own, so that a client of the same protocol can be in the process too.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE = pathlib.Path(__file__).with_name("inference.proto")
SERVICE = "inference.GRPCInferenceService"
_FIELD = descriptor_pb2.FieldDescriptorProto
# Line breaks and comments are left out; each symbol is a word of its own.
_WORDS = re.compile(r"//[^\n]*|\"[^\"]*\"|[\w.]+|[{}();=<>,]")


class Method(NamedTuple):
    """A method of the service.

    Attributes:
        request: The class of its requests.
        response: The class of its responses.
        streams: Whether it takes and gives streams of them.
    """

    request: Any
    response: Any
    streams: bool


@functools.cache
def methods() -> dict[str, Method]:
    """{name: Method} of the service."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file_descriptor())
    service = pool.FindServiceByName(SERVICE)
    streams = {method.name: method.server_streaming for method in file_descriptor().service[0].method}
    return {
        method.name: Method(
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
            streams[method.name],
        )
        for method in service.methods
    }


@functools.cache
def file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of inference.proto."""
    words = iter([word for word in _WORDS.findall(FILE.read_text()) if not word.startswith("//")])
    file = descriptor_pb2.FileDescriptorProto(name="rnnfast/inference.proto")
    for word in words:
        if word == "message":
            _read_message(file.message_type.add(), words)
        elif word == "enum":
            _read_enum(file.enum_type.add(), words)
        elif word == "service":
            _read_service(file.service.add(), words)
        elif word == "package":
            file.package = next(words)
            _expect(words, ";")
        elif word == "syntax":
            _expect(words, "=")
            file.syntax = next(words).strip('"')
            _expect(words, ";")
        else:
            raise ValueError(f"{FILE}: {word!r} is not understood")
    _resolve(file.message_type, "." + file.package, _names(file.message_type, file.enum_type, "." + file.package))
    for method in file.service[0].method:
        method.input_type = f".{file.package}.{method.input_type}"
        method.output_type = f".{file.package}.{method.output_type}"
    return file


def _expect(words: Iterator[str], *expected: str) -> None:
    for word in expected:
        found = next(words)
        if found != word:
            raise ValueError(f"{FILE}: {found!r} is where {word!r} was expected")


def _read_service(service: Any, words: Iterator[str]) -> None:
    service.name = next(words)
    _expect(words, "{")
    while (word := next(words)) != "}":
        method = service.method.add(name=next(words))
        _expect(words, "(")
        method.client_streaming = (word := next(words)) == "stream"
        method.input_type = next(words) if method.client_streaming else word
        _expect(words, ")", "returns", "(")
        method.server_streaming = (word := next(words)) == "stream"
        method.output_type = next(words) if method.server_streaming else word
        _expect(words, ")", ";")


def _read_enum(enum: Any, words: Iterator[str]) -> None:
    enum.name = next(words)
    _expect(words, "{")
    while (word := next(words)) != "}":
        _expect(words, "=")
        enum.value.add(name=word, number=int(next(words)))
        _expect(words, ";")


def _read_message(message: Any, words: Iterator[str]) -> None:
    message.name = next(words)
    _expect(words, "{")
    while (word := next(words)) != "}":
        if word == "message":
            _read_message(message.nested_type.add(), words)
        elif word == "enum":
            _read_enum(message.enum_type.add(), words)
        elif word == "oneof":
            message.oneof_decl.add(name=next(words))
            _expect(words, "{")
            while (word := next(words)) != "}":
                _read_field(message, word, words, len(message.oneof_decl) - 1)
        else:
            _read_field(message, word, words, None)


def _read_field(message: Any, word: str, words: Iterator[str], oneof: int | None) -> None:
    """Read a field, whose first word came already. The name of a message or enum stands as `type_name`."""
    field = message.field.add(label=_FIELD.LABEL_OPTIONAL)
    if word in ("repeated", "map"):
        field.label = _FIELD.LABEL_REPEATED
    if word == "map":
        _expect(words, "<", "string", ",")
        value = next(words)
        _expect(words, ">")
    kind = next(words) if word == "repeated" else word
    field.name = next(words)
    _expect(words, "=")
    field.number = int(next(words))
    _expect(words, ";")
    if word == "map":
        entry = message.nested_type.add(name=field.name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
        entry.field.add(name="value", number=2, label=_FIELD.LABEL_OPTIONAL, type_name=value)
        field.type_name = entry.name
    elif f"TYPE_{kind.upper()}" in _FIELD.Type.keys():
        field.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type_name = kind
    if oneof is not None:
        field.oneof_index = oneof


def _names(messages: Any, enums: Any, scope: str) -> dict[str, int]:
    """{full name: type of a field that has it} of messages and enums."""
    names = {f"{scope}.{enum.name}": _FIELD.TYPE_ENUM for enum in enums}
    for message in messages:
        full = f"{scope}.{message.name}"
        names |= {full: _FIELD.TYPE_MESSAGE} | _names(message.nested_type, message.enum_type, full)
    return names


def _resolve(messages: Any, scope: str, names: dict[str, int]) -> None:
    """Give the fields of messages the full names of their types, which are looked for from the inside out."""
    for message in messages:
        inner = f"{scope}.{message.name}"
        _resolve(message.nested_type, inner, names)
        for field in message.field:
            if field.type_name:
                places = inner.split(".")
                while (full := f"{'.'.join(places)}.{field.type_name}") not in names:
                    places.pop()
                    if not places:
                        raise ValueError(f"{FILE}: there is no type {field.type_name}")
                field.type_name, field.type = full, names[full]
