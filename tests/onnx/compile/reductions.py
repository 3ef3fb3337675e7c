"""Models of one operator in several memory layouts, compared with NumPy on every instruction set."""

import numpy as np
from onnx import helper

from rnnfast.native import _kernels, _programs
from rnnfast.onnx import ops
from tests.graphs import load, model_of

# Results of order 1 are sums of up to a few hundred terms; measured: 2.4e-6 on the generic build.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)
RNG = np.random.default_rng(3)
REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]


def ints(*values):
    return np.array(values, np.int64)


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
    steps = model.planned.plans.kept[0].steps
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
