"""Lowerings: native callables made at load for nodes of some operators.

`LOWERINGS[op_type](node, constants, matmul, threads, load_budget)` returns a callable, or None. `constants` has an
array for each input that is constant at load, else None. The LoadBudget counts the weights that are packed. The
callable computes float32 and leaves other types to the operator's NumPy function. If it has a method `for_shapes` and
all input shapes of a plan are known, the plan runs the callable that `for_shapes` returns for its inputs instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import rnnfast.native._kernels as _kernels
from rnnfast.onnx import packed_einsum, recurrent_nodes
from rnnfast.onnx.folding import LoadBudget
from rnnfast.onnx.graph import Node
from rnnfast.onnx.ops.convolution import check_bias, check_kernel
from rnnfast.onnx.ops.linear import gemm_1
from rnnfast.onnx.ops.windows import Windows, pad, windows_for

# ONNX operator -> the kernel, for the functions whose bits differ between processors if NumPy computes them.
UNARY = {name: name for name in ("Exp", "Erf", "Sigmoid", "Tanh", "Softplus", "Sin", "Cos", "Tan", "Atan")}
# Floats of a convolution's windows that are copied at a time, so that they stay in the second-level cache.
WINDOW_FLOATS = 2**17


def lower(
    node: Node, constants: list[Any], load_budget: LoadBudget, matmul: str | None = None, threads: int = 1
) -> Callable[..., Any] | None:
    """The native callable of a node, or None."""
    if node.domain or node.op_type not in LOWERINGS:
        return None
    return LOWERINGS[node.op_type](node, constants, matmul, threads, load_budget)


def lower_constants(lower: Any, node: Node, constants: list[Any], load_budget: LoadBudget) -> Any:
    """The native callable of a node whose inputs are all constant, for folding alone; None for others."""
    if any(name and value is None for name, value in zip(node.inputs, constants)):
        return None
    return lower(node, constants, load_budget)


def lower_reference(node: Node, constants: list[Any], load_budget: LoadBudget) -> Callable[..., Any] | None:
    """The callable of a node in the float64 reference, which must drop the same constant states as the lowering."""
    if not node.domain and node.op_type in recurrent_nodes.CELL_KINDS:
        return recurrent_nodes.lower(node, constants, native=False)
    return None


def _for_float32(native: Callable[..., Any], node: Node) -> Any:
    """A callable that runs `native` if all inputs are float32, else the operator's NumPy function.

    `native` gets inputs that the operator's shape rule has checked.
    """
    assert node.function is not None
    fallback = functools.partial(node.function, **node.attributes)
    check = functools.partial(node.function.shapes, **node.attributes)  # type: ignore[attr-defined]

    def run(*inputs):
        for x in inputs:
            if x is not None and x.dtype != np.float32:
                return fallback(*inputs)
        check(*inputs)
        return native(*inputs)

    return run


def _is_weight(array: np.ndarray | None, rank: int) -> bool:
    """Return whether an input is a constant of float32 with this rank."""
    return array is not None and array.dtype == np.float32 and array.ndim == rank


def _lower_unary(node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget) -> Any:
    return _for_float32(functools.partial(_kernels.unary, UNARY[node.op_type]), node)


def _lower_matmul(node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget) -> Any:
    """A product whose B is packed once if it is a constant matrix, else at each call.

    Native steps read the attributes `packed` and `threads` of the callable.
    """
    packed = None
    if _is_weight(constants[1], 2):
        packed = load_budget.packed(
            ("MatMul", node.weight_type),
            constants[1:2],
            lambda: _kernels.Matrix(constants[1], matmul=matmul, weight_type=node.weight_type),
        )

    def run(a, b):
        if packed is not None:
            return packed.multiply(a, None, threads)
        if b.ndim == 1:
            return run(a, b[:, None])[..., 0]
        if a.ndim == 1:
            return run(a[None], b)[..., 0, :]
        if b.ndim == 2:
            return _kernels.Matrix(b, matmul=matmul).multiply(a, None, threads)
        return _multiply_stacks(a, b, matmul, threads)

    lowered = _for_float32(run, node)
    lowered.packed, lowered.threads = packed, threads
    return lowered


def _lower_matmul_integer(
    node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget
) -> Any:
    """The NumPy function of MatMulInteger or QLinearMatMul with an attribute `packed`, which native steps read.

    It is a matrix of B less its zero points, as float32, and the largest sum of magnitudes of a column; None if B is
    not a constant matrix.
    """
    assert node.function is not None
    run: Any = functools.partial(node.function, **node.attributes)
    run.packed = None
    at, zero_at = (1, 3) if node.op_type == "MatMulInteger" else (3, 5)
    b, zero = constants[at], constants[zero_at] if zero_at < len(constants) else None
    has_zero = zero_at < len(node.inputs) and node.inputs[zero_at] != ""
    if b is None or b.ndim != 2 or b.dtype.itemsize != 1 or has_zero and zero is None or matmul == "blas":
        return run

    def pack() -> Any:
        load_budget.take(3 * b.nbytes)  # besides the bytes of B itself
        centred = b.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
        largest = np.abs(centred).sum(axis=0, dtype=np.float64).max(initial=0)
        return _kernels.Matrix(centred, matmul=matmul), float(largest)

    if zero is None or zero.shape in ((), (1,), b.shape[1:]):
        run.packed = load_budget.packed("MatMulInteger", (b, zero), pack)
    return run


def _multiply_stacks(a: np.ndarray, b: np.ndarray, matmul: str | None, threads: int) -> np.ndarray:
    """Multiply matrices [..., M, K] by [..., K, N], with the leading axes broadcast."""
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = np.empty((*stack, a.shape[-2], b.shape[-1]), np.float32)
    a, b = np.broadcast_to(a, stack + a.shape[-2:]), np.broadcast_to(b, stack + b.shape[-2:])
    for i in np.ndindex(*stack):
        y[i] = _kernels.Matrix(b[i], matmul=matmul).multiply(a[i], None, threads)
    return y


def _lower_gemm(node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget) -> Any:
    """A Gemm whose B and C are packed once if they are constant, else at each call.

    A C that is a bias row is packed with B: the sums of the products start from it. One that a run computes with two
    axes may have as many rows as A, so that it is added after the product also if that is one row: a row of a batch
    has the bits that it has alone.
    """
    settings = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | node.attributes
    alpha, beta = np.float32(settings["alpha"]), np.float32(settings["beta"])
    if node.function is gemm_1:
        return None

    def pack(b, c, most_axes, weight_type=None):
        """The packed matrix, and C if it is to be added after the product; a bias row has at most so many axes."""
        b = b.T if settings["transB"] else b
        matrix = functools.partial(_kernels.Matrix, b, matmul=matmul, weight_type=weight_type)
        if c is None or beta == 0:
            return matrix(), None
        is_row = c.ndim <= most_axes and c.shape[:-1] in ((), (1,)) and c.shape[-1:] in ((), (1,), b.shape[1:])
        if alpha == beta == 1 and is_row:
            return matrix(np.broadcast_to(c.reshape(-1), b.shape[1:])), None
        return matrix(), c

    b, c = (*constants, None)[1:3]
    has_c = len(node.inputs) > 2 and node.inputs[2] != ""
    packed = None
    if _is_weight(b, 2) and (not has_c or c is not None and c.dtype == np.float32):
        packed = load_budget.packed(
            ("Gemm", alpha, beta, settings["transB"], node.weight_type), (b, c), lambda: pack(b, c, 2, node.weight_type)
        )

    def run(a, b, c=None):
        matrix, added = packed or pack(b, c, 1)
        y = matrix.multiply(a.T if settings["transA"] else a, None, threads)
        y = y if alpha == 1 else alpha * y
        if added is None:
            return y
        return y + (added if beta == 1 else beta * added)

    lowered = _for_float32(run, node)
    lowered.packed, lowered.threads = packed, threads
    return lowered


def _lower_einsum(node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget) -> Any:
    """An Einsum of two operands of which one is constant, as products with packed matrices, where that is possible.

    Native steps read the attribute `packed` of the callable.
    """
    equation = node.attributes["equation"]
    for at in (0, 1):
        if len(constants) == 2 and packed_einsum.fits(equation, constants, at):
            weights = constants[1 - at]
            lowered = load_budget.packed(
                ("Einsum", equation, at),
                [weights],
                lambda: packed_einsum.PackedEinsum(equation, weights, at, matmul),  # noqa: B023 - called at once
            )
            run = _for_float32(functools.partial(lowered, threads=threads), node)
            run.packed = lowered
            return run
    return None


def _lower_transform(
    node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget
) -> Any:
    """The NumPy function of DFT or STFT with a dict `matrices`, in which native steps keep what they pack."""
    assert node.function is not None
    run: Any = functools.partial(node.function, **node.attributes)
    run.matrices = {}
    return run


def _lower_conv(node: Node, constants: list[Any], matmul: str | None, threads: int, load_budget: LoadBudget) -> Any:
    """A convolution whose kernel is packed once if it is constant, else at each call.

    Each group has one packed matrix, by which the rows of windows are multiplied.
    """
    settings = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None} | node.attributes
    group, kernel_shape = settings.pop("group", 1), settings.pop("kernel_shape", None)

    def pack(w, bias, weight_type=None):
        """The packed matrices of the groups."""
        check_kernel(w, kernel_shape, group)
        check_bias(bias, w.shape[0])
        rows = w.reshape(group, w.shape[0] // group, math.prod(w.shape[1:]))
        biases = [None] * group if bias is None else bias.reshape(group, -1)
        return [
            _kernels.Matrix(part.T, part_bias, matmul=matmul, weight_type=weight_type)
            for part, part_bias in zip(rows, biases)
        ]

    w, bias = (*constants, None)[1:3]
    has_bias = len(node.inputs) > 2 and node.inputs[2] != ""
    constant = w is not None and w.dtype == np.float32 and (not has_bias or _is_weight(bias, 1))
    packed = None
    if constant:
        packed = load_budget.packed(
            ("Conv", group, kernel_shape, node.weight_type), (w, bias), lambda: pack(w, bias, node.weight_type)
        )

    def run(x, w, bias=None):
        matrices = packed or pack(w, bias)
        return _convolve(x, windows_for(x.shape[2:], w.shape[2:], **settings), matrices, w.shape[0] // group, threads)

    return _for_float32(run, node)


def _convolve(x: np.ndarray, windows: Windows, matrices: Sequence[Any], outputs: int, threads: int) -> np.ndarray:
    """y[n,m,o] = bias[m] + sum over c,k of w[m,c,k] x[n,c,o * stride + k * dilation].

    `outputs` is the number of output channels of a group. Windows are copied a few lines of the first spatial axis at
    a time.
    """
    samples, group, axes = x.shape[0], len(matrices), 1 + len(windows.kernel)
    y = np.empty((samples, group * outputs, *windows.output), np.float32)
    if y.size == 0:
        return y
    x = np.ascontiguousarray(pad(x, windows, 0))
    taps = _taps(x, windows)
    channels = x.shape[1] // group
    lines = max(1, WINDOW_FLOATS // max(1, math.prod(taps.shape[2:])))
    batch = max(1, lines // windows.output[0])
    for n in range(0, samples, batch):
        for start in range(0, windows.output[0], lines):
            block = taps[n : n + batch, start : start + lines]
            for g, matrix in enumerate(matrices):
                part = block[(slice(None),) * axes + (slice(g * channels, (g + 1) * channels),)]
                rows = matrix.multiply(part.reshape(*part.shape[:axes], matrix.K), None, threads)
                y[n : n + batch, g * outputs : (g + 1) * outputs, start : start + lines] = rows.transpose(
                    0, axes, *range(1, axes)
                )
    return y


def _taps(x: np.ndarray, windows: Windows) -> np.ndarray:
    """The overlapping windows [N, *output, C, *kernel], as a view of the contiguous padded x [N, C, *covered]."""
    steps = x.strides[2:]
    strides = (
        x.strides[0],
        *(n * s for n, s in zip(steps, windows.strides)),
        x.strides[1],
        *(n * d for n, d in zip(steps, windows.dilations)),
    )
    return np.ndarray((x.shape[0], *windows.output, x.shape[1], *windows.kernel), np.float32, x, 0, strides)


LOWERINGS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(UNARY, _lower_unary),
    **dict.fromkeys(recurrent_nodes.CELL_KINDS, recurrent_nodes.lower),
    "MatMul": _lower_matmul,
    "Gemm": _lower_gemm,
    "MatMulInteger": _lower_matmul_integer,
    "QLinearMatMul": _lower_matmul_integer,
    "Conv": _lower_conv,
    "Einsum": _lower_einsum,
    "DFT": _lower_transform,
    "STFT": _lower_transform,
}
