"""The types and shapes of a node's results by its operator's shape rule, so that a trace need not compute them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast.native._plans import RecurrentStep
from rnnfast.onnx.graph import Node
from rnnfast.onnx.symbolic.integers import NotSymbolic
from rnnfast.onnx.symbolic.shapes import results_of

# An elementwise operator is costly if its result has at least this many elements; products and windows always are.
COSTLY = 1 << 9
ALWAYS_COSTLY = {"AveragePool", "Conv", "Einsum", "Gemm", "LogSoftmax", "MatMul", "MaxPool", "Softmax"}
ELEMENTWISE = {
    *("Abs", "Add", "Div", "Elu", "Erf", "Exp", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mul", "Neg", "Pow"),
    *("Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Sum", "Tanh"),
    *("Atan", "Celu", "Cos", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Selu", "Shrink", "Sin", "Softsign", "Swish"),
    *("Tan", "ThresholdedRelu"),
}
# Those whose shapes have rules of their own, for float32 inputs.
BY_RULES = {"BatchNormalization", "Clip", "Concat", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization",
            "LayerNormalization", "PRelu", "RMSNormalization"}  # fmt: skip
ZERO = bytes(4)  # the memory of all results that are not computed


def like_results(node: Node, run: Any, inputs: Sequence[Any]) -> tuple[np.ndarray, ...] | None:
    """Zeros of the types and shapes of a node's results, or None if the results are to be computed.

    `inputs` are arrays or None. Raises what the operator raises for inputs and attributes that do not fit.
    """
    if isinstance(run, RecurrentStep):  # it was made for these types and shapes, which were checked
        T, D, rows, size = run.shape
        return _zeros((run.shape, *[(D, rows, size)] * (2 if node.op_type == "LSTM" else 1)))
    if node.domain or node.op_type not in ALWAYS_COSTLY | ELEMENTWISE | BY_RULES:
        return None
    if any(x is not None and (x.dtype != np.float32 or x.size == 0) for x in inputs):
        return None
    if node.op_type in BY_RULES:
        try:
            shapes = [view.shape for view in results_of(node, inputs)]
        except NotSymbolic:
            return None
    elif len(node.outputs) == 1:
        shapes = node.function.shapes(*inputs, **node.attributes)  # type: ignore[union-attr]
    else:
        return None
    if node.op_type not in ALWAYS_COSTLY and max(map(math.prod, shapes)) < COSTLY:
        return None
    return _zeros(shapes)


def _zeros(shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Arrays of these shapes that share one element."""
    return tuple([np.ndarray(shape, np.float32, ZERO, 0, (0,) * len(shape)) for shape in shapes])
