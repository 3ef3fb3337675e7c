"""Export of layers as ONNX models, with one node for each recurrent layer and symbolic axes for time and batch.

Recurrent nodes are time-major, the only layout that onnxruntime supports; for batch_first layers, x is transposed once
before them and y once after them. In rnnfast the file gives the layer's bits, except for LayerNorm, and for Linear on
other than two axes, which becomes MatMul and Add and so rounds the product before the bias is added.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast import nn
from rnnfast.atomic_write import write_whole
from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.native.cell_activations import DEFAULTS, resolve
from rnnfast.nn import convert
from rnnfast.nn.checks import check_flag, check_size
from rnnfast.nn.description import KEY, describe
from rnnfast.nn.recurrent_layer import RecurrentLayer

OPSET = 18
IR_VERSION = 8

MAX_FILE_BYTES = 2**31 - 2**20
"""Maximum size of the weights: protocol buffers end at 2 GiB, and names and nodes need some of that."""

REDUCTIONS = {"sum": "ReduceSum", "mul": "ReduceProd", "average": "ReduceMean"}
"""merge -> the operator that reduces two directions to one; "concat" moves axes instead."""

SIZES = ("input_size", "in_features", "normalized_shape", "in_channels", "num_features")
"""The attributes of layers that hold the size of one axis of their input: the channels, or else the last one."""


def export(
    layer: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    states: bool = False,
    rank: int | None = None,
) -> Any:
    """Convert a layer to an ONNX model.

    The input x is float32 [time, batch, size], or [batch, time, size] if the first recurrent layer is batch_first; for
    an Embedding it is int64 and has no size axis. The output y is what the layer's call returns.

    Args:
        layer: The layer, often a Sequential.
        path: The file to write, completely or not at all; None writes none.
        lengths: Whether to add an input lengths [batch] int32, which every recurrent layer gets.
        states: Whether to add, for each recurrent layer, inputs h0 (and c0) and outputs hn (and cn), float32
            [layers * directions, batch, hidden_size], in the form of its call. If there are several such layers, names
            begin with the layer's position: layer1_h0. A stream of the model finds them by itself.
        rank: The number of axes of x, for layers without recurrent ones, which take any number; None is 2.

    Returns:
        The onnx.ModelProto.

    Raises:
        InputError: An option does not fit the layer, or the file cannot be written.
        InputTypeError: `layer` is no Module, or an option has the wrong type.
        LimitError: The weights are larger than an ONNX file can be.
        UnsupportedError: ONNX has no form of a layer: proj_size, or a Module that is none of rnnfast's.
    """
    if not isinstance(layer, nn.Module):
        raise InputTypeError(f"layer: got a {type(layer).__name__}, expected an nn.Module")
    lengths, states = check_flag(lengths, "lengths"), check_flag(states, "states")
    flat = list(_flat(layer, ""))
    recurrent = [layer_path for layer_path, member in flat if isinstance(member, RecurrentLayer) or member.is_cell]
    if lengths and any(member.is_cell for _, member in flat):
        raise InputError(f"lengths: {layer!r} takes one step")
    if not recurrent and (lengths or states):
        raise InputError(f"{'lengths' if lengths else 'states'}: {layer!r} has no recurrent layer")
    if recurrent and rank is not None:
        raise InputError(f"rank: {rank!r}, but recurrent layers say what axes x has")
    graph = Graph(lengths)
    value = _input(graph, [member for _, member in flat], None if rank is None else check_size(rank, "rank"))
    if lengths:
        graph.input("lengths", TensorProto.INT32, ["batch"])
    ends = []
    for layer_path, member in flat:
        names = {}
        if states and layer_path in recurrent:
            prefix = "" if len(recurrent) == 1 else f"layer{layer_path.replace('.', '_')}_"
            names = {
                "initial": [f"{prefix}{letter}0" for letter in letters(member)],
                "last": [f"{prefix}{letter}n" for letter in letters(member)],
            }
            layers = () if member.is_cell else (member.num_layers * len(member.reversed_directions),)
            shape = (*layers, "batch", member.hidden_size)
            for name in names["initial"]:
                graph.input(name, TensorProto.FLOAT, shape)
            ends += [(name, shape) for name in names["last"]]
        value = graph.add(member, value, layer_path, **names)
    if value.swapped:
        value = swap(graph, value, "y_transposed")
    graph.output("y", value.name, value.shape)
    for name, shape in ends:
        graph.output(name, name, shape)
    return graph.finish(repr(layer), path, layer)


class Value(NamedTuple):
    """A tensor of the graph; if swapped, its first two axes are in the opposite order to that of the layer's call."""

    name: str
    shape: tuple
    swapped: bool = False


