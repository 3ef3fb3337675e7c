"""Makes plans of a folded graph, one for each set of input types and shapes.

Folding has computed what depends on constants alone. A trace runs each node's callable, which is a lowering made at
load or the operator's NumPy function. It keeps the results that depend on constants and input shapes alone, and notes
each other node as a Step; runs of steps that have commands then become one native step. The first call runs its plan
as later calls do, so that all of them give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import ModelError, raise_if_from_handler, with_location
from rnnfast.limits import Limits
from rnnfast.native._arrays import pattern
from rnnfast.native._interrupts import check, within
from rnnfast.native._plans import Plan, Plans, separate
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.onnx.binding import check_types
from rnnfast.onnx.budget import COUNTED_BYTES, Budget, Counted, is_lowered, owner
from rnnfast.onnx.compile import Step, compiled
from rnnfast.onnx.compile.builder import Operand, Target
from rnnfast.onnx.control_steps import Control
from rnnfast.onnx.folding import MAX_FOLDED_BYTES, FoldingBudget, check_outputs, protect
from rnnfast.onnx.graph import Graph, Node, Type
from rnnfast.onnx.ops.control import condition, if_
from rnnfast.onnx.ops.random import draws
from rnnfast.onnx.ops.shape_inputs import ALL, SHAPE_INPUTS
from rnnfast.onnx.shape_inference import like_results
from rnnfast.onnx.symbolic.plans import SymbolicPlans
from rnnfast.onnx.tensors import type_name
from rnnfast.onnx.trace_plans import check_work, make_plan, needed_steps
from rnnfast.onnx.trips import trip_count
from rnnfast.onnx.work import works_of

# Operators whose results depend on the shape of their first input alone.
SHAPE_ONLY = {"Shape", "Size", "EyeLike"}
# A plan may depend on the values of integer inputs of at most MAX_VALUES elements. There are at most MAX_SPECIALISED
# such plans for one set of input shapes; a plan made after these leaves the values to the run.
MAX_VALUES = 8
MAX_SPECIALISED = 4
# A plan may depend on the values of so many inputs. A trace starts again so often at most to pin more of them.
MAX_PINNED = 64
MAX_PINNINGS = 16
# How many plans each graph of a node keeps, whose calls are those of one call of the model.
INNER_PLANS = 16
# About how many bytes the plans of a graph may take.
PLAN_BYTES = 2**26

# Called with each step that is traced: (node, input values, output values)
Recorder = Callable[[Node, list[Any], tuple[Any, ...]], Any]


# ------------------------------------------------------------------------------------------------ plans
class PlannedGraph:
    """A folded graph with its plans, which it makes when they are first needed; the least recently used are dropped.

    names: the inputs that a call gives, in the order of its arguments. where: how errors name the graph. known: arrays
    that a graph around this one knows, by name. folding_budget: that of the plan around it. record: called with each
    step that is traced. meter: called with each Step of a plan; returns the callable that runs in its place. target:
    the Target of native steps; None for no native steps. plans: the most plans that are kept, None for any number.
    plan_bytes: about how many bytes they may take. specialises: whether a plan may depend on the values of small
    integer inputs that decide control flow or shapes. predicts: whether a trace tries to do without the results of
    costly steps and of graphs within; it no longer does once that has failed, because graphs within graphs would double
    the attempts at each level. limits: those of a call.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        where: str,
        known: Mapping[str, Any] | None = None,
        folding_budget: FoldingBudget | None = None,
        record: Recorder | None = None,
        meter: Callable[[Step], Callable[..., Any]] | None = None,
        target: Target | None = None,
        plans: int | None = INNER_PLANS,
        plan_bytes: int = PLAN_BYTES,
        specialises: bool = False,
        predicts: bool = True,
        limits: Limits = Limits(),
    ) -> None:
        self.limits = limits
        self.predicts = predicts and target is not None
        self.graph, self.names, self.where, self.known, self.target = graph, names, where, known or {}, target
        self.folding_budget, self.record, self.meter, self.specialises = folding_budget, record, meter, specialises
        self.outputs = [v.type for v in graph.outputs]
        self.plans = Plans(names, plans, plan_bytes)
        self.transcript: Transcript | None = None  # of the next trace, if one is wanted
        whole = specialises and target is not None and record is None and meter is None
        self.symbolic = SymbolicPlans(self) if whole else None
        self.last_uses: dict[int, list[set[str]]] = {}  # of each graph by its id, which the names are no longer needed

    def __call__(self, args: list[Any], budget: Budget | None = None) -> list[Any]:
        """Run on arguments in the order of `names`; the outputs may share memory with them and with each other."""
        plan = self._kept_plan(args)
        if plan is not None:
            if budget is not None:  # the work of the whole call's plan was counted when that was made
                budget.spend(plan.work)
            return plan.shared(args, budget)
        plan, outputs = self._trace(args, budget)
        if not plan.compiled and outputs is not None:
            return outputs
        if budget is not None:
            budget.spend(plan.work)
        del outputs  # native steps may differ in the last bits, so the plan computes the outputs of the first call too
        return plan.shared(args, budget)

    def plan(self, args: list[Any]) -> Plan:
        """The plan that takes such arguments: one that is kept, or a new one."""
        plan = self._kept_plan(args)
        if plan is None:
            with np.errstate(all="ignore"):
                plan, _ = self._trace(args)
        return plan

    def _kept_plan(self, args: list[Any]) -> Plan | None:
        """The plan for these arguments that is kept or follows from a symbolic one; None if a trace is needed."""
        plan: Plan | None = self.plans.find(args)
        if plan is None and self.symbolic is not None and self.transcript is None:
            plan = self.symbolic.plan_for(args)
            if plan is not None:
                self.plans.add(plan, args)
        return plan

    def _trace(self, args: list[Any], budget: Budget | None = None) -> tuple[Plan, list[Any] | None]:
        """Make and keep the plan for these arguments; return it with the outputs as `trace` does."""
        plan, outputs = trace(self, args, budget or Budget(args, self.limits), self.transcript)
        self.plans.add(plan, args)
        if self.symbolic is not None:
            self.symbolic.note(args, plan)
        return plan, outputs

    def run(self, args: list[Any]) -> list[Any]:
        """Run on arguments in the order of `names`; the outputs share no memory with them or with each other."""
        with np.errstate(all="ignore"):
            outputs = within(self.limits.seconds, None, self, args)
        return separate(outputs, args)


