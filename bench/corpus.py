"""`python -m bench.corpus`: `model.map` over a corpus of ragged sequences next to onnxruntime, on one thread each.

The model is an LSTM of 64 units and a Linear of 8. onnxruntime runs the sequences one by one, and sorted by length and
padded by hand in batches of several sizes. All results are checked before anything is timed. What is measured is the
processor's time of the process, reading and batching included, of engines that take turns.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import click
import numpy as np

from bench import environment

UNITS, OUTPUTS = 64, 8
SHORTEST, LONGEST = 5, 59
PADDED = (32, 64, 128)  # sequences in a batch by hand
# The largest difference between results of the two engines. Both round sums of 128 products to float32: 2e-7 here.
TOLERANCE = 1e-5
# How many times as fast as onnxruntime `model.map` has to be: one by one, and padded by hand at its best.
ONE_BY_ONE, BY_HAND = 2.0, 1.3


def corpus(rows, inputs):
    """Return random sequences [frames, inputs] of random lengths."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, inputs), np.float32) for n in rng.integers(SHORTEST, LONGEST + 1, rows)]


def by_hand(run, xs, batch):
    """Return the results of sequences that are sorted by length and padded in batches; `run` takes [batch, time, I]."""
    results = [None] * len(xs)
    order = sorted(range(len(xs)), key=lambda i: len(xs[i]))
    for first in range(0, len(xs), batch):
        indices = order[first : first + batch]
        x = np.zeros((len(indices), len(xs[indices[-1]]), xs[0].shape[1]), np.float32)
        for row, i in zip(x, indices):
            row[: len(xs[i])] = xs[i]
        for y, i in zip(run(x), indices):
            results[i] = y[: len(xs[i])]
    return results


def engines(file, xs):
    """Return {name: function that returns the results of all sequences}."""
    import onnxruntime

    import rnnfast

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    model, layers = rnnfast.load(file, threads=1), rnnfast.nn.load(file)

    def run(x):
        return session.run(None, {"x": x})[0]

    return {
        "onnxruntime, one by one": lambda: [run(x[None])[0] for x in xs],
        **{f"onnxruntime, padded by {n}": lambda n=n: by_hand(run, xs, n) for n in PADDED},
        "rnnfast, one by one": lambda: [model.run({"x": x[None]})[0][0] for x in xs],
        "rnnfast, model.map": lambda: list(model.map(xs)),
        "rnnfast, layers.map": lambda: list(layers.map(xs)),
    }


def check(found):
    """Raise SystemExit unless all engines have the same results, and model.map the bits of calls one by one.

    Args:
        found: {name of the engine: its results}.
    """
    expected = found["onnxruntime, one by one"]
    for name, results in found.items():
        if [y.shape for y in results] != [y.shape for y in expected]:
            raise SystemExit(f"{name}: results have other shapes")
        worst = max(float(np.abs(y - right).max()) for y, right in zip(results, expected))
        if not worst <= TOLERANCE:  # NaN too
            raise SystemExit(f"{name}: results differ by {worst:.1e}")
    pairs = zip(found["rnnfast, model.map"], found["rnnfast, one by one"], strict=True)
    if any(y.tobytes() != right.tobytes() for y, right in pairs):
        raise SystemExit("rnnfast, model.map: results are not those of calls one by one, bit for bit")


def measure(calls, rounds):
    """Return {name: seconds of the processor in each round}; which engine is first changes from round to round."""
    seconds, names = {name: [] for name in calls}, list(calls)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds, name):
    """Return the median over the rounds of an engine's time divided by that of model.map in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds["rnnfast, model.map"]))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(1), help="Sequences.")
@click.option("--inputs", default=UNITS, show_default=True, type=click.IntRange(1), help="Values of a frame.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Rounds, whose median counts.")
def main(rows, inputs, rounds):
    """Measure a corpus next to onnxruntime; exit with 1 if a target is missed."""
    from rnnfast import nn

    machine = environment.machine()
    click.echo(", ".join(f"{key}: {value}" for key, value in machine.items()))
    xs = corpus(rows, inputs)
    steps = sum(map(len, xs))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.onnx"
        nn.Sequential(nn.LSTM(inputs, UNITS, batch_first=True, rng=0), nn.Linear(UNITS, OUTPUTS, rng=1)).save(file)
        calls = engines(file, xs)
        check({name: call() for name, call in calls.items()})
        seconds = measure(calls, rounds)
    click.echo(f"{rows} sequences of {SHORTEST} to {LONGEST} frames [{inputs}], {steps} frames; median of {rounds}")
    for name, taken in seconds.items():
        microseconds = statistics.median(taken) / steps * 1e6
        click.echo(f"{name:28} {microseconds:6.3f} us a frame  {ratio(seconds, name):5.2f} times model.map's")
    alone = ratio(seconds, "onnxruntime, one by one")
    padded = min(ratio(seconds, f"onnxruntime, padded by {n}") for n in PADDED)
    click.echo(f"model.map is {alone:.2f} times as fast as one by one (target {ONE_BY_ONE}), ", nl=False)
    click.echo(f"{padded:.2f} times as fast as padded by hand (target {BY_HAND})")
    sys.exit(alone < ONE_BY_ONE or padded < BY_HAND)


if __name__ == "__main__":
    main(prog_name="python -m bench.corpus")
