"""`rnnfast profile`: where a call's time goes, step by step."""

import json
import time

import click
import numpy as np

from rnnfast.cli.bench import effort_options, inputs_of
from rnnfast.cli.progress import track
from rnnfast.cli.tables import console, table
from rnnfast.cli.timing import pinned, quartiles
from rnnfast.model import load
from rnnfast.native._programs import NativeProgram
from rnnfast.native.threads import limit
from rnnfast.onnx.summary import flops

RUNS, SECONDS = 100, 5


@click.command()
@click.argument("file")
@effort_options
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=RUNS,
    show_default=True,
    help=f"Calls that are measured; fewer where they take more than {SECONDS} s.",
)
def profile(file, given, dims, batch, steps, seed, threads, as_json, runs):
    """Show the time, floating-point operations and bytes of the steps of FILE.

    A native step stands under the node that ends it: elementwise operators are joined, with what makes their input or
    with each other; what only shapes data takes no step. A loop that is native is one step; of others the steps within
    are summed over iterations. Inputs that are not given with -i are random as for `check`.
    """
    model = load(file, threads=threads)
    feed = inputs_of(model, given, dims, batch, steps, seed)
    args, meters = model.prepare(feed)[1], []
    metered = model.build(meter=lambda step: _meter(step, meters))
    with pinned(threads), np.errstate(all="ignore"):
        whole = _measure(lambda: model(feed), lambda: metered(args), meters, runs)
        rows = [row for meter in meters for row in meter.rows(len(whole))]
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = row["seconds"] / total if total else 0
    facts = {
        "file": file,
        "threads": min(threads, limit()),
        "runs": len(whole),
        "seconds": quartiles(whole),
        "seconds_in_steps": total,
        "inputs": {name: list(np.shape(value)) for name, value in feed.items()},
        "nodes_in_file": _count(model.graph),
        "nodes_after_folding": _count(metered.graph),
        "steps": sorted(rows, key=lambda row: -row["seconds"]),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _measure(call, metered, meters, runs):
    """Seconds of each call as a user makes it; a metered run after each, so that one does not pay for the other."""
    for _ in range(2):  # the first one traces and calls more than a plan does
        call()
        metered()
    for meter in meters:
        meter.clear()
    seconds, start = [], time.perf_counter()
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


def _count(graph):
    """The nodes of a graph and of those within."""
    return sum(1 + sum(map(_count, node.graphs.values())) for node in graph.nodes)


def _meter(step, meters):
    """What runs in the step's place."""
    if hasattr(step.run, "planned_graphs"):
        return step.run  # the steps within have meters of their own
    meters.append(_Meter(step))
    return meters[-1]


class _Meter:
    """Stands for a step's callable and measures it."""

    def __init__(self, step):
        self.step = step
        self.clear()

    def clear(self):
        self.runs, self.seconds, self.calls, self.flops, self.nbytes = [], 0.0, 0, 0, 0
        self.inputs = self.shape = None

    def __call__(self, *inputs):
        start = time.perf_counter()
        results = self.step.run(*inputs)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        self.inputs = inputs
        if self.step.node is not None:
            outputs = results if isinstance(results, tuple) else (results,)
            self.shape = list(np.shape(outputs[0])) if isinstance(outputs[0], np.ndarray) else None
            self.flops += flops(self.step.node.op_type, inputs, outputs)
            self.nbytes += _nbytes(inputs) + _nbytes(outputs)
        return results

    def end_run(self):
        self.runs.append(self.seconds)
        self.seconds = 0.0

    def rows(self, runs):
        """What there is to say of one run: of each command, where there are several their shares of the time."""
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
                "seconds": of_one * scale,
                "flops": int(note.flops * calls),
                "bytes": int(note.nbytes * calls),
            }
            for note, of_one in zip(self.step.run.notes, times)
        ]


def _nbytes(values):
    """Of arrays, and of those in sequences."""
    return sum(_nbytes(v) if isinstance(v, list) else getattr(v, "nbytes", 0) for v in values)


def _print(facts):
    screen = console()
    shapes = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in facts["inputs"].items())
    lower, median, upper = (seconds * 1e6 for seconds in facts["seconds"])
    screen.print(
        f"{facts['file']}: {shapes}; a call {median:.4g} us (quartiles {lower:.4g} to {upper:.4g}, "
        f"{facts['runs']} calls), its steps {facts['seconds_in_steps'] * 1e6:.4g} us"
    )
    python = sum(row["step"] == "numpy" for row in facts["steps"])
    screen.print(
        f"{facts['nodes_in_file']} nodes in the file, {facts['nodes_after_folding']} that do not depend on "
        f"constants alone, {len(facts['steps'])} steps, {python} of them NumPy's"
    )
    columns = {"node": "left", "operator": "left", "step": "left", "shape": "left"} | dict.fromkeys(
        ("microseconds", "share", "calls", "flops", "bytes", "GFLOP/s", "GB/s"), "right"
    )
    screen.print(table(None, columns, map(_row, facts["steps"])))


def _row(row):
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
