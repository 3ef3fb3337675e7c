"""Shows the progress of long work on stderr if that is a terminal; the display is removed when the work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rnnfast.errors import printable

T = TypeVar("T")


def track(steps: Sequence[T], description: str) -> Iterator[T]:
    """Yield the items of `steps` and show how many are done."""
    screen = Console(stderr=True)
    if not screen.is_terminal:  # where the oldest rich that is allowed would still write an empty line
        yield from steps
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=screen, transient=True) as progress:
        yield from progress.track(steps, description=printable(description))
