"""The errors of the server, and the HTTP status and gRPC code of every error."""

from __future__ import annotations

from typing import NamedTuple

from rnnfast.errors import (
    ClosedError,
    DeadlineError,
    Error,
    InputError,
    InputTypeError,
    LimitError,
    ModelError,
    Overloaded,
    UnsupportedError,
)

# Why requests are refused while those of all connections hold too much.
TOO_MANY_BYTES = "the server holds too many bytes of requests at the moment"


class Status(NamedTuple):
    """How an error is reported.

    Attributes:
        http: The HTTP status.
        grpc: The name of the gRPC code.
        reason: One word for metrics.
    """

    http: int
    grpc: str
    reason: str


class NotFoundError(InputError):
    """The server has no model, version or page of this name."""


class UnknownSequenceError(ClosedError):
    """The server has no live sequence of this id, and the request does not begin one."""


class UnavailableError(Error):
    """The server is ending or a model is being loaded; another server may take the request."""


class TooLargeError(InputError):
    """The body or a header of a request is larger than the server accepts."""


class UnauthorizedError(Error):
    """The request has no bearer token that the server knows."""


class ForbiddenError(InputError):
    """The server was started without what the request asks for."""


class MissingExtensionError(UnsupportedError):
    """The request needs an extension of the protocol that this server does not have."""


class MethodError(InputError):
    """The path has no such method.

    Attributes:
        allowed: The methods that it has, as a header names them.
    """

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed


# The first row whose class an error has says how it is reported.
STATUSES: tuple[tuple[type[BaseException], Status], ...] = (
    (NotFoundError, Status(404, "NOT_FOUND", "not_found")),
    (TooLargeError, Status(413, "INVALID_ARGUMENT", "too_large")),
    (UnauthorizedError, Status(401, "UNAUTHENTICATED", "unauthorized")),
    (ForbiddenError, Status(403, "PERMISSION_DENIED", "forbidden")),
    (MethodError, Status(405, "UNIMPLEMENTED", "method")),
    (MissingExtensionError, Status(501, "UNIMPLEMENTED", "missing_extension")),
    (UnknownSequenceError, Status(400, "INVALID_ARGUMENT", "unknown_sequence")),
    (UnavailableError, Status(503, "UNAVAILABLE", "unavailable")),
    (Overloaded, Status(429, "RESOURCE_EXHAUSTED", "overloaded")),
    (DeadlineError, Status(504, "DEADLINE_EXCEEDED", "deadline")),
    (ClosedError, Status(503, "UNAVAILABLE", "closed")),
    (LimitError, Status(413, "RESOURCE_EXHAUSTED", "limit")),
    (ModelError, Status(400, "INVALID_ARGUMENT", "model")),
    (UnsupportedError, Status(400, "INVALID_ARGUMENT", "unsupported")),
    (InputError, Status(400, "INVALID_ARGUMENT", "input")),
    (InputTypeError, Status(400, "INVALID_ARGUMENT", "input")),
)
INTERNAL = Status(500, "INTERNAL", "internal")
# A request whose client went away, or whose task was ended; nobody is told.
CANCELLED = Status(499, "CANCELLED", "cancelled")
# Every word that `Status.reason` may be, for metrics.
REASONS = tuple(dict.fromkeys([*(status.reason for _, status in STATUSES), INTERNAL.reason, CANCELLED.reason]))


def status_of(error: BaseException) -> Status:
    """How an error is reported."""
    if not isinstance(error, Exception):
        return CANCELLED
    return next((status for kind, status in STATUSES if isinstance(error, kind)), INTERNAL)


def text_of(error: BaseException) -> str:
    """The error in one line for a client; a defect is named by its type, so that no status 500 is without a reason."""
    return str(error) if isinstance(error, Error) else f"internal error: {type(error).__name__}: {error}"
