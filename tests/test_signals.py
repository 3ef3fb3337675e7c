"""A signal handler that raises, at any moment of a call: its error comes out unchanged, and nothing stays locked."""

import contextlib
import dis
import functools
import gc
import itertools
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, InputTypeError, LimitError
from rnnfast.nn.checks import as_array
from tests.graphs import parse

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")

PACKAGE = os.path.dirname(rnnfast.__file__)
MODEL = "g (float[1] x, float[1] h) => (float[1] y, float[1] hn) { hn = Add (x, h) y = Tanh (hn) }"


class Alarm(Exception):
    """The exception that the handlers raise."""


class Slow:
    """An object in whose conversion the alarm comes."""

    dtype, shape = np.dtype("f"), (1,)

    def __array__(self, dtype=None, copy=None):
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            pass
        return np.zeros(1, np.float32)


def function(signum, frame):
    raise Alarm("function")


class Handler:
    def method(self, signum, frame):
        raise Alarm("method")

    def __call__(self, *args):
        raise Alarm("object")


def nested(signum, frame):
    def deeper():
        raise Alarm("nested")

    deeper()


def resets(signum, frame):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    raise Alarm("resets")


def partial(number, signum, *_):
    raise Alarm("partial")


HANDLERS = [
    function,
    Handler().method,
    Handler(),
    nested,
    resets,
    functools.partial(partial, 1),
    lambda *_: (_ for _ in ()).throw(Alarm("lambda")),
]


@contextlib.contextmanager
def alarm(handler):
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("handler", HANDLERS, ids=range(len(HANDLERS)))
def test_conversions(handler):
    """Whatever kind of function the handler is, in the midst of an object's own conversion."""
    layer, gru = nn.Linear(1, 1, rng=0), nn.GRU(1, 1, rng=0)
    model, session = rnnfast.load(parse(MODEL)), rnnfast.InferenceSession(parse(MODEL))
    pool = gru.pool(2)
    stream = pool.open()
    batcher = rnnfast.Batcher(gru.pool(1))
    its_stream = batcher.open()
    for use in (
        lambda: as_array(Slow(), "x"),
        lambda: layer(Slow()),
        lambda: model(x=Slow(), h=[0.0]),
        lambda: model.stream().step(x=Slow()),
        lambda: model.stream().run(x=Slow()),
        lambda: session.run(None, {"x": Slow(), "h": [0.0]}),
        lambda: gru.stream().step(Slow()),
        lambda: pool.step({stream: Slow()}),
        lambda: pool.step([stream], Slow()),
        lambda: pool.open(Slow()),
        lambda: gru.stream(Slow()),
        lambda: batcher.submit(its_stream, Slow()),
        lambda: batcher.submit_run(Slow()),
        lambda: layer.load_state_dict({"weight": Slow(), "bias": [0.0]}),
    ):
        with alarm(handler), pytest.raises(Alarm):
            use()
    batcher.drain()


@pytest.mark.parametrize(
    "error", [TimeoutError, OSError, ValueError, TypeError, MemoryError, rnnfast.errors.InputError]
)
def test_errors_of_any_class(error):
    """An error of a handler is no error of the value, even if a value's errors have its class."""

    def handler(signum, frame):
        raise error("the handler's")

    model = rnnfast.load(parse(MODEL))
    for use in (lambda: as_array(Slow(), "x"), lambda: model(x=Slow(), h=[0.0]), lambda: model.stream().run(x=Slow())):
        with alarm(handler), pytest.raises(error) as caught:
            use()
        assert str(caught.value) == "the handler's" and type(caught.value) is error


def test_own_errors_of_a_value():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on another device")

    with pytest.raises(InputTypeError, match="another device"):
        as_array(Broken(), "x")


# ------------------------------------------------------------------------------------------ streams and threads
GRU = nn.GRU(1, 2, rng=0)
ROWS = "g (float[n,1] x, float[n,1] h) => (float[n,1] y, float[n,1] hn) { hn = Add (x, h) y = Tanh (hn) }"
SOURCES = {
    "layer": lambda: GRU.pool(3),
    "model": lambda: rnnfast.load(parse(ROWS)).pool(3),
    "batcher": lambda: rnnfast.Batcher(GRU.pool(3), max_wait=0),
    "batcher of a model": lambda: rnnfast.Batcher(rnnfast.load(parse(ROWS)).pool(3), max_wait=0),
}


def pool_of(source):
    return source._worker._pool if isinstance(source, rnnfast.Batcher) else source


RETURNS = [dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap]


