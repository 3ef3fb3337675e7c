"""`python -m bench`: cases x engines -> JSON, a Markdown table and plots. Ends with 1 if an engine was wrong or failed.

Nothing is measured in this process: each number of threads gets one of its own, in a clean environment.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import click

from bench import environment, report
from bench.cases import select
from bench.engines import ENGINES

ROOT = pathlib.Path(__file__).parent.parent
FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
# Rounds, seconds a sample, seconds a case after which there are only so many rounds as quartiles need.
FULL = {"rounds": 21, "duration": 0.006, "limit": 2.5}
QUICK = {"rounds": 7, "duration": 0.003, "limit": 2}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A few cases, a few short samples: to see that it works.")
@click.option("--case", "patterns", multiple=True, metavar="NAME",
              help="A case, a group (main, sweep) or the beginning of names with * (default: all). May be repeated.")
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)),
              help="May be repeated (default: all).")
@click.option("--threads", multiple=True, type=click.IntRange(1),
              help="May be repeated (default: 1, and 2 where there are two cores).")
@click.option("--out", default="build/bench.json", show_default=True, metavar="FILE", type=FILE,
              help="For the JSON; the Markdown table is written next to it.")
@click.option("--plot", is_flag=True, help="Draw charts next to the JSON.")
@click.option("--read", "stored", metavar="FILE", type=FILE,
              help="Measure nothing: make table and charts from this JSON.")
def main(quick, patterns, engines, threads, out, plot, stored):
    """Measure rnnfast next to other engines."""
    if stored:
        out, results = stored, json.loads(stored.read_text())
    else:
        try:
            cases = select(patterns, quick)
        except ValueError as e:
            raise click.BadParameter(str(e), param_hint="--case") from None
        results = measured(cases, engines or tuple(ENGINES), threads or default_threads(), QUICK if quick else FULL)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
    text = report.markdown(results)
    out.with_suffix(".md").write_text(text)
    click.echo(text)
    if plot:
        from bench.plot import draw
        for path in draw(results, out):
            click.echo(path)
    if any(report.problems(run["records"]) for run in results["runs"]):
        sys.exit(1)


def default_threads():
    return tuple(range(1, 1 + min(2, available_cores())))


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def measured(cases, engines, threads, effort):
    """The results of a process for each number of threads."""
    results = {"runs": []}
    for count in threads:
        if count > available_cores():
            raise click.BadParameter(f"{count}: there are {available_cores()} cores", param_hint="--threads")
    for count in threads:
        environ, results["removed"] = environment.clean(os.environ, count)
        with tempfile.TemporaryDirectory() as folder:
            request, result = pathlib.Path(folder, "request.json"), pathlib.Path(folder, "result.json")
            request.write_text(json.dumps({"cases": [case.name for case in cases], "engines": engines,
                                           "threads": count, **effort}))
            done = subprocess.run([sys.executable, "-m", "bench.worker", request, result], cwd=ROOT, env=environ)
            if done.returncode:
                raise click.ClickException(f"the measuring process ended with status {done.returncode}")
            part = json.loads(result.read_text())
        results["machine"] = part["machine"]
        results["runs"].append(part["run"])
    return results


if __name__ == "__main__":
    main(prog_name="python -m bench")
