"""Losses (ONNX operator specification, NegativeLogLikelihoodLoss-22, SoftmaxCrossEntropyLoss-13)."""

from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.numeric import is_floating, quiet, widen

REDUCTIONS = Literal["none", "sum", "mean"]


def _likelihood(logs, target, weight, ignore_index, reduction):
    """Return the loss of logarithms [N, C, ...] at the classes target [N, ...]; those of ignore_index weigh nothing."""
    if not is_floating(logs.dtype):
        raise InputTypeError(f"an input of type {logs.dtype}, expected a floating-point type")
    if logs.ndim < 2 or target.shape != (logs.shape[0], *logs.shape[2:]):
        raise InputError(
            f"an input of shape {logs.shape} and a target of {target.shape}, expected [N, C, ...] and [N, ...]"
        )
    if target.dtype.kind not in "iu":
        raise InputTypeError(f"a target of type {target.dtype}, expected int32 or int64")
    classes, target = logs.shape[1], np.array(target, np.int64)
    if weight is not None and (weight.shape != (classes,) or weight.dtype != logs.dtype):
        raise InputError(
            f"weights of shape {weight.shape} and type {weight.dtype}, expected {[classes]} of {logs.dtype}"
        )
    counts = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    wrong = counts & ((target < 0) | (target >= classes))
    if wrong.any():
        raise InputError(f"class {target[wrong][0]} in the target, expected 0 to {classes - 1}")
    target = np.where(counts, target, 0)
    wide = widen(logs)
    of_class = np.ones(classes, wide.dtype) if weight is None else widen(weight)
    of_element = np.where(counts, of_class[target] if classes else 0, 0).astype(wide.dtype)
    chosen = np.take_along_axis(wide, target[:, None], 1)[:, 0] if classes else np.zeros(target.shape, wide.dtype)
    loss = np.where(counts, -chosen * of_element, 0)
    if reduction == "sum":
        loss = loss.sum()
    elif reduction == "mean":
        loss = loss.sum() / of_element.sum()
    return np.asarray(loss).astype(logs.dtype)


@quiet
def negative_log_likelihood_loss(
    x, target, weight=None, *, ignore_index: int | None = None, reduction: REDUCTIONS = "mean"
):
    """NegativeLogLikelihoodLoss: minus the logarithm at the target's class, weighted by class."""
    return _likelihood(x, target, weight, ignore_index, reduction)


@quiet
def softmax_cross_entropy_loss(
    scores, labels, weights=None, *, ignore_index: int | None = None, reduction: REDUCTIONS = "mean"
):
    """SoftmaxCrossEntropyLoss: the loss of log(softmax(scores)) along axis 1, and these logarithms."""
    if scores.ndim < 2 or not is_floating(scores.dtype):
        raise InputError(f"scores of shape {scores.shape} and type {scores.dtype}, expected floating-point [N, C, ...]")
    wide = widen(scores)
    logs = wide - wide.max(1, keepdims=True, initial=-np.inf)
    logs = (logs - np.log(np.exp(logs).sum(1, keepdims=True))).astype(scores.dtype)
    return _likelihood(logs, labels, weights, ignore_index, reduction), logs


OPS = {
    "NegativeLogLikelihoodLoss": {12: negative_log_likelihood_loss},
    "SoftmaxCrossEntropyLoss": {12: softmax_cross_entropy_loss},
}
