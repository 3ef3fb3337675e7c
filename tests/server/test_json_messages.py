"""Infer requests and responses of HTTP: JSON, and bytes behind it."""

import numpy as np
import pytest

pytest.importorskip("orjson")
import orjson

from rnnfast.errors import InputError
from rnnfast.server import json_messages
from rnnfast.server.faults import MissingExtensionError
from rnnfast.server.json_messages import dump, parse
from rnnfast.server.requests import InferResponse, Output, parameters_of

X = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
N = np.array([3, 4], np.int64)


def request(**changes):
    return {
        "id": "7",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "n", "datatype": "INT64", "shape": [2], "data": [3, 4]},
            {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
        ],
        "outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}],
        "parameters": {"sequence_id": "s", "sequence_start": True, "binary_data_output": False},
        **changes,
    }


def body_of(message, tail=X.tobytes() + (2 * X).tobytes()):
    text = orjson.dumps(message)
    return text + tail, len(text)


def test_a_request_with_json_and_bytes():
    read, binary = parse(*body_of(request()), "m", "2")
    assert (read.model, read.version, read.id, binary) == ("m", "2", "7", False)
    assert list(read.inputs) == ["x", "n", "y"]
    assert np.array_equal(read.inputs["x"], X) and np.array_equal(read.inputs["y"], 2 * X)
    assert np.array_equal(read.inputs["n"], N)
    assert read.outputs == [Output("a", True), Output("b", None)]
    parameters = parameters_of(read.parameters)
    assert (parameters.sequence, parameters.start, parameters.end, parameters.timeout) == ("s", True, False, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": None}, "no list of inputs"),
        ({"inputs": {}}, "inputs is no list"),
        ({"inputs": [1]}, "inputs is no list"),
        ({"inputs": [{}]}, "an input has the name None"),
        ({"inputs": request()["inputs"][1:2] * 2}, "input 'n' is given twice"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]}, "input 'x' has neither data nor"),
        ({"inputs": [{**request()["inputs"][0], "data": [1]}]}, "input 'x' has both data and"),
        ({"inputs": [{**request()["inputs"][0], "parameters": {"binary_data_size": 49}}]}, "but 48 bytes are left"),
        ({"inputs": [{**request()["inputs"][0], "parameters": {"binary_data_size": -1}}]}, "binary_data_size is -1"),
        ({"inputs": [{**request()["inputs"][0], "parameters": {"binary_data_size": 8}}]}, "8 bytes, expected 24"),
        ({"inputs": [{**request()["inputs"][0], "parameters": 3}]}, "parameters is a int"),
        (
            {"inputs": [{**request()["inputs"][0], "parameters": {"shared_memory_region": "r"}}]},
            "'x': tensors in shared",
        ),
        ({"inputs": request()["inputs"][:2]}, "24 bytes are left behind the last input"),
        ({"outputs": [{"name": "a", "parameters": {"classification": 3}}]}, "'a': classification is not done here"),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": 1}}]}, "'a': binary_data is 1"),
        ({"outputs": 1}, "outputs is no list"),
        ({"id": 7}, "id is 7"),
    ],
)
def test_requests_that_lie_are_refused_by_name(changes, message):
    with pytest.raises((InputError, MissingExtensionError), match=message):
        parse(*body_of(request(**changes)), "m", "")


