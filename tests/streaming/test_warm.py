"""Pools that make their plans ahead: later steps make none, and nothing else changes."""

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError
from rnnfast.streaming import fixed_input_group, layer_pool
from tests import graphs
from tests.graphs import parse

NATIVE = "g (float[n,5] x, float[n,5] s) => (float[n,5] y, float[n,5] s_out) { s_out = Add (x, s)  y = Tanh (s_out) }"


def frame(seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((1, 5)).astype(np.float32)}


def no_more_plans(monkeypatch):
    def fails(*_):
        raise AssertionError("a plan was made")

    monkeypatch.setattr(fixed_input_group, "trace_call", fails)
    monkeypatch.setattr(layer_pool, "step_program", fails)


@pytest.mark.parametrize("most", [1, 5, 70])
def test_a_model(most, monkeypatch):
    model = graphs.load(parse(NATIVE))
    pool = model.pool(most, states={"s": "s_out"})
    early = pool.open()
    pool.warm(frame())
    assert len(pool) == 1 and not np.any(pool.state(early)["s"])
    no_more_plans(monkeypatch)
    streams = [early, *(pool.open() for _ in range(most - 1))]
    alone = [model.stream(states={"s": "s_out"}) for _ in streams]
    for count in range(1, most + 1):
        y = pool.step({stream: frame(k) for k, stream in enumerate(streams[:count])})
        for k in range(count):
            assert np.array_equal(y[streams[k]], alone[k].step(frame(k)))


def test_streams_with_other_fixed_inputs(monkeypatch):
    text = """g (float[n,5] x, float[n,5] s, float k) => (float[n,5] y, float[n,5] s_out) {
    t = Mul (x, k)  s_out = Add (t, s)  y = Tanh (s_out) }"""
    model = graphs.load(parse(text))
    pool, two, three = model.pool(9, states={"s": "s_out"}), np.float32(2), np.float32(3)
    pool.warm(frame(), k=two)
    pool.open(k=three)  # its plans are not made
    pool.warm(frame(), k=two)
    streams = [pool.open(k=two) for _ in range(8)]
    no_more_plans(monkeypatch)
    y = pool.step({stream: frame(k) for k, stream in enumerate(streams)})
    for k, stream in enumerate(streams):
        assert np.array_equal(y[stream], model(frame(k), s=np.zeros((1, 5), np.float32), k=two).y)


def test_a_layer(monkeypatch):
    net = nn.Sequential(nn.Linear(5, 4, rng=1), nn.LSTM(4, 3, rng=2), nn.GRU(3, 2, rng=3))
    pool = net.pool(20)
    pool.warm(np.zeros(5, np.float32))
    no_more_plans(monkeypatch)
    streams = [pool.open() for _ in range(20)]
    for count in range(1, 21):
        pool.step({stream: frame(k)["x"][0] for k, stream in enumerate(streams[:count])})


def test_a_frame_that_does_not_fit():
    """It settles nothing."""
    pool = graphs.load(parse(NATIVE)).pool(3, states={"s": "s_out"})
    for wrong in ({"x": np.zeros((1, 4), np.float32)}, {"z": np.zeros((1, 5), np.float32)}):
        with pytest.raises(InputError):
            pool.warm(wrong)
    with pytest.raises(rnnfast.Error, match="k"):
        pool.warm(frame(), k=1)
    pool.warm(frame())
    with pytest.raises(InputError):
        nn.GRU(5, 4, rng=0).pool(3).warm(np.zeros(5, np.float32), k=1)
