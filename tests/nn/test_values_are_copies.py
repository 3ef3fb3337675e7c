"""No array that a layer hands out or takes in is one that it computes with."""

import copy
import pickle

import numpy as np
import pytest

from rnnfast import nn, train
from tests.nn.helpers import uniform

LAYERS = {
    "LSTM": lambda: nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True, rng=0),
    "GRU": lambda: nn.GRU(3, 4, batch_first=True, rng=0),
    "RNN": lambda: nn.RNN(3, 4, batch_first=True, rng=0),
    "Linear": lambda: nn.Linear(3, 4, rng=0),
    "LayerNorm": lambda: nn.LayerNorm(3),
    "Sequential": lambda: nn.Sequential(nn.GRU(3, 4, batch_first=True, rng=0), nn.Sequential(nn.Linear(4, 2, rng=1))),
}
X = uniform(np.random.default_rng(1), 2, 5, 3)


def signs(layer):
    """All that shows the weights: the bits of forward, backward, a pickle and the state dict."""
    y, _, saved = layer.forward(X, training=True)
    dx, _, gradients = layer.backward(np.ones_like(y), None, saved)
    return [y, dx, *gradients.values(), *layer.state_dict().values()], pickle.dumps(layer)


def assert_unchanged(layer, before):
    arrays, pickled = signs(layer)
    for now, then in zip(arrays, before[0], strict=True):
        np.testing.assert_array_equal(now, then)
    assert pickled == before[1]


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_handed_out_can_be_written_to(name):
    layer = LAYERS[name]()
    before = copy.deepcopy(signs(layer))
    state = layer.state_dict()
    for array in state.values():
        assert array.flags.writeable and array.flags.owndata
        array[...] = 7
    state.clear()
    assert_unchanged(layer, before)


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_of_torch_on_the_state_dict(name):
    torch = pytest.importorskip("torch")
    layer = LAYERS[name]()
    before = copy.deepcopy(signs(layer))
    for array in layer.state_dict().values():
        torch.from_numpy(array).add_(1)
    assert_unchanged(layer, before)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_taken_in_can_be_written_to(name):
    layer = LAYERS[name]()
    given = {name: array + 1 for name, array in layer.state_dict().items()}
    layer.load_state_dict(given)
    before = copy.deepcopy(signs(layer))
    for array in given.values():
        array[...] = 7
    assert_unchanged(layer, before)


@pytest.mark.parametrize("name", LAYERS)
def test_pickles_whose_arrays_lie_in_buffers_of_others(name):
    layer = LAYERS[name]()
    buffers = []
    data = pickle.dumps(layer, protocol=5, buffer_callback=buffers.append)
    given = [bytearray(buffer.raw()) for buffer in buffers]
    again = pickle.loads(data, buffers=given)
    before = copy.deepcopy(signs(again))
    for buffer in given:
        buffer[:] = bytes(len(buffer))
    assert_unchanged(again, before)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_of_layers_share_nothing_that_changes(name):
    layer = LAYERS[name]()
    others = [copy.copy(layer), copy.deepcopy(layer)]
    before = copy.deepcopy(signs(layer))
    for other in others:
        for array in other.state_dict().values():
            array[...] = 7
        if name != "Sequential":  # a shallow copy of a container has the same layers
            other.load_state_dict({key: np.zeros_like(a) for key, a in other.state_dict().items()})
    assert_unchanged(layer, before)


@pytest.mark.parametrize("name", LAYERS)
def test_training_leaves_what_was_handed_out(name):
    layer = LAYERS[name]()
    early = layer.state_dict()
    kept = copy.deepcopy(early)
    y = layer.forward(X)[0]
    layer.fit(X, np.zeros_like(y), loss=train.MSE(), optimizer=train.SGD(0.5), epochs=2, seed=0, verbose=False)
    for key, array in early.items():
        np.testing.assert_array_equal(array, kept[key])
    assert any((layer.state_dict()[key] != array).any() for key, array in early.items())


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_streams_and_pools_hand_out_copies(name):
    layer = getattr(nn, name)(3, 4, rng=0)
    x = X[0]
    expected = [np.array(y) for y in layer.stream().run(x)]
    stream, pool = layer.stream(), layer.pool(4)
    id_, other = pool.open(), pool.open()
    for frame, y in zip(x, expected):
        for state in (stream.state, pool.state(id_)):
            for array in [] if state is None else state if isinstance(state, tuple) else [state]:
                array[...] = 7
        frame = np.array(frame)
        results = [stream.step(frame), *pool.step({id_: frame, other: frame}).values()]
        for result in results:
            np.testing.assert_array_equal(result, y)
            result[...] = 7
        frame[...] = 7
