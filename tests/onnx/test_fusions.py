"""The fused operators of onnxruntime against onnxruntime, alone and in the files that it saves of published models."""

import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import InputError, ModelError, UnsupportedError
from rnnfast.native import _programs
from rnnfast.onnx import fusions
from tests import graphs
from tests.cli.test_numpy_share import feed_of
from tests.graphs import load, onnxruntime, random
from tests.paths import ROOT, SHARED
from tests.published import ABSENT

TOLERANCE = 3e-6  # sums of up to some ten products of size 1 in other orders
RNG = np.random.default_rng(11)


def ids(*shape):
    return RNG.integers(0, 5, shape).astype(np.int32)


def mask(*shape):
    mask = RNG.integers(0, 2, shape).astype(np.int32)
    mask[:, 0] = 1
    return mask


X, W2 = random(0, 2, 5, 8), random(1, 8, 24)
HEADS = {"num_heads": 2}
CAUSAL = HEADS | {"unidirectional": 1}
K, V, PAST = random(1, 2, 7, 8), random(2, 2, 7, 8), [random(3, 2, 2, 3, 4), random(4, 2, 2, 3, 4)]
POSITIONS, CACHES = RNG.integers(0, 9, (2, 5)), [random(0, 9, 2), random(1, 9, 2)]
# Four heads of queries for two of keys; caches of 11 rows, of which each row of the batch has filled some.
GROUPS = {"num_heads": 4, "kv_num_heads": 2}
ROTATED = GROUPS | {"do_rotary": 1}
GROUPED = [random(1, 2, 5, 64), random(2, 2, 5, 32), random(3, 2, 5, 32)]
ONE, CACHED = [x[:, :1] for x in GROUPED], [random(4, 2, 2, 11, 16), random(5, 2, 2, 11, 16)]
ANGLES = [random(6, 20, 8), random(7, 20, 8)]


def places(*n):
    return np.array(n, np.int32)


