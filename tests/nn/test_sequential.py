"""Sequential as a list of layers, and the sizes that it refuses when it is made."""

import copy
import pickle

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError

LAYERS = [nn.Linear(3, 4, rng=1), nn.Tanh(), nn.Linear(4, 2, rng=2)]
X = np.random.default_rng(3).uniform(-1, 1, (5, 3)).astype(np.float32)


def test_a_list_and_its_members():
    net = nn.Sequential(*LAYERS)
    for other in (
        nn.Sequential(LAYERS),
        nn.Sequential(tuple(LAYERS)),
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
    ):
        assert repr(other) == repr(net) and np.array_equal(other(X), net(X)) and len(other) == 3
    assert list(net) == LAYERS and net[0] is LAYERS[0] and net[-1] is LAYERS[-1] and net[np.int64(1)] is LAYERS[1]
    assert isinstance(net[:2], nn.Sequential) and list(net[:2]) == LAYERS[:2]
    assert np.array_equal(net[1:](net[:1](X)), net(X))
    with pytest.raises(IndexError):
        net[3]
    with pytest.raises(TypeError):
        net["0"]
    empty = nn.Sequential()
    assert len(empty) == 0 and empty and np.array_equal(empty(X), X) and not list(nn.Sequential([]))


def test_a_list_beside_layers_is_refused():
    for layers in ((LAYERS, nn.Tanh()), ([LAYERS],), (3,), ([3],)):
        with pytest.raises(InputTypeError, match=r"Sequential: layer 0 is a (list|int), expected an nn.Module"):
            nn.Sequential(*layers)


class Own(nn.Module):
    """A layer of a user, of which nothing is known."""


@pytest.mark.parametrize(
    "layers, message",
    [
        ([nn.Linear(3, 4), nn.Linear(5, 2)], r"Linear\(5, 2\) takes 5 values, but Linear\(3, 4\) before it gives 4"),
        ([nn.Linear(3, 4), nn.Tanh(), nn.Dropout(), nn.Softmax(), nn.GRU(5, 2)], r"GRU\(5, 2\) takes 5 .* gives 4"),
        (
            [nn.GRU(3, 4, bidirectional=True), nn.Linear(4, 2)],
            r"Linear\(4, 2\) takes 4 .*bidirectional=True\) .* gives 8",
        ),
        ([nn.LSTM(3, 4, proj_size=2), nn.LayerNorm(4)], r"LayerNorm\(4\) takes 4 .* gives 2"),
        (
            [nn.Embedding(9, 4), nn.Sequential(nn.Tanh(), nn.Sequential(nn.GRU(5, 2)))],
            "GRU.* takes 5 .*Embedding.* gives 4",
        ),
        (
            [nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Conv1d(5, 2, 2)],
            r"Conv1d\(5, 2, 2\) takes 5 .*Conv1d\(3, 4, 2\).* gives 4",
        ),
        ([nn.Conv1d(3, 4, 2), nn.BatchNorm1d(5)], r"BatchNorm1d\(5\) takes 5 values, .* gives 4"),
        ([nn.Conv1d(3, 4, 2, channels_last=True), nn.GRU(3, 4)], r"GRU\(3, 4\) takes 3 values, .* gives 4"),
        ([nn.GRU(3, 4, return_sequences=False), nn.BatchNorm1d(3)], r"BatchNorm1d\(3\) takes 3 values, .* gives 4"),
        ([nn.BatchNorm1d(3, channels_last=True), nn.Linear(4, 4)], r"Linear\(4, 4\) takes 4 values, .* gives 3"),
        ([nn.LSTM(3, 4), nn.LSTMCell(4, 4)], "layer 1 is a LSTMCell, which takes one step, expected LSTM"),
    ],
)
def test_sizes_that_do_not_fit(layers, message):
    with pytest.raises(InputError, match=f"^Sequential: .*{message}"):
        nn.Sequential(layers)


@pytest.mark.parametrize(
    "layers, shape",
    [
        ([nn.Linear(3, 4), nn.BatchNorm1d(6), nn.Linear(4, 2)], (2, 6, 3)),  # channels and last axis are two axes
        ([nn.Linear(3, 4), nn.BatchNorm1d(4)], (2, 3)),
        ([nn.Conv1d(3, 4, 2), nn.Linear(7, 5), nn.Conv1d(4, 2, 2)], (2, 3, 8)),
        ([nn.Linear(8, 9), nn.Conv1d(3, 4, 3), nn.Linear(7, 5)], (2, 3, 8)),
        ([nn.Conv1d(3, 4, 2), nn.GRU(7, 2, batch_first=True)], (2, 3, 8)),
        ([nn.Conv1d(3, 4, 2), nn.Conv1d(7, 2, 2, channels_last=True), nn.Conv1d(3, 5, 1)], (2, 3, 8)),
        ([nn.GRU(3, 4, batch_first=True, return_sequences=False), nn.BatchNorm1d(4), nn.Linear(4, 2)], (2, 5, 3)),
    ],
    ids=str,
)
def test_sizes_that_fit(layers, shape):
    assert nn.Sequential(layers)(np.ones(shape, np.float32)).shape[0] == 2


def test_nothing_is_known_of_a_users_layer():
    assert len(nn.Sequential(nn.Linear(3, 4), Own(), nn.Linear(5, 2))) == 3
