"""Operators that select, scatter, order or count elements (ONNX operator specification, for example GatherND-12)."""

import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.arguments import check_axes, check_axis, check_indices, integer, integers
from rnnfast.onnx.ops.numeric import is_floating, same_dtype, widen
from rnnfast.onnx.ops.types import Flag, Ints, check_size

REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _slice(x, starts, ends, axes, steps):
    """Return the slice of x by Python lists; axes and steps may be None."""
    if axes is None:
        axes = range(len(starts))
    if steps is None:
        steps = [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise InputError(f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(check_axes(axes, x.ndim), starts, ends, steps):
        if step == 0:
            raise InputError("a step is 0")
        n = x.shape[axis]
        start, end = (start + n if start < 0 else start), (end + n if end < 0 else end)
        if step > 0:
            index[axis] = slice(min(max(start, 0), n), min(max(end, 0), n), step)
        else:
            # A start before the beginning is the first element; Python's slices would be empty.
            start, end = min(max(start, 0), n - 1), min(max(end, -1), n - 1)
            index[axis] = slice(start, None if end < 0 else end, step) if start > end else slice(0, 0)
    return x[tuple(index)]


def slice_1(x, *, starts: Ints, ends: Ints, axes: Ints | None = None):
    """Slice before opset 10: starts and ends are attributes, and steps are 1."""
    return _slice(x, starts, ends, axes, None)


def slice_10(x, starts, ends, axes=None, steps=None):
    """Slice: x[start:end:step] along each of the axes; starts and ends out of range are clamped."""
    return _slice(
        x, integers(starts, "starts"), integers(ends, "ends"), integers(axes, "axes"), integers(steps, "steps")
    )


def gather(x, indices, *, axis: int = 0):
    """Gather: the slices of x at `indices` along an axis, whose place the axes of the indices take."""
    axis = check_axis(axis, x.ndim)
    indices = check_indices(indices, x.shape[axis])
    result = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
    check_size(result, x.dtype)
    return x.take(indices.reshape(-1), axis).reshape(result)


def _element_index(x, indices, axis):
    """Return NumPy's index of the element of x that each of `indices` names along `axis`."""
    axis = check_axis(axis, x.ndim)
    if indices.ndim != x.ndim or any(n > m for i, (n, m) in enumerate(zip(indices.shape, x.shape)) if i != axis):
        raise InputError(f"indices of shape {indices.shape} do not fit a tensor of shape {x.shape} besides axis {axis}")
    check_size(indices.shape, np.int64)
    index = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    index[axis] = check_indices(indices, x.shape[axis])
    return tuple(index)


def gather_elements(x, indices, *, axis: int = 0):
    """GatherElements: for each position, the element of x whose place along `axis` is in `indices`."""
    return x[_element_index(x, indices, axis)]


def _addressed_rows(x, indices, batch_dims):
    """Return x with the axes that the tuples in `indices` address flattened into one, and the row of each tuple.

    x [b..., k..., rest...] and indices [b..., q..., K] give [b * k, rest...] and [b..., q...].
    """
    if not 0 <= batch_dims < min(indices.ndim, x.ndim):
        raise InputError(f"batch_dims {batch_dims} for shapes {x.shape} and {indices.shape}")
    batch, depth = x.shape[:batch_dims], indices.shape[-1]
    addressed = x.shape[batch_dims : batch_dims + depth]
    if indices.shape[:batch_dims] != batch or not 1 <= depth <= x.ndim - batch_dims:
        raise InputError(
            f"indices of shape {indices.shape} do not address a tensor of shape {x.shape} with batch_dims {batch_dims}"
        )
    row = np.arange(math.prod(batch), dtype=np.int64).reshape(batch + (1,) * (indices.ndim - 1 - batch_dims))
    for i, n in enumerate(addressed):
        row = row * n + check_indices(indices[..., i], n)
    return x.reshape(math.prod(batch + addressed), *x.shape[batch_dims + depth :]), row


def gather_nd_11(x, indices):
    """GatherND before opset 12: without batch_dims."""
    return gather_nd(x, indices)


def gather_nd(x, indices, *, batch_dims: int = 0):
    """GatherND: for each index tuple along the last axis of `indices`, the slice of x that it addresses."""
    table, row = _addressed_rows(x, indices, batch_dims)
    result = row.shape + table.shape[1:]
    check_size(result, x.dtype)
    return table.take(row.reshape(-1), 0).reshape(result)


def _scatter(x, index, updates, reduction):
    """Write `updates` to x[index] in place, the last of equal indices or all reduced in order; return the result."""
    if reduction == "none":
        x[index] = updates
        return x
    if x.dtype == object:
        raise InputTypeError(f"strings cannot be reduced by {reduction}")
    with np.errstate(all="ignore"):
        wide = widen(x)
        REDUCTIONS[reduction].at(wide, index, widen(updates))
        return wide.astype(x.dtype, copy=False)


def scatter_elements_1(x, indices, updates, *, axis: int = 0):
    """ScatterElements before opset 16, and Scatter: without a reduction."""
    return scatter_elements(x, indices, updates, axis=axis)


def scatter_elements_16(x, indices, updates, *, axis: int = 0, reduction: Literal["none", "add", "mul"] = "none"):
    """ScatterElements before opset 18: with the reductions add and mul."""
    return scatter_elements(x, indices, updates, axis=axis, reduction=reduction)


def scatter_elements(
    x, indices, updates, *, axis: int = 0, reduction: Literal["none", "add", "mul", "max", "min"] = "none"
):
    """ScatterElements: a copy of x with `updates` at the elements that `indices` name along `axis`."""
    same_dtype((x, updates))
    if indices.shape != updates.shape:
        raise InputError(f"indices of shape {indices.shape}, but updates of shape {updates.shape}")
    return _scatter(x.copy(), _element_index(x, indices, axis), updates, reduction)


def scatter_nd_11(x, indices, updates):
    """ScatterND before opset 16: without a reduction."""
    return scatter_nd(x, indices, updates)


def scatter_nd_16(x, indices, updates, *, reduction: Literal["none", "add", "mul"] = "none"):
    """ScatterND before opset 18: with the reductions add and mul."""
    return scatter_nd(x, indices, updates, reduction=reduction)


def scatter_nd(x, indices, updates, *, reduction: Literal["none", "add", "mul", "max", "min"] = "none"):
    """ScatterND: a copy of x with `updates` at the slices that the index tuples address."""
    same_dtype((x, updates))
    table, row = _addressed_rows(x.copy(), indices, 0)
    if updates.shape != row.shape + table.shape[1:]:
        raise InputError(f"updates of shape {updates.shape}, expected {row.shape + table.shape[1:]}")
    return _scatter(table, row, updates, reduction).reshape(x.shape)


def one_hot(indices, depth, values, *, axis: int = -1):
    """OneHot: values[1] at each index along a new axis of size `depth`, otherwise values[0].

    Floating-point indices and depths are truncated to integers; an index out of range gives values[0] only.
    """
    if depth.size != 1 or values.shape != (2,):
        raise InputError(f"depth of shape {depth.shape} and values of shape {values.shape}, expected [1] and [2]")
    depth = widen(depth).item()
    if not 0 <= depth < 2**63:
        raise InputError(f"depth is {depth}, expected 0 or more")
    depth = int(depth)
    axis = check_axis(axis, indices.ndim + 1)
    check_size((*indices.shape, depth), values.dtype)
    flat = np.array(indices).reshape(-1)  # what is checked is what is used, even if another thread writes indices
    if is_floating(flat.dtype):
        flat = np.trunc(flat.astype(np.float64))
    hot = np.flatnonzero((flat >= -depth) & (flat < depth))
    y = np.full((flat.size, depth), values[0], values.dtype)
    y[hot, flat[hot].astype(np.int64)] = values[1]
    return np.moveaxis(y.reshape(*indices.shape, depth), -1, axis)


def top_k_1(x, *, k: int, axis: int = -1):
    """TopK before opset 10: k is an attribute."""
    return _top_k(x, k, axis, True)


def top_k_10(x, k, *, axis: int = -1):
    """TopK before opset 11: the largest values."""
    return _top_k(x, integer(k, "K"), axis, True)


def top_k(x, k, *, axis: int = -1, largest: Flag = 1, sorted: Flag = 1):
    """TopK: the k largest or smallest values along an axis, and their indices; they are always sorted."""
    return _top_k(x, integer(k, "K"), axis, largest)


def _top_k(x, k, axis, largest):
    """Return (values, indices), sorted; of equal values the lower index comes first, and NaN is the largest value."""
    axis = check_axis(axis, x.ndim)
    n = x.shape[axis]
    if not 0 <= k <= n:
        raise InputError(f"K is {k}, expected 0 to {n}, the size of axis {axis}")
    rows = np.array(np.moveaxis(x, axis, -1))  # a copy: NumPy's sorts need keys that no other thread changes
    keys = widen(rows)
    if largest:
        order = n - 1 - np.argsort(keys[..., ::-1], kind="stable")[..., ::-1]
    else:
        order = np.argsort(keys, kind="stable")
    order = order[..., :k]
    return (np.moveaxis(np.take_along_axis(rows, order, -1), -1, axis), np.moveaxis(order, -1, axis))


def non_zero(x):
    """NonZero: the indices of the elements that are not 0, [rank, count]; [0, count] for a scalar."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    x = np.array(x)  # NumPy counts first and then writes so many indices: no other thread may change x meanwhile
    return np.stack(np.nonzero(x)).astype(np.int64, copy=False)


def unique(x, *, axis: int | None = None, sorted: Flag = 1):
    """Unique: the distinct values, or slices along an axis, with first indices, inverse indices and counts.

    Equal NaNs are one value without an axis, but different ones in slices along an axis.
    """
    if axis is not None:
        axis = check_axis(axis, x.ndim)
    keys = np.array(widen(x))  # a copy: NumPy's sorts need keys that no other thread changes
    y, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        y, first, inverse, counts = y.take(order, axis), first[order], position[inverse], counts[order]
    return y.astype(x.dtype, copy=False), *(a.astype(np.int64, copy=False) for a in (first, inverse, counts))


def compress(x, condition, *, axis: int | None = None):
    """Compress: the slices along an axis, or the elements without one, where the condition is true."""
    if condition.dtype != bool or condition.ndim != 1:
        raise InputTypeError(f"condition of type {condition.dtype} and shape {condition.shape}, expected a bool vector")
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = check_axis(axis, x.ndim)
    indices = check_indices(np.flatnonzero(np.array(condition)), x.shape[axis])
    check_size((*x.shape[:axis], indices.size, *x.shape[axis + 1 :]), x.dtype)
    return x.take(indices, axis)


OPS = {
    "Slice": {1: slice_1, 10: slice_10},
    "Gather": {1: gather},
    "GatherElements": {11: gather_elements},
    "GatherND": {11: gather_nd_11, 12: gather_nd},
    "Scatter": {9: scatter_elements_1},
    "ScatterElements": {11: scatter_elements_1, 16: scatter_elements_16, 18: scatter_elements},
    "ScatterND": {11: scatter_nd_11, 16: scatter_nd_16, 18: scatter_nd},
    "OneHot": {9: one_hot},
    "TopK": {1: top_k_1, 10: top_k_10, 11: top_k},
    "NonZero": {9: non_zero},
    "Unique": {11: unique},
    "Compress": {9: compress},
}
