"""The page at `/`: that it is one file without anything from elsewhere, and what it shows in a browser."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess

import pytest

pytest.importorskip("orjson")
from rnnfast.server import metrics
from tests.fetched import pip
from tests.paths import MODELS, ROOT
from tests.server.client import ask, frame, infer
from tests.server.conftest import running

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NAME = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def text(server):
    status, headers, body = ask(server, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    return body.decode()


def test_a_policy_allows_this_style_and_script_alone(server, text):
    _, headers, _ = ask(server, "GET", "/")
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    for directive, tag in ("style-src", "style"), ("script-src", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert policy[directive] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_nothing_comes_from_elsewhere(text):
    elements = Elements(text).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {"main", "state", "access"} <= set(ids)
    for tag, attributes in elements:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") or name in ("src", "style") for name in attributes), (tag, attributes)
        target = attributes.get("href", "")
        assert target.startswith("data:") if tag == "link" else not re.match(r"[a-z]+:|/", target), target
    assert ("html", {"lang": "en"}) in elements
    assert not re.search(r"@import|url\(", text)
    assert all(address == "http://www.w3.org/2000/svg" for address in re.findall(r"https?://[^\s\"'`)]+", text))


def test_text_never_becomes_markup(text):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


def test_the_script_is_javascript(text, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (tmp_path / "page.js").write_text(re.search(r"<script>(.*?)</script>", text, re.S)[1])
    done = subprocess.run([node, "--check", tmp_path / "page.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_numbers_of_the_page_are_those_of_the_server(server):
    for i in range(3):
        assert infer(server, frame(), sequence_id="<b>x</b>", sequence_start=i == 0)[0] == 200
    status, headers, body = ask(server, "GET", "/v2/statistics")
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
    numbers = json.loads(body)
    assert numbers["server"]["ready"] and numbers["server"]["processes"] == 1
    assert numbers["server"]["resident"] > 10_000_000
    models = {model["name"]: model for model in numbers["models"]}
    assert set(models) == {"denoiser", "tagger", "detector"}
    assert models["denoiser"]["batching"] == "sequences share batches" and models["denoiser"]["weights"] == "float32"
    (row,) = [row for row in numbers["sequences"] if row["id"] == "<b>x</b>"]
    assert (row["model"], row["version"], row["requests"]) == ("denoiser", "1", 3)
    assert 0 <= row["unused"] <= row["age"] < 60


def test_the_oldest_sequences_are_listed():
    with running("denoiser") as server:
        for id in range(1, metrics.LISTED + 4):
            assert infer(server, frame(), sequence_id=id, sequence_start=True)[0] == 200
        assert infer(server, frame(), sequence_id=2, sequence_start=True)[0] == 200  # which begins anew
        _, _, body = ask(server, "GET", "/v2/statistics")
        rows = json.loads(body)["sequences"]
        assert [row["id"] for row in rows] == [str(id) for id in range(1, metrics.LISTED + 2) if id != 2]


def test_the_page_needs_no_token_but_its_numbers_do(tmp_path):
    (tmp_path / "tokens").write_text("a-token-of-a-test-0123456789\n")
    token = {"authorization": "Bearer a-token-of-a-test-0123456789"}
    with running("denoiser", token_file=str(tmp_path / "tokens")) as server:
        assert ask(server, "GET", "/")[0] == 200
        for path in "/v2/statistics", "/metrics":
            assert ask(server, "GET", path)[0] == 401
            assert ask(server, "GET", path, headers=token)[0] == 200
        _, _, body = ask(server, "GET", "/v2/statistics", headers=token)
        assert json.loads(body)["server"]["errors"] == {"unauthorized": 2}


@pytest.mark.slow
def test_in_a_browser(index, environment, tmp_path):
    """A browser shows what clients did, at the sizes of a phone and of a desktop. RNNFAST_BROWSER may name it."""
    browser = os.environ.get("RNNFAST_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed, and RNNFAST_BROWSER names no browser")
    python = environment / "bin" / "python"
    done = pip(python, "install", "playwright")
    assert done.returncode == 0, done.stderr.decode()
    path = tmp_path / f"{NAME}.onnx"
    path.write_bytes((MODELS / "denoiser.onnx").read_bytes())
    with running("denoiser", path) as server:
        for i in range(4):
            assert infer(server, frame(), sequence_id="<b>x</b>", sequence_start=i == 0)[0] == 200
        assert infer(server, frame(), sequence_id="nobody")[0] == 400
        script = ROOT / "tests" / "server" / "page_in_browser.py"
        done = subprocess.run([python, script, browser, server.url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == []
    assert set(found["sizes"]) == {"390", "360", "1440"}
    for size in found["sizes"].values():
        assert size["title"] == "rnnfast: ready"
        assert size["overflow"] == 0
        assert size["models"] == ["denoiser version 1", f"{NAME} version 1"]
        assert size["sequence"][:2] == ["<b>x</b>denoiser", "denoiser"] and size["sequence"][3] == "4"
        assert ["denoiser", "unknown sequence"] in [row[:2] for row in size["failures"]]
        assert size["charts"] >= 8 and size["reached"][:2] == ["pause", "Metrics for Prometheus"]
    assert found["paused"] == 0 and found["went on"] > 0
    assert found["hidden until the token is right"] == [True, True, False]
