"""Random numbers (ONNX operator specification, for example RandomNormal-22).

With a `seed` an operator gives the same numbers in every call, since a model has no state. Without one it gives others
each time, from the system's entropy. The numbers are those of NumPy's PCG64, not those of another engine.
"""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.numeric import is_floating
from rnnfast.onnx.ops.types import Dtype, Ints, check_size


def draws(function, attributes):
    """Return whether an operator gives other results in each call, so that no result may be kept."""
    return getattr(function, "random", False) and attributes.get("seed") is None


def _random(function):
    """Decorate an operator that draws random numbers."""
    function.random = True
    return function


def _generator(seed):
    """Return NumPy's generator for the attribute `seed`, which is float32 in a file."""
    return np.random.default_rng(None if seed is None else int(np.float32(seed).view(np.uint32)))


def _floating(dtype):
    """Return the type of random numbers, float32 by default, and the type in which they are drawn."""
    dtype = np.dtype(np.float32) if dtype is None else dtype
    if not is_floating(dtype):
        raise InputTypeError(f"random numbers of type {dtype}, expected a floating-point type")
    return dtype, np.float64 if dtype == np.float64 else np.float32


def _check_shape(shape, dtype):
    """Return a shape that an attribute gives, checked."""
    if min(shape, default=0) < 0:
        raise InputError(f"the shape is {list(shape)}, expected sizes of 0 or more")
    check_size(shape, dtype)
    return tuple(shape)


@_random
def random_normal(
    *, shape: Ints, dtype: Dtype | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
):
    """RandomNormal: numbers of a normal distribution."""
    dtype, drawn = _floating(dtype)
    numbers = _generator(seed).standard_normal(_check_shape(shape, drawn), drawn)
    return (numbers * drawn(scale) + drawn(mean)).astype(dtype)


@_random
def random_uniform(
    *, shape: Ints, dtype: Dtype | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
):
    """RandomUniform: numbers from `low` to `high`."""
    dtype, drawn = _floating(dtype)
    numbers = _generator(seed).random(_check_shape(shape, drawn), drawn)
    return (numbers * drawn(high - low) + drawn(low)).astype(dtype)


@_random
def random_normal_like(
    x, *, dtype: Dtype | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
):
    """RandomNormalLike: as RandomNormal, of the shape and, without `dtype`, of the type of x."""
    return random_normal(shape=x.shape, dtype=dtype or x.dtype, mean=mean, scale=scale, seed=seed)


@_random
def random_uniform_like(
    x, *, dtype: Dtype | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
):
    """RandomUniformLike: as RandomUniform, of the shape and, without `dtype`, of the type of x."""
    return random_uniform(shape=x.shape, dtype=dtype or x.dtype, low=low, high=high, seed=seed)


@_random
def bernoulli(x, *, dtype: Dtype | None = None, seed: float | None = None):
    """Bernoulli: 1 with the probability that x gives, else 0."""
    if not is_floating(x.dtype):
        raise InputTypeError(f"probabilities of type {x.dtype}, expected a floating-point type")
    p = x.astype(np.float64)
    if not np.all((0 <= p) & (p <= 1)):
        raise InputError("probabilities outside of 0 to 1")
    return (_generator(seed).random(x.shape) < p).astype(dtype or x.dtype)


@_random
def multinomial(x, *, dtype: Dtype | None = None, sample_size: int = 1, seed: float | None = None):
    """Multinomial: sample_size indices for each row of x [rows, classes], with probabilities of softmax(x)."""
    if not is_floating(x.dtype):
        raise InputTypeError(f"logarithms of type {x.dtype}, expected a floating-point type")
    if x.ndim != 2 or not x.shape[1] or sample_size < 0:
        raise InputError(f"{sample_size} samples of an input of shape {x.shape}, expected [rows, classes]")
    dtype = np.dtype(np.int32) if dtype is None else dtype
    if dtype.kind != "i":
        raise InputTypeError(f"samples of type {dtype}, expected int32 or int64")
    check_size((x.shape[0], sample_size), np.float64)
    logits = x.astype(np.float64)
    if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all(1).any():
        raise InputError("a row of logarithms that no probabilities have")
    cumulative = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
    points = _generator(seed).random((x.shape[0], sample_size)) * cumulative[:, -1:]
    samples = [np.searchsorted(row, at, "right") for row, at in zip(cumulative, points)]
    return np.array(samples, dtype).reshape(x.shape[0], sample_size)


OPS = {
    "RandomNormal": {1: random_normal},
    "RandomUniform": {1: random_uniform},
    "RandomNormalLike": {1: random_normal_like},
    "RandomUniformLike": {1: random_uniform_like},
    "Bernoulli": {15: bernoulli},
    "Multinomial": {7: multinomial},
}
