"""Folding and plans: what is computed at load, limits of memory, results released behind their last use."""

import tracemalloc

import numpy as np
import pytest
from onnx import helper

import rnnfast
from rnnfast.errors import LimitError, ModelError
from rnnfast.onnx import budget, folding, trace
from tests.graphs import load, model_of, onnxruntime, parse, random
from tests.model_graphs import GRU, H


def steps(model, feed):
    """The operators that a call with these shapes runs."""
    model(feed)
    planned, args = model.prepare(feed)
    plan, _ = trace.trace(planned, args, budget.Budget(args))
    return [where.rpartition("(")[2][:-1] for *_, where in plan.steps]


def test_shape_arithmetic_is_folded():
    """The chain that torch writes for a state of the batch's size."""
    text = """g (float[t,b,4] x) => (float[t,1,b,3] y) {
        s = Shape (x)  b = Gather <axis = 0> (s, one)  b1 = Unsqueeze (b, axis)
        dims = Concat <axis = 0> (first, b1, last)  h = ConstantOfShape <value = float[1] {0.5}> (dims)
        w1 = Slice (wide, from, to, axis)  w2 = Concat <axis = 0> (w1, w1, w1)  w = Unsqueeze (w2, axis)
        y = GRU <hidden_size = 3> (x, w, r, , , h) }"""
    model = parse(
        text,
        one=np.int64(1),
        axis=np.array([0]),
        first=np.array([1]),
        last=np.array([3]),
        wide=random(0, 5, 4),
        **{"from": np.array([1]), "to": np.array([4])},
        r=random(1, 1, 9, 3),
    )
    ours = rnnfast.load(model)
    for b in (2, 5):
        feed = {"x": random(b, 6, b, 4)}
        assert steps(ours, feed) == ["GRU"]
        np.testing.assert_allclose(ours(feed).y, onnxruntime(model, feed)["y"], rtol=1e-5, atol=1e-6)


def test_shapes_that_values_decide_are_not_folded():
    """NonZero's output has as many columns as x has non-zeros: the same input shape gives different sizes."""
    model = rnnfast.load(
        parse(
            """g (float[n] x) => (int64[2] s, float[m] y) {
        i = NonZero (x)  s = Shape (i)  y = Expand (half, s) }""",
            half=np.float32(0.5),
        )
    )
    for x in ([1.0, 0, 2], [1.0, 3, 2], [0.0, 0, 0], [1.0, 0, 2]):
        count = np.count_nonzero(x)
        out = model(x=x)
        assert out.s.tolist() == [1, count] and out.y.shape == (1, count)


@pytest.mark.parametrize(
    "op, attributes, values",
    [
        ("Expand", "", ([2, 3], [4, 3])),
        ("Reshape", "", ([3, 4], [2, 6])),
        ("Tile", "", ([2, 1], [1, 3])),
        ("Pad", "", ([0, 1, 0, 0], [2, 0, 0, 1])),
        ("ReduceSum", "<keepdims = 1>", ([0], [1])),
        ("TopK", "<axis = -1>", ([1], [2])),
        ("ConstantOfShape", None, ([2, 3], [3, 1])),
    ],
)
def test_sizes_from_values(op, attributes, values):
    """A size that is an input's value may differ between two calls with inputs of the same shapes."""
    x = {"Reshape": random(0, 12), "Expand": random(0, 1, 3)}.get(op, random(0, 4, 3))
    call = f"{op} {attributes or ''} ({'' if attributes is None else 'x, '}n)"
    names = "y, i" if op == "TopK" else "y"
    model = parse(
        f"g (float[{','.join('ab'[: x.ndim])}] x, int64[k] n) => (int64[r] s, float[c,d] y) "
        f"{{ {names} = {call}  s = Shape (y) z = Abs (x) }}"
    )
    ours = rnnfast.load(model)
    for value in values * 2:
        feed = {"x": x, "n": np.array(value)}
        expected = onnxruntime(model, feed)
        out = ours(feed)
        assert out.s.tolist() == expected["s"].tolist()
        np.testing.assert_allclose(out.y, expected["y"], rtol=1e-6)  # sums of four, in another order


