"""Folding: computes at load what depends on constants alone, drops dead nodes, and lowers the others."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import (
    InputError,
    InputTypeError,
    ModelError,
    UnsupportedError,
    raise_if_from_handler,
    with_location,
)
from rnnfast.onnx.binding import check_types
from rnnfast.onnx.budget import owners
from rnnfast.onnx.graph import Graph, Node, Value

# Operators whose outputs may be absent optional values.
OPTIONAL = {"Identity", "If", "Loop", "Optional", "OptionalGetElement", "OptionalHasElement"}
# Bytes that a plan keeps of results that depend on shapes alone; results beyond that are computed again at each call.
MAX_FOLDED_BYTES = 2**24
# Bytes that a model keeps of results that depend on constants alone: MAX_FOLDED_BYTES, and so many times the bytes of
# the constants themselves (weights of one byte become floats of four).
FOLDED_RATIO = 4

# lower(node, constants) returns a native callable for the node, or None. `constants` has an array for each input that
# is constant, else None.
Lower = Callable[[Node, list[Any]], Callable[..., Any] | None]


class FoldingBudget:
    """Byte budget for folded results. A nested budget draws on its `parent`, and gives back when it is deleted."""

    def __init__(self, limit: int, parent: FoldingBudget | None = None) -> None:
        self.limit, self.parent, self.nbytes = limit, parent, 0
        self._lock = threading.RLock()

    def keeps(self, results: Sequence[Any], inputs: Sequence[Any]) -> bool:
        """Reserve room for the results of a node, and return whether there was enough; views of inputs need none."""
        taken = owners(inputs).keys()
        return self._take(sum(array.nbytes for key, array in owners(results).items() if key not in taken))

    def _take(self, nbytes: int) -> bool:
        with self._lock:
            if self.nbytes + nbytes > self.limit or self.parent is not None and not self.parent._take(nbytes):
                return False
            self.nbytes += nbytes
            return True

    def __del__(self) -> None:
        if self.parent is not None:
            self.parent._take(-self.nbytes)


def fold(
    graph: Graph, lower: Lower, known: Mapping[str, Any] | None = None, folding_budget: FoldingBudget | None = None
) -> Graph:
    """Return the graph with constant results computed, dead nodes dropped and every node's `run` set.

    `known` has the constants among the inputs and captures of a graph within another one.
    """
    nested, known = known is not None, known or {}
    folding_budget = folding_budget or FoldingBudget(MAX_FOLDED_BYTES + FOLDED_RATIO * _constant_bytes(graph))
    constants = {**known, **graph.constants}
    nodes: list[Node] = []
    for node in live(graph.nodes, graph.outputs):
        node = _lowered(node, constants, lower, folding_budget)
        results = _results(node, constants, nested, folding_budget) if node.run is not None else None
        if results is None:
            nodes.append(node)
        else:
            constants.update(results)
    nodes = live(nodes, graph.outputs)
    used = {v.name for v in graph.outputs}.union(*(node.needs for node in nodes))
    constants = {name: array for name, array in constants.items() if name in used and name not in known}
    defined = constants.keys() | {v.name for v in graph.inputs}.union(*(node.outputs for node in nodes))
    return dataclasses.replace(graph, constants=constants, nodes=tuple(nodes), captures=frozenset(used - defined))


def _constant_bytes(graph: Graph) -> int:
    """Total bytes of initializers and of the tensors of Constant nodes, in a graph and the graphs within it."""
    count = sum(array.nbytes for array in graph.constants.values())
    for node in graph.nodes:
        count += sum(map(_constant_bytes, node.graphs.values()))
        if node.op_type == "Constant":
            count += sum(v.nbytes for v in node.attributes.values() if isinstance(v, np.ndarray))
    return count


def live(nodes: Sequence[Node], outputs: Iterable[Value]) -> list[Node]:
    """The nodes that the outputs depend on, in their order."""
    wanted, live = {v.name for v in outputs}, []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted |= node.needs
            live.append(node)
    return live[::-1]


def _lowered(node: Node, constants: Mapping[str, Any], lower: Lower, folding_budget: FoldingBudget) -> Node:
    """The node with its subgraphs folded; a node without subgraphs gets its `run`."""
    if node.graphs:
        graphs = {}
        for name, graph in node.graphs.items():
            if node.function is None:
                pairs = zip(graph.inputs, node.inputs)
                known = {v.name: constants[actual] for v, actual in pairs if actual in constants}
            else:
                known = {capture: constants[capture] for capture in graph.captures if capture in constants}
            graphs[name] = fold(graph, lower, known, folding_budget)
        return node.altered(attributes=node.attributes | graphs)
    try:
        run = lower(node, [constants.get(name) for name in node.inputs])
    except Exception as e:
        raise _at_load(e, node) from e
    assert node.function is not None
    return node.altered(run=run or functools.partial(node.function, **node.attributes))


def _at_load(error: Exception, node: Node) -> Exception:
    """The error to raise at load, where constants with wrong values make the model wrong."""
    error = with_location(error, node.where)
    return ModelError(str(error)) if isinstance(error, (InputError, InputTypeError)) else error


def _results(
    node: Node, constants: Mapping[str, Any], nested: bool, folding_budget: FoldingBudget
) -> dict[str, Any] | None:
    """The results of a node by name if all its inputs are constant and there is room, else None."""
    if not all(name in constants or not name for name in node.inputs):
        return None
    inputs = [constants.get(name) for name in node.inputs]
    assert node.run is not None
    try:
        check_types(node.one_type, inputs)
        results = node.run(*inputs)
    except Exception as e:
        raise_if_from_handler(e)
        if nested:
            return None  # a branch that never runs may be wrong
        raise _at_load(e, node) from e
    results = results if isinstance(results, tuple) else (results,)
    if not folding_budget.keeps(results, inputs):
        return None
    check_outputs(node, results)
    protect(results)
    return {name: value for name, value in zip(node.outputs, results) if name}


def protect(results: Iterable[Any]) -> None:
    """Make arrays read-only: all runs share constants. Whoever hands one to a caller copies it."""
    for value in results:
        if isinstance(value, list):
            protect(value)
        elif isinstance(value, np.ndarray):
            value.flags.writeable = False


def check_outputs(node: Node, results: Sequence[Any]) -> None:
    """Raise UnsupportedError if the operator did not compute an output that the node names."""
    for i, name in enumerate(node.outputs):
        if name and (i >= len(results) or results[i] is None and node.op_type not in OPTIONAL):
            raise UnsupportedError(f"{node.where}: output {i} ({name!r}) is not computed")
