"""The folder of a model file: the file itself, and its external data, which are read from inside this folder only."""

from __future__ import annotations

import errno
import os
from typing import BinaryIO

from rnnfast.errors import ModelError, UnsupportedError
from rnnfast.regular_files import open_regular

# Without descriptors of folders and O_NOFOLLOW a link could be put in place of a file between its check and its use.
SAFE = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW") and hasattr(os, "O_DIRECTORY")
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class ModelFolder:
    """The folder that a model file is in, held open by its descriptor while the model is read.

    External data are opened component by component, none of which may be a symbolic link, so that whatever is put in
    their place meanwhile, no file outside is read. A file that begins with a link is found another way: its real path
    must lead into the folder of the real model file, as in the cache of a hub, where the model and its data are both
    links into one folder. A hard link to a foreign file cannot be told from the file, so data must have a single link,
    or as many as the model, since some package managers install by hard links.

    Args:
        path: The model file, which is opened at once, as `model`.

    Raises:
        OSError: The file cannot be opened, or is not a regular one.
        ValueError: The path has a null character or cannot be encoded.
    """

    model: BinaryIO

    def __init__(self, path: str) -> None:
        self.path = path
        folder, name = os.path.split(path)
        self._folders: list[int] = []
        if not SAFE:
            self.model = open_regular(path)
            return
        try:
            self._folders.append(os.open(folder or ".", FOLDER))
            self.model = open_regular(name or ".", dir_fd=self._folders[0])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the model file and the folders."""
        if hasattr(self, "model"):
            self.model.close()
        while self._folders:
            os.close(self._folders.pop())

    def __enter__(self) -> ModelFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open_data(self, location: str) -> BinaryIO:
        """Open a file of external data.

        Args:
            location: Its path in the folder, as the model has it.

        Raises:
            ModelError: It leads out of the folder, or its number of hard links is neither 1 nor that of the model.
            OSError: It cannot be opened, or is not a regular file.
            UnsupportedError: This platform cannot open it safely.
            ValueError: The path has a null character or cannot be encoded.
        """
        if not SAFE:
            raise UnsupportedError(
                "this platform has no openat and O_NOFOLLOW, without which data cannot be read safely"
            )
        if not location or os.path.isabs(location) or ".." in location.replace("\\", "/").split("/"):
            raise ModelError("not a path inside the model's folder")
        try:
            file, links = _open_beneath(self._folders[0], location)
        except OSError as error:
            # A link as the last component is ELOOP, as a folder ENOTDIR; FreeBSD and NetBSD have codes of their own.
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, getattr(errno, "EFTYPE", None)):
                raise
            file, links = self._open_linked(location)
        usual = os.fstat(self.model.fileno()).st_nlink
        if links > 1 and links != usual:
            file.close()
            raise ModelError(f"it has {links} hard links, expected 1, or {usual} as the model has")
        return file

    def _open_linked(self, location: str) -> tuple[BinaryIO, int]:
        """Open data that a symbolic link leads to, if it leads into the folder of the real model file or below."""
        real_model = os.path.realpath(self.path)
        root, name = os.path.split(real_model)
        real_data = os.path.realpath(os.path.join(os.path.dirname(self.path), location))
        inside = os.path.relpath(real_data, root)
        if inside.split(os.sep)[0] == os.pardir:
            raise ModelError("outside the model's folder")
        if len(self._folders) == 1:
            folder = os.open(root, FOLDER)
            self._folders.append(folder)
            # The folder counts only if it has the file that was opened as the model, whatever links say by now.
            model, entry = os.fstat(self.model.fileno()), os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not os.path.samestat(model, entry):
                os.close(self._folders.pop())
                raise ModelError("the model's file was exchanged while it was read")
        return _open_beneath(self._folders[1], inside)


def _open_beneath(folder: int, path: str) -> tuple[BinaryIO, int]:
    """Open a file beneath a folder, where no component of the path may be a symbolic link; return it and its links."""
    *names, last = [name for name in path.split("/") if name not in ("", ".")] or ["."]
    opened: list[int] = []
    try:
        for name in names:
            folder = os.open(name, FOLDER | NO_LINK, dir_fd=folder)
            opened.append(folder)
        file = open_regular(last, NO_LINK, dir_fd=folder)
        # A foreign file that is linked here for a moment only has a single link again as soon as the name is gone. The
        # count holds if the name leads to the file between two looks at it that show no change; a change of the links
        # changes the ctime.
        try:
            before = os.fstat(file.fileno())
            entry = os.stat(last, dir_fd=folder, follow_symlinks=False)
            after = os.fstat(file.fileno())
            if not os.path.samestat(entry, before) or {(s.st_nlink, s.st_ctime_ns) for s in (before, entry, after)} != {
                (before.st_nlink, before.st_ctime_ns)
            }:
                raise ModelError("the file was exchanged while it was opened")
        except BaseException:
            file.close()
            raise
        return file, before.st_nlink
    finally:
        for descriptor in opened:
            os.close(descriptor)
