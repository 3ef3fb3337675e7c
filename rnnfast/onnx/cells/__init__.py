"""Finds recurrent cells that exporters took apart, and puts RNN, GRU and LSTM nodes in their place.

What is recognised is equal to the node that replaces it: the formula is followed from the names in the graph to the
weights, and shapes from declared ones. Where something is not known for sure, the graph stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rnnfast.onnx.cells.affine import ACTIVATIONS, Values
from rnnfast.onnx.cells.bodies import Body
from rnnfast.onnx.cells.chains import MIN_STEPS, Chains
from rnnfast.onnx.cells.lifting import lifted
from rnnfast.onnx.cells.new_nodes import MARK, recognised_as
from rnnfast.onnx.facts import UNKNOWN, Fact, facts_of, first_facts, note_results
from rnnfast.onnx.graph import Graph, Node
from rnnfast.onnx.ops.control import loop, scan_9
from rnnfast.onnx.recurrent_nodes import CELL_KINDS

# A pass may find what the one before it brought to light: work between layers that is done at once, other layers.
MAX_PASSES = 8


def may_have_cells(graph: Graph) -> bool:
    """Return whether a graph, or one within it, has the activations of a cell besides recurrent nodes."""
    count = 0
    for node in graph.nodes:
        count += node.op_type in ACTIVATIONS and not node.domain
        if any(may_have_activation(inner) for inner in node.graphs.values()):
            return True
    return count >= MIN_STEPS


def may_have_activation(graph: Graph) -> bool:
    """Return whether a body may be a step of a cell."""
    return any(
        node.op_type in ACTIVATIONS and not node.domain or any(map(may_have_activation, node.graphs.values()))
        for node in graph.nodes
    )


def with_cells(graph: Graph, around: Values | None = None, given: Mapping[str, Fact] | None = None) -> Graph:
    """Return a folded graph with the recurrences that are recognised replaced, in the graphs within it too.

    around: the values of the graph around it. given: what is known of its inputs besides what it declares.
    """
    names = {v.name for v in graph.inputs}.union(graph.captures, graph.constants, *(n.outputs for n in graph.nodes))
    if any(MARK in name for name in names):
        return graph  # Names that are added could be its own.
    facts_around = None if around is None else around.facts
    for _ in range(MAX_PASSES):
        values = Values(graph, facts_of(graph, facts_around, given), around)
        replaced = Chains(values).replaced() or lifted(values)
        if replaced is None:
            break
        graph = replaced
    # Loops see what is known before them, the results of other loops among it.
    facts = first_facts(graph, facts_around, given)
    values = Values(graph, facts, around)
    nodes: list[Node] = []
    for node in graph.nodes:
        note_results(facts, node)
        if node.function in (loop, scan_9):
            body = Body(node, values, facts)
            alternative = body.alternative()
            if alternative is not None:
                node = dataclasses.replace(node, alternative=alternative)
                facts |= body.facts_of_outputs()
        if node.graphs:
            node = _with_cells_within(node, values)
        nodes.append(node)
    return graph if nodes == list(graph.nodes) else dataclasses.replace(graph, nodes=tuple(nodes))


def recognised(graph: Graph) -> list[Node]:
    """The recurrent nodes of a graph, and of the graphs within it, that replace what the file has."""
    found = []
    for node in graph.nodes:
        if node.op_type in CELL_KINDS and node.where.endswith(recognised_as(node.op_type)):
            found.append(node)
        if node.alternative is not None:
            found += recognised(node.alternative.graph)
        for inner in node.graphs.values():
            found += recognised(inner)
    return found


def _with_cells_within(node: Node, values: Values) -> Node:
    """A node with cells recognised in its graphs."""
    graphs = {}
    for name, inner in node.graphs.items():
        if not may_have_cells(inner):
            continue
        if node.function is None:
            facts = [values.fact(actual) for actual in node.inputs]
            given = dict(zip((v.name for v in inner.inputs), (*facts, *[UNKNOWN] * len(inner.inputs))))
            graphs[name] = with_cells(inner, None, given)
        else:
            graphs[name] = with_cells(inner, values, {})
    return node.altered(attributes=node.attributes | graphs) if graphs else node
