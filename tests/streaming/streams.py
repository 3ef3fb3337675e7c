"""Streams compared with calls of their model, and how closed and busy streams refuse use."""

import pickle
import threading

import numpy as np
import pytest

from rnnfast.errors import ClosedError, InputError
from tests.cases import bits

N = 6

# A float and an integer state, a result besides, and a rate whose value decides the plan.
GRAPH = """g (float[b,n] x, float[b,n] s, int64[2] k, int64 rate) => (float[b,n] y, float[b,n] s_out, int64[2] k_out) {
    usual = Constant <value = int64 {16000}> ()
    is = Equal (rate, usual)
    f = If (is) < then_branch = t () => (float[b,n] ft) { ft = Add (x, s) },
                  else_branch = e () => (float[b,n] fe) { fe = Sub (x, s) } >
    s_out = Tanh (f)
    y = Mul (f, x)
    k_out = Add (k, rate)
}"""
STATES = {"s": "s_out", "k": "k_out"}


def frames_of(rng, model, stream, sizes):
    """N frames of each input that changes."""
    frames = {}
    for name in stream.inputs:
        (type_,) = (v.type for v in model.inputs if v.name == name)
        shape = sizes if isinstance(sizes, tuple) and name == "input" else type_.shape
        shape = (N, *(sizes[n] if isinstance(n, str) else n for n in shape))
        frames[name] = (
            rng.standard_normal(shape) * 0.3 if type_.dtype == np.float32 else rng.integers(0, 30, shape)
        ).astype(type_.dtype)
    return frames


def called(model, stream, frames, fixed, state):
    """Results of all frames and the last state, by calls."""
    found, state = [], dict(state)
    for i in range(len(next(iter(frames.values())))):
        outputs = model({name: v[i] for name, v in frames.items()} | fixed | state)
        state = {name: outputs[after] for name, after in stream.states.items()}
        found.append([outputs[name] for name in stream.outputs])
    return [np.stack(part) for part in zip(*found)], state


def listed(results):
    return list(results.values()) if isinstance(results, dict) else [results]


def check(model, stream, frames, fixed):
    """Steps, runs of the whole and of parts, and calls."""
    stepped = [listed(stream.step({name: v[i] for name, v in frames.items()})) for i in range(N)]
    after = stream.state
    zeros = {name: np.zeros_like(value) for name, value in after.items()}
    expected, state = called(model, stream, frames, fixed, zeros)
    assert bits(np.stack(part) for part in zip(*stepped)) == bits(expected)
    assert bits(after.values()) == bits(state.values()) and any(value.any() for value in after.values())
    stream.reset()
    assert bits(listed(stream.run(frames))) == bits(expected) and bits(stream.state.values()) == bits(state.values())
    stream.reset()
    parts = [
        listed(stream.run({name: v[part] for name, v in frames.items()}))
        for part in (slice(0, 1), slice(1, 1), slice(1, 4), slice(4, N))
    ]
    assert bits(np.concatenate(part) for part in zip(*parts)) == bits(expected)
    assert bits(stream.state.values()) == bits(state.values())


def closed_uses(stream, step, frames):
    def assign():
        stream.state = None

    return [lambda: stream.step(step), lambda: stream.run(frames), lambda: stream.state, assign, stream.reset]


def check_closed(stream, step, frames):
    with stream as entered:
        assert entered is stream and not stream.closed
        stream.step(step)
    stream.close()
    assert stream.closed
    for use in closed_uses(stream, step, frames):
        with pytest.raises(ClosedError, match="closed"):
            use()


def check_busy(stream, step, frames):
    """Check that a stream refuses every use, `close` too, while another thread is in a call."""
    stream.step(step)
    before = pickle.dumps(stream.state)
    entered, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=stream._lock.call, args=(lambda: entered.set() or go.wait(20),))
    thread.start()
    assert entered.wait(20)
    for use in [*closed_uses(stream, step, frames), stream.close]:
        with pytest.raises(InputError, match="in use by another thread"):
            use()
    go.set()
    thread.join()
    assert pickle.dumps(stream.state) == before
    stream.step(step)
