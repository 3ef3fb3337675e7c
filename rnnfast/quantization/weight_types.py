"""How a file stores weights in fewer bits: the tensors, and the nodes that make float32 weights of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from rnnfast.native.weight_types import WEIGHT_TYPES as TYPES_OF_LAYERS
from rnnfast.native.weight_types import integer_columns
from rnnfast.onnx.weights import RECURRENT, as_columns, axis_of_rows, from_columns

# From this opset on DequantizeLinear has a scale for each row.
ROWS_SINCE = 13
# From this opset on Mul and Sub broadcast as they do today, and Cast names its type by a number.
BROADCASTING_SINCE = 7
# From this opset on Cast reads bfloat16.
BFLOAT16_SINCE = 13


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

    They are those to which `rnnfast.load` rounds the same weights; rows of zeros have the scale 1. Of RECURRENT weights
    all axes but the last are one.
    """
    rows = array.reshape(-1, array.shape[-1]) if layout == RECURRENT else array
    integers, scale = integer_columns(as_columns(array, layout))
    scale[scale == 0] = 1
    shape = [1] * rows.ndim
    shape[axis_of_rows(layout, rows.ndim)] = -1
    return from_columns(integers, rows.shape, layout), scale.reshape(shape)


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
            nodes.append(
                helper.make_node("DequantizeLinear", operands, [flat], axis=axis_of_rows(layout, integers.ndim))
            )
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


def _cast(name_of_type: str, element_type: str) -> Callable[..., Stored]:
    """Numbers of 16 bits, "float16" or "bfloat16", which a Cast makes float32."""

    def store(array: np.ndarray, layout: str, name: str, new_name: Callable[[str], str], opset: int) -> Stored:
        from onnx import TensorProto, helper

        values = TYPES_OF_LAYERS[name_of_type].rounded(array)  # infinite ones are seen by whoever stores it
        if element_type == "float16":
            bits = values.astype(np.float16).view(np.uint16)
        else:
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        number = getattr(TensorProto, element_type.upper())
        half, y = new_name(f"{name}_{element_type}"), new_name(f"{name}_float")
        tensor = helper.make_tensor(half, number, array.shape, bits.astype("<u2").tobytes(), raw=True)
        node = helper.make_node("Cast", [half], [y], to=TensorProto.FLOAT)
        return Stored([tensor], [node], y, values)

    return store


UINT8 = WeightType("uint8", BROADCASTING_SINCE, True, _in_8_bits(128))
WEIGHT_TYPES = {
    row.name: row
    for row in (
        WeightType("int8", BROADCASTING_SINCE, True, _in_8_bits(0)),
        WeightType("fp16", BROADCASTING_SINCE, False, _cast("fp16", "float16")),
        WeightType("bf16", BFLOAT16_SINCE, False, _cast("bf16", "bfloat16")),
    )
}
