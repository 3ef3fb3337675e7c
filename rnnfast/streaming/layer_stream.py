"""A live stream of layers: one time step in, its output out, the states stay inside. Bits are those of a call."""

import math

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.native._engine import Prepared
from rnnfast.native._programs import COMMANDS, NativeProgram
from rnnfast.nn.checks import as_array, as_input
from rnnfast.streaming._streams import StreamRunner
from rnnfast.streaming.handle import Handle

LINE = 64  # bytes: each part of the memory begins at a cache line, and may be read that far past its end


class LayerStream(Handle):
    """One stream of a recurrent layer, or of a Sequential; `layer.stream` makes it.

    The first step settles whether there is a batch and how large it is. A call that raises leaves the state as it was.
    """

    def __init__(self, layer, layers, state=None):
        super().__init__(type(layer).__name__)
        self._many = layers != (layer,)
        self._parts = [LayerState(member) if hasattr(member, "hidden_size") else member for member in layers]
        self._states = [part for part in self._parts if isinstance(part, LayerState)]
        self._alone = self._parts[0] if len(self._parts) == 1 and self._states else None
        self._shape = None
        self._start = self._checked(state)
        self._load(self._start)

    def step(self, x, *, out=None):
        """One time step: x [B, I], or [I] without a batch -> the output [B, H] or [H]; written to `out` if that is
        given, contiguous and not the memory of x."""
        if not self._busy.acquire(False):
            self._enter()
        try:
            y = self._alone.quick(x, out) if self._alone is not None else None
            return self._advance(as_array(x, "x"), out, False) if y is None else y
        finally:
            self._busy.release()

    def run(self, x, *, out=None):
        """Many time steps along the leading axis, whatever `batch_first` is: x [T, B, I] or [T, I] -> [T, B, H] or
        [T, H]."""
        self._enter()
        try:
            return self._advance(as_array(x, "x"), out, True)
        finally:
            self._busy.release()

    def reset(self):
        """As it began: with the state that it was given, else zeros. The next step may have another batch."""
        self._enter()
        try:
            self._release()
            self._load(self._start)
        finally:
            self._busy.release()

    @property
    def state(self):
        """A copy: what a call of the layer takes and returns as its state, h or (h, c), without a batch axis if x has
        none; for a Sequential a tuple of those of its recurrent layers. None before the first step, if none was
        given. Setting it copies; None is zeros."""
        self._enter()
        try:
            states = [part.shown() for part in self._states]
            if any(state is None for state in states):
                return None
            return tuple(states) if self._many else states[0]
        finally:
            self._busy.release()

    @state.setter
    def state(self, state):
        self._enter()
        try:
            self._load(self._checked(state))
        finally:
            self._busy.release()

    def _release(self):
        self._shape = None
        for part in self._states:
            part.release()

    def _checked(self, state):
        """For each recurrent layer its states, or None for zeros."""
        if state is None:
            return [None] * len(self._states)
        state = state if self._many else (state,)
        if not isinstance(state, (tuple, list)) or len(state) != len(self._states):
            raise InputTypeError(
                f"{self._label}: state is {_received(state)}, expected the states of {len(self._states)} layers"
            )
        return [
            None if value is None else part.checked(value, self._shape is not None)
            for part, value in zip(self._states, state)
        ]

    def _load(self, states):
        for part, values in zip(self._states, states):
            part.load(values)

    def _advance(self, x, out, many):
        self._check_open()
        frame = x.shape[1:] if many else x.shape
        if many and x.ndim == 0 or self._shape not in (None, (frame, x.dtype)):
            expected = "frames along a leading axis" if self._shape is None else f"frames of {_describe(*self._shape)}"
            raise InputError(f"{self._label}: x is {_describe(x.shape, x.dtype)}, expected {expected}")
        if out is not None and not (isinstance(out, np.ndarray) and out.flags.carray):
            raise InputTypeError(f"{self._label}: out is {type(out).__name__}, expected a contiguous, writeable array")
        if out is not None and np.may_share_memory(x, out):
            raise InputError(f"{self._label}: out shares memory with x")
        before = [part.values() for part in self._states]
        try:
            y = x
            for part in self._parts:
                y = part(y) if not isinstance(part, LayerState) else part.run(y) if many else part.step(y)
            if out is not None:
                if out.shape != y.shape or out.dtype != y.dtype:
                    raise InputError(
                        f"{self._label}: out is {_describe(out.shape, out.dtype)}, expected "
                        f"{_describe(y.shape, y.dtype)}"
                    )
                np.copyto(out, y)
        except BaseException:
            for part, values in zip(self._states, before):
                part.load(values)
            raise
        if self._shape is None and (not many or len(x)):
            self._shape = frame, x.dtype
        return y if out is None else out


