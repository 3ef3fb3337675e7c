"""`rnnfast bench`: measures the time of a model's call, next to onnxruntime's if that is asked for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np

import rnnfast
from rnnfast.cli.check import INTEGER_TOLERANCES, TOLERANCE, allowed, arrays, difference, draw, plain
from rnnfast.cli.lengths import CALLS, measured, parsed
from rnnfast.cli.progress import track
from rnnfast.cli.tables import Screen, print_json, table
from rnnfast.cli.timing import WARMUP, interleave, pinned, quartiles
from rnnfast.cli.values import Sizes, dim_option, fill, input_option, read_inputs, seed_option, weights_options
from rnnfast.errors import InputError, UnsupportedError, raise_if_from_handler
from rnnfast.model import Model, load
from rnnfast.native.threads import limit
from rnnfast.native.weight_types import WEIGHT_TYPES
from rnnfast.onnx.weights import types_within

DEFAULT_SIZE = 1
ROUNDS = 31
SAMPLE_SECONDS = 0.01
LIMIT = 20  # seconds, after which no more rounds begin than `interleave` insists on
# Names that exporters give to the open dimensions that each option sets.
AXES = {
    "--batch": re.compile(r"batch|^(n|b|bs)$", re.I),
    "--steps": re.compile(r"time|step|seq|frame|length|samples|^(t|l)$", re.I),
}


def measuring_options(command: Any) -> Any:
    """Add the options that `bench` and `profile` have in common."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Threads of a call; the process is pinned to as many cores.",
        ),
        seed_option,
        click.option(
            "--steps",
            type=click.IntRange(1),
            metavar="T",
            help="Size of the open dimensions named like time, steps or sequence.",
        ),
        click.option(
            "--batch", type=click.IntRange(1), metavar="N", help="Size of the open dimensions named like batch."
        ),
        weights_options,
        dim_option(DEFAULT_SIZE),
        input_option,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("file")
