"""Pools of layers: many live streams of a recurrent layer, or of a Sequential, in one batch."""

import math

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.named_values import merge_inputs
from rnnfast.nn.checks import as_array, as_input
from rnnfast.streaming._pools import BatchedProgram, StateTable, stacked, threads_for
from rnnfast.streaming.layer_stream import LayerState, step_program
from rnnfast.streaming.pool import Pool, batch_sizes

LARGEST_BATCH = 256
"""The most streams that one plan takes."""


class LayerPool(Pool):
    """A Pool of a layer; `layer.pool` makes it. A frame is x [I] -> y [H]; for many streams [n, I] -> [n, H]."""

    outputs = ("y",)

    def __init__(self, layer, layers, max_streams):
        super().__init__(type(layer).__name__, max_streams)
        self._many = layers != (layer,)
        self._parts = [
            LayerStates(member, max_streams) if hasattr(member, "hidden_size") else member for member in layers
        ]
        self._states = [part for part in self._parts if isinstance(part, LayerStates)]
        self.like = None  # a frame of those before

    def _validated(self, state, fixed):
        if fixed:
            raise InputError(f"{self.label}: there is no input {next(iter(fixed))!r} to be fixed, only 'x'")
        if state is None:
            return (None,)
        state = state if self._many else (state,)
        if not isinstance(state, (tuple, list)) or len(state) != len(self._states):
            raise InputTypeError(
                f"{self.label}: state is {type(state).__name__}, expected the states of {len(self._states)} layers"
            )
        return ([None if value is None else part.checked(value) for part, value in zip(self._states, state)],)

    def _begin(self, slot):
        self._restart(slot)

    def _end(self, slot):
        """Nothing is kept of it but its place."""

    def _restart(self, slot):
        for part, state in zip(self._states, self._begun.get(slot, [None] * len(self._states))):
            part.rows.load(slot, state)

    def _state(self, slot):
        states = [part.shown(slot) for part in self._states]
        return tuple(states) if self._many else states[0]

    def _single(self, slots):
        return "x"

    def _step(self, slots, feed, out):
        x = self._x(feed)
        if x.ndim == 0 or len(x) != len(slots):
            raise InputError(
                f"{self.label}: x has shape {list(x.shape)}, expected {len(slots)} frames along the first axis"
            )
        if out is not None and not (isinstance(out, np.ndarray) and out.flags.carray):
            raise InputTypeError(f"{self.label}: out is {type(out).__name__}, expected a contiguous, writeable array")
        if out is not None and np.may_share_memory(x, out):
            raise InputError(f"{self.label}: out shares memory with x")
        y = x
        for part in self._parts:
            last = part is self._parts[-1]
            y = part.step(slots, y, out if last else None) if isinstance(part, LayerStates) else part(y)
        if out is not None and (out.shape != y.shape or out.dtype != y.dtype):
            raise InputError(f"{self.label}: out is {out.dtype} {list(out.shape)}, expected {y.dtype} {list(y.shape)}")
        for part in self._states:
            part.rows.commit(slots)
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
        for part in self._states:
            part.rows.commit(slots[lengths > 0])
        self._settle(x.shape[2:], x.dtype)
        y = np.ascontiguousarray(y.swapaxes(0, 1))
        y[np.arange(y.shape[1]) >= lengths[:, None]] = 0
        return y

    def _settle(self, shape, dtype):
        if self.like is None or self.like.shape != shape or self.like.dtype != dtype:
            self.like = np.empty(shape, dtype)

    def _x(self, feed):
        if set(feed) != {"x"}:
            raise InputError(f"{self.label}: inputs are {list(feed)}, expected 'x'")
        return as_array(feed["x"], "x")

    def validate(self, stream, frame):
        """A frame of a stream, as `step` takes it in a mapping, checked and in the form that `step_validated` takes."""
        x = frame if type(frame) is np.ndarray else self._x(merge_inputs(self.label, frame, {}, "x"))
        like = self.like
        if like is not None and (x.shape, x.dtype) != (like.shape, like.dtype) or x.dtype.hasobject:
            expected = "" if like is None else f", expected {like.dtype} {list(like.shape)}"
            raise InputError(f"{self.label}: a frame is {x.dtype} {list(x.shape)}{expected}")
        return x

    def _step_frames(self, slots, frames):
        if not frames:
            return []
        x = stacked(frames, np.empty(frames[0].shape, frames[0].dtype))
        if x is None:
            forms = {f"{f.dtype} {list(f.shape)}" for f in frames}
            raise InputError(f"{self.label}: frames are {' and '.join(sorted(forms))}, expected them alike")
        return list(self._step(slots, {"x": x}, None))

    def __repr__(self):
        return f"<rnnfast.nn.Pool of {self.label}: {len(self)} of {self.max_streams} streams open>"


class LayerStates:
    """A recurrent layer of a pool, the states of its streams, and its plans."""

    def __init__(self, layer, max_streams):
        self.part, self.layer = LayerState(layer), layer
        self.rows = StateTable(max_streams, [((layer.num_layers, width), np.float32) for width in layer._widths])
        self.weights, self.batches = None, {}
        self.flops = 2 * sum(math.prod(shape) for shape in layer.shapes().values())

    def checked(self, state):
        values = self.part.checked(state, False)
        if values[0].ndim != 2:
            raise InputError(
                f"{self.layer!r}: state has shape {list(values[0].shape)}, expected "
                f"[{self.layer.num_layers}, {self.layer._widths[0]}]: that of one stream"
            )
        return values

    def shown(self, slot):
        values = self.rows.get(slot)
        return values[0] if len(values) == 1 else tuple(values)

    def batch(self, size):
        if size not in self.batches:
            count = len(self.layer._widths)
            program = step_program(self.layer, self.weights[1], (size, self.layer.input_size))
            self.batches[size] = BatchedProgram(
                program, size, [(0, 0)], [(1 + i, 2 + count + i, 1) for i in range(count)], [(1 + count, 0)], ()
            )
        return self.batches[size]

    def step(self, slots, x, out):
        """x [n, I] -> y [n, H], `out` if that is such an array; the new states wait to be committed."""
        x = as_input(x, "x")
        if x.shape[1:] != (self.layer.input_size,):
            raise InputError(f"x: shape is {list(x.shape)}, expected [{len(x)}, {self.layer.input_size}]")
        weights = self.layer._initialized()
        if weights is not self.weights:
            self.weights, self.batches = weights, {}
        if weights[1][0][0].blas:
            return self.run(slots, x[None], None)[0]
        shape = len(x), self.layer._output_size
        y = np.empty(shape, np.float32) if out is None or (out.shape, out.dtype) != (shape, np.float32) else out
        if len(x):
            threads = threads_for(self.layer._threads, len(x) * self.flops)
            chunks = [
                (self.batch(size), first, count) for size, first, count in batch_sizes(len(x), LARGEST_BATCH, threads)
            ]
            self.rows.step(slots, [np.require(x, requirements="CA")], [y], chunks, threads)
        return y

    def run(self, slots, x, lengths):
        """x [T, n, I] -> y [T, n, H]; the new states wait to be committed."""
        states = [np.ascontiguousarray(value.swapaxes(0, 1)) for value in self.rows.get(slots)]
        swap = self.layer.batch_first
        y, last = self.layer._run(x.swapaxes(0, 1) if swap else x, states, lengths)
        self.rows.put(slots, [value.swapaxes(0, 1) for value in last])
        return y.swapaxes(0, 1) if swap else y
