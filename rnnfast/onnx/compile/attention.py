"""Attention: products, a softmax and a product for each head."""

import math

import numpy as np

from rnnfast.onnx.compile import dense
from rnnfast.onnx.compile.elementwise import affine, function
from rnnfast.onnx.compile.expressions import ADD, EQ, WHERE, Instruction, number, written
from rnnfast.onnx.compile.reduction import MAX, NOTHING, SOFTMAX, emit_rows, reduced
from rnnfast.onnx.ops import attention


def emit_attention(builder, node, inputs, outputs):
    """Emit the commands of Attention; False if BLAS multiplies, for lengths of keys, a softmax in float64, the output
    of scores, other types than float32 (and bool of a mask), or without elements.
    """
    q, k, v, mask, past_k, past_v, lengths = [*inputs, *[None] * 7][:7]
    settings = {"softcap": 0.0, "is_causal": 0, "scale": None} | node.attributes
    if builder.target.blas or lengths is not None or len(outputs) > 3 and outputs[3] is not None and outputs[3].uses:
        return False
    precision = settings.get("softmax_precision")
    if precision is not None and precision.itemsize > 4:
        return False
    if any(o is not None and (o.dtype != np.float32 or 0 in o.shape) for o in (q, k, v, past_k, past_v)):
        return False
    if mask is not None and (mask.dtype not in (np.float32, np.bool_) or 0 in mask.shape):
        return False
    q, k, v = (_heads(builder, o, settings.get(f"{kind}_num_heads")) for o, kind in ((q, "q"), (k, "kv"), (v, "kv")))
    k, v = _joined(builder, past_k, k), _joined(builder, past_v, v)
    for operand, view in zip(outputs[1:], (k, v)):
        if operand is not None:
            builder.set(operand, view)
    (batch, heads, steps, size), of_keys, keys = q.shape, k.shape[1], k.shape[2]
    scale = 1 / math.sqrt(size) if settings["scale"] is None else settings["scale"]
    groups = (batch, of_keys, heads // of_keys)
    scaled = written(builder, affine(q, scale), q.shape)
    grouped = builder.reshaped(scaled, (*groups, steps, size))
    scores = dense.multiplied(builder, grouped, _for_groups(k, groups).swapaxes(-1, -2))
    scores = _masked(builder, scores.reshape(batch, heads, steps, keys), mask, past_k, settings)
    weights = emit_rows(builder, scores, SOFTMAX)
    if mask is not None:  # a query that may attend no key gives zeros
        highest = reduced(builder, scores, (3,), MAX, NOTHING)
        none = Instruction(EQ, (highest, number(builder, -math.inf)))
        weights = written(builder, Instruction(WHERE, (none, number(builder, 0), weights)), weights.shape)
    y = dense.multiplied(builder, weights.reshape(*groups, steps, keys), _for_groups(v, groups))
    y = y.reshape(batch, heads, steps, v.shape[3])
    if len(outputs[0].shape) == 3:
        y = builder.reshaped(y.swapaxes(1, 2), outputs[0].shape)
    builder.set(outputs[0], y)
    return True


def _heads(builder, operand, count):
    """Return a view [batch, heads, steps, size] of an operand of that shape or of [batch, steps, heads * size]."""
    view = builder.view(operand)
    if view.ndim == 4:
        return view
    return builder.reshaped(view, (*view.shape[:2], count, view.shape[2] // count)).swapaxes(1, 2)


def _for_groups(view, groups):
    """Return keys or values [batch, heads, steps, size] for each group of queries' heads."""
    return np.broadcast_to(view[:, :, None], (*groups, *view.shape[2:]))


def _joined(builder, past, view):
    """Return the past and the new steps one after the other."""
    if past is None:
        return view
    before = past.shape[2]
    joined = builder.new((*view.shape[:2], before + view.shape[2], view.shape[3]))
    builder.copy(joined[:, :, :before], builder.view(past))
    builder.copy(joined[:, :, before:], view)
    return joined


def _masked(builder, scores, mask, past, settings):
    """Return the scores with softcap, the mask and what is causal or within a window."""
    root = scores
    if settings["softcap"]:
        root = affine(function("Tanh", affine(root, 1 / settings["softcap"])), settings["softcap"])
    steps, keys = scores.shape[2:]
    offset = np.array([past.shape[2] if past is not None else 0])
    sides = (settings.get(f"{side}_window_size", -1) for side in ("left", "right"))
    allowed = attention.allowed_keys(steps, keys, offset, settings["is_causal"], *sides)
    infinity = number(builder, -math.inf)
    if mask is not None:
        view = builder.view(mask)
        missing = keys - view.shape[-1] if view.ndim and view.shape[-1] != 1 else 0
        if missing > 0:
            longer = builder.new((*view.shape[:-1], keys), view.dtype)
            fill = np.array(False) if view.dtype == np.bool_ else np.array(-np.inf, np.float32)
            builder.copy(longer[..., :-missing], view)
            builder.copy(longer[..., -missing:], builder.constant(fill))
            view = longer
        added = view.dtype == np.float32
        root = Instruction(ADD, (root, view)) if added else Instruction(WHERE, (view, root, infinity))
    if allowed is not None:
        root = Instruction(WHERE, (builder.constant(np.ascontiguousarray(allowed)), root, infinity))
    return root if root is scores else written(builder, root, scores.shape)


EMIT = {"Attention": emit_attention}
