"""A live stream of layers: one time step goes in, its output comes out, and the states stay inside.

The bits are those of a call of the layers with the whole sequence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, no_memory
from rnnfast.native._engine import WORKSPACES, Prepared
from rnnfast.native._programs import COMMANDS, NativeProgram
from rnnfast.nn.checks import as_array, as_floats
from rnnfast.nn.module import is_recurrent, takes_floats
from rnnfast.streaming._streams import StreamRunner
from rnnfast.streaming.handle import Handle
from rnnfast.streaming.layer_signature import (
    LayerSignature,
    check_out,
    check_out_form,
    check_stepwise,
    describe_array,
    split_state,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LINE = 64  # bytes: each part of the memory begins at a cache line, and may be read that far past its end


class LayerStream(Handle):
    """One live stream of a recurrent layer, or of a Sequential; `layer.stream` makes it.

    The first step settles whether there is a batch and how large it is. A call that raises leaves the state as it was.
    """

    def __init__(self, layer, layers, state=None):
        super().__init__(type(layer).__name__)
        check_stepwise(layers)
        self._is_sequential = layers != (layer,)
        self._read = as_floats if takes_floats(layer) else as_array
        self._parts = [LayerState(member) if is_recurrent(member) else member for member in layers]
        self._states = [part for part in self._parts if isinstance(part, LayerState)]
        self._only = self._parts[0] if len(self._parts) == 1 and self._states else None
        # A layer of a user may keep what it is given, or override a call: no array is lent to it for the next step.
        self._can_be_ready = self._is_sequential and all(
            isinstance(part, LayerState) or type(part).__module__.startswith("rnnfast.nn.") for part in self._parts
        )
        self._pattern = None  # an array like each step's x, once that is settled
        self._between = None  # arrays for the outputs of all parts but the last, once a step was taken
        self._result_form = None  # shape and dtype of a step's result, likewise
        self._initial_states = self._validate_state(state)
        self._load(self._initial_states)

    def step(self, x: ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Take one time step and advance the states.

        Args:
            x: float32 [B, input_size], or [input_size] without a batch.
            out: A contiguous array for the result, which shares no memory with x. With it no step but the first
                allocates results. A step that raises may have written to it.

        Returns:
            The output, float32 [B, output_size] or [output_size]; `out` if that is given.

        Raises:
            InputError: The shape of x is not that of the first step, or `out` does not fit.
            InputTypeError: x or `out` has another type.
        """
        try:
            return self._lock.call(self._step, x, out)
        except MemoryError as error:
            raise no_memory(error) from None

    def run(self, x: ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Take many time steps, which lie along the leading axis, whatever `batch_first` is.

        Args:
            x: float32 [T, B, input_size], or [T, input_size] without a batch.
            out: A contiguous array for the result, which shares no memory with x.

        Returns:
            The outputs, float32 [T, B, output_size] or [T, output_size]; `out` if that is given.

        Raises:
            InputError: The shape of a step is not that of the first one, or `out` does not fit.
            InputTypeError: x or `out` has another type.
        """
        try:
            return self._lock.call(self._advance, x, out, True)
        except MemoryError as error:
            raise no_memory(error) from None

    def reset(self) -> None:
        """Begin anew with the initial state that was given, else with zeros. The next step may have another batch."""
        self._lock.renew(self._restart)

    @property
    def state(self) -> Any:
        """A copy of the state, in the form that a call of the layer takes and returns: h, or (h, c).

        It has no batch axis if x has none. For a Sequential it is a tuple of the states of its recurrent layers. It is
        None before the first step if no initial state was given. Setting it copies; None sets zeros.
        """
        return self._lock.call(self._copied_state)

    @state.setter
    def state(self, state: Any) -> None:
        self._lock.call(self._replace_state, state)

    # ------------------------------------------------------------------------------------------ state
    def _release(self):
        self._pattern = self._between = self._result_form = None
        for part in self._states:
            part.release()

    def _restart(self):
        """Begin anew with the initial state."""
        self._release()
        self._load(self._initial_states)

    def _copied_state(self):
        """A copy of the state, as a call has it; None before it is known."""
        states = [part.copied_state() for part in self._states]
        if any(state is None for state in states):
            return None
        return tuple(states) if self._is_sequential else states[0]

    def _replace_state(self, state):
        """Set the state to a copy of this one; None sets zeros."""
        self._load(self._validate_state(state))

    def _validate_state(self, state):
        """For each recurrent layer the list of its states, or None for zeros."""
        if state is None:
            return [None] * len(self._states)
        return [
            None if value is None else part.validate_state(value, self._pattern is not None)
            for part, value in zip(
                self._states, split_state(self._label, state, len(self._states), self._is_sequential)
            )
        ]

    def _load(self, states):
        """Set the states of all recurrent layers; None sets zeros, of the current batch if there is one."""
        for part, values in zip(self._states, states):
            part.load(part.zeros() if values is None and self._pattern is not None else values)

    # ------------------------------------------------------------------------------------------ steps
    def _step(self, x, out):
        """Take one step, as `step` takes it."""
        y = self._only.ready_step(x, out) if self._only is not None else self._ready_step(x, out)
        return self._advance(x, out, False) if y is None else y

    def _ready_step(self, x, out):
        """Take a step of a Sequential without allocating anything but the result.

        Return None, with the states as before, if the step needs conversions or anything else that `_advance` does.
        """
        pattern = self._pattern
        if self._between is None or type(x) is not np.ndarray or x.shape != pattern.shape or x.dtype != pattern.dtype:
            return None
        for state in self._states:
            if not state.is_ready():
                return None
        if out is None:
            out = np.empty(*self._result_form)
        elif (
            type(out) is not np.ndarray
            or not out.flags.carray
            or (out.shape, out.dtype) != self._result_form
            or np.may_share_memory(x, out)
        ):
            return None
        turns = [state.runner.turn for state in self._states]
        done = False
        try:
            y = x
            for part, target in zip(self._parts, (*self._between, out)):
                if not isinstance(part, LayerState):
                    part.call_into(y, target)
                elif part.ready_step(y, target) is None:
                    return None
                y = target
            done = True
            return out
        finally:
            if not done:
                for state, turn in zip(self._states, turns):
                    state.runner.turn = turn

    def _advance(self, x, out, many):
        """Take one step, or `many` of them, with every check; if it fails, leave the states as before."""
        x = self._read(x, "x")
        frame, pattern = x.shape[1:] if many else x.shape, self._pattern
        wrong = pattern is not None and (frame, x.dtype) != (pattern.shape, pattern.dtype)
        if many and x.ndim == 0 or wrong:
            expected = "frames along a leading axis" if pattern is None else f"frames of {describe_array(pattern)}"
            raise InputError(f"{self._label}: x is {describe_array(x)}, expected {expected}")
        if out is not None:
            check_out(self._label, out, x)
        before, forms = [part.current_state() for part in self._states], []
        prepares = self._can_be_ready and self._between is None and not many
        try:
            y = x
            for part in self._parts:
                y = part(y) if not isinstance(part, LayerState) else part.run(y) if many else part.step(y)
                if prepares:
                    forms.append((y.shape, y.dtype))
            between = [np.empty(*form) for form in forms[:-1]]
            if out is not None:
                check_out_form(self._label, out, y)
                np.copyto(out, y)
        except BaseException:
            for part, values in zip(self._states, before):
                part.load(values)
            raise
        if pattern is None and (not many or len(x)):
            self._pattern = np.broadcast_to(np.empty((), x.dtype), frame)
        if forms:
            self._between, self._result_form = between, forms[-1]
        return y if out is None else out


class LayerState:
    """A recurrent layer of a stream and its states: arrays, or the states of a StreamRunner for single steps."""

    __slots__ = ("layer", "signature", "widths", "runner", "arrays", "weights", "shapes")

    def __init__(self, layer):
        self.layer, self.signature = layer, LayerSignature(layer)
        self.widths = self.signature.widths
        self.release()

    def release(self):
        """Forget the states and the runner."""
        self.runner = self.arrays = self.weights = self.shapes = None

    # ------------------------------------------------------------------------------------------ state
    def current_state(self):
        """The list of states; None for zeros of a batch that is not known yet."""
        return self.arrays if self.runner is None else self.runner.state()

    def copied_state(self):
        """A copy of the states, as a call has them."""
        values = self.current_state()
        return None if values is None else self.signature.as_call([value.copy() for value in values])

    def load(self, values):
        """Set the states; None sets zeros of a batch that is not known yet."""
        if self.runner is not None and values is not None and [value.shape for value in values] == self.shapes:
            self.runner.load(values)
        else:
            self.runner, self.arrays = None, values

    def zeros(self):
        """Zeros like the current states; None if there are none."""
        values = self.current_state()
        return None if values is None else [np.zeros_like(value) for value in values]

    def validate_state(self, state, settled):
        """Return the caller's states as a list, checked; if `settled`, they must have the batch of the current ones."""
        values = self.signature.validate_state(state)
        if settled:
            self.signature.check_batch(values, self.current_state()[0].shape[1:-1])
        return values

    # ------------------------------------------------------------------------------------------ steps
    def is_ready(self):
        """Return whether there is a runner with the current weights."""
        return self.runner is not None and self.weights is self.layer.loaded_weights

    def ready_step(self, x, out):
        """Take a step on the runner; return None, and do nothing, if x needs conversion or there is no runner."""
        if self.runner is None or self.weights is not self.layer.loaded_weights:
            return None
        results = self.runner.step({"x": x}, out)
        return None if results is None else results[0]

    def step(self, x):
        """One step, with every check."""
        y = self.ready_step(x, None)
        if y is not None:
            return y
        x = np.ascontiguousarray(self.signature.validate_frame(x))
        self.prepare(x)
        return self.run(x[None])[0] if self.runner is None else self.runner.step({"x": x}, None)[0]

    def run(self, x):
        """All steps in one call of the layer."""
        x = self.signature.validate_frames(x)
        values = self.current_state()
        if values is not None:
            self.signature.check_batch(values, x.shape[1:-1])
        swap = self.layer.batch_first and x.ndim == 3
        y, last = self.layer.run_batch(x.swapaxes(0, 1) if swap else x, values or [None] * len(self.widths), None)
        if len(x):
            self.load(list(last))
        return np.ascontiguousarray(y.swapaxes(0, 1) if swap else y)

    def prepare(self, x):
        """Make the runner for steps like x, if the layer's weights are packed ones."""
        shapes = [(self.layer.num_layers, *x.shape[:-1], width) for width in self.widths]
        values = self.current_state() or [np.zeros(shape, np.float32) for shape in shapes]
        self.signature.check_batch(values, x.shape[:-1])
        weights = self.layer.current_weights()
        self.runner, self.arrays, self.weights, self.shapes = None, values, weights, shapes
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
    """The NativeProgram of one step of a stack of layers, for x of a shape.

    Its inputs are x and the states, its outputs y and the next states.
    """
    rows, inner = math.prod(shape[:-1]), layer.output_size
    float32 = np.dtype(np.float32)
    states = [((layer.num_layers, *shape[:-1], width), float32) for width in layer.state_widths]
    count = len(states)
    commands, keep, widest = [], [], 0
    lines = 2 * _line_bytes(4 * rows * inner)  # The arena holds the outputs of two layers in turn, then the workspace.
    for k, cells in enumerate(stack):
        size = inner if k else shape[-1]
        prepared = Prepared(
            cells,
            layer.reversed_directions,
            1,
            rows,
            (rows * size, size, rows * inner, inner, rows * inner),
            layer.thread_count,
        )
        keep.append(prepared)
        widest = max(widest, prepared.workspace)
        source = (1, (k + 1) % 2 * lines // 2) if k else (2, 0)
        target = (1, k % 2 * lines // 2) if k < len(stack) - 1 else (3 + count, 0)
        before, after = (
            [(first + i, 4 * k * rows * width) for i, width in enumerate(layer.state_widths)] + [(-1, 0)] * (2 - count)
            for first in (3, 4 + count)
        )
        words = [prepared.address]
        for location in (source, target, *before, *after, (1, lines), *[(-1, 0)] * 3):
            words += location
        commands += [COMMANDS["recurrent"], 2 + len(words), *words]
    arena = lines + 4 * widest
    return NativeProgram(
        commands,
        arena,
        arena,
        [(shape, float32), *states],
        [((*shape[:-1], inner), float32), *states],
        [*keep, stack],
        (),
        (),
        layer.thread_count,
        False,
        0,
        0,
        WORKSPACES,
    )


def _line_bytes(nbytes):
    """Whole cache lines for so many bytes, with one more to be read past the end."""
    return (nbytes + LINE + LINE - 1) // LINE * LINE
