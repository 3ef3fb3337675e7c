"""Linear quantisers, and products and convolutions of 8-bit integers.

Integers are float32 here: each that float32 holds exactly, which are those up to 2^24, so that sums of products of them
are exact in any order. What could be more is left to NumPy, or computed in two parts.
"""

import math

import numpy as np

from rnnfast.native import _kernels
from rnnfast.onnx.compile import integer
from rnnfast.onnx.compile.builder import CONSTANT, Operand
from rnnfast.onnx.compile.convolution import cached, convolve, two_axes
from rnnfast.onnx.compile.dense import emit_product, view_of_rows
from rnnfast.onnx.compile.elementwise import affine, define, define_exact
from rnnfast.onnx.compile.expressions import (
    ADD,
    COPY,
    DIV,
    FLOOR,
    MAX,
    MIN,
    MUL,
    QUANTIZE,
    QUANTIZE_BYTE,
    ROUND,
    ROUND_TO,
    SUB,
    WHERE,
    Expression,
    Instruction,
    emit_views,
    number,
    written,
)
from rnnfast.onnx.compile.reduction import MAX as LARGEST
from rnnfast.onnx.compile.reduction import NOTHING, RANGE, reduced
from rnnfast.onnx.ops.quantize import NOT_A_NUMBER

FLOAT32 = np.dtype(np.float32)
INTEGERS = frozenset(map(np.dtype, (np.uint8, np.int8, np.uint16, np.int16)))
BYTES = frozenset(map(np.dtype, (np.uint8, np.int8)))
AFFINE = _kernels.FUNCTIONS["Affine"]
ONE = np.ones((), np.float32)
EXACT = 2**24  # float32 holds all integers up to it
LARGEST_BYTE = 255  # the largest difference of an 8-bit integer and its zero point
PART = 16  # a larger sum of products is computed of floor(x / PART) and the rest of it
# Scales between these keep quotients of denormals below half a step, and products away from infinity.
SCALES = (1e-30, 1e30)
LARGEST_BOUND = 1e38  # bounds of values up to it say that these are finite


# ------------------------------------------------------------------------------------------------ parameters
def _known(operand):
    """Return the array of an operand that is known when a plan is made; None for others."""
    return None if operand is None or operand.known is None else np.asarray(operand.known)


def _are_scales(*arrays):
    """Return whether arrays are known float32 scales of a usual size."""
    return all(
        a is not None and a.dtype == FLOAT32 and a.size and np.all((a >= SCALES[0]) & (a <= SCALES[1])) for a in arrays
    )


def _along(array, rank, axis):
    """Return a parameter shaped to broadcast: one for all, or one for each index of an axis."""
    if array.size == 1 and array.ndim <= 1:
        return array.reshape(())
    return array.reshape(-1, *(1,) * (rank - axis % rank - 1))


def _plus(builder, x, array):
    """Return x plus a constant of integers, given as an array that broadcasts to it."""
    if not array.any():
        return x
    if array.ndim:
        return Instruction(ADD, (x, builder.constant(np.asarray(array, np.float32))))
    number = float(array)
    if isinstance(x, Instruction) and x.code == AFFINE and x.alpha == 1 and x.beta == -number:
        return x.args[0]  # a zero point that was just added
    return affine(x, 1.0, number)


def _equal(view, array):
    """Return whether a view of a constant has the values of an array."""
    return view.shape == array.shape and np.array_equal(view, array)


def _times(builder, x, array):
    """Return x times a constant, given as an array that broadcasts to it."""
    if isinstance(x, Instruction) and x.code == QUANTIZE and _equal(x.args[1], array):
        return Instruction(ROUND_TO, x.args, x.alpha, x.beta, x.status)
    if array.ndim == 0:
        return affine(x, float(array))
    return Instruction(MUL, (x, builder.constant(np.asarray(array, np.float32))))


