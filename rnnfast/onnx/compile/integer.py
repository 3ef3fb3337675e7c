"""Elementwise operators of integers, and casts between their types; elementwise.py has those of floats."""

import numpy as np

from rnnfast.onnx.compile.builder import AXES, NotNative, axes, broadcast, merge_axes

# The codes I_* of program.h, in its order
COPY, ADD, SUB, MUL, LT, LE, EQ, DIV, MOD, FMOD, MIN, MAX, AND, OR, XOR, SELECT = range(16)
ITEMS = {np.dtype(t): i for i, t in enumerate((np.bool_, np.uint8, np.int8, np.int32, np.int64))}  # INTEGER_*
# operator -> (code, whether the operands are swapped)
BINARY = {
    "Add": (ADD, False),
    "Sub": (SUB, False),
    "Mul": (MUL, False),
    "Div": (DIV, False),
    "Mod": (MOD, False),
    "Less": (LT, False),
    "Greater": (LT, True),
    "LessOrEqual": (LE, False),
    "GreaterOrEqual": (LE, True),
    "Equal": (EQ, False),
    "BitwiseAnd": (AND, False),
    "BitwiseOr": (OR, False),
    "BitwiseXor": (XOR, False),
    "Xor": (XOR, False),
}
VARIADIC = {"Min": MIN, "Max": MAX}
# operator -> the text of the error for a divisor of zero
DIVISIONS = {"Div": "integer division by zero", "Mod": "integer remainder of a division by zero"}


def _are_integers(*operands):
    """Return whether all operands that are present are integers or bools of a type that commands take."""
    return all(o is None or o.dtype in ITEMS for o in operands)


def computed(builder, code, to, x, y, condition=None, status=None):
    """Emit an integer command that writes to the view `to`, and return that.

    condition: the view of truth values of SELECT. Raises NotNative if there are too many axes.
    """
    if to.size:
        views = [broadcast(view, to.shape) for view in (x, y, x if condition is None else condition)]
        shape, *strides = merge_axes(to.shape, to.strides, *(view.strides for view in views))
        if len(shape) > AXES:
            raise NotNative(f"{len(shape)} axes")
        builder.emit(
            "integer",
            to,
            *views,
            status,
            code,
            ITEMS[to.dtype],
            ITEMS[x.dtype],
            len(shape),
            *axes(shape),
            *(word for view_strides in strides for word in axes(view_strides)),
            out=to,
            flops=to.size,
        )
    return to


def _emit(builder, code, out, x, y, condition=None, status=None):
    """Emit an integer command that computes the operand `out`."""
    builder.set(out, computed(builder, code, builder.new(out.shape, out.dtype), x, y, condition, status))


def emit_binary(builder, node, inputs, outputs):
    """Emit an integer command, which reports a divisor of zero; False for floating-point types and for the broadcasting
    before opset 7.
    """
    if not _are_integers(*inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    code, swapped = BINARY[node.op_type]
    if node.attributes.get("fmod"):
        code = FMOD
    status = None
    if node.op_type in DIVISIONS and (inputs[1].known is None or not inputs[1].known.all()):
        status = builder.status(DIVISIONS[node.op_type])
    x, y = builder.view(inputs[0]), builder.view(inputs[1])
    _emit(builder, code, outputs[0], *((y, x) if swapped else (x, y)), status=status)
    return True


def emit_variadic(builder, node, inputs, outputs):
    """Emit an integer command for each input but the first; False for floating-point types."""
    if not _are_integers(*inputs):
        return False
    y = builder.view(inputs[0])
    for operand in inputs[1:]:
        shape = outputs[0].shape
        y = computed(builder, VARIADIC[node.op_type], builder.new(shape, y.dtype), y, builder.view(operand))
    builder.set(outputs[0], y)
    return True


def emit_clip(builder, node, inputs, outputs):
    """Emit an integer command for each bound; False for floating-point types."""
    if not _are_integers(*inputs):
        return False
    y = builder.view(inputs[0])
    for code, bound in zip((MAX, MIN), inputs[1:]):
        if bound is not None:
            to = builder.new(outputs[0].shape, y.dtype)
            y = computed(builder, code, to, y, builder.reshaped(builder.view(bound), ()))
    builder.set(outputs[0], y)
    return True


def emit_sign(builder, node, inputs, outputs):
    """Emit integer commands for Neg, Abs, Sign or BitwiseNot; False for floating-point types and bools."""
    if not _are_integers(*inputs) or inputs[0].dtype == np.bool_:
        return False
    x, zero = builder.view(inputs[0]), builder.constant(np.zeros((), inputs[0].dtype))
    if node.op_type == "BitwiseNot":
        _emit(builder, XOR, outputs[0], x, builder.constant(np.asarray(np.invert(zero))))
    elif node.op_type == "Sign":
        signs = [builder.new(x.shape, x.dtype) for _ in range(2)]
        computed(builder, LT, signs[0], zero, x), computed(builder, LT, signs[1], x, zero)
        _emit(builder, SUB, outputs[0], *signs)
    elif node.op_type == "Abs" and x.dtype == np.uint8:
        builder.set(outputs[0], x)
    elif node.op_type == "Neg":
        _emit(builder, SUB, outputs[0], zero, x)
    else:
        _emit(builder, MAX, outputs[0], x, computed(builder, SUB, builder.new(x.shape, x.dtype), zero, x))
    return True


def emit_where(builder, node, inputs, outputs):
    """Emit an integer command that chooses; False for floating-point types."""
    if not _are_integers(*inputs[1:]):
        return False
    condition, x, y = map(builder.view, inputs)
    _emit(builder, SELECT, outputs[0], x, y, condition)
    return True


def emit_cast(builder, node, inputs, outputs):
    """Emit an integer command that converts; False for equal or floating-point types, which elementwise.py converts."""
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target or source not in ITEMS or target not in ITEMS:
        return False
    x = builder.view(inputs[0])
    _emit(builder, COPY, outputs[0], x, x)
    return True


EMIT = (
    dict.fromkeys(BINARY, emit_binary)
    | dict.fromkeys(VARIADIC, emit_variadic)
    | dict.fromkeys(("Abs", "BitwiseNot", "Neg", "Sign"), emit_sign)
    | {"Cast": emit_cast, "CastLike": emit_cast, "Clip": emit_clip, "Where": emit_where}
)
