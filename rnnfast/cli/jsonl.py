"""Runs a model on the lines of a file: a JSON array or object in, one object of results out, in the same order."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from rnnfast.atomic_write import write_files
from rnnfast.errors import Error, InputError
from rnnfast.model import Model
from rnnfast.regular_files import open_regular
from rnnfast.streaming.state_pairs import find_state_pairs

# The most bytes of a line, which is in memory as a whole. Its numbers take some ten times as much as they are read.
MAX_LINE_BYTES = 2**26


def run_lines(model: Model, source: str, output: pathlib.Path | None, fixed: Mapping[str, Any], threads: int) -> None:
    """Write a line of results for each line of a file.

    Args:
        model: The Model.
        source: The path of the file; "-" is stdin.
        output: The file that is written, completely or not at all; None is stdout, whose lines are those before the
            first bad one.
        fixed: Inputs that are the same for all lines.
        threads: How many batches are computed at a time.

    Raises:
        Error: The first line that is no JSON, or no sequence of the model; the message names it.
    """
    with _opened(source) as file:
        lines = _Lines(file, "stdin" if source == "-" else source)
        results = model.map(lines, threads=threads, progress=output is not None, **fixed)
        write = functools.partial(_write, results, _result_name(model), lines)
        if output is None:
            write(_standard("stdout"))
        else:
            write_files({output: write})


@contextlib.contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    """Open a file of lines."""
    if source == "-":
        yield _standard("stdin")
        return
    try:
        file = open_regular(source)
    except (OSError, ValueError) as e:
        raise InputError(f"{source}: {getattr(e, 'strerror', None) or e}") from e
    with file:
        yield file


def _standard(name: str) -> BinaryIO:
    """The bytes of stdin or stdout."""
    stream = getattr(sys, name)
    if stream is None:
        raise InputError(f"{name} is closed")
    return stream.buffer


class _Lines:
    """The sequences of a file, one a line; it is iterated once.

    Attributes:
        label: The name of the file.
        error: What was raised for a line that is no JSON.
    """

    def __init__(self, file: BinaryIO, label: str) -> None:
        self.label = label
        self.error: InputError | None = None
        self._lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
        self._count = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> Any:
        line = next(self._lines)
        self._count += 1
        try:
            return _sequence(line)
        except (ValueError, RecursionError) as e:  # json's own, and that of text that is no UTF-8, are ValueErrors
            text = "it is nested too deeply" if isinstance(e, RecursionError) else e
            self.error = InputError(f"{self.label}: line {self._count}: {text}")
            raise self.error from e


def _sequence(line: bytes) -> Any:
    """The array or object of a line."""
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"more than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        raise InputError("it is empty, expected a JSON array or object")
    value = json.loads(line, object_pairs_hook=_object)
    if not isinstance(value, (list, dict)):
        raise InputError(f"a {type(value).__name__}, expected a JSON array or object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object, whose names differ."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"input {twice!r} is given twice")
    return made


def _result_name(model: Model) -> str:
    """The name of the first result of a sequence: the first output that is no state."""
    try:
        states = find_state_pairs(model).values()
    except InputError:
        states = ()
    return next(v.name for v in model.outputs if v.name not in states)


def _write(results: Iterator[Any], name: str, lines: _Lines, file: BinaryIO) -> None:
    """Write results as lines. `name` is that of a result without one."""
    count = 0
    try:
        for result in results:
            named = result if isinstance(result, dict) else {name: result}
            text = json.dumps({key: _plain(value) for key, value in named.items()}, ensure_ascii=False)
            file.write(text.encode("utf-8", "backslashreplace") + b"\n")
            count += 1
    except Error as e:
        if e is lines.error:
            raise
        raise type(e)(f"{lines.label}: line {count + 1}: {str(e).partition(f'sequence {count}: ')[2]}") from e


def _plain(value: Any) -> Any:
    """A result as JSON has it: nested lists of numbers, booleans and text; None where an optional is absent."""
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind in "fV" and value.dtype.itemsize <= 4:
        return _short(value.astype(np.float32).tolist())
    return value.tolist()


def _short(value: Any) -> Any:
    """Nested lists of floats with nine digits each, which tell any two float32 apart."""
    return [_short(member) for member in value] if isinstance(value, list) else float(f"{value:.9g}")
