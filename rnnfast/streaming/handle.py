"""What streams of models and of layers have in common: open until closed, and one thread at a time."""

import threading

from rnnfast.errors import InputError


class Handle:
    """A context manager that closes itself. `label` begins its errors."""

    def __init__(self, label):
        self._label, self._busy, self._closed = label, threading.Lock(), False

    def _enter(self):
        """Take the stream for this thread; whoever did releases `_busy`."""
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

    def close(self):
        """Give the memory back. Closing twice is no error, any other use afterwards is."""
        if self._closed:
            return
        self._enter()
        self._closed = True
        self._release()
        self._busy.release()

    def _release(self):
        """Drop what takes memory."""

    @property
    def closed(self):
        return self._closed

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
