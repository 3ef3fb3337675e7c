"""Makes the float64 reference of a graph: constants, attributes and results are float64 in place of float32."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from rnnfast.errors import UnsupportedError
from rnnfast.onnx.graph import Graph, Node, Type


def widen(value: Any) -> Any:
    """Put float64 in place of float32 in a Graph, array or dtype, or in a list or tuple of them.

    Any other value is returned as it is.
    """
    if isinstance(value, Graph):
        return dataclasses.replace(
            value,
            constants={name: widen(array) for name, array in value.constants.items()},
            inputs=tuple(dataclasses.replace(v, type=_type(v.type)) for v in value.inputs),
            outputs=tuple(dataclasses.replace(v, type=_type(v.type)) for v in value.outputs),
            nodes=tuple(map(_node, value.nodes)),
        )
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype == np.float32 else value
    if isinstance(value, np.dtype):
        return np.dtype(np.float64) if value == np.float32 else value
    if type(value) in (list, tuple):
        return type(value)(map(widen, value))
    return value


def _type(type_: Type) -> Type:
    """The type with float64 in place of float32."""
    return dataclasses.replace(type_, dtype=widen(type_.dtype), element=type_.element and _type(type_.element))


def _node(node: Node) -> Node:
    """The node with widened attributes and results."""
    if node.op_type == "BitCast":
        raise UnsupportedError(f"{node.where}: the bits of float32 have no float64 reference")
    attributes = {name: widen(value) for name, value in node.attributes.items()}
    function = node.function
    if function is not None and not node.graphs:
        function = functools.partial(_widened, function)
    return node.altered(attributes=attributes, function=function)


def _widened(function: Callable[..., Any], *inputs: Any, **attributes: Any) -> Any:
    """Call an operator function and widen its results, whose type need not follow from inputs (default values, say)."""
    return widen(function(*inputs, **attributes))
