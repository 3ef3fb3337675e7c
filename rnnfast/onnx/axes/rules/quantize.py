"""Rules of quantization."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, apart_from, check_shared
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Rows, Value


def linear(follower: Follower, event: Event, x: Value, scale: Value, zero_point: Value | None = None) -> Rows | None:
    """QuantizeLinear and DequantizeLinear."""
    check_shared([scale, zero_point], "the scales or zero points")
    if scale.shape in ((), (1,)):
        return x.rows
    if scale.ndim > 1:
        raise Meets("it has scales for blocks of the tensor")
    return apart_from(x, [event.node.attributes.get("axis", 1)], "it has scales")


def dynamic(follower: Follower, event: Event, x: Value) -> Any:
    raise Meets("it takes one scale from the values of all rows")


RULES = {"DequantizeLinear": linear, "DynamicQuantizeLinear": dynamic, "QuantizeLinear": linear}
