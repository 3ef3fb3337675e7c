"""WebSockets of a Service: a connection is a sequence, a binary message a frame, and each is answered in order.

The frames of a connection run one after the other, those of many connections in batches.
"""

from __future__ import annotations

import asyncio
import collections
import secrets
import urllib.parse
from typing import Any

import numpy as np
import orjson
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from rnnfast.errors import ClosedError, InputError, InputTypeError, LimitError, Overloaded
from rnnfast.server.faults import TOO_MANY_BYTES, ForbiddenError, NotFoundError, UnavailableError, status_of, text_of
from rnnfast.server.http_protocol import HttpServer
from rnnfast.server.requests import InferRequest, InferResponse
from rnnfast.server.served_model import ServedModel
from rnnfast.server.service import Service
from rnnfast.server.statistics import count_reason
from rnnfast.server.websocket_frames import Frames, reply

# Codes with which connections are closed.
DONE, OVER, INVALID, NO_CODE, DEFECT, FULL = 1000, 1001, 1003, 1005, 1011, 1013
# The most frames of a connection that wait; no more is read until there are half as many.
MAX_WAITING = 64
# Seconds that a client has to answer when its connection is closed.
CLOSE_SECONDS = 2.0
# The most bytes of the reason with which a connection is closed.
REASON_BYTES = 123


