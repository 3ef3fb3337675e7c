"""Verifies native programs: whatever a command reads or writes lies inside its buffer.

With `RNNFAST_VERIFY=1` in the environment each program is verified when it is built. The fields of each command are
those of its struct in kernels/program.h, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.native._engine import Prepared
from rnnfast.native._kernels import Matrix
from rnnfast.native._programs import COMMANDS, LIMITS, NativeProgram

NAMES = {address: name for name, address in COMMANDS.items()}
AXES = LIMITS["axes"]
CONSTANTS, ARENA = 0, 1  # buffers; the inputs and outputs follow
BLOCK = 16  # columns of a block of packed weights
REGISTERS = 24  # of elementwise commands
# Bytes of ITEM_FLOAT32, _BOOL, _INT32, _INT64, _UINT8, _INT8, _UINT16, _INT16, _FLOAT16 and _BFLOAT16
ITEMS = (4, 1, 4, 8, 1, 1, 2, 2, 2, 2)
INTEGERS = (1, 1, 1, 4, 8)  # bytes of INTEGER_BOOL, _UINT8, _INT8, _INT32 and _INT64
ORDER_FLOAT32 = 8
SELECT = 15  # I_SELECT
RUNNING = (1, 3, 10, 11)  # I_ADD, I_MUL, I_MIN and I_MAX
SWITCHES = (0, 1)


class CorruptProgram(BaseException):
    """A command reads or writes outside of its buffers.

    This is a fault of rnnfast, which nothing that handles the errors of models may swallow.
    """


class Location(NamedTuple):
    """The place of a value: the index of its buffer, -1 if it is absent, and the offset in bytes."""

    buffer: int
    offset: int


class Words:
    """The words of one command, which are read one after the other."""

    def __init__(self, words: Sequence[int], where: str, name: str = "", at: int = 0) -> None:
        self.words, self.where, self.name, self.at = words, where, name, at

    def fail(self, problem: str) -> CorruptProgram:
        """The error that names the command."""
        return CorruptProgram(f"{self.where}, word {self.at}: {problem}")

    def take(self) -> int:
        """The next word."""
        if self.at >= len(self.words):
            raise self.fail("the command is too short")
        self.at += 1
        return int(self.words[self.at - 1])

    def several(self, n: int) -> list[int]:
        """The next n words."""
        return [self.take() for _ in range(n)]

    def count(self, least: int = 0, most: int | None = None) -> int:
        """The next word, which is a number of things."""
        value = self.take()
        if value < least or most is not None and value > most:
            raise self.fail(f"{value} is not from {least} to {most}")
        return value

    def one_of(self, values: Iterable[int]) -> int:
        """The next word, which has one of these values."""
        value = self.take()
        if value not in values:
            raise self.fail(f"{value} is none of {list(values)}")
        return value

    def location(self) -> Location:
        return Location(self.take(), self.take())

    def axes(self, strides: int, fixed: int | None = None) -> tuple[list[int], list[list[int]]]:
        """The shape and the strides of several views, padded to AXES unless the number of axes is fixed."""
        n = fixed if fixed is not None else self.count(1, AXES)
        room = n if fixed is not None else AXES
        shape = [self.count() for _ in range(room)][:n]
        return shape, [self.several(room)[:n] for _ in range(strides)]

    def command(self) -> Words:
        """The command that begins here, which another one contains."""
        start = self.at
        address, length = self.take(), self.count(2)
        if address not in NAMES or start + length > len(self.words):
            raise self.fail("there is no command")
        self.at = start + length
        name = NAMES[address]
        return Words(self.words[start : start + length], f"{self.where}, {name} at word {start}", name, 2)


class Verifier:
    """Knows the sizes of a program's buffers and what its constants are."""

    def __init__(self, program: NativeProgram) -> None:
        values = [*program.inputs, *program.outputs]
        sizes = [int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize for shape, dtype in values]
        self.sizes = [0, program.arena, *sizes]
        kept = list(program.keep)
        arrays = [a for a in kept if isinstance(a, np.ndarray)]
        self.constants = sorted((a.__array_interface__["data"][0], a.nbytes, i) for i, a in enumerate(arrays))
        self.arrays = arrays
        self.pointers = {k.address: k for k in kept if isinstance(k, (Matrix, Prepared, NativeProgram))}

    def reach(self, words: Words, place: Location, low: int, high: int, item: int = 1) -> None:
        """Check that the bytes from `low` to `high` behind a location lie in its buffer; 0 bytes lie anywhere."""
        if low >= high:
            return
        buffer, offset = place
        if not 0 <= buffer < len(self.sizes):
            raise words.fail(f"there is no buffer {buffer}")
        if offset % min(item, 8):
            raise words.fail(f"offset {offset} of items of {item} bytes")
        start, end = offset + low, offset + high
        if buffer == CONSTANTS:
            if not any(at <= start and end <= at + nbytes for at, nbytes, _ in self.constants):
                raise words.fail(f"bytes {start} to {end} are in no constant")
        elif start < 0 or end > self.sizes[buffer]:
            raise words.fail(f"bytes {start} to {end} are outside of buffer {buffer}, which has {self.sizes[buffer]}")

    def view(
        self, words: Words, place: Location, shape: Sequence[int], strides: Sequence[int], item: int, out: bool = False
    ) -> None:
        """Check a view whose strides are in bytes, with `item` contiguous bytes at each place.

        A view that is written, `out`, has a place of its own for each element.
        """
        if 0 in shape:
            return
        if out and any(n > 1 and stride == 0 for n, stride in zip(shape, strides)):
            raise words.fail("an output that overlaps itself")
        ends = [(n - 1) * stride for n, stride in zip(shape, strides)]
        low, high = sum(e for e in ends if e < 0), sum(e for e in ends if e > 0)
        self.reach(words, place, low, high + item, min(item, 8) if item & (item - 1) == 0 else 1)

    def floats(
        self, words: Words, place: Location, shape: Sequence[int], strides: Sequence[int], n: int = 1, out: bool = False
    ) -> None:
        """Check a view of float32 whose strides are in floats, with n contiguous ones at each place."""
        if n > 0 and 0 not in shape:
            self.view(words, place, [*shape, n], [*(4 * s for s in strides), 4], 4, out)

    def pointer(self, words: Words, kind: Any) -> Any:
        """The object that the next word points to, which the program keeps alive."""
        found = self.pointers.get(words.take())
        if not isinstance(found, kind):
            raise words.fail(f"this is no address of a {kind.__name__} that the program keeps")
        return found

    def known(self, place: Location) -> int | None:
        """The int64 of a constant; None if a run computes it."""
        for at, nbytes, i in self.constants if place.buffer == CONSTANTS else ():
            if at <= place.offset and place.offset + 8 <= at + nbytes:
                flat = np.frombuffer(self.arrays[i].tobytes("A"), np.uint8)[place.offset - at :][:8]
                return int(flat.view(np.int64)[0])
        return None


