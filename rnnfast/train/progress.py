"""Display of progress: a bar for the current epoch and a line for each finished one.

It is shown on stderr if that is a terminal and rich is installed.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

INTERVAL = 0.1  # seconds between two updates of the bar


class Silent:
    """A display that shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def begin(self, name, steps, done=0):
        """Start a task of so many steps, of which some may be done."""

    def advance(self, steps: int, means: Any = dict) -> None:
        """Show that so many steps are done; `means` is a callable that returns the mean values so far."""

    def end(self, values):
        """Finish the task and show its final values."""


class Bar(Silent):
    """A progress bar of rich."""

    def __init__(self, console):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[values]}", markup=False)
        self._progress = Progress(
            text[0], BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text[1], console=console, transient=True
        )
        self._task = None

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exc):
        self._progress.stop()

    def begin(self, name, steps, done=0):
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._name = name
        self._task = self._progress.add_task(self._name, total=steps, completed=done, values="")
        self._began = self._shown = time.monotonic()

    def advance(self, steps: int, means: Any = dict) -> None:
        if time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self._progress.update(self._task, completed=steps, values=describe(means()))

    def end(self, values):
        seconds = time.monotonic() - self._began
        self._progress.console.print(
            f"{self._name}  {describe(values)}  {seconds:.1f} s", markup=False, highlight=False
        )


def describe(values):
    """Return values by name as text."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def make(wanted):
    """Return a Bar if it is wanted and stderr is a terminal, else a Silent."""
    if wanted and find_spec("rich") is not None:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            return Bar(console)
    return Silent()
