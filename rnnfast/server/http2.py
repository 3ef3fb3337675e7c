"""HTTP/2 connections of a server, as RFC 9113 says, with limits against bad clients.

What streams are used for is another's matter: an Application makes a Handler of each request. Whatever a client can let
grow has a limit here: streams, header blocks, windows, and the frames a second that cost work and bring nothing.
"""

from __future__ import annotations

import asyncio
import collections
import re
import struct
from typing import Any, Protocol

import hpack
from hpack.table import HeaderTable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
# Error codes.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11
# Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
LARGEST = 2**31 - 1
# What a side may send before it has heard of the other's windows, and the largest frame until settings say otherwise.
FIRST_WINDOW, FRAME_BYTES = 2**16 - 1, 2**14
# The size of a dynamic table until settings say otherwise.
TABLE_BYTES = 2**12
# What a client may send on a stream and on its connection before more is allowed.
STREAM_WINDOW, CONNECTION_WINDOW = 2**20, 2**24
# The most bytes of a request's headers, decoded, and of the block that they come in, and the most frames of a block.
HEADER_LIST_BYTES, BLOCK_BYTES, BLOCK_FRAMES = 2**14, 2**15, 16
# The most header blocks whose meaning is remembered, and the most bytes of one; the most streams that ended before
# their client knew.
MAX_KNOWN_BLOCKS, KNOWN_BLOCK_BYTES, MAX_CUT = 16, 1024, 1024
# The most resets, and the most of other frames that bring nothing, that a client may send within a second.
MAX_RESETS, MAX_IDLE_FRAMES = 2000, 2000
# A change of the windows of so many streams counts as one more such frame.
STREAMS_PER_FRAME = 64
# Where so many bytes wait to be read by the client, nothing more is read from it.
HIGH_WATER = 2**18
# Where more bytes of answers wait for windows, no new stream of the connection is taken, and its window stays as it is.
MAX_WAITING_BYTES = 2**26
# Seconds that a client has to read why its connection ends, while what it still sends is thrown away.
LINGER_SECONDS = 1.0
# Seconds without a byte after which the client is asked for one, and after which it is gone.
KEEPALIVE_SECONDS = 30.0

_HEAD = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_NUMBER = struct.Struct(">L")
_unpack_head, _pack_head = _HEAD.unpack_from, _HEAD.pack


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame."""
    size = len(payload)
    return _pack_head(size >> 8, size & 255, kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in a header block, in full, without Huffman coding and without an entry of the dynamic table."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,))
    parts, size = bytearray((127,)), size - 127
    while size >= 128:
        parts.append(size & 127 | 128)
        size >>= 7
    parts.append(size)
    return bytes(parts)


class Http2Error(Exception):
    """The connection cannot go on.

    Attributes:
        code: The error code for the client.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Handler(Protocol):
    """Takes a request and answers it."""

    def received(self, data: bytes) -> None:
        """Take bytes of the body."""

    def ended(self) -> None:
        """Note that the body is complete."""

    def late(self) -> None:
        """End the call, as its request is not complete in time, or its answer not read."""

    def drained(self) -> None:
        """Note that everything that was sent has left the stream's queue."""

    def lost(self) -> None:
        """End, as the client wants no answer any more."""


class Application(Protocol):
    """Makes handlers of requests.

    Attributes:
        connections: The open connections.
        max_connections: The most of them.
        max_streams: The most open streams of a connection.
        request_timeout: The seconds that a request may take to be complete.
        ending: Whether no new request is taken.
        held: The bytes that are held for clients, among them those of answers that wait.
        most_held: The most of them, beyond which answers that would have to wait are given up.
    """

    connections: set[Http2Protocol]
    max_connections: int
    max_streams: int
    request_timeout: float
    ending: bool
    held: int
    most_held: int

    def understood(self, headers: list[tuple[bytes, bytes]]) -> Any:
        """Return what the headers of a request mean, for `open`; it may be used for many requests."""

    def open(self, stream: Http2Stream, meaning: Any, /) -> None:
        """Give the stream of a new request its handler."""


