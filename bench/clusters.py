"""`python -m bench.clusters`: a corpus of ragged rows on Ray Data and Dask, next to onnxruntime in the same harness.

20,000 rows of 5 to 59 steps go through LSTM 64 and Linear 8 in two processes, as pyarrow tables of 1,000 rows. Every
engine gets the same tables and returns the same tables. Outputs are checked before anything is counted; rounds of all
engines alternate. The time is that from the first batch's beginning to the last one's end, so that the start of
processes and the loading of models, which are shown apart, do not count, but what the harness does between batches
does. On a machine that does other work, the processor's time of the batches says more.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time

import click
import numpy as np

from bench import environment

FEATURES, HIDDEN, CLASSES, SHORTEST, LONGEST = 16, 64, 8, 5, 59
ROWS_OF_TABLE = 1000
WORKERS = 2
# The largest difference of an output from onnxruntime's. Outputs are below 1; measured: 3e-7.
TOLERANCE = 2e-6
TARGET = 1.5  # times as fast as onnxruntime one by one


class OnnxRuntime:
    """onnxruntime behind the interface of rnnfast.ray.Map; `padded` is how many rows of similar length share a call."""

    def __init__(self, model, padded):
        self.model, self.padded, self.session = model, padded, None

    def __getstate__(self):
        return {**vars(self), "session": None}

    def load(self):
        """Make the session, on one thread."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    def __call__(self, table):
        from rnnfast.ray import columns

        rows = columns.sequences_of(table["x"], "x")
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        results = [None] * len(rows)
        for first in range(0, len(order), self.padded):
            chosen = order[first : first + self.padded]
            lengths = np.array([len(rows[index]) for index in chosen], np.int32)
            if len(chosen) == 1:
                x = rows[chosen[0]][:, None]
            else:
                x = np.zeros((lengths.max(), len(chosen), FEATURES), np.float32)
                for place, index in enumerate(chosen):
                    x[: len(rows[index]), place] = rows[index]
            y = self.session.run(["y"], {"x": x, "lengths": lengths} if self.padded > 1 else {"x": x})[0]
            for place, index in enumerate(chosen):
                results[index] = y[: len(rows[index]), place]
        return columns.with_results(table, "arrow", ["id"], {"y": results})


class Timed:
    """An engine in a worker, which notes when each batch began and ended; it starts with a call of a few rows."""

    def __init__(self, engine, few):
        self.engine = engine
        if isinstance(engine, OnnxRuntime):
            engine.load()
        engine(few)

    def __call__(self, table):
        import pyarrow

        begun, cpu = time.time(), time.process_time()
        result = self.engine(table)
        for name, value in (("begin", begun), ("end", time.time()), ("cpu", time.process_time() - cpu)):
            result = result.append_column(name, pyarrow.array(np.full(len(result), value)))
        return result


# ------------------------------------------------------------------------------------------ harnesses
class OnRay:
    """Ray Data with an actor a core."""

    def __init__(self, tables):
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            object_store_memory=400 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.wait_for_min_actors_s = 300  # no batch begins before both actors are there
        self.few = tables[0].slice(0, 64)
        self.dataset = ray.data.from_arrow(tables).materialize()

    def run(self, engine):
        """Return the tables of results and the seconds of the whole run."""
        import pyarrow
        import ray

        begun = time.time()
        results = self.dataset.map_batches(
            Timed,
            fn_constructor_args=(engine, self.few),
            compute=ray.data.ActorPoolStrategy(size=WORKERS),
            num_cpus=1,
            batch_size=ROWS_OF_TABLE,
            batch_format="pyarrow",
            zero_copy_batch=True,
        ).materialize()
        took = time.time() - begun
        return pyarrow.concat_tables(ray.get(results.to_arrow_refs())), took

    def close(self):
        """Stop Ray."""
        import ray

        ray.shutdown()


class OnDask:
    """Dask with a process a core; its tables are where they are used before the clock starts."""

    def __init__(self, tables):
        import dask
        import distributed

        dask.config.set({"distributed.comm.timeouts.connect": "120s"})
        self.cluster = distributed.LocalCluster(WORKERS, threads_per_worker=1, dashboard_address=None, memory_limit=0)
        self.client = distributed.Client(self.cluster, timeout="120s")
        self.few = tables[0].slice(0, 64)
        self.tables = self.client.scatter(tables, hash=False)

    def run(self, engine):
        """Return the tables of results and the seconds of the whole run."""
        import pyarrow

        begun = time.time()
        workers = list(self.client.scheduler_info()["workers"])
        loaded = {w: self.client.submit(Timed, engine, self.few, workers=[w], pure=False) for w in workers}
        for timed in loaded.values():
            timed.result()
        homes = [workers[index % len(workers)] for index in range(len(self.tables))]
        results = [
            self.client.submit(Timed.__call__, loaded[home], table, workers=[home], pure=False)
            for home, table in zip(homes, self.tables)
        ]
        tables = self.client.gather(results)
        return pyarrow.concat_tables(tables), time.time() - begun

    def close(self):
        """Stop the workers."""
        self.client.close()
        self.cluster.close()


