"""The harness: it refuses wrong engines, its tables are whole, and results become tables and charts."""

import collections
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from bench import environment, gradients, live, measure, mnist, pools, probe, problem, report, streams, training
from bench.cases import CASES, KINDS, MAIN, POOLS, QUICK, STEPS, SWEEP, TRAINING, Case, Fit, Pooled, pool_sweep, select
from bench.engines import ENGINES, Numpy
from rnnfast.cli import main
from rnnfast.cli.timing import interleave, pinned
from rnnfast.model import load
from rnnfast.native.threads import limit
from tests.paths import ROOT

MODELS = ROOT / "models"
EFFORT = {"rounds": 2, "duration": 1e-5, "limit": 1}
SMALL = Case("small", "LSTM", 4, 3, 5, 6)


def reduced(case):
    """The same work with odd small sizes."""
    return dataclasses.replace(case, T=min(case.T, 5), B=min(case.B, 3), I=7, H=9)


# ------------------------------------------------------------------------------------------------ engines
# JAX and OpenVINO keep threads, which a process must not have that forks later: they run in one of their own.
APART = ("openvino", "jax")


@pytest.mark.parametrize(
    "engine", [engine for engine in ENGINES.values() if engine.name not in APART], ids=lambda engine: engine.name
)
def test_engines_are_right(engine):
    if not engine.installed():
        pytest.skip(f"{engine.name} is not installed")
    for case in map(reduced, select((), quick=True)):
        result = measure.measure(case, [engine], 1, **EFFORT)[engine.name]
        assert result["status"] == "ok" and 0 < result["error"] < measure.TOLERANCE, (case, result)
        assert result["seconds"][1] > 0 and result["rounds"] == 2


class Altered(Numpy):
    """The NumPy engine with something done to its outputs."""

    name = "altered"

    def __init__(self, alter):
        self.alter, self.calls = alter, 0

    def prepare(self, case, state_dict, threads):
        right = super().prepare(case, state_dict, threads)

        def call(*inputs):
            self.calls += 1
            return self.alter(right(*inputs)[0])

        return call


def nan(y):
    y[-1, -1, -1] = np.nan
    return y


def one_value(y):
    y[1, 1, 1] += 1e-3
    return y


@pytest.mark.parametrize("alter", [nan, one_value, lambda y: y[:-1], lambda y: y[::-1], lambda y: (y, y)])
def test_a_wrong_engine_is_not_timed(alter):
    engine = Altered(alter)
    results = measure.measure(SMALL, [engine, ENGINES["numpy"]], 1, **EFFORT)
    assert results["altered"]["status"] == "wrong" and "seconds" not in results["altered"]
    assert engine.calls == 1 and results["numpy"]["status"] == "ok"
    json.dumps(results, allow_nan=False)


def test_weights_of_bfloat16_are_wrong():
    class Bfloat16(Numpy):
        def prepare(self, case, state_dict, threads):
            if state_dict["weight_ih_l0"].dtype == np.float32:  # float64 is the oracle's
                state_dict = {
                    n: (a.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32) for n, a in state_dict.items()
                }
            return super().prepare(case, state_dict, threads)

    assert measure.measure(SMALL, [Bfloat16()], 1, **EFFORT)["numpy"]["status"] == "wrong"


def test_engines_that_fail_or_are_missing_are_reported():
    def fail(y):
        raise RuntimeError("no such kernel")

    missing = Altered(fail)
    missing.name, missing.module = "missing", "no_such_package"
    results = measure.measure(SMALL, [Altered(fail), missing], 1, **EFFORT)
    assert results["missing"] == {"status": "missing"}
    assert results["altered"] == {"status": "failed", "message": "RuntimeError: no such kernel"}


def test_a_wrong_oracle_is_noticed():
    with pytest.raises(AssertionError, match="reference"):
        problem.expected(SMALL, problem.weights(SMALL), problem.inputs(SMALL), Altered(nan))


def test_samples_are_taken_in_turn():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = interleave(calls, (), rounds=3, duration=0)
    assert all(len(s.seconds) == 3 and s.calls == 1 for s in samples.values())
    assert [name for name, _ in itertools.groupby(order)][-9:] == list("abcbcacab")


def test_calls_before_a_sample_are_not_timed():
    ends = []

    def call():
        time.sleep(0.001)
        ends.append(time.perf_counter())

    samples = interleave({"a": call}, (), rounds=3, duration=0.002, warmup=0.02)["a"]
    timed = samples.calls * len(samples.seconds)
    assert len(ends) > 2 * timed and samples.seconds.sum() * samples.calls < ends[-1] - ends[0] - 0.05


