"""HTTP/1.1 connections of a server, parsed by httptools, with limits against bad clients.

The requests of a connection run one after the other. Whatever a client can let grow has a limit here: connections,
headers, bodies, the time that half a request may take, requests that wait, and answers that are not read.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import httptools
import orjson

from rnnfast.server.access import log
from rnnfast.server.faults import TOO_MANY_BYTES, UnavailableError
from rnnfast.server.settings import Settings

# The most bytes of the first line and all headers of a request, of what follows its body, and between parts of it.
HEADER_BYTES = 64 * 1024
# The most requests that wait for the one before on their connection.
MAX_PIPELINED = 32
# Bodies and frames of all connections together may have this many times the bytes of the largest one.
BODIES = 16
# Connections above the limit that are told so; more are cut without a word.
MAX_REFUSED = 64
# Seconds that a client which may still be sending has to read its last answer.
LINGER_SECONDS = 1.0
# Seconds between two looks whether the connections of a server that ends are closed.
END_LOOK_SECONDS = 0.02
# First lines and headers of up to so many bytes are remembered, up to so many of them: a request that comes with one of
# them and all its body takes 2.7 us less of 26 outside of the kernel.
KNOWN_BYTES, MAX_KNOWN = 1024, 4096
# Connections that may wait to be accepted.
BACKLOG = 2048
# Headers that mean something to a connection, by their lengths as well: most others have another.
_LENGTH, _EXPECT, _CONNECTION = b"content-length", b"expect", b"connection"
_OWN_LENGTHS = frozenset({len(_LENGTH), len(_EXPECT), len(_CONNECTION)})
_FIRST_LINES = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CLOSE = b"connection: close\r\n"

# Status, parts of the body, and headers in the form in which they are sent, without the length of the body.
Answer = tuple[int, list[bytes], bytes]


class Application(Protocol):
    """Answers requests."""

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; it raises nothing but Disconnected."""


class Disconnected(Exception):
    """The client went away, or was refused, before its request was complete."""


