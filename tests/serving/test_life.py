"""The life of a Batcher in a process: dropped, left, ended by whatever, and its settings."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, DeadlineError, InputError
from tests.serving.test_batcher import Held, alone, frames, layer, same
from tests.streaming.test_life import forks, in_fork


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        gc.collect()
        time.sleep(0.005)
    return condition()


# ------------------------------------------------------------------------------------------------- dropped
def in_a_cycle(batcher):
    holder = [batcher]
    holder.append(holder)


def with_on_close(batcher):
    class Service:
        def __init__(self):
            self.batcher = batcher
            self.stream = batcher.open(on_close=self.closed)

        def closed(self, stream):
            pass

    Service()


def with_streams_and_frames(batcher):
    stream = batcher.open()
    batcher.submit(stream, frames(0, 1)[0]).result(20)


def in_its_own_callback(batcher):
    stream = batcher.open()
    batcher.submit(stream, frames(0, 1)[0]).add_done_callback(lambda future: batcher)


def in_asyncio(batcher):
    async def use():
        await batcher.step(batcher.open(), frames(0, 1)[0])

    asyncio.run(use())


def with_idle_streams(batcher):
    batcher.open(on_close=lambda stream: batcher)


@pytest.mark.parametrize(
    "use",
    [in_a_cycle, with_on_close, with_streams_and_frames, in_its_own_callback, in_asyncio, with_idle_streams],
    ids=lambda use: use.__name__,
)
def test_dropped(use):
    """Nothing of a Batcher that nobody has is left: neither thread nor pool."""
    before = threading.active_count()
    pool = layer().pool(3)
    batcher = rnnfast.Batcher(pool, idle=50)
    pool = weakref.ref(pool)
    use(batcher)
    del batcher
    assert until(lambda: threading.active_count() == before and pool() is None)


def test_dropped_in_its_own_thread():
    """The last reference goes in a callback, which runs in the Batcher's thread."""
    before = threading.active_count()
    last = [rnnfast.Batcher(layer().pool(3))]
    future = last[0].submit(last[0].open(), frames(0, 1)[0])
    future.add_done_callback(lambda future: last.clear())
    future.result(20)
    del future
    assert until(lambda: threading.active_count() == before)


def test_dropped_with_requests():
    """Those who have a future get their result, even of a sequence that waits for a stream."""
    x = frames(3, 4)
    batcher = rnnfast.Batcher(layer().pool(2), max_wait=30, max_batch=2)
    waits, sequence = batcher.submit(batcher.open(), x[0]), batcher.submit_run(x)
    del batcher
    assert same([waits.result(20)], alone(x[:1])) and same(sequence.result(20), alone(x))
    batcher = rnnfast.Batcher(layer().pool(1), max_wait=30)
    batcher.open()
    sequence = batcher.submit_run(x)
    del batcher
    with pytest.raises(ClosedError, match="all streams of the pool are open"):
        sequence.result(20)


