"""Finds the constant weights of a ModelProto, and lets nodes read them as they are stored in fewer bits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rnnfast.errors import Error
from rnnfast.model import Model
from rnnfast.onnx.weights import WEIGHT_INPUTS, layout
from rnnfast.quantization.weight_types import Stored, WeightType

# Operators that move values and change none: what they make of constants is a constant, which can be stored instead.
MOVING = {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
# Nodes that follow each other between a tensor and weights; published models have up to 3.
MAX_DEPTH = 100
FLOAT = 1  # TensorProto.DataType
# From this version of the file format on an initializer that is an input may be overridden by callers.
OVERRIDABLE_SINCE = 4


def own_bodies(node: Any) -> list[Any]:
    """The graphs that are attributes of a node."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def graphs_of(graph: Any) -> Iterator[Any]:
    """Yield the graph and all graphs within it."""
    yield graph
    for node in graph.node:
        for body in own_bodies(node):
            yield from graphs_of(body)


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators in a ModelProto."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


@dataclasses.dataclass(eq=False)
class Constant:
    """A constant of a graph: a tensor, or what a node makes of constants.

    Attributes:
        graph: The GraphProto that it is in.
        name: Its name there.
        tensor: The TensorProto, or None.
        node: The NodeProto of an operator that moves values, or None.
        inputs: The constants that the node reads.
        roots: The tensors that it is made of, each once.
        depth: The number of nodes from the furthest tensor to it.
    """

    graph: Any
    name: str
    tensor: Any = None
    node: Any = None
    inputs: tuple[Constant | None, ...] = ()
    roots: tuple[Constant, ...] = dataclasses.field(init=False)
    depth: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        made_of = [constant for constant in self.inputs if constant is not None]
        own = {} if self.tensor is None else {self: None}
        self.roots = tuple(own | dict.fromkeys(root for constant in made_of for root in constant.roots))
        self.depth = 1 + max((constant.depth for constant in made_of), default=-1)
        self._values: dict[int, np.ndarray | None] = {}

    @property
    def floating(self) -> bool:
        """True for a tensor of float32."""
        return self.tensor is not None and self.tensor.data_type == FLOAT

    def value(self, opset: int) -> np.ndarray | None:
        """The array, or None if it cannot be computed."""
        if opset not in self._values:
            self._values[opset] = self._computed(opset)
        return self._values[opset]

    def _computed(self, opset: int) -> np.ndarray | None:
        from onnx import helper, numpy_helper

        if self.tensor is not None:
            return numpy_helper.to_array(self.tensor)
        values = [None if constant is None else constant.value(opset) for constant in self.inputs]
        if any(value is None and constant is not None for value, constant in zip(values, self.inputs)):
            return None
        tensors = {
            name: numpy_helper.from_array(value, name)
            for name, value in zip(self.node.input, values)
            if value is not None
        }
        graph = helper.make_graph([self.node], "constant", [], [], list(tensors.values()))
        graph.output.add().name = self.name
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        try:
            return Model(model.SerializeToString())()[self.name]
        except Error:
            return None


@dataclasses.dataclass(eq=False)
class Reader:
    """A node that reads constant weights.

    Attributes:
        node: The NodeProto.
        index: Which of its inputs the weights are.
        weights: The constant.
        layout: What a row of the weights is.
    """

    node: Any
    index: int
    weights: Constant
    layout: str

    @property
    def name(self) -> str:
        """The name of the node, or of its first output if it has none."""
        return self.node.name or next(filter(None, self.node.output), "")

    def array(self, opset: int) -> np.ndarray | None:
        """The weights, or None if they are no float32 matrix or the like."""
        array = self.weights.value(opset)
        if array is None or array.dtype != np.float32 or array.ndim < 2 or not array.size:
            return None
        return array


def find_readers(model: Any, overridable: bool = False) -> list[Reader]:
    """The readers of a ModelProto whose tensors are all in it, in the order of the file.

    Initializers that are inputs too, so that callers may override them, are weights only if `overridable` says so.
    """
    readers: list[Reader] = []
    _visit(model.graph, {}, overridable or model.ir_version < OVERRIDABLE_SINCE, readers)
    return readers


