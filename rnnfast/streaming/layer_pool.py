"""Pools of layers: many live streams of a recurrent layer, or of a Sequential, in one batch."""

import math

import numpy as np

from rnnfast.errors import InputError
from rnnfast.named_values import merge_inputs
from rnnfast.nn.checks import as_array, as_floats, as_input
from rnnfast.nn.module import is_recurrent, takes_floats
from rnnfast.streaming._pools import BatchedProgram, StateTable, commit, stacked, threads_for, unstacked
from rnnfast.streaming.layer_signature import (
    LayerSignature,
    check_out,
    check_out_form,
    check_stepwise,
    describe_array,
    split_state,
)
from rnnfast.streaming.layer_stream import step_program
from rnnfast.streaming.pool import Pool, batch_sizes, plan_sizes, with_rank

# The most streams that one native program takes.
LARGEST_BATCH = 256


class LayerPool(Pool):
    """A Pool of a layer; `layer.pool` makes it. A frame is x [I] -> y [H]; for many streams [n, I] -> [n, H]."""

    outputs = ("y",)

    def __init__(self, layer, layers, max_streams):
        super().__init__(type(layer).__name__, max_streams)
        check_stepwise(layers)
        self._is_sequential = layers != (layer,)
        self._read = as_floats if takes_floats(layer) else as_array
        self._parts = [LayerStates(member, max_streams) if is_recurrent(member) else member for member in layers]
        self._states = [part for part in self._parts if isinstance(part, LayerStates)]
        self.frame_pattern = None

    # ------------------------------------------------------------------------------------------ streams
    def _validate_opening(self, state, fixed):
        if fixed:
            raise InputError(f"{self.label}: there is no input {next(iter(fixed))!r} to be fixed, only 'x'")
        if state is None:
            return (None,)
        states = split_state(self.label, state, len(self._states), self._is_sequential)
        return (
            [
                None if value is None else part.signature.validate_stream_state(value)
                for part, value in zip(self._states, states)
            ],
        )

    def _begin(self, slot, state):
        if state is not None:
            self._initial_states[slot] = state
        self._restart(slot)

    def _restart(self, slot):
        for part, state in zip(self._states, self._initial_states.get(slot, [None] * len(self._states))):
            part.table.load(slot, state)
        self._commit(np.array([slot]))

    def _commit(self, slots, counting=None):
        """Let the states of a step or run take effect. All that may fail is done before, for want of memory too."""
        commit([(part.table, slots) for part in self._states], counting)

    def _state(self, slot):
        states = [part.signature.as_call(part.table.get(slot)) for part in self._states]
        return tuple(states) if self._is_sequential else states[0]

    def _tables(self, slot):
        return [part.table for part in self._states]

    def _single_input(self, slots):
        return "x"

    def _converted(self, slots, feed):
        return {name: self._read(value, name) for name, value in feed.items()}

    # ------------------------------------------------------------------------------------------ steps
    def _step(self, slots, feed, out):
        x = self._x(feed)
        y = self._advanced(slots, x, out)
        self._commit(slots)
        return y

    def _advanced(self, slots, x, out):
        """The results of a step, in `out` if that is given; the states wait for a commit."""
        if x.ndim == 0 or len(x) != len(slots):
            raise InputError(
                f"{self.label}: x has shape {list(x.shape)}, expected {len(slots)} frames along the first axis"
            )
        if out is not None:
            check_out(self.label, out, x)
        y = x
        for part in self._parts:
            last = part is self._parts[-1]
            y = part.step(slots, y, out if last else None) if isinstance(part, LayerStates) else part(y)
        if out is not None:
            check_out_form(self.label, out, y)
        self._settle(x.shape[1:], x.dtype)
        if out is None or y is out:
            return y
        np.copyto(out, y)
        return out

    def _run(self, slots, feed, lengths):
        x = self._x(feed)
        y = x.swapaxes(0, 1)
        for part in self._parts:
            y = part.run(slots, y, lengths) if isinstance(part, LayerStates) else part(y)
        y = np.ascontiguousarray(y.swapaxes(0, 1))
        y[np.arange(y.shape[1]) >= lengths[:, None]] = 0
        moved = slots[lengths > 0]
        self._settle(x.shape[2:], x.dtype)
        self._commit(moved)
        return y

    def _settle(self, shape, dtype):
        """Note what frames look like now."""
        pattern = self.frame_pattern
        if pattern is None or pattern.shape != shape or pattern.dtype != dtype:
            self.frame_pattern = np.empty(shape, dtype)

    def _x(self, feed):
        if set(feed) != {"x"}:
            raise InputError(f"{self.label}: inputs are {list(feed)}, expected 'x'")
        return self._read(feed["x"], "x")

    def _warm(self, frame):
        self.validate(None, frame)
        for part in self._states:
            if not part.has_blas():
                for size in plan_sizes(min(self.max_streams, LARGEST_BATCH)):
                    part.program(size)

    def with_frame_axes(self, stream, frame):
        rank = 1 if self._read is as_floats else None
        rank = rank if self.frame_pattern is None else self.frame_pattern.ndim
        feed = merge_inputs(self.label, frame, {}, "x")
        return {name: with_rank(value, rank) for name, value in feed.items()}

    def validate(self, stream, frame):
        x = self._x({"x": frame} if type(frame) is np.ndarray else merge_inputs(self.label, frame, {}, "x"))
        pattern = self.frame_pattern
        wrong = pattern is not None and (x.shape, x.dtype) != (pattern.shape, pattern.dtype)
        if wrong or x.dtype.hasobject:
            expected = "" if pattern is None else f", expected {describe_array(pattern)}"
            raise InputError(f"{self.label}: a frame is {describe_array(x)}{expected}")
        return x

    def _step_frames(self, slots, frames):
        if not frames:
            return []
        x = stacked(frames, np.empty(frames[0].shape, frames[0].dtype))
        if x is None:
            forms = {describe_array(frame) for frame in frames}
            raise InputError(f"{self.label}: frames are {' and '.join(sorted(forms))}, expected them alike")
        y = self._advanced(slots, x, None)
        results = unstacked(y, y.shape[1:])
        self._commit(slots, self._slots)
        return results

    def __repr__(self):
        return f"<rnnfast.nn.Pool of {self.label}: {len(self)} of {self.max_streams} streams open>"


