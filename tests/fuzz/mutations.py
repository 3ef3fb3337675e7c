"""Changes to a sound file: of its protocol buffer, and of its bytes."""

import numpy as np
import onnx
from onnx import helper

from tests.fuzz import operators

# The name of the file beside the model which its external data may name.
WEIGHTS = "weights"


def all_graphs(graph):
    """The GraphProtos of a graph: itself and those among the attributes of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_graphs(attribute.g)


def mutated(model, rng):
    """Return the bytes of a ModelProto after one to three changes, some of which may leave it sound."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for _ in range(int(rng.integers(1, 4))):
        graphs = list(all_graphs(model.graph))
        CHANGES[int(rng.integers(len(CHANGES)))](model, graphs[int(rng.integers(len(graphs)))], rng)
    data = bytearray(model.SerializeToString())
    if rng.random() < 0.2:
        change_bytes(data, rng)
    return bytes(data)


def change_bytes(data, rng):
    """Overwrite, delete or repeat some bytes."""
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            return
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
        kind = rng.integers(3)
        if kind == 0:
            data[at : at + length] = rng.bytes(min(length, len(data) - at))
        elif kind == 1:
            del data[at : at + length]
        else:
            data[at:at] = data[at : at + length]


def _pick(rng, items):
    return items[int(rng.integers(len(items)))] if len(items) else None


def _names(graph):
    return (
        [v.name for v in graph.input] + [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output]
    )


def change_wiring(model, graph, rng):
    """Let a node read another value, none, or one more."""
    node = _pick(rng, graph.node)
    if node is None or not node.input:
        return
    name = _pick(rng, [*_names(graph), "", "nowhere"])
    if rng.random() < 0.2:
        node.input.append(name)
    else:
        node.input[int(rng.integers(len(node.input)))] = name


def change_attribute(model, graph, rng):
    """Change, remove or rename an attribute, or give it another type."""
    node = _pick(rng, [n for n in graph.node if n.attribute])
    if node is None:
        return
    attribute = _pick(rng, node.attribute)
    kind = rng.integers(6)
    if attribute.type == onnx.AttributeProto.INT and kind < 4:
        attribute.i = _pick(rng, operators.WILD_INTS)
    elif attribute.type == onnx.AttributeProto.FLOAT and kind < 4:
        attribute.f = _pick(rng, operators.WILD_FLOATS)
    elif attribute.type == onnx.AttributeProto.INTS and kind < 4 and attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = _pick(rng, operators.WILD_INTS)
    elif kind == 4:
        attribute.ref_attr_name = "outer"
    elif kind == 5:
        attribute.type = int(rng.integers(0, 15))
    else:
        node.attribute.remove(attribute)


def change_initializer(model, graph, rng):
    """Change an initializer's shape, type or bytes."""
    tensor = _pick(rng, graph.initializer)
    if tensor is None:
        return
    kind = rng.integers(4)
    if kind == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(rng, operators.WILD_INTS)
    elif kind == 1:
        tensor.data_type = int(rng.integers(0, 24))
    elif kind == 2:
        data = bytearray(tensor.raw_data)
        change_bytes(data, rng)
        tensor.raw_data = bytes(data)
    else:
        tensor.dims.append(_pick(rng, (0, 1, 2, 2**40)))


def change_type(model, graph, rng):
    """Declare another type or shape for an input or output."""
    value = _pick(rng, [*graph.input, *graph.output])
    if value is None:
        return
    tensor = value.type.tensor_type
    kind = rng.integers(4)
    if kind == 0:
        tensor.elem_type = int(rng.integers(0, 24))
    elif kind == 1 and tensor.shape.dim:
        tensor.shape.dim[int(rng.integers(len(tensor.shape.dim)))].dim_value = _pick(rng, (-1, 0, 1, 3, 2**40))
    elif kind == 2:
        value.type.Clear()
    else:
        tensor.shape.dim.add()


