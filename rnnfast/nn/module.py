"""What all layers share: named parameters, state dicts and the summary."""
import inspect
import threading
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import InputTypeError, ModelError, UnsupportedError
from ..threads import check as check_threads
from .checks import as_generator, as_weight, within_memory
from .stream import LayerStream

_INITIALIZING = threading.Lock()


class Row(NamedTuple):
    """One line of a summary; `flops` and `bytes` are those of one step of one row (one time step at batch 1)."""
    layer: str
    output: tuple
    parameters: int
    flops: int
    bytes: int


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
            raise InputTypeError(f"state_dict: a {type(state_dict).__name__} came, expected a mapping of name to array")
        shapes = self.shapes()
        missing = [name for name in shapes if name not in state_dict]
        unexpected = [str(name) for name in state_dict if name not in shapes]
        if missing or unexpected:
            raise ModelError(f"state_dict of {self!r}: missing {', '.join(missing) or 'nothing'}, "
                             f"unexpected {', '.join(unexpected) or 'nothing'}")
        parameters = {name: as_weight(state_dict[name], name) for name in shapes}
        for name, shape in shapes.items():
            if parameters[name].shape != shape:
                raise ModelError(f"state_dict of {self!r}: {name} has shape {list(parameters[name].shape)}, "
                                 f"expected {list(shape)}")
        self._replace(self._prepare(parameters))

    def _output(self, x, lengths):
        """What the next layer of a Sequential gets."""
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
        if "threads" in state:      # the default is that of this process
            self._use_threads(state["threads"])
        self._weights = self._prepare(state["_weights"])

    def rows(self, shape=None):
        """The summary's rows, for an input of this shape: numbers, and names of free axes such as "T" and "B"."""
        raise UnsupportedError(f"{type(self).__name__} has no rows for a summary")

    def summary(self):
        """A table of layers: output shape, parameters, and for one step of one row its flops and bytes.

        flops: 2 for each multiply-add of a matrix product; elementwise work is not counted.
        bytes: parameters read, each once, at 4 bytes; what a step at batch 1 has to fetch.
        """
        rows = self.rows()
        total = Row("total", (), *(sum(row[i] for row in rows) for i in (2, 3, 4)))
        lines = [("layer", "output", "parameters", "flops/step", "bytes/step")]
        lines += [(row.layer, f"[{', '.join(map(str, row.output))}]" if row.output else "",
                   *(f"{number:,}" for number in row[2:])) for row in [*rows, total]]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join(
            "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
            for line in lines)

    def __repr__(self):
        given = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.default is parameter.empty:
                given.append(repr(value))
            elif value != parameter.default:
                given.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(given)})"


class Sequential(Module):
    """Layers one after another. Of a recurrent layer the outputs go on, its last state does not.

    The state dict's names are the layers' own after their position: "0.weight_ih_l0", as torch has them. Loading
    changes all layers or, after an error, none; it changes them one after another, so a call in another thread at that
    moment may see some layers old and some new.
    """

    def __init__(self, *layers):
        for position, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise InputTypeError(f"Sequential: layer {position} is a {type(layer).__name__}, expected an nn.Module")
        self.layers = layers

    def __call__(self, x, *, lengths=None):
        """x as the first layer takes it; lengths [B] go to every recurrent layer."""
        for layer in self.layers:
            x = layer._output(x, lengths)
        return x

    def _output(self, x, lengths):
        return self(x, lengths=lengths)

    def stream(self, state=None):
        """A LayerStream: one time step after another, the states inside. state: a tuple of those of the recurrent
        layers, each as a call of it takes it; None is zeros. Layers that run backwards have none."""
        return LayerStream(self, tuple(self._flat()), state)

    def _flat(self):
        for layer in self.layers:
            yield from layer._flat() if isinstance(layer, Sequential) else (layer,)

    def shapes(self):
        return {f"{i}.{name}": shape for i, layer in enumerate(self.layers) for name, shape in layer.shapes().items()}

    def state_dict(self):
        return {f"{i}.{name}": a for i, layer in enumerate(self.layers) for name, a in layer.state_dict().items()}

    def _prepare(self, parameters):
        return [layer._prepare({name: parameters[f"{i}.{name}"] for name in layer.shapes()})
                for i, layer in enumerate(self.layers)]

    def _replace(self, prepared):
        for layer, of_layer in zip(self.layers, prepared, strict=True):
            layer._replace(of_layer)

    def __getstate__(self):
        return self.__dict__.copy()

    def __setstate__(self, state):
        self.__dict__.update(state)

    def rows(self, shape=None):
        rows = []
        for i, layer in enumerate(self.layers):
            rows += [row._replace(layer=f"{i} {row.layer}") for row in layer.rows(shape)]
            shape = rows[-1].output if rows else shape
        return rows

    def __repr__(self):
        return f"Sequential({', '.join(map(repr, self.layers))})"