def test_unused_nodes_do_not_run():
    text = "g (float[n] x) => (float[n] y) { z = Add (x, wrong)  y = Neg (x) }"
    model = rnnfast.load(parse(text, wrong=random(0, 7)))
    assert steps(model, {"x": np.zeros(3, np.float32)}) == ["Neg"]


def test_plans_are_bounded():
    for settings in ({"plans": 5}, {"plan_bytes": 100_000}, {"plan_bytes": 0}, {"plans": 1}):
        model = rnnfast.load(GRU, **settings)
        plans = model.planned.plans
        for t in range(20):
            expected = model(x=random(0, t, 2, 4), h=H)
            assert plans.nbytes == sum(plan.cost for plan in plans.kept) and plans.count == len(plans.kept)
            assert plans.count == 1 or plans.nbytes <= plans.most_bytes
            for name, value in model(x=random(0, t, 2, 4), h=H).items():
                np.testing.assert_array_equal(value, expected[name])
        assert 1 <= plans.count <= settings.get("plans", 19)


def test_the_plans_used_last_are_kept():
    model = rnnfast.load(GRU, plans=3)
    for t in (1, 2, 3, 1, 4, 1, 5):
        model(x=random(0, t, 2, 4), h=H)
    find = model.planned.plans.find
    assert all(find([random(0, t, 2, 4), H]) is not None for t in (1, 5, 4))
    assert find([random(0, 2, 2, 4), H]) is None


def test_many_shapes_cost_no_plan_twice():
    """A service whose requests have hundreds of lengths keeps a plan for each."""
    model, traced = rnnfast.load(GRU), []
    for t in range(300):
        model(x=random(0, t, 2, 4), h=H)
    model.planned.record = lambda *step: traced.append(step)
    for t in np.random.default_rng(0).permutation(300):
        model(x=random(0, int(t), 2, 4), h=H)
    assert model.planned.plans.count == 300 and not traced


def test_warm_makes_the_plans_of_later_calls():
    model, traced = rnnfast.load(GRU), []
    model.warm({"x": (t, 2, 4), "h": (1, 2, 3)} for t in range(1, 6))
    model.warm([{"x": [7, 1, 4]}])  # h: its open dimensions have length 1
    assert model.planned.plans.count == 6
    model.planned.record = lambda *step: traced.append(step)
    for t in range(1, 6):
        model(x=random(0, t, 2, 4), h=H)
    model(x=random(0, 7, 1, 4), h=random(0, 1, 1, 3))
    assert not traced


@pytest.mark.parametrize(
    "shapes, values, text",
    [
        ({"z": (1,)}, {}, "a shape for 'z', expected one of .'x', 'h'."),
        ({"h": (1, 1, 3)}, {"h": np.zeros((1, 1, 3), np.float32)}, "a shape for 'h', expected one of .'x'."),
        ({"x": (1, 1, 5)}, {}, "input 'x'"),
        ({"x": (-1, 1, 4)}, {}, "input 'x': a shape of .-1, 1, 4."),
        ({"x": 3}, {}, "input 'x': a shape of 3"),
    ],
)
def test_warm_refuses_shapes_that_no_call_has(shapes, values, text):
    with pytest.raises(rnnfast.errors.InputError, match=text):
        rnnfast.load(GRU).warm([shapes], **values)


def test_warm_takes_the_values_that_plans_depend_on():
    text = """g (float[n] x, int64 k) => (float[m] y) {
        two = Constant <value_int = 2> ()  c = Equal (k, two)
        y = If (c) <then_branch = t () => (float[m] a) { a = Neg (x) },
            else_branch = e () => (float[m] b) { b = Abs (x) }> }"""
    model = rnnfast.load(parse(text))
    model.warm([{"x": (3,)}, {"x": (4,)}], k=np.array(2))
    before = model.planned.plans.count
    np.testing.assert_array_equal(model(x=np.float32([1, 2, 3]), k=np.array(2)).y, [-1, -2, -3])
    assert before == model.planned.plans.count == 2


def test_shapes_may_change_from_call_to_call():
    model = rnnfast.load(GRU)
    sizes = [(t, b) for t in (1, 3, 7) for b in (1, 2, 5, 6, 9, 11)]  # more than there are plans
    feeds = [{"x": random(t, t, b, 4), "h": random(b, 1, b, 3)} for t, b in sizes]
    expected = [rnnfast.load(GRU)(feed).y.tobytes() for feed in feeds]
    for i in np.random.default_rng(0).integers(0, len(feeds), 300):
        assert model(feeds[i]).y.tobytes() == expected[i]


