"""Native plans: what becomes one native step, that it gives what the operators' NumPy functions give, and its bounds."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import rnnfast
from rnnfast.errors import InputError, LimitError
from rnnfast.native import _programs
from rnnfast.onnx import budget, trace
from tests.graphs import load, model_of, parse, random

RNG = np.random.default_rng(5)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3.5, -2.5, 0.5, 1e30, -1e-30], np.float32)


def plain(model, **feed):
    """The outputs of the operators' NumPy functions, native weights apart."""
    planned, args = model.prepare(feed)
    planned = model.build()
    planned.target = None
    return planned.run(args)


def plan_of(model):
    (plan,) = model._own.plans.kept
    return plan


def segment_of(model):
    """The native step that a plan is."""
    ((run, *_),) = plan_of(model).steps
    assert isinstance(run, _programs.NativeProgram), plan_of(model).steps
    return run


def compare(model, tolerance=0, **feed):
    """One native step, and the same as from NumPy: to the bit, or to a tolerance."""
    outputs = list(model(feed).values())
    segment_of(model)
    for y, expected in zip(outputs, plain(model, **feed)):
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape) and y.flags.owndata and y.flags.writeable
        if tolerance:
            np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(y, expected)
    return outputs


# ------------------------------------------------------------------------------------------------ elementwise
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
    """Of many inputs, of many instructions, and of values that several take."""
    names = [f"v{i}" for i in range(100)]
    chain = " ".join(
        f"{b} = {'Abs' if i % 3 else 'Neg'} ({a})  w{i} = Add ({b}, c{i % 20})"
        for i, (a, b) in enumerate(zip(["x", *[f"w{i}" for i in range(99)]], names))
    )
    model = load(
        parse(f"g (float[n] x) => (z) {{ {chain} z = Mul (w98, w3) }}", **{f"c{i}": random(i, 13) for i in range(20)})
    )
    compare(model, x=random(0, 13))


# ------------------------------------------------------------------------------------------------ views
@pytest.mark.parametrize(
    "expression",
    [
        "Transpose <perm = [2, 0, 1]> (x)",
        "Slice (x, from, to, axes, steps)",
        "Reshape (t, shape)",
        "Unsqueeze (x, axes)",
        "Flatten (t)",
        "Expand (r, wide)",
        "Gather <axis = 1> (x, index)",
        "Gather <axis = 2> (x, indices)",
        "Concat <axis = 1> (x, x, t2)",
        "Pad (x, pads)",
        "Pad (x, pads, value)",
        'Pad <mode = "reflect"> (x, pads)',
        'Pad <mode = "edge"> (x, pads)',
    ],
)
def test_movement(isa, expression):
    shape = (3, 5, 7)
    model = load(
        parse(
            f"""g (float[a,b,c] x) => (z) {{
        t = Transpose <perm = [0, 2, 1]> (x)  t2 = Transpose <perm = [0, 2, 1]> (t)  r = Slice (x, nil, first, mid)
        y = {expression}  z = Neg (y) }}""",
            **{
                "from": np.array([4, -1]),
                "to": np.array([0, -99]),
                "axes": np.array([1, 2]),
                "steps": np.array([-2, -3]),
                "shape": np.array([5, -1]),
                "wide": np.array([2, 3, 4, 7]),
                "nil": np.array([0]),
                "first": np.array([1]),
                "mid": np.array([1]),
                "index": np.array(-2),
                "indices": np.array([[1, -1], [0, 6]]),
                "pads": np.array([2, 1, 3, 0, 2, 1]),
                "value": np.float32(-1.5),
            },
        )
    )
    compare(model, x=random(0, *shape))


def test_split_and_squeeze(isa):
    model = load(
        parse(
            """g (float[a,6,1] x) => (p, q) {
        s = Squeeze (x, last)  a1, a2 = Split <axis = 1> (s, sizes)  p = Neg (a1)  q = Mul (a2, a2) }""",
            last=np.array([2]),
            sizes=np.array([2, 4]),
        )
    )
    compare(model, x=random(0, 3, 6, 1))


