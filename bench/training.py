"""`python -m bench.training`: measure forward and backward, and training, next to other engines; a Markdown table.

The exit status is 1 if an engine was wrong or failed. Each number of threads is measured in a process of its own, as by
`python -m bench`. Before anything is timed, gradients are compared with those in float64.
"""

import json
import pathlib
import sys

import click

from bench import report
from bench.cases import SAVED, TRAINING, Fit, select
from bench.worker import default_threads, measured

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
ROUNDS = 21
# Seconds a sample, and seconds a case after which only the rounds that quartiles need are run.
DURATION, LIMIT = 0.02, 20
STATUS = {"missing": "not installed", "failed": "failed", "wrong": "WRONG"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("patterns", nargs=-1, metavar="[CASE]...")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    metavar="N...",
    help="Numbers of threads (default: 1, and 2 where there are two cores).",
)
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="At most, of a case.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write the results there.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=FILE, help="Write the table there.")
def main(patterns, threads, rounds, json_file, markdown_file):
    """Measure training next to other engines: all cases, or those of these names or beginnings of names with *."""
    if threads:  # in `--threads 1 2` the option takes the first number only; the others arrive as patterns
        threads += tuple(int(pattern) for pattern in patterns if pattern.isdigit())
        patterns = [pattern for pattern in patterns if not pattern.isdigit()]
    try:
        cases = select(patterns, cases=TRAINING)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="CASE") from None
    results = measured(
        "bench.training",
        threads or default_threads(),
        cases=[case.name for case in cases],
        rounds=rounds,
        duration=DURATION,
        limit=LIMIT,
    )
    text = markdown(results)
    report.write({json_file: json.dumps(results, indent=1) + "\n", markdown_file: text})
    click.echo(text)
    if any(report.problems(run["records"]) for run in results["runs"]):
        sys.exit(1)


# ------------------------------------------------------------------------------------------------ measuring
def run(request):
    """Measure all cases of one process."""
    from bench import gradients, mnist
    from bench.measure import progress, record
    from rnnfast.cli.progress import track

    effort = [request[name] for name in ("threads", "rounds", "duration", "limit")]
    records = []
    for case in track([case for case in TRAINING if case.name in request["cases"]], progress(request["threads"])):
        module = mnist if isinstance(case, Fit) else gradients
        records.append(record(case, module.measure(case, module.ENGINES.values(), *effort)))
    return {"records": records}


# ------------------------------------------------------------------------------------------------ Markdown
def markdown(results):
    """Return the Markdown tables of all runs."""
    lines = [
        *report.heading(results["machine"], "Training on "),
        "",
        "Forward and backward, float32, NumPy in and out: y and the gradients of x and of all weights. Median "
        "microseconds of a call, or images a second of an epoch. `ratio`: the best of the others' times divided by "
        "rnnfast's in the same round, the median over rounds. `spread`: quartiles of rnnfast's time. `saved`: what "
        "forward keeps for backward, to gates and states of what was computed. In bold: what misses its target.",
    ]
    for run in results["runs"]:
        lines += ["", report.run_heading(run), "", f"At most {run['rounds']} rounds.", *report.others(run)]
        for fits in (False, True):
            records = [record for record in run["records"] if ("images" in record["case"]) == fits]
            if records:
                lines += ["", *_table(records, run["threads"], fits), "", *_notes(records, run["threads"])]
    return "\n".join([*lines, *report.removed(results)]) + "\n"


def _table(records, threads, fits):
    engines = list(dict.fromkeys(name for record in records for name in record["results"]))
    rows = []
    for record in records:
        results, found, target = record["results"], _ratio(record), _target(record, threads)
        images = record["case"].get("images")
        show = (lambda s, images=images: f"{images / s:,.0f}") if fits else report.microseconds
        ours = results.get("rnnfast", {}).get("seconds")
        row = [
            record["case"]["name"],
            *(_value(results.get(name), show) for name in engines),
            f"{show(ours[0])}-{show(ours[2])}" if ours else "",
            report.best_peer(record) or "",
            "" if found is None else report.bold(f"{found:.2f}", found < target),
            f"{target:g}",
        ]
        if not fits:
            saved = results.get("rnnfast", {}).get("saved")
            row += ["" if saved is None else report.bold(f"{saved:.2f}", saved > SAVED), f"{SAVED:g}"]
        rows.append(row)
    unit = "images/s" if fits else "us"
    header = [
        "case",
        *(f"{name} {unit}" if name == "rnnfast" else name for name in engines),
        "spread",
        "best peer",
        "ratio",
        "target",
    ]
    return report.table(header if fits else [*header, "saved", "at most"], rows)


def _ratio(record):
    return report.ratio(record, record["case"].get("against"))


def _target(record, threads):
    """Return the target for a number of threads; more threads than the targets have share the last one.

    In results that come from a file, numbers of threads are strings.
    """
    targets = {int(count): target for count, target in record["case"]["targets"].items()}
    return targets.get(threads, targets[max(targets)])


def _value(result, show):
    if result is None:
        return ""
    return show(result["seconds"][1]) if result["status"] == "ok" else STATUS[result["status"]]


def _notes(records, threads):
    found = [(_ratio(record), _target(record, threads)) for record in records if _ratio(record)]
    if found:
        yield f"{sum(ratio >= target for ratio, target in found)} of {len(found)} ratios reach their target."
    for record in records:
        peer, best = record["case"].get("against"), report.best_peer(record)
        if peer and best and peer != best and report.ratio(record):
            yield f"The ratio of {record['case']['name']} is to {peer}; to {best} it is {report.ratio(record):.2f}."
    for (name, what), cases in report.problems(records).items():
        yield f"{name} {what} ({', '.join(cases)})."


if __name__ == "__main__":
    main(prog_name="python -m bench.training")
