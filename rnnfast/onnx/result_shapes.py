"""The shapes and types of large results, known before they are computed, so that their bytes and work count before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rnnfast.onnx.graph import Node

# Smaller inputs are not looked at. Operators whose results may have more elements than their inputs together check
# their size themselves, and no element becomes more than 16 times as wide.
LOOKED_AT_BYTES = 2**14

# Operators without a shape rule whose only large result has the shape of the first input, and its type, if TYPES and
# `type_of` have no other one.
LIKE_FIRST = frozenset(
    (
        *("BatchNormalization", "BitCast", "BitwiseNot", "Cast", "CastLike", "Celu", "Clip", "CumProd", "CumSum"),
        *("DepthToSpace", "DequantizeLinear", "DynamicQuantizeLinear", "Gelu", "GroupNormalization", "HardSigmoid"),
        *("HardSwish", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LpNormalization"),
        *("MeanVarianceNormalization", "Mish", "Not", "PRelu", "QuantizeLinear", "RMSNormalization"),
        *("ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shrink", "Softsign", "SpaceToDepth"),
        *("Swish", "ThresholdedRelu", "Trilu"),
    )
)
TYPES = {
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor"), np.bool_),
    **dict.fromkeys(("IsInf", "IsNaN", "Not"), np.bool_),
    **dict.fromkeys(("DynamicQuantizeLinear", "QuantizeLinear"), np.uint8),  # the least that it can be
}


def known_results(node: Node, inputs: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Arrays without memory like the first results of a node, as far as the shapes of its inputs tell them.

    There are none where inputs are small. Raises what the operator raises for shapes that do not fit.
    """
    if node.domain or not any(isinstance(x, np.ndarray) and x.nbytes >= LOOKED_AT_BYTES for x in inputs):
        return ()
    if hasattr(node.function, "shapes"):
        shapes = node.function.shapes(*inputs, **node.attributes)  # type: ignore[union-attr]
    elif node.op_type in LIKE_FIRST and inputs and isinstance(inputs[0], np.ndarray):
        shapes = (inputs[0].shape,)
    else:
        return ()
    dtype = type_of(node, inputs)
    if dtype == inputs[0].dtype and node.op_type in ("Cast", "CastLike"):
        return ()  # the input itself
    return tuple([np.broadcast_to(np.empty((), dtype), shape) for shape in shapes])


def type_of(node: Node, inputs: Sequence[Any]) -> Any:
    """The type of a node's first result."""
    if node.op_type in ("Cast", "BitCast"):
        return node.attributes["to"]
    if node.op_type in ("CastLike", "DequantizeLinear", "Where") and len(inputs) > 1:
        return inputs[1].dtype
    return TYPES.get(node.op_type, inputs[0].dtype)
