"""The base classes of all layers: named parameters, state dicts, forward and backward passes, and the summary."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from rnnfast.errors import Error, InputError, InputTypeError, ModelError, UnsupportedError, raises_limit_error
from rnnfast.native.threads import check as check_threads
from rnnfast.native.weight_types import ACTIVATION_BITS, WEIGHT_TYPES, weight_type_of
from rnnfast.nn.checks import as_generator, as_input, as_weight, check_flag, check_shape, within_memory
from rnnfast.nn.files import as_path, load, save
from rnnfast.nn.packed import checked, is_packed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from rnnfast.nn.types import FloatArray, Gradients, Seed, Shape, StateDict, SummaryShape, Weights
    from rnnfast.streaming.layer_pool import LayerPool
    from rnnfast.streaming.layer_stream import LayerStream
    from rnnfast.train.history import History

_OLD_NAMES = {
    "_weights": "loaded_weights",
    "_threads": "thread_count",
    "_reverse": "reversed_directions",
    "_activations": "resolved_activations",
}
"""Attribute name in older pickles -> its present name."""

_DERIVED = frozenset(("_widths", "_output_size", "_merged_size", "_count"))
"""Attributes of older pickles that are now computed from others."""


IGNORED_NAMES = frozenset(("num_batches_tracked",))
"""Names in state dicts of torch that have no effect on results: a count that BatchNorm1d keeps."""


class SummaryRow(NamedTuple):
    """One row of a summary: a layer and its costs."""

    layer: str
    """The layer as its repr shows it, after its name in a container."""
    output: SummaryShape
    """Shape of the output; free axes are named."""
    parameters: int
    """Number of parameters."""
    flops: int
    """Floating-point operations for one row of one time step; each multiply-add of a matrix product counts as 2."""
    bytes: int
    """Bytes of parameters that such a step reads."""


Sizes: TypeAlias = 'tuple[Literal["last", "channels", "new"], int | None, int | None]'
"""Which axis of its input a layer treats, the size that this must have, and the size that it has in the output.

