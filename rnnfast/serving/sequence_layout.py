"""How a model that has no states takes whole sequences: which axes are sequences and frames, tried on random ones."""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from rnnfast.errors import Error, UnsupportedError
from rnnfast.onnx.graph import Value
from rnnfast.onnx.stateful import is_recurrent
from rnnfast.serving.sequences import SEQUENCE_FRAMES

# The frames of the random sequences: more than run at a time, and few.
TRIAL_FRAMES = (2 * SEQUENCE_FRAMES - 1, 5)


class Trial(NamedTuple):
    """A call with one random sequence: x [1, frames, ...], and the outputs by name."""

    x: np.ndarray
    outputs: dict


class Layout(NamedTuple):
    """How a model takes sequences, and what calls with random ones showed.

    Attributes:
        model: The Model that the trials called.
        input: The input that holds the sequences along axis `batch`, and their frames along axis `time`.
        lengths: The input that holds their lengths, or None.
        trials: The Trials.
        calls: {id of each recurrent node: its inputs in each of the trials}.
    """

    model: object
    input: Value
    lengths: Value | None
    time: int
    batch: int
    trials: list | None = None
    calls: dict | None = None

    def feed(self, x):
        """The input of a call, by name, for x [sequences, frames, ...]."""
        return {self.input.name: np.moveaxis(x, (0, 1), (self.batch, self.time))}

    def feed_with_lengths(self, x, lengths):
        """The same, with the lengths if the model takes them."""
        if self.lengths is None:
            return self.feed(x)
        return self.feed(x) | {self.lengths.name: np.array(lengths, self.lengths.type.dtype)}

    def with_trials(self):
        """The Layout with what random sequences show.

        Raises:
            UnsupportedError: A recurrent node does not run over the frames of the sequences.
        """
        xs, calls = [self.random(n) for n in TRIAL_FRAMES], {}
        feeds = [self.feed_with_lengths(x, [n]) for x, n in zip(xs, TRIAL_FRAMES)]
        for n, feed in zip(TRIAL_FRAMES, feeds):
            self.model.record(feed, functools.partial(_note, calls, n))
        if not calls:
            raise UnsupportedError("no recurrent node depends on the frames")
        graph = self.model.folded
        graph = dataclasses.replace(graph, inputs=tuple(v for v in graph.inputs if v.name in feeds[0]))
        model = self.model.altered(graph)
        trials = [Trial(x, model(feed)) for x, feed in zip(xs, feeds)]
        return self._replace(model=model, trials=trials, calls=calls)

    def random(self, n):
        """A random sequence x [1, n, ...]."""
        shape, dtype, rng = self.input.type.shape, self.input.type.dtype, np.random.default_rng(n)
        shape = (1, n, *(m for axis, m in enumerate(shape) if axis not in (self.time, self.batch)))
        nbytes = math.prod(shape) * 8
        self.model.limits.check("bytes_of_a_call", nbytes, f"the bytes of a random sequence {list(shape[1:])} are")
        return (rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)).astype(dtype)


def layout_of(model, unclear):
    """The Layout of a model without states.

    Args:
        model: The Model.
        unclear: The error that says why it has no states.

    Raises:
        UnsupportedError: Its inputs are not sequences.
    """
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
                return Layout(model, value, lengths[0] if lengths else None, time, batch).with_trials()
            except Error as e:
                wrong.append(f"; with axes {time} and {batch}: {e}")
    raise UnsupportedError(
        f"{label}: input {value.name!r} of shape {list(shape)} has no axis of frames, which is "
        f"open, and one of sequences, which is open or 1{''.join(wrong)}"
    )


def _is_lengths(type_):
    """Return whether a Type may be that of lengths: integers [batch]."""
    return (
        type_.kind == "tensor"
        and type_.dtype is not None
        and type_.dtype.kind in "iu"
        and type_.shape is not None
        and len(type_.shape) == 1
    )


def _note(calls, n, node, inputs, outputs):
    """Note the inputs of a recurrent node, which must run over n frames of one sequence."""
    if is_recurrent(node):
        received = inputs[0].shape[:2]
        if received != ((1, n) if node.attributes.get("layout") else (n, 1)):
            raise UnsupportedError(f"X has shape {list(inputs[0].shape)} for one sequence of {n} frames")
        calls.setdefault(id(node), []).append(inputs)
