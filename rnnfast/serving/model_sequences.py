"""Whole sequences of models that have no states among their inputs and outputs.

Where all recurrent nodes run forwards and the rest works frame by frame, their states become inputs and outputs, and
some frames of all sequences that are there run at a time. Else, where the model takes their lengths, sequences of
similar length run in one padded batch. Either must give the bits of the model called with one sequence, which is tried
on random ones first.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from rnnfast.errors import Error, InputError, LimitError, UnsupportedError
from rnnfast.named_values import Outputs
from rnnfast.onnx.budget import MAX_RUN_BYTES
from rnnfast.onnx.folding import live
from rnnfast.onnx.graph import Type, Value
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.ops.numeric import is_floating
from rnnfast.onnx.stateful import LENGTHS, is_recurrent, unfolded
from rnnfast.serving.sequences import SEQUENCE_FRAMES, ActiveSequence, Sequences, grouped, padded
from rnnfast.streaming.model_pool import LARGEST_BATCH
from rnnfast.streaming.pool import size_for

# Frames of the random sequences that are tried: all that run at a time, and powers of two of them.
TRIED = (2 * SEQUENCE_FRAMES - 1, 5)
# Plans of a model with states: numbers of frames and of sequences.
PLANS = 64
# Frames in one padded batch of several sequences, zeros included: while it runs others wait.
MAX_FRAMES = 2**14
# So long for each of its frames does a sequence wait for shorter ones that came later.
WAIT_SECONDS = 0.001


def sequences_of(model, unclear):
    """The Sequences of a model. unclear: the error that says why it has no states. UnsupportedError where there is no
    way to the right bits."""
    layout = _layout(model, unclear)
    reasons = []
    for way in (Unfolded, Padded):
        try:
            return way(layout)
        except Error as e:
            reasons.append(str(e).removeprefix(f"{model.source.label}: "))
    raise UnsupportedError(
        f"{model.source.label}: its sequences cannot share batches. Frame by frame: {reasons[0]}. Padded: {reasons[1]}"
    )


# ------------------------------------------------------------------------------------------------ axes
class Trial(NamedTuple):
    """A call with one random sequence: x [1, frames, ..], and the outputs by name."""

    x: np.ndarray
    outputs: dict


class Layout(NamedTuple):
    """How a model takes sequences: in axis `batch` of one input, their frames in axis `time`, their lengths in another
    input or None. times: output -> its axis of frames or None; calls: id of each recurrent node -> its inputs in each
    of the trials; rounded: tensors that are outputs only for the trials, those of floats from which integers and
    booleans are made, which may be the same by chance."""

    model: object
    input: Value
    lengths: Value | None
    time: int
    batch: int
    times: dict | None = None
    trials: list | None = None
    calls: dict | None = None
    rounded: tuple = ()

    def feed(self, x):
        """The input of a call for x [sequences, frames, ..]."""
        return {self.input.name: np.moveaxis(x, (0, 1), (self.batch, self.time))}

    def feed_with_lengths(self, x, lengths):
        if self.lengths is None:
            return self.feed(x)
        return self.feed(x) | {self.lengths.name: np.array(lengths, self.lengths.type.dtype)}

    def tried(self):
        """The same with what random sequences show; UnsupportedError unless each recurrent node runs over their
        frames."""
        xs, calls, rounded = [self.random(n) for n in TRIED], {}, {}
        feeds = [self.feed_with_lengths(x, [n]) for x, n in zip(xs, TRIED)]
        for n, feed in zip(TRIED, feeds):
            self.model.record(feed, lambda *call: _note(calls, rounded, n, *call))
        if not calls:
            raise UnsupportedError("no recurrent node depends on the frames")
        graph = self.model.folded
        made = {name for node in graph.nodes for name in node.outputs} - {v.name for v in graph.outputs}
        rounded = tuple(name for name in rounded if name in made)
        graph = dataclasses.replace(
            graph,
            inputs=tuple(v for v in graph.inputs if v.name in feeds[0]),
            outputs=(*graph.outputs, *(Value(name, Type("tensor")) for name in rounded)),
        )
        model = self.model.altered(graph)
        trials = [Trial(x, model(feed)) for x, feed in zip(xs, feeds)]
        times = {name: _changed(name, *(trial.outputs[name] for trial in trials), TRIED) for name in trials[0].outputs}
        return self._replace(model=model, times=times, trials=trials, calls=calls, rounded=rounded)

    def random(self, n):
        """x [1, n, ..]"""
        shape, dtype, rng = self.input.type.shape, self.input.type.dtype, np.random.default_rng(n)
        shape = (1, n, *(m for axis, m in enumerate(shape) if axis not in (self.time, self.batch)))
        if math.prod(shape) * 8 > MAX_RUN_BYTES:
            raise LimitError(f"random sequences of shape {list(shape[1:])} need more than {MAX_RUN_BYTES} bytes")
        return (rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)).astype(dtype)


def _layout(model, unclear):
    label, inputs = model.source.label, [v for v in model.inputs if v.name in model.required_inputs]
    lengths = [v for v in inputs if len(inputs) > 1 and _is_lengths(v.type)]
    others = [v for v in inputs if v not in lengths]
    if len(others) != 1 or len(lengths) > 1:
        raise UnsupportedError(
            f"{label}: inputs are {[v.name for v in inputs]}: sequences are of one, with another "
            f"for their lengths (integers, [batch]) at most; as frames: {unclear}"
        )
    value, shape = others[0], others[0].type.shape
    if value.type.kind != "tensor" or shape is None or value.type.dtype is None:
        raise UnsupportedError(f"{label}: input {value.name!r} is {value.type}, the file does not say of what shape")
    is_open = [type(n) is not int for n in shape]
    wrong = []
    for time, batch in itertools.permutations(range(len(shape)), 2):
        if is_open[time] and (is_open[batch] or shape[batch] == 1) and sum(is_open) == 1 + is_open[batch]:
            try:
                return Layout(model, value, lengths[0] if lengths else None, time, batch).tried()
            except Error as e:
                wrong.append(f"; with axes {time} and {batch}: {e}")
    raise UnsupportedError(
        f"{label}: input {value.name!r} of shape {list(shape)} has no axis of frames, which is "
        f"open, and one of sequences, which is open or 1{''.join(wrong)}"
    )


def _is_lengths(type_):
    return (
        type_.kind == "tensor"
        and type_.dtype is not None
        and type_.dtype.kind in "iu"
        and type_.shape is not None
        and len(type_.shape) == 1
    )


def _note(calls, rounded, n, node, inputs, outputs):
    """Keep the inputs of a recurrent node that runs over n frames of one sequence, and the names of floats from which
    a node makes others."""
    if not all(map(_is_floating, outputs)):
        rounded.update((name, None) for name, value in zip(node.inputs, inputs) if _is_floating(value))
    if is_recurrent(node):
        received = inputs[0].shape[:2]
        if received != ((1, n) if node.attributes.get("layout") else (n, 1)):
            raise UnsupportedError(f"X has shape {list(inputs[0].shape)} for one sequence of {n} frames")
        calls.setdefault(id(node), []).append(inputs)


def _is_floating(value):
    return isinstance(value, np.ndarray) and is_floating(value.dtype)


def _changed(name, a, b, sizes):
    """The axis of an output that has these sizes in two calls, None if the shapes are the same."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        raise UnsupportedError(f"output {name!r} is no array")
    axes = [axis for axis, pair in enumerate(zip(a.shape, b.shape)) if pair[0] != pair[1]]
    if a.ndim != b.ndim or len(axes) > 1 or axes and (a.shape[axes[0]], b.shape[axes[0]]) != sizes:
        raise UnsupportedError(
            f"output {name!r} has shape {list(a.shape)} for {sizes[0]}, {list(b.shape)} for {sizes[1]}"
        )
    return axes[0] if axes else None


