"""Infers the types and shapes of the results of costly operators, so that a trace need not compute them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnfast.native._plans import RecurrentStep
from rnnfast.onnx.graph import Node
from rnnfast.onnx.ops.pooling import windows_of_node
from rnnfast.onnx.ops.windows import windows_for

# An elementwise operator is costly if its result has at least this many elements.
COSTLY = 1 << 12
ZERO = bytes(4)  # the memory of all results that are not computed
# Elementwise operators with one and with two inputs
ONE = ("Abs", "Exp", "Log", "Neg", "Relu", "LeakyRelu", "Sigmoid", "Softmax", "Sqrt", "Tanh", "Elu", "Erf", "Softplus")
TWO = ("Add", "Div", "Mul", "Sub")


Shapes = tuple[tuple[int, ...], ...]


def like_results(node: Node, run: Any, inputs: Sequence[Any]) -> tuple[np.ndarray, ...] | None:
    """Zeros of the types and shapes of a node's results, or None if the results are to be computed.

    `inputs` are arrays or None. Inputs that do not fit give None too, so that the operator itself raises.
    """
    rule = RULES.get(node.op_type) if not node.domain else None
    if rule is None or any(x is not None and x.dtype != np.float32 for x in inputs[:2]):
        return None
    shapes = rule(node, run, inputs)
    if shapes is None or rule is _elementwise and math.prod(shapes[0]) < COSTLY:
        return None
    return tuple([np.ndarray(shape, np.float32, ZERO, 0, (0,) * len(shape)) for shape in shapes])


# Each rule takes (node, run, inputs) and returns the shapes of the results, or None.
def _recurrent(node: Node, run: Any, inputs: Sequence[Any]) -> Shapes | None:
    if not isinstance(run, RecurrentStep):  # a RecurrentStep was made for these shapes, which were checked
        return None
    T, D, rows, size = run.shape
    return ((T, D, rows, size), *[(D, rows, size)] * (2 if node.op_type == "LSTM" else 1))


def _elementwise(node: Node, run: Any, inputs: Sequence[Any]) -> Shapes | None:
    # before opset 7 these attributes of the operators with two inputs define another broadcasting
    if any(x is None for x in inputs) or {"axis", "broadcast"} & node.attributes.keys() and node.op_type in TWO:
        return None
    try:
        return (np.broadcast_shapes(*(x.shape for x in inputs)),)
    except ValueError:
        return None


def _matmul(node: Node, run: Any, inputs: Sequence[Any]) -> Shapes | None:
    a, b = inputs
    if a.ndim < 2 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        return None
    return ((*a.shape[:-1], b.shape[1]),)


def _conv(node: Node, run: Any, inputs: Sequence[Any]) -> Shapes | None:
    x, w = inputs[:2]
    settings = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None} | node.attributes
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    bias = inputs[2] if len(inputs) > 2 else None
    fits = x.ndim == w.ndim > 2 and group > 0 and x.shape[1] == w.shape[1] * group and w.shape[0] % group == 0
    if not fits or bias is not None and bias.shape != w.shape[:1] or 0 in x.shape + w.shape:
        return None
    return ((x.shape[0], w.shape[0], *windows_for(x.shape[2:], w.shape[2:], **settings).output),)


def _pool(node: Node, run: Any, inputs: Sequence[Any]) -> Shapes | None:
    x = inputs[0]
    if len(node.outputs) > 1 or x.ndim < 3 or 0 in x.shape:
        return None
    return ((*x.shape[:2], *windows_of_node(x, node.attributes).output),)


RULES: dict[str, Callable[[Node, Any, Sequence[Any]], Shapes | None]] = (
    dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent)
    | dict.fromkeys((*ONE, *TWO), _elementwise)
    | {"MatMul": _matmul, "Conv": _conv, "MaxPool": _pool, "AveragePool": _pool}
)
