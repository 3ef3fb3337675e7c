"""`python -m bench.quantised` on a folder of one quantised file."""

import json

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

import rnnfast
from tests.paths import MODELS


def test_quantised_files(tmp_path, monkeypatch):
    """A file that agrees is timed next to onnxruntime and float32; one that does not is not, and ends with 1."""
    pytest.importorskip("onnxruntime")
    from bench import quantised

    monkeypatch.setattr(quantised, "ROUNDS", 5)
    base = MODELS / "denoiser.onnx"
    rnnfast.quantize(base, tmp_path / "denoiser@wdq8.onnx", "int8")
    entry = {"file": "denoiser@wdq8.onnx", "base": str(base), "kind": "wdq8", "onnxruntime": {"default": "ok"}}
    (tmp_path / "models.json").write_text(json.dumps([entry]))
    random = np.random.default_rng(0)
    shapes = {"bands": (1, 22), "state": (1, 1, 32)}
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found = rnnfast.load(tmp_path / entry["file"])(feed)
    for wrong, stored in ((0, found), (1, rnnfast.load(base)(feed))):
        outputs = {f"out_{name}": y for name, y in stored.items()}
        np.savez(tmp_path / "denoiser@wdq8.npz", **{f"in_{name}": x for name, x in feed.items()}, **outputs)
        out = tmp_path / "quantised.json"
        options = ["--json", str(out), "--markdown", str(tmp_path / "quantised.md")]
        result = CliRunner().invoke(quantised.main, [str(tmp_path), *options])
        (record,) = json.loads(out.read_text())["records"]
        table = (tmp_path / "quantised.md").read_text()
        assert result.exit_code == wrong, result.output
        assert record["agrees"] == (not wrong) and ("WRONG" in table) == bool(wrong)
        assert f"{1 - wrong} of 1 files agree" in table
        if not wrong:
            assert record["difference"] < 1e-6 and record["error"] > 1e-5
            assert set(record["seconds"]) == {"rnnfast", "onnxruntime", "float32"}


def test_files_agree_with_onnxruntime_or_are_nearer_to_float32():
    from bench.quantised import agrees, distance

    assert agrees({"kind": "qdq8", "difference": 1e-4, "error": 1.0, "onnxruntime_error": 0.1})
    assert agrees({"kind": "dyn8", "difference": 0.1, "error": 0.1, "onnxruntime_error": 0.1})
    assert agrees({"kind": "fp16io", "difference": 5e-3, "error": 0.2, "onnxruntime_error": 0.1})
    assert not agrees({"kind": "qdq8", "difference": 5e-3, "error": 0.2, "onnxruntime_error": 0.1})
    assert not agrees({"kind": "fp16", "difference": 2e-2, "error": 0.2, "onnxruntime_error": 0.1})
    assert distance({"y": np.array([1.0, 2.5])}, {"y": np.array([1.0, 2.0])}) == 0.25
