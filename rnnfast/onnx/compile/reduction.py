"""Reductions, softmax and normalisations.

The order in which values are reduced is that of their logical positions, whatever the layout (kernels/reduce.h).
"""

import math

import numpy as np

from rnnfast.onnx.compile.builder import AXES, NotNative, axes, merge_axes
from rnnfast.onnx.compile.elementwise import define
from rnnfast.onnx.compile.expressions import ADD, MUL, Instruction
from rnnfast.onnx.ops import activations, normalization

# Codes of program.h
SUM, L1, SQUARES, PRODUCT, MAX, MIN = range(6)
NOTHING, MEAN, SQRT, LOG = range(4)
SOFTMAX, LOG_SOFTMAX, STANDARDIZE = range(3)

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
GLOBAL = {"GlobalAveragePool": (SUM, MEAN), "GlobalMaxPool": (MAX, NOTHING)}
ROWS = {"Softmax": SOFTMAX, "LogSoftmax": LOG_SOFTMAX}


def _floats(*operands):
    """Whether all that are present are float32 and have elements."""
    return all(o is None or o.dtype == np.float32 and 0 not in o.shape for o in operands)


# ------------------------------------------------------------------------------------------------ reductions
def reduced(b, view, over, kind, finish):
    """A view with the axes `over` reduced to length 1; the others lie in memory as those of `view` do."""
    kept = [axis for axis in range(view.ndim) if axis not in over]
    order = sorted(kept, key=lambda axis: -(abs(view.strides[axis]) or math.inf))
    lines, strides = merge_axes([view.shape[axis] for axis in over], [view.strides[axis] for axis in over])
    outer = [axis for axis in order if view.shape[axis] > 1]
    across = bool(outer) and view.strides[outer[-1]] == view.itemsize
    in_row = len(lines) == 1 and (strides[0] == view.itemsize or lines[0] == 1)
    if not in_row and (not across or len(lines) > 2):
        return reduced_rows(b, view, kept, over, kind, finish)
    out = b.new([view.shape[axis] for axis in order])
    of_kept = merge_axes(out.shape, [view.strides[axis] for axis in order], out.strides)
    _emit_reduce(b, view, out, kind, finish, across and not in_row, of_kept, lines, strides)
    result = out.transpose([order.index(axis) for axis in kept])
    return np.expand_dims(result, tuple(over))


def reduced_rows(b, view, kept, over, kind, finish):
    """The same, of a copy in which the axes that are reduced lie behind the others."""
    moved = b.contiguous(view.transpose(kept + list(over)))
    result = reduced(b, moved, range(len(kept), view.ndim), kind, finish)
    return np.expand_dims(result.reshape(result.shape[: len(kept)]), tuple(over))


