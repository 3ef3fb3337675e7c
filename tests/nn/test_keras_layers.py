"""Layers from Keras's: the same results, each option kept or refused by its name."""

import os

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputTypeError, UnsupportedError
from rnnfast.nn.keras_layers import ACTIVATIONS, FORMS

pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", "3")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

TOLERANCE = 4e-6
"""Largest difference from Keras in float32, relative to the largest value: a few roundings (6e-8 each) of two sums, in
each of six steps. Measured: 9.2e-7."""

L = keras.layers
ROWS = (3, 6, 5)
CELLS = {"LSTM": L.LSTM, "GRU": L.GRU, "SimpleRNN": L.SimpleRNN}
# class -> layers
LAYERS = {
    "Activation": [lambda name=name: L.Activation(name) for name in ACTIVATIONS],
    "BatchNormalization": [lambda: L.BatchNormalization(epsilon=1e-2)],
    "Bidirectional": [
        *(
            lambda m=m: L.Bidirectional(L.GRU(7, return_sequences=True), merge_mode=m)
            for m in ("concat", "sum", "mul", "ave")
        ),
        lambda: L.Bidirectional(L.LSTM(7, use_bias=False)),
        lambda: L.Bidirectional(L.SimpleRNN(7, return_sequences=True, return_state=False)),
        lambda: L.Bidirectional(L.GRU(7, reset_after=False)),
    ],
    "Conv1D": [
        lambda: L.Conv1D(6, 3),
        lambda: L.Conv1D(6, 4, padding="same", activation="relu"),
        lambda: L.Conv1D(5, 3, padding="causal", dilation_rate=2, groups=5, use_bias=False),
        lambda: L.Conv1D(6, 2, strides=2),
        lambda: L.Conv1D(6, 2, data_format="channels_first"),
    ],
    "Dense": [
        lambda: L.Dense(7),
        lambda: L.Dense(7, "softmax", use_bias=False),
        lambda: L.Dense(7, activation=L.LeakyReLU(0.3)),
        lambda: L.Dense(7, activation=keras.activations.tanh),
    ],
    "Dropout": [lambda: L.Dropout(0.3)],
    "ELU": [lambda: L.ELU(0.7)],
    "Embedding": [lambda: L.Embedding(9, 5)],
    "LayerNormalization": [lambda: L.LayerNormalization(epsilon=1e-2), lambda: L.LayerNormalization(axis=[-1])],
    "LeakyReLU": [lambda: L.LeakyReLU(0.4)],
    "ReLU": [lambda: L.ReLU(), lambda: L.ReLU(negative_slope=0.3)],
    "Sequential": [lambda: keras.Sequential([L.Dense(4), keras.Sequential([L.Dense(3, "tanh")])])],
    "Softmax": [lambda: L.Softmax(), lambda: L.Softmax(axis=1)],
    "TimeDistributed": [lambda: L.TimeDistributed(L.Dense(4, "tanh")), lambda: L.TimeDistributed(L.ReLU())],
    **{
        name: [
            lambda cell=cell: cell(7),
            lambda cell=cell: cell(7, return_sequences=True, unroll=True),
            lambda cell=cell: cell(7, go_backwards=True),
            lambda cell=cell: cell(7, activation="softsign", use_bias=False, return_sequences=True),
            *(
                lambda cell=cell, name=name: cell(7, activation=name)
                for name in ("linear", "relu", "elu", "leaky_relu")
            ),
        ]
        for name, cell in CELLS.items()
    },
}
LAYERS["GRU"] += [lambda: L.GRU(7, reset_after=False, recurrent_activation="hard_sigmoid")]
LAYERS["LSTM"] += [lambda: L.LSTM(7, recurrent_activation="hard_sigmoid", activation="hard_sigmoid")]


def random_weights(layer):
    rng = np.random.default_rng(2)
    layer.set_weights([rng.uniform(0.2, 0.6, w.shape) * rng.choice([-1, 1], w.shape) for w in layer.get_weights()])


