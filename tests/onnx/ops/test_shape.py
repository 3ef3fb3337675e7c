"""Operators that move values against onnxruntime, NumPy and Python."""

import numpy as np
import pytest

from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError
from tests.onnx.ops.shapes import MAX, MIN, NAN, check, compare, floats, ints, onnxruntime, random, run


# ------------------------------------------------------------------------------------------------ against onnxruntime
def test_slice(rng):
    x = random(rng, 5, 4, 3)
    ends = [MIN, MIN + 1, -(2**31), -7, -5, -4, -2, -1, 0, 1, 3, 4, 5, 9, 2**31 - 1, MAX - 1, MAX]
    for _ in range(70):
        axes = rng.choice(3, rng.integers(1, 4), replace=False)
        starts, stops = (rng.choice(ends, len(axes)) for _ in "ab")
        steps = rng.choice([MIN, -3, -2, -1, 1, 2, 3, MAX], len(axes))
        # An end of the largest integer means the beginning to onnxruntime where the step is negative.
        stops[(steps < 0) & ((stops == MAX) | (stops == 2**31 - 1))] -= 1
        compare("Slice", x, starts, stops, axes - 3 * rng.integers(0, 2), steps, opset=13)
        compare("Slice", x, starts, stops, axes, opset=10)
        compare("Slice", x, opset=9, starts=starts.tolist(), ends=stops.tolist(), axes=axes.tolist())
    compare("Slice", x[:0], ints(-1), ints(MIN), ints(0), ints(-1))
    assert run("Slice", x, ints(-1), ints(MAX), ints(0), ints(-1)).shape == (0, 4, 3)


@pytest.mark.parametrize("mode", ["constant", "edge", "wrap", "reflect"])
def test_pad(rng, mode):
    x = random(rng, 4, 1, 5)
    for _ in range(80):
        axes = rng.choice([0, 2], rng.integers(1, 3), replace=False)
        crop = rng.integers(-1, 1, 2 * len(axes))
        pads = np.where(rng.integers(0, 2, len(crop)), crop, rng.integers(0, 2 if mode == "reflect" else 7, len(crop)))
        constant = floats(7)[0:1].reshape(()) if mode == "constant" else None
        compare("Pad", x, pads, constant, axes - 3, mode=mode)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", ["edge", "wrap", "reflect"])
def test_pad_longer_than_the_axis(mode, n):
    x = np.arange(n)
    for before, after in ((0, 25), (25, 0), (11, 12), (n, n), (n - 1, n + 1)):
        check(run("Pad", x, ints(before, after), mode=mode), [np.pad(x, (before, after), mode)])


def test_pad_attribute_form(rng):
    compare("Pad", random(rng, 3, 4), opset=7, pads=[1, -1, 0, 2], value=2.5)
    compare("Pad", random(rng, 3, 4), opset=10, pads=[1, 2, 0, 3], mode="reflect")


def test_gather_and_scatter(rng):
    for _ in range(30):
        x = random(rng, *rng.integers(1, 5, 3))
        axis = int(rng.integers(-3, 3))
        n = x.shape[axis]
        compare("Gather", x, rng.integers(-n, n, rng.integers(0, 4, rng.integers(0, 3))), axis=axis)
        within = [int(rng.integers(0, m + 1)) for m in x.shape]
        within[axis] = int(rng.integers(0, 6))
        indices = rng.integers(-n, n, within).astype(rng.choice([np.int32, np.int64]))
        compare("GatherElements", x, indices, axis=axis)
        for reduction in ("none", "add", "mul", "max", "min"):
            compare("ScatterElements", x, indices, random(rng, *within), axis=axis, reduction=reduction, opset=18)
        compare("ScatterElements", x, indices, random(rng, *within), axis=axis, opset=11)