# ------------------------------------------------------------------------------------------------ commands
def _copy(v: Verifier, w: Words) -> None:
    to, source, item = w.location(), w.location(), w.one_of((1, 2, 4, 8))
    shape, strides = w.axes(2)
    v.view(w, to, shape, strides[0], item, True)
    v.view(w, source, shape, strides[1], item)


def _elementwise(v: Verifier, w: Words) -> list[int]:
    shape, _ = w.axes(0)
    inputs, instructions = w.count(0, REGISTERS), w.count(1)
    for i in range(1 + inputs):
        place, item = w.location(), ITEMS[w.one_of(range(len(ITEMS)))]
        strides = w.several(AXES)[: len(shape)]
        v.view(w, place, shape, strides, item, i == 0)
    loaded = set(range(inputs))
    for _ in range(instructions):
        w.count()
        to, *arguments = (w.count(0, REGISTERS - 1) for _ in range(4))
        w.several(2)
        status = w.location()
        if status.buffer != -1:
            v.reach(w, status, 0, 16, 8)
        if arguments[0] not in loaded:
            raise w.fail(f"register {arguments[0]} has no value")
        loaded.add(to)
    return shape


def _runs(v: Verifier, w: Words, x: Location, shape, strides, step: int, lines: int, runs: int, length: int) -> None:
    """Check the runs of a convolution, each of `length` contiguous floats, and that kernels find them all."""
    found = [(w.take(), w.take()) for _ in range(runs)]
    of_lines = [line for _, line in found]
    if sorted(of_lines) != of_lines and sorted(of_lines, reverse=True) != of_lines:
        raise w.fail("the runs are not in the order of their lines")
    j = np.arange(shape[1]) * step
    for offset, line in found:
        inside = np.flatnonzero((j + line >= 0) & (j + line < lines))
        if len(inside):
            start = Location(x.buffer, x.offset + 4 * (offset + int(inside[0]) * strides[1]))
            v.floats(w, start, [shape[0], int(inside[-1] - inside[0]) + 1, shape[2]], strides, length)


