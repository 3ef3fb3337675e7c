"""Summary of a model: its layers with output shapes, parameters, floating-point operations and bytes."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import Error, printable
from rnnfast.native.weight_types import NAMES, WEIGHT_TYPES
from rnnfast.onnx.graph import Graph, Node, Type, constants_within
from rnnfast.onnx.ops.numeric import is_floating
from rnnfast.onnx.recurrent_nodes import CELL_KINDS
from rnnfast.onnx.weights import saved_bytes

# Indices of the inputs of a recurrent node that are weights: W, R, B and P, but not the initial states.
RECURRENT_WEIGHTS = (1, 2, 3, 7)


class LayerSummary(NamedTuple):
    """A node that has parameters.

    Attributes:
        name: The node's name in the file.
        op_type: Its operator.
        shape: The shape of its first output; None if the run that shows it did not reach the node.
        parameters: The number of its parameters.
        flops: The floating-point operations of one run; None if the run did not reach the node.
        nbytes: The bytes of its parameters, those of its weights in their type.
        weights: The type of its weights: that of the file's, or int8, fp16 or bf16 if they were rounded at load.
    """

    name: str
    op_type: str
    shape: tuple[int, ...] | None
    parameters: int
    flops: int | None
    nbytes: int
    weights: str


class Summary(NamedTuple):
    """The layers of a model; `str` gives a table of them.

    Attributes:
        layers: The nodes that have parameters, in the order of the graph.
        others: For each operator the number of nodes without parameters.
        flops: The floating-point operations of all nodes in one call.
        problem: Why the run that gives shapes ended early; None if it did not.
    """

    layers: tuple[LayerSummary, ...]
    others: dict[str, int]
    flops: int
    problem: str | None

    def __str__(self) -> str:
        header = ("layer", "operator", "output shape", "parameters", "flops", "bytes", "weights")
        rows = [
            (
                printable(l.name) or "-",
                printable(l.op_type),
                "?" if l.shape is None else "x".join(map(str, l.shape)) or "scalar",
                f"{l.parameters:,}",
                "?" if l.flops is None else f"{l.flops:,}",
                f"{l.nbytes:,}",
                l.weights,
            )
            for l in self.layers
        ]
        parameters, nbytes = sum(l.parameters for l in self.layers), sum(l.nbytes for l in self.layers)
        total = ("total", "", "", f"{parameters:,}", f"{self.flops:,}", f"{nbytes:,}", "")
        widths = [max(map(len, column)) for column in zip(header, *rows, total)]
        if not any(l.weights in NAMES for l in self.layers):
            widths.pop()  # and with it the column, as nothing was rounded
        lines = [_line(row, widths) for row in (header, *rows)]
        lines[1:1] = ["-" * len(lines[0])]
        lines += [lines[1], _line(total, widths)]
        if self.others:
            counts = ", ".join(f"{count} {printable(op)}" for op, count in sorted(self.others.items()))
            lines.append(f"without parameters: {counts}")
        if self.problem:
            lines.append(
                f"shapes end where zeros as input do not run; give inputs to see all ({printable(self.problem)})"
            )
        return "\n".join(line.rstrip() for line in lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """A line of the table: three columns of text, three of numbers, and one of text if it has a width."""
    return "  ".join(cell.rjust(n) if 3 <= i < 6 else cell.ljust(n) for i, (cell, n) in enumerate(zip(row, widths)))


def summarise(model: Any, feed: Mapping[str, Any]) -> Summary:
    """Summarise a Model with the shapes of a call with `feed`; required inputs that it lacks are zeros."""
    recorded: dict[int, tuple[tuple[int, ...] | None, int]] = {}

    def record(node, inputs, outputs):
        if id(node) not in recorded:
            recorded[id(node)] = getattr(outputs[0], "shape", None), flops(node.op_type, inputs, outputs)

    absent = {v.name: zeros(v.type) for v in model.inputs if v.name in model.required_inputs}
    args = model.prepare(absent | {name: feed[name] for name in feed})[1]
    planned = model.build(frozenset(name for name in feed if name in model.graph.constants), record=record)
    try:
        planned(args)
        problem = None
    except Error as e:
        problem = str(e)
    layers: list[LayerSummary] = []
    others: dict[str, int] = {}
    _collect(planned.graph, collections.ChainMap(), recorded, layers, others)
    return Summary(tuple(layers), others, sum(count for _, count in recorded.values()), problem)


def zeros(type_: Type) -> Any:
    """An input of zeros, with length 1 along open dimensions: an empty sequence, or an absent optional."""
    if type_.kind != "tensor":
        return None if type_.kind == "optional" else []
    return np.zeros([n if isinstance(n, int) else 1 for n in type_.shape or ()], type_.dtype)


def _collect(
    graph: Graph,
    known: collections.ChainMap[str, Any],
    recorded: Mapping[int, tuple[tuple[int, ...] | None, int]],
    layers: list[LayerSummary],
    others: dict[str, int],
) -> None:
    """Add the nodes of a graph and of the graphs within to `layers` and `others`; `known` has constants by name."""
    known = collections.ChainMap(graph.constants, *known.maps)
    for node in graph.nodes:
        for inner in node.graphs.values():
            outside = collections.ChainMap(constants_within(node, inner, known))
            _collect(inner, outside, recorded, layers, others)
        calls = node.function is None and node.graphs
        weights = [] if calls else _weights(node, known)  # those of a call are in its body
        shape, count = recorded.get(id(node), (None, None))
        if weights:
            layers.append(
                LayerSummary(
                    node.name,
                    node.op_type,
                    shape,
                    sum(w.size for w in weights),
                    count,
                    sum(w.nbytes for w in weights) - saved_bytes(node, known),
                    str(weights[0].dtype) if node.weight_type is None else WEIGHT_TYPES[node.weight_type].weights,
                )
            )
        elif not node.graphs:
            others[node.op_type] = others.get(node.op_type, 0) + 1


def _weights(node: Node, known: Mapping[str, Any]) -> list[np.ndarray]:
    """The constant inputs of a node that count as parameters: floats and 8-bit integers of more than one element."""
    places = RECURRENT_WEIGHTS if node.op_type in CELL_KINDS else range(len(node.inputs))
    arrays = [known[node.inputs[i]] for i in places if i < len(node.inputs) and node.inputs[i] in known]
    return [a for a in arrays if isinstance(a, np.ndarray) and a.size > 1 and (is_floating(a.dtype) or a.itemsize == 1)]


# Operators that only move or create data.
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


# Convolution -> the index of its kernel
KERNELS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}


def flops(op_type: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Floating-point operations of one run of a node.

    A multiply-add counts as two, an operator that only moves data as none, any other as one for each output element.
    """
    sizes = [math.prod(getattr(y, "shape", ())) for y in outputs]
    if op_type in CELL_KINDS:
        X, W, R = inputs[:3]
        return 2 * math.prod(X.shape[:2]) * (W.size + R.size)
    if op_type in ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"):
        return 2 * sizes[0] * inputs[0].shape[-1]
    if op_type in KERNELS:
        return 2 * sizes[0] * math.prod(inputs[KERNELS[op_type]].shape[1:])
    if op_type == "ConvTranspose":
        return 2 * inputs[0].size * math.prod(inputs[1].shape[1:])
    return 0 if op_type in MOVES else sum(sizes)
