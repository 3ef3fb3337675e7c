"""`pad` and `cut`: ragged rows to one array and back, of whatever strides and types."""

import numpy as np
import pytest

from rnnfast.streaming._pools import cut, pad

LENGTHS = [5, 0, 3, 4]


def parts_of(dtype, tail):
    rng = np.random.default_rng(0)
    parts = [rng.integers(1, 9, (n, *tail)).astype(dtype) for n in LENGTHS]
    parts[2] = np.repeat(parts[2], 2, axis=0)[::2]  # its frames are not contiguous
    return parts


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool, np.float16, object])
@pytest.mark.parametrize("tail", [(), (3,), (2, 3)])
@pytest.mark.parametrize("frames_first", [False, True])
def test_there_and_back(dtype, tail, frames_first):
    parts, shape = parts_of(dtype, tail), (5, 4) if frames_first else (4, 5)
    x = np.full((*shape, *tail), 7).astype(dtype)
    rows = x.swapaxes(0, 1) if frames_first else x
    pad(parts, rows)
    for row, part in zip(rows, parts, strict=True):
        assert np.array_equal(row[: len(part)], part) and not row[len(part) :].any()
    made = cut(rows, LENGTHS)
    assert all(y.dtype == dtype and y.shape == part.shape and np.array_equal(y, part) for y, part in zip(made, parts))
    assert all(y.flags.owndata and y.flags.c_contiguous for y in made)


def test_frames_that_are_not_contiguous():
    """Rows whose frames lie apart in memory are copied as well, and refused where they are written to."""
    x = np.arange(120.0).reshape(4, 5, 6)[..., ::2]
    assert all(np.array_equal(y, row[:n]) for y, row, n in zip(cut(x, LENGTHS), x, LENGTHS, strict=True))
    with pytest.raises(ValueError, match="whole frames"):
        pad(parts_of(float, (3,)), x)


@pytest.mark.parametrize("part", [np.zeros((6, 3)), np.zeros((2, 4)), np.zeros((2, 3), np.float32), np.float64(1)])
def test_rows_that_do_not_fit(part):
    with pytest.raises((ValueError, TypeError)):
        pad([part], np.zeros((1, 5, 3)))


@pytest.mark.parametrize("lengths", [[1], [1, 6], [1, -1], [1, 2, 3]])
def test_lengths_that_do_not_fit(lengths):
    with pytest.raises(ValueError, match="rows of"):
        cut(np.zeros((2, 5, 3)), lengths)
