"""Whole sequences of models that have no states among their inputs and outputs.

Where all recurrent nodes run forwards and the rest works frame by frame, the recurrent states become inputs and
outputs, and all sequences that are there run some frames at a time. Else, where the model takes lengths and no frame
depends on the padding behind it, sequences of similar length run in one padded batch. Either is proven by following the
frames, and then the rows of the batch, through the graph; after that it is tried on random sequences.
"""

import dataclasses

import numpy as np

from rnnfast.errors import Error, InputError, UnsupportedError
from rnnfast.named_values import Outputs
from rnnfast.onnx import graph as graphs
from rnnfast.onnx.axes.propagation import propagate
from rnnfast.onnx.axes.rules import Frames
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.onnx.axes.values import Rows, Value
from rnnfast.onnx.folding import live
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.stateful import LENGTHS, with_state_inputs
from rnnfast.serving.sequence_layout import layout_of
from rnnfast.serving.sequences import ActiveSequence, Sequences, grouped, padded
from rnnfast.streaming._pools import cut, pad
from rnnfast.streaming.batch_axes import output_axes, trace_call, without_label
from rnnfast.streaming.fixed_input_group import LARGEST_BATCH
from rnnfast.streaming.pool import size_for

# Frames of the sequences that are followed through the graph: more than one, and few.
TRACED_FRAMES = 4
# The most frames in one padded batch of several sequences, zeros included: while it runs, others wait.
MAX_FRAMES = 2**14
# Seconds for each of its frames that a sequence waits for shorter ones that came later.
WAIT_SECONDS = 0.001


def sequences_of(model, unclear):
    """The Sequences of a model without states.

    Args:
        model: The Model.
        unclear: The error that says why it has no states.

    Raises:
        UnsupportedError: No way gives the bits of the model called with one sequence.
    """
    layout = layout_of(model, unclear)
    reasons = []
    for way in (FrameByFrame, Padded):
        try:
            return way(layout)
        except Error as e:
            reasons.append(str(e).removeprefix(f"{model.source.label}: "))
    raise UnsupportedError(
        f"{model.source.label}: its sequences cannot share batches. Frame by frame: {reasons[0]}. Padded: {reasons[1]}"
    )


def sequence_axes(model):
    """How a Batcher runs whole sequences of a model without states, as `rnnfast info` shows it.

    Returns:
        {"way": "frame by frame" or "padded", "frames": {name: axis of the frames or None} of the input and the outputs,
        "problem": None}; or None, {} and why they cannot share batches.
    """
    try:
        found = sequences_of(model, InputError("no names pair states"))
    except Error as e:
        return {"way": None, "frames": {}, "problem": str(e).removeprefix(f"{model.source.label}: ")}
    frames = {found.layout.input.name: found.layout.time} | {name: time for name, (_, time, _) in found.outputs.items()}
    return {"way": "padded" if found.padded else "frame by frame", "frames": frames, "problem": None}


