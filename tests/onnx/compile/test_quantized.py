"""Native quantisers and products and convolutions of integers, to the bit those of the operators' NumPy functions."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast.errors import InputError
from rnnfast.native import _programs
from tests.graphs import load, model_of, one_node
from tests.onnx.compile.helpers import compare, plain, plan_of, segment_of

RNG = np.random.default_rng(23)
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16]
EDGES = [0, 0.25, 0.75, 1.25, -0.25, -0.75, 1e-40, 1e30, -1e30, 3e38, math.inf, -math.inf]


def integers(dtype, *shape):
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node_of(op_type, inputs, constants=(), **attributes):
    """Return (the loaded model of one node of opset 21, its feed); None among the inputs (name -> array) is absent."""
    inputs = {name if x is not None else f"_{name}": x for name, x in inputs.items()}
    present = {name: np.asarray(x) for name, x in inputs.items() if x is not None}
    names = [name if x is not None else "" for name, x in inputs.items()]
    model = one_node(op_type, present, 1, 21, [n for n in constants if n in present], **attributes)
    del model.graph.node[0].input[:]
    model.graph.node[0].input.extend(names)
    model.graph.output[0].type.Clear()
    return load(model), {name: x for name, x in present.items() if name not in constants}


# ------------------------------------------------------------------------------------------------ quantisers
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("axis", [None, 0, -2, 2])
def test_quantize_and_dequantize(isa, dtype, axis):
    shape = (3, 5, 33)
    sizes = () if axis is None else (shape[axis],)
    scale = RNG.uniform(0.01, 2, sizes).astype(np.float32)
    zero = integers(dtype, *sizes)
    x = floats(*shape) * 100
    x.reshape(-1)[: len(EDGES)] = np.float32(EDGES) * 0.5
    attributes = {} if axis is None else {"axis": axis}
    for given in (zero, None) if dtype is np.uint8 else (zero,):
        model, feed = node_of("QuantizeLinear", {"x": x, "s": scale, "z": given}, "sz", **attributes)
        (y,) = compare(model, **feed)
        assert y.dtype == dtype
        back, feed = node_of("DequantizeLinear", {"x": y, "s": scale, "z": given}, "sz", **attributes)
        compare(back, **feed)


def test_dequantize_int32():
    x = np.array([[2**31 - 1, -(2**31), 2**24 + 1], [5, -7, 0]], np.int32)
    model, feed = node_of("DequantizeLinear", {"x": x, "s": np.float32(0.3), "z": None}, "s")
    compare(model, **feed)


def pair(x, *middle):
    """The model of a QuantizeLinear to int8, nodes, and a DequantizeLinear; constants s, z."""
    return load(pair_model(x, np.float32(0.1), np.int8(3), *middle))


def pair_model(x, scale, zero, *middle):
    """The file of `pair` for a scale and a zero point."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        *middle,
        helper.make_node("DequantizeLinear", [middle[-1].output[0] if middle else "q", "s", "z"], ["y"]),
    ]
    shape = [("x", TensorProto.FLOAT, x.shape)]
    return model_of(nodes, shape, [("y", TensorProto.FLOAT, None)], {"s": scale, "z": zero}, 21)


def test_a_pair_is_one_instruction():
    x = floats(4, 70) * 10
    model = pair(x)
    compare(model, x=x)
    assert [note.command for note in segment_of(model).notes] == ["round_to"]


