"""Normalization by mean and variance over the batch, a sample, a channel or a group of channels (ONNX operator
specification, for example LayerNormalization-17).
"""

import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.ops.numeric import (
    axis_index,
    check_broadcasts_to,
    flatten_axes,
    floating,
    per_channel,
    quiet,
    same_dtype,
    widen,
)
from rnnfast.onnx.ops.types import Dtype, Flag, Ints

# The specification's defaults as float32 numbers: 1e-5, 0.9 and 1e-4.
EPSILON = 9.999999747378752e-06
MOMENTUM = 0.8999999761581421
LRN_ALPHA = 9.999999747378752e-05
FLOAT32 = np.dtype(np.float32)


def _mean(x):
    """Return the mean over the last axis, which stays with length 1."""
    return x.sum(axis=-1, keepdims=True) / np.asarray(x.shape[-1], x.dtype)


def _standardized(x, epsilon):
    """Return (x - mean) / sqrt(variance + epsilon) over the last axis, the mean, and 1 / sqrt(variance + epsilon)."""
    mean = _mean(x)
    x = x - mean
    inverse = 1 / np.sqrt(_mean(x * x) + np.asarray(epsilon, x.dtype))
    return x * inverse, mean, inverse


def _check_channels(x, **vectors):
    """Raise InputError unless each vector has one element per channel of x."""
    channels = x.shape[1] if x.ndim > 1 else 1
    for name, vector in vectors.items():
        if vector.shape != (channels,):
            raise InputError(f"{name} has shape {vector.shape}, expected ({channels},)")


