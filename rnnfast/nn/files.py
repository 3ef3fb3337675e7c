"""Files of networks: what `save` writes, `load` makes layers of again.

A safetensors file holds the state dict; the metadata describe the layers. An ONNX file holds the network for any engine
too, with the same description in its metadata.
"""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rnnfast.atomic_write import write_whole
from rnnfast.errors import (
    InputTypeError,
    MissingFileError,
    ModelError,
    UnsupportedError,
    raise_if_from_handler,
    raises_limit_error,
)
from rnnfast.nn.description import KEY, MALFORMED, describe, network
from rnnfast.regular_files import open_regular

if TYPE_CHECKING:
    import numpy as np

    from rnnfast.nn.module import Module


@raises_limit_error
def load(path: str | os.PathLike[str]) -> Module:
    """Make the layers of a file that `save` wrote, with their weights; training goes on with `fit`.

    `rnnfast.load` runs any ONNX file, also one that others wrote, but has no layers.

    Args:
        path: A file that ends in .onnx or .safetensors; or the folder of a Seq2Seq.

    Returns:
        The network, of the class that was saved.

    Raises:
        InputTypeError: `path` is no path.
        LimitError: There is no memory for the weights.
        ModelError: The file cannot be read, is none that `save` wrote, or was changed since.
        UnsupportedError: The file ends in .safetensors, and safetensors is not installed.
    """
    path = as_path(path)
    if path.suffix == ".safetensors":
        with readable(path, "safetensors file"):
            tensors, meta = read_tensors(path)
        if KEY not in meta:
            raise ModelError(
                f"{path}: does not say what its layers are: nn.Module.save did not write it. Its tensors are "
                f"{', '.join(list(tensors)[:8])}{' ...' if len(tensors) > 8 else ''}, for load_state_dict"
            )
        net, _ = network(meta[KEY], str(path))
        net.load_state_dict(tensors)
        return net
    from rnnfast.export.restored import restored

    return restored(path)


def save(net: Module, path: str | os.PathLike[str]) -> None:
    """Write a network as a safetensors file."""
    check_safetensors(str(path))
    from safetensors.numpy import save as to_bytes

    write_whole(path, to_bytes(net.state_dict(), {KEY: describe(net)}))


def as_path(path: Any) -> pathlib.Path:
    """Return a path as a pathlib.Path, or raise InputTypeError."""
    try:
        return pathlib.Path(path)
    except TypeError:
        raise InputTypeError(f"path: {path!r} is no path") from None


def check_safetensors(where: str) -> None:
    """Raise UnsupportedError if safetensors is not installed."""
    if find_spec("safetensors") is None:
        raise UnsupportedError(f"{where}: needs safetensors, which is not installed: pip install 'rnnfast[train]'")


@contextmanager
def readable(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turn what reading a file of this kind raises into a ModelError, or a MissingFileError."""
    try:
        yield
    except OSError as error:
        raise_if_from_handler(error)
        found = MissingFileError if isinstance(error, FileNotFoundError) else ModelError
        raise found(f"{path}: cannot be read: {error.strerror or error}") from error
    except MALFORMED as error:
        raise_if_from_handler(error)
        raise ModelError(f"{path}: is no {kind} ({type(error).__name__}: {error})") from error


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors by name and the metadata of a safetensors file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no safetensors file.
    """
    check_safetensors(str(path))
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()  # else safe_open waits for the writer of a FIFO
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno == errno.ENOMEM:  # of mmap
            raise MemoryError(error) from error
        raise
