"""What callers hand to layers, checked once: the errors name the argument, what came and what was expected."""

import contextlib
import math
import numbers
from importlib.util import find_spec

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.native import _kernels

MAX_LAYERS = 1024
"""Recurrent layers in one stack."""

MAX_WEIGHT_BYTES = 2**36
"""Weights of one layer, or stack of recurrent layers."""


def as_array(value, name):
    """`value` as an ndarray, whatever offers one (nested lists, torch tensors on the CPU ...)."""
    try:
        return np.asarray(value)
    except Exception as error:  # foreign array types raise whatever they like
        raise InputTypeError(f"{name}: cannot be read as an array ({type(value).__name__}: {error})") from error


def as_weight(value, name):
    """A float32 copy of `value`, whose dtype must fit into float32 without loss."""
    array = as_array(value, name)
    if array.dtype.kind not in "fV" or not np.can_cast(array.dtype, np.float32):
        raise InputTypeError(f"{name}: dtype is {array.dtype}, expected float32 (or a narrower float)")
    check_weights(name, [array.shape])
    with within_memory(name):
        return np.array(array, np.float32, order="C")


def as_input(value, name):
    """`value` as a float32 array; other dtypes are refused, as a silent cast may lose what the caller meant."""
    array = as_array(value, name)
    if array.dtype != np.float32:
        raise InputTypeError(f"{name}: dtype is {array.dtype}, expected float32")
    return array


def check_shape(array, shape, name, axes):
    """`shape` is what `array` must have; `axes` says in words what that is."""
    if array.shape != shape:
        raise InputError(f"{name}: shape is {list(array.shape)}, expected {list(shape)} ({axes})")


def check_size(value, name, least=1):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputTypeError(f"{name}: {value!r} is no integer")
    if value < least:
        raise InputError(f"{name}: {value} is less than {least}")
    return int(value)


def check_choice(value, name, choices):
    try:
        known = value in frozenset(choices)
    except TypeError:  # unhashable: an array, a list
        known = False
    if not known:
        raise InputError(f"{name}: {value!r} is none of {', '.join(map(repr, choices))}")
    return value


def check_flag(value, name):
    return bool(check_choice(value, name, (False, True)))


def check_matmul(value):
    check_choice(value, "matmul", (None, *_kernels.MATMULS))
    if value == "blas" and find_spec("scipy") is None:
        raise UnsupportedError("matmul: 'blas' needs SciPy, which is not installed")
    return value


def check_weights(owner, shapes):
    """Refuse weights that are too large before anything is allocated; `owner` is the layer or their name."""
    size = 4 * sum(map(math.prod, shapes))
    if size > MAX_WEIGHT_BYTES:
        raise LimitError(f"{owner}: weights of {size} bytes are more than the limit of {MAX_WEIGHT_BYTES}")


@contextlib.contextmanager
def within_memory(owner):
    try:
        yield
    except MemoryError as error:
        raise LimitError(f"{owner}: no memory for the weights") from error


def as_generator(rng, name="rng"):
    try:
        return np.random.default_rng(rng)
    except TypeError:
        raise InputTypeError(f"{name}: {rng!r} is neither a seed nor a numpy Generator") from None
    except ValueError as error:
        raise InputError(f"{name}: {rng!r} is no seed ({error})") from None


def check_lengths(lengths, steps, rows):
    """Lengths as int64 [rows], each from 0 to `steps`; None stays None."""
    if lengths is None:
        return None
    array = as_array(lengths, "lengths")
    if array.dtype.kind not in "iu" and array.size:  # NumPy reads [] as float64
        raise InputTypeError(f"lengths: dtype is {array.dtype}, expected integers")
    check_shape(array, (rows,), "lengths", "one for each row")
    wrong = np.flatnonzero((array < 0) | (array > steps))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"lengths: {array[row]} at row {row}, expected 0 to {steps}, the number of steps")
    return array.astype(np.int64)


def check_number(value, name, least, most):
    """`value` as a float from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputTypeError(f"{name}: {value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.nan
    if not least <= number <= most:
        raise InputError(f"{name}: {value!r}, expected {least} to {most}")
    return number