def test_gather_nd_and_scatter_nd(rng):
    for _ in range(30):
        x = random(rng, 3, 2, 4, 3)
        depth = int(rng.integers(1, 5))
        batch_dims = int(rng.integers(0, 5 - depth))
        tuples = x.shape[:batch_dims] + tuple(rng.integers(0, 4, rng.integers(1, 3)))
        bounds = np.array(x.shape[batch_dims : batch_dims + depth])
        compare("GatherND", x, rng.integers(-bounds, bounds, (*tuples, depth)), batch_dims=batch_dims)
        bounds = np.array(x.shape[:depth])
        indices = rng.integers(-bounds, bounds, (*tuples[-1:], depth))
        updates = random(rng, *indices.shape[:-1], *x.shape[depth:])
        for reduction in ("none", "add", "mul", "max", "min"):
            compare("ScatterND", x, indices, updates, reduction=reduction, opset=18)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_top_k(rng, dtype):
    for largest in (0, 1):
        for axis in (0, 1, -1):
            x = random(rng, 6, 11, 7, dtype=dtype)
            for k in (0, 1, 3, 6):
                compare("TopK", x, ints(k), n_outputs=2, axis=axis, largest=largest)
                if largest:
                    check(run("TopK", x, k=k, axis=axis, opset=7), run("TopK", x, ints(k), axis=axis))


def test_one_hot(rng):
    for axis in (-3, -1, 0, 1, 2):
        compare("OneHot", rng.integers(-7, 8, (3, 4)), np.array(5), floats(-1, 3), axis=axis)
        compare("OneHot", rng.integers(-7, 8, (3, 4)), ints(5), np.array([2, 9]), axis=axis)


def test_blocks(rng):
    for dimensions in ((2, 12, 3, 5), (1, 8, 1, 2), (0, 4, 2, 2)):
        x = random(rng, *dimensions)
        for mode in ("DCR", "CRD"):
            compare("DepthToSpace", x, blocksize=2, mode=mode, opset=13)
            y = run("DepthToSpace", x, blocksize=2, mode=mode)
            check(run("SpaceToDepth", y, blocksize=2, mode=mode), [x])
        compare("SpaceToDepth", run("DepthToSpace", x, blocksize=2), blocksize=2, opset=13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.int64])
def test_range_count(rng, dtype):
    scale = 10 if np.dtype(dtype).kind == "f" else 1
    for _ in range(60):
        start, limit, delta = (np.array(v / scale, dtype) for v in rng.integers(-40, 40, 3))
        if delta != 0:
            y, expected = run("Range", start, limit, delta), onnxruntime("Range", start, limit, delta)[0]
            assert y.dtype == dtype and y.shape == expected.shape
            # onnxruntime adds delta again and again, 81 times at most; each sum rounds.
            np.testing.assert_allclose(y, expected, rtol=0, atol=81 * 8 * np.finfo(dtype).eps if scale > 1 else 0)
    if scale == 1:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        step = high // 3
        y = run("Range", *(np.array(v, dtype) for v in (low, high, step)))
        check(y, [np.array(range(low, high, step), dtype)])


def test_reverse_sequence(rng):
    for time_axis in (0, 1):
        x = random(rng, 4, 4, 3)
        for lengths in (ints(0, 1, 3, 4), ints(4, 2, 4, 0)):
            compare("ReverseSequence", x, lengths, time_axis=time_axis, batch_axis=1 - time_axis)


def test_trilu_and_eye_like(rng):
    x = random(rng, 2, 3, 5)
    for k in (MIN, -4, -3, -1, 0, 2, 5, 6, MAX):
        for upper in (0, 1):
            expected = (np.triu if upper else np.tril)(x, min(max(k, -9), 9))
            check(run("Trilu", x, np.array(k), upper=upper), [expected])
        check(run("EyeLike", x[0], k=k), [np.eye(3, 5, min(max(k, -9), 9), np.float32)])


def test_shape_slices(rng):
    x = random(rng, 2, 3, 4)
    for start in (MIN, -4, -2, 0, 1, 3, 5):
        for end in (MIN, -3, -1, 0, 2, 4, MAX):
            compare("Shape", x, start=start, end=end)


