"""Rules of operators that rearrange, repeat, join or cut tensors."""

from __future__ import annotations

import math
from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, apart_from, check_shared, integers, rows_in
from rnnfast.onnx.axes.sizes import shape_of
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Linear, Meets, Rows, Value, objects

FIXED = "its shape is the same for any number of rows"


def reshape(follower: Follower, event: Event, x: Value, shape: Value) -> Rows | None:
    wanted = list(objects(shape).ravel()) if shape.shared or shape.sizes is not None else None
    if wanted is None:
        raise Meets("its shape depends on the value of one row")
    return reshaped(x, wanted, bool(event.node.attributes.get("allowzero")))


def reshaped(x: Value, wanted: list[Any], allowzero: bool) -> Rows | None:
    """Where the rows are after a reshape to these dimensions, of which 0 copies one and -1 takes what is left."""
    own = shape_of(x)
    wanted = [own[i] if m is not None and _is(m, 0) and not allowzero else m for i, m in enumerate(wanted)]
    given = math.prod(m for m in wanted if not _is(m, -1))
    total = math.prod(own)
    if any(_is(m, -1) for m in wanted):
        if _is(given, 0):
            raise Meets("it reshapes a tensor without elements")
        if isinstance(given, Linear) and not isinstance(total, Linear):
            raise Meets(FIXED)
        left = total.divided(given) if isinstance(total, Linear) else total // given
        wanted = [left if _is(m, -1) else m for m in wanted]
        given = total
    if not _is(given - total, 0):
        raise Meets(FIXED)
    if x.rows is None:  # the elements are the same for all n, so the shape is
        return None
    axes = [axis for axis, m in enumerate(wanted) if isinstance(m, Linear)]
    if len(axes) != 1:  # one has the rows, as the product has them once, unless it is 0
        raise Meets("it reshapes a tensor without elements")
    return _among(x, axes[0], [m.slope if isinstance(m, Linear) else m for m in wanted])


def _is(m: Any, number: int) -> bool:
    return not isinstance(m, Linear) and m == number


def _among(x: Value, axis: int, wanted: list[int]) -> Rows:
    """The rows in a reshape to these dimensions, that of the rows for one row; `axis` is theirs."""
    rows, shape = x.rows, x.shape
    assert rows is not None and shape is not None
    before = math.prod(shape[: rows.axis]) * rows.outer
    behind = math.prod(shape[rows.axis + 1 :]) * rows.inner
    other = math.prod(wanted[:axis]), math.prod(wanted[axis + 1 :])
    if 0 in other or before % other[0] or behind % other[1]:
        raise Meets("it parts the elements of a row, or joins those of several")
    outer, inner = before // other[0], behind // other[1]
    if outer * inner != wanted[axis]:
        raise Meets("it parts the elements of a row, or joins those of several")
    return Rows(axis, outer, inner)


def flatten(follower: Follower, event: Event, x: Value) -> Rows | None:
    axis = event.node.attributes.get("axis", 1)
    own = shape_of(x)
    axis = axis + x.ndim if axis < 0 else axis
    return reshaped(x, [math.prod(own[:axis]), math.prod(own[axis:])], True)


def squeeze(follower: Follower, event: Event, x: Value, axes: Value | None = None) -> Rows | None:
    rows, shape = rows_in(x), x.shape
    assert shape is not None
    dropped = event.node.attributes.get("axes") if axes is None else integers(axes, "its axes")
    if dropped is None:
        if rows.plain:
            raise Meets("it drops all axes of length 1, and with them that of the rows where there is one row")
        dropped = [axis for axis, m in enumerate(shape) if m == 1]
    dropped = {axis % x.ndim for axis in dropped}
    if rows.axis in dropped:
        raise Meets(f"it drops axis {rows.axis}, along which the rows lie")
    return rows.moved(rows.axis - sum(axis < rows.axis for axis in dropped))


