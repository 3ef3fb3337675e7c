"""Gather, ScatterND and ReverseSequence: views and copies where indices are constant and regular, otherwise the gather
command; TopK, ArgMax and ArgMin: the order command.
"""

import math

import numpy as np

from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile import integer
from rnnfast.onnx.compile.builder import AXES, NotNative, axes, merge_axes, strided
from rnnfast.onnx.compile.integer import ITEMS
from rnnfast.onnx.ops.arguments import broadcast_shapes

ORDERED = ITEMS | {np.dtype(np.float32): 8}  # INTEGER_* and ORDER_FLOAT32 of program.h: types of an order command


def _progression(values):
    """Return the slice of these indices, which count from the front; None if they have no constant step."""
    step = values[1] - values[0] if len(values) > 1 else 1
    if step == 0 or any(after - before != step for before, after in zip(values, values[1:])):
        return None
    end = values[-1] + (1 if step > 0 else -1)
    return slice(values[0], None if end < 0 else end, step)


def emit_gather(builder, node, inputs, outputs):
    """Set a view for constant indices with one step along each axis, otherwise emit a gather command, which reports an
    index that is out of range; False without elements, or for indices that are neither constant nor int32 or int64.
    """
    shape, indices = inputs[0].shape, inputs[1]
    axis = node.attributes.get("axis", 0) % len(shape)
    n = shape[axis]
    if 0 in shape or 0 in indices.shape:
        return False
    view = builder.view(inputs[0])
    before = (slice(None),) * axis
    if isinstance(indices.known, np.ndarray):  # not one that depends on sizes
        if indices.known.ndim == 0:
            builder.set(outputs[0], view[(*before, int(indices.known), ...)])
            return True
        known = indices.known.astype(np.int64)
        if known.min() < 0 <= known.max():
            known = known % n
        regular = regular_view(view, known, axis)
        if regular is not None:
            builder.set(outputs[0], regular)
            return True
        known = known % n if known.min() < 0 else known
        index, status = builder.constant(np.ascontiguousarray(known)), builder.status()
    elif indices.dtype in (np.int32, np.int64):
        index = builder.contiguous(builder.view(indices))
        status = builder.status("index {} is out of range for an axis of {limit} elements", limit=n)
    else:
        return False
    out = _emit_gather(builder, view, index, status, axis)
    builder.set(outputs[0], out.reshape(outputs[0].shape))
    return True


