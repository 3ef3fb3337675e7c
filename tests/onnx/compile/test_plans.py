"""How a model's plans are made, chosen by values and left to NumPy between native steps; random graphs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast.native import _programs
from rnnfast.onnx import trace
from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import plain, plan_of

BRANCHES = """g (float[n] x, int64 rate) => (y) {
    wide = Equal (rate, k)
    y = If (wide) <then_branch = t () => (a) { a = Mul (x, two) }, else_branch = e () => (b) { b = Neg (x) }> }"""


def test_a_plan_depends_on_a_value_that_decides():
    model = load(parse(BRANCHES, k=np.int64(16), two=np.float32(2)))
    x = random(0, 5)
    for _ in range(2):
        np.testing.assert_array_equal(model(x=x, rate=16).y, 2 * x)
        np.testing.assert_array_equal(model(x=x, rate=8).y, -x)
    assert len(model.planned.plans.kept) == 2
    for plan in model.planned.plans.kept:
        ((run, *_),) = plan.steps
        assert isinstance(run, _programs.NativeProgram)


def test_values_that_never_repeat_are_left_to_the_run():
    model = load(parse(BRANCHES, k=np.int64(16), two=np.float32(2)))
    x = random(0, 5)
    for rate in range(40):
        np.testing.assert_array_equal(model(x=x, rate=rate).y, 2 * x if rate == 16 else -x)
    assert len(model.planned.plans.kept) == trace.MAX_SPECIALISED + 1


def test_a_changed_argument_is_no_constant_of_the_plan():
    """The values that a plan depends on are copied."""
    model = load(parse(BRANCHES, k=np.int64(16), two=np.float32(2)))
    x, rate = random(0, 5), np.array(16)
    model(x=x, rate=rate)
    rate[...] = 8
    np.testing.assert_array_equal(model(x=x, rate=rate).y, -x)


def test_python_steps_between_native_ones():
    """A step that no command can do stands between two native steps and reads their results."""
    model = load(
        parse(
            """g (float[m,n] x) => (z) {
        a = Neg (x)  b = Cosh (a)  c = Add (b, a)  d = Sinh (c)  e = Mul (d, c)  z = Sub (e, x) }"""
        )
    )
    x = random(0, 3, 5)
    (z,) = model(x=x).values()
    np.testing.assert_array_equal(z, plain(model, x=x)[0])
    kinds = [isinstance(run, _programs.NativeProgram) for run, *_ in plan_of(model).steps]
    assert kinds == [True, False, True, False, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["Neg", "Abs", "Relu", "Transpose", "Add", "Mul", "Slice", "Reshape", "Concat", "Tanh"]),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_random_graphs(operators, m, n, seed):
    """Any graph of such operators: NumPy's result, whatever is fused, aliased, and laid over each other."""
    rng = np.random.default_rng(seed)
    text, values = [], {"x": (m, n)}
    for i, op in enumerate(operators):
        a = str(rng.choice(list(values)))
        p, q = values[a]
        same = [v for v, s in values.items() if s == (p, q)]
        b, out = str(rng.choice(same)), f"v{i}"
        shape = (p, q)
        if op in ("Add", "Mul"):
            text.append(f"{out} = {op} ({a}, {b})")
        elif op == "Concat":
            text.append(f"{out} = Concat <axis = 1> ({a}, {b})")
            shape = (p, 2 * q)
        elif op == "Transpose":
            text.append(f"{out} = Transpose ({a})")
            shape = (q, p)
        elif op == "Reshape":
            text.append(f"{out} = Reshape ({a}, flat)")
            shape = (1, p * q)
        elif op == "Slice":
            text.append(f"{out} = Slice ({a}, start, end, both, steps)")
            shape = (len(range(p)[-1:-2:-1]), len(range(q)[-1:-99:-1]))
        else:
            text.append(f"{out} = {op} ({a})")
        if shape[0] * shape[1] <= 4000:
            values[out] = shape
        else:
            text.pop()
    outputs = [str(v) for v in rng.choice([v for v in values if v != "x"] or ["x"], 2)]
    text.append(f"y = Neg ({outputs[0]})  z = Neg ({outputs[1]})")
    model = load(
        parse(
            f"g (float[m,n] x) => (y, z) {{ {' '.join(text)} }}",
            flat=np.array([1, -1]),
            start=np.array([-1, -1]),
            end=np.array([-2, -99]),
            both=np.array([0, 1]),
            steps=np.array([-1, -1]),
        )
    )
    x = rng.standard_normal((m, n)).astype(np.float32)
    for y, expected in zip(model(x=x).values(), plain(model, x=x)):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        assert y.shape == expected.shape