class Graph:
    """An ONNX graph under construction. Values are referred to by name; a node has the name of its first output."""

    def __init__(self, lengths=False):
        self.lengths = "lengths" if lengths else ""
        self.nodes, self.weights, self.inputs, self.outputs = [], {}, [], []

    def input(self, name, type_, shape):
        """Add an input of the graph, and return its name."""
        self.inputs.append(helper.make_tensor_value_info(name, type_, shape))
        return name

    def output(self, name, value, shape):
        """Make a value a float32 output of the graph, under another name."""
        if not any(value in node.output for node in self.nodes):
            self.node("Identity", [value], name)
        elif value != name:
            for node in self.nodes:
                for names in (node.input, node.output):
                    names[:] = [name if other == value else other for other in names]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, name, array):
        """Add a weight, and return its name."""
        self.weights[name] = np.asarray(array, order="C")
        return name

    def integers(self, *values):
        """Add a constant int64 vector, shared by all its uses, and return its name."""
        return self.weight("ints_" + "_".join(map(str, values)).replace("-", "minus"), np.array(values, np.int64))

    def node(self, op, inputs, name, *more, **attributes):
        """Add a node, and return `name`, that of its first output; `more` are the names of further outputs."""
        self.nodes.append(helper.make_node(op, inputs, [name, *more], name, **attributes))
        return name

    def add(self, layer, x, layer_path, **states):
        """Add the nodes of a layer that is no Sequential, and return its output; `states` go to `_recurrent`."""
        form = FORMS.get(type(layer))
        if form is None:
            raise UnsupportedError(
                f"{f'layer {layer_path}: ' if layer_path else ''}{layer!r} has no ONNX form; it is none of "
                f"{', '.join(sorted(kind.__name__ for kind in FORMS))}, Sequential"
            )
        return form(self, layer, x, f"{layer_path}." if layer_path else "", **states)

    def finish(self, text, path=None, net=None):
        """Return the model, and write it to `path` if that is given.

        `text` is its description for people. The metadata describe `net`, for `restored`, if its layers are rnnfast's.
        """
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
        with contextlib.suppress(UnsupportedError):
            helper.set_model_props(model, {KEY: describe(net, nodes=fingerprint(model))})
        if path is not None:
            write_whole(path, model.SerializeToString())
        return model


def fingerprint(model):
    """Return a text that tells whether nodes, inputs or outputs of a model were changed; weights may be."""
    parts = (*model.graph.node, *model.graph.input, *model.graph.output)
    return hashlib.sha256(b"".join(part.SerializeToString(deterministic=True) for part in parts)).hexdigest()


def _flat(layer, path):
    """Yield (path, layer) of all layers that are no Sequential; a path is like "1.0"."""
    if not isinstance(layer, nn.Sequential):
        yield path, layer
    else:
        for i, member in enumerate(layer.layers):
            yield from _flat(member, f"{path}.{i}" if path else f"{i}")


