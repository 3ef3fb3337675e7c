"""Operators on the engine: MatMul, Gemm, Conv and elementwise functions, with constant and run-time weights."""

import numpy as np
import pytest

from rnnfast.errors import InputTypeError, ModelError
from tests.graphs import load, one_node, onnxruntime, random

# float32 sums of up to some hundred terms of size 1 against onnxruntime, which adds in another order
TOLERANCE = 2e-6


@pytest.mark.parametrize("constants", [(), ("b",), ("b", "c"), ("c",)])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"transA": 1},
        {"transB": 1},
        {"alpha": 0.5},
        {"beta": -0.25},
        {"beta": 0.0},
        {"transA": 1, "transB": 1, "alpha": 2.5, "beta": -0.5},
    ],
)
@pytest.mark.parametrize("c_shape", [None, (), (1,), (5,), (1, 5), (4, 1), (4, 5)])
def test_gemm(attributes, constants, c_shape):
    if c_shape is None and "c" in constants:
        return
    inputs = {
        "a": random(0, *((3, 4) if attributes.get("transA") else (4, 3))),
        "b": random(1, *((5, 3) if attributes.get("transB") else (3, 5))),
    }
    if c_shape is not None:
        inputs["c"] = random(2, *c_shape)
    compare(one_node("Gemm", inputs, constants=constants, **attributes), inputs, constants)


def compare(model, inputs, constants):
    feed = {name: a for name, a in inputs.items() if name not in constants}
    ours = load(model)
    expected = onnxruntime(model, feed)["out0"]
    y = ours(feed).out0
    assert y.shape == expected.shape and y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)
    reference = ours.reference(feed).out0
    np.testing.assert_allclose(y, reference, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("constants", [(), ("b",)])
@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((3, 4), (2, 4, 5)),
        ((4,), (2, 4, 5)),
        ((2, 3, 4), (4,)),
        ((7, 1, 3, 4), (2, 4, 5)),
        ((0, 4), (4, 5)),
        ((2, 0, 4), (4, 5)),
    ],
)
def test_matmul(a, b, constants):
    inputs = {"a": random(0, *a), "b": random(1, *b)}
    compare(one_node("MatMul", inputs, constants=constants), inputs, constants)


def test_matmul_of_no_terms_is_zero():
    for constants in ((), ("b",)):
        inputs = {"a": random(0, 2, 0), "b": random(1, 0, 3)}
        model = load(one_node("MatMul", inputs, constants=constants))
        y = model({n: v for n, v in inputs.items() if n not in constants}).out0
        assert y.shape == (2, 3) and not y.any()


@pytest.mark.parametrize("constants", [(), ("w",), ("w", "b")])
@pytest.mark.parametrize(
    "x, w, attributes",
    [
        ((2, 3, 11), (4, 3, 3), {}),
        ((2, 3, 11), (4, 3, 3), {"strides": [2], "pads": [2, 1]}),
        ((1, 1, 300), (6, 1, 25), {"strides": [10]}),
        ((2, 6, 9), (6, 2, 2), {"group": 3, "dilations": [3]}),
        ((2, 4, 9), (4, 1, 3), {"group": 4, "auto_pad": "SAME_UPPER"}),
        ((2, 3, 7, 9), (5, 3, 2, 3), {"pads": [1, 0, 0, 2]}),
        ((1, 4, 8, 7), (6, 2, 3, 2), {"group": 2, "strides": [2, 3], "auto_pad": "SAME_LOWER", "kernel_shape": [3, 2]}),
        ((1, 2, 4, 5, 6), (3, 2, 2, 2, 3), {"dilations": [1, 2, 1]}),
        ((70, 8, 300), (5, 8, 9), {"pads": [4, 4]}),
        ((2, 3, 4), (4, 3, 3), {"strides": [2**63 - 1]}),
        ((2, 4, 3, 5), (4, 1, 3, 2), {"group": 4, "strides": [2**63 - 1, 2]}),
    ],
)
def test_conv(x, w, attributes, constants):
    scale = np.float32(1 / np.sqrt(np.prod(w[1:])))
    inputs = {"x": random(0, *x), "w": random(1, *w) * scale, "b": random(2, w[0])}
    compare(one_node("Conv", inputs, constants=constants, **attributes), inputs, constants)


@pytest.mark.parametrize("op", ["Exp", "Erf", "Sigmoid", "Tanh", "Softplus"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_unary(op, dtype):
    for shape in ((), (0,), (3, 1, 5)):
        x = np.asarray(random(0, *shape), dtype)
        y = load(one_node(op, {"x": x}))(x=x).out0
        assert y.dtype == dtype and y.shape == shape
        expected = load(one_node(op, {"x": x})).reference(x=x).out0
        np.testing.assert_allclose(y, expected, rtol=2e-3 if dtype == np.float16 else 1e-6)


def test_weights_of_another_type_are_refused():
    for op, inputs in (
        ("MatMul", {"a": random(0, 2, 3), "b": random(1, 3, 4).astype(np.float64)}),
        ("GRU", {"x": random(0, 2, 2, 4), "w": random(1, 1, 9, 4).astype(np.float64), "r": random(2, 1, 9, 3)}),
    ):
        for constants in ((), tuple(inputs)[1:]):
            model = one_node(op, inputs, constants=constants)
            with pytest.raises(ModelError, match=f"{op}.*are to have one type"):
                load(model)
            for value in model.graph.input:
                value.type.tensor_type.elem_type = 0  # not declared, so that only a call knows
            with pytest.raises((InputTypeError, ModelError), match=op):
                load(model)({n: a for n, a in inputs.items() if n not in constants})
