"""quantize_dynamic: which weights become integers, which values they have, and what is refused."""

import inspect
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.onnxruntime import quantization
from rnnfast.onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, refused
from tests.graphs import load, model_of, random

WEIGHTS = {
    "b": random(1, 5, 6),
    "bt": random(2, 4, 6),
    "c": random(3, 4, 7),
    "w": random(4, 2, 12, 7),
    "r": random(5, 2, 12, 3),
    "gw": random(6, 1, 9, 3),
    "gr": random(7, 1, 9, 3),
    "rw": random(8, 1, 2, 3),
    "rr": random(9, 1, 2, 2),
}
WEIGHTS["b"][:, 2] = 0
WEIGHTS["bt"][1, 3] = 40
X = random(10, 3, 2, 5)


def network(opset=17, **changes):
    """Return a model with each operator whose weights are quantised: MatMul, Gemm, LSTM, GRU and RNN."""
    weights = WEIGHTS | changes
    nodes = [
        helper.make_node("MatMul", ["x", "b"], ["m"], name="product"),
        helper.make_node("Reshape", ["m", "six"], ["flat"]),
        helper.make_node("Gemm", ["flat", "bt"], ["g"], transB=1, name="rows"),
        helper.make_node("Gemm", ["g", "c"], ["g2"], name="columns"),
        helper.make_node("Reshape", ["g2", "steps"], ["s"]),
        helper.make_node("LSTM", ["s", "w", "r"], ["y"], hidden_size=3, direction="bidirectional", name="lstm"),
        helper.make_node("Split", ["y"] if opset < 13 else ["y", "halves"], ["y0", "y1"], axis=1),
        helper.make_node("Reshape", ["y0", "three"], ["z"]),
        helper.make_node("GRU", ["z", "gw", "gr"], ["h"], hidden_size=3, name="gru"),
        helper.make_node("Reshape", ["h", "three"], ["z2"]),
        helper.make_node("RNN", ["z2", "rw", "rr"], ["out"], hidden_size=2, name="rnn"),
    ]
    shapes = {"six": [6, 6], "steps": [3, 2, 7], "three": [3, 2, 3], "halves": [1, 1]}
    constants = weights | {name: np.array(shape) for name, shape in shapes.items()}
    return model_of(
        nodes, [("x", TensorProto.FLOAT, [3, 2, 5])], [("out", TensorProto.FLOAT, [3, 1, 2, 2])], constants, opset=opset
    )


def rounded(name, array):
    """Return the weights that 8 bits can hold, by another way than the quantiser: row by row."""
    rows = array.T if name in ("b", "c") else array.reshape(-1, array.shape[-1])
    made = []
    for row in rows:
        mantissa, exponent = math.frexp(max(abs(value) for value in row) / np.float32(127))
        scale = np.float32(math.ldexp(math.floor(mantissa * 2**17) / 2**17, exponent))  # products are exact
        made.append([np.float32(round(value / scale)) * scale if scale else value for value in row])
    made = np.array(made, np.float32)
    return made.T.copy() if name in ("b", "c") else made.reshape(array.shape)


def quantised(tmp_path, model, **options):
    quantize_dynamic(model, tmp_path / "q.onnx", **options)
    return onnx.load(tmp_path / "q.onnx")


@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("opset", [11, 13, 21])
def test_each_row_is_rounded_to_8_bits(opset, weight_type, tmp_path):
    onnx.save(network(opset), tmp_path / "float.onnx")
    model = quantised(tmp_path, str(tmp_path / "float.onnx"), weight_type=weight_type)
    onnx.checker.check_model(model)
    expected = load(network(opset, **{name: rounded(name, a) for name, a in WEIGHTS.items()}))(x=X).out
    loaded = rnnfast.load(tmp_path / "q.onnx")
    np.testing.assert_array_equal(loaded(x=X).out, expected)
    assert loaded.planned.plans.kept[0].compiled and len(loaded.planned.plans.kept[0].steps) == 1
    assert np.abs(expected - load(network(opset))(x=X).out).max() > 1e-4
    kind = np.int8 if weight_type is QuantType.QInt8 else np.uint8
    integers = [a for a in map(numpy_helper.to_array, model.graph.initializer) if a.dtype == kind and a.ndim > 1]
    assert sorted(a.size for a in integers) == sorted(a.size for a in WEIGHTS.values())
    assert not any(i.name in WEIGHTS for i in model.graph.initializer)
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()  # By default onnxruntime rounds the activations of products with such weights too.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    theirs = ort.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(theirs.run(None, {"x": X})[0], expected, rtol=0, atol=1e-6)


def changed(model):
    """Return the names of the weights that a model no longer has."""
    return set(WEIGHTS) - {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"op_types_to_quantize": ["MatMul"]}, {"b"}),
        ({"op_types_to_quantize": ("GRU", "RNN")}, {"gw", "gr", "rw", "rr"}),
        ({"nodes_to_quantize": ["lstm", "rows"]}, {"w", "r", "bt"}),
        ({"nodes_to_exclude": ["lstm", "rows"]}, set(WEIGHTS) - {"w", "r", "bt"}),
        ({"nodes_to_quantize": ["lstm", "rows"], "nodes_to_exclude": ["rows"]}, {"w", "r"}),
        ({"op_types_to_quantize": [], "per_channel": True, "reduce_range": True}, set(WEIGHTS)),
        ({"extra_options": {"MatMulConstBOnly": True, "EnableSubgraph": False}}, set(WEIGHTS)),
    ],
)
def test_what_is_named_is_quantised(options, expected, tmp_path):
    before = network()
    assert changed(quantised(tmp_path, before, **options)) == expected
    assert before == network()


