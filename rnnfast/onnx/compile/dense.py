"""MatMul and Gemm: products with packed constant weights, and MatMul of two computed operands."""

import math

import numpy as np

from rnnfast.onnx.compile.builder import NotNative, merge_axes
from rnnfast.onnx.ops.arguments import broadcast_shapes

BLOCK = 16  # columns of one block of a packed matrix


def emit_product(builder, matrix, to, source):
    """Emit the product command to [..., N] = bias + source [..., K] . matrix, where last axes are contiguous.

    Raises NotNative if the other axes do not merge into three.
    """
    shape, from_strides, to_strides = merge_axes(source.shape[:-1], source.strides[:-1], to.strides[:-1])
    if len(shape) > 3:
        raise NotNative("more than three axes of rows")
    extra = 3 - len(shape)
    shape, from_strides, to_strides = (
        [fill] * extra + list(v) for fill, v in ((1, shape), (0, from_strides), (0, to_strides))
    )
    total = math.prod(shape)
    builder.keep.append(matrix)
    builder.emit(
        "product",
        matrix.address,
        source,
        to,
        matrix.N,
        *shape,
        *(s // 4 for s in from_strides),
        *(s // 4 for s in to_strides),
        builder.computed(matrix.cost, total),
        out=to,
        weights=matrix.nbytes,
        flops=2 * total * matrix.K * matrix.N,
    )


def view_of_rows(builder, operand):
    """Return a view of the operand whose last axis is contiguous and whose other axes merge into at most three."""
    view = builder.view(operand)
    if view.shape[-1] > 1 and view.strides[-1] != view.itemsize:
        view = builder.contiguous(view)
    if len(merge_axes(view.shape[:-1], view.strides[:-1])[0]) > 3:
        view = builder.contiguous(view)
    return view


def emit_matmul(builder, node, inputs, outputs):
    """Emit a product or multiply command; False if BLAS multiplies, or without float32 elements."""
    matrix = getattr(node.run, "packed", None)
    if builder.target.blas or outputs[0].dtype != np.float32 or not inputs[0].shape or 0 in outputs[0].shape:
        return False
    if matrix is None:
        return _emit_multiply(builder, inputs, outputs)
    view = view_of_rows(builder, inputs[0])
    out = builder.new(outputs[0].shape)
    emit_product(builder, matrix, out, view)
    builder.set(outputs[0], out)
    return True


def _emit_multiply(builder, inputs, outputs):
    """Emit a multiply command for matrices, stacks of matrices or vectors that a run computes; False for other types
    than float32, scalars, or operands without elements.
    """
    if any(o.dtype != np.float32 or not o.shape or 0 in o.shape for o in inputs):
        return False
    x, w = view_of_rows(builder, inputs[0]), builder.view(inputs[1])
    x, w = x[None] if x.ndim == 1 else x, w[:, None] if w.ndim == 1 else w
    builder.set(outputs[0], multiplied(builder, x, w).reshape(outputs[0].shape))
    return True


def multiplied(builder, x, w):
    """Emit a multiply command for stacks of matrices x [..., M, K], whose last axis is contiguous, and w [..., K, N];
    return its result. Raises NotNative if the axes of the stacks do not merge into three.
    """
    stack = broadcast_shapes(x.shape[:-2], w.shape[:-2])
    out = builder.new((*stack, x.shape[-2], w.shape[-1]))
    x, w = (np.broadcast_to(v, (*stack, *v.shape[-2:])) for v in (x, w))
    shape, *strides = merge_axes(stack, *(v.strides[:-2] for v in (out, x, w)))
    if len(shape) > 3:
        raise NotNative("more than three axes of matrices")
    extra = 3 - len(shape)
    out_strides, x_strides, w_strides = ([0] * extra + [s // 4 for s in values] for values in strides)
    rows, K = x.shape[-2:]
    N = w.shape[-1]
    columns = (N + BLOCK - 1) // BLOCK * BLOCK
    packed, zeros = builder.new((K * columns,)), builder.zeros(columns)
    builder.emit(
        "multiply",
        x,
        w,
        out,
        packed,
        zeros,
        *[1] * extra,
        *shape,
        *x_strides,
        *w_strides,
        *out_strides,
        rows,
        K,
        N,
        x.strides[-2] // 4,
        out.strides[-2] // 4,
        w.strides[-2] // 4,
        w.strides[-1] // 4,
        out=out,
        flops=2 * out.size * K,
    )
    return out


def emit_gemm(builder, node, inputs, outputs):
    """Emit a product command; False if the weights or C are not packed, BLAS multiplies, or alpha or transA is set."""
    packed = getattr(node.run, "packed", None)
    settings = {"alpha": 1.0, "transA": 0} | node.attributes
    if packed is None or packed[1] is not None or packed[0].blas or settings["alpha"] != 1 or settings["transA"]:
        return False
    if outputs[0].dtype != np.float32 or 0 in outputs[0].shape:
        return False
    view = view_of_rows(builder, inputs[0])
    out = builder.new(outputs[0].shape)
    emit_product(builder, packed[0], out, view)
    builder.set(outputs[0], out)
    return True


EMIT = {"MatMul": emit_matmul, "Gemm": emit_gemm}
