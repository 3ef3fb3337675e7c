"""Models of one convolution, compared on every instruction set with the operators' NumPy functions."""

import numpy as np
from onnx import TensorProto, helper

from rnnfast.native import _kernels, _programs
from rnnfast.onnx.ops.convolution import conv, conv_transpose
from tests.graphs import load, model_of, random

TOLERANCE = 2e-5  # of outputs of about 1: chains of up to some hundred products in float32


def model(nodes, constants, rank, **types):
    x = ("x", TensorProto.FLOAT, [None] * rank)
    return load(model_of(nodes, [x], [("y", TensorProto.FLOAT, None)], constants))


def program(m):
    """The plan's only step, which is native."""
    steps = m.planned.plans.kept[0].steps
    assert [type(step[0]) for step in steps] == [_programs.NativeProgram], [step[-1] for step in steps]
    return steps[0][0]


def check(m, x, expected, isas=True):
    """The outputs are right and the same on every instruction set and for each sample alone."""
    y = m(x=x)["y"]
    program(m)
    assert y.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(y - expected).max() <= TOLERANCE * scale
    before = _kernels.get_isa()
    for name in _kernels.isas():
        _kernels.set_isa(name)
        try:
            assert np.array_equal(m(x=x)["y"], y), name
        finally:
            _kernels.set_isa(before)
    if len(x) > 1 and len(y) == len(x):
        alone = np.concatenate([m(x=x[i : i + 1])["y"] for i in range(len(x))])
        assert np.array_equal(alone, y)


def check_conv(x, channels, kernel, *, bias=True, op="Conv", **attributes):
    """channels: of the output."""
    group = attributes.get("group", 1)
    shape = (channels, x.shape[1] // group) if op == "Conv" else (x.shape[1], channels // group)
    w = random(1, *shape, *kernel) / np.float32(np.sqrt(shape[1] * np.prod(kernel)))
    constants = {"w": w} | ({"b": random(2, channels)} if bias else {})
    node = helper.make_node(op, ["x", *constants], ["y"], **attributes)
    function = conv if op == "Conv" else conv_transpose
    check(model([node], constants, x.ndim), x, function(x, *constants.values(), **attributes))
