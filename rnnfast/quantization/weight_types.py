"""How a file stores weights in fewer bits: the tensors, and the nodes that make float32 weights of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

# From this opset on DequantizeLinear has a scale for each row.
ROWS_SINCE = 13
# From this opset on Mul and Sub broadcast as they do today, and Cast names its type by a number.
BROADCASTING_SINCE = 7
# From this opset on Cast reads bfloat16.
BFLOAT16_SINCE = 13

# The layouts of weights, by what a row is, that is, what is multiplied for one output: an index of all axes but the
# last (W and R of recurrent nodes), of the first axis, of the last, or of the last but one.
RECURRENT, ROWS, COLUMNS, LEFT = "recurrent", "rows", "columns", "left"


@dataclasses.dataclass(frozen=True)
class Stored:
    """Weights as a file stores them.

    Attributes:
        tensors: The initializers.
        nodes: The nodes that make the float32 weights of them.
        output: The name of the float32 weights.
        values: The float32 weights, as every engine computes them.
    """

    tensors: list[Any]
    nodes: list[Any]
    output: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class WeightType:
    """A type of stored weights.

    Attributes:
        name: The name for users.
        least_opset: The least opset whose operators can read it.
        by_rows: Whether it matters what a row of the weights is.
        store: The function that makes the Stored of an array: store(array, layout, name, new_name, opset), where
            new_name makes a name that is not taken.
    """

    name: str
    least_opset: int
    by_rows: bool
    store: Callable[[np.ndarray, str, str, Callable[[str], str], int], Stored]


def rows_in_8_bits(array: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of weights as integers from -127 to 127, and their scales, which broadcast with them.

    A row's largest weight is 127; rows of zeros have the scale 1. Of RECURRENT weights all axes but the last are one.
    """
    rows = array.reshape(-1, array.shape[-1]) if layout == RECURRENT else array
    axis = _axis(rows, layout)
    scale = np.max(np.abs(rows), axis=tuple(i for i in range(rows.ndim) if i != axis), keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.clip(np.rint(rows / scale), -127, 127).astype(np.int8), scale


def _axis(rows: np.ndarray, layout: str) -> int:
    """The axis of rows."""
    return {RECURRENT: 0, ROWS: 0, COLUMNS: rows.ndim - 1, LEFT: rows.ndim - 2}[layout]


def _in_8_bits(offset: int) -> Callable[..., Stored]:
    """Integers with one scale for each row: signed ones, or with the offset 128 unsigned ones."""

    def store(array: np.ndarray, layout: str, name: str, new_name: Callable[[str], str], opset: int) -> Stored:
        from onnx import TensorProto, helper, numpy_helper

        integers, scale = rows_in_8_bits(array, layout)
        values = (integers * scale).reshape(array.shape)
        kind = np.uint8 if offset else np.int8
        stored = (integers.astype(np.int16) + offset).astype(kind)
        q, s, y = (new_name(f"{name}_{part}") for part in ("quantized", "scale", "dequantized"))
        flat = y if integers.shape == array.shape else new_name(f"{name}_rows")
        tensors = [numpy_helper.from_array(stored, q)]
        nodes = []
        if opset >= ROWS_SINCE:
            tensors.append(numpy_helper.from_array(scale.ravel(), s))
            operands = [q, s]
            if offset:
                operands.append(new_name(f"{name}_zero_point"))
                tensors.append(numpy_helper.from_array(np.full(scale.size, offset, kind), operands[-1]))
            nodes.append(helper.make_node("DequantizeLinear", operands, [flat], axis=_axis(integers, layout)))
        else:
            tensors.append(numpy_helper.from_array(scale, s))
            factor = new_name(f"{name}_float")
            nodes.append(helper.make_node("Cast", [q], [factor], to=TensorProto.FLOAT))
            if offset:
                whole, zero, factor = factor, new_name(f"{name}_zero_point"), new_name(f"{name}_centred")
                tensors.append(numpy_helper.from_array(np.array(offset, np.float32), zero))
                nodes.append(helper.make_node("Sub", [whole, zero], [factor]))
            nodes.append(helper.make_node("Mul", [factor, s], [flat]))
        if flat != y:
            shape = new_name(f"{name}_shape")
            tensors.append(numpy_helper.from_array(np.array(array.shape), shape))
            nodes.append(helper.make_node("Reshape", [flat, shape], [y]))
        return Stored(tensors, nodes, y, values)

    return store


def _cast(element_type: str) -> Callable[..., Stored]:
    """Numbers of 16 bits, "float16" or "bfloat16", which a Cast makes float32."""

    def store(array: np.ndarray, layout: str, name: str, new_name: Callable[[str], str], opset: int) -> Stored:
        import ml_dtypes
        from onnx import TensorProto, helper

        with np.errstate(over="ignore"):  # whoever stores it sees the infinity in the values
            stored = array.astype(np.float16 if element_type == "float16" else ml_dtypes.bfloat16)
        number = getattr(TensorProto, element_type.upper())
        half, y = new_name(f"{name}_{element_type}"), new_name(f"{name}_float")
        raw = stored.view(np.uint16).astype("<u2").tobytes()
        tensor = helper.make_tensor(half, number, array.shape, raw, raw=True)
        node = helper.make_node("Cast", [half], [y], to=TensorProto.FLOAT)
        return Stored([tensor], [node], y, stored.astype(np.float32))

    return store


UINT8 = WeightType("uint8", BROADCASTING_SINCE, True, _in_8_bits(128))
WEIGHT_TYPES = {
    row.name: row
    for row in (
        WeightType("int8", BROADCASTING_SINCE, True, _in_8_bits(0)),
        WeightType("fp16", BROADCASTING_SINCE, False, _cast("float16")),
        WeightType("bf16", BFLOAT16_SINCE, False, _cast("bfloat16")),
    )
}
