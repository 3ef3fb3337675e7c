"""Tensors of every datatype of the protocol."""

import numpy as np

from rnnfast.server.datatypes import dtype_of


def values_of(datatype, seed=0):
    """An array [2, 3] of a datatype, with values at the ends of its range."""
    dtype = dtype_of(datatype, "x")
    if datatype == "BYTES":
        return np.array([["", "a", "é"], ["\0", "line\n", "x" * 300]], object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array([[info.min, info.max, 0], [1, 2, 3]], dtype)
    return np.random.default_rng(seed).standard_normal((2, 3)).astype(dtype)
