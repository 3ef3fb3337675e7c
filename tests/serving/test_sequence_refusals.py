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
        "'direction'.* Padded: output 'y' is another than for the whole sequence alone",
    ),
    "mean of the frames": (
        """g (float[t,n,5] x) => (float[n,7] y) { h, hn = GRU <hidden_size = 7> (x, w, r, b)
        y = ReduceMean <axes = [0,1], keepdims = 0> (h) }""",
        weights(3),
        "Frame by frame: output 'y' is another",
    ),
    "loud at any time": (
        """g (float[t,n,5] x) => (bool[n,7] y) { h, hn = GRU <hidden_size = 7> (x, w, r, b)
        m = ReduceMax <axes = [0,1], keepdims = 0> (h)  y = Greater (m, limit) }""",
        weights(3) | {"limit": np.float32(1)},
        "Frame by frame: tensor 'm' is another than for the whole sequence alone",
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
        "need more than 4294967296 bytes",
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
        "Frame by frame: output 'y' is another than for the whole sequence alone. Padded",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    text, initializers, message = REFUSED[name]
    threads = threading.active_count()
    with pytest.raises(UnsupportedError, match=message):
        rnnfast.Batcher(graphs.load(parse(text, **initializers)))
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
