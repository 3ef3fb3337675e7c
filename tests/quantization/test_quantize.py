"""quantize: which values weights have, how they are found and stored, what the errors say, and what is refused."""

import math
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast import nn, quantize
from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.quantization import model_files
from rnnfast.quantization.quantizer import outputs_error
from rnnfast.quantization.weight_types import WEIGHT_TYPES
from tests.cases import bits
from tests.graphs import load, model_of, onnxruntime, random
from tests.published import published_models

FLOAT = TensorProto.FLOAT
# (values, axis of the rows) of each weight; of "w" and "r" rows are all axes but the last.
WEIGHTS = {
    "conv": (random(1, 14, 3, 5), 0),
    "m": (random(2, 14, 18), 1),
    "left": (random(3, 21, 10), 0),
    "bt": (random(4, 17, 18), 0),
    "c": (random(5, 17, 15), 1),
    "w": (random(6, 2, 28, 15), None),
    "r": (random(7, 2, 28, 7), None),
    "gw": (random(8, 1, 27, 7), None),
    "gr": (random(9, 1, 27, 9), None),
    "rw": (random(10, 1, 21, 9), None),
    "rr": (random(11, 1, 21, 21), None),
}
for array, _ in WEIGHTS.values():
    array *= 0.3  # so that no recurrence makes rounding grow
WEIGHTS["conv"][0][1] = 0
WEIGHTS["m"][0][2, 3] = 9
WEIGHTS["bt"][0][4] *= 1e-40  # denormal numbers
X = random(12, 2, 3, 9)
# Engines sum in another order than rnnfast. Measured: 2.3e-6; what the weights' rounding makes is 3e-4 to 2e-2.
OTHERS = 1e-5
# The same for published models, relative to the largest output: 2.7e-5 for a Silero VAD on noise.
PUBLISHED = 1e-4


def network(opset=17, **changes):
    """Return a model with each operator whose weights are stored, in each of the layouts."""
    weights = {name: array for name, (array, _) in WEIGHTS.items()} | changes
    shapes = {"shape_g": [10, 18], "shape_s": [21, 2, 15], "shape_h": [21, 2, 9], "one": [1]}
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["v"], name="conv", kernel_shape=[5]),
        helper.make_node("Transpose", ["v"], ["vt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["vt", "m"], ["vm"], name="product"),
        helper.make_node("Reshape", ["vm", "shape_g"], ["g"]),
        helper.make_node("Gemm", ["g", "bt"], ["g1"], transB=1, name="rows"),
        helper.make_node("MatMul", ["left", "g1"], ["g2"], name="left"),
        helper.make_node("Gemm", ["g2", "c"], ["g3"], name="columns"),
        helper.make_node("Concat", ["g3", "g3"], ["g4"], axis=0),
        helper.make_node("Reshape", ["g4", "shape_s"], ["s"]),
        helper.make_node("LSTM", ["s", "w", "r"], ["y"], hidden_size=7, direction="bidirectional", name="lstm"),
        helper.make_node("ReduceMax", ["y"], ["z"], axes=[1], keepdims=0)
        if opset < 18
        else helper.make_node("ReduceMax", ["y", "one"], ["z"], keepdims=0),
        helper.make_node("GRU", ["z", "gw", "gr"], ["h"], hidden_size=9, name="gru"),
        helper.make_node("Reshape", ["h", "shape_h"], ["h2"]),
        helper.make_node("RNN", ["h2", "rw", "rr"], ["out"], hidden_size=21),
    ]
    constants = weights | {name: np.array(shape) for name, shape in shapes.items()}
    if opset < 18:
        del constants["one"]
    return model_of(nodes, [("x", FLOAT, [2, 3, 9])], [("out", FLOAT, [21, 1, 2, 21])], constants, opset=opset)


def rounded(array, axis, weights):
    """Return the values that a weight type can hold, by another way than the quantiser's."""
    if weights == "fp16":
        return array.astype(np.float16).astype(np.float32)
    if weights == "bf16":  # to the nearest of the upper halves, an even one if two are as near
        bits = array.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    rows = array.reshape(-1, array.shape[-1]) if axis is None else np.moveaxis(array, axis, 0)
    made = np.empty_like(rows)
    for i in range(len(rows)):
        mantissa, exponent = math.frexp(float(np.abs(rows[i]).max() / np.float32(127)))
        scale = np.float32(math.ldexp(math.floor(mantissa * 2**17) / 2**17, exponent))  # products by integers are exact
        for place, value in np.ndenumerate(rows[i]):
            made[i][place] = np.float32(round(float(value / scale))) * scale if scale > 1e-35 else 0
    return made.reshape(array.shape) if axis is None else np.moveaxis(made, 0, axis)


def quantised(folder, model, weights="int8", **options):
    """Return what `quantize` says, and the ModelProto that it wrote, which is correct."""
    result = quantize(
        model if isinstance(model, bytes) else model.SerializeToString(), folder / "q.onnx", weights, **options
    )
    made = onnx.load(folder / "q.onnx")
    onnx.checker.check_model(made)
    assert result.bytes_after == (folder / "q.onnx").stat().st_size
    return result, made


def peers(path, feed):
    """Return onnxruntime's outputs by name, with no more rounding than the file asks for.

    By default it also rounds the activations of products whose weights are integers.
    """
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))


