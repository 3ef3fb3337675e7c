"""Native products and recurrent layers: layouts, ragged batches, and rows that do not depend on the batch."""

import numpy as np
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile import reductions
from tests.onnx.compile.helpers import compare


# ------------------------------------------------------------------------------------------------ dense and recurrent
def test_dense_and_recurrent(isa):
    model = load(
        parse(
            """g (float[t,b,5] x, float[1,b,6] h) => (z, last) {
        p = MatMul (x, w)  q = Add (p, c)  r = Relu (q)  y, last = GRU <hidden_size = 6> (r, gw, gr, gb, , h)
        s = Squeeze (y, one)  f = Reshape (s, rows)  u = Gemm <transB = 1> (f, v, d)  z = Tanh (u) }""",
            w=random(0, 5, 7),
            c=random(1, 7),
            gw=random(2, 1, 18, 7),
            gr=random(3, 1, 18, 6),
            gb=random(4, 1, 36),
            one=np.array([1]),
            rows=np.array([-1, 6]),
            v=random(5, 21, 6),
            d=random(6, 21),
        )
    )
    z, last = compare(model, 1e-6, x=random(7, 9, 3, 5), h=random(8, 1, 3, 6))
    alone, alone_last = model({"x": random(7, 9, 3, 5)[:, 1:2], "h": random(8, 1, 3, 6)[:, 1:2]}).values()
    np.testing.assert_array_equal(alone, z.reshape(9, 3, 21)[:, 1])
    np.testing.assert_array_equal(alone_last, last[:, 1:2])


@pytest.mark.parametrize(
    "kind, gates, layout, direction",
    [
        ("LSTM", 4, 0, "bidirectional"),
        ("RNN", 1, 0, "reverse"),
        ("GRU", 3, 1, "forward"),
        ("LSTM", 4, 1, "bidirectional"),
    ],
)
def test_recurrent_layouts(isa, kind, gates, layout, direction):
    D = 2 if direction == "bidirectional" else 1
    model = load(
        parse(
            f"""g (float[t,b,5] x) => (z) {{
        n = Neg (x)  y = {kind} <hidden_size = 4, layout = {layout}, direction = "{direction}"> (n, w, r)
        z = Abs (y) }}""",
            w=random(0, D, gates * 4, 5),
            r=random(1, D, gates * 4, 4),
        )
    )
    compare(model, 1e-6, x=random(2, 6, 3, 5))


@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((7, 2, 3, 40), (2, 40, 65)),
        ((7, 1, 3, 4), (2, 4, 5)),
        ((2, 1, 5, 3, 4), (3, 1, 4, 17)),
        ((1, 9), (9, 1)),
    ],
)
def test_products_of_computed_matrices(isa, a, b):
    """Products may be of views, and each row is as if it were alone."""
    types = ["float[" + ",".join(f"{n}{i}" for i in range(len(s))) + "]" for n, s in zip("ab", (a, b))]
    turned = [*range(len(b) - 2), len(b) - 1, len(b) - 2]
    model = load(
        parse(f"""g ({types[0]} a, {types[1]} b) => (z) {{
        t = Transpose <perm = {turned}> (b)  y = MatMul (a, t)  z = Neg (y) }}""")
    )
    x, w = random(0, *a), np.ascontiguousarray(random(1, *b).swapaxes(-1, -2))
    (z,) = compare(model, 2e-6, a=x, b=w)
    np.testing.assert_array_equal(
        model(a=x[..., 1:2, :] if a[-2] > 1 else x, b=w).z, z[..., 1:2, :] if a[-2] > 1 else z
    )


@pytest.mark.parametrize(
    "kind, gates, direction", [("LSTM", 4, "bidirectional"), ("GRU", 3, "reverse"), ("RNN", 1, "forward")]
)
def test_ragged_batches(isa, kind, gates, direction):
    """Lengths that differ from call to call, 0 and the whole among them."""
    D = 2 if direction == "bidirectional" else 1
    model, other = (
        load(
            parse(
                f"""g (float[t,b,5] x, int32[b] lens) => (z, last) {{
        n = Neg (x)  y, last = {kind} <hidden_size = 4, direction = "{direction}"> (n, w, r, , lens)  z = Abs (y) }}""",
                w=random(0, D, gates * 4, 5),
                r=random(1, D, gates * 4, 4),
            )
        )
        for _ in range(2)
    )
    x = random(2, 6, 5, 5)
    for lens in ([6, 6, 6, 6, 6], [3, 0, 6, 1, 3], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]):
        lens = np.array(lens, np.int32)
        z, last = compare(model, 1e-6, x=x, lens=lens)
        for i, n in enumerate(lens):
            alone = other(x=x[:n, i : i + 1] if n else x[:, i : i + 1], lens=lens[i : i + 1])
            np.testing.assert_array_equal(alone.last[:, 0], last[:, i])
            assert not z[n:, :, i].any()


# ------------------------------------------------------------------------------------------------ products
@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 5), (5, 7)),
        ((9, 17), (17, 37)),
        ((2, 3, 5), (2, 5, 17)),
        ((2, 1, 3, 5), (4, 5, 18)),
        ((3, 5), (2, 5, 16)),
        ((5,), (5, 7)),
        ((3, 5), (5,)),
        ((2, 6, 5), (5,)),
        ((5,), (3, 5, 2)),
        ((5,), (5,)),
        ((2, 3, 1), (2, 1, 19)),
    ],
)
def test_products_of_two_values(a, b):
    reductions.same_on_every_isa(
        lambda: reductions.compare("MatMul", random(32, *a), {"b": random(33, *b)}, constant=False)
    )
