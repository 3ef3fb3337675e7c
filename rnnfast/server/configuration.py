"""The settings of a server from flags, the environment and one TOML file.

A flag goes before a variable of the environment, that before the file, and the file before the default. Names, defaults
and descriptions are those of the dataclasses in `rnnfast.server.settings`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.regular_files import open_regular
from rnnfast.server.settings import CHECKS, ModelSettings, Settings, check_value

# What a variable of the environment begins with: RNNFAST_SERVE_HTTP_PORT is the setting http_port.
PREFIX = "RNNFAST_SERVE_"
# The variable that names the TOML file.
CONFIG = "CONFIG"
# What variables begin with that Kubernetes sets where a service is called rnnfast-serve.
OF_KUBERNETES = ("service_", "port")
# The most bytes of a TOML file.
FILE_BYTES = 2**20
# Settings that only a TOML file has: tables of other settings.
TABLES = ("model", "models")
# Settings that are paths; in a TOML file they are relative to its folder.
PATHS = ("state_dir", "tls_certificate", "tls_key", "token_file")
SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Setting(NamedTuple):
    """A setting of the server or of models.

    Attributes:
        name: Its name.
        text: What it is, in a sentence.
        default: Its value where nothing sets it.
        of_models: Whether it is one of models.
    """

    name: str
    text: str
    default: Any
    of_models: bool

    @property
    def types(self) -> tuple[type, ...]:
        """The types that a value may have."""
        return CHECKS[self.name][0]

    @property
    def variable(self) -> str:
        """The variable of the environment that sets it."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return f"--{self.name.replace('_', '-')}"


def settings_table() -> list[Setting]:
    """All settings but the sources and the tables of a TOML file, in the order of the dataclasses."""
    rows = []
    for kind in Settings, ModelSettings:
        texts = _descriptions(kind)
        for field in dataclasses.fields(kind):
            if field.name in ("sources", *TABLES):
                continue
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            rows.append(Setting(field.name, texts.get(field.name, ""), default, kind is ModelSettings))
    return rows


def _descriptions(kind: type) -> dict[str, str]:
    """{field: its text} in the docstring of a dataclass."""
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", inspect.getdoc(kind) or "", re.M)
    return {name: re.sub(r"\bNone\b", "none", " ".join(text.split())) for name, text in found}


class Configuration(NamedTuple):
    """Settings, and where each of them comes from.

    Attributes:
        settings: The Settings.
        origins: {setting: the flag, the variable or the file that sets it, or "default"}.
    """

    settings: Settings
    origins: dict[str, str]


def configure(
    sources: tuple[str, ...], flags: Mapping[str, Any], environment: Mapping[str, str], file: str | None = None
) -> Configuration:
    """The settings of a server.

    Args:
        sources: The files and folders of models; empty if the environment or the file names them.
        flags: {setting: its text, a bool for a switch} of the flags that were given.
        environment: The variables of the environment.
        file: The TOML file; None for that of the environment, if it names one.

    Returns:
        The Configuration.

    Raises:
        InputError: A value does not fit, a name is no setting, or no source is named; the message says where.
        InputTypeError: A value has a wrong type.
        ModelError: The file cannot be read.
        UnsupportedError: The file needs a package that is not installed.
    """
    file = environment.get(PREFIX + CONFIG) if file is None else file
    table = {setting.name: setting for setting in settings_table()}
    values, of_models, models, named = _from_file(file, table) if file else ({}, {}, {}, ())
    origins = dict.fromkeys(table, "default") | dict.fromkeys([*values, *of_models], str(file))
    for name, text in environment.items():
        if name.startswith(PREFIX):
            name = name.removeprefix(PREFIX).lower()
            if name in table:
                _put(table[name], text, table[name].variable, values, of_models)
                origins[name] = table[name].variable
            elif name == "sources":
                named = tuple(filter(None, text.split(os.pathsep)))
            elif name != CONFIG.lower() and not name.startswith(OF_KUBERNETES):
                raise InputError(f"{PREFIX}{name.upper()}: there is no setting {name!r}, only {', '.join(table)}")
    for name, text in flags.items():
        _put(table[name], text, table[name].flag, values, of_models)
        origins[name] = table[name].flag
    if not (sources or named):
        raise InputError(f"no files and folders of models are named: as arguments, by {PREFIX}SOURCES, or in a file")
    return Configuration(Settings(sources or named, ModelSettings(**of_models), models, **values), origins)


