"""Streams of small models: steps, runs and calls give the same bits; states are values."""

import pickle

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError, InputTypeError
from tests.cases import bits
from tests.graphs import parse, random
from tests.streaming.streams import STATES, N, called, check


# ------------------------------------------------------------------------------------------------ small graphs
def test_small_graph(model, way):
    fixed = {"rate": np.array(16000)}
    frames = {"x": random(0, N, 3, 5)}
    for rate in (16000, 8000):
        fixed = {"rate": np.array(rate)}
        stream = model.stream(**fixed)
        assert stream.states == STATES and stream.inputs == ["x"] and stream.outputs == ["y"]
        check(model, stream, frames, fixed)
    first, second = (model.stream(rate=rate).run(frames) for rate in (16000, 8000))
    assert not np.array_equal(first, second)


def test_values_that_decide_the_plan_may_change(model, way):
    x, rates = random(1, N, 2, 3), np.array([16000, 16000, 8000, 16000, 8000, 8000])
    stream = model.stream()
    stepped = [stream.step(x=x[i], rate=rates[i].copy()) for i in range(N)]
    state = {"s": np.zeros((2, 3), np.float32), "k": np.zeros(2, np.int64)}
    expected, state = called(model, stream, {"x": x, "rate": rates}, {}, state)
    assert bits(stepped) == bits(expected[0]) and bits(stream.state.values()) == bits(state.values())
    for begun in (False, True):
        stream.reset()
        if begun:
            stream.step(x=x[0], rate=16000)
            stream.state = None
        assert bits([stream.run(x=x, rate=rates)]) == bits(expected)
        assert bits(stream.state.values()) == bits(state.values())
    same = stream.run(x=x, rate=8000)  # without the axis of frames: the same for all
    other = model.stream(stream.state | dict(state))
    assert bits([same]) == bits([other.run(x=x, rate=np.full(N, 8000))])


def test_instruction_sets(denoiser, isa):
    check(denoiser, denoiser.stream(), {"bands": random(0, N, 3, 22)}, {})


def test_native(denoiser):
    stream = denoiser.stream()
    stream.step(bands=random(0, 1, 22))
    assert stream._runner is not None


def test_any_strides_of_frames(denoiser, way):
    audio = random(0, 200)
    windows = np.lib.stride_tricks.sliding_window_view(audio, 22)[::10, None]
    plain = denoiser.stream().run(bands=np.ascontiguousarray(windows))
    assert bits([denoiser.stream().run(bands=windows)]) == bits([plain])
    backwards = denoiser.stream().run(bands=windows[::-1])
    assert bits([backwards[0]]) == bits([denoiser.stream().step(bands=windows[-1])])
    swapped = np.asfortranarray(random(1, 4, 3, 22))
    assert bits([denoiser.stream().run(bands=swapped)]) == bits([denoiser.stream().run(bands=swapped.copy(order="C"))])
    assert bits([denoiser.stream().step(bands=swapped[0])]) == bits([denoiser.stream().step(bands=swapped[0].copy())])
    assert bits([denoiser.stream().step(bands=swapped[0].tolist())]) == bits([denoiser.stream().step(bands=swapped[0])])


def test_out(denoiser, model, way):
    x = random(0, N, 3, 22)
    expected, stream = denoiser.stream().run(bands=x), denoiser.stream()
    whole, one = np.full_like(expected, np.nan), np.full_like(expected[0], np.nan)
    assert stream.run(bands=x, out=whole) is whole and bits([whole]) == bits([expected])
    stream.reset()
    for i in range(N):
        assert stream.step(bands=x[i], out=one) is one and bits([one]) == bits([expected[i]])
    stream.reset()
    named = {"gains": one}
    for i in range(N):
        assert stream.step({"bands": x[i]}, out=named) is named and bits([one]) == bits([expected[i]])
    before = stream.state
    for wrong in (
        one[:2],
        one.T,
        one.astype(np.float64),
        {"y": one},
        {},
        [one],
        one[::-1],
        np.broadcast_to(one, (3, 22)),
        {"gains": one, "new_state": one},
    ):
        with pytest.raises((InputError, InputTypeError), match="out"):
            stream.step(bands=x[0], out=wrong)
        with pytest.raises((InputError, InputTypeError), match="out"):
            stream.run(bands=x, out=wrong)
        assert bits(stream.state.values()) == bits(before.values())