@pytest.mark.parametrize("body", (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"))
def test_bodies_that_are_no_object_are_refused(body):
    with pytest.raises(InputError, match="JSON"):
        parse(body, None, "m", "")


def test_a_header_length_beyond_the_body_is_refused():
    with pytest.raises(InputError, match="Inference-Header-Content-Length is 9, but the body has 2 bytes"):
        parse(b"{}", 9, "m", "")


@pytest.mark.parametrize("binary", (False, True))
@pytest.mark.parametrize("named", (False, True))
def test_a_response_has_each_output_as_it_was_asked_for(binary, named):
    asked = parse(*body_of(request() if named else request(outputs=None)), "m", "")[0]
    response = InferResponse("m", "2", "7", {"a": X, "b": N, "c": X.astype(np.float64)})
    parts, length = dump(response, asked, binary)
    message = orjson.loads(parts[0])
    assert (message["model_name"], message["model_version"], message["id"]) == ("m", "2", "7")
    assert length == (len(parts[0]) if named or binary else None)
    behind = b"".join(parts[1:])
    for output, array, as_bytes in zip(
        message["outputs"], (X, N, X.astype(np.float64)), (True, False, False) if named else (binary,) * 3
    ):
        assert output["shape"] == list(array.shape)
        if as_bytes:
            size = output["parameters"]["binary_data_size"]
            assert behind[:size] == array.tobytes()
            behind = behind[size:]
        else:
            assert np.array_equal(np.array(output["data"], array.dtype).reshape(array.shape), array)
    assert not behind


def test_nan_and_infinities_come_and_go_as_their_words():
    values = np.array([np.nan, np.inf, -np.inf, 0.1], np.float32)
    parts, _ = dump(InferResponse("m", "1", "", {"a": values}), parse(b'{"inputs": []}', None, "m", "")[0], False)
    assert b'"data":[NaN, Infinity, -Infinity, 0.10000000149011612]' in parts[0]
    text = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "data": [NaN, Infinity, -Infinity, 0.1]}]}'
    assert np.array_equal(parse(text, None, "m", "")[0].inputs["x"], values, equal_nan=True)
    with pytest.raises(InputError, match="JSON"):
        parse(b"[" * 100_000 + b"NaN", None, "m", "")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_id": -1}, "sequence_id is -1"),
        ({"sequence_id": 2**64}, "sequence_id is"),
        ({"sequence_id": 1.5}, "sequence_id is 1.5"),
        ({"sequence_id": True}, "sequence_id is True"),
        ({"sequence_id": "x" * 129}, "up to 128 characters"),
        ({"sequence_start": 1}, "sequence_start is 1"),
        ({"sequence_end": "true"}, "sequence_end is 'true'"),
        ({"timeout": -1}, "timeout is -1"),
        ({"priority": "high"}, "priority is 'high'"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        parameters_of(parameters)


@pytest.mark.parametrize("id", (b"\\ud800", b"\\uDC00\\uD800", b"\xed\xa0\x80", b"\xff"))
@pytest.mark.parametrize("number", (b"1", b"NaN"))
def test_text_that_no_answer_could_repeat_is_refused(id, number):
    text = b'{"id": "%s", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [%s]}]}'
    with pytest.raises(InputError, match="failed to parse the request JSON buffer"):
        parse(text % (id, number), None, "m", "")
    assert parse(text % (b"\\ud83d\\ude00 \xc3\xa9", number), None, "m", "")[0].id == "\N{GRINNING FACE} é"


def test_an_empty_or_zero_sequence_id_is_none():
    assert parameters_of({"sequence_id": 0}).sequence is None and parameters_of({"sequence_id": ""}).sequence is None
    assert parameters_of({"sequence_id": 2**64 - 1}).sequence == 2**64 - 1
    assert parameters_of({"timeout": 2_000_000}).timeout == 2.0
    assert parameters_of({"timeout": 0}).timeout is None and parameters_of({"timeout": 2**64 - 1}).timeout is None


def test_json_that_came_before_means_the_same_again_with_other_bytes_behind_it():
    message = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "n", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
        ],
        "outputs": [{"name": "a"}],
        "parameters": {"sequence_id": "again", "sequence_start": False},
    }
    for factor in (1, 2, 3):
        body, length = body_of(message, (factor * X).tobytes() + (factor * N).tobytes())
        read, binary = parse(body, length, f"m{factor}", "")
        assert np.array_equal(read.inputs["x"], factor * X) and np.array_equal(read.inputs["n"], factor * N)
        assert (read.model, read.outputs, binary) == (f"m{factor}", [Output("a", None)], False)
        assert read.parameters == message["parameters"]
        for tail in (b"", body[length:-1], body[length:] + b"\0"):
            with pytest.raises(InputError, match="bytes"):
                parse(body[:length] + tail, length, "m", "")
    message["inputs"][1]["datatype"] = "BOOL"
    message["inputs"][1]["shape"] = [16]
    body, length = body_of(message, X.tobytes() + b"\1" * 16)
    assert parse(body, length, "m", "")[0].inputs["n"].all()
    with pytest.raises(InputError, match="neither 0 nor 1"):
        parse(body[:-1] + b"\2", length, "m", "")


def test_what_is_remembered_of_json_is_bounded(monkeypatch):
    """In the number of texts, in their bytes, and in what a byte may become."""

    class Known(dict):
        def get(self, text):
            assert len(text) <= json_messages.KNOWN_BYTES, "the hash of a long text takes its time"
            return super().get(text)

    known = Known()
    monkeypatch.setattr(json_messages, "_known", known)
    monkeypatch.setattr(json_messages, "MAX_KNOWN", 5)
    inputs = [{"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}]
    for i in range(12):
        parse(*body_of({"id": str(i), "inputs": inputs}, X.tobytes()), "m", "")
        assert len(known) == i % 5 + 1
    known.clear()
    for more in {"id": "x" * 1024}, {"parameters": {"p": [{}, {}]}}, {"parameters": {"p": {"q": []}}}:
        parse(*body_of({"inputs": inputs, **more}, X.tobytes()), "m", "")
        assert not known
    parse(
        orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [900], "data": [0.5] * 900}]}),
        None,
        "m",
        "",
    )
