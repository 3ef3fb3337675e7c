"""Finds at load the nodes whose inputs cannot have the types that they need, also in branches that no call may take.

A type is known only where it is proven: by a declared input, a constant, an attribute such as that of Cast, or an
operator whose results have the type of an input or always the same. All else is left to the checks of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnfast.errors import ModelError
from rnnfast.onnx.ops.control import if_, loop, scan_8, scan_9, sequence_map
from rnnfast.onnx.ops.create import constant, constant_1, constant_of_shape
from rnnfast.onnx.ops.numeric import is_half
from rnnfast.onnx.tensors import type_name

if TYPE_CHECKING:
    from rnnfast.onnx.graph import Graph, Node, Type

CASTS = ("Cast", "CastLike", "BitCast")
FLOAT32 = np.dtype(np.float32)
# Attributes that give the type of a result.
GIVEN = ("to", "dtype", "output_dtype", "output_datatype", "stash_type")
# The types of results that neither an attribute, if there is one, nor ONNX's types of the operator give: a dtype, or
# the index of the input whose type they have.
OTHERWISE: dict[str, Any] = {
    **dict.fromkeys(("RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow"), FLOAT32),
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike", "Bernoulli", "EyeLike", "LinearAttention"), 0),
    **dict.fromkeys(("LayerNormalization", "MelWeightMatrix"), FLOAT32),
    "Multinomial": np.dtype(np.int32),
    "QuantizeLinear": np.dtype(np.uint8),
    "DequantizeLinear": 1,
    "Optional": 0,
    "OptionalGetElement": 0,
    "SequenceErase": 0,
}


class ListOf(NamedTuple):
    """The type of a sequence of tensors. dtype: the type of their elements."""

    dtype: np.dtype


ABSENT: Any = object()  # in place of a type
# The types of values: dtypes of tensors, and of sequences; None if a type is unknown.
Types = list["np.dtype | ListOf | None"]


class Proof:
    """Checks the types of a main graph, and notes what of it is float16 or bfloat16.

    `Proof(graph, label)` raises ModelError if inputs of a node that must have one type have two; `label` is the name of
    the file.

    Attributes:
        outputs: The types of the outputs of the graph.
        kinds: The types of all values, None if one is unknown.
        has_halves: Whether a value is known to be float16 or bfloat16, or a sequence of such tensors.
        is_whole: Whether the types of all values are known.
        moves: The ids of the nodes that cast float32, float16 or bfloat16 to another one of these.
        bits: The types of the inputs of BitCast nodes, by the ids of these.
        misdeclared: Errors for the outputs of graphs that are float16 or bfloat16, or declared so, but not both.
    """

    def __init__(self, graph: Graph, label: str) -> None:
        self.kinds: set[Any] = set()
        self.moves: set[int] = set()
        self.bits: dict[int, Any] = {}
        self.misdeclared: list[str] = []
        given: Types = [_declared(value.type) for value in graph.inputs]
        for i, value in enumerate(graph.inputs):
            if value.name in graph.constants and given[i] != graph.constants[value.name].dtype:
                given[i] = None  # a call may override it with another type
        self.outputs = self._graph(graph, {}, given, label)
        self.is_whole = None not in self.kinds
        self.has_halves = contains_half(*self.kinds - {None})

    def _graph(
        self, graph: Graph, around: Mapping[str, np.dtype | ListOf | None], given: Sequence[Any], where: str
    ) -> Types:
        """The types of the outputs of a graph, whose inputs have the types `given`, after a check of its nodes.

        around: the types of what it takes from the graphs around it. given: ABSENT for an input of a function that a
        call leaves out. where: the node whose graph it is.
        """
        types = dict(around)
        types |= {name: getattr(value, "dtype", None) for name, value in graph.constants.items()}
        for i, value in enumerate(graph.inputs):
            types[value.name] = given[i] if i < len(given) else None
            if types[value.name] is ABSENT:
                del types[value.name]  # it has no type that one could know
        for node in graph.nodes:
            found = [types.get(name) if name else None for name in node.inputs]
            for group in node.one_type:
                _check_group(node, [(i, dtype) for i in group if (dtype := found[i]) is not None])
            results = self._results(node, found, types)
            if len(results) < len(node.outputs):
                results = [*results, *[None] * (len(node.outputs) - len(results))]
            types.update(zip(node.outputs, results))
        types.pop("", None)
        self.kinds.update(types.values())
        outputs = [types.get(value.name) for value in graph.outputs]
        for value, dtype in zip(graph.outputs, outputs):
            declared = _declared(value.type)
            if dtype != declared and dtype is not None and declared is not None and contains_half(dtype, declared):
                kind = f"seq(tensor({dtype.dtype}))" if isinstance(dtype, ListOf) else f"tensor({type_name(dtype)})"
                self.misdeclared.append(f"{where}: output {value.name!r} is {kind}, but declared {value.type}")
        return outputs

    def _results(self, node: Node, found: Types, types: Mapping[str, Any]) -> Types:
        """The types of a node's results from those of its inputs; the graphs of the node are checked."""
        function, attributes = node.function, node.attributes
        if function is None:  # a call of one of the model's functions, or an operator that is not supported
            if not node.graphs:
                return []
            passed = [dtype if name else ABSENT for name, dtype in zip(node.inputs, found)]
            passed += [ABSENT] * (len(attributes["body"].inputs) - len(passed))
            return self._graph(attributes["body"], {}, passed, node.where)
        if function is if_:
            names = ("then_branch", "else_branch")
            branches = [self._graph(attributes[name], types, (), node.where) for name in names]
            return [a if a == b else None for a, b in zip(*branches)]
        if function is loop:
            states = found[2:]
            given = [np.dtype(np.int64), np.dtype(np.bool_), *states]
            results = self._graph(attributes["body"], types, given, node.where)[1:]
            return [*_kept(states, results), *results[len(states) :]]
        if function in (scan_8, scan_9):
            given = found[1 if function is scan_8 else 0 :]
            results = self._graph(attributes["body"], types, given, node.where)
            states = given[: len(given) - attributes["num_scan_inputs"]]
            return [*_kept(states, results), *results[len(states) :]]
        if function is sequence_map:
            given = [_member(dtype) if isinstance(dtype, ListOf) else dtype for dtype in found]
            return [_list_of(dtype) for dtype in self._graph(attributes["body"], types, given, node.where)]
        results = _types_of(node, found)
        if node.op_type in CASTS and not node.domain:
            kinds: list[Any] = [found[0], *results]
            if node.op_type == "BitCast":
                self.bits[id(node)] = found[0]
            elif all(map(_is_narrow, kinds)) and contains_half(*kinds):
                self.moves.add(id(node))
        return results


