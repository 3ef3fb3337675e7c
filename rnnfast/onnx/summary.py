"""What a model consists of: its layers with output shapes, parameters, floating-point operations and bytes."""

import math
from typing import NamedTuple

import numpy as np

from rnnfast.errors import Error
from rnnfast.onnx.ops.numeric import is_floating
from rnnfast.onnx.recurrent_nodes import KINDS

# The inputs of a recurrent node that are weights: W, R, B, P. A constant initial state is none.
RECURRENT_WEIGHTS = (1, 2, 3, 7)


class LayerSummary(NamedTuple):
    """A node that has parameters. shape and flops are None where the run that shows them did not come by."""

    name: str
    op_type: str
    shape: tuple | None
    parameters: int
    flops: int | None
    nbytes: int


class Summary(NamedTuple):
    """layers: in the graph's order; others: operator -> number of nodes without parameters; flops: of all nodes.

    problem: why the run that gives shapes ended early, or None.
    """

    layers: tuple
    others: dict
    flops: int
    problem: str | None

    def __str__(self):
        header = ("layer", "operator", "output shape", "parameters", "flops", "bytes")
        rows = [
            (
                l.name or "-",
                l.op_type,
                "?" if l.shape is None else "x".join(map(str, l.shape)) or "scalar",
                f"{l.parameters:,}",
                "?" if l.flops is None else f"{l.flops:,}",
                f"{l.nbytes:,}",
            )
            for l in self.layers
        ]
        parameters, nbytes = sum(l.parameters for l in self.layers), sum(l.nbytes for l in self.layers)
        total = ("total", "", "", f"{parameters:,}", f"{self.flops:,}", f"{nbytes:,}")
        widths = [max(map(len, column)) for column in zip(header, *rows, total)]
        lines = [_line(row, widths) for row in (header, *rows)]
        lines[1:1] = ["-" * len(lines[0])]
        lines += [lines[1], _line(total, widths)]
        if self.others:
            counts = ", ".join(f"{count} {op}" for op, count in sorted(self.others.items()))
            lines.append(f"without parameters: {counts}")
        if self.problem:
            lines.append(f"shapes end where zeros as input do not run; give inputs to see all ({self.problem})")
        return "\n".join(line.rstrip() for line in lines)


def _line(row, widths):
    return "  ".join(cell.ljust(n) if i < 3 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths)))


def summarise(model, feed):
    """The Summary of a Model, with the shapes of a call with `feed`; inputs that it lacks are zeros."""
    recorded = {}

    def record(node, inputs, outputs):
        if id(node) not in recorded:
            recorded[id(node)] = getattr(outputs[0], "shape", None), flops(node.op_type, inputs, outputs)

    zeros = {v.name: _zeros(v.type) for v in model.inputs if v.name in model.required_inputs}
    args = model.prepare(zeros | {name: feed[name] for name in feed})[1]
    planned = model.build(frozenset(name for name in feed if name in model.graph.constants), record=record)
    try:
        planned(args)
        problem = None
    except Error as e:
        problem = str(e)
    layers, others = [], {}
    _collect(planned.graph, {}, recorded, layers, others)
    return Summary(tuple(layers), others, sum(count for _, count in recorded.values()), problem)


def _zeros(type_):
    if type_.kind != "tensor":
        return None if type_.kind == "optional" else []
    return np.zeros([n if isinstance(n, int) else 1 for n in type_.shape or ()], type_.dtype)


def _collect(graph, known, recorded, layers, others):
    """Adds a graph's nodes, and those of the graphs within; `known`: name -> constant."""
    known = known | graph.constants
    for node in graph.nodes:
        for name, inner in node.graphs.items():
            outside = known
            if node.function is None:
                outside = {v.name: known[actual] for v, actual in zip(inner.inputs, node.inputs) if actual in known}
            _collect(inner, outside, recorded, layers, others)
        weights = _weights(node, known)
        shape, count = recorded.get(id(node), (None, None))
        if weights:
            layers.append(
                LayerSummary(
                    node.name, node.op_type, shape, sum(w.size for w in weights), count, sum(w.nbytes for w in weights)
                )
            )
        elif not node.graphs:
            others[node.op_type] = others.get(node.op_type, 0) + 1


def _weights(node, known):
    """The constant arrays of a node that count as parameters."""
    places = RECURRENT_WEIGHTS if node.op_type in KINDS else range(len(node.inputs))
    arrays = [known[node.inputs[i]] for i in places if i < len(node.inputs) and node.inputs[i] in known]
    return [a for a in arrays if isinstance(a, np.ndarray) and a.size > 1 and (is_floating(a.dtype) or a.itemsize == 1)]


# Operators that compute nothing.
MOVES = {
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "Reshape",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Size",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}


def flops(op_type, inputs, outputs):
    """Floating-point operations of one run of a node: two for each multiply-add, none for what
    only moves data, else one for each output element."""
    sizes = [math.prod(getattr(y, "shape", ())) for y in outputs]
    if op_type in KINDS:
        X, W, R = inputs[:3]
        return 2 * math.prod(X.shape[:2]) * (W.size + R.size)
    if op_type in ("MatMul", "Gemm"):
        return 2 * sizes[0] * inputs[0].shape[-1]
    if op_type == "Conv":
        return 2 * sizes[0] * math.prod(inputs[1].shape[1:])
    if op_type == "ConvTranspose":
        return 2 * inputs[0].size * math.prod(inputs[1].shape[1:])
    return 0 if op_type in MOVES else sum(sizes)
