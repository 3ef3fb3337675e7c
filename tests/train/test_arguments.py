"""Arguments of `fit` and `evaluate` and networks that cannot be trained are refused."""

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from tests.train.helpers import GOOD, X, Y, tagger, uniform


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((X[:0], Y[:0]), {}, InputError, r"x: shape is \[0, 9\]: no example"),
        ((X, Y[:3]), {}, InputError, r"y: shape is \[3, 9\], expected 4 examples, as in x"),
        ((X, None), {}, InputTypeError, "y: got None, expected the targets"),
        ((3, Y), {}, InputError, "x: got a single number"),
        (
            (X, Y + 3),
            {},
            InputError,
            r"epoch 1, batch 1 of 1, step 1 \(examples .*\): target: \d at .*, expected 0 to 2",
        ),
        ((X, Y[:, :5]), {}, InputError, r"target: shape is \[4, 5\], expected \[4, 9\]"),
        ((X - 1, Y), {}, InputError, "x: -1 at .*, expected 0 to 5"),
        ((X, Y), {"lengths": [1, 2, 3]}, InputError, r"lengths: shape is \[3\], expected \[4\]"),
        ((X, Y), {"lengths": [1, 2, 3, 10]}, InputError, "lengths: 10 at row 3, expected 0 to 9"),
        ((X, Y), {"lengths": [0, 0, 0, 0]}, InputError, "mask: nothing is left"),
        ((X, Y), {"mask": np.ones((4, 8), bool)}, InputError, r"mask: shape is \[4, 8\], expected \[4, 9\], that of y"),
        ((X, Y), {"mask": np.ones((4, 9), complex)}, InputTypeError, "mask: dtype is complex128, expected bool"),
        ((X, Y), {"batch_size": 0}, InputError, "batch_size: 0 is less than 1"),
        ((X, Y), {"epochs": 0}, InputError, "epochs: 0 is less than 1"),
        ((X, Y), {"loss": 3}, InputTypeError, r"loss: got a int, expected a callable \(y, target, mask\)"),
        ((X, Y), {"loss": train.CrossEntropy}, InputTypeError, "loss: got the class CrossEntropy, expected a callable"),
        ((X, Y), {"loss": lambda y, t, mask: 1.0}, InputTypeError, r"step 1 .*: loss: gave a float, expected \(value"),
        ((X, Y), {"loss": lambda y, t, mask: (y, y)}, InputTypeError, "loss: gave a ndarray, expected a number"),
        ((X, Y), {"optimizer": 0.1}, InputTypeError, "optimizer: got a float, expected an Optimizer"),
        ((X, Y), {"optimizer": train.Adam}, InputTypeError, "optimizer: got the class Adam, expected an Optimizer"),
        ((X, Y), {"metrics": "acc"}, InputError, "metrics: 'acc' is none of accuracy, mae, mse, nor a callable"),
        ((X, Y), {"metrics": None}, InputTypeError, "metrics: got a NoneType, expected names and callables"),
        ((X, Y), {"metrics": [train.MAE]}, InputTypeError, "metrics: got the class MAE, expected a callable"),
        ((X, Y), {"metrics": ["accuracy", train.accuracy]}, InputError, "another value is called 'accuracy' already"),
        ((X, Y), {"validation_data": X}, InputTypeError, r"validation_data: got a ndarray, expected \(x, y\)"),
        ((X, Y), {"validation_data": (X, Y[:2])}, InputError, "validation_data: y: shape is"),
        ((X, Y), {"clip_norm": -1}, InputError, "clip_norm: -1, expected 0.0 to inf"),
        ((X, Y), {"resume": True}, InputError, "resume: needs checkpoint, a file"),
        ((X, Y), {"checkpoint_every": 2}, InputError, "checkpoint_every: needs checkpoint, a file"),
        ((X, Y), {"checkpoint": "/no/such/c"}, InputError, "'/no/such/c' is no file in a folder that exists"),
        ((X, Y), {"checkpoint": 3}, InputTypeError, "checkpoint: 3 is no path"),
        ((X, Y[:, 0]), {"tbptt": 3}, InputError, r"tbptt: x is of shape \[4, 9\], y of shape \[4\]"),
        ((X, Y), {"tbptt": 3, "mask": np.ones(4, bool)}, InputError, r"tbptt: mask has shape \[4\]"),
        ((X, Y), {"seed": "a"}, InputTypeError, "seed: 'a' is neither a seed nor a numpy Generator"),
    ],
)
def test_wrong_input(arguments, options, error, message):
    net = tagger()
    before = net.state_dict()
    with pytest.raises(error, match=message):
        net.fit(*arguments, **GOOD | options)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_input_of_validation_and_evaluation():
    with pytest.raises(InputError, match=r"^validation_data: target: \d at .*, expected 0 to 2"):
        tagger().fit(X, Y, validation_data=(X, Y + 3), **GOOD)
    with pytest.raises(InputTypeError, match="loss: got the class MSE"):
        tagger().evaluate(X, Y, loss=train.MSE)


def test_networks_that_do_not_fit():
    with pytest.raises(InputError, match=r"LSTM\(5, 7\): batch_first is False, expected True: examples lie along"):
        nn.Sequential(nn.Embedding(6, 5), nn.LSTM(5, 7)).fit(X, Y, **GOOD)
    with pytest.raises(InputError, match=r"tbptt: LSTM\(5, 7.*\) begins at the end of a sequence"):
        tagger(reverse=True).fit(X, Y, tbptt=3, **GOOD)
    with pytest.raises(InputError, match="tbptt: a recurrent layer has return_sequences=False"):
        nn.GRU(6, 3, batch_first=True, return_sequences=False).fit(X, Y, tbptt=3, **GOOD)
    with pytest.raises(InputError, match=r"Tanh\(\) has no parameters to train"):
        nn.Tanh().fit(uniform(np.random.default_rng(1), 3, 2), np.array([0, 1, 0]), **GOOD)
    shared = nn.Linear(3, 3, rng=1)
    with pytest.raises(UnsupportedError, match=r"^Linear\(3, 3\) is in Sequential\(.*\) more than once"):
        nn.Sequential(nn.Embedding(6, 3), shared, nn.Sequential(nn.Tanh(), shared)).fit(X, Y, **GOOD)
    used, other = train.Adam(), train.Adam()
    nn.Embedding(6, 3).fit(X, Y, **GOOD | {"optimizer": other})
    used.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="Adam: got 607 values, expected 18, as before"):
        tagger().fit(X, Y, **GOOD | {"optimizer": used})
