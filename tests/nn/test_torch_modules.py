"""Layers from torch modules: the same results, each option kept or refused by its name."""

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputTypeError, UnsupportedError
from rnnfast.nn.torch_modules import FORMS

torch = pytest.importorskip("torch")
TOLERANCE = 2e-6
"""Largest difference from torch in float32, relative to the largest value: a few roundings (6e-8 each) of two sums.
Measured: 4.1e-7."""

t = torch.nn
ROWS, CHANNELS = (3, 6, 5), (3, 4, 9)
# class -> modules, and the shape of their input
MODULES = {
    "BatchNorm1d": ([t.BatchNorm1d(4, eps=1e-2, momentum=0.3)], CHANNELS),
    "Conv1d": (
        [
            t.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
            t.Conv1d(4, 6, 4, padding="same", bias=False),
            t.Conv1d(4, 6, 2, padding="valid"),
        ],
        CHANNELS,
    ),
    "Dropout": ([t.Dropout(0.3), t.Dropout(0.3, inplace=True)], ROWS),
    "ELU": ([t.ELU(0.7, inplace=True)], ROWS),
    "Embedding": ([t.Embedding(9, 5, padding_idx=3)], None),
    "GRU": ([t.GRU(5, 7, 2, bidirectional=True, batch_first=True, dropout=0.2), t.GRU(5, 7, bias=False)], ROWS),
    "GRUCell": ([t.GRUCell(5, 7), t.GRUCell(5, 7, bias=False)], (3, 5)),
    "Hardsigmoid": ([t.Hardsigmoid()], ROWS),
    "Identity": ([t.Identity()], ROWS),
    "LSTM": ([t.LSTM(5, 7, 2, bidirectional=True, proj_size=3), t.LSTM(5, 7, batch_first=True)], ROWS),
    "LSTMCell": ([t.LSTMCell(5, 7)], (3, 5)),
    "LayerNorm": ([t.LayerNorm(5, eps=1e-2)], ROWS),
    "LeakyReLU": ([t.LeakyReLU(0.3)], ROWS),
    "Linear": ([t.Linear(5, 7), t.Linear(5, 7, bias=False)], ROWS),
    "RNN": ([t.RNN(5, 7, nonlinearity="relu"), t.RNN(5, 7, 2)], ROWS),
    "RNNCell": ([t.RNNCell(5, 7, nonlinearity="relu"), t.RNNCell(5, 7)], (3, 5)),
    "ReLU": ([t.ReLU(inplace=True)], ROWS),
    "Sigmoid": ([t.Sigmoid()], ROWS),
    "Softmax": ([t.Softmax(-1), t.Softmax(1)], ROWS),
    "Softplus": ([t.Softplus()], ROWS),
    "Softsign": ([t.Softsign()], ROWS),
    "Tanh": ([t.Tanh()], ROWS),
}


def first(result):
    while isinstance(result, tuple):
        result = result[0]
    return result


def agree(layer, module, x):
    with torch.no_grad():
        want = first(module.eval()(torch.tensor(x))).numpy()
    got = first(layer(x))
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def inputs(shape):
    rng = np.random.default_rng(1)
    return rng.integers(0, 9, (3, 4)) if shape is None else rng.uniform(-3, 3, shape).astype(np.float32)


def test_each_class_has_a_case():
    assert MODULES.keys() == FORMS.keys()


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    modules, shape = MODULES[name]
    for module in modules:
        for key, value in module.state_dict().items():
            if key in ("running_mean", "running_var"):
                value.copy_(torch.rand(value.shape) + 0.5)
        agree(nn.from_torch(module), module, inputs(shape))


def test_arguments_are_kept():
    assert repr(nn.from_torch(t.LSTM(5, 7, 2, dropout=0.3, proj_size=2))) == repr(
        nn.LSTM(5, 7, 2, dropout=0.3, proj_size=2)
    )
    assert nn.from_torch(t.Dropout(0.3)).p == 0.3 and nn.from_torch(t.Embedding(9, 5, padding_idx=3)).padding_idx == 3
    assert nn.from_torch(t.BatchNorm1d(4, momentum=0.3)).momentum == 0.3


def test_sequential():
    module = t.Sequential(
        t.Embedding(9, 5),
        t.Sequential(t.Linear(5, 6), t.ReLU(inplace=True), t.LayerNorm(6)),
        t.Identity(),
        t.Dropout(0.4),
        t.Linear(6, 3),
        t.Softmax(-1),
    )
    net = nn.from_torch(module)
    agree(net, module, inputs(None))
    assert list(net.state_dict()) == list(module.state_dict())
    assert len(net) == len(module) and len(net[1]) == 3
    named = t.Sequential()
    named.add_module("first", t.Linear(5, 6))
    named.add_module("second", t.Tanh())
    agree(nn.from_torch(named), named, inputs(ROWS))


