"""Attention against torch's autograd, and what its rows do not depend on."""

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, ModelError
from tests.graphs import random

TOLERANCE = 2e-6
"""Largest difference from torch in float64, relative to the largest value where that is over 1. Measured: 1.2e-7."""

CASES = [(score, *sizes) for score in ("dot", "additive") for sizes in ((5, 5), (5, 7), (6, 3))]
LENGTHS, QUERY_LENGTHS = np.array([2, 0, 6]), [4, 2, 3]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1, np.abs(b).max(initial=0)))


def by_torch(layer, query, memory, lengths, dcontext):
    """context, weights, gradients of query and memory, {name: gradient}"""
    torch = pytest.importorskip("torch")
    query, memory = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (query, memory))
    p = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in layer.state_dict().items()}
    keys = memory @ p["key.weight"].T if "key.weight" in p else memory
    if layer.score == "dot":
        scores = query @ keys.transpose(1, 2)
    else:
        scores = torch.tanh((query @ p["query.weight"].T)[:, :, None] + keys[:, None]) @ p["score.weight"][0]
    within = (torch.arange(memory.shape[1]) < torch.as_tensor(lengths)[:, None])[:, None]
    within = within & (torch.arange(query.shape[1]) < torch.as_tensor(QUERY_LENGTHS)[:, None])[..., None]
    weights = torch.softmax(scores.masked_fill(~within, -1e300), -1) * within
    context = weights @ memory
    context.backward(torch.tensor(dcontext, dtype=torch.float64))
    return (
        *(a.detach().numpy() for a in (context, weights)),
        query.grad.numpy(),
        memory.grad.numpy(),
        {n: a.grad.numpy() for n, a in p.items()},
    )


@pytest.mark.parametrize("score, query_size, memory_size", CASES)
def test_forward_and_backward(score, query_size, memory_size):
    layer = nn.Attention(query_size, memory_size, score, rng=1)
    query, memory, dcontext = random(1, 3, 4, query_size), random(2, 3, 6, memory_size), random(3, 3, 4, memory_size)
    context, weights, saved = layer.forward(query, memory, lengths=LENGTHS, query_lengths=QUERY_LENGTHS, training=True)
    dquery, dmemory, dweights = layer.backward(dcontext, saved)
    again = layer.backward(dcontext, saved)
    np.testing.assert_array_equal(dquery, again[0])
    expected = by_torch(layer, query, memory, LENGTHS, dcontext)
    for got, want in zip((context, weights, dquery, dmemory), expected):
        assert got.dtype == np.float32
        close(got, want)
    assert list(dweights) == list(layer.state_dict()) == list(layer.shapes())
    for name, want in expected[4].items():
        close(dweights[name], want)
    inference = layer.forward(query, memory, lengths=LENGTHS, query_lengths=QUERY_LENGTHS)
    assert inference[2] is None
    for got, want in zip(inference, (context, weights)):
        np.testing.assert_array_equal(got, want)
    some = (LENGTHS[:, None] > 0) & (np.arange(4) < np.array(QUERY_LENGTHS)[:, None])
    np.testing.assert_allclose(weights.sum(-1), some, atol=1e-6)


@pytest.mark.parametrize("score, query_size, memory_size", CASES)
def test_rows_are_their_own(score, query_size, memory_size):
    """The same bits alone, step by step, with prepared keys, and with anything past the lengths."""
    layer = nn.Attention(query_size, memory_size, score, rng=1)
    query, memory = random(1, 3, 4, query_size), random(2, 3, 60, memory_size)
    lengths = [33, 0, 60]
    context, weights = layer(query, memory, lengths)
    for b, n in enumerate(lengths):
        alone = layer(query[b : b + 1, 2:3], memory[b : b + 1, :n])
        np.testing.assert_array_equal(alone[0][0, 0], context[b, 2])
        np.testing.assert_array_equal(alone[1][0, 0], weights[b, 2, :n])
        assert not weights[b, :, n:].any()
    keyed = layer.forward(query, memory, keys=layer.keys(memory), lengths=lengths)
    np.testing.assert_array_equal(keyed[0], context)
    memory[0, 33:], memory[1] = np.nan, np.inf
    np.testing.assert_array_equal(layer(query, memory, lengths)[0], context)


def test_large_scores():
    layer = nn.Attention(3, 3)
    context, weights = layer(np.full((1, 2, 3), 1e18, np.float32), random(1, 1, 4, 3))
    assert np.isfinite(context).all() and np.isfinite(weights).all()


def test_empty():
    layer = nn.Attention(3, 4, "additive", rng=1)
    for shape in ((0, 2, 5), (2, 0, 5), (2, 3, 0)):
        query, memory = np.zeros((*shape[:2], 3), np.float32), np.zeros((shape[0], shape[2], 4), np.float32)
        context, weights, saved = layer.forward(query, memory, training=True)
        assert context.shape == (*shape[:2], 4) and weights.shape == shape and not context.any()
        dquery, dmemory, _ = layer.backward(context, saved)
        assert dquery.shape == query.shape and dmemory.shape == memory.shape


@pytest.mark.parametrize(
    "call, error, text",
    (
        (lambda: nn.Attention(3, 4, "bilinear"), InputError, "score: 'bilinear' is none of 'dot', 'additive'"),
        (lambda: nn.Attention(3, 0), InputError, "memory_size: 0 is less than 1"),
        (
            lambda: nn.Attention(3, 4)(random(1, 2, 5, 4), random(1, 2, 5, 4)),
            InputError,
            r"query: shape is \[2, 5, 4\], expected \[B, T, 3\]",
        ),
        (
            lambda: nn.Attention(3, 4)(random(1, 2, 5, 3), random(1, 2, 5, 3)),
            InputError,
            r"memory: shape is \[2, 5, 3\], expected \[B, S, 4\]",
        ),
        (
            lambda: nn.Attention(3, 3)(random(1, 2, 5, 3), random(1, 1, 5, 3)),
            InputError,
            "query has 2 rows and memory 1",
        ),
        (lambda: nn.Attention(3, 3)(random(1, 2, 5, 3), random(1, 2, 4, 3), [4, 5]), InputError, "lengths: 5 at row 1"),
        (lambda: nn.Attention(3, 3)(random(1, 2, 5, 3), random(1, 2, 4, 3), None, [6, 5]), InputError, "6 at row 0"),
        (lambda: nn.Attention(3, 3).backward(random(1, 2, 5, 3), None), InputTypeError, "saved: got a NoneType"),
        (lambda: nn.Attention(3, 4, rng=1).load_state_dict({}), ModelError, "missing key.weight"),
    ),
)
def test_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
