"""What all layers share: named parameters, state dicts, forward and backward, and the summary."""

import inspect
import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rnnfast.errors import Error, InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.native.threads import check as check_threads
from rnnfast.nn.checks import as_generator, as_input, as_weight, check_flag, check_shape, within_memory
from rnnfast.nn.packed import checked, is_packed
from rnnfast.streaming.layer_stream import LayerStream

_INITIALIZING = threading.Lock()


class SummaryRow(NamedTuple):
    """One line of a summary; `flops` and `bytes` are those of one step of one row (one time step at batch 1)."""

    layer: str
    output: tuple
    parameters: int
    flops: int
    bytes: int


class Saved(NamedTuple):
    """What a layer without a state, or a Sequential, keeps for `backward`: a value, which holds x and y themselves."""

    values: tuple
    shape: tuple
    """Shape of y."""
    nbytes: int = 0
    """Bytes that it holds beyond the arguments and results of the call."""


class Module:
    """A layer. Its parameters change only by `load_state_dict`; calling it changes nothing, from any thread.

    A copy or an unpickled layer has the same parameters and gives the same bits. Initial weights without a seed are
    drawn when they are first asked for.
    """

    _weights = None
    """(parameters, what a call computes with): replaced as a whole, so that a call in another thread sees old or new.
    None: the initial ones are not drawn yet."""

    def shapes(self):
        """Name of each parameter -> its shape, in the order of the state dict."""
        return {}

    def state_dict(self):
        """Name of each parameter -> its values: float32, read-only."""
        return dict(self._initialized()[0])

    def load_state_dict(self, state_dict):
        """Take all parameters from a mapping of name to array (anything that ``np.asarray`` takes: ndarrays, torch
        tensors ...). The names and shapes must be exactly those of `shapes()`, the dtypes float32 or narrower floats.

        Raises ModelError for names and shapes, InputTypeError for dtypes, LimitError for want of memory; nothing is
        loaded then.
        """
        if not isinstance(state_dict, Mapping):
            raise InputTypeError(f"state_dict: got a {type(state_dict).__name__}, expected a mapping of name to array")
        shapes = self.shapes()
        missing = [name for name in shapes if name not in state_dict]
        unexpected = [str(name) for name in state_dict if name not in shapes]
        if missing or unexpected:
            raise ModelError(
                f"state_dict of {self!r}: missing {', '.join(missing) or 'nothing'}, "
                f"unexpected {', '.join(unexpected) or 'nothing'}"
            )
        parameters = {name: as_weight(state_dict[name], name) for name in shapes}
        for name, shape in shapes.items():
            if parameters[name].shape != shape:
                raise ModelError(
                    f"state_dict of {self!r}: {name} has shape {list(parameters[name].shape)}, expected {list(shape)}"
                )
        self._replace(self._prepare(parameters))

    def forward(self, x, state=None, *, lengths=None, training=False, rng=None):
        """-> y, state, saved: what a call gives, the state after it, and what `backward` needs.

        state: None for a layer without one, else what the layer's class says; None is zeros. lengths: [B], for
        recurrent layers. training: drop out and save; without it y has the bits of a call and saved is None.
        rng: a seed or a numpy Generator, for dropout; the same seed gives the same bits.

        saved has its size in `nbytes`. It refers to x and y: they must not be written to before `backward`.
        """
        if state is not None:
            raise InputError(f"state: {type(self).__name__} has none, expected None")
        if not check_flag(training, "training"):
            return self._output(x, None), None, None
        y, *values = self._forward(x, rng)
        there = {id(a) for a in (x, y, *self._initialized()[0].values())}
        return y, None, Saved(tuple(values), y.shape, sum(v.nbytes for v in values if id(v) not in there))

    def backward(self, dy, dstate, saved, *, dx=True):
        """-> dx, dstate, dweights: the gradients of x (None for integers, and with dx=False), of the state that `forward`
        was given and of the parameters, by the names of the state dict.

        dy, dstate: the gradients of what `forward` returned, in its form; None is zeros. saved: what it returned with
        training=True. Nothing is changed, so that it may be called more than once.
        """
        if dstate is not None:
            raise InputError(f"dstate: {type(self).__name__} has no state, expected None")
        of_x, dweights = self._backward(self._checked(dy, saved), *saved.values)
        return of_x if dx else None, None, dweights

    def fit(self, x, y, **options):
        """Train this network -> History; `rnnfast.train.fit` says what it takes."""
        from rnnfast.train import fit

        return fit(self, x, y, **options)

    def evaluate(self, x, y, **options):
        """-> {"loss": ..., and each metric}; `rnnfast.train.evaluate` says what it takes."""
        from rnnfast.train import evaluate

        return evaluate(self, x, y, **options)

    def predict(self, x, **options):
        """The outputs for all examples, batch by batch; `rnnfast.train.predict` says what it takes."""
        from rnnfast.train import predict

        return predict(self, x, **options)

    def _checked(self, dy, saved):
        """dy as an array."""
        if not isinstance(saved, Saved):
            raise InputTypeError(f"saved: got a {type(saved).__name__}, expected what forward(training=True) returned")
        if dy is None:
            return np.zeros(saved.shape, np.float32)
        dy = as_input(dy, "dy")
        check_shape(dy, saved.shape, "dy", "that of y")
        return dy

    def _forward(self, x, rng):
        """-> y and the arrays that `_backward` gets, of a layer without a state."""
        raise UnsupportedError(f"{type(self).__name__} has no gradient")

    def _backward(self, dy, *values):
        """-> dx, dweights"""
        raise UnsupportedError(f"{type(self).__name__} has no gradient")

    def save(self, path, *, lengths=False, states=False, rank=None):
        """Write an ONNX file, which `rnnfast.load` and other engines run: `rnnfast.export.layers.export` says what its
        inputs and outputs are."""
        from rnnfast.export.layers import export

        export(self, path, lengths=lengths, states=states, rank=rank)

    def _output(self, x, lengths):
        """What the next layer of a Sequential gets."""
        if is_packed(x):  # all but recurrent layers take rows, whatever step they are of
            x = checked(x)
            return x._replace(data=self(x.data))
        return self(x)

    def _initialize(self, rng):
        """The end of a constructor. A seed or a Generator is used now, so that a Generator's numbers go to the layers
        in the order of their construction; without one, weights that are loaded next were drawn and packed for
        nothing."""
        generator = as_generator(rng)
        if rng is not None:
            self._initialized(generator)

    def _use_threads(self, threads):
        """`threads` as it was given, and the number that calls ask for."""
        self._threads = check_threads(threads)
        self.threads = None if threads is None else int(threads)

    def _draw(self, rng):
        """Initial values of the parameters from a numpy Generator."""
        return {}

    def _pack(self, parameters):
        """What a call computes with."""

    @property
    def _packed(self):
        return (self._weights or self._initialized())[1]

    def _initialized(self, rng=None):
        """The weights, drawn now unless they were drawn or loaded before; once, whatever the threads."""
        if self._weights is None:
            with _INITIALIZING:
                if self._weights is None:
                    with within_memory(self):
                        parameters = self._draw(as_generator(rng))
                    self._weights = self._prepare(parameters)
        return self._weights

    def _prepare(self, parameters):
        """What `_replace` takes; nothing is changed yet."""
        for array in parameters.values():
            array.flags.writeable = False
        with within_memory(self):
            return parameters, self._pack(parameters)

    def _replace(self, prepared):
        with _INITIALIZING:  # or a first call under way would put its initial weights over these
            self._weights = prepared

    def __getstate__(self):
        return self.__dict__ | {"_weights": self.state_dict()}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if "threads" in state:  # the default is that of this process
            self._use_threads(state["threads"])
        self._weights = self._prepare(state["_weights"])

    def summary_rows(self, shape=None):
        """The summary's rows, for an input of this shape: numbers, and names of free axes such as "T" and "B"."""
        raise UnsupportedError(f"{type(self).__name__} has no rows for a summary")

    def summary(self, shape=None):
        """A table of layers as Keras prints it: output shape, parameters, and for one step of one row its flops and
        bytes.

        shape: that of an input, to have the numbers of its axes in place of the names. flops: 2 for each multiply-add
        of a matrix product; elementwise work is not counted. bytes: parameters read, each once, at 4 bytes; what a step
        at batch 1 has to fetch.
        """
        rows = self.summary_rows(shape)
        total = SummaryRow("total", (), *(sum(row[i] for row in rows) for i in (2, 3, 4)))
        lines = [("Layer (type)", "Output shape", "Param #", "Flops/step", "Bytes/step")]
        lines += [
            (
                row.layer,
                f"[{', '.join(map(str, row.output))}]" if row.output else "",
                *(f"{number:,}" for number in row[2:]),
            )
            for row in [*rows, total]
        ]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * len(lines[0])
        return "\n".join(
            [
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1],
                f"Trainable params: {total.parameters:,} ({4 * total.parameters / 2**20:.2f} MB)",
                "Non-trainable params: 0",
            ]
        )

    def __repr__(self):
        given = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.default is parameter.empty:
                given.append(repr(value))
            elif value != parameter.default:
                given.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(given)})"