def _depthwise(v: Verifier, w: Words) -> None:
    x, out, weights, bias = (w.location() for _ in range(4))
    channels, taps = w.count(), w.count()
    shape, (x_strides, out_strides) = w.axes(2, 3)
    step, lines = w.take(), w.count()
    v.floats(w, out, shape, out_strides, channels, True)
    v.floats(w, weights, [taps], [channels], channels)
    v.floats(w, bias, [], [], channels)
    _runs(v, w, x, shape, x_strides, step, lines, taps, channels)


def _reduce(v: Verifier, w: Words) -> None:
    x, out, status = (w.location() for _ in range(3))
    w.one_of(range(7)), w.one_of(range(4))
    across = w.one_of(SWITCHES)
    shape, (x_strides, out_strides) = w.axes(2)
    lines, columns, line_stride, column_stride = w.count(), w.count(), w.take(), w.take()
    v.floats(w, out, shape, out_strides, 1, True)
    if across:
        if shape[-1] > 1 and (x_strides[-1] != 1 or out_strides[-1] != 1):
            raise w.fail("the last kept axis is not contiguous")
        v.floats(w, x, [*shape, lines, columns], [*x_strides, line_stride, column_stride])
    else:
        if lines != 1:
            raise w.fail(f"{lines} lines")
        v.floats(w, x, shape, x_strides, columns)
    if status.buffer != -1:
        if across:
            raise w.fail("a status across rows")
        v.reach(w, status, 0, 16, 8)


def _rows(v: Verifier, w: Words) -> None:
    x, out = w.location(), w.location()
    w.one_of(range(3)), w.take()
    n = w.count()
    # No axes at all is one row.
    axes = w.count(0, AXES)
    shape, x_strides, out_strides = (w.several(AXES)[:axes] for _ in range(3))
    v.floats(w, x, shape, x_strides, n)
    v.floats(w, out, shape, out_strides, n, True)


