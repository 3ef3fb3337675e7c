"""The fused operators that onnxruntime has no CPU kernel for, against their documentation in NumPy float64."""

import math

import numpy as np
import onnx
import pytest

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.native import _programs
from rnnfast.onnx import fusions
from tests.graphs import load, random
from tests.onnx.test_fusions import CASES as CASES_OF_CPUS
from tests.onnx.test_fusions import HEADS, TOLERANCE, X, model_of


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x, axes):
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


# ------------------------------------------------------------------------------------------------ the oracles
def bias_softmax(x, bias, axis=1, is_inner_broadcast=0):
    return softmax(x + bias, tuple(range(axis % x.ndim, x.ndim)))


def bias_split_gelu(x, bias):
    left, right = np.split(x + bias, 2, -1)
    return left * erf_gelu(right)


def bias_dropout(x, bias, residual=0, *_, seed=0):
    return x + bias + (0 if residual is None else residual)


def complex_of(x):
    return x[..., 0] + 1j * x[..., 1]


def pairs_of(z):
    return np.stack([z.real, z.imag], -1)


def group_norm(x, gamma, beta, groups, activation, channels_last=1, epsilon=1e-5):
    x = x if channels_last else np.moveaxis(x, 1, -1)
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    y = ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    y = y * sigmoid(y) if activation else y
    return y if channels_last else np.moveaxis(y, -1, 1)


def skip_group_norm(x, gamma, beta, skip, bias=0, **attributes):
    s = x + (skip[:, None, None] if skip.ndim == 2 else skip) + bias
    return group_norm(s, gamma, beta, **attributes), s


def nhwc_conv(x, w, bias=None, strides=(1, 1)):
    return nhwc_fused_conv(x, np.moveaxis(w, 3, 1), bias, strides=strides)


