"""The other processes of a server, and which of them has which sequence.

A sequence belongs to the process with the number CRC-32(id) modulo the number of processes, where the id is its UTF-8
text, of an integer its decimal digits. A connection may come in at any process. A request of a sequence of another
process is read where it comes in and handed on through a unix socket in a folder that only the server's own user may
enter; therefore messages between processes are pickles.

A message is 4 bytes of length, little-endian, and a pickle of (number, what, arguments): a call, and its answer repeats
the number; with the number None a line that is not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rnnfast.server.faults import NotFoundError, UnavailableError
from rnnfast.server.metrics import numbers

if TYPE_CHECKING:
    from rnnfast.server.service import Service

# Seconds between two tries to reach a process that is not there.
RETRY_SECONDS = 0.1


def process_of(id: int | str, count: int) -> int:
    """The number of the process that has a sequence, among `count`."""
    return zlib.crc32(str(id).encode(errors="surrogatepass")) % count


class Link(asyncio.Protocol):
    """A connection to another process.

    Args:
        on_made: Called with this Link when the connection is there.
        on_message: Called with this Link and each message.
        on_lost: Called with this Link when the connection ends.
    """

    def __init__(
        self, on_made: Callable[[Link], None], on_message: Callable[[Link, Any], None], on_lost: Callable[[Link], None]
    ) -> None:
        self._on_made, self._on_message, self._on_lost = on_made, on_message, on_lost
        self._rest = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.ending = set[asyncio.Task[None]]()  # those of them that were cancelled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= 4:
            end = at + 4 + int.from_bytes(rest[at : at + 4], "little")
            if len(rest) < end:
                break
            message = pickle.loads(rest[at + 4 : end])
            at = end
            self._on_message(self, message)
        if at:
            self._rest = rest[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for task in self.tasks.values():
            task.cancel()
        self._on_lost(self)

    def send(self, message: Any) -> None:
        """Send a message; nothing happens if the connection has ended."""
        if self._transport is not None:
            data = pickle.dumps(message, 5)
            self._transport.write(len(data).to_bytes(4, "little") + data)

    def close(self) -> None:
        """End the connection after what was sent."""
        if self._transport is not None:
            self._transport.close()


class Peer:
    """Another process, as this one sees it.

    Args:
        number: Its number.
        changed: Called when `phase` is another one.

    Attributes:
        number: Its number.
        link: The connection to it; None while there is none.
        phase: What it said last: "ready", "draining" or "drained"; "" before it said anything.
    """

    def __init__(self, number: int, changed: Callable[[], None]) -> None:
        self.number, self._changed, self.phase = number, changed, ""
        self.link: Link | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self.missing = asyncio.Event()
        self.missing.set()
        self.found = asyncio.Event()

    def connected(self, link: Link) -> None:
        """Note that the connection is there."""
        self.link = link
        self.missing.clear()
        self.found.set()

    def received(self, link: Link, message: Any) -> None:
        """Take an answer or a line of the process."""
        number, what, value = message
        if number is None:
            self.phase = what
            self._changed()
            return
        future = self._calls.pop(number, None)
        if future is None or future.done():
            return
        if what == "done":
            future.set_result(value)
        else:
            future.set_exception(value)

    def lost(self, link: Link) -> None:
        """Note that the process is gone, and fail the calls that it has not answered."""
        self.link, self.phase = None, ""
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(UnavailableError(f"process {self.number} of the server ended: its sequences too"))
        self.found.clear()
        self.missing.set()
        self._changed()

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a function of FUNCTIONS there."""
        if self.link is None:
            raise UnavailableError(f"process {self.number} of the server is not there: it is being started")
        self._last = number = self._last + 1
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self.link.send((number, name, arguments))
            return await future
        except asyncio.CancelledError:
            if self._calls.pop(number, None) is not None and self.link is not None:
                self.link.send((number, "cancel", ()))
            raise


# What a process may ask of another one.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "infer": lambda service, request: service.infer_here(request),
    "drop": lambda service, name, version, id, why, owner: service.drop(service.find(name, version), id, why, owner),
    "load": lambda service, name: service.load_here(name),
    "unload": lambda service, name: service.unload_here(name),
    "restore": lambda service, name, version, states: service.restore(name, version, states),
    "numbers": lambda service: numbers(service),
    "statistics": lambda service, name, version: service.statistics(name, version),
}


