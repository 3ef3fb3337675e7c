"""Conversion of recurrent weights between the layouts of torch, ONNX and Keras.

Each layout stacks the gates along one axis, in its own order, which the tables below give. Layers store torch's layout.
"""

from __future__ import annotations

import numpy as np

from rnnfast.errors import InputTypeError, ModelError
from rnnfast.nn.checks import as_weight

GATES = {
    "RNN": {"torch": "i", "onnx": "i", "keras": "i"},
    "LSTM": {"torch": "ifco", "onnx": "iofc", "keras": "ifco"},
    "GRU": {"torch": "rzh", "onnx": "zrh", "keras": "zrh"},
}
"""kind -> layout -> order of the gates, in ONNX's letters. Torch writes g for the LSTM's c, and n for the GRU's h."""

PEEPHOLES = {"torch": "ifo", "onnx": "iof"}
"""Order of the LSTM's peephole weights. Torch has no peepholes; its entry follows its order of gates."""


def reorder(array, source, target):
    """Reorder the equal blocks of the first axis, named by the letters of `source`, to the order of `target`."""
    blocks = array.reshape(len(source), -1, *array.shape[1:])
    return blocks[[source.index(letter) for letter in target]].reshape(array.shape)


def suffix(layer, direction):
    """Return the end of a torch parameter's name: "l0", "l0_reverse" and so on."""
    return f"l{layer}_reverse" if direction else f"l{layer}"


def to_onnx(kind, parameters, end):
    """Return W, R, B, P and projection of `_engine.Cell`, from the parameters whose torch names end in `end`."""

    def gates(name, order=GATES[kind]):
        array = parameters.get(f"{name}_{end}")
        return None if array is None else reorder(array, order["torch"], order["onnx"])

    bias_ih, bias_hh = gates("bias_ih"), gates("bias_hh")
    return {
        "W": gates("weight_ih"),
        "R": gates("weight_hh"),
        "B": None if bias_ih is None or bias_hh is None else np.concatenate([bias_ih, bias_hh]),
        "P": gates("weight_peephole", PEEPHOLES),
        "projection": parameters.get(f"weight_hr_{end}"),
    }


def from_onnx(kind, W, R, B=None, P=None):
    """Convert ONNX's W, R, B and P to (input_size, hidden_size, number of directions, parameters by torch's names)."""
    gates = len(GATES[kind]["onnx"])
    arrays = {"W": as_weight(W, "W"), "R": as_weight(R, "R")}
    arrays |= {name: as_weight(a, name) for name, a in (("B", B), ("P", P)) if a is not None}
    W = arrays["W"]
    if W.ndim != 3 or not all(W.shape) or W.shape[1] % gates or W.shape[0] > 2:
        raise ModelError(f"W: shape is {list(W.shape)}, expected [directions, {gates} * hidden_size, input_size]")
    directions, hidden_size, input_size = W.shape[0], W.shape[1] // gates, W.shape[2]
    expected = {
        "W": (directions, gates * hidden_size, input_size),
        "R": (directions, gates * hidden_size, hidden_size),
        "B": (directions, 2 * gates * hidden_size),
        "P": (directions, 3 * hidden_size),
    }
    for name, array in arrays.items():
        _expect(array, expected[name], name)

    order = GATES[kind]
    parameters = {}
    for d in range(directions):
        end = suffix(0, d)
        parameters[f"weight_ih_{end}"] = reorder(arrays["W"][d], order["onnx"], order["torch"])
        parameters[f"weight_hh_{end}"] = reorder(arrays["R"][d], order["onnx"], order["torch"])
        if "B" in arrays:
            for name, half in zip(("bias_ih", "bias_hh"), np.split(arrays["B"][d], 2), strict=True):
                parameters[f"{name}_{end}"] = reorder(half, order["onnx"], order["torch"])
        if "P" in arrays:
            parameters[f"weight_peephole_{end}"] = reorder(arrays["P"][d], PEEPHOLES["onnx"], PEEPHOLES["torch"])
    return input_size, hidden_size, directions, parameters


def from_keras(kind, weights, *, two_biases=False):
    """Convert Keras weights to (input_size, hidden_size, number of directions, parameters by torch's names).

    `weights` is the result of the layer's get_weights(): [kernel, recurrent_kernel, bias], twice that for a
    Bidirectional, and without biases for use_bias=False. With two_biases the bias is [2, 3 * units], as in a GRU with
    reset_after.
    """
    if not isinstance(weights, (list, tuple)):
        raise InputTypeError(f"weights: got a {type(weights).__name__}, expected a list of arrays")
    if len(weights) not in (2, 3, 4, 6):
        raise ModelError(
            f"weights: got {len(weights)} arrays, expected kernel, recurrent_kernel and, if used, bias; "
            "twice these for a Bidirectional"
        )
    directions = 1 if len(weights) < 4 else 2
    names = ["kernel", "recurrent_kernel", "bias"][: len(weights) // directions]
    prefixes = [""] if directions == 1 else ["forward ", "backward "]
    labels = [prefix + name for prefix in prefixes for name in names]
    arrays = [as_weight(a, label) for a, label in zip(weights, labels, strict=True)]

    order = GATES[kind]
    gates = len(order["keras"])
    kernel = arrays[0]
    if kernel.ndim != 2 or not all(kernel.shape) or kernel.shape[1] % gates:
        raise ModelError(f"{labels[0]}: shape is {list(kernel.shape)}, expected [input size, {gates} * units]")
    input_size, units = kernel.shape[0], kernel.shape[1] // gates
    expected = {
        "kernel": (input_size, gates * units),
        "recurrent_kernel": (units, gates * units),
        "bias": (2, gates * units) if two_biases else (gates * units,),
    }
    parameters = {}
    for position, (label, array) in enumerate(zip(labels, arrays, strict=True)):
        d, name = divmod(position, len(names))
        name, end = names[name], suffix(0, d)
        _expect(array, expected[name], label)
        if name == "kernel":
            parameters[f"weight_ih_{end}"] = reorder(array.T, order["keras"], order["torch"])
        elif name == "recurrent_kernel":
            parameters[f"weight_hh_{end}"] = reorder(array.T, order["keras"], order["torch"])
        else:
            on_input, on_state = array if two_biases else (array, np.zeros_like(array))
            parameters[f"bias_ih_{end}"] = reorder(on_input, order["keras"], order["torch"])
            parameters[f"bias_hh_{end}"] = reorder(on_state, order["keras"], order["torch"])
    return input_size, units, directions, parameters


def _expect(array, shape, name):
    """Refuse a weight of another shape."""
    if array.shape != shape:
        raise ModelError(f"{name}: shape is {list(array.shape)}, expected {list(shape)}")
