"""The nodes that are put in the place of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast.onnx import ops
from rnnfast.onnx.cells.steps import Step
from rnnfast.onnx.graph import Graph, Node

OPSET = 14  # whose operators are added
MARK = " (cell: "  # in the names of values that are added


def recognised_as(op_type: str) -> str:
    """The end of the location of a node that is put in the place of others."""
    return f", recognised as {op_type}"


class NewNodes:
    """Nodes and constants that are added to a graph.

    like: the node whose place they take. label: what their names begin with.
    """

    def __init__(self, like: Node, label: str) -> None:
        self.like, self.label = like, label
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def name(self, what: str) -> str:
        """A name of a value that no graph has in which cells are looked for."""
        return f"{self.label}{MARK}{what})"

    def constant(self, what: str, array: np.ndarray) -> str:
        """Add a constant and return its name."""
        name = self.name(what)
        array.flags.writeable = False
        self.constants.setdefault(name, array)
        return name

    def add(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        outputs = outputs or [self.name(f"{op_type} {len(self.nodes)}")]
        function = ops.lookup("", op_type, OPSET)
        node = Node(
            self.like.where + recognised_as(op_type),
            self.like.name,
            "",
            op_type,
            tuple(inputs),
            tuple(outputs),
            function,
            attributes,
        )
        self.nodes.append(node)
        return outputs[0]

    def with_axis(self, name: str, axis: int) -> str:
        """Add an Unsqueeze."""
        return self.add("Unsqueeze", [name, self.constant(f"axis {axis}", np.array([axis]))])

    def without_axis(self, name: str, axis: int, outputs: Sequence[str] = ()) -> str:
        """Add a Squeeze."""
        return self.add("Squeeze", [name, self.constant(f"axis {axis}", np.array([axis]))], outputs)

    def with_rows_of_all(self, values: Sequence[str]) -> list[str]:
        """Repeat the rows of values [.., B, ..] with one row, where others have more, as elementwise operators do.

        The sum that says how many rows there are is never computed, because nothing but its shape is read.
        """
        bounds = [np.array([0, 0]), np.array([1, 1]), np.array([0, 2])]
        names = [self.constant(f"bounds {i}", bound) for i, bound in enumerate(bounds)]
        total, *others = (self.add("Slice", [value, *names]) for value in values)
        for other in others:
            total = self.add("Add", [total, other])
        shape = self.add("Shape", [total])
        return [self.add("Expand", [value, shape]) for value in values]

    def recurrent(
        self, step: Step, weights: dict[str, np.ndarray], x: str, states: Sequence[str], direction: str = "forward"
    ) -> list[str]:
        """Add the recurrent node of a cell with the outputs Y, Y_h and for an LSTM Y_c; return their names.

        weights: W, R, B and perhaps P. x: the input [T, B, I]. states: the initial states [1, B, H].
        """
        attributes: dict[str, Any] = {"hidden_size": weights["R"].shape[2], "direction": direction}
        attributes["activations"] = tuple(a.name for a in step.activations)
        for key, index in (("activation_alpha", 0), ("activation_beta", 1)):
            values = [a.parameters[index] for a in step.activations if len(a.parameters) > index]
            if values:
                attributes[key] = tuple(values)
        if step.kind == "GRU":
            attributes["linear_before_reset"] = int(step.recurrent is not None)
        given = [x, *(self.constant(name, weights[name]) for name in "WRB"), "", *states]
        if "P" in weights:
            given.append(self.constant("P", weights["P"]))
        outputs = [self.name(what) for what in ("Y", "Y_h", "Y_c")[: 3 if step.kind == "LSTM" else 2]]
        self.add(step.kind, given, outputs, **attributes)
        return outputs


def live(nodes: Sequence[Node], graph: Graph) -> list[Node]:
    """The nodes that the outputs of a graph need, whatever their order."""
    makers = {name: node for node in nodes for name in node.outputs if name}
    waiting, wanted = [v.name for v in graph.outputs], set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and id(node) not in wanted:
            wanted.add(id(node))
            waiting += node.needs
    return [node for node in nodes if id(node) in wanted]
