"""Loading with a weight type: which layers have it, with which weights, and what else a model can do as before."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError, UnsupportedError
from rnnfast.native import _kernels
from rnnfast.native.weight_types import WEIGHT_TYPES, integer_columns
from rnnfast.onnx.weights import WEIGHT_INPUTS, types_within, with_weight_type
from tests.cases import bits, type_options
from tests.graphs import model_of, parse, random

FLOAT = TensorProto.FLOAT
OPTIONS = [type_options(key) for key in WEIGHT_TYPES]
typed = pytest.mark.parametrize("options", OPTIONS, ids=WEIGHT_TYPES)
# Differences to the float64 reference of the same rounded weights, relative to the largest output. Where products are
# in float32: 5e-7 measured. Integers round activations: to 15 bits 1e-4 of a layer's result, to 8 bits 1e-2.
REFERENCE = {"fp16": 2e-6, "bf16": 2e-6, "int8": 2e-3, "int8_a8": 0.1}


def network():
    """A model of the layers that may have a type: convolution, recurrences, Gemm and MatMul, and an Einsum.

    All matrices are large enough for products of integers.
    """
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["v"], name="convolution", kernel_shape=[5], pads=[2, 2]),
        helper.make_node("Transpose", ["v"], ["s"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["s", "w", "r", "b"], ["l"], name="lstm", hidden_size=33, direction="bidirectional"),
        helper.make_node("Transpose", ["l"], ["lt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["lt", "flat"], ["l2"]),
        helper.make_node("GRU", ["l2", "gw", "gr"], ["", "h"], name="gru", hidden_size=33),
        helper.make_node("Squeeze", ["h", "zero"], ["h2"]),
        helper.make_node("Gemm", ["h2", "rows", "c"], ["g"], name="rows", transB=1),
        helper.make_node("MatMul", ["g", "columns"], ["m"], name="columns"),
        helper.make_node("Einsum", ["m", "e"], ["y"], name="einsum", equation="bi,ij->bj"),
    ]
    shapes = {"kernel": (52, 8, 5), "bias": (52,), "w": (2, 132, 52), "r": (2, 132, 33), "b": (2, 264)}
    shapes |= {"gw": (1, 99, 66), "gr": (1, 99, 33), "rows": (50, 33), "c": (50,), "columns": (50, 48), "e": (48, 5)}
    constants = {name: 0.1 * random(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    constants |= {"flat": np.array([0, 0, 66]), "zero": np.array([0])}
    return model_of(
        nodes, [("x", FLOAT, ["batch", 8, "time"])], [("y", FLOAT, ["batch", 5])], constants
    ).SerializeToString()


def error(ours, expected):
    return np.abs(ours - expected).max() / np.abs(expected).max()


@typed
def test_layers_have_the_type(options):
    model, x = rnnfast.load(network(), **options), random(20, 4, 8, 13)
    name = next(key for key, row in WEIGHT_TYPES.items() if row.weights == options["weights"])
    name = "int8_a8" if options.get("activations") == 8 else name
    types = {node.name: node.weight_type for node in model.folded.nodes if node.name}
    assert types == dict.fromkeys(("convolution", "lstm", "gru", "rows", "columns"), name) | {"einsum": None}
    assert (model.weights, model.activations) == (options["weights"], options.get("activations", 15))
    y = model(x=x).y
    assert error(y, model.reference(x=x).y) < REFERENCE[name]
    assert 1e-5 < error(y, rnnfast.load(network()).reference(x=x).y) < 0.05 + REFERENCE[name]


@typed
def test_weights_are_those_of_the_type(options):
    model = rnnfast.load(network(), **options)
    for node in model.folded.nodes:
        for i, name in enumerate(node.inputs):
            if node.weight_type is None or not i or name not in model.folded.constants:
                continue
            array = model.folded.constants[name]
            if array.ndim < 2 or node.op_type in ("LSTM", "GRU") and i > 2:
                continue
            columns = array if node.name == "columns" else array.reshape(-1, array.shape[-1]).T
            columns = array.reshape(len(array), -1).T if node.op_type == "Conv" else columns
            rounded = WEIGHT_TYPES[node.weight_type].rounded(columns)
            np.testing.assert_array_equal(rounded.view(np.int32), columns.view(np.int32))
            if options["weights"] == "int8":
                assert np.all(np.abs(integer_columns(columns)[0]).max(axis=0) == 127)


def test_summary_and_bytes():
    def layers(**options):
        return {layer.name: layer for layer in rnnfast.load(network(), **options).summary().layers}

    plain, half, whole = layers(), layers(weights="bf16"), layers(weights="int8")
    assert {layer.weights for layer in plain.values()} == {"float32"}
    assert {name: layer.weights for name, layer in whole.items()} == dict.fromkeys(whole, "int8") | {
        "einsum": "float32"
    }
    n = 2 * 132 * (52 + 33)
    assert plain["lstm"].nbytes == 4 * n + 4 * 528
    assert half["lstm"].nbytes == 2 * n + 4 * 528
    assert whole["lstm"].nbytes == n + 2 * 4 * 2 * 132 + 4 * 528  # scales of W and R, and biases
    assert whole["columns"].nbytes == 50 * 48 + 4 * 48 and plain["einsum"] == whole["einsum"]
    table = str(rnnfast.load(network(), weights="int8").summary())
    assert re.search(r"^lstm .* int8$", table, re.M) and "weights" not in str(rnnfast.load(network()).summary())


@typed
def test_streams_pools_and_pickles(options, isa):
    w, r, p = (0.1 * random(i, *shape) for i, shape in enumerate([(1, 132, 40), (1, 132, 33), (33, 3)]))
    source = parse(
        """g (float[1,b,40] x, float[1,b,33] h, float[1,b,33] c)
            => (float[1,b,3] y, float[1,b,33] hn, float[1,b,33] cn) {
            s, hn, cn = LSTM <hidden_size = 33> (x, w, r, , , h, c)
            y = MatMul (hn, p) }""",
        w=w,
        r=r,
        p=p,
    )
    model, frames = rnnfast.load(source, **options), random(9, 6, 1, 3, 40)
    states = {"h": "hn", "c": "cn"}
    state = {"h": np.zeros((1, 3, 33), np.float32), "c": np.zeros((1, 3, 33), np.float32)}
    expected = []
    for frame in frames:
        outputs = model(x=frame, **state)
        state = {"h": outputs.hn, "c": outputs.cn}
        expected.append(outputs.y)
    expected = np.array(expected)
    for twin in (model, copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert (twin.weights, twin.activations) == (model.weights, model.activations)
        for row in range(3):
            stream = twin.stream(states=states)
            for t, frame in enumerate(frames):
                y = stream.step(x=np.ascontiguousarray(frame[:, row : row + 1]))
                assert bits([y]) == bits([expected[t][:, row : row + 1]])
    pool = model.pool(3, states=states)
    streams = [pool.open() for _ in range(3)]
    for t, frame in enumerate(frames):
        y = pool.step(np.array(streams), x=frame[0][:, None])
        assert bits([y.reshape(3, 3)]) == bits([expected[t].reshape(3, 3)])


@typed
def test_batches_threads_and_instruction_sets(options, forced):
    x, before, results = random(20, 9, 8, 33), _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            for threads in (1, 3):
                model = rnnfast.load(network(), threads=threads, **options)
                y = model(x=x).y
                results.append(bits([y]))
                for row in (0, 4, 8):
                    assert bits([model(x=x[row : row + 1]).y]) == bits([y[row : row + 1]])
                assert bits([model(x=np.ascontiguousarray(x[::-1])).y[::-1]]) == bits([y])
    finally:
        _kernels.set_isa(before)
    assert all(result == results[0] for result in results)


CONVOLUTIONS = {
    "one axis": ((40, 16, 5), {"pads": [2, 2]}),
    "causal": ((64, 33, 3), {"pads": [2, 0], "strides": [2]}),
    "without padding": ((48, 40, 3), {}),
    "dilated": ((40, 16, 5), {"pads": [4, 4], "dilations": [2]}),
    "groups": ((40, 16, 5), {"pads": [2, 2], "group": 2}),
    "one tap": ((64, 64, 1), {}),
    "two axes": ((40, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
    "one tap of two axes": ((64, 64, 1, 1), {}),
    "depthwise": ((64, 1, 5), {"pads": [2, 2], "group": 64}),
    "mirrored": ((36, 1, 64), {"pads": [32, 32], "strides": [16]}),
}


@typed
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, options, isa):
    """Values are those of the rounded weights, a step's bits do not depend on how many there are."""
    shape, attributes = CONVOLUTIONS[name]
    w, channels = random(1, *shape), shape[1] * attributes.get("group", 1)
    if name == "mirrored":
        w[:18], w[18:] = w[:18] + w[:18, :, ::-1], w[18:] - w[18:, :, ::-1]
    axes = "nchw"[: len(shape)]
    made = model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["v"], **attributes), helper.make_node("Relu", ["v"], ["y"])],
        [("x", FLOAT, ["n", channels, *axes[2:]])],
        [("y", FLOAT, None)],
        {"w": w, "b": random(2, shape[0])},
    ).SerializeToString()
    model, x = (
        rnnfast.load(made, **options),
        random(3, 3, channels, *([40, 80][: len(shape) - 2] if name != "mirrored" else [640])),
    )
    whole = model(x=x).y
    tolerance = (
        0.1 if options.get("activations") == 8 else REFERENCE["int8" if options["weights"] == "int8" else "fp16"]
    )
    assert error(whole, model.reference(x=x).y) < tolerance
    for part in (x[1:2], x[:, :, :9] if name != "mirrored" else x[:, :, :256]):
        y = model(x=part).y
        expected = whole[1:2] if len(part) == 1 else whole[:, :, : y.shape[2]]
        inner = y.shape[2] if len(part) == 1 else max(1, y.shape[2] - 5)  # behind it are other values than padding
        assert bits([y[:, :, :inner]]) == bits([expected[:, :, :inner]])


