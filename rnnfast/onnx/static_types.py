"""Finds at load the nodes whose inputs cannot have the types that they need, also in branches that no call may take.

A type is known only where it is proven: by a declared input, a constant, an attribute such as that of Cast, or an
operator whose results have the type of an input or always the same. All else is left to the checks of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import ModelError
from rnnfast.onnx.ops.control import if_, loop, scan_8, scan_9
from rnnfast.onnx.ops.create import constant, constant_of_shape
from rnnfast.onnx.tensors import type_name

if TYPE_CHECKING:
    from rnnfast.onnx.graph import Graph, Node

# The types of values' elements; None if it is unknown, or not a tensor.
Types = list["np.dtype | None"]


def check(graph: Graph, around: Mapping[str, np.dtype | None] | None = None, given: Sequence[Any] = ()) -> Types:
    """Raise ModelError if inputs of a node that must have one type have two.

    Args:
        graph: The graph, whose nodes are in order.
        around: The types of what it takes from the graphs around it, by name; None for the main graph.
        given: The types of its inputs; a main graph's are those that it declares.

    Returns:
        The types of its outputs.
    """
    types = dict(around or {})
    types |= {name: getattr(value, "dtype", None) for name, value in graph.constants.items()}
    for i, value in enumerate(graph.inputs):
        if around is None:
            dtype = value.type.dtype if value.type.kind == "tensor" else None
        else:
            dtype = given[i] if i < len(given) else None
        overridden = value.name in graph.constants and types[value.name] != dtype
        types[value.name] = None if overridden else dtype
    for node in graph.nodes:
        found = [types.get(name) if name else None for name in node.inputs]
        for group in node.one_type:
            _check_group(node, [(i, dtype) for i in group if (dtype := found[i]) is not None])
        for name, dtype in zip(node.outputs, _results(node, found, types)):
            types[name] = dtype
    return [types.get(value.name) for value in graph.outputs]


def _check_group(node: Node, known: list[tuple[int, np.dtype]]) -> None:
    """Raise ModelError if two of these inputs, with their indices, have different types."""
    for i, dtype in known:
        if dtype != known[0][1]:
            first, kind = known[0]
            raise ModelError(
                f"{node.where}: inputs {first} ({type_name(kind)}) and {i} ({type_name(dtype)}) are to have one type"
            )


def _results(node: Node, found: Types, types: Mapping[str, np.dtype | None]) -> Types:
    """The types of a node's results from those of its inputs; the graphs of the node are checked."""
    function, attributes = node.function, node.attributes
    if function is None:  # a call of one of the model's functions, or an operator that is not supported
        return check(attributes["body"], {}, found) if node.graphs else []
    if function is if_:
        branches = [check(attributes[name], types) for name in ("then_branch", "else_branch")]
        return [a if a == b else None for a, b in zip(*branches)]
    if function is loop:
        check(attributes["body"], types, [np.dtype(np.int64), np.dtype(np.bool_), *found[2:]])
    elif function in (scan_8, scan_9):
        check(attributes["body"], types, found[1 if function is scan_8 else 0 :])
    else:
        for graph in node.graphs.values():
            check(graph, types)
    if function is constant_of_shape:
        value = attributes.get("value")
        return [np.dtype(np.float32) if value is None else value.dtype]
    if function is constant:
        given = [name for name, value in attributes.items() if value is not None]
        return [_constant_type(given[0], attributes[given[0]]) if len(given) == 1 else None]
    if node.op_type == "Cast":
        to = attributes.get("to")
        return [to if isinstance(to, np.dtype) else None]
    return [_result(rule, found) for rule in node.result_types]


def _constant_type(name: str, value: Any) -> np.dtype | None:
    """The type of a Constant by its one attribute."""
    plain = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.dtype(plain[name]) if name in plain else getattr(value, "dtype", None)


def _result(rule: Any, found: Types) -> np.dtype | None:
    """The type of a result by its rule: a dtype, or the indices of the inputs whose type it has."""
    if not isinstance(rule, tuple):
        return rule
    return next((found[i] for i in rule if i < len(found) and found[i] is not None), None)
