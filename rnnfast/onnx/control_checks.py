"""What must hold between an If, Loop or Scan and its graphs, checked at load."""

from rnnfast.errors import ModelError
from rnnfast.onnx.ops.control import if_, loop, scan_8, scan_9


def check(function, n_inputs, n_outputs, attributes, where):
    """Raise ModelError where the numbers of inputs and outputs of a node and of its graphs do not fit."""
    if function is if_:
        for name in ("then_branch", "else_branch"):
            _fit(attributes[name], 0, n_outputs, name, where)
    elif function is loop:
        carried = max(0, n_inputs - 2)
        _fit(attributes["body"], 2 + carried, 1 + n_outputs, "body", where)
        _carries(carried, n_outputs, where)
    elif function in (scan_8, scan_9):
        n_values = n_inputs - 1 if function is scan_8 else n_inputs
        scanned = attributes["num_scan_inputs"]
        if not 1 <= scanned <= n_values:
            raise ModelError(f"{where}: attribute 'num_scan_inputs' = {scanned} for {n_values} values")
        _fit(attributes["body"], n_values, n_outputs, "body", where)
        _carries(n_values - scanned, n_outputs, where)


def _fit(graph, n_inputs, n_outputs, name, where):
    if len(graph.inputs) != n_inputs or len(graph.outputs) != n_outputs:
        raise ModelError(
            f"{where}: attribute {name!r} is a graph of {len(graph.inputs)} inputs and "
            f"{len(graph.outputs)} outputs, expected {n_inputs} and {n_outputs}"
        )


def _carries(carried, n_outputs, where):
    if n_outputs < carried:
        raise ModelError(f"{where}: {n_outputs} outputs, but {carried} values are carried from step to step")
