"""The activation functions of ONNX RNN, GRU and LSTM and their derivatives, in NumPy.

From https://onnx.ai/onnx/operators/onnx__LSTM.html.
"""

import numpy as np


def _sigmoid(x, alpha, beta):
    """Compute 1 / (1 + exp(-x)) by exp(-|x|), so that it neither overflows nor cancels."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


ACTIVATIONS = {
    "Relu": lambda x, alpha, beta: np.maximum(x, 0.0),
    "Tanh": lambda x, alpha, beta: np.tanh(x),
    "Sigmoid": _sigmoid,
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "LeakyRelu": lambda x, alpha, beta: np.where(x >= 0, x, alpha * x),
    "ThresholdedRelu": lambda x, alpha, beta: np.where(x < alpha, 0.0, x),
    "ScaledTanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda x, alpha, beta: np.minimum(np.maximum(alpha * x + beta, 0.0), 1.0),
    "Elu": lambda x, alpha, beta: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0.0))),
    "Softsign": lambda x, alpha, beta: x / (1.0 + np.abs(x)),
    "Softplus": lambda x, alpha, beta: np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))),
}
"""name -> function(x, alpha, beta); functions without alpha or beta ignore them."""


def _d_sigmoid(x, alpha, beta):
    """Compute sigmoid(x) * sigmoid(-x), which is sigmoid(x) * (1 - sigmoid(x)) without cancellation."""
    return _sigmoid(x, alpha, beta) * _sigmoid(-x, alpha, beta)


def _d_tanh(x):
    """Compute 1 - tanh(x)^2 without cancellation, as tanh(x) = 2 * sigmoid(2 * x) - 1."""
    return 4.0 * _d_sigmoid(2.0 * x, 0.0, 0.0)


def _d_hard_sigmoid(x, alpha, beta):
    """Return alpha between the limits, and 0 at and beyond them."""
    y = alpha * x + beta
    return np.where((y > 0) & (y < 1), alpha, 0.0)


DERIVATIVES = {
    "Relu": lambda x, alpha, beta: np.where(x > 0, 1.0, 0.0),
    "Tanh": lambda x, alpha, beta: _d_tanh(x),
    "Sigmoid": _d_sigmoid,
    "Affine": lambda x, alpha, beta: np.full_like(x, alpha),
    "LeakyRelu": lambda x, alpha, beta: np.where(x >= 0, 1.0, alpha),
    "ThresholdedRelu": lambda x, alpha, beta: np.where(x < alpha, 0.0, 1.0),
    "ScaledTanh": lambda x, alpha, beta: alpha * beta * _d_tanh(beta * x),
    "HardSigmoid": _d_hard_sigmoid,
    "Elu": lambda x, alpha, beta: np.where(x >= 0, 1.0, alpha * np.exp(np.minimum(x, 0.0))),
    "Softsign": lambda x, alpha, beta: (1.0 / (1.0 + np.abs(x))) ** 2,
    "Softplus": _sigmoid,
}
"""name -> the derivative of ACTIVATIONS[name] by x, with the same arguments.

At a kink it is the derivative of the branch that ACTIVATIONS takes there, and 0 where both arguments of a maximum or
minimum are equal (Relu, HardSigmoid).
"""

_DEFAULTS = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, 0.0),
    "ThresholdedRelu": (1.0, 0.0),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
}


def defaults(name: str) -> tuple[float, float]:
    """Return the default (alpha, beta) of an activation: those of the ONNX operator of the same name.

    ONNX no longer has operators Affine and ScaledTanh; their defaults here leave x and tanh(x) as they are. An
    activation without alpha or beta has 0.0 for it.

    Args:
        name: A key of ACTIVATIONS.
    """
    return _DEFAULTS.get(name, (0.0, 0.0))
