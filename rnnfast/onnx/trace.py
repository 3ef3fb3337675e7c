"""A checked Graph -> plans: what depends on constants is folded once, what depends on shapes once for each set of
shapes, and the rest becomes steps.

A trace runs each node's callable, a lowering made at load or the operator's NumPy function, and notes it as a Step;
runs of steps that have commands then become one native step. The first call runs the plan as every later one does, so
that all give the same bits.
"""

import numpy as np

from rnnfast.errors import ModelError, with_location
from rnnfast.native._arrays import pattern
from rnnfast.native._plans import Plan, Plans, separate
from rnnfast.onnx.budget import COUNTED_BYTES, Budget, owner
from rnnfast.onnx.compile import Step, compiled
from rnnfast.onnx.compile.builder import Operand
from rnnfast.onnx.control_steps import Control
from rnnfast.onnx.folding import MAX_FOLDED_BYTES, Folded, check_outputs, protect
from rnnfast.onnx.ops.control import condition, if_
from rnnfast.onnx.ops.shape_inputs import ALL, SHAPE_INPUTS
from rnnfast.onnx.shape_inference import like_results
from rnnfast.onnx.tensors import type_name

# Operators that look at their first input's shape only.
SHAPE_ONLY = {"Shape", "Size", "EyeLike"}
# Inputs of integers, as small as that, on whose values a plan may depend, and plans that do so for inputs of one shape
# before the values are left to the run.
MAX_VALUES = 8
MAX_SPECIALISED = 4


# ------------------------------------------------------------------------------------------------ plans
class PlannedGraph:
    """A folded graph that runs: plans by the shapes of its inputs, the least recently used dropped.

    names: the run-time inputs, in order; where: what an error of its outputs names; known: name -> array of what a
    graph around it knows; folded: the Folded of the plan around it; record: called with (node, input values, output
    values) of each step that is traced; meter: called with each Step of a plan for what the plan runs instead; target:
    what native steps are made for, None for none; plans: how many are kept; specialises: whether a plan may depend on
    the values of small integer inputs, where control flow or a shape does.
    """

    def __init__(
        self,
        graph,
        names,
        where,
        known=None,
        folded=None,
        record=None,
        meter=None,
        target=None,
        plans=16,
        specialises=False,
    ):
        self.graph, self.names, self.where, self.known, self.target = graph, names, where, known or {}, target
        self.folded, self.record, self.meter, self.specialises = folded, record, meter, specialises
        self.outputs = [v.type for v in graph.outputs]
        self.plans = Plans(names, plans)

    def __call__(self, args, budget=None):
        """The outputs for a list in the order of `names`; they may share memory with it and with each other."""
        plan = self.plans.find(args)
        if plan is not None:
            return plan.shared(args, budget)
        plan, outputs = trace(self, args, budget or Budget(args))
        self.plans.add(plan, args)
        if not plan.compiled and outputs is not None:
            return outputs
        del outputs  # native steps may differ in the last bits: the first call gives what later ones give
        return plan.shared(args, budget)

    def plan(self, args):
        """The Plan that takes such arguments: one that is kept, or a new one."""
        plan = self.plans.find(args)
        if plan is None:
            with np.errstate(all="ignore"):
                plan, _ = trace(self, args, Budget(args))
            self.plans.add(plan, args)
        return plan

    def run(self, args):
        """The outputs for a list in the order of `names`, as arrays of their own."""
        with np.errstate(all="ignore"):
            outputs = self(args)
        return separate(outputs, args)


class _Value:
    """A tensor, sequence or absent optional while it is traced.

    known: it depends on constants and input shapes only; fixed: its shape does; slot: where it is in the plan;
    operand: what a native step knows of it, None for what none takes; given: the small integer inputs on which alone
    it depends besides, None if it depends on others.
    """

    __slots__ = ("data", "known", "fixed", "slot", "operand", "given")

    def __init__(self, data, known, fixed):
        self.data, self.known, self.fixed, self.slot = data, known, fixed, None
        self.given = frozenset() if known else None
        self.operand = Operand(data, known) if fixed and isinstance(data, np.ndarray) else None


class _Scope(dict):
    """name -> _Value of a graph; `around` is the scope of the graph around it."""

    def __init__(self, around, values=()):
        super().__init__(values)
        self.around = around

    def __missing__(self, name):
        return self.around[name]


class _Decides(Exception):
    """The values of these inputs decide what a plan is."""

    def __init__(self, inputs):
        self.inputs = inputs


class _NeedsValues(Exception):
    """A shape or a branch depends on results that were not computed."""