@typed
def test_a_batcher(options, tmp_path):
    """Sequences of many callers, frame by frame and padded."""
    for bidirectional in (False, True):
        layers = nn.Sequential(nn.Linear(5, 6, rng=1), nn.LSTM(6, 7, bidirectional=bidirectional, rng=2))
        layers.save(tmp_path / "m.onnx", lengths=True)
        model = rnnfast.load(tmp_path / "m.onnx", **options)
        sequences = [random(n, n, 5) for n in (17, 1, 4, 5)]
        expected = [model(x=x[:, None], lengths=[len(x)]).y[:, 0] for x in sequences]
        with rnnfast.Batcher(model, max_batch=3) as batcher:
            futures = [batcher.submit_run(x) for x in sequences]
            assert bits([future.result(20) for future in futures]) == bits(expected)


@typed
def test_blas_multiplies_rounded_weights(options):
    pytest.importorskip("scipy")
    x, name = random(20, 4, 8, 13), options["weights"]
    packed, blas = (rnnfast.load(network(), matmul=matmul, **options) for matmul in ("packed", "blas"))
    assert error(blas(x=x).y, packed.reference(x=x).y) < REFERENCE["fp16"]
    assert error(blas(x=x).y, rnnfast.load(network()).reference(x=x).y) > 1e-5, name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int4"}, "weights is 'int4', expected None or one of 'int8', 'fp16', 'bf16'"),
        ({"weights": "int8_a8"}, "weights is 'int8_a8'"),
        ({"weights": ["int8"]}, "weights is ['int8']"),
        ({"weights": "int8", "activations": 16}, "activations is 16, expected 15 or 8"),
        ({"weights": "int8", "activations": True}, "activations is True, expected 15 or 8"),
        ({"weights": "fp16", "activations": 8}, "activations is 8 with weights 'fp16'"),
        ({"activations": 8}, "activations is 8 with weights None"),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        rnnfast.load(network(), **options)


