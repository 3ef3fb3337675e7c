"""models/forecast.py: its file gives the same everywhere and reaches the stated errors; made anew, it does so too."""

import importlib.util
import os
import runpy
import subprocess
import sys

import click
import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast import nn
from tests.paths import MODELS

FOLDER = MODELS
PATH = FOLDER / "forecast.onnx"
for package in ("matplotlib", "click"):
    pytest.importorskip(package)
MODEL = runpy.run_path(str(FOLDER / "forecast.py"))
AHEAD, HIDDEN, TARGET, TEST = (MODEL[name] for name in ("AHEAD", "HIDDEN", "TARGET", "TEST"))
needs_series = pytest.mark.skipif(
    importlib.util.find_spec("pycwt") is None, reason="the series is in the package pycwt, which is not installed"
)

TOLERANCE = 2e-5
"""Largest difference, in ppm, of forecasts that are sums of twelve changes in float32. Measured: 2e-6."""


def made_up(months=260):
    """A season that repeats, on a line: the growth of a year is 2.4."""
    season = np.random.default_rng(3).standard_normal(12).cumsum()
    return np.tile(season, -(-months // 12))[:months] + 0.2 * np.arange(months)


def session(path=PATH, engine=rnnfast):
    return engine.InferenceSession(str(path))


def check_same_in_both(path, series):
    first = len(series) - TEST - 1
    ours = MODEL["forecasts"](session(path), series, first)
    assert ours.shape == (TEST + 1, AHEAD) and np.isfinite(ours).all()
    theirs = MODEL["forecasts"](session(path, pytest.importorskip("onnxruntime")), series, first)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def check_target(path, series):
    found, scale = MODEL["compared"](session(path), series)
    errors = np.abs(found["LSTM"] - found["truth"]).mean(0) / scale
    assert errors[0] <= TARGET["one month"] and errors.mean() <= TARGET["12 months"]


def test_the_same_in_both_engines():
    check_same_in_both(PATH, made_up())


@needs_series
def test_the_series():
    series, year = MODEL["read"]()
    check_same_in_both(PATH, series)
    check_target(PATH, series)
    assert len(series) == 12 * 37 and year == 1959 and 310 < series.min() < series.max() < 370


def test_the_bits_of_the_layers():
    """Whole, step by step in a stream, and by the layers that hold the file's weights."""
    graph = onnx.load(PATH).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    node = next(n for n in graph.node if n.op_type == "LSTM")
    lstm = nn.LSTM.from_onnx(*(arrays[name] for name in node.input[1:4]))
    changes = np.diff(made_up()).astype(np.float32)
    x, zeros = changes[None, :, None], np.zeros((1, 1, HIDDEN), np.float32)
    y, h, c = session().run(None, {"x": x, "h0": zeros, "c0": zeros})
    hidden, (hn, cn) = lstm(x.swapaxes(0, 1))
    np.testing.assert_array_equal(h, hn)
    np.testing.assert_array_equal(c, cn)
    weight, bias = (arrays[next(n for n in graph.node if n.op_type == op).input[1]] for op in ("MatMul", "Add"))
    np.testing.assert_allclose(y[0, :, 0], (hidden @ weight + bias)[:, 0, 0], rtol=0, atol=TOLERANCE)
    stream = rnnfast.load(PATH).stream()
    np.testing.assert_array_equal(np.concatenate([stream.step(x=x[:, t : t + 1]) for t in range(40)], 1), y[:, :40])


def test_baselines_of_a_known_series():
    series = made_up()
    found, scale = MODEL["compared"](session(), series)
    assert {values.shape for values in found.values()} == {(TEST + 1 - AHEAD, AHEAD)}
    np.testing.assert_array_equal(found["truth"][5], series[-TEST + 5 :][:AHEAD])
    np.testing.assert_allclose(found["truth"] - found["seasonal naive"], 2.4)
    np.testing.assert_allclose(found["seasonal naive and the last year's growth"], found["truth"])
    assert scale == pytest.approx(2.4)


def test_forecasts_know_nothing_of_what_comes():
    series = made_up()
    other = series.copy()
    other[-50:] += np.random.default_rng(4).standard_normal(50)
    first = len(series) - TEST - 1
    before, after = (MODEL["forecasts"](session(), values, first) for values in (series, other))
    np.testing.assert_array_equal(before[: TEST + 1 - 50], after[: TEST + 1 - 50])
    assert (before[TEST + 1 - 50 :] != after[TEST + 1 - 50 :]).any(1).all()


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(click.ClickException, match="pip install pycwt; or --data FILE"):
        MODEL["read"]()


@pytest.mark.slow
@pytest.mark.parametrize("of", (pytest.param("package", marks=needs_series), "file"))
def test_made_anew(of, tmp_path):
    """From the package it reaches the errors; a file of one's own is read."""
    arguments = ["--out", tmp_path / "out"]
    if of == "file":
        np.savetxt(tmp_path / "series.txt", made_up())
        arguments += ["--data", tmp_path / "series.txt", "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, FOLDER / "forecast.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
    )
    if of == "package":
        assert done.returncode == 0, done.stderr
        check_same_in_both(tmp_path / "out" / "forecast.onnx", MODEL["read"]()[0])
        check_target(tmp_path / "out" / "forecast.onnx", MODEL["read"]()[0])
    else:
        assert done.returncode == 1 and "the LSTM's MASE is above" in done.stderr
        check_same_in_both(tmp_path / "out" / "forecast.onnx", made_up())
    assert "LSTM" in done.stdout and (tmp_path / "out" / "forecast.svg").stat().st_size < 150_000
