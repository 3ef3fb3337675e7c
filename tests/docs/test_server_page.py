"""The pages of the server: their tables are those of the code, and their examples run."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("httptools")
pytest.importorskip("orjson")

import rnnfast
from rnnfast.server.configuration import configure, settings_table
from rnnfast.server.faults import INTERNAL, STATUSES
from rnnfast.server.http_protocol import BODIES, HEADER_BYTES, MAX_PIPELINED
from rnnfast.server.settings import ModelSettings
from tests.paths import MODELS, ROOT
from tests.server.processes import ask, started

PAGE, GRPC, WEBSOCKET = (
    (ROOT / "docs" / "reference" / f"server{name}.md").read_text() for name in ("", "-grpc", "-websocket")
)


def table(header, page=PAGE):
    """The rows of the table with a header, as lists of cells."""
    found = re.search(rf"^\| {header} \|.*\n\|[-| ]+\|\n((?:\|.*\n)*)", page, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)[1]


@pytest.mark.parametrize("header, of_models", [("setting of the server", False), ("setting of models", True)])
def test_settings(header, of_models):
    def shown(value):
        return "none" if value is None else str(value).lower() if type(value) is bool else str(value)

    assert table(header) == [
        [f"`{setting.name}`", shown(setting.default), setting.text]
        for setting in settings_table()
        if setting.of_models == of_models
    ]


def test_statuses():
    listed = {int(status): re.findall(r"`(\w+)`", words) for status, words, _ in table("HTTP")}
    expected = {408: set(), 431: set(), INTERNAL.http: {INTERNAL.reason}}
    for _, status in STATUSES:
        expected.setdefault(status.http, set()).add(status.reason)
    assert {status: set(words) for status, words in listed.items()} == expected
    assert list(listed) == sorted(listed)


def test_paths():
    document = json.loads((ROOT / "rnnfast" / "server" / "openapi.json").read_text())
    expected = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if "model_version" not in path
    }
    listed = set()
    for cell, _ in table("path"):
        names = re.findall(r"`([^`]+)`", cell)
        for name in names:
            listed.add(name.replace("...", names[0].rpartition("/")[0].rstrip("/")) if "..." in name else name)
    model = "GET /v2/models/{model_name}"
    listed = {f"POST {name}" if name.startswith("/v2/repository") else name for name in listed}
    assert {name.replace(f"{model}/ready/", f"{model}/") for name in listed} == expected


def test_limits():
    text = " ".join(PAGE.split())
    assert f"{MAX_PIPELINED} requests may wait" in text and f"{BODIES} times `max_body`" in text
    assert f"more than {HEADER_BYTES >> 10} KiB" in text


def test_methods_of_grpc():
    pytest.importorskip("grpc_health.v1")
    from rnnfast.server import grpc, protocol

    methods = [*protocol.methods(), *grpc.REFUSED]
    listed = [name for cell, _ in table("method", GRPC) for name in re.findall(r"`([\w.]+)`", cell)]
    found = [[m for m in methods if re.fullmatch(name.replace("...", r"\w+"), m)] for name in listed]
    assert all(found) and sorted(sum(found, [])) == sorted(methods)


def test_codes_of_grpc():
    pytest.importorskip("grpc_health.v1")
    from rnnfast.server.grpc import MAX_IN_FLIGHT

    codes = [code for code, _ in table("code", GRPC)]
    assert len(codes) == len(set(codes)) and set(codes) == {s.grpc for _, s in STATUSES} | {INTERNAL.grpc}
    assert f"At most {MAX_IN_FLIGHT} requests of a stream" in GRPC


def test_codes_and_options_of_websockets():
    websocket = pytest.importorskip("rnnfast.server.websocket")
    from rnnfast.server.websocket_frames import FORMATS

    codes = {websocket.DONE, websocket.OVER, websocket.INVALID, websocket.DEFECT, websocket.FULL}
    too_large = 1009  # the library closes with it
    assert [int(code) for code, _ in table("code of closing", WEBSOCKET)] == sorted(codes | {too_large})
    formats = table("in the URL", WEBSOCKET)[0][0]
    assert set(re.findall(r"`(?:format=)?(\w+)`", formats)) == set(FORMATS)
    assert f"{websocket.MAX_WAITING} frames of a connection may wait" in WEBSOCKET


def test_toml(tmp_path):
    (tmp_path / "serve.toml").write_text(block("toml"))
    settings = configure((), {}, {}, str(tmp_path / "serve.toml")).settings
    assert settings.sources == (str(tmp_path / "models"),) and settings.model.max_sequences == 4000
    assert settings.models == {"denoiser": {"warm": {"bands": [1, 22]}}}


def test_config_json():
    assert ModelSettings().with_values(json.loads(block("json")), "config.json").max_sequences == 200


def test_the_first_request():
    install, serve, curl = block("sh").split("\n", 2)
    assert (install, serve) == ("pip install '.[serve]'", "rnnfast serve models/denoiser.onnx &")
    path, body = re.fullmatch(r"curl 127\.0\.0\.1:8000(\S+) -d '(.*?)'\n", curl, re.S).groups()
    with started(MODELS / "denoiser.onnx") as server:
        status, _, answer = ask(server.port(), "POST", path, body.encode())
    assert status == 200 and json.loads(answer)["outputs"][0]["shape"] == [1, 22]


def test_the_example_of_grpc():
    pytest.importorskip("tritonclient.grpc")
    import tritonclient

    code = re.search(r"^```\n(client = .*?)^```", GRPC, re.S | re.M)[1]
    x = np.random.default_rng(0).standard_normal((1, 22), dtype=np.float32)
    with started(MODELS / "denoiser.onnx") as server:
        code = code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port('grpc')}")
        names = {"tritonclient": tritonclient, "frame": x}
        exec(code.replace("client.infer(", "gains = client.infer("), names)
        names["client"].close()
    assert np.array_equal(names["gains"], rnnfast.load(MODELS / "denoiser.onnx").stream().step(bands=x))
