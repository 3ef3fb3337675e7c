"""Affine maps of a graph's values: what the gates of a cell take before their activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast.onnx.facts import UNKNOWN, Fact, parts_of, slice_of
from rnnfast.onnx.graph import Graph, Node

# ONNX operator -> the activation of recurrent nodes that it is, with the names and defaults of its parameters
ACTIVATIONS: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "Elu": ("Elu", (("alpha", 1.0),)),
    "HardSigmoid": ("HardSigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "LeakyRelu": ("LeakyRelu", (("alpha", 0.01),)),
    "Relu": ("Relu", ()),
    "Sigmoid": ("Sigmoid", ()),
    "Softplus": ("Softplus", ()),
    "Softsign": ("Softsign", ()),
    "Tanh": ("Tanh", ()),
}
MAX_TERMS, MAX_DEPTH = 64, 64  # of an affine map, and of the sums within sums
WHOLE = 2**31 - 1  # the end of a Slice that exporters write for all


class Activation(NamedTuple):
    """An activation of a recurrent node: its name and parameters."""

    name: str
    parameters: tuple[float, ...] = ()


class Source(NamedTuple):
    """A factor of an affine map: a value, or one slice of it along an axis.

    position: where the slice is; the name of a body's value if that says it; None for the whole value.
    """

    name: str
    axis: int = 0
    position: int | str | None = None


class Part(NamedTuple):
    """Some columns of a constant matrix [K, N], or some elements of a vector [N]."""

    array: np.ndarray
    start: int
    stop: int

    def values(self) -> np.ndarray:
        """The columns, or the elements; a scalar is repeated."""
        if self.array.size == 1 and self.array.ndim <= 1:
            return np.broadcast_to(self.array.reshape(-1), (self.stop - self.start,))
        return self.array[..., self.start : self.stop]

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that equal parts of one constant share."""
        interface = self.array.__array_interface__
        return interface["data"][0], self.array.shape, interface["strides"], self.start, self.stop


class Affine(NamedTuple):
    """The map sum of source . matrix + sum of source * vector + sum of biases.

    An entry of `products` has None in place of a Part if the columns of the source itself are added; `columns` says
    which. joined: whether sources are joined before the product, so that they must have equal numbers of rows.
    """

    products: tuple[tuple[Source, Part | None, tuple[int, int]], ...] = ()
    diagonals: tuple[tuple[Source, Part], ...] = ()
    biases: tuple[Part, ...] = ()
    joined: bool = False

    def plus(self, other: Affine) -> Affine:
        """The sum of both."""
        return Affine(
            self.products + other.products,
            self.diagonals + other.diagonals,
            self.biases + other.biases,
            self.joined or other.joined,
        )

    def bias(self, size: int) -> np.ndarray:
        """The sum of the biases."""
        total = np.zeros(size)
        for part in self.biases:
            total += part.values().reshape(-1)
        return total


