"""The HTTP front of a Service: the Open Inference Protocol's paths, as an ASGI application."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from rnnfast.errors import InputError
from rnnfast.server import json_messages
from rnnfast.server.faults import ForbiddenError, NotFoundError, TooLargeError, status_of, text_of
from rnnfast.server.service import Service

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
HEADER_LENGTH = b"inference-header-content-length"
# The seconds after which a client may try again where the server is ending or has no room.
RETRY_AFTER = b"1"
# Extensions of Triton's protocol that this server does not have, by the first part of their paths.
REFUSED = {
    "systemsharedmemory": "shared memory is not supported: send tensors in the request",
    "cudasharedmemory": "shared memory is not supported: send tensors in the request",
    "trace": "tracing is not supported",
    "logging": "log settings are those that the server was started with",
}


class HttpApplication:
    """The ASGI application of a server.

    Args:
        service: The Service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # Lifespan events: there is nothing to do.
        try:
            status, parts, headers = await self._answer(scope, receive)
        except Disconnected:
            return
        except Exception as e:
            status, parts, headers = error_answer(e)
        size = sum(map(len, parts))
        headers.append((b"content-length", str(size).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, list[bytes], Headers]:
        path: str = scope["path"]
        parts = path.strip("/").split("/")
        method = scope["method"]
        if method == "POST" and parts[-1] == "infer" and len(parts) in (4, 6) and parts[:2] == ["v2", "models"]:
            name, version = _model(parts[:-1])
            return await self._infer(name, version, scope, receive)
        if method not in ("GET", "HEAD", "POST"):
            return 405, [_error_body(f"{method} is not a method of {path}")], [_content(JSON), (b"allow", b"GET, POST")]
        answer = await self._other(parts, "GET" if method == "HEAD" else method, receive, scope)
        if isinstance(answer, tuple):
            return answer
        return 200, [orjson.dumps(answer)], [_content(JSON)]

    async def _infer(self, name: str, version: str, scope: Scope, receive: Receive) -> tuple[int, list[bytes], Headers]:
        length, encoding, accepted = None, b"", b""
        for header, value in scope["headers"]:
            if header == HEADER_LENGTH:
                length = _length(value)
            elif header == b"content-encoding":
                encoding = value
            elif header == b"accept-encoding":
                accepted = value
        self._service.find(name, version)  # before the body is read
        body = await read_body(receive, self._service.settings.max_body)
        if encoding:
            body = decompressed(body, encoding, self._service.settings.max_body)
        request, binary = json_messages.parse(body, length, name, version)
        response = await self._service.infer(request)
        parts, json_length = json_messages.dump(response, request, binary)
        headers = [_content(JSON if json_length is None else b"application/octet-stream")]
        if json_length is not None:
            headers.append((HEADER_LENGTH, str(json_length).encode()))
        if b"gzip" in accepted or b"deflate" in accepted:
            coding = b"gzip" if b"gzip" in accepted else b"deflate"
            parts = [compressed(b"".join(parts), coding)]
            headers.append((b"content-encoding", coding))
        return 200, parts, headers

    async def _other(self, parts: list[str], method: str, receive: Receive, scope: Scope) -> Any:
        """The answer of every path but infer: what becomes JSON, or (status, parts of the body, headers)."""
        service = self._service
        match method, parts:
            case "GET", ["v2"]:
                return service.metadata()
            case "GET", ["v2", "health", "live"]:
                return {"live": True}
            case "GET", ["v2", "health", "ready"]:
                return _ready({"ready": service.ready})
            case "GET", ["v2", "models", "stats"]:
                return service.statistics()
            case "GET", ["v2", "models", *rest] if rest:
                return self._of_model(*_model(["v2", "models", *rest]), _what(rest))
            case "POST", ["v2", "repository", "index"]:
                return service.index(bool((await self._object(receive)).get("ready", False)))
            case "POST", ["v2", "repository", "models", name, ("load" | "unload") as action]:
                return await self._change(name, action, await self._object(receive))
            case _, ["v2", first, *_] if first in REFUSED:
                raise ForbiddenError(REFUSED[first])
            case _, ["v2", "models", _, "trace", *_]:
                raise ForbiddenError(REFUSED["trace"])
        raise NotFoundError(f"there is no {method} {scope['path']}")

    def _of_model(self, name: str, version: str, what: str) -> Any:
        """The answer about a model."""
        service = self._service
        match what:
            case "":
                return service.model_metadata(name, version)
            case "ready":
                service.find(name, version)
                return {"name": name, "ready": True}
            case "config":
                return service.find(name, version).config()
            case "stats":
                return service.statistics(name, version)
        raise NotFoundError(f"a model has no {what!r}")

    async def _change(self, name: str, action: str, message: dict[str, Any]) -> Any:
        """Load or unload a model."""
        parameters = message.get("parameters") or {}
        if action == "unload":
            await self._service.unload(name)
        elif parameters:
            raise ForbiddenError("a model is loaded from the server's own files, without a config or files of a client")
        else:
            await self._service.load(name)
        return {}

    async def _object(self, receive: Receive) -> dict[str, Any]:
        """The JSON object of a body, {} where there is no body."""
        body = await read_body(receive, self._service.settings.max_body)
        try:
            message = orjson.loads(body) if body.strip() else {}
        except orjson.JSONDecodeError as e:
            raise InputError(f"failed to parse the request JSON buffer: {e}") from None
        if type(message) is not dict:
            raise InputError(f"the request is a {type(message).__name__} of JSON, expected an object")
        return message


class Disconnected(Exception):
    """The client went away before its request was complete."""


async def read_body(receive: Receive, most: int) -> bytes:
    """The body of a request.

    Raises:
        TooLargeError: It has more than `most` bytes.
        Disconnected: The client went away.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise TooLargeError(f"the request has more than {most} bytes")
        if not message.get("more_body"):
            return part if not parts else b"".join([*parts, part])
        parts.append(part)


def decompressed(body: bytes, encoding: bytes, most: int) -> bytes:
    """A body without its Content-Encoding.

    Raises:
        InputError: The encoding is unknown, or the body is not in it.
        TooLargeError: It becomes more than `most` bytes.
    """
    if encoding == b"identity":
        return body
    if encoding not in (b"gzip", b"deflate"):
        raise InputError(f"Content-Encoding is {encoding!r}, expected gzip or deflate")
    stream = zlib.decompressobj(31 if encoding == b"gzip" else 15)
    try:
        result = stream.decompress(body, most + 1)
    except zlib.error as e:
        raise InputError(f"the body is not in {encoding.decode()}: {e}") from None
    if len(result) > most:
        raise TooLargeError(f"the request becomes more than {most} bytes")
    if not stream.eof:
        raise InputError(f"the body is not in {encoding.decode()}: it ends too early")
    return result


def compressed(body: bytes, coding: bytes) -> bytes:
    """A body in a Content-Encoding, quickly rather than small."""
    stream = zlib.compressobj(1, wbits=31 if coding == b"gzip" else 15)
    return stream.compress(body) + stream.flush()


def error_answer(error: BaseException) -> tuple[int, list[bytes], Headers]:
    """Status, body and headers of an error."""
    status = status_of(error)
    headers = [_content(JSON)]
    if status.http in (429, 503):
        headers.append((b"retry-after", RETRY_AFTER))
    if status.http == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status.http, [_error_body(text_of(error))], headers


def _error_body(text: str) -> bytes:
    return orjson.dumps({"error": text.encode(errors="backslashreplace").decode()})


def _content(kind: bytes) -> tuple[bytes, bytes]:
    return b"content-type", kind


def _ready(message: dict[str, bool]) -> Any:
    """200 if all values are true, else 503."""
    if all(message.values()):
        return message
    return 503, [orjson.dumps(message)], [_content(JSON), (b"retry-after", RETRY_AFTER)]


def _model(parts: list[str]) -> tuple[str, str]:
    """(name, version) in the parts of a path that begins with /v2/models."""
    if len(parts) > 4 and parts[3] == "versions":
        return parts[2], parts[4]
    return parts[2], ""


def _what(rest: list[str]) -> str:
    """What a path asks about a model, behind its name and version."""
    behind = rest[3:] if len(rest) > 2 and rest[1] == "versions" else rest[1:]
    return "/".join(behind)


def _length(value: bytes) -> int:
    """The number of a header.

    Raises:
        InputError: It is no number.
    """
    if not value.isdigit() or len(value) > 18:
        raise InputError(f"Inference-Header-Content-Length is {value.decode('latin-1')!r}, expected a number of bytes")
    return int(value)