class ModelSequences(Sequences):
    """Sequences that are rows of calls of a model. The result of a part is {output: array} without the batch axis.

    Attributes:
        time: The axis of the frames in a sequence.
        outputs: {name: (axis of sequences, axis of frames or None, shape in one call)} of what a call returns.
    """

    def __init__(self, layout, model):
        """Prove that sequences and frames stay apart, then try random sequences together.

        Args:
            layout: The Layout, with trials.
            model: The Model that runs, which takes any number of sequences.

        Raises:
            UnsupportedError: Sequences together do not have the results that each has alone.
        """
        self.model, self.layout = model, layout._replace(trials=None, calls=None)
        self.time, type_ = _behind(layout.time, layout.batch), layout.input.type
        shape = [n for axis, n in enumerate(type_.shape) if axis != layout.batch]
        self.type = dataclasses.replace(type_, shape=tuple(shape))
        self._prove(layout.trials[0].x[0, :TRACED_FRAMES])
        found = self.together([x for trial in layout.trials for x in (trial.x[0, ::-1], trial.x[0], trial.x[0, ::-1])])
        for trial, result in zip(layout.trials, found[1::3]):
            for name, value in trial.outputs.items():
                expected = np.take(value, 0, self.outputs[name][0])
                if result[name].shape != expected.shape or result[name].tobytes() != expected.tobytes():
                    raise UnsupportedError(f"output {name!r} is another than for the whole sequence alone")

    def _prove(self, x):
        """Set `outputs`, from a trace of the model with two sequences x; UnsupportedError if they cannot be proven."""
        of_model = {v.name for v in self.layout.model.outputs}
        label, name, transcript = self.model.source.label, self.layout.input.name, Transcript()
        feed = self.feed([self.open()] * 2, np.stack([x] * 2), [len(x)] * 2)
        forms = trace_call(self.model, feed, transcript)[2]
        frames = {name: Rows(self.layout.time)} | self.same_for_frames(feed)
        of_frames = dict(zip(forms, propagate(transcript, frames, len(x), Frames(self.padded))))
        for output, value in of_frames.items():
            if value.meeting is not None:
                raise UnsupportedError(without_label(label, value.meeting))
            if value.sizes is not None or value.rows is not None and not value.rows.plain:
                raise UnsupportedError(f"output {output!r} has the frames within an axis, or their number")
        batch = output_axes(self.model, {name: self.layout.batch} | self.axes_of_rows(), transcript, 2)
        self.outputs = {
            output: (batch[output], value.rows and value.rows.axis, forms[output][0])
            for output, value in of_frames.items()
            if output in of_model
        }
        self.output_names = [v.name for v in self.model.outputs]
        self.proven(of_frames)

    def axes_of_rows(self):
        """{input: axis of the sequences} of the inputs besides that of the sequences."""
        raise NotImplementedError

    def same_for_frames(self, feed):
        """{input: Value} of inputs of which more is known than that they are the same for all frames."""
        return {}

    def proven(self, of_frames):
        """Take the Value of each output, for frames."""

    def together(self, xs):
        """The results of some sequences, run as the Batcher runs them."""
        sequences = running = [ActiveSequence(None, 0, x, self.open()) for x in xs]
        while running:
            for part in self.batches(running):
                frames = [s.x[s.taken : s.taken + self.frames(s)] for s in part]
                for s, n, result in zip(part, map(len, frames), self.run([s.state for s in part], frames)):
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

    def run(self, states, parts):
        rows, lengths = size_for(len(parts)), [len(part) for part in parts]
        frames = _power(max(lengths))
        outputs = self.model(self.feed(states, padded(parts, rows, frames), lengths + [1] * (rows - len(parts))))
        results = [{} for _ in parts]
        for name, (batch, time, _) in self.outputs.items():
            y = outputs[name]
            self._check_shape(name, y, rows, frames)
            for i, n in enumerate(lengths):
                results[i][name] = y[_index(batch, i, time, n)].copy()
        self.keep(states, outputs)
        return results

    def run_whole(self, xs):
        """The results of whole sequences, the longest first, in one call.

        Args:
            xs: Arrays [frames, ...].

        Returns:
            For each the array if there is one output, else Outputs by name.
        """
        lengths = [len(x) for x in xs]
        rows, frames, layout = len(xs), lengths[0], self.layout
        shape = list(xs[0].shape[1:])
        for axis, n in sorted(((layout.batch, rows), (layout.time, frames))):
            shape.insert(axis, n)
        x = np.empty(shape, xs[0].dtype)
        pad(xs, _rows_first(x, layout.batch, layout.time))
        outputs = dict(zip(self.output_names, self.model.run(self.whole_feed(x, lengths))))
        columns = []
        for name, (batch, time, _) in self.outputs.items():
            y = outputs[name]
            self._check_shape(name, y, rows, frames)
            if time is not None and _behind(time, batch) == 0:
                columns.append(cut(_rows_first(y, batch, time), lengths))
            else:
                columns.append([y[_index(batch, i, time, n)].copy() for i, n in enumerate(lengths)])
        if len(columns) == 1:
            return columns[0]
        return [Outputs(zip(self.outputs, row)) for row in zip(*columns)]

    def whole_feed(self, x, lengths):
        """The feed of a call with whole sequences, which lie in x as the model takes it."""
        raise NotImplementedError

    def _check_shape(self, name, y, rows, frames):
        """Raise InputError unless an output has the shape of so many sequences of so many frames."""
        batch, time, shape = self.outputs[name]
        expected = list(shape)
        expected[batch] = rows
        if time is not None:
            expected[time] = frames
        if y.shape != tuple(expected):
            raise InputError(
                f"{self.model.source.label}: output {name!r} of {rows} sequences of {frames} frames "
                f"has shape {list(y.shape)}, expected {expected}"
            )

    def whole(self, results):
        """{output: array} of a whole sequence, from those of its parts."""
        return {
            name: results[-1][name]
            if time is None
            else np.concatenate([result[name] for result in results], axis=_behind(time, batch))
            for name, (batch, time, _) in self.outputs.items()
        }

    def joined(self, results):
        whole = self.whole(results)
        return Outputs(whole) if len(whole) > 1 else next(iter(whole.values()))

    def of_call(self, feed):
        lengths, batch = self.layout.lengths, self.layout.batch
        x = feed.get(self.layout.input.name)
        if not isinstance(x, np.ndarray) or x.ndim != len(self.layout.input.type.shape) or x.shape[batch] != 1:
            return None
        given = None if lengths is None else feed.get(lengths.name)
        frames = x.shape[self.layout.time]
        if len(feed) != (1 if lengths is None else 2) or not frames:
            return None
        if lengths is not None and (
            not isinstance(given, np.ndarray) or given.dtype != lengths.type.dtype or given.tolist() != [frames]
        ):
            return None
        return np.squeeze(x, batch)

    def as_call(self, results):
        """The Outputs of a call with a sequence, of what `joined` gives."""
        if len(self.outputs) == 1:
            results = {next(iter(self.outputs)): results}
        return Outputs((name, np.expand_dims(results[name], self.outputs[name][0])) for name in results)

    def open(self):
        return []

    def close(self, state):
        """There is nothing to free."""


