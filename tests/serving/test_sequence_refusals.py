"""Models whose sequences a Batcher cannot take are refused with the reason, and so are wrong sequences."""

import threading

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import ClosedError, InputError, InputTypeError, UnsupportedError
from tests import graphs
from tests.graphs import parse, random
from tests.serving.sequence_models import CASES, H, I, sequence, weights

REFUSED = {
    "bidirectional": (
        """g (float[t,n,5] x) => (float[2,n,7] y) {
        h, y = GRU <hidden_size = 7, direction = "bidirectional"> (x, w, r, b) }""",
        weights(3, 2),
        r"node .* \(GRU\): attribute 'direction' = 'bidirectional'.* Padded: no input of integers \[batch\]",
    ),
    "lengths that nothing takes": (
        """g (float[t,n,5] x, int32[n] lens) => (float[2,n,7] y, int32[n] same) {
        h, y = GRU <hidden_size = 7, direction = "bidirectional"> (x, w, r, b)  same = Identity (lens) }""",
        weights(3, 2),
        r"'direction'.* Padded: node .*\(GRU\): it runs forwards and backwards over the frames, without their lengths",
    ),
    "mean of the frames": (
        """g (float[t,n,5] x) => (float[n,7] y) { h, hn = GRU <hidden_size = 7> (x, w, r, b)
        y = ReduceMean <axes = [0,1], keepdims = 0> (h) }""",
        weights(3),
        r"Frame by frame: node .*\(ReduceMean\): it reduces the tensor along axis 0, along which the frames lie",
    ),
    "loud at any time": (
        """g (float[t,n,5] x) => (bool[n,7] y) { h, hn = GRU <hidden_size = 7> (x, w, r, b)
        m = ReduceMax <axes = [0,1], keepdims = 0> (h)  y = Greater (m, limit) }""",
        weights(3) | {"limit": np.float32(1)},
        r"Frame by frame: node .*\(ReduceMax\): it reduces the tensor along axis 0",
    ),
    "states of the frames": (
        """g (float[t,n,5] x) => (float[1,n,7] y) { z = ReduceMean <axes = [0]> (x)
        h0 = MatMul (z, e)  h, y = GRU <hidden_size = 7> (x, w, r, b, , h0) }""",
        weights(3) | {"e": random(50, I, H)},
        r"\(GRU\): initial_h depends on the sequence",
    ),
    "one in a branch": (
        """g (float[t,n,5] x) => (float[1,n,7] y) {
        m = ReduceSum (x)  s = Squeeze (m)  c = Greater (s, k)
        y = If (c) <then_branch = t () => (float[1,n,7] u) { h, u = GRU <hidden_size = 7> (x, w, r, b) },
                    else_branch = e () => (float[1,n,7] q) { g, q = GRU <hidden_size = 7> (x, w, r, b) }> }""",
        weights(3) | {"k": np.float32(0)},
        r"\(GRU\): it is in a graph of .*\(If\)",
    ),
    "two inputs": (
        "g (float[t,n,5] x, float[n,5] z) => (float[1,n,7] y) { a = Add (x, z)  "
        "h, y = GRU <hidden_size = 7> (a, w, r, b) }",
        weights(3),
        r"inputs are \['x', 'z'\]: sequences are of one.*which inputs are states is not clear",
    ),
    "no recurrent node": (
        "g (float[t,n,5] x) => (float[t,n,5] y) { y = Relu (x) }",
        {},
        "no recurrent node depends on the frames",
    ),
    "a fixed length": (
        "g (float[9,n,5] x) => (float[1,n,7] y) { h, y = GRU <hidden_size = 7> (x, w, r, b) }",
        weights(3),
        r"'x' of shape \[9, 'n', 5\] has no axis of frames, which is open",
    ),
    "a fixed batch": (
        "g (float[t,2,5] x) => (float[1,2,7] y) { h, y = GRU <hidden_size = 7> (x, w, r, b) }",
        weights(3),
        "has no axis of frames",
    ),
    "a large frame": (
        "g (float[t,n,1000000000000] x) => (float[1,n,7] y) { h, y = GRU <hidden_size = 7> (x, w, r, b) }",
        weights(3),
        "more than limits.bytes_of_a_call = 2,147,483,648",
    ),
    "fewer frames": (
        """g (float[t,n,5] x) => (float[1,n,7] y) { z = Slice (x, one, end, zero)
        h, y = GRU <hidden_size = 7> (z, w, r, b) }""",
        weights(3) | {"zero": [0], "one": [1], "end": [2**40]},
        r"\(GRU\): X has shape \[30, 1, 5\] for one sequence of 31 frames",
    ),
    "rows that mix": (
        """g (float[t,n,5] x) => (float[1,n,7] y) { z = CumSum (x, one)
        h, y = GRU <hidden_size = 7> (z, w, r, b) }""",
        weights(3) | {"one": 1},
        r"Frame by frame: node .*\(CumSum\): it adds up elements along axis 1, along which the rows lie. Padded",
    ),
}


