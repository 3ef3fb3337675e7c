"""The transcript of a trace: which node made which values, with their shapes, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnfast.onnx.axes.values import Value

if TYPE_CHECKING:
    from rnnfast.onnx.graph import Node


class Traced:
    """The record of a value that was traced.

    shape: the shape of an array; None for a sequence or an absent value. data: the value, if it depends on constants
    and input shapes alone; else None. fixed: whether its shape depends on these alone.
    """

    __slots__ = ("shape", "data", "fixed", "_constant")

    def __init__(self, data: Any, known: bool, fixed: bool) -> None:
        self.shape: tuple[int, ...] | None = data.shape if isinstance(data, np.ndarray) else None
        self.data, self.fixed = data if known else None, fixed
        self._constant: Value | None = None

    def constant(self) -> Value:
        """Its Value if it is the same for all rows."""
        if self._constant is None:
            self._constant = Value(self.shape, data=self.data, fixed=self.fixed)
        return self._constant


class Event(NamedTuple):
    """A node that was traced.

    An If whose condition was known is an event without outputs: the events of its branch follow.

    inputs: None for an absent input. captures: the values that the node's graphs capture, by name. bodies: the
    Transcripts of its graphs by the name of the attribute; they are empty where no plan was made for shapes alone.
    """

    node: Node
    inputs: list[Traced | None]
    outputs: list[Traced]
    captures: dict[str, Traced]
    bodies: dict[str, Transcript]


class Transcript:
    """The events of a trace, of the last one where it began anew.

    inputs: what the graph took, by name. outputs: in the order of the graph; None before a trace has ended.
    """

    def __init__(self) -> None:
        self.begin({})

    def begin(self, scope: Mapping[str, Any]) -> None:
        """Begin with the values of a graph's inputs and captures."""
        self.inputs = {name: self.traced(value) for name, value in scope.items()}
        self.events: list[Event] = []
        self.outputs: list[Traced] | None = None

    def end(self, outputs: Iterable[Any]) -> None:
        """Note the outputs."""
        self.outputs = [self.traced(value) for value in outputs]

    def note(
        self,
        node: Node,
        inputs: Iterable[Any],
        outputs: Iterable[Any] = (),
        captures: Mapping[str, Any] | None = None,
        bodies: Mapping[str, Transcript] | None = None,
    ) -> None:
        """Note a node. The values are those of the tracer."""
        self.events.append(
            Event(
                node,
                [None if value.data is None else value.traced or self.traced(value) for value in inputs],
                [self.traced(value) for value in outputs],
                {name: self.traced(value) for name, value in captures.items()} if captures else {},
                dict(bodies) if bodies else {},
            )
        )

    @staticmethod
    def traced(value: Any) -> Traced:
        """The Traced of a tracer's value: the same for each use of it."""
        if value.traced is None:
            value.traced = Traced(value.data, value.known, value.fixed_shape)
        return value.traced
