"""Running sums and products, and reductions of integers, which are their last values."""

import math

import numpy as np

from rnnfast.onnx.compile import reduction
from rnnfast.onnx.compile.builder import AXES, NotNative, axes, merge_axes
from rnnfast.onnx.compile.indexing import ORDERED
from rnnfast.onnx.compile.integer import ADD, ITEMS, MAX, MIN, MUL

# operator -> (code, the value that an exclusive one begins with)
RUNNING = {"CumSum": (ADD, 0), "CumProd": (MUL, 1)}
REDUCTIONS = {"ReduceMax": MAX, "ReduceMin": MIN, "ReduceProd": MUL, "ReduceSum": ADD}


def _emit(builder, code, to, x, axis):
    """Emit a running command along an axis of views of one shape; raises NotNative if there are too many axes."""
    n, step = x.shape[axis], x.strides[axis]
    others = [i for i in range(x.ndim) if i != axis]
    order = sorted(others, key=lambda i: -abs(x.strides[i]))
    shape, to_strides, x_strides = merge_axes(*([v[i] for i in order] for v in (x.shape, to.strides, x.strides)))
    if abs(step) <= abs(x_strides[-1]):  # each line of the axis is done as a whole
        shape, to_strides, x_strides = [*shape, 1], [*to_strides, 0], [*x_strides, 0]
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
    builder.emit(
        "running",
        to,
        x,
        code,
        ORDERED[x.dtype],
        n,
        to.strides[axis],
        step,
        len(shape),
        *axes(shape),
        *axes(to_strides),
        *axes(x_strides),
        out=to,
        flops=x.size,
    )


def emit_running(builder, node, inputs, outputs):
    """Emit a running command; False for an axis that is not constant, for other types, or without elements."""
    x, axis = inputs[0], inputs[1].known
    if axis is None or x.dtype not in ORDERED or x.dtype == np.bool_ or 0 in x.shape:
        return False
    code, first = RUNNING[node.op_type]
    axis = int(axis.ravel()[0]) % len(x.shape)
    y = builder.new(x.shape, x.dtype)
    before = (slice(None),) * axis
    ordered = (*before, slice(None, None, -1 if node.attributes.get("reverse") else 1))
    to, source = y[ordered], builder.view(x)[ordered]
    if node.attributes.get("exclusive"):
        builder.copy(to[(*before, slice(0, 1))], builder.constant(np.array(first, x.dtype)))
        to, source = to[(*before, slice(1, None))], source[(*before, slice(0, -1))]
    if to.size:
        _emit(builder, code, to, source, axis)
    builder.set(outputs[0], y)
    return True


def emit_reduce(builder, node, inputs, outputs):
    """Emit a running command whose sums are all stored at one place; False for axes that are not constant, for types
    other than integers, or without elements.
    """
    over = reduction.axes_of(node, inputs)
    if over is None or inputs[0].dtype not in ITEMS or 0 in inputs[0].shape:
        return False
    x = builder.view(inputs[0])
    kept = [axis for axis in range(x.ndim) if axis not in over]
    n = math.prod(x.shape[axis] for axis in over)
    moved = builder.reshaped(x.transpose([*kept, *over]), (*(x.shape[axis] for axis in kept), n))
    y = builder.new(moved.shape[:-1], x.dtype)
    _emit(builder, REDUCTIONS[node.op_type], np.broadcast_to(y[..., None], moved.shape), moved, len(kept))
    builder.set(outputs[0], y.reshape(outputs[0].shape))
    return True


EMIT = dict.fromkeys(RUNNING, emit_running) | dict.fromkeys(REDUCTIONS, emit_reduce)
