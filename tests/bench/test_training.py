"""`python -m bench.training`: its command and its table."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from bench import gradients, mnist, training
from tests.bench.helpers import LAYERS, SMALL_TRAINING, of_training, stored
from tests.paths import ROOT


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
