"""Small ONNX models for the tests, from ONNX's textual form or from nodes."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import rnnfast
from rnnfast.onnx.folding import fold
from rnnfast.onnx.trace import PlannedGraph


def parse(text, opset=17, ir_version=8, **initializers):
    """Return the bytes of a model in ONNX's textual form, with `initializers` (arrays) added."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "local" : 1]>'
    model = onnx.parser.parse_model(header + text)
    for name, array in initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model.SerializeToString()


def model_of(nodes, inputs, outputs, initializers=(), opset=17, ir_version=8, **graph):
    """Return the model of nodes; inputs and outputs are (name, TensorProto type, shape), initializers name -> array."""
    initializers = [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(initializers).items()]
    proto = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        initializers,
        **graph,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def one_node(op_type, inputs, n_outputs=1, opset=17, constants=(), **attributes):
    """Return the ModelProto of one node; of `inputs` (name -> array) those in `constants` become initializers."""
    outputs = [f"out{i}" for i in range(n_outputs)]
    node = helper.make_node(op_type, list(inputs), outputs, "node", **attributes)
    types = {name: helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype) for name, a in inputs.items() if name}
    free = [
        (name, types[name], [f"{name}{i}" for i in range(np.ndim(a))])
        for name, a in inputs.items()
        if name and name not in constants
    ]
    first = next(iter(types.values()))
    return model_of(
        [node], free, [(name, first, None) for name in outputs], {name: inputs[name] for name in constants}, opset
    )


def load(model):
    return rnnfast.load(model if isinstance(model, bytes) else model.SerializeToString())


def onnxruntime(model, feed):
    """Return onnxruntime's outputs for the same model, by name."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))


def by_numpy(model, feed):
    """Return the outputs, by name, of the operators' NumPy functions alone, which compute float32 as float32."""
    planned, args = model.prepare(feed)
    with np.errstate(all="ignore"):
        graph = fold(model.graph, lambda node, constants, load_budget: None)
    outputs = PlannedGraph(graph, planned.names, model.source.label, specialises=True).run(args)
    return dict(zip([v.name for v in model.outputs], outputs))


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
