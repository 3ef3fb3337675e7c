"""Convolutions in native plans: against the operators' NumPy functions, in bits across instruction sets and batches."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast.native import _kernels, _programs
from rnnfast.onnx.ops.convolution import conv, conv_transpose
from tests.graphs import load, model_of, parse, random
from tests.onnx.test_native_plans import plain

TOLERANCE = 2e-5  # of outputs of about 1: chains of up to some hundred products in float32


def model(nodes, constants, rank, **types):
    x = ("x", TensorProto.FLOAT, [None] * rank)
    return load(model_of(nodes, [x], [("y", TensorProto.FLOAT, None)], constants))


def program(m):
    """The plan's only step, which is native."""
    steps = m._own.plans.kept[0].steps
    assert [type(step[0]) for step in steps] == [_programs.NativeProgram], [step[-1] for step in steps]
    return steps[0][0]


def check(m, x, expected, isas=True):
    """The outputs are right and the same on every instruction set and for each sample alone."""
    y = m(x=x)["y"]
    program(m)
    assert y.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(y - expected).max() <= TOLERANCE * scale
    before = _kernels.get_isa()
    for name in _kernels.isas():
        _kernels.set_isa(name)
        try:
            assert np.array_equal(m(x=x)["y"], y), name
        finally:
            _kernels.set_isa(before)
    if len(x) > 1 and len(y) == len(x):
        alone = np.concatenate([m(x=x[i : i + 1])["y"] for i in range(len(x))])
        assert np.array_equal(alone, y)


def check_conv(x, channels, kernel, *, bias=True, op="Conv", **attributes):
    """channels: of the output."""
    group = attributes.get("group", 1)
    shape = (channels, x.shape[1] // group) if op == "Conv" else (x.shape[1], channels // group)
    w = random(1, *shape, *kernel) / np.float32(np.sqrt(shape[1] * np.prod(kernel)))
    constants = {"w": w} | ({"b": random(2, channels)} if bias else {})
    node = helper.make_node(op, ["x", *constants], ["y"], **attributes)
    function = conv if op == "Conv" else conv_transpose
    check(model([node], constants, x.ndim), x, function(x, *constants.values(), **attributes))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("inputs, outputs", list(itertools.product([1, 3, 16, 20], [1, 5, 16, 70])))
def test_channels(samples, inputs, outputs):
    check_conv(random(0, samples, inputs, 23), outputs, (3,), pads=(1, 1))
    check_conv(random(0, samples, inputs, 7, 11), outputs, (3, 5), pads=(1, 2, 1, 2))


LINES = [
    {},
    {"strides": (2,)},
    {"strides": (3,), "pads": (2, 1)},
    {"dilations": (2,)},
    {"dilations": (3,), "strides": (2,)},
    {"pads": (4, 0)},
    {"pads": (0, 5)},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER", "strides": (2,)},
    {"auto_pad": "SAME_UPPER", "strides": (3,), "dilations": (2,)},
    {"auto_pad": "VALID", "strides": (2,)},
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("samples, channels, kernel", [(1, 3, 4), (3, 16, 3), (2, 20, 1), (3, 1, 5), (1, 1, 9)])
@pytest.mark.parametrize("attributes", LINES, ids=str)
def test_one_axis(samples, channels, kernel, attributes, bias):
    check_conv(random(0, samples, channels, 29), 6, (kernel,), bias=bias, **attributes)


@pytest.mark.parametrize("samples", [1, 2, 5, 17])
@pytest.mark.parametrize(
    "inputs, outputs, group",
    [(1, 3, 1), (5, 70, 1), (6, 9, 3), (20, 20, 20), (3, 40, 1), (4, 96, 2), (2, 23, 1), (2, 64, 1)],
)
@pytest.mark.parametrize(
    "size, kernel, attributes",
    [
        (1, 3, {"pads": (1, 1)}),
        (4, 3, {"pads": (1, 1)}),
        (5, 3, {"pads": (1, 1), "strides": (2,)}),
        (16, 5, {"pads": (2, 2)}),
        (9, 4, {"pads": (0, 3), "strides": (3,)}),
        (7, 3, {"pads": (4, 5), "dilations": (2,)}),
        (2, 3, {"pads": (9, 2)}),
    ],
    ids=str,
)
def test_short_lines(samples, inputs, outputs, group, size, kernel, attributes):
    """Their padding is left out; the outputs that see nothing else are the bias."""
    check_conv(random(0, samples, inputs, size), outputs, (kernel,), group=group, **attributes)


@pytest.mark.parametrize(
    "taps, first, even, outputs",
    [(64, 1, 33, 66), (64, 0, 32, 64), (33, 0, 17, 33), (33, 1, 5, 40), (40, 1, 7, 7), (37, 0, 1, 20)],
)
def test_mirrored(taps, first, even, outputs):
    """Kernels that are their own mirror images, with the same sign or the opposite one, are folded."""
    w = random(1, outputs, 1, taps)
    mirror = w[..., first:][..., ::-1].copy()
    w[:even, :, first:] += mirror[:even]
    w[even:, :, first:] -= mirror[even:]
    for samples, attributes in itertools.product((1, 3), ({"strides": (16,)}, {"pads": (20, 7), "strides": (9,)})):
        x = random(0, samples, 1, 200)
        m = model(
            [helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)], {"w": w / 8, "b": random(2, outputs)}, 3
        )
        check(m, x, conv(x, w / np.float32(8), random(2, outputs), **attributes))
        names = [note.command for note in program(m).notes]
        assert names.count("product") == 1 + (even < outputs) and "add" in names


@pytest.mark.parametrize("outputs", [5, 20, 40, 60, 70])
@pytest.mark.parametrize("samples, width", [(1, 1), (3, 2)])
def test_narrow_planes(samples, width, outputs):
    """With fewer positions than lines; panels of each number of blocks."""
    for op in ("Conv", "ConvTranspose"):
        check_conv(random(0, samples, 3, 9, width), outputs, (3, 1), op=op, pads=(1, 0, 1, 0))


def test_mirrored_planes():
    """Kernels of one line over several."""
    w = random(1, 6, 1, 1, 40)
    w += w[..., ::-1].copy()
    for attributes in ({}, {"strides": (2, 3)}, {"pads": (1, 2, 0, 3)}):
        x = random(0, 2, 1, 5, 60)
        check(
            model([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], {"w": w / 8}, 4),
            x,
            conv(x, w / np.float32(8), **attributes),
        )


def test_mirrored_values_out_of_range():
    """A NaN or an infinity in x reaches the outputs that it would without folding, those with a weight of 0 too."""
    angle = 2 * np.pi * np.outer(np.arange(33), np.arange(64)) / 64
    w = np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)[:, None]
    w[:, :, 33:] = w[:, :, 31:0:-1] * np.repeat(np.float32([1, -1]), 33)[:, None, None]
    w[:, :, 0] = 0
    w[33:, :, 32] = 0
    m = model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": w}, 3)
    for at, value in itertools.product((0, 5, 32, 63), (np.inf, -np.inf, np.nan)):
        x = random(0, 1, 1, 64)
        x[0, 0, at] = value
        with np.errstate(all="ignore"):
            expected = conv(x, w)
        assert np.array_equal(m(x=x)["y"], expected, equal_nan=True), (at, value)
    assert {"add", "sub"} <= {note.command for note in program(m).notes}


