"""The order in which a Batcher's sequences run, and the fate of those that are late or cancelled."""

import asyncio
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import DeadlineError, Overloaded, UnsupportedError
from rnnfast.serving.sequences import ActiveSequence
from tests import graphs
from tests.graphs import parse
from tests.serving.sequence_models import CASES, PADDED, I, alone, same, sequence, weights


class Held:
    """A Batcher's sequences run only once they are let go; one of 13 frames is an error."""

    def __init__(self, batcher, monkeypatch):
        self.entered, self.go = threading.Event(), threading.Event()
        self.run = batcher._sequence_runner.run
        monkeypatch.setattr(batcher._sequence_runner, "run", self.held)

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
    """Long sequences are due at last, though ever more short ones come."""
    model = graphs.load(PADDED["bidirectional"][0])
    with rnnfast.Batcher(model, max_batch=8) as batcher:
        batches = batcher._sequence_runner.batches
        short = ActiveSequence(None, 10.0, np.zeros((3, I)), [])
        for arrived, first in ((9.99, short), (9.8, None)):
            long = ActiveSequence(None, arrived, np.zeros((100, I)), [])
            assert batches([long, short, short]) == [[short, short] if first else [long]]
        assert len(batches([ActiveSequence(None, 0, np.zeros((5000, I)), [])] * 5)[0]) == 2


def test_frames_that_are_missing():
    """A graph that drops frames beyond the 60th shares no batches: what is padded would move them."""
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
    with pytest.raises(UnsupportedError, match=r"Padded: node #1 \(Slice\): it selects some of the frames"):
        rnnfast.Batcher(model).submit_run(sequence("", 30, 30)).result(20)


def test_few_plans(monkeypatch):
    """Lengths and numbers of sequences of padded batches are few."""
    model = graphs.load(PADDED["bidirectional"][0])
    with rnnfast.Batcher(model, max_batch=8) as batcher:
        model, shapes = batcher._sequence_runner.model, set()
        run = model.run
        monkeypatch.setattr(model, "run", lambda feed: shapes.add(feed["x"].shape[:2]) or run(feed))
        for future in [batcher.submit_run(sequence("", n, n)) for n in range(1, 60)]:
            future.result(20)
    assert {frames for frames, _ in shapes} == {1, 2, 4, 8, 16, 32, 64}
    assert {rows for _, rows in shapes} <= {1, 2, 3, 4, 6, 8}


@pytest.mark.parametrize("name", ["lstm", "bidirectional"])
def test_cancelled_and_late(name, monkeypatch):
    """Sequences that are cancelled or late before they begin, or that fail, disturb no others."""
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
    """The deadline of a padded sequence holds until its batch runs."""
    model, (_, axes, outputs) = graphs.load(CASES["bidirectional"][0]), CASES["bidirectional"]
    with rnnfast.Batcher(model) as batcher:
        run, running = batcher._sequence_runner.run, threading.Event()

        def slow(*args):
            running.set()
            time.sleep(0.2)
            return run(*args)

        monkeypatch.setattr(batcher._sequence_runner, "run", slow)
        xs = [sequence("", n, n) for n in (3, 1, 40)]
        futures = [batcher.submit_run(xs[0])]
        assert running.wait(20)
        futures += [batcher.submit_run(x, timeout=0.25 if len(x) == 40 else None) for x in xs[1:]]
        with pytest.raises(DeadlineError, match="a sequence waited"):
            futures[2].result(20)
        assert all(same(f.result(20), alone(model, x, axes, outputs)) for f, x in zip(futures, xs[:2]))
        assert batcher.stats()["expired"] == 1


def test_tasks_cancelled_while_they_run(monkeypatch):
    """Tasks that are cancelled between two parts of their sequences run no further."""
    model, (_, axes, outputs) = graphs.load(CASES["lstm"][0]), CASES["lstm"]

    async def main():
        with rnnfast.Batcher(model, max_batch=3) as batcher:
            x, held = sequence("lstm", 1, 60), Held(batcher, monkeypatch)
            tasks = [asyncio.ensure_future(batcher.run(sequence("lstm", k, 20_000))) for k in range(3)]
            assert await asyncio.to_thread(held.entered.wait, 20)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            held.go.set()
            assert same(await batcher.run(x), alone(model, x, axes, outputs))
            assert batcher.stats()["frames"] < 1000 and batcher.stats()["cancelled"] == 3

    asyncio.run(main())