def _emit_reduce(b, view, out, kind, finish, across, of_kept, lines, strides):
    shape, x_strides, out_strides = of_kept
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    lines, strides = [1] * (2 - len(lines)) + lines, [0] * (2 - len(strides)) + strides
    b.emit(
        "reduce",
        view,
        out,
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


def _axes(node, inputs):
    """The axes that a reduction is over, counted from the front; None where they are not known."""
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


def emit_reduce(b, node, inputs, outputs):
    over = _axes(node, inputs)
    if over is None or not _floats(inputs[0]):
        return False
    result = reduced(b, b.view(inputs[0]), over, *REDUCTIONS[node.op_type])
    b.set(outputs[0], result.reshape(outputs[0].shape))
    return True


def emit_global(b, node, inputs, outputs):
    if not _floats(inputs[0]):
        return False
    b.set(outputs[0], reduced(b, b.view(inputs[0]), range(2, len(inputs[0].shape)), *GLOBAL[node.op_type]))
    return True


# ------------------------------------------------------------------------------------------------ rows
def rows(b, view, kind, epsilon=0.0):
    """The function of each row along the last axis, contiguous."""
    if view.shape[-1] > 1 and view.strides[-1] != view.itemsize:
        view = b.contiguous(view)
    out = b.new(view.shape)
    shape, x_strides, out_strides = merge_axes(view.shape[:-1], view.strides[:-1], out.strides[:-1])
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    b.emit(
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


def emit_softmax(b, node, inputs, outputs):
    """Before opset 13 over all axes from `axis` on."""
    shape = inputs[0].shape
    if not _floats(inputs[0]) or not shape:
        return False
    kind = ROWS[node.op_type]
    view = b.view(inputs[0])
    if node.function is activations.OPS[node.op_type][1]:
        axis = node.attributes.get("axis", 1)
        outer = math.prod(shape[: axis + len(shape) if axis < 0 else axis])
        result = rows(b, b.contiguous(view).reshape(outer, -1), kind).reshape(shape)
    else:
        axis = node.attributes.get("axis", -1) % len(shape)
        result = np.moveaxis(rows(b, np.moveaxis(view, axis, -1), kind), -1, axis)
    b.set(outputs[0], result)
    return True


# ------------------------------------------------------------------------------------------------ normalisations
def _define_scaled(b, out, y, scale, bias):
    """The operand `out` is y * scale + bias: views that broadcast to y; bias may be None."""
    scaled = Instruction(MUL, (y, scale))
    define(b, out, lambda: scaled if bias is None else Instruction(ADD, (scaled, bias)), [])


def _per_channel(vector, rank):
    """A vector [C] that broadcasts along axis 1."""
    return vector.reshape(-1, *(1,) * (rank - 2))


def _only_first(outputs):
    return all(o is None or not o.uses for o in outputs[1:])


def emit_layer_normalization(b, node, inputs, outputs):
    if not _floats(*inputs) or not _only_first(outputs):
        return False
    shape = inputs[0].shape
    axis = node.attributes.get("axis", -1) % len(shape)
    view = b.view(inputs[0])
    if axis < len(shape) - 1:
        view = b.contiguous(view).reshape(*shape[:axis], -1)
    y = rows(b, view, STANDARDIZE, node.attributes.get("epsilon", normalization.EPSILON)).reshape(shape)
    scale, bias = [None if o is None else b.view(o) for o in (*inputs[1:], None)[:2]]
    _define_scaled(b, outputs[0], y, scale, bias)
    return True


def _emit_groups(b, node, inputs, outputs, groups, scale, bias):
    shape = inputs[0].shape
    view = b.contiguous(b.view(inputs[0])).reshape(shape[0], groups, -1)
    y = rows(b, view, STANDARDIZE, node.attributes.get("epsilon", normalization.EPSILON)).reshape(shape)
    _define_scaled(b, outputs[0], y, _per_channel(scale, len(shape)), _per_channel(bias, len(shape)))
    return True


def emit_instance_normalization(b, node, inputs, outputs):
    if not _floats(*inputs) or len(inputs[0].shape) < 3:
        return False
    scale, bias = b.contiguous(b.view(inputs[1])), b.contiguous(b.view(inputs[2]))
    return _emit_groups(b, node, inputs, outputs, inputs[0].shape[1], scale, bias)


def emit_group_normalization(b, node, inputs, outputs):
    """With constant scale and bias, before opset 21 of each group."""
    scale, bias = inputs[1].known, inputs[2].known
    if not _floats(*inputs) or scale is None or bias is None or len(inputs[0].shape) < 2:
        return False
    groups = node.attributes["num_groups"]
    repeats = inputs[0].shape[1] // groups if node.function is normalization.group_normalization_18 else 1
    scale, bias = (b.constant(np.repeat(p, repeats)) for p in (scale, bias))
    return _emit_groups(b, node, inputs, outputs, groups, scale, bias)


def emit_batch_normalization(b, node, inputs, outputs):
    """x * scale + shift with constants: scale / sqrt(variance + epsilon), bias - mean * that."""
    known = [None if o is None else o.known for o in inputs[1:]]
    if not _floats(*inputs) or any(v is None for v in known) or not _only_first(outputs):
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
    scale, shift = b.constant(scale), b.constant(shift)
    define(b, outputs[0], lambda x: Instruction(ADD, (Instruction(MUL, (x, scale)), shift)), inputs[:1])
    return True


EMIT = (
    dict.fromkeys(REDUCTIONS, emit_reduce)
    | dict.fromkeys(GLOBAL, emit_global)
    | dict.fromkeys(ROWS, emit_softmax)
    | {
        "LayerNormalization": emit_layer_normalization,
        "InstanceNormalization": emit_instance_normalization,
        "GroupNormalization": emit_group_normalization,
        "BatchNormalization": emit_batch_normalization,
    }
)
