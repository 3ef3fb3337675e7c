"""Native steps that reduce, normalize, pool and index: against the operators' NumPy functions, on every instruction
set and layout, and the same bits whatever the layout and the batch."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rnnfast.errors import InputError
from rnnfast.native import _kernels, _programs
from rnnfast.onnx import ops
from tests.graphs import load, model_of, random

# Of results of order 1 that are sums of up to a few hundred terms: measured 2.4e-6 on the generic build.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)
RNG = np.random.default_rng(3)
REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]


def ints(*values):
    return np.array(values, np.int64)


# ------------------------------------------------------------------------------------------------ models of one operator
def sliced(n, rank):
    """A node that takes every second of 2n positions of the last axis."""
    return helper.make_node("Slice", ["x", "first", "last", "axis", "step"], ["strided"]), {
        "first": ints(1),
        "last": ints(2 * n),
        "axis": ints(rank - 1),
        "step": ints(2),
    }


def layouts(rank, opset=18):
    """Names of the ways in which the first input may lie in memory; Slice has had steps since opset 10."""
    names = ["contiguous", "every second"] if opset >= 10 else ["contiguous"]
    return names + ["reversed", "channel last"] if rank > 1 else names


def laid_out(x, layout):
    """(array to feed, node that makes x of it, its constants); the node's output is `strided`."""
    if layout == "contiguous":
        return x, helper.make_node("Identity", ["x"], ["strided"]), {}
    if layout == "every second":
        fed = np.repeat(x, 2, axis=-1)
        fed[..., ::2] = 0
        node, constants = sliced(x.shape[-1], x.ndim)
        return fed, node, constants
    order = list(range(x.ndim))[::-1] if layout == "reversed" else [0, *range(2, x.ndim), 1]
    return (
        np.ascontiguousarray(x.transpose(order)),
        helper.make_node("Transpose", ["x"], ["strided"], perm=np.argsort(order).tolist()),
        {},
    )


def run(op_type, x, others, layout="contiguous", opset=18, constant=True, view=False, **attributes):
    """The native result of an operator on x; that its plan is one native step, but of a mere `view`. others: name ->
    array or None, constants if `constant`."""
    fed, node, constants = laid_out(x, layout)
    names = [name if array is not None else "" for name, array in others.items()]
    expected = numpy_result(op_type, x, others, opset, attributes)
    of_type = {
        name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in others.items() if array is not None
    }
    free = {} if constant else {name: array for name, array in others.items() if array is not None}
    inputs = [("x", helper.np_dtype_to_tensor_dtype(fed.dtype), fed.shape)]
    inputs += [(name, of_type[name], array.shape) for name, array in free.items()]
    constants = constants | {name: a for name, a in others.items() if a is not None and name not in free}
    model = load(
        model_of(
            [node, helper.make_node(op_type, ["strided", *names], ["out"], "node", **attributes)],
            inputs,
            [("out", helper.np_dtype_to_tensor_dtype(expected.dtype), None)],
            constants,
            opset,
        )
    )
    y = model({"x": fed} | free)["out"]
    steps = model._own.plans.kept[0].steps
    assert view or [type(step[0]) for step in steps] == [_programs.NativeProgram]
    return y


def numpy_result(op_type, x, others, opset, attributes):
    attributes = {name: tuple(v) if isinstance(v, list) else v for name, v in attributes.items()}
    result = ops.lookup("", op_type, opset)(x, *others.values(), **attributes)
    return result[0] if isinstance(result, tuple) else result


def compare(op_type, x, others, opset=18, constant=True, tolerance=TOLERANCE, view=False, **attributes):
    """Every layout against the NumPy function, and equal bits in all of them."""
    expected = numpy_result(op_type, x, others, opset, attributes)
    first = None
    for layout in layouts(x.ndim, opset):
        y = run(op_type, x, others, layout, opset, constant, view, **attributes)
        assert y.shape == expected.shape and y.dtype == expected.dtype
        if tolerance is None:
            np.testing.assert_array_equal(y, expected)
        else:
            np.testing.assert_allclose(y, expected, **tolerance)
        first = y if first is None else first
        np.testing.assert_array_equal(y, first, err_msg=layout)
    return first