def test_kernels_that_are_nearly_mirrored():
    w = random(1, 4, 1, 64)
    w += w[..., ::-1].copy()
    w[3, 0, 63] += np.float32(1e-6)
    m = model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": w / 8}, 3)
    x = random(0, 2, 1, 100)
    check(m, x, conv(x, w / np.float32(8)))
    assert "add" not in {note.command for note in program(m).notes}


PLANES = [
    {},
    {"strides": (2, 1)},
    {"strides": (1, 2)},
    {"strides": (3, 2), "pads": (1, 0, 2, 1)},
    {"dilations": (2, 1)},
    {"dilations": (1, 2)},
    {"dilations": (2, 3), "strides": (1, 2), "pads": (0, 3, 2, 0)},
    {"pads": (2, 0, 0, 0)},
    {"pads": (0, 0, 0, 3)},
    {"auto_pad": "SAME_UPPER", "strides": (2, 2)},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]


@pytest.mark.parametrize(
    "samples, channels, kernel",
    [(1, 1, (3, 3)), (3, 3, (2, 3)), (1, 16, (3, 1)), (2, 20, (1, 5)), (3, 2, (1, 1)), (3, 1, (1, 5)), (2, 1, (4, 1))],
)
@pytest.mark.parametrize("attributes", PLANES, ids=str)
def test_two_axes(samples, channels, kernel, attributes):
    check_conv(random(0, samples, channels, 13, 17), 7, kernel, **attributes)


GROUPED = [(6, 4, 2), (6, 9, 3), (16, 16, 16), (20, 20, 20), (5, 10, 5), (8, 24, 8), (37, 37, 37), (18, 54, 18)]


@pytest.mark.parametrize("inputs, outputs, group", GROUPED)
@pytest.mark.parametrize("samples, bias", [(1, True), (3, False)])
def test_groups(samples, bias, inputs, outputs, group):
    for attributes in ({}, {"strides": (2,), "dilations": (3,), "pads": (2, 3)}):
        check_conv(random(0, samples, inputs, 31), outputs, (4,), bias=bias, group=group, **attributes)
    for attributes in ({}, {"strides": (2, 1), "dilations": (1, 2), "pads": (1, 2, 1, 2)}):
        check_conv(random(0, samples, inputs, 9, 14), outputs, (3, 3), bias=bias, group=group, **attributes)


