"""The gRPC front of a Service: inference.GRPCInferenceService as Triton's clients call it, and the health service."""

from __future__ import annotations

import asyncio
import collections
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.server.access import tls_context
from rnnfast.server.faults import ForbiddenError, MissingExtensionError, NotFoundError, status_of, text_of
from rnnfast.server.grpc_messages import Decoder, encode, encode_error_in_stream, encode_in_stream, parsed
from rnnfast.server.grpc_transport import HELD_BYTES, Call, Calls, Request, UnaryCall
from rnnfast.server.http2 import Http2Stream
from rnnfast.server.protocol import SERVICE, methods
from rnnfast.server.requests import (
    NO_LOG_SETTINGS,
    NO_SHARED_MEMORY,
    NO_TRACING,
    OWN_FILES,
    InferRequest,
    InferResponse,
)
from rnnfast.server.served_model import ServedModel
from rnnfast.server.service import Service
from rnnfast.server.statistics import count_reason

# The most requests of one stream that were read and whose responses were not written.
MAX_IN_FLIGHT = 256
# The most sequences that end with one stream; older ones of more end when they are idle.
MAX_BEGAN = 2**16
# Connections that may wait to be accepted, and the seconds between two looks whether all have ended.
BACKLOG, END_LOOK_SECONDS = 2048, 0.01
ENDING = "the server is ending"
# Methods of Triton's that this server does not have.
REFUSED = {
    "SystemSharedMemoryStatus": NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": NO_SHARED_MEMORY,
    "TraceSetting": NO_TRACING,
    "LogSettings": NO_LOG_SETTINGS,
}
# Statuses of the health service.
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
HEALTH = "grpc.health.v1.Health"