def peak(call):
    """The most bytes that were allocated at a time in a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_results_are_released_behind_their_last_use():
    """A chain of 40 results, in the first call and in later ones; of them a few live at a time."""
    names = ["x", *(f"v{i}" for i in range(40))]
    nodes = [helper.make_node("Abs" if i % 2 else "Neg", [a], [b]) for i, (a, b) in enumerate(zip(names, names[1:]))]
    model = load(model_of(nodes, [("x", 1, ["n"])], [("v39", 1, ["n"])]))
    x = np.zeros(2**20, np.float32)
    for _ in range(2):
        assert peak(lambda: model(x=x)) < 4 * x.nbytes


WIDE = """g (float[n] x, float[m] z) => (float[k] y) {
    a = Neg (x)  b = Abs (x)  c = Neg (a)  d = Compress <axis = 0> (c, keep)  e = Abs (d)  y = Sum (a, b, d, e) }"""


def test_limit_of_the_memory_of_a_call():
    """Four results of 1 MiB live at a time; arguments and views are not counted."""
    feed = {"x": np.zeros(2**18, np.float32), "z": np.zeros(0, np.float32)}
    for limit, passes in ((2**22 + 2**21, True), (3 * 2**20, False)):
        limits = rnnfast.Limits(bytes_of_a_call=limit)
        model = rnnfast.load(parse(WIDE, keep=np.ones(2**18, bool)), limits=limits)
        for _ in range(2):
            if passes:
                model(feed)
            else:
                with pytest.raises(LimitError, match=rf"<bytes>: node.*limits.bytes_of_a_call = {limit:,}"):
                    model(feed)
    views = rnnfast.load(
        parse("g (float[n] x) => (float[a,b] y) { v = Reshape (x, s)  y = Transpose (v) }", s=np.array([2, -1])),
        limits=rnnfast.Limits(bytes_of_a_call=2**20),
    )
    assert views(x=np.zeros(2**20, np.float32)).y.shape == (2**19, 2)


def test_limit_of_folded_results(monkeypatch):
    """Folded results of a model and of a plan are bounded; the rest is computed at each call and is the same."""
    nodes = "".join(f"c{i} = ConstantOfShape <value = float[1] {{{i}}}> (s)  " for i in range(8))
    text = f"g (float[n] x) => (float[n] y) {{ SHAPE {nodes} k = Sum (c0, c1, c2, c3, c4, c5, c6, c7) y = Add (x, k) }}"
    of_input = parse(text.replace("SHAPE", "s = Shape (x)"))
    of_constant = parse(text.replace("SHAPE", ""), s=np.array([2**15]))
    x = random(0, 2**15)
    monkeypatch.setattr(trace, "MAX_FOLDED_BYTES", 3 * x.nbytes + 8)
    monkeypatch.setattr(folding, "MAX_FOLDED_BYTES", 3 * x.nbytes + 8)
    for data, most in ((of_input, 3), (of_constant, 6)):
        model = rnnfast.load(data)
        for _ in range(2):
            np.testing.assert_array_equal(model(x=x).y, x + np.float32(28))
        planned, _ = model.prepare({"x": x})
        (plan,) = planned.plans.kept
        kept = sum(
            {
                id(v): v.nbytes for v in (*plan.initial_values, *planned.graph.constants.values()) if v is not None
            }.values()
        )
        assert kept <= most * x.nbytes + 16 and len(plan.steps) == 9 - most  # Sum and Add are one


@pytest.mark.parametrize(
    "text",
    [
        "y = Shape (x)",
        "y = Shape (w)",
        "y = Cast <to = 7> (x)",
        "y = If (c) < then_branch = t () => (float[n] ty) { ty = Cast <to = 7> (x) }, "
        "else_branch = e () => (float[n] ey) { ey = Neg (x) } >",
    ],
)
def test_outputs_have_the_declared_type(text):
    model = rnnfast.load(parse(f"g (float[n] x, bool c) => (float[n] y) {{ {text} }}", w=random(0, 3)))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"<bytes>.*output '.*y' is tensor\(int64\), but declared tensor\(float\)"):
            model(x=random(0, 3), c=True)
