"""Matrix products (ONNX operator specification, MatMul, Gemm-7, Einsum-12, MatMulInteger and QLinearMatMul)."""

import math

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.native._interrupts import check
from rnnfast.onnx.ops.arguments import broadcast_shapes
from rnnfast.onnx.ops.numeric import (
    check_broadcasts_to,
    check_numbers,
    flatten_axes,
    is_floating,
    numeric,
    quiet,
    same_dtype,
    shaped,
)
from rnnfast.onnx.ops.pieces import product
from rnnfast.onnx.ops.quantize import centred, requantize
from rnnfast.onnx.ops.types import Flag, check_size

# Most products of an Einsum in memory at a time, unless the second operand needs more for one line.
PRODUCTS = 2**18


def _product(a, b):
    """Shape rule of MatMul."""
    rows, inner = a.shape[-2:-1], b.shape[-2:-1] or b.shape
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1:] != inner:
        raise InputError(f"A and B have shapes {a.shape} and {b.shape}, which do not multiply")
    try:
        stack = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise InputError(f"A and B have shapes {a.shape} and {b.shape}, whose stacks do not broadcast") from None
    shape = (*stack, *rows, *(b.shape[-1:] if b.ndim > 1 else ()))
    check_size(shape, a.dtype)
    return (shape,)


@numeric
@shaped(_product)
def matmul(a, b):
    """MatMul: the matrix product, as numpy.matmul."""
    check_numbers(a)
    return product(a, b)


def _affine(a, b, c=None, *, beta, transA, transB, **attributes):
    """Shape rule of Gemm."""
    if a.ndim != 2 or b.ndim != 2:
        raise InputError(f"A and B have shapes {a.shape} and {b.shape}, expected matrices")
    shape = a.shape[-1 if transA else 0], b.shape[0 if transB else -1]
    if a.shape[0 if transA else -1] != b.shape[-1 if transB else 0]:
        raise InputError(f"A' and B' of shapes {a.shape} and {b.shape} do not multiply")
    check_size(shape, a.dtype)
    if c is not None and beta != 0:
        check_broadcasts_to(c, shape, "C")
    return (shape,)


@numeric
@shaped(_affine)
def gemm(a, b, c=None, *, alpha: float = 1.0, beta: float = 1.0, transA: Flag = 0, transB: Flag = 0):
    """Gemm: alpha * A' B' + beta * C, with A and B transposed as asked and C broadcast; C is not read if beta is 0."""
    check_numbers(a)
    if not is_floating(a.dtype) and not (alpha.is_integer() and beta.is_integer()):
        raise UnsupportedError(f"alpha = {alpha}, beta = {beta} of a product of {a.dtype}")
    alpha, beta = a.dtype.type(alpha), a.dtype.type(beta)
    y = product(a.T if transA else a, b.T if transB else b)
    if alpha != 1:
        y = alpha * y
    if c is None or beta == 0:
        return y
    return y + (c if beta == 1 else beta * c)


def _affine_1(a, b, c, *, broadcast, **attributes):
    """Shape rule of Gemm before opset 7."""
    (shape,) = _affine(a, b, c, **attributes)
    if not broadcast and c.shape != shape:
        raise InputError(f"C has shape {c.shape}, expected {shape} without broadcast = 1")
    return (shape,)


@shaped(_affine_1)
def gemm_1(a, b, c, *, alpha: float = 1.0, beta: float = 1.0, broadcast: Flag = 0, transA: Flag = 0, transB: Flag = 0):
    """Gemm before opset 7: C is broadcast only if `broadcast` is set."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


def labels_of(equation, shapes):
    """Parse an equation; return the labels of the axes of each operand and of the output, and the sizes by label.

    A label is a letter, or a negative number for an axis under the ellipsis, counted from its end. Raises InputError if
    the equation does not fit the shapes.
    """
    equation = equation.replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes):
        raise InputError(f"equation {equation!r} has {len(terms)} terms for {len(shapes)} inputs")
    sizes, ellipsis, labels = {}, (), []
    for term, shape in zip(terms, shapes):
        before, dots, after = term.partition("...")
        if not dots and len(term) != len(shape) or len(before) + len(after) > len(shape):
            raise InputError(f"term {term!r} of equation {equation!r} does not fit an input of shape {shape}")
        end = len(shape) - len(after)
        if dots:
            ellipsis = broadcast_shapes(ellipsis, shape[len(before) : end])
        labels.append([*before, *range(len(before) - end, 0), *after])
        for letter, size in zip(before + after, shape[: len(before)] + shape[end:]):
            if not letter.isascii() or not letter.isalpha():
                raise InputError(f"equation {equation!r} contains {letter!r}, expected letters")
            if sizes.setdefault(letter, size) != size:
                raise InputError(f"{letter!r} of equation {equation!r} stands for sizes {sizes[letter]} and {size}")
    if not arrow:
        output = "..." + "".join(sorted(letter for letter in sizes if inputs.count(letter) == 1))
    unknown = set(output.replace("...", "", 1)) - set(sizes)
    if unknown:
        raise InputError(f"{min(unknown)!r} in the output of equation {equation!r} is in no input")
    if ellipsis and "..." not in output:
        raise InputError(f"the output of equation {equation!r} lacks the ellipsis of its inputs")
    before, _, after = output.partition("...")
    sizes |= dict(zip(range(-len(ellipsis), 0), ellipsis))
    result = [*before, *range(-len(ellipsis), 0), *after]
    if len(set(result)) != len(result):
        raise InputError(f"the output of equation {equation!r} names an axis twice")
    return labels, result, sizes


def diagonals(x, labels):
    """Return a view of x with one axis per label, and its labels."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i, j = (axis for axis, other in enumerate(labels) if other == label and labels[:axis].count(label) < 2)
            x, labels = np.diagonal(x, axis1=i, axis2=j), [*labels[:i], *labels[i + 1 : j], *labels[j + 1 :], label]
    return x, labels