def trace(planned, args, budget):
    """(Plan, outputs) of a planned for arguments of these shapes, and of these values of inputs that decide.

    Costly results are not computed where plans are native and nothing but shapes depends on them; outputs are None then.
    """
    pinned, computes = frozenset(), planned.target is None
    while True:
        specialises = planned.specialises and planned.plans.specialised(args) < MAX_SPECIALISED
        tracer = _Tracer(planned, args, budget, pinned, specialises, computes)
        try:
            return _traced(planned, tracer)
        except _Decides as e:
            pinned |= e.inputs
        except Exception:
            if not tracer.guessed:
                raise
            computes = True


def _traced(planned, tracer):
    scope = _Scope(None, {name: _Value(array, True, True) for name, array in planned.known.items()})
    scope.update(zip(planned.names, tracer.inputs))
    outputs = tracer.graph(planned.graph, scope)
    for declared, value in zip(planned.graph.outputs, outputs):
        _check_type(value.data, declared.type, f"{planned.where}: output {declared.name!r}")
    return tracer.plan(outputs), None if tracer.guessed else [value.data for value in outputs]


def _check_type(value, declared, where):
    """That a graph's output has the element type that the graph declares for it."""
    if isinstance(value, list):
        for member in value:
            _check_type(member, declared.element or declared, where)
    elif declared.element is not None:
        _check_type(value, declared.element, where)
    elif value is not None and declared.dtype is not None and value.dtype != declared.dtype:
        error = ModelError(f"{where} is tensor({type_name(value.dtype)}), but declared {declared}")
        error.located = True
        raise error


def _last_uses(graph):
    """For each node, the names that neither a later one nor the graph's outputs need."""
    needed, last = {v.name for v in graph.outputs}, []
    for node in reversed(graph.nodes):
        names = node.needs.union(node.outputs)
        last.append(names - needed)
        needed |= names
    return last[::-1]


