"""RNN, LSTM and GRU with torch's names, arguments, shapes and state dict, on the engine's cells.

What torch has not stands in keyword arguments:
    merge: how the directions of a bidirectional layer become one output: "concat" (torch's), "sum", "mul", "average";
        the next layer of a stack takes the merged output as its input
    reverse: the only direction runs backwards
    return_sequences: False makes y each row's last output [B, size] (Keras's default), directions merged
    activations: for each gate function (RNN f; GRU f, g; LSTM f, g, h) an ONNX activation's name or (name, alpha,
        beta); twice as many give the reverse direction its own
    clip: bound of the pre-activations of all gates
    matmul: "packed" (own kernels, the same bits everywhere), "blas", or None for this processor's default
    threads: how many a call may use, None for RNNFAST_NUM_THREADS (else one); the bits do not depend on it, and BLAS,
        which has threads of its own, does not heed it
    rng: a seed or a numpy Generator for the initial weights, uniform in +-1/sqrt(hidden_size)

Lengths [B] may stand in any order. Outputs past a row's length are zeros, its last state is that of its last step, and
a row of length 0 has zeros for both, whatever its initial state was.

A call takes a PackedSequence in place of x and lengths, ours or torch's, whatever `batch_first` says: y is packed like
it, and states, those given and those returned, are in the order in which the rows were packed.
"""

from rnnfast.errors import InputError
from rnnfast.nn.checks import check_choice, check_flag, check_size
from rnnfast.nn.stack import Recurrent


class _OneState(Recurrent):
    """RNN and GRU: h is all that goes on from step to step."""

    def __call__(self, x, h0=None, lengths=None):
        """x [T, B, I], [B, T, I] with batch_first, [T, I], or packed; h0 [layers * directions, B, H] (without B if x
        has none); lengths [B]

        -> y, shaped like x with the size H, or 2 H for concatenated directions; h, shaped like h0.
        """
        y, last = self._run(x, (h0,), lengths)
        return y if self.return_sequences else self._last_output(last), last[0]


class RNN(_OneState):
    """h' = f(W_ih x + b_ih + W_hh h + b_hh), with f = tanh, or relu by `nonlinearity`.

    State dict, for each layer k (and `_reverse`): weight_ih_l{k} [H, I], weight_hh_l{k} [H, H], bias_ih_l{k} [H],
    bias_hh_l{k} [H]. `activations` replaces `nonlinearity`. The module's docstring has the other arguments.
    """

    kind = "RNN"
    default_activations = ("Tanh",)

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        nonlinearity="tanh",
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        *,
        merge="concat",
        reverse=False,
        return_sequences=True,
        activations=None,
        clip=None,
        matmul=None,
        threads=None,
        rng=None,
    ):
        self.nonlinearity = check_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))
        if nonlinearity == "relu":
            self.default_activations = ("Relu",)
        self._configure(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge=merge,
            reverse=reverse,
            return_sequences=return_sequences,
            activations=activations,
            clip=clip,
            matmul=matmul,
            threads=threads,
            rng=rng,
        )

    @classmethod
    def from_onnx(
        cls,
        W,
        R,
        B=None,
        *,
        direction="forward",
        activations=None,
        activation_alpha=None,
        activation_beta=None,
        clip=None,
        layout=0,
        matmul=None,
        threads=None,
    ):
        """A layer from an ONNX RNN's inputs and attributes; layout=1 is batch_first."""
        return cls._from_onnx(
            W,
            R,
            B,
            None,
            direction,
            activations,
            activation_alpha,
            activation_beta,
            layout,
            clip=clip,
            matmul=matmul,
            threads=threads,
        )

    @classmethod
    def from_keras(cls, weights, *, activation="tanh", merge="concat", batch_first=True, matmul=None, threads=None):
        """A layer from `get_weights()` of a Keras SimpleRNN, or of a Bidirectional one."""
        return cls._from_keras(
            weights, False, (activation,), merge, batch_first=batch_first, matmul=matmul, threads=threads
        )


