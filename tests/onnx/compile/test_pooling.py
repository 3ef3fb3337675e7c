"""Native pooling over windows and over all positions."""

import numpy as np
import pytest

from rnnfast.native import _programs
from tests.graphs import load, one_node, random
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
        ((1, 2, 7, 4), dict(kernel_shape=[3, 4], strides=[2, 2**63 - 1])),
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


@pytest.mark.parametrize("op, expected", [("MaxPool", -np.inf), ("AveragePool", np.nan)])
def test_windows_without_an_element_are_left_to_numpy(monkeypatch, op, expected):
    """A window command has taps inside of its input, which verification asks for."""
    monkeypatch.setenv("RNNFAST_VERIFY", "1")
    model = load(one_node(op, {"x": random(0, 1, 2, 3)}, kernel_shape=[2], pads=[1, 1]))
    for length in (3, 0):
        y = model(x=random(0, 1, 2, length)).out0
        assert y.shape == (1, 2, length + 1)
    np.testing.assert_array_equal(y, np.full((1, 2, 1), expected, np.float32))
    (step, *_), *_ = model.planned.plans.kept[-1].steps
    assert not isinstance(step, _programs.NativeProgram)
