"""Requests of a lower number go first, and nothing else changes."""

import os
import threading

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError
from tests.serving.test_batcher import Held, alone, frames, layer, same


def run_held(monkeypatch, priorities, max_batch, most=40):
    """The order in which streams ran whose frames [(stream, priority)] waited together, and the frames' results."""
    pool, order = layer().pool(most), []
    held = Held(pool, monkeypatch)
    step = pool.step_validated

    def noted(ids, *others):
        order.extend(ids)
        return step(ids, *others)

    monkeypatch.setattr(pool, "step_validated", noted)
    with rnnfast.Batcher(pool, max_batch=max_batch, max_wait=0, max_queue=1000) as batcher:
        streams, x = [batcher.open() for _ in range(most)], frames(4, len(priorities))
        first = batcher.submit(streams[-1], x[0])
        assert held.entered.wait(20)
        futures = [
            batcher.submit(streams[stream], frame, priority=priority)
            for (stream, priority), frame in zip(priorities, x)
        ]
        held.go.set()
        results = [future.result(20) for future in futures]
        assert first.result(20) is not None
    return [streams.index(stream) for stream in order[1:]], results, x


def test_lower_numbers_go_first(monkeypatch):
    priorities = [(0, 3), (1, 2), (2, 0), (3, 1), (4, 3), (5, 1), (6, 2)]
    order, _, _ = run_held(monkeypatch, priorities, 2)
    assert order == [3, 5, 1, 2, 6, 0, 4]


def test_frames_of_a_stream_stay_in_order(monkeypatch):
    """Those that stand before an urgent one are urgent too."""
    order, results, x = run_held(monkeypatch, [(1, 2), (2, 2), (0, 3), (0, 3), (0, 1), (3, 1)], 1)
    assert order == [0, 3, 0, 0, 1, 2]
    assert same(results[2:5], alone(x[2:5]))


@pytest.mark.parametrize("seed", range(4))
def test_random_priorities(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    sent = [(int(rng.integers(10)), int(rng.integers(4))) for _ in range(60)]
    order, results, x = run_held(monkeypatch, sent, int(rng.integers(1, 12)))
    assert sorted(order) == sorted(stream for stream, _ in sent)
    for stream in range(10):
        mine = [i for i, (other, _) in enumerate(sent) if other == stream]
        assert same([results[i] for i in mine], alone(x[mine]))


def test_sequences(monkeypatch):
    pool, ended = layer().pool(3), []
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_batch=1, max_wait=0) as batcher:
        stream, x = batcher.open(), frames(5, 20)
        first = batcher.submit(stream, x[0])
        assert held.entered.wait(20)
        futures = [batcher.submit_run(x[k:], priority=priority) for k, priority in enumerate((3, 2, 0, 1, 3, 1))]
        for k, future in enumerate(futures):
            future.add_done_callback(lambda _, k=k: ended.append(k))
        held.go.set()
        for k, future in enumerate(futures):
            assert np.array_equal(future.result(20), np.stack(alone(x[k:])))
        assert first.result(20) is not None
    assert ended == [3, 5, 1, 2, 0, 4]


def test_sequences_without_a_place_keep_their_order():
    with rnnfast.Batcher(layer().pool(1), max_wait=0) as batcher:
        stream, x, ended = batcher.open(), frames(5, 4), []
        futures = [
            batcher.submit_run(x, timeout=t, priority=p) for t, p in ((None, 3), (0.05, 3), (None, 2), (None, 1))
        ]
        for k, future in enumerate(futures):
            future.add_done_callback(lambda _, k=k: ended.append(k))
        with pytest.raises(rnnfast.errors.DeadlineError):
            futures[1].result(20)
        batcher.close(stream)
        assert all(np.array_equal(f.result(20), np.stack(alone(x))) for f in futures[:1] + futures[2:])
        assert ended == [1, 3, 2, 0]


@pytest.mark.parametrize("priority", [-1, 4, 1.0, True, None, "1"])
def test_what_is_no_priority(priority):
    with rnnfast.Batcher(nn.GRU(3, 4, rng=0)) as batcher:
        with pytest.raises(InputError, match="priority is .*, expected 0 to 3"):
            batcher.submit(batcher.open(), np.zeros(3, np.float32), priority=priority)
        with pytest.raises(InputError, match="priority is .*, expected 0 to 3"):
            batcher.submit_run(np.zeros((2, 3), np.float32), priority=priority)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_streams_go_on_in_a_forked_child(monkeypatch):
    """Their frames that waited are forgotten there, and later ones run, of whatever priority."""
    pool = layer().pool(3)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        streams, x = [batcher.open() for _ in range(3)], frames(6, 3)
        running = batcher.submit(streams[0], x[0])
        assert held.entered.wait(20)
        waiting = [batcher.submit(stream, x[0], priority=1) for stream in streams[1:] for _ in range(2)]
        while batcher._worker._inbox():  # one frame moves on, for the others to be in the queue of their streams
            held.go.set()
        child = os.fork()
        if child == 0:
            code = 1
            held.entered, held.go = threading.Event(), threading.Event()  # another thread may have had their locks
            held.go.set()
            try:
                futures = [batcher.submit(stream, x[1], None, True, p) for stream, p in zip(streams[1:], (3, 1))]
                code = 0 if same([future.result(20) for future in futures], alone(x[1:2]) * 2) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert running.result(20) is not None and all(future.result(20) is not None for future in waiting)