def _input(graph, layers, rank):
    """Add the input x; its axes, size and dtype are those that the layers need."""
    convolves = any(isinstance(layer, nn.Conv1d) for layer in layers)
    rank = rank or (3 if convolves else 2)
    if convolves and rank not in (2, 3):
        raise InputError(f"rank: {rank}, expected 3, or 2 without a batch, for Conv1d")
    axes = ["batch", "time", *(f"axis{i}" for i in range(2, rank))][convolves and rank == 2 :][:rank]
    first = next((layer for layer in layers if isinstance(layer, RecurrentLayer)), None)
    if first is not None:
        axes = ["batch", "time", "size"] if first.batch_first else ["time", "batch", "size"]
    if any(isinstance(layer, nn.Embedding) for layer in layers):
        axes = axes if first is None else axes[:2]
        return Value(graph.input("x", TensorProto.INT64, axes), tuple(axes))
    axes += ["size"] * (rank - len(axes) if first is None else 0)
    sized = [(layer, getattr(layer, name)) for layer in layers for name in SIZES if hasattr(layer, name)]
    axes[-1] = "size"
    if sized:
        layer, size = sized[0]
        position = _channels(layer, len(axes)) if isinstance(layer, (nn.Conv1d, nn.BatchNorm1d)) else -1
        axes[-1] = "time" if position != -1 else axes[-1]
        axes[position] = size
    return Value(graph.input("x", TensorProto.FLOAT, axes), tuple(axes))


def _linear(graph, layer, x, prefix):
    """Add Gemm, or MatMul and Add for other than two axes."""
    weights = layer.state_dict()
    shape = (*x.shape[:-1], layer.out_features)
    if layer.bias and len(x.shape) == 2:
        inputs = [x.name, *(graph.weight(f"{prefix}{name}", weights[name]) for name in ("weight", "bias"))]
        return x._replace(name=graph.node("Gemm", inputs, f"{prefix}Linear", transB=1), shape=shape)
    name = graph.node("MatMul", [x.name, graph.weight(f"{prefix}weight", weights["weight"].T)], f"{prefix}Linear")
    if layer.bias:
        name = graph.node("Add", [name, graph.weight(f"{prefix}bias", weights["bias"])], f"{prefix}Linear_bias")
    return x._replace(name=name, shape=shape)


def _embedding(graph, layer, x, prefix):
    """Add Gather."""
    weight = graph.weight(f"{prefix}weight", layer.state_dict()["weight"])
    return x._replace(
        name=graph.node("Gather", [weight, x.name], f"{prefix}Embedding"), shape=(*x.shape, layer.embedding_dim)
    )


def _activation(graph, layer, x, prefix):
    """Add the operator of an activation."""
    name, *values = layer.function
    attributes = {
        key: value for key, value, default in zip(("alpha", "beta"), values, DEFAULTS[name]) if default is not None
    }
    return x._replace(name=graph.node(name, [x.name], f"{prefix}{type(layer).__name__}", **attributes))


def _dropout(graph, layer, x, prefix):
    """Add nothing, as dropout is the identity in inference."""
    return x


def _layer_norm(graph, layer, x, prefix):
    """Add LayerNormalization."""
    weights = layer.state_dict()
    inputs = [x.name, *(graph.weight(f"{prefix}{name}", weights[name]) for name in ("weight", "bias"))]
    return x._replace(name=graph.node("LayerNormalization", inputs, f"{prefix}LayerNorm", axis=-1, epsilon=layer.eps))


def _softmax(graph, layer, x, prefix):
    """Add Softmax."""
    if layer.dim != -1 and x.swapped:
        x = swap(graph, x, f"{prefix}unswapped")
    return x._replace(name=graph.node("Softmax", [x.name], f"{prefix}Softmax", axis=layer.dim))


def _channels(layer, rank):
    """Return the axis of the channels, from the end, for an input of so many axes; a Conv1d has two without a batch."""
    has_time = rank == 3 or isinstance(layer, nn.Conv1d)
    return -2 if has_time and not layer.channels_last else -1


