"""The steps of a plan made native: runs of steps that have commands become one Segment each."""
from typing import NamedTuple

from rnnfast.errors import LimitError, located
from rnnfast.onnx.compile import control, convolution, dense, elementwise, indexing, integer, movement, pooling, recurrent_steps, reduction
from rnnfast.onnx.compile.builder import DTYPES, Builder, Unfit

TABLES = (integer.EMIT, movement.EMIT, elementwise.EMIT, dense.EMIT, convolution.EMIT, recurrent_steps.EMIT, reduction.EMIT,
          indexing.EMIT, pooling.EMIT, control.EMIT)
# Operator -> its emitters: the first that can does it.
EMIT = {op_type: [table[op_type] for table in TABLES if op_type in table] for table in TABLES for op_type in table}
MAX_AREAS = 62          # inputs and outputs of a segment: _plan.pyx has two areas more
MAX_RANK = 16           # of its outputs


class Step(NamedTuple):
    """run: a callable of the values at the places `inputs`, whose results go to the places `made`.

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
    """The list of Steps with native runs joined; `kept`: the places that are needed at the end."""
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
    except Unfit:
        return False


def _needed_behind(steps, kept):
    """For each step the places that it or a later one needs."""
    needed, sets = set(kept), []
    for step in reversed(steps):
        needed = needed | set(step.inputs)
        sets.append(needed)
    return sets[::-1]


def _join(builder, steps, needed, unfit=None):
    """The Segment of these steps in their place, if it is worth while and each has commands.

    unfit: the step behind them, of whose inputs the program may have views.
    """
    takers = steps if unfit is None else [*steps, unfit]
    places = {id(operand): place for step in takers for operand, place in zip(step.operands, step.inputs)
              if operand is not None}
    made = {}
    for step in steps:
        for operand, place in zip(step.results, step.made):
            if place in needed and operand is not None:
                made[place] = operand
    if not made:
        builder.forget()
        return []
    where = steps[0].where if len(steps) == 1 else f"{steps[0].where} to {steps[-1].where}"
    try:
        for operand in made.values():
            builder.view(operand)
        fits = len(made) + len(builder.inputs) <= MAX_AREAS and all(len(o.shape) <= MAX_RANK for o in made.values())
        segment = builder.segment(list(made.values())) if builder.commands and fits else None
    except Unfit:
        segment = None
    except LimitError as e:
        raise located(e, where) from e
    if segment is None:
        builder.forget()
        return steps
    inputs = tuple(places[id(operand)] for operand in builder.inputs)
    large = tuple(place for step in steps for place in step.large if place in made)
    return [Step(segment, inputs, tuple(made), large, where)]
