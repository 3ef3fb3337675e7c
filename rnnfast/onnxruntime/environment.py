"""onnxruntime's functions about the process: which providers, versions and logs there are."""

from __future__ import annotations

from typing import Any

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnxruntime.session import PROVIDERS

# The version of onnxruntime whose names these are.
INTERFACE_VERSION = "1.32.0"


def get_available_providers() -> list[str]:
    """Return the names of the execution providers that rnnfast has.

    Returns:
        `["CPUExecutionProvider"]`.
    """
    return list(PROVIDERS)


def get_all_providers() -> list[str]:
    """Return the names of all execution providers that rnnfast could have.

    Returns:
        `["CPUExecutionProvider"]`.
    """
    return list(PROVIDERS)


def get_device() -> str:
    """Return the device that rnnfast runs on.

    Returns:
        `"CPU"`.
    """
    return "CPU"


def get_version_string() -> str:
    """Return the version of onnxruntime whose names rnnfast has; rnnfast's own is `rnnfast.__version__`.

    Returns:
        The version.
    """
    return INTERFACE_VERSION


def get_build_info() -> str:
    """Return what this is.

    Returns:
        A line with rnnfast's version.
    """
    import rnnfast

    return f"rnnfast {rnnfast.__version__}"


def set_default_logger_severity(severity: int) -> None:
    """Accept a least severity of messages, which has no effect: nothing is logged.

    Args:
        severity: 0 to 4.

    Raises:
        InputError: It is another number.
        InputTypeError: It is not an integer.
    """
    if type(severity) is not int:
        raise InputTypeError(f"the severity is {type(severity).__name__}, expected int")
    if not 0 <= severity <= 4:
        raise InputError(f"the severity is {severity}, expected 0 to 4")


def set_default_logger_verbosity(verbosity: int) -> None:
    """Accept a level of verbosity, which has no effect: nothing is logged.

    Args:
        verbosity: The level.

    Raises:
        InputTypeError: It is not an integer.
    """
    if type(verbosity) is not int:
        raise InputTypeError(f"the verbosity is {type(verbosity).__name__}, expected int")


def set_seed(seed: int) -> None:
    """Accept a seed, which has no effect: only the attribute `seed` of a random operator decides its numbers.

    Args:
        seed: The seed.

    Raises:
        InputTypeError: It is not an integer.
    """
    if type(seed) is not int:
        raise InputTypeError(f"the seed is {type(seed).__name__}, expected int")


def enable_telemetry_events() -> None:
    """Do nothing: rnnfast tells nobody anything."""


def disable_telemetry_events() -> None:
    """Do nothing: rnnfast tells nobody anything."""


def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: Any = None) -> None:
    """Do nothing: there are no libraries of devices.

    Args:
        cuda: Accepted, with no effect.
        cudnn: Accepted, with no effect.
        msvc: Accepted, with no effect.
        directory: Accepted, with no effect.
    """
