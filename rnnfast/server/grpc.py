"""The gRPC front of a Service: inference.GRPCInferenceService as Triton's clients call it, and the health service."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.server.faults import ForbiddenError, MissingExtensionError, NotFoundError, status_of, text_of
from rnnfast.server.grpc_messages import decode, encode, encode_error_in_stream, encode_in_stream, parsed
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
# The most characters of an error's text, which is in a header of the response.
MAX_TEXT = 2000
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
# A client that is gone without a word is found after these milliseconds without data and without an answer to a ping.
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
# Clients may ping this often.
CLIENT_PING_MS = 5_000


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
        self._service = service
        settings = service.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(reuse_port)),
                ("grpc.max_receive_message_length", settings.max_body),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_MS),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
            ],
            maximum_concurrent_rpcs=settings.max_connections,
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        self._streams = set[Stream]()

    # ------------------------------------------------------------------------------------------ life
    def listen(self, host: str, port: int) -> None:
        """Take a port, 0 for any free one; calls are answered once `start` was called. With TLS if the settings say so.

        Raises:
            OSError: The address is taken, or a file of TLS cannot be read.
        """
        settings = self._service.settings
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if settings.tls_certificate is None or settings.tls_key is None:
                self.port = self._server.add_insecure_port(address)
                return
            with open(settings.tls_key, "rb") as key, open(settings.tls_certificate, "rb") as certificate:
                credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
            self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as e:
            raise OSError(f"gRPC cannot listen at {address}: {e}") from None

    async def start(self) -> None:
        """Begin to answer."""
        await self.tell_ready()
        await self._server.start()

    async def tell_ready(self) -> None:
        """Let the health service say whether the Service is ready now."""
        status = health_pb2.HealthCheckResponse
        now = status.SERVING if self._service.ready else status.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, now)

    async def stop(self, seconds: float) -> None:
        """Tell clients that the server ends, and end after the calls that run, in so many seconds at the latest."""
        for stream in list(self._streams):
            stream.end()
        await self._server.stop(seconds)

    # ------------------------------------------------------------------------------------------ methods
    def _handlers(self) -> dict[str, Any]:
        """{method: handler} of bytes."""
        handlers: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
        }
        for name in methods():
            if name not in handlers:
                handlers[name] = grpc.unary_unary_rpc_method_handler(self._answering(name))
        for name, text in REFUSED.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(self._refusing(text))
        return handlers

    async def _infer(self, data: bytes, context: Any) -> bytes:
        try:
            self._check_token(context)
            return encode(await self._service.infer(decode(data)))
        except Exception as e:
            await self._abort(context, e)
            raise

    async def _stream(self, _: Any, context: Any) -> None:
        try:
            self._check_token(context)
        except Exception as e:
            await self._abort(context, e)
        stream = Stream(self._service, context)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def _answering(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """The handler of a method that answers with what `_answer` gives."""
        response = methods()[name].response

        async def handle(data: bytes, context: Any) -> bytes:
            try:
                if name not in ("ServerLive", "ServerReady"):
                    self._check_token(context)
                answer = await self._answer(name, parsed(name, data))
                return json_format.ParseDict(answer, response()).SerializeToString()
            except Exception as e:
                await self._abort(context, e)
                raise

        return handle

    def _refusing(self, text: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """The handler of a method that is not supported."""

        async def handle(_: bytes, context: Any) -> bytes:
            await self._abort(context, MissingExtensionError(text))
            raise AssertionError

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

    async def _abort(self, context: Any, error: Exception) -> None:
        """End a call with an error."""
        count_reason(self._service.errors, error)
        code = getattr(grpc.StatusCode, status_of(error).grpc)
        await context.abort(code, text_of(error)[:MAX_TEXT].encode(errors="backslashreplace").decode())

    def _check_token(self, context: Any) -> None:
        """Raise UnauthorizedError if the server knows tokens and the call brings none of them."""
        if self._service.settings.token_file is not None:
            self._service.access.check_token(context.invocation_metadata() or ())


class Stream:
    """One ModelStreamInfer call.

    Requests of many sequences run at the same time, those of each one after the other. Those without a sequence run at
    the same time too, and their responses come in the order of the requests.

    Args:
        service: The Service.
        context: The call's ServicerContext.
    """

    def __init__(self, service: Service, context: Any) -> None:
        self._service, self._context, self._owner = service, context, service.new_owner()
        self._loop = asyncio.get_running_loop()
        self._queues: dict[tuple[str, Any], collections.deque[tuple[InferRequest, int]]] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._last: asyncio.Task[None] | None = None  # of the requests without a sequence
        # What was read and is not answered: the number of requests, and their bytes.
        self._requests, self._bytes = 0, 0
        self._out = collections.deque[tuple[bytes, int]]()
        self._wake: asyncio.Future[None] | None = None  # of the writer, which waits for responses
        self._room: asyncio.Future[None] | None = None  # of the reader, which waits for responses to be written
        self._began: dict[tuple[ServedModel, Any], None] = {}  # sequences whose first request came here
        self._reader: asyncio.Task[None] | None = None
        self._ending = False

    def end(self) -> None:
        """Read no more requests, because the server ends."""
        self._ending = True
        if self._reader is not None:
            self._reader.cancel()

    async def run(self) -> None:
        """Answer requests until the client has sent its last one, or is gone."""
        writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())
        try:
            await asyncio.wait((self._reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                while self._requests:
                    await self._written()
                if self._ending:
                    await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the server is ending")
        finally:
            # gRPC may cancel the call once more while it ends.
            await asyncio.shield(self._loop.create_task(self._finish([self._reader, writer])))

    async def _finish(self, tasks: list[asyncio.Task[None]]) -> None:
        """End the tasks of the call, and then the sequences that began in it."""
        tasks += self._tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._ending:
            for model, sequence in self._began:
                self._service.drop(model, sequence, "was closed as the stream that began it ended", self._owner)

    # ------------------------------------------------------------------------------------------ requests
    async def _read(self) -> None:
        most = self._service.settings.max_body
        while True:
            while self._requests >= MAX_IN_FLIGHT or self._bytes > most:
                await self._written()
            data = await self._context.read()
            if data is grpc.aio.EOF:
                return
            self._take(data)

    async def _written(self) -> None:
        """Wait until a response is written."""
        self._room = self._loop.create_future()
        await self._room

    def _take(self, data: bytes) -> None:
        self._requests += 1
        size = len(data)
        self._bytes += size
        try:
            request = decode(data)
        except Exception as e:
            count_reason(self._service.errors, e)
            self._respond(encode_error_in_stream(text_of(e), _id_of(data)), size)
            return
        sequence = request.parameters.get("sequence_id")
        if not sequence:
            self._last = self._start(self._run_alone(request, size, self._last))
            return
        key = request.model, sequence
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = collections.deque()
            self._start(self._run_sequence(key, queue))
        queue.append((request, size))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_sequence(self, key: tuple[str, Any], queue: collections.deque[tuple[InferRequest, int]]) -> None:
        """Answer the requests of a sequence that are there."""
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
        self._out.append((data, size))
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None

    async def _write(self) -> None:
        out, write = self._out, self._context.write
        while True:
            while out:
                data, size = out.popleft()
                await write(data)
                self._requests -= 1
                self._bytes -= size
                if self._room is not None:
                    if not self._room.done():
                        self._room.set_result(None)
                    self._room = None
            self._wake = self._loop.create_future()
            await self._wake


def _id_of(data: bytes) -> str:
    """The id of a request that is wrong, "" if it is no request at all."""
    try:
        return parsed("ModelInfer", data).id
    except InputError:
        return ""
