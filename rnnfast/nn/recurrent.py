"""RNN, LSTM and GRU with torch's names, arguments, shapes and state dict, on the engine's cells.

What torch has not stands in keyword arguments:
    merge: how the directions of a bidirectional layer become one output: "concat" (torch's), "sum", "mul", "average";
        the next layer of a stack takes the merged output as its input
    reverse: the only direction runs backwards
    activations: for each gate function (RNN f; GRU f, g; LSTM f, g, h) an ONNX activation's name or (name, alpha,
        beta); twice as many give the reverse direction its own
    clip: bound of the pre-activations of all gates
    matmul: "packed" (own kernels, the same bits everywhere), "blas", or None for this processor's default
    threads: how many a call may use, None for RNNFAST_NUM_THREADS (else one); the bits do not depend on it, and BLAS,
        which has threads of its own, does not heed it
    rng: a seed or a numpy Generator for the initial weights, uniform in +-1/sqrt(hidden_size)

Lengths [B] may stand in any order. Outputs past a row's length are zeros, its last state is that of its last step, and
a row of length 0 has zeros for both, whatever its initial state was.
"""
import math
import numbers

import numpy as np

from .. import _engine
from ..activations import as_activation, as_tuple, resolve
from ..errors import InputError, InputTypeError, LimitError, ModelError
from . import convert
from .checks import (MAX_LAYERS, as_input, check_choice, check_flag, check_lengths, check_matmul, check_shape,
                     check_size, check_weights)
from .linear import uniform
from .module import Module, Row
from .stream import LayerStream

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


def _sum(a, b):
    return a + b


def _mul(a, b):
    return a * b


def _average(a, b):
    return (a + b) * np.float32(0.5)


_MERGES = {"concat": None, "sum": _sum, "mul": _mul, "average": _average}