def same_on_every_isa(call):
    """The result of the instruction set in use, which is that of the others."""
    before, results = _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            results.append(call())
    finally:
        _kernels.set_isa(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    return results[0]


# ------------------------------------------------------------------------------------------------ reductions
AXES = [
    ((37,), [0]),
    ((3, 37), [1]),
    ((3, 37), [0]),
    ((3, 5, 21), [1]),
    ((3, 5, 21), [-1]),
    ((3, 5, 21), [1, 2]),
    ((3, 5, 21), [0, 2]),
    ((3, 5, 21), None),
    ((2, 3, 5, 19), [2, 3]),
    ((2, 3, 5, 19), [1, 3]),
    ((2, 33, 7, 5), [1]),
    ((2, 18, 1, 3), [1]),
    ((4, 1, 17), [2]),
    ((2, 3, 4, 5, 6), [1, 3]),
    ((1, 1), [1]),
]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("shape, axes", AXES)
def test_reductions(isa, op, shape, axes):
    x = random(1, *shape)
    for keepdims in 0, 1:
        others = {} if axes is None else {"axes": ints(*axes)}
        compare(op, x, others, keepdims=keepdims)
        compare(op, x, {}, opset=11, keepdims=keepdims, **({} if axes is None else {"axes": axes}))


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("shape, axes", AXES)
def test_reductions_have_the_same_bits_on_every_instruction_set(op, shape, axes):
    same_on_every_isa(lambda: compare(op, random(2, *shape), {} if axes is None else {"axes": ints(*axes)}))


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_over_no_axes(isa, op):
    x = random(4, 3, 19)
    compare(op, x, {}, noop_with_empty_axes=1)
    compare(op, x, {"axes": ints()}, noop_with_empty_axes=1)
    compare(op, x, {"axes": ints()}, noop_with_empty_axes=0)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd"])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_of_nan_and_infinity(isa, op, axis):
    x = random(5, 21, 35)
    x[3, 2], x[5, 7], x[8, 7], x[20, 34] = np.nan, np.inf, -np.inf, np.nan
    compare(op, x, {"axes": ints(axis)})


def test_log_sum(isa):
    compare("ReduceLogSum", np.abs(random(6, 5, 33)) + 1, {"axes": ints(1)})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 5, 37), (2, 19, 5, 3), (1, 3, 2, 3, 5)])
def test_global_pools(isa, op, shape):
    compare(op, random(7, *shape), {})


# ------------------------------------------------------------------------------------------------ rows
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("shape", [(7,), (3, 37), (2, 3, 18), (2, 3, 5, 4)])
def test_softmax(op, opset, shape):
    for axis in [None, *range(-len(shape), len(shape))]:
        if len(shape) == 1 and axis is None and opset < 13:
            continue  # the default axis 1 is behind the last one: every element is a row
        given = {} if axis is None else {"axis": axis}
        same_on_every_isa(lambda given=given: compare(op, 5 * random(8, *shape), {}, opset=opset, **given))


@pytest.mark.parametrize("shape, axis", [((3, 37), -1), ((2, 3, 18), 1), ((2, 3, 18), -1), ((2, 3, 5, 4), 2)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_normalization(shape, axis, has_bias):
    scale = random(9, *shape[axis:])
    others = {"scale": scale} | ({"bias": random(10, *scale.shape[-1:])} if has_bias else {})
    for constant in True, False:
        same_on_every_isa(
            lambda c=constant: compare(
                "LayerNormalization", 3 * random(11, *shape) + 1, others, constant=c, axis=axis, epsilon=0.01
            )
        )


@pytest.mark.parametrize("shape", [(2, 5, 37), (2, 19, 5, 3)])
def test_instance_normalization(shape):
    others = {"scale": random(12, shape[1]), "bias": random(13, shape[1])}
    same_on_every_isa(lambda: compare("InstanceNormalization", 3 * random(14, *shape) + 1, others, epsilon=0.02))


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(opset):
    n = 3 if opset == 18 else 6
    others = {"scale": random(15, n), "bias": random(16, n)}
    same_on_every_isa(lambda: compare("GroupNormalization", random(17, 2, 6, 5, 7), others, opset=opset, num_groups=3))


@pytest.mark.parametrize("opset", [7, 9, 15])
@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 37), (2, 19, 5, 3)])
def test_batch_normalization(opset, shape):
    others = {
        "scale": random(18, shape[1]),
        "B": random(19, shape[1]),
        "mean": random(20, shape[1]),
        "var": np.abs(random(21, shape[1])),
    }
    same_on_every_isa(lambda: compare("BatchNormalization", random(22, *shape), others, opset=opset, epsilon=0.03))


