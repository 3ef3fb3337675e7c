"""If, Loop and Scan whose graphs are native programs: `branch` and `loop` commands call these programs."""

import numpy as np

from rnnfast.errors import LimitError
from rnnfast.native._programs import NativeProgram
from rnnfast.onnx import budget
from rnnfast.onnx.compile.builder import NotNative
from rnnfast.onnx.ops.control import scan_settings
from rnnfast.onnx.work import NATIVE_CALL


class LoopView:
    """A contiguous input or output view of a called program, which moves on by `stride` bytes at each iteration."""

    def __init__(self, view, stride=0):
        if not view.flags.c_contiguous:
            raise NotNative("a view that is not contiguous")
        self.view, self.stride = view, stride

    @property
    def words(self):
        """The words of the view in a command."""
        return self.view, self.stride


def _call_words(builder, plan, sources, targets, final_moves=()):
    """Return (the words of a call command that runs a plan of at most one step, its operations, its bytes).

    sources, targets: a LoopView for each argument and for each output. final_moves: (to, from) pairs of LoopViews that
    are copied at the end of the call. Checks of the called program become checks of the calling one.
    """
    sources = dict(enumerate(sources))
    for slot in (*plan.outputs, *(slot for step in plan.unmetered_steps for slot in step.input_slots)):
        if slot not in sources and plan.initial_values[slot] is not None:
            sources[slot] = LoopView(builder.constant(np.ascontiguousarray(plan.initial_values[slot])))
    buffers, checks, call, flops, nbytes = [], [], (0, 0, None), 0, 0
    written = {}
    for step in plan.unmetered_steps:
        program = step.run
        builder.keep.append(program)
        for slot, target in zip(plan.outputs, targets):
            if slot in step.output_slots:
                written.setdefault(slot, target)
        buffers = [*(sources[slot] for slot in step.input_slots), *(written[slot] for slot in step.output_slots)]
        for offset, kind, message, where in program.checks:
            status = builder.status(message, kind, where)
            builder.copy(status, builder.constant(np.zeros(2, np.int64)))
            checks += offset, status
        call = program.address, program.n_words, builder.new((program.arena,), np.uint8)
        flops, nbytes = sum(note.flops for note in program.notes), sum(note.nbytes for note in program.notes)
    moves = []
    for slot, target in zip(plan.outputs, targets):
        if written.get(slot) is not target:
            moves.append((target, written[slot] if slot in written else sources[slot]))
    moves += final_moves
    words = [*call, len(buffers), len(moves), len(checks) // 2]
    words += [word for buffer in buffers for word in buffer.words]
    words += [word for to, source in moves for word in (*to.words, *source.words, to.view.nbytes)]
    return builder.nested("call", words + checks), flops, nbytes


def _is_native(control):
    """Return whether each graph of the node has a plan of known shapes that is at most one native program."""
    return control.plans is not None and all(
        len(plan.unmetered_steps) <= 1 and all(type(step.run) is NativeProgram for step in plan.unmetered_steps)
        for plan in control.plans.values()
    )


def _emit_loop_command(builder, plan, known, trips, going, next_, index, sources, targets, final_moves):
    """Emit a loop command that calls a plan's program; the run raises LimitError beyond what a call may take.

    known: the most iterations, None if that is not known. trips, going: views of the trip count and of the first
    condition, None if absent; next_: the view of the condition that the body computes; index: that of the iteration.
    """
    builder.loops = True
    message = f"the loops of one call take more than {budget.MAX_ITERATIONS} iterations"
    if builder.target.limits.work is not None:
        message += f", or more work than limits.work = {builder.target.limits.work:,}"
    status = builder.status(message, LimitError)
    builder.copy(status, builder.constant(np.zeros(2, np.int64)))
    call, flops, nbytes = _call_words(builder, plan, sources, targets, final_moves)
    builder.emit(
        "loop",
        trips,
        going,
        next_,
        index,
        status,
        0 if known is not None else min(budget.MOST_WORK, plan.work + NATIVE_CALL),
        *call,
        out=(final_moves[0][0] if final_moves else targets[-1]).view,
        flops=flops * (1 if known is None else known),
        weights=nbytes * (1 if known is None else known),
    )


def _loop_states(builder, operands):
    """Return for each state (the LoopView that an iteration reads, the one that it writes); emit the initial copies."""
    pairs = []
    for operand in operands:
        state = builder.new(operand.shape, operand.dtype)
        builder.copy(state, builder.view(operand))
        pairs.append((LoopView(state), LoopView(builder.new(operand.shape, operand.dtype))))
    return pairs


def _captured_views(builder, operands):
    """Return a LoopView of each value that the graphs capture, the same at each iteration."""
    return [LoopView(builder.contiguous(builder.view(operand))) for operand in operands]


def _scan_output(builder, like, axis, backwards):
    """Return (a new view for a scan output like the Operand `like`, the LoopView of one iteration's slice of it).

    axis: that of the iterations, which fill it from its end if `backwards`.
    """
    shape = np.moveaxis(np.broadcast_to(np.empty((), like.dtype), like.shape), axis, 0).shape
    slices = builder.new(shape, like.dtype)
    stride = slices.strides[0]
    slice_ = LoopView(slices[-1, ...], -stride) if backwards else LoopView(slices[0, ...], stride)
    return np.moveaxis(slices, 0, axis), slice_


def emit_if(builder, node, inputs, outputs):
    """Emit a branch command that calls the program of one of the branches; False if a branch is not native."""
    control = node.run
    if not _is_native(control):
        return False
    views = [builder.new(o.shape, o.dtype) for o in outputs]
    sources, targets = _captured_views(builder, inputs[2:]), [LoopView(view) for view in views]
    calls = [_call_words(builder, control.plans[name], sources, targets) for name in ("then_branch", "else_branch")]
    _, flops, nbytes = max(calls, key=lambda call: call[1])
    builder.loops |= any(step.run.loops for plan in control.plans.values() for step in plan.unmetered_steps)
    condition = builder.contiguous(builder.view(inputs[1]))
    builder.emit("branch", condition, *calls[0][0], *calls[1][0], out=views[0], flops=flops, weights=nbytes)
    for operand, view in zip(outputs, views):
        builder.set(operand, view)
    return True


def emit_loop(builder, node, inputs, outputs):
    """Emit a loop command that calls the body's program; False if the body is not native."""
    control = node.run
    if not _is_native(control):
        return False
    plan, given = control.plans["body"], inputs[1 : 1 + control.n_inputs]
    trips, going, *initial = (*given, None, None)[: max(2, len(given))]
    states = _loop_states(builder, initial)
    index, truth = builder.new((), np.int64), builder.new((), np.bool_)
    scan_outputs = [_scan_output(builder, o, 0, False) for o in outputs[len(initial) :]]
    true = LoopView(builder.constant(np.array(True)))
    if control.trips is not None:
        trips, going = builder.constant(np.array(control.trips, np.int64)), None
    else:
        trips, going = (
            None if operand is None else builder.contiguous(builder.view(operand)) for operand in (trips, going)
        )
    captured = _captured_views(builder, inputs[1 + control.n_inputs :])
    _emit_loop_command(
        builder,
        plan,
        control.trips,
        trips,
        going,
        None if going is None else truth,
        index,
        [LoopView(index), true, *(state for state, _ in states), *captured],
        [LoopView(truth), *(new for _, new in states), *(slice_ for _, slice_ in scan_outputs)],
        states,
    )
    _set_results(builder, outputs, states, scan_outputs)
    return True


def emit_scan(builder, node, inputs, outputs):
    """Emit a loop command over the scanned inputs that calls the body's program; False if the body is not native."""
    control = node.run
    if not _is_native(control):
        return False
    plan, given = control.plans["body"], inputs[1 : 1 + control.n_inputs]
    scan = scan_settings([builder.view(o) for o in given], len(outputs), **control.attributes)
    states = _loop_states(builder, given[: len(scan.states)])
    slices = []
    for x in scan.inputs:
        if not x[0, ...].flags.c_contiguous:
            x = builder.contiguous(x)
        slices.append(LoopView(x[0, ...], x.strides[0]))
    scan_outputs = [
        _scan_output(builder, o, axis, backwards)
        for o, axis, backwards in zip(outputs[len(states) :], scan.output_axes, scan.output_directions)
    ]
    iterations = len(scan.inputs[0])
    trips, index = builder.constant(np.array(iterations, np.int64)), builder.new((), np.int64)
    captured = _captured_views(builder, inputs[1 + control.n_inputs :])
    _emit_loop_command(
        builder,
        plan,
        iterations,
        trips,
        None,
        None,
        index,
        [*(state for state, _ in states), *slices, *captured],
        [*(new for _, new in states), *(slice_ for _, slice_ in scan_outputs)],
        states,
    )
    _set_results(builder, outputs, states, scan_outputs)
    return True


def _set_results(builder, outputs, states, scan_outputs):
    """Give the node's outputs the views of the last states and of the scan outputs."""
    views = [*(state.view for state, _ in states), *(view for view, _ in scan_outputs)]
    for operand, view in zip(outputs, views):
        if operand is not None:
            builder.set(operand, view)


EMIT = {"If": emit_if, "Loop": emit_loop, "Scan": emit_scan}