# ------------------------------------------------------------------------------------------------ against NumPy, Python
def test_reshape_without_elements():
    def result(dimensions, *wanted, **attributes):
        return run("Reshape", np.zeros(dimensions, np.float32), ints(*wanted), **attributes).shape

    assert result((0, 2, 5), 0, 0, -1) == (0, 2, 5)
    assert result((0, 2, 1, 5), 0, 0, -1) == (0, 2, 5)
    assert result((0, 6), -1, 3) == (0, 3)
    assert result((0, 6), 6, 0, allowzero=1) == (6, 0)
    assert result((4, 6), 0, -1, 2) == (4, 3, 2)
    assert result((1, 1)) == ()


def test_flatten_at_the_ends(rng):
    x = random(rng, 2, 3, 4)
    assert [run("Flatten", x, axis=axis).shape for axis in (-3, 0, 3, -1)] == [(1, 24), (1, 24), (24, 1), (6, 4)]
    assert run("Flatten", np.array(1.0), axis=0).shape == (1, 1)


def test_squeeze_and_unsqueeze(rng):
    x = random(rng, 1, 3, 1, 4)
    assert run("Squeeze", x).shape == (3, 4)
    assert run("Squeeze", x, ints()).shape == x.shape
    assert run("Squeeze", x, ints(-2, 0)).shape == (3, 4) == run("Squeeze", x, axes=(2, 0), opset=11).shape
    assert run("Unsqueeze", x, ints(-1, 1)).shape == (1, 1, 3, 1, 4, 1)
    assert run("Unsqueeze", x, axes=(5, 0), opset=11).shape == (1, 1, 3, 1, 4, 1)


def test_split():
    x = np.arange(14.0).reshape(2, 7)
    check(run("Split", x, num_outputs=3, axis=-1, n_outputs=3), [x[:, :3], x[:, 3:6], x[:, 6:]])
    check(run("Split", x, ints(0, 7), axis=1, n_outputs=2), [x[:, :0], x])
    check(run("Split", x, n_outputs=2, opset=13), [x[:1], x[1:]])
    check(run("Split", x, split=(1, 6), axis=1, n_outputs=2, opset=11), [x[:, :1], x[:, 1:]])


def test_expand_and_tile(rng):
    x = random(rng, 3, 1, 2)
    for wanted in ((), (1,), (2,), (4, 1), (2, 3, 4, 1), (3, 0, 2)):
        check(run("Expand", x, ints(*wanted)), [x * np.ones(wanted, np.float32)])
    for repeats in ((1, 1, 1), (2, 3, 1), (0, 2, 2), (1, 1, 4)):
        check(run("Tile", x, ints(*repeats)), [np.tile(x, repeats)])
    check(run("Tile", np.array(3.0), ints()), [np.array(3.0)])


def test_dropout_does_nothing_at_inference(rng):
    x = random(rng, 2, 3)
    half = np.array(0.5, np.float32)
    for y in (
        run("Dropout", x, ratio=0.3, n_outputs=1, opset=7),
        run("Dropout", x, n_outputs=1),
        run("Dropout", x, half, np.array(False), n_outputs=1),
        run("Dropout", x, half * 0, np.array(True), n_outputs=1),
    ):
        check(y, [x])
    check(run("Dropout", x, n_outputs=2), [x, np.ones((2, 3), bool)])
    for inputs in ((x, half, np.array(True)), (x, None, np.array(True))):
        with pytest.raises(UnsupportedError, match="training_mode"):
            run("Dropout", *inputs, seed=1, n_outputs=2)


