"""Conv and ConvTranspose against onnxruntime."""

import random

import numpy as np

import rnnfast
from rnnfast.onnx.folding import LoadBudget
from rnnfast.onnx.graph import Node
from rnnfast.onnx.ops import lookup
from tests.onnx.ops.helpers import assert_close, assert_like_onnxruntime, floats, run
from tests.onnx.ops.windows import window_cases


def test_conv():
    rng = np.random.default_rng(1)
    for choose, size, kernel, attributes in window_cases(40, seed=1):
        group, inputs, outputs = choose.randint(1, 3), choose.randint(1, 4), choose.randint(1, 3)
        x = floats(rng, choose.randint(1, 3), group * inputs, *size)
        w = floats(rng, group * outputs, inputs, *kernel)
        bias = floats(rng, group * outputs) if choose.random() < 0.5 else None
        assert_like_onnxruntime("Conv", [x, w, bias], group=group, kernel_shape=kernel, **attributes)


def test_conv_in_blocks(monkeypatch):
    from rnnfast.onnx.ops import convolution

    rng = np.random.default_rng(2)
    x, w = floats(rng, 3, 4, 9, 7), floats(rng, 6, 2, 3, 2)
    whole = run("Conv", [x, w], group=2, pads=(1, 0, 2, 1))
    for budget in (1, 2000, 9000):
        monkeypatch.setattr(convolution, "COLUMN_BYTES", budget)
        assert_close(run("Conv", [x, w], group=2, pads=(1, 0, 2, 1)), whole)


def test_conv_of_no_channels_is_its_bias():
    from rnnfast.onnx import lowering

    x, w, bias = np.zeros((2, 0, 5), np.float32), np.zeros((3, 0, 2), np.float32), np.float32([1, -2, 3])
    node = Node("", "", "", "Conv", ("x", "w", "b"), ("y",), lookup("", "Conv", 20), {})
    expected = np.broadcast_to(bias[:, None], (2, 3, 4))
    np.testing.assert_array_equal(
        lowering.lower(node, [None, w, bias], LoadBudget(rnnfast.Limits()))(x, w, bias), expected
    )
    np.testing.assert_array_equal(run("Conv", [x, w, bias]), expected)


def test_conv_transpose():
    rng = np.random.default_rng(3)
    choose = random.Random(3)
    for _ in range(40):
        rank, group = choose.choice([1, 2, 2, 3]), choose.randint(1, 3)
        size = [choose.randint(1, 5) for _ in range(rank)]
        kernel = [choose.randint(1, 4) for _ in range(rank)]
        mode = choose.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
        strides = [choose.randint(1, k if mode.startswith("SAME") else 3) if k > 1 else 1 for k in kernel]
        dilations = [choose.randint(1, 2) for _ in range(rank)]
        full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, strides, kernel, dilations)]
        attributes = dict(strides=strides, dilations=dilations, auto_pad=mode, group=group)
        if choose.random() < 0.3:
            attributes["output_padding"] = [choose.randint(0, s - 1) for s in strides]
        if choose.random() < 0.3:
            attributes["output_shape"] = [choose.randint(max(1, n - 2), n) for n in full]
        elif mode == "NOTSET":
            attributes["pads"] = [choose.randint(0, (n - 1) // 2) for n in full * 2]
        x = floats(rng, choose.randint(1, 2), group * 2, *size)
        w = floats(rng, group * 2, choose.randint(1, 3), *kernel)
        bias = floats(rng, w.shape[1] * group) if choose.random() < 0.5 else None
        assert_like_onnxruntime("ConvTranspose", [x, w, bias], **attributes)