class GRU(_OneState):
    """r = f(W_ir x + b_ir + W_hr h + b_hr)
    z = f(W_iz x + b_iz + W_hz h + b_hz)
    n = g(W_in x + b_in + r * (W_hn h + b_hn))      or, with linear_before_reset=False,
    n = g(W_in x + b_in + W_hn (r * h) + b_hn)
    h' = (1 - z) * n + z * h,                       with f = sigmoid, g = tanh

    State dict, for each layer k (and `_reverse`), gates in the order r, z, n: weight_ih_l{k} [3 H, I],
    weight_hh_l{k} [3 H, H], bias_ih_l{k} [3 H], bias_hh_l{k} [3 H]. linear_before_reset=True is torch's; the module's
    docstring has the other arguments.
    """

    kind = "GRU"
    default_activations = ("Sigmoid", "Tanh")

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        *,
        merge="concat",
        linear_before_reset=True,
        reverse=False,
        return_sequences=True,
        activations=None,
        clip=None,
        matmul=None,
        threads=None,
        rng=None,
    ):
        self.linear_before_reset = check_flag(linear_before_reset, "linear_before_reset")
        self.cell_options = {"linear_before_reset": self.linear_before_reset}
        self._configure(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge=merge,
            reverse=reverse,
            return_sequences=return_sequences,
            activations=activations,
            clip=clip,
            matmul=matmul,
            threads=threads,
            rng=rng,
        )

    @classmethod
    def from_onnx(
        cls,
        W,
        R,
        B=None,
        *,
        direction="forward",
        activations=None,
        activation_alpha=None,
        activation_beta=None,
        clip=None,
        linear_before_reset=0,
        layout=0,
        matmul=None,
        threads=None,
    ):
        """A layer from an ONNX GRU's inputs and attributes; layout=1 is batch_first."""
        return cls._from_onnx(
            W,
            R,
            B,
            None,
            direction,
            activations,
            activation_alpha,
            activation_beta,
            layout,
            clip=clip,
            linear_before_reset=linear_before_reset,
            matmul=matmul,
            threads=threads,
        )

    @classmethod
    def from_keras(
        cls,
        weights,
        *,
        reset_after=True,
        activation="tanh",
        recurrent_activation="sigmoid",
        merge="concat",
        batch_first=True,
        matmul=None,
        threads=None,
    ):
        """A layer from `get_weights()` of a Keras GRU, or of a Bidirectional one. reset_after=True is Keras's default
        and has a bias [2, 3 * units]."""
        reset_after = check_flag(reset_after, "reset_after")
        return cls._from_keras(
            weights,
            reset_after,
            (recurrent_activation, activation),
            merge,
            linear_before_reset=reset_after,
            batch_first=batch_first,
            matmul=matmul,
            threads=threads,
        )


class LSTM(Recurrent):
    """i = f(W_ii x + b_ii + W_hi h + b_hi + p_i * c)
    f = f(W_if x + b_if + W_hf h + b_hf + p_f * c)  or, with input_forget, f = 1 - i
    g = g(W_ig x + b_ig + W_hg h + b_hg)
    c' = f * c + i * g
    o = f(W_io x + b_io + W_ho h + b_ho + p_o * c')
    h' = o * h(c')                                  or, with proj_size, h' = W_hr (o * h(c')),
    with f = sigmoid, g = h = tanh, and p = 0 unless peepholes=True

    State dict, for each layer k (and `_reverse`), gates in the order i, f, g, o: weight_ih_l{k} [4 H, I],
    weight_hh_l{k} [4 H, H or proj_size], bias_ih_l{k} [4 H], bias_hh_l{k} [4 H], weight_hr_l{k} [proj_size, H], and
    weight_peephole_l{k} [3 H] in the order i, f, o. The module's docstring has the other arguments.
    """

    kind = "LSTM"
    default_activations = ("Sigmoid", "Tanh", "Tanh")

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        proj_size=0,
        *,
        merge="concat",
        input_forget=False,
        peepholes=False,
        reverse=False,
        return_sequences=True,
        activations=None,
        clip=None,
        matmul=None,
        threads=None,
        rng=None,
    ):
        self.proj_size = check_size(proj_size, "proj_size", least=0)
        if self.proj_size and self.proj_size >= check_size(hidden_size, "hidden_size"):
            raise InputError(f"proj_size: {proj_size}, expected less than hidden_size = {hidden_size}")
        self.peepholes = check_flag(peepholes, "peepholes")
        self.input_forget = check_flag(input_forget, "input_forget")
        self.cell_options = {"input_forget": self.input_forget}
        self._configure(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge=merge,
            reverse=reverse,
            return_sequences=return_sequences,
            activations=activations,
            clip=clip,
            matmul=matmul,
            threads=threads,
            rng=rng,
        )

    def __call__(self, x, hx=None, lengths=None):
        """x [T, B, I], [B, T, I] with batch_first, [T, I], or packed; hx = (h0 [layers * directions, B, H or
        proj_size], c0 [layers * directions, B, H]), either may be None (without B if x has none); lengths [B]

        -> y, shaped like x with the size of h, or twice it for concatenated directions; (h, c), shaped like hx.
        """
        y, last = self._run(x, self._states(hx, "hx"), lengths)
        return y if self.return_sequences else self._last_output(last), last

    @classmethod
    def from_onnx(
        cls,
        W,
        R,
        B=None,
        P=None,
        *,
        direction="forward",
        activations=None,
        activation_alpha=None,
        activation_beta=None,
        clip=None,
        input_forget=0,
        layout=0,
        matmul=None,
        threads=None,
    ):
        """A layer from an ONNX LSTM's inputs and attributes; layout=1 is batch_first."""
        return cls._from_onnx(
            W,
            R,
            B,
            P,
            direction,
            activations,
            activation_alpha,
            activation_beta,
            layout,
            clip=clip,
            input_forget=input_forget,
            peepholes=P is not None,
            matmul=matmul,
            threads=threads,
        )

    @classmethod
    def from_keras(
        cls,
        weights,
        *,
        activation="tanh",
        recurrent_activation="sigmoid",
        merge="concat",
        batch_first=True,
        matmul=None,
        threads=None,
    ):
        """A layer from `get_weights()` of a Keras LSTM, or of a Bidirectional one."""
        return cls._from_keras(
            weights,
            False,
            (recurrent_activation, activation, activation),
            merge,
            batch_first=batch_first,
            matmul=matmul,
            threads=threads,
        )
