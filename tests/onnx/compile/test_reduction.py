"""Native reductions, softmax and normalisation; the bits of a row do not depend on its batch."""

import numpy as np
import onnx
import pytest

from tests.graphs import random
from tests.onnx.compile.reductions import REDUCTIONS, compare, ints, run, same_on_every_isa

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


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceLogSumExp"])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_of_nan_and_infinity(isa, op, axis):
    x = random(5, 21, 35)
    x[3, 2], x[5, 7], x[8, 7], x[20, 34] = np.nan, np.inf, -np.inf, np.nan
    compare(op, x, {"axes": ints(axis)})


def test_log_sum(isa):
    compare("ReduceLogSum", np.abs(random(6, 5, 33)) + 1, {"axes": ints(1)})


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


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38, -3e38])
def test_log_sum_exp_of_large_values(isa, value):
    x = random(5, 4, 35)
    x[1], x[2, 3] = value, value
    compare("ReduceLogSumExp", x, {"axes": ints(1)})


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape, axis", [((3, 37), -1), ((3, 5, 21), 1), ((2, 18, 1, 3), 0), ((7,), 0)])
def test_lp_normalization(isa, shape, axis, p):
    x = random(6, *shape)
    x[..., 0] = 0
    compare("LpNormalization", x, {}, axis=axis, p=p)
    compare("LpNormalization", np.zeros_like(x), {}, axis=axis, p=p)


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="this onnx has no RMSNormalization")
@pytest.mark.parametrize("shape, axis", [((3, 37), -1), ((3, 5, 21), 1), ((2, 18, 1, 3), -2), ((7,), 0)])
def test_rms_normalization(isa, shape, axis):
    for constant in True, False:
        scale = random(7, *shape[axis:])
        compare("RMSNormalization", random(6, *shape), {"scale": scale}, 23, constant, axis=axis, epsilon=1e-4)
