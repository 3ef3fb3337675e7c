"""`rnnfast quantize`: its table, JSON, exit statuses and messages."""

import json

import numpy as np
import onnx
import pytest

import rnnfast as package

pytest.importorskip("click")
pytest.importorskip("rich")

from tests.cli.test_cli import AT_16K, refused, rnnfast
from tests.paths import MODELS

INT8 = "--weights", "int8"


def test_the_table_and_the_file(tmp_path):
    out = tmp_path / "q.onnx"
    result = rnnfast("quantize", MODELS / "detector.onnx", "-o", out, *INT8, *AT_16K)
    assert result.exit_code == 0, result.output
    header, _, *rows, whole = [line.split() for line in result.stdout.splitlines()]
    assert header[:6] == ["layer", "operator", "float32", "bytes", "int8", "bytes"]
    assert [row[:4] for row in rows] == [
        ["a", "Conv", "4,096", "1,088"],
        ["b", "Conv", "2,048", "576"],
        ["y", "LSTM", "15,360", "4,656"],
        ["score", "MatMul", "96", "96"],
    ]
    assert " ".join(rows[3][6:]) == "skipped: the file would not be smaller"
    assert f"{out.stat().st_size:,}" in whole and out.stat().st_size < 10_000
    assert package.load(out).inputs == package.load(MODELS / "detector.onnx").inputs


@pytest.mark.parametrize("weights", ["int8", "fp16", "bf16"])
def test_for_programs(weights, tmp_path):
    x = {"bands": np.ones((3, 22), np.float32), "state": np.full((1, 3, 32), 0.5, np.float32)}
    np.savez(tmp_path / "x.npz", **x)
    args = ("quantize", MODELS / "denoiser.onnx", "-o", tmp_path / "q.onnx", "--weights", weights, "--json")
    facts = json.loads(rnnfast(*args, "-i", tmp_path / "x.npz").stdout)
    expected, ours = package.load(MODELS / "denoiser.onnx")(x), package.load(tmp_path / "q.onnx")(x)
    error = max(np.abs(ours[name] - a).max() / np.abs(a).max() for name, a in expected.items())
    assert facts["output_error"] == pytest.approx(error, rel=1e-6) and facts["passed"] is True
    assert facts["bytes_after"] == (tmp_path / "q.onnx").stat().st_size
    assert facts["bytes_before"] == (MODELS / "denoiser.onnx").stat().st_size
    assert [(layer["names"], layer["op_type"]) for layer in facts["layers"]] == [(["y"], "GRU"), (["scores"], "Gemm")]
    assert json.loads(rnnfast(*args).stdout)["output_error"] != facts["output_error"]  # random inputs are others


def test_layers_over_the_tolerance_are_named(tmp_path):
    args = ("quantize", MODELS / "denoiser.onnx", "-o", tmp_path / "q.onnx", *INT8)
    result = rnnfast(*args, "--tolerance", "1e-9")
    assert result.exit_code == 1 and result.stdout.count("skipped: its error is over the tolerance") == 2
    assert onnx.load(tmp_path / "q.onnx") == onnx.load(MODELS / "denoiser.onnx")
    assert rnnfast(*args, "--tolerance", "0.9").exit_code == 0
    kept = rnnfast(*args, "--tolerance", "1e-9", "--keep", "y", "--keep", "scores")
    assert kept.exit_code == 0 and kept.stdout.count("skipped: as asked for") == 2


def test_the_form_of_onnxruntime(tmp_path):
    args = ("quantize", MODELS / "tagger.onnx", "-o", tmp_path / "q.onnx", "--form", "onnxruntime")
    assert rnnfast(*args, *INT8).exit_code == 0
    assert b"DynamicQuantizeLSTM" in (tmp_path / "q.onnx").read_bytes()
    assert refused(rnnfast(*args, "--weights", "fp16"), "int8 only")


def test_wrong_use(tmp_path):
    out = tmp_path / "q.onnx"
    assert refused(rnnfast("quantize", tmp_path / "none.onnx", "-o", out, *INT8), "none.onnx")
    assert refused(rnnfast("quantize", MODELS / "words.onnx", "-o", out, *INT8, "--keep", "lstn"), "node 'lstn'")
    assert refused(rnnfast("quantize", MODELS / "words.onnx", "-o", out, *INT8, "--tolerance", "-1"), "-1.0")
    assert refused(rnnfast("quantize", MODELS / "words.onnx", "-o", tmp_path, *INT8), "cannot be written")
    assert not out.exists()
    assert rnnfast("quantize", MODELS / "words.onnx", "-o", out, "--weights", "int4").exit_code == 2