The axis is the last one, or that of channels, which is the second one, or a new last one, which an Embedding adds. The
sizes are None where the input may have any, which the output then has too.
"""


class UnmatchedNames(NamedTuple):
    """The names that `load_state_dict` with strict=False did not match."""

    missing: list[str]
    """Parameters of the layer that the state dict does not have; they stay as they were."""
    unexpected: list[str]
    """Names of the state dict that the layer does not have."""


class Saved(NamedTuple):
    """The values that a layer without a state, or a container, saves in `forward` for `backward`.

    They may include x and y themselves, not copies.
    """

    values: tuple[Any, ...]
    shape: Shape
    """Shape of y."""
    nbytes: int = 0
    """Bytes held beyond the arguments and results of `forward`."""


class Module:
    """The base class of all layers.

    Calling a layer changes nothing, so that any number of threads may call it; only `load_state_dict` changes its
    parameters. A copied or unpickled layer has the same parameters and gives the same bits. Initial weights without a
    seed are drawn when they are first needed.

    Other modules of rnnfast use these members of a layer, beside its public methods: `loaded_weights`,
    `current_weights`, `prepare_weights`, `replace_weights`, `thread_count`, `call_into` and `call_in_sequence`.
    Subclasses define `_draw`, `_pack`, `_forward` and `_backward`.
    """

    loaded_weights: Any = None
    """(parameters, packed weights that calls compute with), or None before the initial weights are drawn. The pair is
    replaced as a whole, so that a concurrent call sees either the old or the new weights."""

    thread_count: int
    """The number of threads that calls use, if the layer has a `threads` argument."""

    threads: int | None

    is_cell: ClassVar[bool] = False
    """Whether it takes one step at a time, so that no Sequential has it."""

    takes_floats: ClassVar[bool] = False
    """Whether x is float32, to which `as_input` converts; else it is what the class says, such as indices."""

    weight_type: str | None = None
    """The key in WEIGHT_TYPES of the weights of products, None for float32; `quantized` sets it in a copy."""

    buffers: ClassVar[tuple[str, ...]] = ()
    """The parameters that have no gradient: where `backward` gives that of others, it gives what `fit` subtracts."""

    @property
    def is_stepwise(self) -> bool:
        """Whether the output of a time step depends on its own input, and earlier ones through the state, alone.

        A layer for which this is False has no streams, and takes no lengths, as it sees what is behind a row's end.
        """
        return True

    if TYPE_CHECKING:
        __call__: Callable[..., Any]

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the methods that compute raise LimitError where there is no memory, as `run_batch` does by itself."""
        super().__init_subclass__(**options)
        for name in ("__init__", "__call__", "forward", "backward", "save"):
            method = vars(cls).get(name)
            if method is not None and not (name == "__call__" and hasattr(cls, "run_batch")):
                setattr(cls, name, raises_limit_error(method))

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of each parameter by name, in the order of the state dict."""
        return {}

    def product_weights(self) -> tuple[str, ...]:
        """Return the names of the parameters that are matrices of products, of which each row makes one output."""
        return ()

    def sizes(self) -> Sizes | None:
        """Return which axis the layer treats, and its sizes; None if that is not known."""
        return None

    def state_dict(self) -> Weights:
        """Return copies of the parameters by name: float32 arrays."""
        with within_memory(self):
            return {name: array.copy() for name, array in self.current_weights()[0].items()}

    def load_state_dict(self, state_dict: StateDict, strict: bool = True, *, prefix: str = "") -> UnmatchedNames | None:
        """Replace all parameters, or none after an error.

        Args:
            state_dict: A mapping of name to array, or to anything that `np.asarray` reads, such as torch tensors. Names
                and shapes must be exactly those of `shapes()`, dtypes float32 or narrower floats.
            strict: Whether names that are missing or unexpected are an error. False keeps the parameters whose names
                are missing, and leaves out what is unexpected; one name at least must fit.
            prefix: What the names begin with in a state dict of a larger module, such as "encoder.lstm"; names that
                begin otherwise are not looked at.

        Returns:
            None; with strict=False the missing and the unexpected names.

        Raises:
            InputTypeError: `state_dict` is no mapping, or a dtype does not fit.
            LimitError: There is no memory for the weights.
            ModelError: Names are missing or unexpected, or a shape is wrong.
        """
        if not isinstance(state_dict, Mapping):
            raise InputTypeError(f"state_dict: got a {type(state_dict).__name__}, expected a mapping of name to array")
        if not isinstance(prefix, str):
            raise InputTypeError(f"prefix: got a {type(prefix).__name__}, expected a str")
        strict = check_flag(strict, "strict")
        if prefix:
            start = prefix if prefix.endswith(".") else f"{prefix}."
            given = {name.removeprefix(start): a for name, a in state_dict.items() if str(name).startswith(start)}
        else:
            given = dict(state_dict)
        given = {name: a for name, a in given.items() if str(name).rpartition(".")[2] not in IGNORED_NAMES}
        shapes = self.shapes()
        missing = [name for name in shapes if name not in given]
        unexpected = [str(name) for name in given if name not in shapes]
        if strict and (missing or unexpected) or shapes and len(missing) == len(shapes):
            raise ModelError(
                f"state_dict of {self!r}: missing {', '.join(missing) or 'nothing'}, "
                f"unexpected {', '.join(unexpected) or 'nothing'}{self._advice(state_dict)}"
            )
        parameters = {name: as_weight(given[name], name) for name in shapes if name in given}
        for name, array in parameters.items():
            if array.shape != shapes[name]:
                raise ModelError(
                    f"state_dict of {self!r}: {name} has shape {list(array.shape)}, expected {list(shapes[name])}"
                )
        if missing:
            parameters = self.state_dict() | parameters
        self.replace_weights(self.prepare_weights({name: parameters[name] for name in shapes}))
        return None if strict else UnmatchedNames(missing, unexpected)

    def _advice(self, state_dict):
        """Return how a state dict of a larger module can be loaded, as the end of a message; "" if it cannot."""
        found = prefixes(self, state_dict)
        return f"; expected prefix={' or '.join(map(repr, found))}" if found else ""

    @raises_limit_error
    def quantized(
        self, weights: Literal["int8", "fp16", "bf16"], *, activations: Literal[15, 8] = ACTIVATION_BITS
    ) -> Self:
        """Return a copy for inference whose products have weights of another type.

        The weights of Linear, Conv1d, RNN, GRU and LSTM, and of all layers made of these, are rounded as
        `rnnfast.load` with the same arguments rounds those of a file, and later ones when they are loaded. The state
        dict has the rounded values as float32, and so has what `save` writes, of which `rnnfast.nn.load` makes a
        quantised layer again. Biases, embeddings and other layers stay as they are. The copy cannot be trained.

        Args:
            weights: The type: "int8", whose products are computed in integers, "fp16" or "bf16".
            activations: The bits to which int8 rounds what it multiplies with weights; 8 is faster and coarser than 15.

        Returns:
            A layer of the same class.

        Raises:
            InputError: `weights` or `activations` has a value that is not allowed.
            LimitError: There is no memory for the weights.
            UnsupportedError: A weight is not finite, or too large for the type.
        """
        weight_type = weight_type_of(weights, activations)
        if weight_type is None:
            raise InputError("weights: got None, expected a type to which weights are rounded")
        twin = copy.deepcopy(self)
        twin.hold_weights_as(weight_type)
        return twin

    def hold_weights_as(self, weight_type: str) -> None:
        """Round the weights to a type, of which later ones will be too; `quantized` documents it.

        Args:
            weight_type: A key of WEIGHT_TYPES.
        """
        self.weight_type = weight_type
        if self.loaded_weights is not None:
            parameters = {name: array.copy() for name, array in self.loaded_weights[0].items()}
            self.replace_weights(self.prepare_weights(parameters))

    def refuse_training(self) -> None:
        """Raise UnsupportedError if the layer is quantised, so that it has no gradients."""
        if self.weight_type is not None:
            raise UnsupportedError(f"{self!r} is quantised, for inference: it has no gradients")

    def _check_training(self, training):
        """Return whether `training` is True, which quantised layers refuse."""
        if check_flag(training, "training"):
            self.refuse_training()
        return training

    @raises_limit_error
    def forward(
        self, x: Any, state: Any = None, *, lengths: ArrayLike | None = None, training: bool = False, rng: Seed = None
    ) -> tuple[Any, Any, Any]:
        """Run the layer and, in training, save what `backward` needs.

        Args:
            x: The input, as a call takes it.
            state: The initial state, in the form that a recurrent layer or container returns it; None is zeros. Layers
                without a state take None only.
            lengths: Integers [B], the number of valid time steps of each row; used by recurrent layers.
            training: Whether to apply dropout and save. If False, y has the bits of a call.
            rng: A seed or a numpy Generator for dropout; the same seed gives the same bits.

        Returns:
            y, the last state (None for layers without one), and an object for `backward` (None unless training). The
            object's `nbytes` is the size of what it holds. It refers to x and y, which must not be written to before
            `backward`.

        Raises:
            InputError: A shape, value or state does not fit.
            InputTypeError: A dtype or type does not fit.
            UnsupportedError: training=True, and the layer has no gradient or is quantised.
        """
        if state is not None:
            raise InputError(f"state: {type(self).__name__} has none, expected None")
        self._check_lengths_taken(x, lengths)
        if not self._check_training(training):
            return self.call_in_sequence(x, None), None, None
        y, *values = self._forward(x, rng)
        not_counted = {id(a) for a in (x, y, *self.current_weights()[0].values())}
        return y, None, Saved(tuple(values), y.shape, sum(v.nbytes for v in values if id(v) not in not_counted))

    @raises_limit_error
    def backward(
        self, dy: Any, dstate: Any, saved: Any, *, dx: bool = True
    ) -> tuple[FloatArray | None, Any, Gradients]:
        """Compute gradients from those of the results of `forward`.

        It changes nothing, and may be called more than once with the same `saved`.

        Args:
            dy: The gradient of y: float32 of its shape; None is zeros.
            dstate: The gradient of the last state, in its form; None is zeros.
            saved: The third result of `forward` with training=True.
            dx: Whether to compute the gradient of x.

        Returns:
            The gradients of x (None for integers, and with dx=False), of the initial state (None for layers without
            one), and of the parameters, by the names of the state dict.

        Raises:
            InputError: A shape does not fit, or the layer has no state.
            InputTypeError: A dtype is wrong, or `saved` is not an object that `forward` returned.
        """
        self.refuse_training()
        if dstate is not None:
            raise InputError(f"dstate: {type(self).__name__} has no state, expected None")
        x_gradient, dweights = self._backward(self._checked(dy, saved), *saved.values)
        return x_gradient if dx else None, None, dweights

    def fit(self, x: Any, y: Any = None, **options: Any) -> History:
        """Train this network; see `rnnfast.train.fit`, which has the same arguments, results and errors."""
        from rnnfast.train import fit

        return fit(self, x, y, **options)

    def evaluate(self, x: Any, y: Any = None, **options: Any) -> dict[str, float]:
        """Return the loss and metrics of examples; see `rnnfast.train.evaluate`, which has the same arguments."""
        from rnnfast.train import evaluate

        return evaluate(self, x, y, **options)

    def predict(self, x: Any, **options: Any) -> FloatArray:
        """Return the outputs of all examples; see `rnnfast.train.predict`, which has the same arguments."""
        from rnnfast.train import predict

        return predict(self, x, **options)

    def map(
        self,
        sequences: Iterable[Any],
        *,
        batch: int | None = None,
        threads: int = 1,
        progress: bool | Callable[[int, int | None], object] = False,
    ) -> Iterator[Any]:
        """Call the layer with each sequence of a corpus; each result has the bits of that call.

        Some sequences at a time are read, sorted by length and computed in batches, so that `sequences` may be larger
        than memory. They share calls if the layer is recurrent, or a Sequential with recurrent layers, and no layer
        mixes time steps; others are called one by one.

        Args:
            sequences: An iterable, or generator, of what a call takes; arrays without a batch axis, such as [T, I],
                share calls. Do not write to an array before its result is there.
            batch: The most time steps in one call, padding included; a longer sequence is a call of its own. None is
                2048. Some 32 batches of sequences and results are in memory.
            threads: How many batches are computed at a time, each with as many threads as a call of the layer uses. 1
                computes in the caller's thread.
            progress: True shows a bar on stderr if that is a terminal (`pip install 'rnnfast[cli]'`). A function is
                called with the number of sequences that were computed, and that of all or None.

        Returns:
            An iterator of the results in the order of `sequences`, each as a call returns it: with its last state for
            a recurrent layer. Close it, or leave it, to end early.

        Raises:
            InputError: `batch` or `threads` is out of range.
            InputTypeError: An argument has a wrong type.
            UnsupportedError: `progress` is True and rich is not installed.
            Error: As a call does, with the index of the sequence, after the results before it.
        """
        from rnnfast.serving.corpus_layers import map_layer

        return map_layer(self, sequences, batch, threads, progress)

    def _checked(self, dy, saved):
        """Return dy as an array; zeros if it is None."""
        if not isinstance(saved, Saved):
            raise InputTypeError(f"saved: got a {type(saved).__name__}, expected what forward(training=True) returned")
        if dy is None:
            return np.zeros(saved.shape, np.float32)
        dy = as_input(dy, "dy")
        check_shape(dy, saved.shape, "dy", "that of y")
        return dy

    def _forward(self, x: Any, rng: Seed) -> tuple[Any, ...]:
        """Return y and the arrays that `_backward` needs, for a layer without a state in training."""
        raise UnsupportedError(f"{type(self).__name__} has no gradient")

    def _backward(self, *args: Any, **kwargs: Any) -> tuple[FloatArray | None, Gradients]:
        """Return dx and the gradients of the parameters by name, from dy and the values of `_forward` after y."""
        raise UnsupportedError(f"{type(self).__name__} has no gradient")

    @raises_limit_error
    def save(
        self, path: str | os.PathLike[str], *, lengths: bool = False, states: bool = False, rank: int | None = None
    ) -> None:
        """Write the layer as an ONNX file, which other engines can run too, or as a safetensors file.

        `rnnfast.nn.load` makes layers of both again. `rnnfast.load` runs the ONNX file: its inputs are x and those that
        are asked for, its outputs y and the last states; the axes of time and batch are symbolic. A safetensors file
        has the tensors of the state dict.

        Args:
            path: The file, which ends in .onnx or .safetensors; it is written completely or not at all. The options
                are those of ONNX files.
            lengths: Whether the file has an input lengths [batch] int32.
            states: Whether the file has inputs h0 (and c0) and outputs hn (and cn) for each recurrent layer.
            rank: The number of axes of x, for layers without recurrent ones, which take any number; None is 2.

        Raises:
            InputError: An option does not fit the layer, the path has another ending, or the file cannot be written.
            InputTypeError: `path` is no path.
            LimitError: The weights are larger than an ONNX file can be.
            UnsupportedError: ONNX has no form of a layer: proj_size, or a Module that is none of rnnfast's; or
                safetensors is not installed.
        """
        ending = as_path(path).suffix
        if ending == ".onnx":
            from rnnfast.export.layers import export

            export(self, path, lengths=lengths, states=states, rank=rank)
        elif ending != ".safetensors":
            raise InputError(f"path: {str(path)!r} ends in {ending!r}, expected .onnx or .safetensors")
        elif lengths or states or rank is not None:
            raise InputError("lengths, states, rank: are options of ONNX files, not of safetensors")
        else:
            save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Make a layer of this class of a file that `save` wrote; see `rnnfast.nn.load`, which takes any class.

        Raises:
            Error: As `rnnfast.nn.load` does; a ModelError too if the file holds a layer of another class.
        """
        net = load(path)
        if not isinstance(net, cls):
            raise ModelError(f"{path}: holds {net!r}, expected a {cls.__name__}")
        return net

    def call_into(self, x: Any, out: FloatArray) -> None:
        """Write the result of a call to `out`.

        `out` must be a C-contiguous array of the shape and dtype of the result that shares no memory with x.
        """
        np.copyto(out, self.call_in_sequence(x, None))

    def call_in_sequence(self, x: Any, lengths: ArrayLike | None) -> Any:
        """Return the output that the next layer of a Sequential gets."""
        self._check_lengths_taken(x, lengths)
        if is_packed(x):  # layers without a state treat all elements alike, whatever their time step
            if not self.is_stepwise:
                raise UnsupportedError(f"x: a packed sequence, whose rows {self!r} cannot tell from each other")
            x = checked(x)
            return x._replace(data=self(x.data))
        return self(x)

    def _check_lengths_taken(self, x, lengths):
        """Refuse lengths if the layer mixes time steps: padding would be mixed into the rows."""
        if lengths is not None and not self.is_stepwise:
            raise InputError(f"lengths: {self!r} mixes time steps, and with them what is behind a row's end")

    def _initialize(self, rng):
        """Finish construction by drawing the initial weights if `rng` is given.

        A Generator is used at once so that it serves layers in the order of their construction. Without one, drawing
        waits until the weights are needed, as loaded weights often replace them first.
        """
        generator = as_generator(rng)
        if rng is not None:
            self.current_weights(generator)

    def _use_threads(self, threads):
        """Set `threads`, the argument as it was given, and `thread_count`, the number that calls use."""
        self.thread_count = check_threads(threads)
        self.threads = None if threads is None else int(threads)

    def _draw(self, rng):
        """Draw the initial parameters from a numpy Generator."""
        return {}

    def _pack(self, parameters: Weights) -> Any:
        """Return the weights in the form that calls compute with."""

    @property
    def _packed(self):
        """The weights in the form that calls compute with."""
        return (self.loaded_weights or self.current_weights())[1]

    def current_weights(self, rng: Seed = None) -> Any:
        """Return `loaded_weights`; the initial ones are drawn first if there are none yet.

        Of threads that draw them at the same time one has its weights kept, and all return these.
        """
        if self.loaded_weights is None:
            with within_memory(self):
                parameters = self._draw(as_generator(rng))
            vars(self).setdefault("loaded_weights", self.prepare_weights(parameters))
        return self.loaded_weights

    def prepare_weights(self, parameters: Weights) -> Any:
        """Pack new parameters for `replace_weights`; the layer is not changed yet."""
        if self.weight_type is not None:
            parameters = self._rounded(parameters)
        for array in parameters.values():
            array.flags.writeable = False
        with within_memory(self):
            return parameters, self._pack(parameters)

    def _rounded(self, parameters):
        """Return parameters whose matrices of products are rounded to the layer's type."""
        row = WEIGHT_TYPES[self.weight_type]
        rounded = dict(parameters)
        for name in self.product_weights():
            array = parameters[name]
            if not np.all(np.isfinite(array)):
                raise UnsupportedError(f"{name}: the weights are not finite, and cannot be {row.weights}")
            with within_memory(self):
                columns = row.rounded(np.ascontiguousarray(array.reshape(len(array), -1).T))
                rounded[name] = np.ascontiguousarray(columns.T).reshape(array.shape)
            if not np.all(np.isfinite(rounded[name])):
                raise UnsupportedError(f"{name}: the weights are too large for {row.weights}")
        return rounded

    def _nbytes(self, shapes):
        """Return the bytes of parameters of these shapes by name, those of products in the layer's type."""
        count = sum(4 * math.prod(shape) for shape in shapes.values())
        if self.weight_type is not None:
            for name in set(self.product_weights()).intersection(shapes):
                rows, *rest = shapes[name]
                K = math.prod(rest)
                count += WEIGHT_TYPES[self.weight_type].nbytes(K, rows) - 4 * K * rows
        return count

    def replace_weights(self, prepared: Any) -> None:
        """Let calls use the weights that `prepare_weights` returned."""
        self.loaded_weights = prepared

    def __getstate__(self):
        return self.__dict__ | {"loaded_weights": dict(self.current_weights()[0])}

    def __setstate__(self, state):
        if "loaded_weights" not in state:
            state = _renamed(state)
        self.__dict__.update(state)
        if "threads" in state:  # threads=None means this process's default, not the pickling one's
            self._use_threads(state["threads"])
        # Copies: the arrays of a pickle may lie in a buffer of the caller.
        self.loaded_weights = self.prepare_weights({name: np.array(a) for name, a in state["loaded_weights"].items()})

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        """Return the rows of the summary.

        Args:
            shape: The input's shape: sizes, and names of free axes such as "T" and "B". None leaves axes named.

        Raises:
            UnsupportedError: The layer's class does not define its rows.
        """
        raise UnsupportedError(f"{type(self).__name__} has no rows for a summary")

    def summary(self, shape: SummaryShape | None = None) -> str:
        """Return a table of layers like that of Keras: output shapes, parameters, flops and bytes of a step.

        Flops and bytes are those of one time step of one row. Flops count 2 for each multiply-add of a matrix product,
        and nothing for elementwise work. Bytes count each parameter that a step reads once, at 4 bytes, or those of
        its type if the layer is quantised: a step at batch 1 has to fetch these.

        Args:
            shape: The shape of an input, to show sizes in place of the names of its axes.

        Raises:
            UnsupportedError: The class of a layer does not define its rows.
        """
        rows = self.summary_rows(shape)
        total = SummaryRow(
            "total", (), sum(r.parameters for r in rows), sum(r.flops for r in rows), sum(r.bytes for r in rows)
        )
        table: list[tuple[str, ...]] = [("Layer (type)", "Output shape", "Param #", "Flops/step", "Bytes/step")]
        for row in (*rows, total):
            output = f"[{', '.join(map(str, row.output))}]" if row.output else ""
            table.append((row.layer, output, f"{row.parameters:,}", f"{row.flops:,}", f"{row.bytes:,}"))
        shapes = self.shapes()
        moved = sum(math.prod(shapes[name]) for name in buffer_names(self))
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))
            ).rstrip()
            for cells in table
        ]
        rule = "-" * len(lines[0])
        return "\n".join(
            [
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1],
                f"Trainable params: {total.parameters - moved:,} ({4 * (total.parameters - moved) / 2**20:.2f} MB)",
                f"Non-trainable params: {moved:,}",
            ]
        )

    def __repr__(self) -> str:
        arguments = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.default is parameter.empty:
                arguments.append(repr(value))
            elif value != parameter.default:
                arguments.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(arguments)}){self._quantized_repr()}"

    def _quantized_repr(self):
        """Return the call that makes a quantised layer of one that is not, as the end of its repr; "" for that."""
        if self.weight_type is None or not self.product_weights():
            return ""
        row = WEIGHT_TYPES[self.weight_type]
        bits = "" if row.activation_bits in (0, ACTIVATION_BITS) else f", activations={row.activation_bits}"
        return f".quantized({row.weights!r}{bits})"