# ------------------------------------------------------------------------------------------------ the two ways
class ModelSequences(Sequences):
    """Sequences that are rows of calls of a model. Results of parts are {output: array} without the batch axis.

    time: the axis of the frames in a sequence; outputs: name -> the axes of the sequences, and of the frames or None,
    in what a call gives, and its shape in one call.
    """

    def __init__(self, layout, model):
        """model: what runs, which takes any number of sequences. UnsupportedError unless random ones together have the
        results that each has alone."""
        self.model, self.layout = model, layout._replace(trials=None, calls=None)
        self.time, type_ = _behind(layout.time, layout.batch), layout.input.type
        shape = [n for axis, n in enumerate(type_.shape) if axis != layout.batch]
        self.type = dataclasses.replace(type_, shape=tuple(shape))
        x = layout.trials[0].x[0, :4]
        one, two = (self.model(self.feed([self.open()] * n, np.stack([x] * n), [len(x)] * n)) for n in (1, 2))
        self.outputs = {}
        for name, time in layout.times.items():
            batch = _changed(name, one[name], two[name], (1, 2))
            if batch is None:
                raise UnsupportedError(f"output {name!r} has no axis of sequences")
            self.outputs[name] = batch, time, one[name].shape
        found = self.together([x for trial in layout.trials for x in (trial.x[0, ::-1], trial.x[0], trial.x[0, ::-1])])
        for trial, result in zip(layout.trials, found[1::3]):
            for name, value in trial.outputs.items():
                expected = np.take(value, 0, self.outputs[name][0])
                if result[name].shape != expected.shape or result[name].tobytes() != expected.tobytes():
                    raise UnsupportedError(
                        f"{'tensor' if name in layout.rounded else 'output'} {name!r} is another "
                        "than for the whole sequence alone"
                    )
        if layout.rounded:
            for name in layout.rounded:
                del self.outputs[name]
            outputs = tuple(v for v in model.outputs if v.name not in layout.rounded)
            self.model = model.altered(dataclasses.replace(model.folded, outputs=outputs))

    def together(self, xs):
        """The results of some sequences, as the Batcher runs them."""
        sequences = running = [ActiveSequence(None, 0, x, self.open()) for x in xs]
        while running:
            for part in self.batches(running):
                frames = [s.x[s.taken : s.taken + self.frames(s)] for s in part]
                for s, n, result in zip(part, map(len, frames), self.run([s.place for s in part], frames)):
                    s.results.append(result)
                    s.taken += n
            running = [s for s in running if s.taken < len(s.x)]
        return [self.whole(s.results) for s in sequences]

    def validate(self, sequence):
        where = f"{self.model.source.label}: input {self.layout.input.name!r}"
        x = validate(sequence, self.type, where)
        if not x.shape[self.time]:
            raise InputError(f"{where} has shape {list(x.shape)}: a sequence has a frame at least")
        return np.moveaxis(x, self.time, 0)

    def run(self, places, parts):
        rows, lengths = size_for(len(parts)), [len(part) for part in parts]
        frames = _power(max(lengths))
        outputs = self.model(self.feed(places, padded(parts, rows, frames), lengths + [1] * (rows - len(parts))))
        results = [{} for _ in parts]
        for name, (batch, time, shape) in self.outputs.items():
            y, expected = outputs[name], list(shape)
            expected[batch] = rows
            if time is not None:
                expected[time] = frames
            if y.shape != tuple(expected):
                raise InputError(
                    f"{self.model.source.label}: output {name!r} of {rows} sequences of {frames} frames "
                    f"has shape {list(y.shape)}, expected {expected}"
                )
            for i, n in enumerate(lengths):
                results[i][name] = y[_index(batch, i, time, n)].copy()
        self.keep(places, outputs)
        return results

    def whole(self, results):
        return {
            name: results[-1][name]
            if time is None
            else np.concatenate([result[name] for result in results], axis=_behind(time, batch))
            for name, (batch, time, _) in self.outputs.items()
        }

    def joined(self, results):
        whole = self.whole(results)
        return Outputs(whole) if len(whole) > 1 else next(iter(whole.values()))

    def open(self):
        return []

    def close(self, place):
        """Nothing is kept of it."""


