"""Times of calls that are to be compared: taken in turn, so that what slows the machine slows all of them."""

import contextlib
import gc
import itertools
import math
import os
import time
from typing import NamedTuple

import numpy as np

LEAST_ROUNDS = 5
# Seconds of calls before a sample with several threads: those of others spin for some milliseconds after a call, and on
# a virtual machine a core that was idle takes as long to come back; nobody's sample is to fall into that.
WARMUP = 0.03


class Samples(NamedTuple):
    """Seconds a call, round by round, each the mean of `calls` calls."""

    seconds: np.ndarray
    calls: int


class Quartiles(NamedTuple):
    lower: float
    median: float
    upper: float


def quartiles(values):
    return Quartiles(*map(float, np.percentile(values, (25, 50, 75))))


@contextlib.contextmanager
def pinned(threads):
    """This thread, and those that it starts, on the first `threads` of its cores, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def seconds(call, args, count):
    """Of `count` calls together."""
    repeat = itertools.repeat(None, count)
    start = time.perf_counter()
    for _ in repeat:
        call(*args)
    return time.perf_counter() - start


def interleave(calls, args, rounds, duration, limit=math.inf, warmup=0.0, track=lambda rounds: rounds):
    """name -> Samples of each of `calls` (name -> callable): one sample of about `duration` seconds each a round.

    After `limit` seconds there are no more than LEAST_ROUNDS rounds. Before a sample there are calls that are not timed
    for `warmup` seconds, at least one: the sample does not pay for what the one before it left in the caches, for
    others' threads that still spin, and for cores that have to be woken. Who comes first changes from round to round.
    `track` shows the progress.
    """
    counts = {name: _count(call, args, duration) for name, call in calls.items()}
    samples = {name: [] for name in calls}
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


def _count(call, args, duration):
    """How many calls take about `duration`: enough for the clock, and at least one. Warms up."""
    call(*args)
    count = 1
    while (elapsed := seconds(call, args, count)) < duration / 4:
        count *= 2
    return max(1, round(count * duration / elapsed))
