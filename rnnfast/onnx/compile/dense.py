"""Products with constant weights: MatMul and Gemm."""
import numpy as np

from rnnfast.onnx.compile.builder import Unfit, merged


def emit_product(b, matrix, to, source, init=None):
    """to [..., N] = bias (or init, of the strides of `to`) + source [..., K] . matrix; last axes contiguous."""
    rows = merged(source.shape[:-1], source.strides[:-1], to.strides[:-1], *(() if init is None else (init.strides[:-1],)))
    shape, from_strides, to_strides = rows[:3]
    init_strides = [0] * len(shape) if init is None else rows[3]
    if len(shape) > 3:
        raise Unfit("more than three axes of rows")
    extra = 3 - len(shape)
    shape, from_strides, to_strides, init_strides = (
        [fill] * extra + list(v) for fill, v in ((1, shape), (0, from_strides), (0, to_strides), (0, init_strides)))
    total = int(np.prod(shape))
    b.keep.append(matrix)
    b.emit("product", matrix.address, source, to, init, matrix.N, *shape,
           *(s // 4 for s in from_strides), *(s // 4 for s in to_strides), *(s // 4 for s in init_strides),
           int(matrix.cost(total)), out=to, weights=matrix.nbytes, flops=2 * total * matrix.K * matrix.N)


def rows_of(b, operand):
    """A view whose last axis is contiguous."""
    view = b.view(operand)
    if view.shape[-1] > 1 and view.strides[-1] != view.itemsize:
        view = b.contiguous(view)
    if len(merged(view.shape[:-1], view.strides[:-1])[0]) > 3:
        view = b.contiguous(view)
    return view


def emit_matmul(b, node, inputs, outputs):
    matrix = getattr(node.run, "packed", None)
    if matrix is None or matrix.blas or outputs[0].dtype != np.float32 or not inputs[0].shape or 0 in outputs[0].shape:
        return False
    view = rows_of(b, inputs[0])
    out = b.new(outputs[0].shape)
    emit_product(b, matrix, out, view)
    b.set(outputs[0], out)
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
