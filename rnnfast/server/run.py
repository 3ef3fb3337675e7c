"""Runs a server: its Service, HTTP and gRPC in one event loop, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Callable

import uvicorn
import uvloop

from rnnfast.server.http import HttpApplication
from rnnfast.server.service import Service
from rnnfast.server.settings import Settings

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
    uvloop.run(serve(settings, tell))


async def serve(settings: Settings, tell: Callable[[str], None]) -> None:
    """As `run`, in a running event loop."""
    service = Service(settings)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    listener = socket.create_server((settings.host, settings.http_port), backlog=2048)
    http = uvicorn.Server(
        uvicorn.Config(
            HttpApplication(service),
            http="httptools",
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=settings.access_log,
            server_header=False,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=round(END_SECONDS),
        )
    )
    http.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(http._serve([listener]))
    for number in signal.SIGINT, signal.SIGTERM:
        loop.add_signal_handler(number, ended.set)
    try:
        await service.start()
        gc.freeze()  # Loaded models stay; collections that visit them take milliseconds, while requests wait.
        host, port = listener.getsockname()[:2]
        tell(f"listening on http://{host}:{port}")
        await ended.wait()
        service.begin_draining()
        await service.drained(time.monotonic() + settings.drain)
    finally:
        http.should_exit = True
        await serving
        await service.stop()
