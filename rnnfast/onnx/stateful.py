"""Makes the recurrent states of a graph inputs and outputs, so that it runs over parts of sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnfast.errors import UnsupportedError
from rnnfast.onnx import ops, recurrent_nodes
from rnnfast.onnx.graph import Graph, Node, Type, Value

# Name of the input that gives the number of frames of each sequence.
LENGTHS = "sequence_lens of a part"


def is_recurrent(node: Node) -> bool:
    """Return whether a node is an RNN, GRU or LSTM."""
    return not node.domain and node.op_type in recurrent_nodes.CELL_KINDS


def with_state_inputs(
    graph: Graph, calls: Mapping[int, list[Any]], batch: str
) -> tuple[Graph, dict[str, str], dict[str, np.ndarray]]:
    """Make the states of a folded graph inputs and outputs.

    Returns the new graph, its state pairs, and the initial value of each state input for one sequence. All recurrent
    nodes take their sequence_lens from the new input LENGTHS. Raises UnsupportedError for a recurrent node that runs
    backwards, or whose initial states depend on the sequence.

    calls: for the id of each recurrent node its inputs in several calls with one sequence. batch: the name of the
    batch axis in the types of the states.
    """
    builder = _StateInputBuilder(calls, batch)
    nodes, inputs, outputs = builder.add(graph)
    lengths = Value(LENGTHS, Type("tensor", np.dtype(np.int32), (batch,)))
    graph = dataclasses.replace(
        graph, nodes=nodes, inputs=(*graph.inputs, *inputs, lengths), outputs=(*graph.outputs, *outputs)
    )
    return graph, {i.name: o.name for i, o in zip(inputs, outputs)}, builder.initial


class _StateInputBuilder:
    """Rewrites recurrent nodes to nodes whose states are inputs and outputs of the graph, and function calls to calls
    that hand these on.

    initial: the initial value of each state input so far, for one sequence.
    """

    def __init__(self, calls: Mapping[int, list[Any]], batch: str) -> None:
        self.calls, self.batch = calls, batch
        self.initial: dict[str, np.ndarray] = {}

    def add(self, graph: Graph) -> tuple[tuple[Node, ...], list[Value], list[Value]]:
        """The new nodes of a graph, and the state inputs and outputs that it gets."""
        nodes: list[Node] = []
        inputs: list[Value] = []
        outputs: list[Value] = []
        for node in graph.nodes:
            if is_recurrent(node):
                new_nodes, new_inputs, new_outputs = self._recurrent(node)
            elif node.function is None:
                new_nodes, new_inputs, new_outputs = self._call(node)
            elif (inner := _recurrent_within(node)) is not None:
                raise UnsupportedError(f"{inner.where}: it is in a graph of {node.where}")
            else:
                new_nodes, new_inputs, new_outputs = [node], [], []
            nodes += new_nodes
            inputs += new_inputs
            outputs += new_outputs
        return tuple(nodes), inputs, outputs

    def _recurrent(self, node: Node) -> tuple[list[Node], list[Value], list[Value]]:
        """A recurrent node with its states as inputs and outputs, and copies of outputs that have other names."""
        direction = node.attributes.get("direction", "forward")
        if direction != "forward":
            raise UnsupportedError(f"{node.where}: attribute 'direction' = {direction!r}")
        calls = self.calls.get(id(node))
        if calls is None:
            raise UnsupportedError(f"{node.where}: it does not depend on the sequence")
        input_names, output_names = [*node.inputs, *[""] * 8][:8], [*node.outputs, "", ""][:3]
        input_names[4] = LENGTHS
        copies, inputs, outputs = [], [], []
        X, _, R = calls[0][:3]
        H = R.shape[2]
        shape = (self.batch, 1, H) if node.attributes.get("layout") else (1, self.batch, H)
        for i, which in ((5, "initial_h"), (6, "initial_c"))[: 1 + (node.op_type == "LSTM")]:
            values: list[Any] = [call[i] if len(call) > i else None for call in calls]
            if any(value is not None and value.tobytes() != values[0].tobytes() for value in values):
                raise UnsupportedError(f"{node.where}: {which} depends on the sequence")
            before, after = (f"{which} {side} {len(self.initial)}" for side in ("before", "after"))
            self.initial[before] = np.zeros((1, 1, H), X.dtype) if values[0] is None else values[0]
            input_names[i] = before
            made = output_names[i - 4]
            if made:  # the graph uses this output under its own name
                copies.append(
                    Node(node.where, "", "", "Identity", (made,), (after,), ops.lookup("", "Identity", 13), {})
                )
            else:
                output_names[i - 4] = after
            type_ = Type("tensor", X.dtype, shape)
            inputs.append(Value(before, type_))
            outputs.append(Value(after, type_))
        while not input_names[-1]:
            input_names.pop()
        node = dataclasses.replace(
            node,
            inputs=tuple(input_names),
            outputs=tuple(output_names),
            run=recurrent_nodes.without_constant_states(node),
        )
        return [node, *copies], inputs, outputs

    def _call(self, node: Node) -> tuple[list[Node], list[Value], list[Value]]:
        """A call of a function whose body takes the new inputs and outputs behind its own."""
        body = node.attributes["body"]
        nodes, inputs, outputs = self.add(body)
        input_names = (*node.inputs, *[""] * (len(body.inputs) - len(node.inputs)), *(v.name for v in inputs), LENGTHS)
        output_names = (*node.outputs, *[""] * (len(body.outputs) - len(node.outputs)), *(v.name for v in outputs))
        body = dataclasses.replace(
            body,
            nodes=nodes,
            inputs=(*body.inputs, *inputs, Value(LENGTHS, Type("tensor"))),
            outputs=(*body.outputs, *outputs),
        )
        attributes = node.attributes | {"body": body}
        node = dataclasses.replace(node, inputs=input_names, outputs=output_names, attributes=attributes)
        return [node], inputs, outputs


def _recurrent_within(node: Node) -> Node | None:
    """A recurrent node in the branches or loop bodies of a node, or None."""
    for graph in node.graphs.values():
        for inner in graph.nodes:
            found = inner if is_recurrent(inner) else _recurrent_within(inner)
            if found is not None:
                return found
    return None
