"""Gather and ScatterND: views and copies where indices are constant and regular, else the gather command. TopK and the
indices of extremes."""

import math

import numpy as np

from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile import integer
from rnnfast.onnx.compile.builder import AXES, NotNative, address, axes, merge_axes

ORDERED = integer.ITEMS | {np.dtype(np.float32): 8}  # INTEGER_* and ORDER_FLOAT32 of program.h


def _progression(values):
    """The slice of these indices, which count from the front; None if they have no constant step."""
    step = values[1] - values[0] if len(values) > 1 else 1
    if step == 0 or any(b - a != step for a, b in zip(values, values[1:])):
        return None
    end = values[-1] + (1 if step > 0 else -1)
    return slice(values[0], None if end < 0 else end, step)


def emit_gather(b, node, inputs, outputs):
    """Of indices with constant steps along their axes: a view; of others: a command, which notes those that are out of range."""
    shape, indices = inputs[0].shape, inputs[1]
    axis = node.attributes.get("axis", 0) % len(shape)
    n = shape[axis]
    if 0 in shape or 0 in indices.shape:
        return False
    view = b.view(inputs[0])
    before = (slice(None),) * axis
    if indices.known is not None:
        known = indices.known.astype(np.int64) % n
        if known.ndim == 0:
            b.set(outputs[0], view[(*before, int(known), ...)])
            return True
        regular = _regular(view, known, axis)
        if regular is not None:
            b.set(outputs[0], regular)
            return True
        index, status = b.constant(np.ascontiguousarray(known)), b.status()
    elif indices.dtype in (np.int32, np.int64):
        index = b.contiguous(b.view(indices))
        status = b.status(f"index {{}} is out of range for an axis of {n} elements")
    else:
        return False
    out = _gathered(b, view, index, status, axis)
    b.set(outputs[0], out.reshape(outputs[0].shape))
    return True


def _regular(view, indices, axis):
    """The view that gathers these indices, where they have one step along each of their axes; else None."""
    steps = [int(np.diff(indices, axis=i).flat[0]) if n > 1 else 0 for i, n in enumerate(indices.shape)]
    first = int(indices.flat[0])
    if not np.array_equal(
        indices, first + sum(np.ogrid[tuple(map(slice, indices.shape))][i] * step for i, step in enumerate(steps))
    ):
        return None
    memory, start = owner(view), view[(slice(None),) * axis + (slice(first, None),)]
    if not memory.flags.c_contiguous:
        return None
    shape = view.shape[:axis] + indices.shape + view.shape[axis + 1 :]
    strides = [step * view.strides[axis] for step in steps]
    return np.ndarray(
        shape,
        view.dtype,
        memory.reshape(-1).view(np.uint8),
        address(start) - address(memory),
        view.strides[:axis] + tuple(strides) + view.strides[axis + 1 :],
    )


def _gathered(b, view, index, status, axis):
    """The view with indices.size elements along the axis; the other axes lie in memory as they do in `view`."""
    order = sorted(range(view.ndim), key=lambda i: -view.strides[i])
    at = order.index(axis)
    moved = view.transpose(order)
    outer, inner = (
        merge_axes(moved.shape[:at], moved.strides[:at]),
        merge_axes(moved.shape[at + 1 :], moved.strides[at + 1 :]),
    )
    if len(outer[0]) > 1 or len(inner[0]) > 1 or inner[0][0] > 1 and inner[1][0] != view.itemsize:
        moved, order, at = b.contiguous(view), list(range(view.ndim)), axis
    moved_shape = moved.shape
    out = b.new((*moved_shape[:at], index.size, *moved_shape[at + 1 :]), view.dtype)
    outer, from_outer, to_outer = merge_axes(moved_shape[:at], moved.strides[:at], out.strides[:at])
    b.emit(
        "gather",
        out,
        moved,
        index,
        status,
        0,
        math.prod(moved_shape[at + 1 :]) * view.itemsize,
        outer[0],
        index.size,
        moved_shape[at],
        index.itemsize,
        to_outer[0],
        out.strides[at],
        from_outer[0],
        moved.strides[at],
        out=out,
    )
    return out.transpose(np.argsort(order))