def test_a_recurrent_layer_passes_on_its_output():
    lstm, linear = t.LSTM(5, 7, batch_first=True), t.Linear(7, 2)
    x = inputs(ROWS)
    with torch.no_grad():
        want = linear(lstm(torch.tensor(x))[0]).numpy()
    np.testing.assert_allclose(nn.from_torch(t.Sequential(lstm, linear))(x), want, rtol=0, atol=1e-6)


def test_training_goes_on():
    """A step of SGD changes the weights as torch's does."""
    module = t.Sequential(t.Linear(5, 6), t.BatchNorm1d(6), t.Tanh(), t.Linear(6, 1)).train()
    net, rng = nn.from_torch(module), np.random.default_rng(2)
    x, y = rng.uniform(-1, 1, (8, 5)).astype(np.float32), rng.uniform(-1, 1, (8, 1)).astype(np.float32)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    t.MSELoss()(module(torch.tensor(x)), torch.tensor(y)).backward()
    optimizer.step()
    from rnnfast import train

    net.fit(x, y, loss="mse", optimizer=train.SGD(0.1), batch_size=8)
    for name, array in net.state_dict().items():
        np.testing.assert_allclose(array, module.state_dict()[name].numpy(), rtol=1e-5, atol=1e-6)


def test_a_module_that_is_used_twice_is_one_layer():
    linear = t.Linear(5, 5)
    net = nn.from_torch(t.Sequential(linear, t.Tanh(), linear))
    assert net[0] is net[2] and len(net) == 3
    agree(net, t.Sequential(linear, t.Tanh(), linear), inputs(ROWS))


class Own(t.Linear):
    """A module of a user."""


def hooked():
    module = t.Linear(5, 7)
    module.register_forward_hook(lambda module, x, y: 2 * y)
    return module


def frozen():
    module = t.Linear(5, 7)
    module.weight.requires_grad_(False)
    return module


def tied():
    module = t.Sequential(t.Embedding(9, 5), t.Linear(5, 9, bias=False))
    module[1].weight = module[0].weight
    return module


def of_a_user():
    module = t.Tanh()
    module.scale = 3
    return module


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: t.GELU(), r"module \(GELU\): has no layer, expected torch's own Sequential, BatchNorm1d, "),
        (lambda: t.Sequential(t.Tanh(), t.Sequential(t.GELU())), r"1.0 \(GELU\): has no layer"),
        (lambda: Own(5, 7), r"module \(Own\): has no layer"),
        (lambda: t.ModuleList([t.Tanh()]), "ModuleList.: has no layer"),
        (lambda: t.utils.parametrizations.weight_norm(t.Linear(5, 7)), "ParametrizedLinear.: has no layer"),
        (lambda: t.Embedding(9, 5, max_norm=1.0), r"module \(Embedding\): max_norm is 1.0, which no layer has$"),
        (lambda: t.Embedding(9, 5, sparse=True), "sparse is True, which no layer has; inference=True lets"),
        (lambda: t.Embedding(9, 5, scale_grad_by_freq=True), "scale_grad_by_freq is True, .*; inference=True lets"),
        (lambda: t.LayerNorm((4, 5)), r"normalized_shape is \(4, 5\), which no layer has"),
        (lambda: t.LayerNorm(5, elementwise_affine=False), "elementwise_affine is False, which no layer has"),
        (lambda: t.LayerNorm(5, bias=False), "bias is False, which no layer has"),
        (lambda: t.BatchNorm1d(5, affine=False), "affine is False, which no layer has"),
        (lambda: t.BatchNorm1d(5, track_running_stats=False), "track_running_stats is False, which no layer has"),
        (lambda: t.BatchNorm1d(5, momentum=None), "momentum is None, which no layer has"),
        (lambda: t.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), "padding_mode is 'circular', which no layer"),
        (lambda: t.Softplus(beta=2), "beta is 2.*, which no layer has"),
        (lambda: t.Softplus(threshold=5), "threshold is 5.*, which no layer has"),
        (lambda: t.Softmax(), "dim is None, which no layer has"),
        (hooked, "module .Linear.: has forward hooks, which no layer has"),
        (frozen, "requires_grad of weight is False; inference=True lets"),
        (tied, r"1 \(Linear\): weight is the same weight as that of 0 \(Embedding\): weight; no layers share weights"),
        (of_a_user, r"module \(Tanh\): scale is 3, which no layer has"),
    ],
)
def test_refused(make, message):
    with pytest.raises(UnsupportedError, match=message):
        nn.from_torch(make())


def test_inference_alone():
    module = frozen()
    agree(nn.from_torch(module, inference=True), module, inputs(ROWS))
    module = t.Embedding(9, 5, sparse=True, scale_grad_by_freq=True)
    agree(nn.from_torch(module, inference=True), module, inputs(None))


def test_what_is_no_module():
    for value in (3, None, nn.Linear(5, 7), t.Linear):
        with pytest.raises(InputTypeError, match="module: got a .*, expected a torch.nn.Module"):
            nn.from_torch(value)
    with pytest.raises(InputTypeError, match="weight: dtype is float64, expected float32"):
        nn.from_torch(t.Linear(5, 7).double())
