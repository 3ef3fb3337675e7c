"""`rnnfast serve`: a server of the Open Inference Protocol."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Any

import click

from rnnfast.cli.tables import Screen, print_json, table
from rnnfast.errors import UnsupportedError
from rnnfast.server.configuration import PATHS, PREFIX, Configuration, Setting, configure, settings_table

# The files of a server that are no connections of HTTP: those of gRPC, models, states.
OTHER_FILES = 2048


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add a flag for each setting; which value it has is decided behind the flags, so that none has a default here."""
    for setting in reversed(settings_table()):
        text = f"{setting.text} [default: {_shown(setting.default)}]"
        if bool in setting.types:
            names = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
            command = click.option(names, setting.name, default=None, help=text)(command)
        else:
            command = click.option(setting.flag, setting.name, metavar=_metavar(setting), help=text)(command)
    return command


def _metavar(setting: Setting) -> str:
    """Return what stands for a setting's value in the help."""
    if setting.name in PATHS:
        return "FILE" if setting.name != "state_dir" else "FOLDER"
    kinds = {dict: "JSON", float: "SECONDS", int: "NUMBER", str: "TEXT"}
    return next(text for kind, text in kinds.items() if kind in setting.types)


def _shown(value: Any) -> str:
    """A value as a flag writes it."""
    if value is None or type(value) is bool:
        return str(value).lower()
    return str(value)


@click.command(epilog=f"A flag --some-setting goes before the variable {PREFIX}SOME_SETTING, that before the file.")
@click.argument("sources", nargs=-1, metavar="[FILE|FOLDER]...")
@click.option("--config", "file", metavar="FILE", help=f"A TOML file of settings; or the variable {PREFIX}CONFIG.")
@click.option("--check", is_flag=True, help="Load and check everything, print models and settings, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --check, print JSON.")
@setting_options
def serve(sources: tuple[str, ...], file: str | None, check: bool, as_json: bool, **flags: Any) -> None:
    """Serve models over HTTP and gRPC by the Open Inference Protocol (KServe V2).

    A FILE is an ONNX model, a FOLDER holds models as name/version/model.onnx.
    """
    if as_json and not check:
        raise click.UsageError("--json belongs to --check")
    given = {name: value for name, value in flags.items() if value is not None}
    configuration = configure(sources, given, os.environ, file)
    # Clients could write to the log: gRPC's library prints what they send in frames of errors, as it is.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from rnnfast.server.access import exposure, warn
        from rnnfast.server.run import run
    except ImportError as e:
        raise UnsupportedError(
            f"a server needs {e.name}, which is not installed: pip install 'rnnfast[serve]'"
        ) from None
    if check:
        _check(configuration, as_json)
        return
    if (lack := exposure(configuration.settings)) is not None:
        warn(lack)
    _allow_connections(configuration.settings.max_connections)
    run(configuration.settings, click.echo, warn)


def _allow_connections(count: int) -> None:
    """Let the process open as many files as its connections need, as far as the system allows it to ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check(configuration: Configuration, as_json: bool) -> None:
    """Print the models that a server would have, and its settings with where each comes from."""
    from rnnfast.server.check import check

    settings, origins = configuration
    models = check(settings)
    values = {
        setting.name: getattr(settings.model if setting.of_models else settings, setting.name)
        for setting in settings_table()
    }
    if as_json:
        facts = {name: {"value": value, "from": origins[name]} for name, value in values.items()}
        print_json({"models": models, "settings": facts, "own": settings.models})
        return
    screen = Screen()
    columns = dict.fromkeys(("model", "version", "file", "weights", "sequences", "batching"), "left")
    rows = [tuple("-" if row[key] is None else str(row[key]) for key in ("name", *list(columns)[1:])) for row in models]
    screen.print(table("models", columns, rows))
    screen.print(
        table(
            "settings",
            {"setting": "left", "value": "left", "from": "left"},
            [(name, _shown(value), origins[name]) for name, value in values.items()],
        )
    )
    for name, own in settings.models.items():
        screen.write_line(f"of model {name}: {', '.join(f'{key} = {_shown(value)}' for key, value in own.items())}")
