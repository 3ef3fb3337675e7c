"""If, Loop, Scan and a model's own functions: against onnxruntime, and by hand where it differs from ONNX's text."""

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import InputError, LimitError, ModelError, UnsupportedError
from rnnfast.onnx import budget
from rnnfast.onnx.ops import control
from tests.graphs import load, model_of, onnxruntime, parse, random

TOLERANCE = 1e-6  # float32 results of a few operations, of size 1


def check(model, *feeds):
    """Each feed twice, so that the second call runs the plan, against onnxruntime."""
    ours = rnnfast.load(model)
    for feed in feeds * 2:
        expected = onnxruntime(model, feed)
        got = ours(feed)
        assert got.keys() == expected.keys()
        for name in got:
            assert got[name].shape == expected[name].shape and got[name].dtype == expected[name].dtype, name
            np.testing.assert_allclose(got[name], expected[name], rtol=TOLERANCE, atol=TOLERANCE)


# ------------------------------------------------------------------------------------------------ If
BRANCHES = """g (float[n,3] x, bool c) => (float[n,3] y, float[n] s) {
    outer = MatMul (x, w)
    y, s = If (c) <
        then_branch = t () => (float[n,3] ty, float[n] ts) {
            k = Constant <value = float {2.5}> ()
            ty = Mul (outer, k)
            ts = ReduceSum <keepdims = 0> (ty, axis)
        },
        else_branch = e () => (float[n,3] ey, float[n] es) {
            ey = Sub (x, outer)
            es = ReduceMax <axes = [1], keepdims = 0> (ey)
        } >
}"""


def test_if_of_a_value():
    model = parse(BRANCHES, w=random(0, 3, 3), axis=np.array([1]))
    check(model, *({"x": random(i, 2 + i, 3), "c": np.array(c)} for i, c in enumerate([True, False, True])))


def test_if_of_a_shape_is_decided_in_the_plan():
    text = """g (float[n,3] x) => (float[n,3] y) {
        s = Shape (x)  zero = Constant <value_int = 0> ()  n = Gather (s, zero)  c = Greater (n, two)
        y = If (c) < then_branch = t () => (float[n,3] ty) { ty = Neg (x) },
                     else_branch = e () => (float[n,3] ey) { ey = Mul (x, three) } >
    }"""
    model = parse(text, two=np.int64(2), three=np.float32(3))
    check(model, {"x": random(0, 2, 3)}, {"x": random(0, 3, 3)})
    ours = rnnfast.load(model)
    ours(x=random(0, 3, 3))
    planned, _ = ours.prepare({"x": random(0, 3, 3)})
    (plan,) = planned.plans.kept
    assert [where.split("(")[1] for *_, where in plan.steps] == ["Neg)"]


def test_constants_in_nested_branches():
    """Weights as Constants inside If branches, the way TorchScript's exporter leaves them."""
    rng = np.random.default_rng(0)
    W, R, B = (rng.standard_normal(s).astype(np.float32) for s in ((1, 12, 4), (1, 12, 3), (1, 24)))

    def branch(scale):
        nodes = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array * scale, name))
            for name, array in (("W", W), ("R", R), ("B", B))
        ]
        nodes.append(helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "h"], hidden_size=3))
        inner = helper.make_graph(nodes, "i", [], [helper.make_tensor_value_info("h", 1, [1, "b", 3])])
        nodes = [helper.make_node("If", ["d"], ["z"], then_branch=inner, else_branch=inner)]
        return helper.make_graph(nodes, "o", [], [helper.make_tensor_value_info("z", 1, [1, "b", 3])])

    model = model_of(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch(1), else_branch=branch(np.float32(0.5)))],
        [("x", 1, ["t", "b", 4]), ("c", TensorProto.BOOL, []), ("d", TensorProto.BOOL, [])],
        [("y", 1, [1, "b", 3])],
    ).SerializeToString()
    for i, c in enumerate([True, False]):
        check(model, {"x": random(i, 5, 2, 4), "c": np.array(c), "d": np.array(not c)})