def test_batch_normalization_of_positions(isa):
    shape = (3, 5, 7)
    others = {name: np.abs(random(i, *shape[1:])) for i, name in enumerate(("scale", "B", "mean", "var"))}
    compare("BatchNormalization", random(23, *shape), others, opset=7, spatial=0)


# ------------------------------------------------------------------------------------------------ bits
@pytest.mark.parametrize("layout", ["contiguous", "reversed", "channel last", "every second"])
@pytest.mark.parametrize(
    "op, opset, others, attributes",
    [
        *((op, 18, {"axes": ints(axis)}, {}) for op in REDUCTIONS for axis in (1, 2)),
        ("Softmax", 13, {}, {"axis": 1}),
        ("Softmax", 13, {}, {}),
        ("LogSoftmax", 13, {}, {}),
        ("InstanceNormalization", 18, {"scale": random(24, 19), "bias": random(25, 19)}, {}),
        ("LayerNormalization", 18, {"scale": random(26, 5), "bias": random(27, 5)}, {}),
        ("AveragePool", 18, {}, {"kernel_shape": [3]}),
    ],
)
def test_a_row_alone_and_in_a_batch(isa, op, opset, others, attributes, layout):
    x = random(28, 33, 19, 5)
    whole = run(op, x, others, layout, opset, **attributes)
    for i in 0, 17, 32:
        np.testing.assert_array_equal(run(op, x[i : i + 1], others, layout, opset, **attributes), whole[i : i + 1])


# ------------------------------------------------------------------------------------------------ pooling
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "shape, attributes",
    [
        ((2, 5, 17), dict(kernel_shape=[3])),
        ((2, 19, 16), dict(kernel_shape=[3], strides=[2], pads=[1, 1])),
        ((2, 3, 17), dict(kernel_shape=[4], strides=[3], pads=[2, 1], ceil_mode=1)),
        ((1, 1, 9), dict(kernel_shape=[2], dilations=[3])),
        ((2, 19, 9, 7), dict(kernel_shape=[3, 2], strides=[2, 2])),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 2, 1], dilations=[2, 1])),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")),
        ((2, 3, 9, 8), dict(kernel_shape=[3, 3], auto_pad="VALID")),
        ((1, 2, 3, 4), dict(kernel_shape=[5, 6], pads=[2, 2, 2, 2])),
    ],
)
def test_pools(op, shape, attributes):
    x = random(29, *shape)
    x[0, 0, 4 % shape[2]] = -np.inf
    included = [{}, {"count_include_pad": 1}] if op == "AveragePool" else [{}]
    for more in included:
        same_on_every_isa(lambda more=more: compare(op, x, {}, opset=19, **attributes, **more))


def test_the_largest_value_is_nan_where_a_tap_is(isa):
    x = random(30, 1, 20, 9)
    x[0, 3, 4] = np.nan
    compare("MaxPool", x, {}, kernel_shape=[3])


# ------------------------------------------------------------------------------------------------ indices
INDEXED = [(shape, axis) for shape in ((11,), (7, 5), (3, 7, 5), (2, 3, 4, 5)) for axis in range(-1, len(shape))]


@pytest.mark.parametrize("shape, axis", INDEXED)
@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "bool", "float64", "uint8"])
def test_gather(shape, axis, dtype):
    x = (10 * RNG.standard_normal(shape)).astype(dtype)
    n = shape[axis]
    for indices in ints(n - 1, 0, -1, 0, 1), RNG.integers(-n, n, 70), RNG.integers(-n, n, (2, 3)):
        compare("Gather", x, {"indices": indices}, tolerance=None, axis=axis)
        for kind in np.int32, np.int64:
            compare("Gather", x, {"indices": indices.astype(kind)}, tolerance=None, constant=False, axis=axis)
    for indices in (
        ints(0, 1),
        ints(-1, -2),
        np.array(1),
        np.arange(n)[::-1].copy(),
        np.arange(n),
        np.add.outer(np.arange(2), np.arange(n - 1)),
        np.subtract.outer([n - 1, n - 2], [0, 1, 2]),
    ):
        compare("Gather", x, {"indices": indices}, tolerance=None, view=True, axis=axis)


def embedding(index_type):
    """A table [5, 3] of which an input names the rows, through a Cast."""
    nodes = [
        helper.make_node("Cast", ["i"], ["j"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "j"], ["rows"], "look up"),
        helper.make_node("Relu", ["rows"], ["y"]),
    ]
    return load(
        model_of(nodes, [("i", index_type, ["n"])], [("y", TensorProto.FLOAT, None)], {"table": random(31, 5, 3)})
    )


