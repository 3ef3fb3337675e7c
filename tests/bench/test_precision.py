"""`python -m bench.precision` and `bench.errors`: cases, records, marks, tables and the chart; no time counts."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner

import rnnfast
from bench import errors, precision, precision_engines, precision_models, precision_report, problem, published, trained
from bench.cases import PRECISION, Bounds, Case, Precise
from bench.engines import Numpy
from tests.bench.helpers import EFFORT, SMALL, stored
from tests.paths import MODELS, ROOT

EFFORT = (1, EFFORT["rounds"], EFFORT["duration"], EFFORT["limit"])
# A float32 product of some dozens of terms, relative to the largest output; measured: 3e-7.
CLOSE = 1e-5


# ------------------------------------------------------------------------------------------------ cases
def test_cases():
    names = [case.name for case in PRECISION]
    assert len(set(names)) == len(names) == 23
    assert {case.group for case in PRECISION} == set(precision_report.TITLES)
    assert {case.name for case in PRECISION if case.layer is None} == set(precision_models.MODELS)
    assert set(precision_report.SHOWN) <= set(names)
    known = {f"{source.file.stem} 0" for source in trained.WITH_ROWS} | {"DTLN__model_1 1", "resemblyzer", ""}
    assert {case.trained for case in PRECISION} <= known
    for case in PRECISION:
        assert set(case.targets) <= {"", "avx2"}, case.name
        for engines in case.targets.values():
            assert set(engines) <= set(precision_report.OWN_NAMES), case.name
        assert case.layer is None or case.layer.state == (case.layer.T == 1)


def test_shown_names_are_engines():
    names = set(precision_engines.ENGINES)
    assert set(precision_report.SHOWN_ENGINES) <= names
    assert {precision_report.MAIN, errors.OURS, errors.PEER, errors.HALF} <= names
    pytest.importorskip("matplotlib")
    from bench import plot

    assert set(plot.PRECISION_PANELS) <= {case.name for case in PRECISION}
    for name in names:
        package, _, rounded = name.partition(" ")
        assert package in plot.COLOURS and (rounded or "float32") in plot.PRECISIONS


# ------------------------------------------------------------------------------------------------ comparisons
def result(microseconds, error):
    return {"status": "ok", "error": error, "seconds": [microseconds * 1e-6] * 3, "relative": [microseconds / 100] * 3}


def made(name="LSTM-T100-B1-H256", **results):
    """A record of a case, with results of engines by name in which spaces are double underscores."""
    case = next(case for case in PRECISION if case.name == name)
    given = {"rnnfast": result(100, 1e-7)} | {key.replace("__", " "): value for key, value in results.items()}
    return json.loads(
        json.dumps({"case": dataclasses.asdict(case), "results": given, "weights": "random", "unavailable": None})
    )


def test_a_wronger_peer_does_not_count():
    """Of the peers whose error is at most 2 % larger the fastest counts; a faster and wronger one is marked."""
    record = made(
        rnnfast__int8=result(40, 1e-2),
        onnxruntime=result(160, 1e-7),
        onnxruntime__int8=result(30, 1.03e-2),
        onnxruntime__int8__per__channel=result(44, 1.01e-2),
        torch__int8=result(60, 2e-2),
    )
    assert precision_report.best_peer(record) == "onnxruntime int8 per channel"
    assert precision_report.ratio(record, "onnxruntime int8 per channel", "rnnfast int8") == pytest.approx(1.1)
    marked = [name for name in record["results"] if precision_report.is_faster_and_wronger(record, name)]
    assert marked == ["onnxruntime int8"]
    record["results"]["rnnfast int8"] = {"status": "failed", "message": "no"}
    assert precision_report.best_peer(record) is None
    assert not precision_report.is_faster_and_wronger(record, "onnxruntime int8")


def test_a_nearer_engine_of_ours_has_slower_peers():
    record = made(
        rnnfast__int8=result(40, 1e-2),
        rnnfast__fp16=result(90, 1e-4),
        onnxruntime=result(160, 1e-7),
        onnxruntime__int8=result(30, 1e-2),
    )
    assert precision_report.best_peer(record, "rnnfast int8") == "onnxruntime int8"
    assert precision_report.best_peer(record, "rnnfast fp16") == "onnxruntime"


def runs(records, isa=""):
    machine = stored()["machine"]
    return {"machine": machine, "runs": [{"threads": 1, "isa": isa, "others": 0.1, "rounds": 2, "records": records}]}


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_tables():
    record = made(
        rnnfast__int8=result(50, 1e-2),
        onnxruntime__int8=result(30, 1.1e-2),
        onnxruntime__int8__per__channel=result(44, 1e-2),
        torch__int8={"status": "failed", "message": "no such form"},
        openvino={"status": "missing"},
    )
    slow = made("LSTM-T100-B1-H128", rnnfast__int8={"status": "wrong", "error": None})
    results = precision.merged(runs([record, slow]), runs([made(rnnfast__int8=result(90, 1e-2))], "avx2"))
    text = precision_report.markdown(results)
    found = rows(text)
    # Twice as fast as float32, where the target is 0.45, and slower than the peer that is as near.
    ratios = ["onnxruntime int8 per channel", "**0.88**", "1.1", "0.60‡"]
    assert ["LSTM-T100-B1-H256", "int8", "50.0 (1.0e-02)", *ratios, "**0.50**", "0.45"] in found
    assert ["LSTM-T100-B1-H256", "int8", "90.0 (1.0e-02)", "", "", "", "", "**0.90**", "0.75"] in found
    assert ["LSTM-T100-B1-H128", "int8", "WRONG", "", "", "1.3", "", "", "0.45"] in found
    times = next(row for row in found if row[0] == "LSTM-T100-B1-H256" and len(row) > 6 and "30.0" in "".join(row))
    assert times[1:] == ["100 (1.0e-07)", "50.0 (1.0e-02)", "30.0 (1.1e-02)†", "44.0 (1.0e-02)", "-", "-"]
    assert "0 of 2 measured targets" in text and "## avx2" in text
    assert "torch int8 failed: no such form (LSTM-T100-B1-H256)." in text
    assert precision_report.problems(results, precision_report.OWN_NAMES) == [
        "rnnfast int8 is wrong: shapes differ or NaN (LSTM-T100-B1-H128)."
    ]
    assert precision_report.summary(results)[2:] == [line for line in text.splitlines() if "LSTM 1" in line] + [
        line for line in text.splitlines() if "LSTM 256" in line
    ]


def test_results_are_merged():
    """A case replaces its older result of the same instruction set; another processor is refused."""
    first, second = made(rnnfast__int8=result(50, 1e-2)), made(rnnfast__int8=result(40, 1e-2))
    other = made("GRU-T100-B1-H128")
    merged = precision.merged({"runs": []}, runs([first, other]))
    merged = precision.merged(precision.merged(merged, runs([second])), runs([first], "avx2"))
    found = [(run["isa"], record["case"]["name"]) for run in merged["runs"] for record in run["records"]]
    assert sorted(found) == [("", "GRU-T100-B1-H128"), ("", "LSTM-T100-B1-H256"), ("avx2", "LSTM-T100-B1-H256")]
    assert [record for run in merged["runs"] if not run["isa"] for record in run["records"]] == [other, second]
    elsewhere = runs([other])
    elsewhere["machine"]["cpu"] = "another processor"
    with pytest.raises(click.ClickException, match="another processor"):
        precision.merged(elsewhere, runs([first]))


def test_command(tmp_path, monkeypatch):
    """Each group is written when it is measured, and --missing goes on from there."""
    asked = []

    def measured(module, threads, **request):
        assert module == "bench.precision" and threads == (1,)
        asked.append((request["isa"], request["cases"]))
        if request["cases"] == ["GRU-T100-B1-H512"]:
            raise click.ClickException("interrupted")
        return runs([made(name, rnnfast__int8=result(50, 1e-2)) for name in request["cases"]], request["isa"])

    monkeypatch.setattr(precision, "measured", measured)
    files = [tmp_path / "new" / name for name in ("results.json", "table.md", "chart.svg")]
    to = ["--json", str(files[0])]
    cases = ["LSTM-T100-B1-H64", "LSTM-T100-B8-H256", "GRU-T100-B1-H512"]
    assert CliRunner().invoke(precision.main, [*cases, *to]).exit_code == 1
    assert asked == [("", [name]) for name in cases]
    asked.clear()
    assert CliRunner().invoke(precision.main, [*cases[:2], "nnsplit", "--missing", *to]).exit_code == 0
    assert CliRunner().invoke(precision.main, [cases[0], "--isa", "avx2", "--missing", *to]).exit_code == 0
    assert asked == [("", ["nnsplit"]), ("avx2", [cases[0]])]
    asked.clear()
    shown = CliRunner().invoke(precision.main, ["--read", "--markdown", str(files[1]), *to])
    assert shown.exit_code == 0 and not asked
    assert files[1].read_text() in shown.output and "nnsplit" in shown.output
    assert CliRunner().invoke(precision.main, ["LSTM-T2", *to]).exit_code == 2


def test_chart(tmp_path):
    """An engine is where its time and its error are, and one that was not timed is nowhere."""
    pytest.importorskip("matplotlib")
    from bench import plot

    record = made(
        rnnfast__int8=result(50, 1e-2),
        onnxruntime__int8=result(30, 1.1e-2),
        torch__int8={"status": "failed", "message": "no"},
    )
    assert plot.precision_points(record) == {
        "rnnfast": (1, 1e-7),
        "rnnfast int8": (0.5, 1e-2),
        "onnxruntime int8": (0.3, 1.1e-2),
    }
    results = runs([record, made("NSNet2, a frame"), made("LSTM-T100-B1-H64")])
    plot.draw_precision(results, tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text()
    assert ">LSTM 256, 100 steps</text>" in text and ">NSNet2, a frame</text>" in text and ">onnxruntime</text>" in text
    assert ">torch</text>" not in text and ">int8</text>" in text and ">fp16</text>" not in text


# ------------------------------------------------------------------------------------------------ measuring
class Rounded(Numpy):
    """NumPy with weights that are rounded to int8 and then changed."""

    tolerance = precision_engines.LOW_TOLERANCE
    weights = {"weights": "int8"}
    computed = precision_engines.Rnnfast.computed

    def __init__(self, name, factor=1.0):
        self.name, self.factor = name, factor

    def prepare(self, case, state_dict, threads):
        rounded = precision_engines.rounded_weights(state_dict, "int8")
        return super().prepare(case, {n: np.float32(self.factor) * a for n, a in rounded.items()}, threads)


def small(**changes):
    return Precise("small", "lstm", dataclasses.replace(SMALL, **changes), targets={"": {"rnnfast int8": Bounds(1, 1)}})


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_errors_are_of_the_original_weights(kind):
    """Rounded weights have an error and are timed; what is not their result is a failure."""
    engines = [Numpy(), Rounded("right"), Rounded("scaled", 1.1)]
    record = precision.measure(small(kind=kind), engines, *EFFORT)
    found = record["results"]
    assert record["weights"] == "random" and found["numpy"]["error"] < 1e-6
    assert found["right"]["status"] == "ok" and 1e-4 < found["right"]["error"] < 0.05
    assert found["scaled"]["status"] == "failed" and "results of the rounded weights" in found["scaled"]["message"]


def test_errors_are_those_of_trained_weights(monkeypatch):
    """With a trained layer, time is that of the case and the error that of the layer, which reads its own values."""
    case = Case("layer", "LSTM", 12, 1, 3, 6)
    weights = {name: 4 * value for name, value in problem.weights(case, 5).items()}
    x = problem.inputs(case, 6)[0][:, 0]
    monkeypatch.setattr(trained, "weights_of", lambda name: (weights, x) if name == "a layer" else None)
    asked = small(state=True, T=1, B=1)
    record = precision.measure(dataclasses.replace(asked, trained="a layer"), [Numpy(), Rounded("int8")], *EFFORT)
    assert record["weights"] == "a layer" and record["results"]["numpy"]["error"] < 1e-6
    like, _, values, right = precision.trained_problem(dataclasses.replace(asked, trained="a layer"))
    assert like.I == 3 and [value.shape for value in values] == [(1, 1, 3), (1, 1, 6), (1, 1, 6)]
    other = precision.measure(asked, [Numpy(), Rounded("int8")], *EFFORT)
    assert other["weights"] == "random" and other["results"]["int8"]["error"] != record["results"]["int8"]["error"]
    rows = precision.trained_problem(dataclasses.replace(small(T=20, B=2), trained="a layer"))[2][0]
    assert np.array_equal(rows[:, 0], x[np.arange(20) % 12]) and np.array_equal(rows[:, 1], x[np.arange(13, 33) % 12])


def test_own_engines():
    """Each type of weights is computed as it says, by layers and by sessions."""
    asked = small(T=1, state=True)
    session = dataclasses.replace(asked, layer=dataclasses.replace(asked.layer, entry="session"))
    for case in (small(), asked, session):
        found = precision.measure(case, precision_engines.OWN, *EFFORT)["results"]
        assert [result["status"] for result in found.values()] == ["ok"] * 5, found
        error = {name: result["error"] for name, result in found.items()}
        assert error["rnnfast"] < CLOSE < error["rnnfast fp16"] < error["rnnfast bf16"] < error["rnnfast int8"] < 0.1


def test_dynamic_onnxruntime():
    """quantize_dynamic makes integers of an LSTM; where it leaves all as it is there is no such engine."""
    pytest.importorskip("onnxruntime")
    per_tensor, per_channel = (precision_engines.DynamicOnnxruntime(flag) for flag in (False, True))
    found = precision.measure(small(), [per_tensor, per_channel], *EFFORT)["results"]
    assert all(result["status"] == "ok" and 1e-4 < result["error"] < 0.3 for result in found.values())
    assert found["onnxruntime int8"]["error"] != found["onnxruntime int8 per channel"]["error"]
    found = precision.measure(small(kind="GRU"), [per_tensor], *EFFORT)["results"]["onnxruntime int8"]
    assert found["status"] == "failed" and "float32" in found["message"]


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_dynamic_torch(kind):
    found = precision.measure(small(kind=kind), [precision_engines.DynamicTorch()], *EFFORT)["results"]["torch int8"]
    assert found["status"] == "ok" and 1e-4 < found["error"] < 0.3


# ------------------------------------------------------------------------------------------------ models
def denoiser(**options):
    rng = np.random.default_rng(0)
    first = {"state": np.zeros((1, 1, 32), np.float32)}
    frames = rng.standard_normal((5, 1, 22)).astype(np.float32)
    return precision_models.Problem(
        (MODELS / "denoiser.onnx").read_bytes(),
        [first | {"bands": frame} for frame in frames],
        {"state": "new_state"},
        **options,
    )


def test_states_are_fed_back():
    """The outputs of all calls are those of a stream, and the last call, with its state, is what is timed."""
    task, engine = denoiser(), precision_engines.Rnnfast()
    call, outputs = task.prepared(engine, 1)
    stream = rnnfast.load(task.data).stream()
    right = np.stack([stream.step(bands=feed["bands"]) for feed in task.feeds])
    assert len(outputs) == 1 and np.array_equal(outputs[0], right)
    assert np.array_equal(call()[0], right[-1])
    assert precision_models.difference(outputs, task.expected()) < CLOSE
    assert precision_models.difference([outputs[0][:-1]], task.expected()) == float("inf")


def test_pools_and_other_calls_are_timed():
    task = denoiser()
    feeds = [{"input": np.repeat(feed["bands"], 3, axis=0)} for feed in task.feeds]
    pooled = dataclasses.replace(task, feeds=feeds, streams=3)
    call, (outputs,) = pooled.prepared(precision_engines.Rnnfast(), 1)
    (alone,) = task.prepared(precision_engines.Rnnfast(), 1)[1]
    assert outputs.shape == (5, 3, 22) and np.array_equal(outputs[:, 1:2], alone)
    assert call().shape == (3, 22)
    timed = dataclasses.replace(task, timed=task.feeds[2])
    call, outputs = timed.prepared(precision_engines.Rnnfast(), 1)
    assert not np.array_equal(call()[0], outputs[0][2])  # the state of the timed call is the given one


def test_results_of_other_weights_are_wrong():
    """An engine whose outputs are not those of the weights that it says has failed."""
    task, int8 = denoiser(), precision_engines.Rnnfast("int8")
    right = task.expected()
    for engine, passes in ((int8, True), (precision_engines.Rnnfast("bf16"), False)):
        _, outputs = task.prepared(engine, 1)
        error = precision_models.difference(outputs, right)
        if passes:
            precision_models.check_computed(task, int8, outputs, error)
        else:
            with pytest.raises(ValueError, match="results of the rounded weights"):
                precision_models.check_computed(task, int8, outputs, error)


SLOW = {"NSNet2, a frame"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in precision_models.MODELS]
)
def test_models(name):
    """rnnfast computes each model in float32."""
    if precision_models.unavailable(name):
        pytest.skip(precision_models.unavailable(name))
    task = precision_models.MODELS[name][1]()
    _, outputs = task.prepared(precision_engines.Rnnfast(), 1)
    assert precision_models.difference(outputs, task.expected()) < precision_engines.Rnnfast().tolerance


def test_an_absent_model_is_not_available(tmp_path, monkeypatch):
    monkeypatch.setattr(precision_models, "SHARED", tmp_path)
    case = next(case for case in PRECISION if case.layer is None)
    record = precision.measure(case, precision_engines.OWN, *EFFORT)
    assert record["results"] == {} and record["unavailable"].startswith("there is no silero_vad")
    assert "is not available: there is no silero_vad" in precision_report.markdown(runs([record]))


# ------------------------------------------------------------------------------------------------ trained layers
OWN_SOURCES = [source for source in trained.SOURCES if source.file.parent == trained.OWN]


def test_trained_layers():
    """A layer alone gives what it gives in its model, and two models have different layers."""
    layers = [layer for source in OWN_SOURCES for layer in trained.layers_of(source)]
    assert [layer.name for layer in layers] == ["digits 0", "digits 1", "forecast 0", "languages 0"]
    first, second = layers[:2]
    y = rnnfast.load(first.onnx_model())(x=first.inputs["X"]).y
    assert np.abs(y[:, 0] - second.inputs["X"]).max() < CLOSE
    for layer in layers:
        (y,) = rnnfast.load(layer.onnx_model())(x=layer.inputs["X"]).values()
        T, B, _ = layer.inputs["X"].shape
        assert y.shape == (T, len(layer.inputs["W"]), B, layer.hidden_size) and np.abs(y).max() > 0.1
        onnx.checker.check_model(onnx.load_model_from_string(layer.onnx_model()))


def test_calls_are_joined():
    """The steps of calls that follow each other are one sequence, which begins with the state of the first."""

    def calls(file):
        first = {"state": np.full((1, 1, 32), 0.5, np.float32)}
        bands = np.random.default_rng(1).standard_normal((4, 1, 22)).astype(np.float32)
        return [first | {"bands": frame} for frame in bands]

    source = trained.Source(MODELS / "denoiser.onnx", calls, {"state": "new_state"})
    (layer,) = trained.layers_of(source, ("GRU",))
    assert layer.inputs["X"].shape == (4, 1, 22) and np.all(layer.inputs["initial_h"] == 0.5)
    model, state = rnnfast.load(source.file), np.full((1, 1, 32), 0.5, np.float32)
    (y,) = rnnfast.load(layer.onnx_model())(x=layer.inputs["X"]).values()
    for step, feed in enumerate(calls(None)):
        state = model(bands=feed["bands"], state=state).new_state
        assert np.abs(y[step, 0] - state[0]).max() < CLOSE


def test_speech_and_filters():
    windows = trained.speech(512, 128)
    assert windows.shape[1] == 512 and len(windows) > trained.FRAMES and windows.dtype == np.float32
    assert np.array_equal(windows[0, 128:], windows[1, :-128]) and np.abs(windows[0]).max() > 0.05
    filters = trained.mel_filters(201, 40)
    assert filters.min() == 0 and np.all(filters.max(axis=0) > 0)
    assert np.all(np.diff(np.argmax(filters, axis=0)) >= 0)


@pytest.mark.parametrize("name", sorted({case.trained for case in PRECISION} - {"", "resemblyzer"}))
def test_weights_of_cases(name, monkeypatch):
    """The trained layers of the cases have the cases' hidden sizes, and read values that are no constants."""
    monkeypatch.setattr(trained, "FRAMES", 12)
    source = next(source for source in trained.WITH_ROWS if source.file.stem == name.rpartition(" ")[0])
    if not source.file.exists():
        pytest.skip(f"there is no {source.file.name}")
    weights, x = trained.weights_of(name)
    sizes = {case.layer.H for case in PRECISION if case.trained == name}
    assert sizes == {weights["weight_hh_l0"].shape[1]} and x.shape[1] == weights["weight_ih_l0"].shape[1]
    assert len(x) > 10 and x.std() > 1e-3