def test_if_with_a_wrong_condition():
    model = rnnfast.load(
        parse("""g (float[n] x, bool[m] c) => (float[n] y) {
        y = If (c) < then_branch = t () => (float[n] ty) { ty = Neg (x) },
                     else_branch = e () => (float[n] ey) { ey = Abs (x) } > }""")
    )
    assert model(x=[2.0], c=[True]).y == [-2]
    with pytest.raises(InputError, match="If.*one element"):
        model(x=[2.0], c=[True, False])


def test_branches_that_do_not_fit():
    for text in (
        "y = If (c) < then_branch = t () => (float ty) { ty = Neg (x) } >",
        """y = If (c) < then_branch = t (float z) => (float ty) { ty = Neg (z) },
                                 else_branch = e () => (float ey) { ey = Abs (x) } >""",
        """y = If (c) < then_branch = t () => (float ty, float x) { ty = Neg (x) },
                                 else_branch = e () => (float ey) { ey = Abs (x) } >""",
    ):
        with pytest.raises(ModelError, match="If.*(else_branch|then_branch)"):
            rnnfast.load(parse(f"g (float x, bool c) => (float y) {{ {text} }}"))


# ------------------------------------------------------------------------------------------------ Loop
LOOP = """g (int64 n, float[k] x) => (float[k] y, float[t,k] ys) {
    y, ys = Loop (n, on, x) <body = b (int64 i, bool going, float[k] h) => (bool more, float[k] h2, float[k] s) {
        more = Identity (going)
        f = Cast <to = 1> (i)
        a = Mul (h, factor)
        h2 = Tanh (a)
        s = Add (h2, f)
    }>
}"""


def test_loop_by_count():
    check(
        parse(LOOP, on=np.array(True), factor=np.float32(1.5)),
        *({"n": np.array(n), "x": random(0, 4)} for n in (1, 2, 7)),
    )


def test_loop_without_iterations():
    out = rnnfast.load(parse(LOOP, on=np.array(True), factor=np.float32(1.5)))(n=0, x=[1.0, 2.0])
    assert out.y.tolist() == [1, 2] and out.ys.shape[0] == 0 and out.ys.dtype == np.float32


UNTIL = """g (float[k] x, float limit) => (float[k] y, int64 count) {
    zero = Constant <value_int = 0> ()
    y, count = Loop (COUNT, on, x, zero) <body = b (int64 i, bool going, float[k] h, int64 c)
                                            => (bool more, float[k] h2, int64 c2) {
        h2 = Add (h, h)
        one = Constant <value_int = 1> ()
        c2 = Add (c, one)
        largest = ReduceMax <keepdims = 0> (h2)
        more = Less (largest, limit)
    }>
}"""


@pytest.mark.parametrize("count", ["", "five"])
def test_loop_by_condition(count):
    model = parse(UNTIL.replace("COUNT", count), on=np.array(True), five=np.int64(5))
    for limit in (2.5, 9, 70):
        check(model, {"x": np.array([0.3, 1.0], np.float32), "limit": np.array(limit, np.float32)})


def test_loop_whose_carried_shape_grows():
    check(
        parse(
            """g (int64 n, float[k] x) => (float[m] y) {
        y = Loop (n, on, x) <body = b (int64 i, bool going, float[a] h) => (bool going2, float[b] h2) {
            going2 = Identity (going)  h2 = Concat <axis = 0> (h, x) }> }""",
            on=np.array(True),
        ),
        *({"n": np.array(n), "x": random(n, 2)} for n in (1, 30)),
    )