# (operator, inputs (None: absent), names of constants, attributes, outputs)
CASES = [
    ("FusedConv", [random(0, 2, 3, 9), random(1, 4, 3, 3), random(2, 4)], {"activation": "Relu", "pads": [1, 1]}, 1),
    (
        "FusedConv",
        [random(0, 1, 3, 9, 7), random(1, 4, 3, 3, 2), None, random(3, 1, 4, 7, 6)],
        {"activation": "Tanh"},
        1,
    ),
    (
        "FusedConv",
        [random(0, 2, 3, 9), random(1, 4, 3, 3)],
        {"activation": "LeakyRelu", "activation_params": [0.3], "strides": [2]},
        1,
    ),
    (
        "FusedConv",
        [random(0, 2, 3, 9), random(1, 4, 3, 3)],
        {"activation": "Clip", "activation_params": [-0.5, 0.7]},
        1,
    ),
    (
        "FusedConv",
        [random(0, 2, 3, 9), random(1, 4, 3, 3)],
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
        1,
    ),
    ("FusedGemm", [random(0, 3, 8), random(1, 8, 5), random(2, 5)], {"activation": "Sigmoid"}, 1),
    (
        "FusedGemm",
        [random(0, 8, 3), random(1, 5, 8), random(2, 5)],
        {"activation": "LeakyRelu", "activation_alpha": 0.3, "transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        1,
    ),
    ("FusedMatMul", [random(0, 2, 3, 8), random(1, 8, 5)], {"alpha": 0.5}, 1),
    ("FusedMatMul", [random(0, 2, 3, 8), random(1, 5, 8)], {"transB": 1}, 1),
    ("FusedMatMul", [random(0, 2, 4, 8, 3), random(1, 2, 4, 8, 5)], {"transA": 1, "alpha": 2.5}, 1),
    ("FusedMatMul", [random(0, 3, 2, 4, 8), random(1, 8, 2, 4, 5)], {"transBatchA": 1, "transBatchB": 1}, 1),
    (
        "FusedMatMul",
        [random(0, 8, 2, 4, 3), random(1, 5, 2, 4, 8)],
        {"transBatchA": 1, "transBatchB": 1, "transA": 1, "transB": 1},
        1,
    ),
    ("Gelu", [X], {}, 1),
    ("BiasGelu", [X, random(2, 8)], {}, 1),
    ("FastGelu", [X], {}, 1),
    ("FastGelu", [X, random(2, 8)], {}, 1),
    ("QuickGelu", [X], {}, 1),
    ("QuickGelu", [X], {"alpha": 1.0}, 1),
    ("SkipLayerNormalization", [X, random(1, 2, 5, 8), random(2, 8), random(3, 8)], {"epsilon": 1e-5}, 1),
    ("SkipLayerNormalization", [X, random(1, 2, 5, 8), random(2, 8), None, random(4, 8)], {"epsilon": 1e-5}, 4),
    ("SkipLayerNormalization", [X, random(1, 2, 5, 8), random(2, 8), random(3, 8), random(4, 8)], {}, 1),
    ("SkipSimplifiedLayerNormalization", [X, random(1, 2, 5, 8), random(2, 8)], {"epsilon": 1e-5}, 1),
    ("SkipSimplifiedLayerNormalization", [X, random(1, 2, 5, 8), random(2, 8), random(3, 8)], {"epsilon": 1e-5}, 4),
    (
        "EmbedLayerNormalization",
        [ids(2, 5), ids(2, 5), random(0, 6, 8), random(1, 9, 8), random(2, 6, 8), random(3, 8), random(4, 8)],
        {"epsilon": 1e-5},
        2,
    ),
    (
        "EmbedLayerNormalization",
        [ids(2, 5), None, random(0, 6, 8), random(1, 9, 8), None, random(3, 8), random(4, 8), mask(2, 5), ids(2, 5)],
        {"epsilon": 1e-5},
        3,
    ),
    ("Attention", [X, W2, random(2, 24)], HEADS, 1),
    ("Attention", [X, W2, random(2, 24)], HEADS | {"unidirectional": 1, "scale": 0.3}, 1),
    ("Attention", [X, W2, random(2, 24), mask(2, 5)], HEADS, 1),
    ("Attention", [X, W2, random(2, 24), None, None, random(3, 2, 2, 5, 5)], HEADS, 1),
    ("Attention", [X, W2, random(2, 24), None, np.stack(PAST)], HEADS, 2),
    ("Attention", [X, W2, random(2, 24), mask(2, 8), np.stack(PAST)], CAUSAL, 2),
    ("Attention", [X, W2, random(2, 24)], CAUSAL, 2),
    ("Attention", [X, W2, None, places(5, 3)], HEADS, 1),
    ("Attention", [X, W2, random(2, 24), places(7, 4), np.stack(PAST)], CAUSAL, 2),
    ("Attention", [X, W2, random(2, 24), places(5, 3, 1, 2)], HEADS | {"mask_filter_value": -1e30}, 1),
    ("Attention", [X, W2, random(2, 24), mask(2, 5, 5)], CAUSAL, 1),
    ("Attention", [X, W2, random(2, 24), 3 * mask(2, 5), None, random(3, 1, 1, 5, 5)], HEADS, 1),
    ("Attention", [X, W2, random(2, 24), np.zeros((2, 5), np.int32)], HEADS, 1),
    (
        "Attention",
        [X, random(1, 8, 28), random(2, 28)],
        HEADS | {"qkv_hidden_sizes": [8, 8, 12], "mask_filter_value": -1.0},
        1,
    ),
    ("MultiHeadAttention", [X, random(1, 2, 7, 8), random(2, 2, 7, 6)], HEADS, 1),
    ("MultiHeadAttention", [X, random(1, 2, 7, 8), random(2, 2, 7, 12), random(3, 28)], HEADS, 3),
    ("MultiHeadAttention", [X, random(1, 2, 2, 7, 4), random(2, 2, 2, 7, 4)], HEADS, 1),
    ("MultiHeadAttention", [X, K, V, None, None, None, *PAST], HEADS, 3),
    ("MultiHeadAttention", [X, K, V, random(3, 24), mask(2, 10), None, *PAST], HEADS, 3),
    ("MultiHeadAttention", [X, X, X, random(3, 24), None, random(5, 2, 1, 5, 8), *PAST], CAUSAL, 3),
    ("MultiHeadAttention", [X, K, V, None, places(7, 4)], HEADS, 1),
    ("MultiHeadAttention", [X, K, V, None, mask(2, 5, 7)], HEADS, 1),
    ("MultiHeadAttention", [X, K, V, None, mask(2, 7)], HEADS | {"scale": 0.3}, 4),
    ("GroupQueryAttention", [*GROUPED, None, None, places(4, 4), places(5)], GROUPS, 3),
    ("GroupQueryAttention", [*GROUPED, *CACHED, places(4, 4), places(5), *ANGLES], ROTATED | {"softcap": 1.5}, 3),
    ("GroupQueryAttention", [*ONE, *CACHED, places(7, 3), places(8)], GROUPS | {"local_window_size": 3}, 3),
    (
        "GroupQueryAttention",
        [*GROUPED, None, None, places(4, 4), places(5), *ANGLES],
        {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1},
        3,
    ),
    ("GroupQueryAttention", [*ONE, *CACHED, places(9, 3), np.array(10, np.int32), *ANGLES], ROTATED, 3),
    ("GroupQueryAttention", [*ONE, *CACHED, places(10, 3), places(11)], GROUPS | {"scale": 0.3}, 3),
    (
        "GroupQueryAttention",
        [random(1, 2, 5, 128), None, None, None, None, places(4, 4), places(5), *ANGLES],
        ROTATED | {"rotary_interleaved": 1},
        3,
    ),
    ("RotaryEmbedding", [X, POSITIONS, *CACHES], {}, 1),
    ("RotaryEmbedding", [X, np.array([3]), *CACHES], {"interleaved": 1}, 1),
    ("RotaryEmbedding", [X, np.array(4), *CACHES], {"num_heads": 2}, 1),
    ("RotaryEmbedding", [random(2, 2, 3, 5, 4), POSITIONS, *CACHES], {}, 1),
    ("RotaryEmbedding", [random(2, 2, 3, 5, 4), np.array([2]), *CACHES], {}, 1),
    ("RotaryEmbedding", [random(2, 2, 5, 24), POSITIONS, *CACHES], {"num_heads": 3, "rotary_embedding_dim": 4}, 1),
    ("CDist", [random(0, 3, 4), random(1, 5, 4)], {}, 1),
    ("CDist", [random(0, 3, 4), random(1, 5, 4)], {"metric": "euclidean"}, 1),
    ("ExpandDims", [X, np.array(1, np.int32)], {}, 1),
    ("ExpandDims", [X, np.array([-1], np.int32)], {}, 1),
    ("GatherND", [X, ids(3, 2) % 2], {}, 1),
    ("GridSample", [random(0, 2, 3, 4, 5), random(1, 2, 3, 6, 2)], {}, 1),
    (
        "GridSample",
        [random(0, 2, 3, 4, 5), random(1, 2, 3, 6, 2)],
        {"mode": "bicubic", "padding_mode": "reflection", "align_corners": 1},
        1,
    ),
    ("GridSample", [random(0, 2, 3, 4, 5), random(1, 2, 3, 6, 2)], {"mode": "nearest", "padding_mode": "border"}, 1),
    ("Pad", [random(0, 3, 4), np.array([1, 0, 2, 3])], {}, 1),
    ("Pad", [random(0, 3, 4), np.array([[1, -1, 2, 3]]), np.float32([0.7])], {}, 1),
    ("Pad", [random(0, 3, 4), np.array([1, 0, 2, 3])], {"mode": "reflect"}, 1),
    ("Range", [np.float32([1.5]), np.float32(6)], {}, 1),
    ("Range", [np.float32(5), np.float32([-3]), np.float32([-1.5])], {}, 1),
    ("Trilu", [random(0, 2, 4, 5)], {}, 1),
    ("Trilu", [random(0, 2, 4, 5), np.array(-1)], {"upper": 0}, 1),
    ("Unique", [np.float32([3, 1, 1, 2, 3, 0, 1])], {}, 3),
    ("MultiHeadAttention", [X, random(1, 2, 7, 8), random(2, 2, 7, 8), random(3, 24)], HEADS | {"scale": 0.3}, 1),
    ("MultiHeadAttention", [X, random(1, 2, 7, 8), random(2, 2, 7, 8), None, mask(2, 7)], HEADS, 1),
    ("MultiHeadAttention", [X, random(1, 2, 7, 8), random(2, 2, 7, 8), None, None, random(4, 1, 2, 5, 7)], HEADS, 1),
]
# Those whose ONNX operators have no native form, or are views and nothing else.
BY_NUMPY = ("ExpandDims", "GatherND", "GridSample", "Pad", "Range", "Trilu", "Unique")
# (operator, output) -> its type, if it is not float32
OTHER_TYPES = {
    ("EmbedLayerNormalization", 1): TensorProto.INT32,
    ("Unique", 1): TensorProto.INT64,
    ("Unique", 2): TensorProto.INT64,
}
IDS = [f"{case[0]}-{i}" for i, case in enumerate(CASES)]


def model_of(op_type, inputs, attributes, n_outputs, constants=(), domain=fusions.DOMAIN):
    """Return (model, feed)."""
    names = [f"i{i}" if x is not None else "" for i, x in enumerate(inputs)]
    arrays = {name: np.asarray(x) for name, x in zip(names, inputs) if name}
    feed = {name: x for name, x in arrays.items() if name not in constants}
    # whose second output onnxruntime asks for
    every = op_type in ("EmbedLayerNormalization", "GroupQueryAttention", "MultiHeadAttention", "Unique")
    outputs = [f"o{i}" if i in (0, n_outputs - 1) or every else "" for i in range(n_outputs)]
    node = helper.make_node(op_type, names, outputs, "fused", domain=domain, **attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in arrays.items()}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, kinds[name], x.shape) for name, x in feed.items()],
        [
            helper.make_tensor_value_info(name, OTHER_TYPES.get((op_type, i), TensorProto.FLOAT), None)
            for i, name in enumerate(outputs)
            if name
        ],
        [numpy_helper.from_array(x, name) for name, x in arrays.items() if name in constants],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(fusions.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), feed


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fused_operators(case, constant):
    op_type, inputs, attributes, n_outputs = case
    model, feed = model_of(op_type, inputs, attributes, n_outputs, [f"i{i}" for i in range(1, 9)] if constant else ())
    expected = onnxruntime(model, feed)
    ours = load(model)
    got = ours(feed)
    for name, want in expected.items():
        assert got[name].dtype == want.dtype and got[name].shape == want.shape
        np.testing.assert_allclose(got[name], want, rtol=TOLERANCE, atol=TOLERANCE)
    by_numpy = op_type in BY_NUMPY or n_outputs > 3 and op_type == "MultiHeadAttention"
    by_numpy |= attributes.get("alpha") == 0.5 and "Gemm" in op_type
    if constant and not by_numpy:
        assert [type(run) for run, *_ in ours.planned.plans.kept[0].steps] == [_programs.NativeProgram]