def unsqueeze(follower: Follower, event: Event, x: Value, axes: Value | None = None) -> Rows | None:
    added = event.node.attributes.get("axes") if axes is None else integers(axes, "its axes")
    assert added is not None
    rank = x.ndim + len(added)
    added = {axis % rank for axis in added}
    return rows_in(x).moved([axis for axis in range(rank) if axis not in added][rows_in(x).axis])


def transpose(follower: Follower, event: Event, x: Value) -> Rows | None:
    order = event.node.attributes.get("perm") or range(x.ndim)[::-1]
    return rows_in(x).moved(list(order).index(rows_in(x).axis))


def concat(follower: Follower, event: Event, *values: Value) -> Rows | None:
    axis = event.node.attributes["axis"] % values[0].ndim
    return joined(values, axis)


def joined(values: Any, axis: int) -> Rows | None:
    rows = values[0].rows
    for value in values:
        if value.rows is None:
            raise Meets("it joins rows with a value of the same shape for any number of them")
        if value.rows != rows:
            raise Meets("two of its inputs have the rows along different axes")
        apart_from(value, [axis], "it joins tensors")
    return rows


def split(follower: Follower, event: Event, x: Value, sizes: Value | None = None) -> Rows | None:
    check_shared([sizes], "the sizes of its parts")
    return apart_from(x, [event.node.attributes.get("axis", 0)], "it cuts the tensor")


def pad(follower: Follower, event: Event, x: Value, pads: Value | None = None, constant=None, axes=None) -> Rows | None:
    check_shared([constant], "the constants that it adds")
    counts = event.node.attributes.get("pads") if pads is None else integers(pads, "its pads")
    names = integers(axes, "its axes")
    names = list(range(x.ndim)) if names is None else [axis % x.ndim for axis in names]
    assert counts is not None
    padded = [axis for i, axis in enumerate(names) if counts[i] or counts[i + len(names)]]
    return apart_from(x, padded, "it pads the tensor")


def tile(follower: Follower, event: Event, x: Value, repeats: Value) -> Rows | None:
    counts = list(objects(repeats).ravel()) if repeats.sizes is not None else integers(repeats, "its repeats")
    assert counts is not None and x.shape is not None
    growing = [axis for axis, count in enumerate(counts) if isinstance(count, Linear)]
    if x.rows is not None:
        if growing:
            raise Meets("it repeats rows as often as there are rows")
        if not counts[x.rows.axis]:
            raise Meets("it repeats rows not once")
        return x.rows._replace(outer=x.rows.outer * counts[x.rows.axis])
    return _one_copy_each(growing, counts, x.shape)


def _one_copy_each(growing: list[int], counts: list[Any], shape: Any) -> Rows:
    """The rows of copies of a tensor, as many as there are rows or a multiple of that, along one axis."""
    if len(growing) != 1 or counts[growing[0]].offset or counts[growing[0]].slope < 1:
        raise Meets("its shape has more than the number of rows along one axis")
    (axis,) = growing
    return Rows(axis, 1, counts[axis].slope * shape[axis])


def expand(follower: Follower, event: Event, x: Value, shape: Value) -> Rows | None:
    wanted = list(objects(shape).ravel()) if shape.sizes is not None else integers(shape, "its shape")
    result = event.outputs[0].shape
    assert wanted is not None and result is not None and x.shape is not None
    rank = len(result)
    growing = [axis + rank - len(wanted) for axis, m in enumerate(wanted) if isinstance(m, Linear)]
    if x.rows is not None:
        rows = x.rows.moved(x.rows.axis + rank - x.ndim)
        at = rows.axis - (rank - len(wanted))
        own = Linear(rows.outer * rows.inner)
        if growing not in ([], [rows.axis]) or at >= 0 and not _is(wanted[at], 1) and not _is(wanted[at] - own, 0):
            raise Meets(FIXED)
        return rows
    wanted = [1] * (rank - len(wanted)) + wanted
    own_shape = [1] * (rank - x.ndim) + list(x.shape)
    if any(own_shape[axis] != 1 for axis in growing):
        raise Meets("it repeats a tensor along the rows that has a length of its own there")
    return _one_copy_each(growing, wanted, own_shape)


