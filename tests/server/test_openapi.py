"""The OpenAPI document is true: each status of each operation is provoked, and every answer fits its schema."""

import json
import re
import signal
import subprocess

import numpy as np
import pytest

from tests.fetched import pip
from tests.paths import MODELS, ROOT
from tests.server.processes import ask, frame, started

DOCUMENT = json.loads((ROOT / "rnnfast" / "server" / "openapi.json").read_text())
OPERATIONS = {
    (path, method): operation for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
}
TOKEN = "correct-horse-battery-staple"
GOOD = {"model_name": "denoiser", "model_version": "1"}  # what stands in a path
FRAME = frame(np.ones(22), 5, True)
# The bodies that provoke a status, by the end of the path.
WRONG = {
    400: {"infer": b'{"inputs": 3}', "index": b'{"ready": 1}', "load": b"[]", "unload": b"[]"},
    504: {"infer": FRAME.replace(b'"sequence_id"', b'"timeout": 1, "sequence_id"')},
}


def url(path, **values):
    return re.sub(r"{(\w+)}", lambda found: (GOOD | values)[found[1]], path)


def kind_of(path):
    return path.rsplit("/", 1)[1]


def body_of(path):
    """A good body for a path."""
    return FRAME if kind_of(path) == "infer" else b""


def schema_of(operation, status, kind):
    content = operation["responses"][str(status)]["content"]
    assert kind in content, (kind, status)
    return content[kind]["schema"]


@pytest.fixture(scope="module")
def validate():
    """A function that checks an answer: its status is in the document, and its body fits the schema."""
    jsonschema = pytest.importorskip("jsonschema")

    def check(path, method, status, headers, body):
        schema = schema_of(OPERATIONS[path, method], status, headers["content-type"].partition(";")[0])
        if headers["content-type"] == "application/json":
            whole = {**schema, "components": DOCUMENT["components"]}
            jsonschema.Draft202012Validator(whole).validate(json.loads(body))
        assert (status in (429, 503)) == ("retry-after" in headers)

    return check


@pytest.fixture(scope="module")
def server():
    with started(MODELS / "denoiser.onnx", MODELS / "tagger.onnx", "--control", "--max-body=100000") as server:
        yield server


def test_the_document_is_served(server):
    status, headers, body = ask(server.port(), "GET", "/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json" and json.loads(body) == DOCUMENT


def documented(*statuses):
    return [(path, method, int(status)) for (path, method), operation in OPERATIONS.items()
            for status in operation["responses"] if int(status) in statuses]  # fmt: skip


@pytest.mark.parametrize("path, method, status", documented(200, 400, 404, 413, 504))
def test_statuses(server, validate, path, method, status):
    values, body = {}, body_of(path)
    if status == 404:
        values = {"model_version": "7"} if "model_version" in path else {"model_name": "nope"}
    elif status == 400 and method == "get":
        values = {"model_name": "nope"}
    elif status in WRONG:
        body = WRONG[status][kind_of(path)]
    elif status == 413:
        body = b" " * 100_001
    if kind_of(path) in ("load", "unload") and status == 200:
        values = {"model_name": "tagger"}
        ask(server.port(), "POST", url("/v2/repository/models/{model_name}/load", **values))
    got, headers, body = ask(server.port(), method.upper(), url(path, **values), body)
    assert got == status, body
    validate(path, method, got, headers, body)


def test_binary_answers(server, validate):
    body = json.loads(frame(np.ones(22), 6, True, True))
    body["outputs"] = [{"name": "gains", "parameters": {"binary_data": True}}]
    for path in (path for path, _ in OPERATIONS if path.endswith("infer")):
        status, headers, _ = ask(server.port(), "POST", url(path), json.dumps(body).encode())
        assert status == 200 and headers["content-type"] == "application/octet-stream"
        validate(path, "post", status, headers, b"")


def test_other_methods_have_405(server):
    for path in DOCUMENT["paths"]:
        for method in {"get", "post", "put", "delete", "options"} - set(DOCUMENT["paths"][path]):
            status, headers, body = ask(server.port(), method.upper(), url(path))
            assert status == 405 and headers["allow"].split(", ")[0].lower() in DOCUMENT["paths"][path], (method, path)
            assert json.loads(body)["error"]


def test_statuses_of_tokens_and_control(validate, tmp_path):
    (tmp_path / "tokens").write_text(TOKEN)
    with started(MODELS / "denoiser.onnx", f"--token-file={tmp_path / 'tokens'}") as server:
        for path, method in OPERATIONS:
            got, headers, body = ask(server.port(), method.upper(), url(path))
            assert (got == 401) == ("401" in OPERATIONS[path, method]["responses"]), path
            validate(path, method, got, headers, body)
        for path, method, status in documented(403):
            got, headers, body = ask(server.port(), method.upper(), url(path), authorization=f"Bearer {TOKEN}")
            assert got == status
            validate(path, method, got, headers, body)


def test_statuses_of_a_full_server_and_of_one_that_ends(validate):
    with started(MODELS / "denoiser.onnx", "--max-sequences=1", "--control", "--drain=60") as server:
        port = server.port()
        assert ask(port, "POST", "/v2/models/denoiser/infer", frame(np.ones(22), 1, True))[0] == 200
        for path, method, status in documented(429):
            got, headers, body = ask(port, method.upper(), url(path), frame(np.ones(22), 2, True))
            assert got == status
            validate(path, method, got, headers, body)
        server.process.send_signal(signal.SIGTERM)
        while ask(port, "GET", "/v2/health/ready")[0] == 200:
            pass
        for path, method, status in documented(503):
            got, headers, body = ask(port, method.upper(), url(path), body_of(path))
            assert got == status, (path, got, body)
            validate(path, method, got, headers, body)
        assert ask(port, "POST", "/v2/models/denoiser/infer", frame(np.ones(22), 1, end=True))[0] == 200
        server.process.wait(30)


def test_every_status_is_provoked():
    everything = {int(status) for operation in OPERATIONS.values() for status in operation["responses"]}
    assert everything == {200, 400, 404, 413, 504, 401, 403, 429, 503}


@pytest.mark.slow
def test_schemathesis(server, index, environment):
    """Requests that schemathesis makes from the document: no 500, wrong ones are refused, and all answers conform."""
    done = pip(environment / "bin" / "python", "install", "schemathesis>=4")
    assert done.returncode == 0, done.stderr.decode()
    result = subprocess.run(
        [
            environment / "bin" / "schemathesis", "run", f"http://127.0.0.1:{server.port()}/openapi.json",
            "--max-examples=60", "--seed=1", "--phases=examples,coverage,fuzzing", "--no-color",
            # Bodies of the right form still name inputs that no model has.
            "--exclude-checks=positive_data_acceptance",
            # They would unload the models of the other operations.
            "--exclude-path-regex=/(un)?load$",
        ],
        capture_output=True, text=True, cwd=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
