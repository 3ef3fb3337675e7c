"""`rnnfast info`: lists the contents of a file, and what in it is not supported."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import numpy as np

from rnnfast.cli.tables import Screen, print_json, table
from rnnfast.cli.values import Sizes, dim_option, fill, input_option, read_inputs, weights_options
from rnnfast.errors import UnsupportedError
from rnnfast.model import Model, load
from rnnfast.onnx.graph import Graph, Value, read
from rnnfast.onnx.summary import Summary
from rnnfast.serving.model_sequences import sequence_axes
from rnnfast.streaming.model_axes import BatchAxes
from rnnfast.streaming.state_flow import idle_state
from rnnfast.streaming.state_pairs import named_pairs

DEFAULT_SIZE = 1


@click.command()
@click.argument("file")
@input_option
@dim_option(DEFAULT_SIZE)
@weights_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(file: str, given: Sequence[str], dims: Sequence[str], weights: Any, activations: Any, as_json: bool) -> None:
    """Show what FILE contains and what in it is not supported.

    Inputs, outputs, operators and layers are listed. The layers' shapes and operations are those of a run with the
    inputs given with -i, and with zeros for the others.
    """
    problems: list[UnsupportedError] = []
    graph, source = read(file, problems)
    facts: dict[str, Any] = {
        "file": file,
        "ir_version": source.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in source.opsets.items()},
        "producer": source.producer,
        "inputs": [_value(v, graph.constants) for v in graph.inputs],
        "outputs": [_value(v, {}) for v in graph.outputs],
        "operators": dict(sorted(operators(graph).items())),
        "parameters": parameters(graph),
        "unsupported": list(dict.fromkeys(map(str, problems))),
    }
    summary = None
    if not problems:
        try:
            model = load(file, weights=weights, activations=activations)
        except UnsupportedError as e:
            facts["unsupported"] = [str(e)]
        else:
            feed = fill(read_inputs(given, model), model, Sizes(dims, DEFAULT_SIZE), np.zeros)
            summary = model.summary(feed)
            facts["layers"] = [layer._asdict() for layer in summary.layers]
            facts["recognised_cells"] = list(model.recognised_cells)
            facts |= _rows(model, feed)
    if as_json:
        print_json(facts)
    else:
        _print(facts, summary)
    if facts["unsupported"]:
        click.get_current_context().exit(1)


def _rows(model: Model, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The state pairs, the axes of rows, and how whole sequences share batches, or why there is no such thing."""
    pairs = named_pairs(model)
    idle = idle_state(model.folded, pairs)
    facts: dict[str, Any] = {
        "states": pairs,
        "idle_state": None if idle is None else f"{idle[0]}: {idle[1]}",
        "batch_axes": model.batch_axes(feed)._asdict(),
    }
    if not pairs:
        facts["sequences"] = sequence_axes(model)
    return facts


def _value(value: Value, constants: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of an input or output."""
    shape = value.type.shape
    return {
        "name": value.name,
        "type": str(value.type),
        "shape": None if shape is None else list(shape),
        "default": value.name in constants,
    }


def _within(graph: Graph) -> Iterator[Graph]:
    """The graph and all graphs within it: branches, bodies and called functions."""
    yield graph
    for node in graph.nodes:
        for inner in node.graphs.values():
            yield from _within(inner)


def operators(graph: Graph) -> collections.Counter[str]:
    """The number of nodes of each operator, in the graph and all graphs within it."""
    return collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for inner in _within(graph)
        for node in inner.nodes
    )


def parameters(graph: Graph) -> int:
    """The number of elements of all floating-point constants."""
    constants = [a for inner in _within(graph) for a in inner.constants.values()]
    constants += [
        a
        for inner in _within(graph)
        for node in inner.nodes
        if node.op_type == "Constant"
        for a in node.attributes.values()
        if hasattr(a, "dtype")
    ]
    return sum(a.size for a in constants if a.dtype.kind in "fV")


def _print(facts: dict[str, Any], summary: Summary | None) -> None:
    """Print the facts, and the summary or else the number of parameters."""
    screen = Screen()
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items())
    made_by = f", made by {facts['producer']}" if facts["producer"] else ""
    screen.write_line(f"{facts['file']}: opset {opsets}, IR version {facts['ir_version']}{made_by}")
    for title in ("inputs", "outputs"):
        screen.print(table(title, dict.fromkeys(("name", "type", "shape"), "left"), map(_cells, facts[title])))
    screen.write_line("operators: " + ", ".join(f"{name} {count}" for name, count in facts["operators"].items()))
    for line in (f"parameters: {facts['parameters']:,}",) if summary is None else ("", *str(summary).split("\n")):
        screen.write_line(line)
    if "batch_axes" in facts:
        _print_rows(screen, facts)
    for cell in facts.get("recognised_cells", ()):
        screen.write_line(cell)
    for problem in facts["unsupported"]:
        screen.write_line(f"not supported: {problem}")


def _print_rows(screen: Screen, facts: dict[str, Any]) -> None:
    """Print what `_rows` found."""
    pairs = ", ".join(f"{name} -> {output}" for name, output in facts["states"].items())
    screen.write_line(f"states: {pairs or 'none by their names'}")
    if facts["idle_state"] is not None:
        screen.write_line(f"not a state: {facts['idle_state']}")
    screen.write_line(str(BatchAxes(**facts["batch_axes"])))
    sequences = facts.get("sequences")
    if sequences is not None:
        frames = ", ".join(
            f"{name} {'of the whole' if axis is None else f'axis {axis}'}" for name, axis in sequences["frames"].items()
        )
        screen.write_line(
            f"whole sequences {sequences['way']}: {frames}" if frames else f"no whole sequences: {sequences['problem']}"
        )


def _cells(value: dict[str, Any]) -> tuple[str, str, str]:
    """The cells of an input or output in its table."""
    shape = "any" if value["shape"] is None else f"[{', '.join('?' if n is None else str(n) for n in value['shape'])}]"
    return value["name"], value["type"], shape + (" (has a default)" if value["default"] else "")
