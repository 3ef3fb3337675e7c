"""A checked Graph -> plans: what depends on constants is folded once, what depends on shapes once for each set of
shapes, and the rest becomes steps.

A step is one callable: a native lowering where there is one, else the operator's NumPy function. A trace runs the
very callables that the plan then holds, so that the first call and every later one give the same bits.
"""
import collections
import dataclasses
import functools
import threading

import numpy as np

from rnnfast.errors import Error, InputError, InputTypeError, LimitError, ModelError, UnsupportedError
from rnnfast.onnx.ops.control import condition, if_
from rnnfast.onnx.ops.shape_inputs import ALL, SHAPE_INPUTS

# Operators that look at their first input's shape only.
SHAPE_ONLY = {"Shape", "Size", "EyeLike"}
# Operators that may hand on or give an absent optional value.
OPTIONAL = {"Identity", "If", "Loop", "Optional", "OptionalGetElement", "OptionalHasElement"}
# A result larger than this and than what it is made of is computed again at each call, not kept in a plan.
MAX_FOLDED_BYTES = 2**24
MAX_PLANS = 16


def located(error, where):
    """`error` as one of rnnfast's, saying where; the innermost place stands."""
    if getattr(error, "located", False):
        return error
    if isinstance(error, Error):
        kind, text = type(error), str(error)
    else:
        kind = (LimitError if isinstance(error, (MemoryError, RecursionError)) else
                InputTypeError if isinstance(error, TypeError) else InputError)
        text = f"{type(error).__name__}: {error}"
    new = kind(f"{where}: {text}")
    new.located = True
    return new


def nbytes(value):
    if isinstance(value, list):
        return sum(map(nbytes, value))
    return 0 if value is None else value.nbytes


# ------------------------------------------------------------------------------------------------ at load
def fold(graph, lower, known=None):
    """The Graph with constant results computed, dead nodes dropped and every node's `run` set.

    lower(node, constants) -> a native callable or None; `constants` has an array for each input that is constant,
    else None. `known`: the constants among the graph's inputs and captures.
    """
    nested, known = known is not None, known or {}
    constants = known | graph.constants
    nodes = []
    for node in _live(graph.nodes, graph.outputs):
        node = _prepared(node, constants, lower)
        results = _folded(node, constants, nested) if node.run is not None else None
        if results is None:
            nodes.append(node)
        else:
            constants.update(results)
    nodes = _live(nodes, graph.outputs)
    used = {v.name for v in graph.outputs}.union(*(node.needs for node in nodes))
    constants = {name: array for name, array in constants.items() if name in used and name not in known}
    defined = constants.keys() | {v.name for v in graph.inputs}.union(*(node.outputs for node in nodes))
    return dataclasses.replace(graph, constants=constants, nodes=tuple(nodes), captures=frozenset(used - defined))


def _live(nodes, outputs):
    """The nodes that the outputs depend on."""
    wanted, live = {v.name for v in outputs}, []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted |= node.needs
            live.append(node)
    return live[::-1]


def _prepared(node, constants, lower):
    """The node with its graphs folded, or with `run` set."""
    if node.graphs:
        graphs = {}
        for name, graph in node.graphs.items():
            if node.function is None:
                pairs = zip(graph.inputs, node.inputs)
                known = {v.name: constants[actual] for v, actual in pairs if actual in constants}
            else:
                known = {capture: constants[capture] for capture in graph.captures if capture in constants}
            graphs[name] = fold(graph, lower, known)
        return node.altered(attributes=node.attributes | graphs)
    try:
        run = lower(node, [constants.get(name) for name in node.inputs])
    except Exception as e:
        raise _at_load(e, node) from e
    return node.altered(run=run or functools.partial(node.function, **node.attributes))


def _at_load(error, node):
    """What is wrong with constants is wrong with the model."""
    error = located(error, node.where)
    return ModelError(str(error)) if isinstance(error, (InputError, InputTypeError)) else error


