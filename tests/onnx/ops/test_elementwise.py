"""Integer and float arithmetic and activations against their formulas."""

import math

import numpy as np
import pytest

from rnnfast.errors import InputError
from tests.onnx.ops.helpers import WHOLE, assert_close, floats, run


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
def test_integer_division_and_remainders(dtype):
    a, b = (WHOLE.astype(dtype)[:, None], WHOLE[WHOLE != 0].astype(dtype)[None])
    quotient, remainder, fmod = (
        run(op, [a, b], **attributes) for op, attributes in [("Div", {}), ("Mod", {}), ("Mod", dict(fmod=1))]
    )
    for i, j in np.ndindex(*quotient.shape):
        p, q = int(a[i, 0]), int(b[0, j])
        assert quotient[i, j] == abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
        assert remainder[i, j] == p % q
        assert fmod[i, j] == int(math.fmod(p, q))
    assert quotient.dtype == remainder.dtype == fmod.dtype == dtype
    if np.iinfo(dtype).min < 0:
        smallest = np.array([np.iinfo(dtype).min], dtype)
        assert run("Div", [smallest, np.array([-1], dtype)]) == smallest


def test_float_remainders():
    a = np.array([5.5, -5.5, 5.5, -5.5, 0.0, -0.0, 2, -2, math.inf], np.float32)
    b = np.array([3, 3, -3, -3, 2, 2, math.inf, math.inf, 2], np.float32)
    floored, truncated = run("Mod", [a, b], opset=28), run("Mod", [a, b], fmod=1)
    np.testing.assert_array_equal(floored, np.float32([2.5, 0.5, -0.5, -2.5, 0, 0, 2, math.inf, math.nan]))
    np.testing.assert_array_equal(truncated, np.float32([2.5, -2.5, 2.5, -2.5, 0, 0, 2, -2, math.nan]))


@pytest.mark.parametrize("base", [np.float32, np.float64, np.int32, np.int64, np.float16])
@pytest.mark.parametrize("exponent", [np.float32, np.float64, np.int8, np.int32, np.int64, np.uint32, np.uint64])
def test_power_keeps_the_type_of_its_base(base, exponent):
    x, y = np.array([1, 2, 3, 7, -3]).astype(base), np.array([[3], [0], [2]]).astype(exponent)
    z = run("Pow", [x, y])
    assert z.dtype == base
    np.testing.assert_array_equal(z, (np.array([1, 2, 3, 7, -3]) ** np.array([[3], [0], [2]])).astype(base))


def test_integers_to_negative_powers_are_truncated():
    x = np.array([1, -1, -1, 2, -5])
    assert run("Pow", [x, np.array([-3, -3, -2, -1, -1])]).tolist() == [1, -1, 1, 0, 0]
    with pytest.raises(InputError, match="negative power"):
        run("Pow", [np.array([0, 1]), np.array(-1)])


def test_clip():
    x = np.array([-math.inf, -2, 0.5, 3, math.inf, math.nan], np.float32)
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(run("Clip", [x], opset=6), [-largest, -2, 0.5, 3, largest, np.nan])
    np.testing.assert_array_equal(run("Clip", [x, None, np.array(1, np.float32)]), [-largest, -2, 0.5, 1, 1, np.nan])
    np.testing.assert_array_equal(run("Clip", [x, np.array(2, np.float32), np.array(-1, np.float32)])[:5], [-1] * 5)
    np.testing.assert_array_equal(run("Clip", [x], opset=10, min=0.0, max=1.0), [0, 0, 0.5, 1, 1, np.nan])
    assert run("Clip", [np.array([-3, 200], np.int16), None, np.array(7, np.int16)]).tolist() == [-3, 7]


@pytest.mark.parametrize(
    "op_type, formula",
    [
        ("Sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("Softplus", lambda x: math.log1p(math.exp(x))),
        ("Gelu", lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
        ("Erf", math.erf),
        ("Elu", lambda x: x if x > 0 else math.expm1(x)),
        ("Mish", lambda x: x * math.tanh(math.log1p(math.exp(x)))),
        ("Swish", lambda x: x / (1 + math.exp(-x))),
        ("Softsign", lambda x: x / (1 + abs(x))),
        ("HardSwish", lambda x: x * min(1, max(0, x / 6 + 0.5))),
    ],
)
def test_activations_in_both_precisions(op_type, formula):
    x = np.linspace(-20, 20, 161)
    expected = np.array([formula(value) for value in x])
    assert_close(run(op_type, [x], opset=24), expected, tolerance=1e-15)
    assert_close(run(op_type, [x.astype(np.float32)], opset=24), expected.astype(np.float32))
    extremes = run(op_type, [np.float32([-3e38, 3e38])], opset=24)
    assert np.isfinite(extremes).all()


def test_erf_is_within_one_ulp():
    x = np.concatenate(
        [
            np.random.default_rng(19).uniform(-7, 7, 20000),
            [0.0, 0.84375, -1.25, 1 / 0.35, 6, 1e-310, math.inf, -math.inf],
        ]
    )
    expected = np.array([math.erf(value) for value in x])
    assert (np.abs(run("Erf", [x]) - expected) <= np.spacing(np.abs(expected))).all()
    assert np.isnan(run("Erf", [np.array([math.nan])])).all()


def test_prelu_broadcasts_the_slope_only():
    x = floats(np.random.default_rng(10), 2, 3, 4)
    slope = np.float32([[0.5], [-2], [3]])
    np.testing.assert_array_equal(run("PRelu", [x, slope]), np.where(x < 0, x * slope, x))
    np.testing.assert_array_equal(run("PRelu", [x, slope[:, 0]], opset=6), np.where(x < 0, x * slope, x))
    with pytest.raises(InputError, match="does not broadcast"):
        run("PRelu", [x[0], x])


def test_broadcast_before_opset_7():
    a, b = floats(np.random.default_rng(11), 2, 3, 4), np.float32([1, 10, 100])
    np.testing.assert_array_equal(run("Mul", [a, b], opset=6, broadcast=1, axis=1), a * b[:, None])
    np.testing.assert_array_equal(run("Sub", [a, a[0, 0]], opset=6, broadcast=1), a - a[0, 0])
    with pytest.raises(InputError, match="broadcast = 1"):
        run("Add", [a, a[0]], opset=6)