def test_pinned_is_undone():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


# ------------------------------------------------------------------------------------------------ tables
def test_cases():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) and set(QUICK) <= set(names)
    assert select(["sweep"]) == SWEEP and select(["main"]) == MAIN and select([names[3]]) == [CASES[3]]
    assert {case.kind for case in select(["GRU*"])} == {"GRU"}
    with pytest.raises(ValueError, match="LSTM-T2"):
        select(["LSTM-T2"])


def test_sweep_meets_every_combination():
    pairs = collections.Counter((case.kind, case.B) for case in SWEEP)
    assert len(pairs) == len(KINDS) * 7
    assert {(case.T, case.B) for case in SWEEP if case.H < 300} == set(itertools.product(STEPS, {c.B for c in SWEEP}))


def test_environment():
    given = {
        "PATH": "/bin",
        "RNNFAST_ISA": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENBLAS_L2_SIZE": "1",
        "OMP_NUM_THREADS": "8",
        "KMP_BLOCKTIME": "0",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "HOME": "/root",
    }
    cleaned, removed = environment.clean(given, 2)
    assert removed.keys() == given.keys() - {"PATH", "RNNFAST_ISA", "HOME"}
    assert cleaned["OMP_NUM_THREADS"] == "2" and cleaned["RNNFAST_ISA"] == "avx2"
    assert "OPENBLAS_CORETYPE" not in cleaned


def test_bound():
    caches = {"L1": 2**15, "L2": 2**20, "L3": 2**25}
    limits = {"fma": 100e9, "L1": 400e9, "L2": 100e9, "L3": 50e9, "DRAM": 10e9}
    assert [report.level(2**n, caches, 1) for n in (15, 16, 20, 21, 25, 26)] == ["L1", "L2", "L2", "L3", "L3", "DRAM"]
    assert report.level(2**21, caches, 2) == "L2"
    tall = Case("tall", "LSTM", 10, 64, 256, 256)  # arithmetic counts
    assert report.bound(tall, limits, caches, 1) == pytest.approx(report.flops(tall) / 100e9)
    assert report.flops(tall) == 2 * 10 * 64 * 1024 * 512
    thin = Case("thin", "LSTM", 10, 1, 1, 256)  # 1 MiB of recurrent weights a step, from L2
    assert report.bound(thin, limits, caches, 1) == pytest.approx(10 * 2**20 / 100e9, rel=0.01)
    both = dataclasses.replace(tall, directions=2, layers=2)
    assert both.cells == [256, 256, 512, 512]


# ------------------------------------------------------------------------------------------------ results
def stored():
    """Results as they are read from a file: rnnfast takes 2 us a step, each other engine 1 us more than the last."""
    records = []
    for case in [*MAIN, *SWEEP[:3]]:
        results = {}
        for position, name in enumerate(ENGINES):
            seconds = (2 + position) * case.T * 1e-6
            results[name] = {
                "status": "ok",
                "error": 1e-7,
                "seconds": [seconds] * 3,
                "least": seconds,
                "calls": 9,
                "relative": [seconds / case.T / 2e-6] * 3,
                "rounds": 5,
            }
        records.append(measure.record(case, results))
    records[0]["results"]["numpy"] = {"status": "wrong", "error": 0.5}
    records[1]["results"]["torch"] = {"status": "failed", "message": "no such kernel"}
    records[2]["results"]["jax"] = {"status": "missing"}
    machine = {
        "cpu": "some processor",
        "cores": 2,
        "caches": {"L1": 2**15, "L2": 2**20, "L3": 2**25},
        "system": "here",
        "isa": "avx2",
        "isas": ["avx2"],
        "python": "3.12",
        "compiler": "cc 1",
        "versions": {"rnnfast": "0.1"},
    }
    limits = {"fma": 100e9, "L1": 400e9, "L2": 100e9, "L3": 50e9, "DRAM": 10e9}
    run = {"threads": 1, "limits": limits, "rounds": 5, "others": 0.5}
    return json.loads(
        json.dumps(
            {"machine": machine, "removed": {"OPENBLAS_CORETYPE": "Haswell"}, "runs": [run | {"records": records}]}
        )
    )