class _Tracer:
    """Runs nodes on real values and notes the steps that a plan needs."""

    def __init__(self, planned, args, budget, pinned, specialises, computes):
        self.initial_values, self.steps, self.budget = [], [], budget
        self.record, self.meter, self.target = planned.record, planned.meter, planned.target
        self.most_plans = planned.plans.most
        self.pinned, self.specialises, self.computes, self.guessed = pinned, specialises, computes, False
        self.folded = Folded(MAX_FOLDED_BYTES, planned.folded)
        self.absent = _Value(None, True, True)
        self.inputs = [self.runtime(a, True) for a in args]
        for i, value in enumerate(self.inputs):
            if i in pinned:
                value.data = np.array(value.data)
                value.known, value.given, value.operand = True, frozenset(), Operand(value.data, True)
                protect([value.data])
            elif (
                isinstance(value.data, np.ndarray) and value.data.dtype.kind in "iub" and value.data.size <= MAX_VALUES
            ):
                value.given = frozenset([i])
        self.budget_input = self.runtime(budget, True)

    def runtime(self, data, fixed):
        """A value that is new at each run."""
        value = _Value(data, False, fixed)
        self.assign_slot(value)
        return value

    def assign_slot(self, value):
        """Where the value is in the plan; known ones get a slot when a step first needs them."""
        if value.slot is None:
            value.slot = len(self.initial_values)
            self.initial_values.append(value.data if value.known else None)
        return value.slot

    def plan(self, outputs):
        slots = tuple(self.assign_slot(value) for value in outputs)
        needed, steps, n_given = set(slots), [], len(self.inputs) + 1
        made = {slot: operand for step in self.steps for slot, operand in zip(step.made, step.results)}
        for value in outputs:
            _use(value.operand)
        for step in reversed(self.steps):
            if needed.isdisjoint(step.made):
                continue
            needed.update(step.inputs)
            steps.append(step)
            for operand in step.operands or map(made.get, step.inputs):
                _use(operand)
        native = compiled(steps[::-1], slots, self.target) if self.target else steps[::-1]
        needed, steps = set(slots), []
        for step in reversed(native):
            released = {i for i in step.inputs + step.made if i >= n_given and self.initial_values[i] is None} - needed
            needed.update(step.inputs)
            run = self.meter(step) if self.meter else step.run
            steps.append((run, step.inputs, step.made, step.large, tuple(released), step.where))
        counts = any(large or self.budget_input.slot in inputs for _, inputs, _, large, *_ in steps)
        fixed = all(v.fixed and isinstance(v.data, np.ndarray) for v in outputs)
        return Plan(
            [v.data for v in self.inputs],
            self.initial_values,
            tuple(steps[::-1]),
            slots,
            Budget if counts else None,
            self.folded,
            tuple(sorted(self.pinned)),
            tuple(native),
            tuple([pattern(v.data) for v in outputs]) if fixed else None,
        )

    def graph(self, graph, scope):
        """The values of the graph's outputs. The scope forgets the others behind their last use."""
        for name, array in graph.constants.items():
            scope[name] = _Value(array, True, True)
        for node, last_used in zip(graph.nodes, _last_uses(graph)):
            try:
                self.node(node, scope)
            except _Decides:
                raise
            except Exception as e:
                raise with_location(e, node.where) from e
            for name in last_used:
                scope.pop(name, None)
        return [scope[v.name] for v in graph.outputs]

    def node(self, node, scope):
        inputs = [scope[name] if name else self.absent for name in node.inputs]
        if node.function is None:
            outputs = self.call(node, inputs)
        elif node.function is if_ and inputs[0].known:
            branch = "then_branch" if condition(inputs[0].data) else "else_branch"
            outputs = self.graph(node.attributes[branch], _Scope(scope))
        elif node.graphs and node.function is if_ and self._decides(inputs[0]):
            raise _Decides(inputs[0].given)
        elif node.graphs:
            outputs = self.control(node, inputs, scope)
        elif node.op_type == "Identity":
            outputs = inputs
        else:
            outputs = self.operator(node, inputs)
        scope.update(zip(node.outputs, outputs))

    def call(self, node, inputs):
        """A function of the model: its nodes replace the call."""
        body = node.attributes["body"]
        values = inputs + [self.absent] * (len(body.inputs) - len(inputs))
        return self.graph(body, _Scope(None, zip((v.name for v in body.inputs), values)))

    def _decides(self, value):
        """Whether the plan is to be made anew for the very values on which this one depends."""
        return self.specialises and not value.known and bool(value.given)

    def control(self, node, inputs, scope):
        """If, Loop or Scan over planned_graphs of its graphs, which take what they capture behind their own inputs."""
        captures = sorted({name for graph in node.graphs.values() for name in graph.captures})
        known = {name: scope[name].data for name in captures if scope[name].known}
        names = [name for name in captures if name not in known]
        planned_graphs = {
            key: PlannedGraph(
                graph,
                [v.name for v in graph.inputs] + names,
                node.where,
                known,
                self.folded,
                self.record,
                self.meter,
                self.target,
                self.most_plans,
            )
            for key, graph in node.graphs.items()
        }
        values = inputs + [scope[name] for name in names]
        run, like = Control(node, len(inputs), planned_graphs), None
        if self.target is not None and self.record is None and all(v.fixed for v in values):
            like = run.results([v.data for v in values], [v.known for v in values])
        if like is None and node.op_type == "Loop" and len(node.outputs) > len(inputs) - 2 and self._decides(inputs[0]):
            raise _Decides(inputs[0].given)
        return self.execute(
            node.altered(run=run),
            run,
            [self.budget_input, *values],
            all(v.known for v in values),
            like is not None,
            like,
        )

    def operator(self, node, inputs):
        shape_only = node.op_type in SHAPE_ONLY and inputs[0].fixed
        deciding = SHAPE_INPUTS.get(node.op_type, ())
        deciding = inputs if deciding is ALL else [inputs[i] for i in deciding if i < len(inputs)]
        for value in deciding:
            if self._decides(value):
                raise _Decides(value.given)
        fixed = all(v.fixed for v in inputs) and all(v.known for v in deciding)
        run = node.run
        if hasattr(run, "bound") and all(v.fixed for v in inputs):
            run = run.bound(*[v.data for v in inputs])
        return self.execute(node, run, inputs, shape_only or all(v.known for v in inputs), fixed)

    def execute(self, node, run, inputs, folds, fixed, like=None):
        """Run a node; its outputs are known if it `folds`, else a step makes them. like: arrays like its results."""
        data = [v.data for v in inputs]
        if self.guessed and not folds and not fixed:
            raise _NeedsValues
        results = None if self.computes or folds or not fixed else like or like_results(node, run, data)
        if results is None:
            results = run(*data)
            results = results if isinstance(results, tuple) else (results,)
        else:
            self.guessed = True
        check_outputs(node, results)
        if folds and self.folded.keeps(results, [v.data for v in inputs if v is not self.budget_input]):
            protect(results)
            return [_Value(value, True, True) for value in results]
        for value in results:
            self.budget.count(value)
        outputs = [self.runtime(value, fixed) for value in results]
        if not node.graphs and all(v.given is not None for v in inputs):
            for value in outputs:
                value.given = frozenset().union(*(v.given for v in inputs))
        large = tuple(v.slot for v in outputs if not fixed or _is_large(v.data))
        plain = all(v.operand is not None or v.data is None or v is self.budget_input for v in inputs + outputs)
        described = (tuple(v.operand for v in inputs), tuple(v.operand for v in outputs)) if plain else ()
        self.steps.append(
            Step(
                run,
                tuple(map(self.assign_slot, inputs)),
                tuple(v.slot for v in outputs),
                large,
                node.where,
                node,
                *described,
            )
        )
        if self.record is not None:
            self.record(node, [v.data for v in inputs], results)
        return outputs


def _use(operand):
    if operand is not None:
        operand.uses += 1


def _is_large(value):
    return isinstance(value, np.ndarray) and max(value.nbytes, owner(value).nbytes) >= COUNTED_BYTES
