"""The page of the server: its tables are those of the code, and its examples run."""

import json
import re

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("orjson")

from rnnfast.server.configuration import configure, settings_table
from rnnfast.server.faults import INTERNAL, STATUSES
from rnnfast.server.http_protocol import BODIES, HEADER_BYTES, MAX_PIPELINED
from rnnfast.server.settings import ModelSettings
from tests.paths import MODELS, ROOT
from tests.server.processes import ask, started

PAGE = (ROOT / "docs" / "reference" / "server.md").read_text()


def table(header):
    """The rows of the table with a header, as lists of cells."""
    found = re.search(rf"^\| {header} \|.*\n\|[-| ]+\|\n((?:\|.*\n)*)", PAGE, re.M)
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
