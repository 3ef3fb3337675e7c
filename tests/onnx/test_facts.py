"""What is known of values before a run: sizes that declared shapes decide are constants, others are not."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError
from rnnfast.onnx.facts import Fact, facts_of
from tests.graphs import load, onnxruntime, parse, random

# The nodes between a shape and the vector `v` -> its elements for x of shape (2, 6, 5)
VECTORS = {
    "v = Shape (x)": [2, 6, 5],
    "v = Shape <start = -2> (x)": [6, 5],
    "s = Shape (x)  v = Gather (s, last)": [5],
    "s = Shape (x)  v = Slice (s, one, last, zero, one)": [6],
    "s = Shape (x)  v = Slice (s, last, least, zero, last)": [5, 6, 2],
    "s = Shape (x)  v = Slice (s, least, most)": [2, 6, 5],
    "s = Shape (x)  a = Add (s, one)  b = Mul (a, three)  c = Sub (b, last)  v = Div (c, two)": [5, 11, 9],
    "s = Shape (x)  a = Sub (zero, s)  v = Div (a, two)": [-1, -3, -2],
    "s = Shape (x)  c = Cast <to = 6> (s)  d = Gather (c, one)  v = Cast <to = 7> (d)": [6],
    "s = Shape (x)  a = Gather (s, scalar)  b = Unsqueeze (a, zero)  c = Squeeze (b, zero)  d = Unsqueeze (c, zero)"
    "  v = Concat <axis = 0> (d, three, s)": [6, 3, 2, 6, 5],
    "t = Transpose <perm = [2, 0, 1]> (x)  v = Shape (t)": [5, 2, 6],
    "m = MatMul (x, w)  v = Shape (m)": [2, 6, 3],
    "r = Reshape (x, wanted)  v = Shape (r)": [2, 10, 3],
    "p = Pad (x, pads)  v = Shape (p)": [2, 9, 5],
    "a, b = Split <axis = 1> (x, parts)  v = Shape (b)": [2, 4, 5],
    "r = ReduceMax <axes = [1], keepdims = 0> (x)  v = Shape (r)": [2, 5],
    "r = ReduceSum (x)  v = Shape (r)": [1, 1, 1],
    "e = Expand (x, wide)  v = Shape (e)": [3, 2, 6, 5],
    "s = Shape (x)  z = ConstantOfShape (s)  u = Unsqueeze (z, last)  v = Shape (u)": [2, 6, 5, 1],
    "c = Conv <kernel_shape = [3], strides = [2]> (x, kernel)  v = Shape (c)": [2, 4, 2],
    "c = Equal (x, other)  w2 = Where (c, x, other)  v = Shape (w2)": [2, 6, 5],
}  # fmt: skip
CONSTANTS = {
    "last": np.array([-1]), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "three": np.array([3]),
    "scalar": np.array(1), "least": np.array([np.iinfo(np.int64).min + 1]), "most": np.array([np.iinfo(np.int64).max]),
    "w": random(1, 5, 3), "wanted": np.array([0, -1, 3]), "pads": np.array([0, 1, 0, 0, 2, 0]),
    "parts": np.array([2, 4]), "wide": np.array([3, 1, 1, 1]), "kernel": random(2, 4, 6, 3), "other": random(3, 6, 1),
}  # fmt: skip


@pytest.mark.parametrize("text", VECTORS)
def test_sizes_of_declared_shapes(text):
    """A vector of sizes is the same, whether the sizes are declared and known at load, or found by a run."""
    feed = {"x": random(0, 2, 6, 5)}
    for sizes, is_known in (("2,6,5", True), ("n,t,k", False)):
        data = parse(f"g (float[{sizes}] x) => (int64[m] v) {{ {text} }}", **CONSTANTS)
        model = rnnfast.load(data)
        assert model(feed)["v"].tolist() == VECTORS[text] == onnxruntime(data, feed)["v"].tolist()
        if is_known:
            assert not model.folded.nodes
        else:
            other = {"x": random(0, 4, 6, 5)}
            np.testing.assert_array_equal(model(other)["v"], onnxruntime(data, other)["v"])


def test_open_sizes():
    """A size that is open has a name of its own, even if the file gives two the same name; broadcasting joins names."""
    data = parse("g (float[n,3] x, float[n,3] y) => (float[n,3] z, int64[k] v) { z = Add (x, y)  v = Shape (z) }")
    model = load(data)
    facts = facts_of(model.folded)
    assert facts["x"].shape == ("0:0", 3) and facts["y"].shape == ("1:0", 3) and facts["z"].shape == ("0:0|1:0", 3)
    one = np.ones((1, 3), np.float32)
    assert model({"x": np.ones((4, 3), np.float32), "y": one})["v"].tolist() == [4, 3]


def test_wrong_declarations_inside():
    """Shapes that a body declares for its own inputs hold for nothing."""
    data = parse(
        """g (float[4,2] x) => (int64[t,1] v) {
        v = Scan <num_scan_inputs = 1, body = b (float[7] row) => (int64[1] s) { s = Shape (row) }> (x) }"""
    )
    assert load(data)({"x": random(0, 4, 2)})["v"].tolist() == [[2]] * 4


def test_sizes_beyond_a_type():
    """Sums beyond 32 bits wrap around as they do in a run."""
    data = parse(
        """g (float[3] x) => (int32[1] v) { s = Shape (x)  c = Cast <to = 6> (s)  v = Add (c, large) }""",
        large=np.array([2**31 - 2], np.int32),
    )
    feed = {"x": random(0, 3)}
    assert load(data)(feed)["v"].tolist() == onnxruntime(data, feed)["v"].tolist() == [-(2**31) + 1]


def test_other_sizes_are_refused():
    data = parse("g (float[2,3] x) => (int64[2] v) { v = Shape (x) }")
    with pytest.raises(InputError, match=r"expected \(2, 3\)"):
        load(data)({"x": random(0, 2, 4)})


def test_nodes_that_fail():
    """Nothing is known of what no run gives, so that a model whose sizes do not fit is refused as before."""
    for text, constants in (
        ("r = Reshape (x, s)  v = Shape (r)", {"s": np.array([5, -1])}),
        ("r = Add (x, s)  v = Shape (r)", {"s": np.ones(4, np.float32)}),
        ("r = Unsqueeze (x, a)  v = Shape (r)", {"a": np.array([0, 0])}),
        ("r = Slice (x, a, a, s)  v = Shape (r)", {"a": np.array([0]), "s": np.array([2])}),
    ):
        model = load(parse(f"g (float[2,3] x) => (int64[k] v) {{ {text} }}", **constants))
        with pytest.raises(rnnfast.Error):
            model({"x": np.ones((2, 3), np.float32)})


def test_names_of_two_graphs():
    """A body's own input or result is not the value of that name around it."""
    data = parse(
        """g (float[2,3] x, float[k,n,m] s) => (int64[a,r] y) {
        go = Constant <value = bool {1}> ()  e = Abs (x)  f = Abs (x)
        last, y = Loop (two, go, s) <body = b (int64 i, bool c, float[k,n,m] x)
            => (bool c2, float[k,n,m] x2, int64[r] v) {
            c2 = Identity (c)  x2 = Neg (x)  d, e = Dropout (x)  f = Abs (x)
            v1 = Shape (e)  v2 = Shape (f)  v = Add (v1, v2) }> }""",
        two=np.array(2),
    )
    body = next(node for node in load(data).folded.nodes if node.op_type == "Loop").attributes["body"]
    around = {name: Fact(np.dtype(np.float32), (2, 3)) for name in "xef"}
    facts = facts_of(body, around, {})
    assert all(facts[name].shape is None for name in "xef")


@pytest.mark.parametrize(
    "text",
    [
        "v = Slice (x, zero, one, zero, one)",
        "v, w2 = Split <axis = 0> (x)",
        "v = Concat <axis = 0> (x, x)",
        "v = Gather (x, one)",
        "v = Squeeze (x, zero)",
        "v = Unsqueeze (x, most)",
        "v = ReduceSum (x, zero)",
    ],
)
def test_operators_without_axes(text):
    """What cannot be done to a scalar is refused by the operator, when it runs, beside activations too."""
    data = parse(f"g (float x) => (float[m] y) {{ {text}  a = Tanh (v)  b = Tanh (a)  y = Tanh (b) }}", **CONSTANTS)
    with pytest.raises(InputError, match="node #0"):
        load(data)({"x": np.float32(1)})
