"""A graph that runs over whole sequences -> one that runs over parts of them, with the states of its recurrent nodes as
inputs and outputs."""

import dataclasses

import numpy as np

from rnnfast.errors import UnsupportedError
from rnnfast.onnx import ops, recurrent_nodes
from rnnfast.onnx.graph import Node, Type, Value

# The input that says how many frames there are of each sequence.
LENGTHS = "sequence_lens of a part"


def is_recurrent(node):
    return not node.domain and node.op_type in recurrent_nodes.KINDS


def unfolded(graph, calls, batch):
    """(Graph, {state input: state output}, {state input: initial value}) of a folded Graph.

    calls: id of each recurrent node -> its inputs in several calls for one sequence; batch: what the axis of the
    sequences is called in the types of the states. All recurrent nodes have the input LENGTHS for their sequence_lens.
    UnsupportedError for a node that runs backwards, or begins with states that depend on the sequence.
    """
    states = _States(calls, batch)
    nodes, inputs, outputs = states.add(graph)
    lengths = Value(LENGTHS, Type("tensor", np.dtype(np.int32), (batch,)))
    graph = dataclasses.replace(
        graph, nodes=nodes, inputs=(*graph.inputs, *inputs, lengths), outputs=(*graph.outputs, *outputs)
    )
    return graph, {i.name: o.name for i, o in zip(inputs, outputs)}, states.initial


class _States:
    """initial: state input -> its value for one sequence, of all nodes that were added."""

    def __init__(self, calls, batch):
        self.calls, self.batch, self.initial = calls, batch, {}

    def add(self, graph):
        """(nodes, inputs, outputs) of a graph, of the last two those that are new."""
        nodes, inputs, outputs = [], [], []
        for node in graph.nodes:
            if is_recurrent(node):
                made = self.recurrent(node)
            elif node.function is None:
                made = self.call(node)
            elif (inner := _recurrent_within(node)) is not None:
                raise UnsupportedError(f"{inner.where}: it is in a graph of {node.where}")
            else:
                made = [node], (), ()
            for all_, new in zip((nodes, inputs, outputs), made):
                all_ += new
        return tuple(nodes), inputs, outputs

    def recurrent(self, node):
        direction = node.attributes.get("direction", "forward")
        if direction != "forward":
            raise UnsupportedError(f"{node.where}: attribute 'direction' = {direction!r}")
        calls = self.calls.get(id(node))
        if calls is None:
            raise UnsupportedError(f"{node.where}: it does not depend on the sequence")
        names, made = [*node.inputs, *[""] * 8][:8], [*node.outputs, "", ""][:3]
        names[4], copies, inputs, outputs = LENGTHS, [], [], []
        X, _, R = calls[0][:3]
        H = R.shape[2]
        shape = (self.batch, 1, H) if node.attributes.get("layout") else (1, self.batch, H)
        for i, which in ((5, "initial_h"), (6, "initial_c"))[: 1 + (node.op_type == "LSTM")]:
            values = [call[i] if len(call) > i else None for call in calls]
            if any(value is not None and value.tobytes() != values[0].tobytes() for value in values):
                raise UnsupportedError(f"{node.where}: {which} depends on the sequence")
            before, after = (f"{which} {side} {len(self.initial)}" for side in ("before", "after"))
            self.initial[before] = np.zeros((1, 1, H), X.dtype) if values[0] is None else values[0]
            names[i] = before
            if made[i - 4]:
                copies.append(
                    Node(node.where, "", "", "Identity", (made[i - 4],), (after,), ops.lookup("", "Identity", 13), {})
                )
            else:
                made[i - 4] = after
            type_ = Type("tensor", X.dtype, shape)
            inputs.append(Value(before, type_))
            outputs.append(Value(after, type_))
        while not names[-1]:
            names.pop()
        node = dataclasses.replace(
            node, inputs=tuple(names), outputs=tuple(made), run=recurrent_nodes.with_states(node)
        )
        return [node, *copies], inputs, outputs

    def call(self, node):
        """A function's body takes and gives what is new behind its own inputs and outputs."""
        body = node.attributes["body"]
        nodes, inputs, outputs = self.add(body)
        names = (*node.inputs, *[""] * (len(body.inputs) - len(node.inputs)), *(v.name for v in inputs), LENGTHS)
        made = (*node.outputs, *[""] * (len(body.outputs) - len(node.outputs)), *(v.name for v in outputs))
        body = dataclasses.replace(
            body,
            nodes=nodes,
            inputs=(*body.inputs, *inputs, Value(LENGTHS, Type("tensor"))),
            outputs=(*body.outputs, *outputs),
        )
        node = dataclasses.replace(node, inputs=names, outputs=made, attributes=node.attributes | {"body": body})
        return [node], inputs, outputs


def _recurrent_within(node):
    """A recurrent node in the branches or loop bodies of a node, or None."""
    for graph in node.graphs.values():
        for inner in graph.nodes:
            found = inner if is_recurrent(inner) else _recurrent_within(inner)
            if found is not None:
                return found
    return None
