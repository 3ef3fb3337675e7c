"""Runs a server: its Service, HTTP and gRPC in one event loop, until a signal ends it.

The end of a server has these steps. New sequences are refused, and it says that it is not ready; live sequences may end
until a deadline; no request is taken any more, and those that run are answered; the states of sequences that are still
live are written; connections end. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvloop

from rnnfast.server.access import tls_context
from rnnfast.server.grpc import GrpcFront
from rnnfast.server.http import HttpApplication
from rnnfast.server.http_protocol import BACKLOG, HttpServer
from rnnfast.server.service import Service
from rnnfast.server.settings import Settings
from rnnfast.server.websocket import WebSocketProtocol

# Seconds that requests which run when no more are taken have to be done, and their answers to reach the clients.
FINISH_SECONDS, END_SECONDS = 10.0, 2.0
SIGNALS = signal.SIGINT, signal.SIGTERM
Tell = Callable[[str], None]
# What uvloop warns of at each write after a client has left. A client with many requests may so fill a log, and let the
# server wait for whoever reads it.
LOST_WRITES = frozenset({"SSL connection is closed", "socket.send() raised exception."})


def run(settings: Settings, tell: Tell, warn: Tell | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then let live sequences end.

    Args:
        settings: The Settings.
        tell: Called with a line of text when the server listens.
        warn: Called with a line for whoever runs the server; `tell` if it is None.

    Raises:
        Error: A model cannot be loaded.
        OSError: An address is taken.
    """
    warn = tell if warn is None else warn
    if settings.processes > 1:
        from rnnfast.server.supervisor import supervise

        asyncio.run(supervise(settings, tell, warn))
    else:
        uvloop.run(_serve_alone(settings, tell, warn))


async def _serve_alone(settings: Settings, tell: Tell, warn: Tell) -> None:
    service, ended = Service(settings, warn), asyncio.Event()
    with handling_signals(service, ended):
        await serve(service, tell, ended)


async def serve(service: Service, tell: Tell, ended: asyncio.Event) -> None:
    """As `run`, in a running event loop and in this process alone, until `ended` is set.

    Args:
        service: The Service, which was not started; with its peers if it is one of several processes.
        tell: As for `run`.
        ended: Set to end the server.
    """
    settings = service.settings
    listener = listening_socket(settings.host, settings.http_port, shared=service.peers is not None)
    try:
        tls = tls_context(settings)
        grpc = _grpc_front(service)
    except BaseException:
        listener.close()
        raise
    http = HttpServer(HttpApplication(service), functools.partial(WebSocketProtocol, service), settings)
    await http.start(listener, tls)
    logger = logging.getLogger("asyncio")
    logger.addFilter(is_no_lost_write)
    try:
        await _start(service, ended)
        gc.freeze()  # Loaded models stay; collections that visit them take milliseconds, while requests wait.
        if not ended.is_set():
            await _tell_addresses(service, listener, grpc, tell)
        await ended.wait()
        service.begin_draining()
        if grpc is not None:
            await grpc.tell_ready()
        await service.drained(time.monotonic() + settings.drain)
        await service.finish(FINISH_SECONDS)
    finally:
        if grpc is not None:
            await grpc.stop(END_SECONDS)
        await http.stop(END_SECONDS)
        await service.stop()
        logger.removeFilter(is_no_lost_write)


def is_no_lost_write(record: logging.LogRecord) -> bool:
    """Return whether a record of the log says more than that a client has left."""
    return record.getMessage() not in LOST_WRITES


async def _start(service: Service, ended: asyncio.Event) -> None:
    """Start a service, or stop in the middle of it where the server is to end."""
    starting, waiting = asyncio.create_task(service.start()), asyncio.create_task(ended.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting


async def _tell_addresses(service: Service, listener: socket.socket, grpc: GrpcFront | None, tell: Tell) -> None:
    """Begin to answer gRPC, and tell where the server listens."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    tell(f"listening on {'http' if service.settings.tls_certificate is None else 'https'}://{host}:{port}")
    if grpc is None:
        return
    await grpc.start()
    tell(f"listening on grpc://{host}:{grpc.port}")
    if service.peers is not None:
        tasks = set[asyncio.Task[None]]()

        def change() -> None:
            task = asyncio.create_task(grpc.tell_ready())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        service.peers.on_change = change
        change()


@contextlib.contextmanager
def handling_signals(service: Service, ended: asyncio.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM set an event, and the second one end the process; SIGHUP reads tokens again."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        ended.set()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in SIGNALS:
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, service.access.reload)
    try:
        yield
    finally:
        for number in (*SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)


def listening_socket(host: str, port: int, shared: bool) -> socket.socket:
    """A socket that listens, which other processes may share the port of where `shared`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)


def _grpc_front(service: Service) -> GrpcFront | None:
    """The gRPC front, which has its port but does not answer yet; None if the settings want none."""
    settings = service.settings
    if settings.grpc_port is None:
        return None
    front = GrpcFront(service, reuse_port=service.peers is not None)
    front.listen(settings.host, settings.grpc_port)
    return front
