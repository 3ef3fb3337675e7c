"""Which axis of each input, state and output of a model is the batch of streams.

The axis is proven: it is followed through the graph, node by node, from the inputs to the outputs, and no node lets
rows meet. After that three streams run together and each of them alone, and the bits are compared, because NumPy's
functions may round otherwise for another shape.
"""

import itertools

import numpy as np

from rnnfast.errors import Error, InputError, UnsupportedError
from rnnfast.onnx.axes.propagation import propagate
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.onnx.axes.values import Meeting, Rows
from rnnfast.onnx.budget import Budget
from rnnfast.onnx.trace import trace

# The largest number of choices of batch axes that are tried.
MAX_CHOICES = 64
BY_ONE = "pool(batch=False) runs streams one by one"


class NotApart(UnsupportedError):
    """The rows along some axes are no streams of their own. `step` is the number of nodes that kept them apart."""

    def __init__(self, message, step):
        super().__init__(message)
        self.step = step


def search(signature, frames, rows, given):
    """Find the batch axes of a model from the first frame of a stream.

    Args:
        signature: The ModelSignature.
        frames: The frame, by name, without its batch axis if `rows`, else with it.
        rows: Whether the frame lacks its batch axis.
        given: The stream's initial states, or None for zeros.

    Returns:
        (axes, sample, call): {name: axis of the streams, None if the value is the same for all}, the values of a call
        for one stream, and what `trace_call` returns for that call.

    Raises:
        InputError: No stream takes this frame.
        UnsupportedError: The model has no such axes.
    """
    reason, wrong, count = None, None, 0
    choices = itertools.product(*(candidates(signature, name, value, rows) for name, value in frames.items()))
    for choice in itertools.islice(choices, MAX_CHOICES):
        axes = dict(zip(frames, choice))
        frame = {name: np.expand_dims(value, axes[name]) if rows else value for name, value in frames.items()}
        states = dict(zip(signature.states, given or signature.zero_states(frame)))
        sample, transcript, call = signature.fixed | frame | states, Transcript(), None
        of_states = [candidates(signature, name, value, False) for name, value in states.items()]
        of_fixed = [
            [None, *candidates(signature, name, value, False, False)] for name, value in signature.fixed.items()
        ]
        for others in itertools.product(*of_states, *of_fixed):
            count += 1
            if count > MAX_CHOICES:
                break
            chosen = axes | dict(zip([*states, *signature.fixed], others))
            if call is None:
                try:
                    call = trace_call(signature.model, sample, transcript)
                except Error as e:
                    wrong = wrong or e
                    break
            try:
                proven = prove_axes(signature, sample, chosen, call[2], transcript)
                compare_bits(signature, sample, proven)
                return proven, sample, call
            except NotApart as e:
                reason = max(reason or e, e, key=lambda error: error.step)
            except Error as e:
                reason = NotApart(str(e), len(transcript.events))
    if reason is None:  # No stream takes this frame.
        raise wrong
    raise UnsupportedError(f"{signature.label}: no axis of the inputs is a batch of streams: {reason}; {BY_ONE}")


def candidates(signature, name, value, rows, needed=True):
    """The axes of an input that may be the batch: open in the file, and of length 1 in a value that has the axis.

    Args:
        signature: The ModelSignature.
        name: The input.
        value: A value for one stream.
        rows: Whether the value lacks the batch axis.
        needed: Whether having no such axis is an error.
    """
    type_ = signature.types[name]
    if type_.kind != "tensor":
        raise UnsupportedError(f"{signature.label}: input {name!r} is {type_.kind}, expected a tensor; {BY_ONE}")
    declared, shape = type_.shape, np.shape(value)
    axes = [
        axis
        for axis in range(len(shape) + rows)
        if may_be_batch(declared, (*shape[:axis], 1, *shape[axis:]) if rows else shape, axis)
    ]
    if needed and not axes:
        if rows and declared and not all(type(n) is int for n in declared):
            raise InputError(
                f"{signature.label}: input {name!r} has frames of {list(shape)}, expected {list(declared)} "
                "without the batch"
            )
        shown = list(shape if declared is None else declared)
        can_be_fixed = name in signature.inputs and not shown
        hint = f"; give it when the stream is opened, open({name}=...)" if can_be_fixed else ""
        raise UnsupportedError(
            f"{signature.label}: input {name!r} of shape {shown} has no axis that may be a batch{hint}; {BY_ONE}"
        )
    return axes


def may_be_batch(declared, shape, axis):
    """Return whether a value of one stream may have its batch at an axis, by the shape that the file declares."""
    return shape[axis] == 1 and (
        declared is None
        or len(declared) == len(shape)
        and type(declared[axis]) is not int
        and all(type(n) is not int or n == m for n, m in zip(declared, shape))
    )


