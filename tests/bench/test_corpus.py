"""`python -m bench.corpus`: a corpus next to onnxruntime."""

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("onnxruntime")

from click.testing import CliRunner

from bench import corpus


def test_command(monkeypatch):
    """All engines are checked and measured; a target that is missed is the exit status."""
    monkeypatch.setattr(corpus, "ONE_BY_ONE", 0)
    monkeypatch.setattr(corpus, "BY_HAND", 0)
    result = CliRunner().invoke(corpus.main, ["--rows", "40", "--inputs", "3", "--rounds", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("us a frame") == 4 + len(corpus.PADDED)
    monkeypatch.setattr(corpus, "BY_HAND", 1e9)
    assert CliRunner().invoke(corpus.main, ["--rows", "9", "--inputs", "3", "--rounds", "1"]).exit_code == 1


def test_check():
    """Results that differ, and bits of model.map that are not those of single calls, end the benchmark."""
    right = [np.ones((3, 2), np.float32)]
    names = "onnxruntime, one by one", "rnnfast, one by one", "rnnfast, model.map"
    corpus.check(dict.fromkeys(names, right))
    for name in names[1:]:
        for wrong in (right[0][:2], right[0] + np.float32(1e-3), np.nextafter(right[0], np.float32(2))):
            with pytest.raises(SystemExit):
                corpus.check(dict.fromkeys(names, right) | {name: [wrong]})