@measuring_options
@click.option(
    "--against",
    "peers",
    type=click.Choice(["onnxruntime"]),
    multiple=True,
    help="Measure this engine in turn with rnnfast.",
)
@click.option(
    "--lengths",
    metavar="[NAME=]A-B",
    help="Measure 1,000 calls of random lengths instead: sizes from A to B of the dimension NAME, or of those named "
    "like time, steps or sequence.",
)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="Samples of each engine.")
def bench(
    file: str,
    given: Sequence[str],
    dims: Sequence[str],
    batch: int | None,
    steps: int | None,
    seed: int,
    as_json: bool,
    threads: int,
    weights: Any,
    activations: Any,
    peers: Sequence[str],
    lengths: str | None,
    rounds: int,
) -> None:
    """Measure the time of a call of FILE.

    Outputs are first compared with those of the float64 reference; an engine whose outputs are wrong is not measured.
    Inputs that are not given with -i are random, as for `check`. With --lengths a new model gets calls that nobody has
    prepared, one after the other: the first of a length makes its plan.

    With --weights the error that is shown is the whole one, to the reference of the weights as FILE has them; rnnfast
    is measured if its outputs are those of the rounded weights.
    """
    make = functools.partial(load, file, threads=threads, weights=weights, activations=activations)
    if lengths is not None:
        _bench_lengths(file, make, given, dims, batch, steps, lengths, seed, as_json, threads, peers)
        return
    with pinned(threads):
        model = make()
        feed = inputs_of(model, given, dims, batch, steps, seed)
        calls: dict[str, Callable[[], Mapping[str, Any]]] = {"rnnfast": functools.partial(model, feed)}
        if peers:
            calls["onnxruntime"] = _onnxruntime(file, model, feed, threads)
        references = References(file, model)
        results: dict[str, dict[str, Any]] = {}
        good = {}
        for name, call in calls.items():
            error, right = references.judged(name, call(), feed)
            results[name] = {"error": error}
            if right:
                good[name] = call
        progress = functools.partial(track, description=file)
        timed = (
            interleave(good, (), rounds, SAMPLE_SECONDS, LIMIT, WARMUP if threads > 1 else 0, progress) if good else {}
        )
    for name, (seconds, count) in timed.items():
        results[name] |= {"seconds": quartiles(seconds), "calls": count, "rounds": len(seconds)}
        if "rnnfast" in timed:
            results[name]["relative"] = quartiles(seconds / timed["rnnfast"].seconds)
    facts = {
        "file": file,
        "threads": min(threads, limit()),
        "weights": weights,
        "isa": rnnfast.get_isa(),
        "flops": model.summary(feed).flops,
        "inputs": {name: list(np.shape(value)) for name, value in feed.items()},
        "results": results,
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    if len(timed) < len(calls):
        click.get_current_context().exit(1)


class References:
    """The float64 references of a model: of its file's weights, and of those that it computes with."""

    def __init__(self, file: str, model: Model) -> None:
        self.model, self.plain = model, plain(file, model)
        bits = {WEIGHT_TYPES[name].activation_bits for name in types_within(model.folded)} - {0}
        self.tolerance = max([TOLERANCE, *(INTEGER_TOLERANCES[count] for count in bits)])
        self.last: tuple[Any, list[np.ndarray], list[np.ndarray]] | None = None

    def judged(self, engine: str, outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> tuple[float, bool]:
        """The error of an engine's outputs for a feed, and whether they are right."""
        if self.last is None or self.last[0] is not feed:
            expected = _flat(self.plain.reference(feed))
            self.last = feed, expected, expected if self.plain is self.model else _flat(self.model.reference(feed))
        _, expected, rounded = self.last
        error = difference(_flat(outputs), expected)
        if engine == "rnnfast":
            return error, difference(_flat(outputs), rounded) <= allowed(rounded, self.tolerance)
        return error, error <= allowed(expected, TOLERANCE)


def _bench_lengths(
    file: str,
    make: Callable[[], Model],
    given: Sequence[str],
    dims: Sequence[str],
    batch: int | None,
    steps: int | None,
    text: str,
    seed: int,
    as_json: bool,
    threads: int,
    peers: Sequence[str],
) -> None:
    """Measure calls of random lengths and print the results; an engine that is wrong at some length is not measured."""
    name, first, last = parsed(text)
    if name is None and steps is not None:
        raise InputError(f"--steps {steps}: --lengths {text} sets the same dimensions")
    with pinned(threads):
        model = make()
        feeds = {}
        for n in range(first, last + 1):
            sizes = dims if name is None else [*dims, f"{name}={n}"]
            feeds[n] = inputs_of(model, given, sizes, batch, n if name is None else steps, seed)
        makers: dict[str, Callable[[], Callable[[Any], Any]]] = {"rnnfast": make}
        if peers:
            makers["onnxruntime"] = lambda: _session(file, model, threads)
        results: dict[str, dict[str, Any]] = {engine: {"error": 0.0} for engine in makers}
        good = dict(makers)
        references = References(file, model)
        for n in sorted({first, (first + last) // 2, last}):
            for engine, maker in makers.items():
                error, right = references.judged(engine, maker()(feeds[n]), feeds[n])
                results[engine]["error"] = max(error, results[engine]["error"])
                if not right:
                    good.pop(engine, None)
        if good:
            for engine, seconds in measured(good, feeds, seed, functools.partial(track, description=file)).items():
                results[engine] |= seconds
    facts = {"file": file, "threads": min(threads, limit()), "isa": rnnfast.get_isa(), "lengths": [first, last]}
    facts |= {"calls": CALLS, "results": results}
    if as_json:
        print_json(facts)
    else:
        screen = Screen()
        screen.write_line(
            f"{file}: {CALLS:,} calls of {first} to {last}, microseconds; {facts['isa']}, threads: {facts['threads']}"
        )
        names = ("mean", "median", "99th percentile", "mean again", "times rnnfast's", "to reference")
        rows = (_lengths_row(engine, result, results) for engine, result in results.items())
        screen.print(table(None, {"": "left"} | dict.fromkeys(names, "right"), rows))
    if len(good) < len(makers):
        click.get_current_context().exit(1)


def _lengths_row(engine: str, result: dict[str, Any], results: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The cells of an engine in the table of calls of random lengths."""
    error = f"{result['error']:.2g}"
    if "mean" not in result:
        return engine, "WRONG", "", "", "", "", error
    times = (f"{result[key] * 1e6:.4g}" for key in ("mean", "median", "percentile_99", "mean_again"))
    relative = f"{result['mean'] / results['rnnfast']['mean']:.2f}" if "mean" in results["rnnfast"] else ""
    return engine, *times, relative, error


def _flat(outputs: Mapping[str, Any]) -> list[np.ndarray]:
    """The arrays of all outputs, those of sequences one after another."""
    return [array for value in outputs.values() for array in arrays(value)]


def inputs_of(
    model: Model, given: Sequence[str], dims: Sequence[str], batch: int | None, steps: int | None, seed: int
) -> dict[str, Any]:
    """The feed of a call: the inputs that are given, and random ones whose open dimensions have the given sizes."""
    drawn = functools.partial(draw, np.random.default_rng(seed))
    return fill(read_inputs(given, model), model, Sizes(_all_dims(model, dims, batch, steps), DEFAULT_SIZE), drawn)


def _all_dims(model: Model, dims: Sequence[str], batch: int | None, steps: int | None) -> list[str]:
    """The texts of --dim, preceded by NAME=N for each dimension that --batch or --steps sets."""
    names = {n for v in model.inputs for n in v.type.shape or () if isinstance(n, str)}
    added: list[str] = []
    for option, size in (("--batch", batch), ("--steps", steps)):
        if size is not None:
            meant = [n for n in sorted(names) if AXES[option].search(n)]
            if not meant:
                raise InputError(f"{option}: no open dimension is named like one; there are {sorted(names)}, and --dim")
            added += [f"{name}={size}" for name in meant]
    return [*added, *dims]  # of several sizes for a name the last one counts, so --dim overrides


def _onnxruntime(file: str, model: Model, feed: Mapping[str, Any], threads: int) -> Callable[[], dict[str, Any]]:
    """A callable that runs the model on onnxruntime and returns the outputs by name."""
    call = _session(file, model, threads)
    call(feed)
    return functools.partial(call, feed)


def _session(file: str, model: Model, threads: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A callable that runs the model on a new session of onnxruntime and returns the outputs by name."""
    try:
        import onnxruntime
    except ImportError:
        raise UnsupportedError("--against onnxruntime: it is not installed") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    types = {v.name: v.type.dtype for v in model.inputs}
    names = [v.name for v in model.outputs]

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: np.asarray(value, types[name]) for name, value in feed.items()}
        return dict(zip(names, _refused_by_name(session.run, names, given)))

    session = _refused_by_name(onnxruntime.InferenceSession, file, options, providers=["CPUExecutionProvider"])
    return run


def _refused_by_name(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Call a function of onnxruntime, whose errors become an UnsupportedError."""
    try:
        return function(*args, **keywords)
    except Exception as e:  # onnxruntime raises a dozen classes that have no base of their own
        raise_if_from_handler(e)
        raise UnsupportedError(f"--against onnxruntime: refused: {e}") from e


def _print(facts: dict[str, Any]) -> None:
    """Print the facts as a line and a table."""
    screen = Screen()
    shapes = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in facts["inputs"].items())
    screen.write_line(
        f"{facts['file']}: {shapes}; {facts['flops']:,} flops; {facts['isa']}, threads: {facts['threads']}"
    )
    columns = {"": "left"} | dict.fromkeys(
        ("microseconds", "quartiles", "times rnnfast's", "GFLOP/s", "calls", "to reference"), "right"
    )
    rows = (_row(name, result, facts["flops"]) for name, result in facts["results"].items())
    screen.print(table(None, columns, rows))


def _row(name: str, result: dict[str, Any], flops: int) -> tuple[str, ...]:
    """The cells of an engine in the table."""
    error = f"{result['error']:.2g}"
    if "seconds" not in result:
        return name, "WRONG", "", "", "", "", error
    lower, median, upper = (f"{s * 1e6:.4g}" for s in result["seconds"])
    relative = f"{result['relative'][1]:.2f}" if "relative" in result else ""
    return (
        name,
        median,
        f"{lower} to {upper}",
        relative,
        f"{flops / result['seconds'][1] / 1e9:.2f}",
        f"{result['rounds']} x {result['calls']}",
        error,
    )
