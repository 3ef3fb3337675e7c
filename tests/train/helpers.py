"""A small network and random data for the tests of training."""

import numpy as np

from rnnfast import nn, train

TOLERANCE = 2e-6
"""Largest difference from torch in float64 relative to the largest value: a few roundings of float32 (6e-8 each).
Measured over the losses and 30 steps of the optimisers below: 9.6e-7."""


def uniform(rng, *shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def assert_close(got, want, tolerance=TOLERANCE):
    want = np.asarray(want)
    assert np.shape(got) == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=0)


def tagger(**options):
    """Return a network that gives one of 3 tags to each of a sequence's words, which are of 6 kinds."""
    return nn.Sequential(
        nn.Embedding(6, 5, padding_idx=0, rng=1),
        nn.Dropout(0.2),
        nn.LSTM(5, 7, batch_first=True, rng=2, **options),
        nn.LayerNorm(7),
        nn.GRU(7, 4, batch_first=True, rng=3),
        nn.Linear(4, 3, rng=4),
    )


def tagged(count=10, steps=9, seed=0):
    """Return x, y and lengths; the tag of a word is the word before it, modulo 3."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (count, steps))
    lengths = rng.integers(0, steps + 1, count)
    lengths[0] = steps
    y = np.roll(x, 1, axis=1) % 3
    y[:, 0] = 0
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    return x, y, lengths


def assert_same_weights(a, b):
    for name, array in a.state_dict().items():
        np.testing.assert_array_equal(array, b.state_dict()[name], err_msg=name)


GOOD = {"loss": train.CrossEntropy(), "optimizer": train.SGD(), "seed": 1}
X, Y, _ = tagged(4)
