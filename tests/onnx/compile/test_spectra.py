"""Native DFT and STFT: products with the matrix of the transform."""

import numpy as np
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import compare

# Sums of up to 300 products of size 1; 8e-6 was seen.
TOLERANCE = 3e-5


@pytest.mark.parametrize("onesided, inverse, parts", [(0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 1), (1, 1, 2)])
@pytest.mark.parametrize("length", [None, 5, 12])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_dft(isa, onesided, inverse, parts, length, axis):
    constants = {"axis": np.array(axis)} | ({} if length is None else {"length": np.array(length)})
    inputs = f"x, {'' if length is None else 'length'}, axis"
    model = load(
        parse(
            f"g (float[a,b,c,{parts}] x) => (z) {{ y = DFT <onesided = {onesided}, inverse = {inverse}> ({inputs})  "
            "z = Neg (y) }",
            opset=20,
            **constants,
        )
    )
    compare(model, TOLERANCE, x=random(1, 6, 7, 4, parts))


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("window", ["", "constant", "computed"])
@pytest.mark.parametrize("rank", [2, 3])
def test_stft(isa, onesided, window, rank):
    w = np.hanning(30).astype(np.float32)
    axes = "b,n" if rank == 2 else "b,n,1"
    model = load(
        parse(
            f"g (float[{axes}] x{', float[30] w' if window == 'computed' else ''}) => (z) {{ "
            f"y = STFT <onesided = {onesided}> (x, step, {'w' if window else ''}, length)  z = Neg (y) }}",
            step=np.array(11),
            length=np.array(30),
            **({"w": w} if window == "constant" else {}),
        )
    )
    x = random(1, 2, 301, *(1,) * (rank - 2))
    feed = {"x": x} | ({"w": w} if window == "computed" else {})
    compare(model, TOLERANCE, **feed)


def test_rows_have_the_bits_that_they_have_alone(isa):
    model = load(
        parse("g (float[b,n] x) => (z) { y = STFT (x, step, w)  z = Neg (y) }", step=np.array(7), w=random(2, 33))
    )
    x = random(1, 5, 200)
    together = model(x=x)["z"]
    for row in range(5):
        np.testing.assert_array_equal(model(x=x[row : row + 1])["z"], together[row : row + 1])


def test_plans_share_the_matrix():
    model = load(
        parse("g (float[b,n] x) => (z) { y = STFT (x, step, w)  z = Neg (y) }", step=np.array(7), w=random(2, 33))
    )
    matrices = []
    for n in (200, 300):
        model(x=random(1, 1, n))
    for plan in model.planned.plans.kept:
        ((run, *_),) = plan.steps
        matrices += [kept for kept in run.keep if type(kept).__name__ == "Matrix"]
    assert len(matrices) == 2 and matrices[0] is matrices[1]
