"""Checkpoints: one safetensors file, from which training resumes and gives the same bits as without interruption.

The tensors are "net.<name>", the weights; "optimizer.<name>", the optimizer's arrays; "best", the flat weights of the
best epoch; and "state.<i>", the state that the next chunk of truncated back-propagation begins with. The metadata
"rnnfast.train" is JSON: the position in training, the random generator, the sums of the current epoch, the history, and
the settings that must be the same to resume.
"""

from __future__ import annotations

import json
import os
import pathlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.atomic_write import write_whole
from rnnfast.errors import (
    DivergedError,
    InputError,
    InputTypeError,
    ModelError,
    UnsupportedError,
    raise_if_from_handler,
    raises_limit_error,
)
from rnnfast.nn.checks import check_size
from rnnfast.nn.description import MALFORMED
from rnnfast.nn.files import read_tensors
from rnnfast.train.history import History

if TYPE_CHECKING:
    from rnnfast.nn.module import Module

KEY, VERSION = "rnnfast.train", 1
MAX_NUMBER = 2**53
"""The largest number of steps that a float counts exactly."""


def check(path):
    """Return the Path of a checkpoint, which must be a file in an existing folder, or a name for one."""
    if find_spec("safetensors") is None:
        raise UnsupportedError("checkpoint: needs safetensors, which is not installed: pip install 'rnnfast[train]'")
    try:
        path = pathlib.Path(path)
    except TypeError:
        raise InputTypeError(f"checkpoint: {path!r} is no path") from None
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"checkpoint: {str(path)!r} is no file in a folder that exists")
    return path