@pytest.mark.parametrize(
    "value, weights, message",
    [
        (np.nan, "int8", "the weights are not finite, and cannot be int8"),
        (np.inf, "bf16", "the weights are not finite, and cannot be bf16"),
        (65520, "fp16", "the weights are too large for fp16"),
        (3.4e38, "bf16", "the weights are too large for bf16"),
    ],
)
def test_weights_beyond_the_type(value, weights, message):
    b = random(1, 6, 4)
    b[2, 3] = value
    source = parse("g (float[n,6] x) => (float[n,4] y) { [product] y = MatMul (x, b) }", b=b)
    with pytest.raises(UnsupportedError, match=re.escape(f"node 'product' (MatMul): input 1 ('b'): {message}")):
        rnnfast.load(source, weights=weights)
    assert rnnfast.load(source).weights is None


@typed
def test_weights_in_bodies_and_functions(options):
    """Weights of a loop, of a branch and of a function's parameter are rounded; what is not a layer's stays."""
    text = """g (float[n,6] x, bool c) => (float[n,6] y, float[n,6] z, float[6,6] same) {
        same = Identity (w)
        a = local.product (x, w)
        trips = Constant <value = int64 {3}> ()
        y = Loop (trips, , a) <body = body (int64 i, bool go, float[n,6] h) => (bool go2, float[n,6] h2) {
            go2 = Identity (go)
            p = MatMul (h, w)
            h2 = Tanh (p) }>
        z = If (c) <then_branch = t () => (float[n,6] q) { q = MatMul (x, w) },
                    else_branch = e () => (float[n,6] r) { r = Gemm <transB = 1> (x, w) }>
    }
    <domain: "local", opset_import: ["" : 17]> product (u, v) => (s) { s = MatMul (u, v) }"""
    w, x = random(1, 6, 6), random(2, 5, 6)
    rounded = WEIGHT_TYPES[options["weights"]].rounded
    model = rnnfast.load(parse(text, w=w), **options)
    for c in (True, False):
        ours = model(x=x, c=c)
        by_rows = parse(text, w=rounded(w)), parse(text, w=rounded(w.T).T)
        expected = [rnnfast.load(source).reference(x=x, c=c) for source in by_rows]
        tolerance = 0.1 if options.get("activations") == 8 else 5e-3 if options["weights"] == "int8" else 1e-6
        np.testing.assert_allclose(ours.y, expected[0].y, rtol=0, atol=tolerance)
        np.testing.assert_allclose(ours.z, expected[not c].z, rtol=0, atol=tolerance * 10)
        np.testing.assert_array_equal(ours.same, w)


