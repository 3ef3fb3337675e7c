"""The errors that rnnfast raises on purpose.

They form one family, so that a service needs a single ``except rnnfast.Error``. Each message says what was given, what
was expected, and where: the file, node, attribute or input.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "ClosedError",
    "DeadlineError",
    "DivergedError",
    "Error",
    "FieldError",
    "InputError",
    "InputTypeError",
    "IsaError",
    "LimitError",
    "MissingFileError",
    "ModelError",
    "NotOnnxError",
    "Overloaded",
    "TerminatedError",
    "UnsupportedError",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def printable(text: str) -> str:
    """Return the text with each character that does not print as an escape sequence, such as `\\x1b`.

    Names from files may hold control characters that steer a terminal, line ends that forge lines of a log, and
    characters that turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ------------------------------------------------------------------------------------------- onnxruntime's
# The errors of onnxruntime that programs catch by name: rnnfast's own are also these. All of them are in
# `rnnfast.onnxruntime.capi.onnxruntime_pybind11_state`.
class Fail(Exception):
    """onnxruntime's general error: a file that it cannot load, a run that it cannot finish."""


class InvalidArgument(Exception):
    """onnxruntime's error of inputs and outputs."""


class InvalidGraph(Exception):
    """onnxruntime's error of a graph that is not correct."""


class InvalidProtobuf(Exception):
    """onnxruntime's error of a file that is not ONNX."""


class NoSuchFile(Exception):
    """onnxruntime's error of a file that is not there."""


class NotImplemented(Exception):
    """onnxruntime's error of an operator or type that it does not compute."""


class RuntimeException(Exception):
    """onnxruntime's error of a run that fails, and of memory."""


# --------------------------------------------------------------------------------------------- the family
class Error(Exception):
    """The base class of every error that rnnfast raises. Its text is printable, whatever names it has from a file."""

    located = False
    """True if the message already begins with the location; `with_location` then returns the error as it is."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ModelError(Error, InvalidGraph, Fail, ValueError):
    """The file or graph is invalid: not ONNX, truncated, cyclic, or with missing or misshapen tensors or weights."""


class NotOnnxError(ModelError, InvalidProtobuf):
    """The bytes are not those of an ONNX file, or they are truncated."""


class MissingFileError(ModelError, NoSuchFile, FileNotFoundError):
    """There is no file of this name."""


class UnsupportedError(Error, NotImplemented, NotImplementedError):
    """The request is valid, but rnnfast does not compute this."""


class InputError(Error, InvalidArgument, ValueError):
    """An argument's value is wrong: a name, shape, length or range."""


class InputTypeError(Error, InvalidArgument, TypeError):
    """An argument's type is wrong: its dtype, or it is not an array at all."""


class FieldError(InputError, AttributeError):
    """An object has no field of this name, so that setting it would have no effect."""


class LimitError(Error, RuntimeException, MemoryError):
    """The work exceeds a limit: memory, loop iterations, nesting or seconds; or the system has no memory for it."""


class ClosedError(InputError):
    """The stream is closed, or the batcher accepts no more requests."""


class Overloaded(Error, RuntimeError):
    """The queue is full; retry later or elsewhere."""


class DeadlineError(Error, TimeoutError):
    """The frame was still waiting at its deadline; it was not processed."""


class TerminatedError(Error, Fail, RuntimeError):
    """Another thread ended the run by the terminate flag of its RunOptions."""


class DivergedError(Error, ArithmeticError):
    """Training stopped because the loss or a gradient is NaN or infinite."""


class IsaError(Error, ValueError):
    """The requested instruction set does not exist, or this CPU cannot run it."""


def no_memory(error: MemoryError) -> MemoryError:
    """Return a MemoryError of Python or NumPy as a LimitError, and one of rnnfast's as it is.

    Raises:
        MemoryError: The error itself, if it is a signal handler's.
    """
    raise_if_from_handler(error)
    return error if isinstance(error, Error) else LimitError(f"no memory: {error}".removesuffix(": "))


def raises_limit_error(function: Function) -> Function:
    """Decorate a function whose MemoryErrors are to be LimitErrors."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except MemoryError as error:
            raise no_memory(error) from error.__cause__

    return wrapped  # type: ignore[return-value]


def with_location(error: BaseException, where: str) -> Error:
    """Return the error as one of rnnfast's family whose message begins with its location.

    An error that already has a location is returned as it is, so that the innermost location stands. A foreign
    exception becomes LimitError (memory, recursion), InputTypeError (TypeError) or InputError (anything else).

    Raises:
        BaseException: The error itself, if it is a signal handler's.
    """
    raise_if_from_handler(error)
    if isinstance(error, Error):
        if error.located:
            return error
        kind, text = type(error), str(error)
    else:
        kind = (
            LimitError
            if isinstance(error, (MemoryError, RecursionError))
            else InputTypeError
            if isinstance(error, TypeError)
            else InputError
        )
        text = f"{type(error).__name__}: {error}"
    new = kind(f"{where}: {text}")
    new.located = True
    return new


def raise_if_from_handler(error: BaseException) -> None:
    """Raise an error on if a signal handler raised it (an alarm, say): it is not about what was being computed.

    Python calls a handler in the midst of any Python code, so its error arrives like one of that code. Its traceback
    tells: a handler is a function that was called with the frame that it interrupted, or one that is installed now.
    """
    handlers = None
    entry = error.__traceback__
    while entry is not None:
        frame = entry.tb_frame
        if frame.f_back is not None and any(
            value is frame.f_back or type(value) is tuple and any(member is frame.f_back for member in value)
            for value in frame.f_locals.values()
        ):
            raise error
        if handlers is None:
            handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
        if frame.f_code in handlers:
            raise error
        entry = entry.tb_next


def _code(handler: Any) -> Any:
    """The code of a Python function, method or callable object; None of anything else."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
