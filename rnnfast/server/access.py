"""Who may use a server: bearer tokens, TLS, a warning where neither guards an open address, and the access log."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import ssl
import sys
import time
from collections.abc import Iterable

from rnnfast.errors import InputError, ModelError, printable
from rnnfast.regular_files import open_regular
from rnnfast.server.faults import UnauthorizedError
from rnnfast.server.settings import Settings

# The most bytes of a file of tokens, and the fewest characters of a token.
FILE_BYTES, TOKEN_LENGTH = 2**20, 16
# The seconds between two looks whether the file has changed.
LOOK_SECONDS = 1.0
# The most characters of a path in a line of the log.
PATH_LENGTH = 512


class Access:
    """The bearer tokens that a server knows.

    Args:
        path: The file with a token in each line; empty lines and those that begin with # are none. None lets all in.

    Raises:
        ModelError: The file cannot be read.
        InputError: It has no token, or one that is too short or has other characters than ASCII without spaces.
    """

    def __init__(self, path: str | None) -> None:
        self._path, self._look, self._problem = path, 0.0, ""
        self._version: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        if path is not None:
            self._read()
            if not self._digests:
                raise InputError(f"{path} has no token: write one of {TOKEN_LENGTH} characters or more in each line")

    def check_token(self, headers: Iterable[tuple[bytes | str, bytes | str]]) -> None:
        """Return if the headers of HTTP or the metadata of gRPC bring a known token; names are in lower case.

        Raises:
            UnauthorizedError: They do not.
        """
        if self._path is None:
            return
        if (now := time.monotonic()) >= self._look:
            self._look = now + LOOK_SECONDS
            self._reread()
        for name, value in headers:
            if name in (b"authorization", "authorization"):
                text = value.encode(errors="replace") if isinstance(value, str) else value
                scheme, _, token = text.strip().partition(b" ")
                if scheme.lower() == b"bearer" and self._knows(token.strip()):
                    return
                raise UnauthorizedError("the bearer token of the request is not known here")
        raise UnauthorizedError("the request has no header 'authorization: Bearer TOKEN'")

    def _knows(self, token: bytes) -> bool:
        """Return whether a token is known, in a time that does not tell how much of it is right."""
        digest, known = hashlib.sha256(token).digest(), False
        for other in self._digests:
            known |= hmac.compare_digest(digest, other)
        return known

    def reload(self) -> None:
        """Read the file again with the next request."""
        self._look, self._version = 0.0, None

    def _reread(self) -> None:
        """Read the file if it has changed. Tokens stay as they are while it cannot be read."""
        problem = ""
        try:
            self._read()
        except (ModelError, InputError) as e:
            problem = str(e)
        if problem and problem != self._problem:
            warn(f"the tokens stay as they were: {problem}")
        self._problem = problem

    def _read(self) -> None:
        assert self._path is not None
        try:
            with open_regular(self._path) as file:
                status = os.fstat(file.fileno())
                version = status.st_mtime_ns, status.st_size, status.st_ino
                if version == self._version:
                    return
                content = file.read(FILE_BYTES + 1)
        except (OSError, ValueError) as e:
            raise ModelError(f"{self._path}: {getattr(e, 'strerror', None) or e}") from None
        if len(content) > FILE_BYTES:
            raise ModelError(f"{self._path} has more than {FILE_BYTES} bytes")
        tokens = []
        for number, line in enumerate(content.split(b"\n"), 1):
            token = line.strip()
            if not token or token.startswith(b"#"):
                continue
            if len(token) < TOKEN_LENGTH or not token.isascii() or not token.decode().isprintable() or b" " in token:
                raise InputError(
                    f"{self._path}, line {number}: a token has at least {TOKEN_LENGTH} characters of ASCII, no spaces"
                )
            tokens.append(token)
        self._digests, self._version = tuple(hashlib.sha256(token).digest() for token in tokens), version


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS of HTTP; None where the settings name no certificate.

    Raises:
        ModelError: The certificate or the key cannot be read, or they do not belong together.
    """
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def refuse_password() -> str:
        raise ModelError(f"{settings.tls_key} has a password: a server needs a key without one")

    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, refuse_password)
    except (OSError, ValueError) as e:  # an ssl.SSLError is an OSError
        text = getattr(e, "reason", None) or getattr(e, "strerror", None) or e
        raise ModelError(f"{settings.tls_certificate} with {settings.tls_key}: {text}") from None
    return context


def is_loopback(host: str) -> bool:
    """Return whether only programs of the same machine reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def exposure(settings: Settings) -> str | None:
    """What a server that other machines reach lacks, in a line; None where it lacks nothing or none reaches it."""
    lacks = [
        name
        for name, value in (
            ("tokens (--token-file)", settings.token_file),
            ("TLS (--tls-certificate)", settings.tls_key),
        )
        if value is None
    ]
    if not lacks or is_loopback(settings.host):
        return None
    return f"{settings.host} is open to other machines without {' and without '.join(lacks)}"


def warn(text: str) -> None:
    """Write a line about the server to stderr."""
    _print(f"rnnfast: {printable(text)}")


def log(method: str, path: str, status: int, size: int, seconds: float) -> None:
    """Write a request to stderr: method, path, status, bytes of the answer, milliseconds."""
    path = path if len(path) <= PATH_LENGTH else f"{path[:PATH_LENGTH]}..."
    _print(f"{printable(method)} {printable(path)} {status} {size} {seconds * 1e3:.2f}")


def _print(line: str) -> None:
    """Write a line to stderr; it is lost where nobody reads that any more, and the server goes on."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
