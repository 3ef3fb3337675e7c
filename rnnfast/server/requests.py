"""Requests and responses of the Open Inference Protocol, whichever front they come in by."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import InputError
from rnnfast.server.faults import MissingExtensionError

# A timeout of the protocol is in microseconds.
MICROSECONDS = 1e-6
MAX_ID = 2**64 - 1
# The lowest priority of a Batcher, which stands for those below it too.
LOWEST = 3
# Longer timeouts are none, as some clients say it by the largest number that there is.
MAX_SECONDS = 1e6
# The most characters of a sequence's id.
MAX_ID_LENGTH = 128
# The most inputs of a request, and the most outputs that it asks for.
MAX_TENSORS = 1024


class Output(NamedTuple):
    """An output that a request asks for.

    Attributes:
        name: Its name.
        binary: Whether it is to come as bytes; None if the request does not say.
    """

    name: str
    binary: bool | None


@dataclasses.dataclass(slots=True)
class InferRequest:
    """What a client sends for a model to run.

    Attributes:
        model: The model's name.
        version: Its version, "" for the newest.
        id: The client's name of the request, which its response repeats.
        inputs: {name: array}.
        outputs: The outputs that it asks for; empty for all.
        parameters: The parameters of the protocol and of Triton: sequence_id, sequence_start, sequence_end, priority,
            timeout (microseconds).
        owner: The connection with which a sequence ends that the request begins, as `Service.new_owner` gave it; None
            if the sequence may outlive its connection.
    """

    model: str
    version: str
    id: str
    inputs: dict[str, np.ndarray]
    outputs: list[Output]
    parameters: dict[str, Any]
    owner: object = None


@dataclasses.dataclass(slots=True)
class InferResponse:
    """What a model gave for a request.

    Attributes:
        model: The model's name.
        version: Its version.
        id: That of the request.
        outputs: {name: array}, in the order of the model's file.
    """

    model: str
    version: str
    id: str
    outputs: dict[str, np.ndarray]


class Parameters(NamedTuple):
    """What the parameters of a request say, checked.

    Attributes:
        sequence: The sequence's id, None if the request belongs to none.
        start: Whether it begins the sequence.
        end: Whether it ends the sequence.
        priority: As the Batcher takes it: 0 for the default, 1 for the highest, 3 for the lowest.
        timeout: Seconds that it may wait, None for as long as it takes.
    """

    sequence: int | str | None
    start: bool
    end: bool
    priority: int
    timeout: float | None


NO_PARAMETERS = Parameters(None, False, False, 0, None)


def parameters_of(parameters: dict[str, Any]) -> Parameters:
    """The Parameters of a request, whose parameters of the protocol are given.

    Raises:
        InputError: A parameter has a wrong type or value.
    """
    if not parameters:
        return NO_PARAMETERS
    sequence = parameters.get("sequence_id", 0)
    if type(sequence) is int:
        if not 0 <= sequence <= MAX_ID:
            raise InputError(f"sequence_id is {sequence}, expected an integer of 0 to 2^64 - 1 or a string")
    elif type(sequence) is not str or len(sequence) > MAX_ID_LENGTH:
        raise InputError(
            f"sequence_id is {_shown(sequence)}, expected an integer or a string of up to {MAX_ID_LENGTH} characters"
        )
    start, end = _flag(parameters, "sequence_start"), _flag(parameters, "sequence_end")
    priority, timeout = _count(parameters, "priority"), _count(parameters, "timeout")
    seconds = timeout * MICROSECONDS
    return Parameters(
        sequence or None, start, end, min(priority, LOWEST), seconds if 0 < seconds <= MAX_SECONDS else None
    )


def _flag(parameters: dict[str, Any], name: str) -> bool:
    """A parameter that is true or false."""
    flag = parameters.get(name, False)
    if type(flag) is not bool:
        raise InputError(f"{name} is {_shown(flag)}, expected true or false")
    return flag


def _count(parameters: dict[str, Any], name: str) -> int:
    """A parameter that is a number, 0 where it is not given."""
    count = parameters.get(name, 0)
    if type(count) is not int or not 0 <= count <= MAX_ID:
        raise InputError(f"{name} is {_shown(count)}, expected an integer of at least 0")
    return count


def _shown(value: Any) -> str:
    """A value for a message, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# What is said of extensions of Triton's that this server does not have.
NO_SHARED_MEMORY = "shared memory is not supported: send tensors in the request"
NO_TRACING = "tracing is not supported"
NO_LOG_SETTINGS = "log settings are those that the server was started with"
OWN_FILES = "a model is loaded from the server's own files, without a config or files of a client"
# Parameters of Triton's protocol for what this server does not do. None is ignored.
REFUSED_PARAMETERS = {
    "classification": "classification is not done here: ask for the output, and sort its values",
    "shared_memory_region": "tensors in shared memory are not taken: send them in the request",
    "shared_memory_offset": "tensors in shared memory are not taken: send them in the request",
    "shared_memory_byte_size": "tensors in shared memory are not taken: send them in the request",
}


def refuse_parameters(parameters: dict[str, Any], where: str) -> None:
    """Raise MissingExtensionError if a tensor's parameters ask for what this server does not do."""
    for name in parameters:
        if name in REFUSED_PARAMETERS:
            raise MissingExtensionError(f"{where}: {REFUSED_PARAMETERS[name]}")