# ------------------------------------------------------------------------------------------------ errors
def test_errors():
    """The errors of a layer by engine, where one that fails says why."""

    class Failing:
        name = "rnnfast bf16"

        def installed(self):
            return True

        def model(self, data, threads):
            raise ValueError("no")

    (layer,) = trained.layers_of(next(source for source in OWN_SOURCES if source.file.stem == "forecast"))
    record = errors.errors(layer, [precision_engines.Rnnfast(), Failing()])
    assert record["layer"] == "forecast 0" and record["sizes"] == {"I": 1, "H": 32, "T": 100, "B": 1, "directions": 1}
    assert 0 < record["errors"]["rnnfast"] < CLOSE and record["errors"]["rnnfast bf16"] is None
    assert record["failed"] == {"rnnfast bf16": "ValueError: no"}


def of_layer(name, ours, theirs, inputs="stored", **failed):
    found = {engine.name: theirs for engine in errors.ENGINES} | {errors.OURS: ours, errors.HALF: 1e-4}
    sizes = {"I": 1, "H": 2, "T": 3, "B": 4, "directions": 1}
    return {"layer": name, "sizes": sizes, "errors": found, "failed": failed, "inputs": inputs}


def test_table_of_errors(tmp_path):
    records = [
        of_layer("near 0", 0.01, 0.02),
        of_layer("far 0", 0.03, 0.02),
        of_layer("none 0", None, 0.02, **{"rnnfast int8": "no"}),
        of_layer("spoken 0", 0.5, 0.6, "speech"),
    ]
    file = tmp_path / "errors.json"
    file.write_text(json.dumps({"machine": stored()["machine"], "records": records}))
    shown = CliRunner().invoke(errors.main, ["--read", str(file), "--markdown", str(tmp_path / "errors.md")])
    assert shown.exit_code == 1  # rnnfast failed
    text = (tmp_path / "errors.md").read_text()
    found = {row[0]: row for row in rows(text)}
    assert found["near 0"][2] == "1.0e-02" and found["near 0"][-1] == "0.50" and found["far 0"][-1] == "**1.50**"
    assert found["none 0"][2] == "" and "rnnfast int8 failed: no (none 0)." in text
    assert "in 1 of 2 layers (target: 80%)" in text
    assert "median of rnnfast int8 is 2.0e-02 (target: at most 1.4e-02)" in text
    assert "## On 50 frames of speech" in text and found["spoken 0"][2] == "5.0e-01"


