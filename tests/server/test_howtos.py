"""What the pages on running servers show is understood by the command, by systemd's and by YAML's rules."""

import configparser
import re
import shlex

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from rnnfast.cli.serve import serve
from tests.paths import ROOT

HOWTO = ROOT / "docs" / "howto"
PAGES = ("running-a-server.md", "several-servers.md")
FLAGS = {flag for option in serve.params for flag in option.opts}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (HOWTO / page).read_text(), re.S | re.M)


def check_flags(words):
    assert words[:2] == ["rnnfast", "serve"]
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert set(flags) <= FLAGS, flags


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_are_flags_of_the_command(page):
    text = (HOWTO / page).read_text()
    found = set(re.findall(r"`(--[a-z-]+)", text))
    assert found and found <= FLAGS | {"--minutes"}


@pytest.mark.parametrize(
    "command", [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
)
def test_commands_start_a_server(command, tmp_path, monkeypatch):
    for package in ("uvloop", "httptools", "orjson", "grpc"):
        pytest.importorskip(package)
    from click.testing import CliRunner

    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    check_flags(words)
    result = CliRunner().invoke(serve, [*words[2:], "--check"])
    assert result.exit_code == 0, result.output


def test_the_unit_of_systemd():
    (text,) = blocks("running-a-server.md", "ini")
    unit = configparser.ConfigParser(strict=True)
    unit.optionxform = str
    unit.read_string(text)
    words = shlex.split(unit["Service"]["ExecStart"])
    check_flags(["rnnfast", *words[1:]])
    drain = float(words[words.index("--drain") + 1])
    assert float(unit["Service"]["TimeoutStopSec"]) > drain + 12  # FINISH_SECONDS and END_SECONDS of the server
    assert words[words.index("--state-dir") + 1].startswith(f"/var/lib/{unit['Service']['StateDirectory']}/")


def test_the_pods_of_kubernetes():
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("running-a-server.md", "yaml")
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert all(type(word) is str for word in container["args"])
    check_flags(container["args"])
    drain = float(container["args"][container["args"].index("--drain") + 1])
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + drain + 12
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"/v2/health/ready", "/v2/health/live"}
