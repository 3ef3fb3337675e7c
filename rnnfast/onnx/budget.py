"""Limits of one call of a model, all graphs within it together: loop iterations, work and memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import LimitError
from rnnfast.limits import Limits
from rnnfast.onnx.ops.types import MAX_TENSOR_BYTES, check_size, room
from rnnfast.onnx.result_shapes import known_results
from rnnfast.onnx.work import NUMPY_NUMBER, numbers_of, work_of

if TYPE_CHECKING:
    from rnnfast.onnx.graph import Node

# Iterations of all Loops and Scans of a call together: without a limit a condition that never turns false, or loops
# within loops, would hang.
MAX_ITERATIONS = 1_000_000
MOST_WORK = 2**62  # where there is no limit
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
    """Counts the loop iterations, the work and the bytes of one call.

    The memory of the call's arguments `args` belongs to the caller and is not counted. work: what the call takes in any
    case.
    """

    __slots__ = ("args", "limits", "iterations", "work", "nbytes", "row_bytes", "counted")

    def __init__(self, args: list[Any], limits: Limits = Limits(), work: int = 0) -> None:
        self.args, self.limits, self.work = args, limits, work
        self.iterations, self.nbytes, self.row_bytes = 0, 0, 0
        # id of an array -> weak reference to it; dead ones are removed when the limit seems to be reached
        self.counted: dict[int, weakref.ref[np.ndarray]] = {}

    def iterate(self) -> None:
        """Count an iteration of a Loop or Scan before it begins; raise LimitError if it is one too many."""
        self.iterations += 1
        if self.iterations > MAX_ITERATIONS:
            raise LimitError(f"the loops of one call take more than {MAX_ITERATIONS} iterations")

    def loops_left(self) -> tuple[int, int]:
        """Return what a native program's loops may take: (iterations, work of those with unknown trip counts)."""
        allowed = self.limits.work
        left = MOST_WORK if allowed is None else min(MOST_WORK, max(0, allowed - self.work))
        return max(0, MAX_ITERATIONS - self.iterations), left

    def count_loops(self, iterations: int, work: int) -> None:
        """Count what the loops of a native program took of what was left."""
        self.iterations += iterations
        self.work += work

    def spend(self, work: int) -> None:
        """Count work before it is done; raise LimitError if the call then takes too much."""
        self.limits.check("work", self.work + work, "the work of the call is")
        self.work += work

    def run(
        self, node: Node, run: Callable[..., Any], inputs: Sequence[Any], constant: Sequence[bool]
    ) -> tuple[Any, ...]:
        """Run a node and count its work. `constant` says which inputs are the same at each run.

        Raises LimitError before it runs if the limits do not allow it, as far as the shapes of the inputs say it.
        """
        # The result of Reshape has no more bytes than its input, and mostly is a view of it.
        least = inputs[0].nbytes if node.op_type == "Reshape" else 1
        with room(max(least, self.left()), "limits.bytes_of_a_call", recount=lambda: max(least, self.left(True))):
            known = known_results(node, inputs)
            for value in known:
                check_size(value.shape, value.dtype)
            self.spend(work_of(node, inputs, constant, known, is_lowered(node)))
            results = run(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        self.work += NUMPY_NUMBER * sum(map(numbers_of, results[len(known) :]))
        return results

    def left(self, recount: bool = False) -> int:
        """The bytes that a result may have now, at least; with `recount` exactly, which takes longer."""
        if self.limits.bytes_of_a_call is None:
            return MAX_TENSOR_BYTES
        if recount:
            self._recount()
        return max(1, self.limits.bytes_of_a_call - self.nbytes)

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

    def make_room(self, nbytes: int) -> None:
        """Raise LimitError if the results of a native step, of so many bytes, would be more than the call may hold."""
        allowed = self.limits.bytes_of_a_call
        if allowed is not None and self.nbytes + nbytes > allowed:
            self._recount()
            self.limits.check("bytes_of_a_call", self.nbytes + nbytes, "the bytes of the call's results are")

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
        allowed = self.limits.bytes_of_a_call
        if allowed is not None and self.nbytes > allowed:
            self._recount()
            self.limits.check("bytes_of_a_call", self.nbytes, "the bytes of the call's results are")

    def _recount(self) -> None:
        """Count anew, without the arrays that are no more."""
        living = [array for array in (reference() for reference in self.counted.values()) if array is not None]
        self.counted = {id(array): weakref.ref(array) for array in living}
        self.nbytes = self.row_bytes + sum(array.nbytes for array in living)


class Counted:
    """The step of a node whose work depends on values: it takes the Budget of the call before the node's inputs."""

    def __init__(self, node: Node, run: Callable[..., Any], constant: Sequence[bool]) -> None:
        self.node, self.run, self.constant = node, run, constant

    def __call__(self, budget: Budget, *inputs: Any) -> tuple[Any, ...]:
        return budget.run(self.node, self.run, inputs, self.constant)


def is_lowered(node: Node) -> bool:
    """Return whether a kernel runs the products of a node where no native command does."""
    return node.op_type in LOWERED and not node.domain


# Operators with a product that have a lowering.
LOWERED = frozenset(("MatMul", "Gemm", "Conv", "RNN", "GRU", "LSTM"))
