"""Recurrent layers from ONNX's arrays, against the float64 reference, and from Keras's, against Keras's equations."""

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import Error, InputError, InputTypeError, ModelError
from tests.nn.helpers import (
    DEFAULT_ACTIVATIONS,
    FUNCTIONS,
    GATES,
    MERGES,
    assert_close,
    call,
    initial_states,
    sigmoid,
    uniform,
)


# ------------------------------------------------------------------------------------------------- ONNX arrays
def onnx_arrays(rng, kind, directions, inputs=5, units=7):
    gates = GATES[kind] * units
    arrays = {
        "W": uniform(rng, directions, gates, inputs),
        "R": uniform(rng, directions, gates, units) / 3,
        "B": uniform(rng, directions, 2 * gates),
    }
    return arrays | {"P": uniform(rng, directions, 3 * units)} if kind == "LSTM" else arrays


@pytest.mark.parametrize(
    "options", [{}, {"clip": 0.3}, {"layout": 1}, {"activations": True}], ids=["plain", "clip", "layout", "activations"]
)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_from_onnx(kind, direction, options):
    rng = np.random.default_rng(6)
    directions = 1 + (direction == "bidirectional")
    arrays, options = onnx_arrays(rng, kind, directions), dict(options)
    names = DEFAULT_ACTIVATIONS[kind] * directions
    triples = [(name, 0.0, 0.0) for name in names]
    if "activations" in options:
        names = ["HardSigmoid", "ScaledTanh", "leakyrelu", "Softsign", "Elu", "AFFINE"][: len(names)]
        values = [
            ("HardSigmoid", 0.3, 0.4),
            ("ScaledTanh", 1.2, 0.7),
            ("LeakyRelu", 0.1, 0.0),
            ("Softsign", 0.0, 0.0),
            ("Elu", 0.8, 0.0),
            ("Affine", 1.0, 0.0),
        ]
        triples = values[: len(names)]
        options |= {
            "activations": names,
            "activation_alpha": np.array([0.3, 1.2, 0.1, 0.8], np.float32),
            "activation_beta": [0.4, 0.7],
        }
    if kind == "GRU":
        options["linear_before_reset"] = directions - 1
    if kind == "LSTM":
        options["input_forget"] = directions - 1
    layer = getattr(nn, kind).from_onnx(**arrays, direction=direction, **options)

    for name in ("activation_alpha", "activation_beta"):
        options.pop(name, None)
    count = len(triples) // directions
    options["activations"] = tuple(tuple(triples[d * count : (d + 1) * count]) for d in range(directions))
    states = initial_states(layer, rng, 4)
    batch_first = options.get("layout") == 1
    x = uniform(rng, 4, 6, 5) if batch_first else uniform(rng, 6, 4, 5)
    y, last = call(layer, x, states, [6, 2, 0, 3])
    onnx_states = [s.swapaxes(0, 1) if batch_first else s for s in states]
    want, *want_last = FUNCTIONS[kind](
        x,
        arrays["W"],
        arrays["R"],
        arrays["B"],
        [6, 2, 0, 3],
        *onnx_states,
        **({"P": arrays["P"]} if kind == "LSTM" else {}),
        direction=direction,
        **options,
    )
    assert_close(y, want.reshape(*want.shape[:2], -1) if batch_first else want.transpose(0, 2, 1, 3).reshape(6, 4, -1))
    for got, state in zip(last, want_last, strict=True):
        assert_close(got, state.swapaxes(0, 1) if batch_first else state)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"W": np.zeros((28, 5), np.float32)},
            r"W: shape is \[28, 5\], expected \[directions, 4 \* hidden_size, input",
        ),
        ({"R": np.zeros((1, 28, 6), np.float32)}, r"R: shape is \[1, 28, 6\], expected \[1, 28, 7\]"),
        ({"B": np.zeros((1, 28), np.float32)}, r"B: shape is \[1, 28\], expected \[1, 56\]"),
        ({"P": np.zeros((1, 28), np.float32)}, r"P: shape is \[1, 28\], expected \[1, 21\]"),
        ({"direction": "bidirectional"}, r"W: shape is \[1, 28, 5\], expected 2 first for direction='bidirectional'"),
        ({"direction": "backward"}, "direction: 'backward' is none of 'forward', 'reverse', 'bidirectional'"),
        ({"activations": ["Tanh"]}, "activations: got 1, expected 3 for direction='forward'"),
        ({"layout": 2}, "layout: 2 is none of 0, 1"),
        ({"layout": np.zeros(2)}, "layout: .* is none of 0, 1"),
        ({"W": None, "R": None}, "W: dtype is object, expected float32"),
        ({"R": None}, "R: dtype is object, expected float32"),
        ({"activations": 5}, "activations: got 5, expected a list"),
        ({"activations": ["Elu"] * 3, "activation_alpha": 5}, "activation_alpha: got 5, expected a list"),
    ],
)
def test_onnx_arrays_that_do_not_fit(change, message):
    arrays = onnx_arrays(np.random.default_rng(1), "LSTM", 1)
    with pytest.raises(Error, match=message):
        nn.LSTM.from_onnx(**(arrays | change))


# ------------------------------------------------------------------------------------------------- Keras
def keras_rnn(x, h, weights):
    kernel, recurrent, bias = weights
    h[0] = np.tanh(x @ kernel + h[0] @ recurrent + bias)


