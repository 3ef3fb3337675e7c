"""Which axis of each input, state and output of a model is the batch of streams.

The graph is trace_call for two sizes of the batch and the shapes are compared, then three streams run together and each of
them alone, and the bits are compared. `alone` is a Stream: it knows the names and types of a model, and never runs.
"""

import itertools

import numpy as np

from rnnfast.errors import Error, InputError, UnsupportedError
from rnnfast.onnx.budget import Budget
from rnnfast.onnx.trace import trace

# Ways to choose the batch axes that are tried.
MAX_CHOICES = 64
BY_ONE = "pool(batch=False) runs streams one by one"


def search(alone, frames, rows, given):
    """(axis of the streams of each value or None, a call's values for one stream, what `trace_call` says of that call).

    frames: those of one stream, without (`rows`) or with its batch axis; given: its initial states or None, for zeros.
    InputError for a frame that no stream takes, UnsupportedError if there are no such axes."""
    reason, wrong, count = None, None, 0
    choices = itertools.product(*(candidates(alone, name, value, rows) for name, value in frames.items()))
    for choice in itertools.islice(choices, MAX_CHOICES):
        axes = dict(zip(frames, choice))
        frame = {name: np.expand_dims(value, axes[name]) if rows else value for name, value in frames.items()}
        states = dict(zip(alone.states, given or alone._zeros(frame)))
        of_states = [candidates(alone, name, value, False) for name, value in states.items()]
        of_fixed = [[None, *candidates(alone, name, value, False, False)] for name, value in alone._fixed.items()]
        for others in itertools.product(*of_states, *of_fixed):
            count += 1
            if count > MAX_CHOICES:
                break
            chosen = axes | dict(zip([*states, *alone._fixed], others))
            sample = alone._fixed | frame | states
            try:
                found = trace_call(alone._model, sample)
            except Error as e:
                wrong = wrong or e
                continue
            try:
                return verify_axes(alone, sample, chosen, found[2]), sample, found
            except Error as e:
                reason = reason or e
    if reason is None:  # no stream takes this frame
        raise wrong
    raise UnsupportedError(f"{alone._label}: no axis of the inputs is a batch of streams: {reason}; {BY_ONE}")


def candidates(alone, name, value, rows, needed=True):
    """The axes of an input that may be the streams': open ones in the file, and of length 1 in a value that is not
    a row."""
    type_ = alone._types[name]
    if type_.kind != "tensor":
        raise UnsupportedError(f"{alone._label}: input {name!r} is {type_.kind}, expected a tensor; {BY_ONE}")
    shape, received = type_.shape, np.shape(value)
    axes = [
        axis
        for axis in range(len(received) + rows)
        if fits(shape, (*received[:axis], 1, *received[axis:]) if rows else received, axis)
    ]
    if needed and not axes:
        if rows and shape and not all(type(n) is int for n in shape):
            raise InputError(
                f"{alone._label}: input {name!r} has frames of {list(received)}, expected {list(shape)} "
                "without the batch"
            )
        shape = list(received if shape is None else shape)
        fixed = f"; give it when the stream is opened, open({name}=...)" if name in alone.inputs and not shape else ""
        raise UnsupportedError(
            f"{alone._label}: input {name!r} of shape {shape} has no axis that may be a batch{fixed}; {BY_ONE}"
        )
    return axes


def verify_axes(alone, sample, axes, forms):
    """The axes of inputs and outputs if these are the streams', else an Error. forms: of the outputs for one stream."""
    two, three = (trace_call(alone._model, repeated(sample, axes, n))[2] for n in (2, 3))
    axes = dict(axes)
    for name, (shape, _) in two.items():
        after = three[name][0]
        found = [i for i, (m, n) in enumerate(zip(shape, after)) if (m, n) == (2, 3)]
        if (
            len(shape) != len(after)
            or len(found) != 1
            or any(m != n for i, (m, n) in enumerate(zip(shape, after)) if i not in found)
        ):
            raise UnsupportedError(
                f"output {name!r} has shape {list(shape)} for two streams and {list(after)} for three"
            )
        axes[name] = found[0]
    for name, received in alone.states.items():
        if axes[received] != axes[name] or forms[received][0] != sample[name].shape:
            raise UnsupportedError(
                f"output {received!r} has shape {list(forms[received][0])}, the state {name!r} that it "
                f"becomes {list(sample[name].shape)}"
            )
    compare(alone, sample, axes)
    return axes


def compare(alone, sample, axes):
    """An error unless three streams together get the bits that each gets alone."""
    feed = repeated(sample, axes, 3)
    try:
        planned, args = alone._model.prepare(randomized(feed, alone._fixed, "fiub"))
        together = planned.run(args)
        feed = dict(zip(planned.names, args))
    except Error:  # of integers that are no indices
        feed = randomized(feed, alone._fixed, "f")
        planned, args = alone._model.prepare(feed)
        together = planned.run(args)
    for i in range(3):
        one = {name: value if axes[name] is None else np.take(value, [i], axes[name]) for name, value in feed.items()}
        planned, args = alone._model.prepare(one)
        for output, a, b in zip(alone._model.outputs, together, planned.run(args)):
            if np.take(a, [i], axes[output.name]).tobytes() != b.tobytes():
                raise UnsupportedError(f"output {output.name!r} of a stream depends on the others of its batch")


def trace_call(model, feed):
    """(planned, plan, (shape, type) of each output) of a call."""
    planned, args = model.prepare(feed)
    with np.errstate(all="ignore"):
        plan, outputs = trace(planned, args, Budget(args))
    values = plan.results or outputs or plan.run(args)
    if not all(isinstance(value, np.ndarray) for value in values):
        raise UnsupportedError("an output is no array")
    return planned, plan, {v.name: (value.shape, value.dtype) for v, value in zip(model.outputs, values)}


def repeated(values, axes, count):
    """Values of one stream as those of so many."""
    return {
        name: value if axes.get(name) is None else np.repeat(value, count, axes[name]) for name, value in values.items()
    }


def randomized(values, fixed, kinds):
    """Values with random ones in the place of those of some kinds of types; integers are up to those that there are."""
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


def fits(shape, received, axis):
    """Whether a value of one stream may have its batch at an axis, by the shape in the file."""
    return received[axis] == 1 and (
        shape is None
        or len(shape) == len(received)
        and type(shape[axis]) is not int
        and all(type(n) is not int or n == m for n, m in zip(shape, received))
    )
