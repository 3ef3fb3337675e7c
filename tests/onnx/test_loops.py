"""Loops as exporters write them become loops of one native program, which give what the loops of the file give."""

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast.errors import InputError
from tests.graphs import load, onnxruntime, parse, random

W = {"w": random(1, 3, 4), "r": 0.3 * random(2, 4, 4), "zero": np.array(0), "one": np.array(1)}
BODY = "xt = Gather (x, i)  p = MatMul (xt, w)  q = MatMul (hb, r)  s = Add (p, q)  hn = Tanh (s)  c2 = Identity (c)"
HEAD = """g (float[t,b,3] x, float[b,4] h0) => (float[..] y, float[b,4] h) {
    shape = Shape (x)  n = Gather (shape, zero)  go = Constant <value = bool {1}> ()"""


def of_list(insert, join):
    """A loop that gathers its results in a list."""
    return f"""{HEAD.replace("[..]", "[a,b2,c2]")}  empty = SequenceEmpty ()
    h, list = Loop (n, go, h0, empty) <body = b (int64 i, bool c, float[b,4] hb, seq(float[b,4]) lb)
        => (bool c2, float[b,4] hn, seq(float[b,4]) ln) {{ {BODY}  ln = {insert} }}>
    y = ConcatFromSequence <{join}> (list) }}"""


def grown(axis, initial):
    """A loop whose results are concatenated to those before."""
    return f"""{HEAD.replace("[..]", "[a,b2,c2]")}  axes = Constant <value_ints = [{axis}]> ()
    h, y = Loop (n, go, h0, {initial}) <body = b (int64 i, bool c, float[b,4] hb, float[p,q2,m] yb)
        => (bool c2, float[b,4] hn, float[p,q2,m] yn) {{ {BODY}
        u = Unsqueeze (hn, axes)  yn = Concat <axis = {axis}> (yb, u) }}> }}"""


def counted(condition):
    """A loop without a trip count, ended by a counter, that carries its weights and reads its input by Gather."""
    return f"""{HEAD.replace("[..]", "[a,b2,c2]")}  end = Cast <to = 6> (n)  first = Less (start, end)
    t1, e1, h, w1, r1, y = Loop ( , first, start, end, h0, w, r)
        <body = b (int64 i0, bool c0, int32 i, int32 e, float[b,4] hb, float[3,4] wb, float[4,4] rb)
        => (bool c2, int32 i2, int32 e2, float[b,4] hn, float[3,4] w2, float[4,4] r2, float[b,4] row) {{
        i2 = Add (i, step)  {condition}  e2 = Identity (e)
        xt = Gather (x, i)  p = MatMul (xt, wb)  q = MatMul (hb, rb)  s = Add (p, q)  hn = Tanh (s)
        row = Identity (hn)  w2 = Identity (wb)  r2 = Identity (rb) }}> }}"""


