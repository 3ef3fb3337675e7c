"""Native running sums and products."""

import numpy as np
import onnx
import pytest

from tests.graphs import random
from tests.onnx.compile.reductions import RNG, compare


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("shape, axis", [((37,), 0), ((3, 21), 0), ((3, 21), -1), ((3, 5, 7), 1), ((2, 1, 3), 1)])
def test_running_sums(isa, shape, axis, reverse, exclusive):
    """NumPy adds one number after the other too: the bits are equal."""
    for x in random(1, *shape), RNG.integers(-(2**31), 2**31, shape, np.int32), RNG.integers(-(2**62), 2**62, shape):
        compare("CumSum", x, {"along": np.array(axis)}, tolerance=None, reverse=reverse, exclusive=exclusive)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_products(isa, reverse, exclusive):
    if onnx.defs.onnx_opset_version() < 26:
        pytest.skip("this onnx has no CumProd")
    for x in random(1, 3, 5, 7), RNG.integers(-9, 9, (3, 5, 7)):
        others = {"along": np.array(1)}
        compare("CumProd", x, others, 26, tolerance=None, reverse=reverse, exclusive=exclusive)
