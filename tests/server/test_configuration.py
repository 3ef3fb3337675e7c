"""Settings from flags, the environment and a TOML file, and `rnnfast serve --check`."""

import dataclasses
import json
import os
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("httptools")
if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

from click.testing import CliRunner

from rnnfast.cli import main
from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.server.configuration import configure, settings_table
from rnnfast.server.settings import CHECKS, ModelSettings, Settings
from tests.paths import MODELS

DENOISER, TAGGER = str(MODELS / "denoiser.onnx"), str(MODELS / "tagger.onnx")
# Setting -> (a text that is not its default, its value), for each setting.
OTHERS = {
    "host": ("::1", "::1"), "http_port": ("1", 1), "grpc_port": ("none", None), "control": ("true", True),
    "max_body": ("2", 2), "max_connections": ("3", 3), "request_timeout": ("0.5", 0.5), "keep_alive": ("4", 4.0),
    "drain": ("0", 0.0), "state_dir": ("/s", "/s"), "processes": ("2", 2), "tls_certificate": ("/c", "/c"),
    "tls_key": ("/k", "/k"), "token_file": ("/t", "/t"), "access_log": ("yes", True), "weights": ("int8", "int8"),
    "activations": ("8", 8), "threads": ("none", None), "max_batch": ("7", 7), "max_wait": ("0.01", 0.01),
    "max_queue": ("8", 8), "max_sequences": ("9", 9), "idle": ("1.5", 1.5), "batch": ("0", False),
    "states": ('{"a": "b"}', {"a": "b"}), "fixed": ('{"rate": 8000}', {"rate": 8000}),
    "warm": ('{"bands": [1, 22]}', {"bands": [1, 22]}), "versions": ("2", 2),
}  # fmt: skip
NAMES = [setting.name for setting in settings_table()]
PAIRS = {"tls_certificate": ("tls_key", "/k"), "tls_key": ("tls_certificate", "/c")}


def value_of(settings, name):
    return getattr(settings if hasattr(settings, name) else settings.model, name)


def serve(*args, **variables):
    return CliRunner(env=variables).invoke(main, ["serve", *map(str, args)])


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("rnnfast: ")
    for word in words:
        assert word in result.stderr
    return True


def test_every_setting_has_a_check_a_text_and_one_meaning():
    fields = [field.name for kind in (Settings, ModelSettings) for field in dataclasses.fields(kind)]
    assert len(fields) == len(set(fields)) and set(fields) == set(CHECKS) | {"model"}
    assert set(NAMES) == set(OTHERS) == set(fields) - {"sources", "model", "models"}
    for setting in settings_table():
        assert setting.text.endswith(".") and "None" not in setting.text, setting


@pytest.mark.parametrize("name", NAMES)
def test_flag_before_environment_before_file_before_default(name, tmp_path):
    setting = next(setting for setting in settings_table() if setting.name == name)
    text, value = OTHERS[name]
    assert value != setting.default

    def configured(flags=(), variables=(), file=None):
        if name in PAIRS:
            flags = {**dict(flags), PAIRS[name][0]: PAIRS[name][1]}
        configuration = configure((DENOISER,), dict(flags), dict(variables), file)
        return value_of(configuration.settings, name), configuration.origins[name]

    if name not in PAIRS:
        assert configured() == (setting.default, "default")
    path = str(tmp_path / "serve.toml")
    written = "none" if value is None else value
    lines = json.dumps(written)
    if isinstance(written, dict):
        lines = "{" + ", ".join(f"{key} = {json.dumps(v)}" for key, v in written.items()) + "}"
    (tmp_path / "serve.toml").write_text(f"{'[model]' if setting.of_models else ''}\n{name} = {lines}\n")
    assert configured(file=path) == (value, path)
    assert configured(variables={"RNNFAST_SERVE_CONFIG": path}) == (value, path)
    assert configured(variables={setting.variable: text}) == (value, setting.variable)
    assert configured({name: text}) == (value, setting.flag)
    # The other value goes before the one that is not the default.
    default = setting.default
    back = "none" if default is None else json.dumps(default) if isinstance(default, (dict, bool)) else str(default)
    if name not in PAIRS:
        assert configured(variables={setting.variable: back}, file=path) == (default, setting.variable)
        assert configured({name: back}, {setting.variable: text}, path) == (default, setting.flag)


