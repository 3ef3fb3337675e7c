"""Layers as ONNX models: one node for each recurrent layer, symbolic axes for time and batch.

Recurrent nodes are time-major, which is all that onnxruntime has; where layers are batch_first, x is transposed once
before them and y once after them. In rnnfast the file gives the layer's bits, but for LayerNorm and for Linear on other
than two axes: that is MatMul and Add, which rounds the product before the bias is added.
"""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast import nn
from rnnfast.atomic_write import write_whole
from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.native.cell_activations import DEFAULTS, resolve
from rnnfast.nn import convert
from rnnfast.nn.checks import check_flag, check_size
from rnnfast.nn.stack import Recurrent

OPSET = 18
IR_VERSION = 8

MAX_FILE_BYTES = 2**31 - 2**20
"""Protocol buffers end at 2 GiB; the rest is for names and nodes."""

REDUCTIONS = {"sum": "ReduceSum", "mul": "ReduceProd", "average": "ReduceMean"}
"""merge -> the operator that makes one output of two directions; "concat" moves axes instead."""

SIZES = ("input_size", "in_features", "normalized_shape")
"""The attributes of layers that say how large the last axis of their input is."""


def export(layer, path=None, *, lengths=False, states=False, rank=None):
    """The onnx.ModelProto of a layer, written to `path` too if that is given (whole, or not at all).

    Inputs and outputs: x [time, batch, size] float32, or [batch, time, size] where the first recurrent layer is
    batch_first, without size and int64 where the first layer is an Embedding; y, what the layer's call returns.
    lengths: an input lengths [batch] int32, for every recurrent layer.
    states: for each recurrent layer inputs h0 (and c0) and outputs hn (and cn), [layers * directions, batch,
        hidden_size] float32, as its call takes and returns them. Of several such layers the names begin with the
        layer's position: layer1_h0. A stream of the model finds them.
    rank: the number of axes of x, for layers that take any: without recurrent ones; 2 if not given.

    Raises UnsupportedError for what ONNX has no form of: projections (proj_size), Modules of one's own.
    """
    if not isinstance(layer, nn.Module):
        raise InputTypeError(f"layer: got a {type(layer).__name__}, expected an nn.Module")
    lengths, states = check_flag(lengths, "lengths"), check_flag(states, "states")
    flat = list(_flat(layer, ""))
    recurrent = [place for place, member in flat if isinstance(member, Recurrent)]
    if not recurrent and (lengths or states):
        raise InputError(f"{'lengths' if lengths else 'states'}: {layer!r} has no recurrent layer")
    if recurrent and rank is not None:
        raise InputError(f"rank: {rank!r}, but recurrent layers say what axes x has")
    graph = Graph(lengths)
    value = _input(graph, [member for _, member in flat], 2 if rank is None else check_size(rank, "rank"))
    if lengths:
        graph.input("lengths", TensorProto.INT32, ["batch"])
    ends = []
    for place, member in flat:
        names = {}
        if states and place in recurrent:
            prefix = "" if len(recurrent) == 1 else f"layer{place.replace('.', '_')}_"
            names = {
                "initial": [f"{prefix}{letter}0" for letter in letters(member)],
                "last": [f"{prefix}{letter}n" for letter in letters(member)],
            }
            shape = (member.num_layers * len(member._reverse), "batch", member.hidden_size)
            for name in names["initial"]:
                graph.input(name, TensorProto.FLOAT, shape)
            ends += [(name, shape) for name in names["last"]]
        value = graph.add(member, value, place, **names)
    if value.swapped:
        value = swap(graph, value, "y_transposed")
    graph.output("y", value.name, value.shape)
    for name, shape in ends:
        graph.output(name, name, shape)
    return graph.finish(repr(layer), path)


class Value(NamedTuple):
    """A tensor of the graph; swapped: its first two axes stand the other way round than in the layer's call."""

    name: str
    shape: tuple
    swapped: bool = False


