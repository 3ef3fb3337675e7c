"""A Batcher under live load answers each stream with its own results."""

import dataclasses

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import live, streams
from bench.cases import POOLS


def test_live_measures(monkeypatch):
    """Each stream's replies are its own; in real time as many frames are sent as are due."""
    case = dataclasses.replace(next(case for case in POOLS if case.group == "batcher"), B=37)
    if streams.unavailable(case):
        pytest.skip(streams.unavailable(case))
    monkeypatch.setattr(live, "SECONDS", 0.32)
    found = live.measure(case)
    assert found["wrong"] == 0 and found["frames"] > 2 * 37 and found["p50"] <= found["p99"] and found["streams"] > 0
