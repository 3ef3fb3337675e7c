"""Files of a few bytes that ask for hours or for all memory are refused before they take it, at load or at the call."""

import dataclasses
import gc
import sys
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast import Limits
from rnnfast.errors import InputError, InputTypeError, LimitError
from tests.graphs import parse

ONE = {"x": np.ones((1, 1), np.float32)}
# The seconds of processor time, and the bytes by which the process may have grown at any moment, after which a refusal
# is no refusal: results may have the 2 GiB of Limits.bytes_of_a_call; all else takes less than 64 MiB.
SECONDS, BYTES = 20, 2**31 + 2**26


# ------------------------------------------------------------------------------------------ the settings
def test_defaults():
    limits = Limits()
    assert dataclasses.asdict(limits) == {
        "nodes": 100_000,
        "bytes_at_load": 2**32,
        "bytes_of_a_call": 2**31,
        "work": 10**12,
        "seconds": None,
    }
    model = rnnfast.load(parse("g (float[n] x) => (float[n] y) { y = Neg (x) }"))
    assert model.limits == limits
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.work = 1


@pytest.mark.parametrize("name", ["nodes", "bytes_at_load", "bytes_of_a_call", "work", "seconds"])
def test_values_are_validated(name):
    assert getattr(Limits(**{name: None}), name) is None
    for wrong in ("1", True, [1], 1 + 2j, np.float32(1)):
        with pytest.raises(InputTypeError, match=f"limits.{name}"):
            Limits(**{name: wrong})
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"limits.{name}"):
            Limits(**{name: wrong})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.5])
def test_seconds_are_finite(wrong):
    with pytest.raises(InputError, match="limits.seconds"):
        Limits(seconds=wrong)


@pytest.mark.parametrize("wrong", [{}, 5, "work", {"work": 3}])
def test_other_types_are_refused(wrong):
    data = parse("g (float[n] x) => (float[n] y) { y = Neg (x) }")
    for load in (rnnfast.load, rnnfast.InferenceSession):
        with pytest.raises(InputTypeError, match="rnnfast.Limits"):
            load(data, limits=wrong)


def test_who_takes_limits():
    data = parse("g (float[n] x) => (float[n] y) { y = Hardmax (x) }")
    small = Limits(work=1000)
    for model in (rnnfast.load(data, limits=small), rnnfast.InferenceSession(data, limits=small).model):
        assert model.limits is small and model.altered(model.folded).limits is small
        with pytest.raises(LimitError, match=r"node #0 \(Hardmax\).*limits.work = 1,000"):
            model(x=np.zeros(5, np.float32))
        with pytest.raises(LimitError, match="limits.work"):
            model.altered(model.folded)(x=np.zeros(5, np.float32))
        with pytest.raises(LimitError, match="limits.work"):
            model.reference(x=np.zeros(5, np.float32))


# ------------------------------------------------------------------------------------------ what is counted
def work(text, feed, **constants):
    model = rnnfast.load(parse(text, **constants))
    model(feed)
    return model.planned.plans.kept[0].work


def test_work_of_a_plan_follows_from_its_shapes():
    text = "g (float[n,k] x) => (float[n,m] y) { y = MatMul (x, w) }"
    w = np.ones((64, 128), np.float32)
    one, two = (work(text, {"x": np.ones((n, 64), np.float32)}, w=w) for n in (100, 200))
    assert 100 * 64 * 128 < one < 3 * 100 * 64 * 128 and 1.9 < two / one < 2


