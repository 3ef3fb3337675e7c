"""Native convolutions with the steps next to them: views before, functions and normalisation behind."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast.onnx.ops.convolution import conv, conv_transpose
from tests.graphs import load, model_of, parse, random
from tests.onnx.compile.convolutions import check, model, program
from tests.onnx.compile.helpers import plain


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("group", [1, 5])
def test_views(samples, group):
    """The convolution's input is transposed, sliced and reshaped before."""
    w, b = random(1, 10, 10 // group, 3), random(2, 10)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["t", "start", "end", "axes", "steps"], ["s"]),
        helper.make_node("Conv", ["s", "w", "b"], ["y"], pads=[1, 2], group=group),
    ]
    numbers = dict(start=[1, 2], end=[11, 100], axes=[1, 2], steps=[1, 2])
    constants = {"w": w, "b": b} | {k: np.array(v, np.int64) for k, v in numbers.items()}
    x = random(0, samples, 22, 12)
    check(model(nodes, constants, 3), x, conv(x.transpose(0, 2, 1)[:, 1:11, 2::2], w, b, pads=(1, 2), group=group))


def test_reshaped_view():
    """Two of the input's axes as channels."""
    w = random(1, 6, 12, 3)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[1, 1]),
    ]
    x = random(0, 3, 4, 3, 15)
    check(
        model(nodes, {"w": w, "shape": np.array([0, 12, 15], np.int64)}, 4),
        x,
        conv(x.reshape(3, 12, 15), w, pads=(1, 1)),
    )


@pytest.mark.parametrize("samples", [1, 3])
def test_chain(samples):
    """Convolutions with elementwise functions between them, one of whose results is used twice."""
    w = [
        random(1, 16, 1, 3, 3) / 3,
        random(2, 20, 16, 3, 2) / 9,
        random(3, 20, 1, 3, 3) / 3,
        random(4, 20, 16, 1, 4) / 9,
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("LeakyRelu", ["b"], ["b1"], alpha=0.1),
        helper.make_node("Slice", ["b1", "start", "end", "axes"], ["b2"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[2, 1, 0, 0], strides=[1, 2]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Mul", ["c", "d"], ["e"]),
        helper.make_node("Conv", ["e", "w2"], ["f"], pads=[1, 1, 1, 1], group=20),
        helper.make_node("Add", ["e", "f"], ["g"]),
        helper.make_node("ConvTranspose", ["g", "w3"], ["h"], strides=[1, 2], pads=[0, 1, 0, 2]),
        helper.make_node("Concat", ["h", "b2"], ["i"], axis=1),
        helper.make_node("Conv", ["i", "w4"], ["y"], pads=[0, 1, 0, 1]),
    ]
    x = random(0, samples, 1, 6, 11)
    a = conv(x, w[0], pads=(1, 1, 1, 1))
    b = np.maximum(a, 0)
    c = conv(b, w[1], pads=(2, 1, 0, 0), strides=(1, 2))
    e = c / (1 + np.exp(-c))
    g = e + conv(e, w[2], pads=(1, 1, 1, 1), group=20)
    h = conv_transpose(g, w[3], strides=(1, 2), pads=(0, 1, 0, 2))
    width = h.shape[3]
    w.append(random(5, 3, 32, 1, 3) / 9)
    expected = conv(np.concatenate([h, b[..., :width]], 1), w[4], pads=(0, 1, 0, 1))
    constants = {f"w{i}": v for i, v in enumerate(w)}
    constants |= dict(start=np.array([0]), end=np.array([width]), axes=np.array([3]))
    assert width <= 11
    check(model(nodes, constants, 4), x, expected)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 6])
