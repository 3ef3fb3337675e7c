"""Dropout: nothing in inference, zeros at random in training."""

import numpy as np

from rnnfast.nn.checks import as_generator, as_input, check_number
from rnnfast.nn.module import Module, SummaryRow


class Dropout(Module):
    """y = x; in training each element is 0 with probability p, else x / (1 - p), as in torch."""

    def __init__(self, p=0.5):
        self.p = check_number(p, "p", 0.0, 1.0)

    def __call__(self, x):
        """x float32 of any shape -> x"""
        return as_input(x, "x")

    def _forward(self, x, rng):
        x = as_input(x, "x")
        kept = draw(x.shape, self.p, as_generator(rng))
        return drop(x, kept, self.p), kept

    def _backward(self, dy, kept):
        return drop(dy, kept, self.p), {}

    def summary_rows(self, shape=None):
        return [SummaryRow(repr(self), shape or ("...",), 0, 0, 0)]


def draw(shape, p, rng):
    """Which elements dropout keeps: True with probability 1 - p, to the nearest of 65536."""
    return rng.integers(0, 65536, shape, np.uint16) >= np.uint32(round(p * 65536))


def drop(x, kept, p):
    """x / (1 - p) where it is kept, else 0"""
    y = kept.astype(np.float32)
    y *= np.float32(1 / (1 - p) if p < 1 else 0)
    y *= x
    return y