def prove_axes(signature, sample, axes, forms, transcript):
    """The axes of inputs and outputs, if rows along them are streams that do not depend on each other.

    Args:
        signature: The ModelSignature.
        sample: The values of a call for one stream.
        axes: {input: axis or None}.
        forms: (shape, dtype) of each output for one stream, by name.
        transcript: The Transcript of that call.

    Raises:
        NotApart: A node lets them meet, or an output has no axis of them.
    """
    axes = output_axes(signature.model, axes, transcript)
    for name, output in signature.states.items():
        if axes[output] != axes[name] or forms[output][0] != sample[name].shape:
            raise NotApart(
                f"output {output!r} has shape {list(forms[output][0])} with the streams along axis {axes[output]}, the "
                f"state {name!r} that it becomes {list(sample[name].shape)} along axis {axes[name]}",
                len(transcript.events),
            )
    return axes


def output_axes(model, axes, transcript, n=1):
    """{name: axis} of inputs and outputs, for the axes of the n rows in each input (None: the same for all).

    Raises:
        NotApart: A node lets rows meet, or an output has no axis of them.
    """
    label, axes = model.source.label, dict(axes)
    given = {name: None if axis is None else Rows(axis) for name, axis in axes.items()}
    outputs = propagate(transcript, given, n)
    meetings = [value.meeting for value in outputs if value.meeting is not None]
    if meetings:
        first = min(meetings, key=lambda meeting: meeting.step)
        raise NotApart(without_label(label, first), first.step)
    for output, value in zip(model.outputs, outputs):
        if value.rows is None or not value.rows.plain:
            where = "is the same for any number of rows" if value.rows is None else "has the rows within an axis"
            raise NotApart(f"output {output.name!r} {where}", len(transcript.events))
        axes[output.name] = value.rows.axis
    return axes


def without_label(label, meeting: Meeting):
    """A meeting in words, without the name of the file, which the message has already."""
    return str(meeting).removeprefix(f"{label}: ")


def compare_bits(signature, sample, axes):
    """Raise UnsupportedError unless three streams together get the bits that each of them gets alone."""
    model, feed = signature.model, repeated(sample, axes, 3)
    try:
        planned, args = model.prepare(randomized(feed, signature.fixed, "fiub"))
        together = planned.run(args)
        feed = dict(zip(planned.names, args))
    except Error:  # Random integers may be no valid indices: leave integers and booleans as they are.
        feed = randomized(feed, signature.fixed, "f")
        planned, args = model.prepare(feed)
        together = planned.run(args)
    for i in range(3):
        one = {name: value if axes[name] is None else np.take(value, [i], axes[name]) for name, value in feed.items()}
        planned, args = model.prepare(one)
        for output, of_batch, alone in zip(model.outputs, together, planned.run(args)):
            if np.take(of_batch, [i], axes[output.name]).tobytes() != alone.tobytes():
                raise UnsupportedError(f"output {output.name!r} of a stream depends on the others of its batch")


def trace_call(model, feed, transcript=None):
    """(planned graph, plan, {output: (shape, dtype)}) of a call; `transcript` notes its trace."""
    planned, args = model.prepare(feed)
    with np.errstate(all="ignore"):
        plan, outputs = trace(planned, args, Budget(args), transcript)
    values = plan.results or outputs or plan.unwarned(args)
    if not all(isinstance(value, np.ndarray) for value in values):
        raise UnsupportedError("an output is no array")
    return planned, plan, {v.name: (value.shape, value.dtype) for v, value in zip(model.outputs, values)}


def repeated(values, axes, count):
    """The values of one stream, repeated along their batch axes for `count` streams."""
    return {
        name: value if axes.get(name) is None else np.repeat(value, count, axes[name]) for name, value in values.items()
    }


def randomized(values, fixed, kinds):
    """Replace inputs of these dtype kinds by random values; integers stay in the sample's range.

    Args:
        values: Arrays by name.
        fixed: The names of those that stay as they are.
        kinds: The dtype kinds ("f", "i", "u", "b") that are replaced.
    """
    rng, made = np.random.default_rng(0), dict(values)
    for name, value in values.items():
        kind = value.dtype.kind
        if name in fixed or kind not in kinds or not value.size:
            continue
        if kind == "f":
            made[name] = (rng.standard_normal(value.shape) / 2).astype(value.dtype)
        else:
            low, high = (False, True) if kind == "b" else (min(value.min(), 0), max(value.max(), 1))
            made[name] = rng.integers(low, high, value.shape, endpoint=True, dtype=value.dtype)
    return made
