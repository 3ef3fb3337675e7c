"""Reductions, softmax and cumulative sums; the bits of a row depend neither on its batch nor on the layout."""

import itertools
import math

import numpy as np
import pytest

from tests.onnx.ops.helpers import assert_close, floats, run

REDUCTIONS = {
    "ReduceL1": lambda x, axis: np.abs(x).sum(axis),
    "ReduceL2": lambda x, axis: np.sqrt((x * x).sum(axis)),
    "ReduceLogSum": lambda x, axis: np.log(x.sum(axis)),
    "ReduceLogSumExp": lambda x, axis: np.log(np.exp(x).sum(axis)),
    "ReduceMax": lambda x, axis: x.max(axis),
    "ReduceMean": lambda x, axis: x.mean(axis),
    "ReduceMin": lambda x, axis: x.min(axis),
    "ReduceProd": lambda x, axis: x.prod(axis),
    "ReduceSum": lambda x, axis: x.sum(axis),
    "ReduceSumSquare": lambda x, axis: (x * x).sum(axis),
}


@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_reductions(op_type):
    rng = np.random.default_rng(7)
    x = np.abs(floats(rng, 3, 4, 5))
    exact = x.astype(np.float64)
    for axes, keepdims in itertools.product([(0,), (-1,), (1, -3), (2, 0, 1), None], [0, 1]):
        expected = REDUCTIONS[op_type](exact, axes)
        if keepdims:
            reduced = {a % 3 for a in axes or range(3)}
            expected = np.reshape(expected, [1 if a in reduced else n for a, n in enumerate(x.shape)])
        expected = np.asarray(expected, np.float32)
        attributes = {} if axes is None else dict(axes=axes)
        assert_close(run(op_type, [x], opset=11, keepdims=keepdims, **attributes), expected)
        inputs = [x] if axes is None else [x, np.array(axes)]
        assert_close(run(op_type, inputs, opset=18, keepdims=keepdims), expected)
        assert run(op_type, [exact, *inputs[1:]], opset=18, keepdims=keepdims).dtype == np.float64
    for nothing in (None, np.array([], np.int64)):
        kept = run(op_type, [x, nothing], opset=18, noop_with_empty_axes=1)
        assert_close(kept, np.asarray(REDUCTIONS[op_type](exact[..., None], -1), np.float32))
        assert run(op_type, [x, nothing], opset=18).shape == (1, 1, 1)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_integer_reductions(dtype):
    x = np.array([[7, 2, 9], [1, 2, 8]]).astype(dtype)
    for op_type, expected in dict(
        ReduceSum=[18, 11],
        ReduceMean=[6, 3],
        ReduceMax=[9, 8],
        ReduceMin=[2, 1],
        ReduceProd=[126, 16],
        ReduceL1=[18, 11],
        ReduceL2=[11, 8],
    ).items():
        y = run(op_type, [x, np.array([1])], opset=18, keepdims=0)
        assert y.dtype == dtype and y.tolist() == expected
    if dtype != np.uint32:
        assert run("ReduceMean", [-x, np.array([1])], opset=18, keepdims=0).tolist() == [-6, -3]
        assert run("ReduceSum", [np.array([np.iinfo(dtype).max, 1], dtype)], keepdims=0) == np.iinfo(dtype).min


def test_reductions_of_nothing():
    x = np.zeros((2, 0), np.float32)
    for op_type, expected in dict(
        ReduceSum=0, ReduceProd=1, ReduceMax=-math.inf, ReduceMin=math.inf, ReduceLogSumExp=-math.inf
    ).items():
        assert run(op_type, [x, np.array([1])], keepdims=0).tolist() == [expected] * 2
    assert run("ReduceMax", [x.astype(np.int32), np.array([1])], keepdims=0).tolist() == [-(2**31)] * 2


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp"])
def test_a_rows_bits_do_not_depend_on_the_batch(op_type):
    """This holds whether the batch is the first or a middle axis, and however narrow the rest is."""
    rng = np.random.default_rng(8)
    for shape, axis in [((5, 300, 1), 1), ((300, 5, 1), 0), ((300, 5, 3), 0), ((5, 3, 300), 2)]:
        batch = shape.index(5)
        x = floats(rng, *shape)
        whole = run(op_type, [x, np.array([axis])])
        for row in range(5):
            alone = run(op_type, [x.take([row], batch), np.array([axis])])
            assert alone.tobytes() == whole.take([row], batch).tobytes()