class Values:
    """The values of a folded graph, and how they are made.

    around: those of the graph around it. read: the names that nodes or outputs read.
    """

    def __init__(self, graph: Graph, facts: Mapping[str, Fact], around: Values | None = None) -> None:
        self.graph, self.facts, self.around = graph, facts, around
        self.makers = {name: node for node in graph.nodes for name in node.outputs if name}
        self.read = {v.name for v in graph.outputs}.union(*(node.needs for node in graph.nodes))
        self._origins: dict[str, str] = {}
        self._bases: dict[str, tuple[str, int]] = {}
        self._activated: dict[str, Any] = {}
        self._affine: dict[Any, Affine | None] = {}
        self._depth = 0

    def fact(self, name: str) -> Fact:
        """Return the facts of a value."""
        return self.facts.get(name, UNKNOWN)

    def maker(self, name: str) -> Node | None:
        """The node of this graph that makes a value, if it is one of ONNX's operators and has no graphs."""
        node = self.makers.get(name)
        return None if node is None or node.domain or node.graphs or node.function is None else node

    def origin(self, name: str) -> str:
        """The name of the value that is only copied to `name`."""
        copies = []
        while name not in self._origins:
            copies.append(name)
            node = self.maker(name)
            if node is None or not self.copies(node):
                self._origins[name] = name
                break
            name = node.inputs[0]
        origin = self._origins[name]
        self._origins.update(dict.fromkeys(copies, origin))
        return origin

    def copies(self, node: Node) -> bool:
        """Return whether a node only hands on its input."""
        if node.domain:
            return False
        if node.op_type == "Cast":
            dtype = self.fact(node.inputs[0]).dtype
            return dtype is not None and np.dtype(node.attributes["to"]) == dtype
        return node.op_type == "Identity"

    def constant(self, name: str) -> np.ndarray | None:
        """The array of a constant, here or around."""
        if name in self.graph.constants:
            value = self.graph.constants[name]
            return value if isinstance(value, np.ndarray) else None
        if self.around is None or self.defines(name):
            return None
        return self.around.constant(name)

    def defines(self, name: str) -> bool:
        """Return whether a value is one of this graph, not of those around it."""
        return name in self.graph.constants or name in self.makers or any(v.name == name for v in self.graph.inputs)

    def single(self, name: str) -> float | None:
        """The value of a constant of one element."""
        value = self.constant(name)
        return None if value is None or value.size != 1 else value.item()

    # ------------------------------------------------------------------------------------------ columns
    def columns(self, name: str) -> tuple[str, int, int] | None:
        """(the value whose columns [start, stop) a value is, start, stop) behind all cuts along the last axis."""
        name = self.origin(name)
        shape = self.fact(name).shape
        if not shape or not isinstance(shape[-1], int):
            return None
        base, start = self._uncut(name)
        return base, start, start + shape[-1]

    def _uncut(self, name: str) -> tuple[str, int]:
        """(the value behind all cuts along the last axis, the first column of it that `name` has)."""
        passed: list[tuple[str, int]] = []
        while name not in self._bases:
            cut = self._cut(name)
            if cut is None:
                self._bases[name] = name, 0
                break
            passed.append((name, cut[1]))
            name = cut[0]
        base, start = self._bases[name]
        for cut_name, first in reversed(passed):
            start += first
            self._bases[cut_name] = base, start
        return base, start

    def _cut(self, name: str) -> tuple[str, int] | None:
        """(the value that a Split or Slice cuts along its last axis to give a value, the first column)."""
        node = self.maker(name)
        if node is None or node.op_type not in ("Split", "Slice"):
            return None
        facts = [self.fact(n) if n else None for n in node.inputs]
        shape = self.fact(node.inputs[0]).shape
        if not shape or self.fact(name).shape is None:
            return None
        last = len(shape) - 1
        if node.op_type == "Split":
            sizes = parts_of(node, facts)
            if node.attributes.get("axis", 0) % len(shape) != last or sizes is None:
                return None
            return self.origin(node.inputs[0]), sum(sizes[: node.outputs.index(name)])
        cuts = [cut for cut in slice_of(node, facts) or () if cut[1] != 0 or cut[2] < WHOLE or cut[3] != 1]
        if len(cuts) != 1 or cuts[0][0] != last or cuts[0][3] != 1 or not isinstance(shape[-1], int):
            return None
        return self.origin(node.inputs[0]), range(shape[-1])[slice(cuts[0][1], cuts[0][2])].start

    # ------------------------------------------------------------------------------------------ maps
    def activated(self, name: str) -> tuple[Activation, Affine] | None:
        """The activation that gives a value, and the affine map that it takes; None for other values."""
        name = self.origin(name)
        if name not in self._activated:
            self._activated[name] = self._find_activated(name)
        return self._activated[name]

    def _find_activated(self, name: str) -> tuple[Activation, Affine] | None:
        found = self.columns(name)
        if found is None:
            return None
        base, start, stop = found
        before = self.before_activation(base)
        if before is None:
            return None
        affine = self.affine(before[1], start, stop)
        return None if affine is None else (before[0], affine)

    def before_activation(self, name: str) -> tuple[Activation, str] | None:
        """(the activation that gives a value, the value that it takes)."""
        node = self.maker(self.origin(name))
        if node is None:
            return None
        if node.op_type in ("Clip", "Div", "Mul"):
            return self._hard_sigmoid(node)
        if node.op_type not in ACTIVATIONS:
            return None
        activation, parameters = ACTIVATIONS[node.op_type]
        return (
            Activation(activation, tuple(node.attributes.get(key, default) for key, default in parameters)),
            self.origin(node.inputs[0]),
        )

    def _hard_sigmoid(self, node: Node) -> tuple[Activation, str] | None:
        """The activation of factor * clip(a x + b, least, most), if that goes from 0 to 1."""
        factor = 1.0
        if node.op_type != "Clip":
            name, factor = self._by_constant(node)
            clip = self.maker(self.origin(name)) if name else None
            if clip is None or clip.op_type != "Clip":
                return None
            node = clip
        least, most = node.attributes.get("min"), node.attributes.get("max")
        if len(node.inputs) > 1:
            least, most = (self.single(name) for name in (*node.inputs[1:], "", "")[:2])
        if least != 0 or most is None or np.float32(most * factor) != 1:
            return None
        name, a, b = self.origin(node.inputs[0]), 1.0, 0.0
        added = self.maker(name)
        if added is not None and added.op_type == "Add":
            for one, other in (added.inputs, added.inputs[::-1]):
                constant = self.single(other)
                if constant is not None:
                    name, b = self.origin(one), constant
                    break
        scaled = self.maker(name)
        if scaled is not None and scaled.op_type in ("Mul", "Div"):
            inner, scale = self._by_constant(scaled)
            name, a = (self.origin(inner), scale) if inner else (name, a)
        return Activation("HardSigmoid", (a * factor, b * factor)), name

    def _by_constant(self, node: Node) -> tuple[str, float]:
        """(the value, the factor) of a Mul or Div by a single constant; ("", 1) for others."""
        one, other = node.inputs
        if node.op_type == "Mul" and self.single(one) is not None:
            one, other = other, one
        constant = self.single(other)
        if constant is None or node.op_type == "Div" and constant == 0:
            return "", 1.0
        return one, constant if node.op_type == "Mul" else 1 / constant

    def affine(self, name: str, start: int, stop: int, at: tuple[int, int | str] | None = None) -> Affine | None:
        """The columns [start, stop) of a value as an affine map of float32 values.

        at: (axis, index) of the slice of the value that is meant; None for the whole value. None is returned for values
        that no float32 product or sum of such gives.
        """
        name, first = self._uncut(self.origin(name))
        key = name, start + first, stop + first, at
        if key not in self._affine:
            if self._depth == MAX_DEPTH:
                return None
            self._depth += 1
            try:
                found = self._find_affine(*key)
            finally:
                self._depth -= 1
            self._affine[key] = None if found is None or len(found.products) + len(found.biases) > MAX_TERMS else found
        return self._affine[key]

    def _find_affine(self, name: str, start: int, stop: int, at: tuple[int, int | str] | None) -> Affine | None:
        constant = self.constant(name)
        if constant is not None:
            return self._constant(constant, start, stop, at)
        node, shape = self.maker(name), self.fact(name).shape
        if self.fact(name).dtype != np.float32 or shape is None:
            return None
        found = None
        if node is not None and node.op_type in AFFINE:
            found = AFFINE[node.op_type](self, node, start, stop, at)
        return found or Affine(((_source(name, at), None, (start, stop)),))

    def _constant(self, value: np.ndarray, start: int, stop: int, at: Any) -> Affine | None:
        if value.dtype != np.float32 or math.prod(value.shape[:-1]) != 1 or at and value.ndim > 1:
            return None
        vector = value.reshape(-1)
        if vector.size != 1 and stop > vector.size:
            return None
        return Affine(biases=(Part(vector, start, stop),))

    def _product(self, node: Node, start: int, stop: int, at: Any) -> Affine | None:
        """A MatMul by a constant matrix."""
        weight = self.constant(node.inputs[1])
        return None if weight is None or weight.ndim != 2 else self._products(node.inputs[0], weight, start, stop, at)

    def _products(self, name: str, weight: np.ndarray, start: int, stop: int, at: Any) -> Affine | None:
        """The product of a value, or of several that are joined, with a constant matrix [K, N]."""
        if weight.dtype != np.float32:
            return None
        name = self.origin(name)
        node, shape = self.maker(name), self.fact(name).shape
        if not shape:
            return None
        if node is not None and node.op_type == "Concat" and node.attributes["axis"] % len(shape) == len(shape) - 1:
            row, products = 0, []
            for part in node.inputs:
                part_shape = self.fact(part).shape
                if part_shape is None or not isinstance(part_shape[-1], int):
                    return None
                end = row + part_shape[-1]
                products.append((self._slice_of(self.origin(part), at), Part(weight[row:end], start, stop), (0, 0)))
                row = end
            return Affine(tuple(products), joined=True) if row == len(weight) else None
        return Affine(((self._slice_of(name, at), Part(weight, start, stop), (0, 0)),))

    def _slice_of(self, name: str, at: tuple[int, int | str] | None) -> Source:
        """The source that is a value, or a slice of it; a value that is a slice of another is that slice."""
        if at is not None:
            return Source(name, *at)
        found = self.slice_taken(name)
        return Source(name) if found is None else Source(found[0], found[1], found[2])

    def slice_taken(self, name: str) -> tuple[str, int, int | str] | None:
        """(the tensor, the axis, the index) if a value is one slice of a tensor along an axis that is not the last."""
        node = self.maker(name)
        if node is None or self.fact(name).shape is None:
            return None
        shape = self.fact(node.inputs[0]).shape
        if node.op_type == "Gather" and shape and self.fact(node.inputs[1]).shape == ():
            axis, index = node.attributes.get("axis", 0) % len(shape), self.constant(node.inputs[1])
            if axis == len(shape) - 1:
                return None
            return self.origin(node.inputs[0]), axis, self.origin(node.inputs[1]) if index is None else index.item()
        if node.op_type == "Squeeze":
            return self._squeezed(node)
        return None

    def _squeezed(self, node: Node) -> tuple[str, int, int] | None:
        """The slice that a Squeeze takes of one that a Split or Slice cut."""
        shape, cut = self.fact(node.inputs[0]).shape, self.maker(self.origin(node.inputs[0]))
        axes = node.attributes.get("axes") if len(node.inputs) < 2 else self.constant(node.inputs[1])
        if not shape or cut is None or axes is None or np.size(axes) != 1:
            return None
        axis, name = int(np.ravel(axes)[0]) % len(shape), self.origin(node.inputs[0])
        facts = [self.fact(n) if n else None for n in cut.inputs]
        if axis == len(shape) - 1 or facts[0] is None or facts[0].shape is None:
            return None
        if cut.op_type == "Split" and cut.attributes.get("axis", 0) % len(shape) == axis:
            sizes = parts_of(cut, facts)
            if sizes is not None and set(sizes) == {1}:
                return self.origin(cut.inputs[0]), axis, cut.outputs.index(name)
        if cut.op_type == "Slice":
            cuts = slice_of(cut, facts)
            if cuts is not None and len(cuts) == 1 and cuts[0][0] == axis and cuts[0][3] == 1:
                start, end = cuts[0][1:3]
                if 0 <= start and end == start + 1:
                    return self.origin(cut.inputs[0]), axis, start
        return None

    def _gemm(self, node: Node, start: int, stop: int, at: Any) -> Affine | None:
        settings = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | node.attributes
        weight = self.constant(node.inputs[1])
        if weight is None or settings["alpha"] != 1 or settings["beta"] != 1 or settings["transA"] or at:
            return None
        found = self._products(node.inputs[0], weight.T if settings["transB"] else weight, start, stop, at)
        if found is None or len(node.inputs) < 3 or not node.inputs[2]:
            return found
        bias = self.affine(node.inputs[2], start, stop)
        return None if bias is None else found.plus(bias)

    def _sum(self, node: Node, start: int, stop: int, at: Any) -> Affine | None:
        total, whole = Affine(), self.fact(node.outputs[0]).shape
        for name in node.inputs:
            shape = self.fact(name).shape
            if shape is None or whole is None:
                return None
            if at is not None and self.constant(name) is None:
                axis = at[0]
                if len(shape) != len(whole) or shape[axis] == 1 or shape[axis] != whole[axis]:
                    return None
                if shape[axis] is None and isinstance(at[1], int):
                    return None  # Tensors of one slice and of several may be added.
            elif shape[-1:] not in (whole[-1:], ()) and self.constant(name) is None:
                return None
            part = self.affine(name, start, stop, at)
            if part is None:
                return None
            total = total.plus(part)
        return total

    def _scaled(self, node: Node, start: int, stop: int, at: Any) -> Affine | None:
        """A value multiplied, element by element, by a constant row."""
        for name, factor in (node.inputs, node.inputs[::-1]):
            value = self.constant(factor)
            if value is None or value.dtype != np.float32 or value.ndim == 0 or value.size != value.shape[-1] or at:
                continue
            if self.fact(name).shape and self.fact(name).shape[-1] == value.size:  # type: ignore[index]
                return Affine(diagonals=((Source(self.origin(name)), Part(value.reshape(-1), start, stop)),))
        return None

    def _taken(self, node: Node, start: int, stop: int, at: Any) -> Affine | None:
        """A slice of a tensor: the map that gives the tensor holds for each slice."""
        found = self.slice_taken(node.outputs[0])
        if found is None or at is not None:
            return None
        name, axis, index = found
        return self.affine(name, start, stop, (axis, index))


def _source(name: str, at: tuple[int, int | str] | None) -> Source:
    return Source(name) if at is None else Source(name, *at)


AFFINE = {
    "Add": Values._sum,
    "Gather": Values._taken,
    "Gemm": Values._gemm,
    "MatMul": Values._product,
    "Mul": Values._scaled,
    "Squeeze": Values._taken,
}
