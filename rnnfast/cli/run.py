"""`rnnfast run`: a model on files, its outputs to files."""

import os
import pathlib
import re
import tempfile

import click
import numpy as np

from rnnfast.cli.values import input_option, read_inputs
from rnnfast.errors import InputError
from rnnfast.model import load


@click.command()
@click.argument("file")
@input_option
@click.option("--threads", type=click.IntRange(1), help="That the call may use (default: RNNFAST_NUM_THREADS, else 1).")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="The folder for OUTPUT.npy of each output; made if it is not there.",
)
def run(file, given, threads, folder):
    """Run FILE once and write its outputs to .npy files.

    Nothing is written if anything is wrong. A sequence is written as OUTPUT.0.npy, OUTPUT.1.npy ...
    """
    model = load(file, threads=threads)
    arrays = _named(model(read_inputs(given, model)))
    _write(arrays, folder)
    for name, array in arrays.items():
        click.echo(f"{folder / name}  {array.dtype} {list(array.shape)}")


def _named(outputs):
    """file name -> array"""
    arrays = {}
    for name, value in outputs.items():
        stem = re.sub(r"[^\w.-]", "_", name)
        parts = {f"{stem}.npy": value}
        if isinstance(value, list):
            parts = {f"{stem}.{i}.npy": v for i, v in enumerate(value)}
        for part, array in parts.items():
            if part in arrays:
                raise InputError(f"output {name!r}: another output's file is named {part} too")
            if array is not None:
                arrays[part] = _plain(array)
    return arrays


def _plain(array):
    """As a type that .npy files have: text for strings, float32 for the float types that NumPy has not."""
    if array.dtype == object:
        return array.astype(str)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _write(arrays, folder):
    """All of them or none: they get their names when all are written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in arrays:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{name} is a folder")
        with tempfile.TemporaryDirectory(prefix=".rnnfast-", dir=folder) as staging:
            for name, array in arrays.items():
                np.save(os.path.join(staging, name), array)
            for name in arrays:
                os.replace(os.path.join(staging, name), folder / name)
    except OSError as e:
        raise InputError(f"{folder}: cannot be written: {e}") from e
