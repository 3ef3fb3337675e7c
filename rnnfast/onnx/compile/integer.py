"""Arithmetic and comparisons of integers, and casts between their types; elementwise.py has those of floats."""

import numpy as np

from rnnfast.onnx.compile.builder import AXES, NotNative, axes, broadcast, merge_axes

# Codes of program.h
COPY, ADD, SUB, MUL, LT, LE, EQ = range(7)
ITEMS = {np.dtype(t): i for i, t in enumerate((np.bool_, np.uint8, np.int8, np.int32, np.int64))}
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


def _emit(b, code, out, x, y):
    to = b.new(out.shape, out.dtype)
    if to.size:
        x, y = broadcast(x, to.shape), broadcast(y, to.shape)
        shape, *strides = merge_axes(to.shape, to.strides, x.strides, y.strides)
        if len(shape) > AXES:
            raise NotNative(f"{len(shape)} axes")
        b.emit(
            "integer",
            to,
            x,
            y,
            code,
            ITEMS[to.dtype],
            ITEMS[x.dtype],
            len(shape),
            *axes(shape),
            *(word for of_view in strides for word in axes(of_view)),
            out=to,
            flops=to.size,
        )
    b.set(out, to)


def emit_binary(b, node, inputs, outputs):
    if any(o.dtype not in ITEMS for o in inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    code, swapped = BINARY[node.op_type]
    x, y = b.view(inputs[0]), b.view(inputs[1])
    _emit(b, code, outputs[0], *((y, x) if swapped else (x, y)))
    return True


def emit_cast(b, node, inputs, outputs):
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target or source not in ITEMS or target not in ITEMS:
        return False
    x = b.view(inputs[0])
    _emit(b, COPY, outputs[0], x, x)
    return True


EMIT = dict.fromkeys(BINARY, emit_binary) | {"Cast": emit_cast}
