"""`python -m bench.lengths`: calls whose lengths all differ."""

import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("onnxruntime")

from click.testing import CliRunner

from bench import lengths


def test_taggers(monkeypatch):
    """Each tagger is right and measured; the lengths are inputs' sizes alone."""
    import rnnfast.cli.lengths

    monkeypatch.setattr(sys.modules["rnnfast.cli.lengths"], "CALLS", 10)
    result = CliRunner().invoke(lengths.main, ["--lengths", "1-6"])
    assert result.exit_code == 0, result.output
    assert all(f"{name}.onnx: 1,000 calls" in result.stdout for name in lengths.SIZES)
    assert result.stdout.count("onnxruntime  ") == len(lengths.SIZES)
    model = rnnfast.load(lengths.tagger(8, 4))
    assert [v.type.shape for v in model.inputs] == [("batch", "time")]
