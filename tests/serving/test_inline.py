"""Short batches of asyncio run in its event loop, and all others in the Batcher's thread."""

import asyncio
import signal
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import ClosedError, InputError
from rnnfast.serving import worker
from rnnfast.serving.worker import Worker
from tests.graphs import parse
from tests.paths import MODELS
from tests.serving.test_batcher import alone, frames, layer, same

LONG = 0.05


async def first(batcher, stream, frame, **arguments):
    """The result of the first batch, which the thread runs, once the thread sleeps again."""
    result = await batcher.step(stream, frame, **arguments)
    await asleep(batcher)
    return result


async def asleep(batcher):
    for _ in range(20_000):
        if not batcher._worker.turn.locked():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


@pytest.fixture
def places(monkeypatch):
    """Where batches ran: True for a thread of the test's, the event loop's."""
    ran, run = [], Worker._run_frames

    def recorded(self, requests):
        ran.append(threading.current_thread() is not self._thread)
        return run(self, requests)

    monkeypatch.setattr(Worker, "_run_frames", recorded, raising=False)
    return ran


def test_the_first_batch_of_a_size_runs_in_the_thread_and_short_ones_in_the_loop(places):
    async def main(batcher, x):
        stream = batcher.open()
        y = await first(batcher, stream, x[0])
        return [y, *[await batcher.step(stream, frame) for frame in x[1:]]]

    x = frames(0, 20)
    with rnnfast.Batcher(layer().pool(4), max_inline=LONG) as batcher:
        assert same(asyncio.run(main(batcher, x)), alone(x))
        assert batcher.stats()["frames"] == batcher.stats()["batch_sizes"]["count"] == 20
    assert places == [False] + [True] * 19


def test_long_batches_run_in_the_thread(places, monkeypatch):
    run = Worker._run_batch

    def slow(self, begun):
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return run(self, begun)

    async def main(batcher, x):
        stream = batcher.open()
        return [await batcher.step(stream, frame) for frame in x]

    x = frames(1, 4)
    monkeypatch.setattr(Worker, "_run_batch", slow)
    with rnnfast.Batcher(layer().pool(4), max_inline=0.01) as batcher:
        assert same(asyncio.run(main(batcher, x)), alone(x))
    assert places == [False] * 4


def test_frames_that_come_in_one_turn_of_the_loop_share_a_batch():
    async def main(batcher, xs):
        streams = [batcher.open() for _ in xs]
        for _ in range(2):  # The first batch of a size runs in the thread.
            await asyncio.gather(*[batcher.step(stream, xs[0][0]) for stream in streams])
            await asleep(batcher)
        before = batcher.stats()["batches"]

        async def client(stream, x):
            return [await batcher.step(stream, frame, begin=t == 0) for t, frame in enumerate(x)]

        ys = await asyncio.gather(*map(client, streams, xs))
        return ys, batcher.stats()["batches"] - before

    xs = [frames(k, 12) for k in range(5)]
    with rnnfast.Batcher(layer().pool(8), max_wait=0.0, max_inline=LONG) as batcher:
        ys, batches = asyncio.run(main(batcher, xs))
    assert all(same(y, alone(x)) for x, y in zip(xs, ys)) and batches == 12


def test_frames_of_threads_beside_those_of_a_loop():
    """Those of a stream stay in order, whoever runs them."""

    async def main(batcher, x):
        stream, ys = batcher.open(), []
        for k in range(0, len(x), 4):
            first = batcher.step(stream, x[k])
            behind = [batcher.submit(stream, frame) for frame in x[k + 1 : k + 4]]
            ys += [await first, *[await asyncio.wrap_future(future) for future in behind]]
        return ys

    with rnnfast.Batcher(layer().pool(8), max_inline=LONG) as batcher:
        others, results = [batcher.open() for _ in range(2)], {}

        def client(stream, x):
            results[stream] = [batcher.submit(stream, frame).result(20) for frame in x]

        threads = [threading.Thread(target=client, args=(stream, frames(stream, 200))) for stream in others]
        for thread in threads:
            thread.start()
        x = frames(9, 400)
        assert same(asyncio.run(main(batcher, x)), alone(x))
        for thread in threads:
            thread.join(20)
        assert all(same(results[stream], alone(frames(stream, 200))) for stream in others)


def test_a_loop_that_stops_holds_up_nobody():
    """A frame whose loop never ran its batch runs with the next one of anybody."""
    x = frames(2, 4)
    with rnnfast.Batcher(layer().pool(4), max_inline=LONG) as batcher:
        stream = batcher.open()

        async def run(frame):
            return await batcher.step(stream, frame)

        async def leave(frame):
            batcher.step(stream, frame)
            asyncio.get_running_loop().stop()

        ys = [asyncio.run(run(x[0]))]
        loop = asyncio.new_event_loop()
        loop.create_task(leave(x[1]))
        loop.run_forever()
        ys.append(batcher.submit(stream, x[2]).result(20))
        ys.append(asyncio.run(run(x[3])))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert same([ys[0], *ys[1:]], np.delete(alone(x), 1, 0))
        assert batcher.frames(stream) == 4