def test_normalised(op, group):
    """A BatchNormalization with constants stands behind the convolution."""
    shape = (6, 6 // group)
    constants = {
        "w": random(1, *shape, 1, 3),
        "b": random(2, 6),
        "scale": random(3, 6),
        "shift": random(4, 6),
        "mean": random(5, 6),
        "var": np.abs(random(6, 6)) + np.float32(0.1),
    }
    nodes = [
        helper.make_node(op, ["x", "w", "b"], ["a"], pads=[0, 1, 0, 1], group=group),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    x = random(0, 3, 6, 4, 9)
    function = conv if op == "Conv" else conv_transpose
    a = function(x, constants["w"], constants["b"], pads=(0, 1, 0, 1), group=group)
    scale, shift, mean, var = (constants[k].reshape(-1, 1, 1) for k in ("scale", "shift", "mean", "var"))
    check(model(nodes, constants, 4), x, np.maximum((a - mean) / np.sqrt(var + np.float32(1e-3)) * scale + shift, 0))


@pytest.mark.parametrize("taps, size, pads", [(40, 90, (0, 0)), (5, 7, (2, 2))])
def test_normalised_lines(taps, size, pads):
    """Mirrored kernels, and lines whose padding is left out."""
    w = random(1, 12, 1, taps)
    w[:5] += w[:5, :, ::-1].copy()
    w[5:] -= w[5:, :, ::-1].copy()
    constants = {
        "w": w,
        "scale": random(3, 12),
        "shift": random(4, 12),
        "mean": random(5, 12),
        "var": np.abs(random(6, 12)) + np.float32(0.1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=pads),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["y"]),
    ]
    x = random(0, 3, 1, size)
    scale, shift, mean, var = (constants[k].reshape(-1, 1) for k in ("scale", "shift", "mean", "var"))
    a = conv(x, w, pads=pads)
    check(model(nodes, constants, 3), x, (a - mean) / np.sqrt(var + np.float32(1e-5)) * scale + shift)


def test_weights_that_depend_on_shapes():
    """Each plan has its own."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["s"], to=1),
        helper.make_node("Reshape", ["s", "as"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    m = model(nodes, {"as": np.array([1, 1, 3], np.int64)}, 3)
    for n in (5, 7, 5):
        x = random(0, 2, 1, n)
        assert np.allclose(m(x=x)["y"], conv(x, np.array([[[2, 1, n]]], np.float32)), atol=1e-5)


def test_times():
    """Every command has a time, and the program works as before."""
    w = random(1, 16, 3, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1]), helper.make_node("Tanh", ["a"], ["y"])]
    m, x = model(nodes, {"w": w}, 3), random(0, 1, 3, 2000)
    y = m(x=x)["y"]
    whole = program(m)
    times = whole.times(x, rounds=5)
    assert len(times) == len(whole.notes) and all(t >= 0 for t in times) and sum(times) > 1000
    assert np.array_equal(m(x=x)["y"], y)


def silu(v):
    return v / (1 + np.exp(-v))


LARGE = random(0, 1, 3, 41, 40)  # whose convolution is so large that functions of it are computed with its lines
OF_LARGE = {  # nodes behind y0 = Conv(x, w), what they compute
    "in place": ("Sigmoid y0 s; Mul y0 s y", silu),
    "kept": ("Relu y0 r; Transpose y0 t; Transpose t u; Add r u y", lambda v: np.maximum(v, 0) + v),
    "cast": ("Cast y0 c; Relu c r; Sub r c y", lambda v: np.maximum(v, 0) - v),
    "reversed": ("Slice y0 start end axes steps r; Add y0 r y", lambda v: v + v[:, :, ::-1]),
    "one line": ("Slice y0 first second axes r; Mul y0 r y", lambda v: v * v[:, :, :1]),
    "flags": ("Less y0 zero l; Where l zero y0 y", lambda v: np.maximum(v, 0)),
    "by channel": ("Mul y0 b m; Tanh m y", lambda v: np.tanh(v * random(2, 20, 1, 1))),
    "normalised": (
        "BatchNormalization y0 ones zeros zeros ones n; Relu n r; Sub r n y",
        lambda v: np.maximum(v, 0) - v,
    ),
    "padded": ("Relu y0 r; Conv r w2 y", lambda v: conv(np.maximum(v, 0), random(3, 4, 20, 3, 3), pads=(1, 1, 1, 1))),
}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("text, function", OF_LARGE.values(), ids=OF_LARGE)
def test_functions_of_large_outputs(forced, text, function, threads):
    attributes = {
        "Cast": {"to": 1},
        "Conv": {"pads": [1, 1, 1, 1]},
        "Transpose": {"perm": [0, 1, 3, 2]},
        "BatchNormalization": {"epsilon": 0.0},
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["y0"], pads=[1, 1, 1, 1])]
    for words in map(str.split, text.split("; ")):
        nodes.append(helper.make_node(words[0], words[1:-1], words[-1:], **attributes.get(words[0], {})))
    constants = {
        "w": random(1, 20, 3, 3, 3) / 5,
        "b": random(2, 20, 1, 1),
        "w2": random(3, 4, 20, 3, 3),
        "zero": np.zeros((), np.float32),
        "zeros": np.zeros(20, np.float32),
        "ones": np.ones(20, np.float32),
        "start": np.array([-1]),
        "end": np.array([-100]),
        "axes": np.array([2]),
        "steps": np.array([-1]),
        "first": np.array([0]),
        "second": np.array([1]),
    }
    m = rnnfast.load(
        model_of(
            nodes, [("x", TensorProto.FLOAT, [None] * 4)], [("y", TensorProto.FLOAT, None)], constants
        ).SerializeToString(),
        threads=threads,
    )
    check(m, LARGE, function(conv(LARGE, constants["w"], pads=(1, 1, 1, 1))))


def test_a_branch_needs_the_outputs():
    """A branch and a function both take the outputs of a convolution."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["y0"], ["z"])], op, [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
        )
        for op in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y0"], ["r"]),
        helper.make_node("If", ["c"], ["i"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Add", ["r", "i"], ["y"]),
    ]
    w = random(1, 20, 3, 3, 3) / 5
    m = load(
        model_of(
            nodes,
            [("x", TensorProto.FLOAT, [None] * 4), ("c", TensorProto.BOOL, [])],
            [("y", TensorProto.FLOAT, None)],
            {"w": w},
        )
    )
    y = conv(LARGE, w, pads=(1, 1, 1, 1))
    for c in (True, False):
        expected = np.maximum(y, 0) + (-y if c else np.abs(y))
        assert np.allclose(m(x=LARGE, c=np.array(c))["y"], expected, atol=1e-5)


def test_square_of_a_convolution_that_is_needed_later(isa):
    """A command that takes an input twice is one use of it: the square is not written over the convolution."""
    model = load(
        parse(
            """g (float[1,8,h,w] x) => (q, r) {
        c = Conv <pads = [1,1,1,1]> (x, k)  p = Pow (c, two)  q = GlobalMaxPool (p)  r = GlobalMaxPool (c) }""",
            k=random(0, 8, 8, 3, 3),
            two=np.float32(2),
        )
    )
    x = random(1, 1, 8, 64, 80)
    for y, expected in zip(model(x=x).values(), plain(model, x=x)):
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
