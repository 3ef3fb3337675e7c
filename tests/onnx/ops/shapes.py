"""Operators that move values or make shapes, run alone and compared with onnxruntime."""

import functools

import numpy as np
import pytest

from rnnfast.onnx.ops import create, indexing, sequence, shape

OPS = shape.OPS | indexing.OPS | create.OPS | sequence.OPS
NEWEST = 28
MIN, MAX = -(2**63), 2**63 - 1
NAN = np.nan


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


X = floats(1, 2, 3, 4, 5, 6).reshape(2, 3)


def random(rng, *dimensions, dtype=np.float32):
    """Small integers, so that there are ties and every type holds them."""
    return rng.integers(-9 if np.dtype(dtype).kind != "u" else 0, 10, dimensions).astype(dtype)


def run(op, *inputs, opset=NEWEST, **attributes):
    """The operator on read-only inputs: it may not write to them."""
    function = OPS[op][max(since for since in OPS[op] if since <= opset)]
    inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
    for x in inputs:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False
    return function(*inputs, **attributes)


@functools.cache
def _session(op, opset, signature, n_outputs, attributes):
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    names = [f"i{i}" if kind else "" for i, kind in enumerate(signature)]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind[0])), [None] * kind[1])
        for name, kind in zip(names, signature)
        if kind
    ]
    outputs = [f"o{i}" for i in range(n_outputs)]
    node = helper.make_node(op, names, outputs, **dict(attributes))
    graph = helper.make_graph([node], op, values, [onnx.ValueInfoProto(name=name) for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnxruntime(op, *inputs, opset=21, n_outputs=1, **attributes):
    signature = tuple(None if x is None else (x.dtype.str, x.ndim) for x in inputs)
    frozen = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items())
    session = _session(op, opset, signature, n_outputs, frozen)
    return session.run(None, {f"i{i}": x for i, x in enumerate(inputs) if x is not None})


def check(got, expected):
    """Exactly equal, the types and shapes too."""
    got = got if isinstance(got, (tuple, list)) else [got]
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, strict=True)


def compare(op, *inputs, opset=21, n_outputs=1, **attributes):
    check(
        run(op, *inputs, opset=opset, **attributes),
        onnxruntime(op, *inputs, opset=opset, n_outputs=n_outputs, **attributes),
    )