class GrpcFront:
    """The gRPC server of a Service.

    Args:
        service: The Service.
        reuse_port: Whether other processes may listen at the same port.

    Attributes:
        port: The port at which it listens, once `listen` was called.
    """

    port: int

    def __init__(self, service: Service, reuse_port: bool = False) -> None:
        self._service, self._reuse_port = service, reuse_port
        settings = service.settings
        self._calls = Calls(self._makers(), settings.max_connections, settings.max_body, settings.request_timeout)
        self._streams, self._watches, self._decoder = set[Stream](), set[Watch](), Decoder()
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None

    # ------------------------------------------------------------------------------------------ life
    def listen(self, host: str, port: int) -> None:
        """Take a port, 0 for any free one; calls are answered once `start` was called. With TLS if the settings say so.

        Raises:
            OSError: The address is taken.
            ModelError: A file of TLS cannot be read.
        """
        self._tls = tls_context(self._service.settings)
        if self._tls is not None:
            self._tls.set_alpn_protocols(["h2"])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server(
                (host, port), family=family, backlog=BACKLOG, reuse_port=self._reuse_port
            )
        except OSError as e:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise OSError(f"gRPC cannot listen at {address}: {e.strerror or e}") from None
        self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Begin to answer."""
        assert self._socket is not None
        self._server = await asyncio.get_running_loop().create_server(
            self._calls.protocol, sock=self._socket, ssl=self._tls, backlog=BACKLOG
        )

    async def tell_ready(self) -> None:
        """Let the health service say whether the Service is ready now."""
        for watch in list(self._watches):
            watch.tell()

    async def stop(self, seconds: float) -> None:
        """Tell clients that the server ends, and end after the calls that run, in so many seconds at the latest."""
        calls, loop = self._calls, asyncio.get_running_loop()
        calls.ending = True
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        for connection in list(calls.connections):
            connection.go_away()
        for stream in list(self._streams):
            stream.end_with_server()
        for watch in list(self._watches):
            watch.end_with_server()
        deadline = loop.time() + seconds
        while calls.connections and loop.time() < deadline:
            await asyncio.sleep(END_LOOK_SECONDS)
        for connection in list(calls.connections):
            connection.abort()

    def health(self, name: str) -> int | None:
        """The status of a service, None if there is no such service."""
        if name not in ("", SERVICE):
            return None
        return SERVING if self._service.ready else NOT_SERVING

    # ------------------------------------------------------------------------------------------ methods
    def _makers(self) -> dict[bytes, Any]:
        """{path of a method: makes its Call}."""
        handlers: dict[str, Any] = {"ModelInfer": self._infer}
        for name in methods():
            if name not in handlers:
                handlers[name] = self._answering(name)
        for name, text in REFUSED.items():
            handlers[name] = self._refusing(text)
        makers: dict[bytes, Any] = {
            f"/{SERVICE}/{name}".encode(): functools.partial(self._unary, handler) for name, handler in handlers.items()
        }
        makers[f"/{SERVICE}/ModelStreamInfer".encode()] = self._stream
        makers[f"/{HEALTH}/Check".encode()] = functools.partial(self._unary, self._check_health)
        makers[f"/{HEALTH}/Watch".encode()] = self._watch
        return makers

    def _unary(self, handler: Any, stream: Http2Stream, request: Request) -> Call:
        return UnaryCall(self._calls, stream, request, handler, self._count)

    def _count(self, error: BaseException) -> None:
        count_reason(self._service.errors, error)

    def _stream(self, stream: Http2Stream, request: Request) -> Call:
        try:
            self._check_token(request.headers)
        except Exception as e:
            self._count(e)
            return Refused(self._calls, stream, request, e)
        return Stream(self._calls, stream, request, self._service, self._streams, self._decoder)

    def _watch(self, stream: Http2Stream, request: Request) -> Call:
        return Watch(self._calls, stream, request, self, self._watches)

    async def _check_health(self, data: bytes, _: Any) -> bytes:
        status = self.health(_name_of(data))
        if status is None:
            raise NotFoundError("the health of this service is not known")
        return bytes((8, status))

    async def _infer(self, data: bytes, headers: Any) -> bytes:
        if self._service.settings.token_file is not None:
            self._check_token(headers)
        return encode(await self._service.infer(self._decoder.decode(data)))

    def _answering(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """The handler of a method that answers with what `_answer` gives."""
        response = methods()[name].response

        async def handle(data: bytes, headers: Any) -> bytes:
            if name not in ("ServerLive", "ServerReady"):
                self._check_token(headers)
            answer = await self._answer(name, parsed(name, data))
            return json_format.ParseDict(answer, response()).SerializeToString()

        return handle

    def _refusing(self, text: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """The handler of a method that is not supported."""

        async def handle(_: bytes, headers: Any) -> bytes:
            raise MissingExtensionError(text)

        return handle

    async def _answer(self, name: str, request: Any) -> dict[str, Any]:
        """The answer of a method but those of calls, as a dict of the response's fields."""
        service = self._service
        match name:
            case "ServerLive":
                return {"live": True}
            case "ServerReady":
                return {"ready": service.ready}
            case "ServerMetadata":
                return service.metadata()
            case "ModelReady":
                try:
                    service.find(request.name, request.version)
                except NotFoundError:
                    return {"ready": False}
                return {"ready": True}
            case "ModelMetadata":
                return service.model_metadata(request.name, request.version)
            case "ModelConfig":
                return {"config": service.find(request.name, request.version).config()}
            case "ModelStatistics":
                return await service.statistics_of_all(request.name, request.version)
        if request.repository_name:
            raise UnsupportedError("'repository_name' specification is not supported: there is one repository")
        match name:
            case "RepositoryIndex":
                return {"models": service.index(request.ready)}
            case "RepositoryModelLoad":
                if request.parameters:
                    raise ForbiddenError(OWN_FILES)
                await service.load(request.model_name)
            case "RepositoryModelUnload":
                await service.unload(request.model_name)
        return {}

    def _check_token(self, headers: Any) -> None:
        """Raise UnauthorizedError if the server knows tokens and the call brings none of them."""
        if self._service.settings.token_file is not None:
            self._service.access.check_token(headers)


class Refused(Call):
    """A call that fails with an error.

    Args:
        calls: All calls.
        stream: The stream of HTTP/2.
        request: What the headers said.
        error: The error.
    """

    def __init__(self, calls: Calls, stream: Http2Stream, request: Request, error: Exception) -> None:
        super().__init__(calls, stream, request)
        stream.handler = self
        self.fail(status_of(error).grpc, text_of(error))