def test_table():
    results = stored()
    record = results["runs"][0]["records"][0]
    assert report.best_peer(record) == "onnxruntime" and report.ratio(record) == 2.5  # numpy's is wrong
    text = report.markdown(results)
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| "))
    }
    header, first = rows.pop("case"), rows["LSTM-T1-B1-H64-session"]
    assert first[header.index("rnnfast us")] == "2.00" and first[header.index("numpy")] == "WRONG"
    assert first[header.index("ratio")] == "**2.50**" and first[header.index("target")] == "3.5"
    assert rows["LSTM-T1-B1-H128-session"][header.index("torch")] == "failed"
    assert rows["LSTM-T1-B1-H256-session"][header.index("jax")] == "-"
    assert rows["LSTM-T100-B1-H128"][header.index("GFLOP/s")] == f"{2 * 512 * 256 / 2e-6 / 1e9:.1f}"
    for words in (
        "some processor",
        "OPENBLAS_CORETYPE",
        "took 50% of a core",
        "numpy is wrong: off by 0.5",
        "torch failed: no such kernel",
    ):
        assert words in text
    assert math.isclose(report.geometric_mean([2, 8]), 4)


def test_charts(tmp_path):
    pytest.importorskip("matplotlib")
    from bench.plot import draw

    paths = draw(stored(), tmp_path / "here.json")
    assert [path.name for path in paths] == ["here-steps.svg", "here-roofline.svg", "here-headline.svg"]
    steps, roofline, headline = (path.read_text() for path in paths)
    assert all(f">{name}</text>" in steps for name in ENGINES if name != "blas")
    assert "L2 100 GB/s" in roofline and "one step, 128 units" in headline


