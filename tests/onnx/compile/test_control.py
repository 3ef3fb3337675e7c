"""Native Loop, Scan and If: counts, conditions, carried values, errors and limits of bodies."""

import numpy as np
import pytest
from onnx import helper

from rnnfast.errors import InputError, LimitError
from rnnfast.native import _programs
from rnnfast.onnx import budget
from tests.graphs import load, model_of, parse, random
from tests.onnx.compile.helpers import compare, plain, segment_of


def test_loop_by_count(isa):
    """The count is an input, and values are only carried."""
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
    assert {type(run) for plan in model.planned.plans.kept for run, *_ in plan.steps} == {_programs.NativeProgram}


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
    """NumPy runs such branches, and one that never runs may be wrong."""
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
    """Neither an error of a later iteration nor the limit of iterations takes its place."""
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
    text = """g (float x, bool on) => (float y) { y = Loop (, on, x) <
        body = b (int64 i, bool go, float h) => (bool m, float h2) {
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
