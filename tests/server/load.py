"""A mixed load on a server, all of whose answers are checked and counted: python -m tests.server.load --minutes 60

HTTP with JSON and with binary tensors, sequences that end, that break off and that begin anew, errors of many kinds,
half requests, and streams of gRPC where tritonclient is installed. At the end the server's numbers have to be those
that the clients counted, and its memory has to be flat.
"""

import argparse
import collections
import contextlib
import json
import queue
import random
import re
import socket
import sys
import time

import numpy as np

from tests.server.running import Client, alone, frames_of, in_threads, resident, running

try:
    import tritonclient.grpc as triton
except ImportError:
    triton = None

THREADS, SEQUENCES, FRAMES = 4, 64, 12
# Seconds without a request after which the server closes a sequence, and those that it may take to do so.
IDLE, LOOK = 5, 5
# The most bytes that the server may hold more at the end than after the first quarter of the time.
GROWTH = 8 * 2**20


class Counts(collections.Counter):
    """What the clients counted: `answered`, `failed REASON`, `opened`, `ended`, `idled`, `dropped`, `replaced`."""


class Load:
    """A client in a thread of its own.

    Args:
        server: The Server.
        number: The client's number.
    """

    def __init__(self, server, number):
        self.server, self.client = server, Client(server.port)
        self.random, self.counts = random.Random(number), Counts()
        self.names = (f"{number} {i}" for i in range(sys.maxsize))

    def run(self, until):
        """Play until a time of the monotonic clock."""
        kinds = [self.whole, self.whole, self.json, self.broken_off, self.anew, self.error, self.half_request]
        kinds += [self.stream, self.broken_stream] if triton is not None else []
        while time.monotonic() < until:
            self.random.choice(kinds)()

    def played(self):
        """(name, frames, results) of a new sequence of a random length."""
        which, count = self.random.randrange(SEQUENCES), self.random.randint(2, FRAMES)
        return next(self.names), frames_of(which, FRAMES)[:count], EXPECTED[which][:count]

    def check(self, result, expected):
        """Count an answer."""
        assert np.array_equal(result.reshape(-1), expected)
        self.counts["answered"] += 1

    def whole(self, end=True):
        """A sequence that ends."""
        name, frames, expected = self.played()
        for t, frame in enumerate(frames):
            self.check(self.client.step(name, frame, t == 0, end and t == len(frames) - 1), expected[t])
        self.counts["opened"] += 1
        self.counts["ended"] += end

    def broken_off(self):
        """A sequence that nobody ends."""
        self.whole(end=False)
        self.counts["idled"] += 1

    def anew(self):
        """A sequence that begins anew while it is live."""
        name, frames, expected = self.played()
        for _ in range(2):
            self.check(self.client.step(name, frames[0], True), expected[0])
        self.check(self.client.step(name, frames[1], False, True), expected[1])
        self.counts.update({"opened": 2, "replaced": 1, "ended": 1})

    def json(self):
        """A sequence in JSON."""
        name, frames, expected = self.played()
        for t, frame in enumerate(frames):
            status, body = self.infer(
                frame.tolist(), sequence_id=name, sequence_start=t == 0, sequence_end=t + 1 == len(frames)
            )
            assert status == 200, body
            self.check(np.array(body["outputs"][0]["data"], np.float32), expected[t])
        self.counts.update({"opened": 1, "ended": 1})

    def infer(self, data, name="bands", model="denoiser", **parameters):
        """(status, JSON) of a request in JSON."""
        message = {
            "inputs": [{"name": name, "datatype": "FP32", "shape": [1, 22], "data": data}],
            "parameters": parameters,
        }
        status, body, _ = self.client.request("POST", f"/v2/models/{model}/infer", json.dumps(message))
        return status, json.loads(body)

    def error(self):
        """Requests that fail, each for a reason of its own, before a sequence's frames go on."""
        name, frames, expected = self.played()
        self.check(self.client.step(name, frames[0], True), expected[0])
        for status, reason, options in (
            (400, "failed input", {"name": "nothing", "sequence_id": name}),
            (400, "failed input", {"data": [1.0], "sequence_id": name}),
            (400, "failed input", {"sequence_id": -1}),
            (400, "failed unknown_sequence", {"sequence_id": f"{name} unknown"}),
            (404, "not found", {"model": "nothing"}),
        ):
            given = {"data": frames[1].tolist()} | options
            answer = self.infer(given.pop("data"), **given)
            assert answer[0] == status, answer
            self.counts[reason] += 1
        status, body, _ = self.client.request("POST", "/v2/models/denoiser/infer", b'{"inputs": [')
        assert status == 400, body
        self.counts["failed input"] += 1
        self.check(self.client.step(name, frames[1], False, True), expected[1])
        self.counts.update({"opened": 1, "ended": 1})

    def half_request(self):
        """A client that goes away in the middle of a request."""
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(b"POST /v2/models/denoiser/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n{")

    def stream(self, end=True):
        """Some sequences in one stream of gRPC."""
        plays, answers = [self.played() for _ in range(3)], queue.Queue()
        with contextlib.closing(triton.InferenceServerClient(f"127.0.0.1:{self.server.grpc_port}")) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            sent = 0
            for name, frames, _ in plays:
                for t, frame in enumerate(frames):
                    tensor = triton.InferInput("bands", frame.shape, "FP32").set_data_from_numpy(frame)
                    client.async_stream_infer(
                        "denoiser",
                        [tensor],
                        request_id=f"{name} {t}",
                        sequence_id=name,
                        sequence_start=t == 0,
                        sequence_end=end and t == len(frames) - 1,
                    )
                    sent += 1
            expected = {f"{name} {t}": result for name, _, results in plays for t, result in enumerate(results)}
            for _ in range(sent):
                result, error = answers.get(timeout=60)
                assert error is None, error
                self.check(result.as_numpy("gains"), expected[result.get_response().id])
            client.stop_stream(cancel_requests=not end)
        self.counts["opened"] += len(plays)
        self.counts["ended" if end else "dropped"] += len(plays)

    def broken_stream(self):
        """A stream of gRPC that is cut, with its sequences."""
        self.stream(end=False)