class Request:
    """One request.

    Args:
        connection: The connection.
        method: Its method.
        raw_path: The path as it came.
        headers: Names, in lower case, and values.
        keep_alive: Whether the connection stays open after the answer.
        expects: Whether the client waits to be told to send the body.

    Attributes:
        path: The path without its %-codes.
        body: What has come of the body.
        size: The bytes of it, also of those that nobody reads.
        held: Those that count as held by the server.
        complete: Whether that is all.
        over: Whether it is answered, or nobody wants the answer any more.
        begun: When its headers were complete.
    """

    __slots__ = (
        "_connection", "_reader", "begun", "body", "complete", "expects", "headers", "held", "keep_alive", "method",
        "over", "path", "raw_path", "size",
    )  # fmt: skip

    def __init__(
        self,
        connection: HttpProtocol,
        method: bytes,
        raw_path: bytes,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        expects: bool,
    ) -> None:
        self._connection, self.method, self.raw_path, self.headers = connection, method, raw_path, headers
        self.keep_alive, self.expects = keep_alive, expects
        path = raw_path.decode("ascii")
        self.path = urllib.parse.unquote(path) if "%" in path else path
        self.body: bytes | bytearray = b""
        self.size = self.held = 0
        self.complete, self.over, self.begun = False, False, time.perf_counter()
        self._reader: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            Disconnected: It will not come.
        """
        if self.over:
            raise Disconnected
        if not self.complete:
            if self.expects:
                self.expects = False
                self._connection.proceed()
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
            if self.over:  # The client left after the last byte and before this went on.
                raise Disconnected
        return self.body  # type: ignore[return-value]

    def hold(self, size: int) -> None:
        """Let so many bytes more count as held by the server until the request has run: what its body becomes.

        Raises:
            UnavailableError: The server holds too many.
        """
        if not self._connection.hold(self, size):
            raise UnavailableError(TOO_MANY_BYTES)

    def completed(self) -> None:
        """Note that the body is complete."""
        self.complete = True
        if type(self.body) is bytearray:
            self.body = bytes(self.body)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def end(self) -> None:
        """Forget the body, which nobody waits for any more."""
        self.body, self.over = b"", True
        if self._reader is not None and not self._reader.done():
            self._reader.set_exception(Disconnected())


class HttpServer:
    """The HTTP/1.1 of a server: its connections and what they share.

    Args:
        application: Answers requests.
        web_socket: Makes the protocol of a connection that becomes a WebSocket, of this HttpServer.
        settings: The Settings.

    Attributes:
        heads: {first line and headers of a request that came as a whole: (the bytes of its body, its method, path and
            headers)}. Behind its answer the connection was open.
        connections: The open connections, WebSockets among them. Each has a method `shutdown`.
        held: Bytes of requests that wait or run, even where their clients are gone, of frames that do not run yet, and
            of answers that their clients do not read.
    """

    def __init__(
        self, application: Application, web_socket: Callable[[HttpServer], asyncio.Protocol], settings: Settings
    ) -> None:
        self.application, self.web_socket, self.settings = application, web_socket, settings
        self.connections = set[Any]()
        self.heads: dict[bytes, tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]] = {}
        self.held, self.most_held = 0, BODIES * settings.max_body
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take connections of a socket that listens, with TLS where there is one."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: HttpProtocol(self),
            sock=listener,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else self.settings.request_timeout,
            backlog=BACKLOG,
        )

    async def stop(self, seconds: float) -> None:
        """Take no more connections, and close each after its answers, in so many seconds at the latest."""
        loop = asyncio.get_running_loop()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.shutdown()
        deadline = loop.time() + seconds
        while self.connections and loop.time() < deadline:
            await asyncio.sleep(END_LOOK_SECONDS)
        for connection in list(self.connections):
            connection.abort()


class HttpProtocol(asyncio.Protocol):
    """One connection.

    Args:
        server: The HttpServer.
    """

    def __init__(self, server: HttpServer) -> None:
        self._server, self._settings, self._answer = server, server.settings, server.application.answer
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._ignores_input, self._is_above = False, False  # nothing is read any more; one connection too many
        self._why: tuple[int, str] | None = None  # status and text of a refusal that a callback of the parser found
        self._running: Request | None = None  # the one that is being answered
        self._task: asyncio.Task[None] | None = None  # kept, for asyncio does not keep it
        self._waiting = list[Request]()  # behind it; few, so that no deque is worth its memory
        self._coming: Request | None = None  # the one whose body comes
        self._reading, self._writable = True, True
        self._unread = 0  # bytes of answers that wait for the client to read, where they are many
        # What is being parsed: the parts of the first line and the headers, and what the latter say of the connection.
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        self._expects, self._says_connection = False, False
        self._in_message, self._in_headers = False, False
        # Bytes that came since the message or the last part of its body began, of what comes behind the body, and of
        # what is being fed: as a whole, and 0 instead when a message has ended in it.
        self._fed, self._behind, self._size, self._first = 0, 0, 0, 0
        # When the client is late. The timer rings no later, and is not touched by requests that come and go.
        self._deadline, self._rings = math.inf, math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------ connection
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request; refuse it where there are too many connections."""
        self._transport, connections = transport, self._server.connections
        connections.add(self)
        most = self._settings.max_connections
        self._is_above = len(connections) > most
        if len(connections) > most + MAX_REFUSED:
            self._transport.abort()
        else:
            self._wait(LINGER_SECONDS if self._is_above else self._settings.request_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the requests; one that runs has nobody who wants its answer."""
        self._server.connections.discard(self)
        self._ignores_input = True
        self._cancel_timers()
        self._forget_waiting()
        self._forget_unread()
        if self._running is not None:
            self._running.end()  # What it may have read is held until it has run.
            self._running = None
        self._coming = self._parser = None

    def eof_received(self) -> bool:
        """Close, as no more can come: after the answers, where the client may still read them."""
        if self._in_message or not self._transport.can_write_eof():  # TLS has no half that is open.
            return False
        self._ignores_input = True
        return self._close_after_answers()

    def shutdown(self) -> None:
        """Close after the last answer, because the server ends."""
        if not self._close_after_answers():
            self._close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()

    def _close(self) -> None:
        """Close, once the client has read what it was sent."""
        self._ignores_input = True
        self._transport.close()
        self._wait(self._settings.request_timeout)

    def _linger(self) -> None:
        """Close, once a client that may still be sending had time to read; what it sends is thrown away.

        A socket that is closed with bytes that nobody read is reset, which may take the answer from the client.
        """
        self._ignores_input = True
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._wait(LINGER_SECONDS)

    def _close_after_answers(self) -> bool:
        """Let the answer to the newest request be the last one; return whether there is a request."""
        newest = self._waiting[-1] if self._waiting else self._running
        if newest is None:
            return False
        newest.keep_alive = False
        return True

    def _forget(self, request: Request) -> None:
        request.end()
        self._release(request)

    def hold(self, request: Request, size: int) -> bool:
        """Let so many bytes of a request count as held; return whether there was room for them."""
        request.held += size
        self._server.held += size
        return self._server.held <= self._server.most_held

    def _release(self, request: Request) -> None:
        self._server.held -= request.held
        request.held = 0

    def _forget_waiting(self) -> None:
        while self._waiting:
            self._forget(self._waiting.pop())

    def _forget_unread(self) -> None:
        self._server.held -= self._unread
        self._unread = 0

    # ------------------------------------------------------------------------------------------ time
    def _wait(self, seconds: float) -> None:
        """Give the client so many seconds from now."""
        self._deadline = deadline = self._loop.time() + seconds
        if deadline < self._rings:
            if self._timer is not None:
                self._timer.cancel()
            self._rings, self._timer = deadline, self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings = None, math.inf
        if self._deadline == math.inf:
            return
        if (seconds := self._deadline - self._loop.time()) > 0:
            self._wait(seconds)
        elif self._ignores_input or self._is_above:
            self._transport.abort()
        elif self._in_message:
            self._refuse(408, f"the request was not complete after {self._settings.request_timeout:g} s")
        else:
            self._close()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    # ------------------------------------------------------------------------------------------ what comes
    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self._ignores_input:
            return
        if self._is_above:
            self._refuse(503, f"{self._settings.max_connections} connections are open already")
            return
        end = -1 if self._in_message else data.find(b"\r\n\r\n", 0, KNOWN_BYTES) + 4
        if end > 4 and self._take_known(data, end):
            return
        self._size = self._first = size = len(data)
        self._fed += size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._upgrade(data[e.args[0] :])
        except httptools.HttpParserError as e:
            self._refuse(*(self._why or (400, f"the request is not HTTP/1.1: {e}")))
        else:
            if self._in_message:
                if self._fed > HEADER_BYTES:
                    self._refuse(431, f"the headers of the request have more than {HEADER_BYTES} bytes")
                elif self._deadline == math.inf and self._reading:
                    self._wait(self._settings.request_timeout)
            elif end > 4:
                self._learn(data, end)

    def _take_known(self, data: bytes, end: int) -> bool:
        """Start a request whose head, `data[:end]`, is known and behind which is its body; return whether it did."""
        known = self._server.heads.get(data[:end])
        size = len(data) - end
        if known is None or known[0] != size or self._server.held + size > self._server.most_held:
            return False
        if self._running is not None or self._waiting or not self._writable:
            return False
        self._deadline = math.inf
        request = Request(self, *known[1:], True, False)
        request.body, request.size, request.complete = data[end:], size, True
        self.hold(request, size)
        self._start(request)
        return True

    def _learn(self, data: bytes, end: int) -> None:
        """Remember the head of a request, if `data` is exactly that request.

        That is so if as many bytes follow the first empty line as its body has: chunks are more bytes, and so are two
        requests. Their last one is the newest.
        """
        newest = self._waiting[-1] if self._waiting else self._running
        if newest is None or not newest.keep_alive or len(data) != end + newest.size:
            return
        heads = self._server.heads
        if len(heads) >= MAX_KNOWN:
            heads.clear()
        heads[data[:end]] = newest.size, newest.method, newest.raw_path, newest.headers

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_message = self._in_headers = True
        self._url, self._headers = b"", []
        self._expects = self._says_connection = False
        self._fed, self._behind = self._first, 0
        self._deadline = math.inf

    def on_url(self, url: bytes) -> None:
        """Take a part of the first line."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind the body are counted only."""
        if not self._in_headers:
            self._behind += len(name) + len(value) + 4
            if self._behind > HEADER_BYTES:
                self._stop(431, f"the headers of the request have more than {HEADER_BYTES} bytes")
            return
        name = name.lower()
        self._headers.append((name, value))
        if len(name) in _OWN_LENGTHS:
            if name == _LENGTH:
                if int(value) > self._settings.max_body:
                    self._stop(413, f"the request has {int(value)} bytes, more than {self._settings.max_body}")
            elif name == _EXPECT:
                self._expects = value.lower() == b"100-continue"
            elif name == _CONNECTION:
                self._says_connection = True

    def on_headers_complete(self) -> None:
        """Start the request, or let it wait for those before."""
        self._in_headers = False
        parser, url, headers = self._parser, self._url, self._headers
        if self._fed + self._size > HEADER_BYTES:
            size = len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > HEADER_BYTES:
                self._stop(431, f"the headers of the request have more than {HEADER_BYTES} bytes")
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                self._stop(400, "the server is no proxy")
            return
        if len(self._waiting) >= MAX_PIPELINED:
            self._stop(400, f"more than {MAX_PIPELINED} requests wait for the one before")
        path = url.partition(b"?")[0] if url[:1] == b"/" else httptools.parse_url(url).path or b"/"
        keep_alive = parser.should_keep_alive()
        if keep_alive and self._says_connection and parser.get_http_version() == "1.0":
            keep_alive = False
        expects = self._expects and parser.get_http_version() != "1.0"  # whose clients know no answer but the last
        request = self._coming = Request(self, method, path, headers, keep_alive, expects)
        if self._running is None and self._writable:
            self._start(request)
        else:
            self._waiting.append(request)
            self._pause_reading()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        request = self._coming
        assert request is not None
        self._fed = 0
        request.size += len(body)
        if request.size > self._settings.max_body:
            self._stop(413, f"the request has more than {self._settings.max_body} bytes")
        if request.over:
            return  # It has its answer, so that nobody reads it.
        has_room = self.hold(request, len(body))
        if not request.body:
            request.body = body
        else:
            if type(request.body) is bytes:
                request.body = bytearray(request.body)
            request.body += body
        if not has_room:
            self._stop(503, TOO_MANY_BYTES)

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_message = False
        self._fed = self._first = 0
        self._deadline = math.inf
        request, self._coming = self._coming, None
        if request is None:
            return  # an upgrade
        request.completed()
        if request.over:
            self._wait(self._settings.keep_alive)

    def _stop(self, status: int, text: str) -> None:
        """Leave a callback of the parser: what it raises reaches data_received as an error of the parser."""
        self._why = status, text
        raise ValueError(text)

    def _upgrade(self, rest: bytes) -> None:
        """Become a WebSocket, whose client has sent `rest` already; not before an answer that is still to come.

        A request for another protocol is one for HTTP/1.1, which may have a body.
        """
        headers, method, version = self._headers, self._parser.get_method(), self._parser.get_http_version()
        wanted = [value.lower() for name, value in headers if name == b"upgrade"]
        is_other = wanted[-1] != b"websocket"
        lines = [b"%b %b HTTP/%b" % (method, self._url, version.encode())]
        lines += [b"%b: %b" % header for header in headers if not (is_other and header[0] == b"upgrade")]
        head = b"\r\n".join([*lines, b"\r\n"])
        if is_other:
            self._parser = httptools.HttpRequestParser(self)
            self.data_received(head + rest)
        elif self._running is not None or not self._writable:
            self._ignores_input = True
            self.shutdown()
        else:
            self._ignores_input, self._parser = True, None
            self._cancel_timers()
            self._server.connections.discard(self)
            protocol = self._server.web_socket(self._server)
            self._transport.set_protocol(protocol)
            protocol.connection_made(self._transport)
            protocol.data_received(head)
            if rest:
                protocol.data_received(rest)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._deadline = math.inf  # The client cannot help it.
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()
            if self._in_message and not self._ignores_input:
                self._wait(self._settings.request_timeout)

    # ------------------------------------------------------------------------------------------ answers
    def _start(self, request: Request) -> None:
        self._running = request
        self._task = self._loop.create_task(self._run(request))

    async def _run(self, request: Request) -> None:
        try:
            status, parts, headers = await self._answer(request)
        except Disconnected:
            return
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._release(request)
        size = sum(map(len, parts))
        if not request.over:
            self._send(request, status, parts, headers, size)
        if self._settings.access_log:
            path = request.raw_path.decode()
            log(request.method.decode(), path, status, size, time.perf_counter() - request.begun)

    def _send(self, request: Request, status: int, parts: list[bytes], headers: bytes, size: int) -> None:
        """Send an answer, and take the next request."""
        if request.expects and not request.complete:
            request.keep_alive = False  # Nobody can tell whether the body comes.
        request.end()
        keep_alive = request.keep_alive
        head = b"%b%bcontent-length: %d\r\n%b\r\n" % (
            _FIRST_LINES[status], headers, size, b"" if keep_alive else _CLOSE  # type: ignore[index]
        )  # fmt: skip
        self._transport.write(head if request.method == b"HEAD" else b"".join((head, *parts)))
        self._running = self._task = None
        if not keep_alive:
            self._forget_waiting()  # The client is told that they were not run.
            if request.complete:
                self._close()
            else:
                self._linger()
        elif self._waiting:
            self._next()
        elif not self._in_message:
            self._wait(self._settings.keep_alive)

    def _next(self) -> None:
        """Take the next of the requests that wait, if the client reads its answers."""
        if self._waiting and self._running is None and self._writable:
            self._start(self._waiting.pop(0))
        if not self._waiting:
            self._resume_reading()

    def proceed(self) -> None:
        """Tell a client that it may send the body."""
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, status: int, text: str) -> None:
        """Answer a request that cannot go on, and end the connection after the client had time to read the answer.

        Answers to the requests before come first, and are the last ones.
        """
        self._ignores_input = True
        self._deadline = math.inf
        coming, self._coming = self._coming, None
        if coming is not None:
            if coming.over:  # It has its answer.
                self._linger()
                return
            if coming is self._running:
                self._running = None
            else:
                self._waiting.pop()
            self._forget(coming)
        if self._close_after_answers() or self._transport.is_closing():
            return
        body = orjson.dumps({"error": text})
        again = b"retry-after: 1\r\n" if status == 503 else b""
        self._transport.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b"
            % (_FIRST_LINES[status], len(body), again, _CLOSE, body)  # type: ignore[index]
        )
        if self._settings.access_log:
            log("-", "-", status, len(body), 0.0)
        self._linger()

    def pause_writing(self) -> None:
        """Give a client that does not read its answer some time, and make no more answers."""
        self._writable = False
        self._unread = self._transport.get_write_buffer_size()
        self._server.held += self._unread
        if self._write_timer is None:
            self._write_timer = self._loop.call_later(self._settings.request_timeout, self._transport.abort)

    def resume_writing(self) -> None:
        """Go on, as the client has read."""
        self._writable = True
        self._forget_unread()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._next()
