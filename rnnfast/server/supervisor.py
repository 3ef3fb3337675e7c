"""Keeps the processes of a server: starts them, starts one again that died, and hands on the signals that end them.

All processes listen at the same ports; the kernel gives each connection to one of them. They load the models on their
own, and nothing is forked from a process that has threads.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time

from rnnfast.errors import Error
from rnnfast.server.run import SIGNALS, Tell
from rnnfast.server.settings import Settings

# Seconds before a process that died is started again: the first, doubled each time up to the last, and the seconds of
# life after which it counts as well again.
FIRST_SECONDS, MOST_SECONDS, WELL_SECONDS = 0.1, 30.0, 60.0
# What the processes run. The path of modules is that of this process, without the current folder.
PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from rnnfast.server.worker import main; main()"
# The most bytes of a line of a process.
LINE_BYTES = 2**20


class StartError(Error):
    """A process of the server could not start."""


async def supervise(settings: Settings, tell: Tell, warn: Tell) -> None:
    """Serve with several processes until SIGINT or SIGTERM.

    Raises:
        StartError: A process could not start, as a model cannot be loaded.
        OSError: An address is taken.
    """
    folder = tempfile.mkdtemp(prefix="rnnfast-")
    reserved = []
    try:
        for name in "http_port", "grpc_port":
            port = getattr(settings, name)
            if port is not None:
                reserved.append(reserved_port(settings.host, port))
                settings = dataclasses.replace(settings, **{name: reserved[-1].getsockname()[1]})
        await Supervisor(settings, folder, tell, warn).run()
    finally:
        for place in reserved:
            place.close()
        shutil.rmtree(folder, ignore_errors=True)


def reserved_port(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for processes of this user, and does not listen.

    Raises:
        OSError: The port is taken, by a server that would share it too.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
        alone.listen(1)  # A bound socket alone is refused only where the other one listens.
    shared = socket.socket(family)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((host, port))
    return shared


class Supervisor:
    """The processes of a server.

    Args:
        settings: The Settings, with ports that are not 0.
        folder: The folder of the processes' sockets.
        tell: Called with each line that all processes have told.
        warn: Called with a line when a process died.
    """

    def __init__(self, settings: Settings, folder: str, tell: Tell, warn: Tell) -> None:
        self._settings, self._folder, self._tell, self._warn = settings, folder, tell, warn
        self._told: collections.Counter[str] = collections.Counter()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._error = ""
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Start all processes and keep them until a signal ends them."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._end, signal.SIGTERM)
        loop.add_signal_handler(signal.SIGHUP, self._send, signal.SIGHUP)
        try:
            await asyncio.gather(*(self._keep(number) for number in range(self._settings.processes)))
        finally:
            for process in self._processes.values():
                _signal(process, signal.SIGKILL)
            for number in (*SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
        if self._error:
            raise StartError(self._error)

    def _end(self, number: signal.Signals) -> None:
        """End all processes: at the first time as by SIGTERM, at the second time at once."""
        number = signal.SIGKILL if self._ending.is_set() else number
        self._ending.set()
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to all processes."""
        for process in self._processes.values():
            _signal(process, number)

    async def _keep(self, number: int) -> None:
        """Start a process, and again whenever it dies, until the server ends."""
        seconds, started_once = FIRST_SECONDS, False
        while not self._ending.is_set():
            began = time.monotonic()
            status, ready = await self._run(number)
            started_once |= ready
            if self._ending.is_set():
                return
            if not started_once:
                self._error = self._error or f"process {number} of the server ended with status {status} at its start"
                self._end(signal.SIGTERM)
                return
            seconds = FIRST_SECONDS if time.monotonic() - began > WELL_SECONDS else min(2 * seconds, MOST_SECONDS)
            self._warn(f"process {number} ended with status {status}: its sequences are gone; it is started again")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), seconds)

    async def _run(self, number: int) -> tuple[int, bool]:
        """Run a process to its end: (its exit status, whether it was ready)."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", PROGRAM, *sys.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which hands it on
            limit=LINE_BYTES,
        )
        self._processes[number] = process
        assert process.stdin is not None and process.stdout is not None
        try:
            if self._ending.is_set():
                _signal(process, signal.SIGTERM)
            process.stdin.write(pickle.dumps((self._settings, number, self._folder)))
            ready = False
            async for text in process.stdout:
                message = json.loads(text)
                if "error" in message:
                    self._error = self._error or message["error"]
                    continue
                ready = True
                line = message["tell"]
                self._told[line] += 1
                if self._told[line] == self._settings.processes:
                    self._tell(line)
            return await process.wait(), ready
        finally:
            del self._processes[number]


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
