"""The base of streams of models and of layers: open until closed, and for one call at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from rnnfast.errors import InputTypeError
from rnnfast.native._locks import Lock

if TYPE_CHECKING:
    from typing_extensions import Self


class Handle:
    """A context manager that closes itself, and that one call may use at a time: `_lock.call` makes each call."""

    def __init__(self, label: str) -> None:
        """`label` begins every error message."""
        self._label, self._lock = label, Lock(label, "stream", False)

    def close(self) -> None:
        """Give the memory back. Closing twice is no error; any other use afterwards raises ClosedError.

        A finalizer may close a stream in the midst of a step on its own thread: the step goes on.

        Raises:
            InputError: Another thread is using the stream.
        """
        self._lock.close(self._release)

    def _release(self):
        """Drop the references to what takes memory."""

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._lock.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InputTypeError(
            f"{self._label}: a stream cannot be pickled or copied: pickle its `state` and the model or layer, and give "
            "the state to a new stream, stream(state)"
        )
