"""Servers for tests, each in a thread with an event loop of its own."""

import asyncio
import contextlib
import dataclasses
import threading

import pytest

from tests.paths import MODELS


@dataclasses.dataclass
class Running:
    """A server that runs.

    Attributes:
        service: Its Service; to be read, or called in the event loop by `call`.
        loop: Its event loop.
        lines: What it told its user.
        ended: Set to end it.
        thread: Its thread.
    """

    service: object
    loop: asyncio.AbstractEventLoop
    lines: list
    ended: asyncio.Event
    thread: threading.Thread

    def address(self, scheme):
        """HOST:PORT where it listens for "http" or "grpc"."""
        start = f"listening on {scheme}://"
        return next(line for line in self.lines if line.startswith(start))[len(start) :]

    @property
    def url(self):
        """Its address for HTTP, with the scheme."""
        return f"http://{self.address('http')}"

    def call(self, function, *args):
        """What a function returns when the server's event loop calls it; of a coroutine function, its result."""

        async def run():
            result = function(*args)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def stop(self):
        """Let it drain and end."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(*sources, **settings):
    """A server of models with some settings, on free ports, until the block ends. Settings of models may be among them.

    Where a source is a name such as "denoiser", it is that of a file in models.
    """
    for package in ("httptools", "uvloop", "orjson", "hpack", "websockets"):
        pytest.importorskip(package)
    import uvloop

    from rnnfast.server.run import serve
    from rnnfast.server.service import Service
    from rnnfast.server.settings import ModelSettings, Settings

    of_models = {field.name for field in dataclasses.fields(ModelSettings)}
    model = ModelSettings(**{name: settings.pop(name) for name in list(settings) if name in of_models})
    paths = tuple(str(MODELS / f"{source}.onnx") if source in ("denoiser", "tagger", "detector") else str(source)
                  for source in sources)  # fmt: skip
    settings = {"http_port": 0, "grpc_port": 0, "drain": 0.0, **settings}
    listening, lines, made = threading.Event(), [], []
    problems = []

    async def run():
        service = Service(Settings(paths, model, **settings))
        ended = asyncio.Event()
        made.extend([service, asyncio.get_running_loop(), lines, ended])

        def tell(line):
            lines.append(line)
            if len([line for line in lines if "listening" in line]) == 1 + (settings["grpc_port"] is not None):
                listening.set()

        await serve(service, tell, ended)

    def work():
        try:
            uvloop.run(run())
        except BaseException as e:
            problems.append(e)
        finally:
            listening.set()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    assert listening.wait(60)
    if problems:
        raise problems[0]
    server = Running(*made, thread)
    try:
        yield server
    finally:
        server.stop()
        assert not problems, problems


@pytest.fixture(scope="module")
def server():
    """A server of denoiser, tagger and detector with the defaults, for the tests of a module."""
    with running("denoiser", "tagger", "detector", control=True) as server:
        yield server