def _pool(v: Verifier, w: Words) -> None:
    x, out = w.location(), w.location()
    w.one_of(SWITCHES)
    samples, channels = w.count(), w.count()
    x_strides, out_strides = w.several(3), w.several(3)
    size, outputs, windows = [], [], []
    for _ in range(2):
        n, count, kernel, stride, dilation, begin, _low, _high = w.several(8)
        windows.append((n, count, kernel, stride, dilation, begin))
        if min(n, count, kernel, stride, dilation) < 1:
            raise w.fail("a window without elements")
        size.append(n)
        outputs.append(count)
    v.floats(w, x, [samples, *size], x_strides, channels)
    v.floats(w, out, [samples, *outputs], out_strides, channels, True)
    for n, count, kernel, stride, dilation, begin in windows:
        start = np.arange(count) * stride - begin
        first = -(np.minimum(start, 0) // dilation)
        if not np.all((first < kernel) & (start + first * dilation < n)):
            raise w.fail("a window that has no tap inside the input")


def _gather(v: Verifier, w: Words) -> None:
    to, source, index, status = (w.location() for _ in range(4))
    scatters, nbytes, outer, count, limit = w.one_of(SWITCHES), w.count(), w.count(), w.count(), w.count()
    item = w.one_of((4, 8))
    to_outer, to_stride, from_outer, from_stride = w.several(4)
    if count and outer and not limit:
        raise w.fail("indices of an axis without elements")
    v.view(w, index, [count], [item], item)
    v.reach(w, status, 0, 16, 8)
    v.view(w, to, [outer, limit if scatters else count, nbytes], [to_outer, to_stride, 1], 1)
    v.view(w, source, [outer, count if scatters else limit, nbytes], [from_outer, from_stride, 1], 1)


def _integer(v: Verifier, w: Words) -> None:
    to, *places, c, status = (w.location() for _ in range(5))
    code = w.one_of(range(SELECT + 1))
    to_item, item = (INTEGERS[w.one_of(range(len(INTEGERS)))] for _ in range(2))
    shape, strides = w.axes(4)
    v.view(w, to, shape, strides[0], to_item, True)
    for place, of_view in zip(places, strides[1:]):
        v.view(w, place, shape, of_view, item)
    if code == SELECT:
        v.view(w, c, shape, strides[3], 1)
    if status.buffer != -1:
        v.reach(w, status, 0, 16, 8)


def _running(v: Verifier, w: Words) -> None:
    to, x = w.location(), w.location()
    w.one_of(RUNNING)
    kind = w.one_of((*range(len(INTEGERS)), ORDER_FLOAT32))
    item = 4 if kind == ORDER_FLOAT32 else INTEGERS[kind]
    n, to_step, x_step = w.count(1), w.take(), w.take()
    shape, (to_strides, x_strides) = w.axes(2)
    v.view(w, x, [*shape, n], [*x_strides, x_step], item)
    v.view(w, to, [*shape, n] if to_step else shape, [*to_strides, to_step] if to_step else to_strides, item, True)


def _order(v: Verifier, w: Words) -> None:
    x, values, places, memory = (w.location() for _ in range(4))
    kind = w.one_of((*range(len(INTEGERS)), ORDER_FLOAT32))
    item = 4 if kind == ORDER_FLOAT32 else INTEGERS[kind]
    for _ in range(3):
        w.one_of(SWITCHES)
    n = w.count()
    k = w.count(0, n)
    x_stride, value_stride, place_stride = w.several(3)
    axes = w.count(0, AXES)
    shape, x_outer, value_outer, place_outer = (w.several(AXES)[:axes] for _ in range(4))
    v.view(w, x, [*shape, n], [*x_outer, x_stride], item)
    if values.buffer >= 0:
        v.view(w, values, [*shape, k], [*value_outer, value_stride], item)
    v.view(w, places, [*shape, k], [*place_outer, place_stride], 8)
    v.reach(w, memory, 0, 32 * n if k > 1 else 16, 8)


def _moving(v: Verifier, w: Words, nbytes: int, trips: int | None) -> None:
    """Check a location that moves on with each of so many iterations (None: not known before a run)."""
    place, stride = w.location(), w.take()
    if stride and trips is None:
        raise w.fail("a location moves although the number of iterations is not known")
    v.view(w, place, [trips or 1, nbytes], [stride, 1], 1)


def _call(v: Verifier, w: Words, trips: int | None = 1) -> None:
    address = w.take()
    inner = v.pointers.get(address)
    if address and not isinstance(inner, NativeProgram):
        raise w.fail("this is no address of a program that the program keeps")
    length, arena = w.count(), w.location()
    buffers, moves, checks = w.count(0, LIMITS["buffers"] - 2), w.count(), w.count()
    sizes: list[int] = []
    if isinstance(inner, NativeProgram):
        sizes = Verifier(inner).sizes[2:]
        if length != inner.n_words:
            raise w.fail(f"{length} words of a program that has {inner.n_words}")
        v.reach(w, arena, 0, inner.arena, 8)
    if buffers != len(sizes):
        raise w.fail(f"{buffers} buffers of a program that has {len(sizes)}")
    for nbytes in sizes:
        _moving(v, w, nbytes, trips)
    for _ in range(moves):
        nbytes = _peek(w, 6)
        _moving(v, w, nbytes, trips)
        _moving(v, w, nbytes, trips)
        w.count()
    for _ in range(checks):
        offset = w.count()
        if not isinstance(inner, NativeProgram) or offset + 16 > inner.arena:
            raise w.fail(f"a status at {offset} of the called program")
        v.reach(w, w.location(), 0, 16, 8)


def _peek(w: Words, ahead: int) -> int:
    """The word that comes so many words later, a number of bytes."""
    at, w.at = w.at, w.at + ahead
    value = w.count()
    w.at = at
    return value


def _branch(v: Verifier, w: Words) -> None:
    v.reach(w, w.location(), 0, 1)
    for _ in range(2):
        _command(v, w.command(), ("call",))


def _loop(v: Verifier, w: Words) -> None:
    trips, going, next_, index, status = (w.location() for _ in range(5))
    for place, nbytes in ((trips, 8), (going, 1), (next_, 1)):
        if place.buffer != -1:
            v.reach(w, place, 0, nbytes, nbytes)
    v.reach(w, index, 0, 8, 8)
    v.reach(w, status, 0, 16, 8)
    w.count()
    body = w.command()
    _call(v, body, v.known(trips))
    _end(body)


def _convolution(v: Verifier, w: Words) -> list[int]:
    matrix = v.pointer(w, Matrix)
    x, out, n = w.location(), w.location(), w.count(0, matrix.N)
    shape, (x_strides, out_strides) = w.axes(2, 3)
    step, lines, _cost, length, runs = w.take(), w.count(), w.count(), w.count(), w.count()
    if length * runs != matrix.K:
        raise w.fail(f"{runs} runs of {length} for weights of {matrix.K} rows")
    v.floats(w, out, shape, out_strides, n, True)
    _runs(v, w, x, shape, x_strides, step, lines, runs, length)
    return shape


def _convolved(v: Verifier, w: Words) -> None:
    convolution = w.command()
    shape = _convolution(v, convolution)
    _end(convolution)
    then = w.command()
    lines = _elementwise(v, then)
    _end(then)
    if len(lines) < 2 or lines[0] != shape[0] * shape[1]:
        raise w.fail(f"a convolution of lines {shape[:2]} and an elementwise command of {lines}")


def _product(v: Verifier, w: Words) -> None:
    matrix = v.pointer(w, Matrix)
    a, c, n = w.location(), w.location(), w.count(0, matrix.N)
    shape, (a_strides, c_strides) = w.axes(2, 3)
    w.count()
    v.floats(w, a, shape, a_strides, matrix.K)
    v.floats(w, c, shape, c_strides, n, True)


def _multiply(v: Verifier, w: Words) -> None:
    a, b, c, packed, zeros = (w.location() for _ in range(5))
    shape, (of_a, of_b, of_c) = w.axes(3, 3)
    rows, k, n = w.count(), w.count(), w.count()
    lda, ldc, stride_k, stride_n = w.several(4)
    columns = (n + BLOCK - 1) // BLOCK * BLOCK
    v.floats(w, a, [*shape, rows], [*of_a, lda], k)
    v.floats(w, b, [*shape, k, n], [*of_b, stride_k, stride_n])
    v.floats(w, c, [*shape, rows], [*of_c, ldc], n, True)
    v.floats(w, packed, [], [], k * columns)
    v.floats(w, zeros, [], [], columns)


def _recurrent(v: Verifier, w: Words) -> None:
    layer = v.pointer(w, Prepared)
    x, y, h0, c0, h, c, memory, lens, status, order = (w.location() for _ in range(10))
    cell, D, T, B = layer.cells[0], len(layer.cells), layer.T, layer.B
    x_t, x_b, y_t, y_b, y_d = layer.strides
    v.floats(w, x, [T, B], [x_t, x_b], cell.input_size)
    v.floats(w, y, [T, B, D], [y_t, y_b, y_d], cell.output_size)
    for place, width in ((h0, cell.output_size), (c0, cell.hidden_size), (c, cell.hidden_size)):
        if place.buffer != -1:
            v.floats(w, place, [], [], D * B * width)
    v.floats(w, h, [], [], D * B * cell.output_size)
    v.floats(w, memory, [], [], layer.workspace)
    if lens.buffer != -1:
        v.view(w, lens, [B], [4], 4)
        v.reach(w, status, 0, 16, 8)
        v.reach(w, order, 0, 8 * (2 * B + T), 8)


CHECKS: dict[str, Callable[[Verifier, Words], Any]] = {
    "copy": _copy,
    "elementwise": _elementwise,
    "depthwise": _depthwise,
    "reduce": _reduce,
    "rows": _rows,
    "pool": _pool,
    "gather": _gather,
    "integer": _integer,
    "running": _running,
    "order": _order,
    "call": _call,
    "branch": _branch,
    "loop": _loop,
    "convolution": _convolution,
    "convolved": _convolved,
    "product": _product,
    "multiply": _multiply,
    "recurrent": _recurrent,
}


def _end(w: Words) -> None:
    """Check that all words of a command were read."""
    if w.at != len(w.words):
        raise w.fail(f"the command has {len(w.words)} words")


def _command(v: Verifier, w: Words, names: Iterable[str] = CHECKS) -> None:
    """Check one command, which is one of these."""
    if w.name not in names:
        raise w.fail(f"a {w.name} command stands here")
    CHECKS[w.name](v, w)
    _end(w)


def verify(program: NativeProgram, code: Sequence[int] | None = None) -> None:
    """Check all commands of a program. Programs that it calls were verified when they were built.

    Args:
        program: The program.
        code: Other words in place of its own, for tests.

    Raises:
        CorruptProgram: A command has words that it must not have, or reaches outside of its buffers.
    """
    verifier = Verifier(program)
    words = Words((program.code if code is None else np.asarray(code)).tolist(), "program")
    while words.at < len(words.words):
        _command(verifier, words.command())
    for offset, *_ in program.checks:
        verifier.reach(words, Location(ARENA, offset), 0, 16, 8)
