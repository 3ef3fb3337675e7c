"""Matrix products: MatMul, Gemm, Einsum and the quantized ones."""
import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.onnx.ops.numeric import check_broadcasts_to, check_numbers, is_floating, numeric, quiet, same_dtype
from rnnfast.onnx.ops.quantize import centred, requantize
from rnnfast.onnx.ops.types import Flag, check_size


@numeric
def matmul(a, b):
    check_numbers(a)
    if a.ndim > 2 or b.ndim > 2:
        check_size(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (*a.shape[-2:-1], *b.shape[-1:]), a.dtype)
    return np.matmul(a, b)


@numeric
def gemm(a, b, c=None, *, alpha: float = 1.0, beta: float = 1.0, transA: Flag = 0, transB: Flag = 0):
    """alpha * A' B' + beta * C, C broadcast to the product's shape; beta = 0 does not read C."""
    check_numbers(a)
    if a.ndim != 2 or b.ndim != 2:
        raise InputError(f"A and B have shapes {a.shape} and {b.shape}, expected matrices")
    if not is_floating(a.dtype) and not (alpha.is_integer() and beta.is_integer()):
        raise UnsupportedError(f"alpha = {alpha}, beta = {beta} of a product of {a.dtype}")
    alpha, beta = a.dtype.type(alpha), a.dtype.type(beta)
    y = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1:
        y = alpha * y
    if c is None or beta == 0:
        return y
    check_broadcasts_to(c, y, "C")
    return y + (c if beta == 1 else beta * c)


def gemm_1(a, b, c, *, alpha: float = 1.0, beta: float = 1.0, broadcast: Flag = 0, transA: Flag = 0, transB: Flag = 0):
    """Before opset 7 C is broadcast only if `broadcast` says so."""
    shape = a.shape[-1 if transA else 0], b.shape[0 if transB else -1]
    if not broadcast and c.shape != shape:
        raise InputError(f"C has shape {c.shape}, expected {shape} without broadcast = 1")
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


def _einsum_shape(equation, shapes):
    """The output's shape, or an InputError where the equation does not fit the operands."""
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes):
        raise InputError(f"equation {equation!r} has {len(terms)} terms for {len(shapes)} inputs")
    sizes, ellipsis = {}, ()
    for term, shape in zip(terms, shapes):
        before, dots, after = term.partition("...")
        if not dots and len(term) != len(shape) or len(before) + len(after) > len(shape):
            raise InputError(f"term {term!r} of equation {equation!r} does not fit an input of shape {shape}")
        end = len(shape) - len(after)
        if dots:
            ellipsis = np.broadcast_shapes(ellipsis, shape[len(before):end])
        for letter, size in zip(before + after, shape[:len(before)] + shape[end:]):
            if not letter.isascii() or not letter.isalpha():
                raise InputError(f"equation {equation!r} contains {letter!r}, expected letters")
            if sizes.setdefault(letter, size) != size:
                raise InputError(f"{letter!r} of equation {equation!r} stands for sizes {sizes[letter]} and {size}")
    if not arrow:
        output = "..." + "".join(sorted(letter for letter in sizes if inputs.count(letter) == 1))
    unknown = set(output.replace("...", "", 1)) - set(sizes)
    if unknown:
        raise InputError(f"{min(unknown)!r} in the output of equation {equation!r} is in no input")
    return (*(ellipsis if "..." in output else ()), *(sizes[letter] for letter in output.replace("...", "", 1)))


@numeric
def einsum(*xs, equation: str):
    """Every letter stands for one size: sizes of 1 are broadcast under an ellipsis only."""
    check_numbers(xs[0])
    equation = equation.replace(" ", "")
    check_size(_einsum_shape(equation, [x.shape for x in xs]), xs[0].dtype)
    return np.einsum(equation, *xs, optimize=len(xs) > 1)


def _per_row(parameter):
    """A scale or zero point of one element per row [M], as a column."""
    return parameter[:, None] if parameter is not None and parameter.ndim == 1 and parameter.size > 1 else parameter


@quiet
def matmul_integer(a, b, a_zero_point=None, b_zero_point=None):
    """(A - a_zero_point) (B - b_zero_point) in int32; zero points are scalars, or one per row of A, per column of B."""
    product = np.matmul(centred(a, _per_row(a_zero_point)), centred(b, b_zero_point))
    return np.asarray(product).astype(np.int64).astype(np.int32)


@quiet
def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
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
