"""Elementwise operators: expressions that grow until a value is wanted, then one command."""
import numpy as np

from rnnfast.native import _kernels
from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile.builder import AXES, Unfit, axes, merged, spread
from rnnfast.onnx.ops import activations

# Codes of program.h
(SQRT, ABS, NEG, FLOOR, CEIL, ROUND, SIGN, RECIPROCAL, NOT, COPY, IS_NAN, ADD, SUB, MUL, DIV, MIN, MAX, LT, LE, EQ, AND,
 OR, PRELU, WHERE) = range(32, 56)
ITEMS = {np.dtype(t): i for i, t in enumerate((np.float32, np.bool_, np.int32, np.int64))}
FLOAT32_MAX = float(np.finfo(np.float32).max)
REGISTERS = 24
MAX_INPUTS = 12         # of an expression, so that instructions have registers too
MAX_INSTRUCTIONS = 32
FUSED = 1 << 17         # bytes of a convolution's outputs beyond which functions of them are computed line by line

UNARY = {"Sqrt": SQRT, "Abs": ABS, "Neg": NEG, "Floor": FLOOR, "Ceil": CEIL, "Round": ROUND, "Sign": SIGN,
         "Reciprocal": RECIPROCAL, "IsNaN": IS_NAN}
BINARY = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV, "PRelu": PRELU}
VARIADIC = {"Sum": ADD, "Min": MIN, "Max": MAX}
FUNCTIONS = {"Exp": "Exp", "Erf": "Erf", "Sigmoid": "Sigmoid", "Tanh": "Tanh", "Softplus": "Softplus", "Relu": "Relu",
             "Elu": "Elu", "LeakyRelu": "LeakyRelu", "HardSigmoid": "HardSigmoid", "Softsign": "Softsign", "Log": "Log"}
DEFAULTS = {"Elu": (1.0, 0.0), "LeakyRelu": (0.01, 0.0), "HardSigmoid": (0.2, 0.5)}
COMPARISONS = {"Less": (LT, False), "LessOrEqual": (LE, False), "Greater": (LT, True), "GreaterOrEqual": (LE, True),
               "Equal": (EQ, False)}
LOGIC = {"And": AND, "Or": OR}
# What multiplication by itself, square roots and reciprocals give as exactly as NumPy's power.
POWERS = {2.0: lambda x: _Call(MUL, (x, x)), 1.0: lambda x: x, 0.5: lambda x: _Call(SQRT, (x,))}


NAMES = dict(zip(range(32, 56), ("sqrt", "abs", "neg", "floor", "ceil", "round", "sign", "reciprocal", "not", "copy",
                                 "is_nan", "add", "sub", "mul", "div", "min", "max", "less", "less_equal", "equal",
                                 "and", "or", "prelu", "where")))
NAMES |= {code: name.lower() for name, code in _kernels.FUNCTIONS.items()}


class _Call:
    """An instruction on the results of others and on views."""
    __slots__ = ("code", "args", "alpha", "beta")

    def __init__(self, code, args, alpha=0.0, beta=0.0):
        self.code, self.args, self.alpha, self.beta = code, args, alpha, beta


def _parts(expression):
    """(views, instructions) of an expression, each once, in the order of evaluation."""
    views, calls = {}, {}
    _visit(expression, views, calls)
    return list(views.values()), list(calls.values())


def _visit(e, views, calls):
    if not isinstance(e, _Call):
        views[id(e)] = e
    elif id(e) not in calls:
        for arg in e.args:
            _visit(arg, views, calls)
        calls[id(e)] = e


def _argument(b, operand, shape):
    """What an expression of this shape takes of an operand."""
    if operand.expression is not None and operand.view is None and operand.uses == 1 and operand.shape == shape:
        return operand.expression
    return b.view(operand)


def _define(b, out, make, inputs):
    """`make` of the arguments is the operand's expression; where that grows too large, of views."""
    args = [_argument(b, operand, out.shape) for operand in inputs]
    expression = make(*args)
    views, calls = _parts(expression)
    if len(views) > MAX_INPUTS or len(calls) > MAX_INSTRUCTIONS:
        expression = make(*map(b.view, inputs))
    b.set_expression(out, expression)
    if out.dtype != np.float32:
        b.set(out, computed(b, out))        # truth values and integers only as they are stored


