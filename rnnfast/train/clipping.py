"""Gradients kept in bounds: both change a flat vector in place."""

import math

import numpy as np


@np.errstate(all="ignore")
def norm(gradients):
    """sqrt of the sum of squares, in float64 where float32 overflows."""
    square = float(np.dot(gradients, gradients))
    if not math.isfinite(square):
        square = float(np.square(gradients, dtype=np.float64).sum())
    return math.sqrt(square) if square >= 0 else math.nan


def clip_norm(gradients, most):
    """Scale the vector so that its norm is `most` where it is larger, as torch does -> the norm before."""
    before = norm(gradients)
    scale = most / (before + 1e-6)
    if scale < 1:
        gradients *= np.float32(scale)
    return before


def clip_value(gradients, most):
    """Each element into [-most, most]."""
    np.clip(gradients, -most, most, out=gradients)
