"""Properties that arithmetic operators share: half precision, casts, scalars, refusals and versions."""

import math

import numpy as np
import pytest

from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.onnx.ops import lookup
from tests.onnx.ops.helpers import floats, run

HALF_CASES = [
    ("Softmax", [(3, 400)], {}),
    ("ReduceSum", [(3, 400)], {}),
    ("ReduceMean", [(3, 400)], {}),
    ("Sigmoid", [(50,)], {}),
    ("Einsum", [(3, 90), (90,)], dict(equation="ab,b")),
    ("Gelu", [(50,)], {}),
    ("MatMul", [(3, 90), (90, 4)], {}),
    ("Gemm", [(3, 90), (90, 4), (4,)], {}),
    ("Conv", [(2, 6, 20), (4, 6, 5), (4,)], {}),
    ("AveragePool", [(2, 6, 20)], dict(kernel_shape=(9,))),
    ("LayerNormalization", [(3, 90), (90,), (90,)], {}),
    ("Add", [(3, 4), (4,)], {}),
]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("op_type, shapes, attributes", HALF_CASES, ids=[case[0] for case in HALF_CASES])
def test_half_precision_is_computed_in_float32_and_rounded_once(half, op_type, shapes, attributes):
    dtype = np.dtype(np.float16) if half == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    rng = np.random.default_rng(17)
    inputs = [floats(rng, *shape).astype(dtype) for shape in shapes]
    y = run(op_type, inputs, **attributes)
    expected = run(op_type, [x.astype(np.float32) for x in inputs], **attributes)
    y, expected = (z[0] if isinstance(z, tuple) else z for z in (y, expected))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected.astype(dtype))


def test_cast():
    x = np.array([300.7, -1.5, 2.5])
    assert run("Cast", [x], to=np.dtype(np.int32)).tolist() == [300, -1, 2]
    assert run("Cast", [np.array([200, -129], np.int16)], to=np.dtype(np.int8)).tolist() == [-56, 127]
    assert run("Cast", [np.float32([0, -0.0, math.nan, 0.1])], to=np.dtype(bool)).tolist() == [False, False, True, True]
    assert run("Cast", [np.array([1e300])], to=np.dtype(np.float32)) == math.inf
    assert run("Cast", [np.array(["-7", "12"], object)], to=np.dtype(np.int64)).tolist() == [-7, 12]
    assert run("Cast", [np.array(["+INF", "nan"], object)], to=np.dtype(np.float32))[0] == math.inf
    assert run("Cast", [np.float32([1.5, 0.1])], to=np.dtype(object)).tolist() == ["1.5", "0.1"]
    assert run("CastLike", [x, np.float32([1])]).dtype == np.float32


UNARY = (
    "Abs Ceil Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish IsNaN LeakyRelu Mish Neg Reciprocal Relu Round "
    "Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tan Tanh ReduceSum ReduceLogSumExp Sum Mean Max"
).split()


@pytest.mark.parametrize("op_type", UNARY)
def test_scalars_stay_arrays(op_type):
    for dtype in (np.float32, np.float64):
        x = np.array(0.75, dtype)
        x.flags.writeable = False
        y = run(op_type, [x])
        assert type(y) is np.ndarray and y.shape == () and y.dtype == (bool if op_type == "IsNaN" else dtype)


