"""Rules of matrix products."""

from __future__ import annotations

from rnnfast.onnx.axes.rules.follower import Follower, aligned, check_shared
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Rows, Value


def matmul(follower: Follower, event: Event, a: Value, b: Value) -> Rows | None:
    return product(a, b, len(event.outputs[0].shape or ()))


def product(a: Value, b: Value, rank: int) -> Rows | None:
    """Where the rows are in the product of rank `rank`: those of a in lines of a, those of b in columns of b, or those
    of both in the axes of a stack.
    """
    for value, place in ((a, a.ndim - 1), (b, max(b.ndim - 2, 0))):
        if value.rows is not None and value.rows.axis == place:
            raise Meets(f"it sums over axis {place} of {'A' if value is a else 'B'}, along which the rows lie")
    if a.rows is not None and a.rows.axis == a.ndim - 2:
        check_shared([b], "lines of A are rows, and the matrices B")
        return a.rows.moved(rank - (2 if b.ndim > 1 else 1))
    if b.rows is not None and b.rows.axis == b.ndim - 1:
        check_shared([a], "columns of B are rows, and the matrices A")
        return b.rows.moved(rank - 1)
    # What is left are stacks of matrices: the axes before the last two, which broadcast.
    stacks = [
        Value(value.shape[:-2], value.rows, fixed=value.fixed)  # type: ignore[index]
        for value in (a, b)
        if value.ndim > 2
    ]
    return aligned(stacks, max(value.ndim for value in stacks))


def gemm(follower: Follower, event: Event, a: Value, b: Value, c: Value | None = None) -> Rows | None:
    attributes = event.node.attributes
    y = (
        product(_turned(a, attributes.get("transA", 0)), _turned(b, attributes.get("transB", 0)), 2)
        if (a.rows or b.rows)
        else None
    )
    if c is None:
        return y
    if y is None:
        check_shared([c], "the matrices C")
        return y
    return aligned([Value(event.outputs[0].shape, y), c], 2)


def _turned(x: Value, turned: int) -> Value:
    """A matrix, transposed if asked."""
    if not turned or x.shape is None:
        return x
    return Value(x.shape[::-1], x.rows and x.rows.moved(1 - x.rows.axis))


def matmul_integer(
    follower: Follower, event: Event, a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None
) -> Rows | None:
    check_shared([a_zero, b_zero], "its zero points")
    y = matmul(follower, event, a, b)
    _check_scales(y, event, a, b, a_zero, b_zero)
    return y


def _check_scales(
    y: Rows | None, event: Event, a: Value, b: Value, a_scale: Value | None, b_scale: Value | None
) -> None:
    """Raise Meets if scales or zero points lie along the rows: one for each line of A or column of B."""
    rank = len(event.outputs[0].shape or ())
    for scale, axis, name in ((a_scale, rank - 2, "A"), (b_scale, rank - 1, "B")):
        if scale is not None and scale.shape not in ((), (1,)):
            if scale.ndim > 1 or y is not None and y.axis == axis:
                raise Meets(f"the scales or zero points of {name} lie along the rows")


def qlinear_matmul(follower: Follower, event: Event, a: Value, a_s, a_z, b: Value, b_s, b_z, y_s, y_z) -> Rows | None:
    check_shared([a_s, a_z, b_s, b_z, y_s, y_z], "its scales and zero points")
    y = matmul(follower, event, a, b)
    for a_scale, b_scale in ((a_s, b_s), (a_z, b_z), (y_s, y_s), (y_z, y_z)):
        _check_scales(y, event, a, b, a_scale, b_scale)
    return y


def einsum(follower: Follower, event: Event, *values: Value) -> Rows | None:
    from rnnfast.onnx.ops.linear import labels_of

    equation = event.node.attributes["equation"].replace(" ", "")
    terms, output, _ = labels_of(equation, [value.shape for value in values])
    rows = None
    for value, term in zip(values, terms):
        if value.rows is not None:
            label = term[value.rows.axis]
            if term.count(label) > 1:
                raise Meets(f"it takes the diagonal of the axis {label!r}, along which the rows lie")
            if rows is not None and rows != (label, value.rows.moved(0)):
                raise Meets("two of its inputs have the rows along different axes")
            rows = label, value.rows.moved(0)
    assert rows is not None
    label, along = rows
    if label not in output:
        raise Meets(f"it sums over the axis {label!r}, along which the rows lie")
    for value, term in zip(values, terms):
        if value.rows is None and label in term and (type(label) is str or value.shape[term.index(label)] != 1):  # type: ignore[index]
            raise Meets(f"an input that is the same for all rows lies along the axis {label!r} of the rows")
    return along.moved(output.index(label))


RULES = {
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
}