def test_every_setting_is_a_flag():
    options = {name for param in main.commands["serve"].params for name in (*param.opts, *param.secondary_opts)}
    for setting in settings_table():
        assert setting.flag in options
        assert (f"--no-{setting.flag[2:]}" in options) == (bool in setting.types)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_values_name_their_place(name, tmp_path):
    setting = next(setting for setting in settings_table() if setting.name == name)
    wrong = "\0" if str in setting.types else "x"
    with pytest.raises((InputError, InputTypeError), match=f"{setting.variable}: {name} is"):
        configure((DENOISER,), {}, {setting.variable: wrong})
    with pytest.raises((InputError, InputTypeError), match=f"{setting.flag}: {name} is"):
        configure((DENOISER,), {name: wrong}, {})
    path = tmp_path / "serve.toml"
    path.write_text(f"{'[model]' if setting.of_models else ''}\n{name} = 1979-05-27\n")
    with pytest.raises(InputTypeError, match=f"serve.toml.*: {name} is"):
        configure((DENOISER,), {}, {}, str(path))


@pytest.mark.parametrize(
    "text, words",
    [
        ("httpport = 1", ["there is no setting 'httpport'", "http_port"]),
        ("max_batch = 1", ["'max_batch'", "[model]"]),
        ("[model]\nhttp_port = 1", ["[model]: there is no setting 'http_port'", "max_batch"]),
        ("[models.denoiser]\nmax_bath = 1", ["[models.denoiser]: there is no setting 'max_bath'"]),
        ("[models.denoiser]\nmax_batch = 0", ["[models.denoiser]: max_batch is 0"]),
        ("model = 3", ["[model] is 3"]),
        ("[models]\nx = 3", ["[models.x] is 3"]),
        ("sources = 'models'", ["sources is 'models'"]),
        ("a = ", ["is no TOML"]),
        ("a = 1\na = 2", ["is no TOML"]),
        ("a = " + "[" * 5000, ["is no TOML"]),
        ("#" * (2**20 + 1), ["more than 1048576 bytes"]),
    ],
)
def test_wrong_files_are_named(text, words, tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text(text)
    assert refused(serve(DENOISER, "--config", path), str(path), *words)


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b'host = "\xff"')
    for name in "nope", "fifo", "latin", ".":
        with pytest.raises((ModelError, InputError), match=name):
            configure((DENOISER,), {}, {}, str(tmp_path / name))


def test_variables():
    def configured(**variables):
        return configure((), {}, {f"RNNFAST_SERVE_{name}": text for name, text in variables.items()}).settings

    assert configured(SOURCES=f"{DENOISER}:{TAGGER}").sources == (DENOISER, TAGGER)
    with pytest.raises(InputError, match="RNNFAST_SERVE_PORTS: there is no setting 'ports'|no files"):
        configured(PORTS="1")
    with pytest.raises(InputError, match="RNNFAST_SERVE_HTTPPORT: there is no setting 'httpport'"):
        configured(SOURCES=DENOISER, HTTPPORT="1")
    with pytest.raises(InputError, match="no files and folders"):
        configured()
    # Kubernetes sets these where a service is called rnnfast-serve.
    assert configured(SOURCES=DENOISER, PORT="tcp://10.0.0.1:80", SERVICE_HOST="10.0.0.1", PORT_80_TCP="x").sources


def test_paths_of_a_file_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "serve.toml").write_text('sources = ["models", "/abs"]\nstate_dir = "states"\ntoken_file = "/t"\n')
    settings = configure((), {}, {}, str(tmp_path / "serve.toml")).settings
    assert settings.sources == (str(tmp_path / "models"), "/abs")
    assert settings.state_dir == str(tmp_path / "states") and settings.token_file == "/t"
    assert configure(("x",), {}, {}, str(tmp_path / "serve.toml")).settings.sources == ("x",)


# ---------------------------------------------------------------------------------------------------- --check
@pytest.fixture
def repository(tmp_path):
    """A repository of the denoiser with a config.json."""
    folder = tmp_path / "models" / "denoiser"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").symlink_to(DENOISER)
    (folder / "config.json").write_text('{"max_sequences": 11, "max_batch": 12}')
    return tmp_path / "models"


