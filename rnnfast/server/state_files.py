"""States of live sequences as files, by which the sequences of a server that ends go on in the next one.

A file has the sequences of one model and one process. It is taken up once, only by the model that wrote it, and only
whole: the process that renames it has it, and a digest over all of it tells whether it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

import rnnfast
from rnnfast.atomic_write import write_files
from rnnfast.errors import Error, ModelError
from rnnfast.model import Model
from rnnfast.server.datatypes import datatype_of, from_bytes, to_bytes

# {id: (state by the names of inputs, or None for zeros; fixed inputs)}
States = dict[int | str, tuple[dict[str, np.ndarray] | None, dict[str, np.ndarray]]]

MAGIC = b"rnnfast states 1\n"
SUFFIX, CLAIMED, REFUSED = ".states", ".claimed", ".refused"
DIGEST_BYTES = 32
# The most characters of a file's name that a model's name may take.
NAME_LENGTH = 120


def fingerprint(model: Model, path: str) -> str:
    """A digest of a model's file, of its weights wherever they lie, and of the types that they are computed in."""
    digest = hashlib.sha256(f"{model.weights} {model.activations}\n".encode())
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    for name, value in sorted(model.graph.constants.items()):
        array = np.asarray(value)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode(errors="backslashreplace"))
        if array.dtype.kind != "O":  # strings are part of the file itself
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def make_folder(folder: str) -> None:
    """Make a folder of states if it is not there; only this user may enter it.

    Raises:
        ModelError: It cannot be made.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as e:
        raise ModelError(f"{folder}: {e.strerror}: states of sequences cannot be kept there") from None


class StateFiles:
    """The files of one loaded model in a folder.

    Args:
        folder: The folder.
        name: The model's name.
        version: Its version.
        fingerprint: That of its file.
    """

    def __init__(self, folder: str, name: str, version: str, fingerprint: str) -> None:
        self._folder = folder
        self._about = {"model": name, "version": version, "fingerprint": fingerprint}
        quoted = urllib.parse.quote(name, safe=" ")
        if len(quoted) > NAME_LENGTH or quoted.startswith("."):
            quoted = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()
        self._prefix = f"{quoted}-{version}-"

    def write(self, states: States) -> str:
        """Write states to a new file that only this user may read, completely or not at all.

        Returns:
            The file's path.

        Raises:
            InputError: It cannot be written.
        """
        parts: list[bytes] = []

        def tensors(values: dict[str, np.ndarray]) -> list[list[Any]]:
            rows = []
            for name, value in values.items():
                value = np.asarray(value)
                data = bytes(to_bytes(value))
                parts.append(data)
                rows.append([name, datatype_of(value.dtype, name), list(value.shape), len(data)])
            return rows

        rows = [
            {"id": id, "state": None if state is None else tensors(state), "fixed": tensors(fixed)}
            for id, (state, fixed) in states.items()
        ]
        about = self._about | {"rnnfast": rnnfast.__version__, "written": time.time(), "sequences": rows}
        text = json.dumps(about).encode()
        content = b"".join([len(text).to_bytes(8, "little"), text, *parts])

        def put(file: BinaryIO) -> None:
            os.fchmod(file.fileno(), 0o600)
            file.write(MAGIC + hashlib.sha256(content).digest())
            file.write(content)

        path = os.path.join(self._folder, f"{self._prefix}{secrets.token_hex(8)}{SUFFIX}")
        write_files({path: put})
        return path

    def take(self, warn: Callable[[str], None]) -> States:
        """Take up the states of all files of this model, and remove these. No other process gets the same ones.

        A file that is damaged, or that another model of this name wrote, is renamed, and `warn` gets a line about it.
        """
        states: States = {}
        for name in sorted(os.listdir(self._folder)):
            random = name.removeprefix(self._prefix).removesuffix(SUFFIX)
            if name != f"{self._prefix}{random}{SUFFIX}" or not random.isalnum():
                continue
            path = os.path.join(self._folder, name)
            claimed = f"{path}.{secrets.token_hex(8)}{CLAIMED}"
            try:
                os.rename(path, claimed)
            except FileNotFoundError:
                continue  # Another process was faster.
            try:
                with open(claimed, "rb") as file:
                    new = self._read(file.read())
            except Exception as e:  # a damaged file must not keep a server from starting, whatever is wrong with it
                why = str(e) if isinstance(e, Error) else f"{type(e).__name__}: {e}"
                os.rename(claimed, path + REFUSED)
                warn(f"{path} is not taken up, and now ends with {REFUSED}: {why}")
                continue
            os.unlink(claimed)
            states.update(new)
        return states

    def _read(self, data: bytes) -> States:
        """The states in a file's bytes.

        Raises:
            ModelError: The file is damaged or belongs to another model.
        """
        first = len(MAGIC) + DIGEST_BYTES
        content = memoryview(data)[first:]
        if data[: len(MAGIC)] != MAGIC:
            raise ModelError("it is no file of states of this version")
        if hashlib.sha256(content).digest() != data[len(MAGIC) : first]:
            raise ModelError("it is damaged: its digest is another one")
        length = int.from_bytes(content[:8], "little")
        about, content = json.loads(bytes(content[8 : 8 + length])), content[8 + length :]
        for key, value in self._about.items():
            if about.get(key) != value:
                raise ModelError(f"it belongs to another model: its {key} is {about.get(key)!r}, expected {value!r}")
        at = 0

        def tensors(rows: list[list[Any]]) -> dict[str, np.ndarray]:
            nonlocal at
            values = {}
            for name, datatype, shape, size in rows:
                # A copy, so that no state keeps the whole file in memory.
                values[name] = from_bytes(content[at : at + size], datatype, shape, name).copy()
                at += size
            return values

        return {
            row["id"]: (None if row["state"] is None else tensors(row["state"]), tensors(row["fixed"]))
            for row in about["sequences"]
        }
