"""What a server counts of the requests of a model. One thread writes, the event loop's; reading copies."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from typing import Any

from rnnfast.server.faults import status_of
from rnnfast.serving.worker import SIZES, TIMES

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
        call_queue, call_compute: The Durations of calls without a sequence: until they ran, and while they ran. The
            thread that runs them writes these.
        ended_batchers: The sums of the histograms BATCHES of Batchers that have ended.
    """

    def __init__(self) -> None:
        self.begun, self.failed, self.failure_ns, self.last = 0, dict[str, int](), 0, 0
        self.durations = Durations(SECONDS)
        self.opened = self.resumed = self.ended = self.idled = self.dropped = self.replaced = 0
        self.call_queue, self.call_compute = Durations(TIMES), Durations(TIMES)
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

    def keep(self, batches: dict[str, Any]) -> None:
        """Keep the histograms BATCHES of a Batcher that has ended."""
        before = self.ended_batchers
        self.ended_batchers = {n: batches[n] if before is None else added(before[n], batches[n]) for n in BATCHES}

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


def with_calls(batchers: list[dict[str, dict[str, Any]]], statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Histograms of Batchers with the calls that ran beside them, each of which is a batch of one."""
    queue, compute = statistics.call_queue.numbers(), statistics.call_compute.numbers()
    n = compute["count"]
    sizes = {"bounds": list(SIZES), "counts": [n] + [0] * len(SIZES), "sum": float(n), "count": n}
    total = {"batch_sizes": sizes, "queue_seconds": queue, "compute_seconds": compute}
    for batches in [*batchers, *([] if statistics.ended_batchers is None else [statistics.ended_batchers])]:
        total = {name: added(value, batches[name]) for name, value in total.items()}
    return total


def added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The sum of two histograms with the same bounds."""
    assert a["bounds"] == b["bounds"]
    counts = [x + y for x, y in zip(a["counts"], b["counts"])]
    return {"bounds": a["bounds"], "counts": counts, "sum": a["sum"] + b["sum"], "count": a["count"] + b["count"]}
