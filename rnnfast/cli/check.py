"""`rnnfast check`: a model's outputs next to the float64 reference's and, where it is installed, onnxruntime's."""

import functools
import json

import click
import numpy as np

from rnnfast.cli.tables import console, table
from rnnfast.cli.values import Sizes, dim_option, fill, input_option, read_inputs
from rnnfast.model import load

# Relative to the output's largest value, or absolute below 1: float32 has 6e-8, and a thousand steps and
# layers lose two or three digits of it.
TOLERANCE = 1e-4
DEFAULT_SIZE = 2


@click.command()
@click.argument("file")
@input_option
@dim_option(DEFAULT_SIZE)
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@click.option(
    "--tolerance",
    default=TOLERANCE,
    show_default=True,
    help="Largest difference allowed, relative to the output's largest value where that is over 1.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(file, given, dims, seed, tolerance, as_json):
    """Compare FILE's outputs with the float64 reference's.

    They are compared with onnxruntime's too where that is installed.

    Inputs that are not given with -i are random: normal for floats, 0 or 1 for integers (so that they are in
    range where they are indices or lengths). A NaN is a failure.
    """
    model = load(file)
    drawn = functools.partial(draw, np.random.default_rng(seed))
    feed = fill(read_inputs(given, model), model, Sizes(dims, DEFAULT_SIZE), drawn)
    outputs = model(feed)
    peers = {"reference": model.reference(feed)}
    peers["onnxruntime"], absent = onnxruntime_outputs(file, model, feed)
    rows = [
        _row(name, outputs[name], {peer: theirs and theirs[name] for peer, theirs in peers.items()}, tolerance)
        for name in outputs
    ]
    passed = all(row["passed"] for row in rows)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "file": file,
                    "tolerance": tolerance,
                    "onnxruntime": absent or "compared",
                    "outputs": list(map(_strict, rows)),
                    "passed": passed,
                },
                indent=2,
            )
        )
    else:
        _print(rows, tolerance, absent)
    if not passed:
        click.get_current_context().exit(1)


def draw(rng, shape, dtype):
    """Random values of an input."""
    return rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)


def onnxruntime_outputs(file, model, feed):
    """(outputs by name, or None; why there are none)"""
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
    except Exception as e:  # onnxruntime has a dozen classes of them without a common one
        return None, f"refused: {' '.join(str(e).split())}"


def _row(name, ours, theirs, tolerance):
    """What there is to say of one output."""
    arrays, reference = _arrays(ours), _arrays(theirs["reference"])
    largest = float(np.max([_largest(a) for a in reference], initial=0))
    row = {"name": name, "shapes": [list(a.shape) for a in arrays], "largest": largest}
    row |= {peer: None if other is None else difference(arrays, _arrays(other)) for peer, other in theirs.items()}
    limit = tolerance * max(1, largest)
    row["passed"] = all(row[peer] <= limit for peer in theirs if row[peer] is not None)  # false for NaN
    return row


def _arrays(value):
    return [np.asarray(v) for v in (value if isinstance(value, list) else [value]) if v is not None]


def _largest(array):
    """The largest finite absolute value; 0 for strings."""
    if array.dtype == object:
        return 0
    array = np.abs(array.astype(np.float64))
    return np.max(array, where=np.isfinite(array), initial=0)


def difference(ours, theirs):
    """The largest absolute difference of two lists of arrays.

    NaN where there is a NaN; infinity where shapes or strings differ.
    """
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    return float(np.max([_difference(a, b) for a, b in zip(ours, theirs)], initial=0))


def _difference(a, b):
    if a.dtype == object:
        return 0 if np.array_equal(a, b) else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.max(np.where(a == b, 0, np.abs(a - b)), initial=0)


def _strict(row):
    """With "nan" and "inf" as text: JSON has no such numbers."""
    return {key: str(v) if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()}


def _print(rows, tolerance, absent):
    columns = {
        "output": "left",
        "shape": "left",
        "largest value": "right",
        "to reference": "right",
        "to onnxruntime": "right",
        "": "left",
    }
    screen = console()
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
        screen.print(f"onnxruntime: {absent}")