class _Recurrent(Module):
    """A stack of layers of one kind of cell; the kinds below add their names, defaults and states."""

    kind = None
    default_activations = ()
    proj_size = 0
    peepholes = False
    cell_options = {}
    """Further keyword arguments of every `_engine.Cell`."""

    def _configure(self, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, *,
                   merge, reverse, activations, clip, matmul, threads, rng):
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.num_layers = check_size(num_layers, "num_layers")
        if self.num_layers > MAX_LAYERS:
            raise LimitError(f"num_layers: {num_layers} is more than the limit of {MAX_LAYERS}")
        self.bias, self.batch_first = check_flag(bias, "bias"), check_flag(batch_first, "batch_first")
        self.bidirectional = check_flag(bidirectional, "bidirectional")
        self.dropout = _check_number(dropout, "dropout", 0.0, 1.0)
        self.merge = check_choice(merge, "merge", tuple(_MERGES))
        self.reverse = check_flag(reverse, "reverse")
        self.clip = None if clip is None else _check_number(clip, "clip", 0.0, math.inf)
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
        raise InputError(f"activations: {len(triples)} came, expected {count} for each direction")

    def shapes(self):
        gates = len(convert.GATES[self.kind]["torch"]) * self.hidden_size
        shapes = {}
        for layer in range(self.num_layers):
            for direction in range(len(self._reverse)):
                end = convert.suffix(layer, direction)
                shapes[f"weight_ih_{end}"] = gates, self._merged_size if layer else self.input_size
                shapes[f"weight_hh_{end}"] = gates, self._output_size
                if self.bias:
                    shapes[f"bias_ih_{end}"] = shapes[f"bias_hh_{end}"] = gates,
                if self.proj_size:
                    shapes[f"weight_hr_{end}"] = self.proj_size, self.hidden_size
                if self.peepholes:
                    shapes[f"weight_peephole_{end}"] = 3 * self.hidden_size,
        return shapes

    def _draw(self, rng):
        return uniform(self.shapes(), 1 / np.sqrt(self.hidden_size), rng)

    def _pack(self, parameters):
        return tuple(
            tuple(_engine.Cell(self.kind, activations=self._activations[direction], clip=self.clip, matmul=self.matmul,
                               **convert.to_onnx(self.kind, parameters, convert.suffix(layer, direction)),
                               **self.cell_options)
                  for direction in range(len(self._reverse)))
            for layer in range(self.num_layers))

    def _output(self, x, lengths):
        return self(x, lengths=lengths)[0]

    def stream(self, state=None):
        """A LayerStream: one time step after another, the state inside. state: the initial one as a call takes it, h or
        (h, c); None is zeros. Layers that run backwards have none."""
        return LayerStream(self, (self,), state)

    def _run(self, x, states, lengths):
        """-> y and the tuple of last states. `states`: the initial ones, None is zeros."""
        stack = (self._weights or self._initialized())[1]
        if lengths is None and self.merge == "concat":
            done = _engine.forward(stack, self._reverse, x, states, self.batch_first, self._threads)
            if done is not None:
                return done
        names = ("h0", "c0")[:len(states)]
        x, batched = self._batch(x)
        steps, rows, _ = x.shape
        if not batched:
            if lengths is not None:
                raise InputError("lengths: x has no batch axis")
            states = [s if s is None else _unsqueeze(s, name) for s, name in zip(states, names, strict=True)]
        lengths = check_lengths(lengths, steps, rows)
        widths = (self._output_size, self.hidden_size)
        initial = [self._check_state(s, name, rows, width) for s, name, width in zip(states, names, widths)]

        last = []
        directions = len(self._reverse)
        for layer, cells in enumerate(stack):
            of_layer = slice(layer * directions, (layer + 1) * directions)
            x, y_h, y_c = self._run_layer(cells, x, [None if s is None else s[of_layer] for s in initial], lengths)
            last.append((y_h, y_c))
        last = tuple(np.concatenate(parts) for parts in list(zip(*last))[:len(states)])

        y = x.swapaxes(0, 1) if self.batch_first and batched else x
        return (y, last) if batched else (y[:, 0], tuple(s[:, 0] for s in last))

    def _run_layer(self, cells, x, initial, lengths):
        """x [T, B, I] -> (y [T, B, merged size], Y_h, Y_c [D, B, H])"""
        steps, rows, _ = x.shape
        shape = steps, rows, len(cells), self._output_size
        if self.batch_first:
            y = np.empty((rows, steps, *shape[2:]), np.float32).swapaxes(0, 1)
        else:
            y = np.empty(shape, np.float32)
        y_h, y_c = _engine.recurrent(cells, self._reverse, x, y.swapaxes(1, 2), *initial, sequence_lens=lengths,
                                     threads=self._threads)
        combine = _MERGES[self.merge]
        if combine is not None:
            return combine(y[:, :, 0], y[:, :, 1]), y_h, y_c
        return y.reshape(steps, rows, self._merged_size), y_h, y_c

    def _batch(self, x):
        """x as [T, B, I], and whether it had a batch axis."""
        x = as_input(x, "x")
        axes = ("B, T, " if self.batch_first else "T, B, ") + f"{self.input_size}"
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise InputError(f"x: shape is {list(x.shape)}, expected [{axes}] "
                             f"or, without a batch, [T, {self.input_size}]")
        if x.ndim == 2:
            return x[:, None], False
        return (x.swapaxes(0, 1) if self.batch_first else x), True

    def _check_state(self, state, name, rows, width):
        if state is None:
            return None
        state = as_input(state, name)
        count = self.num_layers * len(self._reverse)
        check_shape(state, (count, rows, width), name, "layers * directions, batch, size")
        return state

    def rows(self, shape=None):
        if shape is None or len(shape) != 3:
            shape = ("B", "T", self.input_size) if self.batch_first else ("T", "B", self.input_size)
        rows = []
        sizes = self.shapes()
        for layer in range(self.num_layers):
            of_layer = {n: s for n, s in sizes.items() if n.removesuffix("_reverse").endswith(f"_l{layer}")}
            parameters = sum(math.prod(s) for s in of_layer.values())
            products = sum(math.prod(s) for s in of_layer.values() if len(s) == 2)
            name = repr(self) if self.num_layers == 1 else f"{self!r} layer {layer}"
            rows.append(Row(name, (*shape[:-1], self._merged_size), parameters, 2 * products, 4 * parameters))
        return rows

    @classmethod
    def _from_onnx(cls, W, R, B, P, direction, activations, activation_alpha, activation_beta, layout, **options):
        check_choice(direction, "direction", tuple(_DIRECTIONS))
        check_choice(layout, "layout", (0, 1))
        input_size, hidden_size, directions, parameters = convert.from_onnx(cls.kind, W, R, B, P)
        if directions != len(_DIRECTIONS[direction]):
            raise ModelError(f"W: shape is {list(np.shape(W))}, "
                             f"expected {len(_DIRECTIONS[direction])} first for direction={direction!r}")
        if activations is not None:
            activations = resolve(activations, activation_alpha, activation_beta)
            expected = directions * len(cls.default_activations)
            if len(activations) != expected:
                raise ModelError(f"activations: {len(activations)} came, expected {expected} for "
                                 f"direction={direction!r}")
        layer = cls(input_size, hidden_size, bias=B is not None, batch_first=layout == 1,
                    bidirectional=direction == "bidirectional", reverse=direction == "reverse",
                    activations=activations, **options)
        layer.load_state_dict(parameters)
        return layer

    @classmethod
    def _from_keras(cls, weights, two_biases, activations, merge, **options):
        input_size, hidden_size, directions, parameters = convert.from_keras(cls.kind, weights, two_biases=two_biases)
        layer = cls(input_size, hidden_size, bias="bias_ih_l0" in parameters, bidirectional=directions == 2,
                    activations=[_keras_activation(a) for a in activations], merge=merge, **options)
        layer.load_state_dict(parameters)
        return layer


