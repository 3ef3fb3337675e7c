"""The models of a server: files, or folders of `name/version/model.onnx` with an optional `name/config.json`."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from rnnfast.errors import InputError, ModelError
from rnnfast.server.faults import NotFoundError
from rnnfast.server.settings import ModelSettings

FILE, CONFIG = "model.onnx", "config.json"
# The most bytes of a config.json.
CONFIG_BYTES = 2**20


class Entry(NamedTuple):
    """A model that may be loaded.

    Attributes:
        name: Its name.
        versions: {version: file}, the newest last.
        settings: Its ModelSettings.
    """

    name: str
    versions: dict[str, str]
    settings: ModelSettings


class Repository:
    """What may be loaded from the files and folders that a server was started with.

    Args:
        sources: ONNX files, whose names without `.onnx` are the models' names, and folders of models.
        defaults: The settings of a model whose config.json does not set them.
        own: {model: {setting: value}}, which go before those of a config.json.
    """

    def __init__(
        self, sources: list[str], defaults: ModelSettings, own: dict[str, dict[str, Any]] | None = None
    ) -> None:
        self._sources, self._defaults, self._own = sources, defaults, own or {}

    def names(self) -> list[str]:
        """The names of the models that are there now.

        Raises:
            ModelError: A source is not there.
            InputError: Two sources have the same name.
        """
        return list(self._places())

    def entry(self, name: str) -> Entry:
        """The model of a name, as it is on the disk now.

        Raises:
            NotFoundError: There is none.
            ModelError: It has no version, or its config.json cannot be read.
            InputError: Its config.json has a wrong setting.
        """
        place = self._places().get(name)
        if place is None:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        if os.path.isfile(place):
            return Entry(name, {"1": place}, self._with_own(name, self._defaults))
        versions = {
            version: os.path.join(place, version, FILE)
            for version in sorted(filter(_is_version, os.listdir(place)), key=int)
            if os.path.isfile(os.path.join(place, version, FILE))
        }
        if not versions:
            raise ModelError(f"model '{name}': there is no {os.path.join(place, 'VERSION', FILE)}")
        return Entry(name, versions, self._with_own(name, self._settings(name, os.path.join(place, CONFIG))))

    def _with_own(self, name: str, settings: ModelSettings) -> ModelSettings:
        """The settings with those that the operator gave to this model."""
        own = self._own.get(name)
        return settings if own is None else settings.with_values(own, f"the settings of model '{name}'")

    def _settings(self, name: str, path: str) -> ModelSettings:
        try:
            with open(path, "rb") as file:
                text = file.read(CONFIG_BYTES + 1)
        except FileNotFoundError:
            return self._defaults
        except OSError as e:
            raise ModelError(f"model '{name}': {path}: {e.strerror}") from None
        if len(text) > CONFIG_BYTES:
            raise ModelError(f"model '{name}': {path} has more than {CONFIG_BYTES} bytes")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise ModelError(f"model '{name}': {path} is no JSON: {e}") from None
        return self._defaults.with_values(values, path)

    def _places(self) -> dict[str, str]:
        """{name: file or folder} of all models."""
        places: dict[str, str] = {}
        for source in self._sources:
            if os.path.isdir(source):
                found = {name: os.path.join(source, name) for name in sorted(os.listdir(source))}
                found = {name: place for name, place in found.items() if _is_model(place)}
            elif os.path.isfile(source):
                found = {os.path.basename(source).removesuffix(".onnx"): source}
            else:
                raise ModelError(f"{source}: there is no such file or folder")
            for name, place in found.items():
                if name in places:
                    raise InputError(f"model '{name}' is there twice: {places[name]} and {place}")
                places[name] = place
        return places


def _is_version(name: str) -> bool:
    """Return whether a folder's name is a version: a decimal number without leading zeros."""
    return name.isascii() and name.isdigit() and not name.startswith("0")


def _is_model(place: str) -> bool:
    """Return whether a folder is one of a model."""
    return os.path.isdir(place) and any(map(_is_version, os.listdir(place)))