@pytest.mark.parametrize("trips", [3, 300])
def test_work_of_loops_with_known_trips(trips):
    text = """g (float[n,n] x) => (float[n,n] y) { y = Loop (m, , x)
        <body = b (int64 i, bool c, float[n,n] a) => (bool d, float[n,n] o) {
            d = Identity (c)  o = MatMul (a, a) }> }"""
    x = np.eye(32, dtype=np.float32)
    count = work(text, {"x": x}, m=np.array(trips))
    assert trips * 32**3 < count < 20 * trips * 32**3
    data = parse(text, m=np.array(trips))
    assert rnnfast.load(data, limits=Limits(work=count))(x=x).y.shape == x.shape
    with pytest.raises(LimitError, match=rf"\(Loop\).*{count:,}.*limits.work = {count - 1:,}"):
        rnnfast.load(data, limits=Limits(work=count - 1))(x=x)


def test_loops_with_unknown_trips_count_while_they_run():
    data = parse(
        """g (float[n,n] x, int64 m) => (float[n,n] y) { y = Loop (m, , x)
        <body = b (int64 i, bool c, float[n,n] a) => (bool d, float[n,n] o) {
            d = Identity (c)  o = MatMul (a, a) }> }"""
    )
    model = rnnfast.load(data, limits=Limits(work=10**8))
    x = np.eye(32, dtype=np.float32)
    for _ in range(2):
        model(x=x, m=10)
        with pytest.raises(LimitError, match=r"\(Loop\).*limits.work"):
            model(x=x, m=100_000)


def inner(x, body="o2 = MatMul (a2, a2)", trips="inner"):
    """A loop on x that has a native form, unless another body says otherwise."""
    return (
        f"Loop ({trips}, , {x}) <body = f (int64 j, bool c2, float[n,n] a2) => (bool k2, float[n,n] o2) {{ "
        f"k2 = Identity (c2)  {body} }}>"
    )


def outer(nodes, trips="outer"):
    """A loop whose body makes o from a."""
    return (
        f"y = Loop ({trips}, , x) <body = d (int64 i, bool c, float[n,n] a) => (bool k, float[n,n] o) {{ "
        f"k = Identity (c)  {nodes} }}>"
    )


def chain(step):
    """50 steps behind each other, each of which makes y1 from y0."""
    steps = "".join(step.replace("y1", f"y{i + 1}").replace("y0", f"y{i}").replace("h", f"h{i}_") for i in range(50))
    return f"y0 = Neg (x)  {steps} y = Neg (y50)"


BRANCHES = (
    "h = Hardmax (a)  o = If (t) <then_branch = p () => (float[n,n] p) {{ p = {} }}, "
    "else_branch = q () => (float[n,n] q) {{ q = {} }}>".format(inner("h"), inner("h"))
)
NESTED = {
    "a native loop in one of NumPy functions": outer(f"h = Hardmax (a)  o = {inner('h')}"),
    "NumPy functions in both": outer(f"p = {inner('a', 'h = Hardmax (a2)  o2 = MatMul (h, h)')}  o = Neg (p)"),
    "native loops": outer(f"o = {inner('a')}"),
    "a native loop with known trips around one": outer(f"o = {inner('a')}", "fifty"),
    "one with known trips in another": outer(f"h = Hardmax (a)  o = {inner('h', trips='fifty')}"),
    "a branch": f"t = Greater (outer, inner)  {outer(BRANCHES)}",
    "a scan": "s = Expand (x, shape)  y = Scan (x, s) <num_scan_inputs = 1, body = d (float[n,n] a, float[n,n] r) => "
    f"(float[n,n] o) {{ h = Hardmax (a)  o = {inner('h')} }}>",
    "one after the other": chain(f"y1 = {inner('y0')}  "),
    "one after the other, apart": chain(f"h = Hardmax (y0)  y1 = {inner('h')}  "),
    "functions": outer("o = local.own (a, inner)"),
}
OWN = f"""
<domain: "local", opset_import: ["" : 17]> own (x, inner) => (y) {{ h = Hardmax (x)  y = {inner("h")} }}"""


