"""Requests and answers of the Open Inference Protocol that the generator of load writes and reads without a library."""

import json
import struct

import numpy as np
import pytest

from bench import serve_messages as messages

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 3, 5)).astype(np.float32)


def field(message, name, number, kind, repeated=False, type_name=""):
    """Add a field to a descriptor of a message."""
    new = message.field.add(name=name, number=number, type=kind, label=3 if repeated else 1)
    if type_name:
        new.type_name = type_name


@pytest.fixture(scope="module")
def protocol():
    """The messages of the protocol that are used here, by the library, from the numbers in KServe's inference.proto."""
    pool = pytest.importorskip("google.protobuf.descriptor_pool").DescriptorPool()
    from google.protobuf import descriptor_pb2, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")
    bool_, int64, text, data, floats, message = 8, 3, 9, 12, 2, 11
    parameter = file.message_type.add(name="InferParameter")
    field(parameter, "bool_param", 1, bool_)
    field(parameter, "int64_param", 2, int64)
    contents = file.message_type.add(name="InferTensorContents")
    field(contents, "fp32_contents", 6, floats, repeated=True)
    tensor = file.message_type.add(name="Tensor")
    field(tensor, "name", 1, text)
    field(tensor, "datatype", 2, text)
    field(tensor, "shape", 3, int64, repeated=True)
    field(tensor, "contents", 5, message, type_name=".inference.InferTensorContents")
    request = file.message_type.add(name="ModelInferRequest")
    entry = request.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, text)
    field(entry, "value", 2, message, type_name=".inference.InferParameter")
    field(request, "model_name", 1, text)
    field(request, "id", 3, text)
    field(request, "parameters", 4, message, True, ".inference.ModelInferRequest.ParametersEntry")
    field(request, "inputs", 5, message, True, ".inference.Tensor")
    field(request, "raw_input_contents", 7, data, repeated=True)
    response = file.message_type.add(name="ModelInferResponse")
    field(response, "model_name", 1, text)
    field(response, "id", 3, text)
    field(response, "outputs", 5, message, True, ".inference.Tensor")
    field(response, "raw_output_contents", 6, data, repeated=True)
    stream = file.message_type.add(name="ModelStreamInferResponse")
    field(stream, "error_message", 1, text)
    field(stream, "infer_response", 2, message, type_name=".inference.ModelInferResponse")
    pool.Add(file)
    names = "ModelInferRequest", "ModelInferResponse", "ModelStreamInferResponse"
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in names}


def test_grpc_request(protocol):
    """The library reads what was written by hand, with an id of more than 32 bits and sizes of more than 7."""
    sequence, x = (2**40 + 3, True, False), RNG.standard_normal((1, 300)).astype(np.float32)
    data = messages.grpc_request("model", "x", x.shape, sequence, "17") + messages.grpc_tensor(x)
    request = protocol["ModelInferRequest"].FromString(data)
    assert (request.model_name, request.id) == ("model", "17")
    found = request.parameters
    assert found["sequence_id"].int64_param == 2**40 + 3
    assert found["sequence_start"].bool_param is True and found["sequence_end"].bool_param is False
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", "FP32", [1, 300])
    assert list(request.raw_input_contents) == [x.tobytes()]
    assert not protocol["ModelInferRequest"].FromString(messages.grpc_request("m", "x", (2, 3), None)).parameters


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_outputs(protocol, raw):
    """Outputs are read from raw contents and from typed ones."""
    answer = protocol["ModelInferResponse"](model_name="model", id="3")
    outputs = {"y": X, "z": X[0, :, :1]}
    for name, y in outputs.items():
        tensor = answer.outputs.add(name=name, datatype="FP32", shape=y.shape)
        if raw:
            answer.raw_output_contents.append(y.tobytes())
        else:
            tensor.contents.fp32_contents.extend(y.ravel().tolist())
    found = messages.grpc_outputs(answer.SerializeToString())
    assert list(found) == ["y", "z"]
    for name, y in outputs.items():
        assert found[name].shape == y.shape and np.array_equal(found[name], y)


def test_stream_answer(protocol):
    """A stream's answer is a response or an error, whose text is kept."""
    answer = protocol["ModelStreamInferResponse"]()
    answer.infer_response.id = "12"
    assert messages.stream_answer(answer.SerializeToString()) == answer.infer_response.SerializeToString()
    answer.error_message = "no such model"
    with pytest.raises(messages.RefusedError, match="no such model"):
        messages.stream_answer(answer.SerializeToString())


@pytest.mark.parametrize("form", [messages.BINARY, messages.JSON])
def test_http_request(form):
    """Lengths are right, tensors lie in JSON or behind it, in order."""
    inputs = {"x": X, "h": X[:1, 0]}
    head, _, body = messages.http_request("model", inputs, (7, False, True), form).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /v2/models/model/infer HTTP/1.1"
    headers = dict(line.split(": ") for line in lines)
    assert int(headers["Content-Length"]) == len(body)
    size = int(headers.get("Inference-Header-Content-Length", len(body)))
    request, at = json.loads(body[:size]), size
    wanted = {"sequence_id": 7, "sequence_start": False, "sequence_end": True}
    assert request["parameters"] == wanted | ({"binary_data_output": True} if form == messages.BINARY else {})
    for tensor, (name, x) in zip(request["inputs"], inputs.items()):
        assert (tensor["name"], tensor["shape"], tensor["datatype"]) == (name, list(x.shape), "FP32")
        if form == messages.BINARY:
            length = tensor["parameters"]["binary_data_size"]
            values, at = np.frombuffer(body, np.float32, length // 4, at), at + length
        else:
            values = np.array(tensor["data"], np.float32)
        assert np.array_equal(values, x.ravel())
    assert at == len(body)


def test_http_outputs():
    """Some outputs lie in JSON and some behind it; errors have the server's text."""
    y, z = X[0], X[1, :2]
    header = {
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [3, 5], "parameters": {"binary_data_size": 60}},
            {"name": "b", "datatype": "FP32", "shape": [2, 5], "data": z.ravel().tolist()},
            {"name": "c", "datatype": "FP32", "shape": [2, 5], "parameters": {"binary_data_size": 40}},
        ]
    }
    text = json.dumps(header).encode()
    headers = {"inference-header-content-length": str(len(text))}
    found = messages.http_outputs(200, headers, text + y.tobytes() + (2 * z).tobytes())
    assert list(found) == ["a", "b", "c"]
    for name, right in zip("abc", (y, z, 2 * z)):
        assert np.array_equal(found[name], right)
    with pytest.raises(messages.RefusedError, match="400.*no such input"):
        messages.http_outputs(400, {}, b'{"error":"no such input"}')


def test_frame():
    """A frame has nine bytes before its payload, the length first."""
    found = messages.frame(messages.DATA, messages.END_STREAM, 2**31 - 1, b"abc" * 100)
    assert struct.unpack(">HBBBI", found[:9]) == (1, 300 & 255, 0, 1, 2**31 - 1) and found[9:] == b"abc" * 100


def test_wire_types():
    """Every kind of field is passed over, and one that does not exist is refused."""
    data = messages.number(1, 300) + b"\x11" + b"\1" * 8 + b"\x1d" + b"\2" * 4 + messages.block(4, b"xy")
    assert list(messages.fields(data)) == [(1, 300), (2, 0x0101010101010101), (3, 0x02020202), (4, b"xy")]
    with pytest.raises(ValueError, match="wire type 3"):
        list(messages.fields(b"\x0b"))
