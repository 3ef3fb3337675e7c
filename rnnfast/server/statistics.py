"""What a server counts of the requests of a model. One thread writes, the event loop's; reading copies."""

from __future__ import annotations

import bisect
import time

from rnnfast.server.faults import status_of

# Seconds: the upper bounds of the histogram of whole requests.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Statistics:
    """Counts of one model.

    Attributes:
        succeeded: Requests that were answered.
        failed: {reason: requests} that were refused or failed.
        success_ns, failure_ns: Nanoseconds of those requests together.
        durations: Answered requests by `SECONDS`, with one more entry for longer ones.
        last: Milliseconds since 1970 of the last answer, 0 if there was none.
        opened, ended, idled, dropped: Sequences that began, that their clients ended, that were closed without
            requests, and that were closed as their connection broke or their model was unloaded.
    """

    def __init__(self) -> None:
        self.succeeded, self.failed, self.success_ns, self.failure_ns = 0, dict[str, int](), 0, 0
        self.durations, self.last = [0] * (len(SECONDS) + 1), 0
        self.opened = self.ended = self.idled = self.dropped = 0

    def success(self, begun: int) -> None:
        """Count a request that is answered; `begun` is its `time.perf_counter_ns`."""
        took = time.perf_counter_ns() - begun
        self.succeeded += 1
        self.success_ns += took
        self.durations[bisect.bisect_left(SECONDS, took * 1e-9)] += 1
        self.last = time.time_ns() // 1_000_000

    def failure(self, begun: int, error: BaseException) -> None:
        """Count a request that failed."""
        reason = "cancelled" if not isinstance(error, Exception) else status_of(error).reason
        self.failed[reason] = self.failed.get(reason, 0) + 1
        self.failure_ns += time.perf_counter_ns() - begun
