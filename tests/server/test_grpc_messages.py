"""The messages of gRPC: their numbers, and infer requests and responses in them."""

import numpy as np
import pytest

pytest.importorskip("google.protobuf")
pytest.importorskip("orjson")

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.server import grpc_messages, protocol
from rnnfast.server.datatypes import ELEMENTS, dtype_of, to_bytes
from rnnfast.server.faults import MissingExtensionError
from rnnfast.server.requests import InferResponse, Output, parameters_of
from tests.server.tensors import values_of

X = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
REQUEST = protocol.methods()["ModelInfer"].request
RESPONSE = protocol.methods()["ModelInfer"].response
IN_STREAM = protocol.methods()["ModelStreamInfer"].response


def tensor(name="x", datatype="FP32", shape=(2, 3), **contents):
    made = REQUEST().inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(made.contents, field).extend(values)
    return made


def request(inputs=None, raw=(X.tobytes(),), outputs=(), **parameters):
    message = REQUEST(model_name="m", model_version="2", id="7", inputs=[tensor()] if inputs is None else inputs)
    message.raw_input_contents.extend(raw)
    for output in outputs:
        message.outputs.add(name=output)
    for name, (kind, value) in parameters.items():
        setattr(message.parameters[name], kind, value)
    return message


def decoded(message):
    return grpc_messages.decode(message.SerializeToString())


# ------------------------------------------------------------------------------------------ the protocol's numbers
def fields_of(descriptor):
    """{full name of a field: all that makes its bytes} of a message and those inside it."""
    fields = {}
    for field in descriptor.fields:
        kind = field.message_type or field.enum_type
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
        fields[f"{descriptor.full_name}.{field.name}"] = (
            field.number, field.type, repeated, kind and kind.full_name,
            field.containing_oneof and field.containing_oneof.name,
        )  # fmt: skip
    for nested in descriptor.nested_types:
        fields[nested.full_name] = nested.GetOptions().map_entry
        fields |= fields_of(nested)
    for enum in descriptor.enum_types:
        fields |= {f"{enum.full_name}.{value.name}": value.number for value in enum.values}
    return fields


def everything(file):
    """As `fields_of`, of all messages and enums of a file."""
    found = {}
    for message in file.message_types_by_name.values():
        found |= fields_of(message)
    for enum in file.enum_types_by_name.values():
        found |= {f"{enum.full_name}.{value.name}": value.number for value in enum.values}
    return found


def test_names_and_numbers_are_those_of_the_protocol():
    pytest.importorskip("tritonclient.grpc")
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = everything(service_pb2.DESCRIPTOR) | everything(model_config_pb2.DESCRIPTOR)
    ours = everything(REQUEST.DESCRIPTOR.file)
    assert len(ours) > 150
    assert ours == {name: theirs.get(name) for name in ours}
    (service,) = service_pb2.DESCRIPTOR.services_by_name.values()
    assert service.full_name == protocol.SERVICE
    names = {
        method.name: (method.input_type.full_name, method.output_type.full_name, method.server_streaming)
        for method in service.methods
    }
    for name, method in protocol.methods().items():
        full_names = method.request.DESCRIPTOR.full_name, method.response.DESCRIPTOR.full_name
        assert (*full_names, method.streams) == names[name]
    grpc = pytest.importorskip("rnnfast.server.grpc")
    assert set(names) == {*protocol.methods(), *grpc.REFUSED}


