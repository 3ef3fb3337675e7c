"""Checks of axes, counts and indices from attributes and input values; returns them as Python integers."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError


def check_axis(axis, rank):
    """Return an axis of a tensor of this rank, counted from the front; InputError if it is out of range."""
    if not -rank <= axis < rank:
        raise InputError(f"axis {axis} is out of range for a tensor of rank {rank}")
    return axis % rank


def check_axes(axes, rank):
    """Return distinct axes of a tensor of this rank, counted from the front; all of them if `axes` is None."""
    if axes is None:
        return list(range(rank))
    checked = [check_axis(axis, rank) for axis in axes]
    if len(set(checked)) != len(checked):
        raise InputError(f"axes {list(axes)} name an axis of a tensor of rank {rank} twice")
    return checked


def integers(x, name):
    """Return the values of a vector or scalar input as Python integers; None for an absent one."""
    if x is None:
        return None
    if x.dtype.kind not in "iu":
        raise InputTypeError(f"{name} is of type {x.dtype}, expected an integer type")
    if x.ndim > 1:
        raise InputError(f"{name} has shape {x.shape}, expected a vector")
    return x.reshape(-1).tolist()


def integer(x, name):
    """Return the value of a one-element input as a Python integer."""
    if x.size != 1:
        raise InputError(f"{name} has shape {x.shape}, expected one element")
    return integers(x.reshape(1), name)[0]


def broadcast_shapes(*shapes):
    """Return the shape to which shapes broadcast, as numpy.broadcast_shapes; ValueError if there is none."""
    rank = max(map(len, shapes), default=0)
    result = [1] * rank
    for shape in shapes:
        for axis, n in enumerate(shape, rank - len(shape)):
            if result[axis] == 1:
                result[axis] = n
            elif n != 1 and n != result[axis]:
                raise ValueError(f"shapes {shapes} do not broadcast")
    return tuple(result)


def check_indices(indices, size):
    """Return indices into an axis of `size` elements as a new int64 array, counted from the axis's front.

    They are read once, and the copy is checked: another thread may write the caller's array at the same time. Raises
    InputError if one is out of range.
    """
    if indices.dtype.kind != "i":
        raise InputTypeError(f"indices are of type {indices.dtype}, expected int32 or int64")
    indices = np.array(indices, np.int64)
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < -size or high >= size:
            raise InputError(f"index {low if low < -size else high} is out of range for an axis of {size} elements")
        if low < 0:
            indices = np.where(indices < 0, indices + size, indices)
    return indices
