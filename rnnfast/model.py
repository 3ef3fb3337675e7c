"""A loaded model: immutable, called with named inputs, shared by any number of threads."""

import collections
import copy
import dataclasses
import functools
import threading

import numpy as np

from rnnfast.errors import InputError
from rnnfast.named_values import Outputs, merge_inputs
from rnnfast.native import _kernels
from rnnfast.native.threads import check as check_threads
from rnnfast.onnx import lowering
from rnnfast.onnx.compile.builder import Target
from rnnfast.onnx.float64 import widen
from rnnfast.onnx.folding import fold
from rnnfast.onnx.graph import read
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.summary import summarise
from rnnfast.onnx.trace import PlannedGraph

# Programs of one model besides its own: one for each set of initializers that callers override, and the references.
MAX_PLANNED_GRAPHS = 4
# Sets of input shapes for which a model keeps plans.
PLANS = 16


def load(source, *, matmul=None, threads=None, plans=PLANS):
    """A Model of an ONNX file (a path) or of its bytes.

    matmul: "packed" (the project's own kernels), "blas", or None for this CPU's default. threads: how many a call may
    use, None for RNNFAST_NUM_THREADS (else one); they do not change the results. plans: for how many sets of input
    shapes (and of integers that decide on control flow) what was planned is kept, the last used. Raises ModelError for
    a file that is wrong, UnsupportedError for a graph that asks for what is not computed, and InputError or
    InputTypeError for another `matmul`, `threads` or `plans`.
    """
    return Model(source, matmul=matmul, threads=threads, plans=plans)


