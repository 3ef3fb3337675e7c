"""The table of inputs on whose values an output's shape depends is right for every operator."""

import numpy as np
import pytest

from rnnfast.errors import Error
from rnnfast.onnx.ops.shape_inputs import ALL, SHAPE_INPUTS
from tests.onnx.ops.shapes import OPS, X, ints, run

EXAMPLES = {
    "Compress": ((X, np.array([True, False])), {"axis": 0}),
    "Concat": ((X, X), {"axis": 1}),
    "ConcatFromSequence": (([X, X],), {"axis": 0}),
    "Constant": ((), {"value": X}),
    "ConstantOfShape": ((ints(2, 3),), {}),
    "DepthToSpace": ((X.reshape(1, 6, 1, 1)[:, :4],), {"blocksize": 2}),
    "Dropout": ((X, np.array(0.5, np.float32)), {"n_outputs": 2}),
    "Expand": ((X[:, :1], ints(2, 1, 3)), {}),
    "EyeLike": ((X,), {}),
    "Flatten": ((X,), {}),
    "Gather": ((X, ints(0, 1)), {}),
    "GatherElements": ((X, ints(0, 1, 0).reshape(1, 3)), {}),
    "GatherND": ((X, ints(0, 1)), {}),
    "Identity": ((X,), {}),
    "NonZero": ((X,), {}),
    "OneHot": ((ints(0, 1), np.array(3), X[0, :2]), {}),
    "Optional": ((X,), {}),
    "OptionalGetElement": ((X,), {}),
    "OptionalHasElement": ((X,), {}),
    "Pad": ((X, ints(1, 0), np.array(1, np.float32), ints(0)), {}),
    "Range": ((np.array(0), np.array(7), np.array(2)), {}),
    "Reshape": ((X, ints(2, -1)), {}),
    "ReverseSequence": ((X, ints(2, 1, 2)), {}),
    "Scatter": ((X, ints(0, 1, 0).reshape(1, 3), X[:1]), {}),
    "ScatterElements": ((X, ints(0, 1, 0).reshape(1, 3), X[:1]), {}),
    "ScatterND": ((X, ints(0).reshape(1, 1), X[:1]), {}),
    "SequenceAt": (([X, X[0]], ints(0)), {}),
    "SequenceConstruct": ((X, X), {}),
    "SequenceEmpty": ((), {}),
    "SequenceErase": (([X, X[0]], ints(0)), {}),
    "SequenceInsert": (([X], X[0], ints(0)), {}),
    "SequenceLength": (([X],), {}),
    "Shape": ((X,), {}),
    "Size": ((X,), {}),
    "Slice": ((X, ints(0), ints(2), ints(1), ints(1)), {}),
    "SpaceToDepth": ((X.reshape(1, 3, 1, 2)[..., :1],), {"blocksize": 1}),
    "Split": ((X, ints(1, 2)), {"axis": 1, "n_outputs": 2}),
    "SplitToSequence": ((X, np.array(1)), {}),
    "Squeeze": ((X.reshape(1, 2, 1, 3), ints(0)), {}),
    "Tile": ((X, ints(1, 2)), {}),
    "TopK": ((X, ints(1)), {}),
    "Transpose": ((X,), {}),
    "Trilu": ((X, np.array(0)), {}),
    "Unique": ((X,), {}),
    "Unsqueeze": ((X, ints(0)), {}),
}


def shapes(value):
    return [shapes(v) for v in value] if isinstance(value, (tuple, list)) else value.shape


@pytest.mark.parametrize("op", sorted(OPS))
def test_shape_inputs(op):
    """Other values in an input change the outputs' shapes if and only if SHAPE_INPUTS says so."""
    inputs, attributes = EXAMPLES[op]
    expected = shapes(run(op, *inputs, **attributes))
    changed = set()
    for i, x in enumerate(inputs):
        if isinstance(x, np.ndarray):
            others = (x & False, ~x) if x.dtype == bool else (x * 0, x + 1, x + 2, x - 1, x[::-1] if x.ndim else -x)
            for other in others:
                try:
                    result = run(op, *inputs[:i], other.astype(x.dtype), *inputs[i + 1 :], **attributes)
                except Error:
                    continue
                if shapes(result) != expected:
                    changed.add(i)
    said = SHAPE_INPUTS.get(op, ())
    if said is not ALL:
        assert changed == set(said)
    elif op not in ("SequenceConstruct", "ConcatFromSequence"):
        assert changed
