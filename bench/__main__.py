"""`python -m bench`: measure cases with every engine and write JSON, a Markdown table and charts.

The exit status is 1 if an engine was wrong or failed. Nothing is measured in this process: each number of threads gets
a process of its own, in a clean environment.
"""

import json
import pathlib
import sys

import click

from bench import report
from bench.cases import select
from bench.engines import ENGINES
from bench.worker import default_threads, measured

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
# Most rounds, seconds a sample, and seconds a case after which only the rounds that quartiles need are run.
FULL = {"rounds": 21, "duration": 0.006, "limit": 2.5}
QUICK = {"rounds": 7, "duration": 0.003, "limit": 2}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A few cases, a few short samples: to see that it works.")
@click.option(
    "--case",
    "patterns",
    multiple=True,
    metavar="NAME",
    help="A case, a group (main, sweep) or the beginning of names with * (default: all). May be repeated.",
)
@click.option(
    "--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), help="May be repeated (default: all)."
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    help="May be repeated (default: 1, and 2 where there are two cores).",
)
@click.option(
    "--out",
    default="build/bench.json",
    show_default=True,
    metavar="FILE",
    type=FILE,
    help="For the JSON; the Markdown table is written next to it.",
)
@click.option("--plot", is_flag=True, help="Draw charts next to the JSON.")
@click.option(
    "--read", "stored", metavar="FILE", type=FILE, help="Measure nothing: make table and charts from this JSON."
)
def main(quick, patterns, engines, threads, out, plot, stored):
    """Measure rnnfast next to other engines."""
    if stored:
        out, results = stored, json.loads(stored.read_text())
    else:
        try:
            cases = select(patterns, quick)
        except ValueError as e:
            raise click.BadParameter(str(e), param_hint="--case") from None
        results = measured(
            "bench.measure",
            threads or default_threads(),
            cases=[case.name for case in cases],
            engines=engines or tuple(ENGINES),
            **QUICK if quick else FULL,
        )
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


if __name__ == "__main__":
    main(prog_name="python -m bench")
