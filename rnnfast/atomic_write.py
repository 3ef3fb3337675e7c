"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import tempfile

from rnnfast.errors import InputError, InputTypeError


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes to a file atomically: into a new file beside it, which is synced and then renamed.

    The old file stays in place until all is written.

    Raises:
        InputError: The file cannot be written.
        InputTypeError: `path` is no path.
    """
    try:
        folder, name = os.path.split(os.fspath(path))
    except TypeError:
        raise InputTypeError(f"path: {path!r} is no path") from None
    try:
        with tempfile.TemporaryDirectory(prefix=".rnnfast-", dir=folder or ".") as staging:
            staged = os.path.join(staging, name)
            with open(staged, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, path)
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be written: {error.strerror or error}") from error