class FrameByFrame(ModelSequences):
    """Runs some frames at a time, on a model whose recurrent states became inputs and outputs.

    A sequence's state is the list of these states.

    Attributes:
        padded: Whether a call has whole sequences, with padding behind them.
        exact: Whether the sequences of a batch must run the same number of frames, as where the graph cuts out the last
            frame for all.
    """

    padded = False

    def __init__(self, layout):
        model, batch = layout.model, "batch"
        graph, states, initial = with_state_inputs(model.folded, layout.calls, batch)
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
        self.initials = []  # the same for the most sequences so far that ran whole in one call: [sequences, values]
        self.exact = False
        super().__init__(layout, model.altered(graph))

    def axes_of_rows(self):
        return {LENGTHS: 0} | {name: shape.index(-1) for name, _, shape in self.states}

    def proven(self, of_frames):
        self.exact = any(value.last == "frame" for value in of_frames.values())

    def open(self):
        return list(self.initial)

    def frames(self, sequence):
        frames = super().frames(sequence)
        return 1 << frames.bit_length() - 1 if self.exact else frames  # A power of two, so that plans are few.

    def batches(self, running):
        groups = grouped(running, self.frames).values() if self.exact else [running]
        return [
            group[first : first + LARGEST_BATCH] for group in groups for first in range(0, len(group), LARGEST_BATCH)
        ]

    def feed(self, states, x, lengths):
        feed = self.layout.feed(x) | {LENGTHS: np.array(lengths, np.int32)}
        for i, (name, _, shape) in enumerate(self.states):
            values = [state[i] for state in states]
            feed[name] = np.concatenate(values + values[:1] * (len(x) - len(values))).reshape(shape)
        return feed

    def whole_feed(self, x, lengths):
        feed = {self.layout.input.name: x, LENGTHS: np.array(lengths, np.int32)}
        initials = self.initials
        if not initials or len(initials[0]) < len(lengths):
            self.initials = initials = [np.tile(value, (len(lengths), 1)) for value in self.initial]
        for (name, _, shape), values in zip(self.states, initials):
            feed[name] = values[: len(lengths)].reshape(shape)
        return feed

    def keep(self, states, outputs):
        for i, (_, name, _) in enumerate(self.states):
            for state, row in zip(states, outputs[name].reshape(-1, len(self.initial[i]))):
                state[i] = row


class Padded(ModelSequences):
    """Runs sequences of similar length in one call, with their lengths."""

    padded = True
    exact = False

    def __init__(self, layout):
        if layout.lengths is None:
            raise UnsupportedError("no input of integers [batch] takes the lengths of sequences")
        inputs = _opened(layout.input, layout.batch), _opened(layout.lengths, 0)
        super().__init__(layout, layout.model.altered(dataclasses.replace(layout.model.folded, inputs=inputs)))

    def axes_of_rows(self):
        return {self.layout.lengths.name: 0}

    def same_for_frames(self, feed):
        name = self.layout.lengths.name
        return {name: Value(feed[name].shape, lengths=True)}

    def frames(self, sequence):
        return len(sequence.x)

    def batches(self, running):
        """One batch: the sequence that is due first, and others of its length; short ones overtake long ones."""
        frames = _power(len(min(running, key=lambda s: s.arrived + WAIT_SECONDS * len(s.x)).x))
        return [[s for s in running if _power(len(s.x)) == frames][: max(MAX_FRAMES // frames, 1)]]

    def feed(self, states, x, lengths):
        return self.layout.feed_with_lengths(x, lengths)

    def whole_feed(self, x, lengths):
        return {self.layout.input.name: x, self.layout.lengths.name: np.array(lengths, self.layout.lengths.type.dtype)}

    def keep(self, states, outputs):
        """There are no states."""


def _opened(value, axis):
    """The input with an open dimension for sequences along an axis."""
    shape = (*value.type.shape[:axis], "batch", *value.type.shape[axis + 1 :])
    return graphs.Value(value.name, dataclasses.replace(value.type, shape=shape))


def _rows_first(array, batch, time):
    """A view of an array with the axis of sequences first, and that of frames behind it."""
    if (batch, time) == (0, 1):
        return array
    return array.swapaxes(0, 1) if (batch, time) == (1, 0) else np.moveaxis(array, (batch, time), (0, 1))


def _behind(axis, dropped):
    """The number of an axis after another one was dropped."""
    return axis - (dropped < axis)


def _index(batch, i, time, n):
    """The index of sequence i and its first n frames; of all frames if `time` is None."""
    axes = {batch: i} | ({} if time is None else {time: slice(n)})
    return tuple([axes.get(axis, slice(None)) for axis in range(max(axes) + 1)])


def _power(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()