class Container(Module):
    """A layer made of layers.

    The names of its state dict are "<layer>.<parameter>". Loading changes all layers or, after an error, none. It
    replaces the weights layer by layer, so that a concurrent call may see some old and some new ones.
    """

    def members(self) -> dict[str, Module]:
        """Return the layers by name, in the order of the state dict."""
        raise NotImplementedError

    def shapes(self) -> dict[str, Shape]:
        return joined({name: layer.shapes() for name, layer in self.members().items()})

    def state_dict(self) -> Weights:
        return joined({name: layer.state_dict() for name, layer in self.members().items()})

    def prepare_weights(self, parameters):
        return [
            layer.prepare_weights({name: parameters[f"{path}.{name}"] for name in layer.shapes()})
            for path, layer in self.members().items()
        ]

    def replace_weights(self, prepared):
        for layer, weights in zip(self.members().values(), prepared, strict=True):
            layer.replace_weights(weights)

    def hold_weights_as(self, weight_type):
        self.weight_type = weight_type
        for layer in self.members().values():
            layer.hold_weights_as(weight_type)

    def refuse_training(self):
        for layer in self.members().values():
            layer.refuse_training()

    def _advice(self, state_dict):
        advice = super()._advice(state_dict)
        found = {} if advice else {name: prefixes(layer, state_dict) for name, layer in self.members().items()}
        if not any(found.values()):
            return advice
        each = [f"layer {name} by prefix={' or '.join(map(repr, starts))}" for name, starts in found.items() if starts]
        return f"; expected each layer to be loaded by itself: {', '.join(each)}"

    def __getstate__(self):
        return self.__dict__.copy()

    def __setstate__(self, state):
        if {"threads", "_threads"} <= state.keys() and "thread_count" not in state:  # an older version's
            state = {"thread_count" if name == "_threads" else name: value for name, value in state.items()}
        self.__dict__.update(state)
        if "thread_count" in state:  # threads=None means this process's default, not the pickling one's
            self._use_threads(state["threads"])