def test_an_index_out_of_range_is_an_error_and_the_model_goes_on():
    model = embedding(TensorProto.INT32)
    good = np.array([0, 4, -5], np.int32)
    first = model(i=good)["y"]
    np.testing.assert_array_equal(first, np.maximum(random(31, 5, 3)[good], 0))
    assert type(model._own.plans.kept[0].steps[0][0]) is _programs.NativeProgram
    for bad, named in (([0, 5, 1], 5), ([-6, 2, 9], -6), ([2**31 - 1, 0, 0], 2**31 - 1)):
        with pytest.raises(InputError, match=f"look up.*index {named} is out of range for an axis of 5 elements"):
            model(i=np.array(bad, np.int32))
        np.testing.assert_array_equal(model(i=good)["y"], first)


def test_indices_of_bytes():
    model = embedding(TensorProto.UINT8)
    i = np.array([3, 0, 3, 1], np.uint8)
    for _ in range(2):
        np.testing.assert_array_equal(model(i=i)["y"], np.maximum(random(31, 5, 3)[i], 0))
    assert [type(step[0]) for step in model._own.plans.kept[0].steps] == [_programs.NativeProgram]
    with pytest.raises(InputError, match="index 200 is out of range"):
        model(i=np.array([3, 200, 3, 1], np.uint8))


def grid(*ranges):
    return np.stack(np.meshgrid(*ranges, indexing="ij"), -1)


