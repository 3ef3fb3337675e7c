"""Quantisers and integer products against exact integer arithmetic."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import rnnfast
from rnnfast.errors import InputError, UnsupportedError
from tests.graphs import load, one_node
from tests.onnx.ops.helpers import assert_like_onnxruntime, floats, run


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantize_rounds_ties_to_even_and_saturates(dtype):
    info = np.iinfo(dtype)
    zero = np.array(info.min + 13, dtype)
    x = np.float32([0, 0.25, 0.75, 1.25, -0.25, -0.75, 1e-40, 1e30, -1e30, math.inf, -math.inf])
    y = run("QuantizeLinear", [x, np.array(0.5, np.float32), zero], opset=21)
    steps = [0, 0, 2, 2, 0, -2, 0]
    assert y.dtype == dtype
    assert y.tolist() == [max(info.min, int(zero) + s) for s in steps] + [info.max, info.min] * 2


def test_quantize_by_axis_and_by_block():
    rng = np.random.default_rng(12)
    x = floats(rng, 3, 5, 4) * 10
    scale, zero = np.abs(floats(rng, 5)) + 0.1, rng.integers(-9, 9, 5).astype(np.int8)
    y = run("QuantizeLinear", [x, scale, zero], opset=13, axis=-2)
    for i in range(5):
        expected = np.clip(np.rint(x[:, i] / scale[i]) + zero[i], -128, 127)
        np.testing.assert_array_equal(y[:, i], expected)
    back = run("DequantizeLinear", [y, scale, zero], opset=13, axis=1)
    np.testing.assert_array_equal(back, (y.astype(np.float32) - zero[:, None]) * scale[:, None])
    scale, zero = np.abs(floats(rng, 3, 3, 4)) + 0.1, rng.integers(0, 99, (3, 3, 4)).astype(np.uint8)
    y = run("QuantizeLinear", [x, scale, zero], opset=21, axis=1, block_size=2)
    for i in range(5):
        np.testing.assert_array_equal(y[:, i], np.clip(np.rint(x[:, i] / scale[:, i // 2]) + zero[:, i // 2], 0, 255))
    back = run("DequantizeLinear", [y, scale, zero], opset=21, axis=1, block_size=2)
    for i in range(5):
        np.testing.assert_array_equal(back[:, i], (y[:, i].astype(np.float32) - zero[:, i // 2]) * scale[:, i // 2])


# Element types of quantised tensors -> the opset that gave the quantisers this type
TYPES = dict.fromkeys(("UINT8", "INT8", "UINT16", "INT16", "UINT4", "INT4"), 21)
TYPES |= dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 21)
TYPES |= {"FLOAT4E2M1": 23, "INT2": 25, "UINT2": 25}
BITS = {"UINT4": (0, 15), "INT4": (-8, 7), "UINT2": (0, 3), "INT2": (-2, 1)}


@pytest.mark.parametrize("scale_type", [np.float32, np.float16])
@pytest.mark.parametrize("form", [{}, {"axis": 1}, {"axis": -1, "block_size": 3}])
@pytest.mark.parametrize("kind", TYPES)
def test_forms_of_quantisers_against_those_of_onnx(kind, form, scale_type):
    if TYPES[kind] > min(onnx.defs.onnx_opset_version(), 28) or not hasattr(TensorProto, kind):
        pytest.skip("this version of onnx does not have the type")
    number = getattr(TensorProto, kind)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(number))
    rng, shape = np.random.default_rng([14, *kind.encode()]), (3, 5, 8)
    sizes = (3, 5, 3) if "block_size" in form else (5,) if form else ()
    scale, x = rng.uniform(0.1, 0.5, sizes).astype(scale_type), floats(rng, *shape).astype(scale_type) * 3
    zero = np.zeros(sizes, np.float32).astype(dtype)
    if "INT" in kind:
        low, high = BITS.get(kind) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
        zero = rng.integers(low, high, sizes, endpoint=True).astype(dtype)
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        arrays = {"x": x, "s": scale, "z": zero}
        # float16 is computed in float32 and rounded once.
        wide = {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}
        (expected,) = ReferenceEvaluator(quantiser(op_type, wide, number, TYPES[kind], form)).run(None, wide)
        y = rnnfast.load(quantiser(op_type, arrays, number, TYPES[kind], form).SerializeToString())(arrays).y
        assert y.dtype == (dtype if op_type == "QuantizeLinear" else scale_type)
        np.testing.assert_array_equal(y.astype(np.float32), expected.astype(y.dtype).astype(np.float32))
        x = y


def quantiser(op_type, arrays, number, opset, form):
    """A model of one quantiser of these arrays, to or from the type of this number."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    output = number if op_type == "QuantizeLinear" else types["s"]
    graph = helper.make_graph(
        [helper.make_node(op_type, list("xsz"), ["y"], **form)],
        "one",
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in arrays.items()],
        [helper.make_tensor_value_info("y", output, arrays["x"].shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13 if opset > 23 else 11)


def test_an_output_type_of_0_is_none():
    """It is the default; onnxruntime writes it into the files that it saves."""
    x, scale = np.float32([1, 2, 3]), np.float32(0.5)
    for attributes in ({"output_dtype": 0}, {"output_dtype": 0, "precision": 0}):
        model = one_node("QuantizeLinear", {"x": x, "s": scale}, 1, 23, **attributes)
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
        assert load(model)(x=x, s=scale).out0.tolist() == [2, 4, 6]
    model = one_node("Cast", {"x": x}, 1, 23, to=0)
    with pytest.raises(UnsupportedError, match="'to': element type 0"):
        load(model)


def test_quantizers_of_zeros_denormals_and_nan():
    zeros, zero = np.zeros(3, np.float32), np.zeros((), np.float32)
    assert run("QuantizeLinear", [zeros, zero]).tolist() == [0, 0, 0]
    y, scale, point = run("DynamicQuantizeLinear", [zeros])
    assert y.tolist() == [0, 0, 0] and scale == 1 and point == 0
    y, scale, point = run("DynamicQuantizeLinear", [np.float32([1e-40, -1e-41, 0])])
    assert y.tolist() == [0, 0, 0] and scale == 1 and point == 0  # the scale is denormal, which counts as zero
    y, scale, point = run("DynamicQuantizeLinear", [np.float32([1e-30, -1e-31, 0])])
    assert y[0] == 255 and y[1] == 0 and y[2] == point
    for op_type, inputs in [
        ("QuantizeLinear", [np.float32([math.nan]), np.ones((), np.float32)]),
        ("DynamicQuantizeLinear", [np.float32([math.nan])]),
    ]:
        with pytest.raises(InputError, match="NaN"):
            run(op_type, inputs)


def test_integer_products():
    rng = np.random.default_rng(13)
    a = rng.integers(0, 256, (2, 3, 7)).astype(np.uint8)
    b = rng.integers(-128, 128, (7, 5)).astype(np.int8)
    rows, columns = np.uint8([3, 250, 9]), np.int8([1, -9, 0, 100, -128])
    wide = (a.astype(np.int64) - rows[:, None]) @ (b.astype(np.int64) - columns)
    y = run("MatMulInteger", [a, b, rows, columns])
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, wide)
    scales = [np.array(s, np.float32) for s in (0.02, 0.03, 0.7)]
    points = [np.array(7, np.uint8), np.array(-3, np.int8), np.array(101, np.uint8)]

    def arguments(b):
        return [a, scales[0], points[0], b, scales[1], points[1], scales[2], points[2]]

    exact = (a.astype(np.int64) - 7) @ (b.astype(np.int64) + 3) * (0.02 * 0.03 / 0.7) + 101
    np.testing.assert_array_equal(run("QLinearMatMul", arguments(b)), np.clip(np.rint(exact), 0, 255))
    # Without VNNI onnxruntime adds pairs of products in 16 bits and saturates, so that it is no oracle for all of int8.
    assert_like_onnxruntime("QLinearMatMul", arguments(b // 2))
    x, w = rng.integers(0, 256, (2, 4, 9)).astype(np.uint8), rng.integers(-128, 128, (6, 2, 3)).astype(np.int8)
    exact = run("Conv", [x.astype(np.float64) - 77, w.astype(np.float64)], group=2, pads=(1, 2), strides=(2,))
    y = run("ConvInteger", [x, w, np.array(77, np.uint8)], group=2, pads=(1, 2), strides=(2,))
    np.testing.assert_array_equal(y, exact)
