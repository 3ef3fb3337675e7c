"""Annotations of attributes in the signatures of operators, and the limit of sizes that come from values."""

import math
import threading
from typing import Literal

import numpy as np

from rnnfast.errors import LimitError


class Ints(tuple):
    """A tuple of Python ints (ONNX attribute type INTS)."""


class Floats(tuple):
    """A tuple of Python floats (ONNX attribute type FLOATS)."""


class Strs(tuple):
    """A tuple of str (ONNX attribute type STRINGS)."""


class Dtype:
    """An ONNX element type number, handed to the operator as a ``numpy.dtype``."""


class Tensor:
    """A tensor attribute, handed to the operator as an ndarray."""


class Subgraph:
    """A graph attribute: the body of If, Loop or Scan."""


class DeclaredType:
    """A type as an attribute (ONNX attribute type TYPE_PROTO), handed to the operator as its bytes."""


Flag = Literal[0, 1]
"""An attribute that is off or on."""


MAX_TENSOR_BYTES = 2**31
MAX_RANK = 64
"""NumPy's own limit."""


class _Room(threading.local):
    """The bytes that a tensor may have in this thread now, and the limit that leaves so much."""

    nbytes, limit, error, recount = MAX_TENSOR_BYTES, None, LimitError, None


_room = _Room()


class room:
    """Let `check_size` refuse tensors of more bytes than these in a `with` block.

    limit: the limit that leaves so much. error: what it then raises, a kind of LimitError. recount: returns how many
    bytes there are, if `nbytes` is only the least that there may be.
    """

    __slots__ = ("nbytes", "limit", "error", "recount", "before")

    def __init__(self, nbytes, limit, error=LimitError, recount=None):
        self.nbytes, self.limit, self.error, self.recount = nbytes, limit, error, recount

    def __enter__(self):
        here = _room
        self.before = here.nbytes, here.limit, here.error, here.recount
        if self.nbytes < here.nbytes:
            most, recount = here.nbytes, self.recount
            here.nbytes, here.limit, here.error = self.nbytes, self.limit, self.error
            here.recount = None if recount is None else lambda: min(most, recount())

    def __exit__(self, *_):
        _room.nbytes, _room.limit, _room.error, _room.recount = self.before


def check_size(shape, dtype):
    """Raise LimitError before a tensor of `shape` is allocated whose size comes from values, not from inputs.

    A dimension of 0 counts as 1: a tensor of shape (0, 2**60) needs no memory, but loops over its axes must end too.
    """
    if len(shape) > MAX_RANK:
        raise LimitError(f"a tensor of {len(shape)} axes, more than the limit of {MAX_RANK}")
    sizes = [int(n) if isinstance(n, np.integer) else n for n in shape]  # products of NumPy's integers wrap around
    size = math.prod([n if n > 1 else 1 for n in sizes]) * np.dtype(dtype).itemsize
    if size > _room.nbytes and _room.recount is not None:
        _room.nbytes = _room.recount()
    if size > _room.nbytes:
        left = "" if _room.limit is None else f" that {_room.limit} leaves"
        error = LimitError if size > MAX_TENSOR_BYTES else _room.error
        raise error(
            f"a tensor of shape {tuple(int(n) for n in shape)} needs {size} bytes, "
            f"more than the limit of {_room.nbytes}{left}"
        )
