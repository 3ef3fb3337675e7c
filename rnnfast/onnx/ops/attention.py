"""Attention and what belongs to it (ONNX operator specification, such as Attention-25)."""

import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.arguments import check_axis, check_indices
from rnnfast.onnx.ops.numeric import is_floating, quiet, widen
from rnnfast.onnx.ops.types import Dtype, Flag, check_size


def _heads(x, count, name):
    """Return [batch, heads, steps, size] of a tensor of that shape or of [batch, steps, heads * size]."""
    if not is_floating(x.dtype):
        raise InputTypeError(f"{name} of type {x.dtype}, expected a floating-point type")
    if x.ndim == 4:
        return x
    if x.ndim != 3 or not count or x.shape[2] % count:
        raise InputError(
            f"{name} of shape {x.shape} with {count} heads, expected [batch, steps, heads * size] or 4 axes"
        )
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def _joined(past, x, name):
    """Return the past and the new steps one after the other."""
    if past is None:
        return x
    if past.ndim != 4 or past.shape[:2] != x.shape[:2] or past.shape[3] != x.shape[3] or past.dtype != x.dtype:
        raise InputError(f"past {name} of shape {past.shape} for a {name} of {x.shape}")
    return np.concatenate([past, x], 2)


def allowed_keys(q_steps, k_steps, offset, is_causal, left, right):
    """Return which keys each query may attend, [batch or 1, 1, q_steps, k_steps], or None for all.

    offset: int [batch or 1], the position of the first query among the keys.
    """
    if not is_causal and left < 0 and right < 0:
        return None
    distance = np.arange(k_steps) - (offset[:, None, None] + np.arange(q_steps)[:, None])
    allowed = np.ones(distance.shape, bool)
    if is_causal:
        allowed &= distance <= 0
    if left >= 0:
        allowed &= distance >= -left
    if right >= 0:
        allowed &= distance <= right
    return allowed[:, None]


@quiet
def attention(
    Q,
    K,
    V,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    *,
    is_causal: Flag = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: Literal[0, 1, 2, 3] = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: Dtype | None = None,
):
    """Attention: softmax(Q K^T * scale + mask) V for each head; returns Y, the present keys and values, and Q K^T.

    A query that may attend no key gives zeros.
    """
    q, k, v = (
        _heads(x, n, name) for x, n, name in ((Q, q_num_heads, "Q"), (K, kv_num_heads, "K"), (V, kv_num_heads, "V"))
    )
    if (past_key is None) != (past_value is None):
        raise InputError("past_key and past_value, expected both or neither")
    k, v = _joined(past_key, k, "key"), _joined(past_value, v, "value")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or k.dtype != q.dtype:
        raise InputError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not belong together")
    groups, rest = divmod(q.shape[1], k.shape[1] or 1)
    if rest or not groups:
        raise InputError(f"{q.shape[1]} heads of queries for {k.shape[1]} heads of keys")
    (batch, heads, q_steps, size), k_steps = q.shape, k.shape[2]
    check_size((batch, heads, q_steps, k_steps), np.float64)
    offset = np.zeros(1, np.int64) if past_key is None else np.array([past_key.shape[2]])
    lengths = None
    if nonpad_kv_seqlen is not None:
        if past_key is not None or nonpad_kv_seqlen.shape != (batch,) or nonpad_kv_seqlen.dtype.kind not in "iu":
            raise InputError(f"nonpad_kv_seqlen of shape {nonpad_kv_seqlen.shape}, expected [batch], and no past_key")
        lengths = np.array(nonpad_kv_seqlen, np.int64)
        if lengths.size and not (0 <= lengths.min() and lengths.max() <= k_steps):
            raise InputError(f"nonpad_kv_seqlen is {lengths.tolist()} for {k_steps} keys")
        offset = lengths - q_steps

    root = math.sqrt(1 / math.sqrt(size) if scale is None else scale) if size else 1.0
    repeated = [np.repeat(x, groups, 1) if groups > 1 else x for x in (k, v)]
    wide = [widen(x) for x in (q, *repeated)]
    kind = wide[0].dtype.type
    scores = (wide[0] * kind(root)) @ (wide[1] * kind(root)).swapaxes(2, 3)
    stages = [scores]
    if softcap > 0:
        scores = kind(softcap) * np.tanh(scores / kind(softcap))
    stages.append(scores)
    allowed = allowed_keys(q_steps, k_steps, offset, is_causal, left_window_size, right_window_size)
    if lengths is not None:
        within = (np.arange(k_steps) < lengths[:, None])[:, None, None]
        allowed = within if allowed is None else allowed & within
    if attn_mask is not None:
        scores, allowed = _masked(scores, attn_mask, allowed)
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    stages.append(scores)
    weights = (
        scores.astype(softmax_precision) if softmax_precision is not None and softmax_precision.itemsize > 4 else scores
    )
    highest = weights.max(3, keepdims=True, initial=-np.inf)
    weights = np.exp(weights - np.where(np.isneginf(highest), 0, highest))
    total = weights.sum(3, keepdims=True)
    weights = np.where(total == 0, 0, weights / np.where(total == 0, 1, total)).astype(scores.dtype)
    stages.append(weights)
    y = weights @ wide[2]
    if Q.ndim == 3:
        y = y.swapaxes(1, 2).reshape(batch, q_steps, -1)
    return y.astype(V.dtype), k, v, stages[qk_matmul_output_mode].astype(Q.dtype)


