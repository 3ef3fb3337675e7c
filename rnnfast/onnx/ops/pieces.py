"""Long NumPy functions in pieces, between which a call may be stopped, and which need little work memory."""

import functools

import numpy as np

from rnnfast.native._interrupts import check

# Elements of a piece, and multiply-adds of a piece of a product that BLAS does not compute.
PIECE = 2**20
PRODUCTS = 2**24


def in_pieces(function):
    """Decorate an elementwise function of arrays that broadcast; each element is computed from the same numbers."""

    @functools.wraps(function)
    def run(*arrays):
        if max(x.size for x in arrays) <= 2 * PIECE:
            return function(*arrays)
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        arrays = [x.reshape((1,) * (len(shape) - x.ndim) + x.shape) for x in arrays]
        out = np.empty(shape, function(*(np.empty(0, x.dtype) for x in arrays)).dtype)
        _fill(function, out, arrays)
        return out

    return run


def _fill(function, out, arrays):
    """Compute `out` of arrays of its rank, piece by piece."""
    if out.size <= 2 * PIECE:
        check()
        out[...] = function(*arrays)
        return
    axis = next(axis for axis, n in enumerate(out.shape) if n > 1)
    step = max(1, PIECE // (out.size // out.shape[axis]))
    for start in range(0, out.shape[axis], step):
        part = (*(slice(None),) * axis, slice(start, start + step))
        _fill(function, out[part], [x if x.shape[axis] == 1 else x[part] for x in arrays])


def product(a, b):
    """The matrix product np.matmul(a, b), that of integers in pieces of some rows, which are exact in any way."""
    if a.ndim < 2 or a.dtype.kind not in "iu":
        return np.matmul(a, b)
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    of_row = a.shape[-1] * (b.shape[-1] if b.ndim > 1 else 1) * max(1, int(np.prod(stack, dtype=object)))
    step = max(1, PRODUCTS // max(1, of_row))
    if a.shape[-2] <= step:
        return np.matmul(a, b)
    rows = []
    for start in range(0, a.shape[-2], step):
        check()
        rows.append(np.matmul(a[..., start : start + step, :], b))
    return np.concatenate(rows, -1 if b.ndim == 1 else -2)
