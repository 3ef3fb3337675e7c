"""Replaces what a graph does to the steps of a sequence, one by one, by what it does to the whole sequence at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rnnfast.onnx.cells.affine import ACTIVATIONS, Values
from rnnfast.onnx.cells.new_nodes import NewNodes, live
from rnnfast.onnx.graph import Graph, Node, in_order

UNARY = {*ACTIVATIONS, "Exp", "Identity", "Neg", "Sqrt"}
BINARY = {"Add", "Div", "Mul", "Sub"}
MAX_READERS = 32  # of one step, among which those that do the same are looked for


class Steps(NamedTuple):
    """Values of all steps of a sequence.

    whole: the name of the tensor whose slices along axis 0 they are. names: their names. ones: axes of each that are
    known to have length 1.
    """

    whole: str
    names: tuple[str, ...]
    ones: frozenset[int] = frozenset()


def lifted(values: Values) -> Graph | None:
    """The graph with joined steps computed at once; None if no node joins all steps of a sequence."""
    lifting = _Lifting(values)
    waiting = list(lifting.sequences())
    while waiting:
        waiting += lifting.follow(waiting.pop())
    if not lifting.ends:
        return None
    graph = values.graph
    constants = dict(graph.constants)
    nodes = [node for node in graph.nodes if lifting.ends.isdisjoint(node.outputs)]
    for new in lifting.new:
        nodes += new.nodes
        constants |= new.constants
    nodes = in_order(live(nodes, graph), "the steps of a sequence")
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=constants)


class _Lifting:
    """Follows the steps of sequences to the nodes that join them. ends: the names of what these give."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.readers: dict[str, list[Node]] = {}
        for node in values.graph.nodes:
            for name in set(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self.new: list[NewNodes] = []
        self.ends: set[str] = set()

    def sequences(self) -> Iterator[Steps]:
        """The tensors of which a graph takes each slice along axis 0."""
        taken: dict[str, dict[int, str]] = {}
        for node in self.values.graph.nodes:
            if node.op_type == "Gather" and not node.domain and node.attributes.get("axis", 0) == 0:
                found = self.values.slice_taken(node.outputs[0])
                if found is not None and isinstance(found[2], int):
                    taken.setdefault(node.inputs[0], {}).setdefault(found[2], node.outputs[0])
        for whole, names in taken.items():
            shape = self.values.fact(whole).shape
            length = None if shape is None else shape[0]
            if isinstance(length, int) and length > 1 and all(t in names for t in range(length)):
                yield Steps(whole, tuple(names[t] for t in range(length)))

    def follow(self, steps: Steps) -> Iterator[Steps]:
        """Do at once what is done to all steps; the results are steps again."""
        readers = self.readers.get(steps.names[0], ())
        for node in readers if len(readers) <= MAX_READERS else ():
            if node.domain or node.graphs or not set(node.outputs).isdisjoint(self.ends):
                continue
            if self._join(node, steps) or len(node.outputs) != 1 or node.inputs.count(steps.names[0]) != 1:
                continue
            if self.values.fact(node.outputs[0]).shape is None:
                continue  # Perhaps it fails.
            place = node.inputs.index(steps.names[0])
            alike = [self._like(node, place, name) for name in steps.names]
            results = [other.outputs[0] for other in alike if other is not None]
            if len(set(results)) < len(steps.names):
                continue
            new = NewNodes(node, node.outputs[0])
            whole, ones = self._lift(new, node, place, steps)
            if whole is not None:
                self.new.append(new)
                yield Steps(whole, tuple(results), ones)

    def _like(self, node: Node, place: int, name: str) -> Node | None:
        """The node that does to a step what another node does to the first one."""
        readers = self.readers.get(name, ())
        for other in readers if len(readers) <= MAX_READERS else ():
            if (
                other.op_type == node.op_type
                and other.domain == node.domain
                and len(other.inputs) == len(node.inputs)
                and other.inputs[place] == name
                and self._same(other.attributes, node.attributes)
                and all(i == place or self._equal(a, b) for i, (a, b) in enumerate(zip(other.inputs, node.inputs)))
            ):
                return other
        return None

    def _equal(self, name: str, other: str) -> bool:
        """Return whether two names are the same value or equal constants."""
        if name == other:
            return True
        a, b = (self.values.constant(n) if n else None for n in (name, other))
        return a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)

    @staticmethod
    def _same(some: dict[str, object], others: dict[str, object]) -> bool:
        return some.keys() == others.keys() and all(
            type(a) is type(others[name]) and not isinstance(a, np.ndarray) and a == others[name]
            for name, a in some.items()
        )

    def _lift(self, new: NewNodes, node: Node, place: int, steps: Steps) -> tuple[str | None, frozenset[int]]:
        """Add the node that does at once what a node does to one step; return (its result or None, its ones)."""
        whole, constants = steps.whole, [self.values.constant(n) if n else None for n in node.inputs]
        if node.op_type in UNARY:
            return new.add(node.op_type, [whole], **node.attributes), steps.ones
        if node.op_type in BINARY:
            other = constants[1 - place]
            if other is None or other.ndim > 1 or node.attributes:
                return None, frozenset()
            inputs = [whole if i == place else name for i, name in enumerate(node.inputs)]
            return new.add(node.op_type, inputs), frozenset() if other.ndim else steps.ones
        if node.op_type == "MatMul" and place == 0 and constants[1] is not None and constants[1].ndim == 2:
            return new.add("MatMul", [whole, node.inputs[1]]), frozenset()
        if node.op_type == "Gemm" and place == 0:
            return self._gemm(new, node, whole, constants), frozenset()
        if node.op_type == "Unsqueeze" and place == 0:
            axes = node.attributes.get("axes") if len(node.inputs) < 2 else constants[1]
            if axes is not None and np.size(axes) == 1 and int(np.ravel(axes)[0]) >= 0:
                axis = int(np.ravel(axes)[0])
                ones = {one + (one >= axis) for one in steps.ones} | {axis}
                return new.with_axis(whole, axis + 1), frozenset(ones)
        return None, frozenset()

    def _gemm(self, new: NewNodes, node: Node, whole: str, constants: list[np.ndarray | None]) -> str | None:
        settings = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | node.attributes
        b, c = (*constants, None)[1:3]
        given = len(node.inputs) > 2 and node.inputs[2] != ""
        if b is None or given and (c is None or c.ndim > 1) or settings["transA"]:
            return None
        if settings["alpha"] != 1 or settings["beta"] != 1:
            return None
        weight = new.constant("transposed", np.ascontiguousarray(b.T)) if settings["transB"] else node.inputs[1]
        product = new.add("MatMul", [whole, weight])
        return new.add("Add", [product, node.inputs[2]]) if given else product

    def _join(self, node: Node, steps: Steps) -> bool:
        """Replace a node that joins all steps in their order; return whether it is such a node."""
        shape = self.values.fact(steps.names[0]).shape
        if node.inputs != steps.names or shape is None or node.op_type == "Concat" and not shape:
            return False
        rank = len(shape)
        new, whole = NewNodes(node, node.outputs[0]), steps.whole
        if node.op_type == "Concat":
            axis = node.attributes["axis"] % rank
            if axis not in steps.ones or self.values.fact(node.outputs[0]).shape is None:
                return False
            whole, rank = new.without_axis(whole, axis + 1), rank - 1
            joined = node.outputs[0]
        elif node.op_type == "SequenceConstruct" and len(self.readers.get(node.outputs[0], ())) == 1:
            (reader,) = self.readers[node.outputs[0]]
            if reader.op_type != "ConcatFromSequence" or not reader.attributes.get("new_axis"):
                return False
            if not -rank - 1 <= reader.attributes["axis"] <= rank:
                return False
            axis, joined = reader.attributes["axis"] % (rank + 1), reader.outputs[0]
        else:
            return False
        order = [*range(1, rank + 1)]
        order.insert(axis, 0)
        new.add("Transpose", [whole], [joined], perm=tuple(order))
        self.new.append(new)
        self.ends.add(joined)
        return True
