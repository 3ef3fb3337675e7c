"""onnxruntime's errors, and its other names as `rnnfast` has them."""

from typing import Any

from rnnfast.errors import Fail as Fail
from rnnfast.errors import InvalidArgument as InvalidArgument
from rnnfast.errors import InvalidGraph as InvalidGraph
from rnnfast.errors import InvalidProtobuf as InvalidProtobuf
from rnnfast.errors import NoSuchFile as NoSuchFile
from rnnfast.errors import NotImplemented as NotImplemented
from rnnfast.errors import RuntimeException as RuntimeException


class DeviceReset(Exception):
    """Never raised: rnnfast runs on the CPU."""


class EPFail(Exception):
    """Never raised: rnnfast has no execution providers."""


class EngineError(Exception):
    """Never raised: rnnfast runs on the CPU."""


class ModelLoadCanceled(Exception):
    """Never raised: a load is not cancelled by a flag."""


class ModelLoaded(Exception):
    """Never raised: a session loads one model."""


class ModelRequiresCompilation(Exception):
    """Never raised: rnnfast compiles every model when it is called."""


class NoModel(Exception):
    """Never raised: a session has a model."""


class NotFound(Exception):
    """Never raised: rnnfast has no execution providers."""


def __getattr__(name: str) -> Any:
    from rnnfast.onnxruntime.module import names

    if name not in names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return names()[name]
