"""Weights of the layers of a graph: which inputs of nodes they are, and graphs in which they are of another type."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rnnfast.errors import UnsupportedError
from rnnfast.native.weight_types import WEIGHT_TYPES, is_held
from rnnfast.onnx.graph import Graph, Node, constants_within
from rnnfast.onnx.loops import defined_names

# Operator -> the inputs that may be weights, of which the first that is a constant counts; W and R are two.
RECURRENT_OPERATORS = ("GRU", "LSTM", "RNN")
WEIGHT_INPUTS = dict.fromkeys(RECURRENT_OPERATORS, (1, 2)) | {"Conv": (1,), "Gemm": (1,), "MatMul": (1, 0)}
# The layouts of weights, by what a row is, that is, what is multiplied for one output: an index of all axes but the
# last (W and R of recurrent nodes), of the first axis, of the last, or of the last but one.
RECURRENT, ROWS, COLUMNS, LEFT = "recurrent", "rows", "columns", "left"
# The call of an operator whose weights are integers, and the type in which an LSTM holds them.
INTEGER_CALLS = {("com.microsoft", "DynamicQuantizeLSTM"): "int8"}


def layout(op_type: str, index: int, transposed: bool) -> str:
    """The layout of the weights at this input of an operator; `transposed` is the attribute transB of Gemm."""
    if op_type in RECURRENT_OPERATORS:
        return RECURRENT
    if op_type == "Conv" or op_type == "Gemm" and transposed:
        return ROWS
    return COLUMNS if index else LEFT


def axis_of_rows(layout: str, rank: int) -> int:
    """The axis of rows; RECURRENT weights count as [rows, values]."""
    return {RECURRENT: 0, ROWS: 0, COLUMNS: rank - 1, LEFT: rank - 2}[layout]


def as_columns(array: np.ndarray, layout: str) -> np.ndarray:
    """Weights of a layout as [K, N], whose columns are rows of the layout."""
    rows = array.reshape(-1, array.shape[-1]) if layout == RECURRENT else array
    axis = axis_of_rows(layout, rows.ndim)
    return np.ascontiguousarray(np.moveaxis(rows, axis, -1)).reshape(-1, rows.shape[axis])


def from_columns(columns: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """Weights [K, N], which `as_columns` made of an array of this shape, in its layout."""
    rows = (math.prod(shape[:-1]), shape[-1]) if layout == RECURRENT else shape
    axis = axis_of_rows(layout, len(rows))
    moved = columns.reshape(*rows[:axis], *rows[axis + 1 :], rows[axis])
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis)).reshape(shape)


def _weights(node: Node, known: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """The constant weights of a node by the indices of its inputs, where `known` has constants by name."""
    if node.domain or node.op_type not in WEIGHT_INPUTS:
        return {}
    indices = [i for i in WEIGHT_INPUTS[node.op_type] if i < len(node.inputs) and node.inputs[i] in known]
    if node.op_type == "MatMul":
        indices = indices[:1]
    arrays = {i: known[node.inputs[i]] for i in indices}
    return {i: array for i, array in arrays.items() if _is_matrix(array)}


def _layout(node: Node, index: int) -> str:
    """The layout of the weights at this input of a node."""
    return layout(node.op_type, index, bool(node.attributes.get("transB")))


def saved_bytes(node: Node, known: Mapping[str, Any]) -> int:
    """The bytes that the weights of a node take less in its type than in float32."""
    if node.weight_type is None:
        return 0
    saved = 0
    for i, array in _weights(node, known).items():
        saved += array.nbytes - WEIGHT_TYPES[node.weight_type].nbytes(*as_columns(array, _layout(node, i)).shape)
    return saved


def types_within(graph: Graph) -> set[str]:
    """The types of weights that nodes of a graph hold, and those of the graphs within it."""
    types = {node.weight_type for node in graph.nodes if node.weight_type is not None}
    return types.union(*(types_within(inner) for node in graph.nodes for inner in node.graphs.values()))


def with_weight_type(graph: Graph, weight_type: str | None, take: Callable[[int], None], cells: bool = False) -> Graph:
    """Return a folded graph whose layers have constant weights of a type, in the graphs within it too.

    Each node that has any is told the type, and reads weights that are rounded to it. A node that has a type keeps it.

    Args:
        graph: The graph.
        weight_type: A key of WEIGHT_TYPES; None leaves float32, except for operators whose weights are integers.
        take: Called with the bytes of weights before they are rounded; it may raise.
        cells: Whether layers without a type were put in the place of others, of whose rounded weights theirs are made:
            a type without integers is theirs only if they are values of it.

    Raises:
        UnsupportedError: A weight is not finite, or not in the type.
    """
    return _Rounding(take, cells, set(defined_names(graph))).rounded(graph, weight_type, {}, exact=False)


class _Rounding:
    """Rounds the weights of one graph and of those within it; `taken` are the names that they define."""

    def __init__(self, take: Callable[[int], None], cells: bool, taken: set[str]) -> None:
        self.take, self.cells, self.taken = take, cells, taken
        # (id of an array, layout, type) -> the array, and the same rounded or whether it is of the type
        self.made: dict[tuple[int, str, str], tuple[np.ndarray, np.ndarray]] = {}
        self.held: dict[tuple[int, str, str], tuple[np.ndarray, bool]] = {}

    def rounded(self, graph: Graph, weight_type: str | None, known: Mapping[str, Any], exact: bool) -> Graph:
        """A graph with typed layers; `known` has the constants among its inputs and captures.

        exact: whether only those layers get the type whose weights are values of it.
        """
        constants = collections.ChainMap({}, graph.constants, dict(known))
        names: dict[tuple[int, str], str] = {}  # of what is added to this graph
        nodes = [self.node(node, weight_type, constants, names, exact) for node in graph.nodes]
        if all(new is old for new, old in zip(nodes, graph.nodes)):
            return graph
        return dataclasses.replace(graph, nodes=tuple(nodes), constants={**graph.constants, **constants.maps[0]})

    def node(
        self,
        node: Node,
        weight_type: str | None,
        constants: collections.ChainMap[str, Any],
        names: dict[tuple[int, str], str],
        exact: bool,
    ) -> Node:
        """A node with its type, whose rounded weights are added to the constants of its graph."""
        if node.graphs:
            return self.within(node, weight_type, constants, exact)
        if weight_type is None or node.weight_type is not None:
            return node
        weights = _weights(node, constants)
        if not weights:
            return node
        layouts = {i: _layout(node, i) for i in weights}
        exact = exact or self.cells and not WEIGHT_TYPES[weight_type].integers
        whole = node.op_type not in RECURRENT_OPERATORS or len(weights) == 2
        if exact and not (whole and all(self.is_held(w, layouts[i], weight_type) for i, w in weights.items())):
            return node
        inputs = list(node.inputs)
        for i, array in weights.items():
            rounded = self.array(array, layouts[i], weight_type, f"{node.where}: input {i} ({inputs[i]!r})")
            if rounded is not array:
                name = names.get((id(rounded), inputs[i])) or self.unused(
                    f"{inputs[i]} ({WEIGHT_TYPES[weight_type].weights})"
                )
                names[id(rounded), inputs[i]] = name
                constants[name] = rounded
                inputs[i] = name
        return dataclasses.replace(node, inputs=tuple(inputs), weight_type=weight_type)

    def within(
        self, node: Node, weight_type: str | None, constants: collections.ChainMap[str, Any], exact: bool
    ) -> Node:
        """A node whose graphs have typed layers."""
        if weight_type is None and (node.domain, node.op_type) in INTEGER_CALLS:
            weight_type, exact = INTEGER_CALLS[node.domain, node.op_type], True
        graphs = {}
        for name, graph in node.graphs.items():
            graphs[name] = self.rounded(graph, weight_type, constants_within(node, graph, constants), exact)
        if any(graphs[name] is not graph for name, graph in node.graphs.items()):
            node = node.altered(attributes=node.attributes | graphs)
        if node.alternative is not None:
            graph = node.alternative.graph
            known = {capture: constants[capture] for capture in graph.captures if capture in constants}
            rounded = self.rounded(graph, weight_type, known, exact)
            if rounded is not graph:
                node = dataclasses.replace(node, alternative=node.alternative._replace(graph=rounded))
        return node

    def is_held(self, array: np.ndarray, layout: str, weight_type: str) -> bool:
        """Return whether weights are values of a type."""
        key = id(array), layout, weight_type
        if key not in self.held:
            self.held[key] = array, is_held(as_columns(array, layout), weight_type)
        return self.held[key][1]

    def array(self, array: np.ndarray, layout: str, weight_type: str, where: str) -> np.ndarray:
        """The weights rounded to a type, the array itself if it is of it."""
        key = id(array), layout, weight_type
        if key not in self.made:
            self.take(array.nbytes)
            if not np.all(np.isfinite(array)):
                raise UnsupportedError(
                    f"{where}: the weights are not finite, and cannot be {WEIGHT_TYPES[weight_type].weights}"
                )
            columns = WEIGHT_TYPES[weight_type].rounded(as_columns(array, layout))
            rounded = from_columns(columns, array.shape, layout)
            if not np.all(np.isfinite(rounded)):
                raise UnsupportedError(f"{where}: the weights are too large for {WEIGHT_TYPES[weight_type].weights}")
            if np.array_equal(rounded.view(np.int32), np.ascontiguousarray(array).view(np.int32)):
                rounded = array
            rounded.flags.writeable = False
            self.made[key] = array, rounded
        return self.made[key][1]

    def unused(self, name: str) -> str:
        """A name that no graph defines."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def _is_matrix(array: Any) -> bool:
    """Return whether a constant is a float32 array of two axes or more that has elements."""
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim >= 2 and array.size > 0