def test_weights_of_bodies_and_shared_weights(tmp_path):
    """A weight that two nodes read is quantised once; the body's own, the outer one and the Constant are found."""
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "b"], ["t"]),
            helper.make_node("MatMul", ["t", "own"], ["u"]),
            helper.make_node("Add", ["u", "b2"], ["y0"]),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("y0", TensorProto.FLOAT, [3, 2, 6])],
        [numpy_helper.from_array(random(1, 6, 6), "own"), numpy_helper.from_array(random(2, 6), "b2")],
    )
    other = helper.make_graph(
        [
            helper.make_node("Constant", [], ["b_else"], value=numpy_helper.from_array(random(3, 5, 6), "")),
            helper.make_node("MatMul", ["x", "b_else"], ["y1"]),
        ],
        "else",
        [],
        [helper.make_tensor_value_info("y1", TensorProto.FLOAT, [3, 2, 6])],
    )
    model = model_of(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
            helper.make_node("MatMul", ["x", "b"], ["z"]),
            helper.make_node("MatMul", ["b_t", "b"], ["k"]),
            helper.make_node("Add", ["k", "kept"], ["k2"]),
            helper.make_node("MatMul", ["x", "kept"], ["k3"]),
        ],
        [("c", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, [3, 2, 5])],
        [(name, TensorProto.FLOAT, [None] * n) for name, n in (("y", 3), ("z", 3), ("k2", 2), ("k3", 3))],
        {"b": WEIGHTS["b"], "b_t": random(4, 5, 5), "kept": random(5, 5, 6)},
        opset=17,
    )
    for subgraphs in (False, True):
        made = quantised(tmp_path, model, extra_options={"EnableSubgraph": subgraphs})
        onnx.checker.check_model(made)
        text = made.SerializeToString()
        assert text.count(b"DequantizeLinear") == (4 if subgraphs else 2)
        names = {tensor.name for tensor in made.graph.initializer}
        assert {"b_t", "kept"} <= names and ("b" in names) == (not subgraphs)
        for c in (True, False):
            ours, before = load(made)(c=c, x=X), load(model)(c=c, x=X)
            for name, value in before.items():
                difference = np.abs(ours[name] - value).max()
                assert difference < 0.1 and (difference > 0 or name == "y" and not subgraphs)


def test_weights_in_a_file_of_their_own(tmp_path):
    (tmp_path / "out").mkdir()
    node, b = helper.make_node("MatMul", ["x", "b"], ["y"]), random(1, 5, 600)
    shapes = [("x", TensorProto.FLOAT, [3, 2, 5])], [("y", TensorProto.FLOAT, [3, 2, 600])]
    model = model_of([node], *shapes, {"b": b})
    quantize_dynamic(model, tmp_path / "out/q.onnx", use_external_data_format=True)
    assert b.size < (tmp_path / "out/q.onnx.data").stat().st_size < b.nbytes
    quantize_dynamic(model, tmp_path / "q.onnx")
    ours, expected = (rnnfast.load(tmp_path / path)(x=X).y for path in ("out/q.onnx", "q.onnx"))
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"op_types_to_quantize": ["MatMul", "Conv"]}, UnsupportedError, "Conv is not quantised, only Gemm, MatMul"),
        ({"op_types_to_quantize": "MatMul"}, InputTypeError, "op_types_to_quantize"),
        ({"weight_type": QuantType.QInt4}, UnsupportedError, "QInt4"),
        ({"weight_type": "QInt8"}, UnsupportedError, "QInt8"),
        ({"nodes_to_quantize": ["lstn"]}, InputError, "no node 'lstn'"),
        ({"nodes_to_exclude": ["gruu"]}, InputError, "no node 'gruu'"),
        ({"nodes_to_exclude": [3]}, InputTypeError, "nodes_to_exclude"),
        ({"extra_options": {"ForceQuantizeNoInputCheck": True}}, UnsupportedError, "'ForceQuantizeNoInputCheck'"),
    ],
)
def test_other_wishes_are_refused(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        quantize_dynamic(network(), tmp_path / "q.onnx", **options)
    assert not (tmp_path / "q.onnx").exists()


def test_models_that_cannot_be_quantised(tmp_path):
    with pytest.raises(InputError, match="none.onnx"):
        quantize_dynamic(tmp_path / "none.onnx", tmp_path / "q.onnx")
    with pytest.raises(InputError, match="weights 'b' are not finite"):
        quantize_dynamic(network(b=np.full((5, 6), np.nan, np.float32)), tmp_path / "q.onnx")
    with pytest.raises(UnsupportedError, match="opset 6"):
        quantize_dynamic(network(6), tmp_path / "q.onnx")
    with pytest.raises(UnsupportedError, match=r"onnxruntime.quantization.quantize_static is not offered"):
        refused("quantize_static")("model.onnx", "q.onnx", None)


def test_names_are_onnxruntimes():
    theirs = pytest.importorskip("onnxruntime.quantization")
    ours = [*inspect.signature(quantize_dynamic).parameters]
    assert ours == [*inspect.signature(theirs.quantize_dynamic).parameters]
    for kind in (quantization.QuantType, quantization.QuantFormat, quantization.CalibrationMethod):
        for member in getattr(theirs, kind.__name__):
            assert kind[member.name].value == member.value
    assert all(hasattr(theirs, name) for name in quantization.REFUSED)


def test_names_of_types():
    assert QuantType.from_string("QUInt8") is QuantType.QUInt8 and str(QuantType.QInt8) == "QInt8"
    with pytest.raises(InputError, match="no QuantType 'int8'"):
        QuantType.from_string("int8")


def test_a_reader_can_be_derived():
    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": 1}, {"x": 2}]

        def get_next(self):
            return self.left.pop() if self.left else None

    assert len(list(Reader())) == 2
    with pytest.raises(TypeError):
        CalibrationDataReader()
