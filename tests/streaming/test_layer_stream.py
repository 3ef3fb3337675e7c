"""Streams of layers have the bits of the whole sequence, and refuse what does not fit."""

import pickle
import tracemalloc

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import Error, InputError
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests.cases import bits, type_options
from tests.graphs import random
from tests.streaming.streams import check_busy, check_closed

LAYERS = {
    "LSTM": lambda **o: nn.LSTM(5, 7, rng=0, **o),
    "GRU": lambda **o: nn.GRU(5, 7, rng=1, **o),
    "RNN": lambda **o: nn.RNN(5, 7, rng=2, **o),
    "stack": lambda **o: nn.LSTM(5, 9, 3, proj_size=3, rng=3, **o),
    "three GRUs": lambda **o: nn.GRU(5, 18, 3, clip=0.5, rng=4, **o),
    "blas": lambda **o: nn.LSTM(5, 7, 2, matmul="blas", rng=5, **o),
    "Sequential": lambda **o: nn.Sequential(
        nn.Linear(5, 6, rng=6),
        nn.LSTM(6, 8, 2, rng=7, **o),
        nn.Tanh(),
        nn.Sequential(nn.GRU(8, 4, rng=8, **o)),
        nn.Linear(4, 2, rng=9),
    ),
} | {
    key: lambda key=key, **o: nn.Sequential(
        nn.Linear(5, 6, rng=6), nn.LSTM(6, 19, 2, rng=7, **o), nn.GRU(19, 4, rng=8, **o), nn.RNN(4, 2, rng=9, **o)
    ).quantized(**type_options(key))
    for key in WEIGHT_TYPES
}