def product(weights, x_size=5, **options):
    """Return a model of one MatMul."""
    node = helper.make_node("MatMul", ["x", "b"], ["y"], name="product")
    shapes = [("x", FLOAT, [3, x_size])], [("y", FLOAT, [3, weights.shape[1]])]
    return model_of([node], *shapes, {"b": weights}, **options)


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_a_file_has_the_rounded_weights(weights, opset, tmp_path):
    result, made = quantised(tmp_path, network(opset), weights, feed={"x": X})
    assert [layer.op_type for layer in result.layers] == "Conv MatMul Gemm MatMul Gemm LSTM GRU RNN".split()
    assert [layer.kept for layer in result.layers] == [""] * 8
    changes = {name: rounded(a, axis, weights) for name, (a, axis) in WEIGHTS.items()}
    expected = load(network(opset, **changes))(x=X).out
    np.testing.assert_array_equal(rnnfast.load(tmp_path / "q.onnx")(x=X).out, expected)
    before = load(network(opset))(x=X).out
    error = np.abs(expected - before).max() / np.abs(before).max()
    assert error > 1e-5 and result.output_error == pytest.approx(error, rel=1e-9)
    assert not WEIGHTS.keys() & {tensor.name for tensor in made.graph.initializer} and not made.graph.value_info
    assert made.opset_import[0].version == (max(13, opset) if weights == "bf16" else opset)


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_onnxruntime_reads_it(weights, opset, tmp_path):
    quantised(tmp_path, network(opset), weights)
    ours = rnnfast.load(tmp_path / "q.onnx")(x=X).out
    np.testing.assert_allclose(peers(tmp_path / "q.onnx", {"x": X})["out"], ours, rtol=0, atol=OTHERS)


def test_layers_are_measured_alone(tmp_path):
    result, _ = quantised(tmp_path, network(), feed={"x": X})
    before = load(network())(x=X).out
    names = {"conv": ["conv"], "product": ["m"], "rows": ["bt"], "lstm": ["w", "r"]}
    layers = {layer.names[0]: layer for layer in result.layers}
    for node, own in names.items():
        changes = {name: rounded(*WEIGHTS[name], "int8") for name in own}
        error = np.abs(load(network(**changes))(x=X).out.astype(float) - before).max() / np.abs(before).max()
        assert layers[node].output_error == pytest.approx(error, rel=1e-9)
        lost = sum(np.sum((changes[name].astype(float) - WEIGHTS[name][0]) ** 2) for name in own)
        norm = sum(np.sum(WEIGHTS[name][0].astype(float) ** 2) for name in own)
        assert layers[node].weights_error == pytest.approx(np.sqrt(lost / norm), rel=1e-9)
    lstm = layers["lstm"]  # integers, a scale for each row, and two shapes
    assert (lstm.bytes_before, lstm.bytes_after) == (4 * 56 * 22, 56 * 22 + 2 * 4 * 56 + 2 * 24)


def test_a_tolerance_skips_layers(tmp_path):
    free, _ = quantised(tmp_path, network(), feed={"x": X})
    errors = sorted(layer.output_error for layer in free.layers if not layer.kept)
    limit = (errors[-2] + errors[-1]) / 2
    result, made = quantised(tmp_path, network(), feed={"x": X}, tolerance=limit)
    worst = max((layer for layer in free.layers if not layer.kept), key=lambda layer: layer.output_error)
    skipped = [layer for layer in result.layers if layer.over_tolerance]
    assert worst.names in [layer.names for layer in skipped] and result.output_error <= limit
    assert all(layer.bytes_after == layer.bytes_before for layer in skipped)
    none, made = quantised(tmp_path, network(), feed={"x": X}, tolerance=0)
    assert none.output_error == 0 and made == network()
    assert {layer.kept for layer in none.layers} <= {"its error is over the tolerance", "the file would not be smaller"}


