"""Pooling against onnxruntime and against each window's elements; its memory and its limits."""

import contextlib
import tracemalloc

import numpy as np
import pytest

from rnnfast.errors import InputError, LimitError
from tests.onnx.ops.helpers import assert_close, assert_like_onnxruntime, floats, onnxruntime_outputs, run
from tests.onnx.ops.windows import window_cases


@pytest.mark.parametrize(
    "op_type, extra",
    [
        ("MaxPool", {}),
        ("AveragePool", dict(count_include_pad=0)),
        ("AveragePool", dict(count_include_pad=1)),
        ("LpPool", dict(p=3)),
    ],
)
def test_pooling(op_type, extra):
    rng = np.random.default_rng(4)
    for choose, size, kernel, attributes in window_cases(30, seed=4):
        if attributes["auto_pad"] != "VALID":
            attributes["ceil_mode"] = choose.randint(0, 1)
        x = floats(rng, 2, 3, *size)
        try:
            run(op_type, [x], kernel_shape=kernel, **attributes, **extra)
        except InputError as error:
            assert "without any input" in str(error)
            continue
        assert_like_onnxruntime(op_type, [x], kernel_shape=kernel, **attributes, **extra)


@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_indices(storage_order):
    """The inputs are whole numbers with many ties, of which the first counts."""
    rng = np.random.default_rng(5)
    for _, size, kernel, attributes in window_cases(20, seed=5):
        x = np.round(floats(rng, 2, 3, *size))
        try:
            y, indices = run(
                "MaxPool", [x], kernel_shape=kernel, storage_order=storage_order, n_outputs=2, **attributes
            )
        except InputError as error:
            assert "without any input" in str(error)
            continue
        expected = onnxruntime_outputs(
            "MaxPool", [x], n_outputs=2, kernel_shape=kernel, storage_order=storage_order, **attributes
        )
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize(
    "kernel, dilation, stride, pads",
    [
        (2, 1, 1, (1, 0)),
        (9, 1, 1, (8, 8)),
        (12, 2, 3, (7, 15)),
        (30, 3, 2, (29, 58)),
        (8, 3, 4, (15, 6)),
        (7, 1, 3, (6, 2)),
    ],
)
def test_pooling_of_windows_shorter_and_longer_than_the_input(kernel, dilation, stride, pads):
    """Results are compared with each window's own elements, as onnxruntime refuses some of these."""
    x = np.round(floats(np.random.default_rng(22), 1, 1, 8))
    windows = [
        [i for i in range(o, o + kernel * dilation, dilation) if 0 <= i < 8]
        for o in range(-pads[0], 8 + pads[1] - (kernel - 1) * dilation, stride)
    ]
    attributes = dict(kernel_shape=(kernel,), dilations=(dilation,), strides=(stride,), pads=pads)
    if not all(windows):
        with pytest.raises(InputError, match="without any input"):
            run("MaxPool", [x], **attributes)
        return
    y, indices = run("MaxPool", [x], n_outputs=2, **attributes)
    assert indices[0, 0].tolist() == [max(window, key=lambda i: x[0, 0, i]) for window in windows]
    np.testing.assert_array_equal(y[0, 0], x[0, 0, indices[0, 0]])
    average = run("AveragePool", [x], **attributes)[0, 0]
    assert_close(average, np.array([x[0, 0, window].mean() for window in windows], np.float32))


@pytest.mark.parametrize(
    "error, attributes",
    [
        (None, dict(kernel_shape=(2**24,), auto_pad="SAME_UPPER")),
        (None, dict(kernel_shape=(2**16 + 1,), pads=(2**16, 2**16))),
        (None, dict(kernel_shape=(2,), dilations=(2**28,), pads=(2**28, 0))),
        (InputError, dict(kernel_shape=(3,), pads=(2**24, 2**24))),
        (InputError, dict(kernel_shape=(3,), pads=(2**62, 2**62))),
        (LimitError, dict(kernel_shape=(2**63 - 1,), pads=(2**62, 2**62))),
        (LimitError, dict(kernel_shape=(2**31,), pads=(2**31 - 1, 2**31 - 1))),
    ],
)
def test_huge_pooling_windows_take_the_inputs_memory(error, attributes):
    x = np.arange(8, dtype=np.float32)[None, None]
    tracemalloc.start()
    try:
        for op_type, outputs in (("MaxPool", dict(n_outputs=2)), ("AveragePool", {}), ("LpPool", {})):
            with pytest.raises(error) if error else contextlib.nullcontext():
                run(op_type, [x], **attributes, **outputs)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_pooling_of_too_much_work_is_refused():
    with pytest.raises(LimitError, match="operations"):
        run("MaxPool", [np.zeros((1, 1, 2**18), np.float32)], kernel_shape=(2**18,), auto_pad="SAME_UPPER")


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling_under_valid_ignores_ceil_mode(op_type):
    """The specification's formula of the output's shape ignores it too; onnxruntime gives another window."""
    x = floats(np.random.default_rng(23), 1, 1, 7)
    for auto_pad, ceil_mode, count in (("VALID", 0, 3), ("VALID", 1, 3), ("NOTSET", 0, 3), ("NOTSET", 1, 4)):
        y = run(op_type, [x], kernel_shape=(2,), strides=(2,), auto_pad=auto_pad, ceil_mode=ceil_mode)
        assert (y[0] if isinstance(y, tuple) else y).shape == (1, 1, count)


def test_global_pooling():
    x = floats(np.random.default_rng(18), 2, 3, 4, 5)
    flat = np.abs(x.astype(np.float64)).reshape(2, 3, 1, -1)
    assert_close(run("GlobalLpPool", [x], p=3), ((flat**3).sum(-1, keepdims=True) ** (1 / 3)).astype(np.float32))
    assert_close(run("GlobalAveragePool", [np.abs(x)]), flat.mean(-1, keepdims=True).astype(np.float32))
    np.testing.assert_array_equal(run("GlobalMaxPool", [x]), x.max((2, 3), keepdims=True))


def test_max_pool_of_infinities_and_nan():
    x = np.array([[[-np.inf, -np.inf, 1, np.nan, 2]]], np.float32)
    y, indices = run("MaxPool", [x], kernel_shape=(2,), pads=(1, 0), n_outputs=2)
    np.testing.assert_array_equal(y, [[[-np.inf, -np.inf, 1, np.nan, np.nan]]])
    np.testing.assert_array_equal(indices, [[[0, 0, 2, 3, 3]]])