def test_interpreter_ends():
    """Neither a waiting batcher, nor a drain in a finalizer at the very end, keeps the interpreter."""
    program = """
import numpy as np, rnnfast
from rnnfast import nn
batcher = rnnfast.Batcher(nn.GRU(3, 4, rng=0).pool(4), max_wait=1000, max_batch=2)
streams = [batcher.open() for _ in range(4)]
class Service:
    def __init__(self):
        self.batcher = batcher
        self.future = batcher.submit(streams[0], np.zeros(3, "f"))
    def __del__(self):
        self.batcher.drain()
        try:
            print(self.future.result(5))
        except ValueError:
            print("refused")
service = Service()
cycle = [service]
cycle.append(cycle)
del service
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "refused\n", done.stderr


# ------------------------------------------------------------------------------------------------- left
def test_leaving_computes_no_queue(monkeypatch):
    """The batch that runs is answered; what waits is refused, on whatever way the block is left."""
    pool, x = layer().pool(9), frames(1, 5)
    held = Held(pool, monkeypatch)
    with pytest.raises(KeyError), rnnfast.Batcher(pool, max_batch=1, max_wait=0) as batcher:
        stream = batcher.open()
        futures = [batcher.submit(stream, frame) for frame in x]
        sequence = batcher.submit_run(x)
        assert held.entered.wait(20)
        threading.Timer(0.05, held.go.set).start()
        raise KeyError
    assert same([futures[0].result(0)], alone(x[:1]))
    for future in [*futures[1:], sequence]:
        with pytest.raises(ClosedError, match="nothing was taken"):
            future.result(0)
    assert len(pool) == 0
    with pytest.raises(ClosedError):
        batcher.submit(stream, x[0])


def test_leaving_under_asyncio():
    async def main():
        with rnnfast.Batcher(layer().pool(9), max_wait=30) as batcher:
            streams = [batcher.open() for _ in range(3)]
            waits = [batcher.step(streams[0], frame) for frame in frames(1, 3)]
        for wait in waits:
            with pytest.raises(ClosedError):
                await wait

    asyncio.run(main())


def test_leaving_soon():
    """Sequences that would run for minutes end at the next part."""
    begun = time.monotonic()
    with rnnfast.Batcher(nn.LSTM(64, 512, num_layers=3, rng=0), max_batch=4) as batcher:
        futures = [batcher.submit_run(np.zeros((50_000, 64), np.float32)) for _ in range(8)]
        time.sleep(0.1)
    assert time.monotonic() - begun < 20
    for future in futures:
        with pytest.raises(ClosedError):
            future.result(0)


def test_drain_in_the_own_thread():
    """A callback that drains does not wait for itself."""
    batcher = rnnfast.Batcher(layer().pool(2))
    ended = threading.Event()
    future = batcher.submit(batcher.open(), frames(0, 1)[0])
    future.add_done_callback(lambda future: (batcher.drain(), ended.set()))
    assert ended.wait(20)
    batcher.drain()
    with pytest.raises(ClosedError):
        batcher.open()


# ------------------------------------------------------------------------------------------------- ended
class Killed(BaseException):
    """Ends a thread."""


def kill(batcher, monkeypatch, name):
    def killed(*args):
        raise Killed

    monkeypatch.setattr(batcher._worker, name, killed)


@pytest.mark.parametrize("name", ["_sort", "_take", "_to_wait", "_advance", "_run_frames", "_sleep", "_close_idle"])
def test_thread_that_ends(name, monkeypatch):
    """Wherever the thread ends, every call is answered by an error, those of event loops too."""

    async def main():
        batcher = rnnfast.Batcher(layer().pool(4), max_batch=2, max_wait=0.05, idle=100)
        a, b, x = batcher.open(), batcher.open(), frames(2, 2)
        before = [batcher.submit(a, x[0]), batcher.step(a, x[1]), batcher.submit_run(x), batcher.run(x)]
        kill(batcher, monkeypatch, name)
        answered = []
        for call in (lambda: batcher.submit(b, x[0]), lambda: batcher.step(b, x[1])):
            try:
                answered.append(call())
            except ClosedError:
                pass
        for future in before + answered:
            if not isinstance(future, asyncio.Future):
                future = asyncio.wrap_future(future)
            try:
                await asyncio.wait_for(future, 20)
            except ClosedError:
                pass
        assert until(lambda: not batcher._worker._thread.is_alive())
        for call in (batcher.open, lambda: batcher.submit(a, x[0]), lambda: batcher.submit_run(x)):
            with pytest.raises(ClosedError):
                call()
        for call in (lambda: batcher.step(a, x[0]), lambda: batcher.run(x)):
            with pytest.raises(ClosedError):
                call()
        batcher.drain()

    asyncio.run(main())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Killed, ValueError])
def test_callbacks_that_raise(error):
    """Whatever a caller's function raises, the thread goes on."""

    def raises(*_):
        raise error

    batcher, x = rnnfast.Batcher(layer().pool(3), max_wait=0, idle=0.3), frames(4, 2)
    stream = batcher.open(on_close=raises)
    future = batcher.submit(stream, x[0])
    future.add_done_callback(raises)
    assert same([future.result(20)], alone(x[:1]))
    assert until(lambda: batcher.stats()["idle"] == 1)
    other = batcher.open()
    late = batcher.submit(other, x[0], timeout=0)
    late.add_done_callback(raises)
    with pytest.raises((DeadlineError, AssertionError)):
        assert not same([late.result(20)], alone(x[:1]))
    assert same([batcher.submit(other, x[0]).result(20)], alone(x[:1])) or batcher.frames(other) == 2
    batcher.drain()


