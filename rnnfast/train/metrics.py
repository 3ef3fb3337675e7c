"""Metrics: `metric(y, target, mask=None)` returns a float, the mean over the elements that count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.train.losses import check_mask

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def accuracy(y: ArrayLike, target: ArrayLike, mask: NDArray[Any] | None = None) -> float:
    """Return the fraction of correct predictions.

    Args:
        y: Logits [..., classes], of which the largest is the prediction, or [...] or [..., 1], of which the sign is.
        target: Classes, integers [...], or 0 and 1 [...].
        mask: bool or weights, of the target's shape or its first axes: which elements count, and how much; None is
            all.

    Raises:
        InputError: The mask's shape does not fit, or no element counts.
        InputTypeError: The mask is neither bool nor weights.
    """
    logits, expected = np.asarray(y), np.asarray(target)
    if logits.shape == (*expected.shape, 1):
        logits = logits[..., 0]
    if logits.ndim == expected.ndim + 1:
        correct = logits.argmax(-1) == expected
    else:
        correct = (logits > 0) == (expected > 0.5)
    mask, weights, count = check_mask(mask, correct.shape)
    if weights is not None:
        return float((weights * correct).sum() / count)
    return float(np.count_nonzero(correct if mask is None else correct & mask) / count)
