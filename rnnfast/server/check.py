"""Tries out the settings of a server without serving: `rnnfast serve --check`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import tempfile
from typing import Any

from rnnfast.errors import InputError
from rnnfast.server.access import Access, tls_context
from rnnfast.server.service import Service
from rnnfast.server.settings import Settings


def check(settings: Settings) -> list[dict[str, Any]]:
    """Read every file that the settings name, load and warm up every model, and end them again.

    Returns:
        A row for each version of a model: name, version, file, weights, the most sequences (None for a model without
        states), how requests share batches, and the names of its inputs and outputs.

    Raises:
        Error: Something cannot be read or does not fit.
    """
    Access(settings.token_file)
    tls_context(settings)
    if settings.state_dir is not None:
        _check_folder(settings.state_dir)
    try:
        socket.getaddrinfo(settings.host, settings.http_port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        raise InputError(f"host {settings.host!r}: {getattr(e, 'strerror', None) or e}") from None
    return asyncio.run(_models(settings))


def _check_folder(path: str) -> None:
    """Raise InputError if no file can be written in a folder, which is made where its parent is there."""
    try:
        if os.path.isdir(path):
            tempfile.TemporaryFile(dir=path).close()
        else:
            parent = os.path.dirname(os.path.abspath(path))
            if os.path.exists(path) or not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
                raise InputError(f"state_dir {path} is no folder and cannot be made")
    except OSError as e:
        raise InputError(f"state_dir {path} cannot be written: {e.strerror}") from None


async def _models(settings: Settings) -> list[dict[str, Any]]:
    service = Service(dataclasses.replace(settings, state_dir=None))  # states are for a server that runs
    try:
        await service.start()
        return [
            {
                "name": model.name,
                "version": model.version,
                "file": model.path,
                "weights": model.settings.weights or "float32",
                "sequences": model.settings.max_sequences if model.sequences is not None else None,
                "batching": model.batching,
                "inputs": [value.name for value in model.inputs],
                "outputs": [value.name for value in model.outputs],
            }
            for model in service.models()
        ]
    finally:
        await service.stop()
