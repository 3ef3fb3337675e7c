"""Progress, on a terminal's stderr where rich is installed, nothing elsewhere: a bar for what is under way and a line
for each epoch that is done."""

import time
from importlib.util import find_spec

INTERVAL = 0.1  # seconds between two updates of the bar


class Silent:
    """What is shown where nobody looks."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def begin(self, name, steps, done=0):
        pass

    def advance(self, steps, means=dict):
        pass

    def end(self, values):
        pass


class Bar(Silent):
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

    def advance(self, steps, means=dict):
        """means: a callable that gives the values so far."""
        if time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self._progress.update(self._task, completed=steps, values=describe(means()))

    def end(self, values):
        seconds = time.monotonic() - self._began
        self._progress.console.print(
            f"{self._name}  {describe(values)}  {seconds:.1f} s", markup=False, highlight=False
        )


def describe(values):
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def make(wanted):
    """A Bar, if it is wanted and there is a terminal."""
    if wanted and find_spec("rich") is not None:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            return Bar(console)
    return Silent()