def _quantised(builder, x, scale, zero, dtype, status=None):
    """Return round(x / scale) + zero in the range of `dtype`.

    scale and zero are constant arrays that broadcast to x, zero has one element. status: where NaN is reported.
    """
    scale = np.asarray(scale, np.float32)
    low, high = (float(limit) - float(zero) for limit in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    args = x, builder.constant(scale), builder.constant(np.asarray(1 / scale))
    return _plus(builder, Instruction(QUANTIZE, args, low, high, status), zero)


def _quantised_by_zeros(builder, x, scale, zero, dtype):
    """Return what `_quantised` does for several zero points, an array that broadcasts to x."""
    limits = np.iinfo(dtype)
    y = Instruction(ROUND, (Instruction(DIV, (x, builder.constant(np.asarray(scale, np.float32)))),))
    y = Instruction(MAX, (_plus(builder, y, zero), number(builder, limits.min)))
    return Instruction(MIN, (y, number(builder, limits.max)))


# ------------------------------------------------------------------------------------------------ NaN
def _bound(builder, part):
    """Return a bound of the magnitude of an expression's finite values, or None if they may be something else."""
    if not isinstance(part, Instruction):
        if part.dtype.kind in "iub":
            return 1 if part.dtype.kind == "b" else 2.0 ** (8 * part.dtype.itemsize)
        if builder.allocation_of(part).kind == CONSTANT and part.size <= 4096 and np.isfinite(part).all():
            return float(np.abs(part).max(initial=0))
        return None
    if part.code in (QUANTIZE, ROUND_TO):  # of NaN nothing is computed: it is refused
        step = float(part.args[1].max()) if part.code == ROUND_TO else 1
        return max(abs(part.alpha), abs(part.beta)) * step
    bounds = [_bound(builder, arg) for arg in part.args]
    if None in bounds:
        return None
    found = {
        ADD: sum,
        SUB: sum,
        MUL: math.prod,
        MAX: max,
        MIN: max,
        ROUND: lambda b: b[0] + 1,
        WHERE: lambda b: max(b[1:]),
        _kernels.FUNCTIONS["Relu"]: max,
        _kernels.FUNCTIONS["LeakyRelu"]: lambda b: b[0] * max(1.0, abs(part.alpha)),
        _kernels.FUNCTIONS["Sigmoid"]: lambda b: 1.0,
        _kernels.FUNCTIONS["Tanh"]: lambda b: 1.0,
        AFFINE: lambda b: b[0] * abs(part.alpha) + abs(part.beta),
    }.get(part.code)
    bound = None if found is None else found(bounds)
    return bound if bound is not None and bound <= LARGEST_BOUND else None


def _row(builder, view):
    """Return a view of all elements as one row [N], in the order of memory; a copy is emitted where they have gaps."""
    flat = view.transpose(sorted(range(view.ndim), key=lambda i: -abs(view.strides[i])))
    return builder.reshaped(flat, (math.prod(view.shape),))


# ------------------------------------------------------------------------------------------------ quantisers
def emit_quantize(builder, node, inputs, outputs):
    """Set the expression of QuantizeLinear, whose values are the integers; False for a scale or zero point that is not
    known, blocks, other types than float32 and integers of 8 and 16 bits, and without elements.
    """
    x, scale, zero = inputs[0], _known(inputs[1]), _known(inputs[2]) if len(inputs) > 2 else np.zeros((), np.uint8)
    settings = {"axis": 1, "block_size": 0, "precision": None} | node.attributes
    if x.dtype != FLOAT32 or 0 in x.shape or outputs[0].dtype not in INTEGERS or settings["block_size"]:
        return False
    if zero is None or not _are_scales(scale) or scale.ndim > 1 or settings["precision"] not in (None, FLOAT32):
        return False
    if zero.size and np.all(zero == zero.flat[0]):
        zero = zero.flat[0].reshape(())
    scale, zero = (_along(array, len(x.shape), settings["axis"]) for array in (scale, zero))
    dtype, bounded = outputs[0].dtype, x.view is None and x.expression is not None
    bounded = bounded and _bound(builder, x.expression.root) is not None
    status = None if bounded else builder.status(NOT_A_NUMBER)
    if zero.ndim:
        if status is not None:
            reduced(builder, _row(builder, builder.view(x)), (0,), LARGEST, NOTHING, status)
        define_exact(builder, outputs[0], lambda x: _quantised_by_zeros(builder, x, scale, zero, dtype), [x])
    else:
        define_exact(builder, outputs[0], lambda x: _quantised(builder, x, scale, zero, dtype, status), [x])
    return True


def emit_dequantize(builder, node, inputs, outputs):
    """Set the expression of DequantizeLinear; False for a scale or zero point that is not known, blocks, and other
    types than integers of 8, 16 and 32 bits and float32.
    """
    x, scale = inputs[0], _known(inputs[1])
    zero = _known(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else np.zeros((), x.dtype)
    settings = {"axis": 1, "block_size": 0} | node.attributes
    if x.dtype not in INTEGERS | {np.dtype(np.int32)} or outputs[0].dtype != FLOAT32 or settings["block_size"]:
        return False
    if zero is None or not _are_scales(scale) or scale.ndim > 1:
        return False
    scale, zero = (_along(array, len(x.shape), settings["axis"]) for array in (scale, zero.astype(np.float32)))
    define(builder, outputs[0], lambda x: _times(builder, _plus(builder, x, -zero), scale), [x])
    return True


def emit_dynamic_quantize(builder, node, inputs, outputs):
    """Emit a reduction to the scale and the zero point, and set the expression of the integers; False for other types
    than float32, and without elements.
    """
    x = inputs[0]
    if x.dtype != FLOAT32 or 0 in x.shape:
        return False
    row = _row(builder, builder.view(x))
    found = reduced(builder, np.broadcast_to(row, (2, row.size)), (1,), RANGE, NOTHING, builder.status(NOT_A_NUMBER))
    scale, point = (builder.reshaped(found[i : i + 1], ()) for i in range(2))
    define_exact(builder, outputs[0], lambda x: Instruction(QUANTIZE_BYTE, (x, scale, point)), [x])
    if outputs[1] is not None:
        define_exact(builder, outputs[1], lambda: affine(scale, 1.0), [])
    if outputs[2] is not None:
        define_exact(builder, outputs[2], lambda: affine(point, 1.0), [])
    return True


# ------------------------------------------------------------------------------------------------ products
def _centred(builder, operand, zero):
    """Return an operand of float32: x less its zero point, of which there is one, or None."""
    shape = operand.shape
    centred = Operand(np.broadcast_to(np.float32(0), shape), False)
    centred.uses = 1

    def make(x):
        known = _known(zero)
        if zero is None or known is not None:
            return _plus(builder, x, np.zeros(()) if zero is None else -known.astype(np.float32).reshape(()))
        return Instruction(SUB, (x, builder.reshaped(builder.view(zero), ())))

    define(builder, centred, make, [operand])
    return centred


def _sums(builder, node, x, x_zero, shape):
    """Emit products of x less its zero point and the packed weights; return the views of one or two results.

    Of two, the sums are PART times the first plus the second one. None if the weights are not packed, the sums are too
    large, or x has several zero points.
    """
    matrix, largest = getattr(node.run, "packed", None) or (None, math.inf)
    if matrix is None or builder.target.blas or x.dtype not in BYTES or not x.shape or 0 in shape:
        return None
    if PART * largest > EXACT or x_zero is not None and math.prod(x_zero.shape) != 1:
        return None
    view = view_of_rows(builder, _centred(builder, x, x_zero))
    parts = [view]
    if LARGEST_BYTE * largest > EXACT:
        high = written(builder, Instruction(FLOOR, (affine(view, 1 / PART),)), view.shape)
        parts = [high, written(builder, Instruction(SUB, (view, affine(high, float(PART)))), view.shape)]
    sums = [builder.new(shape) for _ in parts]
    for part, to in zip(parts, sums):
        emit_product(builder, matrix, to, part)
    return sums


def emit_matmul_integer(builder, node, inputs, outputs):
    """Emit product commands; False if B is not a known matrix, or the sums are too large for float32."""
    out = outputs[0]
    sums = _sums(builder, node, inputs[0], inputs[2] if len(inputs) > 2 else None, out.shape)
    if sums is None:
        return False
    if len(sums) == 1:
        builder.set_expression(out, Expression(out, sums[0]))
        builder.largest[id(out)] = LARGEST_BYTE * node.run.packed[1]
        return True
    high, low = (builder.new(out.shape, out.dtype) for _ in sums)
    emit_views(builder, COPY, high, sums[0]), emit_views(builder, COPY, low, sums[1])
    factor = builder.constant(np.array(PART, out.dtype))
    integer.computed(builder, integer.MUL, high, high, factor)
    builder.set(out, integer.computed(builder, integer.ADD, high, high, low))
    return True


def emit_add(builder, node, inputs, outputs):
    """Set the expression of the sum of a product of integers and a constant; False for all else, and if float32 does
    not hold the sum.
    """
    products = [x for x in inputs if id(x) in builder.largest and x.expression is not None]
    constants = [_known(x) for x in inputs if x not in products]
    if len(products) != 1 or constants[0] is None or {"axis", "broadcast"} & node.attributes.keys():
        return False
    added = constants[0].astype(np.float64)
    if builder.largest[id(products[0])] + np.abs(added).max(initial=0) > EXACT:
        return False

    def make(x):
        return Instruction(ADD, (x, builder.constant(added.astype(np.float32))))

    define_exact(builder, outputs[0], make, products)
    return True


def emit_qlinear_matmul(builder, node, inputs, outputs):
    """Emit a product command, and set the expression of the quantised sums; False for the reasons of MatMulInteger, and
    if scales or zero points are not known.
    """
    x, x_scale, x_zero, _, w_scale, _, y_scale, y_zero = inputs
    scales, zero = [_known(s) for s in (x_scale, w_scale, y_scale)], _known(y_zero)
    if not _are_scales(*scales) or scales[0].size != 1 or scales[2].size != 1 or scales[1].ndim > 1:
        return False
    if zero is None or zero.size != 1 or outputs[0].dtype not in BYTES:
        return False
    sums = _sums(builder, node, x, x_zero, outputs[0].shape)
    if sums is None:
        return False
    # The sum of both parts is rounded once, as the integer would be.
    whole = sums[0] if len(sums) == 1 else Instruction(ADD, (affine(sums[0], float(PART)), sums[1]))
    factor = np.asarray(scales[0].reshape(()) * scales[1] / scales[2].reshape(()))
    factor = factor.reshape(()) if factor.size == 1 else factor
    zero = zero.reshape(())

    def make():
        return _quantised(builder, _times(builder, whole, factor), ONE, zero, outputs[0].dtype)

    define_exact(builder, outputs[0], make, [])
    return True


# ------------------------------------------------------------------------------------------------ convolutions
def _convolved(builder, node, x, x_zero, w, w_zero, bias, out):
    """Emit the convolution of x less its zero point; return the operand of the sums, or None.

    It is None if weights or zero points are not known, and if the sums are too large for float32.
    """
    weights, zero, added = _known(w), _known(w_zero), _known(bias)
    if weights is None or w_zero is not None and zero is None or bias is not None and added is None:
        return None
    if x.dtype not in BYTES or weights.ndim not in (3, 4) or x_zero is not None and math.prod(x_zero.shape) != 1:
        return None

    def make():
        shift = 0 if zero is None else zero.astype(np.float32).reshape(-1, *[1] * (weights.ndim - 1))
        centred = weights.astype(np.float32) - shift
        sums = LARGEST_BYTE * np.abs(centred).sum(axis=tuple(range(1, weights.ndim)), dtype=np.float64)
        largest = np.max(sums if added is None else sums + np.abs(added.astype(np.float64)), initial=0)
        two_axes_of = centred.reshape(*centred.shape[:2], *two_axes(centred.shape[2:], 1))
        return two_axes_of, None if added is None else added.astype(np.float32), largest

    centred, start, largest = cached(node.run, "integers", [weights, zero, added], make)
    if largest > EXACT:
        return None
    sums = Operand(np.broadcast_to(np.float32(0), out.shape), False)
    sums.uses = 1
    sources = [weights, zero, added]
    if not convolve(builder, node, sources, centred, start, lambda: _centred(builder, x, x_zero), x.shape, sums):
        return None
    return sums


def emit_conv_integer(builder, node, inputs, outputs):
    """Emit a convolution; False if the weights are not known, or the sums are too large for float32."""
    x, w, x_zero, w_zero = (*inputs, None, None)[:4]
    sums = _convolved(builder, node, x, x_zero, w, w_zero, None, outputs[0])
    if sums is None:
        return False
    builder.set_expression(outputs[0], Expression(outputs[0], builder.view(sums)))
    return True


def emit_qlinear_conv(builder, node, inputs, outputs):
    """Emit a convolution, and set the expression of the quantised sums; False for the reasons of ConvInteger, and if
    scales or zero points are not known.
    """
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (*inputs, None)[:9]
    scales, zero = [_known(s) for s in (x_scale, w_scale, y_scale)], _known(y_zero)
    if not _are_scales(*scales) or scales[0].size != 1 or scales[2].size != 1 or scales[1].ndim > 1:
        return False
    if zero is None or zero.size != 1 or outputs[0].dtype not in BYTES:
        return False
    sums = _convolved(builder, node, x, x_zero, w, w_zero, bias, outputs[0])
    if sums is None:
        return False
    rank = len(outputs[0].shape)
    factor = scales[0].reshape(()) * _along(scales[1], rank, 1) / scales[2].reshape(())

    def make(y):
        y = _times(builder, y, np.asarray(factor))
        return _quantised(builder, y, ONE, zero.reshape(()), outputs[0].dtype)

    define_exact(builder, outputs[0], make, [sums])
    return True


EMIT = {
    "Add": emit_add,
    "ConvInteger": emit_conv_integer,
    "DequantizeLinear": emit_dequantize,
    "DynamicQuantizeLinear": emit_dynamic_quantize,
    "MatMulInteger": emit_matmul_integer,
    "QLinearConv": emit_qlinear_conv,
    "QLinearMatMul": emit_qlinear_matmul,
    "QuantizeLinear": emit_quantize,
}
