"""Activation functions: as layers with torch's names and arguments, and as recurrent cells name them (ONNX)."""
import math
import numbers

from .. import _engine
from ..errors import InputError, InputTypeError, UnsupportedError
from .checks import as_input
from .module import Module, Row

DEFAULTS = {
    "Relu": (None, None),
    "Tanh": (None, None),
    "Sigmoid": (None, None),
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
    "Softsign": (None, None),
    "Softplus": (None, None),
}
"""ONNX's activation -> its default (alpha, beta); None where it takes none."""

_CANONICAL = {name.lower(): name for name in DEFAULTS}


def resolve(names, alphas=None, betas=None):
    """ONNX's three attributes as a tuple of (name, alpha, beta).

    Names ignore case. Values are consumed in order by those activations that take them, the rest default, and values
    left over are ignored: so does onnxruntime, where ONNX's text leaves it open.
    """
    alphas, betas = iter(() if alphas is None else alphas), iter(() if betas is None else betas)
    triples = []
    for name in names:
        canonical = _canonical(name)
        alpha, beta = DEFAULTS[canonical]
        alpha = 0.0 if alpha is None else next(alphas, alpha)
        beta = 0.0 if beta is None else next(betas, beta)
        triples.append(_triple(canonical, alpha, beta))
    return tuple(triples)


def as_activation(value):
    """(name, alpha, beta) from that or from a name alone."""
    if isinstance(value, str):
        return resolve([value])[0]
    try:
        name, alpha, beta = value
    except (TypeError, ValueError):
        raise InputTypeError(f"activation: {value!r} is neither a name nor (name, alpha, beta)") from None
    return _triple(_canonical(name), alpha, beta)


def _canonical(name):
    if not isinstance(name, str):
        raise InputTypeError(f"activation: {name!r} is no name")
    if name.lower() not in _CANONICAL:
        raise UnsupportedError(f"activation: {name!r} is none of {', '.join(DEFAULTS)}")
    return _CANONICAL[name.lower()]


def _triple(name, alpha, beta):
    for label, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputTypeError(f"{name}: {label} is {value!r}, expected a number")
        if not math.isfinite(value):
            raise InputError(f"{name}: {label} is {value!r}, expected a finite number")
    return name, float(alpha), float(beta)


class Activation(Module):
    """An elementwise function of a float32 array of any shape."""

    function = None
    """(name, alpha, beta) of the engine's elementwise function."""

    def __call__(self, x):
        return _engine.unary(self.function[0], as_input(x, "x"), *self.function[1:])

    def rows(self, shape=None):
        return [Row(repr(self), shape or ("...",), 0, 0, 0)]


class ReLU(Activation):
    """max(x, 0)"""
    function = resolve(["Relu"])[0]


class Tanh(Activation):
    """tanh(x)"""
    function = resolve(["Tanh"])[0]


class Sigmoid(Activation):
    """1 / (1 + exp(-x))"""
    function = resolve(["Sigmoid"])[0]


class Softplus(Activation):
    """log(1 + exp(x))"""
    function = resolve(["Softplus"])[0]


class Softsign(Activation):
    """x / (1 + |x|)"""
    function = resolve(["Softsign"])[0]


class Hardsigmoid(Activation):
    """min(max(x / 6 + 1 / 2, 0), 1)"""
    function = as_activation(("HardSigmoid", 1 / 6, 0.5))


class LeakyReLU(Activation):
    """x where x >= 0, else negative_slope * x"""

    def __init__(self, negative_slope=0.01):
        self.negative_slope = negative_slope
        self.function = as_activation(("LeakyRelu", negative_slope, 0.0))


class ELU(Activation):
    """x where x >= 0, else alpha * (exp(x) - 1)"""

    def __init__(self, alpha=1.0):
        self.alpha = alpha
        self.function = as_activation(("Elu", alpha, 0.0))
