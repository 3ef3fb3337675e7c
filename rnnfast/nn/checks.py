"""Validation of the arguments of layers. Error messages name the argument, what was given and what was expected."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, raise_if_from_handler

T = TypeVar("T")

MAX_LAYERS = 1024
"""Maximum number of recurrent layers in one stack."""

MAX_WEIGHT_BYTES = 2**36
"""Maximum size of the weights of one layer, or of one stack of recurrent layers."""


def as_array(value: Any, name: str) -> np.ndarray:
    """Convert anything that NumPy can read (nested lists, torch tensors on the CPU ...) to an ndarray."""
    try:
        return np.asarray(value)
    except Exception as error:  # foreign array types may raise anything
        raise_if_from_handler(error)
        if is_ragged(value):
            raise InputError(
                f"{name}: cannot be read as an array: its members have different lengths; expected one padded array "
                "and lengths=, or a packed sequence, as nn.pack_sequence makes of them"
            ) from error
        raise InputTypeError(f"{name}: cannot be read as an array ({type(value).__name__}: {error})") from error


def as_weight(value: Any, name: str) -> np.ndarray:
    """Return a C-contiguous float32 copy of an array whose dtype fits into float32 without loss."""
    array = as_array(value, name)
    if array.dtype.kind not in "fV" or not np.can_cast(array.dtype, np.float32):
        raise InputTypeError(f"{name}: dtype is {array.dtype}, expected float32 (or a narrower float)")
    check_weights(name, [array.shape])
    with within_memory(name):
        return np.array(array, np.float32, order="C")


def as_input(value: Any, name: str) -> np.ndarray:
    """Convert to a float32 ndarray, as `as_floats` does; what that leaves in another dtype is refused.

    Arrays of integers are refused, as they are classes or indices more often than they are meant as numbers.
    """
    array = as_floats(value, name)
    if array.dtype != np.float32:
        raise InputTypeError(f"{name}: dtype is {array.dtype}, expected float32")
    return array


def as_floats(value: Any, name: str) -> np.ndarray:
    """Convert to an ndarray: floats of other widths, and lists of numbers, are rounded to float32."""
    array = value if type(value) is np.ndarray else as_array(value, name)
    if array.dtype == np.float32 or array.dtype.kind not in ("iuf" if isinstance(value, (list, tuple)) else "f"):
        return array
    return to_float32(array, name)


def to_float32(array: np.ndarray, name: str) -> np.ndarray:
    """Round an array of numbers to float32; numbers beyond its range are refused."""
    try:
        with np.errstate(all="ignore", over="raise"):
            return array.astype(np.float32)
    except FloatingPointError:
        raise InputError(f"{name}: holds numbers beyond the range of float32") from None


def is_ragged(value: Any) -> bool:
    """Return whether a value is a list of arrays whose first axes differ and whose others are the same."""
    if not isinstance(value, (list, tuple)):
        return False
    try:
        if len({len(one) for one in value}) < 2:
            return False
        shapes = [np.shape(one) for one in value]
    except Exception as error:  # a member is no array, and foreign types may raise anything
        raise_if_from_handler(error)
        return False
    return all(shapes) and len({shape[1:] for shape in shapes}) == 1


def check_shape(array: np.ndarray, shape: tuple[int, ...], name: str, axes: str) -> None:
    """Refuse an array of another shape; `axes` says in words what the axes of `shape` are."""
    if array.shape != shape:
        raise InputError(f"{name}: shape is {list(array.shape)}, expected {list(shape)} ({axes})")


def check_size(value: Any, name: str, least: int = 1) -> int:
    """Return an integer, which must be at least `least`, as an int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputTypeError(f"{name}: {value!r} is no integer")
    if value < least:
        raise InputError(f"{name}: {value} is less than {least}")
    return int(value)


def check_choice(value: T, name: str, choices: Iterable[Any]) -> T:
    """Return the value, which must be one of the choices."""
    try:
        known = value in frozenset(choices)
    except TypeError:  # unhashable: an array, a list
        known = False
    if not known:
        raise InputError(f"{name}: {value!r} is none of {', '.join(map(repr, choices))}")
    return value


def check_flag(value: Any, name: str) -> bool:
    """Return True, False, 1 or 0 as a bool; other values are refused."""
    return bool(check_choice(value, name, (False, True)))


def check_weights(owner: Any, shapes: Iterable[tuple[int, ...]]) -> None:
    """Refuse weights over MAX_WEIGHT_BYTES before they are allocated; `owner` is the layer or the weight's name."""
    size = 4 * sum(map(math.prod, shapes))
    if size > MAX_WEIGHT_BYTES:
        raise LimitError(f"{owner}: weights of {size} bytes are more than the limit of {MAX_WEIGHT_BYTES}")


@contextlib.contextmanager
def within_memory(owner: Any) -> Iterator[None]:
    """Turn a MemoryError of the block into a LimitError that names the owner of the weights."""
    try:
        yield
    except MemoryError as error:
        raise LimitError(f"{owner}: no memory for the weights") from error


def as_generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return a numpy Generator: the one given, or a new one from a seed, or from fresh entropy for None."""
    try:
        return np.random.default_rng(rng)
    except TypeError:
        raise InputTypeError(f"{name}: {rng!r} is neither a seed nor a numpy Generator") from None
    except ValueError as error:
        raise InputError(f"{name}: {rng!r} is no seed ({error})") from None


def check_lengths(lengths: Any, steps: int, rows: int) -> np.ndarray | None:
    """Return lengths as an int64 array [rows] with values from 0 to `steps`; None stays None."""
    if lengths is None:
        return None
    array = as_array(lengths, "lengths")
    if array.dtype.kind not in "iu" and array.size:  # NumPy reads [] as float64
        raise InputTypeError(f"lengths: dtype is {array.dtype}, expected integers")
    check_shape(array, (rows,), "lengths", "one for each row")
    array = np.array(array)  # read once: what is checked is what is used
    wrong = np.flatnonzero((array < 0) | (array > steps))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"lengths: {array[row]} at row {row}, expected 0 to {steps}, the number of steps")
    return array.astype(np.int64)


def check_number(value: Any, name: str, least: float, most: float) -> float:
    """Return a number as a float, which must lie from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputTypeError(f"{name}: {value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.nan
    if not least <= number <= most:
        raise InputError(f"{name}: {value!r}, expected {least} to {most}")
    return number
