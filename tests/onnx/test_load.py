"""Files that are no model, are wrong or ask for too much raise an rnnfast.Error that says what and where."""

import os

import numpy as np
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import InputError, LimitError, ModelError, UnsupportedError
from tests.graphs import load, model_of, one_node, parse, random

X = ("x", TensorProto.FLOAT, ["n"])
Y = ("y", TensorProto.FLOAT, ["n"])


def relu(inputs=("x",), outputs=("y",), **kwargs):
    return helper.make_node("Relu", list(inputs), list(outputs), **kwargs)


def changed(change, nodes=None, **kwargs):
    """A model of one Relu node (or `nodes`) after `change(model)`."""
    model = model_of(nodes or [relu(name="r")], [X], [Y], **kwargs)
    change(model)
    return model


# A change to a sound model, the error and words of its message.
WRONG_FILES = {
    "no graph": (lambda m: m.ClearField("graph"), ModelError, "no graph"),
    "no opset": (lambda m: m.ClearField("opset_import"), ModelError, "no opset"),
    "old IR": (lambda m: setattr(m, "ir_version", 2), UnsupportedError, "IR version 2"),
    "new IR": (lambda m: setattr(m, "ir_version", 1000), UnsupportedError, "IR version 1000"),
    "opset 0": (lambda m: setattr(m.opset_import[0], "version", 0), UnsupportedError, "opset 0"),
    "new opset": (lambda m: setattr(m.opset_import[0], "version", 1000), UnsupportedError, "opset 1000"),
    "two opsets": (lambda m: m.opset_import.append(helper.make_opsetid("", 9)), ModelError, "opsets 17 and 9"),
    "no outputs": (lambda m: m.graph.ClearField("output"), ModelError, "no outputs"),
    "operator": (lambda m: setattr(m.graph.node[0], "op_type", "Nonsense"), UnsupportedError, "'r'.*Nonsense"),
    "domain": (lambda m: setattr(m.graph.node[0], "domain", "com.example"), UnsupportedError, "com.example"),
    "missing tensor": (lambda m: m.graph.node[0].input.__setitem__(0, "z"), ModelError, "'r'.*input 'z'"),
    "missing output": (lambda m: setattr(m.graph.output[0], "name", "z"), ModelError, "output 'z'"),
    "unknown attribute": (
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("slope", 0.5)),
        UnsupportedError,
        "'r'.*'slope' = 0.5",
    ),
    "no input": (lambda m: m.graph.node[0].ClearField("input"), ModelError, "'r'"),
    "too many inputs": (lambda m: m.graph.node[0].input.extend(["x", "x"]), ModelError, "3 inputs.*at most 1"),
    "too many outputs": (lambda m: m.graph.node[0].output.append("z"), ModelError, "2 outputs"),
    "defined twice": (lambda m: m.graph.node.append(relu()), ModelError, "'y' is defined twice"),
    "input produced": (lambda m: m.graph.node[0].output.__setitem__(0, "x"), ModelError, "'x' is defined twice"),
    "inputs twice": (lambda m: m.graph.input.append(m.graph.input[0]), ModelError, "distinct"),
    "input type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
        UnsupportedError,
        "input 'x'.*element type 99",
    ),
    "map input": (lambda m: setattr(m.graph.input[0].type.map_type, "key_type", 7), UnsupportedError, "map_type"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_file(case):
    change, error, message = WRONG_FILES[case]
    with pytest.raises(error, match=f"<bytes>.*{message}"):
        load(changed(change))


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08", b"\x00" * 50, b"\xff" * 50])
def test_no_onnx(data):
    with pytest.raises(ModelError, match="<bytes>.*not an ONNX model"):
        rnnfast.load(data)


@pytest.mark.parametrize("source", [None, 3, ["model.onnx"]])
def test_no_path(source):
    with pytest.raises(ModelError, match="expected a path or the bytes"):
        rnnfast.load(source)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path, "a\0b"):
        with pytest.raises(ModelError, match="cannot be read"):
            rnnfast.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_no_regular_file(tmp_path):
    """Reading from these would wait or never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", tmp_path):
        with pytest.raises(ModelError, match="not a regular file"):
            rnnfast.load(path)


def test_large_file(tmp_path):
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(2**31 + 1)  # takes no room on the disk
    with pytest.raises(ModelError, match="2147483649 bytes"):
        rnnfast.load(tmp_path / "large.onnx")


def test_file_is_named(tmp_path):
    path = tmp_path / "vad.onnx"
    path.write_bytes(changed(WRONG_FILES["operator"][0]).SerializeToString())
    with pytest.raises(UnsupportedError, match="^vad.onnx: node 'r'"):
        rnnfast.load(path)
    path.write_bytes(changed(lambda m: None).SerializeToString()[:-9])
    with pytest.raises(ModelError, match="^vad.onnx"):
        rnnfast.load(str(path))


def test_every_truncation_is_refused_or_whole():
    data = one_node("MatMul", {"x": random(0, 2, 3), "w": random(1, 3, 4)}, constants=("w",)).SerializeToString()
    for size in range(len(data)):
        try:
            rnnfast.load(data[:size])
        except rnnfast.Error:
            continue


def test_bytes_changed_at_random():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "", "n"], ["", "y"], hidden_size=3, direction="reverse"),
        helper.make_node("Squeeze", ["y", "axes"], ["z"]),
    ]
    sound = model_of(
        nodes,
        [("x", TensorProto.FLOAT, ["t", 2, 4]), ("n", TensorProto.INT32, [2])],
        [("z", TensorProto.FLOAT, [2, 3])],
        {"w": random(0, 1, 12, 4), "r": random(1, 1, 12, 3), "axes": np.array([0])},
    ).SerializeToString()
    feed = {"x": random(2, 5, 2, 4), "n": np.array([5, 2], np.int32)}
    for _ in range(500):
        data = bytearray(sound)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        try:
            rnnfast.load(bytes(data))(feed)
        except rnnfast.Error:
            continue


def test_cycle_and_order():
    cycle = [relu(["b"], ["a"], name="first"), relu(["a"], ["b"], name="second"), relu(["a"], ["y"])]
    with pytest.raises(ModelError, match="cycle.*'first'.*'second'"):
        load(changed(lambda m: None, cycle))
    unsorted = [helper.make_node("Neg", ["b"], ["y"]), helper.make_node("Abs", ["a"], ["b"]), relu(["x"], ["a"])]
    np.testing.assert_array_equal(load(changed(lambda m: None, unsorted))(x=[-1.0, 2.0]).y, [0, -2])


# An attribute of Gemm, Cast, Pad ..., the error and words of its message.
WRONG_ATTRIBUTES = {
    "type": ("Softmax", helper.make_attribute("axis", 1.0), ModelError, "'axis' = 1.0 is FLOAT, expected INT"),
    "no type": ("Softmax", AttributeProto(name="axis", i=1), ModelError, "'axis'"),
    "value": ("Pad", helper.make_attribute("mode", "mirror"), UnsupportedError, "'mode' = 'mirror'.*'constant'"),
    "flag": ("ArgMax", helper.make_attribute("keepdims", 2), UnsupportedError, "'keepdims' = 2.*0 or 1"),
    "text": ("Pad", AttributeProto(name="mode", type=AttributeProto.STRING, s=b"\xff"), ModelError, "UTF-8"),
    "element type": ("Cast", helper.make_attribute("to", 99), UnsupportedError, "'to'.*element type 99"),
    "unused form": ("Softmax", helper.make_attribute("axes", [1]), UnsupportedError, r"'axes' = \[1\]"),
}


@pytest.mark.parametrize("case", WRONG_ATTRIBUTES)
def test_wrong_attribute(case):
    op_type, attribute, error, message = WRONG_ATTRIBUTES[case]
    inputs = {"x": random(0, 2, 3)} | ({"pads": np.zeros(4, np.int64)} if op_type == "Pad" else {})
    model = one_node(op_type, inputs)
    model.graph.node[0].attribute.append(attribute)
    with pytest.raises(error, match=f"node 'node' .{op_type}.*{message}"):
        load(model)


def test_attributes_missing_and_doubled():
    model = one_node("Cast", {"x": random(0, 2)})
    with pytest.raises(ModelError, match="'to' is missing"):
        load(model)
    model.graph.node[0].attribute.extend([helper.make_attribute("to", 7)] * 2)
    with pytest.raises(ModelError, match="'to' is given twice"):
        load(model)


def test_operator_at_its_opsets():
    assert load(one_node("Gelu", {"x": random(0, 3)}, opset=20))(x=[0.0]).out0 == [0.0]
    with pytest.raises(UnsupportedError, match="Gelu is not supported at opset 19"):
        load(one_node("Gelu", {"x": random(0, 3)}, opset=19))
    # opset 7 changed Dropout, not Relu
    assert load(changed(lambda m: None, opset=6))(x=[-1.0, 2.0]).y.tolist() == [0, 2]
    with pytest.raises(UnsupportedError, match="Dropout.*this is 6|Dropout.*at opset 6"):
        load(one_node("Dropout", {"x": random(0, 3)}, opset=6))


def test_unused_domains_are_accepted():
    model = changed(lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1000)))
    assert load(model)(x=[-1.0]).y.tolist() == [0]


def test_problems_are_collected():
    from rnnfast.onnx.graph import read

    problems = []
    nodes = [helper.make_node("Nonsense", ["x"], ["a"]), helper.make_node("Softmax", ["a"], ["y"], slope=1)]
    graph, _ = read(changed(lambda m: None, nodes).SerializeToString(), problems)
    assert [str(p).split("(")[1].split(")")[0] for p in problems] == ["Nonsense", "Softmax"]
    assert len(graph.nodes) == 2


# ------------------------------------------------------------------------------------------------ tensors
def weights(change=lambda t: None, array=np.arange(6, dtype=np.float32).reshape(2, 3)):
    """A model x + w after `change` to the initializer w."""
    tensor = numpy_helper.from_array(array, "w")
    change(tensor)
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, [2, 3])],
        [("y", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(tensor)
    return model


def as_floats(tensor):
    tensor.ClearField("raw_data")
    tensor.float_data.extend(range(5))


WRONG_TENSORS = {
    "short": (lambda t: setattr(t, "raw_data", t.raw_data[:-1]), ModelError, "23 bytes.*24"),
    "long": (lambda t: setattr(t, "raw_data", t.raw_data + b"x"), ModelError, "25 bytes.*24"),
    "no data": (lambda t: t.ClearField("raw_data"), ModelError, "0 values"),
    "too few": (as_floats, ModelError, "5 values"),
    "negative": (lambda t: t.dims.__setitem__(0, -2), ModelError, "negative"),
    "huge": (lambda t: t.dims.__setitem__(0, 2**62), ModelError, "bytes of data"),
    "type": (lambda t: setattr(t, "data_type", 99), UnsupportedError, "element type 99"),
    "undefined": (lambda t: setattr(t, "data_type", 0), UnsupportedError, "element type 0"),
    "other type": (lambda t: setattr(t, "data_type", TensorProto.DOUBLE), ModelError, "24 bytes.*48"),
    "raw strings": (lambda t: setattr(t, "data_type", TensorProto.STRING), ModelError, "raw"),
    "no name": (lambda t: setattr(t, "name", ""), ModelError, "without a name"),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensor(case):
    change, error, message = WRONG_TENSORS[case]
    with pytest.raises(error, match=message):
        load(weights(change))


def test_doubled_initializer():
    model = weights()
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelError, match="'w' is given twice"):
        load(model)


@pytest.mark.parametrize("dtype", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 21, 22])
@pytest.mark.parametrize("raw", [True, False])
def test_every_element_type_decodes(dtype, raw):
    from rnnfast.onnx import tensors

    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(tensors.numpy_dtype(dtype))
    if raw:
        tensor = numpy_helper.from_array(values, "t")
    else:
        tensor = helper.make_tensor("t", dtype, values.shape, values.reshape(-1).tolist())
    decoded = tensors.decode(tensor, "here")
    assert decoded.dtype == values.dtype and not decoded.flags.writeable
    np.testing.assert_array_equal(decoded.astype(np.float64), values.astype(np.float64))


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializer(linear):
    model = weights()
    del model.graph.initializer[:]
    indices = np.array([1, 5]) if linear else np.array([[0, 1], [1, 2]])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.array([3, -2], np.float32), "w"), numpy_helper.from_array(indices, "i"), [2, 3]
        )
    )
    np.testing.assert_array_equal(load(model)(x=np.zeros((2, 3), np.float32)).y, [[0, 3, 0], [0, 0, -2]])
    model.graph.sparse_initializer[0].dims[0] = 1
    with pytest.raises(ModelError, match="outside"):
        load(model)
    model.graph.sparse_initializer[0].dims[0] = 2**40
    with pytest.raises(LimitError):
        load(model)


# ------------------------------------------------------------------------------------------------ nesting
def nested_ifs(depth):
    graph = helper.make_graph([relu(outputs=["y0"])], "g", [], [helper.make_tensor_value_info("y0", 1, ["n"])])
    for i in range(1, depth):
        node = helper.make_node("If", ["c"], [f"y{i}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info(f"y{i}", 1, ["n"])])
    graph.input.extend([helper.make_tensor_value_info(*X), helper.make_tensor_value_info("c", TensorProto.BOOL, [])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_nesting_is_bounded():
    np.testing.assert_array_equal(load(nested_ifs(6))(x=[-1.0, 2.0], c=True)["y5"], [0, 2])

    def deep(node, levels):
        for _ in range(levels):
            graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, ["n"])])
            node = helper.make_node(
                "If",
                ["c"],
                ["y"],
                then_branch=graph,
                else_branch=helper.make_graph([relu()], "e", [], [helper.make_tensor_value_info("y", 1, ["n"])]),
            )
        return model_of([node], [X, ("c", TensorProto.BOOL, [])], [Y])

    with pytest.raises(LimitError, match="nested deeper"):
        load(deep(relu(), 28))


def function(name, body, opset=17):
    return helper.make_function(
        "local", name, ["a"], ["b"], body, [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    )


def calling(*functions):
    model = model_of([helper.make_node("f0", ["x"], ["y"], domain="local")], [X], [Y])
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.extend(functions)
    return model


def test_functions_that_call_themselves_or_too_many():
    call = helper.make_node("f0", ["a"], ["b"], domain="local")
    with pytest.raises(ModelError, match="calls itself"):
        load(calling(function("f0", [call])))
    doubling = [
        function(
            f"f{i}",
            [
                helper.make_node(f"f{i + 1}", ["a"], ["c"], domain="local"),
                helper.make_node(f"f{i + 1}", ["c"], ["b"], domain="local"),
            ],
        )
        for i in range(20)
    ]
    with pytest.raises(LimitError, match="nodes"):
        rnnfast.load(
            calling(*doubling, function("f20", [relu(["a"], ["b"])])).SerializeToString(),
            limits=rnnfast.Limits(nodes=1000),
        )
    with pytest.raises(ModelError, match="defined twice"):
        load(calling(function("f0", [relu(["a"], ["b"])]), function("f0", [relu(["a"], ["b"])])))


def test_fixed_shapes_that_do_not_fit_are_found_at_load():
    text = "g (float[2,3] x) => (float[2,5] y) { z = MatMul(v, w)  y = MatMul(x, z) }"
    with pytest.raises(ModelError, match="MatMul"):
        rnnfast.load(parse(text, v=random(0, 3, 4), w=random(1, 5, 5)))


# ------------------------------------------------------------------------------------------------ references
def referring(node, name="alpha", with_value=True):
    """The node with its attribute `name` (or a new float one) referring to `outer` of a function."""
    attribute = next((a for a in node.attribute if a.name == name), None) or node.attribute.add(name=name, type=1)
    if not with_value:
        for field in ("f", "i", "s", "ints", "floats"):
            attribute.ClearField(field)
    attribute.ref_attr_name = "outer"
    return node


@pytest.mark.parametrize("with_value", [True, False])
@pytest.mark.parametrize(
    "op, attributes",
    [
        ("LeakyRelu", {"alpha": 0.5}),
        ("Elu", {"alpha": 2.0}),
        ("Transpose", {"perm": [0]}),
        ("Softmax", {"axis": 0}),
        ("Flatten", {"axis": 1}),
        ("HardSigmoid", {"beta": 0.3}),
        ("Cast", {"to": 1}),
    ],
)
def test_references_outside_of_a_function_are_refused(op, attributes, with_value):
    node = referring(helper.make_node(op, ["x"], ["y"], name="r", **attributes), next(iter(attributes)), with_value)
    with pytest.raises(
        ModelError, match="node 'r'.*attribute .* refers to 'outer' of a function, but the node is in none"
    ):
        load(model_of([node], [X], [Y]))


def test_references_in_a_branch_of_the_main_graph_are_refused():
    def branch(name):
        node = referring(helper.make_node("LeakyRelu", ["x"], [name], alpha=0.5))
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    with pytest.raises(ModelError, match="refers to 'outer'"):
        load(model_of([node], [X, ("c", TensorProto.BOOL, [])], [Y]))


def test_references_in_a_function_and_its_branches_are_resolved():
    def branch(name):
        node = referring(helper.make_node("LeakyRelu", ["a"], [name], alpha=0.5))
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    body = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["b"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    for attributes, slope in (({}, 0.01), ({"outer": 0.25}, 0.25)):
        f = helper.make_function("local", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)], ["outer"])
        model = model_of([helper.make_node("f", ["x"], ["y"], domain="local", **attributes)], [X], [Y])
        model.functions.append(f)
        model.opset_import.append(helper.make_opsetid("local", 1))
        np.testing.assert_allclose(load(model)(x=np.array([-8, 8], np.float32)).y, [-8 * slope, 8], rtol=1e-6)


# ------------------------------------------------------------------------------------------------ old files
@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_initializers_that_are_no_inputs_are_constants(ir_version):
    """IR 3 asks for all initializers among the inputs, but quantisers write others; these cannot be overridden."""
    w = {"w": np.array([2, 3], np.float32)}
    node = helper.make_node("Add", ["x", "w"], ["y"])
    x = np.array([1, 1], np.float32)
    for listed in (False, True):
        inputs = [X, ("w", TensorProto.FLOAT, [2])] if listed else [X]
        model = load(model_of([node], inputs, [Y], w, opset=8, ir_version=ir_version))
        assert model.required_inputs == ["x"] and model(x=x).y.tolist() == model.reference(x=x).y.tolist() == [3, 4]
        if listed:
            assert model(x=x, w=x).y.tolist() == model.reference(x=x, w=x).y.tolist() == [2, 2]
        else:
            with pytest.raises(InputError, match="no input 'w'"):
                model(x=x, w=x)