class Peers:
    """All other processes of a server.

    Args:
        service: The Service of this process.
        number: Its number.
        count: The number of processes.
        folder: The folder of their sockets, which only this user may enter.

    Attributes:
        number: That of this process.
        count: The number of processes.
        on_change: Called when another process is there, ready or gone.
    """

    def __init__(self, service: Service, number: int, count: int, folder: str) -> None:
        self._service, self.number, self.count, self._folder = service, number, count, folder
        self._peers = {other: Peer(other, self._change) for other in range(count) if other != number}
        self._changed = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self._callers: set[Link] = set()
        self._phase = ""
        self._server: asyncio.Server | None = None
        self._finders: list[asyncio.Task[None]] = []

    def process_of(self, id: Any) -> int | None:
        """The number of the process that has a sequence, None for this one and for what is no sequence."""
        if type(id) is not int and type(id) is not str or not id:
            return None
        process = process_of(id, self.count)
        return None if process == self.number else process

    # ------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Let the others reach this process, and wait until all of them are there."""
        path = self._path(self.number)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._called_by, path)
        self._finders = [asyncio.create_task(self._find(peer)) for peer in self._peers.values()]
        for peer in self._peers.values():
            await peer.found.wait()

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, f"{number}.socket")

    async def _find(self, peer: Peer) -> None:
        """Connect to a process, and again whenever it is gone."""
        loop = asyncio.get_running_loop()
        while True:
            await peer.missing.wait()
            try:
                make = functools.partial(Link, peer.connected, peer.received, peer.lost)
                await loop.create_unix_connection(make, self._path(peer.number))
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """End all connections."""
        for task in self._finders:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for link in [*self._callers, *(peer.link for peer in self._peers.values() if peer.link is not None)]:
            link.close()

    # ------------------------------------------------------------------------------------------ what others ask here
    def _called_by(self) -> Link:
        return Link(self._accept, self._receive, self._callers.discard)

    def _accept(self, link: Link) -> None:
        self._callers.add(link)
        link.send((None, self._phase, ()))

    def _receive(self, link: Link, message: Any) -> None:
        number, name, arguments = message
        if number is None:
            if link.ending:  # A sequence is not dropped while a request of it runs, which was cancelled just now.
                ended = asyncio.ensure_future(asyncio.wait(set(link.ending)))
                ended.add_done_callback(lambda _: self._take_told(name, arguments))
            else:
                self._take_told(name, arguments)
        elif name == "cancel":
            task = link.tasks.get(number)
            if task is not None:
                task.cancel()
                link.ending.add(task)
                task.add_done_callback(link.ending.discard)
        else:
            task = link.tasks[number] = asyncio.create_task(self._answer(link, number, name, arguments))
            task.add_done_callback(lambda _: link.tasks.pop(number, None))

    def _take_told(self, name: str, arguments: tuple[Any, ...]) -> None:
        # The model was unloaded, and its sequences with it, or is not loaded yet.
        with contextlib.suppress(NotFoundError, UnavailableError):
            FUNCTIONS[name](self._service, *arguments)

    async def _answer(self, link: Link, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            value = FUNCTIONS[name](self._service, *arguments)
            if asyncio.iscoroutine(value):
                value = await value
            link.send((number, "done", value))
        except Exception as e:  # of `send` too: a value that is too large to be sent must not let the other wait
            try:
                pickle.loads(pickle.dumps(e))
            except Exception:  # an error of another library that cannot be sent is told in words
                e = RuntimeError(f"{type(e).__name__}: {e}")
            link.send((number, "failed", e))

    # ------------------------------------------------------------------------------------------ what is asked of others
    async def call(self, process: int, name: str, *arguments: Any) -> Any:
        """Call a function of FUNCTIONS in another process.

        Raises:
            UnavailableError: It is not there, or ends before it has answered.
            Error: What the function raises there.
        """
        return await self._peers[process].call(name, arguments)

    async def call_all(self, name: str, *arguments: Any) -> list[Any]:
        """Call a function in all other processes, and wait for all before the first error is raised."""
        calls = (peer.call(name, arguments) for peer in self._peers.values())
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    async def ask_all(self, name: str, *arguments: Any) -> list[Any]:
        """As `call_all`, for what those processes know that are there."""
        calls = (peer.call(name, arguments) for peer in self._peers.values() if peer.link is not None)
        results = await asyncio.gather(*calls, return_exceptions=True)
        return [result for result in results if not isinstance(result, UnavailableError)]

    def tell(self, process: int, name: str, *arguments: Any) -> None:
        """Call a function in another process without an answer."""
        link = self._peers[process].link
        if link is not None:
            link.send((None, name, arguments))

    def say(self, phase: str) -> None:
        """Tell all others how far this process is."""
        self._phase = phase
        for link in self._callers:
            link.send((None, phase, ()))

    def _change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self.on_change()

    async def until_all_ready(self) -> None:
        """Wait until all others are there and ready."""
        while not self.all_ready():
            await self._changed.wait()

    def all_ready(self) -> bool:
        """Return whether all others are there and ready."""
        return all(peer.phase == "ready" for peer in self._peers.values())

    def all_drained(self) -> bool:
        """Return whether no other process has live sequences any more, or is there."""
        return all(peer.link is None or peer.phase == "drained" for peer in self._peers.values())
