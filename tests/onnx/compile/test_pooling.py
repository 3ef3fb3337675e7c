"""Native pooling over windows and over all positions."""

import numpy as np
import pytest

from tests.graphs import random
from tests.onnx.compile.reductions import compare, same_on_every_isa


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 5, 37), (2, 19, 5, 3), (1, 3, 2, 3, 5)])
def test_global_pools(isa, op, shape):
    compare(op, random(7, *shape), {})


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "shape, attributes",
    [
        ((2, 5, 17), dict(kernel_shape=[3])),
        ((2, 19, 16), dict(kernel_shape=[3], strides=[2], pads=[1, 1])),
        ((2, 3, 17), dict(kernel_shape=[4], strides=[3], pads=[2, 1], ceil_mode=1)),
        ((1, 1, 9), dict(kernel_shape=[2], dilations=[3])),
        ((2, 19, 9, 7), dict(kernel_shape=[3, 2], strides=[2, 2])),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 2, 1], dilations=[2, 1])),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 3], auto_pad="VALID")),
        ((1, 2, 3, 4), dict(kernel_shape=[5, 6], pads=[2, 2, 2, 2])),
        ((1, 2, 7, 4), dict(kernel_shape=[3, 1], dilations=[2, 2**63 - 1])),
    ],
)
def test_pools(op, shape, attributes):
    x = random(29, *shape)
    x[0, 0, 4 % shape[2]] = -np.inf
    included = [{}, {"count_include_pad": 1}] if op == "AveragePool" else [{}]
    for more in included:
        same_on_every_isa(lambda more=more: compare(op, x, {}, opset=19, **attributes, **more))


def test_the_largest_value_is_nan_where_a_tap_is(isa):
    x = random(30, 1, 20, 9)
    x[0, 3, 4] = np.nan
    compare("MaxPool", x, {}, kernel_shape=[3])
