"""Joins the steps of a plan: consecutive steps that have commands become one NativeProgram."""

from typing import NamedTuple

from rnnfast.errors import LimitError, with_location
from rnnfast.native._programs import LIMITS
from rnnfast.onnx.compile import (
    attention,
    control,
    convolution,
    dense,
    einsum,
    elementwise,
    indexing,
    integer,
    movement,
    pooling,
    quantized,
    recurrent_steps,
    reduction,
    resampling,
    running,
    spectra,
)
from rnnfast.onnx.compile.builder import DTYPES, Builder, NotNative
from rnnfast.onnx.ops.numeric import is_half

TABLES = (
    quantized.EMIT,  # has an emitter of sums, which takes only few
    integer.EMIT,
    movement.EMIT,
    elementwise.EMIT,
    dense.EMIT,
    einsum.EMIT,
    convolution.EMIT,
    recurrent_steps.EMIT,
    reduction.EMIT,
    running.EMIT,
    resampling.EMIT,
    spectra.EMIT,
    attention.EMIT,
    indexing.EMIT,
    pooling.EMIT,
    control.EMIT,
)
# operator -> its emitters, of which the first that can emits the commands of a step
EMIT = {op_type: [table[op_type] for table in TABLES if op_type in table] for table in TABLES for op_type in table}
MAX_INPUTS_AND_OUTPUTS = LIMITS["buffers"] - 2  # two buffers are the constants and the arena


class Step(NamedTuple):
    """One callable of a plan: it takes the values of the input slots, and its results go to the output slots.

    large: the output slots whose results may be large. where: the location that errors name. node: the node of the
    graph, None for several. operands, results: the Operands of the inputs and outputs, empty if the step cannot become
    native. work: that of the step as native commands and as it is.
    """

    run: object
    input_slots: tuple
    output_slots: tuple
    large: tuple
    where: str
    node: object = None
    operands: tuple = ()
    results: tuple = ()
    work: tuple = (0, 0)


def compiled(steps, kept, target, new_builder=Builder):
    """Return the Steps with consecutive native ones joined.

    kept: the slots that are read after the last step. new_builder: makes a Builder for a target.
    """
    joined, waiting = [], []
    builder = new_builder(target)
    last_reader = _last_readers(steps, kept)
    for i, step in enumerate(steps):
        builder.node = step.node
        if _emit_step(builder, step):
            waiting.append(step)
            continue
        joined += _join(builder, waiting, last_reader, i, step)
        joined.append(step)
        builder, waiting = new_builder(target), []
    return joined + _join(builder, waiting, last_reader, len(steps))


def _emit_step(builder, step):
    """Emit the commands of a step; return False if it has none."""
    if not step.results or step.node.domain or step.node.op_type not in EMIT:
        return False
    if any(o is not None and o.dtype not in DTYPES and not is_half(o.dtype) for o in step.operands + step.results):
        return False
    try:
        return any(emit(builder, step.node, step.operands, step.results) for emit in EMIT[step.node.op_type])
    except NotNative:
        return False


def _last_readers(steps, kept):
    """Return for each slot the index of the last step that reads it; the end of the plan counts as a step."""
    last = {slot: i for i, step in enumerate(steps) for slot in step.input_slots}
    return last | dict.fromkeys(kept, len(steps))


def _join(builder, steps, last_reader, end, not_native=None):
    """Return one Step that runs the builder's commands in place of these steps, or the steps themselves.

    The steps stay where there are no commands to run or the limits of a program do not allow one; they vanish where
    nothing needs their results. last_reader: of each slot, as the index of a step. end: the index of the step after
    them. not_native: that step, whose inputs may be views in the program.
    """
    readers = steps if not_native is None else [*steps, not_native]
    slots = {
        id(operand): slot
        for step in readers
        for operand, slot in zip(step.operands, step.input_slots)
        if operand is not None
    }
    outputs = {}
    for step in steps:
        for operand, slot in zip(step.results, step.output_slots):
            if last_reader.get(slot, -1) >= end and operand is not None:
                outputs[slot] = operand
    if not outputs:
        builder.forget()
        return []
    where = steps[0].where if len(steps) == 1 else f"{steps[0].where} to {steps[-1].where}"
    try:
        for operand in outputs.values():
            builder.view(operand)
        fits = len(outputs) + len(builder.inputs) <= MAX_INPUTS_AND_OUTPUTS and all(
            len(o.shape) <= LIMITS["rank"] for o in outputs.values()
        )
        work = sum([step.work[0] for step in steps])
        program = builder.program(list(outputs.values()), work) if builder.commands and fits else None
    except NotNative:
        program = None
    except LimitError as e:
        raise with_location(e, where) from e
    if program is None:
        builder.forget()
        return steps
    inputs = tuple(slots[id(operand)] for operand in builder.inputs)
    large = tuple(slot for step in steps for slot in step.large if slot in outputs)
    return [Step(program, inputs, tuple(outputs), large, where, work=(work, work))]
