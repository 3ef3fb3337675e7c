"""`rnnfast profile`: where a call's time goes, node by node."""
import dataclasses
import functools
import json
import time

import click
import numpy as np

from rnnfast.cli.bench import effort_options, inputs_of
from rnnfast.cli.progress import track
from rnnfast.cli.tables import console, table
from rnnfast.cli.timing import pinned, quartiles
from rnnfast.model import load
from rnnfast.onnx.summary import flops
from rnnfast.threads import limit

RUNS, SECONDS = 100, 5


@click.command()
@click.argument("file")
@effort_options
@click.option("--runs", type=click.IntRange(1), default=RUNS, show_default=True,
              help=f"Calls that are measured; fewer where they take more than {SECONDS} s.")
def profile(file, given, dims, batch, steps, seed, threads, as_json, runs):
    """Show the time, floating-point operations and bytes of FILE's nodes.

    Nodes that depend on constants and shapes alone are computed at load and take no time. Those of a loop are summed
    over its iterations. Inputs that are not given with -i are random as for `check`.
    """
    model = load(file, threads=threads)
    feed = inputs_of(model, given, dims, batch, steps, seed)
    args, meters = model.prepare(feed)[1], []
    metered = model.build()
    metered.graph = _metered(metered.graph, meters)
    with pinned(threads), np.errstate(all="ignore"):
        whole = _measure(lambda: model(feed), lambda: metered(args), meters, runs)
    rows = [row for row in (meter.row(len(whole)) for meter in meters) if row]
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = row["seconds"] / total if total else 0
    facts = {"file": file, "threads": min(threads, limit()), "runs": len(whole), "seconds": quartiles(whole),
             "seconds_in_nodes": total, "inputs": {name: list(np.shape(value)) for name, value in feed.items()},
             "nodes": sorted(rows, key=lambda row: -row["seconds"])}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _measure(call, metered, meters, runs):
    """Seconds of each call as a user makes it; a metered run after each, so that one does not pay for the other."""
    for _ in range(2):      # the first one traces and calls more than a plan does
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


def _metered(graph, meters):
    """The graph with a meter around what each node runs, in the graphs within too."""
    nodes = []
    for node in graph.nodes:
        if node.graphs:
            inner = {name: _metered(graph, meters) for name, graph in node.graphs.items()}
            node = node.altered(attributes=node.attributes | inner)
        else:
            meters.append(_Meter(node))
            node = node.altered(run=meters[-1])
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


class _Meter:
    """Stands for a node's callable and measures it."""
    def __init__(self, node):
        self.node = node
        self.clear()

    def clear(self):
        self.runs, self.seconds, self.calls, self.flops, self.nbytes = [], 0.0, 0, 0, 0

    def __call__(self, *inputs):
        return self._measured(self.node.run, *inputs)

    def bound(self, *inputs):
        run = self.node.run
        return functools.partial(self._measured, run.bound(*inputs) if hasattr(run, "bound") else run)

    def _measured(self, run, *inputs):
        start = time.perf_counter()
        results = run(*inputs)
        self.seconds += time.perf_counter() - start
        outputs = results if isinstance(results, tuple) else (results,)
        self.calls += 1
        self.flops += flops(self.node.op_type, inputs, outputs)
        self.nbytes += _nbytes(inputs) + _nbytes(outputs)
        return results

    def end_run(self):
        self.runs.append(self.seconds)
        self.seconds = 0.0

    def row(self, runs):
        """What there is to say of one run, or None if the node never ran."""
        if not self.calls:
            return None
        return {"name": self.node.name, "op_type": self.node.op_type, "calls": self.calls / runs,
                "seconds": float(np.median(self.runs)), "flops": self.flops // runs, "bytes": self.nbytes // runs}


def _nbytes(values):
    """Of arrays, and of those in sequences."""
    return sum(_nbytes(v) if isinstance(v, list) else getattr(v, "nbytes", 0) for v in values)


def _print(facts):
    screen = console()
    shapes = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in facts["inputs"].items())
    lower, median, upper = (seconds * 1e6 for seconds in facts["seconds"])
    screen.print(f"{facts['file']}: {shapes}; a call {median:.4g} us (quartiles {lower:.4g} to {upper:.4g}, "
                 f"{facts['runs']} calls), its nodes {facts['seconds_in_nodes'] * 1e6:.4g} us")
    columns = {"node": "left", "operator": "left"} | dict.fromkeys(
        ("microseconds", "share", "calls", "flops", "bytes", "GFLOP/s", "GB/s"), "right")
    screen.print(table(None, columns, map(_row, facts["nodes"])))


def _row(row):
    seconds = row["seconds"] or float("inf")
    return (row["name"] or "-", row["op_type"], f"{row['seconds'] * 1e6:.4g}", f"{row['share']:.1%}",
            f"{row['calls']:g}", f"{row['flops']:,}", f"{row['bytes']:,}", f"{row['flops'] / seconds / 1e9:.2f}",
            f"{row['bytes'] / seconds / 1e9:.2f}")
