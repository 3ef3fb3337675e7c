"""Reads a file to a Model and to a ModelProto that has all tensors in itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from rnnfast.errors import UnsupportedError, raise_if_from_handler
from rnnfast.model import Model
from rnnfast.onnx.model_folder import ModelFolder
from rnnfast.onnx.tensors import EXTERNAL, decode
from rnnfast.quantization.weights import graphs_of

# Protocol buffers cannot be larger.
MAX_BYTES = 2**31 - 1


def inlined(source: str | os.PathLike[str] | bytes) -> tuple[Model, Any, int]:
    """The Model of a file, its ModelProto with what was external data, and the bytes of both.

    Raises:
        ModelError: The source cannot be read or is not a correct ONNX model.
        UnsupportedError: It cannot be computed, or has more than 2 GB.
    """
    import onnx

    proto = onnx.ModelProto()
    nbytes = 0

    def copy(read: Any) -> None:
        nonlocal nbytes
        nbytes = read.ByteSize() + sum(_external_bytes(tensor) for tensor in _tensors(read))
        if nbytes > MAX_BYTES:
            raise UnsupportedError(f"a model of {nbytes} bytes cannot be quantised, which needs one file: 2 GB at most")
        proto.CopyFrom(read)

    model = Model(source, edit=copy)
    external = [tensor for tensor in _tensors(proto) if tensor.data_location == EXTERNAL]
    with contextlib.ExitStack() as cleanup:
        folder = cleanup.enter_context(ModelFolder(os.fsdecode(source))) if external else None
        for tensor in external:
            tensor.raw_data = decode(tensor, model.source.label, folder).tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model, proto, nbytes


def converted(model: Any, opset: int, label: str, why: str) -> Any:
    """The ModelProto converted to a newer opset.

    Raises:
        UnsupportedError: ONNX's converter cannot do it.
    """
    from onnx import version_converter

    refused = f"{label}: {why} needs opset {opset}, to which it cannot be converted"
    if model.functions:
        raise UnsupportedError(f"{refused}: it has functions of its own, which ONNX's converter would drop")
    try:
        result = version_converter.convert_version(model, opset)
    except Exception as e:  # its errors are those of C++
        raise_if_from_handler(e)
        text = " ".join(str(e).split())
        raise UnsupportedError(f"{refused}: {text}") from e
    declared = {value.name for value in model.graph.value_info}
    for value in [value for value in result.graph.value_info if value.name not in declared]:
        result.graph.value_info.remove(value)  # what the converter inferred, which may be as large as small weights
    return result


def _tensors(model: Any) -> Iterator[Any]:
    """Yield the TensorProtos of a model."""
    for graph in graphs_of(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _node_tensors(graph.node)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def _external_bytes(tensor: Any) -> int:
    """The bytes that a tensor has in other files."""
    if tensor.data_location != EXTERNAL:
        return 0
    lengths = [entry.value for entry in tensor.external_data if entry.key == "length"]
    return int(lengths[0]) if lengths and lengths[0].isdecimal() else 0
