"""`rnnfast profile`: measures the time of each step of a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import numpy as np

from rnnfast.cli.bench import inputs_of, measuring_options
from rnnfast.cli.progress import track
from rnnfast.cli.tables import Screen, print_json, table
from rnnfast.cli.timing import pinned, quartiles
from rnnfast.model import Model, load
from rnnfast.native._programs import NativeProgram
from rnnfast.native.threads import limit
from rnnfast.onnx.budget import Counted
from rnnfast.onnx.graph import Graph
from rnnfast.onnx.summary import flops

RUNS = 100
SECONDS = 5  # after which no more calls are measured


@click.command()
@click.argument("file")
@measuring_options
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=RUNS,
    show_default=True,
    help=f"Calls that are measured; fewer if they take more than {SECONDS} s.",
)
def profile(
    file: str,
    given: Sequence[str],
    dims: Sequence[str],
    batch: int | None,
    steps: int | None,
    seed: int,
    threads: int,
    weights: Any,
    activations: Any,
    as_json: bool,
    runs: int,
) -> None:
    """Show the time, floating-point operations and bytes of the steps of FILE.

    A native step has the name of its last node: elementwise operators are joined with the node that computes their
    input or with each other, and operators that only reshape data take no step. A native loop is one step; the steps
    within any other loop are summed over its iterations. Inputs that are not given with -i are random, as for `check`.
    """
    model = load(file, threads=threads, weights=weights, activations=activations)
    feed = inputs_of(model, given, dims, batch, steps, seed)
    with pinned(threads):
        whole, rows, nodes = measured(model, feed, runs)
    total = sum(row["seconds"] for row in rows)
    facts = {
        "file": file,
        "threads": min(threads, limit()),
        "weights": weights,
        "runs": len(whole),
        "seconds": quartiles(whole),
        "seconds_in_steps": total,
        "share_in_numpy": sum(row["share"] for row in rows if row["step"] == "numpy"),
        "inputs": {name: list(np.shape(value)) for name, value in feed.items()},
        "nodes_in_file": _count(model.graph),
        "nodes_after_folding": nodes,
        "steps": sorted(rows, key=lambda row: -row["seconds"]),
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def measured(model: Model, feed: Any, runs: int) -> tuple[list[float], list[dict[str, Any]], int]:
    """The seconds of each of up to `runs` calls, the facts of the steps with their shares of the steps' time, and the
    number of nodes that do not depend on constants alone.
    """
    args = model.prepare(feed)[1]
    meters: list[_Meter] = []
    metered = model.build(meter=lambda step: _meter(step, meters))
    with np.errstate(all="ignore"):
        whole = _measure(lambda: model(feed), lambda: metered(args), meters, runs)
        rows = [row for meter in meters for row in meter.rows(len(whole))]
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = row["seconds"] / total if total else 0
    return whole, rows, _count(metered.graph)


def _measure(call: Callable[[], Any], metered: Callable[[], Any], meters: list[_Meter], runs: int) -> list[float]:
    """Seconds of each of up to `runs` calls as a user makes them.

    Steps are metered in a run of their own after each call, so that metering does not slow the calls.
    """
    for _ in range(2):  # not measured: the first run makes the plan
        call()
        metered()
    for meter in meters:
        meter.clear()
    seconds: list[float] = []
    start = time.perf_counter()
    for _ in track(range(runs), "profile"):
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
        metered()
        for meter in meters:
            meter.end_run()
        if time.perf_counter() - start > SECONDS:
            break
    return seconds


def _count(graph: Graph) -> int:
    """The number of nodes of a graph and of the graphs within it."""
    return sum(1 + sum(map(_count, node.graphs.values())) for node in graph.nodes)


def _meter(step: Any, meters: list[_Meter]) -> Callable[..., Any]:
    """The callable that runs in place of a step: a new meter, which is appended to `meters`."""
    if hasattr(step.run, "planned_graphs"):
        return step.run  # the steps of its graphs have meters of their own
    meters.append(_Meter(step))
    return meters[-1]


class _Meter:
    """Runs a step and adds up its time, calls, floating-point operations and bytes."""

    def __init__(self, step: Any) -> None:
        self.step = step
        self.clear()

    def clear(self) -> None:
        """Forget all runs."""
        self.runs: list[float] = []  # seconds of each run of the model
        self.seconds, self.calls, self.flops, self.nbytes = 0.0, 0, 0, 0
        self.inputs: tuple[Any, ...] = ()
        self.shape: list[int] | None = None

    def __call__(self, *inputs: Any) -> Any:
        start = time.perf_counter()
        results = self.step.run(*inputs)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        if isinstance(self.step.run, Counted):
            inputs = inputs[1:]  # behind the Budget of the call
        self.inputs = inputs
        if self.step.node is not None:
            outputs = results if isinstance(results, tuple) else (results,)
            self.shape = list(np.shape(outputs[0])) if isinstance(outputs[0], np.ndarray) else None
            self.flops += flops(self.step.node.op_type, inputs, outputs)
            self.nbytes += _nbytes(inputs) + _nbytes(outputs)
        return results

    def end_run(self) -> None:
        """Note the seconds of a run of the model, in which the step may have been called several times."""
        self.runs.append(self.seconds)
        self.seconds = 0.0

    def rows(self, runs: int) -> list[dict[str, Any]]:
        """The facts of the step in one run of `runs`; for a native program one row for each command.

        The commands' shares of the program's time are measured in one more run.
        """
        if not self.calls:
            return []
        seconds, calls = float(np.median(self.runs)), self.calls / runs
        if not isinstance(self.step.run, NativeProgram):
            node = self.step.node
            return [
                {
                    "name": node.name,
                    "op_type": node.op_type,
                    "step": "numpy",
                    "shape": self.shape,
                    "calls": calls,
                    "seconds": seconds,
                    "flops": self.flops // runs,
                    "bytes": self.nbytes // runs,
                }
            ]
        times = self.step.run.times(*self.inputs)
        scale = seconds / (sum(times) or 1)
        return [
            {
                "name": note.name,
                "op_type": note.op_type,
                "step": note.command,
                "shape": list(note.shape),
                "calls": calls,
                "seconds": share * scale,
                "flops": int(note.flops * calls),
                "bytes": int(note.nbytes * calls),
            }
            for note, share in zip(self.step.run.notes, times)
        ]


def _nbytes(values: Iterable[Any]) -> int:
    """Total bytes of arrays, including those in sequences."""
    return sum(_nbytes(v) if isinstance(v, list) else getattr(v, "nbytes", 0) for v in values)


def _print(facts: dict[str, Any]) -> None:
    """Print the facts as two lines and a table of the steps."""
    screen = Screen()
    shapes = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in facts["inputs"].items())
    lower, median, upper = (seconds * 1e6 for seconds in facts["seconds"])
    screen.write_line(
        f"{facts['file']}: {shapes}; a call {median:.4g} us (quartiles {lower:.4g} to {upper:.4g}, "
        f"{facts['runs']} calls), its steps {facts['seconds_in_steps'] * 1e6:.4g} us"
    )
    python = sum(row["step"] == "numpy" for row in facts["steps"])
    screen.write_line(
        f"{facts['nodes_in_file']} nodes in the file, {facts['nodes_after_folding']} that do not depend on "
        f"constants alone, {len(facts['steps'])} steps, {python} of them NumPy's, which take "
        f"{facts['share_in_numpy']:.1%} of the steps' time"
    )
    columns = {"node": "left", "operator": "left", "step": "left", "shape": "left"} | dict.fromkeys(
        ("microseconds", "share", "calls", "flops", "bytes", "GFLOP/s", "GB/s"), "right"
    )
    screen.print(table(None, columns, map(_row, facts["steps"])))


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a step in the table."""
    seconds = row["seconds"] or float("inf")
    shape = "" if row["shape"] is None else "x".join(map(str, row["shape"]))
    return (
        row["name"] or "-",
        row["op_type"],
        row["step"],
        shape,
        f"{row['seconds'] * 1e6:.4g}",
        f"{row['share']:.1%}",
        f"{row['calls']:g}",
        f"{row['flops']:,}",
        f"{row['bytes']:,}",
        f"{row['flops'] / seconds / 1e9:.2f}",
        f"{row['bytes'] / seconds / 1e9:.2f}",
    )
