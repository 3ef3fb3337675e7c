"""Packed matrices: what `multiply` may write to, and rows that lie anywhere in memory."""

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.native import _kernels

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 5)).astype(np.float32)
X = RNG.standard_normal((3, 8)).astype(np.float32)
ENGINES = [
    "packed",
    pytest.param(
        "blas", marks=pytest.mark.skipif(_kernels.find_spec("scipy") is None, reason="SciPy is not installed")
    ),
]
TOLERANCE = 1e-5  # of sums of 8 products in another order; measured 5e-7


def read_only():
    y = np.empty((3, 5), np.float32)
    y.flags.writeable = False
    return y


@pytest.mark.parametrize("matmul", ENGINES)
@pytest.mark.parametrize(
    "out",
    [
        read_only(),
        np.empty(61, np.uint8)[1:].view(np.float32).reshape(3, 5),
        np.empty((3, 5), ">f4"),
        np.empty((5, 3), np.float32).T,
        np.empty((3, 10), np.float32)[:, ::2],
        np.empty((3, 5), np.float64),
        np.empty((3, 4), np.float32),
        np.broadcast_to(np.empty(5, np.float32), (3, 5)),
        [[0.0] * 5] * 3,
    ],
    ids=["read-only", "unaligned", "swapped", "transposed", "strided", "float64", "shape", "broadcast", "list"],
)
def test_out_must_be_a_plain_array(matmul, out):
    with pytest.raises(ValueError, match="C-contiguous, aligned and writeable float32 array of shape"):
        _kernels.Matrix(W, matmul=matmul).multiply(X, out)


@pytest.fixture
def sparse(tmp_path):
    """A function that gives float32 [rows, columns] whose rows lie `stride` floats apart, in a file with holes."""

    def make(rows, columns, stride):
        path = tmp_path / "sparse"
        try:
            with open(path, "wb") as file:
                file.truncate(4 * stride * rows)
            x = np.memmap(path, np.float32, "r+", shape=(rows, stride))[:, :columns]
        except OSError as e:
            pytest.skip(f"no file or address space of {4 * stride * rows} bytes: {e}")
        x[...] = RNG.standard_normal((rows, columns))
        return np.asarray(x)

    return make


@pytest.mark.parametrize("stride", [2**29, 2**31 - 16, 2**31, 2**31 + 64, 2**32 - 16, 2**32 + 64])
@pytest.mark.parametrize("matmul", ENGINES)
def test_rows_may_lie_any_distance_apart(matmul, stride, sparse):
    x = sparse(3, 8, stride)
    assert x.strides[0] == 4 * stride
    matrix = _kernels.Matrix(W, matmul=matmul)
    for view in (x, x[::-1], x[:2], x[2:]):
        np.testing.assert_allclose(matrix.multiply(view), view @ W, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("stride", [2**31 + 64, 2**32 + 64])
@pytest.mark.parametrize("matmul", ENGINES)
def test_layers_take_such_rows(matmul, stride, sparse):
    x = sparse(3, 16, stride)
    layer = nn.Linear(16, 5, rng=0, matmul=matmul)
    np.testing.assert_allclose(layer(x), layer(x.copy()), rtol=0, atol=TOLERANCE)
    for batch_first in (False, True):
        frames = np.lib.stride_tricks.as_strided(x, (3, 4, 4), (4 * stride, 16, 4))
        for kind in ("RNN", "GRU", "LSTM"):
            recurrent = getattr(nn, kind)(4, 5, batch_first=batch_first, bidirectional=True, rng=0, matmul=matmul)
            np.testing.assert_allclose(recurrent(frames)[0], recurrent(frames.copy())[0], rtol=0, atol=TOLERANCE)