# Inputs with a batch of 9 on axis 0, and a batch 1 row that differs in layout: every operator that adds up.
REDUCING = [
    ("LayerNormalization", [(9, 6, 37), (37,)], {}),
    ("LayerNormalization", [(9, 37, 6), (37, 6)], dict(axis=1)),
    ("RMSNormalization", [(9, 6, 37), (37,)], {}),
    ("InstanceNormalization", [(9, 6, 37), (6,), (6,)], {}),
    ("GroupNormalization", [(9, 6, 37), (6,), (6,)], dict(num_groups=2)),
    ("LpNormalization", [(9, 37, 6)], dict(axis=1, p=1)),
    ("LpNormalization", [(9, 6, 37)], dict(axis=-1)),
    ("MeanVarianceNormalization", [(9, 37, 6)], dict(axes=(1,))),
    ("LRN", [(9, 6, 37)], dict(size=3)),
    ("MeanVarianceNormalization", [(9, 6, 5, 7)], dict(axes=(2, 3))),
    ("Softmax", [(9, 37, 6)], dict(axis=1)),
    ("LogSoftmax", [(9, 6, 37)], dict(axis=-1)),
    ("GlobalAveragePool", [(9, 6, 37)], {}),
    ("GlobalLpPool", [(9, 6, 37)], {}),
    ("GlobalMaxPool", [(9, 6, 37)], {}),
    ("AveragePool", [(9, 6, 37)], dict(kernel_shape=(20,))),
    ("LpPool", [(9, 6, 37)], dict(kernel_shape=(20,))),
    ("MaxPool", [(9, 6, 37)], dict(kernel_shape=(20,))),
    ("ConvTranspose", [(9, 6, 37), (6, 4, 3)], {}),
    ("Einsum", [(9, 5, 37), (9, 5, 37)], dict(equation="btc,bsc->bts")),
    ("Einsum", [(9, 37, 6)], dict(equation="btc->bt")),
    ("Einsum", [(9, 37, 6)], dict(equation="btc->b")),
    ("Einsum", [(9, 37, 6), (6, 37)], dict(equation="btc,ct->b")),
    ("Einsum", [(9, 37), (37, 8, 6), (9, 6)], dict(equation="bi,ioj,bj->bo")),
    ("Einsum", [(9, 37, 6), (5, 6)], dict(equation="...c,dc->...d")),
    *((op, [(9, 37, 6)], dict(axes=axes)) for op in REDUCTIONS for axes in ((1,), (2,), (1, 2))),
]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("op_type, shapes, attributes", REDUCING)
def test_a_rows_bits_depend_neither_on_the_batch_nor_on_the_layout(op_type, shapes, attributes, zeros):
    """Transposed inputs, of which NumPy reshapes those of one row without a copy; `zeros` are of both signs."""
    rng = np.random.default_rng(19)
    inputs = [floats(rng, *shape) for shape in shapes]
    if zeros:
        inputs[0] = np.copysign(np.float32(0), inputs[0])
    opset = {"RMSNormalization": 23, "GroupNormalization": 21}.get(op_type, 17)
    if op_type.startswith("Reduce") and op_type != "ReduceSum":
        opset = 13
    elif op_type == "ReduceSum":
        inputs, attributes, opset = [inputs[0], np.array(attributes["axes"])], {}, 13

    def outputs(inputs):
        y = run(op_type, inputs, opset, **attributes)
        return y[0] if isinstance(y, tuple) else y

    whole = outputs(inputs)
    for order in itertools.permutations(range(inputs[0].ndim)):

        def stored(x):
            if x.ndim != len(order):
                return x
            return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))

        assert outputs([stored(x) for x in inputs]).tobytes() == whole.tobytes()
        for row in (0, 8):
            alone = outputs([stored(x[row : row + 1]) if x.shape[:1] == (9,) else x for x in inputs])
            assert alone.tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("op_type, axis", [("Softmax", 1), ("LogSoftmax", 2)])
def test_softmax_over_trailing_axes_ignores_the_layout(op_type, axis):
    x = floats(np.random.default_rng(20), 1, 6, 37)
    view = np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert run(op_type, [view], 11, axis=axis).tobytes() == run(op_type, [x], 11, axis=axis).tobytes()


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg_extremes_choose_among_ties(op_type):
    x = np.array([[3, 1, 3, 1], [2, 2, 2, 2]], np.float32)
    target = 3 if op_type == "ArgMax" else 1
    hits = [x[0] == target, x[1] == 2]
    for last in (0, 1):
        expected = [np.flatnonzero(hit)[-last] for hit in hits]
        y = run(op_type, [x], axis=-1, keepdims=0, select_last_index=last)
        assert y.dtype == np.int64 and y.tolist() == expected
        assert run(op_type, [x], axis=-1, select_last_index=last).shape == (2, 1)


def test_cumulative_sums():
    x = np.array([[1, 2, 4], [8, 16, 32]], np.int32)
    expected = {(0, 0): [1, 3, 7], (1, 0): [0, 1, 3], (0, 1): [7, 6, 4], (1, 1): [6, 4, 0]}
    for (exclusive, reverse), row in expected.items():
        y = run("CumSum", [x, np.array(-1)], exclusive=exclusive, reverse=reverse)
        assert y.dtype == np.int32 and y[0].tolist() == row


def test_softmax_before_opset_13_spans_all_trailing_axes():
    x = floats(np.random.default_rng(9), 2, 3, 4)
    for axis, rows in [(0, 1), (1, 2), (2, 6), (-1, 6), (-2, 2)]:
        matrix = x.astype(np.float64).reshape(rows, -1)
        expected = np.exp(matrix) / np.exp(matrix).sum(1, keepdims=True)
        assert_close(run("Softmax", [x], opset=11, axis=axis), expected.reshape(x.shape).astype(np.float32))
        assert_close(run("LogSoftmax", [x], opset=7, axis=axis), np.log(expected).reshape(x.shape).astype(np.float32))
        assert run("Hardmax", [x], opset=11, axis=axis).sum() == rows
    for axis in (0, 1, 2, -1):
        expected = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis, keepdims=True)
        assert_close(run("Softmax", [x], opset=13, axis=axis), expected.astype(np.float32))
    assert run("Softmax", [np.float32([[1e4, -math.inf, 1e4]])]).tolist() == [[0.5, 0, 0.5]]
    assert run("Softmax", [np.zeros((2, 0), np.float32)]).shape == (2, 0)
