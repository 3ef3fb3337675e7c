"""Folding: computes at load what depends on constants alone, drops dead nodes, and lowers the others."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import (
    InputError,
    InputTypeError,
    LimitError,
    ModelError,
    UnsupportedError,
    raise_if_from_handler,
    with_location,
)
from rnnfast.limits import Limits
from rnnfast.native._locks import Allowance
from rnnfast.onnx.binding import check_types
from rnnfast.onnx.budget import Budget, owners
from rnnfast.onnx.graph import Graph, Node, Value, constants_within
from rnnfast.onnx.ops.random import draws
from rnnfast.onnx.ops.types import room

# Operators whose outputs may be absent optional values.
OPTIONAL = {"Identity", "If", "Loop", "Optional", "OptionalGetElement", "OptionalHasElement"}
# Bytes that a plan keeps of results that depend on shapes alone; results beyond that are computed again at each call.
MAX_FOLDED_BYTES = 2**24
# Bytes that a model keeps of results that depend on constants alone: MAX_FOLDED_BYTES, and so many times the bytes of
# the constants themselves. Weights of half a byte become floats of four; unpacking them and looking them up in a table
# takes 29 times their bytes, as the results on the way count too.
FOLDED_RATIO = 32
# Tensors of so many bytes are always computed, as steps on the way to smaller ones.
MIN_ROOM = 2**25

# lower(node, constants, load_budget) returns a native callable for the node, or None. `constants` has an array for each
# input that is constant, else None. The LoadBudget counts the weights that are packed.
Lower = Callable[[Node, list[Any], Any], Callable[..., Any] | None]


class _NoRoom(LimitError):
    """A result is larger than what is kept of results, so that it is left to the calls."""


class LoadBudget:
    """Counts the bytes and the work of loading one model. nbytes: those that were counted before."""

    def __init__(self, limits: Limits, nbytes: int = 0) -> None:
        self.limits, self.nbytes = limits, nbytes
        self.budget = Budget([], dataclasses.replace(limits, bytes_of_a_call=None, seconds=None))
        self._packed: dict[Any, tuple[Any, Any]] = {}

    def take(self, nbytes: int) -> None:
        """Count bytes before they are allocated; raise LimitError if there are too many."""
        self.limits.check("bytes_at_load", self.nbytes + nbytes, "the bytes of constants and packed weights are")
        self.nbytes += nbytes

    def left(self) -> int:
        """The bytes that may still be taken."""
        return sys.maxsize if self.limits.bytes_at_load is None else self.limits.bytes_at_load - self.nbytes

    def packed(self, settings: Any, arrays: Sequence[Any], pack: Callable[[], Any]) -> Any:
        """The result of `pack`, which packs these arrays (None: absent) in a way that `settings` says, once for all."""
        key = settings, *map(id, arrays)
        if key not in self._packed:
            self.take(sum(array.nbytes for array in arrays if array is not None))
            self._packed[key] = pack(), arrays  # kept, because their ids are in the key
        return self._packed[key][0]


class FoldingBudget(Allowance):
    """Byte budget for folded results. A nested budget draws on its `parent`, and gives back when it is deleted."""

    def keeps(self, results: Sequence[Any], inputs: Sequence[Any]) -> bool:
        """Reserve room for the results of a node, and return whether there was enough; views of inputs need none."""
        taken = owners(inputs).keys()
        return self.take(sum(array.nbytes for key, array in owners(results).items() if key not in taken))

    def left(self) -> int:
        """The bytes that it still keeps."""
        left: int = self.limit - self.nbytes
        return left if self.parent is None else min(left, self.parent.left())


def folding_budget(nbytes: int) -> FoldingBudget:
    """The FoldingBudget of a model whose constants take so many bytes."""
    return FoldingBudget(MAX_FOLDED_BYTES + FOLDED_RATIO * nbytes)


def fold(
    graph: Graph,
    lower: Lower,
    known: Mapping[str, Any] | None = None,
    budget: FoldingBudget | None = None,
    load_budget: LoadBudget | None = None,
) -> Graph:
    """Return the graph with constant results computed, dead nodes dropped and every node's `run` set.

    `known` has the constants among the inputs and captures of a graph within another one.
    """
    nested, known = known is not None, known or {}
    load_budget = load_budget or LoadBudget(Limits(), constant_bytes(graph))
    budget = budget or folding_budget(load_budget.nbytes)
    constants = {**known, **graph.constants}
    nodes: list[Node] = []
    for node in live(graph.nodes, graph.outputs):
        node = _lowered(node, constants, lower, budget, load_budget)
        results = _results(node, constants, nested, budget, load_budget) if node.run is not None else None
        if results is None:
            nodes.append(node)
        else:
            constants.update(results)
    nodes = live(nodes, graph.outputs)
    used = {v.name for v in graph.outputs}.union(*(node.needs for node in nodes))
    constants = {name: array for name, array in constants.items() if name in used and name not in known}
    defined = constants.keys() | {v.name for v in graph.inputs}.union(*(node.outputs for node in nodes))
    return dataclasses.replace(graph, constants=constants, nodes=tuple(nodes), captures=frozenset(used - defined))


def constant_bytes(graph: Graph) -> int:
    """Total bytes of initializers and of the tensors of Constant nodes, in a graph and the graphs within it."""
    arrays: dict[int, Any] = {}
    _collect_constants(graph, arrays)
    return sum(_bytes_of(value) for value in arrays.values())


def _bytes_of(value: Any) -> int:
    """The bytes of an array or of the members of a sequence."""
    return sum(map(_bytes_of, value)) if isinstance(value, list) else 0 if value is None else value.nbytes


def _collect_constants(graph: Graph, arrays: dict[int, Any]) -> None:
    """Add the constants of a graph and of the graphs within it to `arrays`, by their ids."""
    arrays |= {id(array): array for array in graph.constants.values()}
    for node in graph.nodes:
        for inner in node.graphs.values():
            _collect_constants(inner, arrays)
        if node.op_type == "Constant":
            arrays |= {id(v): v for v in node.attributes.values() if isinstance(v, np.ndarray)}


def live(nodes: Sequence[Node], outputs: Iterable[Value]) -> list[Node]:
    """The nodes that the outputs depend on, in their order."""
    wanted, live = {v.name for v in outputs}, []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted |= node.needs
            live.append(node)
    return live[::-1]


def _lowered(
    node: Node, constants: Mapping[str, Any], lower: Lower, folding_budget: FoldingBudget, load_budget: LoadBudget
) -> Node:
    """The node with its subgraphs folded; a node without subgraphs gets its `run`."""
    if node.graphs:
        graphs = {}
        for name, graph in node.graphs.items():
            known = constants_within(node, graph, constants)
            graphs[name] = fold(graph, lower, known, folding_budget, load_budget)
        node = node.altered(attributes=node.attributes | graphs)
        if node.alternative is not None:
            graph = node.alternative.graph
            known = {capture: constants[capture] for capture in graph.captures if capture in constants}
            graph = fold(graph, lower, known, folding_budget, load_budget)
            node.alternative = node.alternative._replace(graph=graph)
        return node
    try:
        run = lower(node, [constants.get(name) for name in node.inputs], load_budget)
    except Exception as e:
        raise _at_load(e, node) from e
    assert node.function is not None
    return node.altered(run=run or functools.partial(node.function, **node.attributes))


def _at_load(error: Exception, node: Node) -> Exception:
    """The error to raise at load, where constants with wrong values make the model wrong."""
    error = with_location(error, node.where)
    return ModelError(str(error)) if isinstance(error, (InputError, InputTypeError)) else error


def _results(
    node: Node, constants: Mapping[str, Any], nested: bool, folding_budget: FoldingBudget, load_budget: LoadBudget
) -> dict[str, Any] | None:
    """The results of a node by name if all its inputs are constant and there is room, else None."""
    if not all(name in constants or not name for name in node.inputs) or draws(node.function, node.attributes):
        return None
    inputs = [constants.get(name) for name in node.inputs]
    assert node.run is not None
    try:
        check_types(node.one_type, inputs)
        with room(max(MIN_ROOM, min(folding_budget.left(), load_budget.left())), "folding", _NoRoom):
            results = load_budget.budget.run(node, node.run, inputs, (False,) * len(inputs))
    except Exception as e:
        raise_if_from_handler(e)
        if nested or isinstance(e, _NoRoom):
            return None  # a branch that never runs may be wrong
        raise _at_load(e, node) from e
    if not folding_budget.keeps(results, inputs):
        return None
    load_budget.take(sum(array.nbytes for key, array in owners(results).items() if key not in owners(inputs)))
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