def test_command_measures(tmp_path):
    out = tmp_path / "results.json"
    names = ("rnnfast", "numpy", *APART)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench",
            "--quick",
            "--case",
            "LSTM-T1-B1-H64-session",
            "--threads",
            "1",
            "--out",
            out,
            *itertools.chain(*(("--engine", name) for name in names)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OPENBLAS_CORETYPE": "Haswell"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads(out.read_text())
    assert results["removed"]["OPENBLAS_CORETYPE"] == "Haswell"
    (run,) = results["runs"]
    (found,) = run["records"]
    assert found["results"].keys() == set(names)
    for name, result in found["results"].items():
        assert result["status"] == ("ok" if ENGINES[name].installed() else "missing"), result
    assert found["results"]["rnnfast"]["relative"] == [1, 1, 1]
    assert run["limits"].keys() == {"fma", "L1", "L2", "L3", "DRAM"} and min(run["limits"].values()) > 1e8
    assert "| LSTM-T1-B1-H64-session |" in out.with_suffix(".md").read_text()
    assert results["machine"]["versions"]["rnnfast"] and results["machine"]["cpu"]


# ------------------------------------------------------------------------------------------------ training
SMALL_TRAINING = [
    dataclasses.replace(SMALL, group="training", targets={1: 1e-9, 2: 1e-9}, state=True),
    Case("gru", "GRU", 5, 3, 4, 7, group="training", targets={1: 1e9, 2: 1}),
    Case("both", "LSTM", 5, 3, 4, 7, directions=2, targets={1: 1e9, 2: 1}),
    Case("ragged", "LSTM", 6, 5, 4, 7, lengths=(2, 6, 1, 4, 6), against="torch", targets={1: 1e9, 2: 1}),
    Fit("fit", 20, 8, 9, {1: 1e9, 2: 1}),
]
LAYERS, FIT = SMALL_TRAINING[:-1], SMALL_TRAINING[-1]


def of_training(engines):
    """JAX in a process of its own only; Keras, which starts slowly, with the slow tests."""
    return [engine for engine in engines.values() if engine.name not in (*APART, "keras on torch")]


@pytest.mark.parametrize("engine", of_training(gradients.ENGINES), ids=lambda engine: engine.name)
def test_gradients_are_right(engine):
    if not engine.installed():
        pytest.skip(f"{engine.name} is not installed")
    for case in [*LAYERS, dataclasses.replace(LAYERS[1], state=True), dataclasses.replace(LAYERS[3], kind="GRU")]:
        result = gradients.measure(case, [engine], 1, **EFFORT)[engine.name]
        assert result["status"] == "ok" and 0 < result["error"] < 2e-6, (case, result)
        assert result["seconds"][1] > 0
        assert ("saved" in result) == (engine.name == "rnnfast")


class AlteredGradients(gradients.Numpy):
    """The NumPy engine with something done to its named outputs."""

    name = "altered"

    def __init__(self, alter):
        self.alter, self.calls = alter, 0

    def prepare(self, case, state_dict, threads):
        right = super().prepare(case, state_dict, threads)

        def call(*values):
            self.calls += 1
            return right(*values)

        return call

    def named(self, case, outputs):
        found = super().named(case, outputs)
        self.alter(found)
        return found


@pytest.mark.parametrize("name", ["y", "dx", "dh0", "dc0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("what", ["value", "nan", "missing", "shape"])
def test_wrong_gradients_are_not_timed(name, what):
    def alter(found):
        found[name] = found[name].copy()
        if what == "value":
            found[name].flat[-1] += 1e-3 * np.abs(found[name]).max()
        elif what == "nan":
            found[name].flat[-1] = np.nan
        elif what == "missing":
            del found[name]
        else:
            found[name] = found[name][:-1]

    engine = AlteredGradients(alter)
    results = gradients.measure(LAYERS[0], [engine, gradients.ENGINES["numpy"]], 1, **EFFORT)
    assert results["altered"]["status"] == "wrong" and "seconds" not in results["altered"]
    assert engine.calls == 1 and results["numpy"]["status"] == "ok"


def test_a_wrong_oracle_of_gradients_is_noticed():
    def alter(found):
        found["dx"][0, 0, 0] += 1e-9

    values = gradients.inputs(SMALL)
    with pytest.raises(AssertionError, match="float64 gradients"):
        gradients.expected(SMALL, problem.weights(SMALL), values, AlteredGradients(alter))


@pytest.mark.parametrize("engine", of_training(mnist.ENGINES), ids=lambda engine: engine.name)
def test_fits_are_right(engine):
    if not engine.installed():
        pytest.skip(f"{engine.name} is not installed")
    result = mnist.measure(FIT, [engine], 1, **EFFORT)[engine.name]
    assert result["status"] == "ok" and 0 < result["error"] < 1e-5 and result["seconds"][1] > 0, result


def test_a_wrong_fit_is_not_timed():
    pytest.importorskip("torch")

    class Wrong(mnist.Torch):
        def build(self, *args):
            fit, values = super().build(*args)
            return fit, lambda: {name: a * np.float32(1.001) for name, a in values().items()}

    result = mnist.measure(FIT, [Wrong()], 1, **EFFORT)["torch"]
    assert result["status"] == "wrong" and "seconds" not in result


def test_images(monkeypatch, tmp_path):
    """The digits, or random images of their form."""
    monkeypatch.setattr(mnist, "DATA", tmp_path / "digits.npz")
    random = mnist.data(5)
    images, labels = np.arange(7 * 28 * 28).reshape(7, 28, 28) % 256, np.arange(7)
    np.savez(mnist.DATA, images=images.astype(np.uint8), labels=labels.astype(np.uint8))
    digits = mnist.data(5)
    for x, y in (random, digits):
        assert x.shape == (5, 28, 28) and x.dtype == np.float32 and 0 <= x.min() and 0.9 < x.max() <= 1
        assert y.shape == (5,) and y.dtype == np.int64 and y.min() >= 0 and y.max() < 10
    assert np.array_equal(digits[1], labels[:5]) and np.allclose(digits[0] * 255, images[:5])


def test_training_command(tmp_path, monkeypatch):
    """Its table, from records made here."""
    asked = []

    def measured(module, threads, **request):
        asked.append((module, threads, request))
        results = stored()
        runs = []
        for count in threads:
            every = gradients.ENGINES, mnist.ENGINES
            monkeypatch.setattr(gradients, "ENGINES", {e.name: e for e in of_training(every[0])})
            monkeypatch.setattr(mnist, "ENGINES", {e.name: e for e in of_training(every[1])})
            runs.append(
                {
                    "threads": count,
                    "rounds": 2,
                    "others": 0.5,
                    **training.run(request | {"threads": count, "limit": 1, "duration": 1e-5}),
                }
            )
        return json.loads(json.dumps(results | {"runs": runs}, allow_nan=False))

    monkeypatch.setattr(training, "measured", measured)
    monkeypatch.setattr(training, "TRAINING", SMALL_TRAINING)
    files = tmp_path / "new" / "results.json", tmp_path / "table.md"
    result = CliRunner().invoke(
        training.main, ["--rounds", "2", "--threads", "1", "2", "--json", str(files[0]), "--markdown", str(files[1])]
    )
    assert result.exit_code == 0, result.output
    module, threads, request = asked[0]
    assert module == "bench.training" and threads == (1, 2)
    assert request["cases"] == [case.name for case in SMALL_TRAINING] and request["rounds"] == 2
    text = files[1].read_text()
    assert text in result.output and "# Training on some processor" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    header = next(row for row in rows if "saved" in row)
    small = next(row for row in rows if row[0] == "small")
    assert float(small[header.index("ratio")]) > 0 and float(small[header.index("saved")]) > 0
    assert small[header.index("best peer")] in ("numpy", "torch") and small[header.index("target")] == "1e-09"
    assert next(row for row in rows if row[0] == "gru")[header.index("ratio")].startswith("**")
    assert "rnnfast images/s" in text and text.count("| fit ") == 2
    with_ratio = 4 if importlib.util.find_spec("torch") else 3  # one of the four cases is measured against torch only
    assert f"of {with_ratio} ratios reach" in text and json.loads(files[0].read_text())["runs"][1]["threads"] == 2

    result = CliRunner().invoke(training.main, ["gr*", "small", "--threads", "1"])
    assert result.exit_code == 0 and asked[-1][2]["cases"] == ["small", "gru"]
    result = CliRunner().invoke(training.main, ["LSTM-T2"])
    assert result.exit_code == 2 and "'LSTM-T2'" in result.output


def test_training_table_says_what_is_wrong_and_whom_a_target_means():
    ok = {"status": "ok", "seconds": [1e-3] * 3}
    case = dataclasses.asdict(LAYERS[3])
    record = {
        "case": case,
        "results": {
            "rnnfast": ok | {"relative": [1] * 3, "saved": 1.3},
            "numpy": ok | {"seconds": [2e-3] * 3, "relative": [2] * 3},
            "torch": ok | {"seconds": [3e-3] * 3, "relative": [3] * 3},
            "jax": {"status": "missing"},
        },
    }
    wrong = {"case": dataclasses.asdict(LAYERS[1]), "results": {"rnnfast": {"status": "wrong", "error": 0.5}}}
    results = stored()
    results["runs"] = [{"threads": 1, "rounds": 2, "others": None, "records": [record, wrong]}]
    text = training.markdown(results)
    assert "**3.00**" in text and "is to torch; to numpy it is 2.00" in text and "**1.30**" in text
    assert "not installed" in text and "WRONG" in text and "rnnfast is wrong: off by 0.5" in text


def test_training_cases():
    names = [case.name for case in TRAINING]
    assert len(set(names)) == len(names) == 8
    (ragged,) = (case for case in TRAINING if getattr(case, "lengths", ()))
    assert len(ragged.lengths) == ragged.B and (min(ragged.lengths), max(ragged.lengths)) == (10, 200) == (10, ragged.T)
    assert list(ragged.lengths) != sorted(ragged.lengths)


@pytest.mark.slow
def test_training_measures(tmp_path):
    """All engines, JAX and Keras among them, in the process that is theirs."""
    out = tmp_path / "results.json"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.training",
            "LSTM-T100-B1-H256",
            "LSTM-T200*",
            "MNIST",
            "--threads",
            "1",
            "--rounds",
            "1",
            "--json",
            out,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = json.loads(out.read_text())["runs"]
    for record in run["records"]:
        engines = mnist.ENGINES if record["case"]["name"] == "MNIST" else gradients.ENGINES
        assert record["results"].keys() == engines.keys()
        for name, found in record["results"].items():
            assert found["status"] == ("ok" if engines[name].installed() else "missing"), (name, found)


# ------------------------------------------------------------------------------------------------ pools
SMALL_POOLS = [
    Pooled(
        "lstm",
        "LSTM",
        5,
        7,
        {1: {"onnxruntime one by one": 1e-9, "share of FMA": 1e9, "us a frame": 1e9}, 2: {"rnnfast one thread": 1e9}},
    ),
    Pooled("gru", "GRU", 3, 9, {1: {"onnxruntime by hand": 1e9}}),
    Pooled("ragged", "LSTM", 4, 7, {1: {"rnnfast rectangle": 1e9, "torch packed": 1e-9}}, lengths=(1, 6, 2, 5)),
]


@pytest.mark.parametrize("case", SMALL_POOLS, ids=lambda case: case.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_pools_are_right(case, threads):
    for name, result in streams.measure(case, threads, *EFFORT.values()).items():
        if result["status"] == "missing":
            assert name.startswith(("onnxruntime", "torch"))
        else:
            assert result["status"] == "ok" and 0 < result["error"] < 2e-6 and result["seconds"][1] > 0, (name, result)


def test_a_pool_of_silero():
    case = Pooled("silero", "Silero", 3, 128)
    if streams.unavailable(case):
        pytest.skip(streams.unavailable(case))
    results = streams.measure(case, 1, *EFFORT.values())
    assert results["rnnfast"]["error"] == results["rnnfast mapping"]["error"] == 0
    assert {result["status"] for result in results.values()} <= {"ok", "missing"}


@pytest.mark.parametrize("case", [SMALL_POOLS[1], SMALL_POOLS[2]], ids=lambda case: case.name)
@pytest.mark.parametrize(
    "peer, factor, said",
    [(True, 1.001, "wrong"), (False, 1 + 1e-6, "ValueError: the bits are not those of each stream alone")],
)
def test_wrong_pools_are_not_timed(case, peer, factor, said):
    engine = (streams.Ragged if case.lengths else streams.Rnnfast)()
    prepare, calls = engine.prepare, []

    def prepared(*args):
        call = prepare(*args)

        def wrong(x):
            calls.append(x)
            return call(x) * np.float32(factor)

        return wrong

    engine.prepare, engine.peer = prepared, peer
    measured = streams.measure_ragged if case.lengths else streams.measure_live
    result = measured(case, [engine], 1, *EFFORT.values())["rnnfast"]
    assert said in (result["status"], result.get("message")) and "seconds" not in result
    assert len(calls) == (1 if case.lengths else streams.STEPS)


def test_pools_command(tmp_path, monkeypatch):
    """Its table and chart, from records made here."""
    pytest.importorskip("matplotlib")
    asked = []

    def measured(module, threads, **request):
        asked.append((module, threads, request))
        runs = [
            {
                "threads": count,
                "rounds": 2,
                "others": 0.5,
                **pools.run(request | {"threads": count, "limit": 1, "duration": 1e-5}),
            }
            for count in threads
        ]
        return json.loads(json.dumps(stored() | {"runs": runs}, allow_nan=False))

    silero = Pooled("silero", "Silero", 3, 128, {1: {"us a frame": 1}, 2: {"rnnfast one thread": 1.8}})
    sweep = [Pooled(f"LSTM-B{B}", "LSTM", B, 5, {1: {}}, group="sweep") for B in (1, 2, 4)]
    monkeypatch.setattr(pools, "measured", measured)
    monkeypatch.setattr(pools, "POOLS", [*SMALL_POOLS, silero])
    monkeypatch.setattr(pools, "pool_sweep", lambda kind: sweep if kind == "LSTM" else [])
    monkeypatch.setattr(probe, "limits", lambda caches, threads: {"fma": 1e11 * threads})
    monkeypatch.setattr(streams, "FILE", tmp_path / "silero.onnx")
    files = [tmp_path / "new" / name for name in ("results.json", "table.md", "chart.svg")]
    options = [str(part) for pair in zip(("--json", "--markdown", "--plot"), files) for part in pair]
    result = CliRunner().invoke(pools.main, ["--rounds", "2", "--threads", "1", "--threads", "2", *options])
    assert result.exit_code == 0, result.output
    module, threads, request = asked[0]
    assert module == "bench.pools" and threads == (1, 2) and request["sweep"] and request["rounds"] == 2
    assert request["cases"] == ["lstm", "gru", "ragged", "silero"]
    text = files[1].read_text()
    assert text in result.output and "# Pools of streams on some processor" in text and "100 GFLOP/s" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    found = {(row[0], row[1]): row[2:] for row in rows if len(row) == 4}
    assert float(found["lstm", "microseconds a frame"][0]) > 0
    assert all(found["lstm", what][0].startswith("**") for what in ("share of the FMA rate", "times one thread"))
    assert float(found["ragged", "of the cost of a rectangle"][0]) > 0
    assert found["ragged", "of the cost of a rectangle"][1] == "at most 1e+09"
    assert found["silero", "microseconds a frame"] == ["not available", "at most 1"]
    assert "silero is not available: there is no silero.onnx in" in text
    peers = found["lstm", "times onnxruntime one by one"][0], found["ragged", "times torch packed"][0]
    for peer, value in zip(("onnxruntime", "torch"), peers):
        assert float(value) > 0 if importlib.util.find_spec(peer) else value == "not installed"
    results = json.loads(files[0].read_text())
    assert [len(run["records"]) for run in results["runs"]] == [7, 2] and text == pools.markdown(results)
    assert ">rnnfast, pool</text>" in files[2].read_text()

    result = CliRunner().invoke(pools.main, ["gru", "--threads", "1"])
    assert result.exit_code == 0 and asked[-1][2]["cases"] == ["gru"] and not asked[-1][2]["sweep"]
    for arguments in (["none"], ["--threads", "2", "--plot", "chart.svg"]):
        assert CliRunner().invoke(pools.main, arguments).exit_code == 2


def test_pools_table_says_what_is_wrong_and_missing():
    ok = {"status": "ok", "seconds": [6e-6] * 3, "relative": [1] * 3, "least": 5e-6}
    records = [
        measure.record(case, results) | {"frames": case.frames, "unavailable": None}
        for case, results in [
            (SMALL_POOLS[0], {"rnnfast": ok, "onnxruntime one by one": {"status": "missing"}}),
            (
                SMALL_POOLS[1],
                {"rnnfast": {"status": "wrong", "error": 0.5}, "onnxruntime by hand": ok | {"relative": None}},
            ),
            (
                SMALL_POOLS[2],
                {
                    "rnnfast": ok,
                    "rnnfast rectangle": ok | {"relative": [0.8] * 3},
                    "torch packed": {"status": "failed", "message": "no such kernel"},
                },
            ),
        ]
    ]
    run = {"threads": 1, "limits": {"fma": 1e9}, "rounds": 2, "others": None, "records": records}
    text = pools.markdown(stored() | {"runs": json.loads(json.dumps([run]))})
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in text.splitlines()}
    work = 2 * 5 * 4 * 7 * 14 / 5e-6 / 1e9
    assert {
        ("lstm", "times onnxruntime one by one", "not installed", "at least 1e-09"),
        ("lstm", "microseconds a frame", "1.20", "at most 1e+09"),
        ("gru", "times onnxruntime by hand", "WRONG", "at least 1e+09"),
        ("ragged", "of the cost of a rectangle", "1.25", "at most 1e+09"),
        ("ragged", "times torch packed", "failed", "at least 1e-09"),
    } <= rows
    assert f"**{work:.0%}**" in text and "2 of 3 measured targets" in text
    assert "rnnfast is wrong: off by 0.5" in text and "torch packed failed: no such kernel" in text


def test_pool_cases():
    """Every target is one that the table knows: an engine's, or one of those that are no ratio."""
    engines = {e.name for group in (streams.ALONE, streams.SEVERAL, streams.RAGGED) for e in group}
    assert len({case.name for case in POOLS}) == len(POOLS) == 5
    assert {what for case in POOLS for group in case.targets.values() for what in group} <= engines | set(pools.MEANING)
    (ragged,) = (case for case in POOLS if case.lengths)
    assert (min(ragged.lengths), max(ragged.lengths), len(ragged.lengths)) == (1, 1000, ragged.B)
    assert [case.B for case in pool_sweep("LSTM")] == [2**n for n in range(13)]


def test_live_measures(monkeypatch):
    """Each stream's replies are its own; in real time as many frames are sent as are due."""
    case = dataclasses.replace(next(case for case in POOLS if case.group == "batcher"), B=37)
    if streams.unavailable(case):
        pytest.skip(streams.unavailable(case))
    monkeypatch.setattr(live, "SECONDS", 0.32)
    found = live.measure(case)
    assert found["wrong"] == 0 and found["frames"] > 2 * 37 and found["p50"] <= found["p99"] and found["streams"] > 0


@pytest.mark.slow
def test_pools_measure(tmp_path):
    """In the process that is theirs."""
    out = tmp_path / "results.json"
    result = subprocess.run(
        [sys.executable, "-m", "bench.pools", "--rounds", "1", "--json", out], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for run in json.loads(out.read_text())["runs"]:
        assert [record["case"]["name"] for record in run["records"]] == [
            case.name for case in POOLS if run["threads"] in case.targets
        ]
        for record in run["records"]:
            if not record["unavailable"]:
                assert (
                    not record["live"]["wrong"] if "live" in record else record["results"]["rnnfast"]["status"] == "ok"
                )


# ------------------------------------------------------------------------------------------------ the user's models
def rnnfast(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_bench_of_a_file():
    pytest.importorskip("onnxruntime")
    result = rnnfast(
        "bench", MODELS / "tagger.onnx", "--batch", 2, "--steps", 5, "--against", "onnxruntime", "--rounds", 2, "--json"
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["inputs"] == {"tokens": [2, 5], "lengths": [2]} and facts["threads"] == 1
    assert facts["results"].keys() == {"rnnfast", "onnxruntime"}
    assert facts["results"]["rnnfast"]["relative"] == [1, 1, 1] and facts["results"]["onnxruntime"]["seconds"][1] > 0
    result = rnnfast("bench", MODELS / "denoiser.onnx", "--rounds", 2, "--threads", 2)
    assert result.exit_code == 0 and f"threads: {min(2, limit())}" in result.stdout
    assert "state [1, 1, 32]" in result.stdout and "rnnfast" in result.stdout


def test_bench_refuses_what_is_wrong(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        sys.modules["rnnfast.cli.bench"], "_onnxruntime", lambda *_: lambda: {"gains": np.zeros((1, 22))}
    )
    result = rnnfast("bench", MODELS / "denoiser.onnx", "--against", "onnxruntime", "--rounds", 1)
    assert result.exit_code == 1 and "WRONG" in result.stdout


def test_bench_of_a_file_without_steps():
    result = rnnfast("bench", MODELS / "denoiser.onnx", "--steps", 3)
    assert result.exit_code == 2 and "--steps" in result.stderr and "batch" in result.stderr


def test_profile_of_a_file():
    result = rnnfast("profile", MODELS / "tagger.onnx", "--batch", 2, "--steps", 5, "--runs", 3, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    nodes = {node["op_type"]: node for node in facts["steps"]}
    assert nodes["MatMul"]["step"] == "product" and nodes["MatMul"]["shape"][-1] > 1
    assert facts["nodes_in_file"] >= facts["nodes_after_folding"] >= len(nodes)
    assert nodes["LSTM"]["calls"] == 1 and nodes["LSTM"]["bytes"] > nodes["Softmax"]["bytes"] > 0
    assert (
        sum(node["flops"] for node in facts["steps"])
        == json.loads(
            rnnfast("bench", MODELS / "tagger.onnx", "--batch", 2, "--steps", 5, "--rounds", 1, "--json").stdout
        )["flops"]
    )
    assert sum(node["share"] for node in facts["steps"]) == pytest.approx(1)
    times = [node["seconds"] for node in facts["steps"]]
    assert times == sorted(times, reverse=True) and facts["seconds"][1] > 0
    assert facts["threads"] == 1
    result = rnnfast("profile", MODELS / "tagger.onnx", "--runs", 2, "--threads", 2)
    assert result.exit_code == 0 and "LSTM" in result.stdout


@pytest.mark.parametrize(
    "body, op_type, calls, flops",
    [
        ("e = Tanh(a)", "Loop", 1, 4 * 3),  # one command
        ("t = Tanh(a)  e = Concat<axis = 0>(t, one)", "Tanh", 4, 3 + 4 + 5 + 6),  # shapes change: step by step
    ],
)
def test_profile_counts_iterations(tmp_path, body, op_type, calls, flops):
    import onnx

    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[n] x) => (float[m] y) {
        true = Constant<value = bool {1}>()  four = Constant<value_int = 4>()  one = Constant<value_floats = [1.0]>()
        y = Loop(four, true, x) <body = b (int64 i, bool c, float[n] a) => (bool d, float[k] e) { d = Identity(c)  BODY }>
    }"""
    onnx.save(onnx.parser.parse_model(text.replace("BODY", body)), tmp_path / "loop.onnx")
    result = rnnfast("profile", tmp_path / "loop.onnx", "--dim", "n=3", "--runs", 3, "--json")
    assert result.exit_code == 0, result.output
    rows = [row for row in json.loads(result.stdout)["steps"] if row["op_type"] == op_type and row["flops"]]
    assert sum(row["calls"] for row in rows) == calls and sum(row["flops"] for row in rows) == flops


def test_whole_graphs(tmp_path, monkeypatch):
    """One row a call; an output that is not the stored one is not timed and ends with 1."""
    pytest.importorskip("onnxruntime")
    from bench import graphs

    monkeypatch.setattr(graphs, "ROUNDS", 5)
    monkeypatch.setattr(graphs, "CHUNKS", 4)
    monkeypatch.setattr(
        graphs,
        "CALLS",
        {
            "denoiser": [
                graphs.Call("stored inputs", 1e9),
                graphs.Call("batch 3", None, {"bands": (3, 22), "state": (1, 3, 32)}),
                graphs.Call("stream", 1e-9, {}, True),
            ]
        },
    )
    (tmp_path / "denoiser.onnx").write_bytes((MODELS / "denoiser.onnx").read_bytes())
    model, rng = load(MODELS / "denoiser.onnx"), np.random.default_rng(0)
    feed = {
        "bands": rng.standard_normal((1, 22), dtype=np.float32),
        "state": rng.standard_normal((1, 1, 32), dtype=np.float32),
    }
    stored = {f"in_{k}": v for k, v in feed.items()} | {f"out_{k}": v for k, v in model(feed).items()}
    np.savez(tmp_path / "denoiser.npz", **stored)
    out = tmp_path / "graphs.json"
    result = CliRunner().invoke(graphs.main, [str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["call"] for row in rows] == ["stored inputs", "batch 3", "stream"]
    assert all(row["error"] < 1e-6 and row["seconds"][1] > 0 and row["ratio"][1] > 0 for row in rows)
    table = out.with_suffix(".md").read_text()
    assert "1 of 2 targets" in table and table.count("| denoiser |") == 3 and "**" in table
    np.savez(tmp_path / "denoiser.npz", **stored | {"out_gains": stored["out_gains"] + 0.01})
    result = CliRunner().invoke(graphs.main, [str(tmp_path), "--out", str(out)])
    assert result.exit_code == 1 and "WRONG" in out.with_suffix(".md").read_text()