def change_nodes(model, graph, rng):
    """Repeat, remove, move or retype a node."""
    if not graph.node:
        return
    i, kind = int(rng.integers(len(graph.node))), rng.integers(4)
    if kind == 0:
        graph.node.add().CopyFrom(graph.node[i])
    elif kind == 1:
        del graph.node[i]
    elif kind == 2:
        node = onnx.NodeProto()
        node.CopyFrom(graph.node[i])
        del graph.node[i]
        graph.node.insert(0, node)
    else:
        graph.node[i].op_type = _pick(
            rng, ["Identity", "Softmax", "Reshape", "LSTM", "Loop", "Nothing", "Gather", "Concat"]
        )


def change_versions(model, graph, rng):
    """Set another opset or IR version."""
    if rng.random() < 0.7 and model.opset_import:
        model.opset_import[0].version = int(rng.integers(0, 30))
    else:
        model.ir_version = int(rng.integers(0, 15))


def change_to_external(model, graph, rng):
    """Move an initializer to a file of the folder, or to a place where no file may be read."""
    tensor = _pick(rng, graph.initializer)
    if tensor is None:
        return
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in {
        "location": _pick(
            rng, [WEIGHTS, "../weights", "/etc/passwd", "a/../weights", "", ".", "\0", "missing", "link"]
        ),
        "offset": str(_pick(rng, (0, 4, 4096, -1, 2**63, "x"))),
        "length": str(_pick(rng, (0, 4, 64, 4096, -1, 2**63))),
    }.items():
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


def call_function(model, graph, rng):
    """Put a node into a function of the model, and call that; the function may take the node's attributes as its own.

    A function may call another one: the node may be a call already.
    """
    node = _pick(rng, [n for n in graph.node if n.output and all(n.input)])
    if node is None:
        return
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    name = f"f{len(model.functions)}"
    if not any(o.domain == "local" for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("local", 1))
    inputs, outputs = [f"a{i}" for i in range(len(node.input))], [f"b{i}" for i in range(len(node.output))]
    del inner.input[:], inner.output[:]
    inner.input.extend(inputs)
    inner.output.extend(outputs)
    node.op_type, node.domain = name, "local"
    del node.attribute[:]
    function = helper.make_function("local", name, inputs, outputs, [inner], model.opset_import)
    for attribute in function.node[0].attribute:
        if rng.random() < 0.4 and attribute.type != onnx.AttributeProto.GRAPH:
            (node.attribute if rng.random() < 0.7 else function.attribute_proto).add().CopyFrom(attribute)
            if len(node.attribute) and node.attribute[-1].name == attribute.name:
                function.attribute.append(attribute.name)
            reference = onnx.AttributeProto(name=attribute.name, ref_attr_name=attribute.name, type=attribute.type)
            attribute.CopyFrom(reference)
    model.functions.append(function)


def move_to_file(model, graph, rng):
    """Move the initializers of a graph to a file, and return its bytes."""
    data = bytearray(rng.bytes(int(rng.integers(0, 64))))
    for tensor in graph.initializer:
        if not tensor.HasField("raw_data"):
            continue
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": WEIGHTS, "offset": len(data), "length": len(tensor.raw_data)}.items():
            tensor.external_data.add(key=key, value=str(value))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    return bytes(data)


CHANGES = [
    change_wiring,
    change_wiring,
    change_attribute,
    change_attribute,
    change_initializer,
    change_type,
    change_nodes,
    change_versions,
    change_to_external,
    call_function,
]


def feed_of(model, rng):
    """Random inputs of the types and shapes that a file declares, for a file that was changed or is not ours."""
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        except (KeyError, ValueError):
            dtype = np.dtype(np.float32)
        sizes = [d.dim_value if d.HasField("dim_value") and 0 <= d.dim_value < 100 else 3 for d in tensor.shape.dim]
        array = rng.standard_normal(sizes) * 2
        with np.errstate(all="ignore"):
            feed[value.name] = array > 0 if dtype.kind == "b" else array.astype(dtype if dtype.kind in "fiu" else "f4")
    return feed
