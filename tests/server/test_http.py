"""The HTTP front: the paths of the Open Inference Protocol, their statuses and texts, and Triton's client."""

import gzip
import json
import zlib

import numpy as np
import pytest

import rnnfast
from tests.paths import MODELS
from tests.server.client import BANDS, ask, bands, frame, infer
from tests.server.conftest import running


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/health/live", 200, '{"live":true}'),
        ("GET", "/v2/health/ready", 200, '{"ready":true}'),
        ("GET", "/v2/models/denoiser/ready", 200, '{"name":"denoiser","ready":true}'),
        ("GET", "/v2/models/denoiser/versions/1/ready", 200, '"ready":true'),
        ("GET", "/v2/models/nope/ready", 400, '{"error":"Model version not ready"}'),
        ("GET", "/v2/models/denoiser/versions/9/ready", 400, '{"error":"Model version not ready"}'),
        ("GET", "/v2/models/nope", 404, '{"error":"Request for unknown model: \'nope\' is not found"}'),
        ("GET", "/v2/models/denoiser/versions/9", 404, "unknown model: 'denoiser' version 9 is not found"),
        ("GET", "/v2/models/denoiser/versions/x", 404, "version x is not found"),
        ("GET", "/v2/models/nope/config", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("GET", "/v2/models/denoiser/nope", 404, "Not Found"),
        ("GET", "/nope", 404, "Not Found"),
        ("POST", "/v2/health/live", 405, "Method Not Allowed"),
        ("PUT", "/v2/models/denoiser", 405, "Method Not Allowed"),
        ("OPTIONS", "/v2", 405, "Method Not Allowed"),
        ("GET", "/v2/models/denoiser/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/models/nope/infer", 404, "'nope' is not found"),
        ("POST", "/v2/models/denoiser/versions/9/infer", 404, "version 9 is not found"),
        ("POST", "/v2/models/denoiser/nope/1/infer", 404, "Not Found"),
        ("POST", "/v2/models/denoiser/versions//infer", 404, "Not Found"),
        ("GET", "/v2/systemsharedmemory/status", 501, "shared memory is not supported"),
        ("GET", "/v2/cudasharedmemory/status", 501, "shared memory is not supported"),
        ("GET", "/v2/trace/setting", 501, "tracing is not supported"),
        ("POST", "/v2/models/denoiser/trace/setting", 501, "tracing is not supported"),
        ("GET", "/v2/logging", 501, "log settings are"),
    ],
)
def test_paths_answer_with_the_statuses_and_texts_of_triton(server, method, path, status, text):
    got, headers, body = ask(server, method, path)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert text in body.decode()


def test_a_head_is_a_get_without_its_body(server):
    status, headers, body = ask(server, "HEAD", "/v2")
    assert (status, body) == (200, b"") and int(headers["content-length"]) == len(ask(server, "GET", "/v2")[2])


def test_metadata_config_and_statistics_say_what_the_model_is(server):
    metadata = json.loads(ask(server, "GET", "/v2/models/denoiser")[2])
    assert metadata["inputs"] == [{"name": "bands", "datatype": "FP32", "shape": [-1, BANDS]}]
    assert metadata["outputs"] == [{"name": "gains", "datatype": "FP32", "shape": [-1, BANDS]}]
    assert metadata["versions"] == ["1"]
    config = json.loads(ask(server, "GET", "/v2/models/denoiser/config")[2])
    assert config["sequence_batching"]["state"] == [
        {"input_name": "state", "output_name": "new_state", "data_type": "TYPE_FP32", "dims": [1, -1, 32]}
    ]
    before = json.loads(ask(server, "GET", "/v2/models/denoiser/stats")[2])["model_stats"][0]
    assert infer(server, frame(), sequence_id="counted", sequence_start=True, sequence_end=True)[0] == 200
    assert infer(server, frame(), sequence_id="counted")[0] == 400
    after = json.loads(ask(server, "GET", "/v2/models/denoiser/stats")[2])["model_stats"][0]
    for part, more in ("success", 1), ("fail", 1), ("queue", 1), ("compute_infer", 1), ("compute_output", 1):
        assert after["inference_stats"][part]["count"] == before["inference_stats"][part]["count"] + more


