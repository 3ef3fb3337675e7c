"""Limits of one call of a model, all graphs within it together: loop iterations and memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast.errors import LimitError

# Iterations of all Loops and Scans of a call together: without a limit a condition that never turns false, or loops
# within loops, would hang.
MAX_ITERATIONS = 1_000_000
# Bytes of all intermediate results that a call holds at one time.
MAX_RUN_BYTES = 2**32
# Results smaller than this are not counted, because a file has a limited number of nodes. Rows of scan outputs always
# are, because a loop has many iterations.
COUNTED_BYTES = 2**16


def owner(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of `array`: itself, unless it is a view."""
    base = array.base
    while isinstance(base, np.ndarray):
        array, base = base, base.base
    return array


def owners(value: Any) -> dict[int, np.ndarray]:
    """The arrays that own the memory of a value (an array, a sequence of values, or None), by their ids."""
    if isinstance(value, (list, tuple)):
        return {key: array for v in value for key, array in owners(v).items()}
    if value is None:
        return {}
    array = owner(value)
    return {id(array): array}


class Budget:
    """Counts the loop iterations and the bytes of one call.

    The memory of the call's arguments `args` belongs to the caller and is not counted.
    """

    __slots__ = ("args", "iterations", "nbytes", "row_bytes", "counted")

    def __init__(self, args: list[Any]) -> None:
        self.args, self.iterations, self.nbytes, self.row_bytes = args, 0, 0, 0
        # id of an array -> weak reference to it; dead ones are removed when the limit seems to be reached
        self.counted: dict[int, weakref.ref[np.ndarray]] = {}

    def iterate(self) -> None:
        """Count an iteration of a Loop or Scan before it begins; raise LimitError if it is one too many."""
        self.iterations += 1
        if self.iterations > MAX_ITERATIONS:
            raise LimitError(f"the loops of one call take more than {MAX_ITERATIONS} iterations")

    def count(self, value: Any) -> None:
        """Count a result for as long as its memory lives; raise LimitError if the call then holds too much.

        The members of a sequence were counted when they were computed.
        """
        if not isinstance(value, np.ndarray):
            return
        array = owner(value)
        if array.nbytes < COUNTED_BYTES or not array.flags.writeable:  # constants are read-only
            return
        reference = self.counted.get(id(array))
        if reference is not None and reference() is array or id(array) in owners(self.args):
            return
        self.counted[id(array)] = weakref.ref(array)
        self._grow(array.nbytes)

    def keep_row(self, row: np.ndarray) -> None:
        """Count a row of a scan output until `drop_rows`; a large row is counted for as long as it lives."""
        if row.nbytes >= COUNTED_BYTES:
            self.count(row)
        else:
            self.row_bytes += row.nbytes
            self._grow(row.nbytes)

    def drop_rows(self, rows: Sequence[np.ndarray]) -> None:
        """Stop counting these equally large rows, which `keep_row` had counted."""
        if rows and rows[0].nbytes < COUNTED_BYTES:
            nbytes = len(rows) * rows[0].nbytes
            self.row_bytes -= nbytes
            self.nbytes -= nbytes

    def _grow(self, nbytes: int) -> None:
        self.nbytes += nbytes
        if self.nbytes > MAX_RUN_BYTES:
            living = [array for array in (reference() for reference in self.counted.values()) if array is not None]
            self.counted = {id(array): weakref.ref(array) for array in living}
            self.nbytes = self.row_bytes + sum(array.nbytes for array in living)
            if self.nbytes > MAX_RUN_BYTES:
                raise LimitError(f"the intermediate results of one call need more than {MAX_RUN_BYTES} bytes")
