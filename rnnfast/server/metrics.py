"""The server's numbers: as plain data, as their sum over processes, and as Prometheus and OpenMetrics read them.

Requests only count: all that is here runs when somebody looks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

import rnnfast
from rnnfast.server.faults import REASONS
from rnnfast.server.service import Service
from rnnfast.server.sums import summed

Numbers = dict[str, Any]

# The most live sequences that the numbers list.
LISTED = 20
# Triton's reasons of failures: those of ours that each stands for. The others are "OTHER".
TRITON_REASONS = {
    "REJECTED": ("overloaded", "unavailable", "closed", "deadline"),
    "CANCELED": ("cancelled",),
    "BACKEND": ("model", "internal"),
}


# ---------------------------------------------------------------------------------------------------- plain data
def numbers(service: Service) -> Numbers:
    """All numbers of a server in one process, as plain data.

    Returns:
        {"server": {...}, "models": [{...} for each version of each model], "sequences": [the oldest live ones]}.
    """
    rows = [
        {"model": model.name, "version": model.version, **row}
        for model in service.models()
        if model.sequences is not None
        for row in model.sequences.oldest(LISTED)
    ]
    return {
        "server": {
            "version": rnnfast.__version__,
            "processes": 1,
            "ready": service.ready,
            "draining": service.draining,
            "started": service.started,
            "uptime": time.time() - service.started,
            "resident": resident(),
            "cpu_seconds": time.process_time(),
            "errors": dict(service.errors),
            "failures": dict(service.failures),
        },
        "models": [model.numbers() for model in service.models()],
        "sequences": _oldest(rows),
    }


def total(parts: Iterable[Numbers]) -> Numbers:
    """The numbers of several processes of one server as those of one.

    It is ready if all are. Counts, histograms, memory and processor time are sums.
    """
    parts = list(parts)
    servers = [part["server"] for part in parts]
    return {
        "server": summed(servers)
        | {
            "ready": all(server["ready"] for server in servers),
            "started": min(server["started"] for server in servers),
            "uptime": max(server["uptime"] for server in servers),
        },
        "models": summed([part["models"] for part in parts]),
        "sequences": _oldest([row for part in parts for row in part["sequences"]]),
    }


def _oldest(rows: list[Numbers]) -> list[Numbers]:
    return sorted(rows, key=lambda row: -row["age"])[:LISTED]


def resident() -> int:
    """The bytes of the process that are in memory."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------------------------------- metrics
class Row(NamedTuple):
    """A metric.

    Attributes:
        name: Its name; that of a counter without `_total`.
        kind: counter, gauge, histogram, info; unknown for Triton's counters, whose names do not end in `_total`.
        help: What it says.
        value: A function of the numbers of a server or of a model: a number, a histogram, {label value: number}, or
            the labels of an info.
        label: The label of such a dict.
    """

    name: str
    kind: str
    help: str
    value: Callable[[Numbers], Any]
    label: str = ""


def _by_reason(counts: dict[str, int]) -> dict[str, int]:
    """Counts of every reason, so that a first failure is a change of a number that was there."""
    return dict.fromkeys(REASONS, 0) | counts


def _as_triton(counts: dict[str, int]) -> dict[str, int]:
    """Counts by Triton's reasons."""
    known = {name: sum(counts.get(reason, 0) for reason in reasons) for name, reasons in TRITON_REASONS.items()}
    return known | {"OTHER": sum(counts.values()) - sum(known.values())}


def _microseconds(histogram: Numbers) -> int:
    return round(histogram["sum"] * 1e6)


