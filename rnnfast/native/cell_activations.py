"""Activation functions of recurrent cells: their ONNX names, and which of alpha and beta each takes."""

import math
import numbers

from rnnfast.errors import InputError, InputTypeError, UnsupportedError

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
"""ONNX activation -> its default (alpha, beta); None where it takes no such value."""

_CANONICAL = {name.lower(): name for name in DEFAULTS}


def resolve(names, alphas=None, betas=None):
    """Convert ONNX's three activation attributes to a tuple of (name, alpha, beta).

    Names are case-insensitive. The activations that take alpha (or beta) consume its values in order, further ones get
    their default, and surplus values are ignored; ONNX's specification leaves this open, and onnxruntime does so.
    """
    alphas = iter(() if alphas is None else as_tuple(alphas, "activation_alpha"))
    betas = iter(() if betas is None else as_tuple(betas, "activation_beta"))
    triples = []
    for name in as_tuple(names, "activations"):
        canonical = _canonical(name)
        alpha, beta = DEFAULTS[canonical]
        alpha = 0.0 if alpha is None else next(alphas, alpha)
        beta = 0.0 if beta is None else next(betas, beta)
        triples.append(_triple(canonical, alpha, beta))
    return tuple(triples)


def as_activation(value):
    """Return (name, alpha, beta) for such a triple or for a name alone, which gets its defaults."""
    if isinstance(value, str):
        return resolve([value])[0]
    try:
        name, alpha, beta = value
    except (TypeError, ValueError):
        raise InputTypeError(f"activation: {value!r} is neither a name nor (name, alpha, beta)") from None
    return _triple(_canonical(name), alpha, beta)


def as_tuple(values, name):
    """Return the values of any iterable but a string as a tuple; `name` is the argument, for messages."""
    try:
        if isinstance(values, str):
            raise TypeError
        return tuple(values)
    except TypeError:
        raise InputTypeError(f"{name}: got {values!r}, expected a list") from None


def _canonical(name):
    """Return the name in ONNX's spelling."""
    if not isinstance(name, str):
        raise InputTypeError(f"activation: {name!r} is no name")
    if name.lower() not in _CANONICAL:
        raise UnsupportedError(f"activation: {name!r} is none of {', '.join(DEFAULTS)}")
    return _CANONICAL[name.lower()]


def _triple(name, alpha, beta):
    """Return (name, alpha, beta) with finite floats."""
    for label, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputTypeError(f"{name}: {label} is {value!r}, expected a number")
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an int beyond every float
            finite = False
        if not finite:
            raise InputError(f"{name}: {label} is {value!r}, expected a finite number")
    return name, float(alpha), float(beta)