class Watch(Call):
    """A call of the health service that is told of each change.

    Args:
        calls: All calls.
        stream: The stream of HTTP/2.
        request: What the headers said.
        front: The GrpcFront.
        watches: All such calls.
    """

    def __init__(
        self, calls: Calls, stream: Http2Stream, request: Request, front: GrpcFront, watches: set[Watch]
    ) -> None:
        super().__init__(calls, stream, request)
        self._front, self._watches = front, watches
        self._name: str | None = None
        self._told: int | None = None

    def message(self, data: bytes) -> None:
        """Begin to tell."""
        if self._name is not None:
            self.fail("INTERNAL", "the method takes one message")
            return
        try:
            self._name = _name_of(data)
        except InputError as e:
            self.fail("INVALID_ARGUMENT", str(e))
            return
        self._watches.add(self)
        self.tell()

    def finished(self) -> None:
        """End if there was no message; else the call goes on."""
        if self._name is None:
            self.fail("INTERNAL", "the method takes a message")

    def tell(self) -> None:
        """Send the status if it is another than before."""
        assert self._name is not None
        status = self._front.health(self._name) or SERVICE_UNKNOWN
        if status != self._told:
            self._told = status
            self.send(bytes((8, status)))

    def end_with_server(self) -> None:
        """End, because the server ends."""
        self.fail("UNAVAILABLE", ENDING)

    def closed(self) -> None:
        """Be told no more."""
        self._watches.discard(self)


