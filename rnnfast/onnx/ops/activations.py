"""Activation functions, Softmax, LogSoftmax and Hardmax (ONNX operator specification, for example Softmax-13)."""

import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError
from rnnfast.onnx.ops.elementwise import erf
from rnnfast.onnx.ops.numeric import (
    axis_index,
    check_broadcasts_to,
    check_numbers,
    floating,
    numeric,
    per_channel,
    shaped,
    unchanged,
)

# The specification's defaults as float32 numbers: 0.01, 0.2, and alpha and gamma of Selu.
LEAKY_ALPHA = 0.009999999776482582
HARD_ALPHA = 0.20000000298023224
SELU_ALPHA = 1.6732631921768188
SELU_GAMMA = 1.0507010221481323


def _sigmoid(x):
    """Return 1 / (1 + exp(-x)), computed by exp(-|x|) on both sides of zero so that nothing overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _softplus(x):
    """Return log(1 + exp(x))."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@floating
@shaped(unchanged)
def sigmoid(x):
    """Sigmoid: 1 / (1 + exp(-x))."""
    return _sigmoid(x).astype(x.dtype)


@numeric
@shaped(unchanged)
def relu(x):
    """Relu: max(0, x)."""
    check_numbers(x)
    return np.maximum(x, np.asarray(0, x.dtype))


@floating
@shaped(unchanged)
def leaky_relu(x, *, alpha: float = LEAKY_ALPHA):
    """LeakyRelu: alpha * x for x < 0, otherwise x."""
    return np.where(x < 0, alpha * x, x)


@numeric
def prelu(x, slope):
    """PRelu: slope * x for x < 0, otherwise x; slope broadcasts to x, but x is not broadcast."""
    check_numbers(x)
    check_broadcasts_to(slope, x.shape, "slope")
    return np.where(x < 0, slope * x, x)


def prelu_1(x, slope):
    """PRelu before opset 7: the slope is one number or one per channel."""
    return prelu(x, per_channel(slope, x) if slope.size > 1 else slope.reshape(()))


@floating
@shaped(unchanged)
def elu(x, *, alpha: float = 1.0):
    """Elu: alpha * (exp(x) - 1) for x < 0, otherwise x."""
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


@floating
@shaped(unchanged)
def selu(x, *, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA):
    """Selu: gamma * (alpha * (exp(x) - 1) for x <= 0, otherwise x)."""
    return gamma * np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)


@floating
@shaped(unchanged)
def celu(x, *, alpha: float = 1.0):
    """Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0)


@floating
@shaped(unchanged)
def hard_sigmoid(x, *, alpha: float = HARD_ALPHA, beta: float = 0.5):
    """HardSigmoid: max(0, min(1, alpha * x + beta))."""
    return np.clip(alpha * x + beta, 0, 1)


@floating
@shaped(unchanged)
def hard_swish(x):
    """HardSwish: x * max(0, min(1, x / 6 + 1 / 2))."""
    return x * np.clip(x / 6 + 0.5, 0, 1)


@floating
@shaped(unchanged)
def softplus(x):
    """Softplus: log(1 + exp(x))."""
    return _softplus(x)


@floating
@shaped(unchanged)
def softsign(x):
    """Softsign: x / (1 + |x|)."""
    return x / (1 + np.abs(x))


@floating
@shaped(unchanged)
def gelu(x, *, approximate: Literal["none", "tanh"] = "none"):
    """Gelu: x * Phi(x), Phi being the normal distribution function; with approximate = "tanh", 0.5 * x * (1 +
    tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))).
    """
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


@floating
@shaped(unchanged)
def mish(x):
    """Mish: x * tanh(softplus(x))."""
    return x * np.tanh(_softplus(x))


@floating
@shaped(unchanged)
def swish(x, *, alpha: float = 1.0):
    """Swish: x * sigmoid(alpha * x)."""
    return x * _sigmoid(alpha * x)


@floating
def swiglu(a, b, *, alpha: float = 1.0):
    """SwiGLU: swish(a) * b."""
    if a.shape != b.shape:
        raise InputError(f"inputs of shapes {a.shape} and {b.shape}, expected one shape")
    return a * _sigmoid(alpha * a) * b


@floating
@shaped(unchanged)
def thresholded_relu(x, *, alpha: float = 1.0):
    """ThresholdedRelu: x for x > alpha, otherwise 0."""
    return np.where(x > alpha, x, 0)


@numeric
@shaped(unchanged)
def shrink(x, *, bias: float = 0.0, lambd: float = 0.5):
    """Shrink: x + bias for x < -lambd, x - bias for x > lambd, otherwise 0."""
    check_numbers(x)
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype)


def _last_axis(x, *, axis):
    """Shape rule of the operators that normalize along one axis."""
    axis_index(axis, x)
    return (x.shape,)


def _trailing_axes(x, *, axis):
    """Shape rule of the operators that normalize over all axes from `axis` on."""
    if not -x.ndim <= axis <= x.ndim:
        raise InputError(f"axis {axis} is out of range for a tensor of {x.ndim} dimensions")
    return (x.shape,)


def _over_last_axis(function):
    """Return the operator from opset 13 on (Softmax-13), which normalizes along one axis."""

    @floating
    @shaped(_last_axis)
    def operator(x, *, axis: int = -1):
        if x.size == 0:
            return x
        return np.moveaxis(function(np.ascontiguousarray(np.moveaxis(x, axis, -1))), -1, axis)

    operator.__name__ = function.__name__
    return operator


def _over_trailing_axes(function):
    """Return the operator before opset 13 (Softmax-11), which normalizes over all axes from `axis` on."""

    @floating
    @shaped(_trailing_axes)
    def operator(x, *, axis: int = 1):
        outer = math.prod(x.shape[: axis + x.ndim if axis < 0 else axis])
        if x.size == 0:
            return x
        return function(np.ascontiguousarray(x).reshape(outer, -1)).reshape(x.shape)

    operator.__name__ = function.__name__
    return operator


def _softmax(x):
    """Return exp(x) / sum(exp(x)) over the last axis, computed with x - max(x) so that nothing overflows."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _log_softmax(x):
    """Return x - log(sum(exp(x))) over the last axis, computed with x - max(x)."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _hardmax(x):
    """Return 1 at the first largest element of the last axis, 0 elsewhere."""
    y = np.zeros_like(x)
    np.put_along_axis(y, x.argmax(axis=-1, keepdims=True), 1, axis=-1)
    return y


OPS = {
    "Celu": {12: celu},
    "Elu": {1: elu},
    "Gelu": {20: gelu},
    "HardSigmoid": {1: hard_sigmoid},
    "HardSwish": {14: hard_swish},
    "Hardmax": {1: _over_trailing_axes(_hardmax), 13: _over_last_axis(_hardmax)},
    "LeakyRelu": {1: leaky_relu},
    "LogSoftmax": {1: _over_trailing_axes(_log_softmax), 13: _over_last_axis(_log_softmax)},
    "Mish": {18: mish},
    "PRelu": {1: prelu_1, 7: prelu},
    "Relu": {1: relu},
    "Selu": {6: selu},
    "Shrink": {9: shrink},
    "Sigmoid": {1: sigmoid},
    "Softmax": {1: _over_trailing_axes(_softmax), 13: _over_last_axis(_softmax)},
    "Softplus": {1: softplus},
    "Softsign": {1: softsign},
    "SwiGLU": {28: swiglu},
    "Swish": {24: swish},
    "ThresholdedRelu": {10: thresholded_relu},
}
