"""The steps of a plan made native: runs of steps that have commands become one NativeProgram each."""

from typing import NamedTuple

from rnnfast.errors import LimitError, with_location
from rnnfast.native._programs import LIMITS
from rnnfast.onnx.compile import (
    control,
    convolution,
    dense,
    elementwise,
    indexing,
    integer,
    movement,
    pooling,
    recurrent_steps,
    reduction,
)
from rnnfast.onnx.compile.builder import DTYPES, Builder, NotNative

TABLES = (
    integer.EMIT,
    movement.EMIT,
    elementwise.EMIT,
    dense.EMIT,
    convolution.EMIT,
    recurrent_steps.EMIT,
    reduction.EMIT,
    indexing.EMIT,
    pooling.EMIT,
    control.EMIT,
)
# Operator -> its emitters: the first that can does it.
EMIT = {op_type: [table[op_type] for table in TABLES if op_type in table] for table in TABLES for op_type in table}
MAX_INPUTS_AND_OUTPUTS = LIMITS["buffers"] - 2  # two buffers are the constants and the arena


class Step(NamedTuple):
    """run: a callable of the values at the slots `inputs`, whose results go to the slots `made`.

    node: of the graph, None for several; operands, results: what native steps know of its values, nothing where it
    cannot be native.
    """

    run: object
    inputs: tuple
    made: tuple
    large: tuple
    where: str
    node: object = None
    operands: tuple = ()
    results: tuple = ()


def compiled(steps, kept, target):
    """The list of Steps with native runs joined; `kept`: the slots that are needed at the end."""
    joined, waiting = [], []
    builder = Builder(target)
    needed = _needed_behind(steps, kept)
    for i, step in enumerate(steps):
        builder.node = step.node
        if _emitted(builder, step):
            waiting.append(step)
            continue
        joined += _join(builder, waiting, needed[i], step)
        joined.append(step)
        builder, waiting = Builder(target), []
    return joined + _join(builder, waiting, set(kept))


def _emitted(builder, step):
    """Whether the step's commands are in the program."""
    if not step.results or step.node.domain or step.node.op_type not in EMIT:
        return False
    if any(o is not None and o.dtype not in DTYPES for o in step.operands + step.results):
        return False
    try:
        return any(emit(builder, step.node, step.operands, step.results) for emit in EMIT[step.node.op_type])
    except NotNative:
        return False


def _needed_behind(steps, kept):
    """For each step the slots that it or a later one needs."""
    needed, sets = set(kept), []
    for step in reversed(steps):
        needed = needed | set(step.inputs)
        sets.append(needed)
    return sets[::-1]


def _join(builder, steps, needed, not_native=None):
    """The NativeProgram of these steps in their stead, if it is worth while and each has commands.

    not_native: the step behind them, of whose inputs the program may have views.
    """
    takers = steps if not_native is None else [*steps, not_native]
    slots = {
        id(operand): slot for step in takers for operand, slot in zip(step.operands, step.inputs) if operand is not None
    }
    made = {}
    for step in steps:
        for operand, slot in zip(step.results, step.made):
            if slot in needed and operand is not None:
                made[slot] = operand
    if not made:
        builder.forget()
        return []
    where = steps[0].where if len(steps) == 1 else f"{steps[0].where} to {steps[-1].where}"
    try:
        for operand in made.values():
            builder.view(operand)
        fits = len(made) + len(builder.inputs) <= MAX_INPUTS_AND_OUTPUTS and all(
            len(o.shape) <= LIMITS["rank"] for o in made.values()
        )
        program = builder.program(list(made.values())) if builder.commands and fits else None
    except NotNative:
        program = None
    except LimitError as e:
        raise with_location(e, where) from e
    if program is None:
        builder.forget()
        return steps
    inputs = tuple(slots[id(operand)] for operand in builder.inputs)
    large = tuple(slot for step in steps for slot in step.large if slot in made)
    return [Step(program, inputs, tuple(made), large, where)]