class Graph:
    """Nodes and weights in the making. Names are those of values; a node is called as its first output."""

    def __init__(self, lengths=False):
        self.lengths = "lengths" if lengths else ""
        self.nodes, self.weights, self.inputs, self.outputs = [], {}, [], []

    def input(self, name, type_, shape):
        self.inputs.append(helper.make_tensor_value_info(name, type_, shape))
        return name

    def output(self, name, value, shape):
        """`value` becomes a float32 output of this name."""
        if not any(value in node.output for node in self.nodes):
            self.node("Identity", [value], name)
        elif value != name:
            for node in self.nodes:
                for names in (node.input, node.output):
                    names[:] = [name if other == value else other for other in names]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, name, array):
        self.weights[name] = np.asarray(array, order="C")
        return name

    def integers(self, *values):
        """A constant int64 vector, one for all its uses."""
        return self.weight("ints_" + "_".join(map(str, values)).replace("-", "minus"), np.array(values, np.int64))

    def node(self, op, inputs, name, *more, **attributes):
        """-> `name`, its first output's; `more` are those of further ones."""
        self.nodes.append(helper.make_node(op, inputs, [name, *more], name, **attributes))
        return name

    def add(self, layer, x, place, **states):
        """The nodes of a layer that is no Sequential, at `place` -> its output; `states` as `recurrent` takes them."""
        form = FORMS.get(type(layer))
        if form is None:
            raise UnsupportedError(
                f"{f'layer {place}: ' if place else ''}{layer!r} has no ONNX form; it is none of "
                f"{', '.join(sorted(kind.__name__ for kind in FORMS))}, Sequential"
            )
        return form(self, layer, x, f"{place}." if place else "", **states)

    def finish(self, text, path=None):
        """The model; `text` says what it is."""
        size = sum(array.nbytes for array in self.weights.values())
        if size > MAX_FILE_BYTES:
            raise LimitError(f"weights of {size} bytes are more than the {MAX_FILE_BYTES} that an ONNX file holds")
        graph = helper.make_graph(
            self.nodes,
            "rnnfast",
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
            doc_string=text,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="rnnfast",
            producer_version=rnnfast.__version__,
        )
        if path is not None:
            write_whole(path, model.SerializeToString())
        return model


def _flat(layer, place):
    """(position, layer) of all that is no Sequential."""
    if not isinstance(layer, nn.Sequential):
        yield place, layer
    else:
        for i, member in enumerate(layer.layers):
            yield from _flat(member, f"{place}.{i}" if place else f"{i}")


def _input(graph, layers, rank):
    """x, as the first layers that say something about it take it."""
    axes = ["batch", "time", *(f"axis{i}" for i in range(2, rank))][:rank]
    first = next((layer for layer in layers if isinstance(layer, Recurrent)), None)
    if first is not None:
        axes = ["batch", "time", "size"] if first.batch_first else ["time", "batch", "size"]
    if any(isinstance(layer, nn.Embedding) for layer in layers):
        axes = axes if first is None else axes[:2]
        return Value(graph.input("x", TensorProto.INT64, axes), tuple(axes))
    sizes = [getattr(layer, name) for layer in layers for name in SIZES if hasattr(layer, name)]
    axes[-1] = sizes[0] if sizes else "size"
    return Value(graph.input("x", TensorProto.FLOAT, axes), tuple(axes))


def _linear(graph, layer, x, place):
    weights = layer.state_dict()
    shape = (*x.shape[:-1], layer.out_features)
    if layer.bias and len(x.shape) == 2:
        inputs = [x.name, *(graph.weight(f"{place}{name}", weights[name]) for name in ("weight", "bias"))]
        return x._replace(name=graph.node("Gemm", inputs, f"{place}Linear", transB=1), shape=shape)
    name = graph.node("MatMul", [x.name, graph.weight(f"{place}weight", weights["weight"].T)], f"{place}Linear")
    if layer.bias:
        name = graph.node("Add", [name, graph.weight(f"{place}bias", weights["bias"])], f"{place}Linear_bias")
    return x._replace(name=name, shape=shape)


def _embedding(graph, layer, x, place):
    weight = graph.weight(f"{place}weight", layer.state_dict()["weight"])
    return x._replace(
        name=graph.node("Gather", [weight, x.name], f"{place}Embedding"), shape=(*x.shape, layer.embedding_dim)
    )


def _activation(graph, layer, x, place):
    name, *values = layer.function
    attributes = {
        key: value for key, value, default in zip(("alpha", "beta"), values, DEFAULTS[name]) if default is not None
    }
    return x._replace(name=graph.node(name, [x.name], f"{place}{type(layer).__name__}", **attributes))


def _dropout(graph, layer, x, place):
    return x


def _layer_norm(graph, layer, x, place):
    weights = layer.state_dict()
    inputs = [x.name, *(graph.weight(f"{place}{name}", weights[name]) for name in ("weight", "bias"))]
    return x._replace(name=graph.node("LayerNormalization", inputs, f"{place}LayerNorm", axis=-1, epsilon=layer.eps))


def swap(graph, x, name):
    """x with its first two axes the other way round."""
    return Value(
        graph.node("Transpose", [x.name], name, perm=[1, 0, *range(2, len(x.shape))]),
        (x.shape[1], x.shape[0], *x.shape[2:]),
        not x.swapped,
    )


