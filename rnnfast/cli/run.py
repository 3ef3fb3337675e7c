"""`rnnfast run`: runs a model on inputs from files, or on each line of a file, and writes its outputs to files."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import click
import numpy as np

from rnnfast.atomic_write import write_files
from rnnfast.cli.jsonl import run_lines
from rnnfast.cli.values import input_option, read_inputs, weights_options
from rnnfast.errors import InputError, printable
from rnnfast.model import load
from rnnfast.native.threads import check as check_threads


@click.command()
@click.argument("file")
@input_option
@click.option(
    "--jsonl",
    "lines",
    metavar="FILE",
    help="Run the model on each line: a sequence without its batch axis as a JSON array, or an object of such arrays "
    "by the inputs' names. - is stdin.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Most threads of the call; with --jsonl, batches that are computed at a time (default: RNNFAST_NUM_THREADS, "
    "else 1).",
)
@weights_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help="Folder in which OUTPUT.npy is written for each output; made if it does not exist. With --jsonl, the file of "
    "results (default: stdout).",
)
def run(
    file: str,
    given: Sequence[str],
    lines: str | None,
    threads: int | None,
    weights: Any,
    activations: Any,
    output: pathlib.Path | None,
) -> None:
    """Run FILE once and write its outputs to .npy files, or run it on each line of a file of JSON.

    If anything is wrong, nothing is written. A sequence is written as OUTPUT.0.npy, OUTPUT.1.npy ...

    With --jsonl, lines are computed in batches of sequences of similar length, and each has the results that it would
    have alone: one object a line, in the same order. -i gives inputs that are the same for all lines. The file may be
    larger than memory. The first bad line is an error that names it; without -o the results before it are printed.
    """
    if lines is not None:
        model = load(file, threads=1, weights=weights, activations=activations)
        run_lines(model, lines, output, read_inputs(given, model), check_threads(threads))
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    model = load(file, threads=threads, weights=weights, activations=activations)
    arrays = _by_file_name(model(read_inputs(given, model)))
    _write(arrays, output)
    for name, array in arrays.items():
        click.echo(printable(f"{output / name}  {array.dtype} {list(array.shape)}"))


def _by_file_name(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays to write by the names of their files; absent optionals are left out."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        stem = re.sub(r"[^\w.-]", "_", name)
        parts = {f"{stem}.npy": value}
        if isinstance(value, list):
            parts = {f"{stem}.{i}.npy": v for i, v in enumerate(value)}
        for part, array in parts.items():
            if part in arrays:
                raise InputError(f"output {name!r}: another output's file is named {part} too")
            if array is not None:
                arrays[part] = _storable(array)
    return arrays


def _storable(array: np.ndarray) -> np.ndarray:
    """The array in a type that .npy files have: text for strings, float32 for the float types that NumPy lacks."""
    if array.dtype.kind == "O":
        return array.astype(str)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _write(arrays: Mapping[str, np.ndarray], folder: pathlib.Path) -> None:
    """Write all files or none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"{folder}: cannot be made: {e.strerror or e}") from e
    write_files({folder / name: functools.partial(_save, array) for name, array in arrays.items()})


def _save(array: np.ndarray, file: BinaryIO) -> None:
    """Write an array to an opened file."""
    np.lib.format.write_array(file, array, allow_pickle=False)
