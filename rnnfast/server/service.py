"""What a server does, whichever front is asked: models by name and version, readiness, loading, draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import rnnfast
from rnnfast.errors import Error, InputError
from rnnfast.server.access import Access
from rnnfast.server.faults import ForbiddenError, NotFoundError, UnavailableError, text_of
from rnnfast.server.repository import Repository
from rnnfast.server.requests import InferRequest, InferResponse
from rnnfast.server.served_model import ServedModel, Then
from rnnfast.server.settings import Settings
from rnnfast.server.state_files import StateFiles, States, fingerprint, make_folder
from rnnfast.server.sums import summed

if TYPE_CHECKING:
    from rnnfast.server.peers import Peers

NAME = "rnnfast"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "sequence", "statistics")
STARTING, ENDING = "the server is starting and takes no requests yet", "the server is ending"
# Seconds between two looks at what a server that ends waits for.
DRAIN_SECONDS = 0.02
# Seconds between two looks for idle sequences.
LOOK_SECONDS = 1.0


class Service:
    """The models of a server.

    All methods are called in one event loop. Where the server has several processes, each has a Service, and `peers`
    are the others: requests of a sequence run in the process that has it, wherever they come in.

    Args:
        settings: The Settings.
        warn: Called with a line for whoever runs the server.

    Attributes:
        settings: The Settings.
        access: The tokens that clients must bring.
        served: {name: {version: ServedModel}} of the loaded models, the newest version last.
        failures: {name: why} of models that could not be loaded.
        errors: {reason: answers} that told a client of an error, of any path and protocol.
        started: When the service was made, in seconds since 1970.
        draining: Whether it is ending, and takes no new sequences.
        closing: Whether it takes no requests any more.
        peers: The other processes of the server; None if there are none.
    """

    def __init__(self, settings: Settings, warn: Callable[[str], None] = lambda line: None) -> None:
        self.settings, self._warn = settings, warn
        self.access = Access(settings.token_file)
        self.peers: Peers | None = None
        self.closing, self._running, self._owners = False, 0, 0
        self._state_files: dict[ServedModel, StateFiles] = {}
        self._repository = Repository(list(settings.sources), settings.model, settings.models)
        self.served: dict[str, dict[str, ServedModel]] = {}
        self.failures: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self.started, self.draining, self._warmed = time.time(), False, False
        self._loading, self._changes = asyncio.Lock(), set[asyncio.Task[None]]()
        self._looking: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Load and warm up all models; from then on the service is ready.

        Raises:
            Error: A model cannot be loaded, or one that the settings name is not there.
        """
        if self.settings.state_dir is not None:
            make_folder(self.settings.state_dir)
        names = self._repository.names()
        for name in self.settings.models:
            if name not in names and not self.settings.control:
                raise InputError(f"the settings name the model '{name}', but there is only {', '.join(names)}")
        for name in names:
            await self._load(name)
        if self.peers is not None:
            await self.peers.start()
        for model in self.models():
            await self._take_up(model)
        if self.peers is not None:
            self.peers.say("ready")
            # Until then another process may still hand states of the server before on to this one.
            await self.peers.until_all_ready()
        self._warmed = True
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for model in self.models():
                if model.sequences is not None:
                    model.sequences.close_idle()

    def begin_draining(self) -> None:
        """Take no new sequences any more, and say that the server is not ready."""
        self.draining = True
        if self.peers is not None:
            self.peers.say("draining")
        for model in self.models():
            if model.sequences is not None:
                model.sequences.draining = True

    async def drained(self, deadline: float) -> None:
        """Wait until no sequence is live, here and in the other processes, up to a time of the monotonic clock."""
        while self.live_sequences() and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_SECONDS)
        if self.peers is not None:
            self.peers.say("drained")
            while not self.peers.all_drained() and time.monotonic() < deadline:
                await asyncio.sleep(DRAIN_SECONDS)

    async def finish(self, seconds: float) -> None:
        """Take no more requests, wait for those that run, and keep the states of live sequences for the next server.

        Afterwards no state changes any more. A sequence whose request has not ended after `seconds` is not kept.
        """
        self.closing = True
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_SECONDS)
        for model, files in self._state_files.items():
            assert model.sequences is not None
            try:
                states = await asyncio.to_thread(model.sequences.states)
                path = await asyncio.to_thread(files.write, states) if states else ""
            except Error as e:
                self._warn(f"the states of {len(model.sequences)} sequences of model '{model.name}' are lost: {e}")
            else:
                if states:
                    self._warn(f"{len(states)} sequences of model '{model.name}' wait in {path}")

    async def _take_up(self, model: ServedModel) -> None:
        """Take up the sequences of a model that a server before left in the folder of states."""
        files = self._state_files.get(model)
        if files is None:
            return
        states = await asyncio.to_thread(files.take, self._warn)
        if not states:
            return
        for process, part in self._by_process(states).items():
            try:
                await self.restore(model.name, model.version, part, process)
            except Error as e:  # The other process may have ended: the next one takes them up.
                path = await asyncio.to_thread(files.write, part)
                self._warn(f"{len(part)} sequences of model '{model.name}' wait in {path}: {e}")
        self._warn(f"{len(states)} sequences of model '{model.name}' go on")

    def _by_process(self, states: States) -> dict[int | None, States]:
        """States by the number of the process that is to have them, None for this one."""
        if self.peers is None:
            return {None: states}
        parts: dict[int | None, States] = {}
        for id, state in states.items():
            parts.setdefault(self.peers.process_of(id), {})[id] = state
        return parts

    async def restore(self, name: str, version: str, states: States, process: int | None = None) -> None:
        """Take up states of sequences, in another process if `process` is its number.

        Raises:
            UnavailableError: The other process is not there.
            NotFoundError: The model is not loaded.
        """
        if process is not None:
            assert self.peers is not None
            await self.peers.call(process, "restore", name, version, states)
            return
        sequences = self.find(name, version).sequences
        assert sequences is not None
        sequences.restore(states)

    async def stop(self) -> None:
        """Answer what waits and end all threads."""
        if self._looking is not None:
            self._looking.cancel()
        if self.peers is not None:
            self.peers.stop()
        for model in self.models():
            await asyncio.to_thread(model.close)
        self.served.clear()

    # ------------------------------------------------------------------------------------------ models
    def models(self) -> list[ServedModel]:
        """All loaded models, of all versions."""
        return [model for versions in self.served.values() for model in versions.values()]

    def live_sequences(self) -> int:
        """The number of live sequences of all models."""
        return sum(len(model.sequences) for model in self.models() if model.sequences is not None)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The loaded model of a name and version, "" for the newest.

        Raises:
            NotFoundError: It is not loaded.
            UnavailableError: Models are still being loaded.
        """
        versions = self.served.get(name)
        if not versions:
            if not self._warmed:
                raise UnavailableError(STARTING)
            why = f": {self.failures[name]}" if name in self.failures else ""
            raise NotFoundError(f"Request for unknown model: '{name}' is not found{why}")
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise NotFoundError(f"Request for unknown model: '{name}' version {version} is not found")
        return versions[version]

    async def load(self, name: str) -> None:
        """Load or reload a model of the repository. One that cannot be loaded leaves what was loaded before.

        Raises:
            ForbiddenError: Clients may not load models here.
            Error: It cannot be loaded.
        """
        self._check_control()
        await self._to_its_end(self._load(name), "load", name)

    async def load_here(self, name: str) -> None:
        """As `load`, in this process alone."""
        await self._to_its_end(self._load(name))

    async def unload(self, name: str) -> None:
        """Unload a model; its live sequences are closed.

        Raises:
            ForbiddenError: Clients may not unload models here.
            NotFoundError: It is not loaded.
        """
        self._check_control()
        await self._to_its_end(self._unload(name), "unload", name)

    async def unload_here(self, name: str) -> None:
        """As `unload`, in this process alone."""
        await self._to_its_end(self._unload(name))

    async def _unload(self, name: str) -> None:
        async with self._loading:
            self.find(name)
            await self._close(self.served.pop(name))

    async def _to_its_end(self, change: Coroutine[Any, Any, None], everywhere: str = "", name: str = "") -> None:
        """Load or unload a model, in the other processes too by the function of that name.

        It is done as a whole, though the client goes away meanwhile: no model is left half loaded or half closed.
        """

        async def run() -> None:
            await change
            if everywhere and self.peers is not None:
                await self.peers.call_all(everywhere, name)

        task = asyncio.create_task(run())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    def _check_control(self) -> None:
        if not self.settings.control:
            raise ForbiddenError("models are not loaded and unloaded by clients here: start the server with --control")
        if self.draining:
            raise UnavailableError("the server is ending")

    async def _load(self, name: str) -> None:
        async with self._loading:
            try:
                new = await asyncio.to_thread(self._loaded, name)
            except NotFoundError:
                raise  # The repository has no such model: a client's invention is not remembered.
            except Error as e:
                self.failures[name] = str(e)
                raise
            except Exception as e:
                self.failures[name] = text_of(e)
                raise
            self.failures.pop(name, None)
            before, self.served[name] = self.served.get(name, {}), new
            await self._close(before)
            if self._warmed:
                for model in new.values():
                    await self._take_up(model)

    def _loaded(self, name: str) -> dict[str, ServedModel]:
        """{version: ServedModel} of a model, loaded and warmed up."""
        entry = self._repository.entry(name)
        newest = list(entry.versions.items())[-entry.settings.versions :]
        loaded: dict[str, ServedModel] = {}
        try:
            for version, path in newest:
                loaded[version] = ServedModel(name, version, path, entry.settings)
                loaded[version].warm()
                if self.settings.state_dir is not None and loaded[version].sequences is not None:
                    digest = fingerprint(loaded[version].model, path)
                    self._state_files[loaded[version]] = StateFiles(self.settings.state_dir, name, version, digest)
        except BaseException:
            for model in loaded.values():
                self._state_files.pop(model, None)
                model.close()
            raise
        return loaded

    async def _close(self, versions: dict[str, ServedModel]) -> None:
        for model in versions.values():
            self._state_files.pop(model, None)
            if model.sequences is not None:
                for id in model.sequences.ids():
                    model.sequences.drop(id, "was closed as its model was unloaded")
            await asyncio.to_thread(model.close)

    # ------------------------------------------------------------------------------------------ what clients ask
    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request.

        Raises:
            UnavailableError: The server has ended, or the process that has the sequence.
            Error: As `find` and `ServedModel.infer`.
        """
        model = self.find(request.model, request.version)
        if self.closing or not self._warmed:
            raise UnavailableError(ENDING if self.closing else STARTING)
        self._running += 1
        try:
            if self.peers is not None:
                process = self.peers.process_of(request.parameters.get("sequence_id"))
                if process is not None:
                    return await self.peers.call(process, "infer", request)
            return await model.infer(request)
        finally:
            self._running -= 1

    def submit(self, request: InferRequest, then: Then) -> asyncio.Future[Any] | None:
        """Run a further request of a live sequence of this process without a task, as `ServedModel.submit` does.

        Returns:
            As `ServedModel.submit`; None where only `infer` can run it.

        Raises:
            Error: As `infer`.
        """
        model = self.find(request.model, request.version)
        if self.closing or not self._warmed:
            return None
        if self.peers is not None and self.peers.process_of(request.parameters.get("sequence_id")) is not None:
            return None

        def ended(response: InferResponse | None, error: BaseException | None) -> None:
            self._running -= 1
            then(response, error)

        future = model.submit(request, ended)
        self._running += future is not None
        return future

    async def infer_here(self, request: InferRequest) -> InferResponse:
        """As `infer`, for a request that another process has handed on to this one."""
        if self.closing or not self._warmed:
            raise UnavailableError(ENDING if self.closing else STARTING)
        self._running += 1
        try:
            return await self.find(request.model, request.version).infer(request)
        finally:
            self._running -= 1

    def new_owner(self) -> tuple[int, int]:
        """Return what tells a connection of the server from all others, as an owner of sequences."""
        self._owners += 1
        return 0 if self.peers is None else self.peers.number, self._owners

    def drop(self, model: ServedModel, id: int | str, why: str, owner: object) -> None:
        """As the `drop` of a model's sequences, in whichever process the sequence is."""
        process = None if self.peers is None else self.peers.process_of(id)
        if process is not None:
            self.peers.tell(process, "drop", model.name, model.version, id, why, owner)  # type: ignore[union-attr]
        elif model.sequences is not None and not self.closing:
            model.sequences.drop(id, why, owner=owner)

    @property
    def ready(self) -> bool:
        """Return whether all models are loaded and warmed up, in all processes, and the server is not ending."""
        return self._warmed and not self.draining and (self.peers is None or self.peers.all_ready())

    def metadata(self) -> dict[str, Any]:
        """The server's metadata of the protocol."""
        return {"name": NAME, "version": rnnfast.__version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's metadata of the protocol."""
        model = self.find(name, version)
        return model.metadata(list(self.served[name]))

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """Return what the repository has, as Triton lists it: name, version, state and reason."""
        rows = [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for name, versions in self.served.items()
            for version in versions
        ]
        if ready_only:
            return rows
        for name in self._repository.names():
            if name in self.failures:
                rows.append({"name": name, "state": "UNAVAILABLE", "reason": self.failures[name]})
            elif name not in self.served:
                rows.append({"name": name, "state": "UNAVAILABLE", "reason": "unloaded"})
        return rows

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """The statistics of one model or of all, as Triton has them."""
        if not name:
            models = self.models()
        elif name not in self.served:
            raise InputError(f"requested model '{name}' is not available")
        else:
            models = [self.find(name, version)] if version else list(self.served[name].values())
        return {"model_stats": [model_statistics(model) for model in models]}

    async def statistics_of_all(self, name: str = "", version: str = "") -> dict[str, Any]:
        """The `statistics` of all processes together."""
        here = self.statistics(name, version)
        if self.peers is None:
            return here
        return summed([here, *await self.peers.ask_all("statistics", name, version)])


def model_statistics(model: ServedModel) -> dict[str, Any]:
    """The statistics of one model as Triton has them; times are nanoseconds."""
    counts, batches = model.statistics, model.batch_counts()
    n, failed = counts.succeeded, sum(counts.failed.values())

    def part(count: int, ns: float) -> dict[str, int]:
        return {"count": count, "ns": round(ns)}

    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last,
        "inference_count": n,
        "execution_count": batches["batch_sizes"]["count"],
        "inference_stats": {
            "success": part(n, counts.durations.ns),
            "fail": part(failed, counts.failure_ns),
            "queue": part(n, batches["queue_seconds"]["sum"] * 1e9),
            "compute_input": part(n, 0),
            "compute_infer": part(n, batches["compute_seconds"]["sum"] * 1e9),
            "compute_output": part(n, 0),
            "cache_hit": part(0, 0),
            "cache_miss": part(0, 0),
        },
        "batch_stats": [],
    }
