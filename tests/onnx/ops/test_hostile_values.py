"""Wrong and huge arguments of operators that move values are refused quickly and by name."""

import numpy as np
import pytest

from rnnfast.errors import Error, InputError, InputTypeError, LimitError
from tests.onnx.ops.shapes import MAX, MIN, NAN, X, floats, ints, run

BIG = 2**40
HOSTILE = [
    (InputError, "Reshape", (X, ints(-1, -1)), {}),
    (InputError, "Reshape", (X, ints(MIN, 1)), {}),
    (InputError, "Reshape", (X, ints(2, 3, 0)), {}),
    (InputError, "Reshape", (X, ints(4, -1)), {}),
    (InputError, "Reshape", (X, ints(2**32, 2**32)), {}),
    (InputError, "Reshape", (X[:0], ints(0, -1)), {"allowzero": 1}),
    (InputTypeError, "Reshape", (X, floats(6)), {}),
    (LimitError, "Reshape", (X[:0], ints(0, BIG)), {"allowzero": 1}),
    (InputError, "Flatten", (X,), {"axis": 3}),
    (InputError, "Squeeze", (X, ints(0)), {}),
    (InputError, "Squeeze", (X, ints(MIN)), {}),
    (InputError, "Unsqueeze", (X, ints(0, 0)), {}),
    (InputError, "Unsqueeze", (X, ints(0, -4)), {}),
    (InputError, "Unsqueeze", (X, ints(BIG)), {}),
    (InputError, "Transpose", (X,), {"perm": (-1, 0)}),
    (InputError, "Transpose", (X,), {"perm": (0,)}),
    (InputError, "Concat", (X, X[:, :2]), {"axis": 0}),
    (InputError, "Concat", (X, X[0]), {"axis": 0}),
    (InputError, "Concat", (X, X), {"axis": BIG}),
    (InputTypeError, "Concat", (X, X.astype(np.float64)), {"axis": 0}),
    (InputError, "Split", (X, ints(1, 1)), {"axis": 1, "n_outputs": 2}),
    (InputError, "Split", (X, ints(-1, 4)), {"axis": 1, "n_outputs": 2}),
    (InputError, "Split", (X, ints(MAX, MIN + 4)), {"axis": 1, "n_outputs": 2}),
    (InputError, "Split", (X, ints(3)), {"axis": 1, "n_outputs": 2}),
    (InputError, "Split", (X,), {"axis": 1, "num_outputs": 2, "n_outputs": 3}),
    (InputError, "Split", (X,), {"axis": 0, "num_outputs": 4, "n_outputs": 4}),
    (InputError, "Expand", (X, ints(2)), {}),
    (InputError, "Expand", (X, ints(-1, 3)), {}),
    (LimitError, "Expand", (X, ints(BIG, 1, 1)), {}),
    (InputError, "Tile", (X, ints(-1, 1)), {}),
    (InputError, "Tile", (X, ints(1)), {}),
    (LimitError, "Tile", (X, ints(0, MAX)), {}),
    (InputError, "Pad", (X, ints(0, 0, 0)), {}),
    (InputError, "Pad", (X, ints(MIN, 0, 0, 0)), {}),
    (LimitError, "Pad", (X, ints(MAX, 0, MAX, 0)), {}),
    (LimitError, "Pad", (X[:0], ints(0, BIG, 0, 0)), {"mode": "wrap"}),
    (InputError, "Pad", (X[:0], ints(1, 0, 0, 0)), {"mode": "edge"}),
    (InputError, "Pad", (X, ints(-2, 0, 1, 0)), {"mode": "reflect"}),
    (InputError, "Pad", (X, ints(1, 1, 0, 0), None, ints(0, -2)), {}),
    (InputTypeError, "Pad", (X, ints(0, 0, 0, 0), ints(1)), {}),
    (InputError, "DepthToSpace", (X,), {"blocksize": 2}),
    (InputError, "DepthToSpace", (X.reshape(1, 6, 1, 1),), {"blocksize": 2}),
    (InputError, "SpaceToDepth", (X.reshape(1, 1, 2, 3),), {"blocksize": 0}),
    (InputError, "ReverseSequence", (X, ints(1, 2, 3)), {}),
    (InputError, "ReverseSequence", (X, ints(0, -1, 0)), {}),
    (InputError, "ReverseSequence", (X, ints(0, 0)), {}),
    (InputError, "Slice", (X, ints(0), ints(1), ints(0), ints(0)), {}),
    (InputError, "Slice", (X, ints(0), ints(1), ints(2)), {}),
    (InputError, "Slice", (X, ints(0, 0), ints(1, 1), ints(0, -2)), {}),
    (InputError, "Slice", (X, ints(0, 0), ints(1)), {}),
    (InputError, "Slice", (X, ints(0, 0, 0), ints(1, 1, 1)), {}),
    (InputError, "Gather", (X, ints(2)), {}),
    (InputError, "Gather", (X, ints(MIN)), {}),
    (InputTypeError, "Gather", (X, floats(0)), {}),
    (InputError, "Gather", (X, ints(0)), {"axis": 2}),
    (InputError, "GatherElements", (X, ints(0, 0, 0, 0).reshape(1, 4)), {}),
    (InputError, "GatherElements", (X, ints(-3).reshape(1, 1)), {}),
    (InputError, "GatherND", (X, ints(0, 3)), {}),
    (InputError, "GatherND", (X, ints(0, 0, 0)), {}),
    (InputError, "GatherND", (X, np.zeros((2, 0), np.int64)), {}),
    (InputError, "GatherND", (X, ints(0)), {"batch_dims": 1}),
    (InputError, "GatherND", (X, ints(0)), {"batch_dims": -1}),
    (InputError, "ScatterElements", (X, ints(5).reshape(1, 1), floats(1).reshape(1, 1)), {}),
    (InputError, "ScatterElements", (X, ints(0).reshape(1, 1), floats(1)), {}),
    (InputTypeError, "ScatterElements", (X, ints(0).reshape(1, 1), ints(1).reshape(1, 1)), {}),
    (InputError, "ScatterND", (X, ints(2).reshape(1, 1), X[:1]), {}),
    (InputError, "ScatterND", (X, ints(0).reshape(1, 1), X), {}),
    (InputError, "OneHot", (ints(0), ints(-1), X[0, :2]), {}),
    (InputError, "OneHot", (ints(0), floats(np.inf), X[0, :2]), {}),
    (InputError, "OneHot", (ints(0), floats(NAN), X[0, :2]), {}),
    (InputError, "OneHot", (ints(0), ints(1), X[0]), {}),
    (LimitError, "OneHot", (ints(0), ints(MAX), X[0, :2]), {}),
    (InputError, "TopK", (X, ints(4)), {}),
    (InputError, "TopK", (X, ints(MIN)), {}),
    (InputError, "TopK", (X, ints(1, 1)), {}),
    (InputError, "Compress", (X, np.array([False, False, True])), {"axis": 0}),
    (InputTypeError, "Compress", (X, ints(1, 0)), {"axis": 0}),
    (InputError, "ConstantOfShape", (ints(-1),), {}),
    (LimitError, "ConstantOfShape", (ints(BIG),), {}),
    (LimitError, "ConstantOfShape", (ints(0, MAX, MAX),), {}),
    (InputError, "Range", (np.array(0), np.array(5), np.array(0)), {}),
    (InputError, "Range", (np.array(0.0), np.array(NAN), np.array(1.0)), {}),
    (InputError, "Range", (np.array(0.0), np.array(1.0), np.array(-np.inf)), {}),
    (LimitError, "Range", (np.array(MIN), np.array(MAX), np.array(1)), {}),
    (LimitError, "Range", (np.array(-1e308), np.array(1e308), np.array(1e-308)), {}),
    (InputTypeError, "Range", (np.array(0.0), np.array(5), np.array(1.0)), {}),
    (InputError, "EyeLike", (X[0],), {}),
    (InputError, "Trilu", (X[0],), {}),
    (InputError, "SequenceAt", ([X], np.array(1)), {}),
    (InputError, "SequenceAt", ([X], np.array(MIN)), {}),
    (InputError, "SequenceErase", ([],), {}),
    (InputTypeError, "SequenceErase", (X,), {}),
    (InputTypeError, "SequenceAt", (X, np.array(0)), {}),
    (InputTypeError, "SequenceInsert", (X, X, np.array(0)), {}),
    (InputTypeError, "SequenceLength", (X,), {}),
    (InputTypeError, "ConcatFromSequence", (X,), {"axis": 0}),
    (InputError, "SequenceInsert", ([X], X, np.array(2)), {}),
    (InputTypeError, "SequenceInsert", ([X], ints(1)), {}),
    (InputError, "ConcatFromSequence", ([],), {"axis": 0}),
    (InputError, "ConcatFromSequence", ([X, X[:1]],), {"axis": 0, "new_axis": 1}),
    (InputError, "ConcatFromSequence", ([X],), {"axis": 3, "new_axis": 1}),
    (InputError, "SplitToSequence", (X, np.array(0)), {}),
    (LimitError, "SplitToSequence", (np.zeros((BIG, 0)),), {}),
    (LimitError, "Compress", (np.zeros((BIG, 3, 0)), np.array([True])), {"axis": 1}),
    (LimitError, "Gather", (np.zeros((BIG, 3, 0)), ints(0)), {"axis": 1}),
    (LimitError, "GatherElements", (np.zeros((BIG, 0)), np.zeros((BIG, 0), np.int64)), {}),
    (InputError, "SplitToSequence", (X, ints(1, 0)), {}),
]


@pytest.mark.parametrize(
    "error,op,inputs,attributes", HOSTILE, ids=[f"{op}-{i}" for i, (_, op, _, _) in enumerate(HOSTILE)]
)
def test_hostile_values(error, op, inputs, attributes):
    with pytest.raises(Error) as raised:
        run(op, *inputs, **attributes)
    assert raised.type is error


def test_long_axes_without_elements_take_no_time():
    x = np.zeros((BIG, 0), np.float32)
    assert run("Slice", x, ints(MAX), ints(MIN), ints(0), ints(-1)).shape == (BIG, 0)
    assert run("TopK", x, ints(3), axis=0)[0].shape == (3, 0)
    assert run("Gather", x, ints(0)).shape == (1, 0)
    assert run("NonZero", x).shape == (2, 0)
