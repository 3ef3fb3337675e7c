"""Native convolutions of one and two axes: channels, groups, strides, mirrored kernels and threads."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast.onnx.ops.convolution import conv
from tests.graphs import load, model_of, random
from tests.onnx.compile.convolutions import check, check_conv, model, program


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
    """Planes have fewer positions than lines; panels have every number of blocks."""
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
