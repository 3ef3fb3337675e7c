"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from rnnfast.errors import Error, InputError, InputTypeError, raise_if_from_handler


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes to a file completely or not at all, as `write_files` does.

    Raises:
        InputError: The file cannot be written.
        InputTypeError: `path` is no path.
    """
    write_files({path: lambda file: file.write(data)})


def write_files(writers: Mapping[Any, Callable[[BinaryIO], object]]) -> None:
    """Write files, each by a function that gets it opened for writing; until all are complete none is changed.

    Each is written and synced under another name in the folder of the old file, which it then replaces by a rename. A
    symbolic link stays one: the file that it leads to is replaced. The new file has the mode and the owner of the old
    one. Further hard links of an old file keep the old contents.

    Args:
        writers: Path of each file -> the function that writes its contents.

    Raises:
        InputError: A file cannot be written, is a device, a FIFO, a socket or a folder, or its owner cannot be kept.
        InputTypeError: A path is no path.
    """
    with contextlib.ExitStack() as cleanup:
        staged: list[tuple[str, str, str]] = []
        for path, write in writers.items():
            try:
                name = os.fsdecode(path)
            except TypeError:
                raise InputTypeError(f"path: {path!r} is no path") from None
            with _errors_of(name):
                target, old = _target(name)
                staging = cleanup.enter_context(
                    tempfile.TemporaryDirectory(prefix=".rnnfast-", dir=os.path.dirname(target))
                )
                new = os.path.join(staging, os.path.basename(target))
                with open(new, "wb") as file:
                    write(file)
                    file.flush()
                    if old is not None:
                        _adopt(file.fileno(), old)
                    os.fsync(file.fileno())
                staged.append((name, new, target))
        for name, new, target in staged:
            with _errors_of(name):
                os.replace(new, target)


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Raise what the system says about a path as an error that names it."""
    try:
        yield
    except Error:  # what is to be written could not be made
        raise
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        raise_if_from_handler(error)
        text = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written: {text}") from error


def _target(path: str) -> tuple[str, os.stat_result | None]:
    """The file to replace, with all links followed, and its status; None if it does not exist yet.

    Raises OSError if it is no regular file, or is not writable.
    """
    try:
        old = os.stat(path)
    except FileNotFoundError:
        if not path:
            raise
        old = None
    target = os.path.realpath(path)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    if path.endswith(os.sep) or old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # /dev/stdout may lead to a regular file. It means what the process has open, which a rename would not write to.
    if folder == "/dev" or folder.startswith("/proc/") or old is not None and not stat.S_ISREG(old.st_mode):
        raise OSError("it is not a regular file but a device, a pipe or the like, which a file would replace")
    if old is not None and not os.access(target, os.W_OK):
        raise PermissionError("it is read-only")
    return target, old


def _adopt(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the owner and the mode of the old one."""
    if not hasattr(os, "fchown"):
        return
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError:
            raise PermissionError(f"its owner {old.st_uid}:{old.st_gid} cannot be kept") from None
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
