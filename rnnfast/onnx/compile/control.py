"""If, Loop and Scan whose graphs are native programs: these are called within the program, by commands that decide."""

import numpy as np

from rnnfast.errors import LimitError
from rnnfast.native._programs import NativeProgram
from rnnfast.onnx import budget
from rnnfast.onnx.compile.builder import NotNative
from rnnfast.onnx.ops.control import scan_settings


class _At:
    """A contiguous view that a program takes or makes, `stride` bytes further on at each iteration."""

    def __init__(self, view, stride=0):
        if not view.flags.c_contiguous:
            raise NotNative("a view that is not contiguous")
        self.view, self.stride = view, stride

    @property
    def words(self):
        return self.view, self.stride


def _call(b, plan, sources, targets, behind=()):
    """(words of a command, floating-point operations, bytes) that runs a plan of at most one step.

    sources: an _At for each argument; targets: for each output; behind: (to, from) of the values moved at the end.
    """
    sources = dict(enumerate(sources))
    for slot in (*plan.outputs, *(slot for step in plan.unmetered_steps for slot in step.inputs)):
        if slot not in sources and plan.initial_values[slot] is not None:
            sources[slot] = _At(b.constant(np.ascontiguousarray(plan.initial_values[slot])))
    buffers, checks, call, flops, nbytes = [], [], (0, 0, None), 0, 0
    made = {}
    for step in plan.unmetered_steps:
        program = step.run
        b.keep.append(program)
        for slot, target in zip(plan.outputs, targets):
            if slot in step.made:
                made.setdefault(slot, target)
        buffers = [*(sources[slot] for slot in step.inputs), *(made[slot] for slot in step.made)]
        for offset, kind, message, where in program.checks:
            status = b.status(message, kind, where)
            b.copy(status, b.constant(np.zeros(2, np.int64)))
            checks += offset, status
        call = program.address, program.n_words, b.new((program.arena,), np.uint8)
        flops, nbytes = sum(note.flops for note in program.notes), sum(note.nbytes for note in program.notes)
    moves = []
    for slot, target in zip(plan.outputs, targets):
        if made.get(slot) is not target:
            moves.append((target, made[slot] if slot in made else sources[slot]))
    moves += behind
    words = [*call, len(buffers), len(moves), len(checks) // 2]
    words += [word for buffer in buffers for word in buffer.words]
    words += [word for to, source in moves for word in (*to.words, *source.words, to.view.nbytes)]
    return b.nested("call", words + checks), flops, nbytes


def _is_native(control):
    """Whether the plans of its graphs are native programs, of shapes that are known."""
    return control.plans is not None and all(
        len(plan.unmetered_steps) <= 1 and all(type(step.run) is NativeProgram for step in plan.unmetered_steps)
        for plan in control.plans.values()
    )


def _loop(b, plan, times, trips, going, next_, index, sources, targets, behind):
    """times: how often, as far as that is known."""
    status = b.status(f"the loops of one call take more than {budget.MAX_ITERATIONS} iterations", LimitError)
    b.copy(status, b.constant(np.zeros(2, np.int64)))
    call, flops, nbytes = _call(b, plan, sources, targets, behind)
    b.emit(
        "loop",
        trips,
        going,
        next_,
        index,
        status,
        *call,
        out=(behind[0][0] if behind else targets[-1]).view,
        flops=flops * times,
        weights=nbytes * times,
    )


def _carried(b, operands):
    """(_At of what an iteration takes, _At of what it makes) for each state."""
    pairs = []
    for operand in operands:
        taken = b.new(operand.shape, operand.dtype)
        b.copy(taken, b.view(operand))
        pairs.append((_At(taken), _At(b.new(operand.shape, operand.dtype))))
    return pairs


def _captured(b, operands):
    return [_At(b.contiguous(b.view(operand))) for operand in operands]


def _rows(b, like, axis, backwards):
    """(the view of all rows, the _At of an iteration's row)"""
    lead = np.moveaxis(np.broadcast_to(np.empty((), like.dtype), like.shape), axis, 0).shape
    rows = b.new(lead, like.dtype)
    stride = rows.strides[0]
    return np.moveaxis(rows, 0, axis), _At(rows[-1, ...], -stride) if backwards else _At(rows[0, ...], stride)


def emit_if(b, node, inputs, outputs):
    control = node.run
    if not _is_native(control):
        return False
    made = [b.new(o.shape, o.dtype) for o in outputs]
    sources, targets = _captured(b, inputs[2:]), [_At(view) for view in made]
    calls = [_call(b, control.plans[name], sources, targets) for name in ("then_branch", "else_branch")]
    _, flops, nbytes = max(calls, key=lambda call: call[1])
    b.emit(
        "branch", b.contiguous(b.view(inputs[1])), *calls[0][0], *calls[1][0], out=made[0], flops=flops, weights=nbytes
    )
    for operand, view in zip(outputs, made):
        b.set(operand, view)
    return True


def emit_loop(b, node, inputs, outputs):
    control = node.run
    if not _is_native(control):
        return False
    plan, given = control.plans["body"], inputs[1 : 1 + control.n_inputs]
    trips, going, *states = *given, *[None] * (2 - len(given))
    carried = _carried(b, states)
    index, truth = b.new((), np.int64), b.new((), np.bool_)
    rows = [_rows(b, o, 0, False) for o in outputs[len(states) :]]
    true = _At(b.constant(np.array(True)))
    times = 1 if trips is None or trips.known is None else trips.known.item()
    trips, going = (None if operand is None else b.contiguous(b.view(operand)) for operand in (trips, going))
    _loop(
        b,
        plan,
        times,
        trips,
        going,
        None if going is None else truth,
        index,
        [_At(index), true, *(taken for taken, _ in carried), *_captured(b, inputs[1 + control.n_inputs :])],
        [_At(truth), *(new for _, new in carried), *(row for _, row in rows)],
        carried,
    )
    _give(b, outputs, carried, rows)
    return True


def emit_scan(b, node, inputs, outputs):
    control = node.run
    if not _is_native(control):
        return False
    plan, given = control.plans["body"], inputs[1 : 1 + control.n_inputs]
    scan = scan_settings([b.view(o) for o in given], len(outputs), **control.attributes)
    carried = _carried(b, given[: len(scan.states)])
    slices = []
    for x in scan.inputs:
        if not x[0, ...].flags.c_contiguous:
            x = b.contiguous(x)
        slices.append(_At(x[0, ...], x.strides[0]))
    rows = [
        _rows(b, o, axis, backwards)
        for o, axis, backwards in zip(outputs[len(carried) :], scan.output_axes, scan.output_directions)
    ]
    times = len(scan.inputs[0])
    _loop(
        b,
        plan,
        times,
        b.constant(np.array(times, np.int64)),
        None,
        None,
        b.new((), np.int64),
        [*(taken for taken, _ in carried), *slices, *_captured(b, inputs[1 + control.n_inputs :])],
        [*(new for _, new in carried), *(row for _, row in rows)],
        carried,
    )
    _give(b, outputs, carried, rows)
    return True


def _give(b, outputs, carried, rows):
    for operand, view in zip(outputs, [*(taken.view for taken, _ in carried), *(view for view, _ in rows)]):
        if operand is not None:
            b.set(operand, view)


EMIT = {"If": emit_if, "Loop": emit_loop, "Scan": emit_scan}
