"""Builds a native program: values are views of allocations, commands are lists of words, and all intermediate
results get offsets in one arena.

A view is a NumPy array whose memory is never touched. A command needs only its shape, its strides and its offset in
the allocation, and NumPy computes these for slices, transpositions, splits and the like.
"""

import array
import math
import mmap
import struct
from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, LimitError
from rnnfast.limits import Limits
from rnnfast.native import _programs
from rnnfast.native._arenas import Arenas
from rnnfast.native._programs import address
from rnnfast.onnx import budget
from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile import arena
from rnnfast.onnx.symbolic.views import View

ARENA, CONSTANT, INPUT, OUTPUT = "arena", "constant", "input", "output"
AXES = _programs.LIMITS["axes"]
MAPPED_BYTES = 1 << 20  # larger views are mapped, so that they take addresses but no memory
VIEWS = np.ndarray, View
DTYPES = frozenset(map(np.dtype, ("float32", "int64", "int32", "bool", "uint8", "int8", "uint16", "int16", "float64")))


def _reshaped(view, shape):
    """Return a view in another shape; ValueError or AttributeError where that takes a copy, which is not begun."""
    if type(view) is View:
        return view.reshaped(shape)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        return np.reshape(view, shape, copy=False)
    result = view.view()
    setattr(result, "shape", shape)  # noqa: B010 - newer versions of NumPy deprecate the assignment
    return result


class NotNative(Exception):
    """No command can do this; the step keeps its NumPy function."""


class CommandNote(NamedTuple):
    """Describes one command for profiles: its node, the work it does, the shape it writes, its operations and bytes."""

    name: str
    op_type: str
    command: str
    shape: tuple
    flops: int
    nbytes: int


class Target(NamedTuple):
    """How programs will run: on how many threads at most, whether BLAS multiplies matrices outside of programs, where
    they borrow their arenas, and the limits of a call.
    """

    threads: int
    blas: bool
    arenas: Arenas
    limits: Limits = Limits()


class Operand:
    """A value of a graph: its shape and type, its array if it is known at load, and its view or expression while a
    program is built.

    uses: the number of steps and graph outputs that read it.
    """

    __slots__ = ("shape", "dtype", "known", "view", "expression", "uses")

    def __init__(self, array, known):
        self.shape, self.dtype, self.known = array.shape, array.dtype, array if known else None
        self.view = self.expression = None
        self.uses = 0


class Allocation:
    """The memory behind one or more views.

    kind: ARENA, CONSTANT, INPUT or OUTPUT. array: the NumPy array that owns the memory of the views. first, last: the
    first and the last command that use it. index: its offset in the arena, or the index of its buffer.
    """

    __slots__ = ("kind", "array", "first", "last", "index", "address")

    def __init__(self, kind, array):
        self.kind, self.array, self.first, self.last, self.index = kind, array, None, None, None
        self.address = address(array) if type(array) is np.ndarray else 0


def memory_of(view):
    """Return what owns the memory of a view."""
    return view.memory if type(view) is View else owner(view)


def strided(view, shape, strides):
    """Return the view of another shape and other strides that begins where `view` does."""
    if type(view) is View:
        return view.strided(shape, strides)
    memory = owner(view)
    flat = memory.reshape(-1).view(np.uint8)
    return np.ndarray(shape, view.dtype, flat, address(view) - address(memory), strides)


def broadcast(view, shape):
    """Return the view broadcast to a shape; the view itself if it has that shape."""
    return view if view.shape == shape else np.broadcast_to(view, shape)


