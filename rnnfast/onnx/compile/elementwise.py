"""Elementwise operators: each gives its output an expression, which becomes a command when a view of it is needed."""

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
# operator -> its name in the kernels
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
# operator -> the defaults of its alpha and beta
DEFAULTS = {"Elu": (1.0, 0.0), "LeakyRelu": (0.01, 0.0), "HardSigmoid": (0.2, 0.5)}
# operator -> (code, whether the operands are swapped)
COMPARISONS = {
    "Less": (LT, False),
    "LessOrEqual": (LE, False),
    "Greater": (LT, True),
    "GreaterOrEqual": (LE, True),
    "Equal": (EQ, False),
}
LOGIC = {"And": AND, "Or": OR}
# exponent -> the instruction whose results are as exact as those of NumPy's power
POWERS = {2.0: lambda x: Instruction(MUL, (x, x)), 1.0: lambda x: x, 0.5: lambda x: Instruction(SQRT, (x,))}


def _argument(builder, operand, shape):
    """Return the operand as an argument of an expression of this shape: its own expression if it has that shape and no
    other reader, otherwise a view.
    """
    if operand.expression is not None and operand.view is None and operand.uses == 1 and operand.shape == shape:
        return operand.expression.root
    return builder.view(operand)


def define(builder, out, make, inputs):
    """Give `out` the expression `make(*arguments)`; if one command cannot hold it, the arguments become views first."""
    expression = Expression(out, make(*[_argument(builder, operand, out.shape) for operand in inputs]))
    if not expression.is_small():
        expression = Expression(out, make(*map(builder.view, inputs)))
    builder.set_expression(out, expression)
    if out.dtype != np.float32:
        builder.set(out, expression.compute(builder))  # expressions are float32: values of other types are stored


# ------------------------------------------------------------------------------------------------ operators
def _are_float32(*operands):
    """Return whether all operands are present and float32."""
    return all(o is not None and o.dtype == np.float32 for o in operands)


def emit_unary(builder, node, inputs, outputs):
    """Set the expression of a function of one argument that has an instruction; False if it is not float32."""
    if not _are_float32(*inputs):
        return False
    define(builder, outputs[0], lambda x: Instruction(UNARY[node.op_type], (x,)), inputs)
    return True


def emit_function(builder, node, inputs, outputs):
    """Set the expression of an activation or transcendental function; False if it is not float32."""
    if not _are_float32(*inputs):
        return False
    alpha, beta = DEFAULTS.get(node.op_type, (0.0, 0.0))
    alpha, beta = node.attributes.get("alpha", alpha), node.attributes.get("beta", beta)
    code = _kernels.FUNCTIONS[FUNCTIONS[node.op_type]]
    define(builder, outputs[0], lambda x: Instruction(code, (x,), alpha, beta), inputs)
    return True


def emit_binary(builder, node, inputs, outputs):
    """Set the expression of an arithmetic operator; False if it is not float32 or broadcasts as before opset 7."""
    if (
        not _are_float32(*inputs)
        or {"axis", "broadcast"} & node.attributes.keys()
        or node.function is activations.prelu_1
    ):
        return False
    define(builder, outputs[0], lambda x, y: Instruction(BINARY[node.op_type], (x, y)), inputs)
    return True


def emit_variadic(builder, node, inputs, outputs):
    """Set the expression of Sum, Min or Max; False for types other than float32 and for more than 8 inputs."""
    if not _are_float32(*inputs) or len(inputs) > 8:
        return False

    def make(first, *others):
        for other in others:
            first = Instruction(VARIADIC[node.op_type], (first, other))
        return first

    define(builder, outputs[0], make, inputs)
    return True


def emit_comparison(builder, node, inputs, outputs):
    """Set the expression of a comparison; False if it is not of float32 or broadcasts as before opset 7."""
    if not _are_float32(*inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    code, swapped = COMPARISONS[node.op_type]
    define(builder, outputs[0], lambda x, y: Instruction(code, (y, x) if swapped else (x, y)), inputs)
    return True


def emit_logic(builder, node, inputs, outputs):
    """Set the expression of And or Or; False if it is not of bool or broadcasts as before opset 7."""
    if any(o.dtype != np.bool_ for o in inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    define(builder, outputs[0], lambda x, y: Instruction(LOGIC[node.op_type], (x, y)), inputs)
    return True


def emit_not(builder, node, inputs, outputs):
    """Set the expression of Not."""
    define(builder, outputs[0], lambda x: Instruction(NOT, (x,)), inputs)
    return True


def emit_where(builder, node, inputs, outputs):
    """Set the expression of Where; False if it does not choose between float32 values."""
    if not _are_float32(*inputs[1:]):
        return False
    define(builder, outputs[0], lambda c, x, y: Instruction(WHERE, (c, x, y)), inputs)
    return True


def emit_pow(builder, node, inputs, outputs):
    """Set the expression of Pow by a constant 2, 1 or 1/2; False for others, other types and broadcast results."""
    exponent = inputs[1].known
    if not _are_float32(inputs[0]) or exponent is None or exponent.size != 1 or outputs[0].shape != inputs[0].shape:
        return False
    power = POWERS.get(float(exponent.ravel()[0]))
    if power is None:
        return False
    define(builder, outputs[0], power, inputs[:1])
    return True


def emit_clip(builder, node, inputs, outputs):
    """Set the expression of Clip by constant bounds; False if a bound is computed or the input is not float32."""
    if not _are_float32(inputs[0]):
        return False
    bounds = [node.attributes.get("min", -FLOAT32_MAX), node.attributes.get("max", FLOAT32_MAX)]
    for i, operand in enumerate(inputs[1:]):
        if operand is not None:
            if operand.known is None:
                return False
            bounds[i] = operand.known

    def make(x):
        for code, bound in zip((MAX, MIN), bounds):
            x = Instruction(code, (x, builder.constant(np.asarray(bound, np.float32).reshape(()))))
        return x

    define(builder, outputs[0], make, inputs[:1])
    return True


def emit_cast(builder, node, inputs, outputs):
    """Set the expression of a cast to float32 or from bool, or a view if the type stays; False for other casts."""
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target:
        builder.set(outputs[0], builder.view(inputs[0]))
        return True
    exact = target == np.float32 and source in ITEMS or source == np.bool_ and target in ITEMS
    if not exact:
        return False
    define(builder, outputs[0], lambda x: x, inputs)
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
