"""Follows rows through small models."""

import numpy as np
import pytest

from rnnfast.errors import Error
from rnnfast.onnx.axes.propagation import propagate
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.onnx.axes.values import Rows
from rnnfast.streaming.batch_axes import trace_call


def follow(model, feed, axes, n=1, frames=None):
    """The Value of each output by name, for a call with n rows along these axes of its inputs."""
    transcript = Transcript()
    trace_call(model, feed, transcript)
    given = {name: None if axis is None else Rows(axis) for name, axis in axes.items()}
    return dict(zip((v.name for v in model.outputs), propagate(transcript, given, n, frames)))


def wild(rng, shape):
    """Floats of very different magnitudes, with NaNs, infinities and zeros among them."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 31, shape)
    special = rng.random(shape)
    for i, value in enumerate((np.nan, np.inf, -np.inf, 0.0, -0.0)):
        x = np.where((special > i * 0.02) & (special < (i + 1) * 0.02), value, x)
    return x.astype(np.float32)


def part(value, rows, count, i):
    """Row i of a value with the rows of `count` of them."""
    shape = value.shape
    apart = value.reshape(*shape[: rows.axis], rows.outer, count, rows.inner, *shape[rows.axis + 1 :])
    own = np.take(apart, [i], rows.axis + 1)
    return own.reshape(*shape[: rows.axis], rows.outer * rows.inner, *shape[rows.axis + 1 :])


def check_rows(model, values, axes, feed_of, rng, counts=(1, 2, 3, 7)):
    """Assert that rows together have the bits of each alone, where `values` says that they are apart.

    Returns the number of outputs that are.
    """
    apart = {name: value for name, value in values.items() if value.meeting is None}
    for count in counts:
        feed = feed_of(rng, count)
        ones = [
            {name: x if axes[name] is None else np.take(x, [i], axes[name]) for name, x in feed.items()}
            for i in range(count)
        ]
        try:
            together = model(feed)
        except Error:  # an index that is out of range, which is wrong alone too
            with pytest.raises(Error):
                for one in ones:
                    model(one)
            continue
        for i, one in enumerate(ones):
            alone = model(one)
            for name, value in apart.items():
                got, expected = together[name], alone[name]
                if value.rows is not None:
                    got = part(got, value.rows, count, i)
                assert got.shape == expected.shape, (name, got.shape, expected.shape)
                assert got.dtype == expected.dtype
                same = got.tobytes() == expected.tobytes() or np.array_equal(got, expected, equal_nan=True)
                assert same, (name, count, i, got, expected)
    return len(apart)


__all__ = ["check_rows", "follow", "part", "wild"]
