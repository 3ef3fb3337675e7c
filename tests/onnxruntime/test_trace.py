"""end_profiling writes a trace of the steps of each run."""

import json
import pathlib

import numpy as np
import pytest

import rnnfast
from tests.graphs import parse, random
from tests.model_graphs import GRU, H, X


def traced(tmp_path, data, *feeds):
    """Return the outputs of runs with a trace, and its events."""
    options = rnnfast.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace")
    session = rnnfast.InferenceSession(data, options)
    assert session.get_profiling_start_time_ns() > 0
    outputs = [session.run(None, feed) for feed in feeds]
    path = session.end_profiling()
    assert pathlib.Path(path).parent == tmp_path and pathlib.Path(path).name.startswith("trace_")
    assert session.end_profiling() == "" and session.get_profiling_start_time_ns() == 0
    assert len(session.run(None, feeds[0])) == len(outputs[0])
    return outputs, json.loads(pathlib.Path(path).read_text())


def test_a_trace_has_the_steps_of_each_run(tmp_path):
    outputs, events = traced(tmp_path, GRU, {"x": X, "h": H}, {"x": X[:2], "h": H})
    for a, b in zip(outputs[0], rnnfast.load(GRU).run({"x": X, "h": H}), strict=True):
        np.testing.assert_array_equal(a, b)
    runs = [e for e in events if e["name"] == "model_run"]
    steps = [e for e in events if e["cat"] == "Node" and e["args"]["op_name"] == "GRU"]
    assert len(runs) == len(steps) == 2
    for run, step in zip(runs, steps):
        assert run["ts"] <= step["ts"] and step["ts"] + step["dur"] <= run["ts"] + run["dur"] + 1
    assert steps[0]["args"]["output_shape"][0][0] == 5 and steps[1]["args"]["output_shape"][0][0] == 2
    for event in events:
        assert event["ph"] == "X" and event["dur"] >= 0 and event["pid"] > 0 and event["tid"] > 0


def test_steps_by_numpy_and_overridden_initializers_are_in_it(tmp_path):
    data = parse(
        "g (float[3] x, float[3] w) => (float[3] y, int64[n] z) { y = Add (x, w)  z = NonZero (y) }", w=random(0, 3)
    )
    x = random(1, 3)
    (plain, other), events = traced(tmp_path, data, {"x": x}, {"x": x, "w": x})
    np.testing.assert_array_equal(other[0], x + x)
    assert not np.array_equal(plain[0], other[0])
    assert [e["args"]["step"] for e in events if e["cat"] == "Node" and e["args"]["op_name"] == "NonZero"] == [
        "numpy"
    ] * 2


def test_there_is_no_trace_unless_it_is_asked_for():
    assert rnnfast.InferenceSession(GRU).end_profiling() == ""


@pytest.mark.parametrize("module", ["rnnfast", "onnxruntime"])
def test_the_trace_reads_like_onnxruntimes(tmp_path, module):
    module = pytest.importorskip(module)
    options = module.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace")
    session = module.InferenceSession(GRU, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": X, "h": H})
    events = json.loads(pathlib.Path(session.end_profiling()).read_text())
    node = next(e for e in events if e["cat"] == "Node" and e["args"]["op_name"] == "GRU")
    assert node["name"].endswith("_kernel_time") and node["ph"] == "X" and node["args"]["provider"]
    assert any(e["cat"] == "Session" and e["name"] == "model_run" for e in events)
