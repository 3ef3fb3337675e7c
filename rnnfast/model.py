"""A loaded ONNX model: immutable, called with named inputs, and safe to share between threads."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rnnfast.errors import InputError, UnsupportedError, no_memory, printable, raises_limit_error
from rnnfast.limits import Limits, check_limits
from rnnfast.named_values import Outputs, merge_inputs
from rnnfast.native._arenas import Arenas
from rnnfast.native._kernels import check_matmul, default_matmul
from rnnfast.native.threads import check as check_threads
from rnnfast.native.weight_types import ACTIVATION_BITS, WEIGHT_TYPES, weight_type_of
from rnnfast.onnx import lowering
from rnnfast.onnx.budget import owner
from rnnfast.onnx.cells import may_have_cells, recognised, with_cells
from rnnfast.onnx.compile import Step
from rnnfast.onnx.compile.builder import Target
from rnnfast.onnx.facts import facts_of, with_known_sizes
from rnnfast.onnx.float64 import widen
from rnnfast.onnx.folding import LoadBudget, constant_bytes, fold, folding_budget
from rnnfast.onnx.graph import Graph, Source, Type, Value, read
from rnnfast.onnx.inputs import lengths_inputs, validate
from rnnfast.onnx.loops import simplified
from rnnfast.onnx.quantizer_grids import without_repeats
from rnnfast.onnx.summary import Summary, summarise
from rnnfast.onnx.trace import PLAN_BYTES, PlannedGraph, Recorder
from rnnfast.onnx.weights import with_weight_type

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.streaming.model_axes import BatchAxes
    from rnnfast.streaming.model_stream import Stream
    from rnnfast.streaming.pool import Pool

# Planned graphs that a model keeps besides its default one: one for each set of initializers that callers override,
# and the float64 references.
MAX_PLANNED_GRAPHS = 4
# Default number of bytes of work memory that a model keeps for later calls.
SPARE_BYTES = 2**26


def load(
    source: str | os.PathLike[str] | bytes,
    *,
    weights: Literal["int8", "fp16", "bf16"] | None = None,
    activations: Literal[15, 8] = ACTIVATION_BITS,
    matmul: Literal["packed", "blas"] | None = None,
    threads: int | None = None,
    plans: int | None = None,
    plan_bytes: int = PLAN_BYTES,
    external_data: bool = True,
    spare_bytes: int = SPARE_BYTES,
    recognise_cells: bool = True,
    limits: Limits | None = None,
) -> Model:
    """Read, check and prepare an ONNX model.

    A graph of float16 or bfloat16 tensors is computed in float32. Its inputs and outputs keep their types; nothing
    between them is rounded to 16 bits.

    Args:
        source: The path of an ONNX file, or the file's bytes. Tensors stored as external data are read from inside
            the file's folder only, so a model given as bytes cannot have any. See SECURITY.md for links.
        weights: The type to which the constant weights of RNN, GRU, LSTM, MatMul, Gemm and Conv nodes are rounded: less
            memory is read, and results change. `"int8"` has an integer for each weight and a scale for each row, which
            is what is multiplied for one output; products are computed in integers. `"fp16"` and `"bf16"` are numbers
            of 16 bits, whose products are those of float32. Weights that the file stores as integers are taken as they
            are. None leaves all weights as they are; those of onnxruntime's DynamicQuantizeLSTM are integers even so.
        activations: The bits to which `"int8"` rounds what it multiplies with weights, with a scale for each row. 8 is
            faster and coarser than 15.
        matmul: How matrix products are computed: `"packed"` by rnnfast's own kernels, `"blas"` by SciPy's BLAS.
            None is "packed" where there are kernels tuned for this CPU, else "blas" if SciPy is installed. BLAS
            multiplies in float32, by rounded weights if `weights` is given.
        threads: The most threads that one call may use. None uses the environment variable `RNNFAST_NUM_THREADS`, or
            one thread if it is not set. The number of threads does not change the results.
        plans: The most plans that the model keeps; None for as many as `plan_bytes` allows. There is one plan for each
            set of input types and shapes, and of values of small integer inputs that decide control flow or shapes. The
            least recently used plan is dropped.
        plan_bytes: About how many bytes the plans may take. A plan takes some 400 bytes for each node, and 10,000.
        external_data: False refuses a model whose tensors are stored in other files; no file but its own is opened.
        spare_bytes: How much work memory the model keeps for later calls. All plans, streams, pools and threads share
            it. If calls in progress need more, that is given back to the system when they end.
        recognise_cells: Whether RNN, GRU and LSTM nodes replace recurrences that the file spells out: loops whose body
            is a step of such a cell, and steps that follow each other. They compute the same formula; sums are rounded
            in another order. `model.recognised_cells` tells which there are.
        limits: What the file and each call may take; None for the defaults of `rnnfast.Limits`.

    Returns:
        The model, ready to be called.

    Raises:
        ModelError: The source cannot be read or is not a correct ONNX model.
        UnsupportedError: The graph needs something that rnnfast does not compute, `matmul` is "blas" and SciPy is not
            installed, or a weight is not finite in the type `weights`.
        LimitError: The file takes more than the limits allow, or is nested too deeply.
        InputError: `weights`, `activations`, `matmul`, `threads`, `plans`, `plan_bytes`, `external_data`, `spare_bytes`
            or `recognise_cells` has a value that is not allowed.
        InputTypeError: `threads` is not an integer, or `limits` is no `rnnfast.Limits`.
    """
    return Model(
        source,
        weights=weights,
        activations=activations,
        matmul=matmul,
        threads=threads,
        plans=plans,
        plan_bytes=plan_bytes,
        external_data=external_data,
        spare_bytes=spare_bytes,
        recognise_cells=recognise_cells,
        limits=limits,
    )


class Model:
    """One ONNX model, which is read, checked, folded and packed once, when it is loaded.

    `rnnfast.load` makes a Model and documents the arguments; `edit` is called with the ModelProto of the file before it
    is checked, and may change it. A Model is immutable for its callers, so any number of
    threads may call it at the same time.

    Attributes:
        inputs: The inputs, in the order of the file. Each has a `name` and a `type`, which has `kind`, `dtype` and
            `shape`; `str(type)` is the name that onnxruntime gives it, such as `tensor(float)`. An input that has an
            initializer may be left out of a call.
        outputs: The outputs, in the order of the file, each with `name` and `type`.
        graph: The checked graph as the file has it, but computed in float32 where the file has float16 or bfloat16.
        source: What the file says besides its graph: label, opsets, producer and metadata.
        weights: The argument of `load`.
        activations: The argument of `load`.
        matmul: The argument of `load`.
        threads: The most threads that one call may use.
        planned: The planned graph that takes all required inputs and has the initializers as constants.
    """

    graph: Graph
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    planned: PlannedGraph

    @raises_limit_error
    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        weights: Literal["int8", "fp16", "bf16"] | None = None,
        activations: Literal[15, 8] = ACTIVATION_BITS,
        matmul: Literal["packed", "blas"] | None = None,
        threads: int | None = None,
        plans: int | None = None,
        plan_bytes: int = PLAN_BYTES,
        external_data: bool = True,
        spare_bytes: int = SPARE_BYTES,
        recognise_cells: bool = True,
        limits: Limits | None = None,
        edit: Callable[[Any], None] | None = None,
    ) -> None:
        if plans is not None and (type(plans) is not int or plans < 1):
            raise InputError(f"plans is {plans!r}, expected an int of at least 1, or None")
        if type(plan_bytes) is not int or not 0 <= plan_bytes <= sys.maxsize:
            raise InputError(f"plan_bytes is {plan_bytes!r}, expected an int of at least 0")
        if type(external_data) is not bool:
            raise InputError(f"external_data is {external_data!r}, expected True or False")
        if type(spare_bytes) is not int or not 0 <= spare_bytes <= sys.maxsize:
            raise InputError(f"spare_bytes is {spare_bytes!r}, expected an int of at least 0")
        if type(recognise_cells) is not bool:
            raise InputError(f"recognise_cells is {recognise_cells!r}, expected True or False")
        limits = check_limits(limits)
        weight_type = weight_type_of(weights, activations)
        graph, file = read(source, external_data=external_data, limits=limits, edit=edit)
        settings = (weight_type, matmul, threads, plans, plan_bytes, spare_bytes, recognise_cells, limits)
        self._prepare(graph, file, *settings)

    def _prepare(
        self,
        graph: Graph,
        source: Source,
        weight_type: str | None,
        matmul: Literal["packed", "blas"] | None,
        threads: int | None,
        plans: int | None,
        plan_bytes: int,
        spare_bytes: int,
        recognise_cells: bool,
        limits: Limits,
    ) -> None:
        """Fold and pack a graph; the other arguments are those of a pickle."""
        settings = (weight_type, matmul, threads, plans, plan_bytes, spare_bytes, recognise_cells, limits)
        self._pickled: tuple[Any, ...] | None = (graph, source, *settings)
        self._recognise_cells, self._weight_type = recognise_cells, weight_type
        row = WEIGHT_TYPES.get(weight_type or "")
        self.weights = None if row is None else row.weights
        self.activations = row.activation_bits if row is not None and row.integers else ACTIVATION_BITS
        self.source, self.matmul, self._max_plans = source, check_matmul(matmul), plans
        self._plan_bytes = plan_bytes
        self.threads, self.limits = check_threads(threads), limits
        self._target = Target(self.threads, (matmul or default_matmul()) == "blas", Arenas(spare_bytes), limits)
        self._set_graph(graph)
        self._set_planned(self.build())

    def __getstate__(self) -> tuple[Any, ...]:
        """The checked graph and the settings: the copy folds and packs anew, needs no file, and shares nothing.

        threads=None means the default of the process that unpickles.

        Raises:
            UnsupportedError: `altered` made the model, whose graph has packed weights.
        """
        if self._pickled is None:
            raise UnsupportedError(f"{self.source.label}: an altered model cannot be pickled or copied")
        return self._pickled

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._prepare(*state)

    def _set_graph(self, graph: Graph) -> None:
        self.graph, self.inputs, self.outputs = graph, graph.inputs, graph.outputs
        self._types = {v.name: v.type for v in self.inputs}
        self._lengths = lengths_inputs(graph)
        self._output_names = [v.name for v in self.outputs]
        # How `map` runs whole sequences, once it is proven, with the plans of these calls.
        self.proven_sequences: Any = None
        # Key -> planned graph, the last used first. The tuple is replaced, never changed, so that no call holds a lock:
        # if a thread thereby discards the graph of another, it is built again.
        self._other_planned: tuple[tuple[tuple[frozenset[str], bool], PlannedGraph], ...] = ()

    def _set_planned(self, planned: PlannedGraph) -> None:
        self.planned = planned
        # Bound once: this is the whole of a call whose inputs fit a plan that is kept.
        self._run_kept_plan = planned.plans.run

    @property
    def required_inputs(self) -> list[str]:
        """Names of the inputs that every call must give: those without an initializer."""
        return [v.name for v in self.inputs if v.name not in self.graph.constants]

    # --------------------------------------------------------------------------------------------- calls
    def __call__(self, feed: Mapping[str, ArrayLike] | None = None, /, **inputs: ArrayLike) -> Outputs:
        """Run the model.

        Inputs are given by keyword, or in a mapping where their names are not Python identifiers, or both.

        Args:
            feed: Inputs by name.
            **inputs: Further inputs by name. Arrays must have the dtype that the file declares, and sizes that fit the
                declared shape. Python numbers and nested lists of them are converted if the declared type can hold
                each of them (floats are rounded to it), and so are integer arrays that are lengths: inputs whose
                only use is as the sequence_lens of recurrent nodes.

        Returns:
            The outputs by name, in the order of the file: new arrays that share no memory with the inputs. A name that
            is an identifier is an attribute too.

        Raises:
            InputError: An input is missing or unknown, or has a wrong shape or a value that does not fit.
            InputTypeError: An input has a wrong type.
            LimitError: The call takes more than the limits allow (see `rnnfast.Limits`), or its loops take more than a
                million iterations together.
            ModelError: An output does not have the type that the file declares.
            UnsupportedError: An operator does not compute an output that the graph uses.
        """
        return Outputs(zip(self._output_names, self.run(self.merge_inputs(feed, inputs))))

    def run(self, feed: Mapping[str, ArrayLike]) -> list[Any]:
        """Run the model and return a list, which costs a little less than the `Outputs` of a call.

        Args:
            feed: Inputs by name, as for a call.

        Returns:
            The outputs in the order of the file.

        Raises:
            Error: As a call does.
        """
        try:
            outputs = self._run_kept_plan(feed)
            if outputs is None:
                planned, args = self.prepare(self.merge_inputs(feed, {}))
                outputs = planned.run(args)
            return outputs
        except MemoryError as error:
            raise no_memory(error) from None

    @raises_limit_error
    def reference(self, feed: Mapping[str, ArrayLike] | None = None, /, **inputs: ArrayLike) -> Outputs:
        """Run the same graph with float64 in place of float32, by NumPy alone; also where the file has float16.

        Weights are rounded as in a call if the model was loaded with `weights`; products are not in integers. This is
        slow; `rnnfast check` compares a model with it.

        Args:
            feed: Inputs by name, as for a call.
            **inputs: Further inputs by name.

        Returns:
            The outputs by name. Those that are float32 in a call are float64 here.

        Raises:
            Error: As a call does.
        """
        feed = self.merge_inputs(feed, inputs)
        planned, args = self.prepare(feed)
        planned.plan(args)  # the reference refuses what a call refuses: mixed types are all float64 in it
        planned, args = self.prepare(feed, True)
        return Outputs(zip(self._output_names, planned.run(args)))

    def merge_inputs(self, feed: Mapping[str, Any] | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """Merge the two ways of giving inputs.

        Args:
            feed: The positional mapping of a call, or None.
            inputs: The keywords of a call.

        Returns:
            One mapping with the inputs of both.

        Raises:
            InputError: An input is given twice.
            InputTypeError: `feed` is not a mapping.
        """
        return merge_inputs(self.source.label, feed, inputs)

    def prepare(self, feed: Mapping[str, Any], reference: bool = False) -> tuple[PlannedGraph, list[Any]]:
        """Validate the inputs of a call and find the planned graph that takes them.

        Args:
            feed: Inputs by name.
            reference: Whether to prepare a call of the float64 reference.

        Returns:
            The planned graph, and its arguments in their order.

        Raises:
            InputError: An input is missing or unknown, or has a wrong shape or a value that does not fit.
            InputTypeError: An input has a wrong type.
        """
        label, constants = self.source.label, self.graph.constants
        for name in feed:
            if name not in self._types:
                raise InputError(f"{label}: there is no input {name!r}, only {list(self._types)}")
        missing = [name for name in self._types if name not in feed and name not in constants]
        if missing:
            raise InputError(f"{label}: input {missing[0]!r} is missing: the model has {list(self._types)}")
        planned = self._planned_for(frozenset(name for name in feed if name in constants), reference)
        for name in self._lengths:
            array = feed.get(name)
            if isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.dtype != np.int32:
                feed = {**feed, name: array.tolist()}  # a list, whose numbers are converted if they fit
        args = [validate(feed[name], self._types[name], f"{label}: input {name!r}") for name in planned.names]
        return planned, widen(args) if reference else args

    def _planned_for(self, overridden: frozenset[str], reference: bool) -> PlannedGraph:
        """The planned graph that takes these initializers as inputs."""
        if not overridden and not reference:
            return self.planned
        key = overridden, reference
        kept = self._other_planned
        planned = next((planned for other, planned in kept if other == key), None)
        if planned is None:
            planned, kept = self.build(overridden, reference), self._other_planned
        others = [pair for pair in kept if pair[0] != key]
        self._other_planned = ((key, planned), *others[: MAX_PLANNED_GRAPHS - 1])
        return planned

    # -------------------------------------------------------------------------------------- other graphs
    @raises_limit_error
    def build(
        self,
        overridden: Collection[str] = frozenset(),
        reference: bool = False,
        record: Recorder | None = None,
        meter: Callable[[Step], Callable[..., Any]] | None = None,
    ) -> PlannedGraph:
        """Make a new planned graph of the model, which shares no plans with others.

        Args:
            overridden: Names of the initializers that are inputs of it.
            reference: Whether it computes in float64 by NumPy alone.
            record: Called as `record(node, inputs, outputs)` with the values of each step that is traced.
            meter: Called with each step of a plan; returns the callable that the plan runs in its place.

        Returns:
            The planned graph. Its inputs are the required inputs and `overridden`.
        """
        constants = {name: value for name, value in self.graph.constants.items() if name not in overridden}
        graph = dataclasses.replace(self.graph, constants=constants)
        with np.errstate(all="ignore"):
            if reference:
                if self._weight_type is not None:
                    load_budget = LoadBudget(self.limits, constant_bytes(graph))
                    # Loops are simplified as for a call: weights that they only carry are weights of the layers within.
                    lower_constants = functools.partial(lowering.lower_constants, lowering.lower)
                    graph = fold(simplified(graph), lower_constants, load_budget=load_budget)
                    graph = with_weight_type(graph, self._weight_type, load_budget.take)
                graph, lower = widen(graph), lowering.lower_reference
                graph = fold(graph, lower, load_budget=LoadBudget(self.limits, constant_bytes(graph)))
            else:
                lower = functools.partial(lowering.lower, matmul=self.matmul, threads=self.threads)
                graph = self._folded(graph, lower)
        names = [v.name for v in self.inputs if v.name not in constants]
        return PlannedGraph(
            graph,
            names,
            self.source.label,
            record=record,
            meter=meter,
            target=None if reference else self._target,
            plans=self._max_plans,
            plan_bytes=self._plan_bytes,
            specialises=True,
            limits=self.limits,
        )

    def _folded(self, graph: Graph, lower: Any) -> Graph:
        """A graph with loops, cells and quantisers simplified, constants computed and nodes lowered."""
        nbytes = constant_bytes(graph)
        load_budget = LoadBudget(self.limits, nbytes)
        budgets: dict[str, Any] = {"load_budget": load_budget, "budget": folding_budget(nbytes)}
        graph = fold(simplified(graph), functools.partial(lowering.lower_constants, lower), **budgets)
        graph = with_weight_type(graph, self._weight_type, load_budget.take)
        if self._recognise_cells and may_have_cells(graph):
            nbytes = constant_bytes(graph)
            graph = with_cells(graph)
            load_budget.take(max(0, constant_bytes(graph) - nbytes))
            graph = with_weight_type(graph, self._weight_type, load_budget.take, cells=True)
        graph = without_repeats(graph)
        return fold(with_known_sizes(graph, facts_of(graph)), lower, **budgets)

    @property
    def folded(self) -> Graph:
        """The graph that runs: what depends on constants alone is computed, and weights are packed."""
        return self.planned.graph

    @property
    def recognised_cells(self) -> tuple[str, ...]:
        """The recurrent nodes that replace recurrences of the file: where these are, and as what they run."""
        return tuple(node.where for node in recognised(self.folded))

    def altered(self, graph: Graph) -> Model:
        """Make a model of a graph that was derived from this model's folded one.

        Args:
            graph: The new graph. It may share nodes with `folded`, and with them their packed weights.

        Returns:
            The new model. All its inputs are required.
        """
        model = object.__new__(type(self))
        vars(model).update(vars(self))
        model._pickled = None
        model._set_graph(graph)
        model._set_planned(
            PlannedGraph(
                graph,
                [v.name for v in graph.inputs],
                self.source.label,
                target=self._target,
                plans=model._max_plans,
                plan_bytes=model._plan_bytes,
                specialises=True,
                limits=self.limits,
            )
        )
        return model

    def record(self, feed: Mapping[str, ArrayLike], record: Recorder) -> None:
        """Run one call and report each node that runs.

        Args:
            feed: Inputs by name, as for a call.
            record: Called as `record(node, inputs, outputs)` with a node of the graph that runs (that of `folded`,
                unless the call overrides initializers) and the values of its inputs and outputs.

        Raises:
            Error: As a call does.
        """
        planned, args = self.prepare(feed)
        PlannedGraph(
            planned.graph, planned.names, self.source.label, record=record, specialises=True, limits=self.limits
        )(args)

    # ------------------------------------------------------------------------------------------- streams
    @raises_limit_error
    def stream(
        self,
        state: Mapping[str, ArrayLike] | None = None,
        *,
        states: Mapping[str, str] | None = None,
        **fixed: ArrayLike,
    ) -> Stream:
        """Open a stream: its `step` and `run` take frames, and it keeps the states between them.

        Args:
            state: Initial states by the names of their inputs, as `stream.state` gives them; None for zeros.
            states: The state pairs as a mapping from state input to state output. It is needed where names do not
                show the pairs, or show wrong ones; {} says that there are no states.
            **fixed: Inputs that are the same for each frame.

        Returns:
            The stream.

        Raises:
            InputError: The state pairs are not clear, a name is not one of the model's, or a value has a wrong shape.
            InputTypeError: A value has a wrong type.
        """
        from rnnfast.streaming.model_stream import Stream

        return Stream(self, state, states, fixed)

    @raises_limit_error
    def pool(
        self, max_streams: int, *, states: Mapping[str, str] | None = None, batch: bool = True, **fixed: ArrayLike
    ) -> Pool:
        """Make a pool: many streams that are stepped in one batch, each with the bits that it would get alone.

        A pool whose graph has no axis for a batch of streams raises UnsupportedError at its first step.

        Args:
            max_streams: The most streams that may be open at one time. The pool allocates twice the size of the
                states for each.
            states: The state pairs, as for `stream`.
            batch: False steps the streams one by one, which any graph allows.
            **fixed: Inputs that are the same for each frame of each stream.

        Returns:
            The pool.

        Raises:
            InputError: `max_streams` is out of range, the state pairs are not clear, a name is not one of the model's,
                or a value has a wrong shape.
            InputTypeError: A value has a wrong type.
        """
        from rnnfast.streaming.model_pool import ModelPool

        return ModelPool(self, max_streams, states, batch, fixed)

    def map(
        self,
        sequences: Iterable[Any],
        *,
        batch: int | None = None,
        threads: int = 1,
        progress: bool | Callable[[int, int | None], object] = False,
        **fixed: ArrayLike,
    ) -> Iterator[Any]:
        """Run the model on each sequence of a corpus; each gets the bits that it would get alone.

        Some sequences at a time are read, sorted by length and computed in batches, so that `sequences` may be larger
        than memory. Sequences of different lengths share a call where a Batcher would run them together, those of one
        shape where the model has `batch_axes`, and streams of a model with states where it has pools; others are
        computed one by one.

        Args:
            sequences: An iterable, or generator, of what a call takes, without the batch axis: an array such as
                [T, ...], or a mapping of arrays by the inputs' names. The lengths that a model takes are those of the
                sequences. Of a model with states, a sequence has the frames along the first axis of each input, and
                begins with states of zeros. A sequence that has its batch axis is a call of its own; where the axis
                cannot be told, each must have it. Do not write to an array before its result is there.
            batch: The most frames, or steps, in one call, padding included; a longer sequence is a call of its own.
                None is 2048. Some 32 batches of sequences and results are in memory.
            threads: How many batches are computed at a time, each with as many threads as a call of the model uses. 1
                computes in the caller's thread.
            progress: True shows a bar on stderr if that is a terminal (`pip install 'rnnfast[cli]'`). A function is
                called with the number of sequences that were computed, and that of all or None.
            **fixed: Inputs that are the same for all sequences, as for `stream`.

        Returns:
            An iterator of the results in the order of `sequences`, each without the batch axis: the array of a model
            with one output, else `Outputs` by name. Close it, or leave it, to end early.

        Raises:
            InputError: `batch` or `threads` is out of range, or an input is wrong. That of a sequence names its index,
                and is raised after the results before it.
            InputTypeError: An argument has a wrong type.
            UnsupportedError: `progress` is True and rich is not installed.
            Error: As a call does, with the index of the sequence.
        """
        from rnnfast.serving.corpus_models import map_model

        return map_model(self, sequences, batch, threads, progress, fixed)

    # --------------------------------------------------------------------------------------------- facts
    @raises_limit_error
    def memory(self, feed: Mapping[str, ArrayLike] | None = None, /, **inputs: ArrayLike) -> int | None:
        """Return the bytes that a call with such inputs takes for its results, or those that the model holds now.

        The plan of the call is made and kept, as by a first call. Memory that NumPy functions take inside steps that
        are not native is not counted; `rnnfast profile` shows such steps.

        Args:
            feed: Inputs by name, as for a call.
            **inputs: Further inputs by name.

        Returns:
            With inputs, the bytes of all results of the call, intermediate ones included; None if a shape depends on
            values. They are part of what the model holds while the call runs, except for the outputs, which are the
            caller's. Without inputs, the bytes that the model holds now besides the weights: work memory and plans.

        Raises:
            Error: As a call does.
        """
        if feed is None and not inputs:
            return self._held()
        planned, args = self.prepare(self.merge_inputs(feed, inputs))
        return planned.plan(args).nbytes

    def _held(self) -> int:
        """The bytes of the work memory, in use or kept for later calls, and of the plans, without the weights."""
        graphs = [self.planned, *(planned for _, planned in self._other_planned)]
        weights = {id(owner(value)) for graph in (self.graph, self.folded) for value in graph.constants.values()}
        held: dict[int, Any] = {}
        for planned in graphs:
            values = [value for plan in planned.plans.kept for value in plan.held()]
            values += planned.symbolic.held() if planned.symbolic is not None else []
            for value in values:
                value = owner(value) if isinstance(value, np.ndarray) else value
                held[id(value)] = value
        return self._target.arenas.held + sum(
            getattr(value, "nbytes", 0) for key, value in held.items() if key not in weights
        )

    @raises_limit_error
    def warm(self, shapes: Iterable[Mapping[str, Sequence[int]]], **values: ArrayLike) -> None:
        """Make the plans of calls before they come, so that the first call of each shape is as fast as later ones.

        Args:
            shapes: For each plan the shapes of inputs by name. An input that is not among them has the shape that the
                file declares, with length 1 along each dimension that it leaves open.
            **values: Inputs that are the same for all of the plans. Small integer inputs that decide control flow or
                shapes need their values; other inputs are zeros.

        Raises:
            InputError: An input is unknown, its shape is not one that the file allows, or it is not a tensor and is not
                among `values`.
            Error: As a call does.
        """
        for given in shapes:
            feed: dict[str, Any] = dict(values)
            for name in given:
                if name not in self._types or name in values:
                    raise InputError(
                        f"{self.source.label}: a shape for {name!r}, expected one of "
                        f"{[name for name in self._types if name not in values]}"
                    )
            for name in self.required_inputs:
                if name not in feed:
                    feed[name] = _zeros(self._types[name], given.get(name), f"{self.source.label}: input {name!r}")
            planned, args = self.prepare(feed)
            planned.plan(args)

    def trim(self) -> None:
        """Give back all work memory that the model keeps for later calls; the next call takes what it needs anew.

        Plans are kept. Calls in progress are not disturbed.
        """
        self._target.arenas.trim()

    @raises_limit_error
    def summary(self, feed: Mapping[str, ArrayLike] | None = None, /, **inputs: ArrayLike) -> Summary:
        """List the layers with their output shapes, parameters, floating-point operations and bytes.

        Args:
            feed: Inputs by name, as for a call. An input that is not given is zeros, with length 1 along each
                dimension that the file leaves open.
            **inputs: Further inputs by name.

        Returns:
            The summary, which prints as a table. If the run ended early, its `problem` says why.

        Raises:
            InputError: An input that was given is unknown, or has a wrong shape or a value that does not fit.
            InputTypeError: An input that was given has a wrong type.
        """
        return summarise(self, self.merge_inputs(feed, inputs))

    def batch_axes(self, feed: Mapping[str, ArrayLike] | None = None, /, **inputs: ArrayLike) -> BatchAxes:
        """Find the axes along which the rows of a batch lie, and prove that no row depends on another.

        The rows are followed through the graph, node by node, for any number of them; a pool needs the same proof.

        Args:
            feed: Inputs by name, as for a call. An input that is not given is zeros, with length 1 along each
                dimension that the file leaves open. Axes may depend on the values of small integer inputs.
            **inputs: Further inputs by name.

        Returns:
            The axis of the rows in each input and output; where several choices are proven, the first. If there is
            none, its `problem` names the node at which rows meet.

        Raises:
            InputError: An input that was given is unknown, or has a wrong shape or a value that does not fit.
            InputTypeError: An input that was given has a wrong type.
        """
        from rnnfast.streaming.model_axes import batch_axes

        return batch_axes(self, self.merge_inputs(feed, inputs))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{v.name}: {v.type}{list(v.type.shape or ())}" for v in self.inputs)
        outputs = ", ".join(f"{v.name}: {v.type}" for v in self.outputs)
        return printable(f"<rnnfast.Model {self.source.label} ({inputs}) -> ({outputs})>")


def _zeros(declared: Type, shape: Sequence[int] | None, where: str) -> np.ndarray:
    """Zeros of a declared type and of this shape; None is the declared shape with length 1 for open dimensions."""
    if declared.kind != "tensor" or declared.dtype is None or shape is None and declared.shape is None:
        raise InputError(f"{where} is {declared}: its value is needed")
    if shape is None:
        shape = [n if isinstance(n, int) else 1 for n in declared.shape or ()]
    try:
        sizes = [int(n) for n in shape]
    except TypeError as e:
        raise InputError(f"{where}: a shape of {shape!r}, expected a sequence of int") from e
    if any(n < 0 for n in sizes):
        raise InputError(f"{where}: a shape of {sizes}, expected sizes of 0 or more")
    return np.zeros(sizes, declared.dtype)
