"""What rounding can do to a result: the float64 reference with noise around every node."""

import dataclasses

import numpy as np

from rnnfast.onnx.float64 import widen
from rnnfast.onnx.folding import LoadBudget, fold
from rnnfast.onnx.lowering import lower_reference
from rnnfast.onnx.trace import PlannedGraph

RECURRENT, CONVOLUTIONS = {"RNN", "LSTM", "GRU"}, {"Conv", "ConvTranspose"}
SUMS = {"MatMul", "Gemm", "Einsum", "CumSum", "AveragePool", "GlobalAveragePool", "Sum", "Mean"}
SMALLEST_GATE = 2.0**-62  # v_sigmoid_below of kernels/vmath.h


def noisy_reference(model, feed, seed, size):
    """The outputs in float64 with noise of some size in what every node takes and gives: what rounding can do.

    The noise is relative to each value, and a part of it to the largest one, which is larger for nodes that sum. That
    of seed 0 has zeros for denormals too, as native arithmetic has (docs/promises.md). The gates of recurrent nodes are
    never 0 natively.
    """
    rng = np.random.default_rng(seed)

    def with_noise(value, of_largest=size / 100):
        if isinstance(value, (list, tuple)):
            return type(value)(with_noise(member, of_largest) for member in value)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        if not seed:
            value, of_largest = np.where(np.abs(value) < np.finfo(np.float32).tiny, 0 * value, value), 0
        absolute = of_largest * np.abs(value[np.isfinite(value)]).max(initial=0)
        noise, more = rng.standard_normal((2, *value.shape))
        return np.asarray(value * (1 + size * noise) + absolute * more, value.dtype)

    def meter(step):
        name = step.node.op_type
        sums = name in RECURRENT | CONVOLUTIONS | SUMS or name.startswith("Reduce") or name.endswith("Normalization")

        def run(*args):
            results = with_noise(step.run(*map(with_noise, args)), size / 10 if sums else size / 100)
            if name not in RECURRENT:
                return results
            return tuple(y if y is None else y + SMALLEST_GATE * rng.standard_normal(y.shape) for y in results)

        return run

    return run_reference(model, feed, meter)


def run_reference(model, feed, meter):
    """The outputs in float64; `meter` makes the callables of steps, which are all nodes, as initializers are inputs."""
    planned, args = model.prepare(feed)
    known = model.graph.constants | dict(zip(planned.names, args))
    graph, args = widen(dataclasses.replace(model.graph, constants={})), widen(list(known.values()))
    with np.errstate(all="ignore"):
        graph = fold(graph, lower_reference, load_budget=LoadBudget(model.limits, 0))
        planned = PlannedGraph(graph, list(known), model.source.label, meter=meter, specialises=True)
        planned.plan(args)  # A trace would run the steps without a meter.
        return planned.run(args)


def largest_result(model, feed):
    """The largest finite magnitude among the float64 results of all steps."""
    largest = 0.0

    def meter(step):
        def run(*args):
            nonlocal largest
            results = step.run(*args)
            for value in results if isinstance(results, tuple) else (results,):
                if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    largest = max(largest, np.abs(value[np.isfinite(value)]).max(initial=0))
            return results

        return run

    run_reference(model, feed, meter)
    return largest


def all_nodes(graph):
    """The nodes of a graph and of the graphs within it."""
    for node in graph.nodes:
        yield node
        for inner in (*node.graphs.values(), *([node.attributes["body"]] if node.function is None else [])):
            yield from all_nodes(inner)
