"""Elementwise expressions: they grow until a view of the result is needed, then one command computes them."""

import numpy as np

from rnnfast.native import _kernels
from rnnfast.onnx.compile.builder import AXES, NotNative, axes, broadcast, memory_of, merge_axes

# The codes E_* of program.h, in its order
FIRST_CODE = 32
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
    POWER,
    QUANTIZE,
    QUANTIZE_BYTE,
    ROUND_TO,
) = range(FIRST_CODE, FIRST_CODE + 28)
# code -> the name that profiles show
NAMES = {
    SQRT: "sqrt",
    ABS: "abs",
    NEG: "neg",
    FLOOR: "floor",
    CEIL: "ceil",
    ROUND: "round",
    SIGN: "sign",
    RECIPROCAL: "reciprocal",
    NOT: "not",
    COPY: "copy",
    IS_NAN: "is_nan",
    ADD: "add",
    SUB: "sub",
    MUL: "mul",
    DIV: "div",
    MIN: "min",
    MAX: "max",
    LT: "less",
    LE: "less_equal",
    EQ: "equal",
    AND: "and",
    OR: "or",
    PRELU: "prelu",
    WHERE: "where",
    POWER: "power",
    QUANTIZE: "quantize",
    QUANTIZE_BYTE: "quantize_byte",
    ROUND_TO: "round_to",
}
QUANTISERS = frozenset((QUANTIZE, QUANTIZE_BYTE, ROUND_TO))
NAMES |= {code: name.lower() for name, code in _kernels.FUNCTIONS.items()}
# ITEM_* of program.h; by name, because bfloat16 is a type of another package
ITEMS = {
    name: i
    for i, name in enumerate(
        ("float32", "bool", "int32", "int64", "uint8", "int8", "uint16", "int16", "float16", "bfloat16")
    )
}
FLOAT32_MAX = float(np.finfo(np.float32).max)
REGISTERS = 24  # of program.h
MAX_INPUTS = 12  # of an expression, so that instructions have registers too
MAX_INSTRUCTIONS = 32
FEW_INSTRUCTIONS = 1  # computing so many in another memory order takes no longer than a copy to that order
MIN_FUSED_BYTES = 1 << 17  # bytes of outputs: from this size on, elementwise functions are fused into a convolution


class Instruction:
    """An instruction of an elementwise command; its arguments are the results of others, or views.

    status: where it reports NaN, or None. step: the operand that the instruction's step computes; a step may have
    several instructions.
    """

    __slots__ = ("code", "args", "alpha", "beta", "status", "step")

    def __init__(self, code, args, alpha=0.0, beta=0.0, status=None):
        self.code, self.args, self.alpha, self.beta, self.status, self.step = code, args, alpha, beta, status, None


def _parts(root):
    """Return the views and instructions of an expression, each once, in the order of evaluation."""
    views, instructions = {}, {}
    _visit(root, views, instructions)
    return list(views.values()), list(instructions.values())


def _visit(part, views, instructions):
    """Add a part of an expression, after its arguments, to the dicts by id."""
    if not isinstance(part, Instruction):
        views[id(part)] = part
    elif id(part) not in instructions:
        for arg in part.args:
            _visit(arg, views, instructions)
        instructions[id(part)] = part


class Expression:
    """A tree of Instructions over views, or one view to copy, that gives the value of an operand.

    `Builder.view` computes it when a view of the operand is first needed, and not before, so that it can grow.
    """

    __slots__ = ("operand", "root")

    def __init__(self, operand, root):
        self.operand, self.root = operand, root

    def is_small(self):
        """Return whether one command can hold the expression."""
        views, instructions = _parts(self.root)
        for instruction in instructions:
            if instruction.step is None:
                instruction.step = self.operand
        return len(views) <= MAX_INPUTS and len(instructions) <= MAX_INSTRUCTIONS

    def is_fast_in(self, view):
        """Return whether the memory order of a view costs little: the arguments have it, or there is little to compute.

        Otherwise the innermost axis of the view may be short, and the arguments are read across their own.
        """
        views, instructions = _parts(self.root)
        whole = [v for v in views if v.shape == view.shape and 0 not in v.strides]
        inner = {_innermost(v) for v in whole}
        few = len(instructions) <= FEW_INSTRUCTIONS and all(i.code not in QUANTISERS for i in instructions)
        few = few and all(v.dtype == np.float32 for v in whole)
        return few or not inner or _innermost(view) in inner

    def compute(self, builder, view=None):
        """Emit the command that writes the operand to `view`, or to a new view; return that view."""
        root, out = self.root, self.operand
        if not isinstance(root, Instruction):
            root = Instruction(COPY, (root,))
        views, instructions = _parts(root)
        lines = _fusable_lines(builder, out, views, view)
        in_place = (
            lines is not None
            and out.dtype == np.float32
            and _is_last_use(builder, builder.last_convolution[0], instructions)
        )
        if view is None and in_place:
            view = builder.last_convolution[0].view[...]
        elif view is None:
            view = _new_like(builder, out, views)
        if view.size:
            _emit(builder, view, views, instructions, lines)
        return view


