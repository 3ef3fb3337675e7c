"""Whole calls in a Batcher: joined along proven batch axes or not, each gets the bits of the call alone."""

import asyncio
import os
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError, Overloaded
from tests import graphs
from tests.graphs import parse, random
from tests.serving.sequence_models import weights
from tests.serving.test_batcher import frames, layer, same

# name: (graph, initializers, shapes of a call with n rows of size t, whether calls run together)
CASES = {
    "rows": (
        "g (float[n,5] x, float[n,5] z) => (float[n,7] y, float[n,5] s) { s = Add (x, z)  y = MatMul (s, w) }",
        {"w": random(1, 5, 7)},
        lambda n, t: {"x": (n, 5), "z": (n, 5)},
        True,
    ),
    "lstm and its states": (
        """g (float[t,n,5] x, float[1,n,7] h, float[1,n,7] c) => (float[t,1,n,7] y, float[1,n,7] hn, float[1,n,7] cn) {
        y, hn, cn = LSTM <hidden_size = 7> (x, w, r, b, , h, c) }""",
        weights(4),
        lambda n, t: {"x": (t, n, 5), "h": (1, n, 7), "c": (1, n, 7)},
        True,
    ),
    "both directions": (
        """g (float[t,n,5] x) => (float[2,n,7] y) {
        h, y = GRU <hidden_size = 7, direction = "bidirectional"> (x, w, r, b) }""",
        weights(3, 2),
        lambda n, t: {"x": (t, n, 5)},
        True,
    ),
    "a scale for all": (
        "g (float[n,t] x, float scale) => (float[n,t] y) { y = Mul (x, scale) }",
        {},
        lambda n, t: {"x": (n, t), "scale": ()},
        True,
    ),
    "rows that meet": (
        "g (float[n,5] x) => (float[n,5] y) { m = ReduceMean <axes = [0]> (x)  y = Sub (x, m) }",
        {},
        lambda n, t: {"x": (n, 5)},
        False,
    ),
    "their number": (
        """g (float[n,5] x) => (float[n,5] y) {
        s = Shape (x)  k = Gather (s, zero)  f = Cast <to = 1> (k)  y = Div (x, f) }""",
        {"zero": 0},
        lambda n, t: {"x": (n, 5)},
        False,
    ),
    "no open axis": ("g (float[2,5] x) => (float[2,5] y) { y = Tanh (x) }", {}, lambda n, t: {"x": (2, 5)}, False),
    "an open axis of one input": (
        "g (float[n,5] x, float[k,5] z) => (float[n,k] y) { u = Transpose (z)  y = MatMul (x, u) }",
        {},
        lambda n, t: {"x": (n, 5), "z": (t, 5)},
        False,
    ),
}


def load(name):
    text, initializers, *_ = CASES[name]
    return graphs.load(parse(text, **{k: np.asarray(v) for k, v in initializers.items()}))


def feed(name, seed, n, t):
    rng = np.random.default_rng(seed)
    made = {k: rng.standard_normal(s).astype(np.float32) for k, s in CASES[name][2](n, t).items()}
    return made | ({"scale": np.float32(seed % 2 + 0.5)} if "scale" in made else {})


def check(result, expected):
    assert list(result) == list(expected)
    for name, value in expected.items():
        assert (result[name].shape, result[name].dtype) == (value.shape, value.dtype)
        assert result[name].tobytes() == value.tobytes() and result[name].flags.c_contiguous


def hold(batcher, monkeypatch):
    """Hold the next calls until the event that is returned is set; the sizes of what ran together from then on."""
    entered, go, sizes, run = threading.Event(), threading.Event(), [], batcher._worker.calls.run

    def held(calls):
        entered.set()
        assert go.wait(20)
        sizes.append(len(calls))
        return run(calls)

    monkeypatch.setattr(batcher._worker.calls, "run", held)
    return entered, go, sizes


@pytest.mark.parametrize("name", CASES)
def test_bits(name, monkeypatch):
    """Calls of all sizes that wait together."""
    model, rng = load(name), np.random.default_rng(5)
    feeds = [feed(name, k, int(rng.integers(1, 5)), int(rng.integers(3, 5))) for k in range(24)]
    with rnnfast.Batcher(model, max_batch=40) as batcher:
        entered, go, sizes = hold(batcher, monkeypatch)
        futures = [batcher.submit_call(feeds[0])]
        assert entered.wait(20)
        futures += [batcher.submit_call(one) for one in feeds[1:]]
        go.set()
        for one, future in zip(feeds, futures):
            check(future.result(20), model(one))
        stats = batcher.stats()
    assert stats["calls"] == 24 == sum(sizes) == stats["call_sizes"]["sum"]
    assert (max(sizes) > 3) == CASES[name][3]
    assert {sum(1 for n in sizes if n > 1) == 0} == {not CASES[name][3]}


def test_no_more_rows_than_a_batch(monkeypatch):
    model = load("rows")
    with rnnfast.Batcher(model, max_batch=8) as batcher:
        entered, go, sizes = hold(batcher, monkeypatch)
        counts = [1, 3, 3, 20, 2, 5]  # a call alone may have more
        feeds = [feed("rows", k, n, 0) for k, n in enumerate(counts)]
        futures = [batcher.submit_call(feeds[0])]
        assert entered.wait(20)
        futures += [batcher.submit_call(one) for one in feeds[1:]]
        go.set()
        for one, future in zip(feeds, futures):
            check(future.result(20), model(one))
    assert sizes == [1, 3, 1, 1]


