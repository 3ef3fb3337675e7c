"""If, Loop and Scan as steps of a plan: their graphs are planned_graphs, which take what they capture behind their inputs."""

import numpy as np

from rnnfast.onnx.ops.control import condition, if_, loop, scan_9, scan_settings

ITERATION, GOING = np.array(0, np.int64), np.array(True)


class Control:
    """The step of an If, Loop or Scan.

    Once `results` was asked, `plans` has for each graph the Plan that takes what it is called with, if the shapes of
    these and of the node's results depend on the shapes of its inputs alone; else it is None.
    """

    def __init__(self, node, n_inputs, planned_graphs):
        self.function, self.n_inputs, self.planned_graphs, self.plans = node.function, n_inputs, planned_graphs, None
        self.attributes = {name: value for name, value in node.attributes.items() if name not in planned_graphs}

    def __call__(self, budget, *args):
        captured = args[self.n_inputs :]
        bodies = {name: _Body(planned, captured, budget) for name, planned in self.planned_graphs.items()}
        return self.function(*args[: self.n_inputs], **self.attributes, **bodies)

    def results(self, arrays, known):
        """Arrays like the results, in a tuple, for inputs and captured values of such shapes, or None.

        known: for each of them whether its value is the same at each run.
        """
        rule = RULES.get(self.function)
        if rule is None:
            return None
        try:
            plans, results = rule(self, arrays[: self.n_inputs], known, arrays[self.n_inputs :])
        except Exception:
            return None  # a graph that is never run may be wrong; those that are say so when they run
        self.plans = plans if results is not None else None
        return results

    def _if(self, inputs, known, captured):
        plans = {name: planned.plan(captured) for name, planned in self.planned_graphs.items()}
        one, other = (plan.results for plan in plans.values())
        return plans, one if _is_one(inputs[0], np.bool_) and _alike(one, other) else None

    def _loop(self, inputs, known, captured):
        trips, going, *carried = *inputs, *[None] * (2 - len(inputs))
        plan = self.planned_graphs["body"].plan([ITERATION, GOING, *carried, *captured])
        n = 1 + len(carried)
        if trips is None and going is None or plan.results is None or not _alike(plan.results[1:n], carried):
            return None, None
        if not (_is_one(trips, np.int64) and _is_one(going, np.bool_) and _is_one(plan.results[0], np.bool_)):
            return None, None
        rows = plan.results[n:]
        if rows:  # their number is to be known
            counted = trips is not None and known[0] and trips.item() > 0
            if not counted or going is not None and not (known[1] and condition(going) and _stays_true(plan)):
                return None, None
        return {"body": plan}, (*plan.results[1:n], *(_stacked(row, trips.item(), 0) for row in rows))

    def _scan(self, inputs, known, captured):
        body = self.planned_graphs["body"]
        scan = scan_settings(inputs, len(body.outputs), **self.attributes)
        lengths = {len(x) for x in scan.inputs}
        if len(lengths) != 1 or lengths == {0}:
            return None, None
        plan, n = body.plan([*scan.states, *(x[0, ...] for x in scan.inputs), *captured]), len(scan.states)
        if plan.results is None or not _alike(plan.results[:n], scan.states):
            return None, None
        rows = (_stacked(row, *lengths, axis) for row, axis in zip(plan.results[n:], scan.output_axes))
        return {"body": plan}, (*plan.results[:n], *rows)


RULES = {if_: Control._if, loop: Control._loop, scan_9: Control._scan}


def _alike(some, others):
    """Whether there are such arrays and they have the same types and shapes."""
    return (
        some is not None
        and others is not None
        and len(some) == len(others)
        and all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(some, others))
    )


def _is_one(x, dtype):
    """Whether x, unless it is absent, is one element of this type."""
    return x is None or x.dtype == dtype and x.size == 1


def _stays_true(plan):
    """Whether a body's condition is that which it was given, or known to be true."""
    slot = plan.outputs[0]
    return slot == 1 or plan.initial_values[slot] is not None and condition(plan.initial_values[slot])


def _stacked(row, length, axis):
    """An array like so many rows along a new axis."""
    rows = np.broadcast_to(row, (length, *row.shape))
    return np.moveaxis(rows, 0, axis)


class _Body:
    """A graph as If, Loop and Scan call it."""

    def __init__(self, planned, captured, budget):
        self.planned, self.captured, self.outputs, self.budget = planned, captured, planned.outputs, budget

    def __call__(self, *args):
        return self.planned([*args, *self.captured], self.budget)
