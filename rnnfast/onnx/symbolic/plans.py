"""Symbolic plans, and the choice of the sizes that are symbolic in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import raise_if_from_handler
from rnnfast.native._arrays import pattern, same_values, shaped
from rnnfast.native._interrupts import check
from rnnfast.native._plans import Plan
from rnnfast.onnx.binding import check_types
from rnnfast.onnx.budget import COUNTED_BYTES, is_lowered
from rnnfast.onnx.compile import Step, compiled
from rnnfast.onnx.compile.builder import Operand
from rnnfast.onnx.folding import MAX_FOLDED_BYTES, FoldingBudget, protect
from rnnfast.onnx.graph import Graph, Node
from rnnfast.onnx.ops.control import condition, if_
from rnnfast.onnx.ops.random import draws
from rnnfast.onnx.symbolic.builder import Constant, Formulas, SymbolicBuilder, SymbolicProgram
from rnnfast.onnx.symbolic.integers import LEAST, NotSymbolic, Sizes
from rnnfast.onnx.symbolic.shapes import TAKES_SIZES, Vector, as_made, as_view, known_results_of, results_of
from rnnfast.onnx.symbolic.views import View, empty, made
from rnnfast.onnx.trace_plans import check_work, make_plan, needed_steps
from rnnfast.onnx.work import works_of

if TYPE_CHECKING:
    from rnnfast.onnx.trace import PlannedGraph

# How many symbolic plans of different symbolic sizes or conditions a graph makes at most. All are kept: one that was
# dropped would be made again and again. Two convolutions have up to 18, for batches of one or more, even or odd
# lengths, and short outputs of each.
MOST_MADE = 32
# The largest constant that is computed for each set of sizes; larger ones are computed at each run.
MOST_MADE_BYTES = 2**20


class SymbolicPlans:
    """The symbolic plans of a planned graph.

    The first call of a graph is traced as it is. Once another call differs from it in some sizes, these become symbolic
    in a plan that takes them all. A graph for which that fails is traced for each set of shapes.
    """

    def __init__(self, planned: PlannedGraph) -> None:
        self._planned = planned
        self._plans: tuple[SymbolicPlan, ...] = ()  # the last used first; replaced, never changed
        self._seen: tuple[Any, ...] | None = None  # the patterns of the arguments of the last trace
        self._last_pinned: tuple[int, ...] = ()
        self._varying: frozenset[tuple[int, int]] = frozenset()  # (argument, axis) of the sizes that differed
        self._left = MOST_MADE
        self._failed = False  # whether none could be made for the arguments of the call, which may be wrong
        self._taken: set[tuple[int, ...]] = set()  # the branches of each trace, by the ids of their graphs

    def plan_for(self, args: list[Any]) -> Plan | None:
        """Return a plan for arguments like these from a symbolic plan, perhaps a new one; None if there is none."""
        self._failed = False
        for symbolic in self._plans:
            plan = symbolic.plan_for(args)
            if plan is not None:
                if symbolic is not self._plans[0]:
                    self._plans = (symbolic, *[other for other in self._plans if other is not symbolic])
                return plan
        if self._seen is None or not self._left or not _fits(args, self._seen):
            return None
        self._varying |= {
            (i, axis)
            for i, (value, seen) in enumerate(zip(args, self._seen))
            for axis, (n, m) in enumerate(zip(np.shape(value), seen.shape))
            if n != m
        }
        pinned = self._last_pinned
        varying = [(i, axis) for i, axis in sorted(self._varying) if i not in pinned and args[i].shape[axis] >= LEAST]
        if not varying:
            return None
        try:
            with np.errstate(all="ignore"):
                symbolic = SymbolicPlan(self._planned, args, pinned, varying)
                if symbolic.branches not in self._taken:
                    # A trace takes them now, and checks the types, ranks and attributes of their nodes.
                    self._failed = len(self._taken) >= MOST_MADE
                    return None
                plan = symbolic.plan_for(args)
        except Exception as e:  # whatever it is, a trace of these arguments tells it
            raise_if_from_handler(e)
            plan = None
        if plan is None:
            self._failed = True
            return None
        self._plans = (symbolic, *self._plans)
        self._left -= 1
        return plan

    def held(self) -> list[np.ndarray]:
        """Return the arrays that hold the memory of the symbolic plans, besides constants of the graph."""
        return [array for plan in self._plans for array in plan.held()]

    def note_branches(self, branches: tuple[int, ...]) -> None:
        """Note the branches that a trace took, by the ids of their graphs."""
        if len(self._taken) < MOST_MADE:
            self._taken.add(branches)

    def note(self, args: list[Any], plan: Plan) -> None:
        """Note a plan that was traced for these arguments."""
        if self._failed:
            self._left = self._left - 1 if self._plans else 0
            self._failed = False
        if all(isinstance(value, np.ndarray) for value in args):
            self._seen = tuple(map(pattern, args))
            self._last_pinned = tuple([i for i, _ in plan.pinned])


def _fits(args: list[Any], seen: tuple[Any, ...]) -> bool:
    """Return whether arguments are arrays of the types and ranks seen, and of other shapes."""
    return all(
        isinstance(value, np.ndarray) and value.dtype == like.dtype and value.ndim == like.ndim
        for value, like in zip(args, seen)
    ) and any(value.shape != like.shape for value, like in zip(args, seen))


class SymbolicPlan:
    """A plan that takes arguments of any sizes for which the conditions of its trace hold.

    args: the arguments of the call that is traced. pinned: indices of the inputs whose values it is made for. varying:
    (argument, axis) of the sizes that are symbolic, none of which is 0 or 1 in this call.

    `branches` are those that it takes, by the ids of their graphs, in order.

    Raises NotSymbolic, or whatever an operator raises for these arguments, if it cannot be made.
    """

    def __init__(
        self, planned: PlannedGraph, args: list[Any], pinned: tuple[int, ...], varying: Sequence[tuple[int, int]]
    ) -> None:
        self._symbolic = list(varying)
        sizes = Sizes([args[i].shape[axis] for i, axis in self._symbolic])
        self._formulas = formulas = Formulas(sizes)
        self._planned, self._pinned = planned, pinned
        # Of each argument its type, its rank, and the sizes that are not symbolic.
        self._taken = [
            (value.dtype, value.ndim, [(a, n) for a, n in enumerate(value.shape) if (i, a) not in varying])
            for i, value in enumerate(args)
        ]
        self._values = [(i, np.array(args[i])) for i in pinned]
        shapes = [list(value.shape) for value in args]
        for at, (i, axis) in enumerate(self._symbolic):
            shapes[i][axis] = sizes.size(at)
        tracer = _SymbolicTracer(planned)
        inputs = [tracer.new(empty(shape, value.dtype)) for shape, value in zip(shapes, args)]
        tracer.initial.append(None)  # the Budget of a call
        for i, value in self._values:
            inputs[i].data, inputs[i].known, inputs[i].operand = value, True, Operand(value, True)
            protect([value])
        scope: dict[str, _Value] = {name: _Value(array, True) for name, array in planned.known.items()}
        scope.update(zip(planned.names, inputs))
        outputs = tracer.graph(planned.graph, scope)
        if any(v.known or v.slot is None for v in outputs):
            raise NotSymbolic("an output that no step computes")
        for declared, v in zip(planned.graph.outputs, outputs):
            if declared.type.dtype is not None and v.data.dtype != declared.type.dtype:
                raise NotSymbolic("an output of another type")
        self._slots = tuple([v.slot for v in outputs if v.slot is not None])
        steps = needed_steps(tracer.steps, self._slots, [v.operand for v in outputs])
        target = planned.target
        native = compiled(steps, self._slots, target, lambda target: SymbolicBuilder(target, formulas))
        check_work([(step.work[1], step.where) for step in native], planned.limits)
        self.branches = tuple(tracer.branches)
        self._steps = [self._prepared(step, tracer) for step in native]
        self._results = [self._shape(v.data) for v in outputs]
        self._initial, self._budget = tracer.initial, tracer.folding_budget
        formulas.finish()

    def _prepared(self, step: Step, tracer: _SymbolicTracer) -> tuple[Step, int, list[Any]]:
        """Return a step, the index of the formula of its work, and for each result its slot, the index of the formula
        of its bytes, and its shape.
        """
        add = self._formulas.add
        if type(step.run) is not SymbolicProgram and any(tracer.needs_sizes(slot) for slot in step.input_slots):
            raise NotSymbolic(f"sizes as an input of {step.where}")
        views = [(slot, tracer.views[slot]) for slot in step.output_slots]
        return step, add(step.work[1]), [(slot, add(view.nbytes), self._shape(view)) for slot, view in views]

    def _shape(self, view: View) -> tuple[tuple[int, ...], Any]:
        return tuple([self._formulas.add(n) for n in view.shape]), view.dtype

    def held(self) -> list[np.ndarray]:
        """Return the arrays that hold its memory, besides constants of the graph."""
        programs = [step.run for step, *_ in self._steps if type(step.run) is SymbolicProgram]
        constants = [value for value in self._initial if isinstance(value, np.ndarray)]
        return [*constants, *[array for program in programs for array in program.held()]]

    def plan_for(self, args: list[Any]) -> Plan | None:
        """Return the plan for arguments like these; None if it does not take them."""
        for value, (dtype, rank, fixed) in zip(args, self._taken):
            if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != rank:
                return None
            for axis, n in fixed:
                if value.shape[axis] != n:
                    return None
        inputs = [args[i].shape[axis] for i, axis in self._symbolic]
        if not all(same_values(args[i], value) for i, value in self._values):
            return None
        variables = self._formulas.variables_of(inputs)
        if variables is None:
            return None
        try:
            made, values = self._formulas.values(variables)
            steps = [self._step(step, values, made, work, results) for step, work, results in self._steps]
        except Exception as e:  # a trace may take less, or says what is wrong
            raise_if_from_handler(e)
            return None
        constants = FoldingBudget(MAX_FOLDED_BYTES, self._planned.folding_budget)
        if not constants.keeps([x.array for x in made if type(x) is Constant], ()):
            return None
        of = values.tolist()
        results = tuple([shaped(tuple([of[n] for n in shape]), dtype) for shape, dtype in self._results])
        return make_plan(
            args, self._initial, steps, self._slots, self._planned.limits, None, constants, self._pinned, results
        )

    def _step(self, step: Step, values: np.ndarray, made: list[Any], work: int, results: list[Any]) -> Step:
        """The step for sizes that have these values of formulas."""
        like: tuple[np.ndarray, ...] = ()
        if type(step.run) is SymbolicProgram:
            run: Any = step.run.program(values, made)
        else:
            like = tuple([shaped(tuple([int(values[n]) for n in shape]), dtype) for _, _, (shape, dtype) in results])
            run = _Checked(step.run, like)
        large = tuple([slot for slot, nbytes, _ in results if values[nbytes] >= COUNTED_BYTES])
        done = int(values[work])
        return step._replace(run=run, large=large, work=(done, done), operands=(), results=like)


def _result(run: Any, i: int, *inputs: Any) -> Any:
    """One result of an operator."""
    with np.errstate(all="ignore"):
        results = run(*inputs)
    return results[i] if isinstance(results, tuple) else results


class _Checked:
    """A NumPy function whose results must be like these arrays in shape and type, since native steps rely on it."""

    def __init__(self, run: Any, like: tuple[np.ndarray, ...]) -> None:
        self._run, self._like = run, like

    def __call__(self, *inputs: Any) -> Any:
        results = self._run(*inputs)
        given = results if isinstance(results, tuple) else (results,)
        for value, like in zip(given, self._like):
            if value is not None and (value.shape != like.shape or value.dtype != like.dtype):
                raise RuntimeError(
                    f"a result of shape {value.shape} and type {value.dtype}, not {like.shape} and {like.dtype}"
                )
        return results


class _Value:
    """A value of a graph while it is traced: an array, a Vector, a view, or None for an absent one.

    known: it depends on constants and sizes alone. slot: its slot in the plan, if it has one.
    """

    __slots__ = ("data", "known", "slot", "operand")

    def __init__(self, data: Any, known: bool) -> None:
        self.data, self.known = data, known
        self.slot: int | None = None
        self.operand = None if data is None else Operand(data, known)


class _SymbolicTracer:
    """Notes the steps of a plan. initial: the values of slots before a run. views: like the results in slots.

    branches: the ids of the graphs of the branches that it takes, in order.
    """

    def __init__(self, planned: PlannedGraph) -> None:
        self.steps: list[Step] = []
        self.initial: list[Any] = []
        self.views: dict[int, View] = {}
        self.branches: list[int] = []
        self.folding_budget = FoldingBudget(MAX_FOLDED_BYTES, planned.folding_budget)
        self._limits = planned.limits
        self._absent = _Value(None, True)
        self._of_sizes: set[int] = set()  # slots of values that depend on sizes alone

    def new(self, data: View) -> _Value:
        """A value that each run computes or takes anew."""
        value = _Value(data, False)
        value.slot = len(self.initial)
        self.initial.append(None)
        return value

    def needs_sizes(self, slot: int) -> bool:
        """Return whether a slot is to hold a value that depends on sizes, which no run computes."""
        return slot in self._of_sizes

    def _slot(self, value: _Value) -> int:
        if value.slot is None:
            value.slot = len(self.initial)
            is_array = value.data is None or isinstance(value.data, np.ndarray)
            self.initial.append(value.data if is_array else None)
            if not is_array:
                self._of_sizes.add(value.slot)
        return value.slot

    def graph(self, graph: Graph, scope: dict[str, _Value]) -> list[_Value]:
        """Trace a graph and return the values of its outputs."""
        for name, array in graph.constants.items():
            scope[name] = _Value(array, True)
        for node in graph.nodes:
            check()
            inputs = [scope[name] if name else self._absent for name in node.inputs]
            if node.function is if_ and isinstance(inputs[0].data, np.ndarray):
                branch = node.attributes["then_branch" if condition(inputs[0].data) else "else_branch"]
                self.branches.append(id(branch))
                outputs = self.graph(branch, dict(scope))
            elif node.op_type == "Identity" and not node.domain:
                outputs = inputs
            else:
                outputs = self._node(node, inputs)
            scope.update(zip(node.outputs, outputs))
        return [scope[v.name] for v in graph.outputs]

    def _made(self, node: Node, data: list[Any]) -> list[View] | None:
        """The results of a node on constants and sizes alone, which are constants for each set of sizes; None if they
        are too large.
        """
        first = 1 if node.op_type in TAKES_SIZES else len(data)
        views = results_of(node, [as_view(x) if type(x) is Vector else x for x in data[:first]] + data[first:])
        if any(view.nbytes > MOST_MADE_BYTES for view in views):
            return None
        args = [as_made(x) for x in data]  # for node.run, which may be a lowering: a trace computes its bits
        return [
            made(view.shape, view.dtype, functools.partial(_result, node.run, i), *args) for i, view in enumerate(views)
        ]

    def _node(self, node: Node, inputs: list[_Value]) -> list[_Value]:
        """Trace an operator."""
        data = [v.data for v in inputs]
        are_known = [v.known for v in inputs]
        if node.function is None or node.graphs or draws(node.function, node.attributes):
            raise NotSymbolic(node.op_type)
        check_types(node.one_type, data)
        run: Any = node.run
        if all(are_known) and all(x is None or isinstance(x, np.ndarray) for x in data):
            results = run(*data)
            results = results if isinstance(results, tuple) else (results,)
            if not all(isinstance(x, np.ndarray) for x in results):
                raise NotSymbolic("a result that is no array")
            if not self.folding_budget.keeps(results, data):
                raise NotSymbolic("constants that are too large")
            protect(results)
            return [_Value(x, True) for x in results]
        known = known_results_of(node, data, all(are_known))
        if known is None and all(are_known):
            known = self._made(node, data)
        if known is not None:
            for x in known:
                if type(x) is View:
                    self._limits.check("bytes_of_a_call", x.nbytes, "the bytes of a result are")
                    if x.nbytes > MAX_FOLDED_BYTES:
                        raise NotSymbolic("constants that are too large")
            return [_Value(x, True) for x in known]
        first = 1 if node.op_type in TAKES_SIZES else len(inputs)
        inputs = [_Value(as_view(v.data), True) if type(v.data) is Vector else v for v in inputs[:first]] + inputs[
            first:
        ]
        data = [v.data for v in inputs]
        results = results_of(node, data)
        for view in results:
            self._limits.check("bytes_of_a_call", view.nbytes, "the bytes of a result are")
        outputs = [self.new(view) for view in results]
        for value in outputs:
            assert value.slot is not None
            self.views[value.slot] = value.data
        lowered = is_lowered(node)
        works = works_of(node, data, are_known, results, (True,) if lowered else (True, False))
        self.steps.append(
            Step(
                run,
                tuple(map(self._slot, inputs)),
                tuple([v.slot for v in outputs]),
                (),
                node.where,
                node,
                tuple([v.operand for v in inputs]),
                tuple([v.operand for v in outputs]),
                (works[0], works[-1]),
            )
        )
        return outputs