SPLIT = BODY.replace("Gather (x, i)", "SequenceAt (parts, i)")
CASES = {
    "list": (of_list("SequenceInsert (lb, hn)", "axis = 0, new_axis = 1"), {}),
    "list along another axis": (of_list("SequenceInsert (lb, hn)", "axis = -1, new_axis = 1"), {}),
    "list from its end": (of_list("SequenceInsert (lb, hn, zero)", "axis = 1, new_axis = 1"), {}),
    "list of slices": (
        of_list("SequenceInsert (lb, hn)", "axis = 0, new_axis = 1")
        .replace(BODY, SPLIT)
        .replace("empty =", "parts = SplitToSequence <axis = 0, keepdims = 0> (x, one)  empty ="),
        {},
    ),
    "list of slices, counted": (
        of_list("SequenceInsert (lb, hn)", "axis = 0, new_axis = 1")
        .replace(BODY, SPLIT)
        .replace("n = Gather (shape, zero)", "parts = SplitToSequence <axis = 0, keepdims = 0> (x, one)  "
            "n = SequenceLength (parts)"),
        {},
    ),
    "list of slices along the last axis, counted": (
        of_list("SequenceInsert (lb, hn)", "axis = 0, new_axis = 1")
        .replace(BODY, SPLIT)
        .replace("n = Gather (shape, zero)", "turned = Transpose <perm = [1, 2, 0]> (x)  "
            "parts = SplitToSequence <axis = -1, keepdims = 0> (turned)  n = SequenceLength (parts)"),
        {},
    ),
    "grown": (grown(1, "none"), {"none": np.zeros((2, 0, 4), np.float32)}),
    "grown behind others": (grown(2, "some"), {"some": random(3, 2, 4, 3)}),
    "less": (counted("c2 = Less (i2, e)"), {"start": np.int32(0), "step": np.int32(1)}),
    "less or equal, by two": (
        counted("last = Sub (e, step)  c2 = LessOrEqual (i2, last)"),
        {"start": np.int32(1), "step": np.int32(2)},
    ),
    "as floats, and another": (
        counted("f = Cast <to = 1> (i2)  g = Cast <to = 1> (e)  c3 = Less (f, g)  c4 = Less (i2, most)  "
                "c2 = And (c3, c4)"),
        {"start": np.int32(0), "step": np.int32(1), "most": np.int32(5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_native(name):
    text, constants = CASES[name]
    data = parse(text, **W, **constants)
    ours = rnnfast.load(data)
    for frames in (2, 4, 9, 300):
        feed = {"x": random(frames, frames, 2, 3), "h0": random(5, 2, 4)}
        expected = onnxruntime(data, feed)
        for _ in range(2):
            got = ours(feed)
            for key in ("y", "h"):
                np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got["y"], ours.reference(feed)["y"], rtol=1e-5, atol=1e-6)
        assert ours.planned.plan([feed[v.name] for v in ours.inputs]).native


def test_no_iterations():
    """A loop that does not run leaves what there was; a list without members cannot be joined."""
    feed = {"x": random(0, 0, 2, 3), "h0": random(5, 2, 4)}
    for name in ("grown", "grown behind others", "less"):
        text, constants = CASES[name]
        got = load(parse(text, **W, **constants))(feed)
        np.testing.assert_array_equal(got["h"], feed["h0"])
        if name != "less":
            np.testing.assert_array_equal(got["y"], next(iter(constants.values())))
    text, _ = CASES["list"]
    with pytest.raises(InputError, match="an empty sequence has nothing to concatenate"):
        load(parse(text, **W))(feed)


def test_lists_that_stay():
    """A list that others read too, or to which a part of the iterations adds, is no tensor of rows."""
    data = parse(
        f"""{HEAD.replace("[..]", "[a,b2]").replace("=> (", "=> (int64 k, ")}  empty = SequenceEmpty ()
        h, list = Loop (n, go, h0, empty) <body = b (int64 i, bool c, float[b,4] hb, seq(float[m,4]) lb)
            => (bool c2, float[b,4] hn, seq(float[m,4]) ln) {{ {BODY}
            e = Unsqueeze (i, axes)  part = Slice (hn, zeros, e)  ln = SequenceInsert (lb, part) }}>
        y = ConcatFromSequence <axis = 0> (list)  k = SequenceLength (list) }}""",
        axes=np.array([0]),
        zeros=np.array([0]),
        **W,
    )
    feed = {"x": random(1, 6, 2, 3), "h0": random(5, 2, 4)}
    expected, got = onnxruntime(data, feed), load(data)(feed)
    assert got["k"] == 6 and got["y"].shape == (0 + 1 + 2 * 4, 4)
    np.testing.assert_allclose(got["y"], expected["y"], atol=1e-6)


def test_conditions_of_values():
    """A loop that a computed value ends runs until then, and its count is not taken from the first inputs."""
    data = parse(
        """g (float[n] x, float limit) => (float[n] y, int64 k) {
        go = Constant <value = bool {1}> ()
        y, k = Loop ( , go, x, zero) <body = b (int64 i, bool c, float[n] a, int64 m)
            => (bool c2, float[n] a2, int64 m2) {
            a2 = Add (a, a)  m2 = Add (m, one)  s = ReduceMax <keepdims = 0> (a2)  c2 = Less (s, limit) }> }""",
        **W,
    )
    ours = load(data)
    for limit, count in ((10, 4), (100, 7), (0, 1)):
        got = ours({"x": np.ones(3, np.float32), "limit": np.float32(limit)})
        assert got["k"] == count and got["y"].tolist() == [2.0**count] * 3


def test_shadowed_names():
    """A body's own value of the name that a state has outside is another value."""
    data = parse(
        """g (float[n] x) => (float[n] y) {
        go = Constant <value = bool {1}> ()
        u, y = Loop (three, go, x, x) <body = b (int64 i, bool c, float[n] a, float[n] s)
            => (bool c2, float[n] a2, float[n] s2) {
            a2 = Identity (a)  x2 = Add (a, s)  s2 = Mul (x2, a)  c2 = Identity (c) }> }""",
        three=np.array(3),
    )
    x = np.array([1.5, -0.5], np.float32)
    expected = x
    for _ in range(3):
        expected = (x + expected) * x
    np.testing.assert_allclose(load(data)({"x": x})["y"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, axis", [("list", 1), ("list along another axis", 0), ("list from its end", 0), ("less", 1)]
)
def test_batch_axes(name, axis):
    """Rows are followed through a loop and to where its results are joined."""
    text, constants = CASES[name]
    axes = load(parse(text, **W, **constants)).batch_axes()
    assert axes.inputs == {"x": 1, "h0": 0} and axes.outputs == {"y": axis, "h": 0}


def test_lists_of_slices():
    """A member of a list of slices is taken from the tensor only where that is the same."""
    x = random(1, 4, 2, 3)
    nested = """g (float[t,b,3] x) => (float[p,q,r,s] y) {
        go = Constant <value = bool {1}> ()  parts = SplitToSequence <axis = 0, keepdims = 0> (x, one)
        y = Loop (three, go) <body = b (int64 i, bool c) => (bool c2, float[q,r,s] v) {
            c2 = Identity (c)  f = Cast <to = 1> (i)  x = Add (other, f)
            v = Loop (three, c) <body = b2 (int64 k, bool d) => (bool d2, float[r,s] w) {
                d2 = Identity (d)  xt = SequenceAt (parts, k)  w = Neg (xt) }> }> }"""
    of_state = """g (float[t,b,3] x) => (float[t,b,3] y) {
        parts = SplitToSequence <axis = 0, keepdims = 0> (x, one)
        s, y = Scan <num_scan_inputs = 1, body = b (int64[k] i, float[b,3] u) => (int64[k] i2, float[b,3] v) {
            i2 = Add (i, one)  part = SequenceAt (parts, i)  v = Neg (part) }> (start, x) }"""
    for text in (nested, of_state):
        model = load(parse(text, one=np.array(1), three=np.array(3), start=np.array([0]), other=random(9, 4, 2, 3)))
        got, expected = model({"x": x})["y"], model.reference({"x": x})["y"]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_names_that_a_file_has():
    """Values that are added have names that the file does not have."""
    text, constants = CASES["grown"]
    data = parse(text.replace("=> (float", "=> (float[t2,b2,c2] taken, float"), **W, **constants)
    model = onnx.load_model_from_string(data)
    model.graph.node.append(onnx.helper.make_node("Neg", ["x"], ["y (rows)"]))
    next(v for v in model.graph.output if v.name == "taken").name = "y (rows)"
    feed = {"x": random(1, 4, 2, 3), "h0": random(5, 2, 4)}
    got, expected = load(model.SerializeToString())(feed), onnxruntime(parse(text, **W, **constants), feed)
    np.testing.assert_array_equal(got["y (rows)"], -feed["x"])
    np.testing.assert_allclose(got["y"], expected["y"], atol=1e-6)
