"""The HTTP front of a Service: the Open Inference Protocol's paths."""

from __future__ import annotations

import importlib.resources
import zlib
from typing import Any

import orjson

from rnnfast.errors import Error, InputError
from rnnfast.server import json_messages, metrics, page
from rnnfast.server.faults import (
    ForbiddenError,
    MethodError,
    MissingExtensionError,
    NotFoundError,
    TooLargeError,
    status_of,
    text_of,
)
from rnnfast.server.http_protocol import Answer, Disconnected, Request
from rnnfast.server.requests import NO_LOG_SETTINGS, NO_SHARED_MEMORY, NO_TRACING, OWN_FILES
from rnnfast.server.service import Service
from rnnfast.server.statistics import count_reason

JSON = b"content-type: application/json\r\n"
BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
HEADER_LENGTH = b"inference-header-content-length"
# The seconds after which a client may try again where the server is ending or has no room.
RETRY_AFTER = b"retry-after: 1\r\n"
# Paths that need no token: probes have none, and the page asks its reader for one.
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/"})
# The OpenAPI document of all paths here.
OPENAPI = (importlib.resources.files("rnnfast.server") / "openapi.json").read_bytes()
# Extensions of Triton's protocol that this server does not have, by the first part of their paths.
MISSING = {
    "systemsharedmemory": NO_SHARED_MEMORY,
    "cudasharedmemory": NO_SHARED_MEMORY,
    "trace": NO_TRACING,
    "logging": NO_LOG_SETTINGS,
}


