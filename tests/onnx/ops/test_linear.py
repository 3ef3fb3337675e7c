"""Einsum and Gemm against onnxruntime and NumPy."""

import itertools
import random

import numpy as np
import pytest

from tests.onnx.ops.helpers import assert_close, assert_like_onnxruntime, floats, run


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
        ("ij->ji", [(3, 4)]),
        ("ij", [(3, 4)]),
        ("ba", [(3, 4)]),
        ("ii->i", [(4, 4)]),
        ("ii", [(4, 4)]),
        ("ij->", [(3, 4)]),
        ("a,b->ab", [(3,), (4,)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (2, 5, 4, 2)]),
        ("b...d,bd->b...", [(2, 3, 4, 5), (2, 5)]),
        (" i j , j -> i ", [(3, 4), (4,)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("i,ij,j->", [(3,), (3, 4), (4,)]),
        ("Aa,aB->BA", [(2, 3), (3, 4)]),
    ],
)
def test_einsum(equation, shapes):
    rng = np.random.default_rng(6)
    assert_like_onnxruntime("Einsum", [floats(rng, *shape) for shape in shapes], equation=equation)


def test_einsum_of_random_equations():
    rng, choose = np.random.default_rng(21), random.Random(21)
    for _ in range(150):
        sizes = dict(zip("abcde", (choose.randint(0, 4) for _ in range(5))))
        terms = ["".join(choose.choices("abcde", k=choose.randint(0, 3))) for _ in range(choose.randint(1, 4))]
        used = sorted(set("".join(terms)))
        equation = ",".join(terms) + "->" + "".join(choose.sample(used, choose.randint(0, len(used))))
        xs = [floats(rng, *(sizes[letter] for letter in term)) for term in terms]
        expected = np.einsum(equation, *(x.astype(np.float64) for x in xs), optimize=False)
        assert_close(run("Einsum", xs, equation=equation), np.asarray(expected, np.float32))
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(run("Einsum", [x, x], equation="ij,kj->ik"), x @ x.T, strict=True)


def test_gemm():
    rng = np.random.default_rng(14)
    a, b = floats(rng, 3, 4), floats(rng, 4, 5)
    for c in (None, floats(rng, 5), floats(rng, 3, 1), floats(rng, 3, 5), floats(rng), floats(rng, 1)):
        for flip_a, flip_b in itertools.product([0, 1], repeat=2):
            expected = 0.3 * (a.astype(np.float64) @ b) + (0 if c is None else -1.7 * c.astype(np.float64))
            y = run(
                "Gemm",
                [a.T if flip_a else a, b.T if flip_b else b, c],
                alpha=0.3,
                beta=-1.7,
                transA=flip_a,
                transB=flip_b,
            )
            assert_close(y, expected.astype(np.float32))
