"""If, Loop and Scan as steps of a plan.

Their graphs are planned graphs, which take the values that they capture as arguments behind their own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import raise_if_from_handler
from rnnfast.onnx.budget import Budget
from rnnfast.onnx.graph import Node
from rnnfast.onnx.ops.control import condition, if_, loop, scan_9, scan_settings
from rnnfast.onnx.trips import trip_count
from rnnfast.onnx.work import NATIVE_CALL

# Sample arguments of a Loop's body: the iteration number and the condition.
ITERATION, GOING = np.array(0, np.int64), np.array(True)


class Control:
    """The step of an If, Loop or Scan. `planned_graphs` has the planned graphs by the names of their attributes.

    `results` sets `plans`: if the shapes of all that the graphs take and of the node's results depend on the shapes of
    its inputs alone, these are the plans that the graphs run, by the same names; else None. It also sets `trips`, the
    number of a Loop's iterations if that depends on constants and input shapes alone.
    """

    def __init__(self, node: Node, n_inputs: int, planned_graphs: dict[str, Any]) -> None:
        assert node.function is not None
        self.function, self.n_inputs, self.planned_graphs = node.function, n_inputs, planned_graphs
        self.plans: dict[str, Any] | None = None
        self.trips: int | None = None
        self.attributes = {name: value for name, value in node.attributes.items() if name not in planned_graphs}

    def __call__(self, budget: Budget, *args: Any) -> Any:
        captured = args[self.n_inputs :]
        bodies = {name: _Body(planned, captured, budget) for name, planned in self.planned_graphs.items()}
        return self.function(*args[: self.n_inputs], **self.attributes, **bodies)

    def results(self, arrays: list[Any], known: list[bool]) -> tuple[np.ndarray, ...] | None:
        """Arrays of the results' types and shapes, for inputs and captured values like `arrays`, or None.

        None means that the results' shapes are not known before a run. `known` says for each input and captured value
        whether it is the same at each run.
        """
        rule = RULES.get(self.function)
        if rule is None:
            return None
        try:
            plans, results = rule(self, arrays[: self.n_inputs], known, arrays[self.n_inputs :])
        except Exception as e:
            raise_if_from_handler(e)
            return None  # a graph that never runs may be wrong; one that does raises when it runs
        self.plans = plans if results is not None else None
        return results

    def work(self, inputs: list[Any], known: list[bool]) -> int:
        """The work of the node as a native command, without that of loops whose trip counts are not known.

        `inputs` and `known` are those of the step, of which the first is the Budget of the call.
        """
        if self.plans is None:
            return 0
        work = max(plan.work for plan in self.plans.values())
        if self.function is if_:
            return work
        if self.function is loop:
            trips = self.trips or 0
        else:
            trips = len(
                scan_settings(
                    inputs[1 : 1 + self.n_inputs], len(self.planned_graphs["body"].outputs), **self.attributes
                ).inputs[0]
            )
        return max(0, trips) * (work + NATIVE_CALL)

    def _if(self, inputs, known, captured):
        """(plans, results) of an If; the results are None unless both branches give the same types and shapes."""
        plans = {name: _plan(planned, captured) for name, planned in self.planned_graphs.items()}
        one, other = (plan.results for plan in plans.values())
        return plans, one if _is_one(inputs[0], np.bool_) and _alike(one, other) else None

    def _loop(self, inputs, known, captured):
        """(plans, results) of a Loop; both are None if a shape changes, or the number of rows is not known."""
        values = [*inputs, *[None] * (2 - len(inputs))]
        trips, going, carried = values[0], values[1], values[2:]
        plan = _plan(self.planned_graphs["body"], [ITERATION, GOING, *carried, *captured])
        n = 1 + len(carried)
        if trips is None and going is None or plan.results is None or not _alike(plan.results[1:n], carried):
            return None, None
        if not (_is_one(trips, np.int64) and _is_one(going, np.bool_) and _is_one(plan.results[0], np.bool_)):
            return None, None
        self.trips = trip_count(self.planned_graphs["body"], values, known, _stays_true(plan))
        rows = plan.results[n:]
        if rows and not self.trips:  # Scan outputs have a known shape only if some iterations are known to run.
            return None, None
        return {"body": plan}, (*plan.results[1:n], *(_stacked(row, self.trips, 0) for row in rows))

    def _scan(self, inputs, known, captured):
        """(plans, results) of a Scan; both are None if a state's shape changes or there is no iteration."""
        body = self.planned_graphs["body"]
        scan = scan_settings(inputs, len(body.outputs), **self.attributes)
        lengths = {len(x) for x in scan.inputs}
        if len(lengths) != 1 or lengths == {0}:
            return None, None
        plan, n = _plan(body, [*scan.states, *(x[0, ...] for x in scan.inputs), *captured]), len(scan.states)
        if plan.results is None or not _alike(plan.results[:n], scan.states):
            return None, None
        rows = (_stacked(row, *lengths, axis) for row, axis in zip(plan.results[n:], scan.output_axes))
        return {"body": plan}, (*plan.results[:n], *rows)


RULES: dict[Any, Callable[..., Any]] = {if_: Control._if, loop: Control._loop, scan_9: Control._scan}


def _plan(planned: Any, args: list[Any]) -> Any:
    """The plan of a planned graph, which no longer predicts if that fails."""
    try:
        return planned.plan(args)
    except Exception:
        planned.predicts = False
        raise


def _alike(some: Sequence[Any] | None, others: Sequence[Any] | None) -> bool:
    """Return whether both are sequences of arrays that have the same types and shapes."""
    return (
        some is not None
        and others is not None
        and len(some) == len(others)
        and all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(some, others))
    )


def _is_one(x: np.ndarray | None, dtype: Any) -> bool:
    """Return whether x is absent, or an array of one element of this type."""
    return x is None or x.dtype == dtype and x.size == 1


def _stays_true(plan: Any) -> bool:
    """Return whether the condition that a Loop's body returns is the one it takes, or is known to be true."""
    slot = plan.outputs[0]
    return slot == 1 or plan.initial_values[slot] is not None and condition(plan.initial_values[slot])


def _stacked(row: np.ndarray, length: int, axis: int) -> np.ndarray:
    """An array of the type and shape of `length` rows along a new axis."""
    rows = np.broadcast_to(row, (length, *row.shape))
    return np.moveaxis(rows, 0, axis)


class _Body:
    """A planned graph as the functions of If, Loop and Scan call it: without the captured values.

    They also read `outputs`, the types of its outputs, and `budget`, the Budget of the call.
    """

    def __init__(self, planned: Any, captured: Sequence[Any], budget: Budget) -> None:
        self.planned, self.captured, self.outputs, self.budget = planned, captured, planned.outputs, budget

    def __call__(self, *args: Any) -> list[Any]:
        return self.planned([*args, *self.captured], self.budget)