# What a frame sees besides itself, before a GRU: each needs more than a large frame far away to show.
LOUD = {"ten": np.float32(10), "zero": 0, "one": 1, "k": np.float32(0.1)}
SEES = {
    "the loudest frame": (
        "a = Abs (x)  p = ReduceMax <axes = [0], keepdims = 1> (a)  m = Max (p, ten)  z = Div (x, m)",
        r"ReduceMax.*along axis 0, along which the frames lie",
    ),
    "whether any frame is loud": (
        "a = Abs (x)  p = ReduceMax <keepdims = 0> (a)  c = Greater (p, ten)  n = Neg (x)  z = Where (c, n, x)",
        "ReduceMax",
    ),
    "the best frame": (
        "i = ArgMax <axis = 0, keepdims = 0> (x)  f = Cast <to = 1> (i)  g = Mul (f, k)  z = Add (x, g)",
        r"ArgMax.*it finds an extreme along axis 0",
    ),
    "its share": ("p = Softmax <axis = 0> (x)  z = Add (x, p)", "Softmax.*it normalizes along axis 0"),
    "its number": (
        "s = Shape (x)  n = Gather (s, zero)  i = Range (zero, n, one)  f = Cast <to = 1> (i)  "
        "u = Unsqueeze (f, ends)  z = Add (x, u)",
        "Range.*it numbers the frames",
    ),
    "how many there are": (
        "s = Shape (x)  n = Gather (s, zero)  f = Cast <to = 1> (n)  z = Div (x, f)",
        "Cast.*of the number of frames",
    ),
    "whether there are many": (
        "s = Shape (x)  n = Gather (s, zero)  c = Greater (n, hundred)  "
        "z = If (c) <then_branch = t () => (float[t,n,5] u) { u = Neg (x) },"
        " else_branch = e () => (float[t,n,5] v) { v = Identity (x) }>",
        "Greater.*it decides by the number of frames",
    ),
    "the last frame": (
        "l = Gather <axis = 0> (x, last)  z = Add (x, l)",
        "Add.*it combines frames with what follows from the last one",
    ),
    "the next frame": (
        "s = Slice (x, first, end, nought)  p = Pad (s, pads)  z = Add (x, p)",
        "Slice.*it selects some of the frames",
    ),
    "the frame from the other end": ("q = Slice (x, last1, start, nought, last1)  z = Add (x, q)", "Slice"),
    "its neighbours by a convolution": (
        "a = Transpose <perm = [1,2,0]> (x)  c = Conv <pads = [1,1]> (a, w3)  z = Transpose <perm = [2,0,1]> (c)",
        r"Conv.*its windows go over several frames along axis 2",
    ),
    "all frames by attention": (
        "a = Transpose <perm = [1,0,2]> (x)  d = Transpose <perm = [1,2,0]> (x)  q = MatMul (a, d)  "
        "h = HardSigmoid (q)  v = MatMul (h, a)  z = Transpose <perm = [1,0,2]> (v)",
        "MatMul",
    ),
    "the mean of its channel": (
        "a = Transpose <perm = [1,2,0]> (x)  c = InstanceNormalization (a, w5, w5)  z = Transpose <perm = [2,0,1]> (c)",
        "InstanceNormalization.*it normalizes along axis 2",
    ),
}
CONSTANTS = LOUD | {
    "ends": [1, 2],
    "hundred": 100,
    "last": -1,
    "last1": [-1],
    "first": [1],
    "nought": [0],
    "end": [2**40],
    "start": [-(2**40)],
    "pads": [0, 0, 0, 1, 0, 0],
    "w3": random(60, 5, 5, 3),
    "w5": random(61, 5),
}


def refused(model):
    """A sequence of a model; what is wrong with the sequence itself is not asked for."""
    with rnnfast.Batcher(model) as batcher:
        batcher.submit_run(None)