def flat(state):
    return [a for part in state for a in flat(part)] if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("batch", [(), (1,), (3,)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, batch_first, batch):
    layer, x = LAYERS[name](batch_first=batch_first), random(0, 8, *batch, 5)
    swap = batch_first and batch
    called = layer(x.swapaxes(0, 1) if swap else x)
    y, state = called if isinstance(called, tuple) else (called, None)
    y = y.swapaxes(0, 1) if swap else y
    same = np.testing.assert_array_equal if name != "blas" else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    stream = layer.stream()
    assert stream.state is None
    same(np.stack([stream.step(frame) for frame in x]), y)
    after = stream.state
    for got, expected in zip(flat(after), flat(after if state is None else state), strict=True):
        same(got, expected)
    stream.reset()
    parts = [stream.run(x[:3]), stream.run(x[3:3]), stream.step(x[3])[None]]
    other = layer.stream(pickle.loads(pickle.dumps(stream.state)))
    same(np.concatenate([*parts, stream.run(x[4:])]), y)
    same(np.concatenate([*parts, *(other.step(frame)[None] for frame in x[4:])]), y)
    one, whole = np.empty_like(y[0]), np.empty(y.shape, np.float32)
    stream.reset()
    assert stream.run(x, out=whole) is whole
    same(whole, y)
    stream.state = None if batch else stream.state
    stream.reset()
    for frame, expected in zip(x, y):
        assert stream.step(frame, out=one) is one
        same(one, expected)


def test_layer_instruction_sets(isa):
    layer, x = nn.GRU(5, 21, 2, rng=0), random(0, 6, 2, 5)
    stream = layer.stream()
    assert bits([np.stack([stream.step(frame) for frame in x])]) == bits([layer(x)[0]])


@pytest.mark.parametrize("name", LAYERS)
def test_layer_errors(name):
    layer, x = LAYERS[name](), random(0, 4, 3, 5)
    stream = layer.stream()
    stream.step(x[0])
    before = stream.state
    wrong = [x[0, :2], x[0, 0], x[0, :, :4], x, np.float32(1), x[0].astype(int), "a", None]
    for value in wrong:
        with pytest.raises(Error):
            stream.step(value)
    for value in (x[:, :2], x[0], x[..., :4], x[None], np.float32(1), x.astype(int)):
        with pytest.raises(Error):
            stream.run(value)
    for out in (np.empty((2, 7), np.float32), [1], np.empty((3, 9, 7), np.float32)):
        with pytest.raises(Error):
            stream.step(x[0], out=out)
    for state in (1, (1,), random(0, 1, 1, 1), (random(0, 2, 3, 4),) * 2, ((random(0, 1, 2, 7),) * 2,)):
        with pytest.raises(Error):
            stream.state = state
    assert bits(flat(stream.state)) == bits(flat(before))
    check_closed(layer.stream(), x[0], x)
    check_busy(layer.stream(), x[0], x)


def test_layers_that_run_backwards():
    for layer in (
        nn.LSTM(3, 4, bidirectional=True),
        nn.GRU(3, 4, reverse=True),
        nn.Sequential(nn.RNN(3, 4, reverse=True)),
    ):
        with pytest.raises(InputError, match="begins at the end of a sequence"):
            layer.stream()


def test_weights_that_are_loaded_while_a_stream_goes_on():
    layer, other, x = nn.GRU(5, 7, rng=0), nn.GRU(5, 7, rng=1), random(0, 2, 1, 5)
    stream = layer.stream()
    stream.step(x[0])
    state = stream.state
    layer.load_state_dict(other.state_dict())
    assert bits([stream.step(x[1])]) == bits([other(x[1:], state)[0][0]])


NETWORKS = {
    "LSTM, Linear, ReLU": lambda: nn.Sequential(nn.LSTM(33, 50, rng=1), nn.Linear(50, 70, rng=2), nn.ReLU()),
    "Linear, Tanh, GRU, LayerNorm, GRU": lambda: nn.Sequential(
        nn.Linear(33, 20, rng=1), nn.Tanh(), nn.GRU(20, 50, rng=2), nn.LayerNorm(50), nn.GRU(50, 70, rng=3)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_a_sequential_has_the_bits_of_a_call(name):
    """With and without `out`, and with a new weight in between."""
    net, x = NETWORKS[name](), random(5, 12, 3, 33)
    expected, alone = net(x), net.stream()
    out = np.empty(expected.shape[1:], np.float32)
    for t in range(12):
        y = alone.step(x[t], out=out) if t % 3 else alone.step(x[t])
        assert y is out or t % 3 == 0
        assert bits([y]) == bits([expected[t]])
    before = alone.state
    net.load_state_dict({key: value * np.float32(0.5) for key, value in net.state_dict().items()})
    other = net.stream(before)
    for t in range(3):
        assert bits([alone.step(x[t], out=out)]) == bits([other.step(x[t])])


def test_a_step_of_a_sequential_allocates_no_results():
    """With `out` a step writes to arrays that the stream keeps for what lies between its layers."""
    stream, x = NETWORKS["LSTM, Linear, ReLU"]().stream(), random(5, 256, 33)
    out = np.empty((256, 70), np.float32)
    for _ in range(3):
        stream.step(x, out=out)
    tracemalloc.start()
    try:
        for _ in range(20):
            stream.step(x, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 4


def test_a_step_of_a_sequential_that_fails_is_taken_back(monkeypatch):
    """A layer that raises leaves the states of the layers before it as they were."""
    net, x = NETWORKS["LSTM, Linear, ReLU"](), random(5, 6, 3, 33)
    stream, out = net.stream(), np.empty((3, 70), np.float32)
    for t in range(3):
        stream.step(x[t])
    before = stream.state

    def fail(self, x, out):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "call_into", fail)
        for _ in range(3):
            with pytest.raises(MemoryError):
                stream.step(x[3], out=out)
    assert bits(stream.state[0]) == bits(before[0])
    assert bits([stream.step(x[3], out=out)]) == bits([net.stream(before).step(x[3])])


class Doubled(nn.Linear):
    """A user's layer that overrides the call alone."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Tap(nn.Module):
    """A user's layer that keeps what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)
        return x


def test_layers_of_a_user_are_called_once_a_step_with_arrays_of_their_own():
    tap, x = Tap(), random(5, 6, 3, 33)
    net = nn.Sequential(nn.LSTM(33, 50, rng=1), tap, Doubled(50, 70, rng=2))
    stream, out = net.stream(), np.empty((3, 70), np.float32)
    steps = [stream.step(frame, out=out).copy() for frame in x]
    assert len(tap.seen) == 6
    seen = [array.copy() for array in tap.seen]
    assert bits(steps) == bits(list(net(x)))
    assert bits(tap.seen[:6]) == bits(seen) == bits(list(tap.seen[6]))


@pytest.mark.parametrize("name", LAYERS)
def test_states_are_zeros_of_the_batch_after_none(name):
    """Setting None after a step sets zeros, which can be read and replaced."""
    layer, x = LAYERS[name](), random(3, 4, 2, 5)
    stream = layer.stream()
    first = stream.step(x[0]).copy()
    after = stream.state
    stream.state = None
    assert all(not array.any() and array.shape[1] == 2 for array in flat(stream.state))
    assert bits([stream.step(x[0])]) == bits([first])
    assert bits(flat(stream.state)) == bits(flat(after))
    stream.state = None
    stream.state = after
    assert bits(flat(stream.state)) == bits(flat(after))


def test_a_first_step_that_fails_leaves_the_batch_open(monkeypatch):
    net, x = nn.Sequential(nn.GRU(33, 50, rng=1), nn.Linear(50, 70, rng=2)), random(5, 6, 1, 33)
    stream = net.stream(net.layers[0](x)[1:])
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "__call__", lambda self, x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream.step(x[0])
    stream.state = (np.ones((1, 4, 50), np.float32),)
    assert stream.state[0].shape == (1, 4, 50)
    assert stream.step(random(6, 4, 33)).shape == (4, 70)
