"""What a WebSocket's URL says about its messages, and messages as frames of a sequence."""

from __future__ import annotations

import math
import urllib.parse
from typing import Any

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.graph import Value
from rnnfast.server.datatypes import datatype_of, from_json
from rnnfast.server.json_messages import dump
from rnnfast.server.requests import InferRequest, InferResponse
from rnnfast.server.served_model import ServedModel

# Format of messages -> the type of their samples, and what a sample is divided by.
FORMATS: dict[str, tuple[np.dtype[Any], np.float32 | None]] = {
    "f32": (np.dtype("<f4"), None),
    "s16": (np.dtype("<i2"), np.float32(2**15)),
}
# The most samples that may be kept before each frame.
MAX_CONTEXT = 2**20
# A request that asks for no output in particular.
NO_REQUEST = InferRequest("", "", "", {}, [], {})


class Frames:
    """Makes frames of messages.

    Attributes:
        input: The name of the input that frames are for.
        fixed: {name: value} of the inputs that are the same for all frames.
    """

    def __init__(self, model: ServedModel, query: str) -> None:
        """Read the query of a URL.

        Raises:
            InputError: It has a key that is neither an option nor a fixed input, or a value does not fit.
            UnsupportedError: The model cannot be fed so; the message says why.
        """
        if model.sequences is None:
            raise UnsupportedError(f"model '{model.name}' has no sequences: {model.why_no_sequences}")
        options = _options(query)
        inputs = {v.name: v for v in model.inputs if v.name not in model.fixed_inputs}
        name = options.pop("input", None)
        if name is None and len(inputs) != 1:
            raise InputError(f"model '{model.name}' has the inputs {', '.join(inputs)}: choose one by input=")
        self.input = next(iter(inputs)) if name is None else name
        if self.input not in inputs:
            raise InputError(f"input={self.input}: model '{model.name}' has {', '.join(inputs)}")
        value = inputs[self.input]
        if value.type.dtype != np.float32:
            raise UnsupportedError(f"input '{self.input}' is {value.type}: messages hold floats or samples")
        format = options.pop("format", "f32")
        if format not in FORMATS:
            raise InputError(f"format={format}: expected {' or '.join(FORMATS)}")
        self._dtype, self._scale = FORMATS[format]
        self._context = _whole("context", options.pop("context", "0"), MAX_CONTEXT)
        self._shape = _shape(value, options.pop("shape", None))
        if self._context and math.prod(n for n in self._shape[:-1]) != 1:
            raise InputError(f"context={self._context}: frames of shape {list(self._shape)} are no samples in a row")
        self._kept = np.zeros(self._context, np.float32)
        self.fixed = {}
        for value in model.inputs:
            if value.name in model.fixed_inputs and value.name in options:
                self.fixed[value.name] = _fixed(value, options.pop(value.name))
        if options:
            raise InputError(
                f"{next(iter(options))}= is unknown: the options are format, input, context and shape"
                + "".join(f", and input '{name}'" for name in model.fixed_inputs)
            )

    @property
    def expected(self) -> str:
        """Return what a message has to be, in words."""
        size = self._dtype.itemsize
        each = math.prod(n for n in self._shape if n >= 0) * size
        if -1 in self._shape:
            return f"a multiple of {each} bytes"
        return f"{each - self._context * size} bytes"

    def frame(self, message: Any) -> np.ndarray:
        """The frame that a binary message is, behind the samples that are kept.

        Raises:
            InputError: Its number of bytes does not fit.
        """
        size, shape, item = len(message), self._shape, self._dtype.itemsize
        if size == 0 or size % item:
            raise InputError(f"{size} bytes came, expected {self.expected}")
        values = np.frombuffer(message, self._dtype)
        values = values.astype(np.float32) if self._scale is None else values / self._scale
        if self._context:
            values = np.concatenate([self._kept, values])
        try:
            return values.reshape(shape)
        except ValueError:
            raise InputError(f"{size} bytes came, expected {self.expected}") from None

    def took(self, frame: np.ndarray) -> None:
        """Keep the last samples of a frame that was taken, for the next one."""
        if self._context:
            self._kept = frame.reshape(-1)[-self._context :]


def reply(response: InferResponse) -> tuple[bytes, bool]:
    """(a message, whether it is text): the values of a single float32 output, else JSON as HTTP has it."""
    if len(response.outputs) == 1:
        (result,) = response.outputs.values()
        if result.dtype == np.float32:
            return result.tobytes(), False
    return dump(response, NO_REQUEST, False)[0][0], True


def _options(query: str) -> dict[str, str]:
    """The keys and values of a query."""
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=64)
    except ValueError as e:
        if not query:
            return {}
        raise InputError(f"the query of the URL is not understood: {e}") from None
    options = dict(pairs)
    if len(options) != len(pairs):
        raise InputError("the query of the URL has a key twice")
    return options


def _whole(name: str, text: str, most: int) -> int:
    """The number of an option."""
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) > most:
        raise InputError(f"{name}={text[:40]}: expected an integer of 0 to {most}")
    return int(text)


def _shape(value: Value, text: str | None) -> tuple[int, ...]:
    """The shape of frames with at most one -1, the size that follows from a message's length.

    Without a `shape=` the first size that the file leaves open is 1 (the batch), and one more may be open.
    """
    shape = value.type.shape
    if text is not None:
        parts = text.split(",")
        if not all(n == "-1" or n.isascii() and n.isdigit() and 0 < len(n) < 10 and int(n) for n in parts):
            raise InputError(f"shape={text[:80]}: expected sizes such as 1,-1,40")
        found = tuple(map(int, parts))
        if shape is not None and (
            len(found) != len(shape) or any(type(n) is int and n != m for n, m in zip(shape, found))
        ):
            raise InputError(f"shape={text[:80]}: input '{value.name}' is {value.type}")
    elif shape is None:
        raise InputError(f"input '{value.name}' has any shape: choose that of frames by shape=")
    else:
        sizes = [n if type(n) is int else -1 for n in shape]
        if -1 in sizes:
            sizes[sizes.index(-1)] = 1
        found = tuple(sizes)
    if found.count(-1) > 1:
        raise InputError(f"input '{value.name}' is {value.type}: choose the shape of frames by shape=, with one -1")
    return found


def _fixed(value: Value, text: str) -> np.ndarray:
    """The value of a fixed input: numbers with commas between them."""
    assert value.type.dtype is not None and value.type.shape is not None
    where, dtype = f"{value.name}={text[:40]}", value.type.dtype
    numbers: list[Any] = text.split(",")
    if dtype.kind != "O":
        try:
            numbers = [int(n) if dtype.kind in "iu" else float(n) for n in numbers]
        except ValueError:
            raise InputError(f"{where}: expected numbers for {value.type}") from None
        if dtype.kind == "b":
            numbers = [bool(n) for n in numbers]
    return from_json(numbers, datatype_of(dtype, value.name), list(value.type.shape), where)
