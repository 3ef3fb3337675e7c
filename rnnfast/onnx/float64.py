"""The float64 twin of a graph: constants, attributes and results of float32 raised, operators their NumPy functions."""

import dataclasses
import functools

import numpy as np

from rnnfast.onnx.graph import Graph


def widen(value):
    """A Graph, tensor, dtype, list or tuple of them with float64 in float32's place; anything else as it is."""
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


def _type(type_):
    return dataclasses.replace(type_, dtype=widen(type_.dtype), element=type_.element and _type(type_.element))


def _node(node):
    attributes = {name: widen(value) for name, value in node.attributes.items()}
    function = node.function
    if function is not None and not node.graphs:
        function = functools.partial(_widened, function)
    return node.altered(attributes=attributes, function=function)


def _widened(function, *inputs, **attributes):
    """Results whose type no input decides (a default value, say) are raised as well."""
    return widen(function(*inputs, **attributes))