def test_loop_that_carries_a_sequence():
    model = rnnfast.load(
        parse(
            """g (int64 n, float[k] x) => (float[m,k] y) {
        empty = SequenceEmpty ()
        s = Loop (n, on, empty) <body = b (int64 i, bool going, seq(float[k]) h) => (bool going2, seq(float[k]) h2) {
            going2 = Identity (going)  f = Cast <to = 1> (i)  r = Mul (x, f)  h2 = SequenceInsert (h, r) }>
        y = ConcatFromSequence <axis = 0, new_axis = 1> (s) }""",
            on=np.array(True),
        )
    )
    x = random(0, 3)
    for n in (1, 4, 4):
        np.testing.assert_array_equal(model(n=n, x=x).y, np.arange(n, dtype=np.float32)[:, None] * x)


def test_loop_limit():
    model = rnnfast.load(
        parse(
            """g (float x) => (float y) { y = Loop (, on, x)
        <body = b (int64 i, bool going, float h) => (bool more, float h2) { more = Identity (on)  h2 = Neg (h) }> }""",
            on=np.array(True),
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "MAX_ITERATIONS", 100)
        with pytest.raises(LimitError, match="Loop.*100 iterations"):
            model(x=1.0)


def test_limit_of_iterations_is_that_of_the_call(monkeypatch):
    """20 times a Loop of 10 iterations, whose own limit it stays below; the Scan alone passes."""
    monkeypatch.setattr(budget, "MAX_ITERATIONS", 100)
    inner = {
        "Loop": """h2 = Loop (ten, on, h) <body = c (int64 j, bool on1, float a) => (bool on2, float a2) {
            on2 = Identity (on1)  a2 = Neg (a) }>""",
        "Scan": """h2 = Scan (h, x) <num_scan_inputs = 1, body = c (float a, float r) => (float a2) {
            a2 = Add (a, r) }>""",
    }
    for nodes in inner.values():
        model = rnnfast.load(
            parse(
                f"""g (int64 n, float[t] x, float s) => (float y) {{
            y = Loop (n, on, s) <body = b (int64 i, bool going, float h) => (bool more, float h2) {{
                more = Identity (going)  {nodes} }}> }}""",
                on=np.array(True),
                ten=np.int64(10),
            )
        )
        for n, passes in ((9, True), (20, False), (9, True)):
            if passes:
                model(n=n, x=np.ones(10, np.float32), s=1.0)
            else:
                with pytest.raises(LimitError, match="<bytes>: node.*100 iterations"):
                    model(n=n, x=np.ones(10, np.float32), s=1.0)
    scan = rnnfast.load(
        parse(
            "g (float s, float[t] x) => (float y) { y = "
            + inner["Scan"].partition("= ")[2].replace("(h, x)", "(s, x)")
            + " }"
        )
    )
    assert scan(s=1.0, x=np.ones(100, np.float32)).y == 101
    with pytest.raises(LimitError, match="Scan.*100 iterations"):
        scan(s=1.0, x=np.ones(101, np.float32))


ROWS = """g (int64 n, float[k] x) => (float[t,1] ys) {
    ys = Loop (n, on) <body = b (int64 i, bool going) => (bool more, float[1] s) {
        more = Identity (going)  f = Cast <to = 1> (i)  large = Add (x, f)  s = Slice (large, zero, one) }>
}"""


def test_rows_keep_nothing_but_themselves():
    """Each row is the first element of 1 MiB."""
    model = rnnfast.load(parse(ROWS, on=np.array(True), zero=np.array([0]), one=np.array([1])))
    x = np.zeros(2**18, np.float32)
    tracemalloc.start()
    try:
        ys = model(n=50, x=x).ys
        assert tracemalloc.get_traced_memory()[1] < 10 * x.nbytes
    finally:
        tracemalloc.stop()
    assert ys[:, 0].tolist() == list(range(50))


def test_limit_of_rows_is_that_of_the_call():
    """Small rows count together, of all outputs."""
    model = rnnfast.load(
        parse(
            """g (int64 n, float[k] x) => (float[t,k] a, float[t,k] b) {
        a, b = Loop (n, on) <body = c (int64 i, bool going) => (bool more, float[k] p, float[k] q) {
            more = Identity (going)  p = Neg (x)  q = Abs (x) }> }""",
            on=np.array(True),
        ),
        limits=rnnfast.Limits(bytes_of_a_call=30_000),
    )
    x = random(0, 400)
    for _ in range(3):
        assert model(n=9, x=x).a.shape == (9, 400)
        with pytest.raises(LimitError, match="Loop.*bytes_of_a_call = 30,000"):
            model(n=10, x=x)


def test_limit_of_carried_sequences(monkeypatch):
    """Their members' memory counts once; of a view that of what it is cut from."""
    monkeypatch.setattr(control, "MAX_TENSOR_BYTES", 4000)
    text = """g (int64 n, float[k] x) => (int64 m) {
        empty = SequenceEmpty ()
        s = Loop (n, on, empty) <body = b (int64 i, bool going, seq(float[k]) h) => (bool more, seq(float[k]) h2) {
            more = Identity (going)  MEMBER  h2 = SequenceInsert (h, r) }>
        m = SequenceLength (s) }"""
    for member, n in (("r = Neg (x)", 10), ("l = Neg (x)  r = Slice (l, zero, one)", 1000), ("r = Identity (x)", 1000)):
        model = rnnfast.load(
            parse(text.replace("MEMBER", member), on=np.array(True), zero=np.array([0]), one=np.array([1]))
        )
        assert model(n=n, x=random(0, 100)).m == n
        if n == 10:
            with pytest.raises(LimitError, match="Loop.*4000 bytes"):
                model(n=20, x=random(0, 100))


def test_error_in_a_body_names_the_node():
    text = LOOP.replace("Mul (h, factor)", "Add (h, wrong)")
    model = rnnfast.load(parse(text, on=np.array(True), wrong=random(0, 9)))
    with pytest.raises(InputError, match="<bytes>: node #2 .Add"):
        model(n=2, x=random(0, 3))


# ------------------------------------------------------------------------------------------------ Scan
SCAN = """g (float[b] state, float[{x}] x, float[{z}] z) => (float[b] last, float[{ys}] ys) {{
    last, ys = Scan (state, x, z) <num_scan_inputs = 2, {attributes} body = c (float[b] h, float[b] a, float[b] d)
                                                            => (float[b] h2, float[b] y) {{
        s = Add (h, a)  m = Mul (s, d)  h2 = Tanh (m)  y = Sub (h2, outer)
    }}>
}}"""


@pytest.mark.parametrize(
    "x, z, ys, attributes",
    [
        ("t,b", "t,b", "t,b", ""),
        ("t,b", "t,b", "t,b", "scan_input_directions = [1, 0], scan_output_directions = [1],"),
        ("b,t", "t,b", "b,t", "scan_input_axes = [1, 0], scan_output_axes = [1],"),
        ("b,t", "b,t", "b,t", "scan_input_axes = [-1, 1], scan_output_axes = [-1], scan_input_directions = [0, 1],"),
    ],
)
def test_scan(x, z, ys, attributes):
    model = parse(SCAN.format(x=x, z=z, ys=ys, attributes=attributes), outer=np.float32(0.3))
    shape = {"t": 5, "b": 3}
    feed = {
        "state": random(0, 3),
        "x": random(1, *(shape[c] for c in x.split(","))),
        "z": random(2, *(shape[c] for c in z.split(","))),
    }
    check(model, feed)


def test_scan_of_lengths_that_differ():
    model = rnnfast.load(parse(SCAN.format(x="t,b", z="t,b", ys="t,b", attributes=""), outer=np.float32(0.3)))
    with pytest.raises(InputError, match=r"Scan.*\[4, 5\]"):
        model(state=random(0, 3), x=random(1, 5, 3), z=random(1, 4, 3))


def test_scan_8_with_lengths():
    """Batch in front, rows that end early: sums until each row's length."""
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "a"], ["h2"]), helper.make_node("Identity", ["h2"], ["y"])],
        "b",
        [helper.make_tensor_value_info(n, 1, [2]) for n in "ha"],
        [helper.make_tensor_value_info(n, 1, [2]) for n in ("h2", "y")],
    )
    node = helper.make_node("Scan", ["lens", "s", "x"], ["last", "ys"], num_scan_inputs=1, directions=[1], body=body)
    model = load(
        model_of(
            [node],
            [("lens", 7, [2]), ("s", 1, [2, 2]), ("x", 1, [2, 4, 2])],
            [("last", 1, [2, 2]), ("ys", 1, [2, 4, 2])],
            opset=8,
        )
    )
    x, s = random(0, 2, 4, 2), random(1, 2, 2)
    out = model(lens=[3, 4], s=s, x=x)
    for b, n in enumerate((3, 4)):
        sums = s[b] + np.cumsum(x[b, n - 1 :: -1], axis=0)
        np.testing.assert_allclose(out.ys[b, :n], sums, rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_allclose(out.last[b], sums[-1], rtol=TOLERANCE, atol=TOLERANCE)
        assert not out.ys[b, n:].any()
    with pytest.raises(InputError, match="sequence_lens"):
        model(lens=[3, 5], s=s, x=x)


def test_loop_and_scan_without_iterations_and_declared_rows():
    """The rows' type is that of a trial iteration, whose results are not kept."""
    body = "=> ({more} h2, s) {{ {keep} h2 = Neg (h)  f = Add (h, {a})  s = Cast <to = 11> (f) }}"
    loop = (
        "last, ys = Loop (zero, on, h0) <body = b (int64 i, bool on1, float[k] h) "
        + body.format(more="on2,", keep="on2 = Identity (on1)", a="h0")
        + ">"
    )
    scan = (
        "last, ys = Scan (h0, x) <num_scan_inputs = 1, body = b (float[k] h, float[k] a) "
        + body.format(more="", keep="", a="a")
        + ">"
    )
    for nodes in (loop, scan):
        model = rnnfast.load(
            parse(
                f"g (float[k] h0, float[t,k] x) => (float[k] last, double[t,k] ys) {{ {nodes} }}",
                on=np.array(True),
                zero=np.int64(0),
            )
        )
        for _ in range(2):
            out = model(h0=[1.0, 2, 3], x=np.zeros((0, 3), np.float32))
            assert out.last.tolist() == [1, 2, 3] and out.ys.shape == (0, 3) and out.ys.dtype == np.float64


@pytest.mark.parametrize("change", ["0", "9"])
def test_scan_counts(change):
    text = SCAN.format(x="t,b", z="t,b", ys="t,b", attributes="")
    text = text.replace("num_scan_inputs = 2", f"num_scan_inputs = {change}")
    with pytest.raises(ModelError, match=f"'num_scan_inputs' = {change}"):
        rnnfast.load(parse(text, outer=np.float32(0)))


# ------------------------------------------------------------------------------------------------ functions
def with_functions(graph, functions, **initializers):
    header = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
    model = onnx.parser.parse_model(header + graph + functions)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items())
    return model.SerializeToString()


