"""Arithmetic and comparisons of integers, and casts between their types; elementwise.py has those of floats."""

import numpy as np

from rnnfast.onnx.compile.builder import AXES, NotNative, axes, broadcast, merge_axes

# The codes I_* of program.h, in its order
COPY, ADD, SUB, MUL, LT, LE, EQ = range(7)
ITEMS = {np.dtype(t): i for i, t in enumerate((np.bool_, np.uint8, np.int8, np.int32, np.int64))}  # INTEGER_*
# operator -> (code, whether the operands are swapped)
BINARY = {
    "Add": (ADD, False),
    "Sub": (SUB, False),
    "Mul": (MUL, False),
    "Less": (LT, False),
    "Greater": (LT, True),
    "LessOrEqual": (LE, False),
    "GreaterOrEqual": (LE, True),
    "Equal": (EQ, False),
}


def _emit(builder, code, out, x, y):
    """Emit an integer command that computes the operand `out`; raises NotNative if there are too many axes."""
    to = builder.new(out.shape, out.dtype)
    if to.size:
        x, y = broadcast(x, to.shape), broadcast(y, to.shape)
        shape, *strides = merge_axes(to.shape, to.strides, x.strides, y.strides)
        if len(shape) > AXES:
            raise NotNative(f"{len(shape)} axes")
        builder.emit(
            "integer",
            to,
            x,
            y,
            code,
            ITEMS[to.dtype],
            ITEMS[x.dtype],
            len(shape),
            *axes(shape),
            *(word for view_strides in strides for word in axes(view_strides)),
            out=to,
            flops=to.size,
        )
    builder.set(out, to)


def emit_binary(builder, node, inputs, outputs):
    """Emit an integer command; False for floating-point types and for the broadcasting before opset 7."""
    if any(o.dtype not in ITEMS for o in inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    code, swapped = BINARY[node.op_type]
    x, y = builder.view(inputs[0]), builder.view(inputs[1])
    _emit(builder, code, outputs[0], *((y, x) if swapped else (x, y)))
    return True


def emit_cast(builder, node, inputs, outputs):
    """Emit an integer command that converts; False for equal or floating-point types, which elementwise.py converts."""
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target or source not in ITEMS or target not in ITEMS:
        return False
    x = builder.view(inputs[0])
    _emit(builder, COPY, outputs[0], x, x)
    return True


EMIT = dict.fromkeys(BINARY, emit_binary) | {"Cast": emit_cast}
