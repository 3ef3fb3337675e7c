"""`python -m bench.pools`: its command, its table and its chart."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from bench import measure, pools, probe, streams
from bench.cases import POOLS, Pooled
from tests.bench.helpers import SMALL_POOLS, stored
from tests.paths import ROOT


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


@pytest.mark.slow
def test_pools_measure(tmp_path):
    """All cases are measured in a process of their own."""
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
