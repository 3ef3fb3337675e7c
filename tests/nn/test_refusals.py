"""Wrong calls and wrong constructor arguments of layers are refused by name."""

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError

X = np.zeros((4, 3, 5), np.float32)
H = np.zeros((1, 3, 7), np.float32)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"x": X[:, :, :4]},
            InputError,
            r"x: shape is \[4, 3, 4\], expected \[T, B, 5\] or, without a batch, \[T, 5\]",
        ),
        ({"x": X[0, 0]}, InputError, r"x: shape is \[5\]"),
        ({"x": X.astype(int)}, InputTypeError, "x: dtype is int64, expected float32"),
        ({"x": X.astype(complex)}, InputTypeError, "x: dtype is complex128, expected float32"),
        ({"x": X.astype(float) + 1e39}, InputError, "x: holds numbers beyond the range of float32"),
        ({"x": [X[:, 0], X[:3, 1]]}, InputError, r"x: .* its members have different lengths; .* lengths=, or a packed"),
        ({"x": "abc"}, InputTypeError, "x: dtype is <U3"),
        ({"x": X, "hx": (H[:, :2], H)}, InputError, r"h0: shape is \[1, 2, 7\], expected \[1, 3, 7\]"),
        ({"x": X, "hx": (H, H[:, :, :6])}, InputError, r"c0: shape is \[1, 3, 6\], expected \[1, 3, 7\]"),
        ({"x": X, "hx": (H, H.astype(int))}, InputTypeError, "c0: dtype is int64"),
        ({"x": X, "hx": H}, InputTypeError, r"hx: got a ndarray, expected \(h, c\)"),
        (
            {"x": X[:, 0], "hx": (H, H)},
            InputError,
            r"h0: shape is \[1, 3, 7\], expected \[layers \* directions, size\]",
        ),
        ({"x": X[:, 0], "lengths": [4]}, InputError, "lengths: x has no batch axis"),
        ({"x": X, "lengths": [4, 4]}, InputError, r"lengths: shape is \[2\], expected \[3\]"),
        ({"x": X, "lengths": [4, 5, 4]}, InputError, "lengths: 5 at row 1, expected 0 to 4"),
        ({"x": X, "lengths": [4, 4, -1]}, InputError, "lengths: -1 at row 2, expected 0 to 4"),
        ({"x": X, "lengths": [4.0, 4.0, np.nan]}, InputTypeError, "lengths: dtype is float64, expected integers"),
        ({"x": X, "lengths": [True, True, False]}, InputTypeError, "lengths: dtype is bool"),
        ({"x": X, "lengths": np.array([4, 2**64 - 1, 1], np.uint64)}, InputError, "at row 1, expected 0 to 4"),
    ],
)
def test_a_wrong_call_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.LSTM(5, 7)(**arguments)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: nn.LSTM(0, 7), InputError, "input_size: 0 is less than 1"),
        (lambda: nn.LSTM(5, 7.0), InputTypeError, "hidden_size: 7.0 is no integer"),
        (lambda: nn.LSTM(5, True), InputTypeError, "hidden_size: True is no integer"),
        (lambda: nn.LSTM(5, 7, 0), InputError, "num_layers: 0 is less than 1"),
        (lambda: nn.LSTM(5, 7, proj_size=7), InputError, "proj_size: 7, expected less than hidden_size = 7"),
        (lambda: nn.LSTM(5, 7, dropout=1.5), InputError, r"dropout: 1.5, expected 0.0 to 1.0"),
        (lambda: nn.LSTM(5, 7, dropout="a"), InputTypeError, "dropout: 'a' is no number"),
        (lambda: nn.LSTM(5, 7, merge="ave"), InputError, "merge: 'ave' is none of 'concat', 'sum', 'mul', 'average'"),
        (lambda: nn.LSTM(5, 7, merge="sum"), InputError, "merge: 'sum' needs bidirectional=True"),
        (lambda: nn.LSTM(5, 7, bidirectional=True, reverse=True), InputError, "reverse: a bidirectional layer"),
        (lambda: nn.LSTM(5, 7, matmul="mkl"), InputError, "matmul: 'mkl' is none of None, 'packed', 'blas'"),
        (lambda: nn.LSTM(5, 7, clip=float("nan")), InputError, "clip: nan, expected 0.0 to inf"),
        (lambda: nn.LSTM(5, 7, clip=0), InputError, "clip: 0, expected more than 0"),
        (lambda: nn.LSTM(5, 7, activations=["Tanh"]), InputError, "activations: got 1, expected 3 for each direction"),
        (lambda: nn.RNN(5, 7, activations=["Tan"]), UnsupportedError, "activation: 'Tan' is none of Relu, Tanh"),
        (lambda: nn.RNN(5, 7, activations=[3]), InputTypeError, "activation: 3 is neither a name nor"),
        (lambda: nn.RNN(5, 7, activations=[("Elu", "1", 0)]), InputTypeError, "Elu: alpha is '1', expected a number"),
        (lambda: nn.RNN(5, 7, activations=[("Elu", np.inf, 0)]), InputError, "Elu: alpha is inf, expected a finite"),
        (lambda: nn.RNN(5, 7, nonlinearity="elu"), InputError, "nonlinearity: 'elu' is none of 'tanh', 'relu'"),
        (lambda: nn.Linear(5, -1), InputError, "out_features: -1 is less than 1"),
        (
            lambda: nn.Embedding(5, 3, padding_idx=5),
            InputError,
            "padding_idx: 5, expected less than num_embeddings = 5",
        ),
        (lambda: nn.Sequential(nn.Tanh(), 3), InputTypeError, "Sequential: layer 1 is a int"),
        (lambda: nn.LSTM(2**40, 2**40), LimitError, r"LSTM\(1099511627776, 1099511627776\): weights of \d+ bytes"),
        (lambda: nn.LSTM(5, 7, 2**40), LimitError, "num_layers: 1099511627776 is more than the limit of 1024"),
        (lambda: nn.Linear(2**40, 1024), LimitError, "more than the limit of 68719476736"),
        (lambda: nn.Embedding(2**40, 2**40), LimitError, "more than the limit of 68719476736"),
        (lambda: nn.LSTM(5, 7, activations=5), InputTypeError, "activations: got 5, expected a list"),
        (lambda: nn.RNN(5, 7, activations="Tanh"), InputTypeError, "activations: got 'Tanh', expected a list"),
        (
            lambda: nn.RNN(5, 7, activations=[("Elu", 10**400, 0)]),
            InputError,
            "alpha is 1000+, expected a finite number",
        ),
        (lambda: nn.LSTM(5, 7, clip=10**400), InputError, "clip: 1000+, expected 0.0 to inf"),
        (lambda: nn.GRU(5, 7, rng="x"), InputTypeError, "rng: 'x' is neither a seed nor a numpy Generator"),
        (lambda: nn.Linear(5, 7, rng=-1), InputError, "rng: -1 is no seed"),
        (lambda: nn.LSTM(5, 7, bidirectional=True, merge=np.array(["sum", "mul"])), InputError, "is none of 'concat'"),
        (lambda: nn.LSTM(5, 7, bias=np.ones(2)), InputError, "bias: .* is none of False, True"),
        (lambda: nn.Module().summary(), UnsupportedError, "Module has no rows for a summary"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
