"""RNN, GRU and LSTM on the float64 reference, rounded once to the inputs' type."""

from typing import Literal

from rnnfast import reference
from rnnfast.onnx.ops.numeric import quiet
from rnnfast.onnx.ops.types import Flag, Floats, Strs
from rnnfast.onnx.recurrent_nodes import layer

Direction = Literal["forward", "reverse", "bidirectional"]


def _rounded(results, dtype):
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
    node = layer(
        "RNN",
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
    )
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
    node = layer(
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
    node = layer(
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
