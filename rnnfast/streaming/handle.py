"""The base of streams of models and of layers: open until closed, and for one thread at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rnnfast.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class Handle:
    """A context manager that closes itself and that one thread may use at a time."""

    def __init__(self, label: str) -> None:
        """`label` begins every error message."""
        self._label, self._busy, self._closed = label, threading.Lock(), False

    def _enter(self):
        """Take the stream for this thread, which releases `_busy` afterwards, or raise."""
        if not self._busy.acquire(False):
            raise InputError(f"{self._label}: the stream is in use by another thread; each thread needs one of its own")
        try:
            self._check_open()
        except InputError:
            self._busy.release()
            raise

    def _check_open(self):
        if self._closed:
            raise InputError(f"{self._label}: the stream is closed")

    def close(self) -> None:
        """Give the memory back. Closing twice is no error; any other use afterwards raises InputError."""
        if self._closed:
            return
        self._enter()
        self._closed = True
        self._release()
        self._busy.release()

    def _release(self):
        """Drop the references to what takes memory."""

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
