"""What the results of costly operators look like, without computing them: plans need shapes and types alone."""

import math

import numpy as np

from rnnfast.native._plans import RecurrentStep
from rnnfast.onnx.ops.pooling import windows_of_node
from rnnfast.onnx.ops.windows import windows_for

# Elements of its results from which on an elementwise operator is not computed for a plan.
COSTLY = 1 << 12
ZERO = bytes(4)
ONE = ("Abs", "Exp", "Log", "Neg", "Relu", "LeakyRelu", "Sigmoid", "Softmax", "Sqrt", "Tanh", "Elu", "Erf", "Softplus")
TWO = ("Add", "Div", "Mul", "Sub")


def like_results(node, run, inputs):
    """Zeros of the types and shapes of a node's results, in a tuple; None where they are to be computed.

    inputs: arrays or None. What does not fit is left to the operator, which says so.
    """
    rule = RULES.get(node.op_type) if not node.domain else None
    if rule is None or any(x is not None and x.dtype != np.float32 for x in inputs[:2]):
        return None
    shapes = rule(node, run, inputs)
    if shapes is None or rule is _elementwise and math.prod(shapes[0]) < COSTLY:
        return None
    return tuple([np.ndarray(shape, np.float32, ZERO, 0, (0,) * len(shape)) for shape in shapes])


def _recurrent(node, run, inputs):
    """Of a layer that was found to take inputs of these shapes."""
    if not isinstance(run, RecurrentStep):
        return None
    T, D, rows, size = run.shape
    return ((T, D, rows, size), *[(D, rows, size)] * (2 if node.op_type == "LSTM" else 1))


def _elementwise(node, run, inputs):
    if any(x is None for x in inputs) or {"axis", "broadcast"} & node.attributes.keys() and node.op_type in TWO:
        return None
    try:
        return (np.broadcast_shapes(*(x.shape for x in inputs)),)
    except ValueError:
        return None


def _matmul(node, run, inputs):
    a, b = inputs
    if a.ndim < 2 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        return None
    return ((*a.shape[:-1], b.shape[1]),)


def _conv(node, run, inputs):
    x, w = inputs[:2]
    settings = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None} | node.attributes
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    bias = inputs[2] if len(inputs) > 2 else None
    fits = x.ndim == w.ndim > 2 and group > 0 and x.shape[1] == w.shape[1] * group and w.shape[0] % group == 0
    if not fits or bias is not None and bias.shape != w.shape[:1] or 0 in x.shape + w.shape:
        return None
    return ((x.shape[0], w.shape[0], *windows_for(x.shape[2:], w.shape[2:], **settings).output),)


def _pool(node, run, inputs):
    x = inputs[0]
    if len(node.outputs) > 1 or x.ndim < 3 or 0 in x.shape:
        return None
    return ((*x.shape[:2], *windows_of_node(x, node.attributes).output),)


RULES = (
    dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent)
    | dict.fromkeys((*ONE, *TWO), _elementwise)
    | {"MatMul": _matmul, "Conv": _conv, "MaxPool": _pool, "AveragePool": _pool}
)
