"""Numbers at the limits of their types: what docs/promises.md says of them, natively and by NumPy."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast.native import _kernels
from tests.graphs import by_numpy
from tests.onnx.mutations import Case, native

DENORMALS = np.array([1e-40, -1e-40, 1.4e-45, -1.4e-45, 0.0, -0.0, 1.2e-38, -1.2e-38, 1.0, -1.0, np.nan], np.float32)
ZEROS = np.zeros_like(DENORMALS)
MAX = np.finfo(np.float32).max
PAD = 17  # copies: more than one block of a kernel, and a rest


def results(op, *inputs, constant=(), opset=17, **attributes):
    """The results natively, by NumPy, and natively with the constants as inputs, of whole blocks and a rest."""
    node = helper.make_node(op, [f"x{i}" for i in range(len(inputs))], ["y"], **attributes)
    data, feed = Case(node, list(inputs), opset, frozenset(constant)).model()
    return [way(rnnfast.load(data), feed)["y"] for way in (native, by_numpy)]


def padded(x):
    return np.tile(x, PAD)


@pytest.mark.parametrize("other", [ZEROS, DENORMALS[::-1].copy(), np.full_like(ZEROS, 1e-40), -DENORMALS])
@pytest.mark.parametrize(
    "op, function",
    [
        ("Less", np.less),
        ("LessOrEqual", np.less_equal),
        ("Greater", np.greater),
        ("GreaterOrEqual", np.greater_equal),
        ("Equal", np.equal),
        ("Min", np.minimum),
        ("Max", np.maximum),
    ],
)
def test_denormals_compare_as_they_are(isa, op, function, other):
    a, b = padded(DENORMALS), padded(other)
    for constant in ((), ("x1",)):
        for y in results(op, a, b, constant=constant):
            np.testing.assert_array_equal(y, function(a, b))


@pytest.mark.parametrize(
    "op, function",
    [
        ("Sign", np.sign),
        ("Ceil", np.ceil),
        ("Floor", np.floor),
        ("Round", np.rint),
        ("Abs", np.abs),
        ("Neg", np.negative),
        ("IsNaN", np.isnan),
        ("Identity", lambda x: x),
    ],
)
def test_denormals_have_a_sign_and_a_side(isa, op, function):
    x = padded(DENORMALS)
    for y in results(op, x):
        np.testing.assert_array_equal(y, function(x))
        assert y.dtype == bool or np.array_equal(np.signbit(y)[x == x], np.signbit(function(x))[x == x])


def test_denormals_are_true_and_have_an_order(isa):
    x = np.array([0, 3e-40, 1e-40, -1e-40, 2e-40], np.float32)
    for y in results("Cast", x, to=TensorProto.BOOL):
        assert y.tolist() == [False, True, True, True, True]
    for op, place in (("ArgMax", 1), ("ArgMin", 3)):
        for y in results(op, x, keepdims=0):
            assert y == place
    for y in results("TopK", x, np.array([3]), constant=("x1",)):
        assert y.tolist() == x[[1, 4, 2]].tolist()


@pytest.mark.parametrize(
    "op, attributes",
    [
        ("ReduceMax", {"axes": [0], "keepdims": 0}),
        ("ReduceMin", {"axes": [0], "keepdims": 0}),
        ("MaxPool", {"kernel_shape": [2]}),
        ("Relu", {}),
        ("HardSigmoid", {"alpha": 1.0, "beta": 0.0}),
    ],
)
def test_the_larger_of_two_denormals_has_the_same_bits_on_every_instruction_set(op, attributes):
    x = np.repeat(padded(DENORMALS[:-1])[None, None], 3, 0 if op.startswith("Reduce") else 1)
    data, feed = Case(helper.make_node(op, ["x0"], ["y"], **attributes), [x], 17).model()
    before, bits = _kernels.get_isa(), set()
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            bits.add(rnnfast.load(data).run(feed)[0].tobytes())
    finally:
        _kernels.set_isa(before)
    assert len(bits) == 1


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_denormals_count_as_zero_in_arithmetic(isa, op):
    """No result of a native step is off by more than the smallest normal number."""
    a, b = padded(DENORMALS), padded(np.full_like(ZEROS, 1e-39))
    compiled, numpy = results(op, a, b)
    np.testing.assert_allclose(compiled, numpy, rtol=0, atol=np.finfo(np.float32).tiny)
    assert not np.any((compiled != 0) & (np.abs(compiled) < np.finfo(np.float32).tiny))


def test_a_comparison_behind_arithmetic_sees_what_it_computed(isa):
    """A fused command flushes what it adds, and compares what it was given: in one command as in two."""
    x, zero = padded(DENORMALS), np.float32(0)
    nodes = [
        helper.make_node("Add", ["x", "z"], ["s"]),
        helper.make_node("Greater", ["s", "z"], ["after"]),
        helper.make_node("Greater", ["x", "z"], ["before"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xz"]
    outputs = [helper.make_tensor_value_info(n, TensorProto.BOOL, None) for n in ("after", "before")]
    graph = helper.make_graph(nodes, "g", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    y = rnnfast.load(model.SerializeToString())(x=x, z=np.asarray(zero))
    np.testing.assert_array_equal(y.before, x > 0)
    np.testing.assert_array_equal(y.after, x >= np.finfo(np.float32).tiny)


@pytest.mark.parametrize("low, high", [(np.nan, 1), (0, np.nan), (np.nan, np.nan), (2, 1), (-np.inf, np.inf), (1, 1)])
@pytest.mark.parametrize("opset", [6, 11, 13])
def test_clip_is_min_of_max(isa, low, high, opset):
    x = padded(np.array([-3, 0.5, 7, np.inf, -np.inf, np.nan, 1e-40], np.float32))
    with np.errstate(all="ignore"):
        expected = np.minimum(np.maximum(x, np.float32(low)), np.float32(high))
    if opset == 6:
        found = results("Clip", x, opset=6, min=float(low), max=float(high))
    else:
        bounds = np.float32(low), np.float32(high)
        bounds = [np.asarray(b) for b in bounds]
        found = results("Clip", x, *bounds, constant=("x1", "x2"), opset=opset) + results("Clip", x, *bounds)
    for y in found:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization"])
@pytest.mark.parametrize("size", [4, 40, 400])
def test_squares_of_a_normalization_overflow(isa, op, size):
    """As in ONNX's definition in float32: a variance that overflows is infinite, so that the bias is left."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    channels = 1 if op == "InstanceNormalization" else size
    scale, bias = np.full(channels, 2, np.float32), np.full(channels, 0.25, np.float32)

    def normalized(x):
        x = x[None, None] if op == "InstanceNormalization" else x[None]
        return results(op, x, scale, bias)

    exact = (ramp - ramp.mean()) / ramp.std() * 2 + 0.25
    for factor in (1, 1e10, 1e15):  # the squares do not overflow
        for y in normalized(ramp * np.float32(factor)):
            np.testing.assert_allclose(y.ravel(), exact, rtol=0, atol=1e-4)
    for y in normalized(ramp * np.float32(1e25)):
        np.testing.assert_array_equal(y.ravel(), np.float32(0.25))
    for y in normalized(np.full(size, MAX)):  # the sum overflows too
        assert np.isnan(y).all()


FLOATS = np.array(
    [0.9, -0.9, 1.5, -1.5, 255.9, 300.7, -129, 2.0**31, -(2.0**31) - 300, 3e9, 2.0**62, 2.0**63, 1.5 * 2.0**63, 2.0**64]
    + [-(2.0**63), -1e19, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-40],
    np.float64,
)


@pytest.mark.parametrize("source", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("target", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_casts_out_of_range(isa, source, target):
    """Truncated to int64, in which NaN and what it cannot hold are -2^63 (to uint64 up to 2^64), then the low bits."""
    with np.errstate(all="ignore"):
        x = FLOATS.astype(source)
    bits, signed = 8 * np.dtype(target).itemsize, np.dtype(target).kind == "i"

    def expected(value):
        value = float(value)
        top = 2.0**64 if target == np.uint64 else 2.0**63
        whole = int(value) if -(2.0**63) <= value < top else -(2**63)
        whole &= (1 << bits) - 1
        return whole - (1 << bits) if signed and whole >> bits - 1 else whole

    for y in results("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(target))):
        assert y.dtype == target and y.tolist() == [expected(value) for value in x]
