"""Native elementwise commands: the bits of NumPy where each is one IEEE operation."""

import numpy as np
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import RNG, SPECIAL, compare, plain


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
        )
    )
    if "Pow (a, half)" in expression:
        a = np.abs(a)  # NumPy's power gives +infinity for -infinity, a square root is NaN
    compare(model, a=a, b=b)


@pytest.mark.parametrize(
    "function", ["Sigmoid", "Tanh", "Exp", "Log", "Erf", "Softplus", "Softsign", "Elu", "HardSigmoid"]
)
def test_functions(isa, function):
    x = random(0, 7, 33)
    model = load(parse(f"g (float[m,n] x) => (z) {{ y = {function} (x)  z = Neg (y) }}"))
    compare(model, 3e-6, x=np.abs(x) if function == "Log" else x)


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