# ------------------------------------------------------------------------------------------------ traces
class _Value:
    """A tensor, sequence or absent optional of a graph while the graph is traced.

    known: the value depends on constants and input shapes alone. fixed_shape: its shape does. slot: its slot in the
    plan. operand: what native steps know of it; None if no native step can take it. from_inputs: indices of the small
    integer inputs that it depends on besides constants and shapes; None if it depends on more than these.
    """

    __slots__ = ("data", "known", "fixed_shape", "slot", "operand", "from_inputs", "traced")

    def __init__(self, data: Any, known: bool, fixed_shape: bool) -> None:
        self.data, self.known, self.fixed_shape = data, known, fixed_shape
        self.slot: int | None = None
        self.traced: Any = None  # what a Transcript keeps of it
        self.from_inputs: frozenset[int] | None = frozenset() if known else None
        self.operand = Operand(data, known) if fixed_shape and isinstance(data, np.ndarray) else None


class _Scope(dict[str, _Value]):
    """The values of a graph by name; names that it lacks are looked up in `around`, the scope of the graph around."""

    def __init__(self, around: _Scope | None, values: Iterable[tuple[str, _Value]] | Mapping[str, _Value] = ()) -> None:
        super().__init__(values)
        self.around = around

    def __missing__(self, name: str) -> _Value:
        if self.around is None:
            raise KeyError(name)
        return self.around[name]


class _MustPin(Exception):
    """The plan depends on the values of these inputs, so the trace starts again with the values pinned."""

    def __init__(self, inputs: frozenset[int]) -> None:
        self.inputs = inputs


class _NeedsResults(Exception):
    """A shape or a branch depends on results that were not computed, so the trace starts again and computes all."""