def test_layers_are_skipped_until_the_whole_is_within_the_tolerance(tmp_path):
    """Two layers whose errors add up: each alone is within the tolerance."""
    nodes = [helper.make_node("MatMul", ["x", n], [f"y{n}"], name=n) for n in "ab"]
    nodes.append(helper.make_node("Add", ["ya", "yb"], ["y"]))
    b = random(1, 40, 40)
    shapes = [("x", FLOAT, [3, 40])], [("y", FLOAT, [3, 40])]
    model = model_of(nodes, *shapes, {"a": b, "b": b * 1.01})
    feed = {"x": random(2, 3, 40)}
    free, _ = quantised(tmp_path, model, feed=feed)
    alone = max(layer.output_error for layer in free.layers)
    assert free.output_error > alone
    result, _ = quantised(tmp_path, model, feed=feed, tolerance=(free.output_error + alone) / 2)
    worst = max(free.layers, key=lambda layer: layer.output_error).names
    kept = {layer.names: layer.kept for layer in result.layers if layer.kept}
    assert kept == {worst: "the whole model's error would be over the tolerance"}
    assert 0 < result.output_error <= alone


def test_nodes_that_are_to_be_kept(tmp_path):
    result, made = quantised(tmp_path, network(), keep=["lstm", "out"])
    kept = [layer.names for layer in result.layers if layer.kept == "as asked for"]
    assert kept == [("lstm",), ("out",)]
    assert {"w", "r", "rw", "rr"} <= {tensor.name for tensor in made.graph.initializer}
    assert result.output_error is None and all(layer.output_error is None for layer in result.layers)


def branches():
    """Return a model with weights in branches, of constants that are moved, and of nodes that share them."""
    moved = [
        helper.make_node("Transpose", ["outer"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["t"], name="turned"),
        helper.make_node("MatMul", ["t", "own"], ["y0"], name="own"),
    ]
    then = helper.make_graph(
        moved,
        "then",
        [],
        [helper.make_tensor_value_info("y0", FLOAT, [3, 40])],
        [numpy_helper.from_array(random(1, 90, 40), "own")],
    )
    other = helper.make_graph(
        [
            helper.make_node("Constant", [], ["b_else"], value=numpy_helper.from_array(random(3, 20, 40), "")),
            helper.make_node("Constant", [], ["first"], value_ints=[1]),
            helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([21]), "")),
            helper.make_node("Constant", [], ["axis"], value_ints=[0]),
            helper.make_node("Slice", ["outer", "first", "last", "axis"], ["part"]),
            helper.make_node("MatMul", ["x", "part"], ["u"], name="part"),
            helper.make_node("MatMul", ["u", "b_else"], ["y1"], name="constant"),
        ],
        "else",
        [],
        [helper.make_tensor_value_info("y1", FLOAT, [3, 40])],
    )
    return model_of(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
            helper.make_node("MatMul", ["x", "twice"], ["z0"], name="first"),
            helper.make_node("MatMul", ["z0", "twice"], ["z"], name="second"),
            helper.make_node("Gemm", ["z", "twice"], ["g"], name="third", transB=1),
        ],
        [("c", TensorProto.BOOL, []), ("x", FLOAT, [3, 20])],
        [("y", FLOAT, [3, 40]), ("z", FLOAT, [3, 20]), ("g", FLOAT, [3, 20])],
        {"outer": random(4, 90, 20), "twice": random(5, 20, 20)},
    )


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_weights_in_branches_moved_and_shared(weights, tmp_path):
    result, made = quantised(tmp_path, branches(), weights, feed={"c": True, "x": random(6, 3, 20)})
    assert [layer.names for layer in result.layers] == [
        ("part", "turned"),
        ("constant",),
        ("own",),
        ("first", "second", "third"),
    ]
    assert not any(layer.kept for layer in result.layers)
    # of "twice" there is one copy for each way in which its rows are read
    assert result.layers[-1].bytes_before == 1600
    assert result.layers[-1].bytes_after == (2 * 480 if weights == "int8" else 800)
    graphs = [made.graph, *(a.g for node in made.graph.node if node.op_type == "If" for a in node.attribute)]
    stored = [t for g in graphs for t in g.initializer if t.data_type != FLOAT or len(t.dims) > 1]
    assert all(tensor.data_type != FLOAT for tensor in stored)
    for c in (True, False):
        x = random(7, 3, 20)
        ours, before = load(made)(c=c, x=x), load(branches())(c=c, x=x)
        for name, value in before.items():
            assert 0 < np.abs(ours[name] - value).max() < 0.02 * np.abs(value).max()


