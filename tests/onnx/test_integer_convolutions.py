"""Convolutions with int8 weights: near to float32, the same bits in any way, NaN and infinity where float32 has it."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.native._kernels import isas, set_isa
from rnnfast.native.weight_types import WEIGHT_TYPES

# The shapes of weights and inputs, and attributes.
CASES = {
    "short lines": ((64, 32, 3), (3, 32, 4), {"pads": [1, 1]}),
    "lines": ((64, 32, 3), (2, 32, 40), {"pads": [1, 1]}),
    "more outputs than a group holds": ((53, 120, 3), (1, 120, 300), {}),
    "a mirrored transform": ((130, 1, 64), (2, 1, 640), {"strides": [32]}),
    "lines of odd runs": ((64, 37, 3), (90, 37, 3), {"pads": [1, 1]}),
    "two axes": ((64, 16, 3, 3), (2, 16, 9, 20), {"pads": [1, 1, 1, 1]}),
    "strides": ((64, 16, 3, 3), (1, 16, 9, 130), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "dilations": ((96, 24, 1, 5), (3, 24, 30, 17), {"pads": [0, 2, 0, 2], "dilations": [1, 2]}),
    "groups": ((200, 40, 3), (1, 80, 50), {"group": 2, "pads": [1, 1]}),
    "more than one exact sum": ((60, 130, 3, 3), (2, 130, 5, 6), {"pads": [1, 1, 1, 1]}),
}


@pytest.fixture(autouse=True)
def best_isa_afterwards():
    yield
    set_isa(isas()[0])


def rounded(w):
    """Weights as the type int8 has them."""
    return WEIGHT_TYPES["int8"].rounded(w.reshape(len(w), -1).T).T.reshape(w.shape)


def as_model(w, bias, attributes):
    axes = [f"size{i}" for i in range(w.ndim - 2)]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", w.shape[1] * attributes.get("group", 1), *axes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    shape, x_shape, attributes = request.param
    random = np.random.default_rng(shape[0])
    w = random.standard_normal(shape).astype(np.float32)
    if shape[1:] == (1, 64):
        w = w + w[:, :, ::-1] * np.where(np.arange(len(w)) < 70, 1, -1)[:, None, None].astype(np.float32)
    w, bias = rounded(w), random.standard_normal(len(w)).astype(np.float32)
    return as_model(w, bias, attributes), random.standard_normal(x_shape).astype(np.float32)


def test_results_are_near_to_float32_with_the_same_bits_in_any_way(case):
    file, x = case
    expected = rnnfast.load(file)(x=x).y
    model = rnnfast.load(file, weights="int8")
    y = model(x=x).y
    np.testing.assert_allclose(y, expected, atol=2e-4 * np.max(np.abs(expected)))
    assert y.tobytes() == rnnfast.load(file, weights="int8", threads=2)(x=x).y.tobytes()
    for isa in isas():
        set_isa(isa)
        assert model(x=x).y.tobytes() == y.tobytes()
        for i in range(len(x)):
            assert model(x=x[i : i + 1]).y.tobytes() == y[i : i + 1].tobytes()


def test_values_that_are_not_finite_give_what_float32_says(case):
    file, x = case
    x.flat[7], x.flat[x.size // 2], x.flat[-3] = np.nan, np.inf, -np.inf
    expected, y = rnnfast.load(file)(x=x).y, rnnfast.load(file, weights="int8")(x=x).y
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    np.testing.assert_allclose(y[finite], expected[finite], atol=2e-4 * np.max(np.abs(expected[finite])))
