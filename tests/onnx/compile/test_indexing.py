"""Native gathers, scatters and the places of largest values; indices out of range are errors."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rnnfast.errors import InputError
from rnnfast.native import _programs
from rnnfast.onnx import ops
from tests.graphs import load, model_of, parse, random
from tests.onnx.compile.reductions import RNG, compare, ints, laid_out, layouts

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
    assert type(model.planned.plans.kept[0].steps[0][0]) is _programs.NativeProgram
    for bad, named in (([0, 5, 1], 5), ([-6, 2, 9], -6), ([2**31 - 1, 0, 0], 2**31 - 1)):
        with pytest.raises(InputError, match=f"look up.*index {named} is out of range for an axis of 5 elements"):
            model(i=np.array(bad, np.int32))
        np.testing.assert_array_equal(model(i=good)["y"], first)


def test_indices_of_bytes():
    model = embedding(TensorProto.UINT8)
    i = np.array([3, 0, 3, 1], np.uint8)
    for _ in range(2):
        np.testing.assert_array_equal(model(i=i)["y"], np.maximum(random(31, 5, 3)[i], 0))
    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]
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
        assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]


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
    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]


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
                    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]


# ------------------------------------------------------------------------------------------------ sequences
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.int8])
@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("rest", [(), (3,), (2, 3)])
def test_reversed_sequences(time, rest, dtype):
    lengths = ints(0, 5, 1, 3)
    shape = ((5, 4) if time == 0 else (4, 5)) + rest
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for constant in True, False:
        attributes = {"time_axis": time, "batch_axis": 1 - time}
        compare("ReverseSequence", x, {"n": lengths}, constant=constant, tolerance=None, **attributes)


@pytest.mark.parametrize("length", [-1, 6, 2**40])
def test_lengths_out_of_range_are_reported(length):
    model = load(parse("g (float[5,2,3] x, int64[2] n) => (z) { y = ReverseSequence (x, n)  z = Neg (y) }"))
    x = random(0, 5, 2, 3)
    with pytest.raises(InputError, match=r"\(ReverseSequence\): sequence_lens .* not from 0 to 5"):
        model(x=x, n=ints(2, length))  # a trace, which runs NumPy's function
    model(x=x, n=ints(5, 0))
    assert [type(step[0]) for step in model.planned.plans.kept[0].steps] == [_programs.NativeProgram]
    with pytest.raises(InputError, match=r"\(ReverseSequence\): sequence_lens .* not from 0 to 5"):
        model(x=x, n=ints(2, length))