class WebSocketProtocol(asyncio.Protocol):
    """A connection, as HttpProtocol hands it over after reading its request.

    Args:
        service: The Service.
        server: The HttpServer, which has the connection among its own.
    """

    def __init__(self, service: Service, server: HttpServer) -> None:
        self._service, self._server = service, server
        self._loop = asyncio.get_running_loop()
        self._protocol = ServerProtocol(max_size=service.settings.max_body)
        self._transport: Any = None
        self._model: ServedModel | None = None
        self._frames: Frames | None = None
        self._id = f"websocket-{secrets.token_hex(16)}"  # Nobody else can ask for this sequence.
        # Messages that wait, the bytes of them, and those that complete the one that is being received.
        self._waiting = collections.deque[Any]()
        self._waiting_bytes, self._parts, self._text = 0, bytearray(), False
        self._held = 0  # what of these, and of the frame that is being received, counts as held by the server
        self._dropping = False  # what still comes, as the server held too much
        self._task: asyncio.Task[None] | None = None  # kept, for asyncio does not keep it
        self._begun, self._running, self._reading, self._finishing = False, False, True, False
        self._ended: tuple[str, bool] | None = None  # why the sequence ended, and whether its client said so
        self._writable = True
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------ connection
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._protocol.receive_eof()
        self._end_sequence("was closed as its connection broke", False)
        self._server.held -= self._held
        self._held = 0

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._dropping:
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._accept(event)
            elif isinstance(event, Frame):
                self._receive(event)
        self._count_held()
        if self._held and self._server.held > self._server.most_held:
            self._close(FULL, TOO_MANY_BYTES)
            self._dropping = True
            self._parts.clear()
            self._protocol.reader.buffer.clear()
            self._count_held()
        self._flush()

    def pause_writing(self) -> None:
        """Run and read no frames while results, and answers to pings, cannot be sent."""
        self._writable = False
        self._pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        if not self._too_much(1):
            self._read_on()
        self._run_next()

    def shutdown(self) -> None:
        """Close the connection, because the server ends."""
        self._close(OVER, "the server is ending")

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _flush(self) -> None:
        """Send what the protocol wants to send."""
        for data in self._protocol.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            else:
                self._transport.close()
        if self._protocol.close_expected() and not self._finishing:
            self._finishing = True
            self._wait(CLOSE_SECONDS, self._transport.abort)

    def _wait(self, seconds: float, function: Any) -> None:
        """Call a function some seconds from now, in place of what was to be called before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, function)

    def _close(self, code: int, reason: str) -> None:
        """Close the connection with a code and a reason."""
        if self._protocol.state is State.OPEN:
            reason = reason.encode(errors="backslashreplace")[:REASON_BYTES].decode(errors="ignore")
            self._protocol.send_close(code, reason)
            self._flush()
        elif self._protocol.state is State.CONNECTING:
            self._transport.close()
        self._waiting.clear()  # Nobody gets their results. The client's answer is behind those that were not read.
        self._waiting_bytes = 0
        self._read_on()

    # ------------------------------------------------------------------------------------------ beginning
    def _accept(self, request: Request) -> None:
        """Answer the request that asks for a WebSocket."""
        if self._protocol.handshake_exc is not None:
            return
        try:
            self._begin(request)
        except Exception as e:
            count_reason(self._service.errors, e)
            body = orjson.dumps({"error": text_of(e).encode(errors="backslashreplace").decode()})
            self._protocol.send_response(
                Response(
                    status_of(e).http,
                    "",
                    Headers(
                        {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
                    ),
                    body,
                )
            )
            return
        response = self._protocol.accept(request)
        self._protocol.send_response(response)
        if response.status_code == 101 and self._model is not None:
            self._wait(self._model.settings.idle, self._too_quiet)

    def _begin(self, request: Request) -> None:
        """Find the model and what the URL says of messages.

        Raises:
            Error: The client may not use the server, or there is no such model, or an option is wrong.
        """
        origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
        if len(origins) > 1 or len(hosts) > 1:
            raise InputError("the request has a header Origin or Host twice")
        if origins and _host_of(origins[0]) != "".join(hosts):
            raise ForbiddenError(f"pages of {origins[0][:80]!r} may not use this server")
        self._service.access.check_token((name.lower(), value) for name, value in request.headers.raw_items())
        if len(self._server.connections) > self._service.settings.max_connections:
            raise Overloaded("too many connections")
        if self._service.draining:
            raise UnavailableError("the server is ending")
        path, _, query = request.path.partition("?")
        match [urllib.parse.unquote(part) for part in path.strip("/").split("/")]:
            case ["v2", "models", name, "stream"]:
                version = ""
            case ["v2", "models", name, "versions", version, "stream"]:
                pass
            case _:
                raise NotFoundError(f"there is no WebSocket at {path[:200]}")
        self._model = self._service.find(name, version)
        self._frames = Frames(self._model, query)

    def _too_quiet(self) -> None:
        if not self._begun:
            self._close(OVER, "no frame came")

    # ------------------------------------------------------------------------------------------ messages
    def _receive(self, frame: Frame) -> None:
        """Take a frame of the WebSocket's protocol, which may be a part of a message."""
        if frame.opcode is Opcode.CLOSE:
            received = self._protocol.close_rcvd
            by_client = received is not None and received.code in (DONE, OVER, NO_CODE)
            self._end_sequence("was ended by its client" if by_client else "was closed by its client", by_client)
            return
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = frame.opcode is Opcode.TEXT
            if frame.fin:
                self._take(frame.data)
                return
            self._parts = bytearray(frame.data)
        elif frame.opcode is Opcode.CONT:
            self._parts += frame.data
            if frame.fin:
                data, self._parts = bytes(self._parts), bytearray()
                self._take(data)

    def _take(self, data: Any) -> None:
        """Let a message wait for its turn."""
        if self._protocol.state is not State.OPEN or self._ended is not None:
            return
        self._waiting.append(str(data, "utf-8", "replace") if self._text else data)
        self._waiting_bytes += len(data)
        if self._too_much(1):
            self._pause_reading()
        self._run_next()

    def _too_much(self, divisor: int) -> bool:
        """Return whether more messages wait than may, or more than a part of that."""
        return (
            len(self._waiting) >= MAX_WAITING // divisor
            or self._waiting_bytes > self._service.settings.max_body // divisor
        )

    def _count_held(self) -> None:
        """Let the bytes that came and were not run yet count as held by the server."""
        held = len(self._protocol.reader.buffer) + len(self._parts) + self._waiting_bytes
        self._server.held += held - self._held
        self._held = held

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _run_next(self) -> None:
        """Run messages that wait, until one takes its time."""
        while self._waiting and not self._running and self._writable:
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message)
            if self._held:
                self._count_held()
            if not self._too_much(2):
                self._read_on()
            if isinstance(message, str):
                self._read_text(message)
            else:
                self._run(message)

    def _read_text(self, text: str) -> None:
        try:
            wanted = orjson.loads(text)
        except orjson.JSONDecodeError:
            wanted = None
        if wanted != {"end": True}:
            self._close(INVALID, f'text {text[:40]!r} came, expected {{"end": true}} or bytes')
            return
        self._end_sequence("was ended by its client", True)
        self._close(DONE, "")

    def _run(self, message: Any) -> None:
        """Begin to run a frame."""
        assert self._model is not None and self._frames is not None
        try:
            frame = self._frames.frame(message)
            inputs, self._running = {self._frames.input: frame}, True
            parameters = {"sequence_id": self._id, "sequence_start": not self._begun}
            if not self._begun:
                inputs |= self._frames.fixed
            request = InferRequest(self._model.name, self._model.version, "", inputs, [], parameters)

            def then(response: InferResponse | None, error: BaseException | None) -> None:
                self._answer(frame, response, error)
                self._run_next()

            # The first frame, and one that the pool cannot run, are requests like those of HTTP.
            if self._model.submit(request, then, self) is None:
                self._task = self._loop.create_task(self._infer(frame, request))
        except Exception as e:
            self._running = False
            self._fail(e)

    async def _infer(self, frame: np.ndarray, request: InferRequest) -> None:
        """Run a frame as a request."""
        model = self._model
        assert model is not None and model.sequences is not None
        try:
            response = await self._service.infer_here(request)
        except Exception as e:
            self._answer(frame, None, e)
        else:
            if not self._begun:
                self._begun = True
                model.sequences.own(self._id, self, self._closed)
            self._answer(frame, response, None)
        self._run_next()

    def _answer(self, frame: np.ndarray, response: InferResponse | None, error: BaseException | None) -> None:
        """Send the results of a frame that ran, or the reason why it did not."""
        assert self._model is not None and self._frames is not None
        self._running = False
        if self._ended is not None:
            self._end_sequence(*self._ended)
        elif response is None:
            assert error is not None
            self._fail(error)
        else:
            self._frames.took(frame)
            if self._protocol.state is State.OPEN:
                data, text = reply(response)
                (self._protocol.send_text if text else self._protocol.send_binary)(data)
                self._flush()

    def _fail(self, error: BaseException) -> None:
        """Tell the client why a frame was not run."""
        count_reason(self._service.errors, error)
        if isinstance(error, Overloaded) and self._begun:
            if self._protocol.state is State.OPEN:
                self._protocol.send_text(orjson.dumps({"error": text_of(error)}))
                self._flush()
            return
        if isinstance(error, (Overloaded, LimitError)):
            code = FULL
        elif isinstance(error, (ClosedError, UnavailableError)):
            code = OVER
        else:
            code = INVALID if isinstance(error, (InputError, InputTypeError)) else DEFECT
        self._close(code, text_of(error))

    # ------------------------------------------------------------------------------------------ end
    def _end_sequence(self, why: str, by_client: bool) -> None:
        """End the sequence, if it is live, now or after the frame that runs. Frames that wait are not run."""
        self._waiting.clear()
        self._ended = self._ended or (why, by_client)
        if self._begun and not self._running and self._model is not None and self._model.sequences is not None:
            self._begun = False
            self._model.sequences.drop(self._id, *self._ended, owner=self)

    def _closed(self, why: str) -> None:
        """The server closed the sequence."""
        self._close(OVER, f"the sequence {why}")


def _host_of(origin: str) -> str | None:
    """The host and port of an origin, None if it has none."""
    try:
        return urllib.parse.urlsplit(origin).netloc
    except ValueError:
        return None
