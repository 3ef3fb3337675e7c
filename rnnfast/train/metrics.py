"""Metrics: `metric(y, target, mask=None)` -> a float, the mean over the elements that the mask keeps."""

import numpy as np

from rnnfast.train.losses import check_mask


def accuracy(y, target, mask=None):
    """The share of right answers: of the largest logit where y has classes as a further last axis, else of the sign of
    the logit, for targets 0 and 1."""
    y, target = np.asarray(y), np.asarray(target)
    right = y.argmax(-1) == target if y.ndim == target.ndim + 1 else (y > 0) == (target > 0.5)
    mask, count = check_mask(mask, right.shape)
    return float(np.count_nonzero(right if mask is None else right & mask) / count)
