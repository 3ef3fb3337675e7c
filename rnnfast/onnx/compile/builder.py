"""A native program in the making: values as views of buffers, commands as words, buffers placed in one arena.

A view is a NumPy array whose memory is never touched: its shape, strides and the place within its buffer are what a
command needs, and NumPy itself gives the views that slicing, transposing, splitting and the like make of it.
"""

import bisect
import itertools
import math
import mmap
import operator
import struct
from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, LimitError
from rnnfast.native import _programs
from rnnfast.native._programs import address
from rnnfast.onnx import budget
from rnnfast.onnx.budget import owner

ARENA, CONSTANT, INPUT, OUTPUT = "arena", "constant", "input", "output"
AXES = _programs.LIMITS["axes"]
LINE = 64  # bytes: buffers begin at a cache line
SLACK = 64  # and may be read one block past their end
LARGE = 1 << 20  # bytes: views of such buffers take addresses, never memory
DTYPES = frozenset(map(np.dtype, ("float32", "int64", "int32", "bool", "uint8", "int8", "float64", "float16")))


class NotNative(Exception):
    """No command does this; the step stays as it is."""


class Note(NamedTuple):
    """What a command is: of which node, what it does, the shape of what it writes, its operations and bytes."""

    name: str
    op_type: str
    command: str
    shape: tuple
    flops: int
    nbytes: int


class Target(NamedTuple):
    """What native steps are made for: up to so many threads; products by BLAS, which native steps do not have."""

    threads: int
    blas: bool


class Operand:
    """A value of a graph: its shape and type, the array if it is known, and in a program its view or expression.

    uses: how many steps and outputs need it.
    """

    __slots__ = ("shape", "dtype", "known", "view", "expression", "uses")

    def __init__(self, array, known):
        self.shape, self.dtype, self.known = array.shape, array.dtype, array if known else None
        self.view = self.expression = None
        self.uses = 0


class _Allocation:
    __slots__ = ("kind", "array", "first", "last", "index", "address")

    def __init__(self, kind, array):
        self.kind, self.array, self.first, self.last, self.index = kind, array, None, None, None
        self.address = address(array)


_start = operator.itemgetter(1)


def broadcast(view, shape):
    return view if view.shape == shape else np.broadcast_to(view, shape)


