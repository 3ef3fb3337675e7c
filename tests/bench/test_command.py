"""`python -m bench` measures in a process of its own."""

import itertools
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench.engines import ENGINES
from tests.bench.helpers import APART
from tests.paths import ROOT


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
