"""DFT and STFT as products with the matrix of the transform."""

import numpy as np

from rnnfast.native._kernels import Matrix
from rnnfast.onnx.compile import dense
from rnnfast.onnx.compile.expressions import MUL, emit_views
from rnnfast.onnx.compile.indexing import regular_view
from rnnfast.onnx.ops import signal

# A product with a longer transform's matrix takes more time than a fast transform, and the matrix over 4 MB.
MOST_POINTS = 1024
MOST_MATRICES = 4  # that a node keeps: for inputs of other lengths they are made anew


def _matrix(node, key, make):
    """Return the packed matrix of `make()`, which the node keeps by its key, as all plans share it."""
    kept = getattr(node.run, "matrices", {})
    matrix = kept.get(key)
    if matrix is None:
        matrix = Matrix(np.ascontiguousarray(make(), np.float32))
        if len(kept) < MOST_MATRICES:
            kept[key] = matrix
    return matrix


def _transform(given, parts, n, inverse, onesided):
    """Return the matrix [given * parts, results] of a DFT: the transforms of the columns of the unit matrix."""
    units = np.eye(given * parts).reshape(-1, given, parts)
    length = np.array(n)
    return signal.OPS["DFT"][20](units, length, np.array(1), inverse=inverse, onesided=onesided).reshape(len(units), -1)


def emit_dft(builder, node, inputs, outputs):
    """Emit a product command; False if BLAS multiplies, for a length or an axis that is not constant, for long
    transforms, for other types than float32, or without elements.
    """
    x = inputs[0]
    known = [None if o is None else o.known for o in inputs[1:]] + [None, None]
    missing = any(o is not None and o.known is None for o in inputs[1:])
    if builder.target.blas or missing or x.dtype != np.float32 or 0 in x.shape or 0 in outputs[0].shape:
        return False
    inverse, onesided = node.attributes.get("inverse", 0), node.attributes.get("onesided", 0)
    if node.function is signal.OPS["DFT"][17]:
        axis = node.attributes.get("axis", 1)
    else:
        axis = -2 if known[1] is None else int(known[1].ravel()[0])
    axis, parts = axis % len(x.shape), x.shape[-1]
    n = signal.points_of(x.shape[axis], known[0], inverse, onesided)
    given = min(x.shape[axis], n)
    if n > MOST_POINTS:
        return False
    view = np.moveaxis(builder.view(x)[(slice(None),) * axis + (slice(0, given),)], axis, -2)
    rows = builder.reshaped(view, (*view.shape[:-2], given * parts))
    if given * parts > 1 and rows.strides[-1] != rows.itemsize:
        rows = builder.contiguous(rows)
    matrix = _matrix(node, (given, parts, n), lambda: _transform(given, parts, n, inverse, onesided))
    out = builder.new((*rows.shape[:-1], matrix.N))
    dense.emit_product(builder, matrix, out, rows)
    builder.set(outputs[0], np.moveaxis(out.reshape(*rows.shape[:-1], -1, outputs[0].shape[-1]), -2, axis))
    return True


def emit_stft(builder, node, inputs, outputs):
    """Emit a product command, of whose matrix a constant window is a part; False if BLAS multiplies, for complex
    signals, a step or length that is not constant, for long frames, for other types than float32, or without elements.
    """
    x, step, window, length = [*inputs, None, None][:4]
    if builder.target.blas or any(o is not None and o.known is None for o in (step, length)):
        return False
    if x.dtype != np.float32 or 0 in (*x.shape, *outputs[0].shape) or len(x.shape) == 3 and x.shape[2] != 1:
        return False
    size = length.known.item() if length is not None else window.shape[0] if window is not None else x.shape[1]
    count = outputs[0].shape[1]
    if size > MOST_POINTS or window is not None and window.dtype != np.float32:
        return False
    view = builder.contiguous(builder.view(x)).reshape(x.shape[:2])
    index = np.arange(count)[:, None] * step.known.item() + np.arange(size)
    frames = regular_view(view, index, 1)
    constant = None if window is None else window.known
    if window is not None and constant is None:
        windowed = builder.new(frames.shape)
        emit_views(builder, MUL, windowed, frames, np.broadcast_to(builder.view(window), frames.shape))
        frames = windowed
    onesided = node.attributes.get("onesided", 1)

    def make():
        matrix = _transform(size, 1, size, 0, onesided)
        return matrix if constant is None else matrix * constant[:, None].astype(np.float64)

    matrix = _matrix(node, (size, constant is not None), make)
    out = builder.new((x.shape[0], count, matrix.N))
    dense.emit_product(builder, matrix, out, frames)
    builder.set(outputs[0], out.reshape(outputs[0].shape))
    return True


EMIT = {"DFT": emit_dft, "STFT": emit_stft}
