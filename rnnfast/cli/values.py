"""What a user types on the command line -> a model's inputs."""

import pathlib
import re
import wave
import zipfile

import click
import numpy as np

from rnnfast.errors import InputError
from rnnfast.onnx.ops.types import check_size

FILES = (".npy", ".npz", ".wav")


def input_option(command):
    return click.option(
        "-i",
        "--input",
        "given",
        multiple=True,
        metavar="NAME=VALUE",
        help="An input: a .npy file, a .wav file (mono, as float32 in [-1, 1]) or a number. A .npz file without a "
        "name gives all the inputs that it holds. May be repeated.",
    )(command)


def read_inputs(given, model):
    """input name -> array or number, of NAME=VALUE texts."""
    ranks = {v.name: len(v.type.shape) for v in model.inputs if v.type.shape is not None}
    feed = {}
    for text in given:
        name, _, value = text.rpartition("=")
        entries = {name: _value(value, text)} if name else _archive(value)
        for name, value in entries.items():
            if name in feed:
                raise InputError(f"input {name!r} is given twice")
            if text.lower().endswith(".wav"):
                value = value.reshape((1,) * (ranks.get(name, 1) - 1) + (-1,))
            feed[name] = value
    return feed


def _value(text, given):
    suffix = pathlib.Path(text).suffix.lower()
    if suffix == ".npz":
        raise InputError(f"{given!r}: a .npz file gives inputs by its own names: -i {text}")
    if suffix == ".npy":
        return _loaded(text)
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


def _archive(path):
    if not path.lower().endswith(".npz"):
        raise InputError(f"{path!r}: expected NAME=VALUE, or a .npz file")
    return _loaded(path)


def _loaded(path):
    """The array of a .npy file, or the name -> array of a .npz file. Pickled objects are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if path.lower().endswith(".npz") != isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds something else than its name says")
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as e:
        raise InputError(f"{path}: {e}") from e


def read_wav(path):
    """The samples of a mono PCM file: float32 in [-1, 1]."""
    try:
        with wave.open(path) as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (OSError, EOFError, wave.Error) as e:
        raise InputError(f"{path}: {e or 'truncated'}") from e
    if channels != 1:
        raise InputError(f"{path}: {channels} channels, expected 1")
    raw = raw[: len(raw) // width * width].reshape(-1, width)
    if width == 1:  # the one width that is unsigned
        raw = raw ^ 0x80
    whole = np.zeros((len(raw), 4), np.uint8)  # little-endian int32, the sample in its highest bytes
    whole[:, 4 - width :] = raw
    return (whole.view("<i4")[:, 0] / 2.0**31).astype(np.float32)


def dim_option(default):
    return click.option(
        "--dim",
        "dims",
        multiple=True,
        metavar="NAME=N",
        help=f"Size of an open dimension, by its name or as INPUT.AXIS (default: {default} for all). May be repeated.",
    )


def fill(feed, model, sizes, draw):
    """`feed` with draw(shape, dtype) for the tensors of known rank that it lacks and that have no default."""
    feed = dict(feed)
    for value in model.inputs:
        dtype, shape = value.type.dtype, value.type.shape
        needed = value.name not in feed and value.name in model.required_inputs
        if needed and value.type.kind == "tensor" and dtype is not None and dtype != object and shape is not None:
            shape = sizes.of(value)
            check_size(shape, np.float64)
            feed[value.name] = np.asarray(draw(shape, dtype)).astype(dtype)
    sizes.check_used()
    return feed


class Sizes:
    """The sizes of open dimensions: NAME=N for a named one, INPUT.AXIS=N for any."""

    def __init__(self, given, default):
        self.default, self.sizes, self.used = default, {}, set()
        for text in given:
            match = re.fullmatch(r"(.+)=(\d+)", text)
            if match is None:
                raise InputError(f"--dim {text!r}: expected NAME=N or INPUT.AXIS=N")
            self.sizes[match[1]] = int(match[2])

    def of(self, value):
        """The shape of an input, its open dimensions filled."""
        return tuple(
            n if isinstance(n, int) else self._size(n, f"{value.name}.{axis}")
            for axis, n in enumerate(value.type.shape)
        )

    def _size(self, name, place):
        for key in (place, name):
            if key in self.sizes:
                self.used.add(key)
                return self.sizes[key]
        return self.default

    def check_used(self):
        unused = sorted(self.sizes.keys() - self.used)
        if unused:
            raise InputError(f"--dim {unused[0]}: no input to be filled has this open dimension")
