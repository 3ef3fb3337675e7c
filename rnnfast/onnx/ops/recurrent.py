"""RNN, GRU and LSTM (ONNX operator specification, RNN-22, GRU-22 and LSTM-22) on the float64 reference."""

from typing import Literal

import numpy as np

from rnnfast import reference
from rnnfast.onnx.ops.numeric import quiet
from rnnfast.onnx.ops.types import Flag, Floats, Strs
from rnnfast.onnx.recurrent_nodes import recurrent_attributes

Direction = Literal["forward", "reverse", "bidirectional"]


def _rounded(results, dtype):
    """Return the results rounded to the type of the inputs."""
    return tuple(y.astype(dtype) for y in results)


@quiet
def rnn(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha: Floats | None = None,
    activation_beta: Floats | None = None,
    activations: Strs | None = None,
    clip: float | None = None,
    direction: Direction = "forward",
    hidden_size: int | None = None,
    layout: Flag = 0,
):
    """RNN: H_t = f(X_t W^T + H_(t-1) R^T + Wb + Rb); returns Y and Y_h."""
    node = recurrent_attributes(
        "RNN",
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
    )
    sequence_lens = None if sequence_lens is None else np.array(sequence_lens)  # read once: another thread may write it
    node.check_weights(W, R, B)
    node.check_call(X, W, R, B, sequence_lens, initial_h, None, None)
    return _rounded(
        reference.rnn(
            X,
            W,
            R,
            B,
            sequence_lens,
            initial_h,
            activations=node.activations,
            clip=node.clip,
            direction=direction,
            layout=layout,
        ),
        X.dtype,
    )


@quiet
def gru(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha: Floats | None = None,
    activation_beta: Floats | None = None,
    activations: Strs | None = None,
    clip: float | None = None,
    direction: Direction = "forward",
    hidden_size: int | None = None,
    layout: Flag = 0,
    linear_before_reset: Flag = 0,
):
    """GRU with the gates z, r and h; returns Y and Y_h. The formulas are in rnnfast/reference/cells.py."""
    node = recurrent_attributes(
        "GRU",
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
        linear_before_reset=linear_before_reset,
    )
    sequence_lens = None if sequence_lens is None else np.array(sequence_lens)  # read once: another thread may write it
    node.check_weights(W, R, B)
    node.check_call(X, W, R, B, sequence_lens, initial_h, None, None)
    return _rounded(
        reference.gru(
            X,
            W,
            R,
            B,
            sequence_lens,
            initial_h,
            activations=node.activations,
            clip=node.clip,
            direction=direction,
            layout=layout,
            linear_before_reset=node.linear_before_reset,
        ),
        X.dtype,
    )


@quiet
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
    activation_alpha: Floats | None = None,
    activation_beta: Floats | None = None,
    activations: Strs | None = None,
    clip: float | None = None,
    direction: Direction = "forward",
    hidden_size: int | None = None,
    layout: Flag = 0,
    input_forget: Flag = 0,
):
    """LSTM with gates i, o, f, c and peepholes P; returns Y, Y_h, Y_c. Formulas: rnnfast/reference/cells.py."""
    node = recurrent_attributes(
        "LSTM",
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
        input_forget=input_forget,
    )
    sequence_lens = None if sequence_lens is None else np.array(sequence_lens)
    node.check_weights(W, R, B, P)
    node.check_call(X, W, R, B, sequence_lens, initial_h, initial_c, P)
    return _rounded(
        reference.lstm(
            X,
            W,
            R,
            B,
            sequence_lens,
            initial_h,
            initial_c,
            P,
            activations=node.activations,
            clip=node.clip,
            direction=direction,
            layout=layout,
            input_forget=node.input_forget,
        ),
        X.dtype,
    )


OPS = {"RNN": {1: rnn}, "GRU": {1: gru}, "LSTM": {1: lstm}}
