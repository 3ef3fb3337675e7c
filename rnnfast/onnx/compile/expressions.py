"""Elementwise expressions: they grow until a value is wanted, then one command computes them."""

import numpy as np

from rnnfast.native import _kernels
from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile.builder import AXES, NotNative, axes, broadcast, merge_axes

# Codes of program.h
(
    SQRT,
    ABS,
    NEG,
    FLOOR,
    CEIL,
    ROUND,
    SIGN,
    RECIPROCAL,
    NOT,
    COPY,
    IS_NAN,
    ADD,
    SUB,
    MUL,
    DIV,
    MIN,
    MAX,
    LT,
    LE,
    EQ,
    AND,
    OR,
    PRELU,
    WHERE,
) = range(32, 56)
ITEMS = {np.dtype(t): i for i, t in enumerate((np.float32, np.bool_, np.int32, np.int64))}
FLOAT32_MAX = float(np.finfo(np.float32).max)
REGISTERS = 24
MAX_INPUTS = 12  # of an expression, so that instructions have registers too
MAX_INSTRUCTIONS = 32
FUSED = 1 << 17  # bytes of a convolution's outputs beyond which functions of them are computed line by line

NAMES = dict(
    zip(
        range(32, 56),
        (
            "sqrt",
            "abs",
            "neg",
            "floor",
            "ceil",
            "round",
            "sign",
            "reciprocal",
            "not",
            "copy",
            "is_nan",
            "add",
            "sub",
            "mul",
            "div",
            "min",
            "max",
            "less",
            "less_equal",
            "equal",
            "and",
            "or",
            "prelu",
            "where",
        ),
    )
)
NAMES |= {code: name.lower() for name, code in _kernels.FUNCTIONS.items()}


class Instruction:
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
    if not isinstance(e, Instruction):
        views[id(e)] = e
    elif id(e) not in calls:
        for arg in e.args:
            _visit(arg, views, calls)
        calls[id(e)] = e


class Expression:
    """What computes an operand: a tree of Instructions over views, or one view that is copied. `Builder.view` computes
    it when a view of the operand is first wanted, and not before, so that it can grow."""

    __slots__ = ("operand", "root")

    def __init__(self, operand, root):
        self.operand, self.root = operand, root

    def is_small(self):
        """Whether one command holds it."""
        views, instructions = _parts(self.root)
        return len(views) <= MAX_INPUTS and len(instructions) <= MAX_INSTRUCTIONS

    def compute(self, builder, view=None):
        """Emit the command that writes the operand to `view`, to a new one if none is given; return the view."""
        root, out = self.root, self.operand
        if not isinstance(root, Instruction):
            root = Instruction(COPY, (root,))
        views, instructions = _parts(root)
        lines = _lines(builder, out, views)
        reuses = (
            lines is not None and out.dtype == np.float32 and _last_use(builder, builder.convolved[0], instructions)
        )
        if view is None and reuses:
            view = builder.convolved[0].view[...]
        elif view is None:
            view = _like(builder, out, views)
        if view.size:
            _emit(builder, view, views, instructions, lines)
        return view


def emit_views(b, code, out, *views):
    """out = an instruction of views of its shape."""
    _emit(b, out, views, [Instruction(code, views)])


def _last_use(b, operand, calls):
    """Whether nothing but these instructions needs the operand."""
    uses = sum(any(arg is operand.view for arg in call.args) for call in calls)  # a step has one at most
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
    whole = [broadcast(v, out.shape) for v in views]
    strides = [[v.strides[i] for i in order] for v in (out, *whole)]
    shape, *strides = merge_axes(shape, *strides)
    if lines is not None:
        shape, strides = [lines, *shape], [[v.strides[2], *s] for v, s in zip((out, *whole), strides)]
    if len(shape) > AXES:
        raise NotNative(f"{len(shape)} axes")
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
            if isinstance(arg, Instruction) and last[id(arg)] == i:
                free.insert(0, register[id(arg)])
        register[id(call)] = free.pop(0)
        instructions += [
            call.code,
            register[id(call)],
            *args,
            *[0] * (3 - len(args)),
            float(call.alpha),
            float(call.beta),
        ]
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
        b.emit(
            "convolved",
            *b.nested(name, of_convolution),
            *b.nested("elementwise", words),
            out=out,
            flops=made.flops + flops,
            weights=made.nbytes,
            note=f"convolution {note}",
        )