def test_function_with_attributes():
    functions = """
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    twice <alpha: float = 0.25, axis> (a, w) => (r) {
        b = local.scaled <alpha: float = @alpha> (a, w)
        r = Softmax <axis: int = @axis> (b)
    }
    <domain: "local", opset_import: ["" : 17]>
    scaled <alpha> (a, w) => (r) { p = MatMul (a, w)  r = LeakyRelu <alpha: float = @alpha> (p) }
    """
    model = with_functions(
        """g (float[n,3] x) => (float[n,4] y, float[n,4] z) {
        y = local.twice <axis = 0> (x, w)  z = local.twice <alpha = 0.75, axis = 1> (x, w) }""",
        functions,
        w=random(0, 3, 4),
    )
    check(model, {"x": random(1, 2, 3)}, {"x": random(1, 5, 3)})


def test_function_around_control_flow_and_recurrence():
    functions = """
    <domain: "local", opset_import: ["" : 17]>
    layer <size> (x, w, r, c) => (h) {
        h = If (c) < then_branch = t () => (th) { y, th = GRU <hidden_size: int = @size> (x, w, r) },
                     else_branch = e () => (eh) {
                         y, eh = GRU <hidden_size: int = @size, direction = "reverse"> (x, w, r) } >
    }"""
    model = with_functions(
        "g (float[t,b,4] x, bool c) => (float[1,b,3] h) { h = local.layer <size = 3> (x, w, r, c) }",
        functions,
        w=random(0, 1, 9, 4),
        r=random(1, 1, 9, 3),
    )
    check(model, *({"x": random(2, 5, 2, 4), "c": np.array(c)} for c in (True, False)))
    with pytest.raises((ModelError, UnsupportedError), match="GRU"):
        rnnfast.load(
            with_functions(
                "g (float[t,b,4] x, bool c) => (float[1,b,3] h) { h = local.layer <size = 5> (x, w, r, c) }",
                functions,
                w=random(0, 1, 9, 4),
                r=random(1, 1, 9, 3),
            )
        )


