"""Native arithmetic and casts of integers."""

import numpy as np
import pytest
from onnx import helper

from rnnfast.native import _programs
from tests.graphs import load, model_of
from tests.onnx.compile.reductions import RNG, compare, laid_out, layouts


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_integers(op, dtype):
    information = np.iinfo(dtype)
    x = RNG.integers(information.min, information.max, (3, 5, 7), dtype, endpoint=True)
    for shape in (3, 5, 7), (5, 1), (1,):
        y = RNG.integers(information.min, information.max, shape, dtype, endpoint=True)
        y.ravel()[0] = x[0, 0, 0]
        for constant in True, False:
            compare(op, x, {"y": y}, tolerance=None, constant=constant)


@pytest.mark.parametrize("source", ["int64", "int32", "uint8", "int8", "bool"])
@pytest.mark.parametrize("target", ["int64", "int32", "uint8", "int8", "bool"])
def test_casts_of_integers(source, target):
    x = RNG.integers(-3, 3, (3, 5, 7)).astype(source)
    if source != target:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(target))
        expected = x.astype(target)
        for layout in layouts(x.ndim):
            fed, node, constants = laid_out(x, layout)
            model = load(
                model_of(
                    [node, helper.make_node("Cast", ["strided"], ["y"], to=kind)],
                    [("x", helper.np_dtype_to_tensor_dtype(x.dtype), fed.shape)],
                    [("y", kind, None)],
                    constants,
                )
            )
            np.testing.assert_array_equal(model(x=fed)["y"], expected)
            assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]
