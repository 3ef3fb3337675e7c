"""What one call of a model may use, together with all the graphs within it: iterations of loops, and memory."""

import weakref

import numpy as np

from rnnfast.errors import LimitError

# Of all Loops and Scans of a call together: a condition that never turns false, or loops within loops, would hang.
MAX_ITERATIONS = 1_000_000
# Of all intermediate results that a call holds at one time.
MAX_RUN_BYTES = 2**32
# Smaller results are not counted, but rows of scan outputs are: the nodes of a file are limited, iterations are many.
COUNTED_BYTES = 2**16


def owner(array):
    """The array whose memory `array` shows, itself unless it is a view."""
    base = array.base
    while isinstance(base, np.ndarray):
        array, base = base, base.base
    return array


def owners(value):
    """id -> owner for a tensor, the members of a sequence, or those of several."""
    if isinstance(value, (list, tuple)):
        return {key: array for v in value for key, array in owners(v).items()}
    if value is None:
        return {}
    array = owner(value)
    return {id(array): array}


class Budget:
    """args: the call's arguments, whose memory is the caller's and is not counted."""

    __slots__ = ("args", "iterations", "nbytes", "row_bytes", "counted")

    def __init__(self, args):
        self.args, self.iterations, self.nbytes, self.row_bytes = args, 0, 0, 0
        self.counted = {}  # id -> weak reference; the dead ones go when the limit seems to be reached

    def iterate(self):
        """Before each iteration of a Loop or Scan."""
        self.iterations += 1
        if self.iterations > MAX_ITERATIONS:
            raise LimitError(f"the loops of one call take more than {MAX_ITERATIONS} iterations")

    def count(self, value):
        """Count a result for as long as its memory lives. A sequence's members were counted when they were made."""
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

    def keep_row(self, row):
        """Count a row of a scan output until `drop_rows`, a large one for as long as it lives."""
        if row.nbytes >= COUNTED_BYTES:
            self.count(row)
        else:
            self.row_bytes += row.nbytes
            self._grow(row.nbytes)

    def drop_rows(self, rows):
        """Rows that `keep_row` was given, all of one size."""
        if rows and rows[0].nbytes < COUNTED_BYTES:
            nbytes = len(rows) * rows[0].nbytes
            self.row_bytes -= nbytes
            self.nbytes -= nbytes

    def _grow(self, nbytes):
        self.nbytes += nbytes
        if self.nbytes > MAX_RUN_BYTES:
            living = [array for array in (reference() for reference in self.counted.values()) if array is not None]
            self.counted = {id(array): weakref.ref(array) for array in living}
            self.nbytes = self.row_bytes + sum(array.nbytes for array in living)
            if self.nbytes > MAX_RUN_BYTES:
                raise LimitError(f"the intermediate results of one call need more than {MAX_RUN_BYTES} bytes")