def test_the_index_lists_what_is_loaded(server):
    rows = json.loads(ask(server, "POST", "/v2/repository/index")[2])
    assert [(row["name"], row["state"]) for row in rows] == [
        ("denoiser", "READY"), ("tagger", "READY"), ("detector", "READY")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"{", {}, "failed to parse the request JSON buffer"),
        (b"", {}, "failed to parse the request JSON buffer"),
        ({}, {}, "the request has no list of inputs"),
        ({"inputs": []}, {}, "input is missing|correlation ID"),
        ({"inputs": [bands(frame())]}, {"inference-header-content-length": "x"}, "expected a number of bytes"),
        ({"inputs": [bands(frame())]}, {"inference-header-content-length": "99999"}, "but the body has"),
        ({"inputs": [{**bands(frame()), "datatype": "INT32"}]}, {}, "input 'bands' holds .* expected INT32"),
        ({"inputs": [{**bands(frame()), "shape": [1, 23]}]}, {}, "input 'bands' has 22 elements, expected 23"),
        ({"inputs": [bands(frame())], "parameters": {"sequence_id": -4}}, {}, "sequence_id is -4"),
        (b"xx", {"content-encoding": "gzip"}, "the body is not in gzip"),
        (b"xx", {"content-encoding": "br"}, "expected gzip or deflate"),
        (gzip.compress(b"{}", mtime=0)[:-3], {"content-encoding": "gzip"}, "ends too early"),
    ],
)
def test_what_a_client_gets_wrong_is_a_400_with_the_reason(server, body, headers, message):
    status, _, answer = ask(server, "POST", "/v2/models/denoiser/infer", body, headers)
    assert status == 400
    import re

    assert re.search(message, json.loads(answer)["error"])


def test_compressed_requests_and_answers(server):
    x = frame()
    body = json.dumps({"inputs": [bands(x)], "parameters": {"sequence_id": 9, "sequence_start": True}}).encode()
    expected = rnnfast.load(MODELS / "denoiser.onnx").stream().step(bands=x)
    for coding, compress, decompress in (
        ("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)
    ):  # fmt: skip
        status, headers, answer = ask(
            server, "POST", "/v2/models/denoiser/infer", compress(body),
            {"content-encoding": coding, "accept-encoding": coding},
        )  # fmt: skip
        assert (status, headers["content-encoding"]) == (200, coding)
        data = json.loads(decompress(answer))["outputs"][0]["data"]
        assert np.array_equal(np.array(data, np.float32).reshape(1, BANDS), expected)


@pytest.mark.parametrize("more", [b"x", gzip.compress(b"{}")], ids=["bytes", "member"])
def test_what_is_behind_a_compressed_body_is_not_ignored(server, more):
    body = gzip.compress(json.dumps({"inputs": [bands(frame())]}).encode()) + more
    status, _, answer = ask(server, "POST", "/v2/models/denoiser/infer", body, {"content-encoding": "gzip"})
    assert status == 400 and f"{len(more)} bytes are left behind the body" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("br, deflate;q=0.5, GZIP ; q=0.1", "gzip"), ("deflate", "deflate"), ("gzip;q=1.0", "gzip"), ("*", None),
        ("gzip;q=0, deflate", "deflate"), ("gzip; q=0.000", None), ("identity", None), ("xgzip", None),
    ],
)  # fmt: skip
def test_answers_have_a_coding_that_the_client_takes(server, accepted, coding):
    body = {"inputs": [bands(frame())], "parameters": {"sequence_id": 8, "sequence_start": True, "sequence_end": True}}
    _, headers, _ = ask(server, "POST", "/v2/models/denoiser/infer", body, {"accept-encoding": accepted})
    assert headers.get("content-encoding") == coding


def test_a_body_that_becomes_too_large_is_refused(server):
    bomb = gzip.compress(b" " * (server.service.settings.max_body + 1), 9)
    status, _, answer = ask(server, "POST", "/v2/models/denoiser/infer", bomb, {"content-encoding": "gzip"})
    assert status == 413 and "becomes more than" in json.loads(answer)["error"]


def test_what_compressed_bodies_become_is_bounded_together(monkeypatch):
    """It counts as held while its request runs, and no longer."""
    http_protocol = pytest.importorskip("rnnfast.server.http_protocol")
    monkeypatch.setattr(http_protocol.HttpServer, "__init__", at_most(2000, http_protocol.HttpServer.__init__))
    body = {"inputs": [bands(frame())], "parameters": {"sequence_id": 7, "sequence_start": True, "sequence_end": True}}
    with running("denoiser") as small:
        for spaces, expected in ((0, 200), (2000, 503), (500, 200), (500, 200), (500, 200)):
            text = gzip.compress(json.dumps(body).encode() + b" " * spaces)
            assert len(text) < 500
            status, _, answer = ask(small, "POST", "/v2/models/denoiser/infer", text, {"content-encoding": "gzip"})
            assert status == expected, answer


def at_most(size, begin):
    """A constructor of an HttpServer that holds so many bytes at most."""

    def init(self, *args):
        begin(self, *args)
        self.most_held = size

    return init


