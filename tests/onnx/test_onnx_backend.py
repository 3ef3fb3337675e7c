"""ONNX's own node tests, as the installed onnx package makes them: every case made of operators that rnnfast has."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

import rnnfast
from rnnfast.onnx import budget, result_shapes
from rnnfast.onnx.ops import table

# The operators that rnnfast promises, each with all its attributes.
PROMISED = """RNN LSTM GRU MatMul Gemm Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool
BatchNormalization LayerNormalization InstanceNormalization Add Sub Mul Div Pow Min Max Mod Neg Abs Sqrt Exp Log Erf
Floor Ceil Round Sign Reciprocal Sin Cos Sigmoid Tanh Relu LeakyRelu PRelu Elu Selu HardSigmoid HardSwish Softplus
Softsign Gelu Softmax LogSoftmax Clip Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not Where IsNaN Shape
Size Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather GatherElements GatherND ScatterElements
ScatterND Expand Tile Pad Range ConstantOfShape Constant Identity Dropout Cast CastLike OneHot TopK ArgMax ArgMin
NonZero CumSum ReverseSequence EyeLike Trilu ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2
ReduceLogSumExp ReduceSumSquare Einsum If Loop Scan SequenceEmpty SequenceInsert SequenceAt ConcatFromSequence
SplitToSequence""".split()

RANDOM_DROPOUT = "Dropout in training mode drops at random: the expected numbers are those of NumPy's generator"
FRACTIONAL_LENGTH = (
    "align_corners by scales that give a fraction of a length: the expected numbers stretch to that fraction; torch, "
    "onnxruntime and so rnnfast put the last output on the last input"
)
RANDOM_NUMBERS = "random numbers, which are those of another generator"
EXCLUDED = {
    **{
        f"test_bernoulli{kind}{form}": RANDOM_NUMBERS for kind in ("", "_double", "_seed") for form in ("", "_expanded")
    },
    "test_resize_downsample_scales_linear_align_corners": FRACTIONAL_LENGTH,
    "test_resize_downsample_scales_cubic_align_corners": FRACTIONAL_LENGTH,
    **dict.fromkeys(
        (
            "test_training_dropout",
            "test_training_dropout_default",
            "test_training_dropout_mask",
            "test_training_dropout_default_mask",
        ),
        RANDOM_DROPOUT,
    ),
}
GROUPED = ("", "_scaled", "_causal", "_attn_mask", "_softcap", "_with_past_and_present", "_with_past_and_present_fp16")
MASKS = ("", "_3d_mask", "_4d_mask", "_3d_mask_causal", "_4d_mask_causal")
# Cases whose expected values older onnx packages have wrong -> the first version that has them right.
CORRECTED = {
    **dict.fromkeys(  # heads of queries that go to other heads of keys; numbers of other stages of the scores
        (
            *(f"test_attention_{form}_gqa{kind}" for form in ("3d", "4d") for kind in GROUPED),
            *(f"test_attention_3d_with_past_and_present_qk_matmul_{kind}" for kind in ("bias", "softcap")),
            *(f"test_attention_4d_with_qk_matmul_{kind}" for kind in ("bias", "softcap")),
            *(f"test_attention_4d_with_past_and_present_qk_matmul_bias{mask}" for mask in MASKS),
        ),
        (1, 23),
    ),
    **dict.fromkeys(  # cosines that are longer than what they turn
        (
            "test_rotary_embedding_with_rotary_dim",
            "test_rotary_embedding_with_interleaved_rotary_dim",
            "test_rotary_embedding_no_position_ids_rotary_dim",
        ),
        (1, 23),
    ),
    "test_l2normalization_axis_0": (1, 21),  # nan instead of 0
    **dict.fromkeys(  # products beyond int8 that wrap around instead of saturating
        (f"test_qlinearmatmul_{rank}_int8_{scale}" for rank in ("2D", "3D") for scale in ("float16", "float32")),
        (1, 22),
    ),
}
# Attention in half precision, where the expected numbers are of operators that round each for itself: another order of
# sums, or one rounding at the end, moves a result by one or two units in the last place, which is more than the
# package's tolerance of 1e-3.
LAST_PLACE = {
    **{
        f"test_attention_{form}_bf16{expanded}": 2**-6
        for form in ("4d_causal", "4d_padded_kv", "4d_causal_padded_kv", "4d_attn_mask_causal", "3d_causal")
        for expanded in ("", "_expanded")
    },
    "test_attention_4d_causal_fp16_expanded": 2**-8,
}
# Results that would be 0, of which the expected numbers have the rounding errors of another transform: 2e-7.
ZEROS = dict.fromkeys(("test_dft_inverse", "test_dft_inverse_opset19"), 1e-6)


def operators(graph):
    for node in graph.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def cases():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of the package's own NumPy code
        for case in collect_testcases(None):
            functions = {(f.domain, f.name) for f in case.model.functions}
            used = {("" if domain == "ai.onnx" else domain, op) for domain, op in operators(case.model.graph)}
            if used - functions <= table().keys() and case.name not in EXCLUDED:
                yield case


def values(data):
    return [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in data]


CASES = {case.name: case for case in cases()}


@pytest.fixture
def known_before(monkeypatch):
    """What is known of results before they are computed is true of them: what counts before is what is allocated."""

    def checked(self, node, run, inputs, constant, plain=budget.Budget.run):
        monkeypatch.setattr(result_shapes, "LOOKED_AT_BYTES", 0)
        known = result_shapes.known_results(node, inputs)
        results = plain(self, node, run, inputs, constant)
        for one, result in zip(known, results):
            assert one.size == result.size, node.where
            assert node.op_type.endswith("QuantizeLinear") or one.dtype == result.dtype, node.where
        return results

    monkeypatch.setattr(budget.Budget, "run", checked)


def assert_equal(got, want, rtol, atol):
    if isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for g, w in zip(got, want):
            assert_equal(g, w, rtol, atol)
    elif want is None:
        assert got is None
    else:
        want = np.asarray(want)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if want.dtype.kind in "OUS":
            assert got.tolist() == want.tolist()
        else:
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol)


def run_case(case):
    model = rnnfast.load(case.model.SerializeToString())
    for inputs, outputs in case.data_sets:
        got = model(dict(zip([v.name for v in case.model.graph.input], values(inputs))))
        assert_equal(
            list(got.values()), values(outputs), LAST_PLACE.get(case.name, case.rtol), ZEROS.get(case.name, case.atol)
        )


@pytest.mark.parametrize("name", CASES)
def test_node_case(name, known_before):
    if tuple(map(int, onnx.__version__.split(".")[:2])) < CORRECTED.get(name, (0, 0)):
        pytest.skip(f"onnx {onnx.__version__} expects wrong values")
    run_case(CASES[name])


def test_every_promised_operator_has_a_case():
    covered = {op for case in CASES.values() for _, op in operators(case.model.graph)}
    assert [op for op in PROMISED if op not in covered] == [
        "ConcatFromSequence"
    ]  # tests/onnx/ops/test_shape.py tests it


def test_excluded_cases_are_refused_or_give_other_numbers():
    """A case that would pass must not stand in the list."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        excluded = [case for case in collect_testcases(None) if case.name in EXCLUDED]
    assert len(excluded) == len(EXCLUDED)
    for case in excluded:
        with pytest.raises((rnnfast.Error, AssertionError)):
            run_case(case)