class Builder:
    """Commands for one run of steps. Emitters append to it; `program` makes the callable."""

    def __init__(self, target):
        self.target = target
        self.commands, self.notes, self.keep = [], [], []
        self.inputs = []  # Operands that come from outside
        self._allocations = {}  # id of the owning array -> _Allocation
        self.folds = {}  # id of an Operand -> function(scale, shift): what makes it does that too
        self.convolved = None  # (the Operand, its view as [N, H, W, C]) that the last command makes
        self._seen = []  # (Operand, what it was) of those that got a view here
        self.node = None  # what the commands that follow belong to
        self._nodes = {}  # id of an Operand with an expression -> its node
        self._checks = []  # (view of a status, what its error says, where it belongs)

    # ------------------------------------------------------------------------------------------ values
    def new(self, shape, dtype=np.float32):
        """The view of a fresh C-contiguous allocation."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        array = np.ndarray(shape, dtype, mmap.mmap(-1, nbytes)) if nbytes > LARGE else np.empty(shape, dtype)
        self._allocations[id(array)] = _Allocation(ARENA, array)
        return array

    def constant(self, array):
        """The view of an array that stays as it is."""
        base = owner(array)
        if id(base) not in self._allocations:
            self._allocations[id(base)] = _Allocation(CONSTANT, base)
        return array

    def view(self, operand):
        """The view of an operand; its expression is computed, if it has one."""
        if operand.view is None and operand.expression is not None:
            node, self.node = self.node, self._nodes[id(operand)]
            self.set(operand, operand.expression.compute(self))
            self.node = node
        if operand.view is None and operand.known is not None:
            return self.constant(operand.known)
        if operand.view is None:
            view = self.new(operand.shape, operand.dtype)
            self._allocations[id(view)].kind = INPUT
            self.inputs.append(operand)
            self.set(operand, view)
        return operand.view

    def set(self, operand, view):
        """The operand has this view in the program."""
        operand.view = view
        self._seen.append(operand)

    def set_expression(self, operand, expression):
        """The operand is computed when a view of it is wanted, perhaps never."""
        operand.expression = expression
        self._nodes[id(operand)] = self.node
        self._seen.append(operand)

    def forget(self):
        """Operands are free for another program."""
        for operand in self._seen:
            operand.view = operand.expression = None

    def holders(self, view):
        """The ids of the Operands that have this very view."""
        return {id(operand) for operand in self._seen if operand.view is view}

    def allocation_of(self, view):
        return self._allocations[id(owner(view))]

    def sole(self, operand):
        """Whether the operand's view is all of a buffer that no other operand shows, and nothing else needs it."""
        if operand.view is None or operand.uses != 1:
            return False
        base = owner(operand.view)
        allocation = self._allocations[id(base)]
        return (
            allocation.kind == ARENA
            and operand.view.flags.c_contiguous
            and operand.view.nbytes == base.nbytes
            and all(o is operand or o.view is None or owner(o.view) is not base for o in self._seen)
        )

    def contiguous(self, view):
        """The view itself if it is C-contiguous, else that of a copy."""
        if view.flags.c_contiguous:
            return view
        copy = self.new(view.shape, view.dtype)
        self.copy(copy, view)
        return copy

    def reshaped(self, view, shape):
        """The view in another shape, of a copy where NumPy could not do without one."""
        result = view.view()
        try:
            result.shape = shape
        except AttributeError:
            return self.contiguous(view).reshape(shape)
        return result

    # ------------------------------------------------------------------------------------------ commands
    def nested(self, name, words):
        """A command's words as those of another one that has it inside."""
        count = sum(2 if word is None or isinstance(word, np.ndarray) else 1 for word in words)
        return _programs.COMMANDS[name], 2 + count, *words

    def emit(self, name, *words, out, flops=0, weights=0, note=None):
        """A command: its words are ints, floats, arrays (views: two words) and None (a place that is not there).

        out: the view that it writes; weights: bytes that it reads besides its views.
        """
        self.convolved = None
        self.commands.append((name, words))
        views = [word for word in words if type(word) is np.ndarray]
        nbytes = weights + sum([_distinct(view) for view in views])
        self.notes.append(Note(self.node.name, self.node.op_type, note or name, out.shape, flops, nbytes))
        for view in views:
            allocation = self.allocation_of(view)
            if allocation.first is None:
                allocation.first = len(self.commands) - 1
            allocation.last = len(self.commands) - 1

    def copy(self, to, source):
        """Copies a view to another of its shape (or one that broadcasts) and type."""
        source = broadcast(source, to.shape)
        if 0 in to.shape:
            return
        order = sorted(range(to.ndim), key=lambda i: -abs(to.strides[i]))
        shape, to_strides, strides = merge_axes(
            *([of_axis[i] for i in order] for of_axis in (to.shape, to.strides, source.strides))
        )
        if to.itemsize in strides[:-1]:  # a transposition: its two axes last
            order = sorted(range(len(shape)), key=lambda i: (i == len(shape) - 1, strides[i] == to.itemsize))
            shape, to_strides, strides = ([of_axis[i] for i in order] for of_axis in (shape, to_strides, strides))
        if len(shape) > AXES:
            raise NotNative(f"{len(shape)} axes")
        self.emit("copy", to, source, to.itemsize, len(shape), *axes(shape), *axes(to_strides), *axes(strides), out=to)

    def status(self, message=None, error=InputError, where=None):
        """The view where a command notes a value that is out of range: [whether there is one, the value].

        message: what the error of the run says, with {} for the value; None for no error. where: if not the node.
        """
        view = self.new((2,), np.int64)
        if message is not None:
            self._checks.append((view, error, message, where or self.node.where))
        return view

    # ------------------------------------------------------------------------------------------ the end
    def program(self, outputs):
        """The callable for arrays of `inputs` that gives those of the Operands `outputs`, each of its own memory."""
        taken = set()
        for operand in outputs:
            view = self.view(operand)
            allocation = self.allocation_of(view)
            whole = view.flags.c_contiguous and view.nbytes == allocation.array.nbytes
            if allocation.kind != ARENA or not whole or id(allocation) in taken:
                out = self.new(view.shape, view.dtype)
                self.copy(out, view)
                allocation = self.allocation_of(out)
            taken.add(id(allocation))
            allocation.kind, allocation.index = OUTPUT, 2 + len(self.inputs) + len(taken) - 1
        for i, operand in enumerate(self.inputs):
            self.allocation_of(operand.view).index = 2 + i
        self._checks = [check for check in self._checks if self.allocation_of(check[0]).first is not None]
        for status, *_ in self._checks:
            self.allocation_of(status).last = len(self.commands)
        size, live = self._place()
        program = []
        for name, words in self.commands:
            values = []
            for word in words:
                if type(word) is int:
                    values.append(word)
                elif type(word) is np.ndarray:
                    values += self._place_of(word)
                elif word is None:
                    values += (-1, 0)
                elif isinstance(word, float):
                    values += struct.unpack("q", struct.pack("d", word))
                else:
                    values.append(int(word))
            program += (_programs.COMMANDS[name], 2 + len(values), *values)
        keep = [b.array for b in self._allocations.values() if b.kind == CONSTANT] + self.keep
        shapes = [(operand.shape, operand.dtype) for operand in outputs]
        inputs = [(operand.shape, operand.dtype) for operand in self.inputs]
        checks = [(self.allocation_of(status).index, *rest) for status, *rest in self._checks]
        self.forget()
        nbytes = size + sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        if nbytes > budget.MAX_RUN_BYTES:
            raise LimitError(
                f"the results of one call need {nbytes} bytes, more than the limit of {budget.MAX_RUN_BYTES} bytes"
            )
        return _programs.NativeProgram(
            program,
            size,
            live,
            inputs,
            shapes,
            keep,
            tuple(self.notes),
            checks,
            self.target.threads,
            budget.MAX_ITERATIONS,
        )

    def _place_of(self, view):
        allocation = self.allocation_of(view)
        if allocation.kind == CONSTANT:
            return 0, address(view)
        offset = address(view) - allocation.address
        return (1, allocation.index + offset) if allocation.kind == ARENA else (allocation.index, offset)

    def _place(self):
        """Gives each arena buffer its offset: the lowest that is free while it lives, larger ones first.

        Returns the arena's bytes, and the most that live at one command.
        """
        placed, size = [], 0
        live = [b for b in self._allocations.values() if b.kind == ARENA and b.first is not None]
        for allocation in sorted(live, key=lambda b: -b.array.nbytes):
            nbytes = (allocation.array.nbytes + SLACK + LINE - 1) // LINE * LINE
            at = 0
            for other, start, end in placed:  # by offset
                if other.first <= allocation.last and allocation.first <= other.last:
                    if start - at >= nbytes:
                        break
                    at = max(at, end)
            allocation.index = at
            bisect.insort(placed, (allocation, at, at + nbytes), key=_start)
            size = max(size, at + nbytes)
        changes = [0] * (len(self.commands) + 2)
        for allocation, start, end in placed:
            changes[allocation.first] += end - start
            changes[allocation.last + 1] -= end - start
        return size, max(itertools.accumulate(changes))


def _distinct(view):
    """Bytes of a view's memory, of what is broadcast once."""
    if 0 not in view.strides:
        return view.nbytes
    return view.itemsize * math.prod(n for n, stride in zip(view.shape, view.strides) if stride)


def axes(values, fill=0):
    """Padded to the axes that a command has room for."""
    return (*values, *(fill,) * (AXES - len(values)))


def merge_axes(shape, *strides):
    """(shape, strides...) of the same elements in the same order with the fewest axes, at least one."""
    result = [[1], *([0] for _ in strides)]
    for i, n in enumerate(shape):
        if n == 1:
            continue
        of_axis = [s[i] for s in strides]
        if result[0][-1] == 1 and len(result[0]) == 1:
            result = [[n], *([s] for s in of_axis)]
        elif all(r[-1] == n * s for r, s in zip(result[1:], of_axis)):
            result[0][-1] *= n
            for r, s in zip(result[1:], of_axis):
                r[-1] = s
        else:
            result[0].append(n)
            for r, s in zip(result[1:], of_axis):
                r.append(s)
    return result
