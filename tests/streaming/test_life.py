"""Streams and pools under finalizers, signals and forks: nothing stands still, nothing stays locked."""

import contextlib
import gc
import os
import select
import signal
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, InputError, Overloaded
from tests.cases import bits
from tests.graphs import parse

STATEFUL = "g (float[b,3] x, float[b,3] h) => (float[b,3] y, float[b,3] hn) { hn = Add (x, h)  y = Tanh (hn) }"
X = np.ones((1, 3), np.float32)


def pools():
    return [rnnfast.load(parse(STATEFUL)).pool(100), nn.GRU(3, 4, rng=0).pool(100)]


class Acts:
    """A value whose conversion does something; then it is zeros."""

    def __init__(self, act):
        self.act = act

    def __array__(self, dtype=None, copy=None):
        self.act()
        return np.zeros(3, np.float32)


# ------------------------------------------------------------------------------------------------- finalizers
@pytest.mark.parametrize("pool", pools(), ids=["model", "layer"])
def test_finalizers_that_close(pool):
    """Objects that close their stream when they are collected, at whatever allocation of a call that is."""

    class Session:
        def __init__(self):
            self.stream, self.cycle = pool.open(), self

        def __del__(self):
            pool.close(self.stream)

    keep = pool.open()
    ndim = 2 if pool.outputs != ("y",) or hasattr(pool, "states") else 1
    frame = [[0.0] * 3] if ndim == 2 else np.zeros(3, np.float32)
    before = gc.get_threshold()
    gc.set_threshold(10)
    try:
        for n in range(500):
            Session()
            pool.step({keep: frame})
            pool.state(keep)
            if n % 50 == 0:
                gc.collect()  # Without the GIL the threshold alone lets many objects gather.
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(pool) == 1 and pool.streams.tolist() == [keep]


def test_values_are_converted_without_the_lock():
    """The conversion of a value may use the pool, from its own thread and from another one that it waits for."""
    pool = nn.GRU(3, 4, rng=0).pool(4)
    stream = pool.open()

    def act():
        pool.close(pool.open())
        thread = threading.Thread(target=pool.state, args=(stream,))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    value = Acts(act)
    for call in (
        lambda: pool.step({stream: [0.0, 0.0, 0.0]} and {stream: np.zeros(3, np.float32)}),
        lambda: pool.step([stream], [value] and np.zeros((1, 3), np.float32)),
        lambda: pool.validate_sequence(value),
    ):
        call()

    class Rows(Acts):
        def __array__(self, dtype=None, copy=None):
            return super().__array__()[None]

    assert pool.step([stream], Rows(act)).shape == (1, 4)
    assert pool.step({stream: value})[stream].shape == (4,)


def test_calls_in_the_midst_of_a_call():
    """A user's layer that uses its own pool is refused, where it would wait for itself."""
    seen = []

    class Own(nn.Linear):
        def __call__(self, x):
            for use in (lambda: pool.state(stream), pool.open, lambda: pool.step({stream: np.zeros(3, np.float32)})):
                with pytest.raises(InputError, match="a call that this one interrupts"):
                    use()
                seen.append(use)
            return super().__call__(x)

    net = nn.Sequential(nn.GRU(3, 4, rng=0), Own(4, 2, rng=0))
    pool = net.pool(2)
    stream = pool.open()
    assert pool.step({stream: np.zeros(3, np.float32)})[stream].shape == (2,) and len(seen) == 3


def test_stream_closed_by_its_own_step():
    stream = rnnfast.load(parse(STATEFUL)).stream()

    class Closes(Acts):
        def __array__(self, dtype=None, copy=None):
            return super().__array__()[None]

    stream.step(x=Closes(stream.close))
    with pytest.raises(ClosedError):
        stream.step(x=X)


# ------------------------------------------------------------------------------------------------- signals
class Alarm(Exception):
    """The exception that the handler raises."""


def raises(signum, frame):
    raise Alarm