def built(layer, x):
    layer(x)
    random_weights(layer)
    for part in getattr(layer, "layers", [layer]):  # a variance is not negative
        if type(part).__name__ == "BatchNormalization":
            part.set_weights([abs(w) for w in part.get_weights()])
    return layer


def inputs(layer):
    rng = np.random.default_rng(1)
    if type(layer).__name__ == "Embedding":
        return rng.integers(0, 9, (3, 4))
    return rng.uniform(-1, 1, ROWS).astype(np.float32)


def agree(net, layer, x):
    want = keras.ops.convert_to_numpy(layer(x))
    got = net(x)
    got = got[0] if isinstance(got, tuple) else got
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def test_each_class_has_a_case():
    assert LAYERS.keys() == FORMS.keys()


@pytest.mark.parametrize("name, index", [(name, i) for name, layers in LAYERS.items() for i in range(len(layers))])
def test_layers(name, index):
    layer = LAYERS[name][index]()
    assert type(layer).__name__ == name
    x = inputs(layer)
    agree(nn.from_keras(built(layer, x), inference=name == "BatchNormalization"), layer, x)


def test_whole_model():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            L.Embedding(9, 5),
            L.Dropout(0.3),
            L.Conv1D(6, 3, padding="causal", activation="relu"),
            L.LayerNormalization(),
            L.Bidirectional(L.LSTM(4, return_sequences=True)),
            L.GRU(7),
            L.Dense(4, "relu"),
            L.Dense(3, "softmax"),
        ]
    )
    random_weights(model)
    net = nn.from_keras(model)
    assert len(net) == len(model.layers)
    x = np.random.default_rng(3).integers(0, 9, (4, 11))
    want = model.predict(x, verbose=0)
    assert np.abs(net.predict(x) - want).max() <= TOLERANCE
    history = net.fit(x, np.eye(3)[[0, 1, 2, 0]], loss="mse", optimizer="adam", epochs=5)
    assert history["loss"][-1] < history["loss"][0]


def test_arguments_are_kept():
    layer = built(L.Bidirectional(L.GRU(7), merge_mode="ave"), inputs(None))
    assert repr(nn.from_keras(layer)) == repr(
        nn.GRU(5, 7, batch_first=True, bidirectional=True, merge="average", return_sequences=False)
    )
    layer = built(L.LSTM(7, go_backwards=True), inputs(None))
    assert repr(nn.from_keras(layer)) == repr(nn.LSTM(5, 7, batch_first=True, reverse=True, return_sequences=False))
    layer = built(L.BatchNormalization(momentum=0.75), inputs(None))
    assert nn.from_keras(layer, inference=True).momentum == 0.25
    assert nn.from_keras(built(L.Dropout(0.3), inputs(None))).p == 0.3


class Own(L.Dense):
    """A layer of a user."""


def own_activation(x):
    """A function of a user."""
    return x


own_activation.__name__ = "tanh"


def backwards():
    return L.Bidirectional(L.GRU(7), backward_layer=L.GRU(7, go_backwards=True, activation="relu"))