class Builder:
    """Collects the commands of consecutive steps, which emitters append; `program` turns them into a NativeProgram."""

    def __init__(self, target):
        self.target = target
        self.commands, self.notes, self.keep = [], [], []
        self.inputs = []  # the Operands that are inputs of the program
        self._allocations = {}  # id of the owning array -> its Allocation
        self.folds = {}  # id of an Operand -> function(scale, shift): its commands give scale * it + shift
        self.largest = {}  # id of an Operand of integers that float32 holds -> a bound of their magnitudes
        self.last_convolution = None  # of the last one: (Operand, its view as [N, H, W, C], the index of its command)
        self._seen = []  # Operands that got a view or an expression here
        self._showing = {}  # id of an owning array -> the Operands that got a view of it, perhaps another one since
        self.node = None  # the node to which the next commands belong
        self._nodes = {}  # id of an Operand with an expression -> the node of the expression
        self.loops = False  # whether the commands have loops
        self._checks = []  # (view of a status, class of the error, its message, where it happened, the limit)

    # ------------------------------------------------------------------------------------------ values
    def new(self, shape, dtype=np.float32):
        """Return a C-contiguous view of a new allocation in the arena."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            array = np.ndarray(shape, dtype, mmap.mmap(-1, nbytes)) if nbytes > MAPPED_BYTES else np.empty(shape, dtype)
        except OSError as e:
            raise LimitError(f"no addresses for a result of {nbytes} bytes: {e}") from e
        self._allocations[id(array)] = Allocation(ARENA, array)
        return array

    def constant(self, array):
        """Return the array as the view of a constant, which the program reads at its own address."""
        base = memory_of(array)
        if id(base) not in self._allocations:
            self._allocations[id(base)] = Allocation(CONSTANT, base)
        return array

    def zeros(self, count):
        """Return the view of a constant of so many float32 zeros."""
        return self.constant(np.zeros(count, np.float32))

    def view(self, operand):
        """Return the view of an operand.

        An operand without one gets it here: from its expression, which is emitted now, from its known array, or as an
        input of the program.
        """
        if operand.view is None and operand.expression is not None:
            node, self.node = self.node, self._nodes[id(operand)]
            self.set(operand, operand.expression.compute(self))
            self.node = node
        if operand.view is None and operand.known is not None:
            return self.constant(operand.known)
        if operand.view is None:
            view = self.new(operand.shape, operand.dtype)
            self.allocation_of(view).kind = INPUT
            self.inputs.append(operand)
            self.set(operand, view)
        return operand.view

    def set(self, operand, view):
        """Give the operand its view in this program."""
        operand.view = view
        self._seen.append(operand)
        self._showing.setdefault(id(memory_of(view)), []).append(operand)

    def set_expression(self, operand, expression):
        """Give the operand an expression, which is emitted when a view of it is first wanted, perhaps never."""
        operand.expression = expression
        self._nodes[id(operand)] = self.node
        self._seen.append(operand)

    def forget(self):
        """Remove all views and expressions, so that the operands are free for another program."""
        for operand in self._seen:
            operand.view = operand.expression = None

    def operands_of(self, view):
        """Return the ids of the Operands that have this very view."""
        return {id(operand) for operand in self._showing[id(memory_of(view))] if operand.view is view}

    def allocation_of(self, view):
        """Return the Allocation that a view shows."""
        return self._allocations[id(memory_of(view))]

    def can_overwrite(self, operand):
        """Return whether its one reader may overwrite the operand: its view is a whole arena allocation that no other
        operand shows."""
        if operand.view is None or operand.uses != 1:
            return False
        base = memory_of(operand.view)
        allocation = self._allocations[id(base)]
        return (
            allocation.kind == ARENA
            and operand.view.flags.c_contiguous
            and operand.view.nbytes == base.nbytes
            and all(o is operand or o.view is None or memory_of(o.view) is not base for o in self._showing[id(base)])
        )

    def contiguous(self, view):
        """Return the view itself if it is C-contiguous, otherwise the view of a copy, which is emitted."""
        if view.flags.c_contiguous:
            return view
        copy = self.new(view.shape, view.dtype)
        self.copy(copy, view)
        return copy

    def reshaped(self, view, shape):
        """Return the view in another shape; a copy is emitted where NumPy could not reshape without one."""
        try:
            return _reshaped(view, shape)
        except (AttributeError, ValueError):
            return self.contiguous(view).reshape(shape)

    # ------------------------------------------------------------------------------------------ commands
    def nested(self, name, words):
        """Return a command as words that another command contains."""
        count = sum(2 if word is None or isinstance(word, VIEWS) else 1 for word in words)
        return _programs.COMMANDS[name], 2 + count, *words

    def emit(self, name, *words, out, flops=0, weights=0, note=None, at=None):
        """Append a command. Its words are ints, floats, arrays (views, two words each) or None (an absent view).

        out: the view that it writes. weights: the bytes that it reads besides its views. note: the name under which
        profiles show it, if not `name`. at: the index of the command that it replaces, if any; see `is_untouched`.
        """
        if at is None:
            at = len(self.commands)
            self.commands.append(None), self.notes.append(None)
        self.commands[at] = name, words
        views = [word for word in words if type(word) in VIEWS]
        nbytes = weights + sum([_distinct_bytes(view) for view in views])
        self.notes[at] = CommandNote(self.node.name, self.node.op_type, note or name, out.shape, flops, nbytes)
        for view in views:
            allocation = self.allocation_of(view)
            allocation.first = at if allocation.first is None else min(allocation.first, at)
            allocation.last = at if allocation.last is None else max(allocation.last, at)

    def is_untouched(self, view, since):
        """Return whether no command after the one at index `since` reads or writes the memory of a view, or, as that of
        constants and inputs, no command ever writes it.
        """
        allocation = self.allocation_of(view)
        return allocation.kind in (CONSTANT, INPUT) or allocation.last is None or allocation.last <= since

    def copy(self, to, source):
        """Emit a copy of `source`, which broadcasts to the shape of `to`, between views of one type."""
        source = broadcast(source, to.shape)
        if 0 in to.shape:
            return
        order = sorted(range(to.ndim), key=lambda i: -abs(to.strides[i]))
        shape, to_strides, strides = merge_axes(
            *([values[i] for i in order] for values in (to.shape, to.strides, source.strides))
        )
        if to.itemsize in strides[:-1]:  # a transposition: the contiguous axes of source and target come last
            order = sorted(range(len(shape)), key=lambda i: (i == len(shape) - 1, strides[i] == to.itemsize))
            shape, to_strides, strides = ([values[i] for i in order] for values in (shape, to_strides, strides))
        if len(shape) > AXES:
            raise NotNative(f"{len(shape)} axes")
        self.emit("copy", to, source, to.itemsize, len(shape), *axes(shape), *axes(to_strides), *axes(strides), out=to)

    def status(self, message=None, error=InputError, where=None, limit=0):
        """Return a new view where a command reports a value that is out of range: [1 if there is one, the value].

        message: the text of the error that a run then raises, with {} for the value and {limit} for the limit; None for
        no error. where: the location that the error names, if not the node's.
        """
        view = self.new((2,), np.int64)
        if message is not None:
            self._checks.append((view, error, message, where or self.node.where, limit))
        return view

    def made(self, function, *args):
        """Return what a function makes of sizes and other arguments, which the program keeps."""
        made = function(*args)
        self.keep.append(made)
        return made

    def computed(self, function, *args):
        """Return the integer that a function computes of sizes."""
        return int(function(*args))

    # ------------------------------------------------------------------------------------------ the program
    def program(self, outputs, work):
        """Return the NativeProgram that takes the arrays of `inputs` and returns those of the Operands `outputs`, each
        in memory of its own. work: that of a run, without that of loops whose trip counts are not known.
        """
        self._place_outputs(outputs)
        size, live = arena.place(self._in_arena())
        program = array.array("q")
        for name, words in self.commands:
            values = []
            for word in words:
                if type(word) is int:
                    values.append(word)
                elif type(word) is np.ndarray:
                    values += self._location_of(word)
                elif word is None:
                    values += (-1, 0)
                elif isinstance(word, float):
                    values += words_of(word)
                else:
                    values.append(int(word))
            program.extend((_programs.COMMANDS[name], 2 + len(values), *values))
        shapes = [(operand.shape, operand.dtype) for operand in outputs]
        inputs = [(operand.shape, operand.dtype) for operand in self.inputs]
        checks = [
            (self.allocation_of(status).index, error, with_limit(message, limit), where)
            for status, error, message, where, limit in self._checks
        ]
        keep = self._constants() + self.keep
        self.forget()
        return native_program(
            self.target, program, size, live, inputs, shapes, keep, tuple(self.notes), checks, self.loops, work
        )

    def _place_outputs(self, outputs):
        """Make the views of Operands outputs of the program, copying where needed, and number inputs and outputs."""
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

    def _in_arena(self):
        """Return the Allocations that need room in the arena."""
        return [a for a in self._allocations.values() if a.kind == ARENA and a.first is not None]

    def _constants(self):
        """Return the arrays that the program reads as constants."""
        return [a.array for a in self._allocations.values() if a.kind == CONSTANT]

    def _location_of(self, view):
        """Return the two words of a view: the index of its buffer, and the offset in bytes in it."""
        allocation = self.allocation_of(view)
        if allocation.kind == CONSTANT:
            return 0, address(view)
        offset = address(view) - allocation.address
        return (1, allocation.index + offset) if allocation.kind == ARENA else (allocation.index, offset)


def native_program(target, words, size, live, inputs, outputs, keep, notes, checks, loops, work):
    """Return the NativeProgram of these words with an arena of `size` bytes, of which `live` are in use at one time.

    work: that of a run, without that of loops whose trip counts are not known. Raises LimitError if a run takes more
    bytes than the limits allow.
    """
    nbytes = size + sum(math.prod(shape) * dtype.itemsize for shape, dtype in outputs)
    target.limits.check("bytes_of_a_call", nbytes, "the bytes of the call's results are")
    allowed = target.limits.work
    return _programs.NativeProgram(
        words,
        size,
        live,
        inputs,
        outputs,
        keep,
        notes,
        checks,
        target.threads,
        loops,
        budget.MAX_ITERATIONS,
        budget.MOST_WORK if allowed is None else min(budget.MOST_WORK, max(0, allowed - work)),
        target.arenas,
        target.limits.seconds,
    )


def with_limit(message, limit):
    """Return the message of a check that names a limit."""
    return message.replace("{limit}", str(limit))


def words_of(number):
    """Return the words of a float."""
    return struct.unpack("q", struct.pack("d", number))


def _distinct_bytes(view):
    """Return the bytes of a view's memory; elements repeated by broadcasting count once."""
    if 0 not in view.strides:
        return view.nbytes
    return view.itemsize * math.prod(n for n, stride in zip(view.shape, view.strides) if stride)


def axes(values, fill=0):
    """Pad the values of axes to the number of axes that a command has."""
    return (*values, *(fill,) * (AXES - len(values)))


def merge_axes(shape, *strides):
    """Return [shape, *strides] of the same elements in the same order with the fewest axes, at least one.

    strides: of several views of that shape; two axes are merged only where they can be in all of them.
    """
    result = [[1], *([0] for _ in strides)]
    for i, n in enumerate(shape):
        if n == 1:
            continue
        steps = [s[i] for s in strides]
        if result[0][-1] == 1 and len(result[0]) == 1:
            result = [[n], *([s] for s in steps)]
        elif all(r[-1] == n * s for r, s in zip(result[1:], steps)):
            result[0][-1] *= n
            for r, s in zip(result[1:], steps):
                r[-1] = s
        else:
            result[0].append(n)
            for r, s in zip(result[1:], steps):
                r.append(s)
    return result
