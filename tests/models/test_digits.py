"""models/digits.py: its files give the same in nn's layers and onnxruntime and reach the stated accuracy.

Files that are made anew do so too.
"""

import os
import runpy
import subprocess
import sys

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast import nn
from tests.paths import MODELS

FOLDER, DATA = MODELS, "data/mnist10k.npz"
for package in ("matplotlib", "click"):
    pytest.importorskip(package)
MODEL = runpy.run_path(str(FOLDER / "digits.py"))
TEST, TARGET = MODEL["TEST"], MODEL["TARGET"]
FILES = {
    "LSTM (tanh)": ("digits.onnx", nn.LSTM, {}),
    "RNN (relu)": ("digits_relu.onnx", nn.RNN, {"activations": ["Relu"]}),
}

TOLERANCE = 1e-4
"""Largest difference of logits up to 40 from onnxruntime's. Measured: 2e-5."""


def images(count=70):
    """Strokes at random: rows of pixels from 0 to 1."""
    rng = np.random.default_rng(5)
    return (rng.random((count, 28, 28)) * (rng.random((count, 28, 28)) > 0.8)).astype(np.float32)


def layers(path, kind, options):
    """The network as nn's layers, from the file's weights."""
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    found = []
    for place in "02":
        found.append(kind.from_onnx(*(weights[f"{place}.{name}_l0"] for name in "WRB"), layout=1, **options))
    linear = []
    for place in "47":
        w, b = weights[f"{place}.weight"], weights[f"{place}.bias"]
        linear.append(nn.Linear(w.shape[1], w.shape[0]))
        linear[-1].load_state_dict({"weight": w, "bias": b})
    first, second = linear
    return lambda x: second(nn.ReLU()(first(found[1](found[0](x)[0])[0][:, -1])))


def check_same(path, x):
    y = rnnfast.load(path)(x=x)["y"]
    assert y.shape == (len(x), 10) and np.isfinite(y).all()
    (theirs,) = pytest.importorskip("onnxruntime").InferenceSession(str(path)).run(None, {"x": x})
    np.testing.assert_allclose(y, theirs, rtol=0, atol=TOLERANCE)
    return y


def check_accuracy(folder, data):
    x, y = MODEL["read"](data)
    for name, (file, _, _) in FILES.items():
        found = check_same(folder / file, x[-TEST:])
        assert np.mean(found.argmax(1) == y[-TEST:]) >= TARGET[name]


@pytest.mark.parametrize("name", FILES)
def test_the_same_in_layers_and_onnxruntime(name):
    file, kind, options = FILES[name]
    x = images()
    y = check_same(FOLDER / file, x)
    assert y.tobytes() == layers(FOLDER / file, kind, options)(x).tobytes()


def test_accuracy(published):
    check_accuracy(FOLDER, published(DATA))


def test_a_missing_file_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "digits.py", "--data", tmp_path / "none.npz"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
    )
    assert done.returncode == 1 and "none.npz is not there; --data FILE takes an npz file" in done.stderr


@pytest.mark.slow
def test_made_anew(tmp_path, published):
    data = published(DATA)
    subprocess.run(
        [sys.executable, FOLDER / "digits.py", "--data", data, "--out", tmp_path],
        check=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
    )
    check_accuracy(tmp_path, data)
