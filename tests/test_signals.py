"""A signal handler that raises, at any moment of a call: its error comes out unchanged, and nothing stays locked."""

import contextlib
import functools
import signal
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputTypeError
from rnnfast.nn.checks import as_array
from tests.graphs import parse

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")

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
