"""Symbolic plans: the program for other sizes is the one that a trace makes, command by command, and gives its bits."""

import threading

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import Error, InputError, LimitError
from rnnfast.native._programs import NativeProgram
from rnnfast.onnx.budget import Budget
from rnnfast.onnx.symbolic import plans as symbolic_plans
from rnnfast.onnx.symbolic.plans import MOST_MADE, SymbolicPlan
from rnnfast.onnx.trace import trace
from tests.graphs import parse, random
from tests.published import published_path

pytestmark = pytest.mark.usefixtures("verified")


@pytest.fixture
def verified(monkeypatch):
    """Each program that is made is verified."""
    monkeypatch.setenv("RNNFAST_VERIFY", "1")


def weights(seed, *shape):
    return (0.3 * random(seed, *shape)).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


LSTM = dict(w=weights(1, 1, 20, 6), r=weights(2, 1, 20, 5), b=weights(3, 1, 40))
# name -> (graph, initializers); sizes that a graph names t, b and k are free
GRAPHS = {
    "lstm": ("g (float[t,b,6] x) => (float[t,1,b,5] y) { y = LSTM <hidden_size = 5> (x, w, r, b) }", LSTM),
    "ragged gru with states": (
        """g (float[t,b,6] x, int32[b] n, float[2,b,5] h) => (float[t,2,b,5] y, float[2,b,5] last) {
            y, last = GRU <hidden_size = 5, direction = "bidirectional"> (x, w, r, , n, h) }""",
        dict(w=weights(1, 2, 15, 6), r=weights(2, 2, 15, 5)),
    ),
    "batch first": (
        """g (float[b,t,6] x) => (float[b,t,1,5] y, float[b,1,5] h, float[b,1,5] c) {
            y, h, c = LSTM <hidden_size = 5, layout = 1> (x, w, r, b) }""",
        LSTM,
    ),
    "tagger": (
        """g (int64[b,t] x) => (float[b,t,7] y) {
            e = Gather (words, x)  s = Transpose <perm = [1, 0, 2]> (e)  h = LSTM <hidden_size = 5> (s, w, r, b)
            q = Squeeze (h, one)  f = Transpose <perm = [1, 0, 2]> (q)  p = MatMul (f, tags)  z = Add (p, bias)
            y = Softmax <axis = -1> (z) }""",
        LSTM | dict(words=random(4, 30, 6), tags=weights(5, 5, 7), bias=weights(6, 7), one=ints(1)),
    ),
    "states of the batch's size": (
        """g (float[t,b,6] x) => (float[t,1,b,5] y) {
            s = Shape (x)  n = Gather (s, axis)  first = Concat <axis = 0> (one, n, five)
            zeros = ConstantOfShape (first)  more = Expand (zero, first)
            y = LSTM <hidden_size = 5> (x, w, r, b, , zeros, more) }""",
        LSTM | dict(axis=ints(1), one=ints(1), five=ints(5), zero=np.float32(0)),
    ),
    "flattened and back": (
        """g (float[b,t,6] x) => (float[b,t,4] y, float[k,3] z) {
            f = Reshape (x, rows)  p = Gemm (f, m, c)  s = Shape <end = 2> (x)  d = Concat <axis = 0> (s, four)
            y = Reshape (p, d)  e = Size (x)  three = Cast <to = 7> (divisor)  n = Div (e, three)
            u = Unsqueeze (n, zero)  v = Concat <axis = 0> (u, divisor1)  z = Reshape (x, v) }""",
        dict(rows=ints(-1, 6), m=weights(1, 6, 4), c=weights(2, 4), four=ints(4), zero=ints(0), divisor1=ints(3))
        | dict(divisor=np.int32(3)),
    ),
    "convolutions": (
        """g (float[b,3,t] x) => (float[b,4,k] y) {
            p = Conv <pads = [2, 1], strides = [2]> (x, w, bias)  n = BatchNormalization (p, s, o, m, v)
            r = Relu (n)  q = MaxPool <kernel_shape = [2], strides = [2]> (r)
            y = Conv <pads = [1, 1], group = 4> (q, d) }""",
        dict(w=weights(1, 4, 3, 5), bias=weights(2, 4), s=weights(3, 4), o=weights(4, 4), m=weights(5, 4))
        | dict(v=np.abs(weights(6, 4)) + 1, d=weights(7, 4, 1, 3)),
    ),
    "an image of a line of text": (
        """g (float[b,1,8,t] x) => (float[t,b,5] y) {
            p = Conv <pads = [1, 1, 1, 1]> (x, w)  r = LeakyRelu (p)
            q = AveragePool <kernel_shape = [2, 1], strides = [2, 1]> (r)
            s = ReduceMean <axes = [2], keepdims = 0> (q)  v = Transpose <perm = [2, 0, 1]> (s)  z = MatMul (v, m)
            y = LogSoftmax (z) }""",
        dict(w=weights(1, 4, 1, 3, 3), m=weights(2, 4, 5)),
    ),
    "attention": (
        """g (float[b,t,6] x) => (float[b,t,6] y) {
            q = MatMul (x, a)  k = MatMul (x, c)  kt = Transpose <perm = [0, 2, 1]> (k)  s = MatMul (q, kt)
            d = Mul (s, scale)  p = Softmax (d)  z = MatMul (p, x)  r = Add (z, x)
            y = LayerNormalization (r, gain, bias) }""",
        dict(a=weights(1, 6, 6), c=weights(2, 6, 6), scale=np.float32(0.4), gain=weights(3, 6), bias=weights(4, 6)),
    ),
    "slices and pads": (
        """g (float[b,t,6] x) => (float[b,k,6] y, float[b,6] z, float[b,3,6] s, int64[b,6] i) {
            last = Slice (x, from, to, axis)  both = Concat <axis = 1> (last, x)  y = Pad (both, pads)
            z = Gather <axis = 1> (x, end)  r = Slice (x, end1, start, axis, back)  s = Slice (r, zero, three, axis)
            i = ArgMax <axis = 1, keepdims = 0> (x) }""",
        {"from": ints(-2), "to": ints(2**31 - 1), "axis": ints(1), "pads": ints(0, 1, 0, 0, 2, 0), "end": np.int64(-1)}
        | {"end1": ints(-1), "start": ints(-(2**31)), "back": ints(-1), "zero": ints(0), "three": ints(3)},
    ),
    "a mask of lengths": (
        """g (float[b,t,6] x, int64[b] n) => (float[b,t,6] y, float[b,6] mean) {
            s = Shape <start = 1, end = 2> (x)  l = Squeeze (s)  r = Range (first, l, one)  u = Unsqueeze (n, last)
            m = Less (r, u)  f = Cast <to = 1> (m)  w = Unsqueeze (f, behind)  y = Mul (x, w)
            total = ReduceSum <keepdims = 0> (y, last)  count = Cast <to = 1> (s)  mean = Div (total, count) }""",
        dict(first=np.int64(0), one=np.int64(1), last=ints(1), behind=ints(2)),
    ),
    "a causal mask and positions": (
        """g (float[b,t,6] x) => (float[b,t,6] y) {
            s = Shape <start = 1, end = 2> (x)  l = Squeeze (s)  r = Range (first, l, one)
            place = Gather (table, r)  z = Add (x, place)
            i = Unsqueeze (r, zero)  j = Unsqueeze (r, last)  m = LessOrEqual (i, j)  low = Where (m, nothing, much)
            k = Transpose <perm = [0, 2, 1]> (z)  c = MatMul (z, k)  d = Add (c, low)  p = Softmax (d)
            y = MatMul (p, x) }""",
        dict(first=np.int64(0), one=np.int64(1), zero=ints(0), last=ints(1), table=random(3, 60, 6))
        | dict(nothing=np.float32(0), much=np.float32(-1e4)),
    ),
    "indices": (
        """g (float[b,t,6] x) => (float[b,k,6] y, float[b,l,6] z, float[b,4,6] s) {
            r = Relu (x)  y = Gather <axis = 1> (r, end)  z = Gather <axis = 1> (r, back)
            s = Gather <axis = 1> (r, front) }""",
        dict(end=ints(-1), back=ints(-1, -3), front=ints(0, 2, 1, 1)),
    ),
    "a step of NumPy between": (
        """g (float[b,t,6] x) => (float[b,t,6] y) {
            r = Relu (x)  h = Hardmax (r)  a = Add (h, x)  n = ReduceMax <axes = [1]> (a)  y = Sub (a, n) }""",
        {},
    ),
    "branches that sizes choose": (
        """g (float[b,t,6] x) => (float[b,k] y) {
            s = Shape <start = 1, end = 2> (x)  n = Squeeze (s)  many = Greater (n, five)
            y = If (many) <
                then_branch = a () => (float[b,k] u) { u = ReduceMax <axes = [1], keepdims = 0> (x) },
                else_branch = c () => (float[b,k] v) { v = Gather <axis = 1> (x, zero) }> }""",
        dict(five=np.int64(5), zero=np.int64(0)),
    ),
}