@pytest.mark.parametrize("name", SEES)
def test_frames_that_see_others(name):
    body, message = SEES[name]
    text = f"g (float[t,n,5] x) => (float[t,1,n,7] y) {{ {body}  y = GRU <hidden_size = 7> (z, w, r, b) }}"
    with pytest.raises(UnsupportedError, match=f"Frame by frame: node .*{message}"):
        refused(graphs.load(parse(text, **weights(3), **{k: np.array(v) for k, v in CONSTANTS.items()})))
    # With the lengths of a bidirectional layer it would run padded.
    text = (
        f"g (float[t,n,5] x, int32[n] lens) => (float[t,2,n,7] y) {{ {body}  "
        'y = GRU <hidden_size = 7, direction = "bidirectional"> (z, w, r, b, lens) }'
    )
    constants = weights(3, 2) | {k: np.array(v) for k, v in CONSTANTS.items()}
    model = graphs.load(parse(text, **constants))
    if name == "its number":
        check_padded(model)
    else:
        with pytest.raises(UnsupportedError, match="Padded: node"):
            refused(model)


def check_padded(model):
    """Sequences of several lengths in one padded batch have the bits of the model called with each."""
    with rnnfast.Batcher(model, max_batch=8, max_wait=0.2) as batcher:
        xs = [random(n, n, I) for n in (20, 31, 17, 25)]
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            expected = model(x=x[:, None], lens=[len(x)])
            found = future.result(20)
            found = found if isinstance(found, dict) else {"y": found}
            for output, value in found.items():
                assert value.tobytes() == expected[output].tobytes()


BETWEEN = {
    "a mask of the lengths": (
        "s = Shape (x)  n = Gather (s, zero)  c = Range (zero, n, one)  u = Unsqueeze (c, ends1)  "
        "l = Cast <to = 7> (lens)  m = Less (u, l)  w2 = Unsqueeze (m, two)  z = Where (w2, x, ten)"
    ),
    "a convolution of the frames before": (
        "a = Transpose <perm = [1,2,0]> (x)  c = Conv <pads = [2,0]> (a, w3)  z = Transpose <perm = [2,0,1]> (c)"
    ),
    "a running sum": "z = CumSum (x, zero)",
    "divided by its length": ("f = Cast <to = 1> (lens)  u = Unsqueeze (f, one1)  z = Div (x, u)"),
    "reversed within its length": "l = Cast <to = 7> (lens)  z = ReverseSequence (x, l)",
    "a table of positions": (
        "s = Shape (x)  n = Slice (s, nought, first, nought)  p = Slice (table, nought, n, nought)  z = Add (x, p)"
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_frames_that_padding_does_not_reach(name):
    text = (
        f"g (float[t,n,5] x, int32[n] lens) => (float[t,2,n,7] y, float[2,n,7] hn) {{ {BETWEEN[name]}  "
        'y, hn = GRU <hidden_size = 7, direction = "bidirectional"> (z, w, r, b, lens) }'
    )
    constants = weights(3, 2) | {k: np.array(v) for k, v in CONSTANTS.items()}
    constants |= {"ends1": np.array([1]), "two": np.array([2]), "one1": np.array([1]), "table": random(70, 64, 1, 5)}
    check_padded(graphs.load(parse(text, **constants)))


def test_a_published_model_whose_rows_meet(published):
    """It sorts the lengths of the batch but not the words, so that a word is read to the end of another one."""
    model = rnnfast.load(published("models/pythainlp_thai2rom__thai2rom_encoder.onnx"))
    with pytest.raises(UnsupportedError, match=r"Padded: node 'LSTM_38' \(LSTM\): it runs forwards and backwards"):
        refused(model)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    text, initializers, message = REFUSED[name]
    threads = threading.active_count()
    with pytest.raises(UnsupportedError, match=message):
        refused(graphs.load(parse(text, **initializers)))
    assert threading.active_count() == threads


@pytest.mark.parametrize("name", ["lstm", "bidirectional"])
def test_bad_use(name):
    model = graphs.load(CASES[name][0])
    with rnnfast.Batcher(model, max_batch=4) as batcher:
        x = sequence(name, 1, 6)
        for call in (batcher.open, lambda: batcher.submit(0, x), lambda: batcher.state(0), lambda: batcher.close(0)):
            with pytest.raises(InputError, match="no input is a state, so there are no streams"):
                call()
        for wrong, error, message in (
            (x[0], InputError, r"input 'x' has shape \(5,\), expected \(t, 5\)"),
            (x[:, :3], InputError, r"\(6, 3\), expected \(t, 5\)"),
            (x[:0], InputError, r"\[0, 5\]: a sequence has a frame at least"),
            (x.astype(np.float64), InputTypeError, "input 'x' is double, expected float"),
            (x[:, None], InputError, "expected"),
            ("x", InputTypeError, "'x'"),
        ):
            with pytest.raises(error, match=message):
                batcher.submit_run(wrong)
        assert batcher.submit_run(x.tolist()).result(20) is not None
        assert "sequences of" in repr(batcher)
    with pytest.raises(ClosedError):
        batcher.submit_run(x)