def nhwc_fused_conv(x, w, bias=None, added=None, activation="", strides=(1, 1)):
    height, width = ((x.shape[1 + i] - w.shape[2 + i]) // strides[i] + 1 for i in range(2))
    y = np.zeros((x.shape[0], height, width, w.shape[0]))
    for i in range(height):
        for j in range(width):
            top, left = i * strides[0], j * strides[1]
            window = x[:, top : top + w.shape[2], left : left + w.shape[3]]
            y[:, i, j] = np.einsum("nhwc,mchw->nm", window, w)
    y += (0 if bias is None else bias) + (0 if added is None else added)
    return np.maximum(y, 0) if activation else y


def fused_matmul_activation(a, b, activation, activation_alpha=0.0, alpha=1.0, transB=0):
    y = alpha * (a @ (b.swapaxes(-1, -2) if transB else b))
    return np.where(y < 0, activation_alpha * y, y) if activation == "LeakyRelu" else np.tanh(y)


def bucket_of(behind, buckets, max_distance, is_bidirectional):
    """The bucket of a key that lies `behind` a query (T5, modeling_t5.py of transformers)."""
    first = 0
    if is_bidirectional:
        buckets //= 2
        first = buckets if behind > 0 else 0
        distance = abs(behind)
    else:
        distance = max(-behind, 0)
    short = buckets // 2
    if distance < short:
        return first + distance
    place = math.log(distance / short) / math.log(max_distance / short) * (buckets - short)
    return first + min(short + int(place + 1e-9), buckets - 1)


def relative_position_bias(table, queries, keys, max_distance, is_bidirectional=0):
    columns = table.reshape(table.shape[::-1])  # [heads, buckets]: the table is stored column by column
    n = int(np.reshape(keys, ()))
    places = [
        [bucket_of(k - q, len(table), max_distance, is_bidirectional) for k in range(n)]
        for q in range(int(np.reshape(queries, ())))
    ]
    return columns[:, np.array(places)][None]


def gated_relative_position_bias(query, query_bias, biases, weight, bias, eco, num_heads):
    """The documentation's own lines, of torch."""
    batch, steps, size = query.shape
    layer = (query + query_bias).reshape(batch, steps, num_heads, size // num_heads).swapaxes(1, 2)
    gates = sigmoid((layer @ weight + bias).reshape(batch, num_heads, steps, 2, -1).sum(-1))
    u, r = gates[..., :1], gates[..., 1:]
    return (u * (r * eco - 1.0) + 2.0) * biases


def packed_attention(query, key=None, value=None, bias=None, num_heads=2):
    """Attention of queries, keys and values [batch, steps, heads, parts, size]."""
    if key is None:
        parts = list(np.moveaxis(query, 3, 0))
    else:
        parts = [query.reshape(*query.shape[:2], num_heads, -1), *np.moveaxis(key, 3, 0)]
    if bias is not None:
        parts = [x + b for x, b in zip(parts, bias.reshape(3, num_heads, -1))]
    q, k, v = (x.swapaxes(1, 2) for x in parts)
    y = softmax(q @ k.swapaxes(2, 3) / math.sqrt(q.shape[3]), (3,)) @ v
    return y.swapaxes(1, 2).reshape(*y.swapaxes(1, 2).shape[:2], -1)


IMAGES, OF_GROUPS = random(0, 2, 3, 5, 6), {"groups": 3, "activation": 1}
GAMMA, BETA, SKIP = random(1, 6), random(2, 6), random(3, 2, 3, 5, 6)
SCORES, TABLE = random(0, 2, 3, 4, 5), random(0, 8, 3)
GATED = [X, random(1, 8), random(2, 1, 2, 5, 5), random(3, 4, 6), random(4, 6), random(5, 1, 2, 1, 1)]
PACKED = random(1, 2, 5, 2, 3, 4)


def length(*n):
    return np.array(n or 0, np.int64)


# (operator, oracle, inputs (None: absent), attributes)
CASES = [
    ("BiasAdd", lambda x, bias, skip: x + bias + skip, [X, random(1, 8), random(2, 2, 5, 8)], {}),
    ("BiasDropout", bias_dropout, [X, random(1, 8)], {}),
    ("BiasDropout", bias_dropout, [X, random(1, 8), random(2, 2, 5, 8), np.float32(0.3)], {"seed": 3}),
    ("BiasSoftmax", bias_softmax, [SCORES, random(1, 2, 1, 1, 5)], {"axis": 3, "is_inner_broadcast": 1}),
    ("BiasSoftmax", bias_softmax, [SCORES, random(1, 2, 1, 4, 5)], {"axis": 2, "is_inner_broadcast": 1}),
    ("BiasSoftmax", bias_softmax, [SCORES, random(1, 4, 5)], {"axis": -1, "is_inner_broadcast": 0}),
    ("BiasSoftmax", bias_softmax, [SCORES, random(1, 1, 3, 4, 5)], {"is_inner_broadcast": 0}),
    ("BiasSplitGelu", bias_split_gelu, [X, random(1, 8)], {}),
    ("ComplexMul", lambda a, b: pairs_of(complex_of(a) * complex_of(b)), [random(0, 3, 4, 2), random(1, 4, 2)], {}),
    (
        "ComplexMulConj",
        lambda a, b: pairs_of(complex_of(a) * complex_of(b).conj()),
        [random(0, 3, 4, 2), random(1, 3, 4, 2)],
        {},
    ),
    (
        "FusedMatMulActivation",
        fused_matmul_activation,
        [random(0, 2, 3, 8), random(1, 5, 8)],
        {"activation": "LeakyRelu", "activation_alpha": 0.3, "alpha": 0.5, "transB": 1},
    ),
    ("FusedMatMulActivation", fused_matmul_activation, [X, random(1, 8, 3)], {"activation": "Tanh"}),
    ("GatedRelativePositionBias", gated_relative_position_bias, GATED, {"num_heads": 2}),
    ("GemmFastGelu", lambda x, w: tanh_gelu(x @ w), [X, random(1, 8, 3)], {}),
    ("GemmFastGelu", lambda x, w, b: tanh_gelu(x @ w + b), [X, random(1, 8, 3), random(2, 3)], {}),
    ("GroupNorm", group_norm, [IMAGES, GAMMA, BETA], OF_GROUPS),
    ("GroupNorm", group_norm, [IMAGES, GAMMA, BETA], {"groups": 2, "activation": 0, "epsilon": 0.1}),
    ("GroupNorm", group_norm, [random(0, 2, 6, 3, 5), GAMMA, BETA], OF_GROUPS | {"channels_last": 0}),
    ("MultiHeadAttention", packed_attention, [PACKED], HEADS),
    ("MultiHeadAttention", packed_attention, [PACKED, None, None, random(2, 24)], HEADS),
    ("MultiHeadAttention", packed_attention, [X, random(1, 2, 7, 2, 2, 4)], HEADS),
    ("NhwcConv", nhwc_conv, [random(0, 2, 5, 6, 3), random(1, 4, 2, 3, 3)], {"strides": [2, 1]}),
    ("NhwcConv", nhwc_conv, [random(0, 2, 5, 6, 3), random(1, 4, 2, 2, 3), random(2, 4)], {}),
    ("NhwcFusedConv", nhwc_fused_conv, [random(0, 2, 5, 6, 3), random(1, 4, 3, 2, 3)], {"strides": [1, 2]}),
    (
        "NhwcFusedConv",
        nhwc_fused_conv,
        [random(0, 2, 5, 6, 3), random(1, 4, 3, 2, 3), random(2, 4), random(3, 2, 4, 4, 4)],
        {"activation": "Relu"},
    ),
    ("RelativePositionBias", relative_position_bias, [TABLE, length(7), length(7)], {"max_distance": 5}),
    (
        "RelativePositionBias",
        relative_position_bias,
        [random(0, 32, 2), length(150), length(150)],
        {"max_distance": 128, "is_bidirectional": 1},
    ),
    ("RelativePositionBias", relative_position_bias, [TABLE, np.int64(9), np.int64(9)], {"max_distance": 20}),
    ("Rfft", lambda x: pairs_of(np.fft.rfft(x)), [random(0, 3, 10)], {}),
    ("SkipGroupNorm", skip_group_norm, [IMAGES, GAMMA, BETA, SKIP], OF_GROUPS),
    ("SkipGroupNorm", skip_group_norm, [IMAGES, GAMMA, BETA, SKIP[:, :1, :1], random(4, 6)], OF_GROUPS),
    ("SkipGroupNorm", skip_group_norm, [IMAGES, GAMMA, BETA, SKIP[:, 0, 0]], OF_GROUPS | {"activation": 0}),
]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)])
def test_fused_operators(case, constant):
    op_type, oracle, inputs, attributes = case
    wide = [None if x is None else x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs]
    heads = {"num_heads": 2} if op_type == "MultiHeadAttention" else attributes
    expected = oracle(*wide, **heads)
    expected = expected if type(expected) is tuple else (expected,)
    constants = [f"i{i}" for i in range(1, 9)] if constant else ()
    model, feed = model_of(op_type, inputs, attributes, len(expected), constants)
    ours = load(model)
    for got, want in zip(ours(feed).values(), expected):
        assert got.dtype == np.float32 and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE)
    if constant and op_type != "Rfft":
        assert [type(run) for run, *_ in ours.planned.plans.kept[0].steps] in ([], [_programs.NativeProgram])


