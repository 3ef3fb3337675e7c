"""Follows rows through a transcript, from the inputs that have them to the outputs, by one rule for each operator."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnfast.onnx.axes import control, sizes
from rnnfast.onnx.axes.rules import RULES, SIZE_INPUTS, Follower, Frames
from rnnfast.onnx.axes.transcript import Event, Traced, Transcript
from rnnfast.onnx.axes.values import Linear, Meeting, Meets, Rows, Value


def propagate(
    transcript: Transcript, inputs: Mapping[str, Rows | Value | None], n: int = 1, frames: Frames | None = None
) -> list[Value]:
    """Follow rows through a graph.

    transcript: of a trace with n rows. inputs: where the rows lie in each input; None where the input is the same for
    all rows. frames: how the rows are frames of sequences; None if they are the rows of a batch.

    Returns the Value of each output, with a `meeting` where rows met on the way to it.
    """
    taken = {}
    for name, traced in transcript.inputs.items():
        given = inputs.get(name)
        if isinstance(given, Value):
            taken[name] = given
        elif given is None:
            taken[name] = traced.constant()
        else:
            taken[name] = Value(traced.shape, given)
    return Propagation(n, frames).graph(transcript, taken)


NONE: Mapping[str, Value] = {}


class _Found(dict[Traced, Value]):
    """The Value of what was traced; what is known and was made by no node is a constant."""

    def __missing__(self, traced: Traced) -> Value:
        assert traced.data is not None or traced.shape is None
        return traced.constant()


class Propagation(Follower):
    """One propagation. n: the number of rows in the trace. frames: as `propagate` takes it."""

    def __init__(self, n: int, frames: Frames | None) -> None:
        super().__init__(n, frames)
        self.step = 0

    def graph(self, transcript: Transcript, inputs: Mapping[str, Value]) -> list[Value]:
        """The outputs of a graph or body, for the values of its inputs and captures."""
        found = _Found({traced: inputs[name] for name, traced in transcript.inputs.items()})
        decisions: list[Meeting] = []
        for event in transcript.events:
            _, its_inputs, its_outputs, its_captures, _ = event
            self.step += 1
            values = [None if traced is None else found[traced] for traced in its_inputs]
            if not its_outputs:
                decisions += self._decided(event, values)
                continue
            captures = {name: found[traced] for name, traced in its_captures.items()} if its_captures else NONE
            for traced, value in zip(its_outputs, self.outputs(event, values, captures)):
                # An output that is one of the inputs, as of Identity, has its value already.
                found.setdefault(traced, value)
        assert transcript.outputs is not None
        outputs = [found[traced] for traced in transcript.outputs]
        if decisions:  # another number of rows, or another row, takes another way through the graph
            return [Value(value.shape, meeting=decisions[0]) for value in outputs]
        return outputs

    def _decided(self, event: Event, values: Sequence[Value | None]) -> list[Meeting]:
        """The meeting at an If whose branch was chosen in the trace, unless all rows choose it."""
        condition = values[0]
        assert condition is not None
        if condition.meeting is not None:
            return [condition.meeting]
        if condition.shared:
            return []
        reason = "the number of rows" if condition.sizes is not None else "the value of one row"
        return [self._meeting(event, f"it decides for all rows by {reason}")]

    def outputs(
        self, event: Event, values: Sequence[Value | None], captures: Mapping[str, Value] = NONE
    ) -> list[Value]:
        """The outputs of a node."""
        others = [value for value in values if value is not None and not value.shared]
        if captures:
            others += [value for value in captures.values() if not value.shared]
        sized = False
        for value in others:
            if value.meeting is not None:
                return [Value(traced.shape, meeting=value.meeting) for traced in event.outputs]
            sized |= value.sizes is not None
        try:
            return self._outputs(event, values, captures, others, sized)
        except Meets as e:
            meeting = self._meeting(event, str(e))
            return [Value(traced.shape, meeting=meeting) for traced in event.outputs]

    def _meeting(self, event: Event, reason: str) -> Meeting:
        """The meeting at a node; frames of sequences are called that."""
        if self.frames is not None:
            reason = re.sub(r"\brow(s?)\b", r"frame\1", reason)
        return Meeting(event.node.where, reason, self.step)

    def _outputs(
        self,
        event: Event,
        values: Sequence[Value | None],
        captures: Mapping[str, Value],
        others: Sequence[Value],
        sized: bool,
    ) -> list[Value]:
        """The outputs of a node. `others` are the inputs and captures that are not shared; some are `sized`."""
        node, made = event.node, event.outputs
        rule = None if node.domain else RULES.get(node.op_type)
        if rule is None and not event.bodies:
            raise Meets("no rule says what this operator does with rows")
        if not others:
            lengths = node.op_type in KEEPS_VALUES and values[0] is not None and values[0].lengths
            return [self._shared(traced, lengths) for traced in made]
        if event.bodies:
            return control.follow(self, event, values, captures)
        if node.op_type in ("Shape", "Size") and made[0].data is not None:
            if others[0].rows is not None:
                return [self._numbers(made[0], sizes.of_shape(node, others[0]))]
            return [self._shared(made[0], False)]
        if self.frames is not None and any(value.last is not None for value in others):
            return self._last(event, others)
        assert rule is not None
        if sized:
            own = SIZE_INPUTS.get(node.op_type, ())
            if any(v is not None and v.sizes is not None and i not in own for i, v in enumerate(values)):
                data = [None if traced is None else traced.data for traced in event.inputs]
                results = sizes.compute(node, list(values), data)
                return [self._numbers(traced, result) for traced, result in zip(made, results)]
        results = rule(self, event, *values)
        if not isinstance(results, list):
            if len(made) == 1:
                return [self._checked(made[0], results)]
            results = [results] * len(made)
        names = itertools.chain(node.outputs, itertools.repeat(""))
        return [
            self._checked(traced, result) if name else traced.constant()
            for traced, result, name in zip(made, results, names)
        ]

    def _shared(self, traced: Traced, lengths: bool) -> Value:
        """A value that is computed from shared values alone."""
        if self.frames is not None and traced.shape is not None and not traced.fixed:
            raise Meets("its shape depends on values")
        if lengths:
            return Value(traced.shape, data=traced.data, fixed=traced.fixed, lengths=True)
        return traced.constant()

    def _last(self, event: Event, others: Sequence[Value]) -> list[Value]:
        """Values that are computed from that of the last frame and from shared ones."""
        if not all(value.last for value in others):
            raise Meets("it combines frames with what follows from the last one")
        if not all(traced.fixed and traced.shape is not None for traced in event.outputs):
            raise Meets("its shape depends on values")
        last = "frame" if any(value.last == "frame" for value in others) else "state"
        return [Value(traced.shape, last=last) for traced in event.outputs]

    def _numbers(self, traced: Traced, numbers: Any) -> Value:
        """A value of numbers computed from n, which are checked with those of the trace; a shared one if all of them
        are the same for each n.
        """
        numbers = np.asarray(numbers, object)
        listed, plain, n = numbers.ravel().tolist(), True, self.n
        for i, x in enumerate(listed):
            if type(x) is Linear:
                listed[i], plain = x.at(n), False
        if traced.data is None or numbers.shape != traced.shape or listed != traced.data.ravel().tolist():
            raise Meets("it computes with the number of rows")
        return Value(traced.shape, data=traced.data) if plain else Value(traced.shape, sizes=numbers)

    def _checked(self, traced: Traced, result: Any) -> Value:
        """The Value of a rule's result: Rows, a Value, or None for a shared value."""
        if isinstance(result, Value):
            return result
        if result is None:
            return self._shared(traced, False)
        axis, outer, inner = result
        shape = traced.shape
        if shape is None or shape[axis] != self.n * outer * inner:
            raise Meets(f"its result has shape {list(shape or ())}, in which rows are not where they should be")
        return Value(shape, result)


# Operators that hand on the lengths of sequences, perhaps as another type or shape.
KEEPS_VALUES = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
