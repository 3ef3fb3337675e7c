"""Rules of attention and what belongs to it: the rows of the batch, axis 0, are apart."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, aligned, check_shared, rows_in
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Rows, Value


def _of_batch(*values: Value | None) -> Rows:
    """The rows of values that have all of them along axis 0; absent ones do not count."""
    found = {rows_in(value) for value in values if value is not None}
    if len(found) > 1 or any(rows.axis for rows in found):
        raise Meets("its inputs do not all have the rows along axis 0")
    return found.pop()


def attention(
    follower: Follower,
    event: Event,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    lengths: Value | None = None,
) -> Any:
    rows = _of_batch(q, k, v, past_key, past_value, lengths)
    if mask is not None:
        aligned([Value((follower.n * rows.outer * rows.inner, 1, 1, 1), rows), mask], 4)
    return rows


def rotary_embedding(
    follower: Follower, event: Event, x: Value, cosines: Value, sines: Value, positions: Value | None = None
) -> Any:
    if positions is None:
        return _of_batch(x, cosines, sines)
    check_shared([cosines, sines], "the angles")
    return _of_batch(x, positions)


def tensor_scatter(
    follower: Follower, event: Event, cache: Value, update: Value, indices: Value | None = None
) -> Rows | None:
    return _of_batch(cache, update, indices)


def causal_conv(
    follower: Follower, event: Event, x: Value, w: Value, bias: Value | None = None, past: Value | None = None
) -> Any:
    check_shared([w, bias], "the weights")
    return _of_batch(x, past)


RULES = {
    "Attention": attention,
    "CausalConvWithState": causal_conv,
    "RotaryEmbedding": rotary_embedding,
    "TensorScatter": tensor_scatter,
}
