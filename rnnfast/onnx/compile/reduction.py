"""Reductions, softmax and normalizations.

Values are reduced in the order of their logical positions, whatever their layout in memory (kernels/reduce.h).
"""

import math

import numpy as np

from rnnfast.onnx.compile import expressions
from rnnfast.onnx.compile.builder import AXES, NotNative, axes, merge_axes
from rnnfast.onnx.compile.elementwise import affine, define, function
from rnnfast.onnx.compile.expressions import ABS, ADD, DIV, EQ, MUL, SUB, WHERE, Instruction, number, written
from rnnfast.onnx.ops import activations, normalization

# The codes REDUCE_*, FINISH_* and ROWS_* of program.h, in its order
SUM, L1, SQUARES, PRODUCT, MAX, MIN, RANGE = range(7)
NOTHING, MEAN, SQRT, LOG = range(4)
SOFTMAX, LOG_SOFTMAX, STANDARDIZE = range(3)

# operator -> (reduction, finish)
REDUCTIONS = {
    "ReduceL1": (L1, NOTHING),
    "ReduceL2": (SQUARES, SQRT),
    "ReduceLogSum": (SUM, LOG),
    "ReduceMax": (MAX, NOTHING),
    "ReduceMean": (SUM, MEAN),
    "ReduceMin": (MIN, NOTHING),
    "ReduceProd": (PRODUCT, NOTHING),
    "ReduceSum": (SUM, NOTHING),
    "ReduceSumSquare": (SQUARES, NOTHING),
}
NORMS = {1: (L1, NOTHING), 2: (SQUARES, SQRT)}
GLOBAL = {"GlobalAveragePool": (SUM, MEAN), "GlobalMaxPool": (MAX, NOTHING)}
ROWS = {"Softmax": SOFTMAX, "LogSoftmax": LOG_SOFTMAX}


def _are_float32(*operands):
    """Return whether all operands that are present are float32 and have elements."""
    return all(o is None or o.dtype == np.float32 and 0 not in o.shape for o in operands)


# ------------------------------------------------------------------------------------------------ reductions
def reduced(builder, view, over, kind, finish, status=None):
    """Emit a reduce command; return its result, in which the axes `over` have length 1.

    The other axes keep the memory order that they have in `view`. status: where the command reports a result that is
    NaN; for reductions of all axes only. Raises NotNative if the other axes do not merge into few enough.
    """
    kept = [axis for axis in range(view.ndim) if axis not in over]
    order = sorted(kept, key=lambda axis: -(abs(view.strides[axis]) or math.inf))
    lines, strides = merge_axes([view.shape[axis] for axis in over], [view.strides[axis] for axis in over])
    outer = [axis for axis in order if view.shape[axis] > 1]
    across = bool(outer) and view.strides[outer[-1]] == view.itemsize
    in_row = len(lines) == 1 and (strides[0] == view.itemsize or lines[0] == 1)
    if not in_row and (not across or len(lines) > 2):
        return reduced_rows(builder, view, kept, over, kind, finish, status)
    out = builder.new([view.shape[axis] for axis in order])
    kept_layout = merge_axes(out.shape, [view.strides[axis] for axis in order], out.strides)
    _emit_reduce(builder, view, out, kind, finish, across and not in_row, kept_layout, lines, strides, status)
    result = out.transpose([order.index(axis) for axis in kept])
    return np.expand_dims(result, tuple(over))


def reduced_rows(builder, view, kept, over, kind, finish, status=None):
    """Emit a copy in which the axes `over` come last, and the reduce command on it; return the result of `reduced`."""
    moved = builder.contiguous(view.transpose(kept + list(over)))
    result = reduced(builder, moved, range(len(kept), view.ndim), kind, finish, status)
    return np.expand_dims(result.reshape(result.shape[: len(kept)]), tuple(over))