class Container(Module):
    """A layer made of layers. Its state dict's names are theirs after their own name and a dot. Loading changes all
    layers or, after an error, none; it changes them one after another, so a call in another thread at that moment may
    see some layers old and some new."""

    def members(self):
        """Name of each layer -> the layer, in the order of the state dict."""
        raise NotImplementedError

    def shapes(self):
        return joined({name: layer.shapes() for name, layer in self.members().items()})

    def state_dict(self):
        return joined({name: layer.state_dict() for name, layer in self.members().items()})

    def _prepare(self, parameters):
        return [
            layer._prepare({name: parameters[f"{place}.{name}"] for name in layer.shapes()})
            for place, layer in self.members().items()
        ]

    def _replace(self, prepared):
        for layer, of_layer in zip(self.members().values(), prepared, strict=True):
            layer._replace(of_layer)

    def __getstate__(self):
        return self.__dict__.copy()

    def __setstate__(self, state):
        self.__dict__.update(state)
        if "_threads" in state:  # the default is that of this process
            self._use_threads(state["threads"])


def joined(parts):
    """{name of a layer: {name: value}} as one dict, its names as a Container's state dict has them."""
    return {f"{place}.{name}": value for place, part in parts.items() for name, value in part.items()}


class Sequential(Container):
    """Layers one after another. Of a recurrent layer the outputs go on, its last state does not. Its state is the tuple
    of those of its recurrent layers, in their order.

    The state dict's names are the layers' own after their position: "0.weight_ih_l0", as torch has them.
    """

    def __init__(self, *layers):
        for position, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise InputTypeError(f"Sequential: layer {position} is a {type(layer).__name__}, expected an nn.Module")
        self.layers = layers
        last = None
        for layer in self._flat():
            if last is not None and _recurrent(layer):
                raise InputError(f"Sequential: {layer!r} follows {last!r}, which returns no sequences")
            if not getattr(layer, "return_sequences", True):
                last = layer

    def members(self):
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def __call__(self, x, *, lengths=None):
        """x as the first layer takes it, or a PackedSequence of that; lengths [B] go to every recurrent layer."""
        for layer in self.layers:
            try:
                x = layer._output(x, lengths)
            except Error as error:
                raise self._of_layer(error, layer) from error
        return x

    def _output(self, x, lengths):
        return self(x, lengths=lengths)

    def _of_layer(self, error, layer):
        """`error`, saying which layer had it."""
        place = next(i for i, other in enumerate(self.layers) if other is layer)
        named = "" if isinstance(layer, Sequential) else f" {layer!r}"
        return type(error)(f"layer {place}{named}: {error}")

    def forward(self, x, state=None, *, lengths=None, training=False, rng=None):
        if check_flag(training, "training"):
            rng = as_generator(rng)
            if is_packed(x):
                raise UnsupportedError(
                    "x: a packed sequence, which has no gradients; expected a padded array and lengths="
                )
        y, states, kept, nbytes = x, [], [], 0
        for layer, of_layer in zip(self.layers, self._split(state, "state"), strict=True):
            nbytes += 0 if y is x or not training else y.nbytes
            try:
                y, of_layer, saved = layer.forward(y, of_layer, lengths=lengths, training=training, rng=rng)
            except Error as error:
                raise self._of_layer(error, layer) from error
            states.append(of_layer)
            kept.append(saved)
        if not training:
            return y, self._join(states), None
        return y, self._join(states), Saved(tuple(kept), np.shape(y), nbytes + sum(saved.nbytes for saved in kept))

    def backward(self, dy, dstate, saved, *, dx=True):
        dy, dstates, dweights = self._checked(dy, saved), [], {}
        split = self._split(dstate, "dstate")
        for i, layer in reversed(list(enumerate(self.layers))):
            if dy is None:
                raise InputError(f"Sequential: {self.layers[i + 1]!r}, at {i + 1}, has no gradient of its input")
            dy, of_layer, gradients = layer.backward(dy, split[i], saved.values[i], dx=dx or i > 0)
            dstates.insert(0, of_layer)
            dweights = {f"{i}.{name}": gradient for name, gradient in gradients.items()} | dweights
        return dy, self._join(dstates), dweights

    def _split(self, state, name):
        """For each layer its part of a Sequential's state, or None."""
        counts = [sum(map(_recurrent, layers_of(layer))) for layer in self.layers]
        if state is None:
            return [None] * len(counts)
        if not isinstance(state, (tuple, list)) or len(state) != sum(counts):
            received = f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
            raise InputTypeError(
                f"{name}: got a {type(state).__name__}{received}, expected a tuple with the states of "
                f"{sum(counts)} recurrent layers"
            )
        parts = iter(state)
        return [
            tuple(next(parts) for _ in range(count))
            if isinstance(layer, Sequential)
            else next(parts)
            if count
            else None
            for layer, count in zip(self.layers, counts)
        ]

    def _join(self, states):
        """The inverse of `_split`."""
        joined = ()
        for layer, state in zip(self.layers, states, strict=True):
            joined += state if isinstance(layer, Sequential) else (state,) if _recurrent(layer) else ()
        return joined

    def stream(self, state=None):
        """A LayerStream: one time step after another, the states inside. state: a tuple of those of the recurrent
        layers, each as a call of it takes it; None is zeros. Layers that run backwards have none."""
        return LayerStream(self, tuple(self._flat()), state)

    def pool(self, max_streams):
        """A LayerPool: up to so many streams that are stepped together, each with the bits that it would get alone."""
        from rnnfast.streaming.layer_pool import LayerPool

        return LayerPool(self, tuple(self._flat()), max_streams)

    def _flat(self):
        for layer in self.layers:
            yield from layers_of(layer)

    def summary_rows(self, shape=None):
        rows = []
        for i, layer in enumerate(self.layers):
            rows += [row._replace(layer=f"{i} {row.layer}") for row in layer.summary_rows(shape)]
            shape = rows[-1].output if rows else shape
        return rows

    def __repr__(self):
        return f"Sequential({', '.join(map(repr, self.layers))})"


def _recurrent(layer):
    """Whether it has a state."""
    return hasattr(layer, "hidden_size")


def layers_of(net):
    """The layers of a Sequential, those within others too; of another layer itself."""
    return tuple(net._flat()) if isinstance(net, Sequential) else (net,)