class _Table(HeaderTable):
    """A dynamic table that counts its changes."""

    changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)


class Http2Stream:
    """One request and its answer.

    Args:
        connection: The connection.
        id: The stream's number.
        window: What may be sent on it at first.

    Attributes:
        handler: Its Handler; None when the stream is closed.
        half: Whether the client has sent all.
        waiting: Parts of the answer that wait for a window, or for the client to read.
    """

    __slots__ = ("connection", "credit", "handler", "half", "id", "paused", "trailers", "waiting", "window")

    def __init__(self, connection: Http2Protocol, id: int, window: int) -> None:
        self.connection, self.id, self.window = connection, id, window
        self.credit, self.half, self.paused = STREAM_WINDOW, False, False
        self.waiting: collections.deque[memoryview] | None = None
        self.trailers: bytes | None = None
        self.handler: Handler | None = None

    # ------------------------------------------------------------------------------------------ the client's side
    def pause(self) -> None:
        """Let the client send no more than its window."""
        self.paused = True

    def resume(self) -> None:
        """Let the client send on."""
        self.paused = False
        if self.handler is not None and not self.half and self.credit < STREAM_WINDOW // 2:
            self._give_credit()

    def _give_credit(self) -> None:
        self.connection.write(_window_update(self.id, STREAM_WINDOW - self.credit))
        self.credit = STREAM_WINDOW

    def _took(self, size: int) -> None:
        """Count bytes that came against the window."""
        self.credit -= size
        if self.credit < STREAM_WINDOW // 2:
            if self.credit < 0:
                self.connection.cut_bad(self, FLOW_CONTROL_ERROR)
            elif not self.paused and not self.half:
                self._give_credit()

    # ------------------------------------------------------------------------------------------ the answer
    def send_headers(self, block: bytes) -> None:
        """Begin the answer."""
        if self.handler is not None:
            self.connection.write(frame(HEADERS, END_HEADERS, self.id, self.connection.headed(block)))

    def send(self, data: bytes) -> bool:
        """Send a part of the body; return whether it is gone, else the handler's `drained` will be called."""
        connection, size = self.connection, len(data)
        if (
            self.waiting is None
            and connection.writable
            and size <= self.window
            and size <= connection.window
            and size <= connection.frame_bytes
        ):
            if self.handler is not None:
                self.window -= size
                connection.window -= size
                connection.write(_pack_head(size >> 8, size & 255, DATA, 0, self.id) + data)
            return True
        if self.handler is None:
            return True
        if self.waiting is None:
            self.waiting = collections.deque()
            connection.blocked[self.id] = self
        connection.count_waiting(size)
        self.waiting.append(memoryview(data))  # of which parts are no copies
        self.pump()
        if self.waiting is None:
            return True
        if connection.holds_too_much:
            self.cut(ENHANCE_YOUR_CALM)
            return True
        connection.incomplete(-self.id)
        connection.time_incomplete()
        return False

    def pump(self) -> None:
        """Send what waits, as far as it may."""
        connection, waiting = self.connection, self.waiting
        assert waiting is not None
        while waiting and connection.writable:
            data = waiting[0]
            size = min(len(data), self.window, connection.window, connection.frame_bytes)
            if size <= 0:
                if self.window <= 0:  # Only its own window lets it go on, and others need not look at it.
                    connection.blocked.pop(self.id, None)
                return
            self.window -= size
            connection.window -= size
            connection.count_waiting(-size)
            connection.renew(-self.id)
            connection.write(frame(DATA, 0, self.id, data[:size]))
            if size == len(data):
                waiting.popleft()
            else:
                waiting[0] = data[size:]
        if not waiting:
            self.waiting = None
            connection.blocked.pop(self.id, None)
            connection.complete(-self.id)
            if self.trailers is not None:
                self._finish(self.trailers)

    def end(self, block: bytes) -> None:
        """End the answer with trailers, or with headers where none were sent."""
        if self.handler is None or self.trailers is not None:
            return
        if self.waiting is None:
            self._finish(block)
        else:
            self.trailers = block

    def _finish(self, block: bytes) -> None:
        end = frame(HEADERS, END_HEADERS | END_STREAM, self.id, self.connection.headed(block))
        if not self.half:
            end += frame(RST_STREAM, 0, self.id, _NUMBER.pack(NO_ERROR))
            self.connection.note_cut(self.id, self.credit)
        self.connection.write(end)
        self.close()

    def answer(self, headers: bytes, data: bytes, trailers: bytes) -> None:
        """Send a whole answer."""
        connection, size, id = self.connection, len(data), self.id
        if self.handler is None:
            return
        if (
            not self.half
            or not connection.writable
            or size > self.window
            or size > connection.window
            or size > connection.frame_bytes
        ):
            self.send_headers(headers)
            self.send(data)
            self.end(trailers)
            return
        connection.window -= size
        headers = connection.headed(headers)
        connection.write(
            b"".join((
                _pack_head(0, len(headers), HEADERS, END_HEADERS, id), headers,
                _pack_head(size >> 8, size & 255, DATA, 0, id), data,
                _pack_head(0, len(trailers), HEADERS, END_HEADERS | END_STREAM, id), trailers,
            ))
        )  # fmt: skip
        self.close()

    def cut(self, code: int) -> None:
        """End the stream at once with an error code, and tell its handler."""
        handler = self.handler
        if handler is None:
            return
        self.connection.write(frame(RST_STREAM, 0, self.id, _NUMBER.pack(code)))
        if not self.half:
            self.connection.note_cut(self.id, self.credit)
        self.close()
        handler.lost()

    def close(self) -> None:
        """Forget the stream."""
        if self.waiting is not None:
            self.connection.count_waiting(-sum(map(len, self.waiting)))
        self.handler, self.waiting = None, None
        self.connection.forget(self.id)