def test_check_prints_models_and_settings(repository, tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('sources = ["models"]\n[model]\nidle = 5.0\nmax_sequences = 3\n[models.denoiser]\nmax_batch = 2\n')
    result = serve("--check", "--config", file, "--max-queue=5", RNNFAST_SERVE_MAX_BODY="77")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["max_queue", "5", "--max-queue"] in lines
    assert ["max_body", "77", "RNNFAST_SERVE_MAX_BODY"] in lines
    assert ["idle", "5.0", str(file)] in lines
    assert ["max_wait", "none", "default"] in lines
    assert "of model denoiser: max_batch = 2" in result.stdout
    assert any(line[:2] == ["denoiser", "1"] and "11" in line for line in lines)  # config.json's goes before [model]


def test_check_prints_json(repository):
    result = serve("--check", "--json", repository, TAGGER, "--weights=int8")
    facts = json.loads(result.stdout)
    assert [(model["name"], model["sequences"], model["weights"]) for model in facts["models"]] == [
        ("denoiser", 11, "int8"), ("tagger", None, "int8")
    ]  # fmt: skip
    assert facts["models"][1]["inputs"] == ["tokens", "lengths"]
    assert facts["settings"]["weights"] == {"value": "int8", "from": "--weights"}
    assert set(facts["settings"]) == set(NAMES)


def test_settings_of_one_model_go_before_its_config(repository, tmp_path):
    from rnnfast.server.repository import Repository

    def settings(own):
        return Repository([str(repository)], ModelSettings(max_sequences=3, idle=4), own).entry("denoiser").settings

    assert dataclasses.astuple(settings({})) == dataclasses.astuple(
        ModelSettings(max_sequences=11, idle=4, max_batch=12)
    )
    assert settings({"denoiser": {"max_batch": 2}}) == ModelSettings(max_sequences=11, idle=4, max_batch=2)


def test_check_tries_everything(repository, tmp_path):
    def check(*args):
        return serve("--check", repository, *args)

    assert check().exit_code == 0
    assert check(f"--state-dir={tmp_path}").exit_code == check(f"--state-dir={tmp_path / 'new'}").exit_code == 0
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert refused(check(f"--state-dir={tmp_path / 'file'}"), "state_dir", "file")
    assert refused(check(f"--state-dir={tmp_path / 'no' / 'new'}"), "state_dir", "new")
    assert refused(check(f"--token-file={tmp_path / 'nope'}"), "nope")
    assert refused(check(f"--token-file={tmp_path / 'file'}"), "has no token")
    assert refused(check(f"--tls-certificate={tmp_path / 'nope'}", f"--tls-key={tmp_path / 'file'}"), "nope")
    assert refused(check("--tls-key=x"), "belong together")
    assert refused(check("--host=no.such.host.invalid"), "no.such.host.invalid")
    assert refused(check(tmp_path / "nope"), "nope")
    assert refused(check(DENOISER), "denoiser", "twice")
    assert refused(check('--warm={"bands": [1, 23]}'), "warming", "bands")
    assert refused(check('--warm={"band": [1, 22]}'), "warm", "'band'")
    assert check('--warm={"bands": [1, 22]}').exit_code == 0
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert refused(check(tmp_path / "broken.onnx"), "broken.onnx")
    (tmp_path / "serve.toml").write_text("[models.denoisr]\nmax_batch = 2\n")
    assert refused(check(f"--config={tmp_path / 'serve.toml'}"), "'denoisr'", "denoiser")


def test_tokens_are_not_printed(repository, tmp_path):
    (tmp_path / "tokens").write_text("correct-horse-battery-staple\n")
    for more in [], ["--json"]:
        result = serve("--check", *more, repository, f"--token-file={tmp_path / 'tokens'}")
        assert result.exit_code == 0 and "correct" not in result.output


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.delitem(sys.modules, "rnnfast.server.run", raising=False)
    assert refused(serve(DENOISER), "uvloop", "pip install 'rnnfast[serve]'")


def test_a_python_without_tomllib(monkeypatch, tmp_path):
    (tmp_path / "serve.toml").write_text("")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    assert refused(serve(DENOISER, f"--config={tmp_path / 'serve.toml'}"), "tomli", "pip install 'rnnfast[serve]'")


def test_a_server_may_open_as_many_files_as_it_has_connections():
    import resource

    from tests.server.processes import started

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with started(DENOISER, "--max-connections=3000") as server:
        soft, _ = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    assert soft >= min(5048, hard if hard >= 0 else 5048)