EXPECTED = {}


def metrics(server):
    """{metric with its labels: number} of the server."""
    _, text, _ = Client(server.port).request("GET", "/metrics")
    return {key: float(value) for key, value in re.findall(r"^([^#\s][^ ]*) (\S+)$", text.decode(), re.M)}


def differences(server, counts):
    """[(what, number of the server, number of the clients)] of all numbers that are not the same."""
    got, labels = metrics(server), 'model="denoiser",version="1"'
    failed = {reason.split()[1]: n for reason, n in counts.items() if reason.startswith("failed ")}
    pairs = {
        f"rnnfast_requests_total{{{labels}}}": counts["answered"] + sum(failed.values()),
        f"rnnfast_request_seconds_count{{{labels}}}": counts["answered"],
        f"nv_inference_request_success{{{labels}}}": counts["answered"],
        f"rnnfast_batch_size_sum{{{labels}}}": counts["answered"],
        f"rnnfast_requests_in_progress{{{labels}}}": 0,
        f"rnnfast_sequences_live{{{labels}}}": 0,
    }
    pairs |= {f"rnnfast_sequences_{what}_total{{{labels}}}": counts[what]
              for what in ("opened", "ended", "idled", "dropped", "replaced")}  # fmt: skip
    start = f"rnnfast_requests_failed_total{{{labels},reason="
    reasons = {key.removeprefix(start).strip('"}'): n for key, n in got.items() if key.startswith(start)}
    stats = Client(server.port).get("/v2/models/denoiser/stats")["model_stats"][0]["inference_stats"]
    totals = {"success": counts["answered"], "fail": sum(failed.values())}
    return [
        *((key, got.get(key), n) for key, n in pairs.items() if got.get(key) != n),
        *((f"failed for {key}", n, failed.get(key, 0)) for key, n in reasons.items() if n != failed.get(key, 0)),
        *((what, stats[what]["count"], n) for what, n in totals.items() if stats[what]["count"] != n),
    ]


def resident_of_all(pid):
    """The bytes of memory that a process and those that it has started hold."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return resident(pid) + sum(resident_of_all(child) for child in file.read().split())


def play(minutes, processes=1, tell=print):
    """Play for some minutes: (Counts, [resident bytes each second]). Raises AssertionError where something is wrong."""
    EXPECTED.update({which: alone(frames_of(which, FRAMES)) for which in range(SEQUENCES)})
    options = ["--idle", str(IDLE), "--max-sequences", "10000", "--processes", str(processes)]
    with running(*options) as server:
        loads = [Load(server, number) for number in range(THREADS)]
        until, memory = time.monotonic() + 60 * minutes, []
        with in_threads(lambda part: [load.run(until) for load in part], loads, THREADS):
            while time.monotonic() < until:
                time.sleep(1)
                memory.append(resident_of_all(server.process.pid))
                if len(memory) % 60 == 0:
                    answered = sum(load.counts["answered"] for load in loads)
                    tell(f"{len(memory)} s: {memory[-1] / 2**20:.1f} MB, {answered} answers")
        counts = sum((load.counts for load in loads), Counts())
        deadline = time.monotonic() + IDLE + LOOK
        while different := differences(server, counts):
            assert time.monotonic() < deadline, different
            time.sleep(0.2)
    quarter = len(memory) // 4
    growth = max(memory[-quarter:]) - max(memory[: 2 * quarter][quarter:])
    tell(f"{dict(counts)}; memory after a quarter {memory[quarter] / 2**20:.1f} MB, at the end "
         f"{memory[-1] / 2**20:.1f} MB, from the second quarter to the last {growth / 2**20:+.1f} MB")  # fmt: skip
    assert growth < GROWTH, growth
    return counts, memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    play(given.minutes, given.processes)