def trace(
    planned: PlannedGraph, args: list[Any], budget: Budget, transcript: Transcript | None = None
) -> tuple[Plan, list[Any] | None]:
    """Make the plan of a planned graph for arguments like these, and return it with the outputs.

    The plan takes any values of these types and shapes, except that pinned inputs must have the values they have here.
    Where plans are native, costly results are not computed as long as nothing but their shapes is needed; the outputs
    are None then. `transcript` notes what happens, if it is given.
    """
    pinned: frozenset[int] = frozenset()
    predicts, pinnings = planned.predicts, 0
    computes_all = not predicts
    planned_graphs: dict[int, dict[str, PlannedGraph]] = {}
    while True:
        specialises = (
            planned.specialises and pinnings < MAX_PINNINGS and planned.plans.specialised(args) < MAX_SPECIALISED
        )
        tracer = _Tracer(planned, args, budget, pinned, specialises, predicts, computes_all, planned_graphs, transcript)
        try:
            outputs = _traced(planned, tracer)
            break
        except _MustPin as e:
            pinned |= e.inputs
            pinnings += 1
            planned_graphs.clear()
        except _NeedsResults:
            computes_all = True
        except Exception as e:
            raise_if_from_handler(e)
            if not tracer.skipped:
                raise
            # it may have failed on the zeros in place of results that were not computed
            predicts, computes_all = False, True
    if planned.symbolic is not None:
        planned.symbolic.note_branches(tuple(tracer.branches))
    return tracer.plan(outputs), None if tracer.skipped else [value.data for value in outputs]


def _traced(planned: PlannedGraph, tracer: _Tracer) -> list[_Value]:
    """Trace the graph of a planned graph and return the values of its outputs."""
    scope = _Scope(None, {name: _Value(array, True, True) for name, array in planned.known.items()})
    scope.update(zip(planned.names, tracer.inputs))
    if tracer.transcript is not None:
        tracer.transcript.begin(scope)
    outputs = tracer.graph(planned.graph, scope)
    if tracer.transcript is not None:
        tracer.transcript.end(outputs)
    for declared, value in zip(planned.graph.outputs, outputs):
        _check_type(value.data, declared.type, f"{planned.where}: output {declared.name!r}")
    return outputs


def _check_type(value: Any, declared: Type, where: str) -> None:
    """Raise ModelError if a graph's output does not have the element type that the graph declares."""
    if isinstance(value, list):
        for member in value:
            _check_type(member, declared.element or declared, where)
    elif declared.element is not None:
        _check_type(value, declared.element, where)
    elif value is not None and declared.dtype is not None and value.dtype != declared.dtype:
        error = ModelError(f"{where} is tensor({type_name(value.dtype)}), but declared {declared}")
        error.located = True  # type: ignore[attr-defined]
        raise error


def _find_last_uses(graph: Graph) -> list[set[str]]:
    """For each node, those of its names that neither a later node nor an output of the graph needs."""
    needed, last = {v.name for v in graph.outputs}, []
    for node in reversed(graph.nodes):
        names = node.needs.union(node.outputs)
        last.append(names - needed)
        needed |= names
    return last[::-1]


