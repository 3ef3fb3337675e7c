"""Edits of a parsed file that session options ask for: sizes of dimensions, and values of initializers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rnnfast.errors import ModelError

# In a TensorProto
EXTERNAL = 1


def editor(options: Any) -> Callable[[Any], None] | None:
    """Return the function that edits a ModelProto as SessionOptions ask; None if they do not, or are onnxruntime's."""
    edits = ("_dimensions", "_denotations", "_initializers", "_files")
    return functools.partial(_edit, options) if any(getattr(options, name, None) for name in edits) else None


def _edit(options: Any, model: Any) -> None:
    """Edit a ModelProto.

    Raises:
        ModelError: An initializer that must be external data is not, has another type or shape than its new value, or
            lies outside of the contents that are given for its file.
    """
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            size = options._dimensions.get(dimension.dim_param) if dimension.dim_param else None
            if size is None and dimension.denotation:
                size = options._denotations.get(dimension.denotation)
            if size is not None and not dimension.HasField("dim_value"):
                dimension.dim_value = size
    for initializer in model.graph.initializer:
        if initializer.name in options._initializers:
            _replace(initializer, *options._initializers[initializer.name])
        elif initializer.data_location == EXTERNAL and options._files:
            _fill(initializer, options._files)


def _replace(initializer: Any, value: Any, only_external: bool) -> None:
    """Give an initializer another value."""
    import onnx

    where = f"initializer {initializer.name!r}"
    if only_external and initializer.data_location != EXTERNAL:
        raise ModelError(f"{where} is no external data; add_initializer replaces it")
    if value.element_type() != initializer.data_type or value.shape() != list(initializer.dims):
        declared = onnx.TensorProto.DataType.Name(initializer.data_type).lower()
        raise ModelError(
            f"{where} is {declared}{list(initializer.dims)}, its new value {value.data_type()}{value.shape()}"
        )
    initializer.CopyFrom(onnx.numpy_helper.from_array(value.numpy(), initializer.name))


def _fill(initializer: Any, files: dict[str, bytes]) -> None:
    """Take an initializer's data from the contents of its file, if they are given."""
    entries = {entry.key: entry.value for entry in initializer.external_data}
    contents = files.get(entries.get("location", ""))
    if contents is None:
        return
    where = f"initializer {initializer.name!r}: external data {entries['location']!r}"
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as e:
        raise ModelError(f"{where}: {e}") from e
    end = len(contents) if length < 0 else offset + length
    if not 0 <= offset <= end <= len(contents):
        raise ModelError(f"{where}: bytes {offset} to {end} of {len(contents)}")
    initializer.raw_data = contents[offset:end]
    del initializer.external_data[:]
    initializer.ClearField("data_location")
