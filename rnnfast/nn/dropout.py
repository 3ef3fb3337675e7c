"""Dropout: nothing in inference, zeros at random in training."""
import numpy as np

from .checks import as_generator, as_input, check_number
from .module import Module, Row


class Dropout(Module):
    """y = x; in training each element is 0 with probability p, else x / (1 - p), as in torch."""

    def __init__(self, p=0.5):
        self.p = check_number(p, "p", 0.0, 1.0)

    def __call__(self, x):
        """x float32 of any shape -> x"""
        return as_input(x, "x")

    def _forward(self, x, rng):
        x = as_input(x, "x")
        kept = as_generator(rng).random(x.shape, np.float32) >= self.p
        return self._drop(x, kept), kept

    def _backward(self, dy, kept):
        return self._drop(dy, kept), {}

    def _drop(self, x, kept):
        return x * kept * np.float32(1 / (1 - self.p) if self.p < 1 else 0)

    def rows(self, shape=None):
        return [Row(repr(self), shape or ("...",), 0, 0, 0)]
