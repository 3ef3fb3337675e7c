"""One of several processes of a server, as the supervisor starts it.

It reads its settings from stdin, a pickle of its own supervisor, and tells on stdout in lines of JSON: {"tell": line}
or {"error": text}. When stdin ends, the supervisor is gone, and it ends as by a signal.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
from typing import Any, NoReturn

import uvloop

from rnnfast.errors import Error
from rnnfast.server.access import warn
from rnnfast.server.peers import Peers
from rnnfast.server.run import handling_signals, serve
from rnnfast.server.service import Service
from rnnfast.server.settings import Settings


def main() -> NoReturn:
    """Serve, and leave with status 0, or 2 if the server cannot start."""
    settings, number, folder = pickle.load(sys.stdin.buffer)
    try:
        uvloop.run(_serve(settings, number, folder))
    except (Error, OSError) as e:
        _say(error=str(e))
        sys.exit(2)
    sys.exit(0)


def _say(**message: Any) -> None:
    """Write a line to the supervisor; it is lost where that is gone."""
    try:
        print(json.dumps(message), flush=True)
    except OSError:
        pass


async def _serve(settings: Settings, number: int, folder: str) -> None:
    """Serve as the process with a number, whose sockets are in a folder."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        if not sys.stdin.buffer.raw.read(1):  # type: ignore[union-attr]
            loop.remove_reader(sys.stdin)
            ended.set()

    loop.add_reader(sys.stdin, read)
    service = Service(settings, warn)
    service.peers = Peers(service, number, settings.processes, folder)
    with handling_signals(service, ended):
        await serve(service, lambda line: _say(tell=line), ended)