def test_the_same_tensors_in_json_and_in_bytes(server):
    stream = rnnfast.load(MODELS / "denoiser.onnx").stream()
    for t in range(4):
        x = frame(t)
        inputs = [{**bands(x)}] if t % 2 else [
            {"name": "bands", "datatype": "FP32", "shape": [1, BANDS], "parameters": {"binary_data_size": x.nbytes}}
        ]  # fmt: skip
        head = json.dumps({
            "inputs": inputs,
            "outputs": [{"name": "gains", "parameters": {"binary_data": t < 2}}],
            "parameters": {"sequence_id": "both", "sequence_start": t == 0},
        }).encode()  # fmt: skip
        status, headers, answer = ask(
            server, "POST", "/v2/models/denoiser/infer", head + (b"" if t % 2 else x.tobytes()),
            {"inference-header-content-length": str(len(head))},
        )  # fmt: skip
        assert status == 200
        if t < 2:
            data = np.frombuffer(answer[int(headers["inference-header-content-length"]) :], np.float32)
        else:
            data = np.array(json.loads(answer)["outputs"][0]["data"], np.float32)
        assert np.array_equal(data.reshape(1, BANDS), stream.step(bands=x))


def test_calls_without_a_sequence(server):
    model = rnnfast.load(MODELS / "tagger.onnx")
    for batch, time in (1, 3), (2, 5), (1, 8), (3, 1):
        tokens = np.random.default_rng(time).integers(0, 9, (batch, time))
        lengths = np.full(batch, time)
        inputs = [
            {"name": v.name, "datatype": "INT64" if v.type.dtype == np.int64 else "INT32",
             "shape": list(value.shape), "data": value.ravel().tolist()}
            for v, value in zip(model.inputs, (tokens, lengths))
        ]  # fmt: skip
        status, _, answer = ask(server, "POST", "/v2/models/tagger/infer", {"id": "q", "inputs": inputs})
        answer = json.loads(answer)
        assert (status, answer["id"]) == (200, "q")
        expected = model(tokens=tokens.astype(model.inputs[0].type.dtype), lengths=lengths.tolist()).tags
        data = np.array(answer["outputs"][0]["data"], np.float32).reshape(answer["outputs"][0]["shape"])
        assert np.array_equal(data, expected)


def test_load_and_unload(server):
    assert ask(server, "POST", "/v2/repository/models/detector/unload")[0] == 200
    status, _, answer = ask(server, "GET", "/v2/models/detector")
    assert status == 404
    rows = json.loads(ask(server, "POST", "/v2/repository/index")[2])
    assert {"name": "detector", "state": "UNAVAILABLE", "reason": "unloaded"} in rows
    assert len(json.loads(ask(server, "POST", "/v2/repository/index", {"ready": True})[2])) == 2
    assert ask(server, "POST", "/v2/repository/models/detector/load")[0] == 200
    assert ask(server, "GET", "/v2/models/detector")[0] == 200
    assert ask(server, "POST", "/v2/repository/models/nope/load")[0] == 404
    assert ask(server, "POST", "/v2/repository/models/detector/load", {"parameters": {"config": "{}"}})[0] == 403


def test_tritonclient(server):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(server.address("http"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("denoiser")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "rnnfast"
    assert client.get_model_metadata("denoiser")["inputs"][0]["name"] == "bands"
    assert client.get_model_config("denoiser")["max_batch_size"] == 0
    assert client.get_inference_statistics("denoiser")["model_stats"][0]["name"] == "denoiser"
    assert "denoiser" in [row["name"] for row in client.get_model_repository_index()]
    for sequence in (11, "eleven"):
        stream = rnnfast.load(MODELS / "denoiser.onnx").stream()
        for t in range(6):
            x = triton.InferInput("bands", [1, BANDS], "FP32")
            x.set_data_from_numpy(frame(t), binary_data=bool(t % 2))
            outputs = [triton.InferRequestedOutput("gains", binary_data=t < 3)] if t != 5 else None
            result = client.infer(
                "denoiser", [x], outputs=outputs, sequence_id=sequence, sequence_start=t == 0, sequence_end=t == 5,
                request_compression_algorithm="gzip" if t == 4 else None,
                response_compression_algorithm="deflate" if t == 2 else None,
            )  # fmt: skip
            assert np.array_equal(result.as_numpy("gains"), stream.step(bands=frame(t)))
        with pytest.raises(Exception, match="must specify the START flag on the first request of the sequence"):
            client.infer("denoiser", [x], sequence_id=sequence)
    client.close()