class Model:
    """One ONNX model, read, checked, folded and packed once.

    inputs, outputs: tuples of objects with `name` and `type` (which has `dtype` and `shape`; str(type) is
    onnxruntime's name of it); inputs that have an initializer may be left out of a call. graph: the checked Graph.
    """

    def __init__(self, source, *, matmul=None, threads=None, plans=PLANS):
        if matmul not in (None, *_kernels.MATMULS):
            raise InputError(f"matmul is {matmul!r}, expected None or one of {', '.join(map(repr, _kernels.MATMULS))}")
        if type(plans) is not int or plans < 1:
            raise InputError(f"plans is {plans!r}, expected an int of at least 1")
        self.matmul, self.threads, self._plans = matmul, check_threads(threads), plans
        self._target = Target(self.threads, (matmul or _kernels.default_matmul()) == "blas")
        graph, self.source = read(source)
        self._set(graph)
        self._run_by(self.build())

    def _set(self, graph):
        self.graph, self.inputs, self.outputs = graph, graph.inputs, graph.outputs
        self._types = {v.name: v.type for v in self.inputs}
        self._names = [v.name for v in self.outputs]
        self._planned_graphs = collections.OrderedDict()
        self._lock = threading.Lock()

    def _run_by(self, planned):
        self._own, self._run_plan = planned, planned.plans.run

    @property
    def required_inputs(self):
        """The names of the inputs that have no default."""
        return [v.name for v in self.inputs if v.name not in self.graph.constants]

    def __call__(self, feed=None, /, **inputs):
        """Outputs for the inputs, by keyword or in one mapping (for names that are no identifiers).

        Arrays must have the declared type; Python numbers and lists of them are converted where they fit exactly.
        LimitError where the loops of the call take more than a million iterations together, or what it computes needs
        more than 4 GiB at a time.
        """
        return Outputs(zip(self._names, self.run(self.merge_inputs(feed, inputs))))

    def run(self, feed):
        """The outputs as a list in the graph's order, for one mapping of inputs by name."""
        outputs = self._run_plan(feed)
        if outputs is None:
            planned, args = self.prepare(self.merge_inputs(feed, {}))
            outputs = planned.run(args)
        return outputs

    def reference(self, feed=None, /, **inputs):
        """The same graph in float64 by NumPy alone: slow, and what `rnnfast check` compares with."""
        planned, args = self.prepare(self.merge_inputs(feed, inputs), True)
        return Outputs(zip(self._names, planned.run(args)))

    def merge_inputs(self, feed, inputs):
        """One dict of a positional mapping and keywords."""
        return merge_inputs(self.source.label, feed, inputs)

    def prepare(self, feed, reference=False):
        """(PlannedGraph, its arguments) of a call; every input is checked."""
        label, constants = self.source.label, self.graph.constants
        for name in feed:
            if name not in self._types:
                raise InputError(f"{label}: there is no input {name!r}, only {list(self._types)}")
        missing = [name for name in self._types if name not in feed and name not in constants]
        if missing:
            raise InputError(f"{label}: input {missing[0]!r} is missing: the model has {list(self._types)}")
        planned = self._planned(frozenset(name for name in feed if name in constants), reference)
        args = [validate(feed[name], self._types[name], f"{label}: input {name!r}") for name in planned.names]
        return planned, widen(args) if reference else args

    def _planned(self, overridden, reference):
        """The planned that takes these initializers from the caller."""
        if not overridden and not reference:
            return self._own
        key = overridden, reference
        with self._lock:
            if key in self._planned_graphs:
                self._planned_graphs.move_to_end(key)
                return self._planned_graphs[key]
        planned = self.build(overridden, reference)
        with self._lock:
            planned = self._planned_graphs.setdefault(key, planned)
            while len(self._planned_graphs) > MAX_PLANNED_GRAPHS:
                self._planned_graphs.popitem(last=False)
        return planned

    def build(self, overridden=frozenset(), reference=False, record=None, meter=None):
        """A new PlannedGraph; record(node, input values, output values) is called with each step that it traces, meter(step)
        with each Step of a plan, for what the plan runs instead."""
        constants = {name: value for name, value in self.graph.constants.items() if name not in overridden}
        graph = dataclasses.replace(self.graph, constants=constants)
        with np.errstate(all="ignore"):
            if reference:
                graph = fold(widen(graph), lowering.lower_reference)
            else:
                graph = fold(graph, functools.partial(lowering.lower, matmul=self.matmul, threads=self.threads))
        names = [v.name for v in self.inputs if v.name not in constants]
        return PlannedGraph(
            graph,
            names,
            self.source.label,
            record=record,
            meter=meter,
            target=None if reference else self._target,
            plans=self._plans,
            specialises=True,
        )

    @property
    def folded(self):
        """The Graph that runs: with what is constant computed and packed."""
        return self._own.graph

    def altered(self, graph, plans=None):
        """A Model of a graph made from the folded one of this model, with which it shares what is packed. All inputs
        are required."""
        model = copy.copy(self)
        model._plans = plans or self._plans
        model._set(graph)
        model._run_by(
            PlannedGraph(
                graph,
                [v.name for v in graph.inputs],
                self.source.label,
                target=self._target,
                plans=model._plans,
                specialises=True,
            )
        )
        return model

    def record(self, feed, record):
        """One call for record(node, input values, output values), with the nodes of `folded`."""
        planned, args = self.prepare(feed)
        PlannedGraph(planned.graph, planned.names, self.source.label, record=record, specialises=True)(args)

    def stream(self, state=None, *, states=None, **fixed):
        """A Stream: frames go in by `step` and `run`, states stay inside.

        states: {state input: state output}, where names and shapes do not tell, or tell it wrongly. state: their
        initial values, a mapping as `stream.state` gives; None is zeros. fixed: inputs that are the same for every
        frame.
        """
        from rnnfast.streaming.model_stream import Stream

        return Stream(self, state, states, fixed)

    def pool(self, max_streams, *, states=None, batch=True, **fixed):
        """A Pool: many streams that are stepped together, each with the bits that it would get alone.

        max_streams: that may be open at a time; their states take two times their size for each. states, fixed: as for
        `stream`. UnsupportedError at the first step where no axis of the graph is a batch of streams; batch=False runs
        them one by one.
        """
        from rnnfast.streaming.model_pool import ModelPool

        return ModelPool(self, max_streams, states, batch, fixed)

    def memory(self, feed=None, /, **inputs):
        """The bytes that a call with such inputs takes besides the weights: of its results, intermediate ones included.

        The plan of the call is made and kept, as by its first run. None where a shape depends on values. What NumPy
        functions of steps that are not native take for themselves is not counted; `rnnfast profile` shows such steps.
        """
        planned, args = self.prepare(self.merge_inputs(feed, inputs))
        return planned.plan(args).nbytes

    def summary(self, feed=None, /, **inputs):
        """The layers with their output shapes, parameters, floating-point operations and bytes; print it for a table.

        Shapes are those of a call with the inputs given; an input that is not given is zeros, of length 1 along
        the dimensions that the model leaves open. Inputs that the model does not take raise as in a call; where the
        run itself ends early, `problem` says why.
        """
        return summarise(self, self.merge_inputs(feed, inputs))

    def __repr__(self):
        inputs = ", ".join(f"{v.name}: {v.type}{list(v.type.shape or ())}" for v in self.inputs)
        outputs = ", ".join(f"{v.name}: {v.type}" for v in self.outputs)
        return f"<rnnfast.Model {self.source.label} ({inputs}) -> ({outputs})>"