class LayerState:
    """A recurrent layer of a stream and its states: arrays as a call takes them, or those of a runner of one step."""

    __slots__ = ("layer", "widths", "runner", "arrays", "weights")

    def __init__(self, layer):
        if layer.bidirectional or layer.reverse:
            raise InputError(f"{layer!r} begins at the end of a sequence, which a stream does not know")
        self.layer = layer
        self.widths = layer._widths
        self.release()

    def release(self):
        self.runner = self.arrays = self.weights = None

    def values(self):
        """The states, None for zeros of a batch that is not known yet."""
        return self.arrays if self.runner is None else self.runner.state()

    def shown(self):
        """A copy as a call has it."""
        values = self.values()
        if values is None:
            return None
        return values[0].copy() if len(values) == 1 else tuple(v.copy() for v in values)

    def load(self, values):
        if self.runner is not None and values is not None:
            self.runner.load(values)
        else:
            self.runner, self.arrays = None, values

    def checked(self, state, settled):
        """Copies of states as a call has them; `settled`: they must have the shape of those that there are."""
        state = (state,) if len(self.widths) == 1 else state
        if not isinstance(state, (tuple, list)) or len(state) != len(self.widths):
            raise InputTypeError(f"{self.layer!r}: state is {_received(state)}, expected h and c")
        values = [as_input(value, name).copy(order="C") for value, name in zip(state, ("h", "c"))]
        for value, width, name in zip(values, self.widths, ("h", "c")):
            expected = [self.layer.num_layers, *values[0].shape[1:-1], width]
            if list(value.shape) != expected or value.ndim not in (2, 3):
                raise InputError(
                    f"{self.layer!r}: state {name} has shape {list(value.shape)}, expected "
                    f"[{self.layer.num_layers}, batch, {width}] or [{self.layer.num_layers}, {width}]"
                )
        if settled:
            self.same_batch(values, self.values()[0].shape[1:-1])
        return values

    def same_batch(self, values, batch):
        if values[0].shape[1:-1] != batch:
            raise InputError(
                f"{self.layer!r}: state has shape {list(values[0].shape)}, expected "
                f"{[self.layer.num_layers, *batch, self.widths[0]]}"
            )

    def quick(self, x, out):
        """A step for what needs no conversion, else None."""
        if self.runner is None or self.weights is not self.layer._weights:
            return None
        results = self.runner.step({"x": x}, out)
        return None if results is None else results[0]

    def step(self, x):
        y = self.quick(x, None)
        if y is not None:
            return y
        x = np.ascontiguousarray(self.input(x, (1, 2)))
        self.prepare(x)
        return self.run(x[None])[0] if self.runner is None else self.runner.step({"x": x}, None)[0]

    def run(self, x):
        """All steps in one call of the layer."""
        x = self.input(x, (2, 3))
        values = self.values()
        if values is not None:
            self.same_batch(values, x.shape[1:-1])
        swap = self.layer.batch_first and x.ndim == 3
        y, last = self.layer._run(x.swapaxes(0, 1) if swap else x, values or [None] * len(self.widths), None)
        if len(x):
            self.load(list(last))
        return np.ascontiguousarray(y.swapaxes(0, 1) if swap else y)

    def input(self, x, ranks):
        x = as_input(x, "x")
        if x.ndim not in ranks or x.shape[-1] != self.layer.input_size:
            lead = "T, " if ranks == (2, 3) else ""
            size = self.layer.input_size
            raise InputError(
                f"x: shape is {list(x.shape)}, expected [{lead}B, {size}] or, without a batch, [{lead}{size}]"
            )
        return x

    def prepare(self, x):
        """The runner for steps like x, where the weights are the packed ones."""
        shapes = [(self.layer.num_layers, *x.shape[:-1], width) for width in self.widths]
        values = self.values() or [np.zeros(shape, np.float32) for shape in shapes]
        self.same_batch(values, x.shape[:-1])
        weights = self.layer._initialized()
        self.runner, self.arrays, self.weights = None, values, weights
        if x.size and not weights[1][0][0].blas:
            program = step_program(self.layer, weights[1], x.shape)
            count = len(values)
            self.runner = StreamRunner(
                program,
                (("x", 0, x, None),),
                (),
                tuple((1 + i, 2 + count + i, value) for i, value in enumerate(values)),
                (("y", 1 + count),),
            )


def step_program(layer, stack, shape):
    """One step of a stack for x of a shape, as a NativeProgram: its arrays are x and the states, y and the next states."""
    rows, inner = math.prod(shape[:-1]), layer._output_size
    float32 = np.dtype(np.float32)
    states = [((layer.num_layers, *shape[:-1], width), float32) for width in layer._widths]
    count = len(states)
    program, keep, widest = [], [], 0
    lines = 2 * _lines(4 * rows * inner)  # the outputs of two layers in turn, then the workspace
    for k, cells in enumerate(stack):
        size = inner if k else shape[-1]
        prepared = Prepared(
            cells, layer._reverse, 1, rows, (rows * size, size, rows * inner, inner, rows * inner), layer._threads
        )
        keep.append(prepared)
        widest = max(widest, prepared.workspace)
        source = (1, (k + 1) % 2 * lines // 2) if k else (2, 0)
        target = (1, k % 2 * lines // 2) if k < len(stack) - 1 else (3 + count, 0)
        places = [
            [(first + i, 4 * k * rows * width) for i, width in enumerate(layer._widths)] + [(-1, 0)] * (2 - count)
            for first in (3, 4 + count)
        ]
        words = [prepared.address]
        for place in (source, target, *places[0], *places[1], (1, lines), *[(-1, 0)] * 3):
            words += place
        program += [COMMANDS["recurrent"], 2 + len(words), *words]
    arena = lines + 4 * widest
    return NativeProgram(
        program,
        arena,
        arena,
        [(shape, float32), *states],
        [((*shape[:-1], inner), float32), *states],
        [keep, stack],
        (),
        (),
        layer._threads,
    )


def _lines(nbytes):
    """With room behind it."""
    return (nbytes + LINE + LINE - 1) // LINE * LINE


def _received(value):
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__


def _describe(shape, dtype):
    return f"{dtype} {list(shape)}"
