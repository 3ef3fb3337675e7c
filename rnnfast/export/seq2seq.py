"""Export of a Seq2Seq as two ONNX models: the encoder, and one step of the decoder."""

from __future__ import annotations

import os

import numpy as np
from onnx import TensorProto

from rnnfast.errors import InputError, InputTypeError, raise_if_from_handler
from rnnfast.export.layers import Graph, Value, swap

LOWEST = np.finfo(np.float32).min
"""The score of positions after a source's length."""


def export_seq2seq(net, folder):
    """Write encoder.onnx and decoder_step.onnx; `Seq2Seq.save` documents their inputs and outputs."""
    graphs = {"encoder": encoder(net), "decoder_step": decoder_step(net)}
    try:
        os.makedirs(folder, exist_ok=True)
    except TypeError:
        raise InputTypeError(f"path: {folder!r} is no path") from None
    except OSError as error:
        raise_if_from_handler(error)
        raise InputError(f"{folder} is no folder, nor can it be made one: {error.strerror}") from error
    for name, graph in graphs.items():
        graph.finish(f"{name} of {net!r}", os.path.join(folder, f"{name}.onnx"), net)


def encoder(net):
    """Return the Graph of the encoder: source, lengths -> memory, keys, h0, c0."""
    graph, layers = Graph(lengths=True), net.members()
    axes = ("batch", "source_time")
    x = Value(graph.input("source", TensorProto.INT64, axes), axes)
    graph.input("lengths", TensorProto.INT32, ["batch"])
    x = graph.add(layers["source_embedding"], x, "source_embedding")
    first = [f"{letter}0" for letter in net.state_names()]
    last = [f"encoder.{letter}n" for letter in net.state_names()] if net.bidirectional else first
    x = swap(graph, graph.add(layers["encoder"], x, "encoder", last=last), "memory")
    graph.output("memory", x.name, x.shape)
    if "key" in layers["attention"].members():
        keys = graph.add(layers["attention"].members()["key"], x._replace(name="memory"), "attention.key")
        graph.output("keys", keys.name, keys.shape)
    for letter, name, state in zip(net.state_names(), first, last):
        if net.bidirectional:
            bridge = layers[f"bridge_{letter}"]
            state = graph.node("Transpose", [state], f"{state}_by_batch", perm=[1, 0, 2])
            state = graph.node("Reshape", [state, graph.integers(0, bridge.in_features)], f"{state}_flat")
            state = graph.add(bridge, Value(state, ("batch", bridge.in_features)), f"bridge_{letter}").name
            sizes = graph.integers(0, net.num_layers, net.hidden_size)
            state = graph.node("Reshape", [state, sizes], f"{name}_by_batch")
            graph.node("Transpose", [state], name, perm=[1, 0, 2])
        graph.output(name, name, (net.num_layers, "batch", net.hidden_size))
    return graph


def decoder_step(net):
    """Return the Graph of a decoder step: token, lengths, memory, keys, h0, c0 -> logits, hn, cn, attention."""
    graph, layers = Graph(), net.members()
    x = Value(graph.input("token", TensorProto.INT64, ["batch"]), ("batch",))
    graph.input("lengths", TensorProto.INT32, ["batch"])
    attention = layers["attention"]
    axes = ("batch", "source_time")
    memory = keys = _input(graph, "memory", (*axes, attention.memory_size))
    if "key" in attention.members():
        keys = _input(graph, "keys", (*axes, attention.query_size))
    shape = (net.num_layers, "batch", net.hidden_size)
    before = [_input(graph, f"{letter}0", shape).name for letter in net.state_names()]
    after = [f"{letter}n" for letter in net.state_names()]

    x = graph.add(layers["target_embedding"], x, "target_embedding")
    x = Value(graph.node("Unsqueeze", [x.name, graph.integers(0)], "step"), (1, *x.shape), swapped=True)
    query = swap(graph, graph.add(layers["decoder"], x, "decoder", initial=before, last=after), "query")
    weights = _weights(graph, attention, query, keys)
    context = graph.node("MatMul", [weights, memory.name], "context")
    joint = graph.node("Concat", [query.name, context], "query_and_context", axis=2)
    joint = graph.node("Squeeze", [joint, graph.integers(1)], "joint")
    y = graph.add(layers["combine"], Value(joint, ("batch", layers["combine"].in_features)), "combine")
    y = y._replace(name=graph.node("Tanh", [y.name], "tanh"))
    y = graph.add(layers["output"], y, "output")

    graph.output("logits", y.name, y.shape)
    for name in after:
        graph.output(name, name, shape)
    graph.output("attention", graph.node("Squeeze", [weights, graph.integers(1)], "attention"), axes)
    return graph


def _input(graph, name, shape):
    """Add a float32 input."""
    return Value(graph.input(name, TensorProto.FLOAT, shape), shape)


def _weights(graph, attention, query, keys):
    """Add the attention weights [batch, 1, source_time]: a softmax within the lengths, zeros after them."""
    layers = attention.members()
    if attention.score == "dot":
        turned = graph.node("Transpose", [keys.name], "attention.key_turned", perm=[0, 2, 1])
        scores = graph.node("MatMul", [query.name, turned], "attention.scores")
    else:
        query = graph.add(layers["query"], query, "attention.query")
        hidden = graph.node("Tanh", [graph.node("Add", [query.name, keys.name], "attention.sum")], "attention.hidden")
        scores = graph.add(layers["score"], Value(hidden, keys.shape), "attention.score").name
        scores = graph.node("Transpose", [scores], "attention.scores", perm=[0, 2, 1])

    sizes = graph.node("Shape", [keys.name], "attention.sizes")
    zero, one = graph.weight("zero", np.array(0)), graph.weight("one", np.array(1))
    positions = graph.node(
        "Range", [zero, graph.node("Gather", [sizes, one], "attention.source_time"), one], "attention.positions"
    )
    ends = graph.node("Cast", ["lengths"], "attention.lengths", to=TensorProto.INT64)
    ends = graph.node("Unsqueeze", [ends, graph.integers(1, 2)], "attention.ends")
    within = graph.node("Less", [positions, ends], "attention.within")
    lowest = graph.weight("lowest", np.array(LOWEST, np.float32))
    masked = graph.node("Where", [within, scores, lowest], "attention.masked")
    weights = graph.node("Softmax", [masked], "attention.softmax", axis=-1)
    mask = graph.node("Cast", [within], "attention.mask", to=TensorProto.FLOAT)
    return graph.node("Mul", [weights, mask], "attention.weights")