class _OneState(_Recurrent):
    """RNN and GRU: h is all that goes on from step to step."""

    def __call__(self, x, h0=None, lengths=None):
        """x [T, B, I], [B, T, I] with batch_first, or [T, I]; h0 [layers * directions, B, H] (without B if x has
        none); lengths [B]

        -> y, shaped like x with the size H, or 2 H for concatenated directions; h, shaped like h0.
        """
        y, (h,) = self._run(x, (h0,), lengths)
        return y, h


class RNN(_OneState):
    """h' = f(W_ih x + b_ih + W_hh h + b_hh), with f = tanh, or relu by `nonlinearity`.

    State dict, for each layer k (and `_reverse`): weight_ih_l{k} [H, I], weight_hh_l{k} [H, H], bias_ih_l{k} [H],
    bias_hh_l{k} [H]. `activations` replaces `nonlinearity`. The module's docstring has the other arguments.
    """

    kind = "RNN"
    default_activations = ("Tanh",)

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, *, merge="concat", reverse=False, activations=None, clip=None,
                 matmul=None, threads=None, rng=None):
        self.nonlinearity = check_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))
        if nonlinearity == "relu":
            self.default_activations = ("Relu",)
        self._configure(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge=merge,
                        reverse=reverse, activations=activations, clip=clip, matmul=matmul, threads=threads, rng=rng)

    @classmethod
    def from_onnx(cls, W, R, B=None, *, direction="forward", activations=None, activation_alpha=None,
                  activation_beta=None, clip=None, layout=0, matmul=None, threads=None):
        """A layer from an ONNX RNN's inputs and attributes; layout=1 is batch_first."""
        return cls._from_onnx(W, R, B, None, direction, activations, activation_alpha, activation_beta, layout,
                              clip=clip, matmul=matmul, threads=threads)

    @classmethod
    def from_keras(cls, weights, *, activation="tanh", merge="concat", batch_first=True, matmul=None, threads=None):
        """A layer from `get_weights()` of a Keras SimpleRNN, or of a Bidirectional one."""
        return cls._from_keras(weights, False, (activation,), merge, batch_first=batch_first, matmul=matmul,
                               threads=threads)


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

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
                 bidirectional=False, *, merge="concat", linear_before_reset=True, reverse=False, activations=None,
                 clip=None, matmul=None, threads=None, rng=None):
        self.linear_before_reset = check_flag(linear_before_reset, "linear_before_reset")
        self.cell_options = {"linear_before_reset": self.linear_before_reset}
        self._configure(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge=merge,
                        reverse=reverse, activations=activations, clip=clip, matmul=matmul, threads=threads, rng=rng)

    @classmethod
    def from_onnx(cls, W, R, B=None, *, direction="forward", activations=None, activation_alpha=None,
                  activation_beta=None, clip=None, linear_before_reset=0, layout=0, matmul=None, threads=None):
        """A layer from an ONNX GRU's inputs and attributes; layout=1 is batch_first."""
        return cls._from_onnx(W, R, B, None, direction, activations, activation_alpha, activation_beta, layout,
                              clip=clip, linear_before_reset=linear_before_reset, matmul=matmul, threads=threads)

    @classmethod
    def from_keras(cls, weights, *, reset_after=True, activation="tanh", recurrent_activation="sigmoid",
                   merge="concat", batch_first=True, matmul=None, threads=None):
        """A layer from `get_weights()` of a Keras GRU, or of a Bidirectional one. reset_after=True is Keras's default
        and has a bias [2, 3 * units]."""
        reset_after = check_flag(reset_after, "reset_after")
        return cls._from_keras(weights, reset_after, (recurrent_activation, activation), merge,
                               linear_before_reset=reset_after, batch_first=batch_first, matmul=matmul, threads=threads)


