"""Samples of several calls are taken in turn, after calls that are not timed."""

import itertools
import os
import time

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from rnnfast.cli.timing import interleave, pinned


def test_samples_are_taken_in_turn():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = interleave(calls, (), rounds=3, duration=0)
    assert all(len(s.seconds) == 3 and s.calls == 1 for s in samples.values())
    assert [name for name, _ in itertools.groupby(order)][-9:] == list("abcbcacab")


def test_calls_before_a_sample_are_not_timed():
    ends = []

    def call():
        time.sleep(0.001)
        ends.append(time.perf_counter())

    samples = interleave({"a": call}, (), rounds=3, duration=0.002, warmup=0.02)["a"]
    timed = samples.calls * len(samples.seconds)
    assert len(ends) > 2 * timed and samples.seconds.sum() * samples.calls < ends[-1] - ends[0] - 0.05


def test_pinned_is_undone():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
