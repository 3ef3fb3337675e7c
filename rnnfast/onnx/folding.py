"""Constant folding at load: results that depend on constants alone are computed once, and dead nodes are dropped."""

import dataclasses
import functools
import threading

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError, with_location
from rnnfast.onnx.budget import owners

# Operators that may hand on or give an absent optional value.
OPTIONAL = {"Identity", "If", "Loop", "Optional", "OptionalGetElement", "OptionalHasElement"}
# What a plan keeps of results that depend on shapes only; what is beyond that is computed again at each call.
MAX_FOLDED_BYTES = 2**24
# What a model keeps of results that depend on constants only: that much more, and a multiple of the constants' own
# size (weights of one byte become floats of four).
FOLDED_RATIO = 4


class Folded:
    """The bytes of known results that are kept, up to a limit; a part of those of `around`, given back at the end."""

    def __init__(self, limit, around=None):
        self.limit, self.around, self.nbytes = limit, around, 0
        self._lock = threading.RLock()

    def keeps(self, results, inputs):
        """Whether there is room for the results of a node, which is then taken; views of its inputs need none."""
        taken = owners(inputs).keys()
        return self._take(sum(array.nbytes for key, array in owners(results).items() if key not in taken))

    def _take(self, nbytes):
        with self._lock:
            if self.nbytes + nbytes > self.limit or self.around is not None and not self.around._take(nbytes):
                return False
            self.nbytes += nbytes
            return True

    def __del__(self):
        if self.around is not None:
            self.around._take(-self.nbytes)


def fold(graph, lower, known=None, folded=None):
    """The Graph with constant results computed, dead nodes dropped and every node's `run` set.

    lower(node, constants) -> a native callable or None; `constants` has an array for each input that is constant,
    else None. `known`: the constants among the graph's inputs and captures.
    """
    nested, known = known is not None, known or {}
    folded = folded or Folded(MAX_FOLDED_BYTES + FOLDED_RATIO * _constant_bytes(graph))
    constants = known | graph.constants
    nodes = []
    for node in live(graph.nodes, graph.outputs):
        node = _prepared(node, constants, lower, folded)
        results = _results(node, constants, nested, folded) if node.run is not None else None
        if results is None:
            nodes.append(node)
        else:
            constants.update(results)
    nodes = live(nodes, graph.outputs)
    used = {v.name for v in graph.outputs}.union(*(node.needs for node in nodes))
    constants = {name: array for name, array in constants.items() if name in used and name not in known}
    defined = constants.keys() | {v.name for v in graph.inputs}.union(*(node.outputs for node in nodes))
    return dataclasses.replace(graph, constants=constants, nodes=tuple(nodes), captures=frozenset(used - defined))


def _constant_bytes(graph):
    """Of a graph and of those within: initializers, and the tensors that Constant nodes hold."""
    count = sum(array.nbytes for array in graph.constants.values())
    for node in graph.nodes:
        count += sum(map(_constant_bytes, node.graphs.values()))
        if node.op_type == "Constant":
            count += sum(v.nbytes for v in node.attributes.values() if isinstance(v, np.ndarray))
    return count


def live(nodes, outputs):
    """The nodes that the outputs depend on."""
    wanted, live = {v.name for v in outputs}, []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted |= node.needs
            live.append(node)
    return live[::-1]


def _prepared(node, constants, lower, folded):
    """The node with its graphs folded, or with `run` set."""
    if node.graphs:
        graphs = {}
        for name, graph in node.graphs.items():
            if node.function is None:
                pairs = zip(graph.inputs, node.inputs)
                known = {v.name: constants[actual] for v, actual in pairs if actual in constants}
            else:
                known = {capture: constants[capture] for capture in graph.captures if capture in constants}
            graphs[name] = fold(graph, lower, known, folded)
        return node.altered(attributes=node.attributes | graphs)
    try:
        run = lower(node, [constants.get(name) for name in node.inputs])
    except Exception as e:
        raise _at_load(e, node) from e
    return node.altered(run=run or functools.partial(node.function, **node.attributes))


def _at_load(error, node):
    """What is wrong with constants is wrong with the model."""
    error = with_location(error, node.where)
    return ModelError(str(error)) if isinstance(error, (InputError, InputTypeError)) else error


def _results(node, constants, nested, folded):
    """name -> result of a node whose inputs are all constant, or None where it is left to the run."""
    if not all(name in constants or not name for name in node.inputs):
        return None
    inputs = [constants.get(name) for name in node.inputs]
    try:
        results = node.run(*inputs)
    except Exception as e:
        if nested:
            return None  # a branch that is never taken may be wrong
        raise _at_load(e, node) from e
    results = results if isinstance(results, tuple) else (results,)
    if not folded.keeps(results, inputs):
        return None
    check_outputs(node, results)
    protect(results)
    return {name: value for name, value in zip(node.outputs, results) if name}


def protect(results):
    """Constants are shared by all runs: nobody writes to them, and whoever hands them out copies them."""
    for value in results:
        if isinstance(value, list):
            protect(value)
        elif isinstance(value, np.ndarray):
            value.flags.writeable = False


def check_outputs(node, results):
    """That the operator computed every output that the node names."""
    for i, name in enumerate(node.outputs):
        if name and (i >= len(results) or results[i] is None and node.op_type not in OPTIONAL):
            raise UnsupportedError(f"{node.where}: output {i} ({name!r}) is not computed")