def test_out_is_no_input(denoiser):
    stream, x = denoiser.stream(), random(0, 3, 22)
    stream.step(bands=x)
    before = stream.state
    with pytest.raises(InputError, match="shares memory"):
        stream.step(bands=x, out=x)
    assert bits(stream.state.values()) == bits(before.values())


def test_several_results():
    text = """g (float[b,3] x, float[b,3] h) => (float[b,3] y, float[b,3] z, float[b,3] hn) {
        hn = Tanh (h)  y = Add (x, h)  z = Sub (x, h) }"""
    stream = rnnfast.load(parse(text)).stream({"h": np.full((1, 3), 2, np.float32)})
    x = random(0, 1, 3)
    results = stream.step(x=x)
    assert list(results) == ["y", "z"] and np.array_equal(results.y, x + 2) and np.array_equal(results["z"], x - 2)
    with pytest.raises(InputTypeError, match="out is ndarray, expected a mapping"):
        stream.step(x=x, out=x.copy())
    out = np.empty((1, 3), np.float32)
    with pytest.raises(InputError, match="shares memory with an input or another output"):
        stream.step(x=x, out={"y": out, "z": out})


# ------------------------------------------------------------------------------------------------ state
def test_state_is_a_value(denoiser, way):
    x, stream = random(0, N, 3, 22), denoiser.stream()
    assert stream.state is None  # the batch is not known
    stream.run(bands=x[:3])
    state = stream.state
    kept = {name: value.copy() for name, value in state.items()}
    rest = stream.run(bands=x[3:])
    assert bits(state.values()) == bits(kept.values())  # a copy
    copy = pickle.loads(pickle.dumps(state))
    for other in (denoiser.stream(copy), denoiser.stream(), stream):
        other.state = copy
        copy["state"][:] += 0  # whatever is done to it
        assert bits([other.run(bands=x[3:])]) == bits([rest])
    begun = denoiser.stream(state)
    begun.run(bands=x)
    begun.reset()
    state["state"][:] = 9  # it was copied
    assert bits([begun.run(bands=x[3:])]) == bits([rest])
    stream.state = None
    assert not stream.state["state"].any() and bits([stream.run(bands=x[:3])]) != bits([rest])


def test_reset_lets_another_shape_begin(denoiser, way):
    stream = denoiser.stream()
    assert stream.step(bands=random(0, 3, 22)).shape == (3, 22)
    stream.reset()
    assert stream.step(bands=random(0, 2, 22)).shape == (2, 22)


def test_no_frames(denoiser, way):
    stream = denoiser.stream()
    assert stream.run(bands=np.empty((0, 3, 22), np.float32)).shape == (0, 3, 22) and stream.state is None
    stream.step(bands=random(0, 1, 22))
    before = stream.state
    assert stream.run(bands=np.empty((0, 1, 22), np.float32)).shape == (0, 1, 22)
    assert bits(stream.state.values()) == bits(before.values())


def test_initial_state_of_unknown_shape():
    stream = rnnfast.load(
        parse(
            "g (float[1,t] x, float[p,q] h) => (float y, float[p,q] hn) "
            "{ hn = Tanh (h)  y = ReduceSum <keepdims = 0> (x) }"
        )
    ).stream()
    with pytest.raises(InputError, match="does not settle: give the initial state"):
        stream.step(x=random(0, 1, 4))
    stream.state = {"h": random(1, 2, 2)}
    stream.step(x=random(0, 1, 4))
