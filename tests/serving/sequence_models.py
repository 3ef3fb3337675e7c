"""Models without states whose whole sequences a Batcher takes, and their results for one sequence alone."""

import numpy as np

from tests.graphs import parse, random

I, H, C = 5, 7, 3


def weights(gates, directions=1, inputs=I, seed=0):
    return {
        "w": random(seed + 1, directions, gates * H, inputs),
        "r": random(seed + 2, directions, gates * H, H),
        "b": random(seed + 3, directions, 2 * gates * H),
    }


DENSE = {"v": random(8, H, C), "d": random(9, C)}
BOTH = {"v": random(8, 2 * H, C), "d": random(9, C)}
ZERO = np.zeros(1, np.float32)
FUNCTIONS = """<domain: "local", opset_import: ["" : 17]> layer (x, w, r, b) => (last, y)
        { y, last, c = LSTM <hidden_size = 7> (x, w, r, b) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]> twice (x, w, r, b) => (sum, other)
        { one = local.layer (x, w, r, b)  z = Relu (x)  other, y = local.layer (z, w, r, b)  sum = Add (one, other) }"""

# Name -> bytes of a model, the axes of frames and of the batch in its input, and those in its outputs.
FRAME_BY_FRAME = {
    "lstm": (
        parse(
            """g (float[t,n,5] x) => (float[t,n,3] y) { h, hn, cn = LSTM <hidden_size = 7> (x, w, r, b)
        s = Squeeze (h, one)  m = MatMul (s, v)  a = Add (m, d)  y = Softmax <axis = -1> (a) }""",
            one=[1],
            **weights(4),
            **DENSE,
        ),
        (0, 1),
        {"y": (0, 1)},
    ),
    "two layers": (
        parse(
            """g (float[n,t,5] x) => (float[n,t,7] y, float[1,n,7] last) {
        z = Transpose <perm = [1,0,2]> (x)
        h1, hn1 = GRU <hidden_size = 7, linear_before_reset = 1> (z, w, r, b)  s1 = Squeeze (h1, one)
        h2, last = GRU <hidden_size = 7> (s1, w2, r2, b2)  s2 = Squeeze (h2, one)
        y = Transpose <perm = [1,0,2]> (s2) }""",
            one=[1],
            **weights(3),
            **{f"{k}2": a for k, a in weights(3, inputs=H, seed=10).items()},
        ),
        (1, 0),
        {"y": (1, 0), "last": (None, 1)},
    ),
    "classifier": (
        parse(
            """g (float[t,n,5] x, int64[n] lens) => (float[n,3] y) { k = Cast <to = 6> (lens)
        h, hn = RNN <hidden_size = 7, clip = 2.5> (x, w, r, b, k)  s = Squeeze (hn, zero)
        y = Gemm (s, v, d) }""",
            zero=[0],
            **weights(1),
            **DENSE,
        ),
        (0, 1),
        {"y": (None, 0)},
    ),
    "layout 1": (
        parse(
            """g (float[n,t,5] x) => (float[n,7] y) {
        h, hn, cn = LSTM <hidden_size = 7, layout = 1> (x, w, r, b)
        y = Squeeze (hn, one) }""",
            one=[1],
            **weights(4),
        ),
        (1, 0),
        {"y": (None, 0)},
    ),
    "states of the shape": (
        parse(
            """g (float[t,n,5] x) => (float[n,t,7] y) { shape = Shape (x)  n = Gather (shape, one)
        s = Concat <axis = 0> (one, n, size)  h0 = ConstantOfShape (s)
        h, hn = GRU <hidden_size = 7> (x, w, r, b, , h0)  q = Squeeze (h, one)  y = Transpose <perm = [1,0,2]> (q) }""",
            one=[1],
            size=[H],
            **weights(3),
        ),
        (0, 1),
        {"y": (1, 0)},
    ),
    "states of the file": (
        parse(
            """g (float[t,1,5] x) => (float[t,1,7] y) {
        h, hn, cn = LSTM <hidden_size = 7> (x, w, r, b, , h0, c0, p)  y = Squeeze (h, one) }""",
            one=[1],
            **weights(4),
            h0=random(20, 1, 1, H),
            c0=random(21, 1, 1, H),
            p=random(22, 1, 3 * H),
        ),
        (0, 1),
        {"y": (0, 1)},
    ),
    "functions": (
        parse(
            """g (float[t,n,5] x) => (float[1,n,7] sum, float[1,n,7] last, float[t,1,n,7] y) {
        sum = local.twice (x, w, r, b)  last, y = local.layer (x, w2, r2, b2) }"""
            + FUNCTIONS,
            **weights(4),
            **{f"{k}2": a for k, a in weights(4, seed=30).items()},
        ),
        (0, 1),
        {"sum": (None, 1), "last": (None, 1), "y": (0, 2)},
    ),
    "tokens": (
        parse(
            """g (int64[n,t] x) => (int64[n] y) { e = Gather (table, x)  z = Transpose <perm = [1,0,2]> (e)
        h, hn = RNN <hidden_size = 7> (z, w, r, b)  s = Gather <axis = 0> (h, end)  q = Squeeze (s, zero)
        y = ArgMax <axis = 1, keepdims = 0> (q) }""",
            table=random(40, 9, I),
            end=-1,
            zero=[0],
            **weights(1),
        ),
        (1, 0),
        {"y": (None, 0)},
    ),
    "decisions": (
        parse(
            """g (float[t,n,5] x) => (bool[t,n] y) { h, hn = GRU <hidden_size = 7> (x, w, r, b)
        s = Squeeze (h, one)  m = ReduceMean <axes = [2], keepdims = 0> (s)  y = Greater (m, limit) }""",
            one=[1],
            limit=np.float32(0),
            **weights(3),
        ),
        (0, 1),
        {"y": (0, 1)},
    ),
}
PADDED = {
    "bidirectional": (
        parse(
            """g (float[t,n,5] x, int32[n] lens) => (float[t,n,3] y, float[2,n,7] last) {
        h, last = GRU <hidden_size = 7, direction = "bidirectional"> (x, w, r, b, lens)
        z = Transpose <perm = [0,2,1,3]> (h)  s = Reshape (z, shape)  m = MatMul (s, v)  y = Add (m, d) }""",
            shape=[0, 0, -1],
            **weights(3, 2),
            **BOTH,
        ),
        (0, 1),
        {"y": (0, 1), "last": (None, 1)},
    ),
    "reverse": (
        parse(
            """g (float[n,t,5] x, int64[n] lens) => (float[n,3] y) { z = Transpose <perm = [1,0,2]> (x)
        k = Cast <to = 6> (lens)  h, hn, cn = LSTM <hidden_size = 7, direction = "reverse"> (z, w, r, b, k)
        s = Squeeze (cn, zero)  y = Gemm (s, v, d) }""",
            zero=[0],
            **weights(4),
            **DENSE,
        ),
        (1, 0),
        {"y": (None, 0)},
    ),
    "lengths used twice": (
        parse(
            """g (float[t,1,5] x, int32[1] lens) => (float[1,7] y) {
        h, hn = RNN <hidden_size = 7> (x, w, r, b, lens)  s = Squeeze (hn, zero)  f = Cast <to = 1> (lens)
        u = Unsqueeze (f, one)  y = Div (s, u) }""",
            zero=[0],
            one=[1],
            **weights(1),
        ),
        (0, 1),
        {"y": (None, 0)},
    ),
}
CASES = FRAME_BY_FRAME | PADDED


def sequence(name, seed, length):
    rng = np.random.default_rng(seed)
    shape = (length,) if name == "tokens" else (length, I)
    return rng.integers(0, 9, shape) if name == "tokens" else rng.standard_normal(shape).astype(np.float32)


def feed_of(model, x, axes):
    """Return the inputs of a call with one sequence and, if the model takes lengths, its length."""
    feed = {model.inputs[0].name: np.expand_dims(x, axes[1])}
    for v in model.inputs[1:]:
        if v.name == "lens" or v.name == "lengths":
            feed[v.name] = np.array([len(x)], v.type.dtype)
    return feed


def alone(model, x, axes, of_outputs):
    """Return the model's outputs for one sequence, without the batch axis."""
    return [np.squeeze(value, of_outputs[name][1]) for name, value in model(feed_of(model, x, axes)).items()]


def same(result, expected):
    result = list(result.values()) if isinstance(result, dict) else [result]
    return len(result) == len(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(result, expected)
    )


def way(batcher):
    return type(batcher._sequence_runner).__name__