@pytest.mark.parametrize("name", NESTED)
def test_loops_within_loops_share_what_the_call_may_take(name):
    """Each inner loop stays far below the limit, and 50 of them take more."""
    text = f"g (float[n,n] x, int64 inner, int64 outer) => (float[n,n] y) {{ {NESTED[name]} }}"
    data = parse(text + OWN * ("local." in text), fifty=np.array(50), shape=np.array([50, 1, 1]), opset=17)
    trips = {"NumPy functions in both": 100, "one with known trips in another": 40}.get(name, 2000)
    model, x = rnnfast.load(data, limits=Limits(work=4 * 10**9)), np.eye(32, dtype=np.float32)
    for _ in range(2):
        assert model(x=x, inner=trips // 50, outer=50).y.shape == x.shape
        if "outer" in NESTED[name] and "known" not in name:
            assert model(x=x, inner=trips, outer=1).y.shape == x.shape
        with pytest.raises(LimitError, match=r"limits\.work"):
            model(x=x, inner=trips, outer=50 if "known trips in" not in name else 2000)


def test_a_branch_that_does_not_run_may_be_too_much():
    data = parse(
        """g (float[n,n] x, bool c) => (float[n,n] y) { y = If (c)
        <then_branch = a () => (float[n,n] p) { p = MatMul (x, x) },
         else_branch = b () => (float[n,n] q) { q = Identity (x) }> }"""
    )
    model = rnnfast.load(data, limits=Limits(work=10**6))
    x = np.eye(256, dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(model(x=x, c=False).y, x)
        with pytest.raises(LimitError, match="limits.work"):
            model(x=x, c=True)


def test_results_larger_than_a_call_may_have_are_not_allocated():
    model = rnnfast.load(
        parse("g (float[n] x, int64[m] r) => (float[k] y) { y = Tile (x, r) }"), limits=Limits(bytes_of_a_call=10**6)
    )
    assert model(x=np.ones(100, np.float32), r=[1000]).y.size == 100_000
    with pytest.raises(LimitError, match=r"\(Tile\).*limits.bytes_of_a_call"):
        model(x=np.ones(100, np.float32), r=[100_000])


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Cast <to = 11> (h)",
        "y = IsNaN (h)",
        "y = CumSum (h, a)",
        "y = Clip (h)",
        "y = Selu (h)",
        "y = Hardmax (h)",
        "y = Neg (h)",
    ],
)
def test_results_of_known_shapes_are_not_allocated(nodes):
    """A result that the limit does not leave room for is refused before, not counted after."""
    data = parse(f"g (float[n] x, int64[1] r, int64 a) => (float[n] y) {{ h = Tile (x, r) {nodes} }}")
    x, size = np.ones(2, np.float32), 2**25
    model = rnnfast.load(data, limits=Limits(bytes_of_a_call=8 * size + 2**20))
    before = forgotten_peak()
    with pytest.raises(LimitError, match="limits.bytes_of_a_call"):
        model(x=x, r=np.full(1, size), a=np.array(0))
    assert peak() - before < 8 * size + 2**25


def test_results_that_are_no_more_leave_room():
    data = parse(
        """g (float[n] x, int64 m) => (float[n] y) { y = Loop (m, , x)
        <body = b (int64 i, bool c, float[n] a) => (bool d, float[n] o) {
            d = Identity (c)  t = Concat <axis = 0> (a, a)  h = Hardmax (t)  s, u = Split <axis = 0> (h)  o = Neg (s)
        }> }"""
    )
    x = np.ones(50_000, np.float32)
    assert rnnfast.load(data, limits=Limits(bytes_of_a_call=1_400_000))(x=x, m=100).y.shape == x.shape
    with pytest.raises(LimitError, match="limits.bytes_of_a_call"):
        rnnfast.load(data, limits=Limits(bytes_of_a_call=700_000))(x=x, m=100)


