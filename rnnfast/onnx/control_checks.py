"""Checks at load that an If, Loop, Scan or SequenceMap fits the graphs among its attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnnfast.errors import ModelError
from rnnfast.onnx.ops.control import if_, loop, scan_8, scan_9, sequence_map


def check(function: Callable[..., Any], n_inputs: int, n_outputs: int, attributes: dict[str, Any], where: str) -> None:
    """Raise ModelError if the numbers of inputs and outputs of a node do not fit those of its graphs."""
    if function is if_:
        for name in ("then_branch", "else_branch"):
            _check_graph(attributes[name], 0, n_outputs, name, where)
    elif function is loop:
        carried = max(0, n_inputs - 2)
        _check_graph(attributes["body"], 2 + carried, 1 + n_outputs, "body", where)
        _check_carried(carried, n_outputs, where)
    elif function is sequence_map:
        _check_graph(attributes["body"], n_inputs, n_outputs, "body", where)
    elif function in (scan_8, scan_9):
        n_values = n_inputs - 1 if function is scan_8 else n_inputs
        scanned = attributes["num_scan_inputs"]
        if not 1 <= scanned <= n_values:
            raise ModelError(f"{where}: attribute 'num_scan_inputs' = {scanned} for {n_values} values")
        _check_graph(attributes["body"], n_values, n_outputs, "body", where)
        _check_carried(n_values - scanned, n_outputs, where)


def _check_graph(graph: Any, n_inputs: int, n_outputs: int, name: str, where: str) -> None:
    """Raise ModelError if the graph of the attribute `name` has other numbers of inputs and outputs."""
    if len(graph.inputs) != n_inputs or len(graph.outputs) != n_outputs:
        raise ModelError(
            f"{where}: attribute {name!r} is a graph of {len(graph.inputs)} inputs and "
            f"{len(graph.outputs)} outputs, expected {n_inputs} and {n_outputs}"
        )


def _check_carried(carried: int, n_outputs: int, where: str) -> None:
    """Raise ModelError if there are fewer outputs than values that iterations hand on, which are all outputs."""
    if n_outputs < carried:
        raise ModelError(f"{where}: {n_outputs} outputs, but {carried} values are carried from step to step")
