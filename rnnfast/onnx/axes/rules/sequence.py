"""Rules of sequences and optional values: sequences whose length and positions are known hold values with rows."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, apart_from, check_shared, integers
from rnnfast.onnx.axes.rules.movement import joined
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Value


def _members(sequence: Value) -> tuple[Value, ...]:
    if sequence.members is None:
        if sequence.data == []:
            return ()
        raise Meets("it takes a sequence, through which rows are not followed")
    return sequence.members


def _of(members: Any) -> Value:
    return Value(members=tuple(members))


def construct(follower: Follower, event: Event, *values: Value) -> Value:
    return _of(values)


def insert(follower: Follower, event: Event, sequence: Value, value: Value, position: Value | None = None) -> Value:
    members, at = list(_members(sequence)), integers(position, "the position")
    members.insert(len(members) if at is None else at[0], value)
    return _of(members)


def erase(follower: Follower, event: Event, sequence: Value, position: Value | None = None) -> Value:
    members, at = list(_members(sequence)), integers(position, "the position")
    del members[-1 if at is None else at[0]]
    return _of(members)


def member(follower: Follower, event: Event, sequence: Value, position: Value) -> Value:
    at = integers(position, "the position")
    assert at is not None
    found = _members(sequence)[at[0]]
    if found.shape != event.outputs[0].shape:
        raise Meets("it takes a member of another shape")
    return found


def length(follower: Follower, event: Event, sequence: Value) -> Value:
    traced = event.outputs[0]
    if traced.data is not None and traced.data.item() != len(_members(sequence)):
        raise Meets("its length depends on the number of rows")
    _members(sequence)
    return Value(traced.shape, fixed=traced.fixed)


def concat(follower: Follower, event: Event, sequence: Value) -> Any:
    members, axis = _members(sequence), event.node.attributes["axis"]
    new = event.node.attributes.get("new_axis", 0)
    axis %= members[0].ndim + bool(new)
    if not new:
        return joined(members, axis)
    rows = members[0].rows
    if rows is None or any(value.rows != rows or value.shape != members[0].shape for value in members):
        raise Meets("two of its inputs have the rows along different axes")
    return rows.moved(rows.axis + (axis <= rows.axis))


def stack(follower: Follower, event: Event, rows: Value, initial: Value | None = None) -> Any:
    assert rows.shape is not None
    rank = len(rows.shape)
    axis = event.node.attributes["axis"] % rank
    apart = apart_from(rows, [0], "it goes from row to row")
    moved = Value(
        (*rows.shape[1 : 1 + axis], rows.shape[0], *rows.shape[1 + axis :]),
        apart.moved(apart.axis - (apart.axis <= axis)),
    )
    return moved.rows if initial is None else joined([initial, moved], axis)


def split(follower: Follower, event: Event, x: Value, sizes: Value | None = None) -> Value:
    axis, keepdims = event.node.attributes.get("axis", 0) % x.ndim, event.node.attributes.get("keepdims", 1)
    check_shared([sizes], "the sizes of its parts")
    rows, shape = apart_from(x, [axis], "it cuts the tensor"), x.shape
    assert shape is not None
    given = integers(sizes, "the sizes of its parts")
    if given is None or sizes is None or sizes.ndim == 0:
        size = 1 if given is None else given[0]
        given = [min(size, shape[axis] - start) for start in range(0, shape[axis], size)]
        if size == 1 and not keepdims:
            part = Value((*shape[:axis], *shape[axis + 1 :]), rows.moved(rows.axis - (rows.axis > axis)))
            return _of([part] * len(given))
    return _of(Value((*shape[:axis], n, *shape[axis + 1 :]), rows) for n in given)


def same(follower: Follower, event: Event, x: Value) -> Value:
    return x


def is_there(follower: Follower, event: Event, x: Value | None = None) -> None:
    return None


def empty(follower: Follower, event: Event) -> None:
    return None


RULES = {
    "ConcatFromSequence": concat,
    "Optional": same,
    "OptionalGetElement": same,
    "OptionalHasElement": is_there,
    "SequenceAt": member,
    "SequenceConstruct": construct,
    "SequenceEmpty": empty,
    "SequenceErase": erase,
    "SequenceInsert": insert,
    "SequenceLength": length,
    "SplitToSequence": split,
    "Stack": stack,
}
