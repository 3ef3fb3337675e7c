"""Products with constant weights: MatMul and Gemm."""

import numpy as np

from rnnfast.onnx.compile.builder import NotNative, merge_axes

BLOCK = 16  # columns of a packed matrix stand in blocks


def emit_product(b, matrix, to, source):
    """to [..., N] = bias + source [..., K] . matrix; last axes contiguous."""
    shape, from_strides, to_strides = merge_axes(source.shape[:-1], source.strides[:-1], to.strides[:-1])
    if len(shape) > 3:
        raise NotNative("more than three axes of rows")
    extra = 3 - len(shape)
    shape, from_strides, to_strides = (
        [fill] * extra + list(v) for fill, v in ((1, shape), (0, from_strides), (0, to_strides))
    )
    total = int(np.prod(shape))
    b.keep.append(matrix)
    b.emit(
        "product",
        matrix.address,
        source,
        to,
        matrix.N,
        *shape,
        *(s // 4 for s in from_strides),
        *(s // 4 for s in to_strides),
        int(matrix.cost(total)),
        out=to,
        weights=matrix.nbytes,
        flops=2 * total * matrix.K * matrix.N,
    )


def rows_of(b, operand):
    """A view whose last axis is contiguous."""
    view = b.view(operand)
    if view.shape[-1] > 1 and view.strides[-1] != view.itemsize:
        view = b.contiguous(view)
    if len(merge_axes(view.shape[:-1], view.strides[:-1])[0]) > 3:
        view = b.contiguous(view)
    return view


def emit_matmul(b, node, inputs, outputs):
    matrix = getattr(node.run, "packed", None)
    if b.target.blas or outputs[0].dtype != np.float32 or not inputs[0].shape or 0 in outputs[0].shape:
        return False
    if matrix is None:
        return _emit_multiply(b, inputs, outputs)
    view = rows_of(b, inputs[0])
    out = b.new(outputs[0].shape)
    emit_product(b, matrix, out, view)
    b.set(outputs[0], out)
    return True


def _emit_multiply(b, inputs, outputs):
    """Of two matrices, stacks of them, or vectors, that a run computes."""
    if any(o.dtype != np.float32 or not o.shape or 0 in o.shape for o in inputs):
        return False
    x, w = rows_of(b, inputs[0]), b.view(inputs[1])
    x, w = x[None] if x.ndim == 1 else x, w[:, None] if w.ndim == 1 else w
    stack = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    out = b.new((*stack, x.shape[-2], w.shape[-1]))
    x, w = (np.broadcast_to(v, (*stack, *v.shape[-2:])) for v in (x, w))
    shape, *strides = merge_axes(stack, *(v.strides[:-2] for v in (out, x, w)))
    if len(shape) > 3:
        raise NotNative("more than three axes of matrices")
    extra = 3 - len(shape)
    of_out, of_x, of_w = ([0] * extra + [s // 4 for s in of_view] for of_view in strides)
    rows, K, N = *x.shape[-2:], w.shape[-1]
    columns = (N + BLOCK - 1) // BLOCK * BLOCK
    packed, zeros = b.new((K * columns,)), b.constant(np.zeros(columns, np.float32))
    b.emit(
        "multiply",
        x,
        w,
        out,
        packed,
        zeros,
        *[1] * extra,
        *shape,
        *of_x,
        *of_w,
        *of_out,
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
    b.set(outputs[0], out.reshape(outputs[0].shape))
    return True


def emit_gemm(b, node, inputs, outputs):
    packed = getattr(node.run, "packed", None)
    settings = {"alpha": 1.0, "transA": 0} | node.attributes
    if packed is None or packed[1] is not None or packed[0].blas or settings["alpha"] != 1 or settings["transA"]:
        return False
    if outputs[0].dtype != np.float32 or 0 in outputs[0].shape:
        return False
    view = rows_of(b, inputs[0])
    out = b.new(outputs[0].shape)
    emit_product(b, packed[0], out, view)
    b.set(outputs[0], out)
    return True


EMIT = {"MatMul": emit_matmul, "Gemm": emit_gemm}