TRANSPOSED = [
    (k, s, pads, extra)
    for k, s in itertools.product((1, 2, 3, 5), (1, 2, 3))
    for pads, extra in ((0, 0), (1, 0), (1, 1))
    if extra < s and (pads == 0 or k > 1)
]


@pytest.mark.parametrize("kernel, stride, pads, extra", TRANSPOSED)
@pytest.mark.parametrize("samples, channels, outputs, group", [(1, 3, 5, 1), (3, 16, 2, 1), (2, 6, 4, 2)])
def test_transposed_line(samples, channels, outputs, group, kernel, stride, pads, extra):
    check_conv(
        random(0, samples, channels, 9),
        outputs,
        (kernel,),
        op="ConvTranspose",
        strides=(stride,),
        pads=(pads, min(pads, 1)),
        output_padding=(extra,),
        group=group,
        bias=samples > 1,
    )


@pytest.mark.parametrize(
    "samples, channels, outputs, group", [(1, 1, 16, 1), (3, 16, 1, 1), (2, 6, 4, 2), (2, 8, 8, 8)]
)
@pytest.mark.parametrize(
    "kernel, strides, pads, extra",
    [
        ((3, 3), (1, 1), (1, 1, 1, 1), (0, 0)),
        ((1, 5), (1, 2), (0, 2, 0, 2), (0, 1)),
        ((3, 2), (2, 3), (0, 0, 0, 0), (1, 2)),
        ((2, 4), (3, 2), (0, 1, 0, 0), (0, 0)),
        ((5, 1), (2, 1), (1, 0, 2, 0), (0, 0)),
    ],
)
def test_transposed_plane(samples, channels, outputs, group, kernel, strides, pads, extra):
    check_conv(
        random(0, samples, channels, 5, 8),
        outputs,
        kernel,
        op="ConvTranspose",
        strides=strides,
        pads=pads,
        output_padding=extra,
        group=group,
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_transposed_automatic_padding(auto_pad):
    check_conv(random(0, 2, 4, 7), 3, (4,), op="ConvTranspose", strides=(2,), auto_pad=auto_pad)
    check_conv(random(0, 2, 4, 5, 7), 3, (3, 5), op="ConvTranspose", strides=(2, 3), auto_pad=auto_pad)


def test_transposed_dilation():
    check_conv(random(0, 2, 4, 17), 3, (3,), op="ConvTranspose", dilations=(2,), pads=(2, 2))
    check_conv(random(0, 2, 6, 5, 17), 4, (3, 3), op="ConvTranspose", dilations=(3, 2), pads=(1, 2, 0, 1), group=2)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("group", [1, 5])
def test_views(samples, group):
    """Of an input that is transposed, sliced and reshaped before."""
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
    """By constants, behind the convolution."""
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
    """Of each command, in nanoseconds; the program works as before."""
    w = random(1, 16, 3, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1]), helper.make_node("Tanh", ["a"], ["y"])]
    m, x = model(nodes, {"w": w}, 3), random(0, 1, 3, 2000)
    y = m(x=x)["y"]
    whole = program(m)
    times = whole.times(x, rounds=5)
    assert len(times) == len(whole.notes) and all(t >= 0 for t in times) and sum(times) > 1000
    assert np.array_equal(m(x=x)["y"], y)


@pytest.mark.parametrize(
    "size, kernel, attributes",
    [((7, 31), (3, 3), {"pads": (1, 1, 1, 1)}), ((31,), (4,), {"pads": (2, 1)}), ((9,), (4,), {"pads": (2, 1)})],
)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("samples", [2, 5])
def test_threads(forced, size, kernel, attributes, group, samples):
    """The same bits on several."""
    x = random(0, samples, 20, *size)
    constants = {"w": random(1, 70, 20 // group, *kernel), "b": random(2, 70)}
    model = model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], group=group, **attributes)],
        [("x", TensorProto.FLOAT, [None] * x.ndim)],
        [("y", TensorProto.FLOAT, None)],
        constants,
    )
    one, several = (rnnfast.load(model.SerializeToString(), threads=n) for n in (1, 4))
    assert np.array_equal(one(x=x)["y"], several(x=x)["y"])


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.float16])
@pytest.mark.parametrize(
    "shape, perm",
    [((3, 37, 50), (0, 2, 1)), ((16, 64), (1, 0)), ((5, 4, 33, 19), (3, 1, 0, 2)), ((2, 3, 70), (2, 0, 1))],
)
def test_transposition(shape, perm, dtype):
    """Copied in squares, as what a convolution gives is where its channels are wanted first."""
    x = (random(0, *shape) * 100).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=perm),
        helper.make_node("Concat", ["t", "t"], ["y"], axis=0),
    ]
    m = load(model_of(nodes, [("x", kind, [None] * len(shape))], [("y", kind, None)]))
    assert np.array_equal(m(x=x)["y"], np.concatenate([x.transpose(perm)] * 2))
    program(m)


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
    """Of a convolution that a function takes besides."""
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
    """What takes an input twice is one use of it: the square is not written over the convolution."""
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
