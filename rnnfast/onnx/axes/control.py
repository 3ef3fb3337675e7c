"""Rows through the graphs of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rnnfast.onnx.axes.transcript import Event, Traced, Transcript
from rnnfast.onnx.axes.values import Meets, Rows, Value


def follow(
    propagation: Any, event: Event, values: Sequence[Value | None], captures: Mapping[str, Value]
) -> list[Value]:
    """The outputs of an If, Loop or Scan for the values of its inputs and of what its graphs capture."""
    if event.node.op_type not in FOLLOW:
        raise Meets("no rule says what this operator does with rows")
    if any(body.outputs is None for body in event.bodies.values()):
        if event.node.op_type == "Scan" and "num_scan_inputs" in event.node.attributes and _is_scan_8(event):
            return _scan_8(event, values, captures)
        raise Meets("the shapes in its graphs are not known before a run")
    return FOLLOW[event.node.op_type](propagation, event, values, captures)


def _run(
    propagation: Any, event: Event, name: str, inputs: Sequence[Value], captures: Mapping[str, Value]
) -> list[Value]:
    """The outputs of a body, of which all must keep rows apart."""
    body: Transcript = event.bodies[name]
    names = [v.name for v in event.node.graphs[name].inputs]
    outputs: list[Value] = propagation.graph(body, {**captures, **dict(zip(names, inputs))})
    for value in outputs:
        if value.meeting is not None:
            raise Meets(f"in its graph, {value.meeting.where.split(': ', 1)[-1]}: {value.meeting.reason}")
        if value.sizes is not None or value.members is not None:
            raise Meets("its graph computes with the number of rows")
    return outputs


def _check_same(value: Value | None, what: str) -> None:
    """Raise Meets unless a value is the same for all rows and each number of them."""
    if value is not None and not value.shared:
        reason = "the number of rows" if value.sizes is not None else "the value of one row"
        raise Meets(f"{what} depends on {reason}, and holds for all rows")


def _if(propagation: Any, event: Event, values: Sequence[Value | None], captures: Mapping[str, Value]) -> list[Value]:
    _check_same(values[0], "its condition")
    one, other = (_run(propagation, event, name, (), captures) for name in event.bodies)
    for a, b in zip(one, other):
        if a.rows != b.rows or a.last != b.last or a.shape != b.shape:
            raise Meets("its branches have the rows along different axes")
    return [Value(a.shape, a.rows, last=a.last, fixed=a.fixed and b.fixed) for a, b in zip(one, other)]


def _loop(propagation: Any, event: Event, values: Sequence[Value | None], captures: Mapping[str, Value]) -> list[Value]:
    given = [*values, *[None] * (2 - len(values))]
    trips, going, carried = given[0], given[1], given[2:]
    _check_same(trips, "the number of iterations")
    _check_same(going, "its condition")
    before = [_carried(value) for value in carried]
    iteration = Value((), fixed=True)
    outputs = _run(propagation, event, "body", [iteration, Value((), fixed=True), *before], captures)
    _check_same(outputs[0], "the condition of its body")
    after = outputs[1 : 1 + len(before)]
    _check_carried(before, after)
    slices = zip(outputs[1 + len(before) :], event.outputs[len(before) :])
    return [*before, *(_stacked(value, 0, traced) for value, traced in slices)]


def _carried(value: Value | None) -> Value:
    """The Value that a body takes for one that is carried between iterations: its data is not known."""
    if value is None or value.sizes is not None or value.members is not None or value.shape is None:
        raise Meets("it carries the number of rows, or values that are no tensors, from one iteration to the next")
    return Value(value.shape, value.rows, last=value.last, fixed=value.fixed)


def _check_carried(before: Sequence[Value], after: Sequence[Value]) -> None:
    for a, b in zip(before, after):
        if a.rows != b.rows or a.last != b.last or a.shape != b.shape:
            raise Meets("a state that it carries has the rows along another axis, or none, after an iteration")


def _stacked(value: Value, axis: int, traced: Traced) -> Value:
    """The slices of all iterations along a new axis."""
    if traced.shape is None:
        raise Meets("it collects values that are no tensors")
    axis %= len(traced.shape)
    rows = value.rows
    if rows is not None and rows.axis >= axis:
        rows = rows.moved(rows.axis + 1)
    return Value(traced.shape, rows, last=value.last, fixed=traced.fixed)


def _scan(propagation: Any, event: Event, values: Sequence[Value | None], captures: Mapping[str, Value]) -> list[Value]:
    attributes = event.node.attributes
    count = len(values) - attributes["num_scan_inputs"]
    states = [_carried(value) for value in values[:count]]
    axes = attributes.get("scan_input_axes") or (0,) * (len(values) - count)
    slices = [_slice(_carried(value), axis) for value, axis in zip(values[count:], axes)]
    outputs = _run(propagation, event, "body", [*states, *slices], captures)
    _check_carried(states, outputs[:count])
    output_axes = attributes.get("scan_output_axes") or (0,) * (len(outputs) - count)
    scanned = zip(outputs[count:], output_axes, event.outputs[count:])
    return [*states, *(_stacked(value, axis, traced) for value, axis, traced in scanned)]


def _slice(value: Value, axis: int) -> Value:
    """One slice of a scanned input."""
    assert value.shape is not None
    axis %= len(value.shape)
    rows = value.rows
    if rows is not None:
        if rows.axis == axis:
            raise Meets(f"it goes from row to row along axis {axis}")
        rows = rows.moved(rows.axis - (rows.axis > axis))
    return Value((*value.shape[:axis], *value.shape[axis + 1 :]), rows, last=value.last, fixed=value.fixed)


def _is_scan_8(event: Event) -> bool:
    from rnnfast.onnx.ops.control import scan_8

    return event.node.function is scan_8


def _scan_8(event: Event, values: Sequence[Value | None], captures: Mapping[str, Value]) -> list[Value]:
    """Scan-8 has a batch axis of its own, whose samples it runs one by one."""
    rows = Rows(0)
    given = [value for value in values if value is not None]
    if any(value.rows != rows for value in given) or not all(value.shared for value in captures.values()):
        raise Meets("its batch, axis 0, is not where the rows are in all of its inputs")
    return [Value(traced.shape, rows) for traced in event.outputs]


FOLLOW = {"If": _if, "Loop": _loop, "Scan": _scan}