def _put(setting: Setting, text: Any, where: str, values: dict[str, Any], of_models: dict[str, Any]) -> None:
    """Put a setting's value among those of the server or of models.

    Raises:
        InputError: The text is no such value.
    """
    value = text if type(text) is bool else _parsed(setting, text, where)
    (of_models if setting.of_models else values)[setting.name] = check_value(setting.name, value, where)


def _parsed(setting: Setting, text: str, where: str) -> Any:
    """The value that a text is.

    Raises:
        InputError: It is none.
    """
    types, _, expected = CHECKS[setting.name]
    if type(None) in types and text.lower() == "none":
        return None
    try:
        if bool in types:
            return SWITCHES[text.lower()]
        if str in types:
            return text
        if dict in types:
            return json.loads(text)
        return float(text) if float in types else int(text)
    except (ValueError, KeyError, RecursionError):
        raise InputError(f"{where}: {setting.name} is {text!r}, expected {expected}") from None


# -------------------------------------------------------------------------------------------------- the file
def _from_file(
    path: str, table: dict[str, Setting]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Return what a TOML file sets: (of the server, of all models, of single models, the sources)."""
    content, folder = _read(path), os.path.dirname(path)
    values, of_models = dict[str, Any](), dict[str, Any]()
    models, sources = dict[str, Any](), tuple[str, ...]()
    for name, value in content.items():
        if name == "model":
            of_models = _of_models(value, table, f"{path}: [model]")
        elif name == "models":
            for model, settings in _mapping(value, f"{path}: [models]").items():
                models[model] = _of_models(settings, table, f"{path}: [models.{model}]")
        elif name == "sources":
            if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
                raise InputTypeError(f"{path}: sources is {value!r}, expected a list of files and folders")
            sources = tuple(os.path.join(folder, v) for v in value)
        elif name not in table:
            own = [s.name for s in table.values() if not s.of_models]
            raise InputError(f"{path}: there is no setting {name!r}, only {', '.join(['sources', *own, *TABLES])}")
        elif table[name].of_models:
            raise InputError(f"{path}: {name!r} is a setting of models, which stands in the table [model]")
        else:
            values[name] = check_value(name, _none(value, table[name]), path)
            if name in PATHS and values[name] is not None:
                values[name] = os.path.join(folder, values[name])
    return values, of_models, models, sources


def _of_models(values: Any, table: dict[str, Setting], where: str) -> dict[str, Any]:
    """The settings of models in a table of the file."""
    of_models = [setting.name for setting in table.values() if setting.of_models]
    for name in _mapping(values, where):
        if name not in of_models:
            raise InputError(f"{where}: there is no setting {name!r}, only {', '.join(of_models)}")
    return {name: check_value(name, _none(v, table[name]), where) for name, v in values.items()}


def _none(value: Any, setting: Setting) -> Any:
    """None for "none", as TOML has no null."""
    return None if value == "none" and type(None) in setting.types else value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputTypeError(f"{where} is {value!r}, expected a table")
    return value


def _read(path: str) -> dict[str, Any]:
    """The content of a TOML file."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[import-not-found, no-redef]
        except ImportError:
            raise UnsupportedError(f"{path}: TOML files need tomli here: pip install 'rnnfast[serve]'") from None
    try:
        with open_regular(path) as file:
            text = file.read(FILE_BYTES + 1)
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    if len(text) > FILE_BYTES:
        raise ModelError(f"{path} has more than {FILE_BYTES} bytes")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is no TOML: {e}") from None