@pytest.mark.parametrize(
    "indices",
    [
        grid([1]),
        grid([0, 1], [2, 3]),
        grid([1], [0, 2, 4], [1, 2]),
        grid([0, 1, 2], [4, 2], [0]),
        grid(range(3)),
        grid([-1], [-3, -2]),
        grid(range(3), range(6), range(4)),
        ints(2, 0, 2).reshape(3, 1),
        grid([2, 0, 1]),
        np.array([[0, 1], [2, 3], [0, 1]]),
        np.array([[[0, 5, 1], [2, -1, 3]]]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_scatter_nd_of_constant_indices(indices, dtype):
    x = (10 * RNG.standard_normal((3, 6, 4))).astype(dtype)
    updates = (10 * RNG.standard_normal(indices.shape[:-1] + x.shape[indices.shape[-1] :])).astype(dtype)
    compare_scattered(x, indices.astype(np.int64), updates)


def compare_scattered(x, indices, updates):
    expected = ops.lookup("", "ScatterND", 16)(x, indices, updates)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    order = list(range(updates.ndim))[::-1]
    for layout in layouts(x.ndim):
        fed, node, constants = laid_out(x, layout)
        nodes = [
            node,
            helper.make_node("Transpose", ["u"], ["updates"], perm=order),
            helper.make_node("ScatterND", ["strided", "indices", "updates"], ["y"]),
        ]
        model = load(
            model_of(
                nodes,
                [("x", kind, fed.shape), ("u", kind, updates.T.shape)],
                [("y", kind, None)],
                constants | {"indices": indices},
            )
        )
        y = model(x=fed, u=np.ascontiguousarray(updates.T))["y"]
        np.testing.assert_array_equal(y, expected)
        assert [type(step[0]) for step in model._own.plans.kept[0].steps] == [_programs.NativeProgram]


@pytest.mark.parametrize("also_needed", [False, True])
def test_chained_scatters(also_needed):
    """The second one may write into the first one's result, unless that is needed too."""
    nodes = [
        helper.make_node("ScatterND", ["x", "even", "a"], ["y1"]),
        helper.make_node("ScatterND", ["y1", "odd", "b"], ["y2"]),
        helper.make_node("Reshape", ["y1", "flat"], ["z"]),
        helper.make_node("Relu", ["y2"], ["y"]),
    ]
    outputs = [("y", TensorProto.FLOAT, None)] + ([("z", TensorProto.FLOAT, None)] if also_needed else [])
    even, odd = grid(range(3), [0, 2, 4]), grid(range(3), [1, 3])
    x, a, b = random(34, 3, 6), random(35, 3, 3), random(36, 3, 2)
    model = load(
        model_of(
            nodes,
            [(n, TensorProto.FLOAT, v.shape) for n, v in zip("xab", (x, a, b))],
            outputs,
            {"even": even, "odd": odd, "flat": ints(-1)},
        )
    )
    out = model(x=x, a=a, b=b)
    expected = x.copy()
    expected[:, 0:6:2] = a
    if also_needed:
        np.testing.assert_array_equal(out["z"], expected.ravel())
    expected[:, 1:5:2] = b
    np.testing.assert_array_equal(out["y"], np.maximum(expected, 0))
    assert [type(step[0]) for step in model._own.plans.kept[0].steps] == [_programs.NativeProgram]


# ------------------------------------------------------------------------------------------------ integers
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_integers(op, dtype):
    information = np.iinfo(dtype)
    x = RNG.integers(information.min, information.max, (3, 5, 7), dtype, endpoint=True)
    for shape in (3, 5, 7), (5, 1), (1,):
        y = RNG.integers(information.min, information.max, shape, dtype, endpoint=True)
        y.ravel()[0] = x[0, 0, 0]
        for constant in True, False:
            compare(op, x, {"y": y}, tolerance=None, constant=constant)


@pytest.mark.parametrize("source", ["int64", "int32", "uint8", "int8", "bool"])
@pytest.mark.parametrize("target", ["int64", "int32", "uint8", "int8", "bool"])
def test_casts_of_integers(source, target):
    x = RNG.integers(-3, 3, (3, 5, 7)).astype(source)
    if source != target:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(target))
        expected = x.astype(target)
        for layout in layouts(x.ndim):
            fed, node, constants = laid_out(x, layout)
            model = load(
                model_of(
                    [node, helper.make_node("Cast", ["strided"], ["y"], to=kind)],
                    [("x", helper.np_dtype_to_tensor_dtype(x.dtype), fed.shape)],
                    [("y", kind, None)],
                    constants,
                )
            )
            np.testing.assert_array_equal(model(x=fed)["y"], expected)
            assert [type(step[0]) for step in model._own.plans.kept[0].steps] == [_programs.NativeProgram]


# ------------------------------------------------------------------------------------------------ order
def ordered_values(dtype, shape):
    x = RNG.integers(-9 if dtype != "uint8" else 0, 9, shape).astype(dtype)
    if dtype == "float32":
        x.ravel()[::7], x.ravel()[3::13], x.ravel()[4::11] = np.nan, -np.inf, -0.0
    return x


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "uint8", "int8"])
@pytest.mark.parametrize("shape", [(17,), (5, 17), (3, 4, 9), (4, 1)])
def test_places_of_extremes(op, dtype, shape):
    x = ordered_values(dtype, shape)
    for axis in range(-1, len(shape)):
        for more in {}, {"keepdims": 0}, {"select_last_index": 1}:
            compare(op, x, {}, tolerance=None, axis=axis, **more)


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "uint8", "int8"])
@pytest.mark.parametrize("shape", [(1,), (17,), (5, 33), (3, 4, 9)])
def test_top_k(dtype, shape):
    x = ordered_values(dtype, shape)
    for axis in range(-1, len(shape)):
        for k in {1, 2, shape[axis]} - ({2} if shape[axis] < 2 else set()):
            for largest in 0, 1:
                expected = ops.lookup("", "TopK", 11)(x, ints(k), axis=axis, largest=largest)
                for layout in layouts(x.ndim):
                    fed, node, constants = laid_out(x, layout)
                    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
                    nodes = [node, helper.make_node("TopK", ["strided", "k"], ["y", "i"], axis=axis, largest=largest)]
                    outputs = [("y", kind, None), ("i", TensorProto.INT64, None)]
                    model = load(model_of(nodes, [("x", kind, fed.shape)], outputs, constants | {"k": ints(k)}))
                    out = model(x=fed)
                    np.testing.assert_array_equal(out["y"], expected[0])
                    np.testing.assert_array_equal(out["i"], expected[1])
                    assert [type(step[0]) for step in model._own.plans.kept[0].steps] == [_programs.NativeProgram]


# ------------------------------------------------------------------------------------------------ products
@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 5), (5, 7)),
        ((9, 17), (17, 37)),
        ((2, 3, 5), (2, 5, 17)),
        ((2, 1, 3, 5), (4, 5, 18)),
        ((3, 5), (2, 5, 16)),
        ((5,), (5, 7)),
        ((3, 5), (5,)),
        ((2, 6, 5), (5,)),
        ((5,), (3, 5, 2)),
        ((5,), (5,)),
        ((2, 3, 1), (2, 1, 19)),
    ],
)
def test_products_of_two_values(a, b):
    same_on_every_isa(lambda: compare("MatMul", random(32, *a), {"b": random(33, *b)}, constant=False))