def matrices(nodes, constants):
    """Return a model of MatMul nodes, (name, weights) each, of an input x of 20 columns; (None, node) is any node."""
    made = [
        node if name is None else helper.make_node("MatMul", ["x", node], [name], name=name) for name, node in nodes
    ]
    outputs = [(name, FLOAT, [3, None]) for name, _ in nodes if name]
    return model_of(made, [("x", FLOAT, [3, 20])], outputs, constants)


def test_equal_weights_are_stored_once(tmp_path):
    turn = [(None, helper.make_node("Transpose", ["b"], [name], perm=[1, 0])) for name in ("b0", "b1")]
    model = matrices([*turn, ("y0", "b0"), ("y1", "b1")], {"b": random(1, 30, 20)})
    result, made = quantised(tmp_path, model)
    (layer,) = result.layers
    assert layer.names == ("y0", "y1") and (layer.bytes_before, layer.bytes_after) == (2400, 600 + 4 * 30)
    assert len(made.graph.initializer) == 2 and [node.op_type for node in made.graph.node].count("Transpose") == 0
    outputs = load(made)(x=random(2, 3, 20))
    np.testing.assert_array_equal(outputs.y0, outputs.y1)


def test_layers_that_turn_out_to_be_one(tmp_path):
    """The fourth node reads the weights of the first and the third, the fifth others of the third."""
    constants = {name: random(i, 20, 30 + i) for i, name in enumerate("abcd")}
    joins = [(None, helper.make_node("Concat", list(names), [names], axis=1)) for names in ("bd", "ba")]
    nodes = [*joins, ("y0", "a"), ("y1", "c"), ("y2", "bd"), ("y3", "ba"), ("y4", "d")]
    result, made = quantised(tmp_path, matrices(nodes, constants))
    assert [layer.names for layer in result.layers] == [("y0", "y2", "y3", "y4"), ("y1",)]
    x = random(9, 3, 20)
    expected = load(matrices(nodes, {name: rounded(a, 1, "int8") for name, a in constants.items()}))(x=x)
    for name, value in load(made)(x=x).items():
        np.testing.assert_array_equal(value, expected[name])


