"""Streams of a Batcher begin anew with a frame: in order, from the right state, and not at all where it fails."""

import asyncio
import os
import threading

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError
from tests.serving.test_batcher import Held

WORDS = 10


def layer():
    return nn.Sequential(nn.Embedding(WORDS, 4, rng=1), nn.LSTM(4, 5, rng=2), nn.GRU(5, 3, rng=3))


def model(folder):
    nn.LSTM(4, 5, rng=2).save(folder / "lstm.onnx", states=True)
    return rnnfast.load(folder / "lstm.onnx")


def vectors(seed, count):
    return [{"x": x} for x in np.random.default_rng(seed).standard_normal((count, 1, 1, 4)).astype(np.float32)]


def words(seed, count):
    return list(np.random.default_rng(seed).integers(0, WORDS, count))


@pytest.fixture(params=["layer", "model"])
def kind(request, tmp_path):
    """(what streams are of, a function from seed and count to frames)"""
    return (layer(), words) if request.param == "layer" else (model(tmp_path), vectors)


def after(of, frames, state=None):
    """The state of a stream alone after some frames."""
    stream = of.stream(state=state)
    for frame in frames:
        stream.step(frame)
    return stream.state


def equal(a, b):
    a, b = (x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else [x] for x in (a, b))
    return len(a) == len(b) and all(
        equal(x, y) if isinstance(x, (tuple, list)) else np.array_equal(x, y) for x, y in zip(a, b)
    )


def test_random_streams(kind):
    """Any mixture of streams that go on and begin anew, with zeros or states, waiting together or not."""
    of, frames = kind
    states = [after(of, frames(70 + k, k + 1)) for k in range(4)]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        first = states[0] if seed % 2 else None
        with rnnfast.Batcher(of.pool(8), max_batch=1 + seed, max_wait=0.0005 * (seed % 3), max_queue=200) as batcher:
            streams = [batcher.open(state=first) for _ in range(7)]
            alone = [of.stream(state=first) for _ in streams]
            futures, expected, counts = [], [], [0] * 7
            for frame in frames(seed, 150):
                k = int(rng.integers(7))
                begin = False
                if rng.random() < 0.3:
                    state = states[rng.integers(4)] if rng.random() < 0.5 else None
                    begin, alone[k], counts[k] = True if state is None else state, of.stream(state=state), 0
                futures.append(batcher.submit(streams[k], frame, begin=begin))
                expected.append(alone[k].step(frame))
                counts[k] += 1
                if rng.random() < 0.05:
                    futures[-1].result(20)
            for future, y in zip(futures, expected):
                assert np.array_equal(future.result(20), y)
            assert [batcher.frames(stream) for stream in streams] == counts
            assert all(equal(batcher.state(s), one.state) for s, one in zip(streams, alone) if one.state is not None)


@pytest.mark.parametrize("settled", [False, True])
def test_a_frame_that_fails_changes_nothing(settled):
    """The stream has its state still; later frames are refused until one begins, and others do not notice."""
    with rnnfast.Batcher(layer().pool(3), max_batch=3, max_wait=0.2) as batcher:
        good, bad, x = batcher.open(), batcher.open(state=after(layer(), [5, 6])), words(1, 4)
        before = after(layer(), [5, 6])
        if settled:
            futures = [batcher.submit(good, x[0]), batcher.submit(bad, x[0])]
            assert all(future.result(20) is not None for future in futures)
            before = after(layer(), [5, 6, x[0]])
        other = after(layer(), [1])
        fails, behind = batcher.submit(bad, 99, begin=other), batcher.submit(bad, x[1])
        follows = batcher.submit(good, x[1])
        with pytest.raises(InputError, match="99"):
            fails.result(20)
        with pytest.raises(InputError, match=f"stream {bad} was to begin anew, with a frame that was not taken: nor"):
            behind.result(20)
        assert follows.result(20) is not None
        assert equal(batcher.state(bad), before) and batcher.frames(bad) == settled
        with pytest.raises(InputError, match="was to begin anew"):
            batcher.submit(bad, x[2], timeout=1).result(20)
        y = [batcher.submit(bad, frame, timeout=1, begin=begin) for frame, begin in ((x[2], other), (x[3], False))]
        alone = layer().stream(state=other)
        assert all(np.array_equal(a.result(20), alone.step(frame)) for a, frame in zip(y, x[2:]))
        assert batcher.frames(bad) == 2 and batcher.stats()["failed"] == 3


