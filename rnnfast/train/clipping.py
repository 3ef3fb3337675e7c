"""Gradient clipping; the functions change a flat vector in place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rnnfast.nn.types import FloatArray


@np.errstate(all="ignore")
def norm(gradients: FloatArray) -> float:
    """Return the Euclidean norm of a vector; it is computed in float64 if float32 overflows."""
    square = float(np.dot(gradients, gradients))
    if not math.isfinite(square):
        square = float(np.square(gradients, dtype=np.float64).sum())
    return math.sqrt(square) if square >= 0 else math.nan


def clip_norm(gradients: FloatArray, most: float) -> float:
    """Scale a vector whose norm is larger than `most` to this norm, in place.

    The factor is most / (norm + 1e-6), as in torch.nn.utils.clip_grad_norm_.

    Args:
        gradients: float32 [N], all gradients in one vector.
        most: The maximum norm.

    Returns:
        The norm before clipping.
    """
    before = norm(gradients)
    scale = most / (before + 1e-6)
    if scale < 1:
        gradients *= np.float32(scale)
    return before


def clip_value(gradients: FloatArray, most: float) -> None:
    """Clip each element to [-most, most], in place, as torch.nn.utils.clip_grad_value_.

    Args:
        gradients: float32 [N].
        most: The maximum absolute value.
    """
    np.clip(gradients, -most, most, out=gradients)
