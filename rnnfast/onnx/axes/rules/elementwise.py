"""Rules of elementwise operators."""

from __future__ import annotations

import math
from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, aligned, check_shared, rows_in
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Rows, Value

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()
BROADCASTING = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or Sub Sum SwiGLU Where Xor"
).split()


def same(follower: Follower, event: Event, x: Value, *others: Value | None) -> Any:
    """All outputs have the shape of the first input, and its rows."""
    check_shared(others, "its other inputs")
    return rows_in(x)


def broadcast(follower: Follower, event: Event, *values: Value | None) -> Rows | None:
    shape = event.outputs[0].shape
    assert shape is not None
    if {"axis", "broadcast"} & event.node.attributes.keys():  # before opset 7
        if any(value is None or value.shape != shape for value in values):
            raise Meets("it broadcasts in the way of opsets before 7")
    return aligned(values, len(shape))


def power(follower: Follower, event: Event, x: Value, y: Value) -> Rows | None:
    # One exponent for all is treated apart, and an exponent for each row may be one where there is one row.
    if y.rows is not None and math.prod(y.shape or ()) == follower.n:
        raise Meets("it has an exponent for each row")
    return broadcast(follower, event, x, y)


def prelu(follower: Follower, event: Event, x: Value, slope: Value) -> Rows | None:
    rows_in(x)
    if slope.shape != () and slope.ndim != x.ndim and slope.ndim == 1 and not slope.rows and x.rows:
        if event.node.function.__name__ == "prelu_1" and slope.shape != (1,):  # type: ignore[union-attr]
            if x.rows.axis == 1:
                raise Meets("its slopes lie along the rows, axis 1")
            return x.rows
    return broadcast(follower, event, x, slope)


def bit_cast(follower: Follower, event: Event, x: Value) -> Rows | None:
    if event.outputs[0].shape != x.shape:
        raise Meets("it changes the shape")
    return x.rows


def cast_like(follower: Follower, event: Event, x: Value, like: Value) -> Rows | None:
    return x.rows


RULES = (
    dict.fromkeys(UNARY, same)
    | dict.fromkeys(BROADCASTING, broadcast)
    | {"BitCast": bit_cast, "CastLike": cast_like, "Clip": same, "Dropout": same, "PRelu": prelu, "Pow": power}
)