def test_protoc_reads_the_file(tmp_path):
    compiler = pytest.importorskip("grpc_tools.protoc")
    out = tmp_path / "descriptors"
    folder = str(protocol.FILE.parent)
    assert compiler.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", str(protocol.FILE)]) == 0
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    pool.Add(file)
    assert everything(pool.FindFileByName(file.name)) == everything(REQUEST.DESCRIPTOR.file)
    calls = [
        (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in file.service[0].method
    ]
    assert calls == [
        (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming)
        for m in protocol.file_descriptor().service[0].method
    ]


# ------------------------------------------------------------------------------------------ requests
def test_a_request():
    read = decoded(
        request(
            outputs=["a", "b"],
            sequence_id=("string_param", "s"),
            sequence_start=("bool_param", True),
            timeout=("int64_param", 5),
            priority=("uint64_param", 2),
            triton_enable_empty_final_response=("bool_param", True),
        )
    )
    assert (read.model, read.version, read.id) == ("m", "2", "7")
    assert list(read.inputs) == ["x"] and read.inputs["x"].tobytes() == X.tobytes()
    assert read.inputs["x"].shape == (2, 3) and read.inputs["x"].dtype == np.float32
    assert read.outputs == [Output("a", True), Output("b", True)]
    assert parameters_of(read.parameters) == ("s", True, False, 2, pytest.approx(5e-6))


@pytest.mark.parametrize(
    ("kind", "value", "id"),
    [
        ("int64_param", 5, 5), ("int64_param", -3, 2**64 - 3), ("uint64_param", 2**64 - 3, 2**64 - 3),
        ("string_param", "5", "5"), ("string_param", "", None), ("int64_param", 0, None),
    ],
)  # fmt: skip
def test_ids_of_sequences(kind, value, id):
    assert parameters_of(decoded(request(sequence_id=(kind, value))).parameters).sequence == id


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_as_bytes_and_as_typed_contents(datatype):
    x = values_of(datatype)
    given = [request([tensor(datatype=datatype)], [to_bytes(x)])]
    if datatype in grpc_messages.CONTENTS:
        elements = [text.encode() for text in x.ravel()] if datatype == "BYTES" else x.ravel().tolist()
        typed = tensor(datatype=datatype, **{grpc_messages.CONTENTS[datatype]: elements})
        given.append(request([typed], []))
    else:
        assert datatype in ("FP16", "BF16")
    for message in given:
        read = decoded(message).inputs["x"]
        assert read.dtype == x.dtype and read.tolist() == x.tolist()
        assert x.dtype.kind == "O" or read.tobytes() == x.tobytes()


def test_an_empty_tensor_needs_no_contents():
    read = decoded(request([tensor(shape=(0, 3)), tensor("y", shape=(4, 0), fp32_contents=[])], []))
    assert read.inputs["x"].shape == (0, 3) and read.inputs["y"].shape == (4, 0)


PARAMETERS = REQUEST(model_name="m")
PARAMETERS.parameters["foo"].Clear()
SHARED = tensor()
SHARED.parameters["shared_memory_region"].string_param = "r"
CLASSIFIED = request()
CLASSIFIED.outputs.add(name="y").parameters["classification"].int64_param = 2


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (request(raw=[]), InputError, "unable to find data for input 'x'"),
        (request([tensor(), tensor("y")]), InputError, "unable to find data for input 'y'"),
        (request([tensor(), tensor()], [b"", b""]), InputError, "6|24"),
        (request([tensor(), tensor()], [X.tobytes()] * 2), InputError, "input 'x' is given twice"),
        (request(raw=[X.tobytes()] * 2), InputError, "2 raw_input_contents for 1 inputs"),
        (request([tensor(fp32_contents=[1] * 6)]), InputError, "contents field must not be specified"),
        (request([tensor(fp32_contents=[1] * 5)], []), InputError, "input 'x' has 5 elements, expected 6"),
        (request([tensor(fp32_contents=[1] * 7)], []), InputError, "input 'x' has 7 elements, expected 6"),
        (request([tensor(int_contents=[1] * 6)], []), InputError, "input 'x' has int_contents, but FP32 has fp32_"),
        (request([tensor(datatype="FP16", fp32_contents=[1] * 6)], []), InputError, "raw_input_contents only"),
        (request([tensor(datatype="INT8", int_contents=[128] * 6)], []), InputError, "a value that INT8 does not"),
        (request([tensor(datatype="FLOAT")]), InputError, "datatype 'FLOAT', expected one of BOOL"),
        (request([tensor(datatype="")]), InputError, "datatype ''"),
        (request([tensor(shape=(-1, 3))]), InputError, "expected a list of sizes"),
        (request([tensor(shape=(2**40, 2**40))]), InputError, "24 bytes, expected 48357"),
        (request([tensor(shape=(1,) * 33)]), InputError, "33 axes"),
        (request(raw=[b"1" * 23]), InputError, "input 'x' has 23 bytes, expected 24"),
        (request([tensor(str(i)) for i in range(1025)]), InputError, "more than 1024 inputs"),
        (request([SHARED]), MissingExtensionError, "input 'x': tensors in shared memory are not taken"),
        (CLASSIFIED, MissingExtensionError, "output 'y': classification is not done here"),
        (PARAMETERS, InputError, "parameter 'foo' has no value"),
        (request(triton_x=("int64_param", 1)), UnsupportedError, "parameter 'triton_x' is not supported"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_by_the_name_of_what_is_wrong(message, error, text):
    with pytest.raises(error, match=text):
        decoded(message)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05abc", request().SerializeToString()[:-1], b"\x0a\x01\xff"])
def test_bytes_that_are_no_request(data):
    with pytest.raises(InputError, match="its bytes are no ModelInferRequest"):
        grpc_messages.decode(data)


# ------------------------------------------------------------------------------------------ responses
@pytest.mark.parametrize(
    ("model", "id", "outputs"),
    [
        ("m", "", {}),
        ("é" * 100, "i" * 300, {"y": X, "z" * 200: np.float32(1.5)[()].reshape(())}),
        ("m", "é", {name: values_of(name) for name in ELEMENTS}),
        ("m", "1", {"wide": np.zeros((1, 200, 70), np.float32), "empty": np.zeros((0, 2**40), np.int8)}),
        ("m", "1", {"turned": X.T}),
    ],
)
def test_responses_are_those_of_protobuf(model, id, outputs):
    response = InferResponse(model, "12", id, outputs)
    expected = RESPONSE(model_name=model, model_version="12", id=id)
    for name, value in outputs.items():
        datatype = next(kind for kind in ELEMENTS if dtype_of(kind, "") == value.dtype)
        expected.outputs.add(name=name, datatype=datatype, shape=value.shape)
        expected.raw_output_contents.append(to_bytes(value))
    assert RESPONSE.FromString(grpc_messages.encode(response)) == expected
    expected.parameters["triton_final_response"].bool_param = True
    assert IN_STREAM.FromString(grpc_messages.encode_in_stream(response)) == IN_STREAM(infer_response=expected)


@pytest.mark.parametrize("text", ["wrong", "é" * 200, "\udc80"])
@pytest.mark.parametrize("id", ["", "7", "é" * 200])
def test_errors_in_a_stream(text, id):
    read = IN_STREAM.FromString(grpc_messages.encode_error_in_stream(text, id))
    assert read.error_message == text.encode(errors="backslashreplace").decode()
    assert read.infer_response == RESPONSE(id=id) and read.HasField("infer_response")


# ------------------------------------------------------------------------------------------ what is remembered
def same_request(a, b):
    assert (a.model, a.version, a.id, a.outputs, a.parameters) == (b.model, b.version, b.id, b.outputs, b.parameters)
    assert list(a.inputs) == list(b.inputs)
    for name, value in a.inputs.items():
        other = b.inputs[name]
        assert value.dtype == other.dtype and value.shape == other.shape and value.tobytes() == other.tobytes()


def random_message(rng):
    """A request with few different heads, so that many come again."""
    inputs, raw = [], []
    for k in range(rng.integers(1, 4)):
        datatype = str(rng.choice(["FP32", "INT64", "UINT8", "BOOL"]))
        shape = tuple(int(n) for n in rng.integers(0, 3, rng.integers(0, 3)))
        inputs.append(tensor(f"x{k}", datatype, shape))
        raw.append(rng.integers(0, 2, int(np.prod(shape))).astype(dtype_of(datatype, "")).tobytes())
    parameters = {"sequence_id": ("int64_param", int(rng.integers(2)))} if rng.integers(2) else {}
    return request(inputs, raw, ["y"] if rng.integers(2) else [], **parameters)


def test_messages_that_come_again_mean_what_they_mean_alone():
    rng, decoder = np.random.default_rng(3), grpc_messages.Decoder()
    for _ in range(3000):
        data = random_message(rng).SerializeToString()
        same_request(decoder.decode(data), grpc_messages.decode(data))
    known = [known for known in decoder._known.values() if known is not None]
    assert len(known) > 20 and any(len(k.tensors) > 1 for k in known)


def test_a_message_that_comes_again_is_parsed_no_more(monkeypatch):
    decoder = grpc_messages.Decoder()
    for _ in range(3):
        decoder.decode(request().SerializeToString())
    monkeypatch.setattr(grpc_messages, "parsed", None)
    other = request(raw=[(X + 1).tobytes()])
    assert np.array_equal(decoder.decode(other.SerializeToString()).inputs["x"], X + 1)
    with pytest.raises(TypeError):
        decoder.decode(request(outputs=["y"]).SerializeToString())


def test_bytes_at_the_end_that_look_like_a_tensor_are_not_taken_for_it():
    """Raw contents may stand anywhere in a message, and fields that nobody knows behind them."""
    raw = b":" + bytes([X.nbytes])
    head = request(raw=()).SerializeToString()
    unknown = b"\xfa\x01" + bytes([len(raw) + X.nbytes])  # field 31, whose bytes are like those of a tensor
    decoder = grpc_messages.Decoder()
    for k in range(4):
        hidden = head + raw + (X * 2).tobytes() + unknown + raw + (X * 2 if k < 3 else X * 3).tobytes()
        assert np.array_equal(decoder.decode(hidden).inputs["x"], X * 2)
    for k in range(4):
        plain = head + raw + (X + k).tobytes()
        assert np.array_equal(decoder.decode(plain).inputs["x"], X + k)


def test_what_is_remembered_is_bounded():
    decoder = grpc_messages.Decoder()
    for k in range(2 * grpc_messages.MAX_KNOWN + 5):
        data = request(sequence_id=("int64_param", k)).SerializeToString()
        assert decoder.decode(data).parameters == {"sequence_id": k}
        assert len(decoder._known) <= grpc_messages.MAX_KNOWN + 1
    long = request(sequence_id=("string_param", "a" * grpc_messages.KNOWN_BYTES)).SerializeToString()
    before = len(decoder._known)
    for _ in range(3):
        decoder.decode(long)
    assert len(decoder._known) == before


@pytest.mark.parametrize("inside", [False, True])
def test_a_message_of_very_many_fields_is_not_parsed(inside):
    """Each of two bytes would become an object; those of parameters, elements and large tensors do not count."""
    fields = b"\x2a\x00" * 40_000  # inputs, or contents of one
    data = b"\x2a" + grpc_messages._number(len(fields)) + fields if inside else fields
    with pytest.raises(InputError, match=f"more than {grpc_messages.MAX_FIELDS} fields"):
        grpc_messages.decode(data)
    x = np.random.default_rng(0).standard_normal((50, 1000)).astype(np.float32)
    message = REQUEST(model_name="m")
    for i in range(grpc_messages.MAX_TENSORS):
        message.inputs.add(name=f"i{i}", datatype="FP32", shape=[50]).contents.fp32_contents.extend(x[:, i % 1000])
        message.outputs.add(name=f"o{i}")
        message.parameters[f"p{i}"].int64_param = -i
    data = message.SerializeToString()
    found = grpc_messages.decode(data)
    assert len(found.inputs) == len(found.outputs) == grpc_messages.MAX_TENSORS and len(data) > 2**16
    assert found.inputs["i7"].tobytes() == x[:, 7].tobytes()
