"""What a server does, without its transports: models by name and version, readiness, loading, draining."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import rnnfast
from rnnfast.errors import Error, InputError
from rnnfast.server.access import Access
from rnnfast.server.faults import ForbiddenError, NotFoundError, UnavailableError, text_of
from rnnfast.server.repository import Repository
from rnnfast.server.requests import InferRequest, InferResponse
from rnnfast.server.served_model import ServedModel
from rnnfast.server.settings import Settings

NAME = "rnnfast"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "sequence", "statistics")
# Seconds between two looks for idle sequences.
LOOK_SECONDS = 1.0


class Service:
    """The models of a server.

    All methods are called in one event loop.

    Attributes:
        settings: The Settings.
        access: The tokens that clients must bring.
        served: {name: {version: ServedModel}} of the loaded models, the newest version last.
        failures: {name: why} of models that could not be loaded.
        errors: {reason: answers} that told a client of an error, of any path and protocol.
        started: When the service was made, in seconds since 1970.
        draining: Whether it is ending.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.access = Access(settings.token_file)
        self._repository = Repository(list(settings.sources), settings.model, settings.models)
        self.served: dict[str, dict[str, ServedModel]] = {}
        self.failures: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self.started, self.draining, self._warmed = time.time(), False, False
        self._loading = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Load and warm up all models; from then on the service is ready.

        Raises:
            Error: A model cannot be loaded, or one that the settings name is not there.
        """
        names = self._repository.names()
        for name in self.settings.models:
            if name not in names and not self.settings.control:
                raise InputError(f"the settings name the model '{name}', but there is only {', '.join(names)}")
        for name in names:
            await self._load(name)
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
        for model in self.models():
            if model.sequences is not None:
                model.sequences.draining = True

    async def drained(self, deadline: float) -> None:
        """Wait until no sequence is live, up to a time of the monotonic clock."""
        while self.live_sequences() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Answer what waits and end all threads."""
        if self._looking is not None:
            self._looking.cancel()
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
        """
        versions = self.served.get(name)
        if not versions:
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
        await self._load(name)

    async def unload(self, name: str) -> None:
        """Unload a model; its live sequences are closed.

        Raises:
            ForbiddenError: Clients may not unload models here.
            NotFoundError: It is not loaded.
        """
        self._check_control()
        async with self._loading:
            self.find(name)
            await self._close(self.served.pop(name))

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

    def _loaded(self, name: str) -> dict[str, ServedModel]:
        """{version: ServedModel} of a model, loaded and warmed up."""
        entry = self._repository.entry(name)
        newest = list(entry.versions.items())[-entry.settings.versions :]
        loaded: dict[str, ServedModel] = {}
        try:
            for version, path in newest:
                loaded[version] = ServedModel(name, version, path, entry.settings)
                loaded[version].warm()
        except BaseException:
            for model in loaded.values():
                model.close()
            raise
        return loaded

    @staticmethod
    async def _close(versions: dict[str, ServedModel]) -> None:
        for model in versions.values():
            if model.sequences is not None:
                for id in model.sequences.ids():
                    model.sequences.drop(id, "was closed as its model was unloaded")
            await asyncio.to_thread(model.close)

    # ------------------------------------------------------------------------------------------ what clients ask
    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request.

        Raises:
            Error: As `find` and `ServedModel.infer`.
        """
        return await self.find(request.model, request.version).infer(request)

    @property
    def ready(self) -> bool:
        """Whether all models are loaded and warmed up, and the server is not ending."""
        return self._warmed and not self.draining

    def metadata(self) -> dict[str, Any]:
        """The server's metadata of the protocol."""
        return {"name": NAME, "version": rnnfast.__version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's metadata of the protocol."""
        model = self.find(name, version)
        return model.metadata(list(self.served[name]))

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """What the repository has, as Triton lists it: name, version, state and reason."""
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