def computed(b, out, view=None):
    """The view, a new one if none is given, of an operand whose expression is computed now."""
    expression = out.expression
    if not isinstance(expression, _Call):
        expression = _Call(COPY, (expression,))
    views, calls = _parts(expression)
    lines = _lines(b, out, views)
    if view is None and lines is not None and _last_use(b, b.convolved[0], calls) and out.dtype == np.float32:
        view = b.convolved[0].view[...]
    elif view is None:
        view = _like(b, out, views)
    if view.size:
        _emit(b, view, views, calls, lines)
    return view


def emit_views(b, code, out, *views):
    """out = an instruction of views of its shape."""
    _emit(b, out, views, [_Call(code, views)])


def _last_use(b, operand, calls):
    """Whether nothing but these instructions needs the operand."""
    uses = sum(any(arg is operand.view for arg in call.args) for call in calls)     # a step has one at most
    return uses == operand.uses and b.holders(operand.view) == {id(operand)}


def _lines(b, out, views):
    """How many lines a convolution has of which this is done at once, one after the other; None if that cannot be."""
    if b.convolved is None:
        return None
    operand, convolved = b.convolved
    n, lines = convolved.shape[:2]
    of_convolution = [v for v in views if owner(v) is owner(convolved)]
    whole = operand.shape == out.shape and len(of_convolution) == 1 and of_convolution[0] is operand.view
    if not whole or convolved.nbytes < FUSED or convolved.size == n * lines or n > 1:
        return None
    return lines


def _like(b, out, views):
    """A new view whose axes lie in memory as those of the largest argument do."""
    same = [v for v in views if v.shape == out.shape and 0 not in v.strides]
    if not same or same[0].flags.c_contiguous:
        return b.new(out.shape, out.dtype)
    order = sorted(range(len(out.shape)), key=lambda i: -abs(same[0].strides[i]))
    view = b.new([out.shape[i] for i in order], out.dtype)
    return view.transpose(np.argsort(order))


def _emit(b, out, views, calls, lines=None):
    """lines: of [1, C, lines, W], done with the convolution that is the last command."""
    order = sorted(range(out.ndim), key=lambda i: -out.strides[i])
    if lines is not None:
        order.remove(2)
    shape = [out.shape[i] for i in order]
    whole = [spread(v, out.shape) for v in views]
    strides = [[v.strides[i] for i in order] for v in (out, *whole)]
    shape, *strides = merged(shape, *strides)
    if lines is not None:
        shape, strides = [lines, *shape], [[v.strides[2], *s] for v, s in zip((out, *whole), strides)]
    if len(shape) > AXES:
        raise Unfit(f"{len(shape)} axes")
    register = {id(v): i for i, v in enumerate(views)}
    last = {}
    for i, call in enumerate(calls):
        for arg in call.args:
            last[id(arg)] = i
    free = list(range(len(views), REGISTERS))
    instructions = []
    for i, call in enumerate(calls):
        args = [register[id(arg)] for arg in call.args]
        for arg in {id(arg): arg for arg in call.args}.values():
            if isinstance(arg, _Call) and last[id(arg)] == i:
                free.insert(0, register[id(arg)])
        register[id(call)] = free.pop(0)
        instructions += [call.code, register[id(call)], *args, *[0] * (3 - len(args)), float(call.alpha), float(call.beta)]
    words = [len(shape), *axes(shape, 1), len(views), len(calls), out, ITEMS[out.dtype], *axes(strides[0])]
    for view, of_view in zip(views, strides[1:]):
        words += [view, ITEMS[view.dtype], *axes(of_view)]
    words += instructions
    flops, note = sum(c.code != COPY for c in calls) * out.size, " ".join(NAMES[call.code] for call in calls)
    if lines is None:
        b.emit("elementwise", *words, out=out, flops=flops, note=note)
    else:
        name, of_convolution = b.commands.pop()
        made = b.notes.pop()
        b.emit("convolved", *b.nested(name, of_convolution), *b.nested("elementwise", words), out=out,
               flops=made.flops + flops, weights=made.nbytes, note=f"convolution {note}")


