"""Activation functions as layers, with torch's names and arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import _kernels
from rnnfast.native.cell_activations import as_activation, resolve
from rnnfast.nn.checks import as_input
from rnnfast.nn.module import Module, Sizes, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, SummaryShape


class Activation(Module):
    """Base of the elementwise functions below."""

    takes_floats = True

    def sizes(self) -> Sizes:
        return "last", None, None

    function: tuple[str, float, float]
    """(name, alpha, beta) of the engine's elementwise function."""

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Apply the function to each element.

        Args:
            x: float32 of any shape.

        Returns:
            float32 of x's shape.

        Raises:
            InputTypeError: x is not float32.
        """
        return _kernels.unary(self.function[0], as_input(x, "x"), *self.function[1:])

    def call_into(self, x, out):
        _kernels.unary(self.function[0], as_input(x, "x"), *self.function[1:], out=out)

    def _forward(self, x, rng):
        x = as_input(x, "x")
        y = self(x)
        return y, y if self.by_output else x

    def _backward(self, dy, value):
        return dy * self.derivative(value), {}

    by_output = False
    """`derivative` takes the function's output y if True, else its input x."""

    def derivative(self, value: FloatArray, /) -> FloatArray:
        """Return dy/dx, elementwise, from y or x: `by_output` says which."""
        raise NotImplementedError

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        return [SummaryRow(repr(self), shape or ("...",), 0, 0, 0)]


class ReLU(Activation):
    """y = max(x, 0), as torch.nn.ReLU."""

    function = resolve(["Relu"])[0]
    by_output = True

    def derivative(self, y):
        return y > 0


class Tanh(Activation):
    """y = tanh(x), as torch.nn.Tanh."""

    function = resolve(["Tanh"])[0]
    by_output = True

    def derivative(self, y):
        return 1 - y * y


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x)), as torch.nn.Sigmoid."""

    function = resolve(["Sigmoid"])[0]
    by_output = True

    def derivative(self, y):
        return y * (1 - y)


class Softplus(Activation):
    """y = log(1 + exp(x)), as torch.nn.Softplus with its default arguments."""

    function = resolve(["Softplus"])[0]
    by_output = True

    def derivative(self, y):
        return -np.expm1(-y)


class Softsign(Activation):
    """y = x / (1 + |x|), as torch.nn.Softsign."""

    function = resolve(["Softsign"])[0]

    def derivative(self, x):
        return (1 + np.abs(x)) ** -2


class Hardsigmoid(Activation):
    """y = min(max(x / 6 + 1 / 2, 0), 1), as torch.nn.Hardsigmoid."""

    function = as_activation(("HardSigmoid", 1 / 6, 0.5))
    by_output = True

    def derivative(self, y):
        return ((y > 0) & (y < 1)) * np.float32(1 / 6)


class LeakyReLU(Activation):
    """y = x where x >= 0, else negative_slope * x, as torch.nn.LeakyReLU.

    Args:
        negative_slope: The slope where x < 0; a finite number.

    Raises:
        InputError: negative_slope is not finite.
        InputTypeError: negative_slope is no number.
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope
        self.function = as_activation(("LeakyRelu", negative_slope, 0.0))

    def derivative(self, x):
        return np.where(x > 0, np.float32(1), np.float32(self.negative_slope))


class ELU(Activation):
    """y = x where x >= 0, else alpha * (exp(x) - 1), as torch.nn.ELU.

    Args:
        alpha: The negative of the limit for x to minus infinity; a finite number.

    Raises:
        InputError: alpha is not finite.
        InputTypeError: alpha is no number.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha
        self.function = as_activation(("Elu", alpha, 0.0))

    def derivative(self, x):
        return np.where(x > 0, np.float32(1), np.float32(self.alpha) * np.exp(np.minimum(x, 0)))


class Softmax(Module):
    """y = exp(x) / sum(exp(x)), with the sum along one axis, as torch.nn.Softmax.

    Losses such as CrossEntropy take logits, without a Softmax before them.

    Args:
        dim: The axis along which the results sum to 1; a negative one counts from the end.

    Raises:
        InputTypeError: dim is no integer.
    """

    takes_floats = True

    def __init__(self, dim: int = -1) -> None:
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
            raise InputTypeError(f"dim: {dim!r} is no integer")
        self.dim = int(dim)

    def sizes(self) -> Sizes:
        return "last", None, None

    @property
    def is_stepwise(self) -> bool:
        return self.dim == -1

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Compute the softmax.

        Args:
            x: float32 of any shape that has the axis `dim`.

        Returns:
            float32 of x's shape.

        Raises:
            InputError: x has no such axis.
            InputTypeError: x is not float32.
        """
        return self._forward(x, None)[0]

    def _forward(self, x, rng):
        x = as_input(x, "x")
        if not -x.ndim <= self.dim < x.ndim:
            raise InputError(f"x: shape is {list(x.shape)}, without the axis {self.dim} (dim)")
        rows = np.ascontiguousarray(np.moveaxis(x, self.dim, -1))  # so that sums do not depend on x's strides
        with np.errstate(all="ignore"):
            y = np.exp(rows - rows.max(-1, keepdims=True, initial=-np.inf))
            y /= y.sum(-1, keepdims=True)
        y = np.moveaxis(y, -1, self.dim)
        return y, y

    def _backward(self, dy, y):
        """Compute dx = y * (dy - sum(dy * y))."""
        return y * (dy - (dy * y).sum(self.dim, keepdims=True)), {}

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        return [SummaryRow(repr(self), shape or ("...",), 0, 0, 0)]
