"""gRPC over HTTP/2: calls with their messages, statuses, deadlines and compression, for the handlers of a server."""

from __future__ import annotations

import asyncio
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from rnnfast.server.faults import TOO_MANY_BYTES, status_of, text_of
from rnnfast.server.http2 import CANCEL, Http2Protocol, Http2Stream, literal

CODES = {
    name: number
    for number, name in enumerate((
        "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
        "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
        "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
    ))
}  # fmt: skip
# Header blocks. 0x88 is ":status: 200"; 0x0f 0x10 is the name "content-type".
HEADERS = b"\x88\x0f\x10\x10application/grpc"
OK_TRAILERS = literal(b"grpc-status", b"0")
ACCEPTED = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
# The most bytes of an error's text, which is in a header of the response, and what of ASCII it holds as it is.
MAX_TEXT = 2000
PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
# Requests that are not complete, or not answered, may have this many times the bytes of the largest one together. Those
# of a stream that are smaller than HELD_BYTES do not count: counting costs them more than it brings.
BODIES, HELD_BYTES = 16, 4096
# The most calls of a connection at a time.
MAX_STREAMS = 4096
# Seconds of the units of grpc-timeout.
UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Request(NamedTuple):
    """What the headers of a call say.

    Attributes:
        make: Makes the Call; None where there is no such method.
        headers: The headers, or metadata.
        timeout: The seconds that the call may take, None for no limit.
        encoding: How its compressed messages are compressed.
        refusal: The block of headers with which it is refused, None if it is not.
    """

    make: Callable[[Http2Stream, Request], Call] | None
    headers: tuple[tuple[bytes, bytes], ...]
    timeout: float | None
    encoding: bytes
    refusal: bytes | None


class Calls:
    """The calls of a server, whose connections it takes.

    Args:
        makers: {path of a method: makes its Call}.
        max_connections: The most connections.
        max_message: The most bytes of a message.
        request_timeout: The seconds that a message may take to be complete.

    Attributes:
        held: Bytes of messages that are not complete or not answered, and of responses that wait for their clients.
        most_held: The most of them.
    """

    def __init__(
        self,
        makers: dict[bytes, Callable[[Http2Stream, Request], Call]],
        max_connections: int,
        max_message: int,
        request_timeout: float,
    ) -> None:
        self._makers = makers
        self.connections = set[Http2Protocol]()
        self.max_connections, self.max_streams = max_connections, min(max_connections, MAX_STREAMS)
        self.max_message, self.request_timeout = max_message, request_timeout
        self.ending = False
        self.held, self.most_held = 0, BODIES * max_message

    def protocol(self) -> Http2Protocol:
        """A new connection."""
        return Http2Protocol(self)

    def understood(self, headers: list[tuple[bytes, bytes]]) -> Request:
        """The Request of headers."""
        fields = {name: bytes(value) for name, value in headers}
        refusal, timeout = None, None
        if fields[b":method"] != b"POST":
            refusal = literal(b":status", b"405") + literal(b"allow", b"POST")
        elif not is_grpc(fields.get(b"content-type", b"")):
            refusal = literal(b":status", b"415")
        if b"grpc-timeout" in fields:
            timeout = seconds_of(fields[b"grpc-timeout"])
            if timeout is None:
                refusal = refusal or refusing("INVALID_ARGUMENT", "grpc-timeout is wrong")
        make = self._makers.get(fields[b":path"])
        if make is None:
            path = fields[b":path"].decode(errors="replace")[:200]
            refusal = refusal or refusing("UNIMPLEMENTED", f"the server has no method {path}")
        pairs = tuple((bytes(name), bytes(value)) for name, value in headers)
        return Request(make, pairs, timeout, fields.get(b"grpc-encoding", b"identity"), refusal)

    def open(self, stream: Http2Stream, request: Request) -> None:
        """Begin a call."""
        if request.refusal is not None or request.make is None:
            stream.handler = Call(self, stream, request)
            stream.end(request.refusal or b"")
            return
        call = request.make(stream, request)
        if stream.id not in stream.connection.streams:  # It was refused.
            return
        stream.handler = call
        if not call.many and not stream.half:
            stream.connection.incomplete(stream.id)
        if request.timeout is not None:
            call.set_timeout(request.timeout)


def is_grpc(kind: bytes) -> bool:
    """Return whether a content-type is gRPC's."""
    return kind == b"application/grpc" or kind.startswith((b"application/grpc+", b"application/grpc;"))


def seconds_of(text: bytes) -> float | None:
    """The seconds of a grpc-timeout, None if it is wrong."""
    number, unit = text[:-1], text[-1:].decode("latin-1")
    return int(number) * UNITS[unit] if number.isdigit() and len(number) <= 8 and unit in UNITS else None