def test_limits_at_load():
    data = parse("g (float[n,k] x) => (float[n,m] y) { y = MatMul (x, w) }", w=np.ones((100, 100), np.float32))
    rnnfast.load(data, limits=Limits(bytes_at_load=80_000))
    with pytest.raises(LimitError, match="limits.bytes_at_load = 79,999"):
        rnnfast.load(data, limits=Limits(bytes_at_load=79_999))
    with pytest.raises(LimitError, match="limits.bytes_at_load = 39,999"):
        rnnfast.load(data, limits=Limits(bytes_at_load=39_999))


def test_weights_are_packed_once():
    nodes = "".join(f"y{i + 1} = MatMul (y{i}, w)  " for i in range(50))
    text = f"g (float[n,k] x) => (float[n,k] y50) {{ y0 = Neg (x)  {nodes} }}"
    rnnfast.load(parse(text, w=np.ones((100, 100), np.float32)), limits=Limits(bytes_at_load=80_000))


def test_seconds_of_loops_of_numpy_functions():
    model = rnnfast.load(
        parse(
            """g (float[n] x, int64 m) => (float[n] y) { y = Loop (m, , x)
        <body = b (int64 i, bool c, float[n] a) => (bool d, float[n] o) { d = Identity (c)  o = Hardmax (a) }> }"""
        ),
        limits=Limits(seconds=0.2),
    )
    x = np.ones(5, np.float32)
    assert model(x=x, m=3).y.tolist() == [1, 0, 0, 0, 0]
    start = time.monotonic()
    with pytest.raises(LimitError, match="0.2 seconds that limits.seconds allows"):
        model(x=x, m=1_000_000)
    assert time.monotonic() - start < 5


# ------------------------------------------------------------------------------------------ attacks
def expanded(nodes, *shape, **constants):
    """A model that makes a tensor e of this shape from its input x."""
    rank = f"{','.join('abcdefgh'[: len(shape)])}"
    text = f"g (float[p,q] x) => (float[{rank}] y) {{ e = Expand (x, shape)  {nodes} }}"
    return parse(text, shape=np.array(shape), **constants)


def loop(nodes, *shape, trips=10**6, given="", condition="k = Identity (c)", **constants):
    """A model that repeats the nodes, which make o from a, on a tensor of this shape."""
    return expanded(
        f"y = Loop ({given or 'm'}, , e) <body = b (int64 i, bool c, float a) => (bool k, float o) {{ "
        f"{condition}  {nodes} }}>",
        *shape,
        m=np.array(trips),
        **constants,
    )


def constant(nodes, **constants):
    """A model whose nodes depend on constants alone."""
    return parse(f"g (float[p,q] x) => (float y) {{ {nodes}  y = Add (x, z) }}", **constants)


def weights(*shape):
    return np.zeros(shape, np.float32)


def recurrent(kind, steps, size):
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    nodes = f"y, h = {kind} <hidden_size = {size}> (e, w, r)"
    return expanded(nodes, steps, 1, size, w=weights(1, gates * size, size), r=weights(1, gates * size, size))


