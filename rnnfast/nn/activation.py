"""Activation functions as layers with torch's names and arguments."""

import numpy as np

from rnnfast.native import _kernels
from rnnfast.native.cell_activations import as_activation, resolve
from rnnfast.nn.checks import as_input
from rnnfast.nn.module import Module, SummaryRow


class Activation(Module):
    """An elementwise function of a float32 array of any shape: the layers below say which."""

    function = None
    """(name, alpha, beta) of the engine's elementwise function."""

    def __call__(self, x):
        return _kernels.unary(self.function[0], as_input(x, "x"), *self.function[1:])

    def _forward(self, x, rng):
        x = as_input(x, "x")
        y = self(x)
        return y, y if self.by_output else x

    def _backward(self, dy, value):
        return dy * self.derivative(value), {}

    by_output = False
    """`derivative` is that at y; else it is that at x."""

    def derivative(self, value):
        """dy/dx"""

    def summary_rows(self, shape=None):
        return [SummaryRow(repr(self), shape or ("...",), 0, 0, 0)]


class ReLU(Activation):
    """max(x, 0)"""

    function = resolve(["Relu"])[0]
    by_output = True

    def derivative(self, y):
        return y > 0


class Tanh(Activation):
    """tanh(x)"""

    function = resolve(["Tanh"])[0]
    by_output = True

    def derivative(self, y):
        return 1 - y * y


class Sigmoid(Activation):
    """1 / (1 + exp(-x))"""

    function = resolve(["Sigmoid"])[0]
    by_output = True

    def derivative(self, y):
        return y * (1 - y)


class Softplus(Activation):
    """log(1 + exp(x))"""

    function = resolve(["Softplus"])[0]
    by_output = True

    def derivative(self, y):
        return -np.expm1(-y)


class Softsign(Activation):
    """x / (1 + |x|)"""

    function = resolve(["Softsign"])[0]

    def derivative(self, x):
        return (1 + np.abs(x)) ** -2


class Hardsigmoid(Activation):
    """min(max(x / 6 + 1 / 2, 0), 1)"""

    function = as_activation(("HardSigmoid", 1 / 6, 0.5))
    by_output = True

    def derivative(self, y):
        return ((y > 0) & (y < 1)) * np.float32(1 / 6)


class LeakyReLU(Activation):
    """x where x >= 0, else negative_slope * x"""

    def __init__(self, negative_slope=0.01):
        self.negative_slope = negative_slope
        self.function = as_activation(("LeakyRelu", negative_slope, 0.0))

    def derivative(self, x):
        return np.where(x > 0, np.float32(1), np.float32(self.negative_slope))


class ELU(Activation):
    """x where x >= 0, else alpha * (exp(x) - 1)"""

    def __init__(self, alpha=1.0):
        self.alpha = alpha
        self.function = as_activation(("Elu", alpha, 0.0))

    def derivative(self, x):
        return np.where(x > 0, np.float32(1), np.float32(self.alpha) * np.exp(np.minimum(x, 0)))