def _affine(x, mean, variance, scale, bias, epsilon):
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias in the type of x."""
    wide = np.result_type(*map(widen, (x, mean, variance, scale, bias)))
    mean, variance, scale, bias = (p.astype(wide) for p in (mean, variance, scale, bias))
    y = (x.astype(wide) - mean) * (scale / np.sqrt(variance + np.asarray(epsilon, wide))) + bias
    return y.astype(x.dtype)


def batch_normalization_1(
    x,
    scale,
    bias,
    mean,
    variance,
    *,
    epsilon: float = EPSILON,
    is_test: Flag = 0,
    momentum: float = MOMENTUM,
    spatial: Flag = 1,
    n_outputs: int = 1,
):
    """BatchNormalization before opset 7: is_test must be 1."""
    if not is_test:
        raise UnsupportedError("is_test = 0 of BatchNormalization, which asks for the training mode")
    return batch_normalization_7(
        x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, spatial=spatial, n_outputs=n_outputs
    )


@quiet
def batch_normalization_7(
    x,
    scale,
    bias,
    mean,
    variance,
    *,
    epsilon: float = EPSILON,
    momentum: float = MOMENTUM,
    spatial: Flag = 1,
    n_outputs: int = 1,
):
    """BatchNormalization before opset 9: with spatial = 0 each position of a sample has statistics of its own."""
    same_dtype((x, scale, bias, mean, variance))
    if spatial:
        return batch_normalization_9(
            x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, n_outputs=n_outputs
        )
    _refuse_training(n_outputs)
    for name, parameter in dict(scale=scale, B=bias, mean=mean, var=variance).items():
        if parameter.shape != x.shape[1:]:
            raise InputError(f"{name} has shape {parameter.shape}, expected {x.shape[1:]}")
    return _affine(x, mean, variance, scale, bias, epsilon)


def _refuse_training(n_outputs):
    """Raise UnsupportedError for the additional outputs, which before opset 14 ask for the training mode."""
    if n_outputs > 1:
        raise UnsupportedError(f"{n_outputs} outputs of BatchNormalization, which ask for the training mode")


@quiet
def batch_normalization_9(
    x, scale, bias, mean, variance, *, epsilon: float = EPSILON, momentum: float = MOMENTUM, n_outputs: int = 1
):
    """BatchNormalization before opset 14: (x - mean) / sqrt(variance + epsilon) * scale + bias for each channel."""
    same_dtype((x, scale, bias, mean, variance))
    _refuse_training(n_outputs)
    _check_channels(x, scale=scale, B=bias, mean=mean, var=variance)
    return _affine(x, *(per_channel(p, x) for p in (mean, variance, scale, bias)), epsilon)


@quiet
def batch_normalization(
    x,
    scale,
    bias,
    mean,
    variance,
    *,
    epsilon: float = EPSILON,
    momentum: float = MOMENTUM,
    training_mode: Flag = 0,
    n_outputs: int = 1,
):
    """BatchNormalization: (x - mean) / sqrt(variance + epsilon) * scale + bias for each channel.

    In training_mode mean and variance are those of the batch, and the running mean and variance, which are outputs,
    become running * momentum + batch * (1 - momentum).
    """
    _check_channels(x, scale=scale, B=bias, input_mean=mean, input_var=variance)
    if not training_mode:
        _refuse_training(n_outputs)
        return _affine(x, *(per_channel(p, x) for p in (mean, variance, scale, bias)), epsilon), None, None
    channels = flatten_axes(widen(x), tuple(axis for axis in range(x.ndim) if axis != 1 or x.ndim == 1))
    channels = channels.reshape(mean.shape[0], -1)
    if channels.shape[1] == 0:
        raise InputError(f"training_mode with an input of shape {x.shape}, which has no statistics")
    batch_mean = _mean(channels)
    batch_variance = _mean(np.square(channels - batch_mean))[:, 0]
    batch_mean = batch_mean[:, 0]
    y = _affine(x, *(per_channel(p, x) for p in (batch_mean, batch_variance, scale, bias)), epsilon)
    running_mean, running_variance = (
        (widen(old) * momentum + new * (1 - momentum)).astype(old.dtype)
        for old, new in ((mean, batch_mean), (variance, batch_variance))
    )
    return y, running_mean, running_variance


def _scaled(y, x, scale, bias=None):
    """Return y * scale + bias, which broadcast to x, in the type of scale."""
    for name, parameter in (("scale", scale), ("bias", bias)):
        if parameter is not None:
            check_broadcasts_to(parameter, x.shape, name)
    y = y.reshape(x.shape) * widen(scale)
    return (y if bias is None else y + widen(bias)).astype(scale.dtype)


def _inner(x, axis):
    """Return (x as a matrix whose rows have all elements from `axis` on, the shape of x with 1 for these axes).

    float16 and bfloat16 become float32.
    """
    axis = axis_index(axis, x)
    matrix = flatten_axes(widen(x), tuple(range(axis, x.ndim))).reshape(
        math.prod(x.shape[:axis]), math.prod(x.shape[axis:])
    )
    return matrix, (*x.shape[:axis], *(1,) * (x.ndim - axis))


@quiet
def layer_normalization(x, scale, bias=None, *, axis: int = -1, epsilon: float = EPSILON, stash_type: Dtype = FLOAT32):
    """LayerNormalization: (x - mean) / sqrt(variance + epsilon) * scale + bias over all axes from `axis` on, the mean,
    and 1 / sqrt(variance + epsilon); the last two are in stash_type.
    """
    same_dtype((x, scale, bias))
    matrix, outer = _inner(x, axis)
    y, mean, inverse = _standardized(matrix, epsilon)
    return (_scaled(y, x, scale, bias), *(p.reshape(outer).astype(stash_type) for p in (mean, inverse)))


@quiet
def rms_normalization(x, scale, *, axis: int = -1, epsilon: float = EPSILON, stash_type: Dtype = FLOAT32):
    """RMSNormalization: x / sqrt(mean(x^2) + epsilon) * scale over all axes from `axis` on, computed in at least
    float32, whatever stash_type allows.
    """
    matrix, _ = _inner(x, axis)
    return _scaled(matrix / np.sqrt(_mean(matrix * matrix) + np.asarray(epsilon, matrix.dtype)), x, scale)


@floating
def instance_normalization(x, scale, bias, *, epsilon: float = EPSILON):
    """InstanceNormalization: (x - mean) / sqrt(variance + epsilon) * scale + bias for each channel of each sample."""
    return _normalize_groups(x, x.shape[1], epsilon) * per_channel(scale, x) + per_channel(bias, x)


def _normalize_groups(x, groups, epsilon):
    """Return x [N,C,...] standardized over each of `groups` groups of adjacent channels."""
    if groups < 1 or x.shape[1] % groups:
        raise InputError(f"{x.shape[1]} channels do not make {groups} groups")
    inner = math.prod(x.shape[1:]) // groups
    return _standardized(np.ascontiguousarray(x).reshape(x.shape[0], groups, inner), epsilon)[0].reshape(x.shape)


@floating
def group_normalization_18(x, scale, bias, *, num_groups: int, epsilon: float = EPSILON):
    """GroupNormalization before opset 21: scale and bias have one element per group."""
    if scale.shape != (num_groups,) or bias.shape != (num_groups,):
        raise InputError(f"scale and bias have shapes {scale.shape} and {bias.shape}, expected ({num_groups},)")
    y = _normalize_groups(x, num_groups, epsilon)
    repeats = x.shape[1] // num_groups
    return y * per_channel(np.repeat(scale, repeats), x) + per_channel(np.repeat(bias, repeats), x)


@floating
def group_normalization(x, scale, bias, *, num_groups: int, epsilon: float = EPSILON, stash_type: Dtype = FLOAT32):
    """GroupNormalization: (x - mean) / sqrt(variance + epsilon) * scale + bias over groups of channels, computed in at
    least float32, whatever stash_type allows.
    """
    _check_channels(x, scale=scale, bias=bias)
    return _normalize_groups(x, num_groups, epsilon) * per_channel(scale, x) + per_channel(bias, x)


@floating
def lp_normalization(x, *, axis: int = -1, p: Literal[1, 2] = 2):
    """LpNormalization: x / (sum(|x|^p))^(1/p) along an axis; zeros stay zeros."""
    axis = axis_index(axis, x)
    norm = flatten_axes(np.abs(x) if p == 1 else x * x, (axis,)).sum(axis=-1)
    norm = np.expand_dims(norm if p == 1 else np.sqrt(norm), axis)
    return np.where(norm == 0, 0, x / norm)


@floating
def mean_variance_normalization(x, *, axes: Ints = Ints((0, 2, 3))):
    """MeanVarianceNormalization: (x - mean) / (sqrt(mean(x^2) - mean^2) + 1e-9), as in the specification's function."""
    axes = tuple(axis_index(axis, x) for axis in axes)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    x = x - _mean(flatten_axes(x, axes)).reshape(kept)
    deviation = np.sqrt(_mean(flatten_axes(np.square(x), axes)).reshape(kept))
    return x / (deviation + np.asarray(1e-9, x.dtype))


@floating
def local_response_normalization(x, *, size: int, alpha: float = LRN_ALPHA, beta: float = 0.75, bias: float = 1.0):
    """LRN: x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels)^beta."""
    if size < 1:
        raise InputError(f"size = {size}, expected at least 1")
    before, after = (size - 1) // 2, size // 2
    squares = np.square(x)
    total = np.zeros_like(x)
    for shift in range(-min(before, x.shape[1]), min(after, x.shape[1]) + 1):
        low, high = max(0, -shift), x.shape[1] - max(0, shift)
        total[:, low:high] += squares[:, low + shift : high + shift]
    return x / np.power(bias + alpha / size * total, beta)


OPS = {
    "BatchNormalization": {
        1: batch_normalization_1,
        7: batch_normalization_7,
        9: batch_normalization_9,
        14: batch_normalization,
    },
    "GroupNormalization": {18: group_normalization_18, 21: group_normalization},
    "InstanceNormalization": {1: instance_normalization},
    "LRN": {1: local_response_normalization},
    "LayerNormalization": {17: layer_normalization},
    "LpNormalization": {1: lp_normalization},
    "MeanVarianceNormalization": {9: mean_variance_normalization},
    "RMSNormalization": {23: rms_normalization},
}