@typed
def test_the_reference_rounds_weights_that_a_loop_only_carries(options):
    """TensorFlow's loops have their weights among the values that they carry."""
    text = """g (float[n,6] x) => (float[n,6] y) {
        trips = Constant <value = int64 {3}> ()
        y, v = Loop (trips, , x, w) <body = body (int64 i, bool go, float[n,6] h, float[6,6] u)
            => (bool go2, float[n,6] h2, float[6,6] u2) {
            go2 = Identity (go)
            u2 = Identity (u)
            p = MatMul (h, u)
            h2 = Tanh (p) }>
    }"""
    model = rnnfast.load(parse(text, w=random(1, 6, 6)), **options)
    x = random(2, 5, 6)
    np.testing.assert_allclose(model(x=x).y, model.reference(x=x).y, rtol=0, atol=1e-6)


@typed
def test_cells_that_are_recognised(options):
    """A cell that the file spells out has weights of the type, and the same ones as the products that it replaces."""
    T, B, H = 5, 3, 16
    text = """g (float[5,b,16] x, float[b,16] h0) => (float[b,16] h) {
        trips = Constant <value = int64 {5}> ()
        h = Loop (trips, , h0) <body = body (int64 i, bool go, float[b,16] h_in) => (bool go2, float[b,16] h_out) {
            go2 = Identity (go)
            frame = Gather (x, i)
            a = MatMul (frame, w)
            b = MatMul (h_in, r)
            s = Add (a, b)
            h_out = Tanh (s) }>
    }"""
    w, r = (0.3 * random(i, H, H) for i in (1, 2))
    feed = {"x": random(3, T, B, H), "h0": random(4, B, H)}
    source = parse(text, w=w, r=r)
    model = rnnfast.load(source, **options)
    spelled = rnnfast.load(source, recognise_cells=False, **options)
    assert len(model.recognised_cells) == 1 and not spelled.recognised_cells
    tolerance = 0.1 if options.get("activations") == 8 else 5e-3 if options["weights"] == "int8" else 2e-6
    np.testing.assert_allclose(model(feed).h, spelled(feed).h, rtol=0, atol=tolerance)
    np.testing.assert_allclose(model(feed).h, model.reference(feed).h, rtol=0, atol=tolerance)


