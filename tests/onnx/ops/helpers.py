"""One operator's NumPy function, run alone and compared with onnxruntime."""

import numpy as np
import pytest
from onnx import helper

from rnnfast.onnx.ops import lookup

# Both sides compute in float32 and add in different orders. The largest difference measured over these cases, relative
# to the largest output, is 6e-7.
TOLERANCE = 3e-6

WHOLE = np.array([-7, -3, -1, 0, 1, 4, 9])


def floats(rng, *shape, dtype=np.float32):
    x = rng.standard_normal(shape).astype(dtype)
    x.flags.writeable = False
    return x


def run(op_type, inputs, opset=20, **attributes):
    """Run an operator with attributes as a file gives them: lists of integers become tuples."""
    attributes = {name: tuple(v) if isinstance(v, list) else v for name, v in attributes.items()}
    return lookup("", op_type, opset)(*inputs, **attributes)


def onnxruntime_outputs(op_type, inputs, opset=20, n_outputs=1, **attributes):
    """The outputs of a model of one node, or None where onnxruntime has no such kernel."""
    ort = pytest.importorskip("onnxruntime")
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    given = {name: x for name, x in zip(names, inputs) if name}
    outputs = [f"y{i}" for i in range(n_outputs)]
    node = helper.make_node(op_type, names, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options)
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    return session.run(None, given)


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_like_onnxruntime(op_type, inputs, opset=20, n_outputs=1, **attributes):
    expected = onnxruntime_outputs(op_type, inputs, opset, n_outputs, **attributes)
    if expected is None:
        pytest.skip(f"onnxruntime has no {op_type} for these types")
    actual = run(op_type, inputs, opset, **attributes)
    for y, z in zip(actual if isinstance(actual, tuple) else (actual,), expected):
        assert_close(y, z)
