"""ONNX RNN, GRU and LSTM over whole sequences in float64, by the plainest route: row by row, step by step.

Shapes, with T steps, B rows, D directions, I inputs, H hidden units and G gates:
X [T, B, I], W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], initial_h and initial_c [D, B, H], P [D, 3*H],
sequence_lens [B] -> Y [T, D, B, H], Y_h and Y_c [D, B, H]. With layout=1 the batch stands first: X [B, T, I],
states [B, D, H], Y [B, T, D, H].

A row's steps are its first sequence_lens[b]; the reverse direction takes those backwards. Y is 0 after them, Y_h and
Y_c belong to the last one taken, and a row without steps gives 0 everywhere, whatever its initial state was.

`activations` holds for each direction its (name, alpha, beta) triples: (f,) for RNN, (f, g) for GRU, (f, g, h) for
LSTM. Arguments are taken as already checked.
"""
import numpy as np

from .activations import ACTIVATIONS
from .cells import gru_step, lstm_step, rnn_step

_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def rnn(X, W, R, B=None, sequence_lens=None, initial_h=None, *, activations, clip=None, direction="forward", layout=0):
    """ONNX RNN -> (Y, Y_h), float64."""
    W, R = _float64(W, R)
    biases, functions, clipper = _biases(B, W), _functions(activations), _clipper(clip)

    def step(d, x, state):
        h, = state
        return rnn_step(x, h, W[d], R[d], *biases[d], activations=functions[d], clip=clipper),

    return _run(step, X, R.shape[-1:], sequence_lens, (initial_h,), direction, layout)


def gru(X, W, R, B=None, sequence_lens=None, initial_h=None, *, activations, clip=None, direction="forward", layout=0,
        linear_before_reset=False):
    """ONNX GRU -> (Y, Y_h), float64. Gates stand in the order z, r, n (ONNX calls the last one h)."""
    W, R = _float64(W, R)
    biases, functions, clipper = _biases(B, W), _functions(activations), _clipper(clip)

    def step(d, x, state):
        h, = state
        return gru_step(x, h, W[d], R[d], *biases[d], activations=functions[d], clip=clipper,
                        linear_before_reset=linear_before_reset),

    return _run(step, X, R.shape[-1:], sequence_lens, (initial_h,), direction, layout)


def lstm(X, W, R, B=None, sequence_lens=None, initial_h=None, initial_c=None, P=None, *, activations, clip=None,
         direction="forward", layout=0, input_forget=False, projection=None):
    """ONNX LSTM -> (Y, Y_h, Y_c), float64. Gates stand in the order i, o, f, c; peepholes in the order i, o, f.

    projection [D, N, H] (torch's weight_hr; not in ONNX) makes Y, Y_h and initial_h N wide, and R [D, 4*H, N].
    """
    W, R = _float64(W, R)
    hidden_size = W.shape[1] // 4
    P, = _float64(np.zeros((len(W), 3 * hidden_size)) if P is None else P)
    projections = [None] * len(W) if projection is None else _float64(projection)[0]
    biases, functions, clipper = _biases(B, W), _functions(activations), _clipper(clip)

    def step(d, x, state):
        h, c = state
        return lstm_step(x, h, c, W[d], R[d], *biases[d], P[d], activations=functions[d], clip=clipper,
                         input_forget=input_forget, projection=projections[d])

    return _run(step, X, (R.shape[-1], hidden_size), sequence_lens, (initial_h, initial_c), direction, layout)


def _run(step, X, sizes, sequence_lens, initial, direction, layout):
    """Y and the last states. The state is a tuple of vectors of the given sizes; its first is the output."""
    X, = _float64(X)
    initial = [None if s is None else _float64(s)[0] for s in initial]
    if layout:
        X = X.swapaxes(0, 1)
        initial = [None if s is None else s.swapaxes(0, 1) for s in initial]
    steps, rows, _ = X.shape
    reversed_ = _REVERSED[direction]
    Y = np.zeros((steps, len(reversed_), rows, sizes[0]))
    last = [np.zeros((len(reversed_), rows, n)) for n in sizes]
    for d, backwards in enumerate(reversed_):
        for b in range(rows):
            length = steps if sequence_lens is None else int(sequence_lens[b])
            state = tuple(np.zeros(n) if s is None else s[d, b] for s, n in zip(initial, sizes))
            for t in reversed(range(length)) if backwards else range(length):
                state = step(d, X[t, b], state)
                Y[t, d, b] = state[0]
            if length:
                for whole, row in zip(last, state):
                    whole[d, b] = row
    if layout:
        Y = Y.transpose(2, 0, 1, 3)
        last = [s.swapaxes(0, 1) for s in last]
    return Y, *last


def _float64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def _biases(B, W):
    """(Wb, Rb) of each direction."""
    directions, gates = np.shape(W)[:2]
    B, = _float64(np.zeros((directions, 2 * gates)) if B is None else B)
    return [np.split(b, 2) for b in B]


def _functions(activations):
    """For each direction a function of one argument per (name, alpha, beta)."""
    def bind(name, alpha, beta):
        return lambda x: ACTIVATIONS[name](x, alpha, beta)
    return [[bind(*triple) for triple in triples] for triples in activations]


def _clipper(clip):
    return (lambda x: x) if clip is None else (lambda x: np.clip(x, -clip, clip))
