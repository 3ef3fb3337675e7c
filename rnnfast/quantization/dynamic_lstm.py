"""Writes LSTM nodes as DynamicQuantizeLSTM, an operator of onnxruntime whose weights are integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnfast.errors import UnsupportedError
from rnnfast.quantization.weight_types import BROADCASTING_SINCE, Stored, WeightType, rows_in_8_bits

DOMAIN = "com.microsoft"
N_INPUTS = 8  # of an LSTM; behind them are the scales and zero points of W and R


def check(node: Any, constant_inputs: set[int]) -> None:
    """Raise UnsupportedError if DynamicQuantizeLSTM cannot say what an LSTM node says.

    `constant_inputs` are the indices of those inputs of the node that are constant weights.
    """
    where = f"node {node.name or next(filter(None, node.output), '')!r} (LSTM) cannot be a DynamicQuantizeLSTM"
    if constant_inputs != {1, 2}:
        raise UnsupportedError(f"{where}: W and R must both be constants")
    if any(a.name == "layout" and a.i for a in node.attribute):
        raise UnsupportedError(f"{where}, which has no attribute 'layout'")


def _store(array: np.ndarray, layout: str, name: str, new_name: Callable[[str], str], opset: int) -> Stored:
    """Weights [D, 4H, I] as integers [D, I, 4H], with scales and zero points [D, 4H]."""
    from onnx import numpy_helper

    integers, scale = rows_in_8_bits(array, layout)
    values = (integers * scale).reshape(array.shape)
    q, s, z = (new_name(f"{name}_{part}") for part in ("quantized", "scale", "zero_point"))
    scales = scale.reshape(array.shape[:2])
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(integers.reshape(array.shape).transpose(0, 2, 1)), q),
        numpy_helper.from_array(scales, s),
        numpy_helper.from_array(np.zeros(scales.shape, np.int8), z),
    ]
    return Stored(tensors, [], q, values)


WEIGHT_TYPE = WeightType("int8", BROADCASTING_SINCE, True, _store)


def rewrite(model: Any, node: Any, w: Stored, r: Stored) -> None:
    """Make an LSTM node a DynamicQuantizeLSTM that reads what WEIGHT_TYPE made of its W and R."""
    inputs = [*node.input, *[""] * (N_INPUTS - len(node.input))]
    inputs[1:3] = w.output, r.output
    inputs += [tensor.name for stored in (w, r) for tensor in stored.tensors[1:]]
    del node.input[:]
    node.input.extend(inputs)
    node.op_type, node.domain = "DynamicQuantizeLSTM", DOMAIN
    for attribute in [a for a in node.attribute if a.name == "layout"]:
        node.attribute.remove(attribute)
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)
