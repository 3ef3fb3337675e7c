"""Random recurrent layers for the tests: one description, run by the engine and by the float64 reference.

Sizes are odd, gates differ from one another, states are unequal and not zero: no swapped axis, gate or state passes.
"""

from dataclasses import dataclass, field

import numpy as np

from rnnfast import reference
from rnnfast.native import _engine
from rnnfast.native.weight_types import WEIGHT_TYPES

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
DEFAULT = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# Values that differ from the defaults and under which outputs stay bounded.
ALPHA_BETA = {
    "Affine": (0.7, -0.2),
    "LeakyRelu": (-0.3, 0.0),
    "ThresholdedRelu": (0.4, 0.0),
    "ScaledTanh": (1.3, 0.6),
    "HardSigmoid": (0.3, 0.4),
    "Elu": (0.8, 0.0),
}


@dataclass
class Layer:
    """Arguments and weights of one ONNX recurrent operator; arrays are float32 with the shapes of layout 0."""

    kind: str
    W: np.ndarray
    R: np.ndarray
    B: np.ndarray | None
    P: np.ndarray | None
    direction: str
    activations: tuple
    attributes: dict = field(default_factory=dict)

    @property
    def hidden_size(self):
        return self.R.shape[2]

    @property
    def input_size(self):
        return self.W.shape[2]

    @property
    def directions(self):
        return len(DIRECTIONS[self.direction])


def activation(name):
    """Return an activation with its alpha and beta."""
    return (name, *ALPHA_BETA.get(name, (0.0, 0.0)))


def random_layer(
    rng,
    kind,
    input_size,
    hidden_size,
    *,
    direction="forward",
    activations=None,
    bias=True,
    peepholes=False,
    **attributes,
):
    D, G, H = len(DIRECTIONS[direction]), GATES[kind], hidden_size
    scale = 1.2 / np.sqrt(H + input_size)

    def weights(*shape):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    names = activations or (DEFAULT[kind],) * D
    return Layer(
        kind,
        weights(D, G * H, input_size),
        weights(D, G * H, H),
        weights(D, 2 * G * H) if bias else None,
        weights(D, 3 * H) if peepholes else None,
        direction,
        tuple(tuple(activation(name) for name in per_direction) for per_direction in names),
        attributes,
    )


def random_input(rng, layer, T, B, *, states=True, lens=None):
    """Return x [T,B,I], initial_h, initial_c (LSTM only) and sequence_lens."""
    D, H = layer.directions, layer.hidden_size
    x = rng.standard_normal((T, B, layer.input_size)).astype(np.float32)
    h = rng.standard_normal((D, B, H)).astype(np.float32) * np.float32(0.5) if states else None
    c = rng.standard_normal((D, B, H)).astype(np.float32) if states and layer.kind == "LSTM" else None
    return x, h, c, lens


def type_options(key):
    """Return the arguments by which users mean a key of WEIGHT_TYPES."""
    row = WEIGHT_TYPES[key]
    return {"weights": row.weights} | ({"activations": row.activation_bits} if row.integers else {})


def cells(layer, matmul="packed", weight_type=None):
    return tuple(
        _engine.Cell(
            layer.kind,
            layer.W[d],
            layer.R[d],
            None if layer.B is None else layer.B[d],
            None if layer.P is None else layer.P[d],
            activations=layer.activations[d],
            matmul=matmul,
            weight_type=weight_type,
            **layer.attributes,
        )
        for d in range(layer.directions)
    )


def run(packed, layer, x, h=None, c=None, lens=None, threads=1):
    """Return the engine's Y [T,D,B,H], Y_h and, for LSTM, Y_c. Y holds NaN before, so all of it must be written."""
    y = np.full((x.shape[0], layer.directions, x.shape[1], layer.hidden_size), np.nan, np.float32)
    y_h, y_c = _engine.recurrent(packed, DIRECTIONS[layer.direction], x, y, h, c, lens, threads)
    return (y, y_h) if y_c is None else (y, y_h, y_c)


def expect(layer, x, h=None, c=None, lens=None):
    """Return the same outputs by the float64 reference."""
    states = (h, c, layer.P) if layer.kind == "LSTM" else (h,)
    return getattr(reference, layer.kind.lower())(
        x,
        layer.W,
        layer.R,
        layer.B,
        lens,
        *states,
        direction=layer.direction,
        activations=layer.activations,
        **layer.attributes,
    )


def bits(arrays):
    """Return the bytes of arrays, whose comparison tells 0.0 from -0.0 and finds NaN equal to itself."""
    return [np.ascontiguousarray(a).tobytes() for a in arrays]
