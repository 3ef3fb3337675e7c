"""Files that are there as a whole or not at all."""

import os
import tempfile

from rnnfast.errors import InputError, InputTypeError


def write_whole(path, data):
    """Write bytes to `path`: into a new file beside it, which is then renamed, so that what was there before stays
    until all is written. Raises InputError where that cannot be done."""
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
