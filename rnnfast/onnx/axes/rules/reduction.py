"""Rules of reductions, running sums, softmax and normalizations: all are over other axes than the rows'."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx import ops
from rnnfast.onnx.axes.rules.follower import Follower, aligned, apart_from, check_shared, integers, rows_in
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Rows, Value


def reduce(follower: Follower, event: Event, x: Value, axes: Value | None = None) -> Rows | None:
    attributes = event.node.attributes
    over = attributes.get("axes") if axes is None else integers(axes, "its axes")
    if not over:
        over = () if attributes.get("noop_with_empty_axes") else range(x.ndim)
    return _reduced(x, over, attributes.get("keepdims", 1), "it reduces the tensor")


def _reduced(x: Value, over: Any, keepdims: int, does: str) -> Rows | None:
    rows = apart_from(x, over, does)
    return rows if keepdims else rows.moved(rows.axis - sum(axis % x.ndim < rows.axis for axis in over))


def arg(follower: Follower, event: Event, x: Value) -> Rows | None:
    """ArgMax and ArgMin."""
    attributes = event.node.attributes
    return _reduced(x, [attributes.get("axis", 0)], attributes.get("keepdims", 1), "it finds an extreme")


def top_k(follower: Follower, event: Event, x: Value, k: Value | None = None) -> Rows | None:
    check_shared([k], "the numbers of elements")
    return apart_from(x, [event.node.attributes.get("axis", -1)], "it finds extremes")


def running(follower: Follower, event: Event, x: Value, axis: Value) -> Rows | None:
    """CumSum and CumProd."""
    axes = integers(axis, "its axis")
    assert axes is not None
    rows, reverse = rows_in(x), event.node.attributes.get("reverse")
    if follower.causal and axes[0] % x.ndim == rows.axis and rows.plain and not reverse:
        return rows
    return apart_from(x, axes, "it adds up elements")


def softmax(follower: Follower, event: Event, x: Value) -> Rows | None:
    """Softmax, LogSoftmax and Hardmax."""
    node = event.node
    if node.function is ops.lookup("", node.op_type, 1):  # over all axes from `axis` on
        axis = node.attributes.get("axis", 1)
        axes: Any = range(axis + x.ndim if axis < 0 else axis, x.ndim)
    else:
        axes = [node.attributes.get("axis", -1)]
    return apart_from(x, axes, "it normalizes")


def batch_normalization(follower: Follower, event: Event, x: Value, *parameters: Value) -> Any:
    attributes = event.node.attributes
    check_shared(parameters, "the parameters")
    if attributes.get("training_mode"):
        raise Meets("it computes the mean and variance of the whole batch")
    axes = [1] if attributes.get("spatial", 1) else range(1, x.ndim)
    return apart_from(x, axes if x.ndim > 1 else [], "it has parameters")


def layer_normalization(follower: Follower, event: Event, x: Value, *parameters: Value | None) -> Rows | None:
    """LayerNormalization and RMSNormalization."""
    axis = event.node.attributes.get("axis", -1)
    check_shared(parameters, "the parameters")
    aligned([x, *parameters], x.ndim)
    return apart_from(x, range(axis + x.ndim if axis < 0 else axis, x.ndim), "it normalizes")


def of_samples(follower: Follower, event: Event, x: Value, *parameters: Value) -> Rows | None:
    """InstanceNormalization and GroupNormalization."""
    check_shared(parameters, "the parameters")
    return apart_from(x, range(1, x.ndim), "it normalizes")


def over_channels(follower: Follower, event: Event, x: Value) -> Rows | None:
    """LRN."""
    return apart_from(x, [1], "it adds up neighbours")


def lp_normalization(follower: Follower, event: Event, x: Value) -> Rows | None:
    return apart_from(x, [event.node.attributes.get("axis", -1)], "it normalizes")


def mean_variance(follower: Follower, event: Event, x: Value) -> Rows | None:
    return apart_from(x, event.node.attributes.get("axes", (0, 2, 3)), "it normalizes")


RULES = (
    dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare".split(),
        reduce,
    )
    | dict.fromkeys(("ArgMax", "ArgMin"), arg)
    | dict.fromkeys(("CumProd", "CumSum"), running)
    | dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), softmax)
    | dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_normalization)
    | dict.fromkeys(("GroupNormalization", "InstanceNormalization"), of_samples)
    | {
        "BatchNormalization": batch_normalization,
        "LRN": over_channels,
        "LpNormalization": lp_normalization,
        "MeanVarianceNormalization": mean_variance,
        "TopK": top_k,
    }
)
