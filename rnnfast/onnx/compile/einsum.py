"""Einsum: products with packed constant weights, and products, sums and elementwise products of computed operands."""

import math

import numpy as np

from rnnfast.onnx.compile import dense, reduction
from rnnfast.onnx.compile.builder import merge_axes
from rnnfast.onnx.compile.expressions import MUL, emit_views
from rnnfast.onnx.ops.linear import diagonals, labels_of


def emit_einsum(builder, node, inputs, outputs):
    """Emit the commands of an Einsum; False if BLAS multiplies, for other types than float32, or without elements.

    Operands are combined from left to right, and each label is added up as soon as no later operand has it. A result is
    one chain of fused multiply-adds over the labels that two operands share, the last one the fastest, in the order in
    which the left one has them; a sum of one operand is in the order of reduce.h.
    """
    if builder.target.blas or any(o.dtype != np.float32 or 0 in o.shape for o in (*inputs, *outputs)):
        return False
    packed = getattr(node.run, "packed", None)
    if packed is not None:
        builder.set(outputs[0], _multiply_packed(builder, packed, inputs))
        return True
    terms, output, sizes = labels_of(node.attributes["equation"], [o.shape for o in inputs])
    y, labels = builder.view(inputs[0]), terms[0]
    for i, (operand, term) in enumerate(zip(inputs[1:], terms[1:]), 1):
        kept = set(output).union(*terms[i + 1 :])
        y, labels = _contract(builder, y, labels, builder.view(operand), term, kept, sizes)
    y, labels = _without(builder, y, labels, output)
    builder.set(outputs[0], y.transpose([labels.index(label) for label in output]))
    return True


def _multiply_packed(builder, packed, inputs):
    """Emit one product command for each packed matrix; return a view of the result."""
    x, rows, output, sizes = packed.arranged(builder.view(inputs[packed.at]), inputs[1 - packed.at])
    batch, outer = ([sizes[label] for label in labels] for labels in (packed.batch, rows))
    K, N = packed.matrices[0].K, packed.matrices[0].N
    source = builder.reshaped(x, (*batch, *outer, K))
    of_rows = (values[len(batch) : -1] for values in (source.shape, source.strides))
    if K > 1 and source.strides[-1] != source.itemsize or len(merge_axes(*of_rows)[0]) > 3:
        source = builder.contiguous(source)
    # Columns are to lie behind each other: in the result itself if they are its last axes, or in another order of axes.
    last = output[len(output) - len(packed.columns) :] == packed.columns
    arranged = [*packed.batch, *rows, *packed.columns]
    labels = output if last else arranged
    y = builder.new([sizes[label] for label in labels])
    to = builder.reshaped(y.transpose([labels.index(label) for label in arranged]), (*batch, *outer, N))
    for place, matrix in zip(np.ndindex(*batch), packed.matrices):
        dense.emit_product(builder, matrix, to[place], source[place])
    return y.transpose([labels.index(label) for label in output])


def _without(builder, x, labels, kept):
    """Return x with one axis per label and all labels outside of `kept` added up, and its labels."""
    x, labels = diagonals(x, labels)
    summed = tuple(axis for axis, label in enumerate(labels) if label not in kept)
    if summed:
        x = np.squeeze(reduction.reduced(builder, x, summed, reduction.SUM, reduction.NOTHING), summed)
    return x, [label for label in labels if label in kept]


def _arranged(x, labels, order, sizes):
    """Return a view of x with the axes of these labels, in their order; those of an ellipsis are broadcast."""
    x = x.transpose([labels.index(label) for label in order])
    return np.broadcast_to(x, [sizes[label] for label in order])


def _contract(builder, a, a_labels, b, b_labels, kept, sizes):
    """Return the sum of products of two operands over the labels outside of `kept`, and its labels."""
    a, a_labels = _without(builder, a, a_labels, {*kept, *b_labels})
    b, b_labels = _without(builder, b, b_labels, {*kept, *a_labels})
    both = [label for label in a_labels if label in b_labels]
    batch, inner = ([label for label in both if (label in kept) == side] for side in (True, False))
    of_a, of_b = ([label for label in labels if label not in both] for labels in (a_labels, b_labels))
    a = _arranged(a, a_labels, [*batch, *of_a, *inner], sizes)
    b = _arranged(b, b_labels, [*batch, *inner, *of_b], sizes)
    labels = [*batch, *of_a, *of_b]
    if not inner:
        y = builder.new([sizes[label] for label in labels])
        new = (None,)
        emit_views(builder, MUL, y, a[(..., *new * len(of_b))], b[(slice(None),) * len(batch) + new * len(of_a)])
        return y, labels
    of_stack = [sizes[label] for label in batch]
    rows, k, columns = (math.prod([sizes[label] for label in group]) for group in (of_a, inner, of_b))
    a = builder.reshaped(a, (*of_stack, rows, k))
    if k > 1 and a.strides[-1] != a.itemsize:
        a = builder.contiguous(a)
    y = dense.multiplied(builder, a, builder.reshaped(b, (*of_stack, k, columns)))
    return y.reshape([sizes[label] for label in labels]), labels


EMIT = {"Einsum": emit_einsum}