def test_the_page_names_every_fused_operator():
    page = (ROOT / "docs" / "operators.md").read_text().partition("## Operators of onnxruntime")[2]
    computed, _, refused = page.partition("| what is refused |")
    assert not {op_type for _, op_type in fusions.FUSIONS} - set(re.findall(r"\w+", computed))
    assert not set(fusions.REFUSED) - set(re.findall(r"\w+", refused))


@pytest.mark.parametrize("op_type", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_normalizations_that_onnxruntime_leaves_in_onnxs_domain(op_type):
    model, feed = model_of(op_type, [X, random(2, 8)], {"axis": -1, "epsilon": 1e-5}, 1, domain="")
    model.opset_import[0].version = 11
    expected = onnxruntime(model, feed)["o0"]
    np.testing.assert_allclose(load(model)(feed).o0, expected, rtol=TOLERANCE, atol=TOLERANCE)


REFUSED = [
    ("QuickGelu", [X], {"beta": 1.0}, UnsupportedError, "attribute 'beta'"),
    ("QuickGelu", [X], {"alpha": 1}, ModelError, "attribute 'alpha' = 1, expected float"),
    ("QuickGelu", [X, X], {}, ModelError, "2 inputs, expected 1 to 1"),
    ("FusedConv", [X, W2], {"activation": "Sinh"}, UnsupportedError, "'Sinh'"),
    ("FusedConv", [X, W2], {"activation": "Relu", "activation_params": [1.0]}, UnsupportedError, "activation_params"),
    ("FusedGemm", [X, W2], {"activation": "Relu", "activation_alpha": 1.0}, UnsupportedError, "'alpha' of activation"),
    ("FusedMatMul", [X, W2], {"transA": 2}, UnsupportedError, "'transA' = 2"),
    ("Attention", [X, W2], {}, ModelError, "'num_heads' is missing"),
    ("Attention", [X, W2], HEADS | {"do_rotary": 1}, UnsupportedError, "'do_rotary' = 1"),
    (
        "Attention",
        [X, W2],
        HEADS | {"past_present_share_buffer": 1},
        UnsupportedError,
        "'past_present_share_buffer' = 1",
    ),
    ("CDist", [X, X], {"metric": "cosine"}, UnsupportedError, "'metric' = 'cosine'"),
    ("GridSample", [X, X], {"mode": "linear"}, UnsupportedError, "'mode' = 'linear'"),
    ("GroupQueryAttention", [*GROUPED, None, None, X, X], GROUPS | {"causal": 0}, UnsupportedError, "'causal' = 0"),
    (
        "GroupQueryAttention",
        [*GROUPED, None, None, X, X],
        GROUPS | {"qk_output": 1},
        UnsupportedError,
        "'qk_output' = 1",
    ),
    ("GroupQueryAttention", [*GROUPED, None, None, X, X], GROUPS | {"smooth_softmax": 1}, UnsupportedError, "smooth"),
    ("GroupQueryAttention", [*GROUPED, None, None, X, X], GROUPS | {"local_window_size": 0}, UnsupportedError, "= 0"),
    ("GroupQueryAttention", [*GROUPED, *CACHED, X, X, X, X, X], GROUPS, UnsupportedError, "input 9"),
    ("GroupQueryAttention", [*GROUPED, None, X, X, X], GROUPS, ModelError, "'past_key' and the one behind it"),
    ("GroupQueryAttention", [*GROUPED, None, None, X, X], ROTATED, ModelError, "caches of angles"),
    (
        "GroupQueryAttention",
        [*GROUPED, *CACHED, X, X],
        GROUPS | {"k_quant_type": "PER_TENSOR"},
        UnsupportedError,
        "quant",
    ),
    ("MultiHeadAttention", [X, K, V, None, None, None, *PAST, ids(1)], HEADS, UnsupportedError, "input 8"),
    ("RotaryEmbedding", [X, POSITIONS, *CACHES], {"scale": 2.0}, UnsupportedError, "'scale' = 2.0"),
    (
        "RotaryEmbedding",
        [X, POSITIONS, *CACHES],
        {"is_packed_batching": 1},
        UnsupportedError,
        "'is_packed_batching' = 1",
    ),
    ("SkipLayerNormalization", [X, X, X], {}, UnsupportedError, "output 1 .* is not computed"),
]


@pytest.mark.parametrize("op_type, inputs, attributes, error, message", REFUSED)
def test_what_is_not_computed_is_refused(op_type, inputs, attributes, error, message):
    model, _ = model_of(op_type, inputs, attributes, 2 if op_type == "SkipLayerNormalization" else 1)
    with pytest.raises(error, match=rf"node 'fused' \({op_type}\): .*{message}"):
        load(model)


def test_masks_of_other_forms_are_refused():
    for wrong in (places(5, 3, 1, 0, 2, 1, 0, 3), np.ones((2, 4), np.int32), np.ones((2, 5, 7), np.int32)):
        model, feed = model_of("Attention", [X, W2, None, wrong], HEADS, 1)
        with pytest.raises(InputError, match="Expand" if wrong.ndim > 1 else "Reshape"):
            load(model)(feed)


def test_operators_that_are_not_computed_are_refused_by_name():
    assert not {op_type for domain, op_type in fusions.FUSIONS if domain} & set(fusions.REFUSED)
    for op_type, why in fusions.REFUSED.items():
        model, _ = model_of(op_type, [X], {}, 1)
        with pytest.raises(UnsupportedError, match=rf"operator com.microsoft.{op_type} is not supported: {why}$"):
            load(model)
    model, _ = model_of("Snpe", [X], {}, 1)
    with pytest.raises(UnsupportedError, match=r"operator com.microsoft.Snpe is not supported$"):
        load(model)


def test_the_layout_of_one_processor_is_refused(tmp_path):
    """At ORT_ENABLE_ALL onnxruntime orders weights by blocks of 8 or 16 channels, as the processor has registers.

    Filters of 32 channels have the same shape in both orders, and no attribute tells which of them it is.
    """
    ort = pytest.importorskip("onnxruntime")
    nodes = [helper.make_node("Conv", [x, f"w{i}"], [y], pads=[1] * 4) for i, (x, y) in enumerate(["xh", "hy"])]
    weights = {"w0": random(0, 32, 3, 3, 3), "w1": random(1, 32, 32, 3, 3)}
    shapes = [("x", TensorProto.FLOAT, [1, 3, 8, 8])], [("y", TensorProto.FLOAT, [1, 32, 8, 8])]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    model = graphs.model_of(nodes, *shapes, weights).SerializeToString()
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    saved = onnx.load(tmp_path / "saved.onnx")
    if not any(node.domain == fusions.BLOCKED for node in saved.graph.node):
        pytest.skip("onnxruntime has no such layout on this processor")
    assert [list(w.dims) for w in saved.graph.initializer] == [[32, 3, 3, 3], [32, 32, 3, 3]]
    message = r"com.microsoft.nchwc.Conv is not supported: .* saved at ORT_ENABLE_ALL .* ORT_ENABLE_EXTENDED$"
    with pytest.raises(UnsupportedError, match=message):
        rnnfast.load(tmp_path / "saved.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": random(2, 1, 3, 8, 8)}
    expected = onnxruntime(model, feed)["y"]
    np.testing.assert_allclose(rnnfast.load(tmp_path / "saved.onnx")(feed).y, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_prompt_that_are_padded():
    """Outputs behind the end of a row are undefined, and new keys there are in the present nevertheless."""
    model, feed = model_of("GroupQueryAttention", [*GROUPED, *CACHED, places(4, 2), places(5)], GROUPS, 3)
    expected, got = onnxruntime(model, feed), load(model)(feed)
    for row, end in enumerate((5, 3)):
        np.testing.assert_allclose(got.o0[row, :end], expected["o0"][row, :end], rtol=TOLERANCE, atol=TOLERANCE)
    for name in ("o1", "o2"):
        np.testing.assert_array_equal(got[name], expected[name])


def test_keys_that_a_cache_has_no_place_for_are_refused():
    for lengths, total in ((places(4, 11), 8), (places(4, -1), 8), (places(4, 12), 13)):
        model, feed = model_of("GroupQueryAttention", [*ONE, *CACHED, lengths, places(total)], GROUPS, 3)
        with pytest.raises(InputError, match="Gather"):
            load(model)(feed)


def test_where_onnxruntime_differs_from_its_documentation():
    """A past is seen though no present is asked for; the last query sees no more keys than those before it."""
    model, feed = model_of("MultiHeadAttention", [X, K, V, None, None, None, *PAST], HEADS, 3)
    expected = onnxruntime(model, feed)["o0"]
    model, feed = model_of("MultiHeadAttention", [X, K, V, None, None, None, *PAST], HEADS, 1)
    np.testing.assert_allclose(load(model)(feed).o0, expected, rtol=TOLERANCE, atol=TOLERANCE)
    model, feed = model_of("MultiHeadAttention", [X, K[:, :5], V[:, :5]], CAUSAL, 1)
    expected = onnxruntime(model, feed)["o0"]
    model, feed = model_of("MultiHeadAttention", [X, K, V], CAUSAL, 1)
    np.testing.assert_allclose(load(model)(feed).o0, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_positions_beyond_the_caches_are_refused():
    for wrong in (-1, 9):
        model, feed = model_of("RotaryEmbedding", [X, np.full((2, 5), wrong), *CACHES], {}, 1)
        with pytest.raises(InputError, match="Gather"):
            load(model)(feed)


def saved_models():
    """Parameters: (folder, entry) of the published models but those whose activations onnxruntime rounds to 8 bits."""
    found = []
    for folder in ("models", "models-more"):
        file = SHARED / folder / "models.json"
        found += [
            pytest.param(folder, entry, id=entry["file"])
            for entry in (json.loads(file.read_text()) if file.exists() else ())
            if "com.microsoft::DynamicQuantizeLSTM" not in entry["ops"]
        ]
    return found or [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=ABSENT))]


@pytest.mark.slow
@pytest.mark.parametrize("folder, entry", saved_models())
def test_files_that_onnxruntime_saved_after_optimising(folder, entry, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = SHARED / folder / entry["file"]
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = rnnfast.load(tmp_path / "optimised.onnx")
    feed = feed_of(model, SHARED / folder / entry["reference"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))
    # IR version 3 lists initializers among the inputs; onnxruntime leaves those there that it folded away.
    read = {name for node in model.graph.nodes for name in node.needs}
    for v in model.inputs:
        if v.name not in feed and v.name not in read and v.name not in model.graph.constants:
            feed[v.name] = np.zeros([n if isinstance(n, int) else 1 for n in v.type.shape], v.type.dtype)
    for name, y in model(feed).items():
        np.testing.assert_allclose(y, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