class LayerStates:
    """A recurrent layer of a pool, the states of its streams, and its native programs."""

    def __init__(self, layer, max_streams):
        self.layer, self.signature = layer, LayerSignature(layer)
        forms = [((layer.num_layers, width), np.float32) for width in self.signature.widths]
        self.table = StateTable(max_streams, forms)
        self.weights, self.programs = None, {}
        self.flops = 2 * sum(math.prod(shape) for shape in layer.shapes().values())

    def program(self, size):
        """The BatchedProgram for so many streams."""
        if size not in self.programs:
            count = len(self.signature.widths)
            self.programs[size] = BatchedProgram(
                step_program(self.layer, self.weights[1], (size, self.layer.input_size)),
                size,
                [(0, 0)],
                [(1 + i, 2 + count + i, 1) for i in range(count)],
                [(1 + count, 0)],
                (),
            )
        return self.programs[size]

    def has_blas(self):
        """Return whether BLAS multiplies by the layer's current weights; programs with older ones are forgotten."""
        weights = self.layer.current_weights()
        if weights is not self.weights:
            self.weights, self.programs = weights, {}
        return weights[1][0][0].blas

    def step(self, slots, x, out):
        """Advance the streams by x [n, I] -> y [n, H], which is `out` if that fits; the states wait for a commit."""
        x = as_input(x, "x")
        if x.shape[1:] != (self.layer.input_size,):
            raise InputError(f"x: shape is {list(x.shape)}, expected [{len(x)}, {self.layer.input_size}]")
        if self.has_blas():
            return self.run(slots, x[None], None)[0]
        shape = len(x), self.layer.output_size
        y = np.empty(shape, np.float32) if out is None or (out.shape, out.dtype) != (shape, np.float32) else out
        if len(x):
            threads = threads_for(self.layer.thread_count, len(x) * self.flops)
            chunks = [
                (self.program(size), first, count) for size, first, count in batch_sizes(len(x), LARGEST_BATCH, threads)
            ]
            self.table.step(slots, [np.require(x, requirements="CA")], [y], chunks, threads)
        return y

    def run(self, slots, x, lengths):
        """Advance the streams by x [T, n, I] -> y [T, n, H]; the states wait for a commit."""
        states = [np.ascontiguousarray(value.swapaxes(0, 1)) for value in self.table.get(slots)]
        swap = self.layer.batch_first
        y, last = self.layer.run_batch(x.swapaxes(0, 1) if swap else x, states, lengths)
        self.table.put(slots, [value.swapaxes(0, 1) for value in last])
        return y.swapaxes(0, 1) if swap else y