class _Tracer:
    """Runs nodes on real values and notes the steps that a plan needs.

    pinned: indices of the inputs whose values the plan is made for. specialises: whether more inputs may be pinned.
    predicts: as of a PlannedGraph. computes_all: whether costly results are computed too; `skipped` says whether any
    was not. planned_graphs: those of the nodes with graphs, by their ids, which the attempts of one trace share.
    branches: the ids of the graphs of the branches that it takes, in order.
    """

    def __init__(
        self,
        planned: PlannedGraph,
        args: list[Any],
        budget: Budget,
        pinned: frozenset[int],
        specialises: bool,
        predicts: bool,
        computes_all: bool,
        planned_graphs: dict[int, dict[str, PlannedGraph]],
        transcript: Transcript | None,
    ) -> None:
        self.predicts, self.planned_graphs, self.transcript = predicts, planned_graphs, transcript
        self.initial_values: list[Any] = []
        self.steps: list[Step] = []
        self.branches: list[int] = []
        self.budget = budget
        self.record, self.meter, self.target = planned.record, planned.meter, planned.target
        self.last_uses = planned.last_uses
        self.max_plans = min(planned.plans.most or INNER_PLANS, INNER_PLANS)
        self.limits = planned.limits
        self.pinned, self.specialises, self.computes_all, self.skipped = pinned, specialises, computes_all, False
        self.folding_budget = FoldingBudget(MAX_FOLDED_BYTES, planned.folding_budget)
        self.absent = _Value(None, True, True)
        self.inputs = [self.new_value(a, True) for a in args]
        for i, value in enumerate(self.inputs):
            if i in pinned:
                value.data = np.array(value.data)
                value.known, value.from_inputs, value.operand = True, frozenset(), Operand(value.data, True)
                protect([value.data])
            elif (
                isinstance(value.data, np.ndarray) and value.data.dtype.kind in "iub" and value.data.size <= MAX_VALUES
            ):
                value.from_inputs = frozenset([i])
        self.budget_input = self.new_value(budget, True)

    def new_value(self, data: Any, fixed_shape: bool) -> _Value:
        """A value that each run computes or takes anew."""
        value = _Value(data, False, fixed_shape)
        self.assign_slot(value)
        return value

    def assign_slot(self, value: _Value) -> int:
        """The slot of a value in the plan; a known value gets one when a step first needs it."""
        if value.slot is None:
            value.slot = len(self.initial_values)
            self.initial_values.append(value.data if value.known else None)
        return value.slot

    def plan(self, outputs: list[_Value]) -> Plan:
        """The plan of the steps that these outputs need, made native where that is possible."""
        slots = tuple(self.assign_slot(value) for value in outputs)
        steps = needed_steps(self.steps, slots, [value.operand for value in outputs])
        # The least that it can be, before compiling takes time and addresses.
        check_work([(min(step.work), step.where) for step in steps], self.limits)
        native = compiled(steps, slots, self.target) if self.target else steps
        fixed_shapes = all(v.fixed_shape and isinstance(v.data, np.ndarray) for v in outputs)
        return make_plan(
            [v.data for v in self.inputs],
            self.initial_values,
            native,
            slots,
            self.limits,
            self.meter,
            self.folding_budget,
            tuple(sorted(self.pinned)),
            tuple([pattern(v.data) for v in outputs]) if fixed_shapes else None,
        )

    def graph(self, graph: Graph, scope: _Scope) -> list[_Value]:
        """Trace a graph and return the values of its outputs; others leave the scope after their last use."""
        for name, array in graph.constants.items():
            scope[name] = _Value(array, True, True)
        for node, last_used in zip(graph.nodes, self._last_uses(graph)):
            check()
            try:
                self.node(node, scope)
            except _MustPin:
                raise
            except Exception as e:
                raise with_location(e, node.where) from e
            for name in last_used:
                scope.pop(name, None)
        return [scope[v.name] for v in graph.outputs]

    def _last_uses(self, graph: Graph) -> list[set[str]]:
        """Return what `_find_last_uses` finds, which is looked for once for all plans."""
        found = self.last_uses.get(id(graph))
        if found is None:
            found = self.last_uses[id(graph)] = _find_last_uses(graph)
        return found

    def node(self, node: Node, scope: _Scope) -> None:
        """Trace a node and put the values of its outputs into the scope."""
        inputs = [scope[name] if name else self.absent for name in node.inputs]
        if node.function is None:
            outputs = self.call(node, inputs)
        elif node.function is if_ and inputs[0].known:
            branch = node.attributes["then_branch" if condition(inputs[0].data) else "else_branch"]
            self.branches.append(id(branch))
            if self.transcript is not None:
                self.transcript.note(node, inputs)
            outputs = self.graph(branch, _Scope(scope))
        elif node.graphs:
            if node.function is if_:
                self._pin_inputs_of(inputs[0])
            outputs = self.control(node, inputs, scope)
        elif node.op_type == "Identity":
            outputs = inputs
        else:
            outputs = self.operator(node, inputs)
            if self.transcript is not None:
                self.transcript.note(node, inputs, outputs)
        scope.update(zip(node.outputs, outputs))

    def call(self, node: Node, inputs: list[_Value]) -> list[_Value]:
        """Trace the body of one of the model's own functions in place of its call."""
        body = node.attributes["body"]
        values = inputs + [self.absent] * (len(body.inputs) - len(inputs))
        return self.graph(body, _Scope(None, zip((v.name for v in body.inputs), values)))

    def _pin_inputs_of(self, value: _Value) -> None:
        """Make the value known: unless it is, start the trace again with the inputs pinned on which it depends.

        Nothing happens if the value depends on more than small integer inputs, or if no more inputs may be pinned.
        """
        if self.specialises and not value.known and value.from_inputs:
            raise _MustPin(value.from_inputs)

    def control(self, node: Node, inputs: list[_Value], scope: _Scope) -> list[_Value]:
        """Trace an If, Loop or Scan as one step.

        Its graphs become planned graphs, which take the values that they capture behind their own inputs.
        """
        captures = sorted({name for graph in node.graphs.values() for name in graph.captures})
        known = {name: scope[name].data for name in captures if scope[name].known}
        names = [name for name in captures if name not in known]
        values = inputs + [scope[name] for name in names]
        planned_graphs = self._planned_graphs(node, names, known)
        bodies = {key: Transcript() for key in planned_graphs} if self.transcript is not None else {}
        for key, body in bodies.items():
            planned_graphs[key].transcript = body
        if node.alternative is not None and self._fits(node, inputs, scope, planned_graphs):
            return self.graph(node.alternative.graph, _Scope(scope))
        run, like = Control(node, len(inputs), planned_graphs), None
        if self.predicts and self.record is None and all(v.fixed_shape for v in values):
            like = run.results([v.data for v in values], [v.known for v in values])
        if like is None and node.op_type == "Loop" and len(node.outputs) > len(inputs) - 2:
            self._pin_inputs_of(inputs[0])  # the number of iterations is the length of the scan outputs
        for planned in planned_graphs.values():
            planned.transcript = None
        outputs = self.execute(
            node.altered(run=run),
            run,
            [self.budget_input, *values],
            all(v.known for v in values),
            like is not None,
            like,
        )
        if self.transcript is not None:
            self.transcript.note(node, inputs, outputs, {name: scope[name] for name in captures}, bodies)
        return outputs

    def _fits(self, node: Node, inputs: list[_Value], scope: _Scope, planned_graphs: dict[str, PlannedGraph]) -> bool:
        """Return whether the alternative of a Loop or Scan gives the same for inputs of these shapes.

        A transcript and a record are of the node itself.
        """
        other = node.alternative
        if other is None or self.transcript is not None or self.record is not None:
            return False
        read = {name: scope[name] for name, _ in other.rows + other.frames}
        if not all(value.fixed_shape and isinstance(value.data, np.ndarray) for value in read.values()):
            return False
        rows = {read[name].data.shape[axis] for name, axis in other.rows}
        frames = {read[name].data.shape[axis] for name, axis in other.frames}
        if len(rows) != 1 or len(frames) != 1 or 0 in frames:
            return False
        if node.op_type == "Scan":
            return True
        data, known = [v.data for v in inputs], [v.known for v in inputs]
        missing = 2 - len(inputs)
        data, known = data + [None] * missing, known + [True] * missing
        return trip_count(planned_graphs["body"], data, known, False) in frames

    def _planned_graphs(self, node: Node, names: list[str], known: dict[str, Any]) -> dict[str, PlannedGraph]:
        """The planned graphs of a node, perhaps those of an earlier attempt of the trace.

        names: the values that they capture. known: those that they know.
        """
        # A transcript notes what a trace does, which a kept plan would not do again.
        made = self.planned_graphs.get(id(node), {}) if self.transcript is None else {}
        for planned in made.values():
            if planned.known.keys() != known.keys():
                made = {}
                break
            planned.folding_budget = self.folding_budget
            planned.predicts &= self.predicts
        if not made:
            made = self.planned_graphs[id(node)] = {
                key: PlannedGraph(
                    graph,
                    [v.name for v in graph.inputs] + names,
                    node.where,
                    known,
                    self.folding_budget,
                    self.record,
                    self.meter,
                    self.target,
                    self.max_plans,
                    predicts=self.predicts,
                    limits=self.limits,
                )
                for key, graph in node.graphs.items()
            }
        return made

    def operator(self, node: Node, inputs: list[_Value]) -> list[_Value]:
        """Trace any other operator."""
        check_types(node.one_type, [v.data for v in inputs])
        shape_only = node.op_type in SHAPE_ONLY and inputs[0].fixed_shape
        places = SHAPE_INPUTS.get(node.op_type, ())
        deciding = inputs if places is ALL else [inputs[i] for i in places if i < len(inputs)]
        for value in deciding:
            self._pin_inputs_of(value)
        fixed_shape = all(v.fixed_shape for v in inputs) and all(v.known for v in deciding)
        run: Any = node.run
        if hasattr(run, "for_shapes") and all(v.fixed_shape for v in inputs):
            run = run.for_shapes(*[v.data for v in inputs])
        folds = (shape_only or all(v.known for v in inputs)) and not draws(node.function, node.attributes)
        return self.execute(node, run, inputs, folds, fixed_shape)

    def execute(
        self,
        node: Node,
        run: Callable[..., Any],
        inputs: list[_Value],
        folds: bool,
        fixed_shape: bool,
        like: tuple[np.ndarray, ...] | None = None,
    ) -> list[_Value]:
        """Run a node once. If it `folds`, its outputs are known; else a step computes them at each run.

        like: arrays of the types and shapes of its results, if they are known already.
        """
        data = [v.data for v in inputs]
        if self.skipped and not folds and not fixed_shape:
            raise _NeedsResults
        results = None
        if not (self.computes_all or folds) and fixed_shape:
            results = like or like_results(node, run, data)
        if results is None:
            if node.graphs:  # they count what they do
                results = run(*data)
                results = results if isinstance(results, tuple) else (results,)
            else:
                results = self.budget.run(node, run, data, [v.known for v in inputs])
        else:
            for value in results:
                self.limits.check("bytes_of_a_call", value.nbytes, "the bytes of a result are")
            self.skipped = True
        check_outputs(node, results)
        if folds and self.folding_budget.keeps(results, [v.data for v in inputs if v is not self.budget_input]):
            protect(results)
            return [_Value(value, True, True) for value in results]
        for value in results:
            self.budget.count(value)
        outputs = [self.new_value(value, fixed_shape) for value in results]
        sources = [v.from_inputs for v in inputs if v.from_inputs is not None]
        if not node.graphs and len(sources) == len(inputs):
            from_inputs: frozenset[int] = frozenset().union(*sources)
            for output in outputs:
                output.from_inputs = from_inputs if len(from_inputs) <= MAX_PINNED else None
        large = tuple(v.slot for v in outputs if not fixed_shape or _is_large(v.data))
        may_be_native = all(v.operand is not None or v.data is None or v is self.budget_input for v in inputs + outputs)
        operands = (tuple(v.operand for v in inputs), tuple(v.operand for v in outputs)) if may_be_native else ((), ())
        work, taken = (0, 0), inputs
        if isinstance(run, Control):
            work = run.work([v.data for v in inputs], [v.known for v in inputs]), 0
        elif fixed_shape:
            lowered = is_lowered(node)
            works = works_of(node, data, [v.known for v in inputs], results, (True,) if lowered else (True, False))
            work = works[0], works[-1]
        else:
            run, taken = Counted(node, run, [v.known for v in inputs]), [self.budget_input, *inputs]
        self.steps.append(
            Step(
                run,
                tuple(map(self.assign_slot, taken)),
                tuple(v.slot for v in outputs),
                large,
                node.where,
                node,
                *operands,
                work,
            )
        )
        if self.record is not None:
            self.record(node, [v.data for v in inputs], results)
        return outputs


def _is_large(value: Any) -> bool:
    """Return whether the call's Budget counts the memory of a value."""
    return isinstance(value, np.ndarray) and max(value.nbytes, owner(value).nbytes) >= COUNTED_BYTES
