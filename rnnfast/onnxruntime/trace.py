"""A trace of the runs of a session, as Chrome's trace viewer reads it."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rnnfast.model import Model
from rnnfast.native._programs import NativeProgram


class Trace:
    """Runs a model and notes when each step of its plan ran.

    Args:
        model: The model.
        prefix: The beginning of the name of the file that `write` writes.
        begun: When the loading of the model began, in nanoseconds of time.perf_counter_ns: the origin of all times.
    """

    def __init__(self, model: Model, prefix: str, begun: int) -> None:
        self.begun, self._model, self._prefix = begun, model, prefix
        self._graphs: dict[frozenset[str], Any] = {}  # names of the initializers that a call overrides -> its graph
        self._events: list[dict[str, Any]] = []
        self._note("Session", "session_initialization", begun, time.perf_counter_ns() - begun)

    def run(self, feed: Mapping[str, Any]) -> list[Any]:
        """Return the outputs of a run, as Model.run does."""
        begun = time.perf_counter_ns()
        overridden = frozenset(name for name in feed if name in self._model.graph.constants)
        _, args = self._model.prepare(feed)
        if overridden not in self._graphs:
            self._graphs[overridden] = self._model.build(overridden, meter=self._meter)
        self._graphs[overridden].plan(args)  # before the run: the run that makes a plan has no steps
        outputs = self._graphs[overridden].run(args)
        self._note("Session", "model_run", begun, time.perf_counter_ns() - begun)
        return outputs

    def write(self) -> str:
        """Write the file and return its path."""
        path = f"{self._prefix}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._events, file)
        return path

    def _meter(self, step: Any) -> Callable[..., Any]:
        """Return what a plan calls in place of a step."""
        if hasattr(step.run, "planned_graphs"):
            return step.run  # the steps of its graphs have meters of their own
        return functools.partial(self._metered, step)

    def _metered(self, step: Any, *inputs: Any) -> Any:
        """Run a step and note it: a native program as its commands, whose shares are measured in another run."""
        begun = time.perf_counter_ns()
        results = step.run(*inputs)
        duration = time.perf_counter_ns() - begun
        if isinstance(step.run, NativeProgram):
            times = step.run.times(*inputs, rounds=1)
            scale, at = duration / (sum(times) or 1), float(begun)
            for note, share in zip(step.run.notes, times):
                self._note_node(note.name, note.op_type, note.command, at, share * scale, [note.shape])
                at += share * scale
        elif step.node is not None:
            outputs = results if isinstance(results, tuple) else (results,)
            shapes = [value.shape for value in outputs if isinstance(value, np.ndarray)]
            self._note_node(step.node.name, step.node.op_type, "numpy", begun, duration, shapes)
        return results

    def _note_node(self, name: str, op_type: str, step: str, begun: float, duration: float, shapes: Any) -> None:
        """Note a step that computes a node."""
        arguments = {
            "op_name": op_type,
            "provider": "CPUExecutionProvider",
            "step": step,
            "output_shape": [list(map(int, shape)) for shape in shapes],
        }
        self._note("Node", f"{name or op_type}_kernel_time", begun, duration, arguments)

    def _note(self, category: str, name: str, begun: float, duration: float, arguments: Any = None) -> None:
        """Note an event: it began at `begun` and took `duration`, both in nanoseconds."""
        self._events.append(
            {
                "cat": category,
                "name": name,
                "ph": "X",
                "pid": os.getpid(),
                "tid": threading.get_native_id(),
                "ts": (begun - self.begun) / 1000,
                "dur": duration / 1000,
                "args": arguments or {},
            }
        )