def test_outputs_are_arrays_of_their_own():
    """Of an input, of a view, of a constant, the same one twice: writing to one changes no other."""
    model = load(
        parse(
            """g (float[n] x) => (y, a, b, c) {
        y = Neg (x)  a = Reshape (y, all)  b = Identity (x)  c = Identity (k) }""",
            all=np.array([-1]),
            k=random(1, 3),
        )
    )
    x = random(0, 4)
    before = {name: v.copy() for name, v in model(x=x).items()}
    outputs = model(x=x)
    for array in outputs.values():
        array[...] = 9
    for name, array in model(x=x).items():
        np.testing.assert_array_equal(array, before[name])
    assert not np.any(x == 9)


def test_inputs_of_any_layout():
    model = load(parse("g (float[m,n] x) => (y) { t = Transpose (x)  y = Sub (t, one) }", one=np.float32(1)))
    x = random(0, 6, 8)
    for given_x in (x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1][::-1]):
        np.testing.assert_array_equal(model(x=given_x).y, x.T - 1)


# ------------------------------------------------------------------------------------------------ dense and recurrent
def test_dense_and_recurrent(isa):
    model = load(
        parse(
            """g (float[t,b,5] x, float[1,b,6] h) => (z, last) {
        p = MatMul (x, w)  q = Add (p, c)  r = Relu (q)  y, last = GRU <hidden_size = 6> (r, gw, gr, gb, , h)
        s = Squeeze (y, one)  f = Reshape (s, rows)  u = Gemm <transB = 1> (f, v, d)  z = Tanh (u) }""",
            w=random(0, 5, 7),
            c=random(1, 7),
            gw=random(2, 1, 18, 7),
            gr=random(3, 1, 18, 6),
            gb=random(4, 1, 36),
            one=np.array([1]),
            rows=np.array([-1, 6]),
            v=random(5, 21, 6),
            d=random(6, 21),
        )
    )
    z, last = compare(model, 1e-6, x=random(7, 9, 3, 5), h=random(8, 1, 3, 6))
    alone, alone_last = model({"x": random(7, 9, 3, 5)[:, 1:2], "h": random(8, 1, 3, 6)[:, 1:2]}).values()
    np.testing.assert_array_equal(alone, z.reshape(9, 3, 21)[:, 1])
    np.testing.assert_array_equal(alone_last, last[:, 1:2])


@pytest.mark.parametrize(
    "kind, gates, layout, direction",
    [
        ("LSTM", 4, 0, "bidirectional"),
        ("RNN", 1, 0, "reverse"),
        ("GRU", 3, 1, "forward"),
        ("LSTM", 4, 1, "bidirectional"),
    ],
)
def test_recurrent_layouts(isa, kind, gates, layout, direction):
    D = 2 if direction == "bidirectional" else 1
    model = load(
        parse(
            f"""g (float[t,b,5] x) => (z) {{
        n = Neg (x)  y = {kind} <hidden_size = 4, layout = {layout}, direction = "{direction}"> (n, w, r)  z = Abs (y) }}""",
            w=random(0, D, gates * 4, 5),
            r=random(1, D, gates * 4, 4),
        )
    )
    compare(model, 1e-6, x=random(2, 6, 3, 5))


# ------------------------------------------------------------------------------------------------ plans
BRANCHES = """g (float[n] x, int64 rate) => (y) {
    wide = Equal (rate, k)
    y = If (wide) <then_branch = t () => (a) { a = Mul (x, two) }, else_branch = e () => (b) { b = Neg (x) }> }"""


def test_a_plan_depends_on_a_value_that_decides():
    model = load(parse(BRANCHES, k=np.int64(16), two=np.float32(2)))
    x = random(0, 5)
    for _ in range(2):
        np.testing.assert_array_equal(model(x=x, rate=16).y, 2 * x)
        np.testing.assert_array_equal(model(x=x, rate=8).y, -x)
    assert len(model._own.plans.kept) == 2
    for plan in model._own.plans.kept:
        ((run, *_),) = plan.steps
        assert isinstance(run, _programs.NativeProgram)