class LSTM(_Recurrent):
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

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
                 bidirectional=False, proj_size=0, *, merge="concat", input_forget=False, peepholes=False,
                 reverse=False, activations=None, clip=None, matmul=None, threads=None, rng=None):
        self.proj_size = check_size(proj_size, "proj_size", least=0)
        if self.proj_size and self.proj_size >= check_size(hidden_size, "hidden_size"):
            raise InputError(f"proj_size: {proj_size}, expected less than hidden_size = {hidden_size}")
        self.peepholes = check_flag(peepholes, "peepholes")
        self.input_forget = check_flag(input_forget, "input_forget")
        self.cell_options = {"input_forget": self.input_forget}
        self._configure(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge=merge,
                        reverse=reverse, activations=activations, clip=clip, matmul=matmul, threads=threads, rng=rng)

    def __call__(self, x, hx=None, lengths=None):
        """x [T, B, I], [B, T, I] with batch_first, or [T, I]; hx = (h0 [layers * directions, B, H or proj_size],
        c0 [layers * directions, B, H]), either may be None (without B if x has none); lengths [B]

        -> y, shaped like x with the size of h, or twice it for concatenated directions; (h, c), shaped like hx.
        """
        if hx is None:
            hx = None, None
        elif not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise InputTypeError(f"hx: a {type(hx).__name__} came, expected (h0, c0)")
        return self._run(x, hx, lengths)

    @classmethod
    def from_onnx(cls, W, R, B=None, P=None, *, direction="forward", activations=None, activation_alpha=None,
                  activation_beta=None, clip=None, input_forget=0, layout=0, matmul=None, threads=None):
        """A layer from an ONNX LSTM's inputs and attributes; layout=1 is batch_first."""
        return cls._from_onnx(W, R, B, P, direction, activations, activation_alpha, activation_beta, layout,
                              clip=clip, input_forget=input_forget, peepholes=P is not None, matmul=matmul,
                              threads=threads)

    @classmethod
    def from_keras(cls, weights, *, activation="tanh", recurrent_activation="sigmoid", merge="concat",
                   batch_first=True, matmul=None, threads=None):
        """A layer from `get_weights()` of a Keras LSTM, or of a Bidirectional one."""
        return cls._from_keras(weights, False, (recurrent_activation, activation, activation), merge,
                               batch_first=batch_first, matmul=matmul, threads=threads)


def _keras_activation(value):
    if not isinstance(value, str):
        return value
    if value not in _KERAS_ACTIVATIONS:
        raise InputError(f"activation: {value!r} is none of {', '.join(_KERAS_ACTIVATIONS)}; "
                         "others are given as (name, alpha, beta) of ONNX")
    return _KERAS_ACTIVATIONS[value]


def _check_number(value, name, least, most):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputTypeError(f"{name}: {value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.nan
    if not least <= number <= most:
        raise InputError(f"{name}: {value!r}, expected {least} to {most}")
    return number


def _unsqueeze(state, name):
    """An initial state without a batch axis, with it."""
    state = as_input(state, name)
    if state.ndim != 2:
        raise InputError(f"{name}: shape is {list(state.shape)}, expected [layers * directions, size]: x has no batch")
    return state[:, None]