class HttpApplication:
    """Answers the requests of a server.

    Args:
        service: The Service.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._max_body = service, service.settings.max_body

    async def answer(self, request: Request) -> Answer:
        """The answer to a request.

        Raises:
            Disconnected: The client went away.
        """
        path = request.path
        try:
            if path not in OPEN_PATHS:
                self._service.access.check_token(request.headers)
            parts = path.strip("/").split("/")
            if parts[-1] == "infer" and parts[:2] == ["v2", "models"] and _names_model(parts[2:-1]):
                if request.method != b"POST":
                    check_method(request, "POST")
                return await self._infer(*_model(parts[:-1]), request)
            answer = await self._other(parts, request)
            return answer if isinstance(answer, tuple) else (200, [orjson.dumps(answer)], JSON)
        except Disconnected:
            raise
        except Exception as e:
            count_reason(self._service.errors, e)
            return error_answer(e)

    async def _infer(self, name: str, version: str, request: Request) -> Answer:
        length, encoding, accepted = None, b"", b""
        for header, value in request.headers:
            if header == HEADER_LENGTH:
                length = _length(value)
            elif header == b"content-encoding":
                encoding = value
            elif header == b"accept-encoding":
                accepted = value
        statistics = self._service.find(name, version).statistics  # before the body is read
        try:
            body = await request.read()
            if encoding:
                body = decompressed(body, encoding, self._max_body)
                request.hold(len(body))
            message, binary = json_messages.parse(body, length, name, version)
        except Error as e:
            statistics.failure(statistics.begin(), e)
            raise
        response = await self._service.infer(message)
        parts, json_length = json_messages.dump(response, message, binary)
        headers = JSON if json_length is None else BINARY % json_length
        if accepted and (coding := accepted_coding(accepted)):
            parts = [compressed(b"".join(parts), coding)]
            headers += b"content-encoding: %b\r\n" % coding
        return 200, parts, headers

    async def _other(self, parts: list[str], request: Request) -> Any:
        """The answer of every path but infer: an Answer, or what becomes JSON."""
        service = self._service
        match parts:
            case ["v2"]:
                check_method(request, "GET")
                return service.metadata()
            case [""]:
                check_method(request, "GET")
                return 200, [page.HTML], page.HEADERS
            case ["openapi.json"]:
                check_method(request, "GET")
                return 200, [OPENAPI], JSON
            case ["metrics"]:
                check_method(request, "GET")
                accepted = next((value for header, value in request.headers if header == b"accept"), b"")
                text, kind = metrics.exposition(await self._numbers(), accepted.decode("latin-1"))
                return 200, [text], b"content-type: %b\r\n" % kind.encode()
            case ["v2", "statistics"]:
                check_method(request, "GET")
                return 200, [orjson.dumps(await self._numbers())], JSON + b"cache-control: no-store\r\n"
            case ["v2", "health", "live"]:
                check_method(request, "GET")
                return {"live": True}
            case ["v2", "health", "ready"]:
                check_method(request, "GET")
                return _ready(service.ready)
            case ["v2", "models", "stats"]:
                check_method(request, "GET")
                return await service.statistics_of_all()
            case ["v2", "repository", "index"]:
                check_method(request, "POST")
                ready = (await self._object(request)).get("ready", False)
                if type(ready) is not bool:
                    raise InputError(f"ready is a {type(ready).__name__} of JSON, expected true or false")
                return service.index(ready)
            case ["v2", "repository", "models", name, ("load" | "unload") as action]:
                check_method(request, "POST")
                return await self._change(name, action, await self._object(request))
            case ["v2", first, *_] if first in MISSING:
                raise MissingExtensionError(MISSING[first])
            case ["v2", "models", _, "trace", *_]:
                raise MissingExtensionError(NO_TRACING)
            case ["v2", "models", name, *rest]:
                version = rest[1] if len(rest) > 1 and rest[0] == "versions" else ""
                what = "/".join(rest[2:] if version else rest)
                if what in ("", "ready", "config", "stats"):
                    check_method(request, "GET")
                    return await self._of_model(name, version, what)
        raise NotFoundError(f"Not Found: {request.path}")

    async def _of_model(self, name: str, version: str, what: str) -> Any:
        """The answer about a model."""
        service = self._service
        if what == "":
            return service.model_metadata(name, version)
        if what == "config":
            return service.find(name, version).config()
        if what == "stats":
            return await service.statistics_of_all(name, version)
        try:
            service.find(name, version)
        except NotFoundError:
            raise InputError("Model version not ready") from None
        return {"name": name, "ready": True}

    async def _change(self, name: str, action: str, message: dict[str, Any]) -> Any:
        """Load or unload a model."""
        parameters = message.get("parameters") or {}
        if action == "unload":
            await self._service.unload(name)
        elif parameters:
            raise ForbiddenError(OWN_FILES)
        else:
            await self._service.load(name)
        return {}

    async def _numbers(self) -> dict[str, Any]:
        """Return what `/metrics`, `/v2/statistics` and the page show."""
        peers = self._service.peers
        here = metrics.numbers(self._service)
        return here if peers is None else metrics.total([here, *await peers.ask_all("numbers")])

    async def _object(self, request: Request) -> dict[str, Any]:
        """The JSON object of a body, {} where there is no body."""
        body = await request.read()
        message = json_messages.loads(body) if body.strip() else {}
        if type(message) is not dict:
            raise InputError(f"the request is a {type(message).__name__} of JSON, expected an object")
        return message


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
    if stream.unused_data:
        raise InputError(f"{len(stream.unused_data)} bytes are left behind the body in {encoding.decode()}")
    return result


def accepted_coding(accepted: bytes) -> bytes:
    """The coding of an answer for an Accept-Encoding: gzip or deflate, b"" for none."""
    codings = {}
    for part in accepted.lower().split(b","):
        coding, _, weight = part.replace(b" ", b"").partition(b";q=")
        codings[coding] = weight.strip(b"0.") != b"" or weight == b""  # A weight of 0 refuses a coding.
    return next((coding for coding in (b"gzip", b"deflate") if codings.get(coding)), b"")


def compressed(body: bytes, coding: bytes) -> bytes:
    """A body in a Content-Encoding, quickly rather than small."""
    stream = zlib.compressobj(1, wbits=31 if coding == b"gzip" else 15)
    return stream.compress(body) + stream.flush()


def error_answer(error: BaseException) -> Answer:
    """Status, body and headers of an error."""
    status = status_of(error)
    headers = JSON
    if status.http in (429, 503):
        headers += RETRY_AFTER
    if status.http == 401:
        headers += b"www-authenticate: Bearer\r\n"
    if isinstance(error, MethodError):
        headers += b"allow: %b\r\n" % error.allowed.encode()
    return status.http, [_error_body(text_of(error))], headers


def _error_body(text: str) -> bytes:
    return orjson.dumps({"error": text.encode(errors="backslashreplace").decode()})


def check_method(request: Request, method: str) -> None:
    """Raise MethodError if a request has another method than its path; HEAD is GET without the body."""
    came = request.method.decode()
    if came != method and (came != "HEAD" or method != "GET"):
        allowed = "GET, HEAD" if method == "GET" else method
        raise MethodError(f"Method Not Allowed: {came} {request.path}, expected {allowed}", allowed)


def _ready(ready: bool) -> Any:
    """200 if the server is ready, else 503."""
    if ready:
        return {"ready": True}
    return 503, [orjson.dumps({"ready": False})], JSON + RETRY_AFTER


def _names_model(parts: list[str]) -> bool:
    """Return whether parts of a path are a model's name, alone or with a version."""
    return len(parts) == 1 or len(parts) == 3 and parts[1] == "versions" and parts[2] != ""


def _model(parts: list[str]) -> tuple[str, str]:
    """(name, version) in the parts of a path that begins with v2, models."""
    return parts[2], parts[4] if len(parts) > 4 else ""


def _length(value: bytes) -> int:
    """The number of a header.

    Raises:
        InputError: It is no number.
    """
    if not value.isdigit() or len(value) > 18:
        raise InputError(f"Inference-Header-Content-Length is {value.decode('latin-1')!r}, expected a number of bytes")
    return int(value)
