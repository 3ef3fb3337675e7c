"""Cells: one step of a recurrent layer, with torch's names, arguments and state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rnnfast.errors import InputError
from rnnfast.nn.checks import as_input
from rnnfast.nn.module import Module, SummaryRow
from rnnfast.nn.recurrent import GRU, LSTM, RNN

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.recurrent_layer import RecurrentLayer
    from rnnfast.nn.types import FloatArray, Gradients, LSTMState, Matmul, Seed, Shape, SummaryShape


class Cell(Module):
    """The base class of cells. A cell is a recurrent layer, `layer`, that is called with one time step."""

    is_cell = True
    takes_floats = True
    layer_class: ClassVar[type[RecurrentLayer]]
    """The class of the layer."""

    @property
    def kind(self) -> str:
        """ "RNN", "GRU" or "LSTM"."""
        return self.layer.kind

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
        self._configure(input_size, hidden_size, bias, matmul=matmul, threads=threads, rng=rng)

    def _configure(self, input_size, hidden_size, bias, *, matmul, threads, rng, **options):
        """Make the layer from the arguments of a constructor, and store these."""
        layer: Any = self.layer_class
        self.layer = layer(input_size, hidden_size, bias=bias, matmul=matmul, threads=threads, rng=rng, **options)
        self.input_size, self.hidden_size, self.bias = self.layer.input_size, self.layer.hidden_size, self.layer.bias
        self.matmul, self.threads = self.layer.matmul, self.layer.threads

    def shapes(self) -> dict[str, Shape]:
        return {name.removesuffix("_l0"): shape for name, shape in self.layer.shapes().items()}

    def state_dict(self):
        return {name.removesuffix("_l0"): array for name, array in self.layer.state_dict().items()}

    def prepare_weights(self, parameters):
        return self.layer.prepare_weights({f"{name}_l0": array for name, array in parameters.items()})

    def replace_weights(self, prepared):
        self.layer.replace_weights(prepared)

    def product_weights(self):
        return tuple(name.removesuffix("_l0") for name in self.layer.product_weights())

    def hold_weights_as(self, weight_type):
        self.weight_type = weight_type
        self.layer.hold_weights_as(weight_type)

    def __getstate__(self):
        return self.__dict__.copy()

    def __setstate__(self, state):
        self.__dict__.update(state)

    def _step(self, x):
        """Return x as the layer takes it: [1, B, input_size] or [1, input_size]."""
        x = as_input(x, "x")
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise InputError(
                f"x: shape is {list(x.shape)}, expected [B, {self.input_size}] or, without a batch, [{self.input_size}]"
            )
        return x[None]

    def _states(self, state, name, shape):
        """Return a state as the layer takes it, with an axis of layers; None stays None, as a whole or in part."""
        letters = "hc"[: self.layer.state_count]
        arrays = [
            None if a is None else as_input(a, f"{name}: {letter}")
            for letter, a in zip(letters, self.layer.split_state(state, name), strict=True)
        ]
        for letter, array in zip(letters, arrays, strict=True):
            if array is not None and array.shape != (*shape, self.hidden_size):
                raise InputError(
                    f"{name}: {letter} has shape {list(array.shape)}, expected {[*shape, self.hidden_size]}"
                )
        return self.layer.join_state(tuple(None if a is None else a[None] for a in arrays))

    def _without_layers(self, state):
        """Return a state of the layer without the axis of layers."""
        return self.layer.join_state(tuple(a[0] for a in self.layer.split_state(state, "state")))

    def forward(
        self, x: Any, state: Any = None, *, lengths: ArrayLike | None = None, training: bool = False, rng: Seed = None
    ) -> tuple[Any, Any, Any]:
        """Take one step and, in training, save what `backward` needs.

        Args:
            x: The input, as a call takes it.
            state: The state before the step, as a call takes it; None is zeros.
            lengths: None, as there is one step.
            training: Whether to save.
            rng: Not used, as there is no dropout.

        Returns:
            h', the state after the step, and an object for `backward` (None unless training).

        Raises:
            InputError: A shape does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        if lengths is not None:
            raise InputError(f"lengths: {self!r} takes one step")
        self._check_training(training)
        steps = self._step(x)
        before = self._states(state, "state", steps.shape[1:-1])
        y, last, saved = self.layer.forward(steps, before, training=training)
        return y[0], self._without_layers(last), saved

    def backward(
        self, dy: Any, dstate: Any, saved: Any, *, dx: bool = True
    ) -> tuple[FloatArray | None, Any, Gradients]:
        """Compute gradients from those of h' (`dy`) and of the state after the step, as recurrent layers do."""
        self.refuse_training()
        dlast = self.layer.split_state(dstate, "dstate")
        dlast = tuple(None if a is None else as_input(a, "dstate")[None] for a in dlast)
        dsteps = None if dy is None else as_input(dy, "dy")[None]
        dsteps, dinitial, dweights = self.layer.backward(dsteps, self.layer.join_state(dlast), saved, dx=dx)
        named = {name.removesuffix("_l0"): gradient for name, gradient in dweights.items()}
        return None if dsteps is None else dsteps[0], self._without_layers(dinitial), named

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        row = self.layer.summary_rows()[0]
        return [row._replace(layer=repr(self), output=(*(shape or ("B", ""))[:-1], self.hidden_size))]