def prefixes(layer: Module, state_dict: StateDict) -> list[str]:
    """Return what names may begin with in a state dict of a larger module that has all parameters of a layer."""
    names = layer.shapes()
    first = next(iter(names), "")
    ends = [str(name) for name in state_dict if first and str(name).endswith(f".{first}")]
    starts = [name.removesuffix(first) for name in ends]
    return [start.removesuffix(".") for start in starts if all(start + name in state_dict for name in names)]


def joined(parts):
    """Flatten {layer: {parameter: value}} to {"<layer>.<parameter>": value}, the form of a Container's state dict."""
    return {f"{path}.{name}": value for path, part in parts.items() for name, value in part.items()}


class Sequential(Container):
    """Layers that run one after another, as torch.nn.Sequential.

    A recurrent layer passes on its output, not its last state. The state of a Sequential is the tuple of the states of
    its recurrent layers, in their order, those of nested Sequentials included. State dict names begin with the layer's
    position, as in torch: "0.weight_ih_l0".

    `len`, indices and iteration are those of the layers; a slice is a Sequential of the same layers.

    Args:
        *layers: The layers, or one list of them. A recurrent layer may not follow one that has return_sequences=False.

    Raises:
        InputError: A recurrent layer follows one that returns no sequences, a layer follows one whose output has
            another size than it takes, or a layer is a cell.
        InputTypeError: A layer is no Module.
    """

    def __init__(self, *layers: Any) -> None:
        layers = tuple(layers[0]) if len(layers) == 1 and isinstance(layers[0], (list, tuple)) else layers
        for position, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise InputTypeError(f"Sequential: layer {position} is a {type(layer).__name__}, expected an nn.Module")
            if layer.is_cell:
                name = type(layer).__name__
                raise InputError(
                    f"Sequential: layer {position} is a {name}, which takes one step, expected {name[:-4]}"
                )
        self.layers = layers
        last = None
        for layer in self.flat_layers():
            if last is not None and is_recurrent(layer):
                raise InputError(f"Sequential: {layer!r} follows {last!r}, which returns no sequences")
            if not getattr(layer, "return_sequences", True):
                last = layer
        self._check_sizes()

    def _check_sizes(self):
        """Refuse a layer whose input cannot have the size of the output before it."""
        known: dict[str, tuple[int, Module]] = {}  # axis -> (its size, the layer that gave it)
        for layer in self.flat_layers():
            axis, size, output = layer.sizes() or ("unknown", None, None)
            before, giver = known.get(axis, (None, None))
            if size is not None and before is not None and size != before:
                raise InputError(f"Sequential: {layer!r} takes {size} values, but {giver!r} before it gives {before}")
            if axis in ("unknown", "new") or not layer.is_stepwise and output is not None:
                known = {}  # other axes may have any size now: a convolution changes the number of steps
            if output is not None:
                known["last" if axis == "new" else axis] = output, layer
            if not getattr(layer, "return_sequences", True):
                known["channels"] = known["last"]  # of an array [B, size]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """Return a layer, or a Sequential of those of a slice."""
        return Sequential(*self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __bool__(self) -> bool:
        return True

    def members(self) -> dict[str, Module]:
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def __call__(self, x: Any, *, lengths: ArrayLike | None = None) -> Any:
        """Run all layers.

        Args:
            x: The input, as the first layer takes it, or a PackedSequence.
            lengths: Integers [B], the number of valid time steps of each row; every recurrent layer gets them.

        Returns:
            The last layer's output, without states.

        Raises:
            Error: That of a layer, with its position.
        """
        for layer in self.layers:
            try:
                x = layer.call_in_sequence(x, lengths)
            except Error as error:
                raise self._with_position(error, layer) from error
        return x

    def call_in_sequence(self, x, lengths):
        return self(x, lengths=lengths)

    def _with_position(self, error, layer):
        """Return the error with a message that names the layer."""
        position = next(i for i, other in enumerate(self.layers) if other is layer)
        text = "" if isinstance(layer, Sequential) else f" {layer!r}"
        return type(error)(f"layer {position}{text}: {error}")

    def forward(
        self, x: Any, state: Any = None, *, lengths: ArrayLike | None = None, training: bool = False, rng: Seed = None
    ) -> tuple[Any, Any, Any]:
        if self._check_training(training):
            rng = as_generator(rng)
            if is_packed(x):
                raise UnsupportedError(
                    "x: a packed sequence, which has no gradients; expected a padded array and lengths="
                )
        y, states, all_saved, nbytes = x, [], [], 0
        for layer, layer_state in zip(self.layers, self.split_state(state, "state"), strict=True):
            nbytes += 0 if y is x or not training else y.nbytes
            try:
                y, layer_state, saved = layer.forward(y, layer_state, lengths=lengths, training=training, rng=rng)
            except Error as error:
                raise self._with_position(error, layer) from error
            states.append(layer_state)
            all_saved.append(saved)
        if not training:
            return y, self.join_state(states), None
        nbytes += sum(saved.nbytes for saved in all_saved)
        return y, self.join_state(states), Saved(tuple(all_saved), np.shape(y), nbytes)

    def backward(
        self, dy: Any, dstate: Any, saved: Any, *, dx: bool = True
    ) -> tuple[FloatArray | None, Any, Gradients]:
        self.refuse_training()
        dy = self._checked(dy, saved)
        dstates: list[Any] = []
        dweights: Gradients = {}
        split = self.split_state(dstate, "dstate")
        for i, layer in reversed(list(enumerate(self.layers))):
            if dy is None:
                raise InputError(f"Sequential: {self.layers[i + 1]!r}, at {i + 1}, has no gradient of its input")
            dy, layer_dstate, gradients = layer.backward(dy, split[i], saved.values[i], dx=dx or i > 0)
            dstates.insert(0, layer_dstate)
            dweights = {f"{i}.{name}": gradient for name, gradient in gradients.items()} | dweights
        return dy, self.join_state(dstates), dweights

    def split_state(self, state: Any, name: str) -> list[Any]:
        """Return for each layer its part of a Sequential's state, None for zeros and for layers without a state."""
        counts = [sum(map(is_recurrent, layers_of(layer))) for layer in self.layers]
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

    def join_state(self, states: list[Any]) -> tuple[Any, ...]:
        """Return a Sequential's state from those of its layers: the inverse of `split_state`."""
        state: tuple[Any, ...] = ()
        for layer, part in zip(self.layers, states, strict=True):
            state += part if isinstance(layer, Sequential) else (part,) if is_recurrent(layer) else ()
        return state

    def stream(self, state: tuple[Any, ...] | None = None) -> LayerStream:
        """Return a LayerStream, which takes one time step after another and holds the states.

        Args:
            state: The initial state: a tuple of the states of the recurrent layers, each in the form that its call
                takes; None is zeros.

        Raises:
            InputError: A layer runs backwards (reverse or bidirectional), or a state does not fit.
            InputTypeError: A state has the wrong type.
        """
        from rnnfast.streaming.layer_stream import LayerStream

        return LayerStream(self, tuple(self.flat_layers()), state)

    def pool(self, max_streams: int) -> LayerPool:
        """Return a LayerPool, which steps many streams in one batch; each gets the bits that it would get alone.

        Args:
            max_streams: The maximum number of open streams.

        Raises:
            InputError: A layer runs backwards (reverse or bidirectional), or `max_streams` is less than 1.
            InputTypeError: `max_streams` is no integer.
        """
        from rnnfast.streaming.layer_pool import LayerPool

        return LayerPool(self, tuple(self.flat_layers()), max_streams)

    def flat_layers(self) -> Iterator[Module]:
        """Yield the layers, those of nested Sequentials in place of these."""
        for layer in self.layers:
            yield from layers_of(layer)

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        rows: list[SummaryRow] = []
        for i, layer in enumerate(self.layers):
            rows += [row._replace(layer=f"{i} {row.layer}") for row in layer.summary_rows(shape)]
            shape = rows[-1].output if rows else shape
        return rows

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a layer that an older version pickled, under their present names."""
    return {_OLD_NAMES.get(name, name): value for name, value in state.items() if name not in _DERIVED}


def is_recurrent(layer: Module) -> bool:
    """Return whether a layer has a state."""
    return hasattr(layer, "hidden_size")


def buffer_names(net: Module) -> set[str]:
    """Return the names of a network's parameters that have no gradients."""
    if not isinstance(net, Container):
        return set(net.buffers)
    return {f"{path}.{name}" for path, layer in net.members().items() for name in buffer_names(layer)}


def takes_floats(net: Module) -> bool:
    """Return whether the input of a network is float32, as its first layer says."""
    layers = layers_of(net)
    return bool(layers) and layers[0].takes_floats


def layers_of(net: Module) -> tuple[Module, ...]:
    """Return a Sequential's layers, with nested ones flattened, or the layer itself if it is no Sequential."""
    return tuple(net.flat_layers()) if isinstance(net, Sequential) else (net,)
