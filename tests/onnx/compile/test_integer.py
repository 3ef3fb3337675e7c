"""Native arithmetic and casts of integers."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rnnfast.errors import InputError
from rnnfast.native import _programs
from rnnfast.onnx.ops.cast import convert
from tests.graphs import load, model_of, one_node
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


@pytest.mark.parametrize("op, attributes", [("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_divisions(op, attributes, dtype):
    information = np.iinfo(dtype)
    x = RNG.integers(information.min, information.max, (3, 5, 7), dtype, endpoint=True)
    x.ravel()[:3] = information.min, 0, information.max
    for divisors in (1, 2, 3, 7, 100), (information.max, *([information.min, -1, -3] if information.min else [5])):
        y = np.resize(np.array(divisors, dtype), (5, 1))
        for constant in True, False:
            compare(op, x, {"y": y}, tolerance=None, constant=constant, **attributes)


@pytest.mark.parametrize("op, attributes", [("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})])
def test_a_divisor_of_zero_is_reported(op, attributes):
    model = load(one_node(op, {"x": RNG.integers(0, 9, 5), "y": RNG.integers(1, 9, 5)}, **attributes))
    x, y = RNG.integers(0, 9, 5), np.array([3, 0, 1, 0, 2])
    model(x=x, y=np.maximum(y, 1))
    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]
    with pytest.raises(InputError, match=r"node 'node' \((Div|Mod)\): .*division by zero"):
        model(x=x, y=y)
    model(x=x, y=np.maximum(y, 1))


@pytest.mark.parametrize("op", ["Min", "Max", "Clip", "BitwiseAnd", "BitwiseOr", "BitwiseXor"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_more_operators_of_two_integers(op, dtype):
    information = np.iinfo(dtype)
    x = RNG.integers(information.min, information.max, (3, 5, 7), dtype, endpoint=True)
    y = RNG.integers(information.min, information.max, () if op == "Clip" else (5, 1), dtype, endpoint=True)
    for constant in True, False:
        compare(op, x, {"y": y}, tolerance=None, constant=constant)
        if op in ("Min", "Max", "Clip"):
            compare(op, x, {"y": y, "z": x.ravel()[0]}, tolerance=None, constant=constant)


@pytest.mark.parametrize("op", ["Abs", "Neg", "Sign", "BitwiseNot"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_operators_of_one_integer(op, dtype):
    if op == "Neg" and dtype == "uint8":
        pytest.skip("ONNX has no negative of uint8")
    information = np.iinfo(dtype)
    x = RNG.integers(information.min, information.max, (3, 5, 7), dtype, endpoint=True)
    x.ravel()[:3] = information.min, 0, information.max
    compare(op, x, {}, tolerance=None, view=(op, dtype) == ("Abs", "uint8"))


def test_exclusive_or():
    x, y = RNG.integers(0, 2, (2, 3, 5)).astype(bool)
    compare("Xor", x, {"y": y}, tolerance=None)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8", "bool"])
def test_choices_of_integers(dtype):
    condition = RNG.integers(0, 2, (3, 5, 7)).astype(bool)
    x, y = RNG.integers(0, 100, (5, 1)).astype(dtype), RNG.integers(0, 2, (3, 1, 7)).astype(dtype)
    for constant in True, False:
        compare("Where", condition, {"x1": x, "y": y}, tolerance=None, constant=constant)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("shape, axes", [((37,), [0]), ((3, 5, 21), [1]), ((3, 5, 21), [0, 2]), ((3, 5, 21), None)])
def test_reductions_of_integers(op, dtype, shape, axes):
    information = np.iinfo(dtype)
    x = RNG.integers(information.min, information.max, shape, dtype, endpoint=True)
    for keepdims in 0, 1:
        others = {} if axes is None else {"axes": np.array(axes)}
        compare(op, x, others, tolerance=None, keepdims=keepdims)


@pytest.mark.parametrize("target", ["int64", "int32", "uint8", "int8", "bool"])
def test_casts_of_floats(isa, target):
    """Truncated to int64, of which the low bits are kept; NaN and what int64 does not hold are -2^63."""
    special = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, 2.9, -2.9, 300.7, 3e9, -3e9, 2.0**63, -(2.0**63), 1e30]
    x = np.float32([*special, *RNG.normal(0, 100, 50)])
    expected = convert(x, np.dtype(target))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(target))
    node = helper.make_node("Cast", ["x"], ["y"], to=kind)
    model = load(model_of([node], [("x", TensorProto.FLOAT, x.shape)], [("y", kind, None)]))
    np.testing.assert_array_equal(model(x=x)["y"], expected)
    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]


@pytest.mark.parametrize("source", ["uint8", "int8"])
def test_casts_of_bytes_to_float(isa, source):
    x = np.arange(-128, 128).astype(source)
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = load(model_of([node], [("x", kind, x.shape)], [("y", TensorProto.FLOAT, None)]))
    np.testing.assert_array_equal(model(x=x)["y"], x.astype(np.float32))
    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]


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