def dynamic_lstm(zero=0, constant=True):
    """A DynamicQuantizeLSTM, its dequantised weights as an LSTM, and an input."""
    rng = np.random.default_rng(3)
    q = {"w": rng.integers(-127, 128, (1, 5, 28)), "r": rng.integers(-127, 128, (1, 7, 28))}
    scales = {name: (0.002 + 0.002 * rng.random((1, 28))).astype(np.float32) for name in q}
    dequantised = {name: ((q[name] - zero) * scales[name][:, None]).astype(np.float32).transpose(0, 2, 1) for name in q}
    constants = {name: q[name].astype(np.int8) for name in q} | {f"{name}_scale": scales[name] for name in q}
    constants |= {f"{name}_zero": np.full((1, 28), zero, np.int8) for name in q}
    if not constant:
        del constants["r"]
    inputs = ["x", "w", "r", "", "", "", "", "", "w_scale", "w_zero", "r_scale", "r_zero"]
    node = helper.make_node("DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", hidden_size=7, name="lstm")
    free = [("x", FLOAT, ["t", "b", 5])] + ([] if constant else [("r", TensorProto.INT8, [1, 7, 28])])
    made = model_of([node], free, [("y", FLOAT, None)], constants)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    plain = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=7)
    same = model_of([plain], [("x", FLOAT, ["t", "b", 5])], [("y", FLOAT, None)], dequantised)
    return made.SerializeToString(), same.SerializeToString(), q["r"].astype(np.int8), random(4, 6, 2, 5)


def test_dynamic_quantize_lstm_computes_in_integers():
    source, same, _, x = dynamic_lstm()
    model = rnnfast.load(source)
    assert types_within(model.folded) == {"int8"} and model.weights is None
    assert bits(model(x=x).values()) == bits(rnnfast.load(same, weights="int8")(x=x).values())
    assert error(model(x=x).y, in_float64(same, x)) < REFERENCE["int8"]
    layer = model.summary().layers[0]
    assert layer.weights == "int8" and layer.nbytes == 28 * 12 + 2 * 4 * 28
    halves = rnnfast.load(source, weights="fp16")
    assert types_within(halves.folded) == {"fp16"}
    assert bits(halves(x=x).values()) == bits(rnnfast.load(same, weights="fp16")(x=x).values())
    assert types_within(pickle.loads(pickle.dumps(model)).folded) == {"int8"}


def in_float64(source, x):
    """The output of a model in float64."""
    return rnnfast.load(source).reference(x=x).y


@pytest.mark.parametrize("case", ["zero point", "computed"])
def test_dynamic_quantize_lstm_of_other_weights_is_in_float32(case):
    """Integers beyond 127 from their zero point are none of the type's, and a call's weights are no constants."""
    source, same, r, x = dynamic_lstm(zero=-60 if case == "zero point" else 0, constant=case != "computed")
    model, feed = rnnfast.load(source), {"x": x} | ({} if case == "zero point" else {"r": r})
    assert types_within(model.folded) == set()
    assert bits(model(feed).values()) == bits(rnnfast.load(same)(x=x).values())