def _folded(node, constants, nested):
    """name -> result of a node whose inputs are all constant, or None where it is left to the run."""
    if not all(name in constants or not name for name in node.inputs):
        return None
    inputs = [constants.get(name) for name in node.inputs]
    try:
        results = node.run(*inputs)
    except Exception as e:
        if nested:
            return None     # a branch that is never taken may be wrong
        raise _at_load(e, node) from e
    results = results if isinstance(results, tuple) else (results,)
    if nbytes(list(results)) > max(MAX_FOLDED_BYTES, nbytes(inputs)):
        return None
    _check_outputs(node, results)
    _protect(results)
    return {name: value for name, value in zip(node.outputs, results) if name}


def _protect(results):
    """Constants are shared by all runs: nobody writes to them, and whoever hands them out copies them."""
    for value in results:
        if isinstance(value, list):
            _protect(value)
        elif isinstance(value, np.ndarray):
            value.flags.writeable = False


def _check_outputs(node, results):
    """That the operator computed every output that the node names."""
    for i, name in enumerate(node.outputs):
        if name and (i >= len(results) or results[i] is None and node.op_type not in OPTIONAL):
            raise UnsupportedError(f"{node.where}: output {i} ({name!r}) is not computed")


# ------------------------------------------------------------------------------------------------ plans
class Plan:
    """Steps on a list of values, for one set of input shapes: immutable, run by any number of threads at once.

    template: the values before a run (what is known, None for the rest; inputs come first); steps: (callable, the
    places of its inputs, the places of its outputs, where it stands in the file).
    """
    __slots__ = ("template", "steps", "outputs")

    def __init__(self, template, steps, outputs):
        self.template, self.steps, self.outputs = template, steps, outputs

    def __call__(self, args):
        values = self.template.copy()
        values[:len(args)] = args
        where = ""
        try:
            for run, inputs, outputs, where in self.steps:
                result = run(*[values[i] for i in inputs])
                if type(result) is tuple:
                    for i, value in zip(outputs, result):
                        values[i] = value
                else:
                    values[outputs[0]] = result
        except Exception as e:
            raise located(e, where) from e
        return [values[i] for i in self.outputs]


def _key(value):
    """What a plan depends on of an input: the type and shape, for a sequence those of its members."""
    if type(value) is list:
        return tuple([_key(v) for v in value])
    return None if value is None else (value.shape, value.dtype)


class Program:
    """A folded graph that runs: plans by the shapes of its inputs, the least recently used dropped.

    names: the run-time inputs, in order; known: name -> _Value that a graph around it knows; record: a list that
    receives (node, input values, output values) of each step that is traced.
    """
    def __init__(self, graph, names, known=None, record=None):
        self.graph, self.names, self.known, self.record = graph, names, known or {}, record
        self.outputs = [v.type for v in graph.outputs]
        self._plans = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, args):
        """The outputs for arguments in the order of `names`; they may share memory with these and with each other."""
        key = tuple([_key(a) for a in args])
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None and len(self._plans) > 1:
                self._plans.move_to_end(key)
        if plan is not None:
            return plan(args)
        plan, outputs = trace(self, args)
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return outputs


class _Value:
    """A tensor, sequence or absent optional while it is traced.

    known: it depends on constants and input shapes only; fixed: its shape does.
    """
    __slots__ = ("data", "known", "fixed")

    def __init__(self, data, known, fixed):
        self.data, self.known, self.fixed = data, known, fixed


class _Scope(dict):
    """name -> _Value of a graph; `around` is the scope of the graph around it."""
    def __init__(self, around, values=()):
        super().__init__(values)
        self.around = around

    def __missing__(self, name):
        return self.around[name]


ABSENT = _Value(None, True, True)


def trace(program, args):
    """(Plan, outputs) of a program for arguments of these shapes."""
    tracer = _Tracer(program.record)
    inputs = {name: tracer.runtime(a, True) for name, a in zip(program.names, args)}
    outputs = tracer.graph(program.graph, _Scope(None, program.known | inputs))
    return tracer.plan(outputs), [value.data for value in outputs]


