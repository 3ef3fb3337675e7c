"""Cases of other engines: numbers and graphs that the project did not write.

These run where the folder ../shared/vectors lies beside the repository; its README describes the suites.
"""

import functools
import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("unsanitized")

# Case -> why it does not pass.
RANDOM_DROPOUT = "Dropout in training mode drops at random: the expected numbers are those of NumPy's generator"
EXCLUDED_NODE_CASES = {
    **{
        f"test_training_dropout{form}{release}": RANDOM_DROPOUT
        for form in ("", "_default", "_mask", "_default_mask")
        for release in ("", "@1.9.0", "@1.15.0")
    }
}
BEFORE_7 = "an operator as it was before opset 7"
NOT_YET = "an operator of a later opset"
EXCLUDED_NGRAPH_MODELS = {
    **dict.fromkeys(
        (
            "sum_opset1",
            "min_two_inputs_opset1",
            "max_opset1",
            "mean_opset1",
            "instance_normalization",
            "reshape_reduced_dims",
            "reshape_reordered_dims",
            "reshape_extended_dims",
            "reshape_single_dim",
            "reshape_negative_with_zero_dim",
        ),
        BEFORE_7,
    ),
    **dict.fromkeys(("thresholded_relu", "sign", "scatterND", "gatherND_int32", "gatherND_float"), NOT_YET),
    "softmax_0D": "axis 1 of a scalar",
    "depth_to_space": "a mode that ONNX does not have",
}


@pytest.fixture
def failures(published, tmp_path):
    """failures(suite, *options): case -> message of the cases that do not pass, and the number of all cases."""
    return functools.partial(run_suite, published("vectors"), tmp_path / "results.json")


def run_suite(folder, out, suite, *args):
    """Run a suite as a process; return the messages of the cases that fail, and the number of all cases."""
    subprocess.run(
        [sys.executable, f"{suite}.py", f"{ROOT}/tests/adapter.py:run", "--out", str(out), *args],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=False,
    )
    results = json.loads(out.read_text())
    return {case: r["msg"] for case, r in results.items() if r["status"] != "pass"}, len(results)


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize("batch_dim", ["static", "symbolic"])
@pytest.mark.parametrize("weights", ["asis", "init", "input"])
def test_onnxruntime_recurrent_cases(failures, weights, batch_dim):
    failed, total = failures("ort_rnn_suite", "--weights", weights, "--batch-dim", batch_dim)
    assert (failed, total) == ({}, 298)


def test_onnx_node_cases(failures):
    failed, total = failures("onnx_node_suite", "--set", "both", "--only-verified")
    assert failed.keys() == EXCLUDED_NODE_CASES.keys(), failed
    assert total == 1686


def test_ngraph_models(failures):
    failed, total = failures("model_suite", "--dir", "ngraph_models")
    assert {case.partition(":")[0] for case in failed} == EXCLUDED_NGRAPH_MODELS.keys(), failed
    assert total == 134


def test_extra_models(failures):
    assert failures("model_suite", "--dir", "extra_models") == ({}, 8)


def test_published_models(failures, published):
    published("models")
    assert failures("model_suite", "--dir", "../models") == ({}, 28)