def _masked(scores, mask, allowed):
    """Return scores with a mask of numbers added, and which keys may be attended with a mask of bool.

    The last axis of a mask may be shorter than the keys: those beyond it are not attended.
    """
    if mask.dtype != bool and not is_floating(mask.dtype):
        raise InputTypeError(f"attn_mask of type {mask.dtype}, expected bool or a floating-point type")
    missing = scores.shape[3] - mask.shape[-1] if mask.ndim and mask.shape[-1] != 1 else 0
    if missing > 0:
        fill = False if mask.dtype == bool else -np.inf
        mask = np.pad(widen(mask), [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=fill)
    try:
        mask = np.broadcast_to(mask, scores.shape)
    except ValueError:
        raise InputError(f"attn_mask of shape {mask.shape} for scores of {scores.shape}") from None
    if mask.dtype == bool:
        return scores, mask if allowed is None else allowed & mask
    return scores + widen(mask).astype(scores.dtype), allowed


@quiet
def rotary_embedding(
    x,
    cos_cache,
    sin_cache,
    position_ids=None,
    *,
    interleaved: Flag = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
):
    """RotaryEmbedding: pairs of numbers of each head are turned by the angle of their position."""
    heads = _heads(x, num_heads, "the input")  # [batch, heads, steps, size]
    batch, _, steps, size = heads.shape
    turned = rotary_embedding_dim or size
    if not 0 < turned <= size or turned % 2:
        raise InputError(f"{turned} of {size} numbers of a head are turned, expected an even number of them")
    if cos_cache.shape != sin_cache.shape:
        raise InputError(f"cosines {cos_cache.shape} and sines {sin_cache.shape}, expected one shape")
    caches = cos_cache, sin_cache
    if position_ids is not None:
        if cos_cache.ndim != 2 or position_ids.shape != (batch, steps):
            raise InputError(f"cosines {cos_cache.shape} at positions {position_ids.shape}, expected [batch, steps]")
        indices = check_indices(position_ids, len(cos_cache))
        caches = cos_cache[indices], sin_cache[indices]
    if caches[0].shape != (batch, steps, turned // 2):
        raise InputError(f"cosines {caches[0].shape}, expected {[batch, steps, turned // 2]}")
    cos, sin = (widen(c)[:, None] for c in caches)
    part = widen(heads[..., :turned])
    a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else np.split(part, 2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    rotated = (
        np.stack([real, imaginary], -1).reshape(part.shape) if interleaved else np.concatenate([real, imaginary], -1)
    )
    y = np.concatenate([rotated.astype(x.dtype), heads[..., turned:]], -1)
    return y if x.ndim == 4 else y.swapaxes(1, 2).reshape(x.shape)


@quiet
def tensor_scatter(
    past_cache, update, write_indices=None, *, axis: int = -2, mode: Literal["linear", "circular"] = "linear"
):
    """TensorScatter: the cache with an update written behind what each row of the batch has."""
    axis = check_axis(axis, past_cache.ndim)
    expected = (*past_cache.shape[:axis], *past_cache.shape[axis + 1 :])
    if axis == 0 or update.ndim != past_cache.ndim or (*update.shape[:axis], *update.shape[axis + 1 :]) != expected:
        raise InputError(f"an update of shape {update.shape} for a cache of {past_cache.shape} along axis {axis}")
    batch, size, steps = past_cache.shape[0], past_cache.shape[axis], update.shape[axis]
    begins = np.zeros(batch, np.int64) if write_indices is None else np.array(write_indices)
    if begins.shape != (batch,) or begins.dtype.kind not in "iu":
        raise InputError(f"write_indices of shape {begins.shape}, expected one for each of {batch} rows")
    if steps > size or (mode == "linear" and batch and not (0 <= begins.min() and begins.max() + steps <= size)):
        raise InputError(f"{steps} steps at {begins.tolist()} in a cache of {size}")
    places = begins.astype(np.int64)[:, None] + np.arange(steps)
    if mode == "circular" and size:
        places %= size
    y = np.array(past_cache)
    np.moveaxis(y, axis, 1)[np.arange(batch)[:, None], places] = np.moveaxis(update, axis, 1)
    return y


@quiet
def linear_attention(
    query,
    key,
    value,
    past_state=None,
    decay=None,
    beta=None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: Literal["linear", "gated", "delta", "gated_delta"] = "gated_delta",
):
    """LinearAttention: a state [batch, heads, d_k, d_v] that each step adds k v^T to, and queries read.

    The gated rules multiply it by a decay before; the delta rules add v without what the state has for k already.
    """
    q = _heads(query, q_num_heads, "query")
    k, v = _heads(key, kv_num_heads, "key"), _heads(value, kv_num_heads, "value")
    (batch, heads, steps, d_k), d_v = k.shape, v.shape[3]
    groups, rest = divmod(q.shape[1], heads or 1)
    if rest or not groups or q.shape != (batch, groups * heads, steps, d_k) or v.shape[:3] != k.shape[:3]:
        raise InputError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not belong together")
    for name, x, used in (("decay", decay, "gated" in update_rule), ("beta", beta, "delta" in update_rule)):
        if (x is not None) != used:
            raise InputError(f"update_rule {update_rule} {'needs' if used else 'has no'} {name}")
    shape = (batch, heads, d_k, d_v)
    if past_state is not None and past_state.shape != shape:
        raise InputError(f"past_state of shape {past_state.shape}, expected {shape}")
    q, k, v = map(widen, (q, k, v))
    state = np.zeros(shape, k.dtype) if past_state is None else widen(past_state).astype(k.dtype)
    if decay is not None:
        decay = _of_heads(decay, (batch, steps), (heads * d_k, heads), heads, "decay")
    if beta is not None:
        beta = _of_heads(beta, (batch, steps), (heads, 1), heads, "beta")
    factor = k.dtype.type(scale or (1 / math.sqrt(d_k) if d_k else 1))
    y = np.zeros((batch, steps, q.shape[1], d_v), k.dtype)
    for t in range(steps):
        if decay is not None:
            state = np.exp(decay[:, t])[..., None] * state
        new = v[:, :, t]
        if beta is not None:
            new = beta[:, t] * (new - (k[:, :, t, None] @ state)[:, :, 0])
        state = state + k[:, :, t, :, None] * new[:, :, None]
        y[:, t] = ((q[:, :, t] * factor)[:, :, None] @ np.repeat(state, groups, 1))[:, :, 0]
    kind = query.dtype if past_state is None else past_state.dtype
    return y.reshape(batch, steps, -1).astype(query.dtype), state.astype(kind)


def _of_heads(x, lead, sizes, heads, name):
    """Return [batch, steps, heads or 1, numbers of a head] of x [batch, steps, one of these sizes]."""
    if x.ndim != 3 or x.shape[:2] != lead or x.shape[2] not in sizes:
        raise InputError(f"{name} of shape {x.shape}, expected {list(lead)} and {' or '.join(map(str, sizes))}")
    return widen(x).reshape(*lead, heads if x.shape[2] % (heads or 1) == 0 else 1, -1)


@quiet
def causal_conv_with_state(
    x, weight, bias=None, past_state=None, *, activation: Literal["none", "silu", "swish"] = "none"
):
    """CausalConvWithState: each channel convolved with its own kernel over past and present, and the new past."""
    if x.ndim != 3 or weight.ndim != 3 or weight.shape[:2] != (x.shape[1], 1) or not weight.shape[2]:
        raise InputError(f"an input of shape {x.shape} and weights of {weight.shape}, expected [N, C, L] and [C, 1, k]")
    (batch, channels, length), k = x.shape, weight.shape[2]
    past = np.zeros((batch, channels, k - 1), x.dtype) if past_state is None else past_state
    if past.shape != (batch, channels, k - 1) or (bias is not None and bias.shape != (channels,)):
        raise InputError(f"past_state of shape {past.shape} for {k} taps of {channels} channels")
    whole = np.concatenate([past, x], 2)
    wide, taps = widen(whole), widen(weight)
    y = np.zeros((batch, channels, length), wide.dtype)
    for j in range(k):
        y += wide[:, :, j : j + length] * taps[:, 0, j, None]
    if bias is not None:
        y += widen(bias)[:, None]
    if activation != "none":
        y = y / (1 + np.exp(-y))
    return y.astype(x.dtype), whole[:, :, length:]


OPS = {
    "Attention": {23: attention},
    "CausalConvWithState": {27: causal_conv_with_state},
    "LinearAttention": {27: linear_attention},
    "RotaryEmbedding": {23: rotary_embedding},
    "TensorScatter": {24: tensor_scatter},
}