def _declared(declared: Type) -> np.dtype | ListOf | None:
    """The type of an input as the file declares it."""
    if declared.kind == "tensor":
        return declared.dtype
    element = None if declared.element is None else _declared(declared.element)
    if declared.kind == "optional":
        return element
    return ListOf(element) if isinstance(element, np.dtype) else None


def _kept(before: Types, after: Types) -> Types:
    """The types of the states of a loop, known where an iteration leaves them as they are."""
    return [a if a == b else None for a, b in zip(before, after)]


def _is_narrow(dtype: Any) -> bool:
    """Return whether a type is float32, float16 or bfloat16."""
    return isinstance(dtype, np.dtype) and (dtype == FLOAT32 or is_half(dtype))


def contains_half(*types: np.dtype | ListOf) -> bool:
    """Return whether one of the types is float16 or bfloat16, or a sequence of such tensors."""
    return any(is_half(dtype.dtype if isinstance(dtype, ListOf) else dtype) for dtype in types)


def _check_group(node: Node, known: list[tuple[int, np.dtype | ListOf]]) -> None:
    """Raise ModelError if two of these inputs, with their indices, have different types."""
    for i, dtype in known:
        if dtype != known[0][1]:
            first, kind = known[0]
            raise ModelError(
                f"{node.where}: inputs {first} ({_name(kind)}) and {i} ({_name(dtype)}) are to have one type"
            )


def _name(dtype: np.dtype | ListOf) -> str:
    """ONNX's name of a type."""
    return f"seq({type_name(dtype.dtype)})" if isinstance(dtype, ListOf) else type_name(dtype)


def _types_of(node: Node, found: Types) -> Types:
    """The types of the results of a node without graphs."""
    attributes = node.attributes
    if node.function is constant_of_shape:
        value = attributes.get("value")
        return [FLOAT32 if value is None else value.dtype]
    if node.function in (constant, constant_1):
        given = [name for name, value in attributes.items() if value is not None]
        return [_constant_type(given[0], attributes[given[0]]) if len(given) == 1 else None]
    if node.op_type in SEQUENCES and not node.domain:
        return [SEQUENCES[node.op_type](attributes, [*found, None, None])]
    absent = {i for i, name in enumerate(node.inputs) if not name}
    rules = [() if isinstance(rule, tuple) and absent.issuperset(rule) else rule for rule in node.result_types]
    if () not in rules:
        return [_result(rule, found) for rule in rules]
    stated = next((attributes[name] for name in GIVEN if isinstance(attributes.get(name), np.dtype)), None)
    other = OTHERWISE.get(node.op_type, ())
    other = _result((other,) if isinstance(other, int) else other, found) if stated is None else stated
    return [other if rule == () else _result(rule, found) for rule in rules]


def _constant_type(name: str, value: Any) -> np.dtype | None:
    """The type of a Constant by its one attribute."""
    plain = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.dtype(plain[name]) if name in plain else getattr(value, "dtype", None)


def _result(rule: Any, found: Types) -> Any:
    """The type of a result by its rule: a dtype, or the indices of the inputs whose type it has."""
    if not isinstance(rule, tuple):
        return rule
    return next((found[i] for i in rule if i < len(found) and found[i] is not None), None)


def _list_of(dtype: Any) -> ListOf | None:
    return ListOf(dtype) if isinstance(dtype, np.dtype) else None


def _member(dtype: Any) -> np.dtype | None:
    return dtype.dtype if isinstance(dtype, ListOf) else None


# operator -> the type of its result, from its attributes and the types of its inputs
SEQUENCES: dict[str, Any] = {
    "SequenceEmpty": lambda attributes, found: ListOf(attributes.get("dtype") or FLOAT32),
    "SequenceConstruct": lambda attributes, found: _list_of(found[0]),
    "SequenceInsert": lambda attributes, found: found[0] if _member(found[0]) == found[1] else None,
    "SequenceAt": lambda attributes, found: _member(found[0]),
    "ConcatFromSequence": lambda attributes, found: _member(found[0]),
    "SplitToSequence": lambda attributes, found: _list_of(found[0]),
}
