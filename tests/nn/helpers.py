"""Every variant of the recurrent layers, and the reference's result for it."""

import numpy as np

from rnnfast import reference

TOLERANCE = 2e-6
"""Largest difference from float64 relative to the largest output: a few roundings of float32 (6e-8 each) per step.
Measured over all variants below: 8.9e-7."""

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": reference.rnn, "GRU": reference.gru, "LSTM": reference.lstm}
DEFAULT_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}

TORCH_TO_ONNX = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}
"""Positions in torch's order (GRU r z n, LSTM i f g o) of ONNX's gates (GRU z r h, LSTM i o f c)."""

VARIANTS = {
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "GRU reset first": ("GRU", {"linear_before_reset": False}),
    "LSTM": ("LSTM", {}),
    "LSTM projected": ("LSTM", {"proj_size": 3}),
    "LSTM coupled, with peepholes": ("LSTM", {"input_forget": True, "peepholes": True}),
    "LSTM clipped": ("LSTM", {"clip": 0.4}),
}
DIRECTIONS = {
    "forward": {},
    "reverse": {"reverse": True},
    "concat": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge": "sum"},
    "mul": {"bidirectional": True, "merge": "mul"},
    "average": {"bidirectional": True, "merge": "average"},
}
MERGES = {
    "concat": lambda y: np.concatenate([y[:, d] for d in range(y.shape[1])], axis=-1),
    "sum": lambda y: y[:, 0] + y[:, 1],
    "mul": lambda y: y[:, 0] * y[:, 1],
    "average": lambda y: (y[:, 0] + y[:, 1]) / 2,
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def uniform(rng, *shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def expected(layer, x, h0=None, c0=None, lengths=None):
    """y and the last states in float64, for x [T, B, I], from the layer's state dict."""
    weights, kind = layer.state_dict(), layer.kind
    ends = ["", "_reverse"][: 1 + layer.bidirectional]

    def stacked(name, layer_index, blocks=None):
        arrays = [weights[f"{name}_l{layer_index}{end}"] for end in ends if f"{name}_l{layer_index}{end}" in weights]
        if not arrays:
            return None
        if blocks is not None:
            arrays = [np.concatenate([np.split(a, len(blocks))[i] for i in blocks]) for a in arrays]
        return np.stack(arrays)

    names = DEFAULT_ACTIVATIONS[kind]
    if getattr(layer, "nonlinearity", "") == "relu":
        names = ["Relu"]
    keywords = {
        "activations": (tuple((n, 0.0, 0.0) for n in names),) * len(ends),
        "clip": layer.clip,
        "direction": "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward",
    }
    if kind == "GRU":
        keywords["linear_before_reset"] = layer.linear_before_reset
    if kind == "LSTM":
        keywords["input_forget"] = layer.input_forget
    last = []
    for k in range(layer.num_layers):
        of_layer = slice(k * len(ends), (k + 1) * len(ends))
        biases = [stacked(name, k, TORCH_TO_ONNX[kind]) for name in ("bias_ih", "bias_hh")]
        inputs = {
            "B": None if biases[0] is None else np.concatenate(biases, axis=1),
            "initial_h": None if h0 is None else h0[of_layer],
        }
        if kind == "LSTM":
            inputs["initial_c"] = None if c0 is None else c0[of_layer]
            inputs["P"] = stacked("weight_peephole", k, [0, 2, 1])
            inputs["projection"] = stacked("weight_hr", k)
        y, *states = FUNCTIONS[kind](
            x,
            stacked("weight_ih", k, TORCH_TO_ONNX[kind]),
            stacked("weight_hh", k, TORCH_TO_ONNX[kind]),
            sequence_lens=lengths,
            **inputs,
            **keywords,
        )
        x = MERGES[layer.merge](y)
        last.append(states)
    return x, [np.concatenate(parts) for parts in zip(*last)]


def assert_close(got, want):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def call(layer, x, states, lengths=None):
    """y and the list of last states."""
    if layer.kind == "LSTM":
        y, last = layer(x, tuple(states) if states else None, lengths)
        return y, list(last)
    y, h = layer(x, states[0] if states else None, lengths)
    return y, [h]


def initial_states(layer, rng, *rows):
    count = layer.num_layers * (1 + layer.bidirectional)
    states = [uniform(rng, count, *rows, layer.proj_size or layer.hidden_size)]
    return states + [uniform(rng, count, *rows, layer.hidden_size)] if layer.kind == "LSTM" else states
