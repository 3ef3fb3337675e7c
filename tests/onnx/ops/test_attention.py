"""Attention over random attributes against its definition, written as loops in float64; what is refused."""

import itertools

import numpy as np
import pytest

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.attention import attention, rotary_embedding, tensor_scatter


def by_loops(q, k, v, mask, scale, softcap, offset, causal, left, right, lengths):
    """Y of [batch, heads, steps, size] tensors."""
    y = np.zeros((*q.shape[:3], v.shape[3]))
    groups = q.shape[1] // k.shape[1]
    for n, h, i in np.ndindex(q.shape[:3]):
        scores = []
        for j in range(k.shape[2]):
            score = scale * float(q[n, h, i] @ k[n, h // groups, j])
            score = softcap * np.tanh(score / softcap) if softcap > 0 else score
            p = offset[n] + i
            hidden = causal and j > p or 0 <= left < p - j or 0 <= right < j - p or j >= lengths[n]
            if mask is not None and mask.dtype == bool:
                hidden = hidden or not mask[n, h, i, j]
            elif mask is not None:
                score += mask[n, h, i, j]
            scores.append(-np.inf if hidden else score)
        weights = np.exp(np.array(scores) - max(scores)) if max(scores) > -np.inf else np.zeros(len(scores))
        y[n, h, i] = (weights / (weights.sum() or 1)) @ v[n, h // groups].astype(np.float64)
    return y


@pytest.mark.parametrize("case", range(40))
def test_attention_is_its_definition(case):
    rng = np.random.default_rng(case)
    batch, kv_heads, groups, q_steps, k_steps, size, v_size = map(int, rng.integers(1, 5, 7))
    past = int(rng.integers(0, 3)) if case % 3 == 0 else 0
    total, heads = past + k_steps, kv_heads * groups

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    q, k, v = (
        draw(batch, heads, q_steps, size),
        draw(batch, kv_heads, total, size),
        draw(batch, kv_heads, total, v_size),
    )
    lengths, nonpad = [total] * batch, None
    if case % 3 == 1:
        nonpad = rng.integers(0, total + 1, batch)
        lengths = nonpad
    mask = {0: None, 1: rng.random((batch, heads, q_steps, total)) < 0.6, 2: draw(batch, heads, q_steps, total)}[
        case % 4 % 3
    ]
    attributes = {
        "is_causal": int(rng.integers(2)),
        "softcap": float(rng.choice([0, 2, -2])),
        "scale": [None, 0.3][case % 2],
    }
    attributes |= {"left_window_size": int(rng.integers(-1, 3)), "right_window_size": int(rng.integers(-1, 3))}
    offset = [past] * batch if nonpad is None else nonpad - q_steps
    expected = by_loops(
        *(q, k, v, mask, attributes["scale"] or size**-0.5, attributes["softcap"], offset),
        *(attributes["is_causal"], attributes["left_window_size"], attributes["right_window_size"], lengths),
    )
    given = [q, k[:, :, past:], v[:, :, past:]]
    if case % 2:
        given = [x.swapaxes(1, 2).reshape(batch, x.shape[2], -1) for x in given]
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    pasts = (k[:, :, :past], v[:, :, :past]) if past else (None, None)
    y, present_k, present_v, _ = attention(*given, mask, *pasts, nonpad, **attributes)
    y = y.reshape(batch, q_steps, heads, v_size).swapaxes(1, 2) if case % 2 else y
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(present_k, k)
    np.testing.assert_array_equal(present_v, v)


def test_rotations_keep_lengths_and_depend_on_distances():
    """The product of a turned query and a turned key depends on the difference of their positions alone."""
    rng = np.random.default_rng(0)
    angles = np.arange(9)[:, None] * rng.uniform(0.1, 1, 3)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    q, k = (rng.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in "qk")
    for interleaved in (0, 1):
        products = {}
        for i, j in itertools.product(range(9), repeat=2):
            turned = [
                rotary_embedding(x, cos, sin, np.array([[at]]), interleaved=interleaved, rotary_embedding_dim=6)
                for x, at in ((q, i), (k, j))
            ]
            np.testing.assert_array_equal(turned[0][..., 6:], q[..., 6:])
            np.testing.assert_allclose((turned[0] ** 2).sum(), (q**2).sum(), rtol=1e-5)
            products.setdefault(i - j, []).append(float((turned[0] * turned[1]).sum()))
        assert all(np.ptp(found) < 1e-4 for found in products.values())
        assert np.ptp([found[0] for found in products.values()]) > 0.1


def test_scatter_writes_behind_what_each_row_has():
    cache, update = np.zeros((2, 3, 5, 2), np.float32), np.ones((2, 3, 2, 2), np.float32)
    y = tensor_scatter(cache, update, np.array([1, 3]))
    assert y[0, 0, :, 0].tolist() == [0, 1, 1, 0, 0] and y[1, 2, :, 1].tolist() == [0, 0, 0, 1, 1]
    y = tensor_scatter(cache, update, np.array([1, 4]), mode="circular")
    assert y[1, 0, :, 0].tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(InputError, match="2 steps at"):
        tensor_scatter(cache, update, np.array([1, 4]))


Q = np.ones((2, 4, 3, 8), np.float32)


@pytest.mark.parametrize(
    "inputs, attributes, error",
    [
        ((Q, Q[:, :3], Q[:, :3]), {}, InputError),
        ((Q, Q[..., :7], Q), {}, InputError),
        ((Q, Q, Q[:, :, :2]), {}, InputError),
        ((Q, Q, Q, None, Q), {}, InputError),
        ((Q, Q, Q, np.ones((2, 4, 3, 9), np.float32)), {}, InputError),
        ((Q, Q, Q, np.ones((3, 3), np.int64)), {}, InputTypeError),
        ((Q, Q, Q, None, None, None, np.array([4, 1])), {}, InputError),
        ((Q, Q, Q, None, None, None, np.array([1])), {}, InputError),
        ((Q[:, 0], Q[:, 0], Q[:, 0]), {}, InputError),
        ((Q[:, 0], Q[:, 0], Q[:, 0]), {"q_num_heads": 3, "kv_num_heads": 3}, InputError),
        ((Q.astype(int), Q.astype(int), Q.astype(int)), {}, InputTypeError),
    ],
)
def test_what_does_not_belong_together_is_refused(inputs, attributes, error):
    with pytest.raises(error):
        attention(*inputs, **attributes)
