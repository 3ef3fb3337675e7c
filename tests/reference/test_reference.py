"""The float64 reference against onnxruntime: every attribute and input, drawn at random from the tables below."""

import numpy as np
import pytest

from rnnfast import reference

onnxruntime = pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx.helper")

ONNXRUNTIME_TOLERANCE = 1e-5
"""Largest difference relative to the largest output (or 1): onnxruntime works in float32 with its own approximations
of tanh and sigmoid. Measured over 1000 draws of each cell: 2.9e-6 (its Softplus also overflows above 88)."""

ACTIVATIONS = list(reference.ACTIVATIONS)
FUNCTIONS = {"RNN": reference.rnn, "GRU": reference.gru, "LSTM": reference.lstm}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULT_ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
PARAMETERS = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}
INPUTS = {"RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h")}
INPUTS["GRU"] = INPUTS["RNN"]
INPUTS["LSTM"] = (*INPUTS["RNN"], "initial_c", "P")
OUTPUTS = {"RNN": ("Y", "Y_h"), "GRU": ("Y", "Y_h"), "LSTM": ("Y", "Y_h", "Y_c")}


def draw_inputs(op, rng, directions, present=0.7):
    """Random float32 inputs of odd sizes; each optional one is there with probability `present`.

    Weights are small, as cells whose activations are all unbounded otherwise overflow float32 within six steps.
    """

    def uniform(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32)

    steps, rows = int(rng.integers(3, 7)), int(rng.integers(2, 6))
    inputs, units = int(rng.choice([1, 3, 5])), int(rng.choice([1, 3, 7, 17]))
    gates = GATES[op] * units
    drawn = {
        "X": uniform(steps, rows, inputs),
        "W": uniform(directions, gates, inputs) / 2,
        "R": uniform(directions, gates, units) / units,
        "B": uniform(directions, 2 * gates),
        "sequence_lens": rng.integers(0, steps + 1, rows).astype(np.int32),
        "initial_h": uniform(directions, rows, units),
        "initial_c": uniform(directions, rows, units),
        "P": uniform(directions, 3 * units),
    }
    required = ("X", "W", "R")
    return {n: drawn[n] for n in INPUTS[op] if n in required or rng.random() < present}


def draw_attributes(op, rng):
    attributes = {"direction": str(rng.choice(["forward", "reverse", "bidirectional"]))}
    if rng.random() < 0.5:
        attributes["clip"] = float(rng.uniform(0.1, 0.8))
    if op == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if op == "LSTM":
        attributes["input_forget"] = int(rng.integers(2))
    return attributes


def draw_activations(op, rng, directions):
    """For each direction its (name, alpha, beta) triples."""

    def triple(name):
        alpha, beta = reference.defaults(name)
        taken = PARAMETERS.get(name, 0)
        if taken:
            alpha = float(rng.uniform(0.1, 0.9))
        if taken == 2:
            beta = float(rng.uniform(0.1, 0.9))
        return name, alpha, beta

    if rng.random() < 0.3:
        return tuple(tuple(triple(n) for n in DEFAULT_ACTIVATIONS[op]) for _ in range(directions))
    names = rng.choice(ACTIVATIONS, (directions, len(DEFAULT_ACTIVATIONS[op])))
    return tuple(tuple(triple(str(n)) for n in row) for row in names)


