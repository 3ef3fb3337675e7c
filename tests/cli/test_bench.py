"""`rnnfast bench` and `rnnfast profile` on the user's models."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from rnnfast.cli import main
from rnnfast.native.threads import limit
from tests.paths import MODELS


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


@pytest.mark.parametrize("weights", ["int8", "fp16"])
def test_bench_with_rounded_weights(monkeypatch, weights):
    """The error that is shown is the whole one; rnnfast is measured even so."""
    monkeypatch.setattr(sys.modules["rnnfast.cli.lengths"], "CALLS", 5)
    for more in (("--batch", 5, "--rounds", 2), ("--lengths", "batch=3-5")):
        result = rnnfast("bench", MODELS / "denoiser.onnx", *more, "--weights", weights, "--json")
        assert result.exit_code == 0, result.output
        assert 1e-5 < json.loads(result.stdout)["results"]["rnnfast"]["error"] < 0.1
    result = rnnfast("profile", MODELS / "denoiser.onnx", "--weights", weights, "--runs", 2, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["weights"] == weights


@pytest.mark.parametrize("text, batch", [("3-9", 1), ("batch=1-4", None)])
def test_bench_of_lengths(monkeypatch, text, batch):
    """Calls of random lengths, of each engine anew."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sys.modules["rnnfast.cli.lengths"], "CALLS", 20)
    options = ["--steps", 3] if batch is None else ["--batch", batch]
    args = ("bench", MODELS / "tagger.onnx", "--lengths", text, *options, "--against", "onnxruntime")
    result = rnnfast(*args, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["lengths"] == [int(n) for n in text.split("=")[-1].split("-")]
    for engine in ("rnnfast", "onnxruntime"):
        times = facts["results"][engine]
        assert 0 < times["median"] <= times["percentile_99"] and times["mean"] > 0 and times["mean_again"] > 0
        assert times["error"] < 1e-5
    result = rnnfast(*args)
    assert result.exit_code == 0 and "99th percentile" in result.stdout and "onnxruntime" in result.stdout


@pytest.mark.parametrize("text", ["7", "0-3", "5-2", "x-3"])
def test_bench_refuses_lengths(text):
    result = rnnfast("bench", MODELS / "tagger.onnx", "--lengths", text)
    assert result.exit_code == 2 and "expected [NAME=]A-B" in result.stderr
    result = rnnfast("bench", MODELS / "tagger.onnx", "--lengths", "1-3", "--steps", 2)
    assert result.exit_code == 2 and "--steps 2" in result.stderr


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
    assert facts["threads"] == 1 and facts["share_in_numpy"] == 0
    result = rnnfast("profile", MODELS / "tagger.onnx", "--runs", 2, "--threads", 2)
    assert "0 of them NumPy's, which take 0.0% of the steps' time" in result.stdout
    assert result.exit_code == 0 and "LSTM" in result.stdout


def test_profile_of_steps_of_numpy(tmp_path):
    """Their share of the time; one has a result whose shape depends on values, and takes the budget of the call."""
    import onnx

    text = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[n] x) => (float[m] y) {
        s = Sinh(x)  c = Greater(s, s)  o = Not(c)  p = Compress(s, o)  q = Sinh(p)  y = Neg(q) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "numpy.onnx")
    result = rnnfast("profile", tmp_path / "numpy.onnx", "--dim", "n=1000", "--runs", 3, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    steps = [row for row in facts["steps"] if row["step"] == "numpy"]
    assert {row["op_type"] for row in steps} == {"Sinh", "Compress", "Neg"}
    assert (
        facts["share_in_numpy"] == pytest.approx(sum(row["share"] for row in steps)) and facts["share_in_numpy"] > 0.5
    )


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
        y = Loop(four, true, x) <body = b (int64 i, bool c, float[n] a) => (bool d, float[k] e) {
            d = Identity(c)  BODY }>
    }"""
    onnx.save(onnx.parser.parse_model(text.replace("BODY", body)), tmp_path / "loop.onnx")
    result = rnnfast("profile", tmp_path / "loop.onnx", "--dim", "n=3", "--runs", 3, "--json")
    assert result.exit_code == 0, result.output
    rows = [row for row in json.loads(result.stdout)["steps"] if row["op_type"] == op_type and row["flops"]]
    assert sum(row["calls"] for row in rows) == calls and sum(row["flops"] for row in rows) == flops
