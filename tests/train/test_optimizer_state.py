"""The state of an optimizer belongs to one network; another begins anew. What is copied or handed out is apart."""

import copy
import gc
import pickle

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError

OPTIMIZERS = {
    "SGD": lambda: train.SGD(0.1, momentum=0.9),
    "SGD, schedule": lambda: train.SGD(train.ExponentialDecay(0.1, 0.5, 2)),
    "RMSprop": lambda: train.RMSprop(momentum=0.5),
    "Adam": train.Adam,
    "AdamW": train.AdamW,
}
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2)
Y = X[:, :1] * 2


def network(seed=0):
    return nn.Sequential(nn.Linear(2, 3, rng=seed), nn.Tanh(), nn.Linear(3, 1, rng=seed + 1))


def fitted(net, optimizer, **options):
    net.fit(X, Y, loss=train.MSE(), optimizer=optimizer, epochs=3, batch_size=4, seed=0, verbose=False, **options)
    return np.concatenate([a.ravel() for a in net.state_dict().values()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_network_begins_anew(name):
    """The folds of a cross-validation with one optimizer have the bits of those with an optimizer each."""
    shared = OPTIMIZERS[name]()
    nets = [network(seed) for seed in (0, 0, 5)]  # equal networks are two networks
    for net, seed in zip(nets, (0, 0, 5)):
        np.testing.assert_array_equal(fitted(net, shared), fitted(network(seed), OPTIMIZERS[name]()))
        assert shared.steps == 9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_network_of_the_place_of_a_dead_one(name):
    shared = OPTIMIZERS[name]()
    expected = fitted(network(), OPTIMIZERS[name]())
    for _ in range(5):
        np.testing.assert_array_equal(fitted(network(), shared), expected)
        gc.collect()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_networks_in_turn_and_of_other_sizes(name):
    shared, other = OPTIMIZERS[name](), nn.Linear(2, 1, rng=3)
    first, second = network(), network(7)
    for net in (first, second, first, other, first):
        again = copy.deepcopy(net)
        np.testing.assert_array_equal(fitted(net, shared), fitted(again, OPTIMIZERS[name]()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_network_continues(name):
    net, optimizer = network(), OPTIMIZERS[name]()
    fitted(net, optimizer)
    net.load_state_dict(net.state_dict())
    before = optimizer.state_dict()
    fitted(net, optimizer)
    assert optimizer.steps == before["steps"] + 9


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), "state"])
def test_a_copy_continues_with_the_next_network(name, duplicate):
    net, optimizer = network(), OPTIMIZERS[name]()
    fitted(net, optimizer)
    if duplicate == "state":
        again = OPTIMIZERS[name]()
        again.load_state_dict(optimizer.state_dict())
    else:
        again = duplicate(optimizer)
    twin = copy.deepcopy(net)
    np.testing.assert_array_equal(fitted(net, optimizer), fitted(twin, again))
    assert again.steps == optimizer.steps == 18


def test_copies_share_nothing():
    net, optimizer = network(), train.Adam()
    fitted(net, optimizer)
    before = optimizer.state_dict()
    shallow = copy.copy(optimizer)
    fitted(network(9), shallow)
    optimizer.state_dict()["mean"][...] = 7
    given = {"steps": 3, "mean": np.ones(13, np.float32), "square": np.ones(13, np.float32)}
    shallow.load_state_dict(given)
    given["mean"][...] = 9
    assert shallow.state_dict()["mean"].max() == 1
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_fit_that_is_refused_leaves_the_state():
    net, optimizer = network(), train.Adam()
    fitted(net, optimizer)
    for options in ({"epochs": 0}, {"patience": 0}, {"resume": True}, {"checkpoint": "missing/folder/file"}):
        with pytest.raises(InputError):
            network(4).fit(X, Y, loss=train.MSE(), optimizer=optimizer, verbose=False, **options)
    assert optimizer.steps == 9