def test_a_frame_that_is_cancelled_or_late(monkeypatch):
    pool = layer().pool(3)
    held = Held(pool, monkeypatch)

    async def main():
        with rnnfast.Batcher(pool, max_wait=0) as batcher:
            streams, x = [batcher.open() for _ in range(3)], words(2, 4)
            first = batcher.step(streams[0], x[0])
            await asyncio.to_thread(held.entered.wait, 20)
            cancelled, late = batcher.step(streams[1], x[0], begin=True), batcher.step(streams[2], x[0], 0.001, True)
            behind = [batcher.step(stream, x[1]) for stream in streams[1:]]
            cancelled.cancel()
            await asyncio.sleep(0.01)
            held.go.set()
            assert await first is not None
            with pytest.raises(DeadlineError):
                await late
            for one in behind:
                with pytest.raises(InputError, match="was to begin anew"):
                    await one
            alone = layer().stream()
            for frame in x[2:]:
                y = [await batcher.step(stream, frame, begin=frame is x[2]) for stream in streams[1:]]
                expected = alone.step(frame)
                assert np.array_equal(y[0], expected) and np.array_equal(y[1], expected)

    asyncio.run(main())


def test_states_that_do_not_fit(tmp_path):
    one = model(tmp_path)
    x = vectors(3, 3)
    good = after(one, x)
    with rnnfast.Batcher(one.pool(3)) as batcher:
        streams = [batcher.open(), batcher.open()]
        for wrong, error in (
            (np.zeros(3), InputTypeError),
            ({}, InputError),
            (None, InputTypeError),
            (1, InputTypeError),
        ):
            with pytest.raises(error, match="state"):
                batcher.submit(streams[0], x[0], begin=wrong)
        many = {name: np.repeat(value, 2, 1) for name, value in good.items()}
        for _ in range(2):  # before the first frame settles the shapes, and after
            futures = batcher.submit(streams[1], x[0], begin=good), batcher.submit(streams[0], x[0], begin=many)
            assert np.array_equal(futures[0].result(20), one.stream(state=good).step(x[0]))
            with pytest.raises(InputError, match="state|batch|rows"):
                futures[1].result(20)
        with pytest.raises(ClosedError):
            batcher.submit(77, x[0], begin=True)


def test_copies(monkeypatch):
    """A state that the caller changes later is the one that was given."""
    pool = layer().pool(2)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        stream, state = batcher.open(), after(layer(), [1, 2, 3])
        expected = layer().stream(state=state).step(4)
        batcher.submit(stream, 1)
        y = batcher.submit(stream, 4, begin=state)
        for part in state:
            for value in part if isinstance(part, tuple) else (part,):
                value[:] = 7
        held.go.set()
        assert np.array_equal(y.result(20), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_stream_that_a_fork_interrupted(monkeypatch):
    pool = layer().pool(2)
    entered, go = threading.Event(), threading.Event()
    stack, parent = nn.Embedding.__call__, os.getpid()

    def held(self, *args):
        if os.getpid() == parent and threading.current_thread().name == "rnnfast-batcher":
            entered.set()
            assert go.wait(20)
        return stack(self, *args)

    monkeypatch.setattr(nn.Embedding, "__call__", held)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        stream = batcher.open()
        running = batcher.submit(stream, 3)
        assert entered.wait(20)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    batcher.submit(stream, 3).result(20)
                except InputError:
                    y = [batcher.submit(stream, 3, begin=True).result(20), batcher.submit(stream, 4).result(20)]
                    alone = layer().stream()
                    code = 0 if all(np.array_equal(a, alone.step(w)) for a, w in zip(y, (3, 4))) else 2
            finally:
                os._exit(code)
        go.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert running.result(20) is not None