@pytest.mark.parametrize("zeros", [[0, 0], [3, 3], [0, 3]], ids=str)
def test_integers_with_a_zero_point_for_each_index_have_no_negative_zero(zeros):
    x = np.float32([[-0.01, -0.0, 0.01], [-0.01, -0.0, 5]])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0),
    ]
    constants = {"s": np.float32([0.1, 0.2]), "z": np.int8(zeros)}
    model = model_of(nodes, [("x", TensorProto.FLOAT, x.shape)], [("y", TensorProto.FLOAT, None)], constants, 21)
    (y,) = compare(load(model), x=x)
    assert not np.any(np.signbit(y))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_quotients_are_rounded_as_those_of_a_division(isa, dtype):
    """The floats nearest to the middle of each two neighbouring integers, and those on both sides of them."""
    limits = np.iinfo(dtype)
    zero = np.array(limits.min + (limits.max - limits.min) // 3, dtype)
    middles = np.arange(limits.min - 2, limits.max + 2) - float(zero) + 0.5
    for scale in np.float32([1, 3, 0.1, *RNG.uniform(0.5, 1, 3), 1e-28 / 3, 3e28]):
        near = (middles * scale).astype(np.float32)
        x = np.stack([near] + [np.nextafter(near, sign * np.float32(np.inf)) for sign in (1, -1)])
        x = np.append(x, [0, -0.0, np.inf, -np.inf, 3e38, -3e38, 1e-42]).astype(np.float32)
        with np.errstate(over="ignore"):
            expected = np.clip(np.rint(x / scale) + float(zero), limits.min, limits.max).astype(dtype)
        for op_type, given in (("QuantizeLinear", x), ("DequantizeLinear", expected)):
            model, feed = node_of(op_type, {"x": given, "s": scale, "z": zero}, "sz")
            (y,) = compare(model, **feed)
            if op_type == "QuantizeLinear":
                np.testing.assert_array_equal(y, expected)
        rounded = load(pair_model(x, scale, zero))
        (again,) = compare(rounded, x=x)
        assert segment_of(rounded).notes[0].command.startswith("round_to")
        np.testing.assert_array_equal(again, y)
        assert not np.signbit(again[again == 0]).any()


def test_quantised_values_that_others_read():
    """A transposition reads the stored integers, and so does an output of the graph."""
    x = floats(4, 70) * 10
    compare(pair(x, helper.make_node("Transpose", ["q"], ["t"])), x=x)
    model = model_of(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, x.shape)],
        [("y", TensorProto.FLOAT, None), ("q", TensorProto.INT8, None)],
        {"s": np.float32(0.1), "z": np.int8(3)},
        21,
    )
    compare(load(model), x=x)


@pytest.mark.parametrize("shape", [(), (1,), (700,), (3, 5, 7)])
def test_nan_is_refused(isa, shape):
    x = np.array(floats(*shape))
    models = [pair(x), node_of("DynamicQuantizeLinear", {"x": x})[0]]
    for model in models:
        compare(model, x=x)
    x.reshape(-1)[-1] = np.nan
    for model, op_type in zip(models, ("QuantizeLinear", "DynamicQuantizeLinear")):
        with pytest.raises(InputError, match=rf"\({op_type}\): .*NaN"):
            model(x=x)


