"""Normalization layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnnfast.errors import InputError
from rnnfast.nn.checks import as_input, check_number, check_size, check_weights
from rnnfast.nn.module import Module, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, Shape, SummaryShape


class LayerNorm(Module):
    """Layer normalization over the last axis: y = (x - mean) / sqrt(variance + eps) * weight + bias.

    Mean and (biased) variance are those of the last axis. Arguments, formula and state dict are those of
    torch.nn.LayerNorm: weight [normalized_shape], initially ones, and bias [normalized_shape], initially zeros.

    Args:
        normalized_shape: The size of the last axis.
        eps: The number that is added to the variance, from 0 to 1.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
    """

    takes_floats = True

    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        self.normalized_shape = check_size(normalized_shape, "normalized_shape")
        self.eps = check_number(eps, "eps", 0.0, 1.0)
        check_weights(self, self.shapes().values())

    def shapes(self) -> dict[str, Shape]:
        return {"weight": (self.normalized_shape,), "bias": (self.normalized_shape,)}

    def _draw(self, rng):
        return {
            "weight": np.ones(self.normalized_shape, np.float32),
            "bias": np.zeros(self.normalized_shape, np.float32),
        }

    def _pack(self, parameters):
        return parameters["weight"], parameters["bias"]

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Normalize the last axis.

        Args:
            x: float32 [..., normalized_shape].

        Returns:
            float32 of x's shape.

        Raises:
            InputError: The last axis has another size.
            InputTypeError: x is not float32.
        """
        return self._forward(x, None)[0]

    def _forward(self, x, rng):
        x = as_input(x, "x")
        if x.ndim == 0 or x.shape[-1] != self.normalized_shape:
            raise InputError(f"x: shape is {list(x.shape)}, expected [..., {self.normalized_shape}] (normalized_shape)")
        weight, bias = self._packed
        with np.errstate(all="ignore"):
            centred = x - _mean(x)
            scale = 1 / np.sqrt(_mean(centred * centred) + np.float32(self.eps))
            normal = centred * scale
            return normal * weight + bias, normal, scale, weight

    def _backward(self, dy, normal, scale, weight):
        """Compute dx = (d - mean(d) - n * mean(d * n)) * scale, where d = dy * weight and n = (x - mean) * scale."""
        axes = tuple(range(dy.ndim - 1))
        d = dy * weight
        dx = (d - _mean(d) - normal * _mean(d * normal)) * scale
        return dx, {"weight": (dy * normal).sum(axes), "bias": dy.sum(axes)}

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        size = self.normalized_shape
        return [SummaryRow(repr(self), shape or ("...", size), 2 * size, 0, 8 * size)]


def _mean(x):
    """Return the mean of the last axis; contiguous rows make the result independent of x's strides."""
    return np.ascontiguousarray(x).mean(-1, keepdims=True, dtype=np.float32)
