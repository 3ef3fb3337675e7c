"""Models of the transformers package that onnxruntime's tool has optimised give what they gave before."""

import collections
import os
import subprocess

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast.onnx import fusions
from tests.fetched import pip
from tests.paths import ROOT

PACKAGES = ["torch", "transformers==4.46.*", "onnxruntime", "onnx>=1.19", "numpy>=2.0"]
TOLERANCE = 2e-6  # of outputs of size 3, of which 7e-7 was the largest difference
# model -> those of its operators that no other one here has
OPERATORS = {
    "bert": {"Attention": 2, "BiasGelu": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4},
    "bert_ends": {"Attention": 2},
    "gpt2": {"Attention": 2, "FastGelu": 2},
    "images": {"BiasSplitGelu": 1, "GroupNorm": 1, "NhwcConv": 3, "SkipGroupNorm": 1},
    "llama": {"RotaryEmbedding": 4},
    "t5": {"Attention": 2, "RelativePositionBias": 2, "SkipSimplifiedLayerNormalization": 8},
}


@pytest.mark.slow
def test_optimised_models(index, environment, tmp_path):
    python = environment / "bin/python"
    done = pip(python, "install", *PACKAGES)
    assert done.returncode == 0, done.stderr.decode()
    script = ROOT / "tests/onnx/optimised_transformers.py"
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run([python, script, tmp_path], env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name, operators in OPERATORS.items():
        path = tmp_path / f"{name}.optimised.onnx"
        found = collections.Counter(n.op_type for n in onnx.load(path).graph.node if n.domain == fusions.DOMAIN)
        assert operators.items() <= found.items(), name
        model, arrays = rnnfast.load(path), dict(np.load(tmp_path / f"{name}.npz"))
        feed = {v.name: arrays[f"in {v.name}"].astype(v.type.dtype) for v in model.inputs}
        for output, y in model(feed).items():
            expected = arrays[f"out {output}"]
            np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name}: {output}")