def feed_of(model, rng, sizes):
    """Random inputs for sizes by their names in the graph."""
    feed = {}
    for value in model.inputs:
        shape = [sizes.get(n, n) for n in value.type.shape]
        if value.type.dtype == np.float32:
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feed[value.name] = rng.integers(0, 2 if value.type.dtype == np.int32 else 30, shape, value.type.dtype)
    return feed


def commands(plan):
    """What the native programs of a plan do, and in how many words."""
    programs = [step.run for step in plan.unmetered_steps if type(step.run) is NativeProgram]
    return [(program.notes, program.n_words, program.inputs, program.outputs) for program in programs]


def assert_same_plan(plan, traced):
    assert [type(step.run) is NativeProgram for step in plan.unmetered_steps] == [
        type(step.run) is NativeProgram for step in traced.unmetered_steps
    ]
    assert commands(plan) == commands(traced)
    assert plan.work == traced.work
    assert [(like.shape, like.dtype) for like in plan.results] == [(like.shape, like.dtype) for like in traced.results]
    ours, theirs = (sum(p.arena for p in (s.run for s in x.unmetered_steps) if type(p) is NativeProgram)
                    for x in (plan, traced))  # fmt: skip
    assert ours <= 2 * theirs + 1024


def assert_same_bits(outputs, expected):
    for got, wanted in zip(outputs, expected):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", GRAPHS)
