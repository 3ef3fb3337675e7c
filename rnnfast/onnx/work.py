"""The work of a node, counted from the shapes of its inputs: multiply-adds, and what takes about as long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.onnx.ops.arguments import broadcast_shapes
from rnnfast.onnx.ops.linear import labels_of
from rnnfast.onnx.ops.types import check_size
from rnnfast.onnx.ops.windows import windows_for

if TYPE_CHECKING:
    from rnnfast.onnx.graph import Node

# The work of a number that is read or written, and of a call, in multiply-adds of a large native product. On the
# AVX-512 machine that this was measured on, these are 1e11 a second, numbers of native commands 1e9 to 5e9, numbers of
# NumPy functions 5e7 to 1e9, and calls of NumPy functions 3e4 to 3e5.
NATIVE_NUMBER, NUMPY_NUMBER = 64, 1024
NATIVE_CALL, NUMPY_CALL = 2**10, 2**21
# Products that read weights for a few rows wait for memory; weights that a run computes are packed in it; those in
# NumPy are not done by BLAS.
FEW_ROWS, SLOW_PRODUCT, PACKED_PRODUCT, NUMPY_PRODUCT = 8, 4, 2, 64

# Operators that do not read all of their first input: they return views of it, or a part of it.
PARTIAL = frozenset(
    (
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "ScatterND",
        "SequenceAt",
        "SequenceLength",
        "Shape",
        "Size",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    )
)


def numbers_of(value: Any) -> int:
    """The numbers of an array, or the members of a sequence."""
    return 0 if value is None else len(value) if isinstance(value, list) else value.size


def work_of(node: Node, inputs: Sequence[Any], constant: Sequence[bool], results: Sequence[Any], native: bool) -> int:
    """The work of running a node on inputs of these shapes.

    constant: for each input whether it is the same at each run, so that reading it does not count. results: arrays of
    the shapes of its results, as far as they are known. native: whether native commands run it.
    """
    work: int = works_of(node, inputs, constant, results, (native,))[0]
    return work


def works_of(
    node: Node, inputs: Sequence[Any], constant: Sequence[bool], results: Sequence[Any], native: Sequence[bool]
) -> list[int]:
    """The same for each member of `native`."""
    numbers = 0
    skips = node.op_type in PARTIAL and not node.domain
    for x, same in zip(inputs, constant):
        if not same and not skips:
            numbers += numbers_of(x)
        skips = False
    for x in results:
        numbers += numbers_of(x)
    packs = PACKED_PRODUCT if len(inputs) > 1 and not constant[1] else 1
    multiplies = node.op_type in PRODUCTS and not node.domain
    return [
        (product_of(node, inputs, by_commands) * packs if multiplies else 0)
        + (NATIVE_CALL + NATIVE_NUMBER * numbers if by_commands else NUMPY_CALL + NUMPY_NUMBER * numbers)
        for by_commands in native
    ]


def product_of(node: Node, inputs: Sequence[Any], native: bool) -> int:
    """The multiply-adds of a node that multiplies, those of slow ones several times; 0 for other nodes.

    Raises LimitError if the result is larger than a tensor may be now. Inputs that do not fit give 0.
    """
    rule = PRODUCTS.get(node.op_type) if not node.domain else None
    if rule is None:
        return 0
    try:
        rows, multiply_adds, shape = rule(node, inputs)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError):
        return 0  # the operator raises
    if shape is not None:
        check_size(shape, inputs[0].dtype)
    if native and inputs[0].dtype == np.float32:
        return multiply_adds * (SLOW_PRODUCT if rows < FEW_ROWS else 1)
    return multiply_adds * NUMPY_PRODUCT


# Each rule takes (node, inputs) and returns (the rows that share a reading of the weights, the multiply-adds of all
# of them, the shape of the result).
def _product(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    rows, columns = (1, *a)[-2], b[-1] if len(b) > 1 else 1
    stack = broadcast_shapes(a[:-2], b[:-2])
    shape = (*stack, *a[-2:-1], *b[-1:][: len(b) - 1])
    return rows, math.prod(stack) * rows * a[-1] * columns, shape


def _matmul(node: Node, inputs: Sequence[Any]) -> Any:
    return _product(inputs[0].shape, inputs[3 if node.op_type == "QLinearMatMul" else 1].shape)


def _gemm(node: Node, inputs: Sequence[Any]) -> Any:
    a, b = inputs[:2]
    return _product(
        (a.T if node.attributes.get("transA") else a).shape, (b.T if node.attributes.get("transB") else b).shape
    )


def _conv(node: Node, inputs: Sequence[Any]) -> Any:
    x, w = inputs[0], inputs[3 if node.op_type == "QLinearConv" else 1]
    settings = {name: node.attributes.get(name) for name in ("pads", "strides", "dilations")}
    windows = windows_for(x.shape[2:], w.shape[2:], auto_pad=node.attributes.get("auto_pad", "NOTSET"), **settings)
    shape = (x.shape[0], w.shape[0], *windows.output)
    return math.prod(windows.output), math.prod(shape) * math.prod(w.shape[1:]), shape


def _conv_transpose(node: Node, inputs: Sequence[Any]) -> Any:
    x, w = inputs[:2]
    columns = (x.shape[0], *w.shape[1:], *x.shape[2:])  # all products are held before they are added up
    return math.prod(x.shape[2:]), x.size * math.prod(w.shape[1:]), columns


def _recurrent(node: Node, inputs: Sequence[Any]) -> Any:
    x, w, r = inputs[:3]
    steps, rows = x.shape[:2] if not node.attributes.get("layout") else x.shape[1::-1]
    return rows, steps * rows * (w.size + r.size), (steps, rows, len(w), r.shape[2])


def _einsum(node: Node, inputs: Sequence[Any]) -> Any:
    terms, output, sizes = labels_of(node.attributes["equation"], [x.shape for x in inputs])
    held, count = set(terms[0]), 0
    for i, term in enumerate(terms[1:], 1):
        labels = held.union(term)
        count += math.prod(sizes[label] for label in labels)
        held = labels.intersection(output) | labels.intersection(label for later in terms[i + 1 :] for label in later)
    return FEW_ROWS, count, None


def _pool(node: Node, inputs: Sequence[Any]) -> Any:
    """A pooling goes along one axis after the other; for each it reads as many numbers as there are taps."""
    x, kernel = inputs[0], node.attributes["kernel_shape"]
    settings = {name: node.attributes.get(name) for name in ("pads", "strides", "dilations")}
    settings |= {
        "auto_pad": node.attributes.get("auto_pad", "NOTSET"),
        "ceil_mode": node.attributes.get("ceil_mode", 0),
    }
    output, shape, count = windows_for(x.shape[2:], kernel, **settings).output, list(x.shape), 0
    for axis, n in enumerate(output):
        shape[2 + axis] = n
        count += math.prod(shape) * min(kernel[axis], x.shape[2 + axis])
    return FEW_ROWS, 16 * count, shape


def _attention(node: Node, inputs: Sequence[Any]) -> Any:
    q, k, v = inputs[:3]
    heads = q.shape[1] if q.ndim == 4 else node.attributes["q_num_heads"]
    past = inputs[4].shape[2] if len(inputs) > 4 and inputs[4] is not None else 0
    shape = (q.shape[0], heads, q.shape[-2], past + k.shape[-2])
    sizes = [
        x.shape[-1] if x.ndim == 4 else x.shape[-1] // node.attributes[f"{n}_num_heads"]
        for n, x in (("q", q), ("kv", v))
    ]
    return q.shape[-2], math.prod(shape) * sum(sizes), shape


def _deform_conv(node: Node, inputs: Sequence[Any]) -> Any:
    x, w, offset = inputs[:3]
    taps, outputs = math.prod(w.shape[2:]), math.prod(offset.shape[2:])
    columns = (x.shape[0], x.shape[1], taps, *offset.shape[2:])
    return outputs, math.prod(columns) * (len(w) + 2 ** (x.ndim - 2)), columns


PRODUCTS: dict[str, Callable[[Node, Sequence[Any]], Any]] = {
    "Attention": _attention,
    "DeformConv": _deform_conv,
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), _conv),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
}