def array(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    "error, op_type, inputs, attributes",
    [
        (InputTypeError, "Add", [array(2), array(2, dtype=np.float64)], {}),
        (InputTypeError, "Mul", [array(2, dtype=bool), array(2, dtype=bool)], {}),
        (InputTypeError, "Sqrt", [array(2, dtype=np.int32)], {}),
        (InputTypeError, "And", [array(2), array(2)], {}),
        (InputTypeError, "Where", [array(2), array(2), array(2)], {}),
        (InputTypeError, "BitwiseAnd", [array(2), array(2)], {}),
        (ValueError, "Add", [array(2), array(3)], {}),
        (LimitError, "Add", [array(100000, 1), array(100000)], {}),
        (InputError, "Div", [array(2, dtype=np.int32), np.zeros(1, np.int32)], {}),
        (InputError, "Mod", [array(2, dtype=np.int32), np.zeros(1, np.int32)], {}),
        (InputError, "Clip", [array(2), array(2)], {}),
        (InputError, "Gemm", [array(2, 3), array(3, 4), array(3, 2, 4)], {}),
        (InputError, "Gemm", [array(2, 3, 1), array(3, 4)], {}),
        (ValueError, "MatMul", [array(2, 3), array(2, 3)], {}),
        (InputError, "Einsum", [array(2, 3), array(4, 5)], dict(equation="ij,jk->ik")),
        (InputError, "Einsum", [array(2, 3)], dict(equation="ij->k")),
        (InputError, "Einsum", [array(2, 3)], dict(equation="ijk")),
        (LimitError, "Einsum", [array(3000), array(3000), array(3000)], dict(equation="a,b,c->abc")),
        (ValueError, "Softmax", [array(2, 3)], dict(axis=2)),
        (ValueError, "ReduceSum", [array(2, 3), np.array([1, -1])], {}),
        (ValueError, "ReduceSum", [array(2, 3), np.array([2])], {}),
        (InputError, "ArgMax", [array(2, 0)], dict(axis=1)),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3), array(2)], {}),
        (InputError, "Conv", [array(1, 2, 5), array(3, 1, 3)], {}),
        (InputError, "Conv", [array(1, 2, 5), array(3, 1, 3)], dict(group=2)),
        (InputError, "Conv", [array(1, 2, 2), array(3, 2, 3)], {}),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(kernel_shape=(2,))),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(strides=(0,))),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(pads=(-1, 0))),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(pads=(1,))),
        (LimitError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(pads=(10**9, 10**9))),
        (UnsupportedError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(auto_pad="SAME_UPPER", pads=(1, 1))),
        (InputError, "ConvTranspose", [array(1, 2, 5), array(2, 1, 3)], dict(output_padding=(1,))),
        (InputError, "ConvTranspose", [array(1, 2, 5), array(2, 1, 3)], dict(pads=(4, 4))),
        (
            UnsupportedError,
            "ConvTranspose",
            [array(1, 2, 5), array(2, 1, 2)],
            dict(strides=(3,), auto_pad="SAME_LOWER"),
        ),
        (LimitError, "ConvTranspose", [array(1, 2, 5), array(2, 1, 3)], dict(output_shape=(10**10,))),
        (InputError, "MaxPool", [array(1, 2, 3)], dict(kernel_shape=(4,))),
        (InputError, "MaxPool", [array(1, 2, 3)], dict(kernel_shape=(2,), pads=(2, 0))),
        (UnsupportedError, "MaxPool", [array(1, 2, 8)], dict(kernel_shape=(1,), strides=(4,), auto_pad="SAME_UPPER")),
        (InputError, "GlobalMaxPool", [array(2, 3, 0)], {}),
        (InputError, "LayerNormalization", [array(2, 3), array(4, 3)], {}),
        (InputError, "GroupNormalization", [array(2, 3, 4), array(2), array(2)], dict(num_groups=2)),
        (InputError, "QuantizeLinear", [array(2, 3), array(2)], {}),
        (InputError, "DequantizeLinear", [array(2, 3, dtype=np.int8), array(3), array(2, dtype=np.int8)], {}),
        (InputTypeError, "DequantizeLinear", [array(2, 3, dtype=np.int8), array(), array(dtype=np.uint8)], {}),
    ],
)
def test_refusals(error, op_type, inputs, attributes):
    with pytest.raises(error):
        run(op_type, inputs, **attributes)


def test_lookup():
    assert lookup("ai.onnx", "Clip", 13) is lookup("", "Clip", 11)
    assert lookup("", "Clip", 10) is lookup("", "Clip", 6)
    assert lookup("", "Clip", 10) is not lookup("", "Clip", 11)
    assert lookup("", "Gelu", 19) is None
    assert lookup("", "NoSuchOperator", 20) is None
    assert lookup("com.example", "Add", 20) is None
