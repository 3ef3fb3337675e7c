"""Layers from ONNX files that `export` wrote: the metadata say which layers, the initializers have their weights."""

from __future__ import annotations

import pathlib
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper

from rnnfast import nn
from rnnfast.errors import ModelError
from rnnfast.export.layers import fingerprint
from rnnfast.nn import convert
from rnnfast.nn.description import KEY, network
from rnnfast.nn.files import readable
from rnnfast.nn.module import Container
from rnnfast.regular_files import open_regular


def restored(path: pathlib.Path) -> nn.Module:
    """Return the network of an ONNX file, or of the folder of a Seq2Seq; `nn.load` documents it."""
    folder = path.is_dir()
    paths = [path / f"{name}.onnx" for name in ("encoder", "decoder_step")] if folder else [path]
    tensors: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    net: Any = None
    for file in paths:
        model = _read(file)
        texts = {entry.key: entry.value for entry in model.metadata_props}
        if KEY not in texts:
            raise ModelError(
                f"{file}: does not say what its layers are: nn.Module.save did not write it. rnnfast.load runs any file"
            )
        net, description = network(texts[KEY], str(file))
        if isinstance(net, nn.Seq2Seq) != folder:
            raise ModelError(
                f"{path}: is one file of a Seq2Seq, expected the folder with both"
                if not folder
                else f"{path}: is a folder of a {type(net).__name__}, expected its file"
            )
        if description.get("nodes") != fingerprint(model):
            raise ModelError(f"{file}: its nodes were changed since nn.Module.save wrote it; rnnfast.load runs it")
        if any(array.data_location != TensorProto.DEFAULT for array in model.graph.initializer):
            raise ModelError(f"{file}: has external data, which nn.Module.save does not write; rnnfast.load runs it")
        with readable(file, "ONNX model that nn.Module.save wrote"):
            tensors |= {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
        kinds |= {node.name: node.op_type for node in model.graph.node}
    with readable(path, "whole file of these layers"):
        state_dict = _weights(net, "", tensors, kinds)
    net.load_state_dict(state_dict)
    return net


def _read(path):
    """Return the ModelProto of a file."""
    model = ModelProto()
    with readable(path, "ONNX file"), open_regular(path) as file:
        try:
            model.ParseFromString(file.read())
        except DecodeError as error:
            raise ValueError(str(error)) from error
    return model


def _weights(layer, prefix, tensors, kinds):
    """Return the state dict of a layer, whose initializers and nodes have names that begin with `prefix`."""
    if not isinstance(layer, Container):
        form = FORMS.get(type(layer), _as_they_are)
        return form(layer, prefix, tensors, kinds)
    parts = {name: _weights(member, f"{prefix}{name}.", tensors, kinds) for name, member in layer.members().items()}
    return {f"{path}.{name}": value for path, part in parts.items() for name, value in part.items()}


def _as_they_are(layer, prefix, tensors, kinds):
    """Return weights whose initializers have their names and layout."""
    return {name: tensors[prefix + name] for name in layer.shapes()}


def _linear(layer, prefix, tensors, kinds):
    """Return the weights of Gemm, or of MatMul, whose matrix is transposed."""
    weights = _as_they_are(layer, prefix, tensors, kinds)
    return weights if kinds[f"{prefix}Linear"] == "Gemm" else weights | {"weight": weights["weight"].T}


def _recurrent(layer, prefix, tensors, kinds):
    """Return the weights of a stack, in torch's layout."""
    weights = {}
    for k in range(layer.num_layers):
        arrays = (tensors.get(f"{prefix}{key}_l{k}") for key in ("W", "R", "B", "P"))
        _, _, _, parameters = convert.from_onnx(layer.kind, *arrays)
        weights |= {name.replace("_l0", f"_l{k}"): array for name, array in parameters.items()}
    return weights


def _cell(layer, prefix, tensors, kinds):
    """Return the weights of a cell."""
    weights = _recurrent(layer.layer, prefix, tensors, kinds)
    return {name.removesuffix("_l0"): array for name, array in weights.items()}


FORMS: dict[type[nn.Module], Any] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent),
    **dict.fromkeys((nn.RNNCell, nn.LSTMCell, nn.GRUCell), _cell),
}
"""Layer class -> function(layer, prefix, tensors, kinds) that returns its state dict; others have `_as_they_are`."""
