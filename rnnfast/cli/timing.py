"""Measures calls that are to be compared in turn, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST_ROUNDS = 5
# Seconds of calls that are not measured before each sample with several threads. The threads of another engine spin for
# some milliseconds after a call, and on a virtual machine an idle core takes as long to wake up; samples must not
# include either.
WARMUP = 0.03


class Samples(NamedTuple):
    """Seconds per call in each round, as the mean of `calls` calls."""

    seconds: np.ndarray
    calls: int


class Quartiles(NamedTuple):
    """The quartiles of a sample."""

    lower: float
    median: float
    upper: float


def quartiles(values: Any) -> Quartiles:
    """The quartiles of numbers."""
    return Quartiles(*map(float, np.percentile(values, (25, 50, 75))))


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Restrict this thread, and threads that it starts, to the first `threads` of its cores, if the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def seconds(call: Callable[..., Any], args: Sequence[Any], count: int) -> float:
    """The seconds that `count` calls take together."""
    repeat = itertools.repeat(None, count)
    start = time.perf_counter()
    for _ in repeat:
        call(*args)
    return time.perf_counter() - start


def interleave(
    calls: Mapping[str, Callable[..., Any]],
    args: Sequence[Any],
    rounds: int,
    duration: float,
    limit: float = math.inf,
    warmup: float = 0.0,
    track: Callable[[range], Iterable[int]] = lambda rounds: rounds,
) -> dict[str, Samples]:
    """Take the Samples of each of `calls`: in each round one sample of about `duration` seconds.

    After `limit` seconds no round begins beyond the first LEAST_ROUNDS. Calls that are not measured precede each
    sample for `warmup` seconds, at least one call, so that the sample does not pay for cache contents that the one
    before it left, for threads of others that still spin, or for cores that must wake up. The order of the calls
    rotates from round to round. `track` shows the progress of the rounds.
    """
    counts = {name: _count(call, args, duration) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    enabled, start = gc.isenabled(), time.perf_counter()
    gc.disable()
    try:
        for r in track(range(rounds)):
            if r >= LEAST_ROUNDS and time.perf_counter() - start > limit:
                break
            first = r % len(names)
            for name in names[first:] + names[:first]:
                warm = time.perf_counter() + warmup
                calls[name](*args)
                while time.perf_counter() < warm:
                    calls[name](*args)
                samples[name].append(seconds(calls[name], args, counts[name]) / counts[name])
    finally:
        if enabled:
            gc.enable()
    return {name: Samples(np.array(samples[name]), counts[name]) for name in names}


def _count(call: Callable[..., Any], args: Sequence[Any], duration: float) -> int:
    """The number of calls that take about `duration` seconds, at least one; the calls made here also warm up."""
    call(*args)
    count = 1
    while (elapsed := seconds(call, args, count)) < duration / 4:
        count *= 2
    return max(1, round(count * duration / elapsed))
