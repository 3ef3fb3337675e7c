"""The elementary functions of kernels/vmath.h over the whole float range, on every instruction set."""

import numpy as np
import pytest
from scipy import special

from rnnfast.native import _kernels

# function: float64 oracle, largest error in ULP (as stated in vmath.h, where it was found on all 2^32 floats),
# where that is
FUNCTIONS = {
    "Exp": (np.exp, 1.05, -38.4155),
    "Expm1": (np.expm1, 1.65, 0.387692),
    "Log": (np.log, 1.0, 1.56865513),
    "Log1p": (np.log1p, 1.5, 0.414404482),
    "Sigmoid": (special.expit, 2.45, -16.6425343),
    "Tanh": (np.tanh, 2.0, 0.518919),
    "Softplus": (lambda x: np.logaddexp(0, x), 2.0, 0.00274112),
    "Erf": (special.erf, 1.95, 0.216744781),
    "Sin": (np.sin, 1.6, 8.771086649088173e26),
    "Cos": (np.cos, 1.6, 6564296192.0),
    "Tan": (np.tan, 3.8, 415005.15625),
    "Atan": (np.arctan, 2.15, 0.42258980870246887),
}
TINY = np.finfo(np.float32).tiny
INF, NAN = np.inf, np.nan
STRIDE = 1741  # odd and prime: 2.5 million of the 2^32 patterns, of every exponent, ends and NaNs
# overflow and underflow of exp, where tanh and erf become 1, where sums round, the ends of range reductions, angles
LANDMARKS = (
    0,
    TINY,
    2**-24,
    2**-12,
    0.35,
    2**-0.5,
    1,
    2**0.5,
    3.92,
    9.01,
    16.64,
    17.33,
    87.3365,
    88.3763,
    88.72283,
    2**25,
    0.41421357,
    2.4142137,
    np.pi / 4,
    np.pi / 2,
    np.pi,
    2**16,
    3e38,
)


def near(x, count=4000):
    """The float32 numbers next to x"""
    middle = np.float32(x).view(np.int32)
    return np.arange(max(middle - count, 0), middle + count, dtype=np.int32).view(np.float32)


def samples(name):
    stride = np.arange(0, 2**32, STRIDE, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = np.concatenate([*map(near, LANDMARKS), near(abs(FUNCTIONS[name][2]), 40000)])
    return np.concatenate([stride, dense, -dense, np.float32([INF, -INF, NAN])])


def flushed(x):
    """x with denormals as zeros"""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def error_in_ulp(y, true):
    """|y - true| in units of the last place of `true` (float64, finite); a result too small for a normal float is 0"""
    _, exponent = np.frexp(np.maximum(np.abs(true), TINY))
    error = np.ldexp(np.abs(y - true), 24 - exponent)
    return np.where((np.abs(true) < TINY) & (y == 0), 0, error)


def bits(x):
    """The patterns of x, all NaNs the same"""
    return np.where(np.isnan(x), np.float32(NAN), x).view(np.uint32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(isa, name):
    oracle, bound, _ = FUNCTIONS[name]
    x = samples(name)
    y = _kernels.unary(name, x)
    with np.errstate(all="ignore"):
        true = oracle(flushed(x).astype(np.float64))
        rounded = true.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(true))
    assert not np.any((y != 0) & (np.abs(y) < TINY)), "a denormal result"
    infinite = np.isinf(y) | np.isinf(rounded)
    np.testing.assert_array_equal(y[infinite], rounded[infinite])
    finite = np.isfinite(rounded) & ~infinite
    error = error_in_ulp(y[finite].astype(np.float64), true[finite])
    worst = error.argmax()
    assert error[worst] <= bound, f"{error[worst]:.4f} ULP at x = {float(x[finite][worst]).hex()}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_on_every_instruction_set(name):
    before = _kernels.get_isa()
    x = samples(name)
    results = {}
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            results[isa] = bits(_kernels.unary(name, x))
    finally:
        _kernels.set_isa(before)
    reference = results.pop("generic")
    for isa, result in results.items():
        different = np.flatnonzero(result != reference)
        assert not different.size, f"{isa} at x = {float(x[different[0]]).hex()}"


@pytest.mark.parametrize(
    "name, x, y",
    [
        ("Exp", [-INF, -88, -0.0, 0, 88.72284, INF], [0, 0, 1, 1, INF, INF]),
        ("Expm1", [-INF, -20, -0.0, 0, 88.72284, INF], [-1, -1, -0.0, 0, INF, INF]),
        ("Log", [-INF, -1, -0.0, 0, 1, INF], [NAN, NAN, -INF, -INF, 0, INF]),
        ("Log1p", [-INF, -2, -1, -0.0, 0, INF], [NAN, NAN, -INF, -0.0, 0, INF]),
        ("Sigmoid", [-INF, -88, -0.0, 0, 20, INF], [0, 0, 0.5, 0.5, 1, 1]),
        ("Tanh", [-INF, -9.02, -0.0, 0, 9.02, INF], [-1, -1, -0.0, 0, 1, 1]),
        ("Softplus", [-INF, -88, 100, 1e38, INF], [0, 0, 100, 1e38, INF]),
        ("Erf", [-INF, -3.93, -0.0, 0, 3.93, INF], [-1, -1, -0.0, 0, 1, 1]),
        ("Sin", [-INF, -0.0, 0, INF], [NAN, -0.0, 0, NAN]),
        ("Cos", [-INF, -0.0, 0, INF], [NAN, 1, 1, NAN]),
        ("Tan", [-INF, -0.0, 0, INF], [NAN, -0.0, 0, NAN]),
        ("Atan", [-INF, -0.0, 0, INF], [-np.pi / 2, -0.0, 0, np.pi / 2]),
    ],
)
def test_special_values(isa, name, x, y):
    np.testing.assert_array_equal(bits(_kernels.unary(name, np.float32(x))), bits(np.float32(y)))
    assert np.isnan(_kernels.unary(name, np.float32([NAN, -NAN]))).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_denormals_count_as_zero(isa, name):
    denormals = np.arange(1, 2**23, 4093, dtype=np.int32).view(np.float32)
    for x in (denormals, -denormals):
        zeros = np.copysign(np.zeros_like(x), x)
        np.testing.assert_array_equal(bits(_kernels.unary(name, x)), bits(_kernels.unary(name, zeros)))


@pytest.mark.parametrize("name", ["Tanh", "Erf", "Sin", "Tan", "Atan"])
def test_odd(isa, name):
    x = samples(name)
    np.testing.assert_array_equal(bits(_kernels.unary(name, -x)), bits(-_kernels.unary(name, x)))


@pytest.mark.parametrize(
    "name, ends",
    [
        ("Exp", (-87.3365, 88.72283)),
        ("Expm1", (-17.33, 88.72283)),
        ("Tanh", (9.01,)),
        ("Erf", (3.92,)),
        ("Sigmoid", (-87.3365, 17.33)),
        ("Softplus", (-87.3365,)),
    ],
)
def test_monotone_at_the_ends(isa, name, ends):
    for end in ends:
        x = np.sort(np.copysign(near(abs(end)), np.float32(end)))
        y = _kernels.unary(name, x)
        assert (y[1:] >= y[:-1]).all()


@pytest.mark.parametrize("name, low", [("Tanh", -1), ("Erf", -1), ("Sigmoid", 0)])
def test_range(isa, name, low):
    y = _kernels.unary(name, samples(name))
    assert np.nanmin(y) == low and np.nanmax(y) == 1