def _emit_reduce(builder, view, out, kind, finish, across, kept_layout, lines, strides, status):
    """Emit a reduce command. kept_layout: (shape, strides of view, strides of out) of the axes that stay."""
    shape, x_strides, out_strides = kept_layout
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    lines, strides = [1] * (2 - len(lines)) + lines, [0] * (2 - len(strides)) + strides
    builder.emit(
        "reduce",
        view,
        out,
        status,
        kind,
        finish,
        across,
        len(shape),
        *axes(shape),
        *axes([s // 4 for s in x_strides]),
        *axes([s // 4 for s in out_strides]),
        *lines,
        *(s // 4 for s in strides),
        out=out,
        flops=view.size,
    )


def axes_of(node, inputs):
    """Return the axes that a node reduces, counted from the front; None if they are not constant."""
    rank = len(inputs[0].shape)
    if len(inputs) > 1 and inputs[1] is not None:
        if inputs[1].known is None:
            return None
        given = inputs[1].known.ravel().tolist()
    else:
        given = node.attributes.get("axes") or ()
    if not given:
        return () if node.attributes.get("noop_with_empty_axes") else range(rank)
    return sorted(axis % rank for axis in given)


def emit_reduce(builder, node, inputs, outputs):
    """Emit a reduce command; False if the axes are not constant, for other types than float32, or without elements."""
    over = axes_of(node, inputs)
    if over is None or not _are_float32(inputs[0]):
        return False
    result = reduced(builder, builder.view(inputs[0]), over, *REDUCTIONS[node.op_type])
    builder.set(outputs[0], result.reshape(outputs[0].shape))
    return True


def emit_log_sum_exp(builder, node, inputs, outputs):
    """Emit the commands of m + log(sum(exp(x - m))), where m is the largest x, or 0 if that is infinite; False if the
    axes are not constant, for other types than float32, or without elements.
    """
    over = axes_of(node, inputs)
    if over is None or not _are_float32(inputs[0]):
        return False
    x = builder.view(inputs[0])
    peak = reduced(builder, x, over, MAX, NOTHING)
    infinite = Instruction(EQ, (Instruction(ABS, (peak,)), number(builder, math.inf)))
    shift = written(builder, Instruction(WHERE, (infinite, number(builder, 0), peak)), peak.shape)
    powers = written(builder, function("Exp", Instruction(SUB, (x, shift))), x.shape)
    logs = reduced(builder, powers, over, SUM, LOG)
    shape = outputs[0].shape
    logs, shift = builder.reshaped(logs, shape), builder.reshaped(shift, shape)
    define(builder, outputs[0], lambda: Instruction(ADD, (shift, logs)), [])
    return True


def emit_lp_normalization(builder, node, inputs, outputs):
    """Emit a reduce command for the norm and define x / norm, 0 where that is 0; False for scalars, other types than
    float32, or without elements.
    """
    if not _are_float32(inputs[0]) or not inputs[0].shape:
        return False
    x = builder.view(inputs[0])
    norm = reduced(builder, x, (node.attributes.get("axis", -1) % x.ndim,), *NORMS[node.attributes.get("p", 2)])
    zero = number(builder, 0)
    make = Instruction(WHERE, (Instruction(EQ, (norm, zero)), zero, Instruction(DIV, (x, norm))))
    define(builder, outputs[0], lambda: make, [])
    return True


def emit_global(builder, node, inputs, outputs):
    """Emit a reduce command over all spatial axes; False for other types than float32, or without elements."""
    if not _are_float32(inputs[0]):
        return False
    builder.set(
        outputs[0], reduced(builder, builder.view(inputs[0]), range(2, len(inputs[0].shape)), *GLOBAL[node.op_type])
    )
    return True


# ------------------------------------------------------------------------------------------------ rows
def emit_rows(builder, view, kind, epsilon=0.0):
    """Emit a rows command, which computes a function of each row along the last axis; return its contiguous result.

    Raises NotNative if the other axes do not merge into few enough.
    """
    if view.shape[-1] > 1 and view.strides[-1] != view.itemsize:
        view = builder.contiguous(view)
    out = builder.new(view.shape)
    shape, x_strides, out_strides = merge_axes(view.shape[:-1], view.strides[:-1], out.strides[:-1])
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    builder.emit(
        "rows",
        view,
        out,
        kind,
        float(epsilon),
        view.shape[-1],
        len(shape),
        *axes(shape),
        *axes([s // 4 for s in x_strides]),
        *axes([s // 4 for s in out_strides]),
        out=out,
        flops=out.size,
    )
    return out


def emit_softmax(builder, node, inputs, outputs):
    """Emit a rows command for Softmax or LogSoftmax, before opset 13 over all axes from `axis` on; False for scalars,
    other types than float32, or without elements.
    """
    shape = inputs[0].shape
    if not _are_float32(inputs[0]) or not shape:
        return False
    kind = ROWS[node.op_type]
    view = builder.view(inputs[0])
    if node.function is activations.OPS[node.op_type][1]:
        axis = node.attributes.get("axis", 1)
        outer = math.prod(shape[: axis + len(shape) if axis < 0 else axis])
        result = emit_rows(builder, builder.contiguous(view).reshape(outer, -1), kind).reshape(shape)
    else:
        axis = node.attributes.get("axis", -1) % len(shape)
        result = np.moveaxis(emit_rows(builder, np.moveaxis(view, axis, -1), kind), -1, axis)
    builder.set(outputs[0], result)
    return True


# ------------------------------------------------------------------------------------------------ normalizations
def _define_scaled(builder, out, y, scale, bias):
    """Give the operand `out` the expression y * scale + bias of views that broadcast to y; bias may be None."""
    scaled = Instruction(MUL, (y, scale))
    define(builder, out, lambda: scaled if bias is None else Instruction(ADD, (scaled, bias)), [])


def _per_channel(vector, rank):
    """Return a vector [C] shaped to broadcast along axis 1 of a tensor of this rank."""
    return vector.reshape(-1, *(1,) * (rank - 2))


def _only_first_used(outputs):
    """Return whether nothing reads the outputs after the first."""
    return all(o is None or not o.uses for o in outputs[1:])


def emit_layer_normalization(builder, node, inputs, outputs):
    """Emit a rows command and define its scaling; False for other types than float32, without elements, or if something
    reads the mean or the deviation.
    """
    if not _are_float32(*inputs) or not _only_first_used(outputs):
        return False
    shape = inputs[0].shape
    axis = node.attributes.get("axis", -1) % len(shape)
    view = builder.view(inputs[0])
    if axis < len(shape) - 1:
        view = builder.contiguous(view).reshape(*shape[:axis], -1)
    y = emit_rows(builder, view, STANDARDIZE, node.attributes.get("epsilon", normalization.EPSILON)).reshape(shape)
    scale, bias = [None if o is None else builder.view(o) for o in (*inputs[1:], None)[:2]]
    _define_scaled(builder, outputs[0], y, scale, bias)
    return True


def emit_rms_normalization(builder, node, inputs, outputs):
    """Emit a reduce command for the mean of squares and define x / sqrt(mean + epsilon) * scale; False for other types
    than float32, or without elements.
    """
    if not _are_float32(*inputs):
        return False
    shape = inputs[0].shape
    axis = node.attributes.get("axis", -1) % len(shape)
    x, scale = builder.view(inputs[0]), builder.view(inputs[1])
    mean = reduced(builder, x, range(axis, len(shape)), SQUARES, MEAN)
    epsilon = node.attributes.get("epsilon", normalization.EPSILON)
    scaled = Instruction(
        MUL, (Instruction(DIV, (x, Instruction(expressions.SQRT, (affine(mean, 1.0, epsilon),)))), scale)
    )
    define(builder, outputs[0], lambda: scaled, [])
    return True


def _emit_groups(builder, node, inputs, outputs, groups, scale, bias):
    """Emit a rows command over groups of channels and define its scaling per channel; return True."""
    shape = inputs[0].shape
    view = builder.contiguous(builder.view(inputs[0])).reshape(shape[0], groups, -1)
    y = emit_rows(builder, view, STANDARDIZE, node.attributes.get("epsilon", normalization.EPSILON)).reshape(shape)
    _define_scaled(builder, outputs[0], y, _per_channel(scale, len(shape)), _per_channel(bias, len(shape)))
    return True


def emit_instance_normalization(builder, node, inputs, outputs):
    """Normalize each channel; False for other types than float32, without elements, or without a spatial axis."""
    if not _are_float32(*inputs) or len(inputs[0].shape) < 3:
        return False
    scale, bias = builder.contiguous(builder.view(inputs[1])), builder.contiguous(builder.view(inputs[2]))
    return _emit_groups(builder, node, inputs, outputs, inputs[0].shape[1], scale, bias)


def emit_group_normalization(builder, node, inputs, outputs):
    """Normalize groups of channels; False if scale or bias, per group before opset 21, is not constant, for other types
    than float32, or without elements.
    """
    scale, bias = inputs[1].known, inputs[2].known
    if not _are_float32(*inputs) or scale is None or bias is None or len(inputs[0].shape) < 2:
        return False
    groups = node.attributes["num_groups"]
    repeats = inputs[0].shape[1] // groups if node.function is normalization.group_normalization_18 else 1
    scale, bias = (builder.constant(np.repeat(p, repeats)) for p in (scale, bias))
    return _emit_groups(builder, node, inputs, outputs, groups, scale, bias)


def emit_batch_normalization(builder, node, inputs, outputs):
    """Define x * factor + (bias - mean * factor) with the constant factor = scale / sqrt(variance + epsilon).

    False if a parameter is not constant, in training mode, for other types than float32, or without elements.
    """
    known = [None if o is None else o.known for o in inputs[1:]]
    if not _are_float32(*inputs) or any(v is None for v in known) or not _only_first_used(outputs):
        return False
    if node.attributes.get("training_mode"):
        return False
    scale, bias, mean, variance = (v.astype(np.float64) for v in known)
    with np.errstate(all="ignore"):
        scale = scale / np.sqrt(variance + node.attributes.get("epsilon", normalization.EPSILON))
        shift = (bias - mean * scale).astype(np.float32)
        scale = scale.astype(np.float32)
    if scale.ndim == 1 and (node.attributes.get("spatial", 1) or len(inputs[0].shape) == 2):
        scale, shift = (_per_channel(v, len(inputs[0].shape)) for v in (scale, shift))
    scale, shift = builder.constant(scale), builder.constant(shift)
    define(builder, outputs[0], lambda x: Instruction(ADD, (Instruction(MUL, (x, scale)), shift)), inputs[:1])
    return True


EMIT = (
    dict.fromkeys(REDUCTIONS, emit_reduce)
    | {"ReduceLogSumExp": emit_log_sum_exp, "LpNormalization": emit_lp_normalization}
    | dict.fromkeys(GLOBAL, emit_global)
    | dict.fromkeys(ROWS, emit_softmax)
    | {
        "LayerNormalization": emit_layer_normalization,
        "RMSNormalization": emit_rms_normalization,
        "InstanceNormalization": emit_instance_normalization,
        "GroupNormalization": emit_group_normalization,
        "BatchNormalization": emit_batch_normalization,
    }
)
