"""Makes a model's inputs from texts on the command line."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import click
import numpy as np

from rnnfast.cli.input_files import read_npy, read_npz, read_wav
from rnnfast.errors import InputError
from rnnfast.model import Model
from rnnfast.native.weight_types import ACTIVATION_BITS, NAMES, activation_bits
from rnnfast.onnx.graph import Value
from rnnfast.onnx.ops.types import check_size

FILES = (".npy", ".npz", ".wav")


def input_option(command: Any) -> Any:
    """Add the option -i."""
    return click.option(
        "-i",
        "--input",
        "given",
        multiple=True,
        metavar="NAME=VALUE",
        help="An input: a .npy file, a .wav file (mono, as float32 in [-1, 1]) or a number. A .npz file without a "
        "name gives all the inputs in it. May be repeated.",
    )(command)


def weights_options(command: Any) -> Any:
    """Add the options --weights and --activations, whose values are arguments of `load`."""
    for option in (
        click.option(
            "--activations",
            type=click.Choice([str(bits) for bits in activation_bits()]),
            default=str(ACTIVATION_BITS),
            callback=lambda context, option, value: int(value),
            show_default=True,
            help="Bits to which --weights int8 rounds what it multiplies; 8 is faster and coarser.",
        ),
        click.option("--weights", type=click.Choice(NAMES), help="Round the layers' weights to this type."),
    ):
        command = option(command)
    return command


def read_inputs(given: Iterable[str], model: Model) -> dict[str, Any]:
    """The inputs that the texts of -i give: arrays and numbers by name."""
    ranks = {v.name: None if v.type.shape is None else len(v.type.shape) for v in model.inputs}
    feed: dict[str, Any] = {}
    for text in given:
        name, value = _split(text, ranks)
        entries = read_npz(value) if name is None else {name: _value(value, text)}
        for name, entry in entries.items():
            if name in feed:
                raise InputError(f"input {name!r} is given twice")
            if text.lower().endswith(".wav"):
                entry = entry.reshape((1,) * ((ranks.get(name) or 1) - 1) + (-1,))
            feed[name] = entry
    return feed


def _split(text: str, names: Collection[str]) -> tuple[str | None, str]:
    """Split NAME=VALUE, where both may have a "="; the name is None if the text is the path of an archive."""
    equals = [match.start() for match in re.finditer("=", text)]
    for i in reversed(equals):  # of several names that fit, the longest
        if text[:i] in names:
            return text[:i], text[i + 1 :]
    if text.lower().endswith(".npz") and not (equals and "/" not in text[: equals[0]] and not os.path.exists(text)):
        return None, text
    if not equals:
        raise InputError(f"{text!r}: expected NAME=VALUE, or a .npz file")
    return text[: equals[0]], text[equals[0] + 1 :]


def _value(text: str, given: str) -> Any:
    """The number or the array of a file that VALUE is; `given` is the whole NAME=VALUE."""
    suffix = pathlib.Path(text).suffix.lower()
    if suffix == ".npz":
        raise InputError(f"{given!r}: a .npz file gives inputs by its own names: -i {text}")
    if suffix == ".npy":
        return read_npy(text)
    if suffix == ".wav":
        return read_wav(text)
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    raise InputError(f"{given!r}: expected a number, true, false or a file of {', '.join(FILES)}")


seed_option = click.option("--seed", default=0, show_default=True, help="Seed of the random inputs.")


def dim_option(default: int) -> Callable[[Any], Any]:
    """A decorator that adds the option --dim."""
    return click.option(
        "--dim",
        "dims",
        multiple=True,
        metavar="NAME=N",
        help=f"Size of an open dimension, by its name or as INPUT.AXIS (default: {default} for all). May be repeated.",
    )


def fill(
    feed: Mapping[str, Any], model: Model, sizes: Sizes, draw: Callable[[tuple[int, ...], Any], Any]
) -> dict[str, Any]:
    """Add draw(shape, dtype) to a feed for each required input that it lacks.

    Only tensors of numbers whose rank the file declares are added.
    """
    feed = dict(feed)
    for value in model.inputs:
        dtype = value.type.dtype
        needed = value.name not in feed and value.name in model.required_inputs
        drawable = value.type.kind == "tensor" and value.type.shape is not None
        if needed and drawable and dtype is not None and dtype.kind != "O":
            shape = sizes.of(value)
            check_size(shape, np.float64)
            feed[value.name] = np.asarray(draw(shape, dtype)).astype(dtype)
    sizes.check_used()
    return feed


class Sizes:
    """The sizes of open dimensions, from texts NAME=N for a named dimension and INPUT.AXIS=N for any."""

    def __init__(self, given: Iterable[str], default: int) -> None:
        self.default = default
        self.sizes: dict[str, int] = {}
        self.used: set[str] = set()
        for text in given:
            match = re.fullmatch(r"(.+)=(\d+)", text)
            if match is None:
                raise InputError(f"--dim {text!r}: expected NAME=N or INPUT.AXIS=N")
            self.sizes[match[1]] = int(match[2])

    def of(self, value: Value) -> tuple[int, ...]:
        """The shape of an input whose rank is declared, with sizes for its open dimensions."""
        return tuple(
            n if isinstance(n, int) else self._size(n, f"{value.name}.{axis}")
            for axis, n in enumerate(value.type.shape or ())
        )

    def _size(self, name: str | None, place: str) -> int:
        """The size of a dimension by its place INPUT.AXIS, else by its name, else the default."""
        for key in (place, name):
            if key is not None and key in self.sizes:
                self.used.add(key)
                return self.sizes[key]
        return self.default

    def check_used(self) -> None:
        """Raise InputError if a size was given that no input uses."""
        unused = sorted(self.sizes.keys() - self.used)
        if unused:
            raise InputError(f"--dim {unused[0]}: no input to be filled has this open dimension")
