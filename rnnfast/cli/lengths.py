"""`rnnfast bench --lengths`: calls whose lengths all differ, as those of a service do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from rnnfast.errors import InputError

CALLS = 1000
PATTERN = re.compile(r"(?:(?P<name>.+)=)?(?P<first>\d+)-(?P<last>\d+)")


def parsed(text: str) -> tuple[str | None, int, int]:
    """(the name of the dimension or None, the shortest, the longest) of [NAME=]A-B."""
    found = PATTERN.fullmatch(text)
    first, last = (int(found[key]) for key in ("first", "last")) if found else (0, 0)
    if found is None or not 1 <= first <= last:
        raise InputError(f"--lengths {text}: expected [NAME=]A-B with 1 <= A <= B, such as 1-500")
    return found["name"], first, last


def measured(
    makers: Mapping[str, Callable[[], Callable[[Any], Any]]],
    feeds: Mapping[int, Any],
    seed: int,
    track: Callable[[range], Iterable[int]] = lambda calls: calls,
) -> dict[str, dict[str, Any]]:
    """Measure new engines on the same CALLS calls of random lengths, in turn, twice.

    Args:
        makers: For each engine a function that makes it: a callable of a feed.
        feeds: The feed of each length.
        seed: Seed of the order of lengths.
        track: Shows the progress of the first calls.

    Returns:
        For each engine the mean and the percentiles 50 and 99 of the first calls, and the mean of the same calls again,
        in seconds.
    """
    engines = {name: make() for name, make in makers.items()}
    lengths = np.random.default_rng(seed).choice(sorted(feeds), CALLS)
    first = _seconds(engines, feeds, lengths, track(range(CALLS)))
    again = _seconds(engines, feeds, lengths, range(CALLS))
    results = {}
    for name in engines:
        middle, late = np.percentile(first[name], (50, 99))
        results[name] = {
            "mean": float(np.mean(first[name])),
            "median": float(middle),
            "percentile_99": float(late),
            "mean_again": float(np.mean(again[name])),
        }
    return results


def _seconds(
    engines: Mapping[str, Callable[[Any], Any]], feeds: Mapping[int, Any], lengths: np.ndarray, calls: Iterable[int]
) -> dict[str, list[float]]:
    """The seconds of each engine's call at each of the lengths; which engine is first changes from call to call."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for i in calls:
        feed = feeds[int(lengths[i])]
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            engines[name](feed)
            taken[name].append(time.perf_counter() - start)
    return taken