class Unfolded(ModelSequences):
    """Some frames at a time, of the model with states. The place of a sequence is the list of its states.

    exact: whether those of a batch must have the same number of frames left, as where the last one is cut out of all.
    """

    def __init__(self, layout):
        model, batch = layout.model, "batch"
        graph, states, initial = unfolded(model.folded, layout.calls, batch)
        nodes = live(graph.nodes, graph.outputs)
        if layout.lengths is not None and any(layout.lengths.name in node.needs for node in nodes):
            raise UnsupportedError(f"input {layout.lengths.name!r} is used for more than sequence_lens")
        new = [v for v in graph.inputs if v.name in states or v.name == LENGTHS]
        graph = dataclasses.replace(graph, inputs=(_opened(layout.input, layout.batch), *new), nodes=tuple(nodes))
        self.states = [
            (v.name, states[v.name], tuple(-1 if n == batch else n for n in v.type.shape))
            for v in new
            if v.name in states
        ]
        self.initial = [initial[name].reshape(-1) for name, *_ in self.states]
        model = model.altered(graph, PLANS)
        try:
            self.exact = False
            super().__init__(layout, model)
        except Error:
            self.exact = True
            super().__init__(layout, model)

    def open(self):
        return list(self.initial)

    def frames(self, sequence):
        frames = super().frames(sequence)
        return 1 << frames.bit_length() - 1 if self.exact else frames  # a power of two, so that there are few plans

    def batches(self, running):
        groups = grouped(running, self.frames).values() if self.exact else [running]
        return [
            group[first : first + LARGEST_BATCH] for group in groups for first in range(0, len(group), LARGEST_BATCH)
        ]

    def feed(self, places, x, lengths):
        feed = self.layout.feed(x) | {LENGTHS: np.array(lengths, np.int32)}
        for i, (name, _, shape) in enumerate(self.states):
            values = [place[i] for place in places]
            feed[name] = np.concatenate(values + values[:1] * (len(x) - len(values))).reshape(shape)
        return feed

    def keep(self, places, outputs):
        for i, (_, name, _) in enumerate(self.states):
            for place, row in zip(places, outputs[name].reshape(-1, len(self.initial[i]))):
                place[i] = row