class _Tracer:
    """Runs nodes on real values and notes the steps that a plan needs."""
    def __init__(self, record):
        self.template, self.values, self.places, self.steps, self.record = [], [], {}, [], record

    def runtime(self, data, fixed):
        """A value that is new at each run."""
        return self.placed(_Value(data, False, fixed))

    def placed(self, value):
        self.places[id(value)] = len(self.template)
        self.template.append(value.data if value.known else None)
        self.values.append(value)   # keeps its id from being used again
        return value

    def place(self, value):
        """Where the value is in the plan; known ones get a place when a step first needs them."""
        if id(value) not in self.places:
            self.placed(value)
        return self.places[id(value)]

    def plan(self, outputs):
        places = [self.place(value) for value in outputs]
        needed, steps = set(places), []
        for step in reversed(self.steps):
            if not needed.isdisjoint(step[2]):
                needed.update(step[1])
                steps.append(step)
        return Plan(self.template, tuple(steps[::-1]), places)

    def graph(self, graph, scope):
        """The values of the graph's outputs."""
        for name, array in graph.constants.items():
            scope[name] = _Value(array, True, True)
        for node in graph.nodes:
            try:
                self.node(node, scope)
            except Exception as e:
                raise located(e, node.where) from e
        return [scope[v.name] for v in graph.outputs]

    def node(self, node, scope):
        inputs = [scope[name] if name else ABSENT for name in node.inputs]
        if node.function is None:
            outputs = self.call(node, inputs)
        elif node.function is if_ and inputs[0].known:
            branch = "then_branch" if condition(inputs[0].data) else "else_branch"
            outputs = self.graph(node.attributes[branch], _Scope(scope))
        elif node.graphs:
            outputs = self.control(node, inputs, scope)
        elif node.op_type == "Identity":
            outputs = inputs
        else:
            outputs = self.operator(node, inputs)
        scope.update(zip(node.outputs, outputs))

    def call(self, node, inputs):
        """A function of the model: its nodes take the place of the call."""
        body = node.attributes["body"]
        values = inputs + [ABSENT] * (len(body.inputs) - len(inputs))
        return self.graph(body, _Scope(None, zip((v.name for v in body.inputs), values)))

    def control(self, node, inputs, scope):
        """If, Loop or Scan over programs of its graphs, which take what they capture behind their own inputs."""
        captures = sorted({name for graph in node.graphs.values() for name in graph.captures})
        known = {name: scope[name] for name in captures if scope[name].known}
        names = [name for name in captures if name not in known]
        programs = {key: Program(graph, [v.name for v in graph.inputs] + names, known, self.record)
                    for key, graph in node.graphs.items()}
        values = inputs + [scope[name] for name in names]
        return self.execute(node, _Control(node, len(inputs), programs), values, all(v.known for v in values), False)

    def operator(self, node, inputs):
        shape_only = node.op_type in SHAPE_ONLY and inputs[0].fixed
        deciding = SHAPE_INPUTS.get(node.op_type, ())
        deciding = inputs if deciding is ALL else [inputs[i] for i in deciding if i < len(inputs)]
        fixed = all(v.fixed for v in inputs) and all(v.known for v in deciding)
        return self.execute(node, node.run, inputs, shape_only or all(v.known for v in inputs), fixed)

    def execute(self, node, run, inputs, folds, fixed):
        """Run a node; its outputs are known if it `folds`, else a step makes them."""
        results = run(*[v.data for v in inputs])
        results = results if isinstance(results, tuple) else (results,)
        _check_outputs(node, results)
        if folds and nbytes(list(results)) <= max(MAX_FOLDED_BYTES, sum(nbytes(v.data) for v in inputs)):
            _protect(results)
            return [_Value(value, True, True) for value in results]
        outputs = [self.runtime(value, fixed) for value in results]
        self.steps.append((run, tuple(map(self.place, inputs)), tuple(map(self.place, outputs)), node.where))
        if self.record is not None:
            self.record.append((node, [v.data for v in inputs], list(results)))
        return outputs


class _Control:
    """The step of an If, Loop or Scan: its programs with the captured values of one run."""
    def __init__(self, node, n_inputs, programs):
        self.function, self.n_inputs, self.programs = node.function, n_inputs, programs
        self.attributes = {name: value for name, value in node.attributes.items() if name not in programs}

    def __call__(self, *args):
        captured = args[self.n_inputs:]
        bodies = {name: _Body(program, captured) for name, program in self.programs.items()}
        return self.function(*args[:self.n_inputs], **self.attributes, **bodies)


class _Body:
    """A graph as If, Loop and Scan call it."""
    def __init__(self, program, captured):
        self.program, self.captured, self.outputs = program, captured, program.outputs

    def __call__(self, *args):
        return self.program(args + self.captured)
