"""Native code, NumPy's functions and the reference accept and refuse the same, whatever the operator and the size."""

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.onnx import binding
from rnnfast.onnx.ops import table
from tests.onnx import mutations
from tests.onnx.mutations import Case, disagreement, node_cases, variants
from tests.onnx.test_onnx_backend import CASES

BY_OPERATOR = node_cases(CASES.values())
# Operators on sequences, optional values and graphs, and one of which the package has no test.
WITHOUT_CASES = {
    *(
        "ConcatFromSequence",
        "GlobalLpPool",
        "If",
        "Loop",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "Scan",
    ),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SplitToSequence", "Constant", "SequenceMap", "MaxRoiPool"),
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
}
VARIANTS = 10


def test_every_operator_has_cases():
    known = {op for domain, op in table() if not domain and onnx.defs.has(op)}  # by this version of onnx
    assert known - BY_OPERATOR.keys() <= WITHOUT_CASES


@pytest.mark.parametrize("op", sorted(op for op in BY_OPERATOR if ("", op) in table()))
def test_native_and_numpy_and_reference_agree(op):
    rng = np.random.default_rng([0, *op.encode()])
    for case in variants(rng, BY_OPERATOR[op], VARIANTS):
        data, feed = case.model()
        try:
            model = rnnfast.load(data)
        except rnnfast.Error:
            continue  # the same for all: it is refused before there is a way to compute it
        assert disagreement(model, feed) is None, case


def groups_of(case):
    return binding.inputs_of_one_type("", case.node.op_type, case.opset, len(case.inputs))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("op", sorted(op for op, cases in BY_OPERATOR.items() if any(map(groups_of, cases))))
def test_inputs_of_one_type_must_have_it(op, constant):
    if ("", op) not in table():
        pytest.skip("the operator is not supported")
    for case in [c for c in BY_OPERATOR[op] if groups_of(c)][:5]:
        for group in groups_of(case):
            present = [i for i in group if i < len(case.inputs) and case.inputs[i] is not None]
            if len(present) < 2 or case.inputs[present[-1]].dtype.kind not in "iuf":
                continue
            inputs = list(case.inputs)
            x = inputs[present[-1]]
            inputs[present[-1]] = x.astype(np.float64 if x.dtype != np.float64 else np.float32)
            names = frozenset(f"x{i}" for i in present[1:]) if constant else frozenset()
            data, feed = Case(case.node, inputs, case.opset, names).model()
            for call in (lambda model, feed: model(feed), mutations.reference):
                with pytest.raises((InputTypeError, ModelError)):
                    call(rnnfast.load(data), feed)


def node_model(node, *inputs, opset=17):
    return Case(node, list(inputs), opset).model()


@pytest.mark.parametrize("shape", [(3, 5), (64, 65), (1, 8192)])
@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize("axis", [-64, -3, 2, 3, 64, 2**40])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_axes_out_of_range_are_refused(op, axis, opset, shape):
    data, feed = node_model(onnx.helper.make_node(op, ["x"], ["y"], axis=axis), np.ones(shape, np.float32), opset=opset)
    if opset < 13 and axis == 2:  # before opset 13 the rank itself is allowed: no axis is normalized
        return
    model = rnnfast.load(data)
    for call in (model, model.reference):
        with pytest.raises(InputError):
            call(feed)


@pytest.mark.parametrize("columns", [5, 65])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Less", "Greater", "Equal"])
def test_broadcasting_before_opset_7_is_asked_for(op, columns):
    dtype = np.int32 if op == "Equal" else np.float32
    a, b = np.ones((64, columns), dtype), np.ones(columns, dtype)
    for attributes, accepted in (
        ({}, False),
        ({"broadcast": 1}, True),
        ({"broadcast": 1, "axis": 1}, True),
        ({"broadcast": 1, "axis": 0}, False),
        ({"broadcast": 1, "axis": 2}, False),
        ({"broadcast": 1, "axis": -3}, False),
    ):
        data, feed = node_model(onnx.helper.make_node(op, ["x", "w"], ["y"], **attributes), a, b, opset=6)
        model = rnnfast.load(data)
        for call in (model, model.reference):
            if accepted:
                assert call(feed)["y"].shape == a.shape
            else:
                with pytest.raises(InputError):
                    call(feed)


def test_large_operators_of_wrong_shapes_are_refused():
    big, column = np.ones((64, 65), np.float32), np.ones((65, 1), np.float32)
    image, kernel = np.ones((2, 4, 40, 40), np.float32), np.ones((6, 4, 3, 3), np.float32)
    make = onnx.helper.make_node
    for node, *inputs in (
        (make("Add", ["a", "b"], ["y"]), big, np.ones((63, 65), np.float32)),
        (make("MatMul", ["a", "b"], ["y"]), big, big),
        (make("MatMul", ["a", "b"], ["y"]), big, np.float32(1)),
        (make("Gemm", ["a", "b", "c"], ["y"]), big, column, np.ones((3, 1), np.float32)),
        (make("Conv", ["x", "w"], ["y"], group=2), image, kernel),
        (make("Conv", ["x", "w"], ["y"], kernel_shape=[5, 3]), image, kernel),
        (make("Conv", ["x", "w", "b"], ["y"]), image, kernel, np.ones(5, np.float32)),
        (make("Conv", ["x", "w"], ["y"], strides=[0, 1]), image, kernel),
        (make("Conv", ["x", "w"], ["y"], dilations=[1, 1, 1]), image, kernel),
        (make("MaxPool", ["x"], ["y"], kernel_shape=[50, 2]), image),
        (make("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[2, 0, 0, 0]), image),
    ):
        for constant in ((), [f"x{i}" for i in range(1, len(inputs))]):
            case = Case(node, [np.asarray(x) for x in inputs], 17, frozenset(constant))
            with pytest.raises((InputError, ModelError)):
                data, feed = case.model()
                rnnfast.load(data)(feed)


def test_a_bias_of_another_type_is_refused():
    x, w = np.ones((1, 2, 9, 9), np.float32), np.ones((3, 2, 3, 3), np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"])
    for dtype in (np.float64, np.float16, np.int32, np.int64, np.bool_):
        for constant in ((), ("x2",), ("x1", "x2")):
            data, feed = Case(node, [x, w, np.ones(3, dtype)], 17, frozenset(constant)).model()
            with pytest.raises((InputTypeError, ModelError), match="one type"):
                rnnfast.load(data)(feed)
