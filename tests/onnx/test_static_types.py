"""Inputs that cannot have the types that a node needs are found at load, wherever the node stands."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rnnfast.errors import Error, InputTypeError, ModelError
from rnnfast.onnx.graph import read
from rnnfast.onnx.static_types import ListOf, Proof
from tests.graphs import load, model_of
from tests.onnx.test_onnx_backend import CASES, values

FLOAT, DOUBLE, HALF, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64
OUTPUT = [("y", TensorProto.UNDEFINED, None)]


def body(nodes, inputs, outputs, name="body", **constants):
    return helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(value, dtype, None) for value, dtype in inputs],
        [helper.make_tensor_value_info(value, TensorProto.UNDEFINED, None) for value in outputs],
        [onnx.numpy_helper.from_array(np.asarray(a), value) for value, a in constants.items()],
    )


def node(op_type, inputs, outputs="y", **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def nested(inner):
    """Return an If whose `then_branch` has these nodes, the last of which makes y1."""
    then = body(inner, [], ["y1"], "then")
    return [node("If", "c", then_branch=then, else_branch=body([node("Identity", "x", "y2")], [], ["y2"], "else"))]


def loop(inner, *initial, output="y"):
    """Return a Loop of five iterations around nodes that make `after` of `before`."""
    inputs = [("i", INT64), ("going", TensorProto.BOOL), ("before", FLOAT)]
    inner = [node("Identity", "going", "still"), *inner]
    return [
        node("Constant", "", "five", value_int=5),
        helper.make_node("Loop", ["five", "", *initial], [output], body=body(inner, inputs, ["still", "after"])),
    ]


WRONG = {
    "two inputs": ([node("MatMul", "x h")], r"\(MatMul\): inputs 0 \(float\) and 1 \(float16\) are to have one type"),
    "a branch": (nested([node("MatMul", "x h", "y1")]), r"\(MatMul\): inputs 0 \(float\) and 1 \(float16\)"),
    "a branch in a branch": (
        nested([node("If", "c", "y1", then_branch=body([node("Add", "h x", "y3")], [], ["y3"]),
                     else_branch=body([node("Add", "x x", "y4")], [], ["y4"]))]),
        r"\(Add\): inputs 0 \(float16\) and 1 \(float\)",
    ),
    "through operators": (
        nested([node("Relu", "h", "r"), node("Transpose", "r", "t"), node("Where", "c x t", "y1")]),
        r"\(Where\): inputs 1 \(float\) and 2 \(float16\)",
    ),
    "Cast": (nested([node("Cast", "x", "d", to=DOUBLE), node("Sub", "x d", "y1")]), r"\(Sub\): .*\(double\)"),
    "CastLike": (nested([node("CastLike", "x n", "d"), node("Sub", "x d", "y1")]), r"\(Sub\): .*\(int64\)"),
    "always one type": (
        nested([node("Shape", "x", "s"), node("Equal", "x x", "e"), node("Concat", "s e", "y1", axis=0)]),
        r"\(Concat\): inputs 0 \(int64\) and 1 \(bool\)",
    ),
    "ConstantOfShape": (nested([node("ConstantOfShape", "n", "k"), node("Add", "k h", "y1")]), r"\(Add\): .*float16"),
    "Constant": (
        nested([node("Constant", "", "k", value_ints=[1]), node("Mul", "h k", "y1")]), r"\(Mul\): .*\(int64\)",
    ),
    "an initializer": (nested([node("Mul", "x w", "y1")]), r"\(Mul\): .*\(double\)"),
    "results of If": (
        [node("If", "c", "k", then_branch=body([node("Neg", "h", "a")], [], ["a"]),
              else_branch=body([node("Abs", "h", "b")], [], ["b"])), *nested([node("Max", "x x k", "y1")])],
        r"\(Max\): inputs 0 \(float\) and 2 \(float16\)",
    ),
    "Loop": (loop([node("Add", "before h", "after")], "x"), r"\(Add\): inputs 0 \(float\) and 1 \(float16\)"),
    "Loop's counter": (loop([node("Add", "before i", "after")], "x"), r"\(Add\): inputs 0 \(float\) and 1 \(int64\)"),
    "Scan": (
        [node("Scan", "x x", "last y", num_scan_inputs=1,
              body=body([node("Add", "s t", "s2"), node("Mul", "t h", "m")], [("s", FLOAT), ("t", FLOAT)],
                        ["s2", "m"]))],
        r"\(Mul\): inputs 0 \(float\) and 1 \(float16\)",
    ),
    "a function": (
        nested([helper.make_node("Sum2", ["x", "h"], ["y1"], domain="own")]),
        r"\(Add\): inputs 0 \(float\) and 1 \(float16\)",
    ),
    "the result of a function": (
        nested([helper.make_node("Sum2", ["h", "h"], ["s"], domain="own"), node("Add", "x s", "y1")]),
        r"\(Add\): inputs 0 \(float\) and 1 \(float16\)",
    ),
    "an operator of several results": (
        nested([node("Split", "h", "a b", axis=0, num_outputs=2), node("Add", "x b", "y1")]),
        r"\(Add\): inputs 0 \(float\) and 1 \(float16\)",
    ),
    "a sequence's member": (
        nested([node("SequenceConstruct", "h h", "q"), node("SequenceAt", "q n", "m"), node("Add", "m x", "y1")]),
        r"\(Add\): inputs 0 \(float16\) and 1 \(float\)",
    ),
    "what a Loop hands out": (
        [*loop([node("Add", "before before", "after")], "x", output="k"), *nested([node("Add", "k h", "y1")])],
        r"\(Add\): inputs 0 \(float\) and 1 \(float16\)",
    ),
    "what a Scan hands out": (
        [node("Scan", "x h", "last rows", num_scan_inputs=1,
              body=body([node("Identity", "s", "s2"), node("Abs", "t", "m")], [("s", FLOAT), ("t", HALF)],
                        ["s2", "m"])), *nested([node("Add", "last rows", "y1")])],
        r"\(Add\): inputs 0 \(float\) and 1 \(float16\)",
    ),
    "random numbers": (
        nested([node("RandomNormalLike", "x", "r", dtype=HALF), node("Add", "r x", "y1")]),
        r"\(Add\): inputs 0 \(float16\) and 1 \(float\)",
    ),
}  # fmt: skip


def model_with(nodes):
    model = model_of(
        nodes,
        [("c", TensorProto.BOOL, []), ("x", FLOAT, [2, 2]), ("h", HALF, [2, 2]), ("n", INT64, [1])],
        OUTPUT,
        {"w": np.float64(2)},
        opset=18,
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "Sum2", ["a", "b"], ["s"], [node("Add", "a b", "s")], opsets))
    return model


@pytest.mark.parametrize("case", WRONG)
def test_types_that_cannot_fit_are_found_at_load(case):
    nodes, message = WRONG[case]
    with pytest.raises(ModelError, match=message):
        load(model_with(nodes))
    ort = pytest.importorskip("onnxruntime")
    with pytest.raises(Exception, match="(?i)type"):
        ort.InferenceSession(model_with(nodes).SerializeToString(), providers=["CPUExecutionProvider"])


UNPROVEN = {
    "right types": nested([node("Cast", "h", "f", to=FLOAT), node("MatMul", "x f", "y1")]),
    "branches of two types": [
        node("If", "c", "k", then_branch=body([node("Neg", "h", "a")], [], ["a"]),
             else_branch=body([node("Abs", "x", "b")], [], ["b"])), *nested([node("Max", "x k", "y1")])],
    "a Loop's state of two types": [
        *loop([node("Cast", "before", "after", to=HALF)], "x", output="k"),
        *nested([node("Add", "k x", "y1")]),
    ],
    "declared otherwise in a Loop": loop([node("Add", "before w", "after")], "w"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPROVEN)
def test_what_is_not_proven_is_left_to_a_call(case):
    feed = {"c": False, "x": np.ones((2, 2), np.float32), "h": np.ones((2, 2), np.float16), "n": [0]}
    model = load(model_with(UNPROVEN[case]))
    model(feed)
    if case in ("branches of two types", "a Loop's state of two types"):
        with pytest.raises(InputTypeError, match="are to have one type"):
            model(feed | {"c": True})


def test_a_constant_of_two_values_is_refused_for_that():
    with pytest.raises(ModelError, match=r"\(Constant\): 2 value attributes, expected one"):
        load(model_with([node("Constant", "", "k", value_int=1, value_float=1.0), node("Add", "n k")]))({})


def test_an_initializer_that_a_call_may_override():
    """Where the file declares another type for it than it has, nothing is known of it."""
    inputs = [("x", FLOAT, [2]), ("w", DOUBLE, [2])]
    load(model_of([node("Add", "x w")], inputs, OUTPUT, {"w": np.ones(2, np.float32)}))
    with pytest.raises(ModelError, match="one type"):
        load(model_of([node("Add", "x w")], inputs, OUTPUT, {"w": np.ones(2)}))


def test_known_types_are_those_of_onnx():
    """The types found for the outputs of ONNX's node tests are those of the expected values, but for an If whose
    branches have different ones.
    """
    known, unknown = 0, set()
    for name, case in CASES.items():
        try:
            found = Proof(read(case.model.SerializeToString())[0], name).outputs
        except Error:  # what is refused at load is tested elsewhere
            continue
        expected = values(case.data_sets[0][1])
        for dtype, value in zip(found, expected):
            if dtype is None:
                unknown.add(name)
            elif value is not None and (not isinstance(value, list) or value):  # no members have no type
                assert dtype == (ListOf(value[0].dtype) if isinstance(value, list) else value.dtype), name
                known += 1
    assert known > 1000 and unknown <= {"test_if_opt"}