def test_weights_that_branches_make_are_stored_once_around_them(tmp_path):
    def branch(name):
        return helper.make_graph(
            [
                helper.make_node("Constant", [], [f"{name}_shape"], value_ints=[20, 30]),
                helper.make_node("Reshape", ["flat", f"{name}_shape"], [f"{name}_b"]),
                helper.make_node("MatMul", ["x", f"{name}_b"], [name], name=name),
            ],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, [3, 30])],
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("other"))
    inputs = [("c", TensorProto.BOOL, []), ("x", FLOAT, [3, 20])]
    model = model_of([node], inputs, [("y", FLOAT, [3, 30])], {"flat": random(1, 600)})
    result, made = quantised(tmp_path, model)
    assert [layer.names for layer in result.layers] == [("other", "then")]
    assert sorted(tensor.data_type for tensor in made.graph.initializer) == [FLOAT, TensorProto.INT8]
    outputs = [load(made)(c=c, x=random(2, 3, 20)).y for c in (True, False)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("n, stored", [(90, True), (3000, False)])
def test_long_chains_of_constants(n, stored, tmp_path):
    """Each name is read twice, so that there are 2 ** n ways to the weights; those that are too long stay."""
    chain = [
        node
        for i in range(n // 2)
        for node in (
            (None, helper.make_node("Concat", [f"b{i}", f"b{i}"], [f"c{i}"], axis=1)),
            (None, helper.make_node("Slice", [f"c{i}", "zero", "size", "one"], [f"b{i + 1}"])),
        )
    ]
    constants = {"b0": random(1, 20, 30), "zero": np.array([0]), "size": np.array([30]), "one": np.array([1])}
    model = matrices([*chain, ("y0", f"b{n // 2}")], constants)
    if not stored:
        with pytest.raises(UnsupportedError, match="no layer"):
            quantised(tmp_path, model)
        return
    _, made = quantised(tmp_path, model)
    x = random(2, 3, 20)
    expected = load(matrices([("y0", "b0")], {"b0": rounded(constants["b0"], 1, "int8")}))(x=x).y0
    np.testing.assert_array_equal(load(made)(x=x).y0, expected)
    assert [node.op_type for node in made.graph.node] == ["DequantizeLinear", "MatMul"]


def test_of_two_constants_one_is_the_weights(tmp_path):
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"], name="product"), helper.make_node("Add", ["x", "c"], ["y"])]
    shapes = [("x", FLOAT, [30, 40])], [("y", FLOAT, [30, 40])]
    _, made = quantised(tmp_path, model_of(nodes, *shapes, {"a": random(1, 30, 20), "b": random(2, 20, 40)}))
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types == {"a": FLOAT, "b_quantized": TensorProto.INT8, "b_scale": FLOAT}


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_weights_of_loops(weights, tmp_path):
    """A body reads weights of its own and weights of the graph around it, which another node reads too."""

    def model(outer, own):
        body = helper.make_graph(
            [
                helper.make_node("MatMul", ["h", "outer"], ["a"]),
                helper.make_node("MatMul", ["a", "own"], ["b"]),
                helper.make_node("Tanh", ["b"], ["h2"]),
                helper.make_node("Identity", ["go"], ["go2"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("h", FLOAT, [3, 20]),
            ],
            [
                helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
                helper.make_tensor_value_info("h2", FLOAT, [3, 20]),
            ],
            [numpy_helper.from_array(own, "own")],
        )
        nodes = [
            helper.make_node("Loop", ["n", "", "x"], ["y"], body=body),
            helper.make_node("MatMul", ["y", "outer"], ["z"]),
        ]
        constants = {"outer": outer, "n": np.array(4)}
        return model_of(nodes, [("x", FLOAT, [3, 20])], [("z", FLOAT, [3, 30])], constants)

    outer, own, x = random(1, 20, 30) * 0.3, random(2, 30, 20) * 0.3, random(3, 3, 20)
    result, made = quantised(tmp_path, model(outer, own), weights)
    assert [(layer.names, layer.kept) for layer in result.layers] == [(("a", "z"), ""), (("b",), "")]
    expected = load(model(rounded(outer, 1, weights), rounded(own, 1, weights)))(x=x).z
    np.testing.assert_array_equal(load(made)(x=x).z, expected)
    np.testing.assert_allclose(peers(tmp_path / "q.onnx", {"x": x})["z"], expected, rtol=0, atol=OTHERS)


def test_initializers_that_are_inputs_stay(tmp_path):
    """Callers may override them. In old files, where all initializers are inputs, they are weights like others."""
    b = random(1, 50, 40)
    model = product(b, 50)
    model.graph.input.append(helper.make_tensor_value_info("b", FLOAT, b.shape))
    with pytest.raises(UnsupportedError, match="no layer has float32 weights that are constants"):
        quantised(tmp_path, model)
    assert not (tmp_path / "q.onnx").exists()
    model.ir_version, model.opset_import[0].version = 3, 8
    _, made = quantised(tmp_path, model)
    assert made.ir_version == 4 and [value.name for value in made.graph.input] == ["x"]
    x = random(2, 3, 50)
    np.testing.assert_array_equal(load(made)(x=x).y, load(product(rounded(b, 1, "int8"), 50))(x=x).y)


def test_weights_that_others_read_stay(tmp_path):
    model = product(random(1, 50, 40), 50)
    model.graph.node.append(helper.make_node("Gather", ["b", "i"], ["rows"]))
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [2]))
    model.graph.output.append(helper.make_tensor_value_info("rows", FLOAT, [2, 40]))
    result, made = quantised(tmp_path, model)
    assert [layer.kept for layer in result.layers] == ["the file would not be smaller"] and made == model


@pytest.mark.parametrize(
    "value, weights, stored",
    [(7e4, "fp16", False), (7e4, "bf16", True), (np.nan, "int8", False), (np.inf, "bf16", False)],
)
def test_weights_beyond_a_type(value, weights, stored, tmp_path):
    b = random(1, 50, 40)
    b[3, 4] = value
    result, made = quantised(tmp_path, product(b, 50), weights)
    assert [layer.kept for layer in result.layers] == ["" if stored else f"weights are not finite in {weights}"]
    assert stored or made == product(b, 50)


def test_external_data(tmp_path):
    """The file that is written has all weights in itself."""
    model = network()
    expected, _ = quantised(tmp_path, model)
    made = (tmp_path / "q.onnx").read_bytes()
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in/m.onnx", save_as_external_data=True, location="data", size_threshold=0)
    result = quantize(tmp_path / "in/m.onnx", tmp_path / "q.onnx", "int8")
    assert (tmp_path / "q.onnx").read_bytes() == made and result.layers == expected.layers
    assert result.bytes_before > sum(a.nbytes for a, _ in WEIGHTS.values())
    with pytest.raises(ModelError, match="given as bytes"):
        quantize((tmp_path / "in/m.onnx").read_bytes(), tmp_path / "q.onnx", "int8")


def test_large_models_are_refused(tmp_path, monkeypatch):
    onnx.save(network(), tmp_path / "m.onnx", save_as_external_data=True, location="data", size_threshold=0)
    monkeypatch.setattr(model_files, "MAX_BYTES", 10_000)
    with pytest.raises(UnsupportedError, match=r"a model of \d+ bytes cannot be quantised, .*: 2 GB at most"):
        quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "int8")


def test_old_opsets(tmp_path):
    """The opset is raised where no operator of the old one could read the weights, if that changes nothing."""
    b, feed = random(1, 50, 40), {"x": random(2, 3, 50)}
    for weights, opset, new in (("int8", 6, 7), ("fp16", 9, 9), ("bf16", 9, 13), ("bf16", 17, 17)):
        result, made = quantised(tmp_path, product(b, 50, opset=opset), weights, feed=feed)
        assert not result.layers[0].kept and made.opset_import[0].version == new
    _, made = quantised(tmp_path, product(b, 50, opset=9), "bf16", feed=feed, tolerance=0)
    assert made == product(b, 50, opset=9)
    model = product(b, 50, opset=9)
    model.opset_import.add(domain="local", version=1)
    model.functions.append(
        helper.make_function(
            "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 9)]
        )
    )
    model.graph.node.append(helper.make_node("Twice", ["y"], ["z"], domain="local"))
    model.graph.output[0].name = "z"
    assert not quantised(tmp_path, model, "fp16")[0].layers[0].kept
    with pytest.raises(UnsupportedError, match="bf16 needs opset 13, to which it cannot be converted"):
        quantised(tmp_path, model, "bf16")


def test_a_conversion_that_fails(tmp_path, monkeypatch):
    def fail(model, opset):
        raise RuntimeError("No Adapter From Version $9 for Identity")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    with pytest.raises(UnsupportedError, match=r"<bytes>: bf16 needs opset 13, .* No Adapter From Version \$9"):
        quantised(tmp_path, product(random(1, 50, 40), 50, opset=9), "bf16")


def test_a_conversion_that_changes_results_is_refused(tmp_path, monkeypatch):
    changed = product(random(2, 50, 40), 50, opset=13)
    monkeypatch.setattr("rnnfast.quantization.quantizer.converted", lambda *args: changed)
    model, feed = product(random(1, 50, 40), 50, opset=9), {"x": random(3, 3, 50)}
    with pytest.raises(UnsupportedError, match="other results after it was converted"):
        quantised(tmp_path, model, "bf16", feed=feed)
    assert not (tmp_path / "q.onnx").exists()


# ------------------------------------------------------------------------------------ DynamicQuantizeLSTM
def lstm(constant=("w", "r"), **attributes):
    """Return a model of an LSTM with all that it may have."""
    arrays = {
        "w": random(1, 2, 28, 15) * 0.3,
        "r": random(2, 2, 28, 7) * 0.3,
        "b": random(3, 2, 56),
        "p": random(4, 2, 21),
    }
    arrays |= {"lengths": np.array([5, 3], np.int32), "h": random(5, 2, 2, 7), "c": random(6, 2, 2, 7)}
    node = helper.make_node(
        "LSTM",
        ["x", "w", "r", "b", "lengths", "h", "c", "p"],
        ["y", "yh", "yc"],
        name="cell",
        hidden_size=7,
        direction="bidirectional",
        clip=2.5,
        **attributes,
    )
    inputs = [("x", FLOAT, [5, 2, 15]), *((name, FLOAT, arrays[name].shape) for name in "wr" if name not in constant)]
    outputs = [("y", FLOAT, [5, 2, 2, 7]), ("yh", FLOAT, [2, 2, 7]), ("yc", FLOAT, [2, 2, 7])]
    return model_of(
        [node], inputs, outputs, {name: a for name, a in arrays.items() if name not in "wr" or name in constant}
    )


def test_the_form_of_onnxruntime(tmp_path):
    model, x = lstm(), random(7, 5, 2, 15)
    quantised(tmp_path, model)
    expected = rnnfast.load(tmp_path / "q.onnx", weights="int8")(x=x)
    result = quantize(model.SerializeToString(), tmp_path / "q.onnx", "int8", feed={"x": x}, form="onnxruntime")
    made = onnx.load(tmp_path / "q.onnx")
    assert [node.op_type for node in made.graph.node] == ["DynamicQuantizeLSTM"]
    ours = rnnfast.load(tmp_path / "q.onnx")(x=x)
    for name, value in expected.items():  # the operator's weights are integers without being asked for
        np.testing.assert_array_equal(ours[name], value)
    assert 0 < result.output_error < 0.05
    theirs = onnxruntime(made, {"x": x})
    for name, value in expected.items():  # its activations are rounded to 8 bits
        assert 0 < np.abs(theirs[name] - value).max() < 0.05


def test_other_operators_in_the_form_of_onnxruntime(tmp_path):
    quantize(network().SerializeToString(), tmp_path / "q.onnx", "int8", form="onnxruntime")
    ours = rnnfast.load(tmp_path / "q.onnx", weights="int8")(x=X).out
    text = (tmp_path / "q.onnx").read_bytes()
    assert text.count(b"DynamicQuantizeLSTM") == 1 and text.count(b"DequantizeLinear") == 9
    quantised(tmp_path, network())
    np.testing.assert_array_equal(ours, rnnfast.load(tmp_path / "q.onnx", weights="int8")(x=X).out)


def test_lstms_that_cannot_have_the_form_of_onnxruntime(tmp_path):
    with pytest.raises(UnsupportedError, match=r"node 'cell' \(LSTM\) .*: W and R must both be constants"):
        quantised(tmp_path, lstm(["w"]), form="onnxruntime")
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="batched", hidden_size=7, layout=1)
    constants = {"w": random(1, 1, 28, 5), "r": random(2, 1, 28, 7)}
    model = model_of([node], [("x", FLOAT, [2, 3, 5])], [("y", FLOAT, [2, 3, 1, 7])], constants)
    with pytest.raises(UnsupportedError, match=r"node 'batched' \(LSTM\) .* has no attribute 'layout'"):
        quantised(tmp_path, model, form="onnxruntime")
    result, _ = quantised(tmp_path, model, form="onnxruntime", keep=["batched"])
    assert result.layers[0].kept == "as asked for"


