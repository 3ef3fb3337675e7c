"""Long native calls end early: by a signal's handler, a deadline, or the terminate flag; states stay as they were."""

import functools
import signal
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import LimitError, TerminatedError
from rnnfast.native import _kernels
from rnnfast.native._interrupts import Flag, within
from tests.graphs import parse

# Seconds from a signal, a deadline or a flag to the end of the call. It is 0.02 on a quiet machine, where 0.05 is the
# promise; a loaded machine, sanitizers and kernels without vector instructions take longer.
SOON = 0.5


class Alarm(BaseException):
    """The exception that the handler of a test's alarm raises."""


@pytest.fixture
def alarm():
    """alarm(seconds): raise Alarm on the main thread after so many seconds."""

    def ring(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def random(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def looped(body, **constants):
    """The model of a Loop of so many iterations whose body sets y from x."""
    model = rnnfast.load(
        parse(
            f"""g (int64 trips, float[m,n] v) => (float[m,n] last) {{
            last = Loop (trips, , v) <body = b (int64 i, bool c, float[m,n] x) => (bool d, float[m,n] y) {{
                d = Identity (c)  {body} }}> }}""",
            **constants,
        ),
        limits=rnnfast.Limits(work=None),
    )
    return model


LONG = np.array(900_000)
# What makes calls of several seconds, each of another kind.
CALLS = {
    "elementwise": lambda: _loop_call("y = Tanh (x)", (300, 300)),
    "softmax": lambda: _loop_call("y = Softmax (x)", (300, 300)),
    "reduction": lambda: _loop_call("s = ReduceMean <axes = [1]> (x)  y = Add (x, s)", (300, 300)),
    "transposition": lambda: _loop_call("t = Transpose (x)  y = Transpose (t)", (300, 300)),
    "product": lambda: _loop_call("y = MatMul (x, w)", (300, 300), w=random(300, 300) / 300),
    "product of operands": lambda: _loop_call("y = MatMul (x, x)", (300, 300)),
    "gather": lambda: _loop_call("y = Gather (x, k)", (300, 300), k=np.arange(300)[::-1].copy()),
    "order": lambda: _loop_call("y, _ = TopK <axis = 1> (x, k)", (300, 300), k=np.array([300])),
    "small body": lambda: _small_calls(),
    "one product": lambda: _one_product(),
    "convolution": lambda: _convolution(),
    "pooling": lambda: _pooling(),
    "recurrent": lambda: _recurrent(),
    "layer": lambda: _layer_call("LSTM", 1),
    "layer of the other GRU": lambda: _layer_call("GRU", 1, linear_before_reset=False),
    "layer, bidirectional": lambda: _layer_call("RNN", 1, bidirectional=True),
    "layer, two threads": lambda: _layer_call("LSTM", 2),
    "ragged layer": lambda: _ragged(),
    "Linear": lambda: _linear(),
}


def _loop_call(body, shape, **constants):
    model = looped(body, **constants)
    return lambda: model(trips=LONG, v=random(*shape) / 100)


def _small_calls():
    # A million iterations of a small body take about a second.
    model = looped("y = Abs (x)")
    return lambda: [model(trips=LONG, v=random(30, 30)) for _ in range(20)]


def _one_product():
    model = rnnfast.load(parse("g (float[m,k] x) => (float[m,n] y) { y = MatMul (x, w) }", w=random(3000, 3000)))
    x = np.ones((60_000, 3000), np.float32)
    return lambda: model(x=x)


def _convolution():
    w = random(256, 256, 3, 3)
    text = "g (float[n,c,h,v] x) => (y) { a = Conv <pads = [1,1,1,1]> (x, w)  y = Tanh (a) }"
    model = rnnfast.load(parse(text, w=w))
    x = np.ones((3, 256, 300, 300), np.float32)
    return lambda: model(x=x)


def _pooling():
    model = rnnfast.load(parse("g (float[n,c,h,v] x) => (y) { y = AveragePool <kernel_shape = [61,61]> (x) }"))
    x = np.ones((4, 16, 700, 700), np.float32)
    return lambda: model(x=x)


def _recurrent():
    text = "g (float[t,b,i] x) => (y) { y = LSTM <hidden_size = 256> (x, w, r) }"
    model = rnnfast.load(parse(text, w=random(1, 1024, 64), r=random(1, 1024, 256) / 16))
    x = np.zeros((15_000, 32, 64), np.float32)
    return lambda: model(x=x)


def _layer_call(kind, threads, **options):
    layer = getattr(nn, kind)(64, 256, rng=0, threads=threads, **options)
    x = np.zeros((40_000 if kind == "RNN" else 15_000, 32, 64), np.float32)
    return lambda: layer(x)


def _ragged():
    layer = nn.LSTM(64, 256, rng=0)
    x = np.zeros((15_000, 32, 64), np.float32)
    return lambda: layer(x, lengths=np.arange(14_000, 14_032))


def _linear():
    layer = nn.Linear(3000, 3000, rng=0)
    x = np.ones((60_000, 3000), np.float32)
    return lambda: layer(x)


@pytest.mark.parametrize("kind", CALLS)
def test_a_signal_ends_a_call(alarm, kind):
    call = CALLS[kind]()
    alarm(0.3)
    start = time.perf_counter()
    with pytest.raises(Alarm):
        call()
    assert 0.25 < time.perf_counter() - start < 0.3 + SOON


@pytest.mark.parametrize(
    "kind", [kind for kind in CALLS if "layer" not in kind and kind not in ("Linear", "small body")]
)
def test_a_flag_ends_a_call_on_any_thread(kind):
    call, flag, took = CALLS[kind](), Flag(), []

    def run():
        with pytest.raises(TerminatedError, match="terminate flag"):
            within(None, flag, call)
        took.append(time.perf_counter() - start)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    start = time.perf_counter()
    flag.set(True)
    thread.join()
    assert took[0] < SOON


@pytest.mark.parametrize("kind", ["elementwise", "one product", "recurrent", "layer", "convolution"])
def test_a_deadline_ends_a_call(kind):
    call = CALLS[kind]()
    start = time.perf_counter()
    with pytest.raises(LimitError, match=r"longer than the 0\.2 seconds that limits\.seconds allows"):
        within(0.2, None, call)
    assert 0.2 <= time.perf_counter() - start < 0.2 + SOON


def one(text, *shape, **constants):
    """A call of a model on zeros of a shape."""
    model = rnnfast.load(parse(f"g ({text}", **constants), limits=rnnfast.Limits(work=None))
    x = np.zeros(shape, np.float32)
    return lambda: model(x=x)


ROW = 30_000_000
# What a single command does on one huge row, item or line: calls of 10 ms to a second.
HUGE = {
    "softmax": lambda: one("float[a,b] x) => (y) { y = Softmax (x) }", 1, ROW),
    "log softmax": lambda: one("float[a,b] x) => (y) { y = LogSoftmax (x) }", 1, ROW),
    "normalization": lambda: one(
        "float[a,b] x) => (y) { y = LayerNormalization <axis = 1> (x, s) }", 1, ROW, s=np.ones(ROW, np.float32)
    ),
    "sum of a row": lambda: one("float[a,b] x) => (y) { y = ReduceSum (x, k) }", 1, 8 * ROW, k=np.array([1])),
    "sum of a column": lambda: one("float[a,b] x) => (y) { y = ReduceSum (x, k) }", 2 * ROW, 2, k=np.array([0])),
    "averages of a line": lambda: one(
        "float[a,b,c] x) => (y) { y = AveragePool <kernel_shape = [1000]> (x) }", 1, 16, 200_000
    ),
    "largest of a window": lambda: one(
        "float[a,b,c,d] x) => (y) { y = MaxPool <kernel_shape = [6000, 6000]> (x) }", 1, 1, 6000, 6000
    ),
    "depthwise line": lambda: one(
        "float[a,b,c] x) => (y) { y = Conv <group = 16> (x, w) }", 1, 16, 2_000_000, w=random(16, 1, 9)
    ),
    "line of a convolution": lambda: one(
        "float[a,b,c] x) => (y) { v = Conv (x, w)  y = Tanh (v) }", 1, 16, 1_000_000, w=random(64, 16, 9)
    ),
    "few positions": lambda: one(
        "float[a,b,c,d] x) => (y) { y = Conv <pads = [1,0,1,0]> (x, w) }", 1, 16, 2_000_000, 1, w=random(32, 16, 3, 1)
    ),
    "packed operand": lambda: one("float[a,b] x) => (y) { t = Neg (x)  v = MatMul (w, t)  y = ReduceSum (v, k) }",
                                  4000, 10_000, w=random(1, 4000), k=np.array([0, 1])),
    "gathered item": lambda: one("float[a,b] x) => (y) { y = Gather (x, k) }", 2, ROW, k=np.array([1, 0, 1])),
    "transposition": lambda: one("float[a,b] x) => (y) { t = Transpose (x)  y = Neg (t) }", 3, ROW),
    "first of a row": lambda: one("float[a,b] x) => (y) { y = ArgMax <axis = 1> (x) }", 1, 2 * ROW),
    "order of a row": lambda: one("float[a,b] x) => (y, z) { y, z = TopK (x, k) }", 1, 3_000_000, k=np.array([9])),
    "blas": lambda: functools.partial(
        nn.Linear(1000, 1000, rng=0, matmul="blas"), np.ones((20_000, 1000), np.float32)
    ),
    "function": lambda: functools.partial(_kernels.unary, "Exp", np.zeros(2 * ROW, np.float32)),
}  # fmt: skip
# The share of a call's processor time that it takes with a deadline of a millisecond, and the seconds. At most 0.11 and
# 0.0025 were measured; a piece of BLAS takes 0.016. Sanitizers and kernels without vector instructions take longer.
SHARE, PIECES = 0.5, 0.05


@pytest.mark.parametrize("kind", HUGE)
def test_one_command_ends_in_the_midst_of_its_work(kind):
    call = HUGE[kind]()
    if kind == "blas":
        pytest.importorskip("scipy")
    call()
    start = time.thread_time()
    call()
    whole = time.thread_time() - start
    start = time.thread_time()
    with pytest.raises(LimitError, match="seconds that limits.seconds allows"):
        within(0.001, None, call)
    took = time.thread_time() - start
    assert took < min(SHARE * whole, PIECES), (took, whole)


def test_the_first_deadline_counts_and_ends_with_its_call():
    call = CALLS["elementwise"]()
    with pytest.raises(LimitError, match=r"0\.1 seconds"):
        within(0.1, None, within, 60, None, call)
    with pytest.raises(LimitError, match=r"0\.1 seconds"):
        within(60, None, within, 0.1, None, call)
    assert within(0.05, None, time.sleep, 0.1) is None
    layer = nn.LSTM(8, 8, rng=0)
    layer(np.zeros((2000, 8, 8), np.float32))  # no deadline is left behind


@pytest.mark.parametrize("kind", ["elementwise", "product", "one product", "layer"])
def test_an_ordinary_exception_of_a_handler_arrives_as_it_is(kind):
    """It is not taken for an error of the model."""

    def ring(*_):
        raise TimeoutError("too slow")

    call = CALLS[kind]()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeoutError, match="^too slow$"):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_returns_does_not_end_a_call():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.perf_counter()))
    try:
        layer, x = nn.LSTM(32, 128, rng=0), random(3000, 8, 32)
        expected = layer(x)[0]
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        y = layer(x)[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung
    np.testing.assert_array_equal(y, expected)


# ------------------------------------------------------------------------------------------------ states
def test_a_stream_of_a_layer_keeps_its_state(alarm):
    layer = nn.LSTM(16, 64, rng=0)
    stream, frames = layer.stream(), random(20, 16)
    stream.run(frames)
    before = stream.state
    alarm(0.2)
    with pytest.raises(Alarm):
        stream.run(np.zeros((6_000_000, 16), np.float32))
    for a, b in zip(before, stream.state):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(stream.step(frames[0]), _continued(layer, frames, frames[0]))


def _continued(layer, frames, frame):
    other = layer.stream()
    other.run(frames)
    return other.step(frame)


RECURRENT = """g (float[1,b,8] x, float[1,b,64] h) => (float[1,1,b,64] y, float[1,b,64] last) {
    y, last = GRU <hidden_size = 64> (x, w, r, , , h) }"""


def recurrent_model():
    return rnnfast.load(parse(RECURRENT, w=random(1, 192, 8), r=random(1, 192, 64) / 8))


def test_a_stream_of_a_model_keeps_its_state(alarm):
    stream, x = recurrent_model().stream(states={"h": "last"}), np.zeros((4_000_000, 1, 1, 8), np.float32)
    stream.run(x=random(5, 1, 1, 8))
    before = stream.state["h"].copy()
    alarm(0.2)
    with pytest.raises(Alarm):
        stream.run(x=x)
    np.testing.assert_array_equal(stream.state["h"], before)
    stream.step(x=random(1, 1, 8))


def test_pools_keep_their_states(alarm):
    """Whole sequences of many streams in one call."""
    layer = nn.LSTM(64, 256, rng=0)
    pool = layer.pool(40)
    streams = [pool.open() for _ in range(40)]
    pool.step(streams, random(40, 64))
    before = [np.concatenate([part.ravel() for part in pool.state(stream)]) for stream in streams]
    x = np.zeros((40, 12_000, 64), np.float32)
    alarm(0.3)
    with pytest.raises(Alarm):
        pool.run(streams, x)
    after = [np.concatenate([part.ravel() for part in pool.state(stream)]) for stream in streams]
    np.testing.assert_array_equal(after, before)
    pool.step(streams, random(40, 64))


def test_a_step_of_a_pool_keeps_its_states(alarm):
    model = rnnfast.load(
        parse(
            """g (float[1,b,8] x, float[1,b,4096] h) => (float[1,1,b,4096] y, float[1,b,4096] last) {
            y, last = GRU <hidden_size = 4096> (x, w, r, , , h) }""",
            w=random(1, 3 * 4096, 8),
            r=random(1, 3 * 4096, 4096) / 100,
        )
    )
    pool = model.pool(400, states={"h": "last"})
    streams = [pool.open() for _ in range(400)]
    x = random(400, 1, 8)
    pool.step(streams, x=x)
    before = pool.state(streams[7])["h"].copy()
    alarm(0.05)
    with pytest.raises(Alarm):
        pool.step(streams, x=x)
    np.testing.assert_array_equal(pool.state(streams[7])["h"], before)


def test_backward_ends_and_can_be_called_again(alarm):
    layer = nn.LSTM(256, 512, rng=0)
    x = random(800, 64, 256)
    y, _, saved = layer.forward(x, training=True)
    alarm(0.3)
    with pytest.raises(Alarm):
        while True:
            layer.backward(np.ones_like(y), None, saved)


def test_run_options_terminate_a_run_in_progress():
    session = rnnfast.InferenceSession(
        parse(
            """g (int64 trips, float[m,n] v) => (float[m,n] last) {
            last = Loop (trips, , v) <body = b (int64 i, bool c, float[m,n] x) => (bool d, float[m,n] y) {
                d = Identity (c)  y = Tanh (x) }> }"""
        )
    )
    options = rnnfast.RunOptions()
    timer = threading.Timer(0.2, setattr, (options, "terminate", True))
    timer.start()
    with pytest.raises(TerminatedError):
        session.run(None, {"trips": LONG, "v": random(300, 300)}, options)
    with pytest.raises(TerminatedError):  # as long as it is set
        session.run(None, {"trips": np.array(1), "v": random(300, 300)}, options)
    options.terminate = False
    assert len(session.run(["last"], {"trips": np.array(1), "v": random(300, 300)}, options)) == 1
    timer.join()