def _without(x, labels, kept):
    """Return x with one axis per label and all labels outside of `kept` added up, and its labels."""
    x, labels = diagonals(x, labels)
    summed = tuple(axis for axis, label in enumerate(labels) if label not in kept)
    if summed:
        x = flatten_axes(x, summed).sum(axis=-1, dtype=x.dtype)
    return x, [label for label in labels if label in kept]


def _arranged(x, labels, groups, sizes):
    """Return x with the axes of each group of labels flattened into one, contiguous; absent axes are broadcast."""
    order = [label for group in groups for label in group]
    x = x.transpose([labels.index(label) for label in order if label in labels])
    x = x[tuple(slice(None) if label in labels else None for label in order)]
    shape = [sizes[label] for label in order]
    check_size(shape, x.dtype)
    return np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(
        [math.prod(sizes[label] for label in group) for group in groups]
    )


def _contract(a, a_labels, b, b_labels, kept, sizes):
    """Return the sum of products of two operands over the labels outside of `kept`, and its labels.

    Neither BLAS nor the loops of np.einsum are used: their order of summation changes with the whole shape, so that the
    bits of one row would change with the batch. A sum over a last, contiguous axis depends on its length only.
    """
    a, a_labels = _without(a, a_labels, {*kept, *b_labels})
    b, b_labels = _without(b, b_labels, {*kept, *a_labels})
    both = [label for label in a_labels if label in b_labels]
    batch, inner = ([label for label in both if (label in kept) == side] for side in (True, False))
    outer = [[label for label in labels if label not in both] for labels in (a_labels, b_labels)]
    a = _arranged(a, a_labels, (batch, outer[0], inner), sizes)
    b = _arranged(b, b_labels, (batch, outer[1], inner), sizes)
    labels = [*batch, *outer[0], *outer[1]]
    check_size([sizes[label] for label in labels], a.dtype)
    y = np.empty((*a.shape[:2], b.shape[1]), a.dtype)
    lines = max(1, PRODUCTS // max(1, b.shape[1] * b.shape[2]))
    stacks = max(1, lines // max(1, a.shape[1]))
    for i in range(0, a.shape[0], stacks):
        for j in range(0, a.shape[1], lines):
            check()
            part = slice(i, i + stacks), slice(j, j + lines)
            products = np.multiply(a[part][:, :, None], b[part[0], None], order="C")
            products.sum(axis=-1, dtype=a.dtype, out=y[part])
    return y.reshape([sizes[label] for label in labels]), labels


def _einsum_shape(*xs, equation):
    """Shape rule of Einsum."""
    _, output, sizes = labels_of(equation, [x.shape for x in xs])
    shape = tuple([sizes[label] for label in output])
    check_size(shape, xs[0].dtype)
    return (shape,)


@numeric
@shaped(_einsum_shape)
def einsum(*xs, equation: str):
    """Einsum: sums of products by the equation.

    A letter stands for one size; sizes of 1 are broadcast under an ellipsis only. Operands are multiplied from left to
    right, and each label is added up as soon as no later operand has it.
    """
    check_numbers(xs[0])
    terms, output, sizes = labels_of(equation, [x.shape for x in xs])
    y, labels = xs[0], terms[0]
    for i, (x, term) in enumerate(zip(xs[1:], terms[1:]), 1):
        y, labels = _contract(y, labels, x, term, set(output).union(*terms[i + 1 :]), sizes)
    y, labels = _without(y, labels, output)
    return y.transpose([labels.index(label) for label in output])


def _per_row(parameter):
    """Return a scale or zero point of one element per row [M] as a column; others stay."""
    return parameter[:, None] if parameter is not None and parameter.ndim == 1 and parameter.size > 1 else parameter


@quiet
def matmul_integer(a, b, a_zero_point=None, b_zero_point=None):
    """MatMulInteger: (A - a_zero_point) (B - b_zero_point) in int32. Zero points are scalars, or one per row of A and
    one per column of B.
    """
    product = np.matmul(centred(a, _per_row(a_zero_point)), centred(b, b_zero_point))
    return np.asarray(product).astype(np.int64).astype(np.int32)


@quiet
def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    """QLinearMatMul: the quantized product of two quantized matrices."""
    product = np.matmul(centred(a, _per_row(a_zero_point)), centred(b, b_zero_point))
    dtype = same_dtype((a_scale, b_scale, y_scale))
    return requantize(product, _per_row(a_scale) * b_scale, y_scale, y_zero_point, dtype)


OPS = {
    "Einsum": {12: einsum},
    "Gemm": {1: gemm_1, 7: gemm},
    "MatMul": {1: matmul},
    "MatMulInteger": {10: matmul_integer},
    "QLinearMatMul": {10: qlinear_matmul},
}