class _OneStateCell(Cell):
    """The base class of RNNCell and GRUCell, whose state is h alone."""

    def __call__(self, x: ArrayLike, h: ArrayLike | None = None) -> FloatArray:
        """Take one step.

        Args:
            x: float32 [B, input_size], or [input_size] without a batch.
            h: The state before, float32 [B, hidden_size] or [hidden_size]; None is zeros.

        Returns:
            The state after, float32 of the shape of h.

        Raises:
            InputError: A shape does not fit.
            InputTypeError: A dtype does not fit.
        """
        return self.forward(x, h)[1]


class RNNCell(_OneStateCell):
    """One step of an RNN, as torch.nn.RNNCell:

        h' = f(W_ih x + b_ih + W_hh h + b_hh),    with f = tanh or relu

    State dict: weight_ih [H, I], weight_hh [H, H], bias_ih [H], bias_hh [H].

    Args:
        input_size: The size I of x's last axis.
        hidden_size: The size H of the state h.
        bias: Whether the cell has biases.
        nonlinearity: f, "tanh" or "relu".
        matmul: As in RNN.
        threads: As in RNN.
        rng: As in RNN.

    Raises:
        Error: As RNN does.
    """

    layer_class = RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        self._configure(
            input_size, hidden_size, bias, nonlinearity=nonlinearity, matmul=matmul, threads=threads, rng=rng
        )


class GRUCell(_OneStateCell):
    """One step of a GRU, as torch.nn.GRUCell; the equations are those of GRU.

    State dict, gates in the order r, z, n: weight_ih [3 H, I], weight_hh [3 H, H], bias_ih [3 H], bias_hh [3 H].

    Args:
        input_size: The size I of x's last axis.
        hidden_size: The size H of the state h.
        bias: Whether the cell has biases.
        matmul: As in GRU.
        threads: As in GRU.
        rng: As in GRU.

    Raises:
        Error: As GRU does.
    """

    layer_class = GRU


class LSTMCell(Cell):
    """One step of an LSTM, as torch.nn.LSTMCell; the equations are those of LSTM.

    State dict, gates in the order i, f, g, o: weight_ih [4 H, I], weight_hh [4 H, H], bias_ih [4 H], bias_hh [4 H].

    Args:
        input_size: The size I of x's last axis.
        hidden_size: The size H of the state h.
        bias: Whether the cell has biases.
        matmul: As in LSTM.
        threads: As in LSTM.
        rng: As in LSTM.

    Raises:
        Error: As LSTM does.
    """

    layer_class = LSTM

    def __call__(self, x: ArrayLike, hx: tuple[ArrayLike | None, ArrayLike | None] | None = None) -> LSTMState:
        """Take one step.

        Args:
            x: float32 [B, input_size], or [input_size] without a batch.
            hx: The state before, (h, c), float32 [B, hidden_size] or [hidden_size]; None, of one or both, is zeros.

        Returns:
            The state after, (h, c), float32 of the same shapes.

        Raises:
            InputError: A shape does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        return self.forward(x, hx)[1]
