"""Reads the files of inputs: .npy, .npz and .wav. What they declare is compared with limits before memory is taken."""

from __future__ import annotations

import contextlib
import os
import re
import wave
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from rnnfast.errors import Error, InputError
from rnnfast.regular_files import open_regular

# Bytes of a .npy or .wav file. What an archive holds takes less room on the disk than in memory, so it may hold less.
MAX_FILE_BYTES = 2**30
MAX_ARCHIVE_BYTES = 2**28
# np.load's own limit, which it compares only after it has read as much as the file says.
MAX_HEADER_BYTES = 10_000


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a file of inputs; whatever its reader raises becomes an InputError that names it."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise InputError(f"{path}: {size} bytes, an input file has {MAX_FILE_BYTES} at most")
            yield file
    except Error:
        raise
    except Exception as e:  # parsers of zip archives and of NumPy's headers raise a dozen classes
        raise InputError(f"{path}: {getattr(e, 'strerror', None) or e or 'truncated'}") from e


def read_npy(path: str) -> np.ndarray:
    """The array of a .npy file. Pickled objects are refused."""
    with _opened(path) as file:
        return _array(file, path)


def read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name."""
    with _opened(path) as file, zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_ARCHIVE_BYTES:
            raise InputError(f"{path}: it holds {size} bytes, an archive of inputs {MAX_ARCHIVE_BYTES} at most")
        arrays: dict[str, np.ndarray] = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in arrays:
                raise InputError(f"{path}: input {name!r} is in it twice")
            with archive.open(entry) as member:
                arrays[name] = _array(member, f"{path}: {entry.filename!r}")
        return arrays


def _array(file: Any, where: str) -> np.ndarray:
    """The array of a .npy file, or of a member of an archive."""
    start = file.read(12)
    if len(start) < 12 or not start.startswith(np.lib.format.MAGIC_PREFIX):
        raise InputError(f"{where}: it is no array in NumPy's format")
    header = int.from_bytes(start[8:10] if start[6] == 1 else start[8:12], "little")
    if header > MAX_HEADER_BYTES:
        raise InputError(f"{where}: its header has {header} bytes, more than {MAX_HEADER_BYTES}")
    # NumPy before 2.1 takes a negative length for "all that is there".
    shape = re.search(rb"shape'?\s*:\s*\(([^)]*)\)", start[10:] + file.read(header))
    if shape and b"-" in shape[1]:
        raise InputError(f"{where}: its shape is ({shape[1].decode(errors='replace')}), expected lengths of 0 or more")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_wav(path: Any) -> np.ndarray:
    """The samples of a mono PCM file as float32 in [-1, 1]."""
    with _opened(path) as opened, wave.open(opened) as file:
        channels, width, declared = file.getnchannels(), file.getsampwidth(), file.getnframes()
        if channels != 1:
            raise InputError(f"{path}: {channels} channels, expected 1")
        if width not in (1, 2, 3, 4):
            raise InputError(f"{path}: samples of {8 * width} bits, expected 8, 16, 24 or 32")
        size = os.fstat(opened.fileno()).st_size
        raw = np.frombuffer(file.readframes(min(declared, size // width)), np.uint8)
    if len(raw) != declared * width:
        raise InputError(f"{path}: truncated: it declares {declared} samples and has {len(raw) // width}")
    samples: np.ndarray = raw.reshape(-1, width)
    if width == 1:  # samples of one byte are unsigned
        samples = samples ^ 0x80
    whole = np.zeros((len(samples), 4), np.uint8)  # little-endian int32 with the sample in the highest bytes
    whole[:, 4 - width :] = samples
    return (whole.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
