"""Opens regular files for reading. A pipe, a device or a folder is refused, and opening never waits for a writer."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

# O_NONBLOCK lets the opening of a FIFO return at once; O_NOCTTY keeps a terminal from becoming the process's own.
READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


def open_regular(path: str | os.PathLike[str], flags: int = 0, dir_fd: int | None = None) -> BinaryIO:
    """Open a regular file for reading. Its type is checked on what was opened, so that no exchange can mislead.

    Args:
        path: The file.
        flags: Further flags of `os.open`.
        dir_fd: The descriptor of the folder that a relative path begins in; None is the working directory.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
        ValueError: The path has a null character or cannot be encoded.
    """
    descriptor = os.open(path, READ | flags, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{os.fspath(path)!r} is not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