HARNESSES = {"ray": OnRay, "dask": OnDask}


# ------------------------------------------------------------------------------------------ measuring
def corpus(count):
    """Return `count` rows [T, FEATURES] and the same as pyarrow tables."""
    import pyarrow

    from rnnfast.ray import columns

    rng = np.random.default_rng(0)
    rows = [
        rng.standard_normal((length, FEATURES), np.float32) for length in rng.integers(SHORTEST, LONGEST + 1, count)
    ]
    ids = pyarrow.table({"id": np.arange(count)})
    whole = columns.with_results(ids, "arrow", ["id"], {"x": rows})
    return rows, [whole.slice(first, ROWS_OF_TABLE) for first in range(0, count, ROWS_OF_TABLE)]


def engines(folder):
    """Return name -> engine, each of which takes and returns tables, and the model that all of them run."""
    import rnnfast
    from rnnfast import nn
    from rnnfast.ray import Map

    net = nn.Sequential(nn.LSTM(FEATURES, HIDDEN, rng=0), nn.Linear(HIDDEN, CLASSES, rng=1))
    plain, ragged = pathlib.Path(folder) / "plain.onnx", pathlib.Path(folder) / "ragged.onnx"
    net.save(plain)
    net.save(ragged, lengths=True)
    made = {
        "rnnfast.ray.Map": Map(plain, "x", "y", keep=["id"]),
        "onnxruntime, one by one": OnnxRuntime(plain.read_bytes(), 1),
    }
    for padded in (32, 128):
        made[f"onnxruntime, {padded} sorted and padded"] = OnnxRuntime(ragged.read_bytes(), padded)
    return made, rnnfast.load(plain)


def check(table, right, exact):
    """Raise unless a table has the right rows in the right order."""
    from rnnfast.ray import columns

    if table["id"].to_pylist() != list(range(len(right))):
        raise SystemExit("rows are missing or in another order")
    worst = 0.0
    for got, wanted in zip(columns.sequences_of(table["y"], "y"), right):
        if got.shape != wanted.shape:
            raise SystemExit(f"a result is {got.shape}, expected {wanted.shape}")
        worst = max(worst, float(np.max(np.abs(got - wanted))))
    if worst > (0 if exact else TOLERANCE):
        raise SystemExit(f"results are {worst:.1e} apart")


def measure(harness, count, rounds):
    """Return engine -> ([seconds of the work of each round], [those of the processor], [seconds of the rest])."""
    rows, tables = corpus(count)
    with tempfile.TemporaryDirectory() as folder:
        made, alone = engines(folder)
        right = [alone(x=row[:, None]).y[:, 0] for row in rows]
        running = HARNESSES[harness](tables)
        try:
            times = {name: ([], [], []) for name in made}
            running.run(next(iter(made.values())))  # the harness's own first run is nobody's
            for _ in range(rounds):
                for name, engine in made.items():
                    table, took = running.run(engine)
                    check(table, right, name.startswith("rnnfast"))
                    work = max(table["end"].to_pylist()) - min(table["begin"].to_pylist())
                    busy = sum(table["cpu"].to_numpy()[first] for first in range(0, count, ROWS_OF_TABLE))
                    for seconds, value in zip(times[name], (work, busy, took - work)):
                        seconds.append(value)
        finally:
            running.close()
    return times


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("harnesses", nargs=-1, type=click.Choice(list(HARNESSES)))
@click.option("--rows", default=20_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(harnesses, rows, rounds):
    """Measure corpora on Ray Data and Dask next to onnxruntime."""
    machine = environment.machine()
    click.echo(", ".join(f"{key}: {value}" for key, value in machine.items()))
    click.echo(f"{rows:,} rows, {WORKERS} processes of one thread; seconds, the least of {rounds} rounds\n")
    click.echo("| harness | engine | work | times as fast | processor | times as fast | start and end |")
    click.echo("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    failed = False
    for harness in harnesses or HARNESSES:
        times = measure(harness, rows, rounds)
        work, cpu = ({name: min(seconds[kind]) for name, seconds in times.items()} for kind in (0, 1))
        ours = "rnnfast.ray.Map"
        for name in times:
            click.echo(
                f"| {harness} | {name} | {work[name]:.3f} | {work[name] / work[ours]:.2f} | {cpu[name]:.3f} | "
                f"{cpu[name] / cpu[ours]:.2f} | {statistics.median(times[name][2]):.1f} |"
            )
        failed |= work["onnxruntime, one by one"] < TARGET * work[ours]
    sys.exit(failed)


if __name__ == "__main__":
    main()
