"""RNN, LSTM and GRU with torch's names, arguments, shapes and state dicts, on the engine's cells.

The options that torch does not have are keyword arguments.

Lengths [B] may be in any order. Outputs after a row's length are zeros, and its last state is that of its last valid
step. A row of length 0 has zeros for both, whatever its initial state was.

A call takes a PackedSequence (rnnfast's or torch's) in place of x and lengths, whatever `batch_first` says. Then y is
packed in the same way, and the states, given and returned, have the rows in the order in which they were packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rnnfast.errors import InputError
from rnnfast.nn.checks import check_choice, check_flag, check_size
from rnnfast.nn.recurrent_layer import RecurrentLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from rnnfast.nn.packed import PackedSequence
    from rnnfast.nn.types import Activation, FloatArray, LSTMState, Matmul, Merge, Seed


class _OneState(RecurrentLayer):
    """The base class of RNN and GRU, whose state is h alone."""

    def __call__(
        self, x: ArrayLike | PackedSequence, h0: ArrayLike | None = None, lengths: ArrayLike | None = None
    ) -> tuple[Any, FloatArray]:
        """Run the layer.

        Args:
            x: float32 [T, B, I], [B, T, I] with batch_first, or [T, I] without a batch; or a PackedSequence.
            h0: The initial state, float32 [layers * directions, B, H], without B if x has no batch; None is zeros.
            lengths: Integers [B], the number of valid time steps of each row; None is T for all.

        Returns:
            y and the last state h. y has x's axes and the size H, or 2 H for concatenated directions; without
            return_sequences it has no time axis. h has the shape of h0. Both are float32; for a PackedSequence y is one
            too.

        Raises:
            InputError: A shape or length does not fit.
            InputTypeError: A dtype does not fit.
        """
        y, last = self.run_batch(x, (h0,), lengths)
        return y if self.return_sequences else self._last_output(last), last[0]


class RNN(_OneState):
    """A simple recurrent network, as torch.nn.RNN:

        h' = f(W_ih x + b_ih + W_hh h + b_hh),    with f = tanh or relu

    State dict, for each layer k (and with the suffix `_reverse`): weight_ih_l{k} [H, I], weight_hh_l{k} [H, H],
    bias_ih_l{k} [H], bias_hh_l{k} [H]. From the second layer on, I is the size of the merged output.

    Args:
        input_size: The size I of x's last axis.
        hidden_size: The size H of the state h.
        num_layers: The number of layers in the stack, at most 1024.
        nonlinearity: f, "tanh" or "relu"; `activations` replaces it.
        bias: Whether the layer has biases.
        batch_first: Whether x and y are [B, T, size] rather than [T, B, size].
        dropout: The probability of dropout between layers in training, from 0 to 1.
        bidirectional: Whether a second direction runs backwards.
        merge: How the outputs of two directions become one: "concat" (as in torch), "sum", "mul" or "average". The
            next layer of the stack gets the merged output.
        reverse: Whether the only direction runs backwards.
        return_sequences: Whether y has an output for each time step; False makes y each row's last output.
        activations: ONNX activations of the gate functions (f,): names or (name, alpha, beta). Twice as many give the
            reverse direction its own. None is the default ones.
        clip: The bound of all gates' pre-activations, more than 0; None is no bound.
        matmul: "packed" (rnnfast's own kernels, the same bits on every machine), "blas", or None for this processor's
            default.
        threads: The number of threads that a call may use; None is RNNFAST_NUM_THREADS, or 1 if that is not set. The
            bits do not depend on it. BLAS has threads of its own and ignores it.
        rng: A seed or a numpy Generator for the initial weights, uniform in +-1/sqrt(hidden_size); None draws them from
            fresh entropy.

    Raises:
        InputError: An argument is out of range, or arguments contradict each other.
        InputTypeError: An argument has the wrong type.
        LimitError: There are too many layers, or the weights are too large.
        UnsupportedError: An activation is unknown, or matmul="blas" without SciPy.
    """

    kind = "RNN"
    default_activations = ("Tanh",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        merge: Merge = "concat",
        reverse: bool = False,
        return_sequences: bool = True,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
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
        W: ArrayLike,
        R: ArrayLike,
        B: ArrayLike | None = None,
        *,
        direction: str = "forward",
        activations: Sequence[str] | None = None,
        activation_alpha: Sequence[float] | None = None,
        activation_beta: Sequence[float] | None = None,
        clip: float | None = None,
        layout: int = 0,
        matmul: Matmul = None,
        threads: int | None = None,
    ) -> RNN:
        """Make a layer of one RNN node of ONNX; the arguments are its inputs and attributes.

        Args:
            W: Input weights [directions, H, I], in ONNX's order of gates.
            R: Recurrent weights [directions, H, H].
            B: Biases [directions, 2 * H], or None.
            direction: "forward", "reverse" or "bidirectional".
            activations: Names of the activations, for each direction; None is ONNX's default.
            activation_alpha: Values of alpha, for the activations that take one, in their order.
            activation_beta: Values of beta, likewise.
            clip: The bound of the gates' pre-activations, or None.
            layout: 0 for x [T, B, I], 1 for [B, T, I] (batch_first).
            matmul: As in the constructor.
            threads: As in the constructor.

        Raises:
            InputError: An attribute is out of range.
            InputTypeError: A dtype or type does not fit.
            ModelError: A shape or the number of activations does not fit.
            UnsupportedError: An activation is unknown.
        """
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
    def from_keras(
        cls,
        weights: Sequence[ArrayLike],
        *,
        activation: Activation = "tanh",
        merge: Merge = "concat",
        batch_first: bool = True,
        matmul: Matmul = None,
        threads: int | None = None,
    ) -> RNN:
        """Make a layer of a Keras SimpleRNN, or of one in a Bidirectional.

        Args:
            weights: The result of `get_weights()` of the Keras layer.
            activation: Keras's argument: a name, or (name, alpha, beta) of an ONNX activation.
            merge: Keras's merge_mode, "concat", "sum", "mul", or "average" for its "ave".
            batch_first: As in the constructor; Keras has batches first.
            matmul: As in the constructor.
            threads: As in the constructor.

        Raises:
            InputError: An activation is unknown.
            InputTypeError: A dtype or type does not fit.
            ModelError: The number of arrays or a shape does not fit.
        """
        return cls._from_keras(
            weights, False, (activation,), merge, batch_first=batch_first, matmul=matmul, threads=threads
        )


class GRU(_OneState):
    """A gated recurrent unit, as torch.nn.GRU:

        r = f(W_ir x + b_ir + W_hr h + b_hr)
        z = f(W_iz x + b_iz + W_hz h + b_hz)
        n = g(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h,    with f = sigmoid, g = tanh

    With linear_before_reset=False, the default of ONNX's GRU:

        n = g(W_in x + b_in + W_hn (r * h) + b_hn)

    State dict, for each layer k (and with the suffix `_reverse`), gates in the order r, z, n: weight_ih_l{k} [3 H, I],
    weight_hh_l{k} [3 H, H], bias_ih_l{k} [3 H], bias_hh_l{k} [3 H]. From the second layer on, I is the size of the
    merged output.

    Args:
        input_size: The size I of x's last axis.
        hidden_size: The size H of the state h.
        num_layers: The number of layers in the stack, at most 1024.
        bias: Whether the layer has biases.
        batch_first: Whether x and y are [B, T, size] rather than [T, B, size].
        dropout: The probability of dropout between layers in training, from 0 to 1.
        bidirectional: Whether a second direction runs backwards.
        merge: How the outputs of two directions become one: "concat" (as in torch), "sum", "mul" or "average". The
            next layer of the stack gets the merged output.
        linear_before_reset: Whether the reset gate r acts after the product with W_hn (torch) or on h before it.
        reverse: Whether the only direction runs backwards.
        return_sequences: Whether y has an output for each time step; False makes y each row's last output.
        activations: ONNX activations of the gate functions (f, g): names or (name, alpha, beta). Twice as many give the
            reverse direction its own. None is the default ones.
        clip: The bound of all gates' pre-activations, more than 0; None is no bound.
        matmul: "packed" (rnnfast's own kernels, the same bits on every machine), "blas", or None for this processor's
            default.
        threads: The number of threads that a call may use; None is RNNFAST_NUM_THREADS, or 1 if that is not set. The
            bits do not depend on it. BLAS has threads of its own and ignores it.
        rng: A seed or a numpy Generator for the initial weights, uniform in +-1/sqrt(hidden_size); None draws them from
            fresh entropy.

    Raises:
        InputError: An argument is out of range, or arguments contradict each other.
        InputTypeError: An argument has the wrong type.
        LimitError: There are too many layers, or the weights are too large.
        UnsupportedError: An activation is unknown, or matmul="blas" without SciPy.
    """

    kind = "GRU"
    default_activations = ("Sigmoid", "Tanh")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        merge: Merge = "concat",
        linear_before_reset: bool = True,
        reverse: bool = False,
        return_sequences: bool = True,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
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
        W: ArrayLike,
        R: ArrayLike,
        B: ArrayLike | None = None,
        *,
        direction: str = "forward",
        activations: Sequence[str] | None = None,
        activation_alpha: Sequence[float] | None = None,
        activation_beta: Sequence[float] | None = None,
        clip: float | None = None,
        linear_before_reset: int = 0,
        layout: int = 0,
        matmul: Matmul = None,
        threads: int | None = None,
    ) -> GRU:
        """Make a layer of one GRU node of ONNX; the arguments are its inputs and attributes.

        Args:
            W: Input weights [directions, 3 * H, I], in ONNX's order of gates.
            R: Recurrent weights [directions, 3 * H, H].
            B: Biases [directions, 6 * H], or None.
            direction: "forward", "reverse" or "bidirectional".
            activations: Names of the activations, for each direction; None is ONNX's default.
            activation_alpha: Values of alpha, for the activations that take one, in their order.
            activation_beta: Values of beta, likewise.
            clip: The bound of the gates' pre-activations, or None.
            linear_before_reset: Whether the reset gate acts after the product with its weights; 1 or 0, as in ONNX.
            layout: 0 for x [T, B, I], 1 for [B, T, I] (batch_first).
            matmul: As in the constructor.
            threads: As in the constructor.

        Raises:
            InputError: An attribute is out of range.
            InputTypeError: A dtype or type does not fit.
            ModelError: A shape or the number of activations does not fit.
            UnsupportedError: An activation is unknown.
        """
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
        weights: Sequence[ArrayLike],
        *,
        reset_after: bool = True,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        merge: Merge = "concat",
        batch_first: bool = True,
        matmul: Matmul = None,
        threads: int | None = None,
    ) -> GRU:
        """Make a layer of a Keras GRU, or of one in a Bidirectional.

        Args:
            weights: The result of `get_weights()` of the Keras layer.
            reset_after: Keras's argument; its default True has a bias [2, 3 * units].
            activation: Keras's argument: a name, or (name, alpha, beta) of an ONNX activation.
            recurrent_activation: Likewise, of the gates.
            merge: Keras's merge_mode, "concat", "sum", "mul", or "average" for its "ave".
            batch_first: As in the constructor; Keras has batches first.
            matmul: As in the constructor.
            threads: As in the constructor.

        Raises:
            InputError: An activation is unknown.
            InputTypeError: A dtype or type does not fit.
            ModelError: The number of arrays or a shape does not fit.
        """
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


class LSTM(RecurrentLayer):
    """A long short-term memory, as torch.nn.LSTM, with ONNX's peepholes and input_forget as options:

        i = f(W_ii x + b_ii + W_hi h + b_hi + p_i * c)
        f = f(W_if x + b_if + W_hf h + b_hf + p_f * c)    or, with input_forget, f = 1 - i
        g = g(W_ig x + b_ig + W_hg h + b_hg)
        c' = f * c + i * g
        o = f(W_io x + b_io + W_ho h + b_ho + p_o * c')
        h' = o * h(c')    or, with proj_size, h' = W_hr (o * h(c'))

    The gate functions are f = sigmoid and g = h = tanh; p is 0 unless peepholes=True.

    State dict, for each layer k (and with the suffix `_reverse`), gates in the order i, f, g, o: weight_ih_l{k}
    [4 H, I], weight_hh_l{k} [4 H, H or proj_size], bias_ih_l{k} [4 H], bias_hh_l{k} [4 H], weight_hr_l{k}
    [proj_size, H], and weight_peephole_l{k} [3 H] in the order i, f, o. From the second layer on, I is the size of the
    merged output.

    Args:
        input_size: The size I of x's last axis.
        hidden_size: The size H of the state h.
        num_layers: The number of layers in the stack, at most 1024.
        bias: Whether the layer has biases.
        batch_first: Whether x and y are [B, T, size] rather than [T, B, size].
        dropout: The probability of dropout between layers in training, from 0 to 1.
        bidirectional: Whether a second direction runs backwards.
        proj_size: The size of h after a projection, less than hidden_size; 0 is none.
        merge: How the outputs of two directions become one: "concat" (as in torch), "sum", "mul" or "average". The
            next layer of the stack gets the merged output.
        input_forget: Whether the forget gate is 1 - i.
        peepholes: Whether the gates also see c.
        reverse: Whether the only direction runs backwards.
        return_sequences: Whether y has an output for each time step; False makes y each row's last output.
        activations: ONNX activations of the gate functions (f, g, h): names or (name, alpha, beta). Twice as many give
            the reverse direction its own. None is the default ones.
        clip: The bound of all gates' pre-activations, more than 0; None is no bound.
        matmul: "packed" (rnnfast's own kernels, the same bits on every machine), "blas", or None for this processor's
            default.
        threads: The number of threads that a call may use; None is RNNFAST_NUM_THREADS, or 1 if that is not set. The
            bits do not depend on it. BLAS has threads of its own and ignores it.
        rng: A seed or a numpy Generator for the initial weights, uniform in +-1/sqrt(hidden_size); None draws them from
            fresh entropy.

    Raises:
        InputError: An argument is out of range, or arguments contradict each other.
        InputTypeError: An argument has the wrong type.
        LimitError: There are too many layers, or the weights are too large.
        UnsupportedError: An activation is unknown, or matmul="blas" without SciPy.
    """

    kind = "LSTM"
    state_count = 2
    default_activations = ("Sigmoid", "Tanh", "Tanh")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        merge: Merge = "concat",
        input_forget: bool = False,
        peepholes: bool = False,
        reverse: bool = False,
        return_sequences: bool = True,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
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

    def __call__(
        self,
        x: ArrayLike | PackedSequence,
        hx: tuple[ArrayLike | None, ArrayLike | None] | None = None,
        lengths: ArrayLike | None = None,
    ) -> tuple[Any, LSTMState]:
        """Run the layer.

        Args:
            x: float32 [T, B, I], [B, T, I] with batch_first, or [T, I] without a batch; or a PackedSequence.
            hx: The initial state (h0, c0), float32 [layers * directions, B, H or proj_size] and
                [layers * directions, B, H], without B if x has no batch; None, of one or both, is zeros.
            lengths: Integers [B], the number of valid time steps of each row; None is T for all.

        Returns:
            y and the last state (h, c). y has x's axes and the size of h, or twice it for concatenated directions;
            without return_sequences it has no time axis. h and c have the shapes of h0 and c0. All are float32; for a
            PackedSequence y is one too.

        Raises:
            InputError: A shape or length does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        y, last = self.run_batch(x, self.split_state(hx, "hx"), lengths)
        return y if self.return_sequences else self._last_output(last), last

    @classmethod
    def from_onnx(
        cls,
        W: ArrayLike,
        R: ArrayLike,
        B: ArrayLike | None = None,
        P: ArrayLike | None = None,
        *,
        direction: str = "forward",
        activations: Sequence[str] | None = None,
        activation_alpha: Sequence[float] | None = None,
        activation_beta: Sequence[float] | None = None,
        clip: float | None = None,
        input_forget: int = 0,
        layout: int = 0,
        matmul: Matmul = None,
        threads: int | None = None,
    ) -> LSTM:
        """Make a layer of one LSTM node of ONNX; the arguments are its inputs and attributes.

        Args:
            W: Input weights [directions, 4 * H, I], in ONNX's order of gates.
            R: Recurrent weights [directions, 4 * H, H].
            B: Biases [directions, 8 * H], or None.
            P: Peephole weights [directions, 3 * H], or None.
            direction: "forward", "reverse" or "bidirectional".
            activations: Names of the activations, for each direction; None is ONNX's default.
            activation_alpha: Values of alpha, for the activations that take one, in their order.
            activation_beta: Values of beta, likewise.
            clip: The bound of the gates' pre-activations, or None.
            input_forget: Whether the forget gate is 1 - i; 1 or 0, as in ONNX.
            layout: 0 for x [T, B, I], 1 for [B, T, I] (batch_first).
            matmul: As in the constructor.
            threads: As in the constructor.

        Raises:
            InputError: An attribute is out of range.
            InputTypeError: A dtype or type does not fit.
            ModelError: A shape or the number of activations does not fit.
            UnsupportedError: An activation is unknown.
        """
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
        weights: Sequence[ArrayLike],
        *,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        merge: Merge = "concat",
        batch_first: bool = True,
        matmul: Matmul = None,
        threads: int | None = None,
    ) -> LSTM:
        """Make a layer of a Keras LSTM, or of one in a Bidirectional.

        Args:
            weights: The result of `get_weights()` of the Keras layer.
            activation: Keras's argument: a name, or (name, alpha, beta) of an ONNX activation.
            recurrent_activation: Likewise, of the gates.
            merge: Keras's merge_mode, "concat", "sum", "mul", or "average" for its "ave".
            batch_first: As in the constructor; Keras has batches first.
            matmul: As in the constructor.
            threads: As in the constructor.

        Raises:
            InputError: An activation is unknown.
            InputTypeError: A dtype or type does not fit.
            ModelError: The number of arrays or a shape does not fit.
        """
        return cls._from_keras(
            weights,
            False,
            (recurrent_activation, activation, activation),
            merge,
            batch_first=batch_first,
            matmul=matmul,
            threads=threads,
        )
