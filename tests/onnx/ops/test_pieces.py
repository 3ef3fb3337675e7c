"""Long NumPy functions run in pieces: with the bits of the whole, and stopped between two of them."""

import math
import time

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import LimitError
from rnnfast.native._interrupts import within
from rnnfast.onnx.ops import lookup, pieces
from rnnfast.onnx.ops.cast import convert
from tests.graphs import parse

UNARY = (np.abs, np.arctan, np.cos, np.exp, np.floor, np.log, np.negative, np.reciprocal, np.sign, np.sin, np.sqrt)
BINARY = (np.add, np.subtract, np.multiply, np.greater, np.maximum)
SHAPES = [
    ((5003,), (5003,)),
    ((3, 2001), (2001,)),
    ((1, 7001), (1, 1)),
    ((2, 1, 4001), (3, 1)),
    ((4001, 3), (4001, 1)),
    ((13, 40, 17), ()),
    ((70, 90), (70, 90)),
]


def values(shape, dtype, seed):
    x = np.random.default_rng(seed).standard_normal(shape) * 3
    return (np.abs(x) * 10).astype(dtype) if np.dtype(dtype).kind == "u" else x.astype(dtype)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 500)
    monkeypatch.setattr(pieces, "PRODUCTS", 500)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize("function", UNARY + BINARY, ids=lambda f: f.__name__)
def test_bits_of_pieces(small, function, dtype):
    for i, (a, b) in enumerate(SHAPES):
        arrays = [values(a, dtype, i), values(b, dtype, 99 + i)][: 1 if function in UNARY else 2]
        for x in (arrays, arrays[::-1], [x.T for x in arrays]):
            try:
                np.broadcast_shapes(*(y.shape for y in x))
            except ValueError:
                continue
            with np.errstate(all="ignore"):
                whole, parts = function(*x), pieces.in_pieces(function)(*x)
            assert (whole.dtype, whole.shape) == (parts.dtype, parts.shape)
            if function is np.arctan and np.lib.NumpyVersion(np.__version__) < "2.1.0":
                np.testing.assert_array_max_ulp(whole, parts, 2)  # its bits depend on the place of an element there
            else:
                assert whole.tobytes() == parts.tobytes()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float64"])
@pytest.mark.parametrize(
    "a, b",
    [((30, 20), (20, 7)), ((30, 20), (20,)), ((2, 30, 20), (20, 7)), ((3, 1, 9, 20), (2, 20, 5)), ((20,), (20, 3))],
)
def test_products_of_pieces(small, a, b, dtype):
    a, b = values(a, dtype, 1), values(b, dtype, 2)
    np.testing.assert_array_equal(pieces.product(a, b), np.matmul(a, b), strict=True)


N = 5_000_000
LONG = {
    "conversion": ("y = Cast <to = 3> (x)", np.ones((15, 800_000))),
    "error function": ("y = Erf (x)", np.ones((30, 100_000))),
    "sines": ("y = Sin (x)", np.ones((1, N))),
    "sums along an axis": ("r = Transpose (x) y = Add (x, r)", np.ones((3000, 3000))),
    "product of integers": ("y = MatMul (x, x)", np.ones((500, 500), np.int64)),
    "sums of products": ('y = Einsum <equation = "ij,kj->ik"> (x, x)', np.ones((500, 500))),
    "convolution": ("t = Unsqueeze <axes = [0]> (x) y = Conv (t, w)", np.ones((30, 100_000))),
}


@pytest.mark.parametrize("name", LONG)
def test_functions_end_in_the_midst_of_their_work(name):
    nodes, x = LONG[name]
    kind = {"f": "double", "i": "int64"}[x.dtype.kind]
    model = rnnfast.load(
        parse(f"g ({kind}[a,b] x) => (y) {{ {nodes} }}", opset=12, w=np.ones((30, 30, 9))),
        limits=rnnfast.Limits(work=None, bytes_of_a_call=None),
    )
    model(x=x)
    start = time.thread_time()
    model(x=x)
    whole = time.thread_time() - start
    start = time.thread_time()
    with pytest.raises(LimitError, match="seconds that limits.seconds allows"):
        within(0.002, None, model, {"x": x})
    assert time.thread_time() - start < max(whole / 2, 0.01)


@pytest.mark.parametrize("to", ["float32", "int32", "uint8", "bool", "object", "float64"])
def test_conversions_in_pieces(small, to):
    for x in (values((3, 2001), "float64", 1), values((1501,), "int64", 2)):
        parts = lookup("", "Cast", 13)(x, to=np.dtype(to))
        whole = convert(x, np.dtype(to))
        assert (whole.dtype, whole.tolist()) == (parts.dtype, parts.tolist())
    np.testing.assert_array_equal(lookup("", "Erf", 13)(x / 9), np.vectorize(math.erf)(x / 9))
