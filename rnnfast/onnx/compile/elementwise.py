"""Elementwise operators: each defines an expression, which is computed when a value is wanted."""

import numpy as np

from rnnfast.native import _kernels
from rnnfast.onnx.compile.expressions import (
    ABS,
    ADD,
    AND,
    CEIL,
    DIV,
    EQ,
    FLOAT32_MAX,
    FLOOR,
    IS_NAN,
    ITEMS,
    LE,
    LT,
    MAX,
    MIN,
    MUL,
    NEG,
    NOT,
    OR,
    PRELU,
    RECIPROCAL,
    ROUND,
    SIGN,
    SQRT,
    SUB,
    WHERE,
    Expression,
    Instruction,
)
from rnnfast.onnx.ops import activations

UNARY = {
    "Sqrt": SQRT,
    "Abs": ABS,
    "Neg": NEG,
    "Floor": FLOOR,
    "Ceil": CEIL,
    "Round": ROUND,
    "Sign": SIGN,
    "Reciprocal": RECIPROCAL,
    "IsNaN": IS_NAN,
}
BINARY = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV, "PRelu": PRELU}
VARIADIC = {"Sum": ADD, "Min": MIN, "Max": MAX}
FUNCTIONS = {
    "Exp": "Exp",
    "Erf": "Erf",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Softplus": "Softplus",
    "Relu": "Relu",
    "Elu": "Elu",
    "LeakyRelu": "LeakyRelu",
    "HardSigmoid": "HardSigmoid",
    "Softsign": "Softsign",
    "Log": "Log",
}
DEFAULTS = {"Elu": (1.0, 0.0), "LeakyRelu": (0.01, 0.0), "HardSigmoid": (0.2, 0.5)}
COMPARISONS = {
    "Less": (LT, False),
    "LessOrEqual": (LE, False),
    "Greater": (LT, True),
    "GreaterOrEqual": (LE, True),
    "Equal": (EQ, False),
}
LOGIC = {"And": AND, "Or": OR}
# What multiplication by itself, square roots and reciprocals give as exactly as NumPy's power.
POWERS = {2.0: lambda x: Instruction(MUL, (x, x)), 1.0: lambda x: x, 0.5: lambda x: Instruction(SQRT, (x,))}


def _argument(b, operand, shape):
    """What an expression of this shape takes of an operand."""
    if operand.expression is not None and operand.view is None and operand.uses == 1 and operand.shape == shape:
        return operand.expression.root
    return b.view(operand)


def define(b, out, make, inputs):
    """`make` of the arguments is the operand's expression; where that grows too large, of views."""
    expression = Expression(out, make(*[_argument(b, operand, out.shape) for operand in inputs]))
    if not expression.is_small():
        expression = Expression(out, make(*map(b.view, inputs)))
    b.set_expression(out, expression)
    if out.dtype != np.float32:
        b.set(out, expression.compute(b))  # truth values and integers only as they are stored


# ------------------------------------------------------------------------------------------------ operators
def _floats(*operands):
    return all(o is not None and o.dtype == np.float32 for o in operands)


def emit_unary(b, node, inputs, outputs):
    if not _floats(*inputs):
        return False
    define(b, outputs[0], lambda x: Instruction(UNARY[node.op_type], (x,)), inputs)
    return True


def emit_function(b, node, inputs, outputs):
    if not _floats(*inputs):
        return False
    alpha, beta = DEFAULTS.get(node.op_type, (0.0, 0.0))
    alpha, beta = node.attributes.get("alpha", alpha), node.attributes.get("beta", beta)
    code = _kernels.FUNCTIONS[FUNCTIONS[node.op_type]]
    define(b, outputs[0], lambda x: Instruction(code, (x,), alpha, beta), inputs)
    return True


def emit_binary(b, node, inputs, outputs):
    if not _floats(*inputs) or {"axis", "broadcast"} & node.attributes.keys() or node.function is activations.prelu_1:
        return False
    define(b, outputs[0], lambda x, y: Instruction(BINARY[node.op_type], (x, y)), inputs)
    return True


def emit_variadic(b, node, inputs, outputs):
    if not _floats(*inputs) or len(inputs) > 8:
        return False

    def make(first, *others):
        for other in others:
            first = Instruction(VARIADIC[node.op_type], (first, other))
        return first

    define(b, outputs[0], make, inputs)
    return True


def emit_comparison(b, node, inputs, outputs):
    if not _floats(*inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    code, swapped = COMPARISONS[node.op_type]
    define(b, outputs[0], lambda x, y: Instruction(code, (y, x) if swapped else (x, y)), inputs)
    return True


def emit_logic(b, node, inputs, outputs):
    if any(o.dtype != np.bool_ for o in inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    define(b, outputs[0], lambda x, y: Instruction(LOGIC[node.op_type], (x, y)), inputs)
    return True


def emit_not(b, node, inputs, outputs):
    define(b, outputs[0], lambda x: Instruction(NOT, (x,)), inputs)
    return True


def emit_where(b, node, inputs, outputs):
    if not _floats(*inputs[1:]):
        return False
    define(b, outputs[0], lambda c, x, y: Instruction(WHERE, (c, x, y)), inputs)
    return True


def emit_pow(b, node, inputs, outputs):
    exponent = inputs[1].known
    if not _floats(inputs[0]) or exponent is None or exponent.size != 1 or outputs[0].shape != inputs[0].shape:
        return False
    power = POWERS.get(float(exponent.ravel()[0]))
    if power is None:
        return False
    define(b, outputs[0], power, inputs[:1])
    return True


def emit_clip(b, node, inputs, outputs):
    if not _floats(inputs[0]):
        return False
    bounds = [node.attributes.get("min", -FLOAT32_MAX), node.attributes.get("max", FLOAT32_MAX)]
    for i, operand in enumerate(inputs[1:]):
        if operand is not None:
            if operand.known is None:
                return False
            bounds[i] = operand.known

    def make(x):
        for code, bound in zip((MAX, MIN), bounds):
            x = Instruction(code, (x, b.constant(np.asarray(bound, np.float32).reshape(()))))
        return x

    define(b, outputs[0], make, inputs[:1])
    return True


def emit_cast(b, node, inputs, outputs):
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target:
        b.set(outputs[0], b.view(inputs[0]))
        return True
    exact = target == np.float32 and source in ITEMS or source == np.bool_ and target in ITEMS
    if not exact:
        return False
    define(b, outputs[0], lambda x: x, inputs)
    return True


EMIT = (
    dict.fromkeys(UNARY, emit_unary)
    | dict.fromkeys(BINARY, emit_binary)
    | dict.fromkeys(VARIADIC, emit_variadic)
    | dict.fromkeys(FUNCTIONS, emit_function)
    | dict.fromkeys(COMPARISONS, emit_comparison)
    | dict.fromkeys(LOGIC, emit_logic)
    | {"Not": emit_not, "Where": emit_where, "Pow": emit_pow, "Clip": emit_clip, "Cast": emit_cast}
)