@pytest.mark.parametrize("raises", (True, False))
def test_a_signal_that_raises_before_the_batch(raises, monkeypatch):
    """It may part a Batcher and the loop that is to run its requests, in Python's own code; they run all the same."""
    monkeypatch.setattr(worker, "LOST_SECONDS", 0.2)
    x, parted = frames(3, 4), []

    class Raised(BaseException):
        pass

    class Loop(asyncio.SelectorEventLoop):
        def call_soon(self, callback, *args, **context):
            if getattr(callback, "__name__", "") != "run_here" or parted != [False]:
                return super().call_soon(callback, *args, **context)
            parted[0] = True
            if raises:
                raise Raised
            return None

    async def main(batcher):
        stream = batcher.open()
        ys = [await first(batcher, stream, x[0])]
        parted.append(False)
        if raises:
            with pytest.raises(Raised):
                batcher.step(stream, x[1])
        else:
            ys.append(await asyncio.wait_for(batcher.step(stream, x[1]), 20))
        return ys + [await asyncio.wait_for(batcher.step(stream, frame), 20) for frame in x[2:]]

    loop = Loop()
    with rnnfast.Batcher(layer().pool(4), max_inline=LONG) as batcher:
        ys = loop.run_until_complete(main(batcher))
    loop.close()
    expected = alone(x)
    assert parted == [True] and same(ys, [*expected[: 1 if raises else 2], *expected[2:]])


@pytest.mark.parametrize("where", ("_run_batch", "_tell"))
def test_a_signal_that_raises_in_a_batch(where, monkeypatch):
    """Its frame is refused, and the Batcher goes on."""
    x = frames(3, 3)
    with rnnfast.Batcher(layer().pool(4), max_inline=LONG) as batcher:
        stream, raised = batcher.open(), []
        function = getattr(Worker, where)

        def interrupted(self, *args):
            result = function(self, *args)
            if threading.current_thread() is not self._thread and not raised:
                raised.append(True)
                raise KeyboardInterrupt
            return result

        async def main():
            await first(batcher, stream, x[0])
            monkeypatch.setattr(Worker, where, interrupted)
            future = batcher.step(stream, x[1])
            with pytest.raises(ClosedError, match="KeyboardInterrupt interrupted it"):
                await asyncio.wait_for(asyncio.shield(future), 20)

        loop = asyncio.new_event_loop()
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
        loop.close()
        assert raised and batcher.frames(stream) == 2  # It was taken.

        async def after():
            return await asyncio.wait_for(batcher.step(stream, x[2]), 20)

        assert same([asyncio.run(after())], alone(x)[2:])
        assert same([batcher.submit(stream, x[0]).result(20)], alone(np.concatenate([x, x[:1]]))[3:])


@pytest.mark.parametrize("begin", (False, True))
@pytest.mark.parametrize("when", ("before", "behind"))
def test_an_alarm_in_a_batch(when, begin, monkeypatch):
    """Its error is not that of a frame, and no frame is taken twice; `frames` tells which were taken."""

    class Alarm(Exception):
        pass

    def raises(signum, frame):
        raise Alarm

    x, errors, pool = frames(3, 3), [], layer().pool(4)
    step = pool._step_ids_validated

    def interrupted(*args):
        if threading.current_thread() is not threading.main_thread() or errors:
            return step(*args)
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        results = step(*args)
        signal.raise_signal(signal.SIGINT)
        return results

    async def main(batcher):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
        streams = [batcher.open() for _ in range(2)]
        await asyncio.gather(*[batcher.step(stream, x[0]) for stream in streams])
        await asleep(batcher)
        pool._step_ids_validated = interrupted
        futures = [batcher.step(streams[0], x[1], begin=begin), batcher.step(streams[1], x[1])]
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(outcome, ClosedError) and "Alarm interrupted it" in str(outcome)
        assert [type(error) for error in errors] == [Alarm]
        taken = when == "behind"
        count = 1 + taken
        assert [batcher.frames(stream) for stream in streams] == [1 if begin and taken else count, count]
        ys = await asyncio.gather(*[batcher.step(stream, x[2]) for stream in streams], return_exceptions=True)
        sent = x if taken else x[[0, 2]]
        assert same(ys[1:], alone(sent)[-1:])
        if begin and not taken:
            assert isinstance(ys[0], InputError) and "was to begin anew" in str(ys[0])
        else:
            assert same(ys[:1], alone(sent[begin:])[-1:])

    before = signal.signal(signal.SIGINT, raises)
    try:
        with rnnfast.Batcher(pool, max_wait=0.0, max_inline=LONG) as batcher:
            asyncio.run(main(batcher))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finalizer_in_a_batch_of_the_loop_may_drain(monkeypatch):
    """It cannot wait for the thread, which waits for the batch."""
    run, x = Worker._run_frames, frames(4, 3)
    batcher = rnnfast.Batcher(layer().pool(4), max_inline=LONG)

    def draining(self, requests):
        if threading.current_thread() is not self._thread:
            batcher.drain()
        return run(self, requests)

    async def main():
        stream = batcher.open()
        ys = [await first(batcher, stream, x[0])]
        monkeypatch.setattr(Worker, "_run_frames", draining, raising=False)
        ys.append(await asyncio.wait_for(batcher.step(stream, x[1]), 20))
        with pytest.raises(ClosedError):
            batcher.step(stream, x[2])
        return ys

    assert same(asyncio.run(main()), alone(x[:2]))
    batcher.drain()