def test_programs_for_other_sizes_are_those_of_a_trace(name):
    text, initializers = GRAPHS[name]
    model, rng = rnnfast.load(parse(text, **initializers)), np.random.default_rng(0)
    found = 0
    for round in range(40):
        names = {n for v in model.inputs for n in v.type.shape if isinstance(n, str)}
        sizes = {
            n: int(rng.integers(6 if name in ("convolutions", "indices") else 1, 13)) + 4 * (round > 25)
            for n in sorted(names)
        }
        planned, args = model.prepare(feed_of(model, rng, sizes))
        before = model.planned.symbolic._plans
        plan = planned.plan(args)
        outputs = planned.run(args)
        found += bool(before) and model.planned.symbolic._plans[0] in before
        traced, _ = trace(planned, args, Budget(args))
        assert_same_plan(plan, traced)
        assert_same_bits(outputs, traced.shared(args))
    assert found >= 15 and model.planned.symbolic._left > 0


def test_a_new_length_needs_no_trace(monkeypatch):
    text, initializers = GRAPHS["tagger"]
    model, traced = rnnfast.load(parse(text, **initializers)), []
    original = model.planned._trace
    monkeypatch.setattr(model.planned, "_trace", lambda *args: traced.append(args) or original(*args))
    for length in [5, *range(100, 0, -1)]:
        model(x=np.ones((1, length), np.int64))
    assert len(traced) == 2  # of the first length, and of length 1
    assert len(model.planned.symbolic._plans) <= 4


def test_models_of_others_have_symbolic_plans():
    """For the sizes of their example the commands are those of a trace."""
    folder = published_path("models")
    found = 0
    for file in sorted(folder.glob("*.onnx")):
        model, data = rnnfast.load(file), np.load(file.with_suffix(".npz"))
        feed = {v.name: data[f"in_{v.name}"] for v in model.inputs if f"in_{v.name}" in data}
        if set(model.required_inputs) - feed.keys():
            continue
        planned, args = model.prepare(feed)
        traced, _ = trace(planned, args, Budget(args))
        free = [
            (i, axis)
            for i, name in enumerate(planned.names)
            for axis, n in enumerate(next(v for v in model.inputs if v.name == name).type.shape)
            if not isinstance(n, int) and args[i].shape[axis] > 1
        ]
        if free:
            plan = SymbolicPlan(planned, args, tuple(i for i, _ in traced.pinned), free).plan_for(args)
            assert_same_plan(plan, traced)
            found += 1
    assert found >= 15


def test_constants_of_the_batch_s_size_are_read_as_they_are():
    """They are one element that is repeated, which a state is not: it is copied."""
    text = GRAPHS["states of the batch's size"][0]
    initializers = GRAPHS["states of the batch's size"][1] | dict(zero=np.float32(0.5))
    model, alone = (rnnfast.load(parse(text, **initializers)) for _ in range(2))
    alone.planned.symbolic = None
    for t, b in ((3, 2), (4, 3), (5, 4), (9, 7)):
        x = random(t, t, b, 6)
        np.testing.assert_array_equal(model(x=x).y, alone(x=x).y)
    assert model.planned.symbolic._plans