class Stream(Call):
    """One ModelStreamInfer call.

    Requests of many sequences run at the same time, those of each one after the other. Those without a sequence run at
    the same time too, and their responses come in the order of the requests.

    Args:
        calls: All calls.
        stream: The stream of HTTP/2.
        request: What the headers said.
        service: The Service.
        streams: All such calls.
        decoder: Decodes the requests of all of them.
    """

    def __init__(
        self,
        calls: Calls,
        stream: Http2Stream,
        request: Request,
        service: Service,
        streams: set[Stream],
        decoder: Decoder,
    ) -> None:
        super().__init__(calls, stream, request)
        self._service, self._streams, self._owner = service, streams, service.new_owner()
        streams.add(self)
        self._loop = stream.connection.loop
        self._queues: dict[tuple[str, Any], collections.deque[tuple[InferRequest, int]]] = {}
        self._decode = decoder.decode
        self._tasks = set[asyncio.Future[Any]]()
        self._last: asyncio.Task[None] | None = None  # of the requests without a sequence
        # What was read and is not answered: the number of requests, and their bytes.
        self._requests, self._bytes = 0, 0
        self._unsent, self._unsent_bytes = 0, 0  # those of them whose responses wait for the client to read
        self._began: dict[tuple[ServedModel, Any], None] = {}  # sequences whose first request came here
        self._done, self._ending = False, False

    def end_with_server(self) -> None:
        """Read no more requests, because the server ends, and end after those that run."""
        self._ending = True
        self.pause()
        self._settle(0, 0)

    def finished(self) -> None:
        """End after the requests that run."""
        self._done = True
        self._settle(0, 0)

    def closed(self) -> None:
        """End the tasks of the call, and then the sequences that began in it."""
        self._streams.discard(self)
        if self._tasks:
            ending = self._loop.create_task(self._finish(list(self._tasks)))
            _ENDING_TASKS.add(ending)
            ending.add_done_callback(_ENDING_TASKS.discard)
        else:
            self._drop_sequences()

    async def _finish(self, tasks: list[asyncio.Future[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drop_sequences()

    def _drop_sequences(self) -> None:
        if not self._ending:
            for model, sequence in self._began:
                self._service.drop(model, sequence, "was closed as the stream that began it ended", self._owner)
        self._began.clear()

    # ------------------------------------------------------------------------------------------ requests
    def message(self, data: bytes) -> None:
        """Take a request."""
        size = len(data)
        self._requests += 1
        self._bytes += size
        if size >= HELD_BYTES and not self._hold(size):
            return
        try:
            self._take(self._decode(data), size)
        except Exception as e:
            count_reason(self._service.errors, e)
            self._respond(encode_error_in_stream(text_of(e), _id_of(data)), size)
        if self._requests >= MAX_IN_FLIGHT or self._bytes > self.calls.max_message:
            self.pause()

    def _take(self, request: InferRequest, size: int) -> None:
        """Begin to answer a request, after those before it of its sequence."""
        sequence = request.parameters.get("sequence_id")
        if not sequence:
            self._last = self._start(self._run_alone(request, size, self._last))
            return
        key = request.model, sequence
        queue = self._queues.get(key)
        if queue is not None:
            queue.append((request, size))
        elif not self._submit(key, request, size):
            self._queues[key] = collections.deque([(request, size)])
            self._start(self._run_sequence(key))

    def _submit(self, key: tuple[str, Any], request: InferRequest, size: int) -> bool:
        """Begin to run a further request of a live sequence without a task; return False where it needs one."""

        def then(response: InferResponse | None, error: BaseException | None) -> None:
            self._tasks.discard(future)  # type: ignore[arg-type]
            if self.stream.handler is not self or future.cancelled():  # type: ignore[union-attr]
                return  # The call is over.
            if response is not None:
                answer = encode_in_stream(response)
            else:
                assert error is not None
                count_reason(self._service.errors, error)
                answer = encode_error_in_stream(text_of(error), request.id)
            if self._queues[key]:
                self._start(self._run_sequence(key))
            else:
                del self._queues[key]
            self._respond(answer, size)

        future = self._service.submit(request, then)
        if future is None:
            return False
        self._tasks.add(future)
        self._queues[key] = collections.deque()
        return True

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_sequence(self, key: tuple[str, Any]) -> None:
        """Answer the requests of a sequence that are there."""
        queue = self._queues[key]
        while queue:
            request, size = queue.popleft()
            self._respond(await self._answer(request), size)
        del self._queues[key]

    async def _run_alone(self, request: InferRequest, size: int, before: asyncio.Task[None] | None) -> None:
        answer = await self._answer(request)
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._respond(answer, size)

    async def _answer(self, request: InferRequest) -> bytes:
        try:
            if request.parameters.get("sequence_id"):
                return encode_in_stream(await self._in_sequence(request))
            return encode_in_stream(await self._service.infer(request))
        except Exception as e:
            count_reason(self._service.errors, e)
            return encode_error_in_stream(text_of(e), request.id)

    async def _in_sequence(self, request: InferRequest) -> InferResponse:
        """The response to a request of a sequence, which ends with this call if it begins here."""
        began, parameters = self._began, request.parameters
        key = self._service.find(request.model, request.version), parameters["sequence_id"]
        if parameters.get("sequence_start"):
            # Before it runs: if the call is cancelled meanwhile, it may have begun.
            known = key in began
            began.pop(key, None)
            began[key], request.owner = None, self._owner
            try:
                response = await self._service.infer(request)
            except Exception:
                if not known:
                    began.pop(key, None)
                raise
            if len(began) > MAX_BEGAN:
                del began[next(iter(began))]
        else:
            response = await self._service.infer(request)
        if parameters.get("sequence_end"):
            began.pop(key, None)
        return response

    # ------------------------------------------------------------------------------------------ responses
    def _respond(self, data: bytes, size: int) -> None:
        if size >= HELD_BYTES and self._held:  # Nothing is held for a call that is over.
            self._held -= size
            self.calls.held -= size
        if self.send(data):
            self._settle(1, size)
        else:
            self._unsent += 1
            self._unsent_bytes += size

    def drained(self) -> None:
        """Take further requests, as the client has read."""
        requests, size = self._unsent, self._unsent_bytes
        self._unsent = self._unsent_bytes = 0
        self._settle(requests, size)

    def _settle(self, requests: int, size: int) -> None:
        """Note that requests have their responses, and go on or end."""
        self._requests -= requests
        self._bytes -= size
        if self._ending or self._done:
            if not self._requests and self.stream.handler is self:
                if self._done:
                    self.end()
                else:
                    self.fail("UNAVAILABLE", ENDING)
        elif (
            self._paused
            and self._requests <= MAX_IN_FLIGHT // 2  # what was kept is copied each time
            and self._bytes <= self.calls.max_message // 2
        ):
            self.resume()


# Tasks that end others, kept for asyncio does not keep them.
_ENDING_TASKS = set[Any]()


def _name_of(data: bytes) -> str:
    """The service that a request of the health service names, whose message has one string."""
    try:
        return str(StringValue.FromString(data).value)
    except DecodeError:
        raise InputError("unable to parse the request: its bytes are no HealthCheckRequest") from None


def _id_of(data: bytes) -> str:
    """The id of a request that is wrong, "" if it is no request at all."""
    try:
        return parsed("ModelInfer", data).id
    except InputError:
        return ""
