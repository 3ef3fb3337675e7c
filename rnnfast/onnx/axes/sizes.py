"""Shape arithmetic: numbers that are computed from the number of rows n, exactly for each n.

A table of the operators that exporters compute shapes with; any other that takes such numbers lets the rows meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rnnfast.onnx.axes.values import Linear, Meets, Value, linear, objects


def shape_of(value: Value) -> list[Any]:
    """The dimensions of a value, of which that of the rows depends on their number."""
    assert value.shape is not None
    dimensions: list[Any] = list(value.shape)
    if value.rows is not None:
        dimensions[value.rows.axis] = linear(value.rows.outer * value.rows.inner, 0)
    return dimensions


def of_shape(node: Any, value: Value) -> Any:
    """The result of Shape or Size for a value with rows."""
    dimensions = shape_of(value)
    if node.op_type == "Size":
        return as_array(math.prod(dimensions, start=1))
    return as_array(dimensions[node.attributes.get("start", 0) : node.attributes.get("end")])


def as_array(numbers: Any) -> Any:
    """An array of objects."""
    array = np.empty(np.shape(numbers), object)
    array[...] = numbers
    return array


def compute(node: Any, values: list[Value | None], data: list[Any]) -> list[Any]:
    """The results of a node that takes numbers computed from n, as arrays of objects.

    data: the known values of its inputs.
    """
    rule = RULES.get(node.op_type) if not node.domain else None
    if rule is None or rule in ELEMENTWISE and {"axis", "broadcast", "fmod"} & node.attributes.keys():
        raise Meets("it computes with the number of rows")
    results = rule(node, values, data)
    return list(results) if isinstance(results, tuple) else [results]


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of an elementwise operator that `function` computes for two objects."""
    ufunc = np.frompyfunc(function, 2, 1)

    def rule(node: Any, values: list[Value], data: list[Any]) -> Any:
        result = objects(values[0])
        for value in values[1:]:
            result = ufunc(result, objects(value))
        return result

    ELEMENTWISE.add(rule)
    return rule


ELEMENTWISE: set[Any] = set()


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, Linear):
        return a.divided(b)
    if isinstance(b, Linear):
        if a == 0:
            return 0
        raise Meets("it divides by the number of rows")
    if b == 0:
        raise Meets("it divides by 0")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: Any, b: Any) -> Any:
    if isinstance(a, Linear):
        return a.remainder(b)
    if isinstance(b, Linear) or b == 0:
        raise Meets("it computes a remainder of a division by the number of rows")
    return a % b


def _moves(*numbers: int) -> Callable[..., Any]:
    """The rule of an operator that moves elements: its own function, on objects.

    numbers: its inputs that hold elements; none for all.
    """

    def rule(node: Any, values: list[Value | None], data: list[Any]) -> Any:
        for i, value in enumerate(values):
            if numbers and i not in numbers and value is not None and value.data is None:
                raise Meets("it selects numbers by values that are computed from the number of rows")
        moved = [
            data[i] if value is None or numbers and i not in numbers else objects(value)
            for i, value in enumerate(values)
        ]
        return node.function(*moved, **node.attributes)

    return rule


def _where(node: Any, values: list[Value], data: list[Any]) -> Any:
    return np.where(objects(values[0]).astype(bool), objects(values[1]), objects(values[2]))


def _reduce(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The rule of a reduction of a vector or scalar to one number."""

    def rule(node: Any, values: list[Value | None], data: list[Any]) -> Any:
        numbers, axes = objects(values[0]), node.attributes.get("axes")  # type: ignore[arg-type]
        if len(data) > 1 and data[1] is not None:
            axes = data[1].reshape(-1).tolist()
        if numbers.ndim != 1 or not axes and node.attributes.get("noop_with_empty_axes") or not numbers.size:
            raise Meets("it computes with the number of rows")
        result = numbers[0]
        for number in numbers[1:]:
            result = function(result, number)
        return as_array([result] if node.attributes.get("keepdims", 1) else result)

    return rule


def _cast(node: Any, values: list[Value], data: list[Any]) -> Any:
    to = node.attributes["to"] if node.op_type == "Cast" else data[1].dtype
    if to.kind not in "iu" or to.itemsize < 4:
        raise Meets(f"it makes {to} of the number of rows")
    return objects(values[0])


RULES: dict[str, Callable[..., Any]] = {
    "Add": _elementwise(lambda a, b: a + b),
    "And": _elementwise(lambda a, b: a and b),
    "Cast": _cast,
    "CastLike": _cast,
    "Concat": _moves(),
    "Div": _elementwise(_divide),
    "Equal": _elementwise(lambda a, b: a == b),
    "Expand": _moves(0),
    "Flatten": _moves(0),
    "Gather": _moves(0),
    "Greater": _elementwise(lambda a, b: a > b),
    "GreaterOrEqual": _elementwise(lambda a, b: a >= b),
    "Identity": _moves(0),
    "Less": _elementwise(lambda a, b: a < b),
    "LessOrEqual": _elementwise(lambda a, b: a <= b),
    "Max": _elementwise(lambda a, b: a if a >= b else b),
    "Min": _elementwise(lambda a, b: a if a <= b else b),
    "Mod": _elementwise(_remainder),
    "Mul": _elementwise(lambda a, b: a * b),
    "Neg": lambda node, values, data: np.frompyfunc(lambda a: -a, 1, 1)(objects(values[0])),
    "Not": lambda node, values, data: ~objects(values[0]).astype(bool),
    "Or": _elementwise(lambda a, b: a or b),
    "ReduceMax": _reduce(lambda a, b: a if a >= b else b),
    "ReduceMin": _reduce(lambda a, b: a if a <= b else b),
    "ReduceProd": _reduce(lambda a, b: a * b),
    "ReduceSum": _reduce(lambda a, b: a + b),
    "Reshape": _moves(0),
    "Slice": _moves(0),
    "Split": _moves(0),
    "Squeeze": _moves(0),
    "Sub": _elementwise(lambda a, b: a - b),
    "Tile": _moves(0),
    "Transpose": _moves(0),
    "Unsqueeze": _moves(0),
    "Where": _where,
}
