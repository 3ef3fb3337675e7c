"""Elementwise operators: each gives its output an expression, which becomes a command when a view of it is needed."""

import math

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
    POWER,
    PRELU,
    RECIPROCAL,
    ROUND,
    SIGN,
    SQRT,
    SUB,
    WHERE,
    Expression,
    Instruction,
    number,
)
from rnnfast.onnx.ops import activations
from rnnfast.onnx.ops.numeric import is_half

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
VARIADIC = {"Sum": ADD, "Min": MIN, "Max": MAX, "Mean": ADD}
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
    "Sin": "Sin",
    "Cos": "Cos",
    "Tan": "Tan",
    "Atan": "Atan",
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
# Powers with exponents of these types may be computed in float32, which holds small integers exactly.
EXPONENTS = (np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64))
LARGEST_EXPONENT = 2**24


# ------------------------------------------------------------------------------------------------ compositions
def function(name, x, alpha=0.0, beta=0.0):
    """Return the instruction of a function of the kernels, a key of `_kernels.FUNCTIONS`."""
    return Instruction(_kernels.FUNCTIONS[name], (x,), alpha, beta)


def affine(x, factor, summand=-0.0):
    """Return factor * x + summand, rounded once. The product alone keeps the sign of zeros: -0 is added to it."""
    return function("Affine", x, factor, summand)


def _selu(builder, x, alpha=activations.SELU_ALPHA, gamma=activations.SELU_GAMMA):
    return affine(function("Elu", x, alpha), gamma)


def _celu(builder, x, alpha=1.0):
    """max(x, 0) + alpha * (exp(min(x, 0) / alpha) - 1)"""
    below = Instruction(NEG, (function("Relu", Instruction(NEG, (x,))),))
    return Instruction(ADD, (function("Relu", x), affine(function("Expm1", affine(below, 1 / alpha)), alpha)))


def _hard_swish(builder, x):
    return Instruction(MUL, (x, function("HardSigmoid", x, 1 / 6, 0.5)))


def _swish(builder, x, alpha=1.0):
    return Instruction(MUL, (x, function("Sigmoid", x if alpha == 1 else affine(x, alpha))))


def _mish(builder, x):
    return Instruction(MUL, (x, function("Tanh", function("Softplus", x))))


def _gelu(builder, x, approximate="none"):
    """x * (erf(x / sqrt(2)) / 2 + 1 / 2), or with tanh: x * sigmoid(2 * c * (x + 0.044715 * x^3)), c = sqrt(2 / pi)"""
    if approximate == "none":
        return Instruction(MUL, (x, affine(function("Erf", affine(x, math.sqrt(0.5))), 0.5, 0.5)))
    c = 2 * math.sqrt(2 / math.pi)
    inner = Instruction(MUL, (affine(Instruction(MUL, (x, x)), c * 0.044715, c), x))
    return Instruction(MUL, (x, function("Sigmoid", inner)))


def _thresholded_relu(builder, x, alpha=1.0):
    return Instruction(WHERE, (Instruction(LT, (number(builder, alpha), x)), x, number(builder, 0)))


def _shrink(builder, x, bias=0.0, lambd=0.5):
    above = Instruction(LT, (number(builder, lambd), x))
    below = Instruction(LT, (x, number(builder, -lambd)))
    rest = Instruction(WHERE, (above, affine(x, 1.0, -bias), number(builder, 0)))
    return Instruction(WHERE, (below, affine(x, 1.0, bias), rest))


def _asin(builder, x):
    """atan(x / sqrt((1 - x) * (1 + x)))"""
    both = Instruction(MUL, (affine(x, -1.0, 1.0), affine(x, 1.0, 1.0)))
    return function("Atan", Instruction(DIV, (x, Instruction(SQRT, (both,)))))


def _acos(builder, x):
    """2 * atan(sqrt((1 - x) / (1 + x)))"""
    ratio = Instruction(DIV, (affine(x, -1.0, 1.0), affine(x, 1.0, 1.0)))
    return affine(function("Atan", Instruction(SQRT, (ratio,))), 2.0)


def _is_inf(builder, x, detect_negative=1, detect_positive=1):
    if detect_negative and detect_positive:
        x = Instruction(ABS, (x,))
    elif not detect_negative and not detect_positive:
        return Instruction(LT, (x, x))
    return Instruction(EQ, (x, number(builder, math.inf if detect_positive else -math.inf)))


# Of Celu: what is lost of a result is at most 1.2e-38 of alpha.
LARGEST_ALPHA = 2.0**64
# operator -> function(builder, x, **attributes) that makes the expression of several instructions
COMPOSED = {
    "Acos": _acos,
    "Asin": _asin,
    "Celu": _celu,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "IsInf": _is_inf,
    "Mish": _mish,
    "Selu": _selu,
    "Shrink": _shrink,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}


