"""Operators on integers, and on weights that are stored as such.

Weights of blocks or channels stand behind a DequantizeLinear, so that folding makes them constants of float32, which
are packed as others. Integers are computed as exactly as ONNX's own operators compute them. Definitions:
ContribOperators.md of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import UnsupportedError
from rnnfast.onnx.fusions.attention import OF_HEADS, attended, mask_of, total_keys
from rnnfast.onnx.fusions.body import REQUIRED, Body, Fusion

FLOAT, INT32 = 1, 6  # numbers of element types in ONNX
# The values that 4 bits stand for (bitsandbytes 0.42, quantize_blockwise; bit 3 of FP4 is the sign). quant_type -> them
FP4 = (0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BNB4 = {0: (*FP4, *(-x for x in FP4)), 1: NF4}
PACKED_BITS = (2, 4, 8)


# ------------------------------------------------------------------------------------------------ parts of bodies
def _require(body: Body, *indices: int) -> None:
    """Raise UnsupportedError if one of these inputs is absent."""
    for i in indices:
        if not body.input(i):
            raise UnsupportedError(f"input {i} is missing")


def _dequantized(body: Body, x: str, scale: str, zero: str, **attributes: Any) -> str:
    return body.add("DequantizeLinear", x, scale, *filter(None, [zero]), **attributes)


def _requantized(body: Body, y: str, scale: str, zero: str, like: str) -> str:
    """Add the quantised form of y; without a zero point that is 0, of the type of `like`."""
    return body.add("QuantizeLinear", y, scale, zero or body.add("CastLike", body.constant(0), like))


def _tail(body: Body, x: str, start: int | None, stop: int | None) -> str:
    """Add x[..., start:stop]."""
    bounds = [body.constant([0 if n is None else n]) for n in (start, stop)]
    return body.add("Slice", x, *bounds, body.constant([-1]))


def _unpacked(body: Body, x: str, bits: int, high_first: bool = False) -> str:
    """Add the numbers of so many bits that the bytes of x hold, as uint8, along the last axis."""
    if bits == 8:
        return x
    mask = body.constant(2**bits - 1, np.uint8)
    parts = []
    for shift in range(0, 8, bits):
        part = body.add("BitShift", x, body.constant(shift, np.uint8), direction="RIGHT") if shift else x
        part = body.add("BitwiseAnd", part, mask) if shift + bits < 8 else part
        parts.append(body.add("Unsqueeze", part, body.constant([-1])))
    numbers = body.add("Concat", *(parts[::-1] if high_first else parts), axis=-1)
    shape = body.add("Concat", _tail(body, body.add("Shape", x), None, -1), body.constant([-1]), axis=0)
    return body.add("Reshape", numbers, shape)


def _check_block_size(size: int) -> None:
    if size < 16 or size & size - 1:
        raise UnsupportedError(f"attribute 'block_size' = {size} is not supported, expected a power of 2 from 16 on")


def _check_one_of(name: str, value: int, choices: Sequence[int]) -> None:
    if value not in choices:
        expected = " or ".join(map(str, choices))
        raise UnsupportedError(f"attribute {name!r} = {value} is not supported, expected {expected}")


def _check_sizes(a: dict[str, Any]) -> None:
    for name in ("K", "N"):
        if a[name] < 1:
            raise UnsupportedError(f"attribute {name!r} = {a[name]} is not supported, expected at least 1")


# ------------------------------------------------------------------------------------------------ recurrent weights
def _dynamic_quantize_lstm(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """An LSTM of dequantised weights; W and R are [D, input_size or hidden_size, 4 * hidden_size].

    The operator leaves open how the activations are quantised. Here they are not.
    """
    _require(body, 1, 2, 8, 9, 10, 11)
    directions = 2 if a["direction"] == "bidirectional" else 1
    w, r = (
        _recurrent_weights(body, [body.input(i) for i in indices], directions) for indices in ((1, 8, 9), (2, 10, 11))
    )
    inputs = [body.input(0), w, r, *map(body.input, range(3, 8))]
    while not inputs[-1]:
        inputs.pop()
    return body.several("LSTM", inputs, 3, **a)


def _recurrent_weights(body: Body, quantised: Sequence[str], directions: int) -> str:
    """Add the weights [D, 4 * hidden_size, inputs] from (integers, scale, zero point) with one scale for each direction
    or for each of its rows.
    """
    halves = [[x] for x in quantised]
    if directions == 2:
        halves = [body.several("Split", [x], 2, axis=0, num_outputs=2) for x in quantised]
    parts = []
    for values, scale, zero in zip(*halves):
        values = body.add("Squeeze", values, body.constant([0]))
        scale, zero = (body.add("Reshape", x, body.constant([-1])) for x in (scale, zero))
        part = body.add("Transpose", _dequantized(body, values, scale, zero, axis=1), perm=[1, 0])
        parts.append(body.add("Unsqueeze", part, body.constant([0])))
    return parts[0] if directions == 1 else body.add("Concat", *parts, axis=0)


# ------------------------------------------------------------------------------------------------ blocks of weights
def _matmul_nbits(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """A W' + bias, where row n of W [N, K] has a scale and a zero point for each `block_size` columns.

    `accuracy_level` is the least precision of the product; that of float32 satisfies all of them.
    """
    x, packed, scales, zero, groups, bias = map(body.input, range(6))
    _require(body, 1, 2)
    n, k, bits, size = a["N"], a["K"], a["bits"], a["block_size"]
    _check_sizes(a)
    _check_block_size(size)
    _check_one_of("bits", bits, PACKED_BITS)
    _check_one_of("weight_prepacked", a["weight_prepacked"], (0,))
    blocks = -(-k // size)
    w = body.add("Reshape", _unpacked(body, packed, bits), body.constant([n, blocks * size]))
    if blocks * size != k:
        w = _tail(body, w, None, k)
    scales = body.add("Reshape", scales, body.constant([n, blocks]))
    kind = body.dtype(3)
    is_float = zero and kind is not None and kind.kind in "fV"
    if not zero:
        zero = body.add("Expand", body.constant(2 ** (bits - 1), np.uint8), body.constant([n, blocks]))
    elif is_float:
        zero = body.add("Reshape", zero, body.constant([n, blocks]))
    else:
        rows = body.add("Reshape", zero, body.constant([n, -(-blocks * bits // 8)]))
        zero = _tail(body, _unpacked(body, rows, bits), None, blocks)
    if groups:  # the block of each column
        scales, zero = (body.add("Gather", parameter, groups, axis=1) for parameter in (scales, zero))
        size = 1
    if is_float:
        zero, scales = (_repeated(body, parameter, n, k, size) for parameter in (zero, scales))
        w = body.add("Mul", body.add("Sub", body.add("CastLike", w, scales), zero), scales)
    elif groups:
        w, zero = (body.add("CastLike", part, scales) for part in (w, zero))
        w = body.add("Mul", body.add("Sub", w, zero), scales)
    else:
        w = _dequantized(body, w, scales, zero, axis=1, block_size=size)
    return [body.plus(body.add("MatMul", x, body.add("Transpose", w, perm=[1, 0])), bias)]


def _repeated(body: Body, x: str, n: int, k: int, size: int) -> str:
    """Add x [n, blocks] with each column `size` times, cut to k columns."""
    if size == 1:
        return x
    blocks = -(-k // size)
    wide = body.add("Expand", body.add("Unsqueeze", x, body.constant([2])), body.constant([n, blocks, size]))
    return _tail(body, body.add("Reshape", wide, body.constant([n, blocks * size])), None, k)


def _matmul_bnb4(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """A W', where W [N, K] is, in the order of memory, a value of a table times the scale of its block."""
    x, packed, scales = map(body.input, range(3))
    n, k, size = a["N"], a["K"], a["block_size"]
    _check_sizes(a)
    _check_block_size(size)
    _check_one_of("quant_type", a["quant_type"], tuple(BNB4))
    _check_one_of("transB", a["transB"], (1,))
    blocks, nbytes = -(-n * k // size), -(-n * k // 2)
    packed = body.add("Reshape", packed, body.constant([nbytes]))
    if blocks * size != 2 * nbytes:
        packed = body.add("Pad", packed, body.constant([0, blocks * size // 2 - nbytes]))
    numbers = body.add("Cast", _unpacked(body, packed, 4, high_first=True), to=INT32)
    table = body.add("CastLike", body.constant(BNB4[a["quant_type"]], np.float32), scales)
    values = body.add("Reshape", body.add("Gather", table, numbers), body.constant([blocks, size]))
    scaled = body.add("Mul", values, body.add("Reshape", scales, body.constant([blocks, 1])))
    flat = _tail(body, body.add("Reshape", scaled, body.constant([-1])), None, n * k)
    w = body.add("Reshape", flat, body.constant([n, k]))
    return [body.add("MatMul", x, body.add("Transpose", w, perm=[1, 0]))]


def _gather_block_quantized(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Gather of dequantised data. Numbers of less than 8 bits are packed along the last axis if the type is uint8.

    An index that is out of range is refused.
    """
    data, indices, scales, zero = map(body.input, range(4))
    kind, bits, size = body.dtype(0), a["bits"], a["block_size"]
    _check_block_size(size)
    if kind is None:
        raise UnsupportedError("input 0 of a type that is not known when the file is read is not supported")
    if kind == np.uint8:
        _check_one_of("bits", bits, PACKED_BITS)
        data = _unpacked(body, data, bits)
        shape = body.add("Shape", scales)
        if zero:
            whole = _unpacked(body, zero, bits)
            last = body.add("Slice", shape, body.constant([-1]), body.constant([2**31]))
            zero = body.add("Slice", whole, body.constant([0]), last, body.constant([-1]))
        else:
            zero = body.add("Expand", body.constant(2 ** (bits - 1), np.uint8), shape)
    values = _dequantized(body, data, scales, zero, axis=a["quantize_axis"], block_size=size)
    return [body.add("Gather", values, indices, axis=a["gather_axis"])]


# ------------------------------------------------------------------------------------------------ integer products
def _integer_product(body: Body, a: Sequence[str], b: Sequence[str], bias: str) -> str:
    """Add the product of quantised matrices, each as (values, scale, zero point), as floats, plus a bias."""
    (x, x_scale, x_zero), (w, w_scale, w_zero) = a, b
    y = body.add("CastLike", body.add("MatMulInteger", x, w, *_zeros(x_zero, w_zero)), x_scale)
    return body.plus(body.add("Mul", y, body.add("Mul", x_scale, w_scale)), bias)


def _zeros(x_zero: str, w_zero: str) -> list[str]:
    """The zero points of a MatMulInteger, of which the last may be absent."""
    return [x_zero, w_zero] if w_zero else [x_zero] if x_zero else []


def _matmul_integer_to_float(body: Body, a: dict[str, Any]) -> Sequence[str]:
    x, w, x_scale, w_scale, x_zero, w_zero, bias = map(body.input, range(7))
    return [_integer_product(body, (x, x_scale, x_zero), (w, w_scale, w_zero), bias)]


def _dynamic_quantize_matmul(body: Body, a: dict[str, Any]) -> Sequence[str]:
    x, w, w_scale, w_zero, bias = map(body.input, range(5))
    quantised = body.several("DynamicQuantizeLinear", [x], 3)
    return [_integer_product(body, quantised, (w, w_scale, w_zero), bias)]


def _qgemm(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """alpha * a_scale * b_scale * (A' B' + C) as float32, or quantised; C is int32."""
    x, x_scale, x_zero, w, w_scale, w_zero, c, y_scale, y_zero = map(body.input, range(9))
    _require(body, 1, 3, 4)
    x, w = (
        body.add("Transpose", matrix, perm=[1, 0]) if a[name] else matrix
        for matrix, name in ((x, "transA"), (w, "transB"))
    )
    y = body.plus(body.add("MatMulInteger", x, w, *_zeros(x_zero, w_zero)), c)
    factor = x_scale if a["alpha"] == 1 else body.add("Mul", body.constant(a["alpha"], np.float32), x_scale)
    factor = body.add("Mul", factor, w_scale)
    y = body.add("Cast", y, to=FLOAT)
    if not y_scale:
        return [body.add("Mul", y, factor)]
    _require(body, 8)
    y = body.add("Mul", y, body.add("Div", factor, y_scale))
    return [body.add("QuantizeLinear", y, body.constant(1, np.float32), y_zero)]


def _qattention(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Attention of the three parts of the product of quantised input and weights."""
    x, w, bias, x_scale, w_scale, mask, x_zero, w_zero, past = map(body.input, range(9))
    _require(body, 1, 2, 3, 4)
    if past:
        raise UnsupportedError("input 'past' is not supported")
    for name in ("do_rotary", "past_present_share_buffer"):
        _check_one_of(name, a[name], (0,))
    projected = _integer_product(body, (x, x_scale, x_zero), (w, w_scale, w_zero), bias)
    parts = body.several("Split", [projected], 3, axis=-1, num_outputs=3)
    mask = mask_of(body, mask, projected, total_keys(body, parts[1], ""), a["mask_filter_value"], "")
    return [attended(body, [*parts, mask], a, 1)[0], ""]


# ------------------------------------------------------------------------------------------------ quantised functions
def _unary(op_type: str) -> Callable[[Body, dict[str, Any]], Sequence[str]]:
    """A function of a quantised tensor, computed in float32; inputs are X, its scale and zero point, and Y's."""

    def expand(body: Body, a: dict[str, Any]) -> Sequence[str]:
        x, x_scale, x_zero, y_scale, y_zero = map(body.input, range(5))
        _require(body, 1, 3)
        a = {name: value for name, value in a.items() if name != "channels_last"}
        y = body.add(op_type, _dequantized(body, x, x_scale, x_zero), **a)
        return [_requantized(body, y, y_scale, y_zero, x)]

    return expand


def _binary(op_type: str) -> Callable[[Body, dict[str, Any]], Sequence[str]]:
    """A function of two quantised tensors, computed in float32; inputs are A and B with scales and zero points, and
    C's.
    """

    def expand(body: Body, a: dict[str, Any]) -> Sequence[str]:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = map(body.input, range(8))
        _require(body, 1, 3, 4, 6)
        y = body.add(op_type, _dequantized(body, x, x_scale, x_zero), _dequantized(body, w, w_scale, w_zero))
        return [_requantized(body, y, y_scale, y_zero, x)]

    return expand


def _pool(op_type: str) -> Callable[[Body, dict[str, Any]], Sequence[str]]:
    """A pooling operator on channels first; files that one processor's layout has are refused."""
    unary = _unary(op_type)

    def expand(body: Body, a: dict[str, Any]) -> Sequence[str]:
        _check_one_of("channels_last", a["channels_last"], (0,))
        return unary(body, a)

    return expand


def _qlinear_softmax(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Softmax over one axis, or before opset 13 over all axes from one on."""
    x, x_scale, x_zero, y_scale, y_zero = map(body.input, range(5))
    _require(body, 1, 3, 4)
    values = _dequantized(body, x, x_scale, x_zero)
    if a["opset"] >= 13:
        y = body.add("Softmax", values, axis=a["axis"])
    else:
        flat = body.add("Softmax", body.add("Flatten", values, axis=a["axis"]), axis=-1)
        y = body.add("Reshape", flat, body.add("Shape", x))
    return [_requantized(body, y, y_scale, y_zero, x)]


def _qlinear_concat(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Concat of tensors of which each has its scale and zero point."""
    names = body.inputs
    if len(names) % 3 != 2 or "" in names:
        raise UnsupportedError(f"{len(names)} inputs: expected a scale, a zero point, and three for each tensor")
    parts = [_dequantized(body, *names[i : i + 3]) for i in range(2, len(names), 3)]
    return [_requantized(body, body.add("Concat", *parts, axis=a["axis"]), names[0], names[1], names[2])]


def _qlinear_where(body: Body, a: dict[str, Any]) -> Sequence[str]:
    condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero = map(body.input, range(9))
    _require(body, *range(9))
    chosen = body.add(
        "Where", condition, _dequantized(body, x, x_scale, x_zero), _dequantized(body, y, y_scale, y_zero)
    )
    return [_requantized(body, chosen, z_scale, z_zero, x)]


def _linear(op_type: str) -> Callable[[Body, dict[str, Any]], Sequence[str]]:
    """QuantizeLinear or DequantizeLinear, which onnxruntime had for more types before ONNX did."""

    def expand(body: Body, a: dict[str, Any]) -> Sequence[str]:
        return [body.add(op_type, *filter(None, (body.input(i) for i in range(3))), **a)]

    return expand


OF_BLOCKS = {"K": REQUIRED, "N": REQUIRED, "block_size": REQUIRED}
OF_CELLS = {"activation_alpha": list, "activation_beta": list, "activations": list, "clip": float}
OF_POOLS = {"auto_pad": str, "ceil_mode": int, "count_include_pad": int, "kernel_shape": list, "pads": list}
MAX_CONCAT = 2 + 3 * 4096  # inputs

FUSIONS = {
    "DequantizeLinear": Fusion(_linear("DequantizeLinear"), (2, 3), {"axis": 1}),
    "DynamicQuantizeLSTM": Fusion(
        _dynamic_quantize_lstm, (12, 12), OF_CELLS | {"direction": "forward", "hidden_size": int, "input_forget": 0}, 3
    ),
    "DynamicQuantizeMatMul": Fusion(_dynamic_quantize_matmul, (3, 5), {}),
    "GatherBlockQuantized": Fusion(
        _gather_block_quantized, (3, 4), {"bits": 4, "block_size": 128, "gather_axis": 0, "quantize_axis": 1}
    ),
    "MatMulBnb4": Fusion(_matmul_bnb4, (3, 3), OF_BLOCKS | {"quant_type": REQUIRED, "training_mode": 0, "transB": 1}),
    "MatMulIntegerToFloat": Fusion(_matmul_integer_to_float, (4, 7), {}),
    "MatMulNBits": Fusion(_matmul_nbits, (3, 6), OF_BLOCKS | {"bits": 4, "accuracy_level": 0, "weight_prepacked": 0}),
    "QAttention": Fusion(_qattention, (5, 9), OF_HEADS | {"do_rotary": 0, "past_present_share_buffer": 0}, 2),
    "QGemm": Fusion(_qgemm, (6, 9), {"alpha": 1.0, "transA": 0, "transB": 0}),
    "QLinearAdd": Fusion(_binary("Add"), (7, 8), {}),
    "QLinearAveragePool": Fusion(_pool("AveragePool"), (4, 5), OF_POOLS | {"strides": list, "channels_last": 0}),
    "QLinearConcat": Fusion(_qlinear_concat, (5, MAX_CONCAT), {"axis": REQUIRED}),
    "QLinearGlobalAveragePool": Fusion(_pool("GlobalAveragePool"), (5, 5), {"channels_last": 0}),
    "QLinearLeakyRelu": Fusion(_unary("LeakyRelu"), (4, 5), {"alpha": 0.01}),
    "QLinearMul": Fusion(_binary("Mul"), (7, 8), {}),
    "QLinearSigmoid": Fusion(_unary("Sigmoid"), (4, 5), {}),
    "QLinearSoftmax": Fusion(_qlinear_softmax, (5, 5), {"axis": -1, "opset": REQUIRED}),
    "QLinearWhere": Fusion(_qlinear_where, (9, 9), {}),
    "QuantizeLinear": Fusion(_linear("QuantizeLinear"), (2, 3), {"axis": 1}),
}