def _conv1d(graph, layer, x, prefix):
    """Add Conv, between transpositions with channels_last, and with a batch axis if x has none."""
    if x.swapped:
        x = swap(graph, x, f"{prefix}unswapped")
    name, weights, last = x.name, layer.state_dict(), layer.channels_last
    if len(x.shape) == 2:
        name = graph.node("Unsqueeze", [name, graph.integers(0)], f"{prefix}batched")
    if last:
        name = graph.node("Transpose", [name], f"{prefix}channels_first", perm=[0, 2, 1])
    inputs = [name, *(graph.weight(f"{prefix}{key}", array) for key, array in weights.items())]
    attributes = {
        "strides": [layer.stride],
        "dilations": [layer.dilation],
        "pads": layer.margins,
        "group": layer.groups,
    }
    name = graph.node("Conv", inputs, f"{prefix}Conv1d", kernel_shape=[layer.kernel_size], **attributes)
    if last:
        name = graph.node("Transpose", [name], f"{prefix}channels_last", perm=[0, 2, 1])
    if len(x.shape) == 2:
        name = graph.node("Squeeze", [name, graph.integers(0)], f"{prefix}without_batch")
    steps = x.shape[-2 if last else -1] if layer.padding == "same" else f"{prefix}steps"
    sizes = (steps, layer.out_channels) if last else (layer.out_channels, steps)
    return Value(name, (*x.shape[:-2], *sizes))


def _batch_norm(graph, layer, x, prefix):
    """Add BatchNormalization, between transpositions if the channels are behind the time."""
    if x.swapped and not layer.channels_last:
        x = swap(graph, x, f"{prefix}unswapped")
    turns = layer.channels_last and len(x.shape) == 3
    name, weights = x.name, layer.state_dict()
    if turns:
        name = graph.node("Transpose", [name], f"{prefix}channels_first", perm=[0, 2, 1])
    inputs = [name, *(graph.weight(f"{prefix}{key}", array) for key, array in weights.items())]
    name = graph.node("BatchNormalization", inputs, f"{prefix}BatchNorm1d", epsilon=layer.eps)
    if turns:
        name = graph.node("Transpose", [name], f"{prefix}channels_last", perm=[0, 2, 1])
    return x._replace(name=name)


def _cell(graph, layer, x, prefix, initial=None, last=()):
    """Add the node of a recurrent layer with one time step."""
    zero = graph.integers(0)
    steps = Value(graph.node("Unsqueeze", [x.name, zero], f"{prefix}step"), (1, *x.shape))
    before = [graph.node("Unsqueeze", [name, zero], f"{name}_of_layer") for name in initial or ()]
    after = [f"{name}_of_layer" for name in last]
    y = _recurrent(graph, layer.layer, steps, prefix, before, after)
    for name, value in zip(last, after, strict=True):
        graph.node("Squeeze", [value, zero], name)
    return Value(graph.node("Squeeze", [y.name, zero], f"{prefix}h"), (x.shape[0], layer.hidden_size))


def swap(graph, x, name):
    """Swap the first two axes of x."""
    return Value(
        graph.node("Transpose", [x.name], name, perm=[1, 0, *range(2, len(x.shape))]),
        (x.shape[1], x.shape[0], *x.shape[2:]),
        not x.swapped,
    )


def _recurrent(graph, layer, x, prefix, initial=None, last=()):
    """Add a node for each layer of a stack.

    `initial` holds the names of the initial states, None for zeros, and `last` those that the last states get.
    """
    if layer.proj_size:
        raise UnsupportedError(f"{layer!r}: ONNX's LSTM has no projection (proj_size)")
    if x.swapped != layer.batch_first:
        x = swap(graph, x, f"{prefix}transposed")
    time, batch, _ = x.shape
    before = [_split(graph, name, layer.num_layers) for name in initial or [""] * len(letters(layer))]
    after = []
    for k in range(layer.num_layers):
        name = f"{prefix}{layer.kind}_l{k}"
        last_only = k == layer.num_layers - 1 and not layer.return_sequences
        ends = list(last) if layer.num_layers == 1 else [f"{name}.{letter}" for letter in letters(layer) if last]
        ends = ends or [f"{name}.h"] * last_only
        graph.node(
            layer.kind,
            _inputs(graph, layer, x, prefix, k, [parts[k] for parts in before]),
            name,
            *ends,
            **_attributes(layer),
        )
        merged = _merged(graph, layer, ends[0] if last_only else name, name, 0 if last_only else 1)
        x = Value(
            merged,
            (batch, layer.merged_size) if last_only else (time, batch, layer.merged_size),
            layer.batch_first and not last_only,
        )
        after.append(ends)
    if layer.num_layers > 1:
        for name, parts in zip(last, zip(*after)):
            graph.node("Concat", parts, name, axis=0)
    return x


