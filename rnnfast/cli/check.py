"""`rnnfast check`: compares a model's outputs with the float64 reference and with onnxruntime, if it is installed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np

from rnnfast.cli.tables import Screen, print_json, strict, table
from rnnfast.cli.values import Sizes, dim_option, fill, input_option, read_inputs, seed_option, weights_options
from rnnfast.errors import raise_if_from_handler
from rnnfast.model import Model, load

# The largest difference allowed, relative to the output's largest value or absolute if that is below 1. float32 rounds
# by 6e-8, and a thousand steps and layers lose two or three digits of that.
TOLERANCE = 1e-4
# The distance of neighbouring numbers of these types, relative to them: results that are almost equal before they are
# rounded to the type of an output may be so far apart.
UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# The largest difference of integer products to the reference of the same rounded weights, allowed like TOLERANCE, by
# the bits of activations: a layer's rounding of them adds 1e-4 to results at 15 bits, and layers and steps add up.
INTEGER_TOLERANCES = {15: 1e-2, 8: 0.5}
DEFAULT_SIZE = 2


@click.command()
@click.argument("file")
@input_option
@dim_option(DEFAULT_SIZE)
@seed_option
@click.option(
    "--tolerance",
    default=TOLERANCE,
    show_default=True,
    help="Largest difference allowed, relative to the output's largest value if that is over 1.",
)
@weights_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    file: str,
    given: Sequence[str],
    dims: Sequence[str],
    seed: int,
    tolerance: float,
    weights: Any,
    activations: Any,
    as_json: bool,
) -> None:
    """Compare FILE's outputs with those of the float64 reference.

    If onnxruntime is installed, they are compared with its outputs too. Outputs of float16 and bfloat16 may differ by
    one unit of their type more. Within graphs of these types onnxruntime rounds results, which rnnfast does not, so
    that a comparison with it may need a larger tolerance, such as 0.01.

    Inputs that are not given with -i are random: floats are normally distributed, integers are 0 or 1 (so that they
    are in range if they are indices or lengths). A NaN is a failure.

    With --weights the reference is that of the weights as FILE has them, so that differences are the whole error, and
    may need a larger --tolerance.
    """
    model = load(file, weights=weights, activations=activations)
    drawn = functools.partial(draw, np.random.default_rng(seed))
    feed = fill(read_inputs(given, model), model, Sizes(dims, DEFAULT_SIZE), drawn)
    outputs = model(feed)
    peers: dict[str, Mapping[str, Any] | None] = {"reference": plain(file, model).reference(feed)}
    peers["onnxruntime"], absent = onnxruntime_outputs(file, model, feed)
    rows = [
        _row(name, outputs[name], {peer: theirs and theirs[name] for peer, theirs in peers.items()}, tolerance)
        for name in outputs
    ]
    passed = all(row["passed"] for row in rows)
    if as_json:
        print_json(
            {
                "file": file,
                "tolerance": tolerance,
                "onnxruntime": absent or "compared",
                "outputs": list(map(strict, rows)),
                "passed": passed,
            }
        )
    else:
        _print(rows, tolerance, absent)
    if not passed:
        click.get_current_context().exit(1)


def plain(file: str, model: Model) -> Model:
    """The model of a file with the weights that it has: `model` itself if that rounds none."""
    return model if model.weights is None else load(file)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random values of an input: 0 or 1 for integers and booleans, else normally distributed."""
    return rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)


def onnxruntime_outputs(file: str, model: Model, feed: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """onnxruntime's outputs by name, or None and the reason why there are none."""
    try:
        import onnxruntime
    except ImportError:
        return None, "not installed"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    types = {v.name: v.type.dtype for v in model.inputs}
    feed = {name: np.asarray(value, types[name]) for name, value in feed.items()}
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed))), None
    except Exception as e:  # onnxruntime raises a dozen classes that have no base of their own
        raise_if_from_handler(e)
        return None, f"refused: {' '.join(str(e).split())}"


def _row(name: str, ours: Any, theirs: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    """The facts of one output: its shapes, its largest value, and its difference to each peer that has outputs."""
    own, reference = arrays(ours), arrays(theirs["reference"])
    scale = max([0.0, *map(largest, reference)])
    row: dict[str, Any] = {"name": name, "shapes": [list(a.shape) for a in own], "largest": scale}
    row |= {peer: None if other is None else difference(own, arrays(other)) for peer, other in theirs.items()}
    limit = allowed(reference, tolerance)
    row["passed"] = all(row[peer] <= limit for peer in theirs if row[peer] is not None)  # NaN compares false
    return row


def arrays(value: Any) -> list[np.ndarray]:
    """The arrays of an output, which is an array, a sequence or an absent optional."""
    return [np.asarray(v) for v in (value if isinstance(value, list) else [value]) if v is not None]


def largest(array: np.ndarray) -> float:
    """The largest finite absolute value of an array; 0 for strings."""
    if array.dtype.kind == "O":
        return 0.0
    array = np.abs(array.astype(np.float64))
    return float(np.max(array, where=np.isfinite(array), initial=0))


def allowed(expected: Sequence[np.ndarray], tolerance: float) -> float:
    """The largest difference that is allowed to arrays of one output or of several."""
    scales = [(largest(array), UNITS.get(array.dtype.name, 0.0)) for array in expected]
    return max([tolerance, *(tolerance * max(1, scale) + unit * scale for scale, unit in scales)])


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """The largest absolute difference between two lists of arrays.

    It is NaN if an array has a NaN, and infinite if shapes or strings differ.
    """
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    return float(np.max([_difference(a, b) for a, b in zip(ours, theirs)], initial=0))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind == "O":
        return 0.0 if np.array_equal(a, b) else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.max(np.where(a == b, 0, np.abs(a - b)), initial=0)


def _print(rows: Sequence[dict[str, Any]], tolerance: float, absent: str | None) -> None:
    """Print a table of the outputs, and why onnxruntime is absent if it is."""
    columns = {
        "output": "left",
        "shape": "left",
        "largest value": "right",
        "to reference": "right",
        "to onnxruntime": "right",
        "": "left",
    }
    screen = Screen()
    screen.print(
        table(
            f"largest difference, tolerance {tolerance:g}",
            columns,
            (
                (
                    row["name"],
                    " ".join(map(str, row["shapes"])),
                    f"{row['largest']:.3g}",
                    *("-" if row[peer] is None else f"{row[peer]:.2g}" for peer in ("reference", "onnxruntime")),
                    "ok" if row["passed"] else "FAILED",
                )
                for row in rows
            ),
        )
    )
    if absent:
        screen.write_line(f"onnxruntime: {absent}")
