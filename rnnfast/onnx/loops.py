"""Replaces loops, when a model is loaded, by simpler ones that give the same results.

Exporters write `for` and `while` loops in ways that cost time at each iteration: weights travel as states, results are
gathered in lists or in tensors that grow, and sequences of slices are cut before the loop. Each rule here holds for all
inputs of the node, errors included, and follows from the graph alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast.onnx import ops
from rnnfast.onnx.graph import Graph, Node, Type, Value
from rnnfast.onnx.ops.control import loop, scan_9
from rnnfast.onnx.ops.sequence import stack

MAX_SUMS = 16  # that an index goes through
OPSET = 21  # The operators that are added are those of this version.


class Scope:
    """The values that a graph sees: its own and those of the graphs around it."""

    def __init__(self, graph: Graph, around: Scope | None = None) -> None:
        self.graph, self.around, self.constants = graph, around, graph.constants
        self.makers = {name: node for node in graph.nodes for name in node.outputs if name}
        self.inputs = {v.name for v in graph.inputs}
        self.origins: dict[str, str] = {}

    @functools.cached_property
    def uses(self) -> Counter[str]:
        """How often each name is read in the graph: by nodes, by the graphs within it, and as an output."""
        uses = Counter(v.name for v in self.graph.outputs)
        for node in self.graph.nodes:
            uses.update(name for name in node.inputs if name)
            for inner in node.graphs.values():
                uses.update(inner.captures)
        return uses

    @functools.cached_property
    def joined(self) -> Counter[str]:
        """How often each list is read by a node that joins its members along a new axis."""
        return Counter(
            node.inputs[0]
            for node in self.graph.nodes
            if node.op_type == "ConcatFromSequence" and not node.domain and node.attributes.get("new_axis")
        )

    def origin(self, name: str) -> str:
        """The name of the value that Identity nodes of the graph copy to `name`."""
        copies = [name]
        while (node := self.makers.get(name)) is not None and node.op_type == "Identity" and not node.domain:
            name = self.origins.get(node.inputs[0], node.inputs[0])
            copies.append(name)
        self.origins.update(dict.fromkeys(copies, name))
        return name

    def unused(self, name: str) -> str:
        """This name, or a longer one, that no value has which the graph sees."""
        while self.has(name):
            name += "'"
        return name

    def has(self, name: str) -> bool:
        """Return whether the graph or one around it has a value of this name."""
        return self._defines(name) or self.around is not None and self.around.has(name)

    def maker(self, name: str) -> Node | None:
        """The node that makes a value; None for inputs, constants and absent values."""
        if name in self.makers:
            return self.makers[name]
        return None if self.around is None or self._defines(name) else self.around.maker(name)

    def constant(self, name: str) -> Any:
        """The array of a constant value, or None."""
        if name in self.constants:
            return self.constants[name]
        node = self.makers.get(name)
        if node is not None:
            if node.op_type != "Constant" or node.domain or node.function is None:
                return None
            return node.function(**node.attributes)
        return None if self.around is None or self._defines(name) else self.around.constant(name)

    def sees(self, name: str, other: str) -> bool:
        """Return whether a name means here what it means in a graph around this one, the one that defines `other`."""
        scope = self.around if not self._defines(name) and not self._defines(other) else None
        while scope is not None and not scope._defines(other):
            scope = None if scope._defines(name) else scope.around
        return scope is not None

    def _defines(self, name: str) -> bool:
        return name in self.inputs or name in self.constants or name in self.makers


def simplified(graph: Graph, around: Scope | None = None) -> Graph:
    """Return the graph with the loops in it, and in the graphs within it, replaced."""
    if not any(node.graphs for node in graph.nodes):
        return graph
    scope = Scope(graph, around)
    nodes: list[Node] = []
    stacked: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        if node.graphs:
            # The graph of a function sees no values around it.
            inner = None if node.function is None else scope
            node = node.altered(
                attributes=node.attributes | {name: simplified(g, inner) for name, g in node.graphs.items()}
            )
        if node.function in (loop, scan_9):
            nodes += _replaced(node, scope, stacked)
        elif node.op_type == "SequenceLength" and not node.domain:
            nodes += _counted(node, scope)
        else:
            nodes.append(node)
    for i, node in enumerate(nodes):
        if node.op_type == "ConcatFromSequence" and node.inputs[0] in stacked:
            attributes = stacked[node.inputs[0]] | {"axis": node.attributes["axis"]}
            nodes[i] = new_node(node, "Stack", node.inputs, node.outputs, **attributes)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def with_captures(graph: Graph) -> Graph:
    """Return the graph with the names that it takes from the graphs around it found anew."""
    used = {v.name for v in graph.outputs}.union(*(node.needs for node in graph.nodes))
    defined = graph.constants.keys() | {v.name for v in graph.inputs}.union(*(node.outputs for node in graph.nodes))
    return dataclasses.replace(graph, captures=frozenset(used - defined))


def new_node(like: Node, op_type: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any) -> Node:
    """A node of one of ONNX's operators that stands in the place of another node."""
    function = stack if op_type == "Stack" else ops.lookup("", op_type, OPSET)
    return Node(like.where, like.name, "", op_type, inputs, outputs, function, attributes)


def renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """Return a graph that reads other names, in the graphs within it too; names that these define stay."""
    nodes = []
    for node in graph.nodes:
        graphs = {}
        for key, inner in node.graphs.items():
            if node.function is not None:
                own = set(inner.constants).union((v.name for v in inner.inputs), *(n.outputs for n in inner.nodes))
                graphs[key] = renamed(inner, {old: new for old, new in names.items() if old not in own})
        if graphs:
            node = node.altered(attributes=node.attributes | graphs)
        nodes.append(dataclasses.replace(node, inputs=tuple(names.get(name, name) for name in node.inputs)))
    outputs = tuple(Value(names.get(v.name, v.name), v.type) for v in graph.outputs)
    return with_captures(dataclasses.replace(graph, nodes=tuple(nodes), outputs=outputs))


def defined_names(graph: Graph) -> Iterator[str]:
    """The names that a graph and the graphs within it define."""
    yield from (v.name for v in graph.inputs)
    yield from graph.constants
    for node in graph.nodes:
        yield from node.outputs
        for inner in node.graphs.values():
            yield from defined_names(inner)


# ------------------------------------------------------------------------------------------------ one loop
class States(NamedTuple):
    """How a Loop or Scan carries states: at which inputs and outputs of the node and of its body they are."""

    number: int
    first_input: int  # of the node's inputs, the index of the first state
    first_body_input: int
    first_body_output: int

    @classmethod
    def of(cls, node: Node) -> States:
        """Find how a node carries its states."""
        if node.function is loop:
            return cls(max(0, len(node.inputs) - 2), 2, 2, 1)
        return cls(len(node.inputs) - node.attributes["num_scan_inputs"], 0, 0, 0)


def _replaced(node: Node, scope: Scope, stacked: dict[str, dict[str, Any]]) -> list[Node]:
    """The nodes that stand for a Loop or Scan.

    `stacked` gets the names of results that are no lists anymore but rows, with the attributes of the Stack that joins
    them.
    """
    body, states = node.attributes["body"], States.of(node)
    if len(body.inputs) < states.first_body_input + states.number:
        return [node]
    inside = Scope(body, scope)
    if node.function is loop:
        body = _with_gathers(body, inside)
        inside = Scope(body, scope)
    uses, defined = inside.uses, set(defined_names(body))
    names: dict[str, str] = {}  # of body inputs that become captures
    dropped: list[int] = []  # states
    rows: list[tuple[Value, str]] = []  # of new scan outputs: the value in the body, the name outside
    behind: list[Node] = []
    for k in range(states.number):
        before = body.inputs[states.first_body_input + k]
        after = inside.origin(body.outputs[states.first_body_output + k].name)
        initial = node.inputs[states.first_input + k]
        result = node.outputs[k] if k < len(node.outputs) else ""
        if not initial:
            continue
        if after == before.name and initial not in defined:
            names[before.name] = initial
            dropped.append(k)
            if result:
                behind.append(new_node(node, "Identity", (initial,), (result,)))
        elif node.function is loop and uses[before.name] == 1:
            found = _appended(after, before, initial, inside, scope, uses)
            if found is None:
                continue
            value, dtype, attributes, is_list = found
            row = Value(value, Type("tensor", dtype, ()))  # Its shape is that of no rows, which nobody looks at.
            if not result:
                dropped.append(k)
            elif is_list:
                if scope.joined[result] != scope.uses[result]:
                    continue
                dropped.append(k)
                rows.append((row, result))
                stacked[result] = attributes
            else:
                name = scope.unused(f"{result} (rows)")
                dropped.append(k)
                rows.append((row, name))
                behind.append(new_node(node, "Stack", (name, initial), (result,), **attributes))
    if not dropped and body is node.attributes["body"]:
        return [node]
    body = renamed(body, names) if names else body

    def kept(values: tuple[Any, ...], first: int) -> tuple[Any, ...]:
        """The values at an index from `first` on without those of the states that are dropped."""
        gone = {first + k for k in dropped}
        return tuple(value for i, value in enumerate(values) if i not in gone)

    outputs = node.outputs + ("",) * (len(body.outputs) - states.first_body_output - len(node.outputs))
    body = dataclasses.replace(
        body,
        inputs=kept(body.inputs, states.first_body_input),
        outputs=(*kept(body.outputs, states.first_body_output), *(value for value, _ in rows)),
    )
    inputs = kept(node.inputs, states.first_input)
    changed = dataclasses.replace(
        node.altered(attributes=node.attributes | {"body": with_captures(body)}),
        inputs=inputs,
        outputs=(*kept(outputs, 0), *(name for _, name in rows)),
    )
    return [changed, *behind]


