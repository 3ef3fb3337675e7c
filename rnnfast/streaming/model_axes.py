"""The result of `Model.batch_axes`: the axis of the rows in each input and output of a call, proven."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import Error
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.onnx.summary import zeros
from rnnfast.streaming.batch_axes import MAX_CHOICES, NotApart, output_axes, trace_call
from rnnfast.streaming.state_pairs import named_pairs


class BatchAxes(NamedTuple):
    """Along which axes the rows of a batch lie, each of which gets the results that it would get alone.

    Attributes:
        inputs: The axis of the rows in each input, None for an input that is the same for all rows. Empty if there
            are no such axes.
        outputs: The axis of the rows in each output. Empty if there are no such axes.
        problem: Why there are none: the node at which rows meet, and how. None if there are such axes.
    """

    inputs: dict[str, int | None]
    outputs: dict[str, int]
    problem: str | None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"no batch axis: {self.problem}"
        inputs, outputs = (
            ", ".join(f"{name} {'the same for all' if axis is None else f'axis {axis}'}" for name, axis in axes.items())
            for axes in (self.inputs, self.outputs)
        )
        return f"batch axes: {inputs} -> {outputs}"


def batch_axes(model: Any, feed: Mapping[str, Any]) -> BatchAxes:
    """Find the BatchAxes of a Model for a call with `feed`; required inputs that it lacks are zeros.

    A state must have the rows along the same axis as the output that it comes back as.
    """
    states = named_pairs(model)
    given = {v.name: zeros(v.type) for v in model.inputs if v.name in model.required_inputs}
    planned, args = model.prepare(given | dict(feed))
    sample, transcript, label = dict(zip(planned.names, args)), Transcript(), f"{model.source.label}: "
    try:
        trace_call(model, sample, transcript)
    except Error as e:
        return BatchAxes({}, {}, f"a call with such inputs fails: {str(e).removeprefix(label)}")
    types = {v.name: v.type for v in model.inputs}
    problem = NotApart("no input has a dimension that the file leaves open", -1)
    candidates = [_candidates(types[name], value) for name, value in sample.items()]
    for choice in itertools.islice(itertools.product(*candidates), MAX_CHOICES):
        axes = dict(zip(sample, choice))
        # A choice that leaves an input out has less to say about what stands in the way.
        whole = all(axis is not None or open_axes == [None] for axis, open_axes in zip(choice, candidates))
        counts = {sample[name].shape[axis] for name, axis in axes.items() if axis is not None}
        if len(counts) != 1 or counts == {0}:
            continue
        try:
            found = output_axes(model, axes, transcript, counts.pop())
        except NotApart as e:
            problem = max(problem, e, key=lambda error: error.step) if whole else problem
            continue
        apart = [name for name, output in states.items() if found[name] != found[output]]
        if not apart:
            return BatchAxes(axes, {v.name: found[v.name] for v in model.outputs}, None)
        if not whole:
            continue
        name = apart[0]
        problem = NotApart(
            f"the state {name!r} has them along axis {found[name]}, the output {states[name]!r} along "
            f"{found[states[name]]}",
            len(transcript.events),
        )
    return BatchAxes({}, {}, str(problem))


def _candidates(type_: Any, value: Any) -> list[int | None]:
    """The axes of an input that may have the rows: those that the file leaves open, first those of length 1."""
    if not isinstance(value, np.ndarray):
        return [None]
    shape = type_.shape if type_.shape is not None else (None,) * value.ndim
    axes = [axis for axis, n in enumerate(shape) if type(n) is not int]
    return [*sorted(axes, key=lambda axis: value.shape[axis] != 1), None]