def uses():
    model, layer = rnnfast.load(parse(STATEFUL)), nn.Sequential(nn.GRU(3, 4, rng=0), nn.LSTM(4, 4, rng=1))
    vector = X[0]
    pool, of_model = layer.pool(4), model.pool(4)
    ids, its_ids = [pool.open() for _ in range(3)], [of_model.open() for _ in range(3)]
    rows, large = np.ones((3, 3), np.float32), model.pool(10_000)
    stream, of_layer = model.stream(), layer.stream()
    batcher = rnnfast.Batcher(nn.GRU(3, 4, rng=0).pool(4), max_wait=0)
    its = batcher.open()
    return {
        "model stream": (lambda: stream.step(x=X), lambda: stream.step(x=X)),
        "model stream, lists": (lambda: stream.step(x=[[1.0, 2.0, 3.0]]), lambda: stream.state),
        "model stream, run": (lambda: stream.run(x=X[None]), stream.reset),
        "layer stream": (lambda: of_layer.step(vector), lambda: of_layer.step(vector)),
        "layer stream, run": (lambda: of_layer.run(X), lambda: of_layer.state),
        "layer pool": (lambda: pool.step(ids, rows), lambda: pool.step(ids, rows)),
        "model pool": (lambda: of_model.step(its_ids, rows), lambda: of_model.run(its_ids, rows[:, None])),
        # An alarm may keep an id from its caller, who cannot close that stream then.
        "open and close": (lambda: large.close(large.open()), lambda: large.close(large.open())),
        "model": (lambda: model(x=X, h=X), lambda: model(x=X, h=X)),
        # Without the result: an alarm in the midst of threading's own wait can come out as its RuntimeError.
        "batcher": (lambda: batcher.submit(its, vector).done(), lambda: batcher.frames(its)),
    }


def use_for(seconds, use):
    """Call `use` again and again. A function, as an alarm at a loop's own jump back may escape the `try` around it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Overloaded):
            use()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("name", uses())
def test_signals(name):
    """The handler's own error comes out, and the next call works."""
    use, after = uses()[name]
    rng = np.random.default_rng(0)
    before = signal.signal(signal.SIGALRM, raises)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-4 * rng.random())
                use_for(1, use)  # An alarm in a finalizer of Python's own is lost.
            except Alarm:
                pass
            after()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_layers_advance_together():
    """No alarm parts the states of the layers of one stream: each is that of as many frames."""
    net = nn.Sequential(nn.GRU(3, 4, rng=0), nn.GRU(4, 4, rng=1))
    expected, alone, x = [], net.stream(), np.ones((1, 3), np.float32)
    for _ in range(2000):
        alone.step(x[0])
        expected.append(tuple(state.tobytes() for state in alone.state))
    known, rng = set(expected), np.random.default_rng(1)
    before = signal.signal(signal.SIGALRM, raises)
    try:
        for _ in range(200):
            pool = net.pool(1)
            stream = pool.open()
            pool.step([stream], x)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-3 * rng.random())
                for _ in range(1500):
                    pool.step([stream], x)
            except Alarm:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert tuple(state.tobytes() for state in pool.state(stream)) in known
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------------- forks
def in_fork(function, seconds=20):
    """The repr of what a function returns in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = repr(function())
        except BaseException as e:
            text = f"{type(e).__name__}: {e}"
        os.write(write, text.encode()[:4000])
        os._exit(0)
    os.close(write)
    ready = select.select([read], [], [], seconds)[0]
    if not ready:
        os.kill(child, signal.SIGKILL)
    text = os.read(read, 4000).decode() if ready else "stands still"
    os.close(read)
    os.waitpid(child, 0)
    return text


@pytest.fixture
def held():
    """held(lock): another thread has the lock, until the test ends."""
    go, threads = threading.Event(), []

    def hold(lock):
        entered = threading.Event()
        threads.append(threading.Thread(target=lock.call, args=(lambda: entered.set() or go.wait(20),)))
        threads[-1].start()
        assert entered.wait(20)

    yield hold
    go.set()
    for thread in threads:
        thread.join()


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_fork_of_a_busy_stream(held):
    """The copy says that it was busy, and begins anew."""
    stream = rnnfast.load(parse(STATEFUL)).stream()
    first = stream.step(x=X)
    held(stream._lock)

    def child():
        with pytest.raises(InputError, match="in use by another thread when the process was forked"):
            stream.step(x=X)
        stream.reset()
        return bits([stream.step(x=X)]) == bits([first])

    assert in_fork(child) == "True"


@forks
@pytest.mark.parametrize("number", range(2))
def test_fork_of_a_busy_pool(held, number):
    """Streams of the call that ran say so until they are reset; others go on, and the lock is free."""
    pool = pools()[number]
    a, b = pool.open(), pool.open()
    frame = np.ones((1, 3), np.float32)
    pool.step([a], frame)
    pool.step([b], frame)
    held(pool._lock)

    def child():
        pool.step([a], frame)
        with pytest.raises(InputError, match="when the process was forked: reset it"):
            pool.step([b], frame)
        pool.reset(b)
        pool.step([a, b], np.ones((2, 3), np.float32))
        pool.close(b)
        pool.step([pool.open()], frame)
        return len(pool)

    assert in_fork(child) == "2"


@forks
def test_forks_of_forks_and_of_idle_ones():
    pool, stream = nn.GRU(3, 4, rng=0).pool(3), nn.GRU(3, 4, rng=0).stream()
    ids = [pool.open()]

    def child():
        pool.step(ids, np.ones((1, 3), np.float32)), stream.step(X[0])
        return True

    assert in_fork(lambda: in_fork(child)) == "'True'" and child()