# ------------------------------------------------------------------------------------------------ operators
def _floats(*operands):
    return all(o is not None and o.dtype == np.float32 for o in operands)


def emit_unary(b, node, inputs, outputs):
    if not _floats(*inputs):
        return False
    _define(b, outputs[0], lambda x: _Call(UNARY[node.op_type], (x,)), inputs)
    return True


def emit_function(b, node, inputs, outputs):
    if not _floats(*inputs):
        return False
    alpha, beta = DEFAULTS.get(node.op_type, (0.0, 0.0))
    alpha, beta = node.attributes.get("alpha", alpha), node.attributes.get("beta", beta)
    code = _kernels.FUNCTIONS[FUNCTIONS[node.op_type]]
    _define(b, outputs[0], lambda x: _Call(code, (x,), alpha, beta), inputs)
    return True


def emit_binary(b, node, inputs, outputs):
    if not _floats(*inputs) or {"axis", "broadcast"} & node.attributes.keys() or node.function is activations.prelu_1:
        return False
    _define(b, outputs[0], lambda x, y: _Call(BINARY[node.op_type], (x, y)), inputs)
    return True


def emit_variadic(b, node, inputs, outputs):
    if not _floats(*inputs) or len(inputs) > 8:
        return False

    def make(first, *others):
        for other in others:
            first = _Call(VARIADIC[node.op_type], (first, other))
        return first
    _define(b, outputs[0], make, inputs)
    return True


def emit_comparison(b, node, inputs, outputs):
    if not _floats(*inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    code, swapped = COMPARISONS[node.op_type]
    _define(b, outputs[0], lambda x, y: _Call(code, (y, x) if swapped else (x, y)), inputs)
    return True


def emit_logic(b, node, inputs, outputs):
    if any(o.dtype != np.bool_ for o in inputs) or {"axis", "broadcast"} & node.attributes.keys():
        return False
    _define(b, outputs[0], lambda x, y: _Call(LOGIC[node.op_type], (x, y)), inputs)
    return True


def emit_not(b, node, inputs, outputs):
    _define(b, outputs[0], lambda x: _Call(NOT, (x,)), inputs)
    return True


def emit_where(b, node, inputs, outputs):
    if not _floats(*inputs[1:]):
        return False
    _define(b, outputs[0], lambda c, x, y: _Call(WHERE, (c, x, y)), inputs)
    return True


def emit_pow(b, node, inputs, outputs):
    exponent = inputs[1].known
    if not _floats(inputs[0]) or exponent is None or exponent.size != 1 or outputs[0].shape != inputs[0].shape:
        return False
    power = POWERS.get(float(exponent.ravel()[0]))
    if power is None:
        return False
    _define(b, outputs[0], power, inputs[:1])
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
            x = _Call(code, (x, b.constant(np.asarray(bound, np.float32).reshape(()))))
        return x
    _define(b, outputs[0], make, inputs[:1])
    return True


def emit_cast(b, node, inputs, outputs):
    source, target = inputs[0].dtype, outputs[0].dtype
    if source == target:
        b.set(outputs[0], b.view(inputs[0]))
        return True
    exact = target == np.float32 and source in ITEMS or source == np.bool_ and target in ITEMS
    if not exact:
        return False
    _define(b, outputs[0], lambda x: x, inputs)
    return True


EMIT = (dict.fromkeys(UNARY, emit_unary) | dict.fromkeys(BINARY, emit_binary) | dict.fromkeys(VARIADIC, emit_variadic)
        | dict.fromkeys(FUNCTIONS, emit_function) | dict.fromkeys(COMPARISONS, emit_comparison)
        | dict.fromkeys(LOGIC, emit_logic)
        | {"Not": emit_not, "Where": emit_where, "Pow": emit_pow, "Clip": emit_clip, "Cast": emit_cast})