# ------------------------------------------------------------------------------------------------ what does not fit
def warmed(name, *sizes, **settings):
    """A model with a symbolic plan from two calls of these sizes, and what makes feeds."""
    text, initializers = GRAPHS[name]
    model, rng = rnnfast.load(parse(text, **initializers), **settings), np.random.default_rng(0)
    for given in sizes:
        model(feed_of(model, rng, given))
    assert model.planned.symbolic._plans
    return model, lambda given: feed_of(model, rng, given)


def test_errors_name_the_sizes_of_the_call():
    model, feed = warmed("tagger", dict(b=1, t=5), dict(b=1, t=9))
    wrong = feed(dict(b=1, t=7))
    wrong["x"][0, 3] = 30
    with pytest.raises(InputError, match="index 30 is out of range for an axis of 30 elements"):
        model(wrong)
    model, feed = warmed("ragged gru with states", dict(b=2, t=5), dict(b=3, t=9))
    wrong = feed(dict(b=4, t=7))
    wrong["n"][1] = 8
    with pytest.raises(InputError, match="sequence_lens has 8, expected 0 to 7"):
        model(wrong)


def test_sizes_that_do_not_fit_each_other_raise_what_a_trace_raises():
    model, feed = warmed("ragged gru with states", dict(b=2, t=5), dict(b=3, t=9))
    wrong = feed(dict(b=4, t=7)) | {"h": random(0, 2, 5, 5)}
    with pytest.raises(InputError, match=r"initial_h has shape \(2, 5, 5\), expected \(2, 4, 5\)"):
        model(wrong)
    assert model(feed(dict(b=5, t=6))).y.shape == (6, 2, 5, 5)
    assert model.planned.symbolic._left > 0


def test_limits_hold_for_each_length():
    model, feed = warmed("lstm", dict(b=1, t=5), dict(b=1, t=9), limits=rnnfast.Limits(bytes_of_a_call=40_000))
    model(feed(dict(b=1, t=90)))
    with pytest.raises(LimitError, match="limits.bytes_of_a_call"):
        model(feed(dict(b=1, t=3000)))
    model, feed = warmed("lstm", dict(b=1, t=5), dict(b=1, t=9), limits=rnnfast.Limits(work=1_000_000))
    model(feed(dict(b=1, t=10)))
    with pytest.raises(LimitError, match="limits.work"):
        model(feed(dict(b=1, t=3000)))


def test_wrong_calls_do_not_end_symbolic_plans():
    text, initializers = GRAPHS["ragged gru with states"]
    model, rng = rnnfast.load(parse(text, **initializers)), np.random.default_rng(0)
    model(feed_of(model, rng, dict(b=2, t=5)))
    for t in range(6, 50):
        with pytest.raises(InputError):
            model(feed_of(model, rng, dict(b=2, t=t)) | {"h": random(0, 2, 9, 5)})
    model(feed_of(model, rng, dict(b=3, t=50)))
    assert model.planned.symbolic._plans


# name -> (operators of the branch of more than ten steps, of x, float[t,3], and b, bool[t,3], and constants of it)
WRONG_BRANCHES = {
    "a type": ("n = Add (b, b)  u = Cast <to = 1> (n)", {}),
    "an axis": ("u = LpNormalization <axis = 7> (x)", {}),
    "a rank": ("c = Reshape (x, minus)  u = GlobalAveragePool (c)", dict(minus=ints(-1))),
}


@pytest.mark.parametrize("name", WRONG_BRANCHES)
def test_a_branch_that_no_trace_has_taken_is_traced(name):
    """A trace checks types, ranks and attributes, which shape rules need not do."""
    operators, initializers = WRONG_BRANCHES[name]
    text = f"""g (float[t,3] x) => (float[k,l] y) {{
        s = Shape (x)  n = Gather (s, zero)  many = Greater (n, ten)  b = Cast <to = 9> (x)
        y = If (many) <then_branch = p () => (float[k,l] u) {{ {operators} }},
                       else_branch = q () => (float[k,l] v) {{ v = Neg (x) }}> }}"""
    model = rnnfast.load(parse(text, zero=np.int64(0), ten=np.int64(10), **initializers))
    alone = rnnfast.load(parse(text, zero=np.int64(0), ten=np.int64(10), **initializers))
    alone.planned.symbolic = None
    for t in (3, 4, 5, 11, 12, 6, 13):
        x = random(t, t, 3)
        if t < 10:
            np.testing.assert_array_equal(model(x=x).y, -x)
            continue
        with pytest.raises(Error) as wanted:
            alone(x=x)
        with pytest.raises(type(wanted.value)) as got:
            model(x=x)
        assert str(got.value) == str(wanted.value)
    assert model.planned.symbolic._left == MOST_MADE - 1