REFUSED = [
    (lambda: L.LSTM(7, go_backwards=True, return_sequences=True), "go_backwards is True with return_sequences=True"),
    (lambda: L.LSTM(7, activation="gelu"), r"\(LSTM\): activation is gelu, expected one of Keras's elu, hard_sigmoid"),
    (lambda: L.GRU(7, recurrent_activation="mish"), r"\(GRU\): recurrent_activation is mish, expected"),
    (lambda: L.LSTM(7, activation="softmax"), "activation is softmax, expected"),
    (lambda: L.LSTM(7, activation=own_activation), "activation is tanh, expected one of Keras's"),
    (lambda: L.Dense(7, own_activation), "activation is tanh, expected one of Keras's"),
    (lambda: L.Activation("swish"), "activation is silu, expected"),
    (lambda: L.LSTM(7, stateful=True), "stateful is True, which no layer has$"),
    (lambda: L.LSTM(7, dropout=0.2), "dropout is 0.2, which no layer has; inference=True lets"),
    (lambda: L.GRU(7, recurrent_dropout=0.2), "recurrent_dropout is 0.2, .*; inference=True lets"),
    (lambda: L.Bidirectional(L.GRU(7, recurrent_dropout=0.2)), "recurrent_dropout is 0.2, .*; inference=True"),
    (lambda: L.Dense(7, kernel_regularizer="l2"), "kernel_regularizer is L2, .*; inference=True lets"),
    (lambda: L.Dense(7, bias_constraint="non_neg"), "bias_constraint is NonNeg, .*; inference=True lets"),
    (lambda: L.Dense(7, trainable=False), "trainable is False, which no layer has; inference=True lets"),
    (lambda: L.Dense(7, dtype="float64"), "dtype is 'float64', expected 'float32'"),
    (lambda: L.Bidirectional(L.LSTM(7), merge_mode=None), "merge_mode is None, which no layer has"),
    (backwards, r"\(Bidirectional\): activation is 'tanh' and, backwards, 'relu'"),
    (lambda: L.Conv1D(6, 3, strides=2, padding="same"), r"padding is 'same' with strides \(2,\), expected \(1,\)"),
    (lambda: L.Dropout(0.3, noise_shape=(3, 1, 5)), "noise_shape is"),
    (lambda: L.LayerNormalization(axis=[1, 2]), r"axis is \[1, 2\], which no layer has"),
    (lambda: L.LayerNormalization(center=False), "center is False, which no layer has"),
    (lambda: L.LayerNormalization(rms_scaling=True), "rms_scaling is True, which no layer has"),
    (lambda: L.BatchNormalization(axis=1), "axis is 1, which no layer has"),
    (lambda: L.BatchNormalization(scale=False), "scale is False, which no layer has"),
    (lambda: L.BatchNormalization(), "moves its variance by the biased one of a batch, .*; inference=True lets"),
    (lambda: L.ReLU(max_value=6), "max_value is 6.*, which no layer has"),
    (lambda: L.ReLU(threshold=1), "threshold is 1.*, which no layer has"),
    (lambda: L.Masking(), r"\(Masking\): makes a mask, which no layer takes: give lengths= to the call"),
    (lambda: L.Flatten(), r"\(Flatten\): has no layer, expected one of Keras's own: Activation, "),
    (lambda: L.TimeDistributed(L.LayerNormalization()), r"layer is .*LayerNormalization\), expected a Dense or an"),
    (lambda: Own(7), r"\(Own\): has no layer"),
    (lambda: keras.Sequential([L.Dense(4), L.Flatten()]), r"\(Flatten\): has no layer"),
]


@pytest.mark.parametrize("make, message", REFUSED)
def test_refused(make, message):
    layer = make()
    layer(inputs(layer))
    with pytest.raises(UnsupportedError, match=message):
        nn.from_keras(layer)
    if "inference=True lets" in message and "Bidirectional" not in type(layer).__name__:
        random_weights(layer) if type(layer).__name__ != "BatchNormalization" else None
        agree(nn.from_keras(layer, inference=True), layer, inputs(layer))


def test_masks_of_an_embedding():
    layer = L.Embedding(9, 5, mask_zero=True)
    layer(inputs(layer))
    with pytest.raises(UnsupportedError, match=r"\(Embedding\): mask_zero is True, which no layer has$"):
        nn.from_keras(layer)


def test_what_is_no_layer_of_keras():
    for value in (3, None, nn.Linear(5, 7), L.LSTM):
        with pytest.raises(InputTypeError, match="model: got a .*, expected a layer or Sequential of Keras 3"):
            nn.from_keras(value)
    for layer in (L.Dense(3), keras.Sequential([L.Dense(3)])):
        with pytest.raises(UnsupportedError, match="is not built, and so has no weights yet"):
            nn.from_keras(layer)
    x = keras.Input((5,))
    with pytest.raises(UnsupportedError, match=r"\(Functional\): has no layer"):
        nn.from_keras(keras.Model(x, L.Dense(3)(x)))