def save(path, run):
    """Write a checkpoint of a Run atomically; the old file stays in place until the new one is complete.

    Raises:
        DivergedError: Weights are not finite; the old file stays.
        InputError: The file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    values = run.parameters.values
    if not np.isfinite(values).all():
        raise DivergedError(f"step {run.optimizer.steps}: weights are not finite; {path} stays as it was")
    memory: dict[str, Any] = run.optimizer.state_dict()
    meta = {
        "version": VERSION,
        "settings": _settings(run),
        "steps": memory.pop("steps"),
        "steps_done": run.steps_done,
        "sums": run.sums,
        "weight": run.weight,
        "generator": run.rng.bit_generator.state,
        "order": run.order_state,
        "history": run.history,
    }
    tensors = {f"net.{name}": a for name, a in run.parameters.views(values).items()}
    tensors |= {f"optimizer.{name}": a for name, a in memory.items()}
    if run.best is not None:
        tensors["best"] = run.best
    meta["state"] = _flattened(run.state, tensors)
    data = to_bytes(
        {name: np.ascontiguousarray(a) for name, a in tensors.items()},
        {KEY: json.dumps(meta, default=np.ndarray.tolist)},
    )
    write_whole(path, data)


def restore(path, run):
    """Bring a Run to the state that the file holds.

    Raises:
        ModelError: The file is invalid or is a checkpoint of another training. The run is unusable then; the network
            and the optimizer are unchanged.
    """
    tensors, meta = _read(path)
    expected = _settings(run)
    received = meta.get("settings")
    if received != expected:
        received = received if isinstance(received, dict) else {}
        wrong = [
            f"{name} {received.get(name)!r}, expected {value!r}"
            for name, value in expected.items()
            if received.get(name) != value
        ]
        raise ModelError(f"{path}: is of another training: {', '.join(wrong)}")
    try:
        weights, memory = _with_prefix(tensors, "net."), _with_prefix(tensors, "optimizer.")
        shapes = {name: a.shape for name, a in memory.items()} | (
            {"best": tensors["best"].shape} if "best" in tensors else {}
        )
        size = run.parameters.values.shape
        expected = dict.fromkeys(memory, (run.parameters.trained,)) | {"best": size}
        if meta["steps"] and {*memory} != {*run.optimizer.slots} or any(shapes[n] != expected[n] for n in shapes):
            raise ModelError(
                f"{path}: optimizer and best have {shapes}, expected {', '.join(run.optimizer.slots)} of shape {size}"
            )
        for name in ("order", "generator"):  # setting each validates it; the generator's state is set last, and stays
            if name == "generator" or meta[name] is not None:
                run.rng.bit_generator.state = meta[name]
        steps, run.steps_done, run.weight = (
            check_size(meta[name], name, 0) for name in ("steps", "steps_done", "weight")
        )
        if max(steps, run.steps_done, run.weight) > MAX_NUMBER:
            raise ValueError(f"a number of steps is over {MAX_NUMBER}")
        run.order_state, run.best = meta["order"], tensors.get("best")
        run.sums = {name: float(meta["sums"][name]) for name in run.sums}
        run.history = _history(meta)
        run.state = _unflattened(meta["state"], tensors)
        run.net.load_state_dict(weights)
        run.optimizer.load_state_dict(
            {"steps": steps, **{name: memory[name] for name in run.optimizer.slots if name in memory}}
        )
    except ModelError:
        raise
    except MALFORMED as error:
        raise_if_from_handler(error)
        raise ModelError(f"{path}: is no whole checkpoint ({type(error).__name__}: {error})") from error
    for name, view in run.parameters.views(run.parameters.values).items():
        view[...] = weights[name]


@raises_limit_error
def load_checkpoint(path: str | os.PathLike[str], net: Module) -> History:
    """Load the weights of a checkpoint into a network.

    Args:
        path: A file that `fit` wrote with `checkpoint=`.
        net: The network; its parameters must have the names and shapes of those in the file.

    Returns:
        The history of training until then.

    Raises:
        InputError: `path` is no file in a folder that exists.
        InputTypeError: `path` is no path.
        ModelError: The file is no checkpoint, or its weights do not fit.
        UnsupportedError: safetensors is not installed.
    """
    tensors, meta = _read(check(path))
    try:
        history = _history(meta)
    except MALFORMED as error:
        raise_if_from_handler(error)
        raise ModelError(f"{path}: its history is none ({type(error).__name__}: {error})") from error
    net.load_state_dict(_with_prefix(tensors, "net."))
    return history


def _read(path):
    """Return the tensors by name and the metadata of a checkpoint."""
    try:
        tensors, texts = read_tensors(path)
        meta = json.loads(texts[KEY])
        if meta["version"] != VERSION:
            raise ValueError(f"version {meta['version']}, expected {VERSION}")
        return tensors, meta
    except (OSError, *MALFORMED) as error:
        raise_if_from_handler(error)
        raise ModelError(f"{path}: is no checkpoint ({type(error).__name__}: {error})") from error


def _settings(run):
    """Return the settings that must be the same to resume.

    The same bits need more: the same examples, loss, learning rate and so on, which may be changed on purpose.
    """
    return {
        "examples": run.data.count,
        "batch_size": run.batch_size,
        "shuffle": run.shuffle,
        "tbptt": run.tbptt,
        "steps_per_epoch": run.steps_per_epoch,
        "metrics": list(run.metrics),
        "optimizer": type(run.optimizer).__name__,
    }


def _history(meta):
    """Return the History of a checkpoint's metadata."""
    return History({name: [float(value) for value in values] for name, values in meta["history"].items()})


def _with_prefix(tensors, prefix):
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}


def _flattened(state, tensors):
    """Put the arrays of a nested state into `tensors`, and return the state with their names in their place."""
    if isinstance(state, (tuple, list)):
        return [_flattened(part, tensors) for part in state]
    if state is None:
        return None
    name = f"state.{sum(name.startswith('state.') for name in tensors)}"
    tensors[name] = state
    return name


def _unflattened(state, tensors):
    """Return a nested state with its arrays from `tensors`: the inverse of `_flattened`."""
    if isinstance(state, list):
        return tuple(_unflattened(part, tensors) for part in state)
    return None if state is None else tensors[state]