def test_scatter_reduces_in_higher_precision():
    ones = np.ones(4000, np.float16)
    indices = np.zeros(4000, np.int64)
    y = run("ScatterElements", np.zeros(1, np.float16), indices, ones, reduction="add")
    check(y, [np.array([4000], np.float16)])
    check(
        run("ScatterND", np.array([NAN, 1, 1]), ints(0, 1, 2).reshape(3, 1), np.array([1, NAN, 2]), reduction="max"),
        [np.array([NAN, NAN, 2])],
    )
    check(run("ScatterElements", ints(MAX), ints(0), ints(1), reduction="add"), [ints(MIN)])


def test_one_hot_cuts_floating_point_indices():
    y = run("OneHot", np.array([-0.5, -3.7, NAN, np.inf, 1e300, 2.9]), floats(3.5), ints(0, 1))
    assert [row.tolist().index(1) if row.any() else None for row in y] == [0, 0, None, None, None, 2]
    y = run("OneHot", np.array([1, 200], np.uint8), np.array(300), ints(0, 1))
    check(y, [np.eye(300, dtype=np.int64)[[1, 200]]])
    assert run("OneHot", ints(0, 1), np.array(0), floats(0, 1)).shape == (2, 0)


def test_top_k_takes_nan_as_the_largest():
    x = floats(1, NAN, 3, 2, NAN, 3)
    check(run("TopK", x, ints(6)), [floats(NAN, NAN, 3, 3, 2, 1), ints(1, 4, 2, 5, 3, 0)])
    check(run("TopK", x, ints(6), largest=0), [floats(1, 2, 3, 3, NAN, NAN), ints(0, 3, 2, 5, 1, 4)])
    check(run("TopK", np.array([0, 255, 3], np.uint8), ints(2), largest=0), [np.array([0, 3], np.uint8), ints(0, 2)])


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_unique(rng, axis, ordered):
    x = rng.integers(0, 2, (9, 3)).astype(np.float32)
    items = x.reshape(-1).tolist() if axis is None else [tuple(row) for row in np.moveaxis(x, axis, 0).tolist()]
    distinct = list(dict.fromkeys(items))
    distinct = sorted(distinct) if ordered else distinct
    y, first, inverse, counts = run("Unique", x, axis=axis, sorted=ordered)
    found = y.tolist() if axis is None else [tuple(row) for row in np.moveaxis(y, axis, 0).tolist()]
    assert y.dtype == x.dtype and found == distinct
    check(
        [first, inverse, counts],
        [ints(*map(items.index, distinct)), ints(*map(distinct.index, items)), ints(*map(items.count, distinct))],
    )


def test_compress_and_non_zero(rng):
    x = random(rng, 3, 4)
    check(run("Compress", x, np.array([False, True]), axis=-1), [x[:, 1:2]])
    check(run("Compress", x, np.array([True, False, True])), [x.reshape(-1)[[0, 2]]])
    check(run("NonZero", x), [np.argwhere(x).T])
    assert run("NonZero", np.array(2.0)).shape == (0, 1) and run("NonZero", np.array(0.0)).shape == (0, 0)


def test_constants():
    check(run("Constant", value=floats(1, 2)), [floats(1, 2)])
    check(run("Constant", value_float=0.1), [np.array(0.1, np.float32)])
    check(run("Constant", value_floats=(0.1, 2.0)), [floats(0.1, 2)])
    check(run("Constant", value_int=MIN), [np.array(MIN)])
    check(run("Constant", value_ints=()), [ints()])
    check(run("Constant", value_string="é"), [np.array("é", object)])
    check(run("Constant", value_strings=("a", "bc")), [np.array(["a", "bc"], object)])
    check(run("ConstantOfShape", ints()), [np.zeros((), np.float32)])
    check(run("ConstantOfShape", ints(0, 2), value=np.array([True])), [np.ones((0, 2), bool)])
    for attributes in ({}, {"value_int": 1, "value_float": 1.0}):
        with pytest.raises(ModelError, match="expected one"):
            run("Constant", **attributes)


def test_range_in_half_precision():
    half = np.float16
    y = run("Range", *(np.array(v, half) for v in (2000, 2100, 3)))
    check(y, [np.arange(2000, 2100, 3).astype(half)])


