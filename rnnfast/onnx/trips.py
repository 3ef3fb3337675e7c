"""The number of a Loop's iterations, where it follows from constants and input shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast.onnx.graph import Node
from rnnfast.onnx.ops.control import condition

# Operators that compute each element of their result from those at the same place in their inputs.
ELEMENTWISE = frozenset(
    (
        *("Add", "And", "Cast", "Equal", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Mul", "Neg"),
        *("Not", "Or", "Sub", "Xor"),
    )
)
FIRST_COUNT, LARGEST_COUNT = 2**8, 2**20
MAX_VALUES = 100  # of a body that are computed for the number of iterations


def trip_count(planned: Any, inputs: Sequence[Any], known: Sequence[bool], stays_true: bool) -> int | None:
    """The number of iterations of a Loop, or None if it depends on values that are not known before a run.

    planned: the planned graph of the body. inputs: the trip count, the first condition and the states, whose values
    hold for each run where `known` says so. stays_true: whether the condition that the body computes never ends it.
    """
    trips, going = inputs[:2]
    if trips is not None and not known[0] or going is not None and not known[1]:
        return None
    if trips is not None and (trips.dtype != np.int64 or trips.size != 1):
        return None  # The run fails.
    most = None if trips is None else max(0, trips.item())
    if going is not None and not condition(going):
        return 0
    if stays_true or going is None and most is not None:
        return most
    iterations = _Iterations(planned, inputs[2:], known[2:])
    count = FIRST_COUNT
    while count <= LARGEST_COUNT:
        goes_on = iterations.values(planned.graph.outputs[0].name, count)
        if goes_on is None or goes_on.dtype != bool:
            return None
        if goes_on.ndim == 0 and goes_on:
            return most
        goes_on = np.broadcast_to(goes_on, (count,))
        if most is not None and most <= count and goes_on[: max(0, most - 1)].all():
            return most
        if not goes_on.all():
            return int(goes_on.argmin()) + 1
        count *= 16
    return None


class _Iterations:
    """The values of single elements in a loop's body at each iteration, all at once.

    They are known where they follow from the iteration number, constants, and states to which each iteration adds the
    same constant.
    """

    def __init__(self, planned: Any, states: Sequence[Any], known: Sequence[bool]) -> None:
        graph = planned.graph
        self.constants = {**planned.known, **graph.constants}
        self.makers: dict[str, Node] = {name: node for node in graph.nodes for name in node.outputs}
        names = [v.name for v in graph.inputs]
        self.iteration, self.condition = names[:2]
        self.computed: dict[str, np.ndarray | None] = {}
        self.count = 0
        self.states = {
            names[2 + k]: (state, graph.outputs[1 + k].name)
            for k, (state, is_known) in enumerate(zip(states, known))
            if is_known and _is_single(state)
        }

    def values(self, name: str, count: int) -> np.ndarray | None:
        """The values in the first `count` iterations, or one that all share; None if they are not known."""
        if count != self.count:
            self.computed, self.count = {}, count
        if name not in self.computed:
            if len(self.computed) == MAX_VALUES:
                return None
            self.computed[name] = None  # until it is computed
            self.computed[name] = self._value(name, count)
        return self.computed[name]

    def _value(self, name: str, count: int) -> np.ndarray | None:
        if name == self.iteration:
            return np.arange(count)
        if name == self.condition:
            return np.array(True)
        if name in self.constants:
            value = self.constants[name]
            return value.reshape(()) if _is_single(value) else None
        if name in self.states:
            return self._state(name, count)
        node = self.makers.get(name)
        if node is None or node.domain or node.op_type not in ELEMENTWISE:
            return None
        arguments = [self.values(argument, count) for argument in node.inputs]
        if any(argument is None for argument in arguments):
            return None
        assert node.run is not None
        return np.asarray(node.run(*arguments))

    def _state(self, name: str, count: int) -> np.ndarray | None:
        """The values of a state that is an integer and counts."""
        initial, after = self.states[name]
        node = self.makers.get(after)
        while node is not None and node.op_type == "Identity" and not node.domain:
            after = node.inputs[0]
            node = self.makers.get(after)
        if after == name:
            return initial.reshape(())
        if node is None or node.domain or node.op_type not in ("Add", "Sub") or initial.dtype.kind != "i":
            return None
        one, other = node.inputs
        if node.op_type == "Add" and other == name:
            one, other = other, one
        step = self.constants.get(other)
        if one != name or step is None or not _is_single(step):
            return None
        step = -step.item() if node.op_type == "Sub" else step.item()
        last, room = initial.item() + step * count, np.iinfo(initial.dtype)
        if not room.min <= last <= room.max:
            return None
        return (initial.item() + step * np.arange(count)).astype(initial.dtype)


def _is_single(value: Any) -> bool:
    """Return whether a value is an array of one element."""
    return isinstance(value, np.ndarray) and value.size == 1
