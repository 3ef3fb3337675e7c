"""Dropout: the identity in inference, random zeros in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnnfast.nn.checks import as_generator, as_input, check_number
from rnnfast.nn.module import Module, Sizes, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, SummaryShape


class Dropout(Module):
    """Dropout: y = x in inference; in training an element is 0 with probability p, else x / (1 - p).

    The formula is that of torch.nn.Dropout.

    Args:
        p: The probability of zeroing an element, from 0 to 1; it is rounded to the nearest multiple of 1/65536.

    Raises:
        InputError: p is out of range.
        InputTypeError: p is no number.
    """

    takes_floats = True

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_number(p, "p", 0.0, 1.0)

    def sizes(self) -> Sizes:
        return "last", None, None

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Return x unchanged, as dropout acts in training only.

        Args:
            x: float32 of any shape.

        Raises:
            InputTypeError: x is not float32.
        """
        return as_input(x, "x")

    def _forward(self, x, rng):
        x = as_input(x, "x")
        mask = draw(x.shape, self.p, as_generator(rng))
        return drop(x, mask, self.p), mask

    def _backward(self, dy, mask):
        return drop(dy, mask, self.p), {}

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        return [SummaryRow(repr(self), shape or ("...",), 0, 0, 0)]


def draw(shape, p, rng):
    """Draw a bool mask of the elements that dropout keeps: True with probability 1 - p, rounded to 1/65536."""
    return rng.integers(0, 65536, shape, np.uint16) >= np.uint32(round(p * 65536))


def drop(x, mask, p):
    """Return x / (1 - p) where the mask is True, and 0 elsewhere."""
    y = mask.astype(np.float32)
    y *= np.float32(1 / (1 - p) if p < 1 else 0)
    y *= x
    return y
