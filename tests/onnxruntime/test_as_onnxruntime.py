"""rnnfast in the place of the package onnxruntime, in processes of their own."""

import subprocess
import sys

import pytest

from tests.model_graphs import GRU
from tests.paths import ROOT

PROGRAM = """
import sys, importlib.util
import onnxruntime
import onnxruntime as ort
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.capi import _pybind_state as C
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NoSuchFile
from onnxruntime.capi.onnxruntime_inference_collection import IOBinding, OrtValue
import numpy as np
import rnnfast
assert ort.InferenceSession is rnnfast.InferenceSession and C.RunOptions is rnnfast.RunOptions
assert ort.capi.onnxruntime_pybind11_state.Fail is Fail
assert importlib.util.find_spec("onnxruntime") is not None
assert [int(n) for n in ort.__version__.split(".")] >= [1, 20, 0]
session = InferenceSession(sys.argv[1], SessionOptions(), providers=["CPUExecutionProvider"])
print(session.run(["last"], {"x": np.zeros((2, 1, 4), np.float32), "h": np.zeros((1, 1, 3), np.float32)})[0].shape)
try:
    session.run(None, {})
except InvalidArgument as e:
    print(type(e).__name__)
try:
    ort.InferenceSession("none.onnx")
except NoSuchFile as e:
    print(type(e).__name__)
try:
    import onnxruntime.training
except ModuleNotFoundError as e:
    print(e)
print(__name__, sys.argv[2:])
"""
EXPECTED = """(1, 1, 3)
InputError
MissingFileError
No module named 'onnxruntime.training'
__main__ ['-v', 'x']
"""


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gru.onnx").write_bytes(GRU)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("")
    return tmp_path


def test_a_program_runs_unchanged(folder):
    for where in (["program.py"], ["-m", "program"]):
        done = run("-m", "rnnfast.as_onnxruntime", *where, "gru.onnx", "-v", "x", cwd=folder)
        assert (done.stdout, done.returncode) == (EXPECTED, 0), done.stderr


QUANTIZATION = """
import sys
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.quantization.quantize import quantize_dynamic as again
from onnxruntime.quantization.calibrate import CalibrationMethod
import onnxruntime.quantization.quant_utils
assert onnxruntime.quantization.quant_utils.QuantType is QuantType and again is quantize_dynamic
quantize_dynamic(sys.argv[1], "q.onnx", weight_type=QuantType.QUInt8, op_types_to_quantize=["GRU"])
print([i.name for i in ort.InferenceSession("q.onnx").get_inputs()])
for refused in (quant_pre_process, quantize_static):
    try:
        refused(sys.argv[1], "p.onnx")
    except ort.capi.onnxruntime_pybind11_state.NotImplemented as e:
        print(e)
"""
QUANTIZED = """['x', 'h']
onnxruntime.quantization.quant_pre_process is not offered, only quantize_dynamic
onnxruntime.quantization.quantize_static is not offered, only quantize_dynamic
"""


def test_a_program_that_quantises(folder):
    (folder / "program.py").write_text(QUANTIZATION)
    done = run("-m", "rnnfast.as_onnxruntime", "program.py", "gru.onnx", cwd=folder)
    assert (done.stdout, done.returncode) == (QUANTIZED, 0), done.stderr


def test_a_program_finds_what_lies_beside_it(folder):
    (folder / "program.py").write_text("import beside, onnxruntime; print(onnxruntime.InferenceSession.__module__)")
    done = run("-m", "rnnfast.as_onnxruntime", str(folder / "program.py"))
    assert done.stdout == "rnnfast.onnxruntime.session\n", done.stderr


def test_without_a_program_it_says_how():
    for arguments in ([], ["-m"]):
        done = run("-m", "rnnfast.as_onnxruntime", *arguments)
        assert done.returncode == 1 and done.stderr.startswith("usage: python -m rnnfast.as_onnxruntime")


def test_it_is_put_in_place_once_and_never_beside_the_real_one():
    done = run("-c", "import rnnfast; a = rnnfast.as_onnxruntime(); print(rnnfast.as_onnxruntime() is a)")
    assert done.stdout == "True\n", done.stderr
    pytest.importorskip("onnxruntime")
    done = run(
        "-c",
        "import onnxruntime, rnnfast\ntry:\n    rnnfast.as_onnxruntime()\nexcept rnnfast.Error as e:\n    print(e)",
    )
    assert done.stdout == "onnxruntime is imported already; call rnnfast.as_onnxruntime() before anything imports it\n"
