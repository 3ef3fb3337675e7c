"""`python -m bench.pools`: measure many live streams and ragged batches next to other engines; a table and a chart.

The exit status is 1 if an engine was wrong or failed. Each number of threads is measured in a process of its own, as by
`python -m bench`. Before anything is timed, outputs are compared with float64's and with those of each stream alone.
"""

import json
import pathlib
import sys

import click

from bench import report
from bench.cases import POOLS, Pooled, pool_sweep, select
from bench.worker import default_threads, measured

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
ROUNDS = 21
# Seconds a sample, and seconds a case after which only the rounds that quartiles need are run.
DURATION, LIMIT = 0.02, 20
STATUS = {"missing": "not installed", "failed": "failed", "wrong": "WRONG"}
# The names of quantities other than the ratio of an engine's time to rnnfast's, and those of which less is better.
MEANING = {
    "us a frame": "microseconds a frame",
    "share of FMA": "share of the FMA rate",
    "rnnfast one thread": "times one thread",
    "rnnfast rectangle": "of the cost of a rectangle",
    "streams": "streams that a core keeps up with",
    "p99": "milliseconds until 99 % of replies",
}
AT_MOST = "us a frame", "rnnfast rectangle", "p99"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("patterns", nargs=-1, metavar="[CASE]...")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    help="May be repeated (default: 1, and 2 where there are two cores).",
)
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="At most, of a case.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write the results there.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=FILE, help="Write the table there.")
@click.option("--plot", metavar="FILE", type=FILE, help="Measure 1 to 4,096 streams on one thread too, and draw them.")
def main(patterns, threads, rounds, json_file, markdown_file, plot):
    """Measure pools next to other engines: all cases, or those of these names or beginnings of names with *."""
    threads = threads or default_threads()
    if plot and 1 not in threads:
        raise click.BadParameter("the chart is of one thread", param_hint="--threads")
    try:
        cases = select(patterns, cases=POOLS)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="CASE") from None
    results = measured(
        "bench.pools",
        threads,
        cases=[case.name for case in cases],
        sweep=bool(plot),
        rounds=rounds,
        duration=DURATION,
        limit=LIMIT,
    )
    text = markdown(results)
    report.write({json_file: json.dumps(results, indent=1) + "\n", markdown_file: text})
    click.echo(text)
    if plot:
        from bench.plot import draw_pools

        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_pools(results, plot)
    if any(report.problems(run["records"]) for run in results["runs"]) or any(
        (record.get("live") or {}).get("wrong") for run in results["runs"] for record in run["records"]
    ):
        sys.exit(1)


# ------------------------------------------------------------------------------------------------ measuring
def run(request):
    """Measure all cases of one process; the machine's limits are probed before and after."""
    from bench import environment, live, probe, streams
    from bench.measure import progress, record
    from rnnfast.cli.progress import track

    threads, caches = request["threads"], environment.caches()
    cases = [case for case in POOLS if case.name in request["cases"]]
    if request["sweep"]:
        cases += pool_sweep("LSTM" if streams.unavailable(Pooled("", "Silero", 1, 128)) else "Silero")
    limits, records = probe.limits(caches, threads), []
    for case in track([case for case in cases if min(threads, 2) in case.targets], progress(threads)):
        reason = streams.unavailable(case)
        effort = [request[name] for name in ("threads", "rounds", "duration", "limit")]
        if case.group == "batcher":
            found = record(case, {}) | {"live": None if reason else live.measure(case)}
        else:
            found = record(case, {} if reason else streams.measure(case, *effort))
        records.append(found | {"frames": case.frames, "unavailable": reason})
    again = probe.limits(caches, threads)
    return {"limits": {name: max(limits[name], again[name]) for name in limits}, "records": records}