def _appended(
    after: str, before: Value, initial: str, inside: Scope, scope: Scope, uses: Counter[str]
) -> tuple[str, np.dtype | None, dict[str, Any], bool] | None:
    """Find what a body adds to a state that only grows: (the value, its type, the attributes of a Stack, whether the
    state is a list), or None.
    """
    node = inside.makers.get(after)
    if node is None or node.domain or uses[after] != 1:
        return None
    if node.op_type == "SequenceInsert" and node.inputs[0] == before.name:
        source = scope.maker(initial)
        if source is None or source.op_type != "SequenceEmpty" or node.inputs[1] == before.name:
            return None
        backwards = False
        if len(node.inputs) > 2:
            position = inside.constant(node.inputs[2])
            if position is None or position.size != 1 or position.item() != 0:
                return None
            backwards = True
        dtype = source.attributes.get("dtype") or np.dtype(np.float32)
        return node.inputs[1], np.dtype(dtype), {"backwards": int(backwards)}, True
    if node.op_type == "Concat" and len(node.inputs) == 2 and node.inputs[0] == before.name:
        added = inside.makers.get(node.inputs[1])
        axis, dtype = node.attributes["axis"], before.type.dtype
        if added is None or dtype is None or _only_axis(added, inside) != axis:
            return None
        return added.inputs[0], dtype, {"axis": axis}, False
    return None


def _only_axis(node: Node, scope: Scope) -> int | None:
    """The axis of an Unsqueeze that adds one axis, as the file gives it; None for other nodes."""
    if node.op_type != "Unsqueeze" or node.domain:
        return None
    axes = node.attributes.get("axes") if len(node.inputs) < 2 else scope.constant(node.inputs[1])
    return None if axes is None or np.size(axes) != 1 else int(np.ravel(axes)[0])


# ------------------------------------------------------------------------------------------------ lists
def _with_gathers(body: Graph, scope: Scope) -> Graph:
    """Return the body of a Loop in which members of lists that are slices of a tensor are taken from the tensor."""
    nodes = []
    for node in body.nodes:
        if node.op_type == "SequenceAt" and not node.domain:
            nodes.append(_gathered(node, body, scope) or node)
        else:
            nodes.append(node)
    return body if nodes == list(body.nodes) else with_captures(dataclasses.replace(body, nodes=tuple(nodes)))


def _slices(name: str, scope: Scope) -> Node | None:
    """The SplitToSequence that cuts a tensor into a list of slices of length 1; None for other lists."""
    split = scope.maker(name)
    if split is None or split.op_type != "SplitToSequence" or split.domain:
        return None
    if len(split.inputs) > 1:
        size = scope.constant(split.inputs[1])
        if size is None or size.shape != () or size.item() != 1:
            return None
    return split


def _gathered(node: Node, body: Graph, scope: Scope) -> Node | None:
    """The Gather that stands for a SequenceAt of slices of length 1; None if the list is another one."""
    split = _slices(node.inputs[0], scope)
    if split is None or split.attributes.get("keepdims", 1):
        return None
    source, axis = split.inputs[0], split.attributes.get("axis", 0)
    if not scope.sees(source, node.inputs[0]) or not _is_scalar(node.inputs[1], body, scope):
        return None
    return new_node(node, "Gather", (source, node.inputs[1]), node.outputs, axis=axis)


def _counted(node: Node, scope: Scope) -> list[Node]:
    """The nodes that stand for a SequenceLength: the number of slices of length 1 is a size of the tensor."""
    split = _slices(node.inputs[0], scope)
    if split is None or node.inputs[0] not in scope.makers:
        return [node]
    axis, size = split.attributes.get("axis", 0), scope.unused(f"{node.outputs[0]} (size)")
    bounds = {"start": axis} if axis == -1 else {"start": axis, "end": axis + 1}
    shape = new_node(node, "Shape", split.inputs[:1], (size,), **bounds)
    return [shape, new_node(node, "Squeeze", (size,), node.outputs)]


def _is_scalar(name: str, body: Graph, scope: Scope) -> bool:
    """Return whether a value in the body of a Loop has no axes for sure: the iteration's number, or a sum with it."""
    for _ in range(MAX_SUMS):
        if name == body.inputs[0].name:
            return True
        node = scope.makers.get(name)
        if node is None or node.domain or node.op_type not in ("Add", "Sub", "Mul", "Cast", "Identity"):
            constant = scope.constant(name)
            return constant is not None and constant.shape == ()
        others = [n for n in node.inputs if scope.constant(n) is None]
        if len(others) > 1 or any(scope.constant(n).shape != () for n in node.inputs if n not in others):
            return False
        name = others[0] if others else node.inputs[0]
    return False