def keras_lstm(x, state, weights):
    """Gates i, f, c, o."""
    kernel, recurrent, bias = weights
    i, f, c, o = np.split(x @ kernel + state[0] @ recurrent + bias, 4, axis=-1)
    state[1] = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(c)
    state[0] = sigmoid(o) * np.tanh(state[1])


def keras_gru_reset_after(x, state, weights):
    """Gates z, r, h; the recurrent bias is inside the reset."""
    kernel, recurrent, (bias, recurrent_bias) = weights
    xz, xr, xh = np.split(x @ kernel + bias, 3, axis=-1)
    hz, hr, hh = np.split(state[0] @ recurrent + recurrent_bias, 3, axis=-1)
    z, r = sigmoid(xz + hz), sigmoid(xr + hr)
    state[0] = z * state[0] + (1 - z) * np.tanh(xh + r * hh)


def keras_gru_reset_before(x, state, weights):
    kernel, recurrent, bias = weights
    xz, xr, xh = np.split(x @ kernel + bias, 3, axis=-1)
    rz, rr, rh = np.split(recurrent, 3, axis=-1)
    z, r = sigmoid(xz + state[0] @ rz), sigmoid(xr + state[0] @ rr)
    state[0] = z * state[0] + (1 - z) * np.tanh(xh + (r * state[0]) @ rh)


KERAS = {
    "SimpleRNN": (nn.RNN, 1, keras_rnn, {}, (7,)),
    "LSTM": (nn.LSTM, 4, keras_lstm, {}, (28,)),
    "GRU reset_after": (nn.GRU, 3, keras_gru_reset_after, {}, (2, 21)),
    "GRU reset before": (nn.GRU, 3, keras_gru_reset_before, {"reset_after": False}, (21,)),
}


def keras_run(step, x, weights, backward=False):
    """Outputs [B, T, H] in the order of time, as Keras's Bidirectional has them, and the last states."""
    state = [np.zeros((len(x), 7)) for _ in range(2)]
    y = np.zeros((*x.shape[:2], 7))
    for t in reversed(range(x.shape[1])) if backward else range(x.shape[1]):
        step(x[:, t], state, weights)
        y[:, t] = state[0]
    return y, state


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("merge", [None, "concat", "sum", "mul", "average"])
@pytest.mark.parametrize("name", KERAS)
def test_from_keras(name, merge, biased):
    layer_class, gates, step, options, bias_shape = KERAS[name]
    rng = np.random.default_rng(7)
    weights = [
        [uniform(rng, 5, gates * 7), uniform(rng, 7, gates * 7), uniform(rng, *bias_shape) * biased]
        for _ in range(1 if merge is None else 2)
    ]
    arrays = [a for direction in weights for a in direction[: 2 + biased]]
    x = uniform(rng, 3, 6, 5)
    layer = layer_class.from_keras(arrays, **options, **({} if merge is None else {"merge": merge}))
    y, last = call(layer, x, [])
    runs = [keras_run(step, x, direction, backward) for direction, backward in zip(weights, (False, True))]
    if merge is None:
        assert_close(y, runs[0][0])
    else:
        assert_close(y, MERGES[merge](np.stack([y for y, _ in runs], axis=1)))
    for position, got in enumerate(last):
        assert_close(got, np.stack([states[position] for _, states in runs]))


def test_keras_activations():
    rng = np.random.default_rng(7)
    arrays = [uniform(rng, 5, 28), uniform(rng, 7, 28), uniform(rng, 28)]
    layer = nn.LSTM.from_keras(arrays, activation="relu", recurrent_activation=("HardSigmoid", 1 / 6, 0.5))
    same = nn.LSTM(5, 7, batch_first=True, activations=[("HardSigmoid", 1 / 6, 0.5), "Relu", "Relu"])
    same.load_state_dict(layer.state_dict())
    x = uniform(rng, 3, 6, 5)
    np.testing.assert_array_equal(layer(x)[0], same(x)[0])
    assert (layer(x)[0] != nn.LSTM.from_keras(arrays)(x)[0]).any()
    with pytest.raises(InputError, match="activation: 'hard_sigmoid' is none of linear, tanh"):
        nn.LSTM.from_keras(arrays, recurrent_activation="hard_sigmoid")


@pytest.mark.parametrize("weights", [5, None, "abc"])
def test_keras_weights_must_be_a_list(weights):
    with pytest.raises(InputTypeError, match="weights: got a .*, expected a list of arrays"):
        nn.GRU.from_keras(weights)


@pytest.mark.parametrize(
    "shapes, keywords, message",
    [
        ([(5, 21), (7, 21), (21,)], {}, r"bias: shape is \[21\], expected \[2, 21\]"),
        ([(5, 21), (7, 21), (2, 21)], {"reset_after": False}, r"bias: shape is \[2, 21\], expected \[21\]"),
        ([(5, 21), (6, 21), (2, 21)], {}, r"recurrent_kernel: shape is \[6, 21\], expected \[7, 21\]"),
        ([(5, 20), (7, 21)], {}, r"kernel: shape is \[5, 20\], expected \[input size, 3 \* units\]"),
        ([(5, 21)], {}, "weights: got 1 arrays"),
        (
            [(5, 21), (7, 21), (5, 21), (6, 21)],
            {},
            r"backward recurrent_kernel: shape is \[6, 21\], expected \[7, 21\]",
        ),
    ],
)
def test_keras_arrays_that_do_not_fit(shapes, keywords, message):
    with pytest.raises(ModelError, match=message):
        nn.GRU.from_keras([np.zeros(shape, np.float32) for shape in shapes], **keywords)
