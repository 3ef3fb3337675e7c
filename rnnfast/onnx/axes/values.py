"""The knowledge of a value besides its shape: where the rows lie in it, or how it is computed from their number.

Rows stand for the rows of a batch or the frames of sequences; their number is called n here. A trace shows the values
for one n; what is said here holds for each n of 1 or more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class Meets(Exception):
    """The rows meet at a node; the message says why, behind the node's name."""


class Rows(NamedTuple):
    """Where the rows lie: axis `axis` has outer * n * inner elements, in which the number of the row is in the middle.

    A reshape from [T, n, H] to [T * n, H] makes Rows(0, T, 1).
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def moved(self, axis: int) -> Rows:
        """The same rows along another axis."""
        return Rows(axis, self.outer, self.inner)

    @property
    def plain(self) -> bool:
        """True if the axis has the rows alone."""
        return self.outer == self.inner == 1


@dataclasses.dataclass(frozen=True, slots=True)
class Meeting:
    """Where and why rows meet. `step` counts the nodes before it."""

    where: str
    reason: str
    step: int

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Value:
    """One value of a graph. It is the same for all rows and each n (`shared`), unless it has one of these:

    rows: where the rows lie in it. sizes: an array of objects, integers and Linears, if it consists of numbers
    computed from n. last: "state" or "frame" if it depends on the frames up to the last one and has no axis of frames:
    on the last states of recurrent nodes alone, or on the last frame of the call. members: the values of a sequence
    that was made of such values. meeting: where rows met on the way to it.

    shape: that of the trace; None for a sequence or absent value. data: the value, if it is known and the same for all
    rows and each n. fixed: whether the shape depends on no input's value. lengths: it has the lengths of the sequences.
    """

    __slots__ = ("shape", "rows", "sizes", "last", "members", "meeting", "data", "fixed", "lengths", "shared")

    def __init__(
        self,
        shape: tuple[int, ...] | None = None,
        rows: Rows | None = None,
        sizes: Any = None,
        last: str | None = None,
        members: tuple[Value, ...] | None = None,
        meeting: Meeting | None = None,
        data: Any = None,
        fixed: bool = True,
        lengths: bool = False,
    ) -> None:
        self.shape, self.rows, self.sizes, self.last, self.members = shape, rows, sizes, last, members
        self.meeting, self.data, self.fixed, self.lengths = meeting, data, fixed, lengths
        self.shared = rows is sizes is last is members is meeting is None

    @property
    def ndim(self) -> int:
        if self.shape is None:
            raise Meets("it takes a sequence, through which rows are not followed")
        return len(self.shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """The number slope * n + offset, slope not 0. What is not the same or no Linear for each n raises Meets."""

    slope: int
    offset: int = 0

    def at(self, n: int) -> int:
        return self.slope * n + self.offset

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Linear):
            return linear(self.slope + other.slope, self.offset + other.offset)
        return linear(self.slope, self.offset + int(other))

    def __neg__(self) -> Linear:
        return Linear(-self.slope, -self.offset)

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Linear):
            raise Meets("it multiplies the number of rows by itself")
        return linear(self.slope * int(other), self.offset * int(other))

    __radd__, __rmul__ = __add__, __mul__

    def divided(self, other: Any) -> Any:
        """The quotient, if it is exact for each n."""
        if isinstance(other, Linear):
            if self.slope * other.offset == self.offset * other.slope and self.slope % other.slope == 0:
                return self.slope // other.slope
        elif other and self.slope % other == 0 and self.offset % other == 0:
            return linear(self.slope // int(other), self.offset // int(other))
        raise Meets("it divides the number of rows with a remainder")

    def remainder(self, other: Any) -> int:
        """The remainder, if it is the same for each n."""
        if not isinstance(other, Linear) and other > 0 and self.slope % other == 0:
            return self.offset % int(other)
        raise Meets("it computes a remainder of the number of rows")

    def __eq__(self, other: object) -> bool:
        difference: Any = self - other
        if not isinstance(difference, Linear):
            return difference == 0
        n, remainder = divmod(-difference.offset, difference.slope)
        if remainder or n < 1:
            return False
        raise Meets("it decides by the number of rows")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: Any) -> bool:
        difference = self - other
        if not isinstance(difference, Linear):
            return difference < 0
        first = difference.at(1)
        if first < 0 and difference.slope < 0:
            return True
        if first >= 0 and difference.slope > 0:
            return False
        raise Meets("it decides by the number of rows")

    def __gt__(self, other: Any) -> bool:
        return -self < -other

    def __le__(self, other: Any) -> bool:
        return not self > other

    def __ge__(self, other: Any) -> bool:
        return not self < other

    def __bool__(self) -> bool:
        return self != 0


def linear(slope: int, offset: int) -> Any:
    """slope * n + offset: an int where it is the same for each n."""
    return Linear(slope, offset) if slope else offset


def objects(value: Value) -> Any:
    """The numbers of a value as an array of objects: Linears, and integers or truths."""
    if value.sizes is not None:
        return value.sizes
    if value.data is None:
        raise Meets("it computes with the number of rows and with values that are not known before a run")
    return np.asarray(value.data).astype(object)
