"""The facts of a propagation that rules need, and the questions that most of them ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rnnfast.onnx.axes.values import Meets, Rows, Value


class Frames(NamedTuple):
    """How rows are the frames of sequences.

    padded: whole sequences, followed by padding, in one call with their lengths: what holds for the frames of a
    sequence must not depend on the padding. Else parts of sequences: frames depend on earlier ones through recurrent
    nodes alone, whose states are inputs and outputs.
    """

    padded: bool


class Follower:
    """Part of a Propagation. n: the number of rows in the trace. frames: None if the rows are those of a batch."""

    def __init__(self, n: int, frames: Frames | None) -> None:
        self.n, self.frames = n, frames

    @property
    def causal(self) -> bool:
        """True if a frame may depend on earlier ones of its sequence."""
        return self.frames is not None and self.frames.padded


def check_shared(values: Iterable[Value | None], what: str) -> None:
    """Raise Meets if any of these inputs has rows."""
    for value in values:
        if value is not None and not value.shared:
            raise Meets(f"{what} differ from row to row")


def known(value: Value | None, what: str) -> Any:
    """The known value of an input that decides the shape of the result; None for an absent one."""
    if value is None:
        return None
    if value.sizes is not None:
        raise Meets(f"{what} depend on the number of rows")
    if value.data is None or not value.shared:
        raise Meets(f"{what} are not known before a run")
    return value.data


def integers(value: Value | None, what: str) -> list[int] | None:
    """The same as a list of integers."""
    data = known(value, what)
    return None if data is None else data.reshape(-1).tolist()


def aligned(values: Sequence[Value | None], rank: int) -> Rows | None:
    """Where the rows are in a result of this rank, of inputs that broadcast to it.

    Raises Meets unless they have the rows along the same axis, along which the others have length 1.
    """
    rows, others = None, []
    for value in values:
        if value is None:
            continue
        if value.rows is None:
            others.append(value)
            continue
        moved, behind = value.rows, rank - value.ndim
        if behind:
            moved = moved.moved(moved.axis + behind)
        if rows is not None and moved != rows:
            raise Meets("two of its inputs have the rows along different axes")
        rows = moved
    if rows is not None:
        for value in others:
            axis = rows.axis - (rank - value.ndim)
            if axis >= 0 and value.shape[axis] != 1:  # type: ignore[index]
                raise Meets(
                    f"a value of shape {list(value.shape or ())}, which is the same for any number of rows, lies along "
                    f"the rows, axis {rows.axis}"
                )
    return rows


def rows_in(value: Value | None) -> Rows:
    """The rows of an input; Meets if it has none, while another input has."""
    if value is None or value.rows is None:
        raise Meets("an input that is the same for all rows meets one that is not")
    return value.rows


def apart_from(value: Value | None, axes: Iterable[int], does: str) -> Rows:
    """The rows of a value, which must not be along these axes. `does` says what the node does along them."""
    rows = rows_in(value)
    if rows.axis in [axis % value.ndim for axis in axes]:  # type: ignore[union-attr]
        raise Meets(f"{does} along axis {rows.axis}, along which the rows lie")
    return rows
