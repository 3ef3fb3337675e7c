"""Drops quantisers of values that are quantised already.

Tools write a QuantizeLinear and a DequantizeLinear behind each operator, also behind those that move values only. There
the pair has the scale and zero point of the pair before, whose results are the multiples n * scale of the integers n
that the type holds: its grid. Rounded to its own grid, a value stays as it is, to the bit: n * scale, which is rounded
once, and divided by the scale differ by less than 2^-22 of n, so that n is the nearest integer again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.onnx.graph import Graph, Node
from rnnfast.onnx.loops import renamed

INTEGERS = frozenset(map(np.dtype, (np.uint8, np.int8, np.uint16, np.int16)))
# Scales between these keep the multiples away from denormals, which count as zero, and from infinity.
SCALES = (1e-30, 1e30)
# Operators whose results are elements of their first input, or a zero that is not negative.
MOVES = frozenset(
    ("Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Relu", "Reshape", "Slice", "Split")
    + ("Squeeze", "Tile", "Transpose", "Unsqueeze")
)
# Operators whose results are elements of several inputs, by their indices.
JOINS = {
    "Where": slice(1, 3),
    "Concat": slice(None),
    "Max": slice(None),
    "Min": slice(None),
    "ScatterND": slice(0, 3, 2),
}


class Grid(NamedTuple):
    """The values that a DequantizeLinear of one scale and zero point can give."""

    scale: float
    zero: int
    dtype: np.dtype[Any]


def without_repeats(graph: Graph) -> Graph:
    """Return a graph whose nodes read a value itself in place of what the same quantiser would round it to again."""
    if not any(node.op_type == "DequantizeLinear" for node in graph.nodes):
        return graph
    kept = {v.name for v in graph.outputs}
    grids: dict[str, Grid] = {}  # of floats
    integers: dict[str, tuple[str, Grid]] = {}  # name of a float -> the integers of which it is made
    floats: dict[str, tuple[str, Grid]] = {}  # name of integers -> the float on its grid of which they are made
    names: dict[str, str] = {}
    for node in graph.nodes:
        inputs, result = [names.get(name, name) for name in node.inputs], next(iter(node.outputs), "")
        if node.domain or node.function is None or not result:
            continue
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            found = _grid_of_results(node, inputs, grids, graph.constants)
            grids.update((name, found) for name in node.outputs if name and found is not None)
            continue
        grid, made = _grid_of_quantiser(node, graph.constants), None
        if grid is None:
            continue
        if node.op_type == "DequantizeLinear":
            grids[result], integers[result], made = grid, (inputs[0], grid), floats.get(inputs[0])
        elif grids.get(inputs[0]) == grid:
            floats[result], made = (inputs[0], grid), integers.get(inputs[0])
        if made is not None and made[1] == grid and result not in kept:
            names[result] = made[0]
    return renamed(graph, names) if names else graph


def _grid_of_quantiser(node: Node, constants: Mapping[str, Any]) -> Grid | None:
    """The Grid of a quantiser with one known scale and zero point, else None."""
    scale, zero = (constants.get(name) for name in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
    if not isinstance(scale, np.ndarray) or not isinstance(zero, np.ndarray):
        return None
    usual = not any(node.attributes.get(name) for name in ("block_size", "output_dtype", "precision"))
    if not usual or scale.dtype != np.float32 or zero.dtype not in INTEGERS or scale.size * zero.size != 1:
        return None
    if scale.ndim > 1 or not SCALES[0] <= scale.item() <= SCALES[1]:
        return None
    return Grid(scale.item(), zero.item(), zero.dtype)


def _grid_of_results(
    node: Node, inputs: Sequence[str], grids: Mapping[str, Grid], constants: Mapping[str, Any]
) -> Grid | None:
    """The Grid of the results of any other node, or None."""
    if node.op_type in JOINS and node.attributes.get("reduction", "none") == "none":
        found = {grids.get(name) for name in inputs[JOINS[node.op_type]]}
        return found.pop() if len(found) == 1 else None
    if node.op_type == "Pad":
        value = constants.get(inputs[2]) if len(inputs) > 2 and inputs[2] else node.attributes.get("value", 0.0)
        zero = value is not None and np.all(value == 0) and not np.any(np.signbit(value))
        return grids.get(inputs[0]) if zero else None
    return grids.get(inputs[0]) if node.op_type in MOVES else None
