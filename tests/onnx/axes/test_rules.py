"""The rule of each operator: where it leaves the rows, or why they meet."""

import re

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast.onnx import ops
from rnnfast.onnx.axes.rules import RULES
from rnnfast.onnx.axes.values import Rows
from tests import graphs
from tests.graphs import parse, random
from tests.onnx.axes.helpers import check_rows, follow, wild

CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
# Random numbers of a row are others in another batch, losses and boxes are of all rows, and what is not float32 or
# float64 numbers has no rows; of the others nothing is proven yet.
UNPROVEN = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "NonMaxSuppression", "RoiAlign", "MaxRoiPool"),
    *("StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    *("LinearAttention", "AffineGrid", "CenterCropPad", "DeformConv", "MaxUnpool"),
    *("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
}


def test_every_operator_has_a_rule():
    """A new operator without a rule lets rows meet; say so here if that is meant."""
    assert {name for domain, name in ops.table() if not domain} - RULES.keys() == CONTROL | UNPROVEN


# x is float[b,3,4], k int64[b] of 0 to 2; z is the result. -> (body, constants, where the rows are in z)
W, B4 = random(1, 4, 5), random(2, 4)
APART = {
    "elementwise": ("y = Add (x, c)  z = Tanh (y)", {"c": random(3, 3, 4)}, Rows(0)),
    "a value of each row": ("m = ReduceMax <axes = [1,2]> (x)  z = Div (x, m)", {}, Rows(0)),
    "where": ("m = Greater (x, c)  z = Where (m, x, d)", {"c": np.float32(0), "d": B4}, Rows(0)),
    "clip, power, cast": ("y = Clip (x, c)  p = Pow (y, c)  z = Cast <to = 6> (p)", {"c": np.float32(2)}, Rows(0)),
    "a product": ("z = MatMul (x, w)", {"w": W}, Rows(0)),
    "a product from the left": ("z = MatMul (w, x)", {"w": random(4, 2, 3)}, Rows(0)),
    "a product of stacks": ("t = Transpose <perm = [0,2,1]> (x)  z = MatMul (x, t)", {}, Rows(0)),
    "lines of all rows": ("y = Reshape (x, s)  z = Gemm (y, w, c)", {"s": [-1, 4], "w": W, "c": W[0]}, Rows(0, 1, 3)),
    "lines and back": (
        "t = Transpose <perm = [1,0,2]> (x)  y = Reshape (t, s)  m = MatMul (y, w)  z = Reshape (m, r)",
        {"s": [-1, 4], "w": W, "r": [3, -1, 5]},
        Rows(1),
    ),
    "columns": ("t = Transpose <perm = [1,2,0]> (x)  z = MatMul (w, t)", {"w": random(5, 2, 4)}, Rows(2)),
    "a transposed gemm": (
        "t = ReduceSum <keepdims = 0> (x, one)  u = Transpose (t)  z = Gemm <transA = 1> (u, w)",
        {"one": [1], "w": W},
        Rows(0),
    ),
    "a gemm with a C of each row": (
        "t = ReduceSum <keepdims = 0> (x, one)  c = ReduceMax <axes = [1]> (t)  z = Gemm (t, w, c)",
        {"one": [1], "w": W},
        Rows(0),
    ),
    "einsum": ('z = Einsum <equation = "bij,bkj->ibk"> (x, x)', {}, Rows(1)),
    "einsum with weights": ('z = Einsum <equation = "...j,jk->...k"> (x, w)', {"w": W}, Rows(0)),
    "reductions": (
        "y = ReduceMean <axes = [1], keepdims = 0> (x)  z = ReduceL2 <axes = [-1], keepdims = 0> (y)",
        {},
        Rows(0),
    ),
    "extremes": ("i = ArgMax <axis = 2, keepdims = 0> (x)  v, z = TopK <axis = 1> (x, two)", {"two": [2]}, Rows(0)),
    "running sums": ("z = CumSum (x, one)", {"one": 1}, Rows(0)),
    "softmax": ("y = Softmax <axis = 1> (x)  z = LogSoftmax (y)", {}, Rows(0)),
    "normalizations": (
        "y = LayerNormalization <axis = 1> (x, g)  i = InstanceNormalization (y, o, o)  z = LpNormalization (i)",
        {"g": random(6, 3, 4), "o": random(7, 3)},
        Rows(0),
    ),
    "batch normalization": (
        "z = BatchNormalization (x, o, o, o, p)",
        {"o": random(7, 3), "p": np.ones(3, "f")},
        Rows(0),
    ),
    "a convolution": ("z = Conv (x, w, c)", {"w": random(8, 2, 3, 3), "c": random(9, 2)}, Rows(0)),
    "a convolution of each place": (
        "t = Transpose <perm = [1,2,0]> (x)  z = Conv (t, w)",
        {"w": random(8, 2, 4, 1)},
        Rows(2),
    ),
    "pooling": ("p = MaxPool <kernel_shape = [2]> (x)  z = GlobalAveragePool (p)", {}, Rows(0)),
    "an LSTM": (
        "t = Transpose <perm = [1,0,2]> (x)  z, h, c = LSTM <hidden_size = 2> (t, w, r)",
        {"w": random(10, 1, 8, 4), "r": random(11, 1, 8, 2)},
        Rows(2),
    ),
    "an LSTM whose batch is all places": (
        "t = Reshape (x, s)  y, h, c = LSTM <hidden_size = 2> (t, w, r)  z = Squeeze (h, zero)",
        {"s": [1, -1, 4], "w": random(10, 1, 8, 4), "r": random(11, 1, 8, 2), "zero": [0]},
        Rows(0, 1, 3),
    ),
    "states of the batch": (
        "t = Transpose <perm = [1,0,2]> (x)  s = Shape (t)  n = Slice (s, one, two)  "
        "d = Concat <axis = 0> (one, n, two)  o = ConstantOfShape (d)  y, z = GRU <hidden_size = 2> (t, w, r, , , o)",
        {"one": [1], "two": [2], "w": random(10, 1, 6, 4), "r": random(11, 1, 6, 2)},
        Rows(1),
    ),
    "reshape by the shape": (
        "s = Shape (x)  n = Gather (s, zero)  u = Unsqueeze (n, none)  "
        "d = Concat <axis = 0> (u, rest)  z = Reshape (x, d)",
        {"zero": 0, "none": [0], "rest": [2, 6]},
        Rows(0),
    ),
    "flatten": ("y = Flatten <axis = 2> (x)  z = Flatten <axis = 0> (y)", {}, Rows(1, 1, 12)),
    "unsqueeze and squeeze": ("u = Unsqueeze (x, a)  z = Squeeze (u, b)", {"a": [0, 3], "b": [0]}, Rows(0)),
    "expand to the shape of another": (
        "s = Shape (x)  y = Expand (c, s)  z = Add (x, y)",
        {"c": random(12, 1, 3, 1)},
        Rows(0),
    ),
    "expand as torch writes it": (
        "s = Shape (x)  n = Gather (s, zero)  u = Unsqueeze (n, none)  d = Concat <axis = 0> (u, rest)  l = Shape (d)  "
        "o = ConstantOfShape <value = int64[1] {1}> (l)  m = Mul (o, minus)  e = Equal (d, m)  w = Where (e, o, d)  "
        "z = Expand (c, w)",
        {"zero": 0, "none": [0], "rest": [-1, 4], "minus": -1, "c": random(12, 1, 3, 4)},
        Rows(0),
    ),
    "tile by the batch": (
        "s = Shape (x)  n = Slice (s, zero, one)  d = Concat <axis = 0> (n, one, one)  z = Tile (c, d)",
        {"zero": [0], "one": [1], "c": random(12, 2, 3, 4)},
        Rows(0, 1, 2),
    ),
    "tile": ("z = Tile (x, r)", {"r": [2, 1, 2]}, Rows(0, 2, 1)),
    "concat and split": ("c = Concat <axis = 2> (x, x)  z, y = Split <axis = 2> (c, s)", {"s": [3, 5]}, Rows(0)),
    "pad": ("z = Pad (x, p)", {"p": [0, 1, 0, 0, 0, 2]}, Rows(0)),
    "slice": ("z = Slice (x, s, e, a, t)", {"s": [0, 3], "e": [2**31 - 1, 0], "a": [0, 2], "t": [1, -1]}, Rows(0)),
    "an embedding": ("z = Gather (c, k)", {"c": random(13, 3, 5)}, Rows(0)),
    "gather of each row": ("z = Gather <axis = 2> (x, i)", {"i": [[0, 2]]}, Rows(0)),
    "gather elements": ("i = ArgMax <axis = 2> (x)  z = GatherElements <axis = 2> (x, i)", {}, Rows(0)),
    "gather by tuples": ("u = Unsqueeze (k, one)  z = GatherND <batch_dims = 1> (x, u)", {"one": [1]}, Rows(0)),
    "scatter": (
        "i = ArgMax <axis = 1> (x)  m = ReduceMin <axes = [1]> (x)  z = ScatterElements <axis = 1> (x, i, m)",
        {},
        Rows(0),
    ),
    "one hot": ("z = OneHot <axis = 0> (k, three, v)", {"three": 3, "v": np.float32([0, 1])}, Rows(1)),
    "quantized": (
        "n = IsNaN (x)  y = Where (n, s, x)  q = QuantizeLinear (y, s, p)  z = DequantizeLinear (q, s, p)",
        {"s": np.float32(0.1), "p": np.uint8(3)},
        Rows(0),
    ),
    "a sequence": (
        "s = SplitToSequence <axis = 1, keepdims = 0> (x)  y = SequenceAt (s, one)  l = SequenceErase (s, one)  "
        "z = ConcatFromSequence <axis = 1, new_axis = 1> (l)",
        {"one": 1},
        Rows(0),
    ),
    "a sequence of the given size": (
        "s = SplitToSequence <axis = 1, keepdims = 0> (x, one)  y = SequenceAt (s, one)  l = SequenceErase (s, one)  "
        "z = ConcatFromSequence <axis = 1, new_axis = 1> (l)",
        {"one": 1},
        Rows(0),
    ),
    "a branch by what is the same for all": (
        "z = If (c) <then_branch = t () => (float[b,3,4] u) { u = Neg (x) },"
        " else_branch = e () => (float[b,3,4] v) { v = Abs (x) }>",
        {"c": np.array(True)},
        Rows(0),
    ),
    "a loop": (
        "z, all = Loop (n, , x) <body = l (int64 i, bool g, float[b,3,4] s) => (bool o, float[b,3,4] t, float[b,4] u) "
        "{ o = Identity (g)  t = Mul (s, half)  u = ReduceSum <keepdims = 0> (t, one) }>",
        {"n": 3, "half": np.float32(0.5), "one": [1]},
        Rows(0),
    ),
    "a scan": (
        "t = ReduceMax <axes = [1], keepdims = 0> (x)  e, z = Scan (t, x) <num_scan_inputs = 1, scan_input_axes = [1], "
        "scan_output_axes = [1], body = l (float[b,4] s, float[b,4] f) => (float[b,4] n, float[b,4] o) "
        "{ n = Add (s, f)  o = Tanh (n) }>",
        {},
        Rows(0),
    ),
    "a reversed sequence": ("z = ReverseSequence <batch_axis = 0, time_axis = 1> (x, k)", {}, Rows(0)),
    "a triangle": ("z = Trilu (x)", {}, Rows(0)),
    "resized by scales": (
        'y = Resize <mode = "linear"> (x, , s)  t = Transpose <perm = [1,0,2]> (y)  z = Resize (t, , u)',
        {"s": np.float32([1, 2, 1.5]), "u": np.float32([1, 1, 2])},
        Rows(1),
    ),
    "resized by sizes": (
        "s = Shape (x)  n = Slice (s, zero, one)  d = Concat <axis = 0> (n, rest)  z = Resize (x, , , d)",
        {"zero": [0], "one": [1], "rest": [5, 2]},
        Rows(0),
    ),
    "samples of a grid": (
        "i = Unsqueeze (x, one)  g = Slice (x, zero, two, last)  u = Unsqueeze (g, one)  z = GridSample (i, u)",
        {"zero": [0], "one": [1], "two": [2], "last": [2]},
        Rows(0),
    ),
    "channels at a grid": (
        "t = Transpose <perm = [1,0,2]> (x)  u = Unsqueeze (t, two)  z = GridSample (u, g)",
        {"two": [2], "g": random(3, 3, 1, 5, 2)},
        Rows(1),
    ),
    "a spectrum": ("u = Unsqueeze (x, three)  z = DFT <axis = 2> (u)", {"three": [3]}, Rows(0)),
    "spectra of frames": (
        "y = Reshape (x, s)  z = STFT (y, one, w)",
        {"s": [-1, 12], "one": 1, "w": random(4, 5)},
        Rows(0),
    ),
    "determinants": ("y = MatMul (x, w)  z = Det (y)", {"w": random(5, 4, 3)}, Rows(0)),
    "columns of an image": (
        "y = Reshape (x, s)  z = Col2Im (y, size, block)",
        {"s": [-1, 4, 3], "size": [2, 4], "block": [2, 2]},
        Rows(0),
    ),
}


# The same at opset 24.
NEWER = {
    "attention": (
        "y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (x, x, x, m)  z = Neg (y)",
        {"m": random(3, 3, 3)},
        Rows(0),
    ),
    "attention to a past": ("u = Unsqueeze (x, one)  y, z, v = Attention (u, u, u, , u, u)", {"one": [1]}, Rows(0)),
    "attention with a mask of each row": (
        "u = Unsqueeze (x, one)  m = MatMul (u, w)  z = Attention (u, u, u, m)",
        {"one": [1], "w": random(3, 4, 3)},
        Rows(0),
    ),
    "attention to so many keys": ("u = Unsqueeze (x, one)  z = Attention (u, u, u, , , , k)", {"one": [1]}, Rows(0)),
    "turned by positions": (
        "p = Unsqueeze (k, one)  t = Tile (p, r)  z = RotaryEmbedding <num_heads = 1> (x, c, s, t)",
        {"one": [1], "r": [1, 3], "c": random(1, 3, 2), "s": random(2, 3, 2)},
        Rows(0),
    ),
    "a cache": (
        "u = Slice (x, zero, one, one)  z = TensorScatter <axis = 1> (x, u, k)",
        {"zero": [0], "one": [1]},
        Rows(0),
    ),
}


def model_of(body, constants, outputs="z", opset=17):
    text = f"g (float[b,3,4] x, int64[b] k) => ({outputs}) {{ {body} }}"
    return graphs.load(parse(text, opset, **{name: np.asarray(value) for name, value in constants.items()}))


def feed_of(rng, count):
    return {"x": wild(rng, (count, 3, 4)), "k": rng.integers(0, 3, count)}


def followed(model, count=1):
    axes = {v.name: 0 for v in model.inputs}
    return follow(model, feed_of(np.random.default_rng(0), count), axes, count), axes


@pytest.mark.parametrize("name", [*APART, *NEWER])
def test_apart(name):
    if name in NEWER and onnx.defs.onnx_opset_version() < 24:
        pytest.skip("this onnx has no opset 24")
    body, constants, rows = (APART | NEWER)[name]
    model = model_of(body, constants, opset=24 if name in NEWER else 18 if "Col2Im" in body else 17)
    values, axes = followed(model)
    assert values["z"].meeting is None and values["z"].rows == rows, values["z"]
    assert check_rows(model, values, axes, feed_of, np.random.default_rng(1)) == 1
    # What a trace with several rows shows is the same.
    assert followed(model, 5)[0]["z"].rows == rows


EMPTY = {"k0": [0], "one": [1]}
MEET = {
    "a quiet beside a loud one": (
        "a = Abs (x)  p = ReduceMax <axes = [0]> (a)  g = Max (p, c)  z = Div (x, g)",
        {"c": np.float32(10)},
        "ReduceMax",
    ),
    "the peak of everything": ("a = Abs (x)  p = ReduceMax <keepdims = 0> (a)  z = Div (x, p)", {}, "ReduceMax"),
    "the mean within lines of all rows": (
        "y = Reshape (x, s)  z = ReduceMean <axes = [0]> (y)",
        {"s": [-1, 4]},
        "ReduceMean",
    ),
    "softmax over all rows": ("y = Reshape (x, s)  z = Softmax <axis = 0> (y)", {"s": [-1, 4]}, "Softmax"),
    "a sum in a product": ("t = Transpose (x)  z = MatMul (t, w)", {"w": random(1, 1, 2)}, "sums over"),
    "all rows with all": (
        "y = Reshape (x, s)  t = Transpose (y)  z = MatMul (y, t)",
        {"s": [-1, 12]},
        "the matrices B differ",
    ),
    "attention over the batch": (
        "y = ReduceMean <axes = [1], keepdims = 0> (x)  t = Transpose (y)  q = MatMul (y, t)  p = Softmax (q)  "
        "z = MatMul (p, y)",
        {},
        "MatMul",
    ),
    "einsum": ('z = Einsum <equation = "bij->ij"> (x)', {}, "sums over the axis 'b'"),
    "a convolution over the rows": (
        "t = Transpose <perm = [1,2,0]> (x)  z = Conv <pads = [1,1]> (t, w)",
        {"w": random(8, 2, 4, 3)},
        "over several rows",
    ),
    "an LSTM over the rows": (
        "z, h, c = LSTM <hidden_size = 2> (x, w, r)",
        {"w": random(10, 1, 8, 4), "r": random(11, 1, 8, 2)},
        "row to row",
    ),
    "a scan over the rows": (
        "s = ReduceMax <axes = [0], keepdims = 0> (c)  e, z = Scan (s, x) <num_scan_inputs = 1, "
        "body = l (float[3,4] s1, float[3,4] f) => (float[3,4] n, float[3,4] o) { n = Add (s1, f)  o = Tanh (n) }>",
        {"c": random(12, 2, 3, 4)},
        "goes from row to row",
    ),
    "one scale for all": ("q, s, p = DynamicQuantizeLinear (x)  z = DequantizeLinear (q, s, p)", {}, "one scale"),
    "rows counted": (
        "s = Shape (x)  n = Gather (s, c)  f = Cast <to = 1> (n)  z = Div (x, f)",
        {"c": 0},
        "number of rows",
    ),
    "rows numbered": (
        "s = Shape (x)  n = Gather (s, c)  i = Range (c, n, one)  f = Cast <to = 1> (i)  "
        "u = Unsqueeze (f, a)  z = Add (x, u)",
        {"c": 0, "one": 1, "a": [1, 2]},
        "numbers the rows",
    ),
    "a branch by the number of rows": (
        "s = Shape (x)  n = Gather (s, c)  m = Greater (n, five)  "
        "z = If (m) <then_branch = t () => (float[b,3,4] u) { u = Neg (x) },"
        " else_branch = e () => (float[b,3,4] v) { v = Abs (x) }>",
        {"c": 0, "five": 5},
        "decides by the number of rows",
    ),
    "a branch by the values": (
        "p = ReduceMax <keepdims = 0> (c)  a = Greater (x, p)  f = Cast <to = 1> (a)  s = Reshape (f, flat)  "
        "o = Gather (s, one)  m = Cast <to = 9> (o)  "
        "z = If (m) <then_branch = t () => (float[b,3,4] u) { u = Neg (x) },"
        " else_branch = e () => (float[b,3,4] v) { v = Abs (x) }>",
        {"c": B4, "flat": [-1], "one": 0},
        "along axis 0, along which the rows lie",
    ),
    "a loop that mixes": (
        "z = Loop (n, , x) <body = l (int64 i, bool g, float[b,3,4] s) => (bool o, float[b,3,4] t) "
        "{ o = Identity (g)  m = ReduceMean <axes = [0]> (s)  t = Sub (s, m) }>",
        {"n": 3},
        r"in its graph, node .*\(ReduceMean\)",
    ),
    "a loop that ends for all": (
        "z = Loop (n, c, x) <body = l (int64 i, bool g, float[b,3,4] s) => (bool o, float[b,3,4] t) "
        "{ m = ReduceMax <keepdims = 0> (s)  o = Less (m, limit)  t = Add (s, limit) }>",
        {"n": 3, "c": np.array(True), "limit": np.float32(4)},
        "ReduceMax",
    ),
    "rows dropped": ("z = Slice (x, s, e, s)", {"s": [0], "e": [1]}, "selects some of the rows"),
    "rows reversed": ("z = Slice (x, s, e, a, t)", {"s": [-1], "e": [-(2**40)], "a": [0], "t": [-1]}, "selects some"),
    "the first row for all": ("f = Gather (x, c)  z = Add (x, f)", {"c": 0}, "selects along axis 0"),
    "rows by the words of others": ("j = Mul (k, c)  z = Gather (x, j)", {"c": 0}, "different axes"),
    "rows into columns": ("z = Reshape (x, s)", {"s": [3, -1, 2, 2]}, "parts the elements of a row"),
    "one shape for all": ("z = Reshape (x, s)", {"s": [1, 12]}, "the same for any number of rows"),
    "a table by place": ("z = Add (x, c)", {"c": random(3, 2, 3, 4)}, "lies along the rows"),
    "distinct words": ("z = Unique (k)", {}, "collects elements"),
    "what is true": ("c = Greater (x, o)  z = NonZero (c)", {"o": np.float32(0)}, "collects elements"),
    "rows joined": ("z = Concat <axis = 0> (x, x)", {}, "it joins tensors along axis 0"),
    "rows padded": ("z = Pad (x, p)", {"p": [1, 0, 0, 0, 0, 0]}, "it pads the tensor along axis 0"),
    "running sums over rows": ("z = CumSum (x, c)", {"c": 0}, "it adds up"),
    "the best row": ("z = ArgMax <axis = 0> (x)", {}, "it finds an extreme"),
    "sorted rows": ("m = ReduceMax <axes = [1,2], keepdims = 0> (x)  s = Shape (m)  v, z = TopK (m, s)", {}, "TopK"),
    "a batch normalized": ("z = MeanVarianceNormalization <axes = [0]> (x)", {}, "it normalizes along axis 0"),
    "places in a batch": ("p, z = MaxPool <kernel_shape = [2]> (x)", {}, "output Indices"),
    "flattened without elements": ("y = Slice (x, k0, k0, one)  z = Flatten <axis = 2> (y)", EMPTY, "without elements"),
    "reshaped without elements": (
        "y = Slice (x, k0, k0, one)  z = Reshape <allowzero = 1> (y, s)",
        EMPTY | {"s": [0, 7]},
        "without elements",
    ),
    "a length that follows from no elements": (
        "y = Slice (x, k0, k0, one)  u = Unsqueeze (y, k0)  t = Transpose <perm = [2,1,3,0]> (u)  z = Reshape (t, s)",
        EMPTY | {"s": [5, 0, -1]},
        "its shape is the same",
    ),
    "resized rows": ("z = Resize (x, , s)", {"s": np.float32([2, 1, 1])}, "it resizes axis 0"),
    "one size for all": ("z = Resize (x, , , s)", {"s": [1, 6, 4]}, "it resizes axis 0"),
    "sizes by the rows": (
        "s = Shape (x)  n = Slice (s, zero, one)  d = Concat <axis = 0> (n, n, one)  z = Resize (x, , , d)",
        {"zero": [0], "one": [1]},
        "or others by their number",
    ),
    "transformed rows": ("z = DFT <axis = 0> (u)  u = Unsqueeze (x, a)", {"a": [3]}, "it transforms"),
    "the grid of others": (
        "i = Unsqueeze (x, one)  z = GridSample (i, g)",
        {"one": [1], "g": random(3, 1, 1, 5, 2)},
        "do not both have the rows",
    ),
    "squeezed away": ("m = ReduceMax <axes = [1]> (x)  z = Squeeze (m)", {}, "where there is one row"),
}


@pytest.mark.parametrize("name", MEET)
def test_meet(name):
    body, constants, message = MEET[name]
    model = model_of(body, constants)
    (value,) = followed(model)[0].values()
    assert value.meeting is not None, value
    assert re.search(message, str(value.meeting)), str(value.meeting)


def test_sequence_map_lets_rows_meet():
    text = """g (float[b,3,4] x) => (float[b,3,4] z) {
        s = SequenceConstruct (x, x)
        t = SequenceMap (s) <body = body (float[b,3,4] e) => (float[b,3,4] f) { f = Neg (e) }>
        z = SequenceAt (t, zero) }"""
    assert "(SequenceMap): no rule says" in str(rnnfast.load(parse(text, zero=0)).batch_axes())