def test_nan_is_found_by_the_quantiser_that_meets_it_first(forced):
    """Two quantisers in one command, on two threads behind a large convolution, and as another call without NaN."""
    x, w = floats(1, 4, 60, 40), floats(60, 4, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q1"], name="first"),
        helper.make_node("DequantizeLinear", ["q1", "s", "z"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s", "z"], ["y"]),
    ]
    constants = {"w": w, "s": np.float32(0.1), "z": np.int8(3)}
    file = model_of(nodes, [("x", TensorProto.FLOAT, x.shape)], [("y", TensorProto.FLOAT, None)], constants, 21)
    for threads in (1, 2):
        model = rnnfast.load(file.SerializeToString(), threads=threads)
        (expected,) = model(x=x).values()
        assert "convolution round_to sigmoid round_to" in [note.command for note in segment_of(model).notes]
        bad = x.copy()
        bad[0, 2, 31, 7] = np.nan
        with pytest.raises(InputError, match="first.*NaN"):
            model(x=bad)
        np.testing.assert_array_equal(model(x=x)["y"], expected)


@pytest.mark.parametrize("argument, fused", [("z", True), ("late", False)])
def test_a_function_joins_a_convolution_that_is_not_the_last_command(isa, argument, fused):
    """Unless it reads what was computed after the convolution."""
    x, w, a = floats(1, 4, 60, 40), floats(60, 4, 3, 3), floats(60, 5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["a", "b"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["late"]),
        helper.make_node("Add", ["c", argument], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["y"]),
    ]
    constants = {"w": w, "b": floats(5, 1), "z": floats(60, 1, 1), "shape": np.array([60, 1, 1], np.int64)}
    shapes = [("x", TensorProto.FLOAT, x.shape), ("a", TensorProto.FLOAT, a.shape)]
    outputs = [(name, TensorProto.FLOAT, None) for name in ("y", "late")]
    model = load(model_of(nodes, shapes, outputs, constants, 21))
    y = model(x=x, a=a)["y"]
    commands = [note.command for note in segment_of(model).notes]
    assert ("convolution add sigmoid" in commands) == fused
    c = [("c", TensorProto.FLOAT, None)]
    parts = load(model_of(nodes, shapes, [*outputs, *c], constants, 21))
    together = parts(x=x, a=a)
    np.testing.assert_array_equal(y, together["y"])
    np.testing.assert_array_equal(together["c"], load(model_of(nodes[:1], shapes[:1], c, constants, 21))(x=x)["c"])


def test_nan_of_values_that_cannot_have_it_is_not_looked_for():
    """A product of dequantised numbers has none, unless scales are so large that it overflows."""
    for scale, looks in ((1, 0), (1e28, 1)):
        q = integers(np.uint8, 3, 40)
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "large"], ["a"]),
            helper.make_node("DequantizeLinear", ["q", "large"], ["b"]),
            helper.make_node("Mul", ["a", "b"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"]),
        ]
        constants = {"large": np.float32(scale), "s": np.float32(0.1), "z": np.uint8(3)}
        model = load(
            model_of(nodes, [("q", TensorProto.UINT8, q.shape)], [("y", TensorProto.UINT8, None)], constants, 21)
        )
        compare(model, q=q)
        assert len(segment_of(model).checks) == looks


@pytest.mark.parametrize("x", [floats(3, 70), abs(floats(5)), -abs(floats(1, 3)), np.zeros(4, np.float32), floats()])
def test_dynamic_quantize(isa, x):
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    outputs = [("y", TensorProto.UINT8, None), ("s", TensorProto.FLOAT, None), ("z", TensorProto.UINT8, None)]
    model = load(model_of([node], [("x", TensorProto.FLOAT, x.shape)], outputs, {}, 21))
    compare(model, x=x)


@pytest.mark.parametrize("values", [[1e-40, -1e-41, 0], [1e-30, -1e-31, 0], [math.inf, 1, -2], [-math.inf, math.inf]])
def test_dynamic_quantize_at_the_limits(isa, values):
    x = np.float32(values)
    model, feed = node_of("DynamicQuantizeLinear", {"x": x})
    with np.errstate(all="ignore"):
        compare(model, **feed)


def test_quantisers_that_stay_with_numpy():
    """Their scales are computed by the call, tiny, or for blocks."""
    x, zero = floats(4, 6), np.uint8(3)
    cases = [
        ({"x": x, "s": np.float32(0.1), "z": zero}, (), {}),
        ({"x": x, "s": np.float32(1e-35), "z": zero}, ("s", "z"), {}),
        ({"x": x, "s": abs(floats(2, 6)), "z": integers(np.uint8, 2, 6)}, ("s", "z"), {"axis": 0, "block_size": 2}),
    ]
    for inputs, constants, attributes in cases:
        model, feed = node_of("QuantizeLinear", inputs, constants, **attributes)
        (y,), (expected,) = model(feed).values(), plain(model, **feed)
        np.testing.assert_array_equal(y, expected)
        assert type(plan_of(model).steps[0][0]) is not _programs.NativeProgram


# ------------------------------------------------------------------------------------------------ products
# Columns of so many rows of extreme values: their sums are within 2^24, need two parts, and are beyond those.
SHORT, LONG, TOO_LONG = 200, 600, 20000


def product(a_type, b_type, k, zeros, n=19, extreme=True):
    """Inputs of a product; extreme: the sums are as large as they can be."""
    a, b = integers(a_type, 2, 3, k), integers(b_type, k, n)
    if extreme:
        a[0, 0], b[:, 0] = np.iinfo(a_type).max, np.iinfo(b_type).min
    a_zero = np.array(np.iinfo(a_type).min + 9, a_type) if zeros else None
    b_zero = {"one": np.array(9, b_type), "columns": integers(b_type, n)}.get(zeros)
    return a, b, a_zero, b_zero


@pytest.mark.parametrize("k", [1, 37, SHORT])
@pytest.mark.parametrize("zeros", [None, "one", "columns"])
@pytest.mark.parametrize("b_type", [np.uint8, np.int8])
@pytest.mark.parametrize("a_type", [np.uint8, np.int8])
def test_matmul_integer(isa, a_type, b_type, zeros, k):
    a, b, a_zero, b_zero = product(a_type, b_type, k, zeros)
    model, feed = node_of("MatMulInteger", {"a": a, "b": b, "az": a_zero, "bz": b_zero}, ["b", "bz"])
    (y,) = compare(model, **feed)
    left = a.astype(np.int64) - (0 if a_zero is None else int(a_zero))
    np.testing.assert_array_equal(y, left @ (b.astype(np.int64) - (0 if b_zero is None else b_zero.astype(np.int64))))
    assert y.dtype == np.int32


@pytest.mark.parametrize("k, native", [(SHORT, True), (LONG, True), (TOO_LONG, False)])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("a_type", [np.uint8, np.int8])
def test_qlinear_matmul(isa, a_type, per_column, k, native):
    a, b, a_zero, b_zero = product(a_type, a_type, k, "columns" if per_column else "one")
    b_scale = RNG.uniform(0.01, 0.02, (19,) if per_column else ()).astype(np.float32)
    inputs = {"a": a, "as": np.float32(0.02), "az": a_zero, "b": b, "bs": b_scale, "bz": b_zero}
    inputs |= {"ys": np.float32(0.003 * k), "yz": np.array(11, a_type)}
    model, feed = node_of("QLinearMatMul", inputs, [*inputs][1:])
    (y,), (expected,) = model(feed).values(), plain(model, **feed)
    np.testing.assert_array_equal(y, expected)
    assert (type(plan_of(model).steps[0][0]) is _programs.NativeProgram) == native


@pytest.mark.parametrize("k, native", [(LONG, True), (TOO_LONG, False)])
def test_sums_of_int32_that_float32_does_not_hold(isa, k, native):
    a, b, a_zero, b_zero = product(np.uint8, np.int8, k, "one")
    model, feed = node_of("MatMulInteger", {"a": a, "b": b, "az": a_zero, "bz": b_zero}, ["b", "bz"])
    (y,) = model(feed).values()
    expected = (a.astype(np.int64) - int(a_zero)) @ (b.astype(np.int64) - int(b_zero))
    assert np.abs(expected).max() > 2**24
    np.testing.assert_array_equal(y, expected)
    assert (type(plan_of(model).steps[0][0]) is _programs.NativeProgram) == native


@pytest.mark.parametrize("k", [SHORT, LONG])
def test_sums_that_become_floats(k):
    """As dynamic quantisation writes them: the sums are cast to float32, which rounds them once."""
    a, b, a_zero, _ = product(np.uint8, np.int8, k, "one")
    nodes = [
        helper.make_node("MatMulInteger", ["a", "b", "az"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    constants = {"b": b, "az": a_zero, "s": np.float32(0.01)}
    model = load(model_of(nodes, [("a", TensorProto.UINT8, a.shape)], [("y", TensorProto.FLOAT, None)], constants, 21))
    (y,) = compare(model, a=a)
    sums = (a.astype(np.int64) - int(a_zero)) @ b.astype(np.int64)
    np.testing.assert_array_equal(y, sums.astype(np.float32) * np.float32(0.01))


@pytest.mark.parametrize("largest, native", [(5000, "add mul"), (2**24, "mul")])
def test_sums_to_which_a_bias_is_added(isa, largest, native):
    """As QGemm is read: in float32 where that holds the sums, otherwise in int32."""
    a, b, a_zero, _ = product(np.uint8, np.int8, SHORT, "one")
    bias = RNG.integers(-largest, largest, b.shape[1], np.int32)
    bias[1] = largest
    nodes = [
        helper.make_node("MatMulInteger", ["a", "b", "az"], ["i"]),
        helper.make_node("Add", ["bias", "i"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    constants = {"b": b, "az": a_zero, "s": np.float32(0.01), "bias": bias}
    model = load(model_of(nodes, [("a", TensorProto.UINT8, a.shape)], [("y", TensorProto.FLOAT, None)], constants, 21))
    (y,) = compare(model, a=a)
    sums = (a.astype(np.int64) - int(a_zero)) @ b.astype(np.int64) + bias
    np.testing.assert_array_equal(y, sums.astype(np.int32).astype(np.float32) * np.float32(0.01))
    assert native in [note.command for note in segment_of(model).notes]


# ------------------------------------------------------------------------------------------------ convolutions
CONVOLUTIONS = [
    ((2, 3, 17), (5, 3, 4), {"pads": [2, 1], "strides": [2]}),
    ((1, 4, 9, 8), (6, 2, 3, 2), {"group": 2, "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ((2, 5, 7, 6), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
    ((1, 3, 8, 8), (4, 3, 1, 1), {}),
]


@pytest.mark.parametrize("w_type", [np.uint8, np.int8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("shape, kernel, attributes", CONVOLUTIONS)
def test_conv_integer(isa, shape, kernel, attributes, zeros, w_type):
    inputs = {"x": integers(np.uint8, *shape), "w": integers(w_type, *kernel)}
    inputs |= {"xz": np.uint8(130), "wz": np.array(100, w_type)} if zeros else {}
    model, feed = node_of("ConvInteger", inputs, ["w", "xz", "wz"], **attributes)
    compare(model, **feed)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shape, kernel, attributes", CONVOLUTIONS)
def test_qlinear_conv(isa, shape, kernel, attributes, dtype, per_channel):
    channels = (kernel[0],) if per_channel else ()
    scale = RNG.uniform(0.01, 0.02, channels).astype(np.float32)
    inputs = {"x": integers(dtype, *shape), "xs": np.float32(0.02), "xz": np.array(7, dtype)}
    inputs |= {"w": integers(dtype, *kernel), "ws": scale, "wz": integers(dtype, *channels)}
    inputs |= {"ys": np.float32(0.5), "yz": np.array(11, dtype)}
    for bias in (None, RNG.integers(-5000, 5000, kernel[0]).astype(np.int32)):
        model, feed = node_of("QLinearConv", inputs | {"B": bias}, [*[*inputs][1:], "B"], **attributes)
        compare(model, **feed)


def test_large_convolutions_stay_with_numpy():
    x, w = integers(np.uint8, 1, 300, 5), np.full((2, 300, 3), -128, np.int8)
    model, feed = node_of("ConvInteger", {"x": x, "w": w}, ["w"])
    (y,), (expected,) = model(feed).values(), plain(model, **feed)
    np.testing.assert_array_equal(y, expected)
    assert type(plan_of(model).steps[0][0]) is not _programs.NativeProgram
