"""ONNX RNN, GRU and LSTM over whole sequences in float64, row by row and step by step.

Shapes, for T time steps, B rows, D directions, I inputs, H hidden units and G gates, are
X [T, B, I], W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], initial_h and initial_c [D, B, H], P [D, 3*H],
sequence_lens [B] -> Y [T, D, B, H], Y_h and Y_c [D, B, H]. With layout=1 the batch is first: X [B, T, I],
states [B, D, H], Y [B, T, D, H].

A row has its first sequence_lens[b] time steps; the reverse direction takes these backwards. Y is 0 after them, Y_h and
Y_c are the states after the last one taken. A row without time steps gives 0 everywhere, whatever its initial state.

`activations` holds for each direction its (name, alpha, beta) triples: (f,) for RNN, (f, g) for GRU, (f, g, h) for
LSTM. Arguments are not checked.

The backward functions take the gradients of the outputs, each None for zeros, then the arguments of the forward
function. They return float64 gradients by the names of its arguments: X, W, R and, if they were given, B, initial_h,
initial_c, P and projection, in their shapes. A row without time steps has gradients of 0.
"""

from __future__ import annotations

import numpy as np

from rnnfast.reference.activations import ACTIVATIONS, DERIVATIVES
from rnnfast.reference.cells import (
    gru_step,
    gru_step_backward,
    lstm_step,
    lstm_step_backward,
    rnn_step,
    rnn_step_backward,
)

_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def rnn(X, W, R, B=None, sequence_lens=None, initial_h=None, *, activations, clip=None, direction="forward", layout=0):
    """Compute ONNX's RNN, and return (Y, Y_h) in float64; the module's docstring has the shapes."""
    weights, options = _weights(W, R, B), _options(activations, clip)
    return _run(rnn_step, weights, options, X, sequence_lens, (initial_h,), direction, layout)


def rnn_backward(
    dY,
    dY_h,
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activations,
    clip=None,
    direction="forward",
    layout=0,
):
    """Compute the gradients of ONNX's RNN, and return a dict of those of X, W, R, B and initial_h."""
    weights, options = _weights(W, R, B), _options(activations, clip)
    dX, dinitial, dweights = _run_backward(
        rnn_step_backward,
        _functions(DERIVATIVES, activations),
        dY,
        (dY_h,),
        rnn_step,
        weights,
        options,
        X,
        sequence_lens,
        (initial_h,),
        direction,
        layout,
    )
    return _named(dX, dinitial, dweights, B=B, initial_h=initial_h)


def gru(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activations,
    clip=None,
    direction="forward",
    layout=0,
    linear_before_reset=False,
):
    """Compute ONNX's GRU, and return (Y, Y_h) in float64; the module's docstring has the shapes.

    The order of the gates is z, r, n; ONNX calls the last one h.
    """
    weights, options = _weights(W, R, B), _options(activations, clip, linear_before_reset=linear_before_reset)
    return _run(gru_step, weights, options, X, sequence_lens, (initial_h,), direction, layout)


def gru_backward(
    dY,
    dY_h,
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activations,
    clip=None,
    direction="forward",
    layout=0,
    linear_before_reset=False,
):
    """Compute the gradients of ONNX's GRU, and return a dict of those of X, W, R, B and initial_h."""
    weights, options = _weights(W, R, B), _options(activations, clip, linear_before_reset=linear_before_reset)
    dX, dinitial, dweights = _run_backward(
        gru_step_backward,
        _functions(DERIVATIVES, activations),
        dY,
        (dY_h,),
        gru_step,
        weights,
        options,
        X,
        sequence_lens,
        (initial_h,),
        direction,
        layout,
    )
    return _named(dX, dinitial, dweights, B=B, initial_h=initial_h)


def lstm(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    P=None,
    *,
    activations,
    clip=None,
    direction="forward",
    layout=0,
    input_forget=False,
    projection=None,
):
    """Compute ONNX's LSTM, and return (Y, Y_h, Y_c) in float64; the module's docstring has the shapes.

    The order of the gates is i, o, f, c, and that of the peepholes i, o, f. The argument
    projection [D, N, H] (torch's weight_hr; not in ONNX) makes N the size of Y, Y_h and initial_h, and R [D, 4*H, N].
    """
    weights, options = _lstm_weights(W, R, B, P, projection), _options(activations, clip, input_forget=input_forget)
    return _run(lstm_step, weights, options, X, sequence_lens, (initial_h, initial_c), direction, layout)


def lstm_backward(
    dY,
    dY_h,
    dY_c,
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    P=None,
    *,
    activations,
    clip=None,
    direction="forward",
    layout=0,
    input_forget=False,
    projection=None,
):
    """Compute the gradients of ONNX's LSTM: of X, W, R, B, initial_h, initial_c, P and projection, a dict."""
    weights, options = _lstm_weights(W, R, B, P, projection), _options(activations, clip, input_forget=input_forget)
    dX, dinitial, dweights = _run_backward(
        lstm_step_backward,
        _functions(DERIVATIVES, activations),
        dY,
        (dY_h, dY_c),
        lstm_step,
        weights,
        options,
        X,
        sequence_lens,
        (initial_h, initial_c),
        direction,
        layout,
    )
    return _named(dX, dinitial, dweights, B=B, initial_h=initial_h, initial_c=initial_c, P=P, projection=projection)


