"""Normalization layers."""

import numpy as np

from rnnfast.errors import InputError
from rnnfast.nn.checks import as_input, check_number, check_size, check_weights
from rnnfast.nn.module import Module, SummaryRow


class LayerNorm(Module):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of the last axis, and torch's
    arguments and state dict: weight [normalized_shape], bias [normalized_shape].

    normalized_shape: the size of the last axis.
    """

    def __init__(self, normalized_shape, eps=1e-5):
        self.normalized_shape = check_size(normalized_shape, "normalized_shape")
        self.eps = check_number(eps, "eps", 0.0, 1.0)
        check_weights(self, self.shapes().values())

    def shapes(self):
        return {"weight": (self.normalized_shape,), "bias": (self.normalized_shape,)}

    def _draw(self, rng):
        return {
            "weight": np.ones(self.normalized_shape, np.float32),
            "bias": np.zeros(self.normalized_shape, np.float32),
        }

    def _pack(self, parameters):
        return parameters["weight"], parameters["bias"]

    def __call__(self, x):
        """x [..., normalized_shape] float32 -> the same shape"""
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
        """dx = (d - mean(d) - normal * mean(d * normal)) * scale, where d = dy * weight, normal = (x - mean) * scale"""
        axes = tuple(range(dy.ndim - 1))
        d = dy * weight
        dx = (d - _mean(d) - normal * _mean(d * normal)) * scale
        return dx, {"weight": (dy * normal).sum(axes), "bias": dy.sum(axes)}

    def summary_rows(self, shape=None):
        size = self.normalized_shape
        return [SummaryRow(repr(self), shape or ("...", size), 2 * size, 0, 8 * size)]


def _mean(x):
    """Of the last axis, each row by itself whatever the strides are."""
    return np.ascontiguousarray(x).mean(-1, keepdims=True, dtype=np.float32)
