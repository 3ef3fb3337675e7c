"""The examples of Ray, each a process of its own."""

import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.published import published_path

pytestmark = pytest.mark.slow
SILERO = "models/silero_vad_6.2.3__silero_vad.onnx"


def run(name, *options):
    pytest.importorskip("ray")
    settings = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "models" / name), str(published_path(SILERO)), *options],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_corpus(tmp_path):
    shown = run("ray_corpus.py", "--files", "30", "--folder", str(tmp_path))
    assert "rows in the order of the files: True; bits of a stream alone: True" in shown
    assert len(list((tmp_path / "wav").glob("*.wav"))) == 30


def test_service():
    """The program itself fails where a reply is wrong, a sequence is lost or a speaker is told too late."""
    shown = run("ray_service.py", "--speakers", "6")
    assert len(re.findall(r"replies, 0 with other bits", shown)) == 3