def test_every_fused_operator_has_a_case():
    ours = {op_type for domain, op_type in fusions.FUSIONS if domain} - set(fusions.quantized.FUSIONS)
    with_cases = {case[0] for case in CASES + CASES_OF_CPUS}
    assert ours - {"TransposeMatMul"} == with_cases  # of which FusedMatMul is the newer name


def test_the_bias_of_positions_is_that_of_onnxruntimes_own_test():
    """Its values (relative_attention_bias_test.cc), where T5's table is [[1, 2], [3, 4], [5, 6], [7, 8]]."""
    table = np.array([[1, 3], [5, 7], [2, 4], [6, 8]], np.float32)
    model, feed = model_of("RelativePositionBias", [table, length(2), length(2)], {"max_distance": 128}, 1)
    np.testing.assert_array_equal(load(model)(feed).o0, [[[[1, 1], [3, 1]], [[2, 2], [4, 2]]]])
    attributes = {"max_distance": 128, "is_bidirectional": 1}
    model, feed = model_of("RelativePositionBias", [table, length(2), length(2)], attributes, 1)
    np.testing.assert_array_equal(load(model)(feed).o0, [[[[1, 7], [3, 1]], [[2, 8], [4, 2]]]])


def test_other_numbers_of_queries_than_of_keys_are_refused():
    model, feed = model_of("RelativePositionBias", [TABLE, length(5), length(7)], {"max_distance": 5}, 1)
    with pytest.raises(InputError, match="Reshape"):
        load(model)(feed)


def test_groups_of_halves_are_normalized_with_weights_in_float32():
    inputs = [IMAGES.astype(np.float16), GAMMA, BETA]
    model, feed = model_of("GroupNorm", inputs, OF_GROUPS, 1)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    y = load(model)(feed).o0
    expected = group_norm(inputs[0].astype(np.float64), GAMMA, BETA, **OF_GROUPS)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, expected, rtol=2**-10, atol=0)  # an ULP of halves, of which rounding takes half


def test_shapes_that_skip_may_not_have_are_refused():
    model, feed = model_of("SkipGroupNorm", [IMAGES, GAMMA, BETA, SKIP[0]], OF_GROUPS, 1)
    with pytest.raises(InputError, match="Transpose"):
        load(model)(feed)


REFUSED = [
    ("BiasSoftmax", [X, X], {"is_inner_broadcast": 2}, "'is_inner_broadcast' = 2"),
    ("GatedRelativePositionBias", [*GATED, X], {"num_heads": 2}, "'token_offset'"),
    ("GroupNorm", [IMAGES, GAMMA, BETA], OF_GROUPS | {"activation": 2}, "'activation' = 2"),
    ("MultiHeadAttention", [X, PACKED, None, X], HEADS, "'bias' beside keys and values in one input"),
    ("MultiHeadAttention", [X, None, X], HEADS, "values without keys"),
    ("RelativePositionBias", [TABLE, X, X], {"max_distance": 5, "is_bidirectional": 2}, "'is_bidirectional' = 2"),
    ("Rfft", [X], {"signal_ndim": 2}, "'signal_ndim' = 2"),
    ("SkipGroupNorm", [IMAGES, GAMMA, BETA, SKIP], OF_GROUPS | {"channels_last": 0}, "'channels_last' = 0"),
]


@pytest.mark.parametrize("op_type, inputs, attributes, message", REFUSED)
def test_what_is_not_computed_is_refused(op_type, inputs, attributes, message):
    model, _ = model_of(op_type, inputs, attributes, 1)
    with pytest.raises(UnsupportedError, match=rf"node 'fused' \({op_type}\): .*{message}"):
        load(model)
