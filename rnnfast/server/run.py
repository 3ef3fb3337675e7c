"""Runs a server: its Service, HTTP and gRPC in one event loop, until a signal ends it."""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
import socket
import time
from collections.abc import Callable

import uvicorn
import uvloop

from rnnfast.server.access import tls_context
from rnnfast.server.grpc import GrpcFront
from rnnfast.server.http import HttpApplication
from rnnfast.server.http_protocol import http_config
from rnnfast.server.service import Service
from rnnfast.server.settings import Settings
from rnnfast.server.websocket import WebSocketProtocol

# Seconds that answers have to reach their clients when the server ends.
END_SECONDS = 2.0


def run(settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let live sequences end.

    Args:
        settings: The Settings.
        tell: Called with a line of text when the server listens, and when it ends.

    Raises:
        Error: A model cannot be loaded.
        OSError: An address is taken.
    """
    uvloop.run(serve(Service(settings), tell))


async def serve(service: Service, tell: Callable[[str], None], ended: asyncio.Event | None = None) -> None:
    """As `run`, in a running event loop, for a service that was not started; with `ended` until that is set."""
    settings, loop = service.settings, asyncio.get_running_loop()
    if ended is None:
        ended = asyncio.Event()
        for number in signal.SIGINT, signal.SIGTERM:
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, service.access.reload)
    listener = socket.create_server((settings.host, settings.http_port), backlog=2048)
    tls = tls_context(settings)
    ws = functools.partial(WebSocketProtocol, service)
    http = uvicorn.Server(http_config(HttpApplication(service), ws, settings, tls, round(END_SECONDS)))
    http.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    grpc = _grpc_front(service)
    serving = asyncio.create_task(http._serve([listener]))
    try:
        await service.start()
        gc.freeze()  # Loaded models stay; collections that visit them take milliseconds, while requests wait.
        host, port = listener.getsockname()[:2]
        tell(f"listening on {'http' if tls is None else 'https'}://{host}:{port}")
        if grpc is not None:
            await grpc.start()
            tell(f"listening on grpc://{host}:{grpc.port}")
        await ended.wait()
        service.begin_draining()
        if grpc is not None:
            await grpc.tell_ready()
        await service.drained(time.monotonic() + settings.drain)
    finally:
        if grpc is not None:
            await grpc.stop(END_SECONDS)
        http.should_exit = True
        await serving
        await service.stop()


def _grpc_front(service: Service) -> GrpcFront | None:
    """The gRPC front, which has its port but does not answer yet; None if the settings want none."""
    settings = service.settings
    if settings.grpc_port is None:
        return None
    front = GrpcFront(service)
    front.listen(settings.host, settings.grpc_port)
    return front
