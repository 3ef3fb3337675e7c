"""Bounds from the machine's limits, the Markdown table and the charts."""

import dataclasses
import math

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import report
from bench.cases import Case
from bench.engines import ENGINES
from tests.bench.helpers import stored


def test_bound():
    caches = {"L1": 2**15, "L2": 2**20, "L3": 2**25}
    limits = {"fma": 100e9, "L1": 400e9, "L2": 100e9, "L3": 50e9, "DRAM": 10e9}
    assert [report.level(2**n, caches, 1) for n in (15, 16, 20, 21, 25, 26)] == ["L1", "L2", "L2", "L3", "L3", "DRAM"]
    assert report.level(2**21, caches, 2) == "L2"
    tall = Case("tall", "LSTM", 10, 64, 256, 256)  # arithmetic counts
    assert report.bound(tall, limits, caches, 1) == pytest.approx(report.flops(tall) / 100e9)
    assert report.flops(tall) == 2 * 10 * 64 * 1024 * 512
    thin = Case("thin", "LSTM", 10, 1, 1, 256)  # 1 MiB of recurrent weights a step, from L2
    assert report.bound(thin, limits, caches, 1) == pytest.approx(10 * 2**20 / 100e9, rel=0.01)
    both = dataclasses.replace(tall, directions=2, layers=2)
    assert both.cells == [256, 256, 512, 512]


def test_table():
    results = stored()
    record = results["runs"][0]["records"][0]
    assert report.best_peer(record) == "onnxruntime" and report.ratio(record) == 2.5  # numpy's is wrong
    text = report.markdown(results)
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| "))
    }
    header, first = rows.pop("case"), rows["LSTM-T1-B1-H64-session"]
    assert first[header.index("rnnfast us")] == "2.00" and first[header.index("numpy")] == "WRONG"
    assert first[header.index("ratio")] == "**2.50**" and first[header.index("target")] == "3.5"
    assert rows["LSTM-T1-B1-H128-session"][header.index("torch")] == "failed"
    assert rows["LSTM-T1-B1-H256-session"][header.index("jax")] == "-"
    assert rows["LSTM-T100-B1-H128"][header.index("GFLOP/s")] == f"{2 * 512 * 256 / 2e-6 / 1e9:.1f}"
    for words in (
        "some processor",
        "OPENBLAS_CORETYPE",
        "took 50% of a core",
        "numpy is wrong: off by 0.5",
        "torch failed: no such kernel",
    ):
        assert words in text
    assert math.isclose(report.geometric_mean([2, 8]), 4)


def test_charts(tmp_path):
    pytest.importorskip("matplotlib")
    from bench.plot import draw

    paths = draw(stored(), tmp_path / "here.json")
    assert [path.name for path in paths] == ["here-steps.svg", "here-roofline.svg", "here-headline.svg"]
    steps, roofline, headline = (path.read_text() for path in paths)
    assert all(f">{name}</text>" in steps for name in ENGINES if name != "blas")
    assert "L2 100 GB/s" in roofline and "one step, 128 units" in headline
