"""The base class of RNN, LSTM and GRU: a stack of layers of one kind of cell, forward and backward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, ModelError, UnsupportedError, no_memory
from rnnfast.native import _backward, _engine, _kernels
from rnnfast.native.cell_activations import as_activation, as_tuple, resolve
from rnnfast.nn import convert, packed
from rnnfast.nn.checks import (
    MAX_LAYERS,
    as_generator,
    as_input,
    check_choice,
    check_flag,
    check_lengths,
    check_number,
    check_shape,
    check_size,
    check_weights,
)
from rnnfast.nn.dropout import draw, drop
from rnnfast.nn.linear import uniform
from rnnfast.nn.module import Module, Sizes, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.packed import PackedSequence
    from rnnfast.nn.types import FloatArray, Gradients, Seed, Shape, SummaryShape
    from rnnfast.streaming.layer_pool import LayerPool
    from rnnfast.streaming.layer_stream import LayerStream

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

_KERAS_ACTIVATIONS = {
    "linear": ("Affine", 1.0, 0.0),
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "elu": "Elu",
    "softplus": "Softplus",
    "softsign": "Softsign",
}
"""Keras's activation -> ONNX's. hard_sigmoid is missing, as it is ambiguous: ("HardSigmoid", 1/6, 0.5) in Keras 3,
("HardSigmoid", 0.2, 0.5) before it."""

PRODUCTS = ("weight_ih", "weight_hh", "weight_hr")
"""The beginnings of the names of matrices in a state dict."""

_HALF = np.float32(0.5)
MERGES: dict[str, tuple[Any, Any]] = {
    "concat": (lambda a, b: np.concatenate([a, b], axis=-1), lambda a, b, dy: np.split(dy, 2, axis=-1)),
    "sum": (lambda a, b: a + b, lambda a, b, dy: (dy, dy)),
    "mul": (lambda a, b: a * b, lambda a, b, dy: (dy * b, dy * a)),
    "average": (lambda a, b: (a + b) * _HALF, lambda a, b, dy: (dy * _HALF, dy * _HALF)),
}
"""merge -> (function that merges the outputs a and b of two directions, function that returns their gradients)"""


class RecurrentSaved:
    """The values that `forward` saves for `backward`: for each layer the engine's tape and the dropout mask."""

    __slots__ = ("module", "batched", "layers", "last")

    batched: bool
    """True if x has a batch axis."""
    last: Any
    """The last h of the top layer, [directions, B, size]."""

    def __init__(self, module: RecurrentLayer) -> None:
        self.module = module
        self.layers: list[tuple[Any, np.ndarray | None]] = []  # (tape, dropout mask)

    @property
    def nbytes(self) -> int:
        """Bytes held beyond the arguments and results of `forward`."""
        total = 0
        below: Any = None
        for tape, mask in self.layers:
            total += tape.nbytes + tape.y.nbytes + (0 if mask is None else mask.nbytes)
            if below is not None and not np.may_share_memory(tape.x, below.y):
                total += tape.x.nbytes  # a copy, made by merging directions or by dropout
            below = tape
        result = self.module.return_sequences and self.module.merge == "concat"
        return total - result * below.y.nbytes