def _visit(graph: Any, outer: dict[str, Constant], overridable: bool, readers: list[Reader]) -> None:
    """Append the readers of a graph and of the bodies in it; `outer` has the constants of the graphs around it."""
    inputs = {value.name for value in graph.input}
    computed = inputs | {name for node in graph.node for name in node.output}
    scope = {name: constant for name, constant in outer.items() if name not in computed}
    for tensor in graph.initializer:
        if overridable or tensor.name not in inputs:
            scope[tensor.name] = Constant(graph, tensor.name, tensor)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            pass
        elif node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    scope[node.output[0]] = Constant(graph, node.output[0], attribute.t)
                elif attribute.name in ("value_int", "value_ints"):
                    scope[node.output[0]] = Constant(graph, node.output[0], _integers(attribute))
        elif node.op_type in MOVING and all(not name or name in scope for name in node.input):
            constants = tuple(scope[name] if name else None for name in node.input)
            for name in filter(None, node.output):
                constant = Constant(graph, name, None, node, constants)
                if constant.depth <= MAX_DEPTH:
                    scope[name] = constant
    for node in graph.node:
        if node.domain in ("", "ai.onnx"):
            for index in WEIGHT_INPUTS.get(node.op_type, ()):
                if index == 0 and node.input[1] in scope:
                    continue
                if index < len(node.input) and node.input[index] in scope:
                    readers.append(Reader(node, index, scope[node.input[index]], _layout(node, index)))
        for body in own_bodies(node):
            _visit(body, scope, overridable, readers)


def _integers(attribute: Any) -> Any:
    """The tensor of a Constant node's attribute value_int or value_ints."""
    from onnx import numpy_helper

    value = attribute.i if attribute.name == "value_int" else list(attribute.ints)
    return numpy_helper.from_array(np.array(value, np.int64))


def _layout(node: Any, index: int) -> str:
    """The layout of a node's weights."""
    return layout(node.op_type, index, any(a.name == "transB" and a.i for a in node.attribute))


class Rewriter:
    """Stores the weights of a ModelProto in other types.

    Equal weights of one graph are stored once, whatever makes them; or once for each layout in which they are read, if
    that matters.
    """

    def __init__(self, model: Any) -> None:
        self._opset = opset_of(model)
        graphs = list(graphs_of(model.graph))
        self._taken = {name for graph in graphs for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {tensor.name for graph in graphs for tensor in (*graph.initializer, *graph.input, *graph.output)}
        self._stored: dict[Any, Stored] = {}

    def stored(self, reader: Reader, array: np.ndarray, weight_type: WeightType) -> Stored:
        """Store a reader's weights, in the graph of the tensors that they are made of."""
        roots = {id(root.graph): root.graph for root in reader.weights.roots if root.floating}
        home = next(iter(roots.values())) if len(roots) == 1 else reader.weights.graph
        name = reader.weights.name
        key = id(home), fingerprint(array), weight_type, reader.layout if weight_type.by_rows else ""
        if key not in self._stored:
            stored = self._stored[key] = weight_type.store(array, reader.layout, name, self.new_name, self._opset)
            home.initializer.extend(stored.tensors)
            for node in reversed(stored.nodes):
                home.node.insert(0, node)
        return self._stored[key]

    def new_name(self, name: str) -> str:
        """A name that is not taken, which it takes."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def fingerprint(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """The same for arrays of equal shapes and values, and another for all others."""
    return array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes()).digest()


def remove_unread(model: Any, candidates: Iterable[Constant]) -> None:
    """Remove those of the constants, and of what they are made of, that nothing reads any more.

    The entries of removed initializers among the graph's inputs go too.
    """
    waiting = list(candidates)
    removed: set[Constant] = set()
    while waiting:
        constant = waiting.pop(0)
        if constant in removed:
            continue
        names = set(constant.node.output) if constant.node is not None else {constant.name}
        if names & _read(model):
            continue
        removed.add(constant)
        graph = constant.graph
        for node in [node for node in graph.node if names & set(node.output)]:
            graph.node.remove(node)
        for field in (graph.initializer, graph.input, graph.value_info):
            for value in [value for value in field if value.name in names]:
                field.remove(value)
        waiting += [inner for inner in constant.inputs if inner is not None]


def _read(model: Any) -> set[str]:
    """The names that nodes read or graphs give."""
    graphs = list(graphs_of(model.graph))
    names = {name for graph in graphs for node in graph.node for name in node.input}
    return {*names, *(value.name for graph in graphs for value in graph.output)}