class Padded(ModelSequences):
    """Sequences of similar length in one call, with their lengths."""

    def __init__(self, layout):
        if layout.lengths is None:
            raise UnsupportedError("no input of integers [batch] takes the lengths of sequences")
        inputs = _opened(layout.input, layout.batch), _opened(layout.lengths, 0)
        super().__init__(layout, layout.model.altered(dataclasses.replace(layout.model.folded, inputs=inputs)))

    def frames(self, sequence):
        return len(sequence.x)

    def batches(self, running):
        """One with the sequence that is due first, and others like it: short ones overtake those that they would wait
        for."""
        frames = _power(len(min(running, key=lambda s: s.arrived + WAIT_SECONDS * len(s.x)).x))
        return [[s for s in running if _power(len(s.x)) == frames][: max(MAX_FRAMES // frames, 1)]]

    def feed(self, places, x, lengths):
        return self.layout.feed_with_lengths(x, lengths)

    def keep(self, places, outputs):
        """There are no states."""


def _opened(value, axis):
    """An input that takes any number of sequences along an axis."""
    shape = (*value.type.shape[:axis], "batch", *value.type.shape[axis + 1 :])
    return Value(value.name, dataclasses.replace(value.type, shape=shape))


def _behind(axis, dropped):
    """Where an axis is when another one was dropped."""
    return axis - (dropped < axis)


def _index(batch, i, time, n):
    """The index of sequence i and its first n frames, all where `time` is None."""
    axes = {batch: i} | ({} if time is None else {time: slice(n)})
    return tuple([axes.get(axis, slice(None)) for axis in range(max(axes) + 1)])


def _power(n):
    """The least power of two that is not less."""
    return 1 << (n - 1).bit_length()