def test_values_that_never_repeat_are_left_to_the_run():
    model = load(parse(BRANCHES, k=np.int64(16), two=np.float32(2)))
    x = random(0, 5)
    for rate in range(40):
        np.testing.assert_array_equal(model(x=x, rate=rate).y, 2 * x if rate == 16 else -x)
    assert len(model._own.plans.kept) == trace.MAX_SPECIALISED + 1


def test_a_changed_argument_is_no_constant_of_the_plan():
    """The values that a plan depends on are copied."""
    model = load(parse(BRANCHES, k=np.int64(16), two=np.float32(2)))
    x, rate = random(0, 5), np.array(16)
    model(x=x, rate=rate)
    rate[...] = 8
    np.testing.assert_array_equal(model(x=x, rate=rate).y, -x)


def test_python_steps_between_native_ones():
    """What no command does stands between two native steps; the GIL's operators see what native ones made."""
    model = load(
        parse(
            """g (float[m,n] x) => (z) {
        a = Neg (x)  b = Cos (a)  c = Add (b, a)  d = CumSum (c, axis)  e = Mul (d, c)  z = Sub (e, x) }""",
            axis=np.array(1),
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


# ------------------------------------------------------------------------------------------------ bounds
def test_arena_is_no_larger_than_what_lives():
    """A chain of reshaped products: a few buffers live at a time."""
    nodes = " ".join(
        f"a{i + 1} = Concat <axis = 1> (b{i}, b{i})  b{i + 1} = Slice (a{i + 1}, nil, n, axis)" for i in range(30)
    )
    model = load(
        parse(
            f"g (float[m,64] x) => (y) {{ b0 = Neg (x) {nodes} y = Neg (b30) }}",
            nil=np.array([0]),
            n=np.array([64]),
            axis=np.array([1]),
        )
    )
    model(x=random(0, 50, 64))
    program = segment_of(model)
    assert program.live <= program.arena <= 1.5 * program.live < 10 * 2 * 50 * 64 * 4


def used_by_threads(model, feeds, seconds, count=8):
    """Calls from several threads until the time is over, every result to the bit; how many calls."""
    expected = [list(model(feed).values()) for feed in feeds]
    end, failures, calls = time.monotonic() + seconds, [], [0] * count

    def work(k):
        rng = np.random.default_rng(k)
        while time.monotonic() < end and not failures:
            i = int(rng.integers(len(feeds)))
            for y, right in zip(model(feeds[i]).values(), expected[i]):
                if not np.array_equal(y, right):
                    failures.append(i)
            calls[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return sum(calls)


def model_for_threads():
    return load(
        parse(
            """g (float[t,b,5] x) => (z) {
        p = MatMul (x, w)  r = Relu (p)  y = LSTM <hidden_size = 6> (r, gw, gr)  s = Squeeze (y, one)
        u = MatMul (s, v)  z = Tanh (u) }""",
            w=random(0, 5, 7),
            gw=random(2, 1, 24, 7),
            gr=random(3, 1, 24, 6),
            one=np.array([1]),
            v=random(5, 6, 11),
        )
    )


@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_many_threads_on_one_model(seconds):
    model = model_for_threads()
    feeds = [{"x": random(i, 3 + i, 1 + i % 3, 5)} for i in range(6)]
    used_by_threads(model, feeds, 0.3)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert used_by_threads(model, feeds, seconds) > 100
        assert tracemalloc.get_traced_memory()[0] - before < 2**18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("calls", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_is_bounded_whatever_the_shapes(calls):
    model = rnnfast.load(
        parse("g (float[t,b,5] x) => (z) { p = MatMul (x, w)  r = Relu (p)  z = Mul (r, r) }", w=random(0, 5, 40)),
        plans=5,
    )
    rng = np.random.default_rng(0)

    def some(n):
        for _ in range(n):
            T, B = rng.integers(1, 60, 2)
            model(x=np.ones((T, B, 5), np.float32))

    some(60)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        some(calls)
        assert tracemalloc.get_traced_memory()[0] - before < 2**20
    finally:
        tracemalloc.stop()
    assert len(model._own.plans.kept) == 5
    assert sum(program.arena for plan in model._own.plans.kept for program, *_ in plan.steps) < 5 * 60 * 60 * 100 * 4


def test_an_empty_step_costs_little_memory():
    """Twenty nodes of four floats are one command without an arena."""
    chain = " ".join(f"v{i + 1} = {'Abs' if i % 2 else 'Neg'} (v{i})" for i in range(20))
    model = load(parse(f"g (float[4] v0) => (v20) {{ {chain} }}"))
    model(v0=random(0, 4))
    program = segment_of(model)
    assert len(program.notes) == 1 and program.arena == 0


def test_memory_of_a_call():
    """Is known before the call, and is what it takes; shapes that depend on values have none."""
    model = load(
        parse(
            "g (float[m,n] x) => (float[m,k] y) { a = MatMul (x, w)  b = Tanh (a)  c = MatMul (b, v)"
            "  d = Exp (c)  y = Softmax (d) }",
            w=random(0, 40, 500),
            v=random(1, 500, 60),
        )
    )
    x = random(2, 1000, 40)
    nbytes = model.memory(x=x)
    assert 1000 * (500 + 60) * 4 <= nbytes <= 1000 * (500 + 500 + 60) * 4 + 4096
    model(x=x)
    program = segment_of(model)
    assert nbytes == program.arena + 1000 * 60 * 4
    tracemalloc.start()
    try:
        model(x=x)
        assert tracemalloc.get_traced_memory()[1] < nbytes + 65536
    finally:
        tracemalloc.stop()
    assert model.memory(x=x[:10]) < nbytes / 20
    model = load(parse("g (float[n] x) => (int64[1,k] y) { y = NonZero (x) }"))
    assert model.memory(x=x[0]) is None


def test_times_of_commands():
    model = model_for_threads()
    x = random(0, 5, 2, 5)
    model(x=x)
    program = segment_of(model)
    times = program.times(x, rounds=3)
    assert len(times) == len(program.notes) == sum(t >= 0 for t in times) and max(times) > 0
    assert sum(note.flops for note in program.notes) > 0


@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((7, 2, 3, 40), (2, 40, 65)),
        ((7, 1, 3, 4), (2, 4, 5)),
        ((2, 1, 5, 3, 4), (3, 1, 4, 17)),
        ((1, 9), (9, 1)),
    ],
)
def test_products_of_computed_matrices(isa, a, b):
    """Of views too, and each row as if it were alone."""
    types = ["float[" + ",".join(f"{n}{i}" for i in range(len(s))) + "]" for n, s in zip("ab", (a, b))]
    turned = [*range(len(b) - 2), len(b) - 1, len(b) - 2]
    model = load(
        parse(f"""g ({types[0]} a, {types[1]} b) => (z) {{
        t = Transpose <perm = {turned}> (b)  y = MatMul (a, t)  z = Neg (y) }}""")
    )
    x, w = random(0, *a), np.ascontiguousarray(random(1, *b).swapaxes(-1, -2))
    (z,) = compare(model, 2e-6, a=x, b=w)
    np.testing.assert_array_equal(
        model(a=x[..., 1:2, :] if a[-2] > 1 else x, b=w).z, z[..., 1:2, :] if a[-2] > 1 else z
    )


@pytest.mark.parametrize(
    "kind, gates, direction", [("LSTM", 4, "bidirectional"), ("GRU", 3, "reverse"), ("RNN", 1, "forward")]
)
def test_ragged_batches(isa, kind, gates, direction):
    """Lengths that differ from call to call, 0 and the whole among them."""
    D = 2 if direction == "bidirectional" else 1
    model, other = (
        load(
            parse(
                f"""g (float[t,b,5] x, int32[b] lens) => (z, last) {{
        n = Neg (x)  y, last = {kind} <hidden_size = 4, direction = "{direction}"> (n, w, r, , lens)  z = Abs (y) }}""",
                w=random(0, D, gates * 4, 5),
                r=random(1, D, gates * 4, 4),
            )
        )
        for _ in range(2)
    )
    x = random(2, 6, 5, 5)
    for lens in ([6, 6, 6, 6, 6], [3, 0, 6, 1, 3], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]):
        lens = np.array(lens, np.int32)
        z, last = compare(model, 1e-6, x=x, lens=lens)
        for i, n in enumerate(lens):
            alone = other(x=x[:n, i : i + 1] if n else x[:, i : i + 1], lens=lens[i : i + 1])
            np.testing.assert_array_equal(alone.last[:, 0], last[:, i])
            assert not z[n:, :, i].any()


@pytest.mark.parametrize(
    "expression",
    [
        "ReduceMax (x, even)",
        "Softmax (t)",
        "Add (t, v)",
        "Concat <axis = 1> (t, t)",
        "Identity (t)",
        "Gather <axis = 7> (t, i)",
        "ArgMax <axis = 3> (t)",
    ],
)
def test_more_axes_than_a_command_has(expression):
    """Such steps stay as they are, behind native ones; their inputs may come from outside."""
    axes = [",".join(f"{name}{i}" for i in range(14)) for name in "xv"]
    model = load(
        parse(
            f"""g (float[n] a, int64[2] i, float[{axes[0]}] x, float[{axes[1]}] v) => (y, z) {{
        y = Neg (a)  t = Transpose <perm = [0, 2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11, 13]> (x)  z = {expression} }}""",
            opset=18,
            even=np.arange(0, 14, 2),
        )
    )
    feed = {"a": random(0, 3), "i": np.array([1, 0]), "x": random(1, *[2, 2] * 7), "v": random(2, *[1, 2] * 7)}
    for y, expected in zip(model(feed).values(), plain(model, **feed)):
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype, of", [("float", np.float32), ("int64", np.int64), ("bool", np.bool_)])
def test_gather_of_one_item_of_a_vector(dtype, of):
    model = load(
        parse(
            f"""g ({dtype}[n] x) => (y, z) {{
        y = Gather (x, k)  u = Unsqueeze (y, first)  z = Concat <axis = 0> (u, x) }}""",
            k=np.array(-2),
            first=np.array([0]),
        )
    )
    compare(model, x=np.arange(5).astype(of))


def test_slopes_by_channel_before_opset_7():
    model = load(parse("g (float[n,c,m] x) => (y) { s = PRelu (x, slope)  y = Exp (s) }", opset=6, slope=random(1, 3)))
    x = random(0, 2, 3, 3)
    np.testing.assert_allclose(model(x=x)["y"], plain(model, x=x)[0], rtol=1e-6)


# ------------------------------------------------------------------------------------------------ control flow
def test_loop_by_count(isa):
    """Of a count that a run is given: nothing but what is carried."""
    model = load(
        parse(
            """g (float[n] x, int64 count, float[n] z) => (float[n] y, float[n] w) {
        y, w = Loop (count, , x, z) <body = b (int64 i, bool c, float[n] a, float[n] b) =>
            (bool d, float[n] e, float[n] f) {
                d = Identity (c)  g = Mul (a, k)  j = Cast <to = 1> (i)  h = Sub (g, x)  e = Add (h, j)
                f = Identity (a) }> }""",
            k=np.float32(0.5),
        )
    )
    x, z = random(0, 37), random(1, 37)
    for count in (7, 1, 0, 3, 2, 8, -1):
        y, w = x, z
        for i in range(count):
            y, w = y * np.float32(0.5) - x + np.float32(i), y
        outputs = model(x=x, z=z, count=count)
        np.testing.assert_array_equal(outputs.y, y)
        np.testing.assert_array_equal(outputs.w, w)
    assert {type(run) for plan in model._own.plans.kept for run, *_ in plan.steps} == {_programs.NativeProgram}


def test_loop_by_condition(isa):
    model = load(
        parse(
            """g (float[n] x, float most) => (float[n] y, int64 count) {
        y, count = Loop (, on, x, zero) <body = b (int64 i, bool c, float[n] a, int64 m) =>
            (bool d, float[n] e, int64 f) {
                e = Add (a, a)  s = ReduceSum <keepdims = 0> (e)  d = Less (s, most)  f = Add (m, one) }> }""",
            on=np.array(True),
            zero=np.array(0),
            one=np.array(1),
        )
    )
    x = np.abs(random(0, 9))
    for most in (100, 3000, 0):
        compare(model, 1e-5, x=x, most=np.float32(most))


def test_swapped_states_and_rows(isa):
    """States change places, rows are what was carried; the count is a constant."""
    model = load(
        parse(
            """g (float[n] x, float[2,n] z) => (float[n] y, float[2,n] w, float[t,n] s, float[t,2,n] r, float[t] q) {
        o, p, s, r, q = Loop (five, on, x, z) <body = b (int64 i, bool c, float[n] a, float[2,n] b) =>
            (bool d, float[n] e, float[2,n] f, float[n] g, float[2,n] h, float j) {
                d = Identity (c)  e = Gather <axis = 0> (b, zero)  k = Unsqueeze (a, axis)  l = Tanh (k)
                f = Concat <axis = 0> (l, l)  g = Identity (a)  h = Identity (f)  j = Identity (constant) }>
        y = Neg (o)  w = Neg (p) }""",
            five=np.array(5),
            on=np.array(True),
            zero=np.array(0),
            axis=np.array([0]),
            constant=np.float32(2.5),
        )
    )
    compare(model, x=random(0, 17), z=random(1, 2, 17))


@pytest.mark.parametrize("axes, directions", [((0, 0), (0, 0)), ((1, 0), (1, 0)), ((-1, 1), (1, 1)), ((1, 1), (0, 1))])
def test_scan(isa, axes, directions):
    body = helper.make_graph(
        [
            helper.make_node("Gemm", ["h", "w"], ["p"]),
            helper.make_node("Add", ["p", "v"], ["q"]),
            helper.make_node("Tanh", ["q"], ["h2"]),
            helper.make_node("Mul", ["h2", "u"], ["y"]),
            helper.make_node("Neg", ["v"], ["z"]),
        ],
        "body",
        [helper.make_tensor_value_info(*v) for v in (("h", 1, (2, 5)), ("v", 1, (2, 5)), ("u", 1, (2, 1)))],
        [helper.make_tensor_value_info(*v) for v in (("h2", 1, (2, 5)), ("y", 1, (2, 5)), ("z", 1, (2, 5)))],
    )
    shapes = [np.insert((2, n), axis % 3, 11).tolist() for n, axis in zip((5, 1), axes)]
    scan = helper.make_node(
        "Scan",
        ["s", "a", "b"],
        ["h", "ys", "zs"],
        body=body,
        num_scan_inputs=2,
        scan_input_axes=axes,
        scan_input_directions=directions,
        scan_output_axes=axes,
        scan_output_directions=directions,
    )
    model = load(
        model_of(
            [scan],
            [("s", 1, (2, 5)), ("a", 1, shapes[0]), ("b", 1, shapes[1])],
            [(name, 1, None) for name in ("h", "ys", "zs")],
            {"w": random(3, 5, 5)},
        )
    )
    compare(model, 1e-6, s=random(0, 2, 5), a=random(1, *shapes[0]), b=random(2, *shapes[1]))


IF = """g (float[n] x, float m) => (float[n] y, float[n] z) {
    k = Exp (x)  c = Greater (m, zero)
    y, z = If (c) <
        then_branch = t () => (float[n] ty, float[n] tz) { ty = Mul (k, two)  tz = Identity (x) },
        else_branch = e () => (float[n] ey, float[n] ez) { ey = Identity (fixed)  ez = Identity (ey) }> }"""


def test_if_of_a_value(isa):
    model = load(parse(IF, two=np.float32(2), zero=np.float32(0), fixed=random(7, 6)))
    for c in (True, False, True):
        compare(model, 1e-6, x=random(int(c), 6), m=np.float32(c))


def test_branches_of_different_shapes_stay_as_they_are():
    """They are the caller's, and a branch that never runs may be wrong."""
    model = load(parse(IF, two=np.float32(2), zero=np.float32(0), fixed=random(7, 5)))
    for c in (True, False, True):
        assert model(x=random(0, 6), m=np.float32(c)).y.shape == (6 if c else 5,)
    model = load(
        parse(
            IF.replace("ey = Identity (fixed)", "ey = Add (x, fixed)"),
            two=np.float32(2),
            zero=np.float32(0),
            fixed=random(7, 5),
        )
    )
    assert model(x=random(0, 6), m=1.0).y.shape == (6,)
    with pytest.raises(InputError, match="Add"):
        model(x=random(0, 6), m=-1.0)


def test_an_index_in_a_body_is_checked():
    """The first iteration that is wrong says so; a stream's state stays as it was."""
    model = load(
        parse(
            """g (int64[t] ids, float[3] h) => (float[3] hn) {
        hn = Scan <num_scan_inputs = 1, body = b (float[3] a, int64 i) => (float[3] e) {
            r = Gather <axis = 0> (table, i)  e = Add (a, r) }> (h, ids) }""",
            table=random(0, 4, 3),
        )
    )
    h = random(1, 3)
    compare(model, ids=np.array([3, 0, -1, 2]), h=h)
    for _ in range(2):
        with pytest.raises(InputError, match="Gather.*index 4 is out of range for an axis of 4"):
            model(ids=np.array([3, 4, 0, 9]), h=h)
        model(ids=np.array([3, 1, 0, 2]), h=h)
    stream = model.stream(states={"h": "hn"})
    stream.step(ids=np.array([1, 2]))
    before = stream.state["h"].copy()
    with pytest.raises(InputError, match="index 4"):
        stream.step(ids=np.array([1, 4]))
    np.testing.assert_array_equal(stream.state["h"], before)


def test_the_first_error_of_a_body_ends_its_loop():
    """Not the one that a later iteration would meet, nor the limit of a loop that goes on for it."""
    model = load(
        parse(
            """g (float x, int64 k) => (float y) {
        y = Loop (, on, x) <body = b (int64 i, bool c, float a) => (bool d, float e) {
            q = Gather (flags, k)  d = Cast <to = 9> (q)  e = Neg (a) }> }""",
            on=np.array(True),
            flags=np.array([1, 0]),
        )
    )
    assert model(x=1.5, k=1).y == -1.5
    with pytest.raises(InputError, match="Gather.*index 5"):
        model(x=1.5, k=5)
    model = load(
        parse(
            """g (int64[t] ids, float h) => (float hn) {
        hn = Scan <num_scan_inputs = 1, body = b (float a, int64 i) => (float e) {
            r = Gather (table, i)  j = Add (i, one)  s = Gather (table, j)  p = Add (a, r)  e = Add (p, s) }> (h, ids)
        }""",
            table=random(0, 6),
            one=np.array(1),
        )
    )
    model(ids=np.array([3, 0, 4]), h=0.5)
    with pytest.raises(InputError, match="index 6"):
        model(ids=np.array([0, 5, 7]), h=0.5)


def test_scan_of_a_vector_whose_body_is_native():
    model = load(
        parse(
            """g (float[t] x, float[n] h) => (float[k] hn) {
        hn = Scan <num_scan_inputs = 1, body = b (float[p] a, float v) => (float[q] e) {
            s = Neg (v)  f = Add (a, s)  e = Concat <axis = 0> (f, one) }> (h, x) }""",
            one=random(2, 1),
        )
    )
    feed = {"x": random(0, 3), "h": random(1, 2)}
    np.testing.assert_array_equal(model(feed).hn, plain(model, **feed)[0])


def test_a_native_loop_ends(monkeypatch):
    monkeypatch.setattr(budget, "MAX_ITERATIONS", 50)
    text = """g (float x, bool on) => (float y) { y = Loop (, on, x) <body = b (int64 i, bool go, float h) => (bool m, float h2) {
        m = Identity (go)  INNER }> }"""
    for inner in (
        "h2 = Neg (h)",
        "h2 = Loop (three, , h) <body = c (int64 j, bool g, float a) => (bool k, float l) "
        "{ k = Identity (g)  l = Neg (a) }>",
    ):
        model = load(parse(text.replace("INNER", inner), three=np.array(3)))
        assert model(x=1.5, on=False).y == 1.5
        segment_of(model)
        for _ in range(2):
            with pytest.raises(LimitError, match="Loop.*more than 50 iterations"):
                model(x=1.5, on=True)
            assert model(x=1.5, on=False).y == 1.5
