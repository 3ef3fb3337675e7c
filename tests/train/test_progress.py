"""The progress bar, and an import that stays light."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

import rnnfast
from rnnfast import train
from rnnfast.train import progress
from tests.train.helpers import GOOD, X, Y, tagger


def test_progress_on_a_terminal(monkeypatch):
    rich = pytest.importorskip("rich.console")
    screen = io.StringIO()
    console = rich.Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setattr(progress, "make", lambda wanted: progress.Bar(console))
    net = tagger()
    net.fit(X, Y, epochs=2, batch_size=2, metrics="accuracy", **GOOD)
    text = screen.getvalue()
    assert "epoch 1/2  loss 1." in text and "epoch 2/2  loss 1." in text and "accuracy 0." in text and "━" in text
    net.evaluate(X, Y, loss=train.CrossEntropy(), batch_size=2)
    net.predict(X, batch_size=3)
    assert "evaluate " in screen.getvalue() and "predict " in screen.getvalue()


def test_no_progress_elsewhere(capfd):
    tagger().fit(X, Y, **GOOD)
    assert capfd.readouterr() == ("", "")


def test_import_is_light():
    code = (
        "import sys, rnnfast; print([m for m in ('rnnfast.train', 'numpy', 'safetensors') if m in sys.modules]); "
        "rnnfast.train.Adam; print([m for m in ('safetensors', 'rich') if m in sys.modules])"
    )
    root = pathlib.Path(rnnfast.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.splitlines() == ["[]", "[]"]
