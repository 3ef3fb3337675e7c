"""`python -m bench.errors`: errors of trained LSTM layers in low precision, next to onnxruntime's; nothing is timed.

Each layer is a model of its own, with the weights of its model and the values that reach it there, from the inputs that
are stored beside the file; those of some models that take one frame are also computed on 50 frames of speech. An error
is the largest difference to the float64 results of the float32 weights, relative to the largest output. The exit status
is 1 if rnnfast fails.
"""

import json
import math
import pathlib
import sys

import click
import numpy as np

from bench import environment, report, trained
from bench.precision_engines import DynamicOnnxruntime, Rnnfast
from rnnfast.cli.progress import track

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
ENGINES = [
    Rnnfast("int8"),
    Rnnfast("int8", 8),
    DynamicOnnxruntime(per_channel=True),
    DynamicOnnxruntime(per_channel=False),
    Rnnfast("fp16"),
    Rnnfast("bf16"),
]
OURS, PEER, HALF = "rnnfast int8", "onnxruntime int8 per channel", "rnnfast fp16"
# Targets: int8's error is at most this share of the peer's in this share of the layers, and the largest medians.
SHARE, OFTEN, MEDIANS = 0.7, 0.8, {OURS: 1.4e-2, HALF: 3e-4}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--layer", "pick", default="", metavar="TEXT", help="Only layers of files with this in their names.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write the results there.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=FILE, help="Write the table there.")
@click.option("--read", "stored", metavar="FILE", type=FILE, help="Compute nothing: make the table from this JSON.")
def main(pick, json_file, markdown_file, stored):
    """Compute the errors of trained LSTM layers."""
    if stored:
        results = json.loads(stored.read_text())
    else:
        records = []
        for inputs, sources in (("stored", trained.SOURCES), ("speech", trained.SPEECH)):
            chosen = [source for source in trained.available(sources) if pick in source.file.name]
            layers = [layer for source in chosen for layer in trained.layers_of(source)]
            records += [errors(layer) | {"inputs": inputs} for layer in track(layers, f"layers, {inputs}")]
        results = {"machine": environment.machine(), "records": records}
    text = markdown(results)
    report.write({json_file: json.dumps(results, indent=1) + "\n", markdown_file: text})
    click.echo(text)
    if problems(results):
        sys.exit(1)


def errors(layer, engines=ENGINES):
    """Return the record of a layer: engine -> its error, or None with the reason in "failed"."""
    import rnnfast

    data, x = layer.onnx_model(), layer.inputs["X"]
    (right,) = rnnfast.load(data).reference(x=x).values()
    found, failed = {}, {}
    for engine in engines:
        found[engine.name] = None
        if not engine.installed():
            failed[engine.name] = "not installed"
            continue
        try:
            (y,) = engine.model(data, 1)({"x": x})
        except Exception as e:  # an engine may raise anything
            failed[engine.name] = f"{type(e).__name__}: {e}"
            continue
        error = float(np.max(np.abs(y - right)) / np.max(np.abs(right)))
        found[engine.name] = error if math.isfinite(error) else None
        if found[engine.name] is None:
            failed[engine.name] = "outputs are not finite"
    T, B, I = x.shape
    sizes = {"I": I, "H": layer.hidden_size, "T": T, "B": B, "directions": len(layer.inputs["W"])}
    return {"layer": layer.name, "sizes": sizes, "errors": found, "failed": failed}


def problems(results):
    """Return the lines on engines of ours that failed, one for each reason."""
    found = {}
    for record in results["records"]:
        for name, why in record["failed"].items():
            if name.startswith("rnnfast"):
                found.setdefault(f"{name} failed: {' '.join(why.split())[:200]}", []).append(record["layer"])
    return [
        f"{what} ({layers[0]}{f' and {len(layers) - 1} more' * (len(layers) > 1)})." for what, layers in found.items()
    ]


def quotient(record):
    """Return our int8 error divided by the peer's, or None."""
    ours, theirs = record["errors"][OURS], record["errors"][PEER]
    return ours / theirs if ours is not None and theirs else None


def over_layers(records, reduce=np.median):
    """Return engine -> the median or another function of its errors, of those that have some."""
    found = {}
    for engine in ENGINES:
        errors = [record["errors"][engine.name] for record in records if record["errors"][engine.name] is not None]
        if errors:
            found[engine.name] = float(reduce(errors))
    return found


def markdown(results):
    """Return the table of all layers, the medians and what was reached."""
    versions = ", ".join(f"{name} {results['machine']['versions'].get(name)}" for name in ("rnnfast", "onnxruntime"))
    lines = [
        "# Errors of trained LSTM layers",
        "",
        f"{versions}; instruction set {results['machine']['isa']}. Each layer alone, on what reaches it in its model: "
        "the largest difference to the float64 results of the float32 weights, relative to the largest output. "
        f"`share`: rnnfast's int8 divided by onnxruntime's per channel, in bold above {SHARE:g}.",
    ]
    records = [record for record in results["records"] if record["inputs"] == "stored"]
    speech = [record for record in results["records"] if record["inputs"] == "speech"]
    if records:
        lines += ["", *_table(records), "", *reached(records)]
    if speech:
        lines += ["", f"## On {trained.FRAMES} frames of speech", "", *_table(speech)]
    lines += ["", "## The table of the documentation", "", *summary(results)]
    return "\n".join([*lines, "", *problems(results)]).rstrip() + "\n"


def _table(records):
    names, middle = [engine.name for engine in ENGINES], over_layers(records)
    rows = []
    for record in records:
        sizes, share = record["sizes"], quotient(record)
        rows.append(
            [
                record["layer"],
                "{I} to {directions} x {H}, T {T}, B {B}".format(**sizes),
                *("" if (error := record["errors"][name]) is None else f"{error:.1e}" for name in names),
                "" if share is None else report.bold(f"{share:.2f}", share > SHARE),
            ]
        )
    rows.append(["median", "", *(f"{middle[name]:.1e}" if name in middle else "" for name in names), ""])
    yield from report.table(["layer", "sizes", *names, "share"], rows)


def summary(results):
    """Return the lines of the documentation's table: the medians and the largest errors."""
    names, rows = [engine.name for engine in ENGINES], []
    for inputs, words in (("stored", "layers on stored inputs"), ("speech", "layers on speech")):
        records = [record for record in results["records"] if record["inputs"] == inputs]
        for what, reduce in (("median", np.median), ("largest", np.max)):
            found = over_layers(records, reduce)
            cells = (f"{found[name]:.1e}" if name in found else "" for name in names)
            rows.append([f"{what} of {len(records)} {words}", *cells])
    return list(report.table(["error", *names], rows))


def reached(records):
    """Yield the lines that compare the targets with what was reached."""
    shares, middle = [share for record in records if (share := quotient(record)) is not None], over_layers(records)
    yield (
        f"rnnfast's int8 has at most {SHARE:g} of the error of {PEER} in {sum(share <= SHARE for share in shares)} of "
        f"{len(shares)} layers (target: {OFTEN:.0%})."
    )
    for name, target in MEDIANS.items():
        if name in middle:
            yield f"The median of {name} is {middle[name]:.1e} (target: at most {target:.1e})."


if __name__ == "__main__":
    main(prog_name="python -m bench.errors")