def _argument(builder, operand, shape):
    """Return the operand as an argument of an expression of this shape: its own expression if it has that shape and no
    other reader, otherwise a view.
    """
    if operand.expression is not None and operand.view is None and operand.uses == 1 and operand.shape == shape:
        return operand.expression.root
    return builder.view(operand)


def define(builder, out, make, inputs):
    """Give `out` the expression `make(*arguments)`; if one command cannot hold it, the arguments become views first."""
    define_exact(builder, out, make, inputs)
    if out.dtype != np.float32:
        builder.set(out, out.expression.compute(builder))  # storing it rounds it to a value of the type


def define_exact(builder, out, make, inputs):
    """Give `out` an expression as `define` does, whose values are exact in the type of `out` and in float32."""
    expression = Expression(out, make(*[_argument(builder, operand, out.shape) for operand in inputs]))
    if not expression.is_small():
        expression = Expression(out, make(*map(builder.view, inputs)))
    builder.set_expression(out, expression)


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


def emit_composed(builder, node, inputs, outputs):
    """Set the expression of a function that takes several instructions; False if it is not float32, and for the alpha
    of Celu that is not positive, or so large that x / alpha may be a denormal, which counts as zero.
    """
    if not _are_float32(*inputs) or node.op_type == "Celu" and not 0 < node.attributes.get("alpha", 1) <= LARGEST_ALPHA:
        return False
    define(builder, outputs[0], lambda x: COMPOSED[node.op_type](builder, x, **node.attributes), inputs)
    return True


def emit_swiglu(builder, node, inputs, outputs):
    """Set the expression of SwiGLU; False if it is not float32."""
    if not _are_float32(*inputs):
        return False

    def make(a, b):
        return Instruction(MUL, (_swish(builder, a, **node.attributes), b))

    define(builder, outputs[0], make, inputs)
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
    """Set the expression of Sum, Min, Max or Mean; False for types other than float32 and for more than 8 inputs."""
    if not _are_float32(*inputs) or len(inputs) > 8:
        return False

    def make(first, *others):
        for other in others:
            first = Instruction(VARIADIC[node.op_type], (first, other))
        if node.op_type == "Mean":
            first = Instruction(DIV, (first, number(builder, len(inputs))))
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
    """Set the expression of Pow; False if the base is not float32, for exponents of other types or integers that a run
    computes or float32 does not hold, and for the broadcasting before opset 7.
    """
    x, y = inputs
    known = None if y.known is None else np.asarray(y.known)
    if not _are_float32(x) or y.dtype not in EXPONENTS or {"axis", "broadcast"} & node.attributes.keys():
        return False
    if known is not None and known.size == 1 and outputs[0].shape == x.shape:
        power = POWERS.get(float(known.ravel()[0]))
        if power is not None:
            define(builder, outputs[0], power, inputs[:1])
            return True
    if y.dtype != np.float32 and (known is None or known.size and np.abs(known).max() > LARGEST_EXPONENT):
        return False
    define(builder, outputs[0], lambda a, b: Instruction(POWER, (a, b)), inputs)
    return True


def emit_clip(builder, node, inputs, outputs):
    """Set the expression of Clip; False if it is not float32."""
    if not _are_float32(*[operand for operand in inputs if operand is not None]):
        return False
    bounds = [node.attributes.get("min", -FLOAT32_MAX), node.attributes.get("max", FLOAT32_MAX)]
    bounds = [number(builder, bound) for bound in bounds]
    for i, operand in enumerate(inputs[1:]):
        if operand is not None:
            bounds[i] = builder.reshaped(builder.view(operand), ())

    def make(x):
        for code, bound in zip((MAX, MIN), bounds):
            x = Instruction(code, (x, bound))
        return x

    define(builder, outputs[0], make, inputs[:1])
    return True


def emit_cast(builder, node, inputs, outputs):
    """Set the expression of a cast that float32 holds, or a view if the type stays; False for others.

    These casts are those from or to float32, from bool, from float16 or bfloat16, and of integers to float16, of which
    float32 holds each that does not become infinite.
    """
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target:
        builder.set(outputs[0], builder.view(inputs[0]))
        return True
    through_float32 = np.float32 in (source, target) or source == np.bool_ or is_half(source) or target == np.float16
    if not through_float32 or source.name not in ITEMS or target.name not in ITEMS:
        return False
    define(builder, outputs[0], lambda x: x, inputs[:1])
    return True


EMIT = (
    dict.fromkeys(UNARY, emit_unary)
    | dict.fromkeys(BINARY, emit_binary)
    | dict.fromkeys(VARIADIC, emit_variadic)
    | dict.fromkeys(FUNCTIONS, emit_function)
    | dict.fromkeys(COMPOSED, emit_composed)
    | dict.fromkeys(COMPARISONS, emit_comparison)
    | dict.fromkeys(LOGIC, emit_logic)
    | {
        "Not": emit_not,
        "Where": emit_where,
        "Pow": emit_pow,
        "Clip": emit_clip,
        "Cast": emit_cast,
        "CastLike": emit_cast,
        "SwiGLU": emit_swiglu,
    }
)