def test_sequences():
    a, b, c = floats(1), floats(2), floats(3, 4)
    items = run("SequenceConstruct", a, b, c)
    for position in range(-3, 4):
        expected = [a, b, c]
        expected.insert(position, c)
        check(run("SequenceInsert", items, c, np.array(position)), expected)
        if position < 3:
            check(run("SequenceAt", items, np.array(position)), [[a, b, c][position]])
            check(run("SequenceErase", items, np.array(position)), [x for x in items if x is not items[position]])
    check(run("SequenceInsert", items, a), [a, b, c, a])
    check(run("SequenceErase", items), [a, b])
    assert len(items) == 3 and run("SequenceLength", items) == 3 and run("SequenceEmpty") == []
    check(run("ConcatFromSequence", items, axis=-1), [floats(1, 2, 3, 4)])
    check(run("ConcatFromSequence", [a, b], axis=-1, new_axis=1), [floats(1, 2).reshape(1, 2)])
    x = np.arange(10.0).reshape(2, 5)
    check(run("SplitToSequence", x, np.array(2), axis=1), [x[:, :2], x[:, 2:4], x[:, 4:]])
    check(run("SplitToSequence", x, ints(1, 4), axis=-1, keepdims=0), [x[:, :1], x[:, 1:]])
    check(run("SplitToSequence", x, np.array(2), axis=1, keepdims=0), [x[:, :2], x[:, 2:4], x[:, 4:]])
    check(run("SplitToSequence", x, ints(1, 1), keepdims=0), [x[:1], x[1:]])
    check(run("SplitToSequence", x, keepdims=0), [x[0], x[1]])
    check(run("SplitToSequence", x, np.array(1), keepdims=0), [x[0], x[1]])  # as torch writes x.unbind(0)
    check(run("SplitToSequence", x, np.array(1), axis=-1, keepdims=0), list(x.T))
    check(run("SplitToSequence", x[:0]), [])


def test_optional_values():
    x = floats(1)
    assert run("OptionalHasElement", x) and run("OptionalHasElement", []) and not run("OptionalHasElement", None)
    check(run("OptionalGetElement", run("Optional", x)), [x])
    with pytest.raises(InputError, match="empty"):
        run("OptionalGetElement", None)


def test_strings():
    x = np.array([["a", "b"], ["cd", ""]], object)

    def values(op, *inputs, **attributes):
        y = run(op, *inputs, **attributes)
        assert y.dtype == object
        return y.tolist()

    assert values("Reshape", x, ints(-1)) == ["a", "b", "cd", ""]
    assert values("Gather", x, np.array(-1)) == ["cd", ""]
    assert values("Gather", x.reshape(-1), np.array(2)) == "cd"
    assert values("Concat", x, x[:1], axis=0)[2] == ["a", "b"]
    assert values("Pad", x, ints(0, 0, 0, 1)) == [["a", "b", ""], ["cd", "", ""]]
    assert values("Pad", x, ints(0, 1, 0, 0), np.array("z", object)) == [["z", "a", "b"], ["z", "cd", ""]]
    assert values("Expand", x[:1, :1], ints(1, 2)) == [["a", "a"]]
    assert values("Tile", x, ints(1, 2))[0] == ["a", "b", "a", "b"]
    assert values("OneHot", ints(1), np.array(2), np.array(["no", "yes"], object)) == [["no", "yes"]]
    assert values("ScatterElements", x, ints(1).reshape(1, 1), np.array([["q"]], object)) == [["a", "b"], ["q", ""]]
    assert values("Trilu", x) == [["a", "b"], ["", ""]]
    assert run("Unique", np.array(["b", "a", "b"], object))[0].tolist() == ["a", "b"]
    with pytest.raises(InputTypeError):
        run("ScatterElements", x, ints(1).reshape(1, 1), np.array([["q"]], object), reduction="add")
