"""What a server counts of the requests of a model. One thread writes, the event loop's; reading copies."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from typing import Any

from rnnfast.server.faults import status_of

# Seconds: the upper bounds of the histogram of whole requests.
SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip

# The histograms of a Batcher's stats of which there are sums.
BATCHES = ("batch_sizes", "queue_seconds", "compute_seconds")


class Durations:
    """How long something took, counted by upper bounds; `counts` has one more entry for what took longer."""

    __slots__ = ("bounds", "counts", "ns")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.ns = bounds, [0] * (len(bounds) + 1), 0

    def add(self, ns: int) -> None:
        """Count some nanoseconds."""
        self.counts[bisect.bisect_left(self.bounds, ns * 1e-9)] += 1
        self.ns += ns

    def numbers(self) -> dict[str, Any]:
        """A histogram as `Batcher.stats` has them."""
        counts = list(self.counts)
        return {"bounds": list(self.bounds), "counts": counts, "sum": self.ns * 1e-9, "count": sum(counts)}


class Statistics:
    """Counts of one model.

    Attributes:
        begun: Requests that came; those that are neither answered nor failed are in progress.
        failed: {reason: requests} that were refused or failed.
        failure_ns: Nanoseconds of those requests together.
        durations: The Durations of answered requests.
        last: Milliseconds since 1970 of the last answer, 0 if there was none.
        opened, resumed: Sequences that began, and those of a server before that went on.
        ended, idled, dropped, replaced: Sequences that their clients ended, that were closed without requests, that
            were closed as their connection broke or their model was unloaded, and that began anew while they were
            live. Of those that were opened or resumed the others are live.
        ended_batchers: The sums of the histograms BATCHES of Batchers that have ended.
    """

    def __init__(self) -> None:
        self.begun, self.failed, self.failure_ns, self.last = 0, dict[str, int](), 0, 0
        self.durations = Durations(SECONDS)
        self.opened = self.resumed = self.ended = self.idled = self.dropped = self.replaced = 0
        self.ended_batchers: dict[str, dict[str, Any]] | None = None

    @property
    def succeeded(self) -> int:
        """The number of requests that were answered."""
        return sum(self.durations.counts)

    def begin(self) -> int:
        """Count a request that came; return what `success` or `failure` takes."""
        self.begun += 1
        return time.perf_counter_ns()

    def success(self, begun: int) -> None:
        """Count a request that is answered; `begun` is what `begin` returned."""
        self.durations.add(time.perf_counter_ns() - begun)
        self.last = time.time_ns() // 1_000_000

    def failure(self, begun: int, error: BaseException) -> None:
        """Count a request that failed."""
        count_reason(self.failed, error)
        self.failure_ns += time.perf_counter_ns() - begun

    def keep(self, stats: dict[str, Any]) -> None:
        """Keep the histograms of the `stats` of a Batcher that has ended."""
        batches, before = batches_of(stats), self.ended_batchers
        self.ended_batchers = batches if before is None else {n: added(before[n], batches[n]) for n in BATCHES}

    def numbers(self) -> dict[str, Any]:
        """The counts as plain data: of requests, and of how sequences began and ended."""
        seconds, failed = self.durations.numbers(), dict(self.failed)
        return {
            "done": seconds["count"] + sum(failed.values()),
            "in_progress": self.begun - seconds["count"] - sum(failed.values()),
            "failed": failed,
            "failure_seconds": self.failure_ns * 1e-9,
            "last": self.last,
            "seconds": seconds,
            "sequences": {
                name: getattr(self, name) for name in ("opened", "resumed", "ended", "idled", "dropped", "replaced")
            },
        }


def count_reason(counts: dict[str, int], error: BaseException) -> None:
    """Count an error in {reason: number}."""
    reason = status_of(error).reason
    counts[reason] = counts.get(reason, 0) + 1


def batches_of(stats: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The histograms BATCHES of the `stats` of a Batcher; calls that ran as one are a batch too."""
    return {name: stats[name] for name in BATCHES} | {"batch_sizes": added(stats["batch_sizes"], stats["call_sizes"])}


def all_batches(batchers: list[dict[str, Any]], statistics: Statistics) -> dict[str, dict[str, Any]]:
    """The sums of the histograms BATCHES of Batchers, given by their `stats`, and of those that have ended."""
    total = statistics.ended_batchers
    for stats in batchers:
        batches = batches_of(stats)
        total = batches if total is None else {name: added(total[name], batches[name]) for name in BATCHES}
    assert total is not None
    return total


def added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The sum of two histograms with the same bounds."""
    assert a["bounds"] == b["bounds"]
    counts = [x + y for x, y in zip(a["counts"], b["counts"])]
    return {"bounds": a["bounds"], "counts": counts, "sum": a["sum"] + b["sum"], "count": a["count"] + b["count"]}
