"""`rnnfast quantize`: stores a model's weights in 8 or 16 bits, and shows the error that each layer's make."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import click
import numpy as np

from rnnfast.atomic_write import write_whole
from rnnfast.cli.check import DEFAULT_SIZE, draw
from rnnfast.cli.progress import track
from rnnfast.cli.tables import Screen, print_json, strict, table
from rnnfast.cli.values import Sizes, dim_option, fill, input_option, read_inputs, seed_option
from rnnfast.quantization.quantizer import FORMS, Quantized, QuantizedLayer, Quantizer
from rnnfast.quantization.weight_types import WEIGHT_TYPES


@click.command()
@click.argument("file")
@click.option("-o", "--output", "path", required=True, help="The file to write.")
@click.option("--weights", type=click.Choice(list(WEIGHT_TYPES)), required=True, help="How weights are stored.")
@input_option
@dim_option(DEFAULT_SIZE)
@seed_option
@click.option(
    "--tolerance",
    type=float,
    help="Largest error of the outputs; layers that make a larger one are skipped (default: none are).",
)
@click.option("--keep", multiple=True, metavar="NODE", help="A node whose weights stay as they are. May be repeated.")
@click.option(
    "--form",
    type=click.Choice(FORMS),
    default=FORMS[0],
    show_default=True,
    help="onnxruntime writes LSTM nodes as its DynamicQuantizeLSTM, for int8.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def quantize(
    file: str,
    path: str,
    weights: str,
    given: Sequence[str],
    dims: Sequence[str],
    seed: int,
    tolerance: float | None,
    keep: Sequence[str],
    form: str,
    as_json: bool,
) -> None:
    """Write FILE with its weights stored in 8 or 16 bits.

    The weights of recurrent nodes, MatMul, Gemm and Conv are stored, each with what makes float32 of them. For each
    layer the bytes are shown, the error of its weights (root mean square, relative to that of the weights) and the
    error of the outputs if only this layer is quantised (largest difference, relative to the output's largest value).
    Nodes that read the same weights are one layer.

    Inputs that are not given with -i are random, as for `check`. The exit status is 1 if layers were skipped because
    of the tolerance, or the error is not finite.
    """
    quantizer = Quantizer(file, weights, keep, form)
    drawn = functools.partial(draw, np.random.default_rng(seed))
    feed = fill(read_inputs(given, quantizer.model), quantizer.model, Sizes(dims, DEFAULT_SIZE), drawn)
    result, data = quantizer.run(feed, tolerance, lambda layers: track(layers, "quantize"))
    write_whole(path, data)
    finite = result.output_error is not None and math.isfinite(result.output_error)
    passed = finite and not any(layer.over_tolerance for layer in result.layers)
    if as_json:
        facts = {"file": file, "output": path, "weights": weights, "form": form, "tolerance": tolerance}
        layers = [strict(dataclasses.asdict(layer)) for layer in result.layers]
        print_json(facts | strict(dataclasses.asdict(result)) | {"layers": layers, "passed": passed})
    else:
        _print(result, file, path, weights)
    if not passed:
        click.get_current_context().exit(1)


def _print(result: Quantized, file: str, path: str, weights: str) -> None:
    """Print a table of the layers, and a line of the whole."""
    columns = {"layer": "left", "operator": "left"}
    columns |= dict.fromkeys(("float32 bytes", f"{weights} bytes", "weights' error", "output's error"), "right")
    screen = Screen()
    screen.print(table(None, columns | {"": "left"}, map(_row, result.layers)))
    ratio = result.bytes_after / result.bytes_before
    screen.write_line(
        f"{file}: {result.bytes_before:,} bytes; {path}: {result.bytes_after:,} bytes, {ratio:.0%}; weights' error "
        f"{result.weights_error:.2g}, output's error {result.output_error:.2g}"
    )


def _row(layer: QuantizedLayer) -> tuple[str, ...]:
    """The cells of a layer in the table."""
    first, *others = layer.names
    return (
        f"{first} and {len(others)} more" if others else first,
        layer.op_type,
        f"{layer.bytes_before:,}",
        f"{layer.bytes_after:,}",
        *("-" if error is None else f"{error:.2g}" for error in (layer.weights_error, layer.output_error)),
        f"skipped: {layer.kept}" if layer.kept else "",
    )
