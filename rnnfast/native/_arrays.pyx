"""Comparisons of arrays by type, shape and value."""
from libc.string cimport memcmp

cimport numpy as cnp

import math

import numpy as np

cnp.import_array()


def pattern(value):
    """Return an array of the value's type and shape without its data, a list of such arrays, or None.

    These are the properties of an input on which a plan depends.
    """
    if type(value) is list:
        return [pattern(v) for v in value]
    return None if value is None else shaped(value.shape, value.dtype)


def shaped(shape, dtype):
    """Return an array of a shape and a type whose elements are one in memory."""
    if dtype.hasobject:
        return np.broadcast_to(np.empty((), dtype), shape)
    return np.ndarray(shape, dtype, bytes(dtype.itemsize), 0, (0,) * len(shape))


cpdef bint is_like(value, like):
    """Return whether a value is an array of the type and shape of `like`; False if `like` is None."""
    return like is not None and type(value) is cnp.ndarray and same_type(value, like)


cpdef bint same_values(value, cnp.ndarray expected) except -1:
    """Return whether two arrays of the same type and shape have the same bytes."""
    if not cnp.PyArray_Check(value) or not cnp.PyArray_ISCARRAY_RO(value):
        value = np.require(value, expected.dtype, ("C", "A"))
    return memcmp(cnp.PyArray_DATA(value), cnp.PyArray_DATA(expected), cnp.PyArray_NBYTES(expected)) == 0


cpdef nbytes_of(shape, dtype):
    """Return the number of bytes of an array of this shape and type."""
    return math.prod(shape) * dtype.itemsize
