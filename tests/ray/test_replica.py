"""A replica of a deployment without Ray: an Exchange of this process stands for the actor."""

import asyncio
import pickle

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import ClosedError, InputError, LimitError
from rnnfast.ray import service
from rnnfast.ray.exchange import Exchange
from rnnfast.ray.service import Replica
from tests.graphs import random

FRAMES = random(0, 30, 5)


class Home:
    """An Exchange as an actor's handle has it."""

    def __init__(self):
        self.exchange = Exchange(60.0)

    def __getattr__(self, name):
        return Remote(getattr(self.exchange, name))


class Remote:
    def __init__(self, method):
        self.method = method

    def remote(self, *arguments):
        result = self.method(*arguments)
        return asyncio.ensure_future(result) if asyncio.iscoroutine(result) else _done(result)


def _done(value):
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


class Local(Replica):
    def __init__(self, name, home, net, **settings):
        self.given = name, home
        defaults = dict(max_streams=4, max_batch=8, max_wait=0.001, idle=60.0, fixed={})
        super().__init__(pickle.dumps(net), defaults | settings)

    def _connect(self):
        self._name, self._exchange = self.given
        self._answering = asyncio.get_running_loop().create_task(self._give_on_request())

    async def _ask(self, method, *arguments):
        return await getattr(self._exchange, method).remote(*arguments)


def network():
    return nn.Sequential(nn.LSTM(5, 7, rng=0), nn.Linear(7, 3, rng=1))


def run(body, **settings):
    """Run a test with two replicas, which end as Ray Serve ends them."""

    async def main():
        net, home = network(), Home()
        replicas = [Local(name, home, net, **settings) for name in "ab"]
        await asyncio.sleep(0.01)
        await body(net.stream().run(FRAMES), *replicas)
        for replica in replicas:
            ending = replica.__del__()
            if ending is not None:
                await ending
        home.exchange._ending.cancel()

    asyncio.run(main())


def test_chunks_and_whole_sequences():
    async def body(right, a, b):
        parts = [await a.step(FRAMES[:9], "s", sequence_start=True), await a.step(FRAMES[9:10], "s")]
        parts.append(await a.step(FRAMES[10:].tolist(), "s", sequence_end=True))
        assert np.array_equal(np.concatenate(parts), right)
        assert np.array_equal(await a.run(FRAMES), right) and np.array_equal(await a.run(FRAMES.tolist()), right)
        with pytest.raises(ClosedError, match="'s' is not known"):
            await a.step(FRAMES, "s")
        assert a.record_autoscaling_stats() == {"sequences": 0}

    run(body)


def test_a_sequence_moves():
    """To the replica that its next chunk comes to, also with chunks of it at both."""

    async def body(right, a, b):
        await a.step(FRAMES[:3], "s", sequence_start=True)
        assert np.array_equal(await b.step(FRAMES[3:5], "s"), right[3:5])
        assert np.array_equal(await a.step(FRAMES[5:9], "s"), right[5:9])
        both = await asyncio.gather(a.step(FRAMES[9:12], "s"), b.step(FRAMES[12:14], "s"))
        assert np.array_equal(both[0], right[9:12]) and np.array_equal(both[1], right[12:14])
        assert len(a._live) + len(b._live) == 1

    run(body)


def test_a_replica_ends():
    async def body(right, a, b):
        await a.step(FRAMES[:3], "s", sequence_start=True)
        await a.__del__()
        assert a.__del__() is None
        assert np.array_equal(await b.step(FRAMES[3:], "s"), right[3:])

    run(body)


def test_states_are_given_and_asked_for():
    async def body(right, a, b):
        await a.step(FRAMES[:3], "s", sequence_start=True)
        state = await b.state("s")
        assert np.array_equal(await a.step(FRAMES[3:], "t", sequence_start=True, state=state), right[3:])
        assert np.array_equal(await a.step(FRAMES[3:5], "s"), right[3:5])
        with pytest.raises(InputError, match="'s': a state is given with sequence_start only"):
            await a.step(FRAMES, "s", state=state)

    run(body)


def test_a_chunk_that_fails_changes_nothing(monkeypatch):
    async def body(right, a, b):
        await a.step(FRAMES[:3], "s", sequence_start=True)
        step, calls = a._batcher.step, []

        def failing(stream, frame):
            calls.append(frame)
            if len(calls) == 3:
                raise LimitError("no more")
            return step(stream, frame)

        with monkeypatch.context() as patch:
            patch.setattr(a._batcher, "step", failing)
            with pytest.raises(LimitError, match="no more"):
                await a.step(FRAMES[3:9], "s")
        for frames in (FRAMES[3:5, :4], [[1.0], [1.0, 2.0]], FRAMES[:0], np.float32(1)):
            with pytest.raises(InputError):
                await a.step(frames, "s")
        assert np.array_equal(await a.step(FRAMES[3:], "s"), right[3:])
        with pytest.raises(InputError):
            await a.step(FRAMES[:3, :4], "new", sequence_start=True)
        assert list(a._live) == ["s"] and len(a._batcher._worker._pool) == 1

    run(body)


def test_begin_anew():
    """Where the sequence lives here, elsewhere, and where there is room for no other."""

    async def body(right, a, b):
        for name in "stuv":
            await a.step(FRAMES[5:9], name, sequence_start=True)
        assert np.array_equal(await a.step(FRAMES[:3], "s", sequence_start=True), right[:3])
        with pytest.raises(LimitError, match="all 4 streams are open"):
            await a.step(FRAMES[:3], "w", sequence_start=True)
        await b.step(FRAMES[:3], "t", sequence_start=True)
        assert np.array_equal(await a.step(FRAMES[3:], "t"), right[3:])
        assert np.array_equal(await a.step(FRAMES[3:], "s"), right[3:])

    run(body)


def test_idle_sequences_end():
    async def body(right, a, b):
        await a.step(FRAMES[:3], "s", sequence_start=True)
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not a._live:
                break
        with pytest.raises(ClosedError, match=r"nothing came for 0\.05 s"):
            await b.step(FRAMES[3:], "s")

    run(body, idle=0.05)


def test_policy():
    """As many replicas as the live sequences need, within bounds."""
    from types import SimpleNamespace

    policy = service.BySequences(10)
    for live, wanted in (({}, 1), ({"a": 10.0}, 1), ({"a": 9.0, "b": 2.0}, 2), ({"a": 90.0}, 4)):
        context = SimpleNamespace(
            aggregated_metrics={"sequences": live}, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=4
        )
        assert policy(context) == (wanted, {})
