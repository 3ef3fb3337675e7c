"""The settings of a server and of each model that it serves."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from rnnfast.errors import InputError, InputTypeError

# Setting -> (types, test, what is expected), for settings of a model and of the server.
CHECKS: dict[str, tuple[tuple[type, ...], Any, str]] = {
    "weights": ((str, type(None)), lambda v: v in ("int8", "fp16", "bf16", None), "int8, fp16 or bf16"),
    "activations": ((int,), lambda v: v in (15, 8), "15 or 8"),
    "threads": ((int, type(None)), lambda v: v is None or v >= 1, "an integer of at least 1"),
    "max_batch": ((int,), lambda v: v >= 1, "an integer of at least 1"),
    "max_wait": ((int, float), lambda v: 0 <= v <= 1e6, "seconds, at least 0"),
    "max_queue": ((int,), lambda v: v >= 1, "an integer of at least 1"),
    "max_sequences": ((int,), lambda v: 1 <= v <= 2**20, "an integer of 1 to 2^20"),
    "idle": ((int, float), lambda v: 0 < v <= 1e6, "seconds, more than 0"),
    "batch": ((bool,), lambda v: True, "true or false"),
    "states": ((dict, type(None)), lambda v: True, "an object of output names by input names"),
    "fixed": ((dict,), lambda v: True, "an object of values by input names"),
    "warm": ((dict,), lambda v: all(isinstance(shape, list) for shape in v.values()), "an object of shapes"),
    "versions": ((int,), lambda v: v >= 1, "an integer of at least 1"),
    "http_port": ((int,), lambda v: 0 <= v < 2**16, "a port, 0 for any free one"),
    "grpc_port": ((int, type(None)), lambda v: v is None or 0 <= v < 2**16, "a port, 0 for any free one, or none"),
    "max_body": ((int,), lambda v: v >= 1, "bytes, at least 1"),
    "max_connections": ((int,), lambda v: v >= 1, "an integer of at least 1"),
    "request_timeout": ((int, float), lambda v: 0 < v <= 1e6, "seconds, more than 0"),
    "drain": ((int, float), lambda v: 0 <= v <= 1e6, "seconds, at least 0"),
    "processes": ((int,), lambda v: 1 <= v <= 1024, "an integer of 1 to 1024"),
}


def check_fields(settings: Any, where: str) -> None:
    """Raise InputError or InputTypeError if a field of a dataclass does not pass its row of CHECKS."""
    for field in dataclasses.fields(settings):
        if field.name not in CHECKS:
            continue
        types, fits, expected = CHECKS[field.name]
        value = getattr(settings, field.name)
        if not isinstance(value, types) or isinstance(value, bool) and bool not in types:
            raise InputTypeError(f"{where}: {field.name} is {value!r}, expected {expected}")
        if not fits(value):
            raise InputError(f"{where}: {field.name} is {value!r}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How one model is loaded and run; a model's `config.json` sets its own.

    Attributes:
        weights: As for `rnnfast.load`.
        activations: As for `rnnfast.load`.
        threads: The most threads of one call.
        max_batch: The most frames, or calls, in a batch.
        max_wait: The most seconds that a frame waits for those of other active sequences.
        max_queue: The most frames and calls that may wait.
        max_sequences: The most live sequences.
        idle: Seconds without a request after which a sequence is closed.
        batch: Whether requests share batches; false runs them one by one, which any graph allows.
        states: {state input: state output}, where the names in the file do not tell.
        fixed: {input: value} of inputs that are the same in all requests of sequences.
        warm: {input: shape} of requests whose plans are made before the model is ready.
        versions: How many of the newest versions are loaded.
    """

    weights: Literal["int8", "fp16", "bf16"] | None = None
    activations: Literal[15, 8] = 15
    threads: int | None = 1
    max_batch: int = 256
    max_wait: float = 0.0
    max_queue: int = 4096
    max_sequences: int = 1024
    idle: float = 60.0
    batch: bool = True
    states: dict[str, str] | None = None
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    warm: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    versions: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "a model's settings")

    def with_values(self, values: Any, where: str) -> ModelSettings:
        """These settings with others by name.

        Raises:
            InputError: There is no setting of a name, or a value does not fit.
            InputTypeError: `values` is no mapping, or a value has a wrong type.
        """
        if not isinstance(values, dict):
            raise InputTypeError(f"{where} is {type(values).__name__}, expected an object of settings")
        names = [field.name for field in dataclasses.fields(self)]
        for name in values:
            if name not in names:
                raise InputError(f"{where}: there is no setting {name!r}, only {', '.join(names)}")
        try:
            return dataclasses.replace(self, **values)
        except (InputError, InputTypeError) as e:
            raise type(e)(f"{where}: {e}") from None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes:
        sources: The files and folders of models.
        model: The settings of models whose config.json does not set them.
        host: The address to listen at.
        http_port: The port of HTTP and WebSockets.
        grpc_port: The port of gRPC, None for no gRPC.
        control: Whether clients may load and unload models.
        max_body: The most bytes of a request.
        max_connections: The most connections at a time.
        request_timeout: The most seconds that a client may take to send a request.
        drain: The seconds that live sequences have to end after SIGTERM.
        state_dir: The folder where states of live sequences wait for the next server; None for none.
        processes: The number of processes, each with its own sequences.
        tls_certificate, tls_key: PEM files; None for no TLS.
        token_file: A file with a bearer token in each line, one of which each request must bring; None for no tokens.
        access_log: Whether each request is a line on stderr.
    """

    sources: tuple[str, ...]
    model: ModelSettings = ModelSettings()
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    control: bool = False
    max_body: int = 64 * 2**20
    max_connections: int = 10_000
    request_timeout: float = 30.0
    drain: float = 30.0
    state_dir: str | None = None
    processes: int = 1
    tls_certificate: str | None = None
    tls_key: str | None = None
    token_file: str | None = None
    access_log: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "the server's settings")