def alarm_at(instruction, use):
    """Call `use` and raise Alarm before so many bytecode instructions of rnnfast: as a signal's handler may, and more.

    A function that `use` calls returns with its last instruction, after which the value is its caller's.
    """
    left, mine = [instruction], use.__code__

    def count(frame, offset):
        if PACKAGE in frame.f_code.co_filename:
            left[0] -= 1
            if left[0] < 0 and not (frame.f_code.co_code[offset] in RETURNS and frame.f_back.f_code is mine):
                left[0] = sys.maxsize
                raise Alarm("here")

    with instructions(count):
        return use()


@contextlib.contextmanager
def instructions(count):
    """Call count(frame, offset) before each bytecode instruction of this thread."""
    if not hasattr(sys, "monitoring"):  # before Python 3.12

        def trace(frame, event, argument):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if event == "opcode":
                count(frame, frame.f_lasti)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)
        return

    thread = threading.get_ident()

    def before_instruction(code, offset):
        frame = sys._getframe(1)  # as a signal's handler has it, by which it is known
        if threading.get_ident() == thread:
            count(frame, offset)

    monitoring = sys.monitoring
    event, tool = monitoring.events.INSTRUCTION, monitoring.DEBUGGER_ID
    monitoring.use_tool_id(tool, "alarms")
    monitoring.register_callback(tool, event, before_instruction)
    monitoring.set_events(tool, event)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)


def alarms_everywhere(use, then):
    """Call `use` with an alarm at its first instruction, then at its second and so on, until there is none."""
    for instruction in itertools.count():
        try:
            result = alarm_at(instruction, use)
        except Alarm:
            then()
        else:
            assert instruction > 5
            return result


def fits(source, ids):
    """Assert that these and no other streams are open, and that all others can be."""
    pool = pool_of(source)
    assert sorted(pool.streams.tolist()) == sorted(ids)
    more = []
    with pytest.raises(LimitError):
        while True:
            more.append(source.open())
    assert len(ids) + len(more) == pool.max_streams
    for stream in more:
        source.close(stream)


@pytest.mark.parametrize("name", SOURCES)
def test_streams_are_open_or_not(name):
    """Wherever an alarm comes, a stream whose id was not returned is not open, and its slot is free."""
    source = SOURCES[name]()
    states = {"layer": np.ones((1, 2), np.float32), "batcher": np.ones((1, 2), np.float32)}
    state = states.get(name, {"h": np.ones((1, 1), np.float32)})
    closes = {} if "batcher" not in name else {"on_close": print}
    for options in ({}, {"state": state}, closes):
        ids = []
        stream = alarms_everywhere(lambda: source.open(**options), lambda: fits(source, ids))
        ids.append(stream)
        fits(source, ids)

        def close():
            with contextlib.suppress(ClosedError):
                source.close(stream)

        alarms_everywhere(close, lambda: None)
        fits(source, [])
    if "batcher" in name:
        source.drain()


@pytest.mark.parametrize("name", ["layer", "model"])
def test_resets_are_whole(name):
    """A stream that an alarm kept from beginning anew, or not, goes on, and can be reset."""
    pool = SOURCES[name]()
    frame = {"layer": np.ones(1, np.float32), "model": np.ones((1, 1), np.float32)}[name]
    stream = pool.open()
    first = pool.step({stream: frame})[stream]
    alarms_everywhere(lambda: pool.reset(stream), lambda: pool.step({stream: frame}))
    np.testing.assert_equal(pool.step({stream: frame})[stream], first)
    fits(pool, [stream])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older ones look for signals before the caller has the id")
@pytest.mark.parametrize("name", SOURCES)
def test_alarms_while_streams_open(name):
    source, ids, rng = SOURCES[name](), [], np.random.default_rng(0)

    def open_and_close():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            ids.append(source.open())
            while ids:
                source.close(ids[0])
                del ids[0]

    with alarm(function):
        for _ in range(300):
            with contextlib.suppress(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-4 * rng.random())
                open_and_close()
            signal.setitimer(signal.ITIMER_REAL, 0)
            opened = set(pool_of(source).streams.tolist())
            assert opened <= set(ids)
            ids[:] = opened  # one may be closed already
    fits(source, ids)


def test_batchers_that_are_not_made_leave_no_thread():
    def threads():
        gc.collect()
        return sum(thread.name == "rnnfast-batcher" for thread in threading.enumerate())

    before, pool = threads(), GRU.pool(2)
    alarms_everywhere(lambda: rnnfast.Batcher(pool, max_wait=0), lambda: None).drain()
    end = time.monotonic() + 20
    while threads() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threads() <= before