def trailers(code: str, text: str) -> bytes:
    """The block of trailers of a call that failed."""
    short = text.encode(errors="backslashreplace")[:MAX_TEXT].decode(errors="ignore")
    message = urllib.parse.quote(short, safe=PLAIN).encode()
    return literal(b"grpc-status", b"%d" % CODES[code]) + literal(b"grpc-message", message)


def refusing(code: str, text: str) -> bytes:
    """The block of headers of a call that fails without a message."""
    return HEADERS + trailers(code, text)


class Call:
    """One call, whose messages it finds in the bytes of its stream. Classes of methods fill in what is done with them.

    Args:
        calls: All calls.
        stream: The stream of HTTP/2.
        request: What the headers said.

    Attributes:
        many: Whether clients may take their time between messages and before they end.
    """

    many = True

    def __init__(self, calls: Calls, stream: Http2Stream, request: Request) -> None:
        self.calls, self.stream, self.request = calls, stream, request
        self._buffer = bytearray()
        self._needed = 0  # bytes of the buffer with which a message is complete
        self._held = 0  # bytes of complete messages that count as held
        self._paused, self._half, self._begun = False, False, False
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------ what a method does
    def message(self, data: bytes) -> None:
        """Take a message."""

    def finished(self) -> None:
        """Note that the client has sent its last message."""

    def closed(self) -> None:
        """End what runs, as the call is over."""

    def drained(self) -> None:
        """Note that all responses have left."""

    # ------------------------------------------------------------------------------------------ requests
    def received(self, data: bytes) -> None:
        """Take bytes."""
        buffer = self._buffer
        if buffer or self._paused:
            buffer += data
            self.calls.held += len(data)
            if self._paused or len(buffer) < self._needed:
                if self.calls.held > self.calls.most_held:
                    self.fail("RESOURCE_EXHAUSTED", TOO_MANY_BYTES)
                return
            data = self._taken()
        at, end, needed, stream = 0, len(data), 5, self.stream
        while end - at >= 5 and not self._paused:
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            if size > self.calls.max_message:
                text = f"a message has {size} bytes, which is larger than max_body, {self.calls.max_message}"
                self.fail("RESOURCE_EXHAUSTED", text)
                return
            stop = at + 5 + size
            if stop > end:
                needed = 5 + size
                break
            message = data[at + 5 : stop]
            if data[at] and (message := self._expanded(data[at], message)) is None:  # type: ignore[assignment]
                return
            at = stop
            self.message(message)
            if stream.handler is not self:
                return
        if at < end:
            buffer += data[at:]
            self.calls.held += end - at
            self._needed = needed
            if at and self.many:
                stream.connection.complete(stream.id)  # The time of the next message begins.
            if not self._half and not self._paused:
                stream.connection.incomplete(stream.id)
        elif end and self.many:
            stream.connection.complete(stream.id)

    def _taken(self) -> bytes:
        """The bytes of the buffer, which is empty then."""
        data = bytes(self._buffer)
        self.calls.held -= len(data)
        self._buffer.clear()
        return data

    def _hold(self, size: int) -> bool:
        """Let a message of so many bytes count as held; return False where the call fails, as there is no room."""
        self._held += size
        self.calls.held += size
        if self.calls.held <= self.calls.most_held:
            return True
        self.fail("RESOURCE_EXHAUSTED", TOO_MANY_BYTES)
        return False

    def _expanded(self, flag: int, data: bytes) -> bytes | None:
        """A message that is compressed, None where the call fails."""
        encoding, most = self.request.encoding, self.calls.max_message
        if flag != 1 or encoding == b"identity":
            self.fail("INTERNAL", "the flag of a message is wrong")
        elif encoding not in (b"gzip", b"deflate"):
            name = encoding.decode(errors="replace")[:40]
            self.fail("UNIMPLEMENTED", f"compression {name!r} is not supported", ACCEPTED)
        else:
            try:
                inflator = zlib.decompressobj(32 + zlib.MAX_WBITS)
                expanded = inflator.decompress(data, most + 1)
            except zlib.error:
                self.fail("INTERNAL", "a message cannot be decompressed")
                return None
            if len(expanded) > most:
                self.fail("RESOURCE_EXHAUSTED", f"a message is larger than max_body, {most}, when decompressed")
            elif not inflator.eof or inflator.unused_data:
                self.fail("INTERNAL", "a message cannot be decompressed")
            else:
                return expanded
        return None

    def ended(self) -> None:
        """Note that no bytes come any more."""
        self._half = True
        self._end_reading()

    def _end_reading(self) -> None:
        if self._paused:
            return
        if self._buffer:
            self.fail("INTERNAL", "the last message is not complete")
        else:
            self.finished()

    def pause(self) -> None:
        """Take no further messages for now."""
        self._paused = True
        self.stream.pause()

    def resume(self) -> None:
        """Take messages again."""
        self._paused = False
        if self._buffer:
            self._needed = 0
            self.received(b"")
        if not self._paused and self.stream.handler is self:
            self.stream.resume()
            if self._half:
                self._end_reading()

    # ------------------------------------------------------------------------------------------ responses
    def send(self, data: bytes) -> bool:
        """Send a message; return whether it is gone, else `drained` will be called."""
        if not self._begun:
            self._begun = True
            self.stream.send_headers(HEADERS)
        return self.stream.send(b"\0" + len(data).to_bytes(4, "big") + data)

    def end(self) -> None:
        """End the call with status OK."""
        self._end(OK_TRAILERS if self._begun else HEADERS + OK_TRAILERS)

    def fail(self, code: str, text: str, more: bytes = b"") -> None:
        """End the call with an error."""
        self._end((b"" if self._begun else HEADERS) + trailers(code, text) + more)

    def _end(self, block: bytes) -> None:
        self._release()
        stream = self.stream
        stream.end(block)
        if stream.handler is self:  # The end waits behind responses.
            stream.handler = Over(stream)
        self.closed()

    # ------------------------------------------------------------------------------------------ the end
    def set_timeout(self, seconds: float) -> None:
        """Let the call fail if it takes longer."""
        self._timer = self.stream.connection.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self.stream.handler is self:
            if self.stream.waiting is not None:
                self.stream.cut(CANCEL)
            else:
                self.fail("DEADLINE_EXCEEDED", "the time of the call is over")

    def late(self) -> None:
        """Fail, as a message is not complete in time, or an answer not read."""
        if self.stream.waiting is not None:
            self.stream.cut(CANCEL)
            return
        self.fail("DEADLINE_EXCEEDED", f"a message was not complete after {self.calls.request_timeout:g} s")

    def lost(self) -> None:
        """End, as the client is gone."""
        self._release()
        self.closed()

    def _release(self) -> None:
        """Hold nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._buffer:
            self._taken()
        self.calls.held -= self._held
        self._held = 0


class Over:
    """Takes the place of a Call that has ended, while responses wait for the client to read; requests are thrown away.

    Args:
        stream: The stream of HTTP/2.
    """

    def __init__(self, stream: Http2Stream) -> None:
        self._stream = stream

    def received(self, data: bytes) -> None:
        """Throw bytes away."""

    def ended(self) -> None:
        """Note that no bytes come any more."""

    def drained(self) -> None:
        """Note that all responses have left."""

    def lost(self) -> None:
        """End, as the client is gone."""

    def late(self) -> None:
        """End the stream, as the responses are not read in time."""
        self._stream.cut(CANCEL)


class UnaryCall(Call):
    """A call of one message and one answer.

    Args:
        calls: All calls.
        stream: The stream of HTTP/2.
        request: What the headers said.
        handle: Gives the answer to the message and the headers; what it raises is the call's error.
        on_error: Called with each error.
    """

    many = False

    def __init__(
        self,
        calls: Calls,
        stream: Http2Stream,
        request: Request,
        handle: Callable[[bytes, Any], Awaitable[bytes]],
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__(calls, stream, request)
        self._handle, self._on_error = handle, on_error
        self._message: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    def message(self, data: bytes) -> None:
        """Keep the message."""
        if self._message is not None:
            self.fail("INTERNAL", "the method takes one message")
        elif self._hold(len(data)):
            self._message = data

    def finished(self) -> None:
        """Run the method."""
        if self._message is None:
            self.fail("INTERNAL", "the method takes a message")
            return
        self._task = self.stream.connection.loop.create_task(self._run(self._message))
        self._message = None

    async def _run(self, message: bytes) -> None:
        try:
            data = await self._handle(message, self.request.headers)
        except Exception as e:
            self._task = None
            self._on_error(e)
            self.fail(status_of(e).grpc, text_of(e))
        except asyncio.CancelledError:
            if self._task is not None:  # It was cancelled further below.
                self._task = None
                self.fail("CANCELLED", "the call was cancelled by the server")
            raise
        else:
            self._task = None
            self._release()
            self.stream.answer(HEADERS, b"\0" + len(data).to_bytes(4, "big") + data, OK_TRAILERS)

    def closed(self) -> None:
        """Cancel what runs."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
