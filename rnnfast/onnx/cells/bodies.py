"""Loops whose body is one step of a cell: the loop becomes a recurrent node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rnnfast.onnx.cells.affine import Affine, Source, Values
from rnnfast.onnx.cells.new_nodes import NewNodes
from rnnfast.onnx.cells.steps import Matcher, Step, Weights, arrays, weights_of
from rnnfast.onnx.facts import Fact, Size, facts_of
from rnnfast.onnx.graph import Alternative, Graph, Node, Type, Value
from rnnfast.onnx.loops import States, with_captures
from rnnfast.onnx.ops.control import loop

ITERATION, GOING = Fact(np.dtype(np.int64), ()), Fact(np.dtype(bool), ())


class Scanned(NamedTuple):
    """A tensor of which each iteration takes one slice: its name outside, the axis, whether from its end."""

    name: str
    axis: int
    backwards: bool


class Body:
    """The body of a Loop or Scan as an equation of states.

    states: the names of the body's states, the names of their next values, and those of the initial values outside.
    scanned: the inputs of the body that are slices. rows: the names of the values of which each iteration gives one
    row. axes, directions: those of the rows in the node's outputs.
    """

    def __init__(self, node: Node, outside: Values, facts: Mapping[str, Fact]) -> None:
        self.node, self.outside = node, outside
        self.outputs = tuple(name if name in outside.read else "" for name in node.outputs)
        body, is_loop = node.attributes["body"], node.function is loop
        states, attributes = States.of(node), {} if is_loop else node.attributes
        count = states.number
        names = [v.name for v in body.inputs][states.first_body_input :]
        afters = [v.name for v in body.outputs][states.first_body_output :]
        initial = node.inputs[states.first_input : states.first_input + count]
        self.states = list(zip(names[:count], afters[:count], initial))
        self.rows = afters[count:]
        given = {name: facts.get(source, Fact()) for name, _, source in self.states}
        given = {name: Fact(fact.dtype, fact.shape) for name, fact in given.items()}
        self.scanned: dict[str, Scanned] = {}
        if is_loop:
            given |= {body.inputs[0].name: ITERATION, body.inputs[1].name: GOING}
        else:
            sources = node.inputs[count:]
            axes = attributes.get("scan_input_axes") or (0,) * len(sources)
            backwards = attributes.get("scan_input_directions") or (0,) * len(sources)
            for name, source, axis, way in zip(names[count:], sources, axes, backwards):
                fact = facts.get(source, Fact())
                if fact.shape is not None and -len(fact.shape) <= axis < len(fact.shape):
                    axis %= len(fact.shape)
                    given[name] = Fact(fact.dtype, (*fact.shape[:axis], *fact.shape[axis + 1 :]))
                    self.scanned[name] = Scanned(source, axis, bool(way))
        self.axes = attributes.get("scan_output_axes") or (0,) * len(self.rows)
        self.directions = attributes.get("scan_output_directions") or (0,) * len(self.rows)
        self.values = Values(body, facts_of(body, facts, given), outside)

    # ------------------------------------------------------------------------------------------ the step
    def step(self) -> tuple[Step, Weights, int, int | None] | None:
        """(the step, its weights, which state is the output, which is the cell state) if all that the body computes is
        one step of a cell; None for other bodies.
        """
        matcher = Matcher(self.values)
        nexts = [self.values.origin(after) for _, after, _ in self.states]
        used = {k for k in range(len(self.states)) if k < len(self.outputs) and self.outputs[k]}
        for k, candidate in enumerate(nexts):
            for step in matcher.steps(candidate):
                h = nexts.index(step.h) if step.h in nexts else None
                c = k if step.kind == "LSTM" else None
                if h is None or not used <= {h, c} or step.before not in ("", self.states[h][0]):
                    continue
                if c is not None and step.c_before != self.states[c][0]:
                    continue
                if any(self.values.origin(name) != step.h for name in self.rows):
                    continue
                whole = self._without_identities(step)
                weights = None if whole is None else weights_of(whole, self.states[h][0])
                if whole is not None and weights is not None and self._are_rows(h, c):
                    return whole, weights, h, c
        return None

    def _are_rows(self, *states: int | None) -> bool:
        """Return whether these states have two axes, of which the second keeps its known length."""
        for k in states:
            if k is not None:
                shapes = [self.values.fact(name).shape for name in self.states[k][:2]]
                if any(shape is None or len(shape) != 2 or not isinstance(shape[1], int) for shape in shapes):
                    return False
                if shapes[0][1] != shapes[1][1]:  # type: ignore[index]
                    return False
        return True

    def _without_identities(self, step: Step) -> Step | None:
        """The step with inputs that were multiplied before the loop as products in it; None if some are no products."""
        gates = []
        for affine in step.gates:
            total = affine._replace(products=())
            for source, part, columns in affine.products:
                if part is not None:
                    total = total.plus(Affine(((source, part, columns),)))
                    continue
                taken = self._taken(source)
                found = taken and self.outside.affine(taken.name, *columns, (taken.axis, source.name))
                if not found or any(part is None for _, part, _ in found.products) or found.diagonals:
                    return None
                total = total.plus(found)
            gates.append(total)
        return step._replace(gates=tuple(gates))

    # ------------------------------------------------------------------------------------------ iterations
    def _taken(self, source: Source) -> Scanned | None:
        """The tensor outside of which an iteration takes a slice; None for other sources."""
        if source.position is None:
            return self.scanned.get(source.name)
        if source.position in self.scanned:  # of a value that was multiplied before the loop
            return Scanned(source.name, source.axis, self.scanned[source.position].backwards)
        if isinstance(source.position, str) and self._counts(source.position):
            return None if self.values.defines(source.name) else Scanned(source.name, source.axis, False)
        return None

    def _counts(self, name: str) -> bool:
        """Return whether a value of the body of a Loop is the number of the iteration."""
        if self.node.function is not loop:
            return False
        body = self.node.attributes["body"]
        if name == body.inputs[0].name:
            return True
        for before, after, initial in self.states:
            if before == name and self.outside.single(initial) == 0:
                return self._is_next(after, name)
        return False

    def _is_next(self, name: str, before: str) -> bool:
        """Return whether a value is one more than another."""
        node = self.values.maker(self.values.origin(name))
        if node is None or node.op_type != "Add":
            return False
        return any(
            self.values.origin(one) == before and self.values.single(other) == 1 and self.values.fact(other).shape == ()
            for one, other in (node.inputs, node.inputs[::-1])
        )

    def _may_iterate(self) -> bool:
        """Return whether no iteration of a loop can fail for its condition, its scanned inputs or its scan outputs."""
        node = self.node
        if node.function is not loop:
            count = node.attributes["num_scan_inputs"]
            lengths = {"scan_input_axes": count, "scan_input_directions": count}
            lengths |= dict.fromkeys(("scan_output_axes", "scan_output_directions"), len(self.rows))
            given = {name: node.attributes[name] for name in lengths if node.attributes.get(name) is not None}
            return (
                len(self.scanned) == count
                and all(len(values) == lengths[name] for name, values in given.items())
                and all(set(values) <= {0, 1} for name, values in given.items() if name.endswith("directions"))
                and all(-3 <= axis < 3 for axis in self.axes)
            )
        if len(node.inputs) > 1 and node.inputs[1]:
            return True  # The condition is computed before it is known how many iterations there are.
        going = self.values.fact(node.attributes["body"].outputs[0].name)
        return going.dtype == bool and going.shape is not None and set(going.shape) <= {1}

    # ------------------------------------------------------------------------------------------ nodes
    def alternative(self) -> Alternative | None:
        """The recurrent node, with what belongs to it, that stands for the loop; None if the loop is no recurrence."""
        found = self.step()
        if found is None or not self._may_iterate():
            return None
        step, weights, h, c = found
        taken = [self._taken(source) for source, _ in weights.inputs]
        if not taken or any(scanned is None for scanned in taken):
            return None
        sequences = [scanned for scanned in taken if scanned is not None]
        backwards = {scanned.backwards for scanned in sequences}
        shapes = [self.outside.fact(scanned.name).shape for scanned in sequences]
        if len(backwards) != 1 or any(shape is None or len(shape) != 3 for shape in shapes):
            return None
        new = NewNodes(self.node, next(name for name in self.outputs if name))
        states = [self.states[k][2] for k in (h, c) if k is not None]
        names, sizes, rows = [], [], [(name, 0) for name in states]
        frames = [(scanned.name, scanned.axis) for scanned in self.scanned.values()]
        for scanned, shape in zip(sequences, shapes):
            assert shape is not None
            if scanned.axis > 1 or not isinstance(shape[2], int):
                return None
            rows.append((scanned.name, 1 - scanned.axis))
            frames.append((scanned.name, scanned.axis))
            frames.append((scanned.name, scanned.axis))
            sizes.append(shape[2])
            names.append(new.add("Transpose", [scanned.name], perm=(1, 0, 2)) if scanned.axis else scanned.name)
        made = arrays(step, weights, sizes)
        if made is None:
            return None
        x = names[0] if len(names) == 1 else new.add("Concat", names, axis=2)
        way = "reverse" if backwards.pop() else "forward"
        y, *ends = new.recurrent(step, made, x, [new.with_axis(name, 0) for name in states], way)
        self._outputs(new, new.without_axis(y, 1), ends, h, c, way)
        outputs = tuple(Value(name or self._unused(new), Type("tensor")) for name in self.outputs)
        graph = Graph("recognised", (), outputs, new.constants, tuple(new.nodes), frozenset())
        return Alternative(with_captures(graph), tuple(rows), tuple(frames))

    @staticmethod
    def _unused(new: NewNodes) -> str:
        """The name of a value in the place of an output that nobody reads."""
        return new.constant("unused", np.zeros((), np.float32))

    def facts_of_outputs(self) -> dict[str, Fact]:
        """Return the facts of the outputs of a loop that is a recurrence, also where it runs as the file says."""
        found = self.step()
        facts = {}
        if found is not None:
            step, _, h, c = found
            size = self.values.fact(step.h).shape[1]  # type: ignore[index]
            for k in (h, c):
                if k is not None and k < len(self.outputs):
                    facts[self.outputs[k]] = Fact(np.dtype(np.float32), (None, size))
            for name, axis in zip(self.outputs[len(self.states) :], self.axes):
                shape: list[Size] = [None, size]
                shape.insert(axis % 3, None)
                facts[name] = Fact(np.dtype(np.float32), tuple(shape))
        return facts

    def _outputs(self, new: NewNodes, y: str, ends: list[str], h: int, c: int | None, way: str) -> None:
        """Add the nodes that give the node's outputs; y: all outputs of the cell [T, B, H]."""
        outputs = self.outputs
        for k, end in zip((h, c), ends):
            if k is not None and k < len(outputs) and outputs[k]:
                new.without_axis(end, 0, [outputs[k]])
        for name, axis, backwards in zip(outputs[len(self.states) :], self.axes, self.directions):
            if not name:
                continue
            rows = y
            if bool(backwards) != (way == "reverse"):
                bounds = [new.constant(f"bound {n}", np.array([n])) for n in (-1, np.iinfo(np.int64).min, 0, -1)]
                rows = new.add("Slice", [rows, *bounds])
            axis %= 3
            order = [*range(1, 3)]
            order.insert(axis, 0)
            new.add("Transpose", [rows], [name], perm=tuple(order))