# ------------------------------------------------------------------------------------------------ Markdown
def markdown(results):
    """Return the Markdown tables of all runs."""
    lines = [
        *report.heading(results["machine"], "Pools of streams on "),
        "",
        "Float32, NumPy in and out: B streams of a layer of H inputs and units, or of Silero VAD 6, a frame of each at "
        "a time; median microseconds of a frame. rnnfast: the array form of `step`, all frames in one array; the "
        "others get each frame apart. mapping: {id: frame} to {id: result}; one by one: a run for each stream; by "
        "hand: NumPy concatenates frames and states for one run and splits the states. Ragged: B rows of 1 to 1,000 "
        "steps, a frame is a step of a row; rectangle: B rows of the mean length; packed: packed and padded by torch. "
        "`spread`: quartiles of rnnfast's time. Batcher: asyncio, those who send and the batcher's thread share one "
        "core; the streams that it keeps up with are those whose frames of 32 ms it answers in time, as many as are "
        "sent; milliseconds until a reply are with B streams in real time. Each reply is that of the stream alone, to "
        "the bit.",
        "",
        "Ratios are of times in the same round, the median over rounds. The share of the FMA rate is of rnnfast's best "
        "sample and the probe's. In bold: what misses its target.",
    ]
    for run in results["runs"]:
        records = [record for record in run["records"] if record["case"]["group"] != "sweep"]
        timed = [record for record in records if "live" not in record]
        lines += [
            "",
            report.run_heading(run),
            "",
            f"Measured limit: {run['limits']['fma'] / 1e9:.0f} GFLOP/s. At most {run['rounds']} rounds.",
            *report.others(run),
        ]
        if records:
            lines += ["", *_times(timed)] if timed else []
            lines += ["", *_targets(records, run)]
        if len(records) < len(run["records"]):
            sweep = [record for record in run["records"] if record["case"]["group"] == "sweep"]
            lines += ["", "Numbers of streams:", "", *_times(sweep)]
        notes = list(_notes(run["records"]))
        lines += ["", *notes] if notes else []
    return "\n".join([*lines, *report.removed(results)]) + "\n"


def _times(records):
    engines = list(dict.fromkeys(name for record in records for name in record["results"])) or ["rnnfast"]
    rows = []
    for record in records:
        results, frames = record["results"], record["frames"]
        ours = results.get("rnnfast", {}).get("seconds")
        times = [_time(results[name], frames) if name in results else "" for name in engines]
        if record["unavailable"]:
            times[0] = "not available"
        spread = "-".join(report.microseconds(ours[end] / frames) for end in (0, 2)) if ours else ""
        rows.append([record["case"]["name"], *times, spread])
    return report.table(["case", *(f"{name} us" if name == "rnnfast" else name for name in engines), "spread"], rows)


def _time(result, frames):
    return report.microseconds(result["seconds"][1] / frames) if result["status"] == "ok" else STATUS[result["status"]]


def _targets(records, run):
    rows, met = [], []
    for record in records:
        for what, target in targets(record, run["threads"]).items():
            found, most = reached(record, what, run), what in AT_MOST
            missed = found is not None and (found > target if most else found < target)
            if found is not None:
                met.append(not missed)
            form = "{:.0%}" if what == "share of FMA" else "{:g}"
            text = (
                _missing(record, what)
                if found is None
                else report.bold(form.format(found) if "%" in form else f"{found:.2f}", missed)
            )
            rows.append(
                [
                    record["case"]["name"],
                    MEANING.get(what, f"times {what}"),
                    text,
                    f"at {'most' if most else 'least'} {form.format(target)}",
                ]
            )
    yield from report.table(["case", "what", "reached", "target"], rows)
    yield ""
    yield f"{sum(met)} of {len(met)} measured targets are reached."


def targets(record, threads):
    """Return quantity -> target for a number of threads, whose keys are strings in results that come from a file."""
    return {int(count): found for count, found in record["case"]["targets"].items()}[min(threads, 2)]


def reached(record, what, run):
    """Return the measured value that is compared with the target, or None."""
    ours = record["results"].get("rnnfast", {})
    if "live" in record:
        return record["live"] and record["live"][what]
    if what == "us a frame":
        return ours.get("seconds") and ours["seconds"][1] / record["frames"] * 1e6
    if what == "share of FMA":
        case = Pooled(**record["case"]).layer
        return ours.get("least") and report.flops(case) / ours["least"] / run["limits"]["fma"]
    found = report.ratio(record, what)
    return 1 / found if found and what in AT_MOST else found


def _missing(record, what):
    """Return the reason why a quantity has no value."""
    if record["unavailable"]:
        return "not available"
    statuses = [record["results"].get(name, {}).get("status", "missing") for name in ("rnnfast", what)]
    return next((STATUS[status] for status in statuses if status in ("wrong", "failed")), STATUS["missing"])


def _notes(records):
    for record in records:
        if record["unavailable"]:
            yield f"{record['case']['name']} is not available: {record['unavailable']}."
        elif (record.get("live") or {}).get("wrong"):
            yield f"{record['case']['name']}: {record['live']['wrong']} replies are WRONG."
    for (name, what), cases in report.problems(records).items():
        yield f"{name} {what} ({', '.join(cases)})."


if __name__ == "__main__":
    main(prog_name="python -m bench.pools")
