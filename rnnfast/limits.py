"""The limits of what a model's file and calls may take."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rnnfast.errors import InputError, InputTypeError, LimitError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on what the file of a model takes at load and on what each call of it takes.

    A file of a few bytes can ask for any amount of memory and time. The defaults are far above what models take; set
    lower ones for files of strangers, and higher ones where the error of a limit says so. None is no limit.

    Args:
        nodes: The nodes of the file, with those of branches, loop bodies and functions; the nodes of a function count
            for each call of it.
        bytes_at_load: The bytes of decoded initializers, of constants computed at load, and of packed weights.
        bytes_of_a_call: The bytes of all results that a call holds at one time, intermediate ones included.
        work: The multiply-adds of a call, and of what is computed at load. Everything else counts in multiply-adds that
            take about as long: a number that a native command reads or writes counts 64, one of a NumPy function 1024,
            and the call of a NumPy function 2**21. It is known before a call runs, except where values decide about the
            iterations of a loop or the sizes of tensors; these count when they are known.
        seconds: The seconds of a call, after which it is stopped.

    Raises:
        InputTypeError: A limit is not an int, or `seconds` is not a number.
        InputError: A limit is less than 1, or `seconds` is not a number above 0.
    """

    nodes: int | None = 100_000
    bytes_at_load: int | None = 2**32
    bytes_of_a_call: int | None = 2**31
    work: int | None = 10**12
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "bytes_at_load", "bytes_of_a_call", "work"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise InputTypeError(f"limits.{name} is {value!r}, expected an int or None")
            if value is not None and value < 1:
                raise InputError(f"limits.{name} is {value}, expected at least 1")
        if self.seconds is not None:
            if type(self.seconds) not in (int, float):
                raise InputTypeError(f"limits.seconds is {self.seconds!r}, expected a number or None")
            if not 0 < self.seconds < math.inf:
                raise InputError(f"limits.seconds is {self.seconds}, expected a finite number above 0")

    def check(self, name: str, asked: int, what: str) -> None:
        """Raise an error if a limit is exceeded.

        Args:
            name: The name of the limit.
            asked: What is asked for.
            what: What asks for it, the subject of the message.

        Raises:
            LimitError: It is more than the limit allows.
        """
        allowed = getattr(self, name)
        if allowed is not None and asked > allowed:
            raise LimitError(f"{what} {asked:,}, more than limits.{name} = {allowed:,}")


def check_limits(limits: Any) -> Limits:
    """Return the Limits that a caller gave, those of the defaults for None; raise InputTypeError for anything else."""
    if limits is None:
        return Limits()
    if not isinstance(limits, Limits):
        raise InputTypeError(f"limits is {type(limits).__name__}, expected rnnfast.Limits")
    return limits
