"""Native elementwise commands: the bits of NumPy where each is one IEEE operation."""

import numpy as np
import onnx
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import RNG, SPECIAL, compare, plain, segment_of


@pytest.mark.parametrize(
    "expression",
    [
        "Sqrt (a)",
        "Abs (a)",
        "Neg (a)",
        "Floor (a)",
        "Ceil (a)",
        "Round (a)",
        "Sign (a)",
        "Reciprocal (a)",
        "IsNaN (a)",
        "Add (a, b)",
        "Sub (a, b)",
        "Mul (a, b)",
        "Div (a, b)",
        "PRelu (a, b)",
        "Min (a, b)",
        "Max (a, b, a)",
        "Sum (a, b, b)",
        "Less (a, b)",
        "LessOrEqual (a, b)",
        "Greater (a, b)",
        "GreaterOrEqual (a, b)",
        "Equal (a, b)",
        "Relu (a)",
        "LeakyRelu (a)",
        "LeakyRelu <alpha = 0.3> (a)",
        "Clip (a, low, high)",
        "Clip (a, , high)",
        "Pow (a, two)",
        "Pow (a, half)",
        "Clip (a, zero, one)",
        "Mean (a, b, b)",
        "ThresholdedRelu (a)",
        "ThresholdedRelu <alpha = -0.3> (a)",
        "Shrink <bias = 0.7, lambd = 1.2> (a)",
        "IsInf (a)",
        "IsInf <detect_negative = 0> (a)",
        "IsInf <detect_positive = 0> (a)",
        "IsInf <detect_negative = 0, detect_positive = 0> (a)",
    ],
)
def test_exact_elementwise(isa, expression):
    """One IEEE operation each: NumPy's bits, for every special value."""
    a, b = np.meshgrid(SPECIAL, SPECIAL)
    model = load(
        parse(
            f"g (float[m,n] a, float[m,n] b) => (z) {{ y = {expression}  z = Identity (y) }}",
            low=np.float32(-1),
            high=np.float32(2),
            two=np.float32(2),
            half=np.float32(0.5),
            one=np.float32(1),
            zero=np.float32(0),
        )
    )
    if "Pow (a, half)" in expression:
        a = np.abs(a)  # NumPy's power gives +infinity for -infinity, a square root is NaN
    compare(model, a=a, b=b)


def test_celu_of_a_large_alpha():
    model = load(parse("g(float[2] x) => (float[2] y) { y = Celu<alpha = 3e38>(x) }"))
    np.testing.assert_allclose(model(x=np.float32([-3, 2])).y, [-3, 2], rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        *("Sigmoid", "Tanh", "Exp", "Log", "Erf", "Softplus", "Softsign", "Elu", "HardSigmoid", "Sin", "Cos", "Tan"),
        *("Atan", "Asin", "Acos", "Selu", "Selu <alpha = 2.5, gamma = 0.7>", "Celu", "Celu <alpha = 2.5>", "HardSwish"),
        *("Mish", "Gelu", 'Gelu <approximate = "tanh">', "Swish", "Swish <alpha = -2.5>"),
    ],
)
def test_functions(isa, function):
    opset = min(onnx.defs.onnx_opset_version(), 24)
    x = random(0, 7, 33)
    if function in ("Asin", "Acos"):
        x = np.clip(x / 2, -1, 1)
    model = load(parse(f"g (float[m,n] x) => (z) {{ y = {function} (x)  z = Neg (y) }}", opset=opset))
    compare(model, 3e-6, x=np.abs(x) if function == "Log" else x)


@pytest.mark.parametrize(
    "function",
    [
        *("Sin", "Cos", "Tan", "Atan", "Asin", "Acos", "Selu", "Celu", "HardSwish", "Mish", "Gelu", "Swish"),
        'Gelu <approximate = "tanh">',
    ],
)
def test_functions_of_special_values(isa, function):
    """Infinite values and NaN where NumPy's are, and the signs of zeros of odd functions."""
    opset = min(onnx.defs.onnx_opset_version(), 24)
    model = load(parse(f"g (float[n] x) => (z) {{ y = {function} (x)  z = Identity (y) }}", opset=opset))
    (y,), (expected,) = model(x=SPECIAL).values(), plain(model, x=SPECIAL)
    segment_of(model)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))
    if function in ("Sin", "Tan", "Atan", "Asin"):
        np.testing.assert_array_equal(np.signbit(y)[y == 0], np.signbit(SPECIAL)[y == 0])
    finite = np.isfinite(expected)
    np.testing.assert_allclose(y[finite], expected[finite], rtol=3e-6, atol=1e-6)


def test_a_function_that_reads_its_input_twice_keeps_it_for_others(isa):
    """An expression joined with a convolution may overwrite it only if no other step reads it."""
    w = random(1, 4, 3, 3, 3)
    model = load(
        parse(
            """g (float[b,3,h,w] x) => (y, z) {
            c = Conv <pads = [1,1,1,1]> (x, w)  m = Mish (c)  y = Mul (m, c)  z = Neg (c) }""",
            opset=18,
            w=w,
        )
    )
    compare(model, 1e-5, x=random(2, 1, 3, 96, 96))


# The largest error in ULP of v_power (vmath.h): 1.21 was found in 2.4e7 random pairs whose power is a normal float.
POWER_ULP = 1.3