def test_function_errors():
    functions = '<domain: "local", opset_import: ["" : 17]> f <k> (a) => (r) { r = Softmax <axis: int = @k> (a) }'
    for call, message in (
        ("local.f <j = 1> (x)", "'j'"),
        ("local.f <k = 0.5> (x)", "'axis'.*FLOAT"),
        ("local.f <k = 0> (x, x)", "2 inputs"),
    ):
        with pytest.raises(ModelError, match=message):
            rnnfast.load(with_functions(f"g (float[n] x) => (float[n] y) {{ y = {call} }}", functions))


def test_an_optional_value_is_carried_from_none_on():
    """What TorchScript writes for a variable that is None before the first step: here the difference of two steps."""
    float_type = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    optional = helper.make_optional_type_proto(float_type)
    value = helper.make_tensor_value_info
    shown = helper.make_graph(
        [helper.make_node("OptionalGetElement", ["before"], ["old"]), helper.make_node("Sub", ["row", "old"], ["d"])],
        "then",
        [],
        [value("d", TensorProto.FLOAT, None)],
    )
    nothing = helper.make_graph(
        [helper.make_node("Identity", ["row"], ["same"])], "else", [], [value("same", TensorProto.FLOAT, None)]
    )
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Gather", ["x", "i"], ["row"], axis=0),
            helper.make_node("OptionalHasElement", ["before"], ["has"]),
            helper.make_node("If", ["has"], ["step"], then_branch=shown, else_branch=nothing),
            helper.make_node("Optional", ["row"], ["after"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            helper.make_value_info("before", optional),
        ],
        [
            value("still", TensorProto.BOOL, []),
            helper.make_value_info("after", optional),
            value("step", TensorProto.FLOAT, None),
        ],
    )
    model = model_of(
        [
            helper.make_node("Optional", [], ["none"], type=float_type),
            helper.make_node("Loop", ["count", "", "none"], ["last", "y"], body=body),
            helper.make_node("OptionalHasElement", ["none"], ["any"]),
        ],
        [("x", TensorProto.FLOAT, ["t", 3])],
        [("y", TensorProto.FLOAT, ["t", 3]), ("any", TensorProto.BOOL, [])],
        {"count": np.array(4)},
        opset=18,
    )
    for _ in range(2):
        x = random(0, 4, 3)
        found = load(model)(x=x)
        np.testing.assert_array_equal(found.y, np.concatenate([x[:1], np.diff(x, axis=0)]))
        assert not found["any"]
    np.testing.assert_allclose(onnxruntime(model, {"x": x})["y"], found.y, rtol=0, atol=1e-6)
    model.graph.node[0].ClearField("attribute")
    with pytest.raises(ModelError, match="neither an input nor a type"):
        load(model)(x=x)
