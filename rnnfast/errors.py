"""Every error that rnnfast raises on purpose: one family, so that a service needs one ``except``.

Each message says what received, what was expected and where (file, node, attribute, input).
"""


class Error(Exception):
    """Base of every error raised by rnnfast."""


class ModelError(Error, ValueError):
    """The file or graph is wrong: not ONNX, truncated, a cycle, a missing tensor, weights that do not fit."""


class UnsupportedError(Error, NotImplementedError):
    """The graph is well formed, but asks for something that rnnfast does not compute."""


class InputError(Error, ValueError):
    """A call's values are wrong: names, shapes, lengths, ranges."""


class InputTypeError(Error, TypeError):
    """A call's types are wrong: dtypes, or an object that is no array."""


class LimitError(Error, MemoryError):
    """The work asked for is larger than the limits allow (memory, loop iterations, nesting)."""


class ClosedError(InputError):
    """A stream that was closed, or a batcher that takes no more."""


class Overloaded(Error, RuntimeError):
    """More wait already than may: try again later, or elsewhere."""


class DeadlineError(Error, TimeoutError):
    """A frame waited longer than its caller would: it was not taken."""


class DivergedError(Error, ArithmeticError):
    """Training stopped: the loss or a gradient is NaN or infinite."""


class IsaError(Error, ValueError):
    """An instruction set that does not exist or that this CPU cannot run was asked for."""


def with_location(error, where):
    """`error` as one of rnnfast's, saying where; the innermost place stands."""
    if getattr(error, "located", False):
        return error
    if isinstance(error, Error):
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
