"""Rules of operators that select and write by indices."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, apart_from, check_shared, rows_in
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Linear, Meets, Rows, Value

CROSSED = "its indices and what they select from have the rows along different axes"


def gather(follower: Follower, event: Event, x: Value, indices: Value) -> Any:
    axis = event.node.attributes.get("axis", 0) % x.ndim
    if x.rows is None:
        if indices.rows is None:
            raise Meets("it selects by the number of rows")
        return indices.rows.moved(axis + indices.rows.axis)
    if x.rows.axis == axis and x.rows.plain and follower.frames and not follower.causal and _last_frame(indices):
        return Value(event.outputs[0].shape, last="frame")
    if indices.rows is not None or indices.sizes is not None:
        raise Meets(CROSSED)
    rows = apart_from(x, [axis], "it selects")
    return rows if rows.axis < axis else rows.moved(rows.axis + indices.ndim - 1)


def _last_frame(indices: Value) -> bool:
    """Return whether the indices are that of the last frame alone."""
    if indices.sizes is not None:
        return all(isinstance(i, Linear) and (i.slope, i.offset) == (1, -1) for i in indices.sizes.ravel())
    return indices.data is not None and indices.data.size > 0 and bool((indices.data == -1).all())


def gather_elements(follower: Follower, event: Event, x: Value, indices: Value) -> Rows | None:
    axis = event.node.attributes.get("axis", 0) % x.ndim
    if x.rows is None and indices.rows is not None and indices.rows.axis == axis:
        return indices.rows  # each index finds its element by its places along the other axes
    if x.rows is None or indices.rows != x.rows:
        raise Meets(CROSSED)
    return apart_from(x, [axis], "it selects")


def gather_nd(follower: Follower, event: Event, x: Value, indices: Value) -> Rows | None:
    stacks, depth = event.node.attributes.get("batch_dims", 0), indices.shape[-1]  # type: ignore[index]
    if x.rows is None:
        assert indices.rows is not None
        if not stacks <= indices.rows.axis < indices.ndim - 1:
            raise Meets(CROSSED)
        return indices.rows
    if x.rows.axis < stacks:
        if indices.rows != x.rows:
            raise Meets(CROSSED)
        return x.rows
    check_shared([indices], "the indices")
    if x.rows.axis < stacks + depth:
        raise Meets(f"it selects along axis {x.rows.axis}, along which the rows lie")
    return x.rows.moved(indices.ndim - 1 + x.rows.axis - stacks - depth)


def scatter_elements(follower: Follower, event: Event, x: Value, indices: Value, updates: Value) -> Rows | None:
    rows = apart_from(x, [event.node.attributes.get("axis", 0)], "it writes")
    if indices.rows != rows or updates.rows != rows:
        raise Meets(CROSSED)
    return rows


def scatter_nd(follower: Follower, event: Event, x: Value, indices: Value, updates: Value) -> Rows | None:
    check_shared([indices], "the indices")
    depth = indices.shape[-1]  # type: ignore[index]
    rows = apart_from(x, range(depth), "it writes")
    if updates.rows != rows.moved(indices.ndim - 1 + rows.axis - depth):
        raise Meets(CROSSED)
    return rows


def one_hot(follower: Follower, event: Event, indices: Value, depth: Value, values: Value) -> Rows | None:
    check_shared([depth, values], "the depths or values")
    axis = event.node.attributes.get("axis", -1) % (indices.ndim + 1)
    rows = rows_in(indices)
    return rows.moved(rows.axis + (axis <= rows.axis))


def compress(follower: Follower, event: Event, x: Value, condition: Value) -> Rows | None:
    check_shared([condition], "the conditions")
    axis = event.node.attributes.get("axis")
    if axis is None or not event.outputs[0].fixed:
        raise Meets("it selects elements of all rows")
    return apart_from(x, [axis], "it selects")


def elements(follower: Follower, event: Event, *values: Value) -> Any:
    """NonZero and Unique."""
    raise Meets("it collects elements of all rows")


RULES = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": elements,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Unique": elements,
}
