"""What RNN, LSTM and GRU share: a stack of layers of one kind of cell, forward and backward."""

import math

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, ModelError, UnsupportedError
from rnnfast.native import _backward, _engine
from rnnfast.native.cell_activations import as_activation, as_tuple, resolve
from rnnfast.nn import convert, packed
from rnnfast.nn.checks import (
    MAX_LAYERS,
    as_generator,
    as_input,
    check_choice,
    check_flag,
    check_lengths,
    check_matmul,
    check_number,
    check_shape,
    check_size,
    check_weights,
)
from rnnfast.nn.dropout import draw, drop
from rnnfast.nn.linear import uniform
from rnnfast.nn.module import Module, SummaryRow
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
"""Without hard_sigmoid, which is ("HardSigmoid", 1/6, 0.5) in Keras 3 and ("HardSigmoid", 0.2, 0.5) before it."""

_HALF = np.float32(0.5)
_MERGES = {
    "concat": (lambda a, b: np.concatenate([a, b], axis=-1), lambda a, b, dy: np.split(dy, 2, axis=-1)),
    "sum": (lambda a, b: a + b, lambda a, b, dy: (dy, dy)),
    "mul": (lambda a, b: a * b, lambda a, b, dy: (dy * b, dy * a)),
    "average": (lambda a, b: (a + b) * _HALF, lambda a, b, dy: (dy * _HALF, dy * _HALF)),
}
"""name -> how the outputs a and b of two directions are merged; their gradients from that of the merged one"""


class Saved:
    """What forward keeps for backward: for each layer the engine's tape, which says what it holds, and which of its
    outputs dropout let through. nbytes: what it holds beyond the arguments and results of the call."""

    __slots__ = ("module", "batched", "layers", "last")

    def __init__(self, module):
        self.module = module
        self.layers = []  # (tape, kept or None)

    @property
    def nbytes(self):
        total, below = 0, None
        for tape, kept in self.layers:
            total += tape.nbytes + tape.y.nbytes + (0 if kept is None else kept.nbytes)
            if below is not None and not np.may_share_memory(tape.x, below.y):
                total += tape.x.nbytes  # merged or dropped anew
            below = tape
        result = self.module.return_sequences and self.module.merge == "concat"
        return total - result * below.y.nbytes