# ------------------------------------------------------------------------------------------------ what is published
def test_published_tables():
    """The tables beside the results and those of the page are what the results give."""
    texts = published.texts()
    assert len(texts) == 3
    for path, text in texts.items():
        assert path.read_text() == text, f"{path}: python -m bench.published writes it anew"


def test_a_page_gets_new_tables():
    page = "# Page\n\n| one | x |\n| --- | --- |\n| old | 1 |\n\ntext\n\n| two |\n| --- |\n| other |\n"
    new = published.with_table(page, ["| one | y |", "| --- | --- |", "| new | 2 |", "| more | 3 |"])
    assert new == page.replace("| one | x |", "| one | y |").replace("| old | 1 |", "| new | 2 |\n| more | 3 |")
    with pytest.raises(ValueError, match="three"):
        published.with_table(page, ["| three |", "| --- |"])


@pytest.mark.slow
def test_measured_in_a_process(tmp_path):
    """A case is measured in a process of its own, where every engine that is installed has a time or a reason."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench.precision", "LSTM-T1-B1-H128-layer", "--rounds", "1", "--json", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(out.read_text())["runs"]
    (record,) = run["records"]
    assert set(record["results"]) == set(precision_engines.ENGINES)
    assert all(record["results"][name]["seconds"][1] > 0 for name in precision_report.OWN_NAMES)