def test_power(isa):
    rng = np.random.default_rng(7)
    n = 200_000
    x = np.exp(rng.uniform(-87, 88, n)).astype(np.float32)
    y = (rng.uniform(-87, 88, n) / np.log(x.astype(np.float64))).astype(np.float32)
    near = (1 + rng.uniform(-0.5, 1, n)).astype(np.float32)
    x, y = np.append(x, near), np.append(y, (rng.uniform(-87, 88, n) / np.log(near.astype(np.float64))).astype("f"))
    model = load(parse("g (float[n] x, float[n] y) => (z) { p = Pow (x, y)  z = Identity (p) }"))
    z = model(x=x, y=y)["z"]
    segment_of(model)
    true = np.power(x.astype(np.float64), y.astype(np.float64))
    normal = (true < np.finfo(np.float32).max) & (true > np.finfo(np.float32).tiny)
    _, exponent = np.frexp(true[normal])
    error = np.ldexp(np.abs(z[normal] - true[normal]), 24 - exponent)
    assert error.max() <= POWER_ULP, (error.max(), x[normal][error.argmax()], y[normal][error.argmax()])


def test_power_of_special_values(isa):
    """The results of C's pow, to the bit, but that denormals count as zero."""
    values = np.append(SPECIAL, np.float32([2, -2, 3, -3, 0.3, -0.3, 2**24, -(2**25), 101, -101, 1e-37, 88, -88]))
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    model = load(parse("g (float[n] x, float[n] y) => (z) { p = Pow (x, y)  z = Identity (p) }"))
    z = model(x=x, y=y)["z"]
    with np.errstate(all="ignore"):
        true = np.power(x, y)
    true = np.where(np.abs(true) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), true), true)
    np.testing.assert_array_equal(np.isnan(z), np.isnan(true))
    kept = ~np.isnan(true)
    np.testing.assert_allclose(z[kept], true[kept], rtol=1e-6, atol=0)
    np.testing.assert_array_equal(np.signbit(z[kept]), np.signbit(true[kept]))


def test_powers_by_constants_and_integers(isa):
    x = np.abs(random(0, 5, 7)) + np.float32(0.1)
    model = load(
        parse(
            "g (float[m,n] x, float[n] e) => (a, b, c, d) { a = Pow (x, three)  b = Pow (x, many)  c = Pow (x, e) "
            "d = Pow (one, x) }",
            three=np.float32(3),
            many=np.arange(-3, 4),
            one=np.float32(2.5),
        )
    )
    compare(model, 1e-6, x=x, e=random(1, 7))


def test_logic_where_and_casts(isa):
    model = load(
        parse(
            """g (float[m,n] a, float[n] b, int64[m,n] k) => (v, w, x, y, z) {
        p = Less (a, b)  q = Greater (a, zero)  r = And (p, q)  s = Or (p, q)  v = Not (r)
        w = Where (s, a, b)  x = Cast <to = 1> (s)  i = Cast <to = 1> (k)  y = Mul (i, a)  z = Where (r, zero, i) }""",
            zero=np.float32(0),
        )
    )
    compare(model, a=random(0, 5, 19), b=random(1, 19), k=RNG.integers(-9, 9, (5, 19)))


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 5, 7), (7,)),
        ((3, 5, 7), (5, 1)),
        ((3, 5, 7), (3, 1, 7)),
        ((3, 16, 17), (16, 1)),  # tiles of 15 lines and of the one that is left
        ((2, 3, 129, 4), (129, 1)),
        ((3, 1, 7), (5, 1)),
        ((1,), (4, 3, 2)),
        ((), (300,)),
        ((2, 300), (2, 1)),
        ((2, 1, 3, 1, 2), (4, 1, 5, 1)),
        ((), ()),
        ((1, 1), (1,)),
    ],
)
def test_broadcasting(isa, shapes):
    types = [
        "float[" + ",".join(f"{n}{i}" for i in range(len(s))) + "]" if s else "float" for n, s in zip("ab", shapes)
    ]
    model = load(
        parse(f"""g ({types[0]} a, {types[1]} b) => (z) {{
        s = Sub (a, b)  t = Mul (s, a)  u = Div (b, t)  z = Add (u, s) }}""")
    )
    compare(model, a=random(0, *shapes[0]), b=random(1, *shapes[1]))


def test_chains_longer_than_a_command(isa):
    """Chains have many inputs, many instructions, and values that several instructions take."""
    names = [f"v{i}" for i in range(100)]
    chain = " ".join(
        f"{b} = {'Abs' if i % 3 else 'Neg'} ({a})  w{i} = Add ({b}, c{i % 20})"
        for i, (a, b) in enumerate(zip(["x", *[f"w{i}" for i in range(99)]], names))
    )
    model = load(
        parse(f"g (float[n] x) => (z) {{ {chain} z = Mul (w98, w3) }}", **{f"c{i}": random(i, 13) for i in range(20)})
    )
    compare(model, x=random(0, 13))


def test_slopes_by_channel_before_opset_7():
    model = load(parse("g (float[n,c,m] x) => (y) { s = PRelu (x, slope)  y = Exp (s) }", opset=6, slope=random(1, 3)))
    x = random(0, 2, 3, 3)
    np.testing.assert_allclose(model(x=x)["y"], plain(model, x=x)[0], rtol=1e-6)