def _recurrent(graph, layer, x, place, initial=None, last=()):
    """A node for each layer of the stack. initial: the names of the states before, None for zeros; last: the names
    that those after get."""
    if layer.proj_size:
        raise UnsupportedError(f"{layer!r}: ONNX's LSTM has no projection (proj_size)")
    if x.swapped != layer.batch_first:
        x = swap(graph, x, f"{place}transposed")
    time, batch, _ = x.shape
    before = [_split(graph, name, layer.num_layers) for name in initial or [""] * len(letters(layer))]
    after = []
    for k in range(layer.num_layers):
        name = f"{place}{layer.kind}_l{k}"
        ended = k == layer.num_layers - 1 and not layer.return_sequences
        ends = list(last) if layer.num_layers == 1 else [f"{name}.{letter}" for letter in letters(layer) if last]
        ends = ends or [f"{name}.h"] * ended
        graph.node(
            layer.kind,
            _inputs(graph, layer, x, place, k, [parts[k] for parts in before]),
            name,
            *ends,
            **_attributes(layer),
        )
        merged = _merged(graph, layer, ends[0] if ended else name, name, 0 if ended else 1)
        x = Value(
            merged,
            (batch, layer._merged_size) if ended else (time, batch, layer._merged_size),
            layer.batch_first and not ended,
        )
        after.append(ends)
    if layer.num_layers > 1:
        for name, parts in zip(last, zip(*after)):
            graph.node("Concat", parts, name, axis=0)
    return x


def letters(layer):
    """Of a recurrent layer's states."""
    return "hc" if layer.kind == "LSTM" else "h"


def _split(graph, name, count):
    """A state's parts for each layer of a stack."""
    if not name or count == 1:
        return [name] * count
    parts = [f"{name}_l{k}" for k in range(count)]
    graph.node("Split", [name], *parts, axis=0, num_outputs=count)
    return parts


def _inputs(graph, layer, x, place, k, states):
    """The inputs of a recurrent node: X, W, R, B, sequence_lens, initial_h, initial_c, P."""
    parameters = layer.state_dict()
    cells = [convert.to_onnx(layer.kind, parameters, convert.suffix(k, d)) for d in range(len(layer._reverse))]

    def stacked(key):
        arrays = [cell[key] for cell in cells]
        return "" if arrays[0] is None else graph.weight(f"{place}{key}_l{k}", np.stack(arrays))

    inputs = [x.name, stacked("W"), stacked("R"), stacked("B"), graph.lengths, *states]
    if layer.peepholes:
        inputs.append(stacked("P"))
    while not inputs[-1]:
        inputs.pop()
    return inputs


def _attributes(layer):
    """The attributes of a recurrent node that are not ONNX's defaults, and hidden_size."""
    directions = len(layer._reverse)
    attributes = {"hidden_size": layer.hidden_size} | {
        key: int(value) for key, value in layer.cell_options.items() if value
    }
    if directions == 2 or layer.reverse:
        attributes["direction"] = "bidirectional" if directions == 2 else "reverse"
    if layer.clip is not None:
        attributes["clip"] = layer.clip
    triples = [triple for of_direction in layer._activations for triple in of_direction]
    if layer._activations != (resolve(type(layer).default_activations),) * directions:
        attributes["activations"] = [name for name, _, _ in triples]
        for i, key in enumerate(("activation_alpha", "activation_beta")):
            values = [triple[1 + i] for triple in triples if DEFAULTS[triple[0]][i] is not None]
            if values:
                attributes[key] = values
    return attributes


def _merged(graph, layer, value, name, axis):
    """Y [T, D, B, H] or Y_h [D, B, H] with its axis of directions merged: into the last one, or away."""
    if len(layer._reverse) == 1:
        return graph.node("Squeeze", [value, graph.integers(axis)], f"{name}.y")
    if layer.merge in REDUCTIONS:
        return graph.node(REDUCTIONS[layer.merge], [value, graph.integers(axis)], f"{name}.y", keepdims=0)
    moved = graph.node("Transpose", [value], f"{name}.moved", perm=[0, 2, 1, 3] if axis else [1, 0, 2])
    return graph.node("Reshape", [moved, graph.integers(*[0] * (1 + axis), layer._merged_size)], f"{name}.y")


FORMS = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Dropout: _dropout,
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys(
        (nn.ELU, nn.Hardsigmoid, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh), _activation
    ),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent),
}
"""Layer -> form(graph, layer, x, place) -> its output: the nodes of a layer."""