@pytest.mark.slow
def test_published_files_with_dynamic_quantize_lstm(published):
    """Their integers are found, with one scale for all rows or one for each, signed or with a zero point of 128."""
    folder, count = published("models-quantized"), 0
    for entry in json.loads((folder / "models.json").read_text()):
        if "com.microsoft:DynamicQuantizeLSTM" in entry["added_operators"]:
            count += 1
            assert types_within(rnnfast.load(folder / entry["file"]).folded) == {"int8"}, entry["file"]
    assert count > 10


@pytest.mark.slow
def test_published_files_of_stored_integers_lose_nothing(published):
    """Weights behind a DequantizeLinear are taken as they are. Measured: 2e-7 of the largest one."""
    folder = published("models-quantized")
    files = [folder / e["file"] for e in json.loads((folder / "models.json").read_text()) if e["kind"] == "wdq8"]
    for file in files:
        before, after = (layers_of(rnnfast.load(file, **options).folded) for options in ({}, {"weights": "int8"}))
        assert len(before) == len(after) > 0
        for old, new in zip(before, after):
            np.testing.assert_allclose(new, old, rtol=3e-7, atol=0)
    assert files


def layers_of(graph):
    """The matrices that the recurrent nodes and products of a graph read."""
    nodes = [node for node in graph.nodes if node.op_type in WEIGHT_INPUTS]
    names = [node.inputs[i] for node in nodes for i in WEIGHT_INPUTS[node.op_type] if i]
    return [graph.constants[name] for name in names if name in graph.constants]


def test_an_array_that_is_of_the_type_is_not_copied():
    b = WEIGHT_TYPES["int8"].rounded(random(1, 6, 4))
    source = parse("g (float[n,6] x) => (float[n,4] y) { y = MatMul (x, b) }", b=b)
    model = rnnfast.load(source)
    taken = []
    typed = with_weight_type(model.folded, "int8", taken.append)
    assert typed.constants == model.folded.constants and typed.nodes[0].weight_type == "int8"
    assert taken == [b.nbytes]


def test_initializers_that_callers_override_are_float32():
    b = random(1, 6, 4)
    made = model_of(
        [helper.make_node("MatMul", ["x", "b"], ["y"])],
        [("x", FLOAT, ["n", 6]), ("b", FLOAT, [6, 4])],
        [("y", FLOAT, None)],
        {"b": b},
    ).SerializeToString()
    model, x = rnnfast.load(made, weights="int8"), random(2, 3, 6)
    np.testing.assert_allclose(model(x=x, b=b).y, x @ b, rtol=1e-5, atol=1e-5)
    assert error(model(x=x).y, x @ b) > 1e-4


def test_a_session_has_the_options():
    x = random(20, 4, 8, 13)
    for given in ({"weights": "int8", "activations": 8}, {"weights": "fp16"}):
        options = rnnfast.SessionOptions()
        for name, value in given.items():
            setattr(options, name, value)
        expected = rnnfast.load(network(), **given)(x=x).y
        for session in (rnnfast.InferenceSession(network(), options), rnnfast.InferenceSession(network(), **given)):
            assert bits(session.run(None, {"x": x})) == bits([expected])
            assert session.model.weights == given["weights"]
    with pytest.raises(InputError, match="weights is 'bf16', but 'fp16' in sess_options"):
        rnnfast.InferenceSession(network(), options, weights="bf16")


def test_layers_that_were_saved(tmp_path):
    layers = nn.Sequential(nn.Linear(9, 31), nn.LSTM(31, 21, bidirectional=True), nn.GRU(42, 17), nn.Linear(17, 5))
    layers.save(tmp_path / "m.onnx")
    model = rnnfast.load(tmp_path / "m.onnx", weights="int8")
    types = [layer.weights for layer in model.summary().layers if layer.op_type != "Add"]
    assert types == ["int8"] * 4