def test_an_error_of_one(monkeypatch):
    text = "g (int64[n] x) => (float[n,3] y) { y = Gather (w, x) }"
    model = graphs.load(parse(text, w=random(1, 10, 3)))
    with rnnfast.Batcher(model) as batcher:
        entered, go, _ = hold(batcher, monkeypatch)
        words = [np.array([k % 10, (3 * k) % 10]) for k in range(9)]
        words[5][1] = 77
        futures = [batcher.submit_call({"x": words[0]})]
        assert entered.wait(20)
        futures += [batcher.submit_call({"x": word}) for word in words[1:]]
        go.set()
        with pytest.raises(rnnfast.Error, match="77"):
            futures.pop(5).result(20)
        for word, future in zip(words[:5] + words[6:], futures):
            check(future.result(20), model(x=word))
        assert batcher.stats()["failed"] == 1


def test_beside_streams_and_sequences(tmp_path):
    """Of one model, from asyncio: frames, sequences and calls at once."""
    net = nn.LSTM(11, 23, rng=5)
    net.save(tmp_path / "lstm.onnx", states=True)
    model, x = rnnfast.load(tmp_path / "lstm.onnx"), frames(3, 30)
    names = list(model.stream().states)
    expected = [net.stream().step(x[0])]
    feeds = [
        {"x": x[None, k : k + 2]} | {name: np.full((1, 2, 23), 0.1 * k, np.float32) for name in names}
        for k in range(20)
    ]

    async def main():
        with rnnfast.Batcher(model.pool(9), max_batch=9) as batcher:
            stream = batcher.open()

            async def steps():
                return [await batcher.step(stream, {"x": frame[None, None]}) for frame in x]

            return await asyncio.gather(steps(), batcher.run(x[:, None]), *map(batcher.call, feeds))

    steps, sequence, *calls = asyncio.run(main())
    assert np.array_equal(np.squeeze(steps[0]), expected[0])
    assert same(np.concatenate(steps).reshape(30, -1), sequence.reshape(30, -1))
    for one, result in zip(feeds, calls):
        check(result, model(one))


def test_cancelled_and_late_and_too_many(monkeypatch):
    model = load("rows")
    batcher = rnnfast.Batcher(model, max_queue=3)
    entered, go, _ = hold(batcher, monkeypatch)
    one = feed("rows", 1, 2, 0)
    first = batcher.submit_call(one)
    assert entered.wait(20)
    cancelled, late, waits = batcher.submit_call(one), batcher.submit_call(one, 0), batcher.submit_call(one, priority=1)
    with pytest.raises(Overloaded):
        batcher.submit_call(one)
    assert cancelled.cancel()
    go.set()
    with pytest.raises(DeadlineError, match="a call waited"):
        late.result(20)
    check(waits.result(20), model(one))
    last = batcher.submit_call(one)
    batcher.drain()
    for future in (first, last):
        check(future.result(0), model(one))
    assert batcher.stats()["cancelled"] == batcher.stats()["expired"] == batcher.stats()["overloaded"] == 1
    with pytest.raises(ClosedError):
        batcher.submit_call(one)


def test_priority(monkeypatch):
    model, ended = load("rows that meet"), []
    with rnnfast.Batcher(model) as batcher:
        entered, go, _ = hold(batcher, monkeypatch)
        one = feed("rows that meet", 1, 2, 0)
        first = batcher.submit_call(one)
        assert entered.wait(20)
        futures = [batcher.submit_call(one, priority=priority) for priority in (3, 2, 1, 0, 1)]
        for k, future in enumerate(futures):
            future.add_done_callback(lambda _, k=k: ended.append(k))
        go.set()
        assert all(future.result(20) for future in [first, *futures])
    assert ended == [2, 4, 1, 3, 0]


def test_wrong_calls():
    with rnnfast.Batcher(load("rows")) as batcher:
        for wrong, error in (
            ({"x": np.zeros((1, 5), np.float32)}, InputError),
            ({"x": np.zeros((1, 5)), "z": np.zeros((1, 5))}, InputTypeError),
            ({"x": np.zeros((1, 4), np.float32), "z": np.zeros((1, 5), np.float32)}, InputError),
        ):
            with pytest.raises(error):
                batcher.submit_call(wrong)
        with pytest.raises(InputError, match="call is for asyncio, .* submit_call returns"):
            batcher.call(feed("rows", 1, 2, 0))
        with pytest.raises(rnnfast.errors.UnsupportedError, match="sequences"):
            batcher.submit_run(np.zeros((3, 5), np.float32))
    with rnnfast.Batcher(layer()) as batcher, pytest.raises(InputError, match="call is for a model"):
        batcher.submit_call({"x": np.zeros((1, 5), np.float32)})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_pending_calls_in_a_forked_child(monkeypatch):
    model = load("rows")
    with rnnfast.Batcher(model) as batcher:
        entered, go, _ = hold(batcher, monkeypatch)
        one = feed("rows", 1, 2, 0)
        futures = [batcher.submit_call(one)]
        assert entered.wait(20)
        futures += [batcher.submit_call(one) for _ in range(3)]
        time.sleep(0.05)  # the thread waits now, and has no lock of these events that the child would wait for
        child = os.fork()
        if child == 0:
            code = 1
            try:
                refused = [isinstance(future.exception(5), ClosedError) for future in futures]
                go.set()
                check(batcher.submit_call(one).result(20), model(one))
                code = 0 if all(refused) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go.set()
        for future in futures:
            check(future.result(20), model(one))