def sparse(count, size):
    """A model with tensors that are almost all zeros."""
    from onnx import ModelProto

    model = ModelProto.FromString(parse("g (float[p,q] x) => (float y) { y = Neg (x) }"))
    for i in range(count):
        values = numpy_helper.from_array(np.ones(1, np.float32), f"s{i}")
        indices = numpy_helper.from_array(np.zeros(1, np.int64), f"i{i}")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [size]))
        model.graph.node.append(helper.make_node("Neg", [f"s{i}"], [f"n{i}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"n{i}", TensorProto.FLOAT, None))
    return model.SerializeToString()


ATTACKS = {
    # one node
    "product": lambda: expanded("y = MatMul (e, e)", 16000, 16000),
    "product and sum": lambda: expanded("z = MatMul (e, e)  y = ReduceMax (z)", 16000, 16000),
    "outer product": lambda: expanded("t = Transpose (e)  y = MatMul (e, t)", 100_000, 1),
    "stacks": lambda: expanded("y = MatMul (e, e)", 20, 4000, 4000),
    "gemm": lambda: expanded("y = Gemm <transB = 1> (e, e)", 15000, 15000),
    "double": lambda: expanded("d = Cast <to = 11> (e)  f = MatMul (d, d)  y = Cast <to = 1> (f)", 10000, 10000),
    "int product": lambda: expanded("d = Cast <to = 6> (e)  f = MatMul (d, d)  y = Cast <to = 1> (f)", 8000, 8000),
    "einsum": lambda: expanded('y = Einsum <equation = "ij,kj->ik"> (e, e)', 10000, 10000),
    "einsum of one": lambda: expanded('y = Einsum <equation = "ab,cd,ef->"> (e, e, e)', 3000, 3000),
    "convolution": lambda: expanded("y = Conv (e, e)", 1000, 1000, 30, 30),
    "convolution of lines": lambda: expanded("y = Conv <pads = [20000, 20000]> (e, e)", 100, 100, 20001),
    "transposed": lambda: expanded("y = ConvTranspose (e, e)", 100, 100, 10000),
    "padded pool": lambda: expanded(
        "y = MaxPool <kernel_shape = [50000], pads = [49999, 49999]> (e)", 100, 10, 100_000
    ),
    "lp pool": lambda: expanded("y = LpPool <kernel_shape = [3000, 3000]> (e)", 1, 1, 6000, 6000),
    "lstm": lambda: recurrent("LSTM", 1_000_000, 256),
    "gru": lambda: recurrent("GRU", 2_000_000, 200),
    "rnn": lambda: recurrent("RNN", 3_000_000, 150),
    "sum of vectors": lambda: expanded("t = Transpose (e)  y = Add (e, t)", 300_000, 1),
    "comparison of vectors": lambda: expanded("t = Transpose (e)  l = Less (e, t)  y = Cast <to = 1> (l)", 300_000, 1),
    "hot": lambda: expanded(
        "i = Cast <to = 7> (e)  y = OneHot (i, depth, v)", 100_000, 1, depth=np.array(100_000), v=np.float32([0, 1])
    ),
    "eye": lambda: expanded("y = EyeLike (e)", 1_000_000, 1_000_000),
    "gather": lambda: expanded("y = Gather (e, i)", 30_000, 1_000, i=np.zeros(1_000_000, np.int64)),
    "padding": lambda: expanded("y = Pad (e, p)", 1, 1, p=np.array([10**6] * 4)),
    # loops
    "loop of products": lambda: loop("o = MatMul (a, a)", 512, 512),
    "loop without trips": lambda: loop("o = MatMul (a, a)", 512, 512, given=" ", condition="k = Identity (c)"),
    "loop of sums": lambda: loop("o = Exp (a)", 3000, 3000),
    "loop of orders": lambda: loop("o = Hardmax (a)", 1000, 1000),
    "loop of shapes": lambda: loop("s = Shape (a)  z = ConstantOfShape (s)  o = Add (a, z)", 2000, 2000),
    "loop of convolutions": lambda: loop("o = Conv <pads = [1, 1]> (a, w)", 1, 64, 10_000, w=weights(64, 64, 3)),
    "loop of reductions": lambda: loop("s = ReduceSum <keepdims = 1> (a)  o = Sub (a, s)", 4000, 4000),
    "loop of small nodes": lambda: loop(
        " ".join(["b0 = Hardmax (a)"] + [f"b{i + 1} = Hardmax (b{i})" for i in range(50)] + ["o = Neg (b50)"]), 2, 2
    ),
    "loop of transcendents": lambda: loop("b = Sin (a)  o = Atan (b)", 1000, 1000),
    "growing": lambda: loop("o = Concat <axis = 0> (a, a)", 2, 2),
    "growing sums": lambda: loop(
        "b = Concat <axis = 0> (a, one)  o = CumSum (b, zero)", 1, 1, one=np.ones((1, 1), np.float32), zero=np.array(0)
    ),
    "loops in loops": lambda: loop(
        "o = Loop (m, , a) <body = d (int64 j, bool c2, float a2) => (bool k2, float o2) { k2 = Identity (c2) "
        "o2 = Loop (m, , a2) <body = f (int64 l, bool c3, float a3) => (bool k3, float o3) { "
        "k3 = Identity (c3)  o3 = Neg (a3) }> }>",
        2,
        2,
        trips=90_000,
    ),
    "scan": lambda: expanded(
        "y = Scan (w, e) <num_scan_inputs = 1, body = b (float a, float r) => (float o) { "
        "s = Mul (a, r)  o = MatMul (s, s) }>",
        100_000,
        1,
        w=weights(600, 600),
    ),
    # at load
    "folded products": lambda: constant(
        "".join(f"p{i + 1} = MatMul (p{i}, p{i})  " for i in range(2000)) + "z = Neg (p2000)", p0=weights(1500, 1500)
    ),
    "folded expand": lambda: constant("e = Expand (o, s)  z = ReduceSum (e)", o=np.float32(1), s=np.array([2**29 - 1])),
    "many folded expands": lambda: constant(
        "".join(f"e{i} = Expand (o, s)  r{i} = ReduceSum (e{i})  " for i in range(300))
        + f"z = Sum ({', '.join(f'r{i}' for i in range(300))})",
        o=np.float32(1),
        s=np.array([2**28]),
    ),
    "constant of shape": lambda: constant(
        "c = ConstantOfShape (s)  d = MatMul (c, c)  z = ReduceSum (d)", s=np.array([20_000, 20_000])
    ),
    "range": lambda: constant(
        "r = Range (b, n, o)  f = Cast <to = 1> (r)  q = Sin (f)  z = ReduceSum (q)",
        b=np.array(0),
        n=np.array(2**28),
        o=np.array(1),
    ),
    "tile": lambda: constant(
        "t = Tile (o, s)  q = Exp (t)  z = ReduceSum (q)", o=np.ones(4, np.float32), s=np.array([2**27])
    ),
    "pad": lambda: constant("t = Pad (o, s)  z = ReduceSum (t)", o=np.ones(4, np.float32), s=np.array([2**28, 2**28])),
    "folded loop": lambda: constant(
        "z = Loop (m, , o) <body = b (int64 i, bool c, float a) => (bool k, float p) { k = Identity (c) "
        "p = MatMul (a, a) }>",
        m=np.array(10**6),
        o=weights(500, 500),
    ),
    "folded outer sum": lambda: constant("t = Transpose (v)  s = Add (v, t)  z = ReduceSum (s)", v=weights(300_000, 1)),
    "folded einsum": lambda: constant('z = Einsum <equation = "ab,cd,ef->"> (v, v, v)', v=weights(1000, 1000)),
    "sparse": lambda: sparse(20, 2**29 - 1),
    "hot at load": lambda: constant(
        "i = Range (b, n, s)  h = OneHot (i, n, v)  z = ReduceSum (h)",
        b=np.array(0),
        s=np.array(1),
        n=np.array(100_000),
        v=np.float32([0, 1]),
    ),
}


def status(key):
    """A number of bytes from the kernel's account of this process."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


def forgotten_peak():
    """The resident bytes, from which on `peak` counts."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("the peak of the resident memory cannot be reset here")
    return status("VmRSS")


def peak():
    """The most resident bytes since `forgotten_peak`."""
    return status("VmHWM")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(name):
    """The file is refused, or what it asks for is stopped: in little time and memory."""
    data = ATTACKS[name]()
    before, start = forgotten_peak(), time.process_time()
    with pytest.raises(LimitError):
        rnnfast.load(data)(ONE)
    seconds = time.process_time() - start
    assert seconds < SECONDS and peak() - before < BYTES