def _window_update(stream: int, size: int) -> bytes:
    return _pack_head(0, 4, WINDOW_UPDATE, 0, stream) + _NUMBER.pack(size)


class Http2Protocol(asyncio.Protocol):
    """One connection.

    Args:
        application: The Application.

    Attributes:
        streams: {number: stream} of those that are open.
        blocked: {number: stream} of those with an answer that waits for the connection, not for their own window.
        writable: Whether the client reads what it is sent.
        window: What may be sent on the connection.
        frame_bytes: The largest frame that may be sent.
        waiting_bytes: The bytes of answers that wait.
        loop: The event loop.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self.loop = asyncio.get_running_loop()
        self.streams: dict[int, Http2Stream] = {}
        self.blocked: dict[int, Http2Stream] = {}
        self.writable, self.window, self.frame_bytes = True, FIRST_WINDOW, FRAME_BYTES
        self.waiting_bytes = 0
        self._transport: Any = None
        self._first_window = FIRST_WINDOW  # of new streams
        self._shrunk = False  # whether the client's dynamic table became smaller since the last header block
        self._rest = b""  # of a frame that is not complete
        self._begun, self._settled, self._over = False, False, False
        self._credit = CONNECTION_WINDOW
        self._last = 0  # the largest stream number that came
        self._last_told = LARGEST  # that of which the client was told that no later one is taken
        self._block: tuple[int, int, bytearray, int] | None = None  # stream, flags, bytes, frames of an open block
        self._decoder = hpack.Decoder(HEADER_LIST_BYTES)
        self._table = self._decoder.header_table = _Table()
        self._known: dict[bytes, Any] = {}  # what header blocks mean, as long as the dynamic table is as it is
        self._cut: dict[int, int] = {}  # the windows of streams on which the client may send on, as it does not know
        # When the incomplete part of the request of a stream began; with a minus, when its answer began to wait.
        self._incomplete: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._second, self._resets, self._idle_frames = 0.0, 0, 0
        self._before = 0  # the largest stream number of the second before
        self._heard, self._asked = True, False
        self._keepalive: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self.write: Any = None  # writes bytes

    # ------------------------------------------------------------------------------------------ connection
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        self._transport, application = transport, self._application
        self.write = self._transport.write
        tls = transport.get_extra_info("ssl_object")
        if len(application.connections) >= application.max_connections or (
            tls is not None and tls.selected_alpn_protocol() != "h2"
        ):
            self._over = True
            self._transport.abort()
            return
        application.connections.add(self)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        settings = (
            (MAX_CONCURRENT_STREAMS, application.max_streams),
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES),
        )
        self.write(
            frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings))
            + _window_update(0, CONNECTION_WINDOW - FIRST_WINDOW)
        )
        self._timer = self.loop.call_later(application.request_timeout, self._sweep)
        self._keepalive = self.loop.call_later(KEEPALIVE_SECONDS, self._keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handlers."""
        self._over = True
        self._application.connections.discard(self)
        for timer in (self._timer, self._keepalive, self._write_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._lose_streams()

    def _lose_streams(self) -> None:
        for stream in list(self.streams.values()):
            handler = stream.handler
            stream.close()
            if handler is not None:
                handler.lost()

    def eof_received(self) -> bool:
        """Close, as no more can come."""
        return False

    def pause_writing(self) -> None:
        """Read nothing from a client that does not read, and give it some time."""
        self.writable = False
        self._transport.pause_reading()
        self._write_timer = self.loop.call_later(self._application.request_timeout, self._transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        self.writable = True
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._pump()

    def _pump(self) -> None:
        """Send what waits on all streams, as far as it may."""
        for stream in list(self.blocked.values()):
            if not self.writable or self.window <= 0:
                break
            if stream.waiting is not None:
                stream.pump()
                if stream.waiting is None and stream.handler is not None:
                    stream.handler.drained()
                elif stream.id in self.blocked:  # behind the others
                    self.blocked[stream.id] = self.blocked.pop(stream.id)
        if self._credit < CONNECTION_WINDOW // 2:
            self._give_credit()

    def forget(self, id: int) -> None:
        """Forget a stream."""
        self.streams.pop(id, None)
        self.blocked.pop(id, None)
        self._incomplete.pop(id, None)
        self._incomplete.pop(-id, None)
        if self._credit < CONNECTION_WINDOW // 2:
            self._give_credit()
        if not self.streams and self._application.ending and not self._over:
            self._end()

    def headed(self, block: bytes) -> bytes:
        """A header block to be sent next; the first one after the client's dynamic table shrank says that it did."""
        if self._shrunk:
            self._shrunk = False
            return b"\x20" + block  # A size of 0, as no entries are made.
        return block

    def count_waiting(self, size: int) -> None:
        """Count bytes of answers that wait from now on, or with a minus do not any more."""
        self.waiting_bytes += size
        self._application.held += size

    @property
    def holds_too_much(self) -> bool:
        """Whether more is held for the clients of all connections than there may be."""
        return self._application.held > self._application.most_held

    def note_cut(self, id: int, credit: int) -> None:
        """Note that the client may send so many bytes more on a stream that has ended, as it does not know."""
        self._cut[id] = credit
        if len(self._cut) > MAX_CUT:
            del self._cut[next(iter(self._cut))]

    def go_away(self) -> None:
        """Tell the client that no new request is taken, and close when the last one is answered."""
        if not self._over:
            self._last_told = self._last
            self.write(frame(GOAWAY, 0, 0, _NUMBER.pack(self._last) + _NUMBER.pack(NO_ERROR)))
            if not self.streams:
                self._end()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _fail(self, code: int, text: str) -> None:
        """End the connection with an error."""
        if not self._over:
            self._over = True
            self._lose_streams()
            last = _NUMBER.pack(min(self._last, self._last_told))
            self.write(frame(GOAWAY, 0, 0, last + _NUMBER.pack(code) + text.encode()[:200]))
            self._end()

    def _end(self) -> None:
        """Close after what was written, when the client has closed or had its time.

        A connection that is closed with bytes of the client in it is reset, and the client may lose what it was sent.
        """
        self._over = True
        self.write = lambda data: None
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._end_timer = self.loop.call_later(LINGER_SECONDS, self._transport.abort)
            if self.writable and not self._transport.is_closing():
                self._transport.resume_reading()
        else:
            self._transport.close()
            self._end_timer = self.loop.call_later(LINGER_SECONDS, self._transport.abort)

    # ------------------------------------------------------------------------------------------ timers
    def _keep_alive(self) -> None:
        if self._heard:
            self._heard = self._asked = False
        elif self._asked:
            self._transport.abort()
            return
        else:
            self._asked = True
            self.write(frame(PING, 0, 0, b"rnnfast."))
        self._keepalive = self.loop.call_later(KEEPALIVE_SECONDS, self._keep_alive)

    def complete(self, id: int) -> None:
        """Note that nothing more of a request has to come soon."""
        self._incomplete.pop(id, None)

    def incomplete(self, id: int) -> None:
        """Note that the rest of what has begun on a stream has to come soon."""
        if id not in self._incomplete:
            self._incomplete[id] = self.loop.time()

    def renew(self, id: int) -> None:
        """Begin the time of a stream anew, if it has one."""
        if self._incomplete.pop(id, None) is not None:
            self._incomplete[id] = self.loop.time()

    def _sweep(self) -> None:
        """End requests that are not complete in time, answers that are not read, and connections that do not begin."""
        self._timer = None
        most, now = self._application.request_timeout, self.loop.time()
        if not self._settled:
            self._fail(PROTOCOL_ERROR, "no settings came in time")
            return
        for id, began in list(self._incomplete.items()):
            if now - began < most - 0.001:
                break
            if self._incomplete.pop(id, None) is None:
                continue  # The stream was cut for its other side.
            if id == 0:  # a header block
                self._fail(PROTOCOL_ERROR, "a header block was not complete in time")
                return
            stream = self.streams.get(abs(id))
            if stream is not None and stream.handler is not None:
                stream.handler.late()
        self.time_incomplete()

    def time_incomplete(self) -> None:
        """Look at what is not complete when the time of the oldest is over."""
        if self._incomplete and self._timer is None and not self._over:
            oldest = next(iter(self._incomplete.values()))
            wait = oldest + self._application.request_timeout - self.loop.time()
            self._timer = self.loop.call_later(max(wait, 0.001), self._sweep)

    def _count(self, reset: bool, more: int = 0, of: int = LARGEST) -> None:
        """Count a frame that brings nothing, and the work of so many more; a reset of a stream from before is free.

        Raises:
            Http2Error: There were too many within a second.
        """
        now = self.loop.time()
        if now - self._second >= 1.0:
            self._second, self._resets, self._idle_frames, self._before = now, 0, 0, self._last
        if reset:
            self._resets += of > self._before
        else:
            self._idle_frames += 1 + more
        if self._resets > MAX_RESETS or self._idle_frames > MAX_IDLE_FRAMES:
            raise Http2Error(ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def cut_bad(self, stream: Http2Stream, code: int) -> None:
        """Cut a stream for a wrong frame of the client, which counts as a reset of the client's.

        Raises:
            Http2Error: There were too many within a second.
        """
        self._count(True)
        stream.cut(code)

    # ------------------------------------------------------------------------------------------ frames
    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self._over:
            return
        self._heard = True
        try:
            self._take(self._rest + data if self._rest else data)
        except Http2Error as e:
            self._fail(e.code, str(e))
        if self._incomplete and self._timer is None:
            self.time_incomplete()

    def _take(self, data: bytes) -> None:
        at, end = 0, len(data)
        if not self._begun:
            if data[:24] != PREFACE[: len(data)]:
                raise Http2Error(PROTOCOL_ERROR, "the preface of HTTP/2 was expected")
            if end < 24:
                self._rest = data
                return
            self._begun, at = True, 24
        while end - at >= 9:
            high, low, kind, flags, id = _unpack_head(data, at)
            size = high << 8 | low
            if size > FRAME_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, f"a frame has {size} bytes, more than {FRAME_BYTES}")
            if end - at - 9 < size:
                break
            begin = at + 9
            at = begin + size
            id &= LARGEST
            if self._block is not None and kind != CONTINUATION:
                raise Http2Error(PROTOCOL_ERROR, "a header block was not continued")
            if kind == DATA and self._settled:
                self._take_data(id, flags, data[begin:at])
            else:
                self._take_other(kind, flags, id, data[begin:at])
            if self._over:
                self._rest = b""
                return
        self._rest = data[at:]

    def _take_other(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        """Take a frame that is not DATA."""
        if not self._settled and (kind != SETTINGS or flags & ACK):
            raise Http2Error(PROTOCOL_ERROR, "SETTINGS were expected first")
        if kind == HEADERS:
            self._take_headers(id, flags, payload)
        elif kind == WINDOW_UPDATE:
            self._take_window_update(id, payload)
        elif kind == PING:
            self._check(id == 0, PROTOCOL_ERROR, "PING on a stream")
            self._check(len(payload) == 8, FRAME_SIZE_ERROR, "PING of a wrong size")
            self._count(False)
            if not flags & ACK:
                self.write(frame(PING, ACK, 0, payload))
        elif kind == CONTINUATION:
            self._take_continuation(id, flags, payload)
        elif kind == RST_STREAM:
            self._check(0 < id <= self._last, PROTOCOL_ERROR, "RST_STREAM on a stream that is idle")
            self._check(len(payload) == 4, FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
            self._cut.pop(id, None)
            stream = self.streams.get(id)
            self._count(True, of=LARGEST if stream is None else id)
            if stream is not None:
                handler = stream.handler
                stream.close()
                if handler is not None:
                    handler.lost()
        elif kind == SETTINGS:
            self._take_settings(id, flags, payload)
        elif kind == PRIORITY:
            self._check(id != 0, PROTOCOL_ERROR, "PRIORITY without a stream")
            self._check(len(payload) == 5, FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
            self._count(False)
        elif kind == GOAWAY:
            self._check(id == 0, PROTOCOL_ERROR, "GOAWAY on a stream")
            self._check(len(payload) >= 8, FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
            self._count(False)
        elif kind == PUSH_PROMISE:
            raise Http2Error(PROTOCOL_ERROR, "a client promises nothing")
        else:
            self._count(False)

    @staticmethod
    def _check(right: bool, code: int, text: str) -> None:
        if not right:
            raise Http2Error(code, text)

    def _take_data(self, id: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._credit -= size
        if self._credit < CONNECTION_WINDOW // 2:
            self._check(self._credit >= 0, FLOW_CONTROL_ERROR, "more came than the window of the connection allows")
            self._give_credit()
        stream = self.streams.get(id)
        if stream is None or stream.half:
            self._check(0 < id <= self._last and id & 1 == 1, PROTOCOL_ERROR, "DATA on a stream that is idle")
            credit = self._cut.get(id)
            if credit is None or not size:
                self._count(False)
            if stream is not None:
                self.cut_bad(stream, STREAM_CLOSED)
            elif credit is None:
                self.write(frame(RST_STREAM, 0, id, _NUMBER.pack(STREAM_CLOSED)))
            elif flags & END_STREAM:
                del self._cut[id]
            else:
                self._cut[id] = credit - size
                self._check(size <= credit, FLOW_CONTROL_ERROR, "more came than the window of a stream allowed")
            return
        if flags & PADDED:
            self._check(size > 0 and payload[0] < size, PROTOCOL_ERROR, "DATA with more padding than bytes")
            payload = payload[1 : size - payload[0]]
        handler = stream.handler
        assert handler is not None
        if flags & END_STREAM:
            stream.half = True
            self._incomplete.pop(id, None)
        if size:
            stream._took(size)
            if stream.handler is None:  # It was more than the window.
                return
        if payload:
            handler.received(payload)
        elif not flags & END_STREAM:
            self._count(False)
        if flags & END_STREAM and stream.handler is not None:
            handler.ended()

    def _give_credit(self) -> None:
        """Let the client send on, unless it does not read what it has asked for."""
        if self.waiting_bytes <= MAX_WAITING_BYTES and not self._over:
            self.write(_window_update(0, CONNECTION_WINDOW - self._credit))
            self._credit = CONNECTION_WINDOW

    def _take_headers(self, id: int, flags: int, payload: bytes) -> None:
        self._check(id & 1 == 1, PROTOCOL_ERROR, "HEADERS on a stream that clients do not open")
        begin, end = 0, len(payload)
        if flags & PADDED:
            self._check(end > 0, FRAME_SIZE_ERROR, "HEADERS of a wrong size")
            begin, end = 1, end - payload[0]
        if flags & WITH_PRIORITY:
            begin += 5
        self._check(begin <= end, PROTOCOL_ERROR, "HEADERS with more padding than bytes")
        if begin or end != len(payload):
            payload = payload[begin:end]
        if flags & END_HEADERS:
            self._take_block(id, flags, payload)
        else:
            self._block = id, flags, bytearray(payload), 1
            self.incomplete(0)

    def _take_continuation(self, id: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != id:
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, first_flags, block, frames = self._block
        block += payload
        if len(block) > BLOCK_BYTES or frames >= BLOCK_FRAMES:
            raise Http2Error(ENHANCE_YOUR_CALM, f"a header block has more than {BLOCK_BYTES} bytes, or many frames")
        if flags & END_HEADERS:
            self._block = None
            self.complete(0)
            self._take_block(id, first_flags, bytes(block))
        else:
            self._block = id, first_flags, block, frames + 1

    def _take_block(self, id: int, flags: int, block: bytes) -> None:
        """Take a whole header block, which opens a stream or is the trailers of one."""
        known = self._known.get(block)
        headers: Any = None
        if known is None:
            before = self._table.changes
            try:
                headers = self._decoder.decode(block, raw=True)
            except hpack.OversizedHeaderListError:
                raise Http2Error(
                    ENHANCE_YOUR_CALM, f"the headers of a request have more than {HEADER_LIST_BYTES} bytes"
                ) from None
            except Exception:  # hpack.HPACKError, and whatever else wrong bytes lead it to
                raise Http2Error(COMPRESSION_ERROR, "a header block cannot be decoded") from None
            known = self._application.understood(headers) if well_formed(headers) else None
            if self._table.changes != before or block[:1] >= b"\x20" and block[:1] < b"\x40":  # or a new size
                self._known.clear()
            elif known is not None and len(block) <= KNOWN_BLOCK_BYTES:
                if len(self._known) >= MAX_KNOWN_BLOCKS:
                    self._known.clear()
                self._known[block] = known
        if id <= self._last:
            self._take_trailers(id, flags, headers)
            return
        self._last = id
        application = self._application
        full = len(self.streams) >= application.max_streams or self.waiting_bytes > MAX_WAITING_BYTES
        if application.ending or full:
            self._refuse(id, flags, REFUSED_STREAM)
        elif known is None:
            self._refuse(id, flags, PROTOCOL_ERROR)
        else:
            stream = self.streams[id] = Http2Stream(self, id, self._first_window)
            if flags & END_STREAM:
                stream.half = True
            self._application.open(stream, known)
            if flags & END_STREAM and stream.handler is not None:
                stream.handler.ended()

    def _refuse(self, id: int, flags: int, code: int) -> None:
        """Refuse a stream."""
        self._count(True)
        if not flags & END_STREAM:
            self.note_cut(id, STREAM_WINDOW)
        self.write(frame(RST_STREAM, 0, id, _NUMBER.pack(code)))

    def _take_trailers(self, id: int, flags: int, headers: Any) -> None:
        """Take headers of a stream that is known; None are those of a request, which came before."""
        stream = self.streams.get(id)
        if stream is None:
            self._check(id in self._cut, STREAM_CLOSED, "HEADERS on a stream that is closed")
            self._count(False)
        elif stream.half:
            self.cut_bad(stream, STREAM_CLOSED)
        elif not flags & END_STREAM or headers is None or not well_formed(headers, _NO_PSEUDO):
            self.cut_bad(stream, PROTOCOL_ERROR)
        else:
            stream.half = True
            self._incomplete.pop(id, None)
            if stream.handler is not None:
                stream.handler.ended()

    def _take_window_update(self, id: int, payload: bytes) -> None:
        self._check(len(payload) == 4, FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        size = _NUMBER.unpack(payload)[0] & LARGEST
        if id == 0:
            self._check(size > 0, PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.window += size
            self._check(self.window <= LARGEST, FLOW_CONTROL_ERROR, "the window of the connection is too large")
            if self.blocked:
                self._pump()
            return
        self._check(id <= self._last and id & 1 == 1, PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is idle")
        stream = self.streams.get(id)
        if stream is None:
            return
        stream.window += size
        if size == 0:
            self.cut_bad(stream, PROTOCOL_ERROR)
        elif stream.window > LARGEST:
            self.cut_bad(stream, FLOW_CONTROL_ERROR)
        elif stream.waiting is not None:
            self.blocked[id] = stream
            self._pump()

    def _take_settings(self, id: int, flags: int, payload: bytes) -> None:
        self._check(id == 0, PROTOCOL_ERROR, "SETTINGS on a stream")
        self._check(len(payload) % 6 == 0, FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        self._count(False)
        if flags & ACK:
            self._check(not payload, FRAME_SIZE_ERROR, "an acknowledgement with SETTINGS")
            return
        self._settled = True
        if self._timer is not None and not self._incomplete:
            self._timer.cancel()
            self._timer = None
        before = self._first_window
        for name, value in _SETTING.iter_unpack(payload):
            if name == HEADER_TABLE_SIZE:
                self._shrunk |= value < TABLE_BYTES
            elif name == ENABLE_PUSH:
                self._check(value <= 1, PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            elif name == INITIAL_WINDOW_SIZE:
                self._check(value <= LARGEST, FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
                self._first_window = value
            elif name == MAX_FRAME_SIZE:
                self._check(FRAME_BYTES <= value < 2**24, PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of its range")
                self.frame_bytes = value
        if change := self._first_window - before:
            self._count(False, len(self.streams) // STREAMS_PER_FRAME)
            for stream in self.streams.values():
                stream.window += change
                self._check(stream.window <= LARGEST, FLOW_CONTROL_ERROR, "the window of a stream is too large")
                if stream.waiting is not None:
                    self.blocked[stream.id] = stream
        self.write(frame(SETTINGS, ACK, 0))
        if self.blocked:
            self._pump()


# Headers of HTTP/1.1 that mean something of the connection.
_OF_CONNECTIONS = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_PSEUDO, _NO_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority")), frozenset[bytes]()
_NAME = re.compile(rb"[^\x00-\x20A-Z:\x7f-\xff]+")


def well_formed(headers: Any, pseudo: frozenset[bytes] = _PSEUDO) -> bool:
    """Return whether headers are those of a request, or trailers, which have no pseudo-headers."""
    seen, rest = set[bytes](), False
    for name, value in headers:
        if name[:1] == b":":
            if rest or name in seen or name not in pseudo:
                return False
            seen.add(name)
        else:
            rest = True
            if name in _OF_CONNECTIONS or not _NAME.fullmatch(name) or name == b"te" and value != b"trailers":
                return False
        if b"\r" in value or b"\n" in value or b"\0" in value:
            return False
    return not pseudo or b":method" in seen and b":scheme" in seen and b":path" in seen
