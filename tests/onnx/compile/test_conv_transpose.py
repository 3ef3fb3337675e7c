"""Native transposed convolutions: strides, padding, dilation and groups."""

import itertools

import pytest

from tests.graphs import random
from tests.onnx.compile.convolutions import check_conv

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
