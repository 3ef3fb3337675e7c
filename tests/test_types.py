"""Type checkers understand a user's program: every example of the README, and the names that load lazily."""

import doctest
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

needs_pyright = pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")

WRONG = """\
import rnnfast

rnnfast.load(3)
rnnfast.load("net.onnx", matmul="gpu")
rnnfast.nn.LSTM(5)
rnnfast.Batcher("net.onnx")
rnnfast.no_such_name
"""

NAMES = """\
import rnnfast

reveal_type(rnnfast.load)
reveal_type(rnnfast.nn.LSTM(5, 7))
reveal_type(rnnfast.Batcher)
reveal_type(rnnfast.load("net.onnx").stream())
reveal_type(rnnfast.InferenceSession("net.onnx").run(None, {}))
"""


def pyright(folder, text):
    """The findings of pyright for a program, as (severity, line, message)."""
    (folder / "program.py").write_text(text)
    settings = {
        "include": ["program.py"],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "reportUnusedExpression": "none",  # an example is an expression whose value the interpreter shows
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    findings = json.loads(done.stdout)["generalDiagnostics"]
    return [(f["severity"], f["range"]["start"]["line"] + 1, f["message"]) for f in findings]


def readme_program():
    """The examples of the README, one after the other, without those that show an error."""
    examples = doctest.DocTestParser().get_examples((ROOT / "README.md").read_text())
    assert len(examples) >= 5
    return "".join(example.source for example in examples if example.exc_msg is None)


@needs_pyright
def test_pyright_finds_nothing_in_the_examples(tmp_path):
    assert pyright(tmp_path, readme_program()) == []


@needs_mypy
def test_mypy_finds_nothing_in_the_examples(tmp_path):
    (tmp_path / "program.py").write_text(readme_program())
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", "cache", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"MYPYPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_pyright
def test_pyright_knows_the_lazy_names(tmp_path):
    """It shows the signature of `rnnfast.load` and names the wrong argument."""
    shown = {line: message for severity, line, message in pyright(tmp_path, NAMES) if severity == "information"}
    for line, word in {3: "matmul", 4: "LSTM", 5: "Batcher", 6: "Stream", 7: "list"}.items():
        assert word in shown[line], shown
    errors = {line: message for severity, line, message in pyright(tmp_path, WRONG) if severity == "error"}
    assert errors.keys() >= {3, 4, 5, 6, 7}, errors
    assert '"source" of type' in errors[3] and 'in function "load"' in errors[3]
    assert '"no_such_name" is not a known attribute' in errors[7]