def emit_constant_gather(builder, view, indices, axis):
    """Return what a vector of indices, which count from the front, gathers: a view if they have one step, or each of
    them comes equally often before the next, otherwise the result of a gather command.
    """
    count = len(indices)
    for repeats in sorted({1, count // max(1, len(np.unique(indices)))}):
        if count % repeats == 0:
            regular = regular_view(view, indices.reshape(-1, repeats), axis)
            if regular is not None:
                return builder.reshaped(regular, (*view.shape[:axis], count, *view.shape[axis + 1 :]))
    index = builder.constant(np.ascontiguousarray(indices, np.int64))
    return _emit_gather(builder, view, index, builder.status(), axis)


def regular_view(view, indices, axis):
    """Return the view that gathers these indices if they have one step along each of their axes, otherwise None.

    Either all of them count from the front, or all from the end, as negative numbers.
    """
    steps = [int(np.diff(indices, axis=i).flat[0]) if n > 1 else 0 for i, n in enumerate(indices.shape)]
    first = int(indices.flat[0])
    if not np.array_equal(
        indices, first + sum(np.ogrid[tuple(map(slice, indices.shape))][i] * step for i, step in enumerate(steps))
    ):
        return None
    if type(view) is np.ndarray and not owner(view).flags.c_contiguous:
        return None
    strides = tuple([step * view.strides[axis] for step in steps])
    return strided(
        view[(slice(None),) * axis + (slice(first, None),)],
        view.shape[:axis] + indices.shape + view.shape[axis + 1 :],
        view.strides[:axis] + strides + view.strides[axis + 1 :],
    )


def _emit_gather(builder, view, index, status, axis):
    """Emit a gather command; return its result, which has index.size elements along the axis.

    The other axes keep the memory order that they have in `view`.
    """
    order = sorted(range(view.ndim), key=lambda i: -view.strides[i])
    position = order.index(axis)
    moved = view.transpose(order)
    outer, inner = (
        merge_axes(moved.shape[:position], moved.strides[:position]),
        merge_axes(moved.shape[position + 1 :], moved.strides[position + 1 :]),
    )
    if len(outer[0]) > 1 or len(inner[0]) > 1 or inner[0][0] > 1 and inner[1][0] != view.itemsize:
        moved, order, position = builder.contiguous(view), list(range(view.ndim)), axis
    moved_shape = moved.shape
    out = builder.new((*moved_shape[:position], index.size, *moved_shape[position + 1 :]), view.dtype)
    outer, from_outer, to_outer = merge_axes(moved_shape[:position], moved.strides[:position], out.strides[:position])
    builder.emit(
        "gather",
        out,
        moved,
        index,
        status,
        0,
        math.prod(moved_shape[position + 1 :]) * view.itemsize,
        outer[0],
        index.size,
        moved_shape[position],
        index.itemsize,
        to_outer[0],
        out.strides[position],
        from_outer[0],
        moved.strides[position],
        out=out,
    )
    return out.transpose(np.argsort(order))


def emit_scatter_nd(builder, node, inputs, outputs):
    """Emit a copy of the data, unless it can be overwritten, then a copy of the updates if they make a block, or else a
    gather command that scatters. Return False if the indices are not constant, for reductions, or if a tensor is empty.
    """
    shape, indices = inputs[0].shape, inputs[1].known
    if node.attributes.get("reduction", "none") != "none" or indices is None or 0 in shape or indices.size == 0:
        return False
    depth = indices.shape[-1]
    updates = builder.view(inputs[2])
    if updates.size == 0:
        return False
    in_place = builder.can_overwrite(inputs[0])
    out = inputs[0].view if in_place else builder.new(shape, outputs[0].dtype)
    tuples = indices.reshape(-1, depth).astype(np.int64) % shape[:depth]
    block = _block(tuples)
    whole = block is not None and out[block].size == out.size
    if not whole and not in_place:
        builder.copy(out, builder.view(inputs[0]))
    if block is not None:
        to = out[block]
        builder.copy(to, builder.reshaped(updates, to.shape))
    else:
        row = np.ravel_multi_index(tuple(tuples.T), shape[:depth]).astype(np.int64)
        limit = math.prod(shape[:depth])
        nbytes = math.prod(shape[depth:]) * out.itemsize
        builder.emit(
            "gather",
            out,
            builder.contiguous(updates),
            builder.constant(row),
            builder.status(),
            1,
            nbytes,
            1,
            row.size,
            limit,
            row.itemsize,
            0,
            nbytes,
            0,
            nbytes,
            out=out,
            note="scatter",
        )
    builder.set(outputs[0], out)
    return True


def _block(tuples):
    """Return the slices whose positions are, in order, the index tuples [count, depth]; None if there are none."""
    ranges = []
    for column in tuples.T:
        values = list(dict.fromkeys(column.tolist()))
        regular = _progression(values)
        if regular is None:
            return None
        ranges.append((values, regular))
    if math.prod(len(values) for values, _ in ranges) != len(tuples):
        return None
    grid = np.stack(np.meshgrid(*(values for values, _ in ranges), indexing="ij"), -1).reshape(tuples.shape)
    return tuple(regular for _, regular in ranges) if np.array_equal(grid, tuples) else None


def _emit_order(builder, view, k, *, largest, nan_first=False, higher=False, values=True):
    """Emit an order command; return (values or None, indices) of the k items that come first along the last axis.

    Raises NotNative if the other axes do not merge into few enough.
    """
    outer, n = view.shape[:-1], view.shape[-1]
    indices = builder.new((*outer, k), np.int64)
    found = builder.new((*outer, k), view.dtype) if values else None
    value_strides = (found if values else indices).strides
    shape, *strides = merge_axes(outer, view.strides[:-1], value_strides[:-1], indices.strides[:-1])
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    builder.emit(
        "order",
        view,
        found,
        indices,
        builder.new((4 * n,), np.int64),
        ORDERED[view.dtype],
        largest,
        nan_first,
        higher,
        n,
        k,
        view.strides[-1],
        value_strides[-1],
        indices.strides[-1],
        len(shape),
        *axes(shape),
        *(word for view_strides in strides for word in axes(view_strides)),
        out=indices,
        flops=view.size,
    )
    return found, indices


def emit_top_k(builder, node, inputs, outputs):
    """Emit an order command for a constant k; False for another k, an unsupported type, or without elements."""
    k = node.attributes.get("k") if len(inputs) == 1 else inputs[1].known
    if k is None or inputs[0].dtype not in ORDERED or 0 in inputs[0].shape or 0 in outputs[0].shape:
        return False
    axis = node.attributes.get("axis", -1)
    results = _emit_order(
        builder,
        np.moveaxis(builder.view(inputs[0]), axis, -1),
        int(np.asarray(k).item()),
        largest=bool(node.attributes.get("largest", 1)),
    )
    for operand, result in zip(outputs, results):
        builder.set(operand, np.moveaxis(result, -1, axis))
    return True


def emit_arg(builder, node, inputs, outputs):
    """Emit an order command for ArgMax or ArgMin; False for an unsupported type, a scalar, or without elements."""
    if inputs[0].dtype not in ORDERED or not inputs[0].shape or 0 in inputs[0].shape:
        return False
    view = np.moveaxis(builder.view(inputs[0]), node.attributes.get("axis", 0), -1)
    _, indices = _emit_order(
        builder,
        view,
        1,
        largest=node.op_type == "ArgMax",
        nan_first=True,
        values=False,
        higher=bool(node.attributes.get("select_last_index")),
    )
    indices = np.moveaxis(indices, -1, node.attributes.get("axis", 0))
    builder.set(outputs[0], indices.reshape(outputs[0].shape))
    return True


def emit_reverse_sequence(builder, node, inputs, outputs):
    """Emit integer commands that compute where each step comes from, and a gather command; a length out of range is
    reported. False without elements, and for lengths that are neither int32 nor int64.
    """
    x, lengths = inputs
    if 0 in x.shape or lengths.dtype not in (np.int32, np.int64):
        return False
    time = node.attributes.get("time_axis", 0)
    steps, batch = x.shape[time], x.shape[1 - time]
    along, across = ((-1, 1), (1, -1)) if time == 0 else ((1, -1), (-1, 1))
    n = builder.reshaped(builder.view(lengths), (1, batch) if time == 0 else (batch, 1))
    if n.dtype != np.int64:
        n = integer.computed(builder, integer.COPY, builder.new(n.shape, np.int64), n, n)

    def constant(values):
        return builder.constant(np.array(values, np.int64))

    def compute(code, a, b, condition=None, dtype=np.int64):
        shapes = [view.shape for view in (a, b, condition) if view is not None]
        return integer.computed(builder, code, builder.new(broadcast_shapes(*shapes), dtype), a, b, condition)

    # What a vector of so many numbers gathers does not matter: the command reports a length that is none of its places.
    status = builder.status("sequence_lens has a length that is not from 0 to {limit}", limit=steps)
    checked = compute(integer.SELECT, constant(steps + 1), n, compute(integer.LT, n, constant(0), dtype=np.bool_))
    _emit_gather(builder, constant(np.zeros(steps + 1)), checked.reshape(-1), status, 0)

    step, row = constant(np.arange(steps).reshape(along)), np.arange(batch).reshape(across)
    mirrored = compute(integer.SUB, compute(integer.SUB, n, constant(1)), step)
    source = compute(integer.SELECT, mirrored, step, compute(integer.LT, step, n, dtype=np.bool_))
    if time == 0:
        source = compute(integer.MUL, source, constant(batch))
    source = compute(integer.ADD, source, constant(row if time == 0 else row * steps))
    flat = builder.reshaped(builder.view(x), (steps * batch, *x.shape[2:]))
    out = _emit_gather(builder, flat, source.reshape(-1), builder.status(), 0)
    builder.set(outputs[0], builder.reshaped(out, x.shape))
    return True


EMIT = {
    "ArgMax": emit_arg,
    "ArgMin": emit_arg,
    "Gather": emit_gather,
    "ReverseSequence": emit_reverse_sequence,
    "ScatterND": emit_scatter_nd,
    "TopK": emit_top_k,
}