def constant_of_shape(follower: Follower, event: Event, shape: Value) -> Rows | None:
    wanted = list(objects(shape))
    return _one_copy_each([axis for axis, m in enumerate(wanted) if isinstance(m, Linear)], wanted, [1] * len(wanted))


def range_(follower: Follower, event: Event, start: Value, limit: Value, delta: Value) -> Rows | None:
    first, end, step = (objects(value).ravel()[0] for value in (start, limit, delta))
    if not follower.causal:
        raise Meets("it numbers the rows")
    if not (_is(first, 0) and _is(step, 1) and isinstance(end, Linear) and end == Linear(1)):
        raise Meets("it numbers other things than the frames from 0 on")
    return Rows(0)


def slice_(follower: Follower, event: Event, x: Value, *inputs: Value | None) -> Any:
    attributes = event.node.attributes
    if "starts" in attributes:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    else:
        starts, ends, axes, steps = (
            None if value is None else list(objects(value).ravel()) for value in (*inputs, *[None] * (4 - len(inputs)))
        )
        for value in inputs:
            if value is not None and value.rows is not None:
                raise Meets("its bounds depend on the value of one row")
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    rows = x.rows
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis %= x.ndim
        if rows is not None and axis == rows.axis:
            whole = _is(step, 1) and _is(start, 0) and _reaches(end, Linear(rows.outer * rows.inner))
            if not whole and follower.frames and not follower.causal and rows.plain and _is_last(start, end, step):
                return Value(event.outputs[0].shape, last="frame")
            if not whole:
                raise Meets(f"it selects some of the rows, along axis {axis}")
        elif any(isinstance(m, Linear) for m in (start, end, step)):
            if not (follower.causal and rows is None and _is(start, 0) and _is(step, 1) and end == Linear(1)):
                raise Meets(f"it selects along axis {axis} by the number of rows")
            rows = Rows(axis)  # of a table, of which each frame takes the entry with its number
    return rows


def _reaches(end: Any, size: Linear) -> bool:
    """Return whether the end of a slice is never before that of the axis."""
    if isinstance(end, Linear):
        beyond = end - size
        return beyond >= 0 if not isinstance(beyond, Linear) else beyond.slope > 0 and beyond.at(1) >= 0
    return bool(end >= 2**31 - 1)


def _is_last(start: Any, end: Any, step: Any) -> bool:
    """Return whether a slice takes the last frame alone."""
    last = _is(start, -1) or isinstance(start, Linear) and (start.slope, start.offset) == (1, -1)
    return bool(_is(step, 1) and last and _reaches(end, Linear(1)))


def reverse_sequence(follower: Follower, event: Event, x: Value, lengths: Value) -> Rows | None:
    batch, time = event.node.attributes.get("batch_axis", 1), event.node.attributes.get("time_axis", 0)
    if x.rows is not None and x.rows.axis == time and follower.causal and lengths.lengths:
        return x.rows
    rows = apart_from(x, [time], "it reverses the order")
    if rows.axis != batch:
        check_shared([lengths], "the lengths")
    elif lengths.rows != rows.moved(0):
        raise Meets("its lengths do not lie along the rows")
    return rows


def trilu(follower: Follower, event: Event, x: Value, k: Value | None = None) -> Rows | None:
    check_shared([k], "the diagonals")
    return apart_from(x, [-1, -2], "it selects a triangle")


def blocks(follower: Follower, event: Event, x: Value) -> Rows | None:
    """DepthToSpace and SpaceToDepth."""
    return apart_from(x, [1, 2, 3], "it moves blocks")


def eye_like(follower: Follower, event: Event, x: Value) -> Rows | None:
    raise Meets("it makes a diagonal of the shape of a tensor that has the rows")


RULES = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": blocks,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Slice": slice_,
    "SpaceToDepth": blocks,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
# The inputs that may be computed from the number of rows; other numbers are computed by `sizes` alone.
SIZE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Gather": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
}
