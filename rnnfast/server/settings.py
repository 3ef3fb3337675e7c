"""The settings of a server and of each model that it serves."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

from rnnfast.errors import InputError, InputTypeError

# What a setting of some of these kinds may be: (types, test, what is expected).
_COUNT = ((int,), lambda v: v >= 1, "an integer of at least 1")
_SECONDS = ((int, float), lambda v: 0 <= v <= 1e6, "seconds, at least 0")
_SOME_SECONDS = ((int, float), lambda v: 0 < v <= 1e6, "seconds, more than 0")
_SWITCH = ((bool,), lambda v: True, "true or false")
_FILE = ((str, type(None)), lambda v: v is None or 0 < len(v) and "\0" not in v, "a path, or none")
# Setting -> (types, test, what is expected), for every setting of a model and of the server.
CHECKS: dict[str, tuple[tuple[type, ...], Any, str]] = {
    "weights": ((str, type(None)), lambda v: v in ("int8", "fp16", "bf16", None), "int8, fp16 or bf16, or none"),
    "activations": ((int,), lambda v: v in (15, 8), "15 or 8"),
    "threads": ((int, type(None)), lambda v: v is None or v >= 1, "an integer of at least 1, or none for all cores"),
    "max_batch": _COUNT,
    "max_wait": ((int, float, type(None)), lambda v: v is None or 0 <= v <= 1e6, "seconds, at least 0, or none"),
    "max_queue": _COUNT,
    "max_sequences": ((int,), lambda v: 1 <= v <= 2**20, "an integer of 1 to 2^20"),
    "idle": _SOME_SECONDS,
    "batch": _SWITCH,
    "states": ((dict, type(None)), lambda v: v is None or _texts(v), "an object of output names by input names"),
    "fixed": ((dict,), lambda v: True, "an object of values by input names"),
    "warm": ((dict,), lambda v: all(map(_warms, v.values())), "an object of shapes or numbers by input names"),
    "versions": _COUNT,
    "sources": ((tuple, list), lambda v: len(v) > 0 and all(map(_is_path, v)), "files and folders of models"),
    "models": ((dict,), lambda v: all(isinstance(m, dict) for m in v.values()), "an object of settings by model"),
    "host": ((str,), lambda v: 0 < len(v) <= 255 and v.isascii() and v.isprintable(), "an address or a host's name"),
    "http_port": ((int,), lambda v: 0 <= v < 2**16, "a port, 0 for any free one"),
    "grpc_port": ((int, type(None)), lambda v: v is None or 0 <= v < 2**16, "a port, 0 for any free one, or none"),
    "control": _SWITCH,
    "max_body": ((int,), lambda v: v >= 1, "bytes, at least 1"),
    "max_connections": _COUNT,
    "request_timeout": _SOME_SECONDS,
    "keep_alive": _SOME_SECONDS,
    "drain": _SECONDS,
    "state_dir": _FILE,
    "processes": ((int,), lambda v: 1 <= v <= 1024, "an integer of 1 to 1024"),
    "tls_certificate": _FILE,
    "tls_key": _FILE,
    "token_file": _FILE,
    "access_log": _SWITCH,
}


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and 0 < len(str(value)) and "\0" not in str(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**40 for n in value)


def _warms(value: Any) -> bool:
    return type(value) in (int, float, bool) or _is_shape(value)


def _texts(values: dict[Any, Any]) -> bool:
    return all(isinstance(v, str) for v in values.values())


def check_value(name: str, value: Any, where: str) -> Any:
    """The value of a setting, if it passes its row of CHECKS.

    Raises:
        InputError: It does not fit.
        InputTypeError: Its type is wrong.
    """
    types, fits, expected = CHECKS[name]
    if not isinstance(value, types) or isinstance(value, bool) and bool not in types:
        raise InputTypeError(f"{where}: {name} is {value!r}, expected {expected}")
    if not fits(value):
        raise InputError(f"{where}: {name} is {value!r}, expected {expected}")
    return value


def check_fields(settings: Any, where: str) -> None:
    """Raise InputError or InputTypeError if a field of a dataclass does not pass its row of CHECKS."""
    for field in dataclasses.fields(settings):
        if field.name != "model":  # which has checked itself
            check_value(field.name, getattr(settings, field.name), where)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How one model is loaded and run; a model's `config.json` sets its own.

    Attributes:
        weights: The type to which weights are rounded: int8, fp16 or bf16; None for float32.
        activations: The bits of activations with weights of int8, 15 or 8.
        threads: The most threads of one call.
        max_batch: The most frames, or calls, in a batch.
        max_wait: The most seconds that a frame waits for those of other active sequences; None for 0.001 where 128
            sequences or more have streams, and 0 where fewer do.
        max_queue: The most frames and calls that may wait.
        max_sequences: The most live sequences.
        idle: Seconds without a request after which a sequence is closed.
        batch: Whether requests share batches; false runs them one by one, which any graph allows.
        states: {state input: state output}, where the names in the file do not tell.
        fixed: {input: value} of inputs that are the same in all requests of sequences.
        warm: {input: shape} of requests whose plans are made before the model is ready; in place of the shape a number
            for an input whose shape the file says, and whose elements are that number in all requests.
        versions: How many of the newest versions are loaded.
    """

    weights: Literal["int8", "fp16", "bf16"] | None = None
    activations: Literal[15, 8] = 15
    threads: int | None = 1
    max_batch: int = 256
    max_wait: float | None = None
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
        model: The settings of models that do not have their own.
        models: {model: {setting: value}}: settings of single models, which go before those of their config.json.
        host: The address to listen at.
        http_port: The port of HTTP and WebSockets.
        grpc_port: The port of gRPC, None for no gRPC.
        control: Whether clients may load and unload models.
        max_body: The most bytes of a request.
        max_connections: The most connections at a time.
        request_timeout: The most seconds that a client may take to send a request, or to read its answer.
        keep_alive: The seconds after which a connection without a request is closed.
        drain: The seconds that live sequences have to end after SIGTERM.
        state_dir: The folder where states of live sequences wait for the next server; None for none.
        processes: The number of processes, each with its own sequences.
        tls_certificate: The PEM file of the certificate, and of those behind it; None for no TLS.
        tls_key: The PEM file of its private key, which has no password.
        token_file: A file with a bearer token in each line, one of which each request must bring; None for no tokens.
        access_log: Whether each request is a line on stderr.
    """

    sources: tuple[str, ...]
    model: ModelSettings = ModelSettings()
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    control: bool = False
    max_body: int = 64 * 2**20
    max_connections: int = 10_000
    request_timeout: float = 30.0
    keep_alive: float = 75.0
    drain: float = 30.0
    state_dir: str | None = None
    processes: int = 1
    tls_certificate: str | None = None
    tls_key: str | None = None
    token_file: str | None = None
    access_log: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "the server's settings")
        object.__setattr__(self, "sources", tuple(map(os.fspath, self.sources)))
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InputError("the server's settings: tls_certificate and tls_key belong together: give both or none")
        for name, values in self.models.items():
            self.model.with_values(values, f"the settings of model '{name}'")
