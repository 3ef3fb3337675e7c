"""Makes a Plan of the steps that a trace notes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from rnnfast.errors import LimitError, with_location
from rnnfast.limits import Limits
from rnnfast.native._plans import Plan
from rnnfast.native._programs import NativeProgram
from rnnfast.onnx.budget import Budget
from rnnfast.onnx.compile import Step
from rnnfast.onnx.compile.builder import Operand
from rnnfast.onnx.folding import FoldingBudget


def needed_steps(steps: list[Step], kept: tuple[int, ...], outputs: Iterable[Operand | None]) -> list[Step]:
    """The steps whose results are needed for the slots that are kept; each Operand learns how often it is read.

    outputs: the Operands of these slots.
    """
    needed, found = set(kept), []
    made = {slot: operand for step in steps for slot, operand in zip(step.output_slots, step.results)}
    for operand in outputs:
        _count_use(operand)
    for step in reversed(steps):
        if needed.isdisjoint(step.output_slots):
            continue
        needed.update(step.input_slots)
        found.append(step)
        for operand in step.operands or map(made.get, step.input_slots):
            _count_use(operand)
    return found[::-1]


def check_work(works: list[tuple[Any, str]], limits: Limits) -> Any:
    """The sum of pairs (work, where); LimitError at the costliest if it is more than the limit."""
    total = sum([work for work, _ in works])
    try:
        limits.check("work", total, "the work of the call is")
    except LimitError as e:
        raise with_location(e, max(works)[1]) from None
    return total


def make_plan(
    args: list[Any],
    initial_values: list[Any],
    native: list[Step],
    slots: tuple[int, ...],
    limits: Limits,
    meter: Callable[[Step], Callable[..., Any]] | None,
    folding_budget: FoldingBudget | None,
    pinned: tuple[int, ...],
    results: tuple[np.ndarray, ...] | None,
) -> Plan:
    """The plan of these Steps, which are native where that is possible.

    initial_values: those of the slots, of which the first are of the arguments and the Budget. slots: those of the
    outputs. results: arrays of the types and shapes of the outputs, if these follow from those of the arguments.
    """
    needed, steps, n_args = set(slots), [], len(args) + 1
    for step in reversed(native):
        # values that no later step needs are released, so that a call holds no more than it must
        released = {
            i for i in step.input_slots + step.output_slots if i >= n_args and initial_values[i] is None
        } - needed
        needed.update(step.input_slots)
        run = meter(step) if meter else step.run
        steps.append((run, step.input_slots, step.output_slots, step.large, tuple(released), step.where))
    work = check_work([(step.work[1], step.where) for step in native], limits)
    counts = any(large or len(args) in inputs for _, inputs, _, large, *_ in steps)
    # A program that is the whole plan counts its loops itself; more of them share what the call allows.
    counts |= len(native) > 1 and any(type(step.run) is NativeProgram and step.run.loops for step in native)
    return Plan(
        args,
        initial_values,
        tuple(steps[::-1]),
        slots,
        functools.partial(Budget, limits=limits, work=work) if counts else None,
        folding_budget,
        pinned,
        tuple(native),
        results,
        work,
        limits.seconds,
    )


def _count_use(operand: Operand | None) -> None:
    if operand is not None:
        operand.uses += 1