class RecurrentLayer(Module):
    """A stack of recurrent layers of one kind of cell; the base class of RNN, GRU and LSTM.

    Other modules of rnnfast use these members, beside the public methods and those that `Module` names:
    `reversed_directions`, `resolved_activations`, `output_size`, `merged_size`, `state_count`, `state_widths`,
    `run_batch`, `validate_batch`, `split_state` and `join_state`.
    """

    kind: ClassVar[str]
    """"RNN", "GRU" or "LSTM"."""
    default_activations: tuple[str, ...]
    state_count: ClassVar[int] = 1
    """Number of arrays in a state: 1 (h), or 2 for LSTM (h and c)."""
    takes_floats = True
    proj_size = 0
    peepholes = False
    cell_options: dict[str, Any] = {}
    """Further keyword arguments of every `_engine.Cell`."""

    reversed_directions: tuple[bool, ...]
    """For each direction, whether it runs backwards."""
    resolved_activations: tuple[tuple[tuple[str, float, float], ...], ...]
    """For each direction, the (name, alpha, beta) of its gate functions."""

    def _configure(
        self,
        input_size,
        hidden_size,
        num_layers,
        bias,
        batch_first,
        dropout,
        bidirectional,
        *,
        merge,
        reverse,
        return_sequences,
        activations,
        clip,
        matmul,
        threads,
        rng,
    ):
        """Check and store the arguments of a constructor."""
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.num_layers = check_size(num_layers, "num_layers")
        if self.num_layers > MAX_LAYERS:
            raise LimitError(f"num_layers: {num_layers} is more than the limit of {MAX_LAYERS}")
        self.bias, self.batch_first = check_flag(bias, "bias"), check_flag(batch_first, "batch_first")
        self.bidirectional = check_flag(bidirectional, "bidirectional")
        self.dropout = check_number(dropout, "dropout", 0.0, 1.0)
        self.merge = check_choice(merge, "merge", tuple(MERGES))
        self.reverse = check_flag(reverse, "reverse")
        self.return_sequences = check_flag(return_sequences, "return_sequences")
        self.clip = None if clip is None else check_number(clip, "clip", 0.0, math.inf)
        self.matmul = _kernels.check_matmul(matmul)
        self._use_threads(threads)
        if self.clip == 0:
            raise InputError(f"clip: {clip!r}, expected more than 0")
        if self.bidirectional and self.reverse:
            raise InputError("reverse: a bidirectional layer has both directions")
        if merge != "concat" and not self.bidirectional:
            raise InputError(f"merge: {merge!r} needs bidirectional=True")

        self.reversed_directions = (False, True) if self.bidirectional else (self.reverse,)
        defaults = (resolve(self.default_activations),) * len(self.reversed_directions)
        activations = None if activations is None else as_tuple(activations, "activations")
        self.resolved_activations = defaults if activations is None else self._resolve(activations)
        self.activations = None if self.resolved_activations == defaults else activations
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    @property
    def output_size(self) -> int:
        """The size of h, and of one direction's output."""
        return self.proj_size or self.hidden_size

    @property
    def state_widths(self) -> Shape:
        """The sizes of the state's arrays: (h,) or, for LSTM, (h, c)."""
        return (self.output_size, self.hidden_size)[: self.state_count]

    @property
    def merged_size(self) -> int:
        """The size of a layer's output, after its directions are merged."""
        return self.output_size * (len(self.reversed_directions) if self.merge == "concat" else 1)

    def _resolve(self, activations):
        """Return `resolved_activations` for the argument `activations`."""
        count = len(self.default_activations)
        triples = tuple(as_activation(a) for a in activations)
        if len(triples) == count:
            return (triples,) * len(self.reversed_directions)
        if len(triples) == count * len(self.reversed_directions):
            return triples[:count], triples[count:]
        raise InputError(f"activations: got {len(triples)}, expected {count} for each direction")

    def shapes(self) -> dict[str, Shape]:
        gates = len(convert.GATES[self.kind]["torch"]) * self.hidden_size
        shapes: dict[str, Shape] = {}
        for layer in range(self.num_layers):
            for direction in range(len(self.reversed_directions)):
                end = convert.suffix(layer, direction)
                shapes[f"weight_ih_{end}"] = gates, self.merged_size if layer else self.input_size
                shapes[f"weight_hh_{end}"] = gates, self.output_size
                if self.bias:
                    shapes[f"bias_ih_{end}"] = shapes[f"bias_hh_{end}"] = (gates,)
                if self.proj_size:
                    shapes[f"weight_hr_{end}"] = self.proj_size, self.hidden_size
                if self.peepholes:
                    shapes[f"weight_peephole_{end}"] = (3 * self.hidden_size,)
        return shapes

    def product_weights(self):
        return tuple(name for name in self.shapes() if name.startswith(PRODUCTS))

    def sizes(self) -> Sizes:
        return "last", self.input_size, self.merged_size

    def _draw(self, rng):
        return uniform(self.shapes(), 1 / np.sqrt(self.hidden_size), rng)

    def _pack(self, parameters):
        return tuple(
            tuple(
                _engine.Cell(
                    self.kind,
                    activations=self.resolved_activations[direction],
                    clip=self.clip,
                    matmul=self.matmul,
                    weight_type=self.weight_type,
                    **convert.to_onnx(self.kind, parameters, convert.suffix(layer, direction)),
                    **self.cell_options,
                )
                for direction in range(len(self.reversed_directions))
            )
            for layer in range(self.num_layers)
        )

    def call_in_sequence(self, x: Any, lengths: ArrayLike | None) -> Any:
        return self(x, lengths=lengths)[0]

    def stream(self, state: Any = None) -> LayerStream:
        """Return a LayerStream, which takes one time step after another and holds the state.

        Args:
            state: The initial state in the form that a call takes: h or, for LSTM, (h, c); None is zeros.

        Raises:
            InputError: The layer runs backwards (reverse or bidirectional), or the state does not fit.
            InputTypeError: The state has the wrong type.
        """
        from rnnfast.streaming.layer_stream import LayerStream

        return LayerStream(self, (self,), state)

    def pool(self, max_streams: int) -> LayerPool:
        """Return a LayerPool, which steps many streams in one batch; each gets the bits that it would get alone.

        Args:
            max_streams: The maximum number of open streams.

        Raises:
            InputError: The layer runs backwards (reverse or bidirectional), or `max_streams` is less than 1.
            InputTypeError: `max_streams` is no integer.
        """
        from rnnfast.streaming.layer_pool import LayerPool

        return LayerPool(self, (self,), max_streams)

    def forward(
        self,
        x: ArrayLike | PackedSequence,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: Seed = None,
    ) -> tuple[Any, Any, RecurrentSaved | None]:
        """Run the layer and, in training, save what `backward` needs.

        RNN with tanh or relu, and LSTM and GRU with their default activations, have gradients.

        Args:
            x: The input, as a call takes it. Training takes a padded array and lengths, not a PackedSequence.
            state: The initial state in the form that a call takes: h or, for LSTM, (h, c); None is zeros.
            lengths: Integers [B], the number of valid time steps of each row.
            training: Whether to apply dropout and save. If False, y has the bits of a call.
            rng: A seed or a numpy Generator for the dropout between layers; the same seed gives the same bits.

        Returns:
            y, the last state, and an object for `backward` of this layer (None unless training). The object's `nbytes`
            is the size of what it holds. It refers to x, y and both states, which must not be written to before
            `backward`.

        Raises:
            InputError: A shape or value does not fit.
            InputTypeError: A dtype or type does not fit.
            UnsupportedError: training=True with a PackedSequence, other activations, clip, peepholes or input_forget,
                or a quantised layer.
        """
        states = self.split_state(state, "state")
        saved = RecurrentSaved(self) if self._check_training(training) else None
        rng = as_generator(rng) if self.dropout or rng is not None else None
        y, last = self.run_batch(x, states, lengths, saved, rng)
        return y if self.return_sequences else self._last_output(last), self.join_state(last), saved

    def backward(
        self, dy: Any, dstate: Any, saved: Any, *, dx: bool = True
    ) -> tuple[FloatArray | None, Any, Gradients]:
        """Compute gradients from those of the results of `forward`, by back-propagation through time.

        It changes nothing, and may be called more than once with the same `saved`. A row of length 0 gets zeros.

        Args:
            dy: The gradient of y: float32 of its shape; None is zeros.
            dstate: The gradient of the last state, in its form; None is zeros, also in (dh, None) and (None, dc).
            saved: The third result of `forward` with training=True.
            dx: Whether to compute the gradient of x.

        Returns:
            The gradients of x (None with dx=False), of the initial state, and of the parameters by name.

        Raises:
            InputError: A shape does not fit, or `saved` is another layer's.
            InputTypeError: A dtype is wrong, or `saved` is not an object that `forward` returned.
        """
        self.refuse_training()
        if not isinstance(saved, RecurrentSaved):
            raise InputTypeError(f"saved: got a {type(saved).__name__}, expected what forward(training=True) returned")
        if saved.module is not self:
            raise InputError(
                f"saved: the forward of another layer, {saved.module!r}, returned it, expected that of this {self!r}"
            )
        directions = len(self.reversed_directions)
        top = saved.layers[-1][0]
        rows = top.y.shape[1]
        dlast = self._state_gradients(dstate, rows, saved.batched)
        dy = self._output_gradient(dy, dlast, saved)
        dinitial: Any = []
        dweights: Gradients = {}
        for layer in range(self.num_layers - 1, -1, -1):
            tape, mask = saved.layers[layer]
            if mask is not None:
                dy = drop(dy, mask, self.dropout)
            halves = tape.y[:, :, 0], tape.y[:, :, -1]
            dys = (dy,) if directions == 1 or dy is None else MERGES[self.merge][1](*halves, dy)
            span = slice(layer * directions, (layer + 1) * directions)
            dy, *dstates, gradients = tape.backward(
                None if dy is None else dys, *(d[span] for d in dlast), dx=dx or layer > 0, threads=self.thread_count
            )
            dinitial.append(dstates)
            for direction, cell_gradients in enumerate(gradients):
                end = convert.suffix(layer, direction)
                dweights |= {f"{name}_{end}": gradient for name, gradient in cell_gradients.items()}
        dinitial = tuple(np.concatenate(parts) for parts in list(zip(*dinitial[::-1]))[: self.state_count])
        if not saved.batched:
            dinitial = tuple(d[:, 0] for d in dinitial)
        if dy is not None:
            dy = dy[:, 0] if not saved.batched else dy.swapaxes(0, 1) if self.batch_first else dy
        return dy, self.join_state(dinitial), {name: dweights[name] for name in self.shapes()}

    def _state_gradients(self, dstate, rows, batched):
        """Return copies of the last states' gradients, [layers * directions, B, size], with zeros for None."""
        count = self.num_layers * len(self.reversed_directions)
        dlast = []
        for d, name, width in zip(self.split_state(dstate, "dstate"), ("dh", "dc"), self.state_widths):
            if d is None:
                dlast.append(np.zeros((count, rows, width), np.float32))
            else:
                d = d if batched else _unsqueeze(d, name)
                dlast.append(self._check_state(d, name, rows, width).copy())
        return dlast

    def _output_gradient(self, dy, dlast, saved):
        """Return dy as [T, B, size], or None.

        With return_sequences=False it is added to `dlast`, the gradients of the last states, and None is returned.
        """
        steps, rows = saved.layers[-1][0].y.shape[:2]
        if dy is None:
            return None
        dy = as_input(dy, "dy")
        lead = (steps,) * self.return_sequences
        if saved.batched:
            lead = (rows, *lead) if self.batch_first else (*lead, rows)
        check_shape(dy, (*lead, self.merged_size), "dy", "shape of y")
        if not saved.batched:
            dy = dy[..., None, :]
        elif self.batch_first and self.return_sequences:
            dy = dy.swapaxes(0, 1)
        if self.return_sequences:
            return dy
        directions = len(self.reversed_directions)
        top = dlast[0][-directions:]
        top += dy if directions == 1 else np.stack(MERGES[self.merge][1](*saved.last, dy))
        return None

    def split_state(self, state: Any, name: str) -> tuple[Any, ...]:
        """Return (h,) or, for LSTM, (h, c) from a state in the form of a call; arrays may be None."""
        if self.state_count == 1:
            return (state,)
        if state is None:
            return None, None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise InputTypeError(f"{name}: got a {type(state).__name__}, expected (h, c)")
        return tuple(state)

    def join_state(self, states: tuple[Any, ...]) -> Any:
        """Return a state in the form of a call: the inverse of `split_state`."""
        return states[0] if self.state_count == 1 else states

    def _last_output(self, last):
        """Return each row's last output [B, size], with the directions merged."""
        top = last[0][-len(self.reversed_directions) :]
        return top[0] if len(top) == 1 else MERGES[self.merge][0](*top)

    def run_batch(
        self, x: Any, states: Any, lengths: Any, saved: RecurrentSaved | None = None, rng: Any = None
    ) -> tuple[Any, Any]:
        """Run the stack on a batch, a sequence or a packed sequence.

        Args:
            x: The input, as a call takes it.
            states: The initial arrays (h,) or (h, c); None is zeros.
            lengths: Integers [B], or None.
            saved: In training, the object that gets the tapes of the layers.
            rng: In training, the numpy Generator for dropout.

        Returns:
            y of all time steps, and the tuple of last states.
        """
        try:
            return self._run_batch(x, states, lengths, saved, rng)
        except MemoryError as error:
            raise no_memory(error) from None

    def _run_batch(self, x, states, lengths, saved, rng):
        weights = self.loaded_weights or self.current_weights()
        stack = weights[1]
        if lengths is None and self.merge == "concat" and saved is None:
            done = _engine.forward(stack, self.reversed_directions, x, states, self.batch_first, self.thread_count)
            if done is not None:
                return done
        names = ("h0", "c0")[: len(states)]
        pack = None
        ragged: dict[str, Any]
        if packed.is_packed(x):
            pack, x = self._packed_batch(x, lengths, saved)
            batched, rows, ragged = True, int(pack.batch_sizes[0]), {"batch_sizes": pack.batch_sizes}
        else:
            x, batched = self.validate_batch(x)
            rows, ragged = x.shape[1], {"sequence_lens": check_lengths(lengths, *x.shape[:2]) if batched else None}
        if not batched:
            if lengths is not None:
                raise InputError("lengths: x has no batch axis")
            states = [s if s is None else _unsqueeze(s, name) for s, name in zip(states, names, strict=True)]
        initial = [self._check_state(s, name, rows, width) for s, name, width in zip(states, names, self.state_widths)]
        if pack is not None:
            initial = [s if s is None else packed.sort(pack, s, 1) for s in initial]

        layer_states = []
        tape: Any = None
        directions = len(self.reversed_directions)
        for layer, cells in enumerate(stack):
            span = slice(layer * directions, (layer + 1) * directions)
            h, c = (None if s is None else s[span] for s in (*initial, None)[:2])
            y = self._outputs(*x.shape[:2])
            if saved is None:
                y_h, y_c = _engine.recurrent(
                    cells, self.reversed_directions, x, y.swapaxes(1, 2), h, c, threads=self.thread_count, **ragged
                )
            else:
                self._differentiable(weights[0], layer, cells)
                y_h, y_c, tape = _backward.record(
                    cells, self.reversed_directions, x, y, h, c, threads=self.thread_count, **ragged
                )
            layer_states.append((y_h, y_c))
            if self.merge == "concat":
                x = y.reshape(*y.shape[:2], self.merged_size)
            else:
                x = MERGES[self.merge][0](y[:, :, 0], y[:, :, 1])
            if saved is not None:
                mask = None
                if self.dropout and layer < self.num_layers - 1:
                    mask = draw(x.shape, self.dropout, rng)
                    x = drop(x, mask, self.dropout)
                saved.layers.append((tape, mask))
        last = tuple(np.concatenate(parts) for parts in list(zip(*layer_states))[: len(states)])
        if saved is not None:
            saved.batched, saved.last = batched, last[0][-directions:]

        if pack is not None:
            return pack._replace(data=x[:, 0]), tuple(packed.unsort(pack, s, 1) for s in last)
        y = x.swapaxes(0, 1) if self.batch_first and batched else x
        return (y, last) if batched else (y[:, 0], tuple(s[:, 0] for s in last))

    def _outputs(self, steps, rows):
        """Allocate the output of one layer, [T, B, D, O], in the memory order of y."""
        shape = len(self.reversed_directions), self.output_size
        if self.batch_first:
            return np.empty((rows, steps, *shape), np.float32).swapaxes(0, 1)
        return np.empty((steps, rows, *shape), np.float32)

    def _differentiable(self, parameters, layer, cells):
        """Prepare the layer's cells for `backward`, once for these weights."""
        for direction, cell in enumerate(cells):
            if not cell.differentiable:
                raise UnsupportedError(
                    f"{self!r} has no gradients: they need the default activations, and no clip, "
                    "peepholes or input_forget"
                )
            if cell.gradient is None:
                end = convert.suffix(layer, direction)
                cell.gradient = _backward.Gradient(
                    cell, *(parameters.get(f"weight_{name}_{end}") for name in ("ih", "hh", "hr"))
                )

    def validate_batch(self, x: Any) -> tuple[FloatArray, bool]:
        """Return x as [T, B, I], and whether it has a batch axis."""
        x = as_input(x, "x")
        axes = ("B, T, " if self.batch_first else "T, B, ") + f"{self.input_size}"
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise InputError(
                f"x: shape is {list(x.shape)}, expected [{axes}] or, without a batch, [T, {self.input_size}]"
            )
        if x.ndim == 2:
            return x[:, None], False
        return (x.swapaxes(0, 1) if self.batch_first else x), True

    def _packed_batch(self, x, lengths, saved):
        """Return a packed sequence as a PackedSequence, and its data as [N, 1, I]."""
        if lengths is not None:
            raise InputError("lengths: x is a packed sequence, which has its own")
        if saved is not None:
            raise UnsupportedError("x: a packed sequence, which has no gradients; expected a padded array and lengths=")
        pack = packed.checked(x)
        data = as_input(pack.data, "x.data")
        check_shape(data, (len(data), self.input_size), "x.data", "sum of lengths, input_size")
        return pack, data[:, None]

    def _check_state(self, state: Any, name: str, rows: int, width: int) -> Any:
        """Return an array of a state as float32 [layers * directions, rows, width]; None stays None."""
        if state is None:
            return None
        state = as_input(state, name)
        count = self.num_layers * len(self.reversed_directions)
        check_shape(state, (count, rows, width), name, "layers * directions, batch, size")
        return state

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        if shape is None or len(shape) != 3:
            shape = ("B", "T", self.input_size) if self.batch_first else ("T", "B", self.input_size)
        rows = []
        sizes = self.shapes()
        for layer in range(self.num_layers):
            layer_sizes = {n: s for n, s in sizes.items() if n.removesuffix("_reverse").endswith(f"_l{layer}")}
            parameters = sum(map(math.prod, layer_sizes.values()))
            products = sum(math.prod(s) for s in layer_sizes.values() if len(s) == 2)
            name = repr(self) if self.num_layers == 1 else f"{self!r} layer {layer}"
            output = (*shape[:-1], self.merged_size)
            rows.append(SummaryRow(name, output, parameters, 2 * products, self._nbytes(layer_sizes)))
        return rows

    @classmethod
    def _from_onnx(cls: Any, W, R, B, P, direction, activations, activation_alpha, activation_beta, layout, **options):
        """Make a layer from the inputs and attributes of an ONNX node."""
        check_choice(direction, "direction", tuple(_DIRECTIONS))
        check_choice(layout, "layout", (0, 1))
        input_size, hidden_size, directions, parameters = convert.from_onnx(cls.kind, W, R, B, P)
        if directions != len(_DIRECTIONS[direction]):
            raise ModelError(
                f"W: shape is {list(np.shape(W))}, "
                f"expected {len(_DIRECTIONS[direction])} first for direction={direction!r}"
            )
        if activations is not None:
            activations = resolve(activations, activation_alpha, activation_beta)
            expected = directions * len(cls.default_activations)
            if len(activations) != expected:
                raise ModelError(
                    f"activations: got {len(activations)}, expected {expected} for direction={direction!r}"
                )
        layer = cls(
            input_size,
            hidden_size,
            bias=B is not None,
            batch_first=layout == 1,
            bidirectional=direction == "bidirectional",
            reverse=direction == "reverse",
            activations=activations,
            **options,
        )
        layer.load_state_dict(parameters)
        return layer

    @classmethod
    def _from_keras(cls: Any, weights, two_biases, activations, merge, **options):
        """Make a layer from the weights of a Keras layer."""
        input_size, hidden_size, directions, parameters = convert.from_keras(cls.kind, weights, two_biases=two_biases)
        layer = cls(
            input_size,
            hidden_size,
            bias="bias_ih_l0" in parameters,
            bidirectional=directions == 2,
            activations=[_keras_activation(a) for a in activations],
            merge=merge,
            **options,
        )
        layer.load_state_dict(parameters)
        return layer


def _keras_activation(value):
    """Return ONNX's activation for Keras's name; a (name, alpha, beta) of ONNX is returned as it is."""
    if not isinstance(value, str):
        return value
    if value not in _KERAS_ACTIVATIONS:
        raise InputError(
            f"activation: {value!r} is none of {', '.join(_KERAS_ACTIVATIONS)}; "
            "others are given as (name, alpha, beta) of ONNX"
        )
    return _KERAS_ACTIVATIONS[value]


def _unsqueeze(state, name):
    """Add the batch axis to an initial state that has none."""
    state = as_input(state, name)
    if state.ndim != 2:
        raise InputError(f"{name}: shape is {list(state.shape)}, expected [layers * directions, size]: x has no batch")
    return state[:, None]