# ------------------------------------------------------------------------------------------------- the rest
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"weights": "int4"}, InputError, "weights is 'int4', expected one of int8, fp16, bf16"),
        ({"form": "qdq"}, InputError, "form is 'qdq'"),
        ({"form": "onnxruntime", "weights": "fp16"}, InputError, "has int8 only"),
        ({"keep": ["lstn"]}, InputError, "node 'lstn'"),
        ({"keep": "lstm"}, InputTypeError, "keep is 'lstm'"),
        ({"keep": ["lstm", 3]}, InputTypeError, r"keep is \['lstm', 3\]"),
        ({"tolerance": "0.1", "feed": {"x": X}}, InputTypeError, "tolerance is '0.1'"),
        ({"tolerance": 0.1}, InputError, "no feed"),
        ({"tolerance": -0.1, "feed": {"x": X}}, InputError, "tolerance is -0.1"),
        ({"tolerance": float("nan"), "feed": {"x": X}}, InputError, "tolerance is nan"),
        ({"feed": {"z": X}}, InputError, "'z'"),
    ],
)
def test_wrong_arguments(options, error, message, tmp_path):
    options = {"weights": "int8"} | options
    with pytest.raises(error, match=message):
        quantize(network().SerializeToString(), tmp_path / "q.onnx", **options)
    assert not (tmp_path / "q.onnx").exists()


