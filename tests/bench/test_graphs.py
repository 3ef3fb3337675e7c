"""`python -m bench.graphs` on whole models."""

import json

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from rnnfast.model import load
from tests.paths import MODELS


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