def test_no_thread(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(rnnfast.errors.LimitError, match="no thread for a batcher: can't start"):
        rnnfast.Batcher(layer().pool(1))


# ------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize("value", [1e10, 1e300, float("nan"), float("inf"), -1, -1e-9, 10**400, "1", np.ones(2), 1j])
@pytest.mark.parametrize("name", ["max_wait", "idle"])
def test_settings_beyond_the_clock(name, value):
    before = threading.active_count()
    with pytest.raises(InputError, match=f"{name} is .*, expected seconds"):
        rnnfast.Batcher(layer().pool(1), **{name: value})
    assert threading.active_count() == before


@pytest.mark.parametrize("settings", [{"max_wait": 1e9}, {"idle": 1e9}, {"idle": 5e-324}, {"max_wait": 0, "idle": 1e6}])
def test_settings_at_the_end_of_the_range(settings):
    with rnnfast.Batcher(layer().pool(1), max_batch=1, **settings) as batcher:
        for _ in range(3):
            try:
                assert batcher.submit(batcher.open(), frames(0, 1)[0]).result(20) is not None
            except (ClosedError, rnnfast.errors.LimitError):
                pass  # idle for 5e-324 seconds, or there already
            assert batcher._worker._thread.is_alive()


@pytest.mark.parametrize("value", [0, -1, 2.0, True, 2**63, 10**30])
@pytest.mark.parametrize("name", ["max_batch", "max_queue"])
def test_counts(name, value):
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        rnnfast.Batcher(layer().pool(1), **{name: value})


@pytest.mark.parametrize("timeout", [1e10, float("nan"), float("inf"), -1, 10**400])
def test_deadlines_beyond_the_clock(timeout):
    with rnnfast.Batcher(layer().pool(1)) as batcher:
        stream = batcher.open()
        for call in (lambda: batcher.submit(stream, frames(0, 1)[0], timeout), lambda: batcher.submit_run([], timeout)):
            with pytest.raises(InputError):
                call()


# ------------------------------------------------------------------------------------------------- frames
def test_frames_behind_a_cancellation(monkeypatch):
    """Right behind a cancellation, `frames` says whether the frame is part of the state, even if its batch runs now."""

    async def main():
        pool, x = layer().pool(3), frames(6, 3)
        held = Held(pool, monkeypatch)
        batcher = rnnfast.Batcher(pool, max_wait=0)
        stream = batcher.open()
        runs = batcher.step(stream, x[0])
        await asyncio.to_thread(held.entered.wait, 20)
        waits = batcher.step(stream, x[1])
        runs.cancel(), waits.cancel()
        threading.Timer(0.05, held.go.set).start()
        assert batcher.frames(stream) == 1
        assert same([await batcher.step(stream, x[2])], [alone(x[[0, 2]])[1]])
        assert batcher.frames(stream) == 2
        batcher.drain()

    asyncio.run(main())


def test_frames_that_fail(monkeypatch):
    """A frame that runs and fails is never counted, in between either."""
    pool = layer().pool(3)
    step, entered, go = pool.step_validated, threading.Event(), threading.Event()

    def failing(ids, values, starts):
        entered.set()
        assert go.wait(20)
        if any(value[0] == 7 for value in values):
            raise ValueError("seven")
        return step(ids, values, starts)

    monkeypatch.setattr(pool, "step_validated", failing)
    batcher = rnnfast.Batcher(pool, max_wait=0)
    a, b = batcher.open(), batcher.open()
    bad, good = frames(7, 2)
    bad[0] = 7
    futures = [batcher.submit(a, bad), batcher.submit(b, good)]
    assert entered.wait(20)
    threading.Timer(0.05, go.set).start()
    assert batcher.frames(a) == 0
    with pytest.raises(ValueError, match="seven"):
        futures[0].result(20)
    assert same([futures[1].result(20)], alone([good])) and batcher.frames(b) == 1 and batcher.frames(a) == 0
    batcher.drain()


def test_frames_in_a_callback():
    """A callback, in the Batcher's thread, does not wait for itself."""
    batcher = rnnfast.Batcher(layer().pool(1))
    stream, seen = batcher.open(), []
    future = batcher.submit(stream, frames(0, 1)[0])
    future.add_done_callback(lambda future: seen.append(batcher.frames(stream)))
    future.result(20)
    batcher.drain()
    assert seen == [1]


# ------------------------------------------------------------------------------------------------- forks
REFUSED = "ClosedError: GRU: the batcher ended in this process, as it was forked: nothing was taken here"


def outcome(future):
    try:
        return repr(future.result(10))
    except BaseException as e:
        return f"{type(e).__name__}: {e}"


def goes_on(batcher):
    """Whether a Batcher serves new frames and sequences."""
    x = frames(3, 3)
    stream = batcher.open()
    y = [batcher.submit(stream, frame).result(10) for frame in x]
    return same(y, alone(x)) and same(batcher.submit_run(x).result(10), alone(x))


@forks
@pytest.mark.parametrize("drained", [False, True])
def test_pending_futures_in_a_forked_child(drained, monkeypatch):
    """Those of the batch that runs, of the frames and sequences behind it, and of those that are over, all at once."""
    pool = layer().pool(6)
    held = Held(pool, monkeypatch)
    batcher, x = rnnfast.Batcher(pool, max_batch=1, max_wait=0), frames(1, 4)
    a, b = batcher.open(), batcher.open()
    pending = [batcher.submit(a, x[0])]
    assert held.entered.wait(20)
    pending += [batcher.submit(a, x[1]), batcher.submit(b, x[0], timeout=1e-6), batcher.submit_run(x)]
    pending += [batcher.submit_run(x, timeout=10), batcher.submit(b, x[1])]
    pending[-1].cancel()
    told = []
    pending[1].add_done_callback(lambda future: told.append(outcome(future)))
    pending[3].add_done_callback(lambda future: sys.exit())
    if drained:
        batcher._worker.finish()

    def child():
        held.go.set()
        start = time.monotonic()
        outcomes = [outcome(future) for future in pending]
        return outcomes, told, time.monotonic() - start < 1, "closed" if drained else goes_on(batcher)

    outcomes, its_told, fast, after = eval(in_fork(child))
    assert outcomes == [REFUSED] * 5 + ["CancelledError: "]
    assert (its_told, fast, after) == ([REFUSED], True, "closed" if drained else True)
    held.go.set()
    batcher.drain()
    assert same([pending[0].result(20), pending[1].result(20)], alone(x[:2]))  # The parent's are as they were.
    assert [outcome(future).split(":")[0] for future in pending[2:3] + pending[5:]] == [
        "DeadlineError",
        "CancelledError",
    ]
    assert same(pending[3].result(20), alone(x)) and same(pending[4].result(20), alone(x))


@forks
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="an event loop of Python 3.14 does not go on in a forked child")
def test_pending_awaits_in_a_forked_child(monkeypatch):
    """The child's copy of the event loop goes on, and each await raises; the parent's get their results."""
    pool = layer().pool(6)
    held = Held(pool, monkeypatch)
    x = frames(1, 4)

    async def awaited(awaitable):
        try:
            return (await awaitable).tolist()
        except BaseException as e:
            return f"{type(e).__name__}: {e}"

    async def main():
        batcher = rnnfast.Batcher(pool, max_batch=1, max_wait=0)
        a = batcher.open()
        calls = (batcher.step(a, x[0]), batcher.step(a, x[1]), batcher.run(x))
        tasks = [asyncio.ensure_future(awaited(call)) for call in calls]
        while not held.entered.is_set():
            await asyncio.sleep(0.001)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                text = repr([await task for task in tasks])
            except BaseException as e:
                text = repr(e)
            os.write(write, text.encode()[:4000])
            os._exit(0)
        os.close(write)
        said = await asyncio.to_thread(os.read, read, 4000)
        os.close(read)
        os.waitpid(child, 0)
        assert eval(said) == [REFUSED] * 3
        held.go.set()
        first, second, whole = [await asyncio.wait_for(task, 20) for task in tasks]
        assert same([first, second], alone(x[:2])) and same(whole, alone(x))
        batcher.drain()

    asyncio.run(main())


@forks
def test_forks_at_any_moment_of_a_busy_batcher():
    """No Future of the parent is left without an answer in the child, wherever the thread is."""
    batcher, x = rnnfast.Batcher(layer().pool(8), max_batch=3, max_wait=0), frames(5, 2)
    streams = [batcher.open() for _ in range(4)]
    for i in range(60):
        futures = [batcher.submit(stream, x[0], timeout=1e-4 if i % 3 else None) for stream in streams * 2]
        futures += [batcher.submit_run(x, timeout=1e-4 if i % 2 else None) for _ in range(4)]
        time.sleep(i * 2e-5)
        answered = in_fork(lambda: [outcome(future).split(":")[0] for future in futures].count("TimeoutError"))
        assert answered == "0"
        for future in futures:
            outcome(future)
    batcher.drain()