def run_onnxruntime(op, inputs, **attributes):
    node = helper.make_node(
        op, [n if n in inputs else "" for n in INPUTS[op]], OUTPUTS[op], hidden_size=inputs["R"].shape[2], **attributes
    )
    declared = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs.items()
    ]
    results = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)), None)
        for n in OUTPUTS[op]
    ]
    model = helper.make_model(
        helper.make_graph([node], "cell", declared, results), ir_version=8, opset_imports=[helper.make_opsetid("", 14)]
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def activation_attributes(activations):
    """The three ONNX attributes that say the same as the triples."""
    triples = [t for direction in activations for t in direction]
    attributes = {
        "activations": [name for name, _, _ in triples],
        "activation_alpha": [alpha for name, alpha, _ in triples if PARAMETERS.get(name, 0)],
        "activation_beta": [beta for name, _, beta in triples if PARAMETERS.get(name, 0) == 2],
    }
    return {name: values for name, values in attributes.items() if values}


def assert_close(got, want):
    for name, g, w in zip(("Y", "Y_h", "Y_c"), got, want, strict=False):
        assert g.dtype == np.float64 and g.shape == w.shape
        assert np.abs(g - w).max() <= ONNXRUNTIME_TOLERANCE * max(1, np.abs(g).max()), name


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("op", FUNCTIONS)
def test_random_attributes(op, seed):
    rng = np.random.default_rng([seed, GATES[op]])
    attributes = draw_attributes(op, rng)
    directions = 1 + (attributes["direction"] == "bidirectional")
    inputs, activations = draw_inputs(op, rng, directions), draw_activations(op, rng, directions)
    got = FUNCTIONS[op](**inputs, **attributes, activations=activations)
    assert_close(got, run_onnxruntime(op, inputs, **attributes, **activation_attributes(activations)))


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"Affine", "ThresholdedRelu", "ScaledTanh"}))
@pytest.mark.parametrize("op", FUNCTIONS)
def test_default_alpha_and_beta(op, name):
    """Without the three for which onnxruntime takes 0 as the missing value: ThresholdedRelu's own operator says 1."""
    rng = np.random.default_rng([7, len(name)])
    inputs = draw_inputs(op, rng, 1, present=1)
    names = [name] * len(DEFAULT_ACTIVATIONS[op])
    # Clipped, as unbounded activations of every gate grow beyond what a tolerance can compare.
    got = FUNCTIONS[op](**inputs, activations=(tuple((n, *reference.defaults(n)) for n in names),), clip=0.6)
    assert_close(got, run_onnxruntime(op, inputs, activations=names, clip=0.6))


def test_thresholded_relu_keeps_its_threshold():
    """The recurrent operators' text says x >= alpha, the operator ThresholdedRelu x > alpha."""
    x = np.array([0.25, 0.5, 0.75])
    np.testing.assert_array_equal(reference.ACTIVATIONS["ThresholdedRelu"](x, 0.5, 0.0), [0, 0.5, 0.75])


@pytest.mark.parametrize("op", FUNCTIONS)
def test_layout_1_is_layout_0_transposed(op):
    rng = np.random.default_rng(GATES[op])
    inputs, activations = draw_inputs(op, rng, 2, present=1), draw_activations(op, rng, 2)
    want = FUNCTIONS[op](**inputs, activations=activations, direction="bidirectional")
    for name in ("X", "initial_h", "initial_c"):
        if name in inputs:
            inputs[name] = inputs[name].swapaxes(0, 1)
    got = FUNCTIONS[op](**inputs, activations=activations, direction="bidirectional", layout=1)
    np.testing.assert_array_equal(got[0], want[0].transpose(2, 0, 1, 3))
    for g, w in zip(got[1:], want[1:], strict=True):
        np.testing.assert_array_equal(g, w.swapaxes(0, 1))


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_each_row_is_what_it_is_alone_and_cut(op, direction):
    rng = np.random.default_rng(GATES[op])
    directions = 1 + (direction == "bidirectional")
    inputs, activations = draw_inputs(op, rng, directions, present=1), draw_activations(op, rng, directions)
    steps, rows, _ = inputs["X"].shape
    lengths = inputs["sequence_lens"] = np.arange(rows) % (steps + 1)
    y, *last = FUNCTIONS[op](**inputs, activations=activations, direction=direction)
    for b, length in enumerate(lengths):
        alone = {n: a[:, b : b + 1] if n in ("X", "initial_h", "initial_c") else a for n, a in inputs.items()}
        del alone["sequence_lens"]
        alone["X"] = alone["X"][:length]
        want, *want_last = FUNCTIONS[op](**alone, activations=activations, direction=direction)
        np.testing.assert_array_equal(y[:length, :, b], want[:, :, 0])
        assert not y[length:, :, b].any()
        for whole, row in zip(last, want_last, strict=True):
            np.testing.assert_array_equal(whole[:, b], row[:, 0])
            assert length or not whole[:, b].any()


def test_activations_at_the_ends_of_the_range():
    x = np.array([-np.inf, -1e300, -800.0, -0.0, 0.0, 800.0, 1e300, np.inf])
    sigmoid, softplus, elu = (reference.ACTIVATIONS[n](x, 1.5, 0.5) for n in ("Sigmoid", "Softplus", "Elu"))
    np.testing.assert_array_equal(sigmoid, [0, 0, 0, 0.5, 0.5, 1, 1, 1])
    np.testing.assert_array_equal(softplus, [0, 0, 0, np.log(2), np.log(2), 800, 1e300, np.inf])
    np.testing.assert_array_equal(elu, [-1.5, -1.5, -1.5, 0, 0, 800, 1e300, np.inf])
    for name, function in reference.ACTIVATIONS.items():
        assert np.isnan(function(np.array([np.nan]), 1.5, 0.5)).all(), name