def _run(step, weights, options, X, sequence_lens, initial, direction, layout):
    """Return Y and the last states."""
    X, *initial = _time_first(layout, X, *initial)
    (steps, rows, _), sizes = X.shape, _sizes(weights, initial)
    directions = len(_REVERSED[direction])
    Y = np.zeros((steps, directions, rows, sizes[0]))
    last = [np.zeros((directions, rows, n)) for n in sizes]
    for d, b, times, states in _walk(step, weights, options, X, sequence_lens, initial, direction):
        for t, state in zip(times, states[1:]):
            Y[t, d, b] = state[0]
        for whole, row in zip(last, states[-1]):
            whole[d, b] = row
    if layout:
        Y = Y.transpose(2, 0, 1, 3)
        last = [s.swapaxes(0, 1) for s in last]
    return Y, *last


def _run_backward(
    step_backward, derivatives, dY, dlast, step, weights, options, X, sequence_lens, initial, direction, layout
):
    """Return the gradients of X, of the initial states and of the weights."""
    X, *initial = _time_first(layout, X, *initial)
    dlast = _time_first(layout, *dlast)
    if dY is not None:
        (dY,) = _float64(dY)
        dY = dY.transpose(1, 2, 0, 3) if layout else dY
    directions, rows, sizes = len(_REVERSED[direction]), X.shape[1], _sizes(weights, initial)
    dX = np.zeros(X.shape)
    dinitial = [np.zeros((directions, rows, n)) for n in sizes]
    dweights = [None if w is None else np.zeros(w.shape) for w in weights]
    for d, b, times, states in _walk(step, weights, options, X, sequence_lens, initial, direction):
        dstate = [np.zeros(n) if g is None else g[d, b] for g, n in zip(dlast, sizes)]
        for t, state in zip(reversed(times), reversed(states[:-1])):
            if dY is not None:
                dstate[0] = dstate[0] + dY[t, d, b]
            dx, *rest = step_backward(
                *dstate, X[t, b], *state, *_direction_part(d, weights), **options[d], derivatives=derivatives[d]
            )
            dstate = rest[: len(sizes)]
            dX[t, b] += dx
            for whole, g in zip(_direction_part(d, dweights), rest[len(sizes) :]):
                if whole is not None:
                    whole += g
        for whole, row in zip(dinitial, dstate):
            whole[d, b] = row
    if layout:
        dX = dX.swapaxes(0, 1)
        dinitial = [g.swapaxes(0, 1) for g in dinitial]
    return dX, dinitial, dweights


def _walk(step, weights, options, X, sequence_lens, initial, direction):
    """Yield (d, b, times, states) for each direction d and each row b that has time steps.

    `states` are those before each time step and after the last one. A state is a tuple of vectors, the first of which
    is the output.
    """
    steps, rows, _ = X.shape
    sizes = _sizes(weights, initial)
    for d, backwards in enumerate(_REVERSED[direction]):
        for b in range(rows):
            times = range(steps if sequence_lens is None else int(sequence_lens[b]))
            times = times[::-1] if backwards else times
            states = [tuple(np.zeros(n) if s is None else s[d, b] for s, n in zip(initial, sizes))]
            for t in times:
                state = step(X[t, b], *states[-1], *_direction_part(d, weights), **options[d])
                states.append(state if isinstance(state, tuple) else (state,))
            if times:
                yield d, b, times, states


def _weights(W, R, B):
    """Return [W, R, Wb, Rb], each [D, ...]."""
    W, R = _float64(W, R)
    (B,) = _float64(np.zeros((len(W), 2 * W.shape[1])) if B is None else B)
    return [W, R, *np.split(B, 2, axis=1)]


def _lstm_weights(W, R, B, P, projection):
    """Return [W, R, Wb, Rb, P, projection], each [D, ...]; the last may be None."""
    weights = _weights(W, R, B)
    directions, gates = weights[0].shape[:2]
    (P,) = _float64(np.zeros((directions, 3 * gates // 4)) if P is None else P)
    return [*weights, P, None if projection is None else _float64(projection)[0]]


def _direction_part(d, weights):
    """Return the part of one direction of each array."""
    return [None if w is None else w[d] for w in weights]


def _sizes(weights, initial):
    """Return the sizes of a state's vectors: of h, and of c if there is one."""
    gates, output_size = weights[1].shape[1:]
    return (output_size, gates // 4)[: len(initial)]


def _options(activations, clip, **options):
    """Return the keyword arguments of a step for each direction."""
    clipper = (lambda x: x) if clip is None else (lambda x: np.clip(x, -clip, clip))
    return [dict(activations=functions, clip=clipper, **options) for functions in _functions(ACTIVATIONS, activations)]


def _functions(table, activations):
    """Return for each direction its functions of x, one for each (name, alpha, beta)."""

    def bind(name, alpha, beta):
        return lambda x: table[name](x, alpha, beta)

    return [[bind(*triple) for triple in triples] for triples in activations]


def _named(dX, dinitial, dweights, **optional):
    """Return the gradients by name, without those of optional arguments that are None."""
    dW, dR, dWb, dRb, *rest = dweights
    gradients = {
        "X": dX,
        "W": dW,
        "R": dR,
        "B": np.concatenate([dWb, dRb], axis=1),
        **dict(zip(("initial_h", "initial_c"), dinitial)),
        **dict(zip(("P", "projection"), rest)),
    }
    return {name: g for name, g in gradients.items() if optional.get(name, g) is not None}


def _time_first(layout, *arrays):
    """Return X and states in float64 with the axes of layout 0; None stays None."""
    arrays = [None if a is None else np.asarray(a, np.float64) for a in arrays]
    return [a.swapaxes(0, 1) if layout and a is not None else a for a in arrays]


def _float64(*arrays):
    """Return the arrays in float64."""
    return [np.asarray(a, np.float64) for a in arrays]
