"""`python -m bench.precision`: measure weights of 8 and 16 bits next to other engines; errors beside times.

The exit status is 1 if rnnfast was wrong or failed. Everything is on one thread. Each group of cases is measured in a
process of its own, as by `python -m bench`, and written to the JSON at once, so that the parts can be measured one by
one and an interrupted run goes on with `--missing`. rnnfast's results are compared with those of its rounded weights in
float64 before they are timed; errors are against the weights in float32.
"""

import dataclasses
import json
import pathlib
import sys

import click
import numpy as np

from bench import precision_models, precision_report, problem, report, trained
from bench.cases import PRECISION, select
from bench.engines import ENGINES as LAYER_ENGINES
from bench.measure import compare, progress
from bench.precision_engines import ENGINES, OWN
from bench.worker import measured

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
ROUNDS = 21
# Seconds a sample, and seconds a case after which only the rounds that quartiles need are run.
DURATION, LIMIT = 0.006, 4
NUMPY = LAYER_ENGINES["numpy"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("patterns", nargs=-1, metavar="[CASE]...")
@click.option(
    "--isa", default="", metavar="NAME", help="Measure rnnfast alone, with this instruction set (default: the best)."
)
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="At most, of a case.")
@click.option("--missing", is_flag=True, help="Measure only what the JSON does not have.")
@click.option(
    "--json",
    "json_file",
    default="build/precision.json",
    show_default=True,
    metavar="FILE",
    type=FILE,
    help="Add the results to those that are there.",
)
@click.option("--markdown", "markdown_file", metavar="FILE", type=FILE, help="Write the tables there.")
@click.option("--plot", metavar="FILE", type=FILE, help="Draw errors against times there.")
@click.option("--read", "stored", is_flag=True, help="Measure nothing: tables and chart of what the JSON has.")
def main(patterns, isa, rounds, missing, json_file, markdown_file, plot, stored):
    """Measure low precision next to other engines: all cases, groups, or names or beginnings of names with *.

    The groups are lstm, steps, batches, gru and models; each takes about a minute.
    """
    results = json.loads(json_file.read_text()) if json_file.exists() else {"runs": []}
    try:
        cases = [] if stored else select(patterns, cases=PRECISION)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="CASE") from None
    if missing:
        kept = {(run["isa"], record["case"]["name"]) for run in results["runs"] for record in run["records"]}
        cases = [case for case in cases if (isa, case.name) not in kept]
    for group in dict.fromkeys(case.group for case in cases):
        part = measured(
            "bench.precision",
            (1,),
            cases=[case.name for case in cases if case.group == group],
            isa=isa,
            rounds=rounds,
            duration=DURATION,
            limit=LIMIT,
        )
        results = merged(results, part)
        report.write({json_file: json.dumps(results, indent=1) + "\n"})
    text = precision_report.markdown(results)
    report.write({markdown_file: text})
    click.echo(text)
    if plot:
        from bench.plot import draw_precision

        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_precision(results, plot)
    if precision_report.problems(results, [engine.name for engine in OWN]):
        sys.exit(1)


def merged(results, part):
    """Return results with those of a part, which replace older ones of the same cases and instruction set.

    Raises click.ClickException if they are of another processor.
    """
    machine = results.get("machine", part["machine"])
    if machine["cpu"] != part["machine"]["cpu"]:
        raise click.ClickException(f"the JSON has results of another processor: {machine['cpu']}")
    new = {(run["isa"], record["case"]["name"]) for run in part["runs"] for record in run["records"]}
    runs = []
    for run in results["runs"]:
        records = [record for record in run["records"] if (run["isa"], record["case"]["name"]) not in new]
        runs += [run | {"records": records}] if records else []
    # The instruction set of the machine is its best: that of a run is the run's.
    best = part["machine"]["isas"][0]
    return part | {"machine": part["machine"] | {"isa": best}, "runs": runs + part["runs"]}


# ------------------------------------------------------------------------------------------------ measuring
def run(request):
    """Measure all cases of one process."""
    import rnnfast
    from rnnfast.cli.progress import track

    if request["isa"]:
        rnnfast.set_isa(request["isa"])
    engines = OWN if request["isa"] else list(ENGINES.values())
    effort = [request[name] for name in ("threads", "rounds", "duration", "limit")]
    cases = [case for case in PRECISION if case.name in request["cases"]]
    records = [measure(case, engines, *effort) for case in track(cases, progress(request["threads"]))]
    return {"isa": request["isa"], "records": records}


def measure(case, engines, *effort):
    """Return the record of a case: the results of `compare`, and on what the errors were measured."""
    if case.layer is not None:
        return _measure_layer(case, engines, *effort)
    return _measure_model(case, [engine for engine in engines if hasattr(engine, "model")], *effort)


def _record(case, results, weights, unavailable=None):
    return {"case": dataclasses.asdict(case), "results": results, "weights": weights, "unavailable": unavailable}


def _measure_layer(case, engines, *effort):
    layer, threads = case.layer, effort[0]
    state_dict, inputs = problem.weights(layer), problem.inputs(layer)
    right = problem.expected(layer, state_dict, inputs, NUMPY)
    other = trained_problem(case)

    def check(engine):
        call = engine.prepare(layer, state_dict, threads)
        outputs = [np.array(value) for value in problem.canonical(call(*inputs))]
        if hasattr(engine, "computed"):
            engine.computed(layer, state_dict, inputs, outputs)
        error = problem.difference(outputs, right)
        if other is not None and error <= engine.tolerance:
            like, weights, values, expected = other
            error = problem.difference(engine.prepare(like, weights, threads)(*values), expected)
        return call, error

    results = compare(engines, check, inputs, *effort)
    return _record(case, results, "random" if other is None else case.trained)


def _measure_model(case, engines, *effort):
    reason = precision_models.unavailable(case.name)
    if reason:
        return _record(case, {}, "", reason)
    task = precision_models.MODELS[case.name][1]()
    right = task.expected()

    def check(engine):
        call, outputs = task.prepared(engine, effort[0])
        error = precision_models.difference(outputs, right)
        if getattr(engine, "weights", None) and "activations" not in engine.weights:
            precision_models.check_computed(task, engine, outputs, error)
        return call, error

    return _record(case, compare(engines, check, (), *effort), "the model's")


def trained_problem(case):
    """Return the case of a trained layer, its weights with torch's names, its inputs and its right outputs.

    None if the case has no such layer, or its file is not here. Rows of the batch read what the model's layer reads,
    from different steps on; cases with states begin with those that the layer has after all of it.
    """
    found = trained.weights_of(case.trained) if case.trained else None
    if found is None:
        return None
    weights, rows = found
    layer = dataclasses.replace(case.layer, I=rows.shape[1])
    steps = (np.arange(layer.T)[:, None] + 13 * np.arange(layer.B)) % len(rows)
    values = (np.ascontiguousarray(rows[steps]),)
    if layer.state:
        before = dataclasses.replace(layer, T=len(rows), B=1)
        zeros = np.zeros((1, 1, layer.H), np.float32)
        states = (zeros,) * (1 + (layer.kind == "LSTM"))
        _, *last = problem.canonical(NUMPY.prepare(before, weights, 1)(rows[:, None], *states))
        values += tuple(last)
    return layer, weights, values, problem.expected(layer, weights, values, NUMPY)


if __name__ == "__main__":
    main(prog_name="python -m bench.precision")