def letters(layer):
    """Return the letters of a recurrent layer's states: "h" or "hc"."""
    return "hc" if layer.kind == "LSTM" else "h"


def _split(graph, name, count):
    """Split a state into the parts of the layers of a stack, and return their names."""
    if not name or count == 1:
        return [name] * count
    parts = [f"{name}_l{k}" for k in range(count)]
    graph.node("Split", [name], *parts, axis=0, num_outputs=count)
    return parts


def _inputs(graph, layer, x, prefix, k, states):
    """Return the inputs of a recurrent node: X, W, R, B, sequence_lens, initial_h, initial_c, P."""
    parameters = layer.state_dict()
    cells = [
        convert.to_onnx(layer.kind, parameters, convert.suffix(k, d)) for d in range(len(layer.reversed_directions))
    ]

    def stacked(key):
        """Add the weights of all directions as one array."""
        arrays = [cell[key] for cell in cells]
        return "" if arrays[0] is None else graph.weight(f"{prefix}{key}_l{k}", np.stack(arrays))

    inputs = [x.name, stacked("W"), stacked("R"), stacked("B"), graph.lengths, *states]
    if layer.peepholes:
        inputs.append(stacked("P"))
    while not inputs[-1]:
        inputs.pop()
    return inputs


def _attributes(layer):
    """Return hidden_size and those attributes of a recurrent node that are not ONNX's defaults."""
    directions = len(layer.reversed_directions)
    attributes = {"hidden_size": layer.hidden_size} | {
        key: int(value) for key, value in layer.cell_options.items() if value
    }
    if directions == 2 or layer.reverse:
        attributes["direction"] = "bidirectional" if directions == 2 else "reverse"
    if layer.clip is not None:
        attributes["clip"] = layer.clip
    triples = [triple for triples in layer.resolved_activations for triple in triples]
    if layer.resolved_activations != (resolve(type(layer).default_activations),) * directions:
        attributes["activations"] = [name for name, _, _ in triples]
        for i, key in enumerate(("activation_alpha", "activation_beta")):
            values = [triple[1 + i] for triple in triples if DEFAULTS[triple[0]][i] is not None]
            if values:
                attributes[key] = values
    return attributes


def _merged(graph, layer, value, name, axis):
    """Merge the directions of Y [T, D, B, H] or Y_h [D, B, H]; `axis` is that of the directions."""
    if len(layer.reversed_directions) == 1:
        return graph.node("Squeeze", [value, graph.integers(axis)], f"{name}.y")
    if layer.merge in REDUCTIONS:
        return graph.node(REDUCTIONS[layer.merge], [value, graph.integers(axis)], f"{name}.y", keepdims=0)
    moved = graph.node("Transpose", [value], f"{name}.moved", perm=[0, 2, 1, 3] if axis else [1, 0, 2])
    return graph.node("Reshape", [moved, graph.integers(*[0] * (1 + axis), layer.merged_size)], f"{name}.y")


FORMS: dict[type[nn.Module], Any] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Dropout: _dropout,
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys(
        (nn.ELU, nn.Hardsigmoid, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh), _activation
    ),
    nn.Softmax: _softmax,
    nn.Conv1d: _conv1d,
    nn.BatchNorm1d: _batch_norm,
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent),
    **dict.fromkeys((nn.RNNCell, nn.LSTMCell, nn.GRUCell), _cell),
}
"""Layer class -> function(graph, layer, x, prefix) that adds the layer's nodes and returns its output."""
