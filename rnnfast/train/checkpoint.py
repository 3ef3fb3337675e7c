"""Checkpoints: one safetensors file from which training goes on to the same bits.

Tensors: "net.<name>" the weights, "optimizer.<slot>", "best" the flat weights of the best epoch, "state.<i>" the state
that the next chunk of truncated back-propagation begins with. The metadata's "rnnfast.train" is JSON: where training
is, the generator, the sums of the epoch under way, the history, and what must be the same to go on.
"""

import json
import pathlib
from importlib.util import find_spec

import numpy as np

from rnnfast.atomic_write import write_whole
from rnnfast.errors import DivergedError, InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.nn.checks import check_size
from rnnfast.train.history import History

KEY, VERSION = "rnnfast.train", 1


def check(path):
    """`path` as a Path of a file that can be written."""
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
    """Written beside `path`, synced, and renamed: there is always a whole file under the name."""
    from safetensors.numpy import save as to_bytes

    values = run.parameters.values
    if not np.isfinite(values).all():
        raise DivergedError(f"step {run.optimizer.steps}: weights are not finite; {path} stays as it was")
    memory = run.optimizer.state_dict()
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
    """The run as it was when the file was written. Raises ModelError if the file, or what it is of, does not fit; the
    run is unusable then, the network and the optimiser unchanged."""
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
        weights, memory = _of(tensors, "net."), _of(tensors, "optimizer.")
        shapes = {name: a.shape for name, a in memory.items()} | (
            {"best": tensors["best"].shape} if "best" in tensors else {}
        )
        size = run.parameters.values.shape
        if meta["steps"] and {*memory} != {*run.optimizer.slots} or {*shapes.values()} - {size}:
            raise ModelError(
                f"{path}: optimizer and best have {shapes}, expected {', '.join(run.optimizer.slots)} of shape {size}"
            )
        for name in ("order", "generator"):  # both must be states; the last one stays
            if name == "generator" or meta[name] is not None:
                run.rng.bit_generator.state = meta[name]
        steps, run.steps_done, run.weight = (
            check_size(meta[name], name, 0) for name in ("steps", "steps_done", "weight")
        )
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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: is no whole checkpoint ({type(error).__name__}: {error})") from error
    for name, view in run.parameters.views(run.parameters.values).items():
        view[...] = weights[name]


def load_checkpoint(path, net):
    """The network takes the weights of a checkpoint -> the History until then."""
    tensors, meta = _read(check(path))
    try:
        history = _history(meta)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: its history is none ({type(error).__name__}: {error})") from error
    net.load_state_dict(_of(tensors, "net."))
    return history


def _read(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            meta = json.loads((file.metadata() or {})[KEY])
            if meta["version"] != VERSION:
                raise ValueError(f"version {meta['version']}, expected {VERSION}")
            return {name: file.get_tensor(name) for name in file.keys()}, meta
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: is no checkpoint ({type(error).__name__}: {error})") from error


def _settings(run):
    """What must be the same to go on at all. The same bits need more: the same examples, loss, learning rate ..., which
    may also be changed on purpose."""
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
    return History({name: [float(value) for value in values] for name, values in meta["history"].items()})


def _of(tensors, prefix):
    return {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}


def _flattened(state, tensors):
    """`state` with the names of its arrays in their place, which are put into `tensors`."""
    if isinstance(state, (tuple, list)):
        return [_flattened(part, tensors) for part in state]
    if state is None:
        return None
    name = f"state.{sum(name.startswith('state.') for name in tensors)}"
    tensors[name] = state
    return name


def _unflattened(state, tensors):
    if isinstance(state, list):
        return tuple(_unflattened(part, tensors) for part in state)
    return None if state is None else tensors[state]
