"""Rewrites graphs of float16 and bfloat16, when they are read, to graphs that compute in float32.

The inputs and outputs of the model keep their types: inputs are cast to float32 at once, outputs to their type at the
end. Nothing within is rounded to 16 bits: constants become float32 once, and casts between these types vanish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rnnfast.errors import ModelError
from rnnfast.onnx import ops
from rnnfast.onnx.graph import Graph, Node, Type, Value
from rnnfast.onnx.loops import OPSET, defined_names
from rnnfast.onnx.ops.numeric import is_half
from rnnfast.onnx.static_types import ListOf, Proof, contains_half

CASTS = ("Cast", "CastLike")
FLOAT32 = np.dtype(np.float32)


def in_float32(graph: Graph, proof: Proof, label: str, count: Callable[[int, str], None]) -> Graph:
    """Return the graph computed in float32; itself if it has no halves.

    It is returned as it is, too, where the type of a value is not proven, so that a call can refuse what does not fit,
    and where an input or output of the model is an optional of halves.

    Args:
        graph: The main graph of a model.
        proof: What is known of its types.
        label: The name of the file for messages.
        count: Called with the bytes and the location of constants before they become larger; it may raise.
    """
    if not proof.has_halves or not proof.is_whole:
        return graph
    if any(v.type.kind == "optional" and _has_halves(v.type) for v in (*graph.inputs, *graph.outputs)):
        return graph
    if proof.misdeclared:
        raise ModelError(proof.misdeclared[0])
    return _Rewriter(proof, label, count).main(graph)


def _has_halves(type_: Type) -> bool:
    """Return whether a type is of float16 or bfloat16 tensors."""
    return type_.dtype is not None and is_half(type_.dtype) or type_.element is not None and _has_halves(type_.element)


class _Rewriter:
    """Rewrites one model."""

    def __init__(self, proof: Proof, label: str, count: Callable[[int, str], None]) -> None:
        self.proof, self.label, self.count = proof, label, count
        self.widened: dict[int, tuple[Any, Any]] = {}  # id of an array -> (the array, the same in float32)
        self.taken: set[str] = set()

    def main(self, graph: Graph) -> Graph:
        """The main graph, with casts behind its inputs and in front of its outputs."""
        self.taken.update(defined_names(graph))
        inputs = [v for v in graph.inputs if _has_halves(v.type)]
        given = {v.name for v in graph.inputs}
        outputs = {
            v.name: dtype
            for v, dtype in zip(graph.outputs, self.proof.outputs)
            if dtype is not None and contains_half(dtype) and v.name not in given
        }
        names = {name: self.unused(f"{name} (float32)") for name in (*(v.name for v in inputs), *outputs)}
        casts = {
            node.outputs[0]: node.inputs[0]
            for node in graph.nodes
            if node.op_type in CASTS and not node.domain and id(node) not in self.proof.moves
        }
        before = [
            self.cast(v.name, names[v.name], FLOAT32 if v.type.kind == "tensor" else ListOf(FLOAT32), "input")
            for v in inputs
        ]
        after = []
        for name, dtype in outputs.items():
            # float64 is cast to this type at once: by way of float32 it would be rounded twice
            source = casts.get(name)
            after.append(self.cast(names[name] if source is None else names.get(source, source), name, dtype, "output"))
        # An initializer that a call may override stays what it is: the cast behind it is computed at load.
        kept = {name: array for name, array in graph.constants.items() if name in given}
        constants = {
            names.get(name, name): self.value(array, f"{self.label}: tensor {name!r}")
            for name, array in graph.constants.items()
            if name not in given
        }
        return dataclasses.replace(
            graph, constants=kept | constants, nodes=(*before, *self.nodes(graph, names), *after)
        )

    def unused(self, name: str) -> str:
        """This name, or a longer one, that no value has."""
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def cast(self, source: str, result: str, dtype: np.dtype | ListOf, kind: str) -> Node:
        """A node that casts an input or output, or the members of a list."""
        where = f"{self.label}: {kind} {result if kind == 'output' else source!r} (Cast)"
        if isinstance(dtype, ListOf):
            member, anything = self.cast("member", "cast member", dtype.dtype, kind), Type("tensor")
            inputs, outputs = (Value("member", anything),), (Value("cast member", anything),)
            attributes: dict[str, Any] = {"body": Graph("cast", inputs, outputs, {}, (member,), frozenset())}
            op_type = "SequenceMap"
        else:
            op_type, attributes = "Cast", {"to": dtype}
        function = ops.lookup("", op_type, OPSET)
        return Node(where, "", "", op_type, (source,), (result,), function, attributes, result_types=(dtype,))

    def nodes(self, graph: Graph, names: Mapping[str, str]) -> Iterator[Node]:
        """The nodes of a graph, which read and make values of other names where `names` has some."""
        for node in graph.nodes:
            yield from self.node(node, names)

    def inner(self, graph: Graph, names: Mapping[str, str], where: str) -> Graph:
        """A graph within another one."""
        if names:
            own = set(graph.constants).union((v.name for v in graph.inputs), *(node.outputs for node in graph.nodes))
            names = {old: new for old, new in names.items() if old not in own}
        return dataclasses.replace(
            graph,
            inputs=tuple([Value(v.name, _type(v.type)) for v in graph.inputs]),
            outputs=tuple([Value(names.get(v.name, v.name), _type(v.type)) for v in graph.outputs]),
            constants={name: self.value(array, where) for name, array in graph.constants.items()},
            nodes=tuple(self.nodes(graph, names)),
            captures=frozenset(names.get(name, name) for name in graph.captures),
        )

    def node(self, node: Node, names: Mapping[str, str]) -> Iterator[Node]:
        """The nodes that stand for a node."""
        inputs = tuple([names.get(name, name) for name in node.inputs])
        outputs = tuple([names.get(name, name) for name in node.outputs])
        if id(node) in self.proof.moves:
            function = ops.lookup("", "Identity", OPSET)
            yield Node(node.where, node.name, "", "Identity", inputs[:1], outputs, function, {}, None, (), ((0,),))
            return
        if id(node) in self.proof.bits:
            yield from self.bit_cast(node, inputs, outputs)
            return
        attributes = {name: self.value(value, node.where) for name, value in node.attributes.items()}
        for name, graph in node.graphs.items():
            # The graph of a function sees no values around it.
            attributes[name] = self.inner(graph, {} if node.function is None else names, node.where)
        yield dataclasses.replace(node, inputs=inputs, outputs=outputs, attributes=attributes)

    def bit_cast(self, node: Node, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Iterator[Node]:
        """A BitCast, whose halves must be halves."""
        source, result = inputs[0], outputs[0]
        before, after = self.proof.bits[id(node)], node.attributes["to"]
        if is_half(before):
            source = self.unused(f"{source} (bits)")
            yield dataclasses.replace(self.cast(inputs[0], source, before, "input"), where=node.where)
        if is_half(after):
            result = self.unused(f"{result} (bits)")
        yield dataclasses.replace(node, inputs=(source,), outputs=(result,))
        if is_half(after):
            yield dataclasses.replace(self.cast(result, outputs[0], FLOAT32, "output"), where=node.where)

    def value(self, value: Any, where: str) -> Any:
        """An array or dtype with float32 in place of halves, or the value itself; `where` is for messages."""
        if isinstance(value, np.ndarray):
            if not is_half(value.dtype):
                return value
            if id(value) not in self.widened:
                self.count(value.nbytes, where)
                wide = value.astype(np.float32)
                wide.flags.writeable = False
                self.widened[id(value)] = value, wide
            return self.widened[id(value)][1]
        return FLOAT32 if isinstance(value, np.dtype) and is_half(value) else value


def _type(type_: Type) -> Type:
    """The type with float32 in place of halves."""
    dtype = FLOAT32 if type_.dtype is not None and is_half(type_.dtype) else type_.dtype
    return dataclasses.replace(type_, dtype=dtype, element=type_.element and _type(type_.element))
