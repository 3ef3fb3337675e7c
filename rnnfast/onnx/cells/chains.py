"""Unrolled recurrences: steps of one cell that follow each other become one recurrent node."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rnnfast.errors import ModelError
from rnnfast.onnx.cells.affine import ACTIVATIONS, Source, Values
from rnnfast.onnx.cells.new_nodes import NewNodes, live
from rnnfast.onnx.cells.steps import Matcher, Step, Weights, arrays, signature, weights_of, weights_size
from rnnfast.onnx.facts import Size
from rnnfast.onnx.graph import Graph, in_order

MIN_STEPS = 3
# How many chains of a graph are looked at whose inputs come late, so that all nodes behind them must be looked at.
MAX_SCANS = 32
STEP_OPERATORS = {"Add", "Mul", *ACTIVATIONS, "Clip"}


class Link(NamedTuple):
    """A step of a chain, with its output before and its weights."""

    step: Step
    before: str
    weights: Weights


class Chains:
    """Finds the chains of one graph and replaces them."""

    def __init__(self, values: Values) -> None:
        self.values, self.graph = values, values.graph
        self.matcher = Matcher(values)
        self.places = {name: i for i, node in enumerate(self.graph.nodes) for name in node.outputs}
        self.node_of = {name: node for node in self.graph.nodes for name in node.outputs}
        self.outputs = {values.origin(v.name) for v in self.graph.outputs}
        self.scans = 0

    def replaced(self) -> Graph | None:
        """The graph with recurrent nodes in place of chains; None if there is no chain that can be replaced.

        Chains of which each waits for a step of the other cannot all be replaced; the first can.
        """
        found = [(chain, new) for chain in self._chains() if (new := self._replacement(chain)) is not None]
        if not found:
            return None
        try:
            return self._with(found)
        except ModelError:
            return self._with(found[:1])

    def _with(self, found: Sequence[tuple[list[Link], NewNodes]]) -> Graph:
        """The graph with these nodes in place of these chains; ModelError if they wait for each other.

        The nodes of cell states within a chain stay where something reads them, such as a branch of an If.
        """
        gone = {name for chain, _ in found for name in (*(link.step.h for link in chain), chain[-1].step.c) if name}
        nodes = [node for node in self.graph.nodes if gone.isdisjoint(node.outputs)]
        constants = dict(self.graph.constants)
        for _, new in found:
            nodes += new.nodes
            constants |= new.constants
        nodes = in_order(live(nodes, self.graph), "a recurrence")
        return dataclasses.replace(self.graph, nodes=tuple(nodes), constants=constants)

    # ------------------------------------------------------------------------------------------ chains
    def _chains(self) -> list[list[Link]]:
        """The chains of steps, the longest first."""
        found: dict[str, list[Step]] = {}
        for node in self.graph.nodes:
            if node.op_type in STEP_OPERATORS and not node.domain and not node.graphs:
                for step in self.matcher.steps(node.outputs[0]):
                    found.setdefault(step.h, []).append(step)
        followers: dict[str, list[Link]] = {}
        for steps in found.values():
            for step in steps:
                for before in _outputs_before(step):
                    if before in found and any(_follows(step, earlier) for earlier in found[before]):
                        weights = weights_of(step, before)
                        if weights is not None:
                            followers.setdefault(before, []).append(Link(step, before, weights))
        chains: list[list[Link]] = []
        used: set[str] = set()
        for start in found:
            if start not in used and start in followers:
                chain = self._chain(start, followers, found)
                used.update(link.step.h for link in chain)
                chain = self._cut(chain)
                if len(chain) >= MIN_STEPS:
                    chains.append(chain)
        return chains

    def _chain(self, start: str, followers: dict[str, list[Link]], found: dict[str, list[Step]]) -> list[Link]:
        """The longest chain whose first output is `start`."""
        best: list[Link] = []
        for second in followers[start]:
            mark = signature(second.step, second.weights)
            chain, h = [second], second.step.h
            while True:
                following = [
                    link
                    for link in followers.get(h, ())
                    if _follows(link.step, chain[-1].step) and signature(link.step, link.weights) == mark
                ]
                if len(following) != 1:
                    break
                chain += following
                h = following[0].step.h
            for step in found[start]:
                for before in _outputs_before(step):
                    if _follows(second.step, step):
                        weights = weights_of(step, before)
                        if weights is not None and signature(step, weights) == mark:
                            chain = [Link(step, before, weights), *chain]
                            break
                if chain[0].step.h == start:
                    break
            best = max(best, chain, key=len)
        return best

    def _cut(self, chain: list[Link]) -> list[Link]:
        """The part of a chain up to the first cell state that something else reads; none of it if an input depends on
        an output, so that not all inputs can be given at once.
        """
        outputs = self.outputs
        for k, link in enumerate(chain[:-1]):
            c = link.step.c
            expected = 2 + len(link.weights.peepholes)
            if c and (c in outputs or len(self.matcher.readers.get(c, ())) > expected):
                chain = chain[: k + 1]
                break
        if not chain:
            return []
        read = {source.name for link in chain for source, _ in link.weights.inputs}
        read |= {chain[0].before, chain[0].step.c_before}
        first = min(self.places[name] for name in (chain[0].step.h, chain[0].step.c) if name)
        if max(self.places.get(name, -1) for name in read) < first:
            return chain  # All inputs are there before the first output.
        self.scans += 1
        if self.scans > MAX_SCANS:
            return []
        dependent = {name for link in chain for name in (link.step.h, link.step.c) if name}
        for node in self.graph.nodes[first:]:
            if not dependent.isdisjoint(map(self.values.origin, node.needs)):
                dependent.update(node.outputs)
        return chain if dependent.isdisjoint(read) else []

    # ------------------------------------------------------------------------------------------ nodes
    def _replacement(self, chain: list[Link]) -> NewNodes | None:
        """The nodes that stand for a chain; None if a shape is not known well enough."""
        first, last, H = chain[0], chain[-1].step, weights_size(chain[0].weights)
        states = [name for name in (first.before, first.step.c_before, last.h) if name]
        shapes = [self.values.fact(name).shape for name in states]
        if any(shape is None or len(shape) != 2 or shape[1] != H for shape in shapes):
            return None
        new = NewNodes(self.node_of[first.step.h], last.h)
        inputs = [
            self._sequence([link.weights.inputs[k][0] for link in chain], new) for k in range(len(first.weights.inputs))
        ]
        if not inputs or any(found is None for found in inputs):
            return None
        rows = {shape[0] for shape in shapes if shape is not None} | {found[1] for found in inputs if found is not None}
        weights = arrays(first.step, first.weights, [found[2] for found in inputs if found is not None])
        if weights is None:
            return None
        names = [found[0] for found in inputs if found is not None]
        states = [new.with_axis(name, 0) for name in (first.before, first.step.c_before) if name]
        if len(rows) != 1 or None in rows:
            if any(gate.joined for link in chain for gate in link.step.gates):
                if len(names) > 1:
                    return None
                states[1:] = new.with_rows_of_all([*names, *states[1:]])[1:]
            else:
                both = new.with_rows_of_all([*names, *states])
                names, states = both[: len(names)], both[len(names) :]
        x = names[0] if len(names) == 1 else new.add("Concat", names, axis=2)
        y, *ends = new.recurrent(first.step, weights, x, states)
        rows_of_y = new.without_axis(y, 1)
        for t, link in enumerate(chain):
            new.add("Gather", [rows_of_y, new.constant(f"step {t}", np.array(t))], [link.step.h], axis=0)
        if last.c:
            new.without_axis(ends[1], 0, [last.c])
        return new

    def _sequence(self, sources: Sequence[Source], new: NewNodes) -> tuple[str, Size, int] | None:
        """Join the sources of the steps to [T, B, I]; return (its name, B, I), or None if that is not possible."""
        first, shape = sources[0], self.values.fact(sources[0].name).shape
        if all(source.position is None for source in sources):
            if shape is None or any(self.values.fact(source.name).shape != shape for source in sources):
                return None
            if len(shape) != 2 or shape[0] is None or not isinstance(shape[1], int):
                return None  # Rows that are not known may differ: one row serves several.
            return new.add("Concat", [new.with_axis(s.name, 0) for s in sources], axis=0), shape[0], shape[1]
        indices = [source.position for source in sources if isinstance(source.position, int)]
        if len(indices) < len(sources) or any(source[:2] != first[:2] for source in sources):
            return None
        if shape is None or len(shape) != 3 or first.axis > 1 or not isinstance(shape[2], int):
            return None
        length, name = shape[first.axis], first.name
        if first.axis == 1:
            name = new.add("Transpose", [name], perm=(1, 0, 2))
        if indices != list(range(length if isinstance(length, int) else 0)):
            name = new.add("Gather", [name, new.constant(f"steps of {name}", np.array(indices))], axis=0)
        return name, shape[1 - first.axis], shape[2]


def _outputs_before(step: Step) -> list[str]:
    """Return what names the output of the step before may have: a matrix product of it is part of all gates."""
    if step.before:
        return [step.before]
    names = [source.name for source, part, _ in step.gates[0].products if source.position is None and part is not None]
    return list(dict.fromkeys(names))


def _follows(step: Step, earlier: Step) -> bool:
    """Return whether the formulas allow that a step comes behind another one."""
    return step.kind == earlier.kind and step.c_before == earlier.c
