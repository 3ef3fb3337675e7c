"""Rules of convolutions and pooling: samples and, for pooling, channels are apart; places are where a window is one."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, check_shared, rows_in
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Rows, Value


def conv(follower: Follower, event: Event, x: Value, w: Value, *others: Value | None) -> Rows | None:
    check_shared((w, *others), "the weights")
    return _convolved(follower, event, rows_in(x), w.shape[2:])  # type: ignore[index]


def qlinear_conv(follower: Follower, event: Event, x: Value, x_s, x_z, w: Value, *others: Value | None) -> Rows | None:
    check_shared((x_s, x_z, w, *others), "the weights, scales or zero points")
    return _convolved(follower, event, rows_in(x), w.shape[2:])  # type: ignore[index]


def _convolved(follower: Follower, event: Event, rows: Rows, kernel: tuple[int, ...]) -> Rows:
    if rows.axis == 0:
        return rows
    if rows.axis == 1:
        raise Meets("it sums over the channels, axis 1, along which the rows lie")
    return _of_places(follower, event, rows, kernel)


def _of_places(follower: Follower, event: Event, rows: Rows, kernel: tuple[int, ...]) -> Rows:
    """The rows where they lie along a spatial axis: windows of one element keep them apart, and where a frame may
    depend on earlier ones, windows that end at the frame do.
    """
    attributes, rank, i = event.node.attributes, len(kernel), rows.axis - 2
    strides = attributes.get("strides") or (1,) * rank
    dilations = attributes.get("dilations") or (1,) * rank
    pads = attributes.get("pads") or (0,) * (2 * rank)
    before, after = pads[i], pads[i + rank]
    span = (kernel[i] - 1) * dilations[i]
    if strides[i] == 1 and rows.plain and attributes.get("ceil_mode", 0) == 0:
        if kernel[i] == 1 and before == after == 0:
            return rows
        if follower.causal and attributes.get("auto_pad", "NOTSET") == "NOTSET" and (before, after) == (span, 0):
            return rows
    raise Meets(f"its windows go over several rows along axis {rows.axis}")


def conv_transpose(follower: Follower, event: Event, x: Value, w: Value, bias: Value | None = None) -> Rows | None:
    check_shared((w, bias), "the weights")
    rows = rows_in(x)
    if rows.axis:
        raise Meets(f"its windows go over several rows along axis {rows.axis}")
    return rows


def pool(follower: Follower, event: Event, x: Value) -> Any:
    rows = rows_in(x)
    if any(event.node.outputs[1:]):
        raise Meets("it counts the elements of all rows for the output Indices")
    return rows if rows.axis < 2 else _of_places(follower, event, rows, event.node.attributes["kernel_shape"])


def global_pool(follower: Follower, event: Event, x: Value) -> Rows | None:
    rows = rows_in(x)
    if rows.axis > 1:
        raise Meets(f"it pools over axis {rows.axis}, along which the rows lie")
    return rows


RULES = {
    "AveragePool": pool,
    "Conv": conv,
    "ConvInteger": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_pool,
    "GlobalLpPool": global_pool,
    "GlobalMaxPool": global_pool,
    "LpPool": pool,
    "MaxPool": pool,
    "QLinearConv": qlinear_conv,
}