def _innermost(view):
    """Return the axis along which neighbours in memory lie."""
    return min((i for i in range(view.ndim) if view.shape[i] > 1), key=lambda i: abs(view.strides[i]), default=None)


def emit_views(builder, code, out, *views):
    """Emit one instruction that writes to `out` from views of its shape."""
    _emit(builder, out, views, [Instruction(code, views)])


def number(builder, value):
    """Return the view of a constant."""
    return builder.constant(np.array(value, np.float32))


def written(builder, root, shape):
    """Emit the command of an expression of views, whose value has this shape; return the view of it."""
    out = builder.new(shape)
    _emit(builder, out, *_parts(root))
    return out


def _is_last_use(builder, operand, instructions):
    """Return whether nothing but these instructions reads the operand."""
    steps = {id(i.step) for i in instructions if any(arg is operand.view for arg in i.args)}
    return len(steps) == operand.uses and builder.operands_of(operand.view) == {id(operand)}


def _fusable_lines(builder, out, views, view):
    """Return how many lines `out` has if it can be computed line by line with the last convolution, else None.

    Commands may have come since: then they have nothing to do with the arguments, and with the view of `out`, which is
    None if the builder chooses it.
    """
    if builder.last_convolution is None:
        return None
    operand, convolution, index = builder.last_convolution
    if not all(builder.is_untouched(v, index) for v in (*views, *([] if view is None else [view]))):
        return None
    n, lines = convolution.shape[:2]
    convolution_views = [v for v in views if memory_of(v) is memory_of(convolution)]
    whole = operand.shape == out.shape and len(convolution_views) == 1 and convolution_views[0] is operand.view
    if not whole or convolution.nbytes < MIN_FUSED_BYTES or convolution.size == n * lines or n > 1:
        return None
    return lines


def _new_like(builder, out, views):
    """Return a new view for the operand `out`, with the axes in the memory order of the first argument of its shape."""
    same = [v for v in views if v.shape == out.shape and 0 not in v.strides]
    if not same or same[0].flags.c_contiguous:
        return builder.new(out.shape, out.dtype)
    order = sorted(range(len(out.shape)), key=lambda i: -abs(same[0].strides[i]))
    view = builder.new([out.shape[i] for i in order], out.dtype)
    return view.transpose(np.argsort(order))


def _emit(builder, out, views, instructions, lines=None):
    """Emit an elementwise command.

    With `lines`, the number of lines of out [1, C, lines, W], replace the last convolution by a command that also
    computes this expression after each line.

    Raises NotNative if there are too many axes.
    """
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
    words = [len(shape), *axes(shape, 1), len(views), len(instructions), out, ITEMS[out.dtype.name], *axes(strides[0])]
    for view, view_strides in zip(views, strides[1:]):
        words += [view, ITEMS[view.dtype.name], *axes(view_strides)]
    words += _instruction_words(views, instructions)
    flops = sum(instruction.code != COPY for instruction in instructions) * out.size
    note = " ".join(NAMES[instruction.code] for instruction in instructions)
    if lines is None:
        builder.emit("elementwise", *words, out=out, flops=flops, note=note)
    else:
        index = builder.last_convolution[2]
        name, convolution_words = builder.commands[index]
        convolution_note = builder.notes[index]
        builder.last_convolution = None
        builder.emit(
            "convolved",
            *builder.nested(name, convolution_words),
            *builder.nested("elementwise", words),
            out=out,
            flops=convolution_note.flops + flops,
            weights=convolution_note.nbytes,
            note=f"convolution {note}",
            at=index,
        )


def _instruction_words(views, instructions):
    """Return the words of the instructions. Each result gets a register, which is free again after its last use."""
    register = {id(v): i for i, v in enumerate(views)}
    last_use = {id(arg): i for i, instruction in enumerate(instructions) for arg in instruction.args}
    free = list(range(len(views), REGISTERS))
    words = []
    for i, instruction in enumerate(instructions):
        args = [register[id(arg)] for arg in instruction.args]
        for arg in {id(arg): arg for arg in instruction.args}.values():
            if isinstance(arg, Instruction) and last_use[id(arg)] == i:
                free.insert(0, register[id(arg)])
        register[id(instruction)] = free.pop(0)
        words += [instruction.code, register[id(instruction)], *args, *[0] * (3 - len(args))]
        words += [float(instruction.alpha), float(instruction.beta), instruction.status]
    return words