# name -> (graph of x, float[t], that gives y, constants, lengths: those that have a symbolic plan come first)
DECIDED = {
    "a constant beyond the limit of a tensor": (
        "s = Shape (x)  n = Mul (s, big)  z = ConstantOfShape (n)  p = Slice (z, zero, one)  y = Add (x, p)",
        dict(big=ints(2**20), zero=ints(0), one=ints(1)),
        (2, 3, 4, 1000),
    ),
    "an expanded constant beyond the limit of a tensor": (
        "s = Shape (x)  n = Mul (s, big)  z = Expand (f, n)  p = Slice (z, zero, one)  y = Add (x, p)",
        dict(big=ints(2**20), zero=ints(0), one=ints(1), f=np.float32(1)),
        (2, 3, 4, 1000),
    ),
    "an axis that a size chooses": (
        "s = Shape (x)  c = Greater (s, ten)  a = Where (c, five, zero)  y = CumSum (x, a)",
        dict(ten=ints(10), five=ints(5), zero=ints(0)),
        (3, 4, 5, 11, 12, 6),
    ),
    "a function of positions, whose bits are those of a kernel": (
        "s = Shape (x)  l = Squeeze (s)  r = Range (first, l, one)  f = Cast <to = 1> (r)  p = Sin (f)  y = Add (x, p)",
        dict(first=np.int64(0), one=np.int64(1)),
        (3, 40, 25),
    ),
    "a sum over no axes": (
        "s = Shape (x)  p = ReduceSum <noop_with_empty_axes = 1> (s)  r = Reshape (x, p)  y = Neg (r)",
        {},
        (3, 4, 5),
    ),
    "a mean of integers, which is a float": (
        "i = Cast <to = 7> (x)  m = Mean (i, i)  y = Cast <to = 1> (m)",
        {},
        (3, 4, 5),
    ),
    "indices from the front and from the end": ("r = Relu (x)  y = Gather (r, i)", dict(i=ints(0, 0, -1)), (3, 7, 5)),
    "a quotient of nothing by nothing": (
        "s = Shape (x)  n = Sub (s, five)  z = Div (zero, n)  o = Add (z, one)  e = Expand (x, o)  y = Neg (e)",
        dict(five=ints(5), zero=ints(0), one=ints(1)),
        (8, 7, 9, 6, 5, 10),
    ),
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_sizes_decide_is_what_a_trace_says(name):
    """Neither results nor errors depend on whether there is a symbolic plan."""
    operators, initializers, lengths = DECIDED[name]
    text = f"g (float[t] x) => (float[k] y) {{ {operators} }}"
    model, alone = (rnnfast.load(parse(text, **initializers)) for _ in range(2))
    alone.planned.symbolic = None
    for t in lengths:
        outcomes = []
        for one in (model, alone):
            try:
                outcomes.append(one(x=random(t, t)).y)
            except Error as e:
                outcomes.append((type(e), str(e)))
        np.testing.assert_equal(*outcomes)


def test_wrong_calls_do_not_count_as_failures_of_later_ones():
    text, initializers = GRAPHS["ragged gru with states"]
    model, rng = rnnfast.load(parse(text, **initializers)), np.random.default_rng(0)
    model(feed_of(model, rng, dict(b=2, t=5)))
    with pytest.raises(InputError):
        model(feed_of(model, rng, dict(b=2, t=7)) | {"h": random(0, 2, 9, 5)})
    model(feed_of(model, rng, dict(b=1, t=1)))  # no size that could be symbolic: it is traced
    assert model.planned.symbolic._left == MOST_MADE
    model(feed_of(model, rng, dict(b=2, t=9)))
    assert model.planned.symbolic._plans


def test_plans_that_limits_refuse_are_not_made_again_and_again(monkeypatch):
    """A symbolic plan may need more memory than a trace's; where it does not fit, the model goes on with traces."""
    monkeypatch.setattr(SymbolicPlan, "plan_for", lambda self, args: None)
    attempts, original = [], SymbolicPlan.__init__
    monkeypatch.setattr(SymbolicPlan, "__init__", lambda *args: attempts.append(args) or original(*args))
    text, initializers = GRAPHS["lstm"]
    model, rng = rnnfast.load(parse(text, **initializers)), np.random.default_rng(0)
    for t in range(3, 12):
        model(feed_of(model, rng, dict(b=2, t=t)))
    assert len(attempts) == 1


def test_graphs_without_symbolic_plans_try_once(monkeypatch):
    model = rnnfast.load(parse("g (float[n] x) => (int64[1,k] y) { y = NonZero (x) }"))
    attempts, original = [], SymbolicPlan.__init__
    monkeypatch.setattr(SymbolicPlan, "__init__", lambda *args: attempts.append(args) or original(*args))
    for n in range(2, 20):
        assert model(x=np.ones(n, np.float32)).y.tolist() == [list(range(n))]
    assert len(attempts) == 1


def test_a_graph_that_decides_by_remainders_gives_up(monkeypatch):
    monkeypatch.setattr(symbolic_plans, "MOST_MADE", 3)
    text = """g (float[n] x) => (float[n] y) {
        s = Shape (x)  r = Mod (s, five)  e = Equal (r, two)  c = Squeeze (e)
        l = Less (r, two)  d = Squeeze (l)
        y = If (c) <then_branch = a () => (float[n] u) { u = Neg (x) },
                    else_branch = b () => (float[n] v) {
                        v = If (d) <then_branch = c1 () => (float[n] p) { p = Abs (x) },
                                    else_branch = c2 () => (float[n] q) { q = Relu (x) }> }> }"""
    model = rnnfast.load(parse(text, five=ints(5), two=ints(2)))
    for n in range(2, 40):
        x = random(n, n)
        expected = -x if n % 5 == 2 else np.abs(x) if n % 5 < 2 else np.maximum(x, 0)
        np.testing.assert_array_equal(model(x=x).y, expected)
    assert len(model.planned.symbolic._plans) == 3 and model.planned.symbolic._left == 0


def test_regimes_are_kept():
    """Batches of one, parities and short lengths each decide about convolutions: all these plans are kept."""
    text, initializers = GRAPHS["convolutions"]
    model, rng = rnnfast.load(parse(text, **initializers)), np.random.default_rng(0)
    for _ in range(400):
        model(feed_of(model, rng, dict(b=int(rng.integers(1, 5)), t=int(rng.integers(8, 120)))))
    symbolic = model.planned.symbolic
    assert 12 <= len(symbolic._plans) == MOST_MADE - symbolic._left < 20


def test_pinned_values_stay_pinned():
    text = """g (float[t,3] x, bool[] up) => (float[t,3] y) {
        y = If (up) <then_branch = a () => (float[t,3] u) { u = Add (x, one) },
                     else_branch = b () => (float[t,3] v) { v = Sub (x, one) }> }"""
    model = rnnfast.load(parse(text, one=np.float32(1)))
    for t in (4, 5, 6, 7, 8):
        for up in (True, False, True):
            x = random(t, t, 3)
            np.testing.assert_array_equal(model(x=x, up=np.array(up)).y, x + 1 if up else x - 1)
    assert model.planned.symbolic._plans


def test_threads_share_symbolic_plans():
    text, initializers = GRAPHS["tagger"]
    model, alone = (rnnfast.load(parse(text, **initializers)) for _ in range(2))
    alone.planned.symbolic = None
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            x = rng.integers(0, 30, (int(rng.integers(1, 4)), int(rng.integers(1, 60))))
            if not np.array_equal(model(x=x).y, alone(x=x).y):
                wrong.append(x.shape)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_model_knows_what_symbolic_plans_hold():
    model, feed = warmed("lstm", dict(b=1, t=5), dict(b=1, t=9))
    held = model.memory()
    assert held > sum(array.nbytes for array in model.planned.symbolic.held()) > 1000


@pytest.mark.parametrize("name", ["lstm", "a step of NumPy between"])
def test_the_memory_of_a_call_is_known(name):
    model, feed = warmed(name, dict(b=2, t=5), dict(b=3, t=9))
    alone = rnnfast.load(parse(GRAPHS[name][0], **GRAPHS[name][1]))
    alone.planned.symbolic = None
    inputs = feed(dict(b=4, t=30))
    expected = alone.memory(inputs)
    assert expected <= model.memory(inputs) <= 1.5 * expected
