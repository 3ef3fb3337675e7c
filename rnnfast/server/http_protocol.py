"""HTTP/1.1 connections with limits against bad clients, on uvicorn's protocol class.

uvicorn's own has no limit on the size of headers, on the time that half a request may take, on bodies and on pipelined
requests, and lets a client that does not read its answer keep it for ever.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from http import HTTPStatus
from typing import Any

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rnnfast.server.access import log
from rnnfast.server.settings import Settings

# The most bytes of the first line and all headers of a request.
HEADER_BYTES = 64 * 1024
# The most requests that wait for the one before on their connection.
MAX_PIPELINED = 32
# Bodies of all connections together may have this many times the bytes of the largest one.
BODIES = 16
# Connections above the limit that are told so; more are cut without a word.
MAX_REFUSED = 64
# Seconds that a refused client has to read why, while what it still sends is thrown away.
LINGER_SECONDS = 1.0


def http_config(
    application: Any, ws: Any, settings: Settings, tls: ssl.SSLContext | None, end_seconds: int
) -> uvicorn.Config:
    """The configuration of uvicorn.

    Args:
        application: The ASGI application.
        ws: The class of connections that become WebSockets.
        settings: The Settings.
        tls: The TLS; None for none.
        end_seconds: The seconds that connections have when the server ends.
    """
    config = uvicorn.Config(
        application,
        http=functools.partial(LimitedProtocol, Shared(settings)),  # type: ignore[arg-type]
        ws=ws,
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=end_seconds,
    )
    config.load()
    config.ssl = tls
    return config


class Shared:
    """What the connections of a server share.

    Args:
        settings: The Settings.

    Attributes:
        held: Bytes of the bodies of requests that are not answered yet.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.held, self.most_held = 0, BODIES * settings.max_body


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        shared: What it shares with the others.
        arguments: Those of uvicorn.
    """

    def __init__(self, shared: Shared, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._shared, self._settings = shared, shared.settings
        self._refused, self._is_over = False, False
        self._why: tuple[int, str] | None = None  # status and text of a refusal that a callback of the parser found
        self._timer: asyncio.TimerHandle | None = None  # until the request is complete, or the refused client is gone
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_message, self._in_headers = False, False
        self._older = list[Any]()  # what runs or waits before `cycle`, which uvicorn forgets
        self._header_bytes, self._fed, self._body_bytes, self._held = 0, 0, 0, 0

    # ------------------------------------------------------------------------------------------ connection
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request; refuse it where there are too many connections."""
        super().connection_made(transport)  # type: ignore[arg-type]
        most = self._settings.max_connections
        if len(self.connections) <= most:
            self._timer = self.loop.call_later(self._settings.request_timeout, self.transport.close)
            return
        self._is_over = True
        if len(self.connections) > most + MAX_REFUSED:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers, and tell the application that runs."""
        self._unset_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._release()
        for cycle in self._older:
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self._refused:
            return
        if self._is_over:
            self._refuse(503, f"{self._settings.max_connections} connections are open already")
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            if self._should_upgrade():
                self._upgrade(data[e.args[0] :])
            return
        except httptools.HttpParserError as e:
            status, text = self._why or (400, f"the request is not HTTP/1.1: {e}")
            self._refuse(status, text)
            return
        if not self._in_message:
            return
        if self._in_headers:
            self._fed += len(data)
            if self._fed > HEADER_BYTES:
                self._refuse(431, f"the headers of the request have more than {HEADER_BYTES} bytes")
                return
        if self._timer is None:
            self._timer = self.loop.call_later(self._settings.request_timeout, self._late)

    def _upgrade(self, rest: bytes) -> None:
        """Become a WebSocket, whose client has sent `rest` already; not before an answer that is still to come."""
        self._unset_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self._refused, self.cycle.keep_alive = True, False
            return
        self.handle_websocket_upgrade()
        if rest:
            self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined]

    def _late(self) -> None:
        """End a connection whose request is not complete in time."""
        self._timer = None
        self._refuse(408, f"the request was not complete after {self._settings.request_timeout:g} s")

    # ------------------------------------------------------------------------------------------ parser
    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._unset_timer()
        self._unset_keepalive_if_required()
        self._in_message = self._in_headers = True
        self._header_bytes = self._fed = self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the first line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind the body are counted only."""
        self._count(len(name) + len(value) + 4)
        if not self._in_headers:
            return
        if len(name) == 14 and name.lower() == b"content-length" and int(value) > self._settings.max_body:
            self._stop(413, f"the request has {int(value)} bytes, more than {self._settings.max_body}")
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES:
            self._stop(431, f"the headers of the request have more than {HEADER_BYTES} bytes")

    def _stop(self, status: int, text: str) -> None:
        """Leave a callback of the parser: what it raises reaches data_received as an error of the parser."""
        self._why = status, text
        raise ValueError(text)

    def on_headers_complete(self) -> None:
        """Start the application, or queue the request behind those before."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(400, f"more than {MAX_PIPELINED} requests wait for the one before")
        before = self.cycle
        super().on_headers_complete()
        self._in_headers = False
        if before is not None and before is not self.cycle and not before.response_complete:
            self._older.append(before)
        if self.parser.should_upgrade() and self.cycle is not None:
            self.cycle.keep_alive = False  # An upgrade to what is not spoken here; no request can follow.

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        shared = self._shared
        self._body_bytes += len(body)
        if self._body_bytes > self._settings.max_body:
            self._stop(413, f"the request has more than {self._settings.max_body} bytes")
        if not self.cycle.response_complete:
            self._held += len(body)
            shared.held += len(body)
            if shared.held > shared.most_held:
                self._stop(503, "the server holds too many bytes of requests at the moment")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_message = False
        self._unset_timer()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # ------------------------------------------------------------------------------------------ answers
    def on_response_complete(self) -> None:
        """Take the next request."""
        self._release()
        super().on_response_complete()
        if self._older:
            self._older = [cycle for cycle in self._older if not cycle.response_complete]
        if self._in_message:
            self._unset_keepalive_if_required()
        if self.pipeline:
            self.flow.pause_reading()

    def _release(self) -> None:
        """Note that the bytes of a body are gone."""
        self._shared.held -= self._held
        self._held = 0

    def _refuse(self, status: int, text: str) -> None:
        """Answer a request that cannot go on, and end the connection after the client had time to read the answer."""
        self._refused = True
        self._unset_timer()
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if self._in_message and not self._in_headers:  # in the body of the request of `cycle`
            if not busy or cycle.response_started or self.pipeline:
                self.transport.close()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif busy:  # The answer to the request before comes first, and is the last one.
            cycle.keep_alive = False
            return
        if self.transport.is_closing():
            return
        body = orjson.dumps({"error": text})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", "connection: close"]
        if status == 503:
            lines.append("retry-after: 1")
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode() + body)
        if self._settings.access_log:
            log("-", "-", status, len(body), 0.0)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Refuse what uvicorn refuses."""
        self._refuse(400, msg)

    def pause_writing(self) -> None:
        """Give a client that does not read its answer some time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._settings.request_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on, as the client has read."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()