class Recurrent(Module):
    """A stack of layers of one kind of cell; the kinds below add their names, defaults and states."""

    kind = None
    default_activations = ()
    proj_size = 0
    peepholes = False
    cell_options = {}
    """Further keyword arguments of every `_engine.Cell`."""

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
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.num_layers = check_size(num_layers, "num_layers")
        if self.num_layers > MAX_LAYERS:
            raise LimitError(f"num_layers: {num_layers} is more than the limit of {MAX_LAYERS}")
        self.bias, self.batch_first = check_flag(bias, "bias"), check_flag(batch_first, "batch_first")
        self.bidirectional = check_flag(bidirectional, "bidirectional")
        self.dropout = check_number(dropout, "dropout", 0.0, 1.0)
        self.merge = check_choice(merge, "merge", tuple(_MERGES))
        self.reverse = check_flag(reverse, "reverse")
        self.return_sequences = check_flag(return_sequences, "return_sequences")
        self.clip = None if clip is None else check_number(clip, "clip", 0.0, math.inf)
        self.matmul = check_matmul(matmul)
        self._use_threads(threads)
        if self.clip == 0:
            raise InputError(f"clip: {clip!r}, expected more than 0")
        if self.bidirectional and self.reverse:
            raise InputError("reverse: a bidirectional layer has both directions")
        if merge != "concat" and not self.bidirectional:
            raise InputError(f"merge: {merge!r} needs bidirectional=True")

        self._reverse = (False, True) if self.bidirectional else (self.reverse,)
        defaults = (resolve(self.default_activations),) * len(self._reverse)
        activations = None if activations is None else as_tuple(activations, "activations")
        self._activations = defaults if activations is None else self._resolve(activations)
        self.activations = None if self._activations == defaults else activations
        self._output_size = self.proj_size or self.hidden_size
        self._count = 2 if self.kind == "LSTM" else 1
        self._widths = (self._output_size, self.hidden_size)[: self._count]
        self._merged_size = self._output_size * (len(self._reverse) if merge == "concat" else 1)
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    def _resolve(self, activations):
        """For each direction its (name, alpha, beta) triples."""
        count = len(self.default_activations)
        triples = tuple(as_activation(a) for a in activations)
        if len(triples) == count:
            return (triples,) * len(self._reverse)
        if len(triples) == count * len(self._reverse):
            return triples[:count], triples[count:]
        raise InputError(f"activations: got {len(triples)}, expected {count} for each direction")

    def shapes(self):
        gates = len(convert.GATES[self.kind]["torch"]) * self.hidden_size
        shapes = {}
        for layer in range(self.num_layers):
            for direction in range(len(self._reverse)):
                end = convert.suffix(layer, direction)
                shapes[f"weight_ih_{end}"] = gates, self._merged_size if layer else self.input_size
                shapes[f"weight_hh_{end}"] = gates, self._output_size
                if self.bias:
                    shapes[f"bias_ih_{end}"] = shapes[f"bias_hh_{end}"] = (gates,)
                if self.proj_size:
                    shapes[f"weight_hr_{end}"] = self.proj_size, self.hidden_size
                if self.peepholes:
                    shapes[f"weight_peephole_{end}"] = (3 * self.hidden_size,)
        return shapes

    def _draw(self, rng):
        return uniform(self.shapes(), 1 / np.sqrt(self.hidden_size), rng)

    def _pack(self, parameters):
        return tuple(
            tuple(
                _engine.Cell(
                    self.kind,
                    activations=self._activations[direction],
                    clip=self.clip,
                    matmul=self.matmul,
                    **convert.to_onnx(self.kind, parameters, convert.suffix(layer, direction)),
                    **self.cell_options,
                )
                for direction in range(len(self._reverse))
            )
            for layer in range(self.num_layers)
        )

    def _output(self, x, lengths):
        return self(x, lengths=lengths)[0]

    def stream(self, state=None):
        """A LayerStream: one time step after another, the state inside. state: the initial one as a call takes it, h or
        (h, c); None is zeros. Layers that run backwards have none."""
        return LayerStream(self, (self,), state)

    def pool(self, max_streams):
        """A LayerPool: up to so many streams that are stepped together, each with the bits that it would get alone."""
        from rnnfast.streaming.layer_pool import LayerPool

        return LayerPool(self, (self,), max_streams)

    def forward(self, x, state=None, *, lengths=None, training=False, rng=None):
        """-> y, state, saved: the first two as a call gives them, the last for `backward`, or None without `training`.

        x may be a PackedSequence but for training, which takes lengths.
        rng: a seed or a numpy Generator, for the dropout between layers. What is saved refers to x, y and the states,
        given and returned: they must not be written to before `backward`, which only this layer can do. RNN with tanh
        or relu, LSTM and GRU with their default activations have gradients; UnsupportedError for others, clip,
        peepholes and input_forget.
        """
        states = self._states(state, "state")
        saved = Saved(self) if check_flag(training, "training") else None
        rng = as_generator(rng) if self.dropout or rng is not None else None
        y, last = self._run(x, states, lengths, saved, rng)
        return y if self.return_sequences else self._last_output(last), self._as_state(last), saved

    def backward(self, dy, dstate, saved, *, dx=True):
        """-> dx, dstate, dweights: the gradients of x (None with dx=False), of the initial state and, by name, of all
        weights.

        dy, dstate: the gradients of what `forward` returned, in its form; None, or for LSTM (dh, None) and (None, dc),
        is zeros. A row of length 0 has none. May be called again with the same `saved`.
        """
        if not isinstance(saved, Saved):
            raise InputTypeError(f"saved: got a {type(saved).__name__}, expected what forward(training=True) returned")
        if saved.module is not self:
            raise InputError(
                f"saved: the forward of another layer, {saved.module!r}, returned it, expected that of this {self!r}"
            )
        directions = len(self._reverse)
        top = saved.layers[-1][0]
        rows = top.y.shape[1]
        dlast = self._state_gradients(dstate, rows, saved.batched)
        dy = self._output_gradient(dy, dlast, saved)
        dinitial, dweights = [], {}
        for layer in range(self.num_layers - 1, -1, -1):
            tape, kept = saved.layers[layer]
            if kept is not None:
                dy = drop(dy, kept, self.dropout)
            halves = tape.y[:, :, 0], tape.y[:, :, -1]
            dys = (dy,) if directions == 1 or dy is None else _MERGES[self.merge][1](*halves, dy)
            of_layer = slice(layer * directions, (layer + 1) * directions)
            dy, *dstates, gradients = tape.backward(
                None if dy is None else dys, *(d[of_layer] for d in dlast), dx=dx or layer > 0, threads=self._threads
            )
            dinitial.append(dstates)
            for direction, of_cell in enumerate(gradients):
                end = convert.suffix(layer, direction)
                dweights |= {f"{name}_{end}": gradient for name, gradient in of_cell.items()}
        dinitial = tuple(np.concatenate(parts) for parts in list(zip(*dinitial[::-1]))[: self._count])
        if not saved.batched:
            dinitial = tuple(d[:, 0] for d in dinitial)
        if dy is not None:
            dy = dy[:, 0] if not saved.batched else dy.swapaxes(0, 1) if self.batch_first else dy
        return dy, self._as_state(dinitial), {name: dweights[name] for name in self.shapes()}

    def _state_gradients(self, dstate, rows, batched):
        """Those of the last states, [layers * directions, B, size], zeros where none came: a copy."""
        count = self.num_layers * len(self._reverse)
        dlast = []
        for d, name, width in zip(self._states(dstate, "dstate"), ("dh", "dc"), self._widths):
            if d is None:
                dlast.append(np.zeros((count, rows, width), np.float32))
            else:
                d = d if batched else _unsqueeze(d, name)
                dlast.append(self._check_state(d, name, rows, width).copy())
        return dlast

    def _output_gradient(self, dy, dlast, saved):
        """dy as [T, B, size], or None; where y is the last output only it goes into that of the last state."""
        steps, rows = saved.layers[-1][0].y.shape[:2]
        if dy is None:
            return None
        dy = as_input(dy, "dy")
        lead = (steps,) * self.return_sequences
        if saved.batched:
            lead = (rows, *lead) if self.batch_first else (*lead, rows)
        check_shape(dy, (*lead, self._merged_size), "dy", "shape of y")
        if not saved.batched:
            dy = dy[..., None, :]
        elif self.batch_first and self.return_sequences:
            dy = dy.swapaxes(0, 1)
        if self.return_sequences:
            return dy
        directions = len(self._reverse)
        top = dlast[0][-directions:]
        top += dy if directions == 1 else np.stack(_MERGES[self.merge][1](*saved.last, dy))
        return None

    def _states(self, state, name):
        """(h,) or, for LSTM, (h, c), as they received."""
        if self._count == 1:
            return (state,)
        if state is None:
            return None, None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise InputTypeError(f"{name}: got a {type(state).__name__}, expected (h, c)")
        return tuple(state)

    def _as_state(self, states):
        return states[0] if self._count == 1 else states

    def _last_output(self, last):
        """Each row's last output [B, size], the directions' merged."""
        top = last[0][-len(self._reverse) :]
        return top[0] if len(top) == 1 else _MERGES[self.merge][0](*top)

    def _run(self, x, states, lengths, saved=None, rng=None):
        """-> y of all steps and the tuple of last states. `states`: the initial ones, None is zeros."""
        weights = self._weights or self._initialized()
        stack = weights[1]
        if lengths is None and self.merge == "concat" and saved is None:
            done = _engine.forward(stack, self._reverse, x, states, self.batch_first, self._threads)
            if done is not None:
                return done
        names = ("h0", "c0")[: len(states)]
        pack = None
        if packed.is_packed(x):
            pack, x = self._packed_batch(x, lengths, saved)
            batched, rows, ragged = True, int(pack.batch_sizes[0]), {"batch_sizes": pack.batch_sizes}
        else:
            x, batched = self._batch(x)
            rows, ragged = x.shape[1], {"sequence_lens": check_lengths(lengths, *x.shape[:2]) if batched else None}
        if not batched:
            if lengths is not None:
                raise InputError("lengths: x has no batch axis")
            states = [s if s is None else _unsqueeze(s, name) for s, name in zip(states, names, strict=True)]
        initial = [self._check_state(s, name, rows, width) for s, name, width in zip(states, names, self._widths)]
        if pack is not None:
            initial = [s if s is None else packed.sort(pack, s, 1) for s in initial]

        last = []
        directions = len(self._reverse)
        for layer, cells in enumerate(stack):
            of_layer = slice(layer * directions, (layer + 1) * directions)
            of_layer = [None if s is None else s[of_layer] for s in initial]
            y = self._outputs(*x.shape[:2])
            if saved is None:
                y_h, y_c = _engine.recurrent(
                    cells, self._reverse, x, y.swapaxes(1, 2), *of_layer, threads=self._threads, **ragged
                )
            else:
                self._differentiable(weights[0], layer, cells)
                y_h, y_c, tape = _backward.record(
                    cells, self._reverse, x, y, *of_layer, threads=self._threads, **ragged
                )
            last.append((y_h, y_c))
            if self.merge == "concat":
                x = y.reshape(*y.shape[:2], self._merged_size)
            else:
                x = _MERGES[self.merge][0](y[:, :, 0], y[:, :, 1])
            if saved is not None:
                kept = None
                if self.dropout and layer < self.num_layers - 1:
                    kept = draw(x.shape, self.dropout, rng)
                    x = drop(x, kept, self.dropout)
                saved.layers.append((tape, kept))
        last = tuple(np.concatenate(parts) for parts in list(zip(*last))[: len(states)])
        if saved is not None:
            saved.batched, saved.last = batched, last[0][-directions:]

        if pack is not None:
            return pack._replace(data=x[:, 0]), tuple(packed.unsort(pack, s, 1) for s in last)
        y = x.swapaxes(0, 1) if self.batch_first and batched else x
        return (y, last) if batched else (y[:, 0], tuple(s[:, 0] for s in last))

    def _outputs(self, steps, rows):
        """Room for one layer's [T, B, D, O], in the memory order of y."""
        shape = len(self._reverse), self._output_size
        if self.batch_first:
            return np.empty((rows, steps, *shape), np.float32).swapaxes(0, 1)
        return np.empty((steps, rows, *shape), np.float32)

    def _differentiable(self, parameters, layer, cells):
        """Gives the layer's cells what backward needs, once for these weights."""
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

    def _batch(self, x):
        """x as [T, B, I], and whether it had a batch axis."""
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
        """A packed sequence as a PackedSequence, and its data as [N, 1, I]."""
        if lengths is not None:
            raise InputError("lengths: x is a packed sequence, which has its own")
        if saved is not None:
            raise UnsupportedError("x: a packed sequence, which has no gradients; expected a padded array and lengths=")
        pack = packed.checked(x)
        data = as_input(pack.data, "x.data")
        check_shape(data, (len(data), self.input_size), "x.data", "sum of lengths, input_size")
        return pack, data[:, None]

    def _check_state(self, state, name, rows, width):
        if state is None:
            return None
        state = as_input(state, name)
        count = self.num_layers * len(self._reverse)
        check_shape(state, (count, rows, width), name, "layers * directions, batch, size")
        return state

    def summary_rows(self, shape=None):
        if shape is None or len(shape) != 3:
            shape = ("B", "T", self.input_size) if self.batch_first else ("T", "B", self.input_size)
        rows = []
        sizes = self.shapes()
        for layer in range(self.num_layers):
            of_layer = {n: s for n, s in sizes.items() if n.removesuffix("_reverse").endswith(f"_l{layer}")}
            parameters = sum(math.prod(s) for s in of_layer.values())
            products = sum(math.prod(s) for s in of_layer.values() if len(s) == 2)
            name = repr(self) if self.num_layers == 1 else f"{self!r} layer {layer}"
            rows.append(SummaryRow(name, (*shape[:-1], self._merged_size), parameters, 2 * products, 4 * parameters))
        return rows

    @classmethod
    def _from_onnx(cls, W, R, B, P, direction, activations, activation_alpha, activation_beta, layout, **options):
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
    def _from_keras(cls, weights, two_biases, activations, merge, **options):
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
    if not isinstance(value, str):
        return value
    if value not in _KERAS_ACTIVATIONS:
        raise InputError(
            f"activation: {value!r} is none of {', '.join(_KERAS_ACTIVATIONS)}; "
            "others are given as (name, alpha, beta) of ONNX"
        )
    return _KERAS_ACTIVATIONS[value]


def _unsqueeze(state, name):
    """An initial state without a batch axis, with it."""
    state = as_input(state, name)
    if state.ndim != 2:
        raise InputError(f"{name}: shape is {list(state.shape)}, expected [layers * directions, size]: x has no batch")
    return state[:, None]