def same_as_loading(model, quantised, feed, weights, whole=True):
    """Assert that a model loaded with a weight type has the bits of its quantised file; return its outputs.

    whole: whether the file has all layers quantised.
    """
    for activations in (15, 8) if weights == "int8" else (15,):
        options = {"weights": weights, "activations": activations}
        ours = rnnfast.load(model, **options)(feed)
        assert bits(ours.values()) == bits(rnnfast.load(quantised, **options)(feed).values())
    if whole and weights != "int8":  # products are those of float32, as they are without asking for the type
        assert bits(ours.values()) == bits(rnnfast.load(quantised)(feed).values())
    return ours


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_a_file_has_the_bits_of_loading_with_its_type(weights, tmp_path):
    x, feeds = random(6, 3, 20), {"network": {"x": X}}
    feeds |= {f"branch {c}": {"c": c, "x": x} for c in (True, False)}
    for name, feed in feeds.items():
        model = network() if name == "network" else branches()
        _, made = quantised(tmp_path, model, weights)
        plain = load(model)(feed)
        ours = same_as_loading(model.SerializeToString(), made.SerializeToString(), feed, weights)
        assert 1e-5 < outputs_error(ours, plain) < 0.2


def normalised_convolution():
    """Return a convolution with a BatchNormalization, which is folded into its weights, and a depthwise one."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["v"], kernel_shape=[5]),
        helper.make_node("BatchNormalization", ["v", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Conv", ["n", "d"], ["y"], group=14),
    ]
    constants = {"w": random(1, 14, 3, 5), "b": random(2, 14), "d": random(3, 14, 1, 3)}
    constants |= {name: random(4 + i, 14) for i, name in enumerate(("scale", "shift", "mean"))} | {
        "var": np.abs(random(8, 14))
    }
    return model_of(nodes, [("x", FLOAT, ["n", 3, "t"])], [("y", FLOAT, ["n", 14, "s"])], constants)


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_weights_are_rounded_before_they_are_scaled(weights, tmp_path):
    model, feed = normalised_convolution(), {"x": random(9, 2, 3, 29)}
    _, made = quantised(tmp_path, model, weights)
    ours = same_as_loading(model.SerializeToString(), made.SerializeToString(), feed, weights)
    assert 1e-5 < outputs_error(ours, load(model)(feed)) < 0.05


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_models_of_layers(weights, tmp_path):
    layers = nn.Sequential(nn.Linear(9, 31), nn.LSTM(31, 21, bidirectional=True), nn.GRU(42, 17), nn.Linear(17, 5))
    layers.save(tmp_path / "m.onnx")
    x = random(1, 7, 3, 9)
    result = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", weights, feed={"x": x})
    assert sorted(layer.op_type for layer in result.layers) == ["GRU", "LSTM", "MatMul", "MatMul"]
    assert result.bytes_after < {"int8": 0.45, "fp16": 0.6, "bf16": 0.6}[weights] * result.bytes_before
    assert 0 < result.output_error < {"int8": 0.03, "fp16": 1e-3, "bf16": 0.01}[weights]


def errors(expected, ours):
    return outputs_error({"y": ours}, {"y": expected})


def test_the_error_of_outputs():
    a = np.array([1.0, -4, np.nan, np.inf], np.float32)
    assert errors(a, a) == 0 and errors(a, a + np.float32([1, 0, 0, 0])) == 0.25
    assert errors(a, np.array([np.nan, -4, np.nan, np.inf])) == errors(a, a[:3]) == errors(a, -a) == np.inf
    assert errors(np.zeros(2), np.array([0, 0.5])) == 0.5
    assert errors(np.array([3, 4, 5, 6]), np.array([3, 4, 9, 6])) == 0.25
    assert errors([a, a], [a, a + np.float32([0, 2, 0, 0])]) == 0.5 and errors([a], [a, a]) == np.inf
    assert errors(None, None) == 0 and errors(None, a) == errors(a, None) == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHT_TYPES)
@pytest.mark.parametrize("path", published_models())
def test_published_models(path, weights, tmp_path):
    """Each is smaller, unless it is tiny, and gives what onnxruntime gives for the file."""
    model = rnnfast.load(path)
    arrays = np.load(path.with_suffix(".npz"))
    stored = {v.name: "in_" + re.sub(r"[^\w.-]", "_", v.name) for v in model.inputs}
    feed = {name: arrays[key] for name, key in stored.items() if key in arrays}
    assert feed.keys() >= set(model.required_inputs)
    result = quantize(path, tmp_path / "q.onnx", weights, feed=feed)
    onnx.checker.check_model(onnx.load(tmp_path / "q.onnx"))
    assert result.bytes_after < 0.92 * result.bytes_before or result.bytes_before < 3000
    assert result.weights_error < {"int8": 0.013, "fp16": 3e-4, "bf16": 2e-3}[weights]
    same_as_loading(path, tmp_path / "q.onnx", feed, weights, not any(layer.kept for layer in result.layers))
    ours = rnnfast.load(tmp_path / "q.onnx")(feed)
    types = {v.name: v.type.dtype for v in model.inputs}
    theirs = peers(tmp_path / "q.onnx", {name: np.asarray(value, types[name]) for name, value in feed.items()})
    assert outputs_error(ours, theirs) < PUBLISHED