OF_SERVER = (
    Row("rnnfast", "info", "The version of rnnfast.", lambda s: {"version": s["version"]}),
    Row("rnnfast_ready", "gauge", "1 where all models are loaded and new sequences are taken.", lambda s: s["ready"]),
    Row("rnnfast_draining", "gauge", "1 where the server is ending.", lambda s: s["draining"]),
    Row("rnnfast_processes", "gauge", "Processes of the server.", lambda s: s["processes"]),
    Row("rnnfast_uptime_seconds", "gauge", "Seconds since the server was started.", lambda s: s["uptime"]),
    Row(
        "rnnfast_error_answers",
        "counter",
        "Answers that told a client of an error, by reason, for any path, also where no model was found.",
        lambda s: _by_reason(s["errors"]),
        "reason",
    ),
    Row("process_resident_memory_bytes", "gauge", "Bytes of memory in use.", lambda s: s["resident"]),
    Row("process_cpu_seconds", "counter", "Seconds of processor time.", lambda s: s["cpu_seconds"]),
    Row("process_start_time_seconds", "gauge", "When it was started, in seconds since 1970.", lambda s: s["started"]),
)
OF_MODEL = (
    Row("rnnfast_requests", "counter", "Requests that were answered or failed.", lambda m: m["done"]),
    Row(
        "rnnfast_requests_failed",
        "counter",
        "Requests that failed, by reason.",
        lambda m: _by_reason(m["failed"]),
        "reason",
    ),
    Row("rnnfast_requests_in_progress", "gauge", "Requests that wait or run.", lambda m: m["in_progress"]),
    Row("rnnfast_request_seconds", "histogram", "Seconds of answered requests.", lambda m: m["seconds"]),
    Row(
        "rnnfast_queue_seconds", "histogram", "Seconds that requests waited for a batch.", lambda m: m["queue_seconds"]
    ),
    Row("rnnfast_compute_seconds", "histogram", "Seconds of batches.", lambda m: m["compute_seconds"]),
    Row("rnnfast_batch_size", "histogram", "Requests in a batch.", lambda m: m["batch_sizes"]),
    Row("rnnfast_sequences_live", "gauge", "Live sequences.", lambda m: m["sequences"]["live"]),
    Row(
        "rnnfast_sequences_idle",
        "gauge",
        "Live sequences without a request for 5 seconds.",
        lambda m: m["sequences"]["idle"],
    ),
    Row("rnnfast_sequences_max", "gauge", "The most live sequences.", lambda m: m["sequences"]["most"]),
    Row("rnnfast_sequences_opened", "counter", "Sequences that began.", lambda m: m["sequences"]["opened"]),
    Row(
        "rnnfast_sequences_resumed",
        "counter",
        "Sequences of a server before that went on here.",
        lambda m: m["sequences"]["resumed"],
    ),
    Row("rnnfast_sequences_ended", "counter", "Sequences that their clients ended.", lambda m: m["sequences"]["ended"]),
    Row(
        "rnnfast_sequences_idled",
        "counter",
        "Sequences that were closed as no request came.",
        lambda m: m["sequences"]["idled"],
    ),
    Row(
        "rnnfast_sequences_dropped",
        "counter",
        "Sequences that were closed as their connection broke or their model was unloaded.",
        lambda m: m["sequences"]["dropped"],
    ),
    Row(
        "rnnfast_sequences_replaced",
        "counter",
        "Sequences that began anew while they were live.",
        lambda m: m["sequences"]["replaced"],
    ),
    Row("rnnfast_model_memory_bytes", "gauge", "Bytes of plans and work memory.", lambda m: m["memory"]),
    Row("rnnfast_plans", "gauge", "Plans, one for each set of input types and shapes.", lambda m: m["plans"]),
    Row("nv_inference_request_success", "unknown", "As Triton: answered requests.", lambda m: m["seconds"]["count"]),
    Row(
        "nv_inference_request_failure",
        "unknown",
        "As Triton: failed requests, by its reasons.",
        lambda m: _as_triton(m["failed"]),
        "reason",
    ),
    Row("nv_inference_count", "unknown", "As Triton: answered requests.", lambda m: m["seconds"]["count"]),
    Row("nv_inference_exec_count", "unknown", "As Triton: batches.", lambda m: m["batch_sizes"]["count"]),
    Row(
        "nv_inference_request_duration_us",
        "unknown",
        "As Triton: microseconds of answered requests.",
        lambda m: _microseconds(m["seconds"]),
    ),
    Row(
        "nv_inference_queue_duration_us",
        "unknown",
        "As Triton: microseconds that requests waited for a batch.",
        lambda m: _microseconds(m["queue_seconds"]),
    ),
    Row("nv_inference_compute_input_duration_us", "unknown", "As Triton: 0, as it is not measured.", lambda m: 0),
    Row(
        "nv_inference_compute_infer_duration_us",
        "unknown",
        "As Triton: microseconds of batches.",
        lambda m: _microseconds(m["compute_seconds"]),
    ),
    Row("nv_inference_compute_output_duration_us", "unknown", "As Triton: 0, as it is not measured.", lambda m: 0),
    Row(
        "nv_inference_pending_request_count",
        "gauge",
        "As Triton: requests that wait or run.",
        lambda m: m["in_progress"],
    ),
)


class Collector:
    """The metrics of numbers, for prometheus-client's encoders, without a registry."""

    def __init__(self, given: Numbers) -> None:
        self._given = given

    def collect(self) -> Iterator[Metric]:
        """Each metric with its samples."""
        for rows, parts in (OF_SERVER, [self._given["server"]]), (OF_MODEL, self._given["models"]):
            for row in rows:
                metric = Metric(row.name, row.help, row.kind)
                for part in parts:
                    labels = {"model": part["name"], "version": part["version"]} if rows is OF_MODEL else {}
                    _add(metric, row, labels, row.value(part))
                yield metric


def _add(metric: Metric, row: Row, labels: dict[str, str], value: Any) -> None:
    """Add the samples of a value."""
    if row.kind == "histogram":
        names = [floatToGoString(bound) for bound in (*value["bounds"], float("inf"))]
        for name, count in zip(names, accumulate(value["counts"])):
            metric.add_sample(f"{row.name}_bucket", labels | {"le": name}, count)
        metric.add_sample(f"{row.name}_count", labels, value["count"])
        metric.add_sample(f"{row.name}_sum", labels, value["sum"])
    elif row.kind == "info":
        metric.add_sample(f"{row.name}_info", labels | value, 1)
    else:
        name = f"{row.name}_total" if row.kind == "counter" else row.name
        for label, n in value.items() if row.label else [("", value)]:
            metric.add_sample(name, labels | {row.label: label} if row.label else labels, n)


def exposition(given: Numbers, accept: str) -> tuple[bytes, str]:
    """The numbers as a scraper reads them, and the content type that it gets by its Accept header."""
    encode, kind = choose_encoder(accept)
    return encode(Collector(given)), kind  # type: ignore[arg-type]