def emit_scatter_nd(b, node, inputs, outputs):
    """With constant indices: a copy of the data, then one of the updates where they make a block, else a command."""
    shape, indices = inputs[0].shape, inputs[1].known
    if node.attributes.get("reduction", "none") != "none" or indices is None or 0 in shape or indices.size == 0:
        return False
    depth = indices.shape[-1]
    updates = b.view(inputs[2])
    if updates.size == 0:
        return False
    in_place = b.sole(inputs[0])
    out = inputs[0].view if in_place else b.new(shape, outputs[0].dtype)
    tuples = indices.reshape(-1, depth).astype(np.int64) % shape[:depth]
    block = _block(tuples)
    whole = block is not None and out[block].size == out.size
    if not whole and not in_place:
        b.copy(out, b.view(inputs[0]))
    if block is not None:
        to = out[block]
        b.copy(to, b.reshaped(updates, to.shape))
    else:
        row = np.ravel_multi_index(tuple(tuples.T), shape[:depth]).astype(np.int64)
        limit = math.prod(shape[:depth])
        nbytes = math.prod(shape[depth:]) * out.itemsize
        b.emit(
            "gather",
            out,
            b.contiguous(updates),
            b.constant(row),
            b.status(),
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
    b.set(outputs[0], out)
    return True


def _block(tuples):
    """The slices of axes whose positions, in order, are the index tuples [count, depth]; None if there are none."""
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


def _ordered(b, view, k, *, largest, nan_first=False, higher=False, values=True):
    """(values or None, indices) of the k items that come first along the last axis."""
    outer, n = view.shape[:-1], view.shape[-1]
    indices = b.new((*outer, k), np.int64)
    found = b.new((*outer, k), view.dtype) if values else None
    of_values = found if values else indices
    shape, *strides = merge_axes(outer, view.strides[:-1], of_values.strides[:-1], indices.strides[:-1])
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    b.emit(
        "order",
        view,
        found,
        indices,
        b.new((4 * n,), np.int64),
        ORDERED[view.dtype],
        largest,
        nan_first,
        higher,
        n,
        k,
        view.strides[-1],
        of_values.strides[-1],
        indices.strides[-1],
        len(shape),
        *axes(shape),
        *(word for of_view in strides for word in axes(of_view)),
        out=indices,
        flops=view.size,
    )
    return found, indices


def emit_top_k(b, node, inputs, outputs):
    k = node.attributes.get("k") if len(inputs) == 1 else inputs[1].known
    if k is None or inputs[0].dtype not in ORDERED or 0 in inputs[0].shape or 0 in outputs[0].shape:
        return False
    axis = node.attributes.get("axis", -1)
    results = _ordered(
        b,
        np.moveaxis(b.view(inputs[0]), axis, -1),
        int(np.asarray(k).item()),
        largest=bool(node.attributes.get("largest", 1)),
    )
    for operand, result in zip(outputs, results):
        b.set(operand, np.moveaxis(result, -1, axis))
    return True


def emit_arg(b, node, inputs, outputs):
    if inputs[0].dtype not in ORDERED or not inputs[0].shape or 0 in inputs[0].shape:
        return False
    view = np.moveaxis(b.view(inputs[0]), node.attributes.get("axis", 0), -1)
    _, indices = _ordered(
        b,
        view,
        1,
        largest=node.op_type == "ArgMax",
        nan_first=True,
        values=False,
        higher=bool(node.attributes.get("select_last_index")),
    )
    indices = np.moveaxis(indices, -1, node.attributes.get("axis", 0))
    b.set(outputs[0], indices.reshape(outputs[0].shape))
    return True


EMIT = {"Gather": emit_gather, "ScatterND": emit_scatter_nd, "TopK": emit_top_k, "ArgMax": emit_arg, "ArgMin": emit_arg}
