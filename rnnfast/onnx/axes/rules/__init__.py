"""One rule for each operator: what it does with rows.

A rule takes a Follower, the Event and the Value of each input, of which one at least has rows. It returns the Rows of
all outputs, or a list with one result for each: Rows, a Value, or None where the output is the same for all rows. It
raises Meets where rows meet. Where all inputs are the same for all rows, so are the outputs, and no rule is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnnfast.onnx.axes.rules import (
    attention,
    elementwise,
    indexing,
    linear,
    movement,
    quantize,
    recurrent,
    reduction,
    sampling,
    sequence,
    windows,
)
from rnnfast.onnx.axes.rules.follower import Follower, Frames
from rnnfast.onnx.axes.rules.movement import SIZE_INPUTS
from rnnfast.onnx.axes.values import Meets

__all__ = ["RULES", "SIZE_INPUTS", "Follower", "Frames"]

FAMILIES = (
    *(attention, elementwise, indexing, linear, movement, quantize, recurrent, reduction, sampling, sequence),
    windows,
)


def _no_inputs(follower: Follower, event: Any) -> None:
    """Constant, whose value is the same for all rows."""


def _dimensions(follower: Follower, event: Any, x: Any) -> None:
    """Shape and Size where the trace does not know the result; where it does, `sizes` computes it."""
    raise Meets("the shape of its input depends on values")


RULES: dict[str, Callable[..., Any]] = {"Constant": _no_inputs, "Shape": _dimensions, "Size": _dimensions}
for family in FAMILIES:
    RULES |= family.RULES