def test_the_setting():
    with pytest.raises(InputError, match=r"max_inline is -1, expected seconds"):
        rnnfast.Batcher(layer(), max_inline=-1)


def test_what_makes_plans_runs_in_the_thread(places):
    """A batch of a size, or with a fixed input, or a call of shapes that were never run, though others are short."""
    model = rnnfast.load(MODELS / "denoiser.onnx")
    x = np.random.default_rng(5).standard_normal((8, 1, 22)).astype(np.float32)

    async def main(batcher):
        streams, ran = [batcher.open() for _ in x], []
        # Those of 5 and 6 run by the plan of 6, those of 7 and 8 by that of 8.
        for count in (4, 4, 5, 5, 6, 7, 7, 8, 8):
            places.clear()
            await asyncio.gather(*[batcher.step(stream, frame) for stream, frame in zip(streams[:count], x)])
            await asleep(batcher)
            ran += places
        return ran

    with rnnfast.Batcher(model.pool(8), max_wait=0.0, max_inline=LONG) as batcher:
        assert asyncio.run(main(batcher)) == [False, True, False, True, True, False, True, False, True]


@pytest.fixture
def calls(monkeypatch):
    """Where calls ran: True for a thread of the test's, the event loop's."""
    ran, run = [], Worker._run_call

    def recorded(self, part):
        ran.append(threading.current_thread() is not self._thread)
        return run(self, part)

    monkeypatch.setattr(Worker, "_run_call", recorded)
    return ran


def test_calls_run_in_the_loop_once_their_shapes_ran_in_the_thread(calls):
    model = rnnfast.load(MODELS / "tagger.onnx")

    async def main(batcher):
        for length in (5, 5, 7, 7, 5):
            feed = {"tokens": np.arange(length)[None], "lengths": np.array([length], np.int32)}
            outputs = await batcher.call(feed)
            await asleep(batcher)
            assert all(np.array_equal(outputs[name], y) for name, y in model(feed).items())

    with rnnfast.Batcher(model, max_inline=LONG) as batcher:
        asyncio.run(main(batcher))
    assert calls == [False, True, False, True, True]


def test_calls_whose_values_need_other_plans_run_in_the_thread(calls, tmp_path):
    text = "agraph (float[n, m] x, int64[2] shape) => (float[p, q] y) { y = Reshape (x, shape) }"
    (tmp_path / "reshape.onnx").write_bytes(parse(text))
    x = frames(0, 12)

    async def main(batcher):
        for shape in ([66, 2], [66, 2], [33, 4], [66, 2], [33, 4]):
            outputs = await batcher.call({"x": x, "shape": np.array(shape)})
            await asleep(batcher)
            assert np.array_equal(outputs["y"], x.reshape(shape))

    with rnnfast.Batcher(rnnfast.load(tmp_path / "reshape.onnx"), max_inline=LONG) as batcher:
        asyncio.run(main(batcher))
    assert calls == [False, True, False, True, True]


def test_calls_that_share_other_values_are_proven_in_the_thread(calls, tmp_path):
    text = "agraph (float[n, 11] x, float[1] gain) => (float[n, 11] y) { y = Mul (x, gain) }"
    (tmp_path / "gain.onnx").write_bytes(parse(text))
    x, ran = frames(0, 2), []

    async def main(batcher):
        for gain in (1, 1, 2, 2, 1):
            calls.clear()
            feeds = [{"x": row[None], "gain": np.array([gain], np.float32)} for row in x]
            outputs = await asyncio.gather(*map(batcher.call, feeds))
            await asleep(batcher)
            assert same([y["y"] for y in outputs], x[:, None] * np.float32(gain))
            ran.append(list(calls))

    with rnnfast.Batcher(rnnfast.load(tmp_path / "gain.onnx"), max_inline=LONG) as batcher:
        asyncio.run(main(batcher))
    assert ran == [[False], [True], [False], [True], [True]]
