"""`python -m bench.quantised FOLDER`: quantised files next to onnxruntime and to the float32 files that they come from.

FOLDER/models.json lists the files with their kinds and float32 files; for each there is a NAME.npz with inputs
(in_<input>) and onnxruntime's outputs, optimised (out_<output>) and not (unoptimised_<output>). One thread. A file is
timed only if it agrees: its outputs are those of onnxruntime, either way, but for some steps of a quantiser, or they
are nearer to the float32 file than those.
"""

import json
import pathlib
import sys

import click
import numpy as np

from bench import environment, report

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
ROUNDS, DURATION, LIMIT = 21, 0.004, 2.0
# A rounding of float32 before a quantiser turns a step of it: so much of the largest output; onnxruntime rounds values
# between nodes to float16. Where activations are quantised in another way, the error is at most this share of its own.
STEPS, HALF_STEPS, SHARE = 3e-4, 1e-2, 1.15
# Targets: the least ratio to onnxruntime's time, that of the geometric mean, and the largest share of float32's time.
LEAST, MEAN, HALF_SHARE, OTHER_SHARE = 0.9, 1.5, 1.05, 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@click.option("--file", "pick", default="", metavar="TEXT", help="Only files with this in their names.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write the results there.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=FILE, help="Write the table there.")
def main(folder, pick, json_file, markdown_file):
    """Measure quantised files."""
    from rnnfast.cli.timing import pinned

    records = []
    with pinned(1):
        for entry in json.loads((folder / "models.json").read_text()):
            if pick in entry["file"]:
                records.append(measured(folder, entry))
                click.echo(" ".join(_row(records[-1])), err=True)
    results = {"machine": environment.machine(), "records": records}
    text = markdown(results)
    report.write({json_file: json.dumps(results, indent=1) + "\n", markdown_file: text})
    click.echo(text)
    if not all(record["agrees"] for record in records):
        sys.exit(1)


def measured(folder, entry):
    """Return the record of a file: its distances and, if it agrees, medians of seconds."""
    import onnxruntime

    import rnnfast
    from rnnfast.cli.timing import interleave, quartiles

    file = folder / entry["file"]
    model, plain = rnnfast.load(file), rnnfast.load(folder / entry["base"])
    with np.load(file.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    feed = {v.name: arrays[f"in_{v.name}"] for v in model.inputs if f"in_{v.name}" in arrays}
    wide = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in feed.items()}
    got, right = model(feed), plain(wide)
    results = [
        {name: arrays[kind + name] for name in got if kind + name in arrays} for kind in ("out_", "unoptimised_")
    ]
    results = [result for result in results if result]
    record = {
        "file": entry["file"],
        "kind": entry["kind"],
        "difference": min(distance(got, result) for result in results),
        "error": distance(got, right),
        "onnxruntime_error": distance(results[0], right),
    }
    record["agrees"] = agrees(record)
    if not record["agrees"]:
        return record
    engines = {"rnnfast": lambda: model.run(feed), "float32": lambda: plain.run(wide)}
    if entry["onnxruntime"]["default"] == "ok":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        inputs = {v.name: feed[v.name] for v in session.get_inputs() if v.name in feed}
        engines["onnxruntime"] = lambda: session.run(None, inputs)
    timed = interleave(engines, (), ROUNDS, DURATION, LIMIT)
    return record | {"seconds": {name: quartiles(samples.seconds)[1] for name, samples in timed.items()}}


def distance(got, expected):
    """Return the largest difference of an output, relative to its largest value."""
    worst = 0.0
    for name, want in expected.items():
        y, want = np.asarray(got[name], np.float64), np.asarray(want, np.float64)
        worst = max(worst, np.abs(y - want).max(initial=0) / max(np.abs(want).max(initial=0), 1e-30))
    return float(worst)


def agrees(record):
    """Return whether a file agrees with onnxruntime, or is nearer to float32."""
    steps = HALF_STEPS if record["kind"].startswith("fp16") else STEPS
    return record["difference"] <= steps or record["error"] <= SHARE * record["onnxruntime_error"]


def _row(record):
    """Return the cells of a file."""
    name = record["file"].removesuffix(".onnx")
    distances = [f"{record[key]:.1e}" for key in ("difference", "error", "onnxruntime_error")]
    if not record["agrees"]:
        return [name, *distances, "WRONG", "", ""]
    seconds = record["seconds"]
    most = HALF_SHARE if record["kind"].startswith("fp16") else OTHER_SHARE
    share, ratio = seconds["rnnfast"] / seconds["float32"], ""
    if "onnxruntime" in seconds:
        ratio = report.bold(f"{seconds['onnxruntime'] / seconds['rnnfast']:.2f}", _ratio(record) < LEAST)
    return [name, *distances, f"{seconds['rnnfast'] * 1e6:.1f}", ratio, report.bold(f"{share:.2f}", share > most)]


def _mean(values):
    """Return the geometric mean as text; there is none without files."""
    return f"{report.geometric_mean(values):.2f}" if values else "-"


def _ratio(record):
    """Return onnxruntime's time divided by rnnfast's."""
    return record["seconds"]["onnxruntime"] / record["seconds"]["rnnfast"]


def markdown(results):
    """Return the Markdown table of all files."""
    records = results["records"]
    ratios = [_ratio(record) for record in records if "onnxruntime" in record.get("seconds", ())]
    shares = [r["seconds"]["rnnfast"] / r["seconds"]["float32"] for r in records if "seconds" in r]
    header = ["file", "difference", "error", "of onnxruntime", "us", "onnxruntime / rnnfast", "of float32"]
    return "\n".join(
        [
            *report.heading(results["machine"], "Quantised files on "),
            "",
            "Median microseconds on one thread. `difference`: to onnxruntime's results, the nearer of those with and "
            "without its optimisations; `error`: to the float32 file, and that of onnxruntime. In bold: a ratio below "
            f"{LEAST}, a share of the float32 file's time above {OTHER_SHARE} ({HALF_SHARE} for float16).",
            "",
            *report.table(header, [_row(record) for record in records]),
            "",
            f"{sum(record['agrees'] for record in records)} of {len(records)} files agree. Geometric means: "
            f"{_mean(ratios)} times as fast as onnxruntime (target {MEAN}), {_mean(shares)} of float32's time.",
            "",
        ]
    )


if __name__ == "__main__":
    main(prog_name="python -m bench.quantised")
