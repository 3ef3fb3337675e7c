"""The server's numbers: that they are what clients did, and that Prometheus reads them."""

import collections
import queue
import re
import time

import numpy as np
import pytest

from rnnfast.server.faults import REASONS
from tests.graphs import parse, random
from tests.paths import MODELS, ROOT
from tests.server.client import ask, bands, frame, infer
from tests.server.conftest import running

prometheus_client = pytest.importorskip("prometheus_client")
families = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families
openmetrics_families = pytest.importorskip("prometheus_client.openmetrics.parser").text_string_to_metric_families
metrics = pytest.importorskip("rnnfast.server.metrics")
PAGE = ROOT / "docs" / "howto" / "watching-a-server.md"
HISTOGRAMS = ("rnnfast_request_seconds", "rnnfast_queue_seconds", "rnnfast_compute_seconds", "rnnfast_batch_size")


def scraped(server):
    """{(name, the other labels sorted): value} of the samples, without the label version."""
    status, headers, body = ask(server, "GET", "/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    return {
        (
            sample.name,
            *sorted((name, value) for name, value in sample.labels.items() if name != "version"),
        ): sample.value
        for family in families(body.decode())
        for sample in family.samples
    }


def of(samples, name, model="denoiser", **labels):
    return samples[(name, *sorted({"model": model, **labels}.items()))]


def settled(server, count=None):
    """The samples once the time of all batches is counted, right after their answers; `count` requests were in them."""
    for _ in range(200):
        samples = scraped(server)
        if of(samples, "rnnfast_compute_seconds_count") == of(samples, "rnnfast_batch_size_count"):
            break
        time.sleep(0.01)
    assert count is None or of(samples, "rnnfast_batch_size_sum") == count
    return samples


def test_numbers_add_up_to_what_clients_did():
    with running("denoiser", "tagger", idle=0.5, max_sequences=6, control=True) as server:
        client = collections.Counter()

        def step(id, status=200, reason=None, x=frame(), **flags):
            got, answer = infer(server, x, sequence_id=id, **flags)
            assert got == status, answer
            client["done"] += 1
            client["answered"] += status == 200
            if reason is not None:
                client[reason] += 1

        for id in (1, 2, "three", 4):
            step(id, sequence_start=True)
        for _ in range(5):
            step(1)
            step("three")
        step(2, sequence_start=True)  # anew, while it is live
        step(9, sequence_start=True, sequence_end=True)
        step(1, sequence_end=True)
        step(1, 400, "unknown_sequence")
        step(7, 400, "unknown_sequence")
        step(4, 400, "input", x=np.zeros((1, 5), np.float32))
        step(-1, 400, "input")
        status, _, _ = ask(server, "POST", "/v2/models/denoiser/infer", b"{")
        assert status == 400
        client["done"] += 1
        client["input"] += 1
        for id in (10, 11, 12):
            step(id, sequence_start=True)
        step(13, 429, "overloaded", sequence_start=True)
        model = server.service.find("denoiser")
        server.call(model.sequences.drop, 10, "was closed by a test")
        assert ask(server, "POST", "/v2/models/nope/infer", b"{}")[0] == 404
        assert ask(server, "GET", "/nope")[0] == 404

        samples = settled(server, client["answered"])
        failures = {reason: of(samples, "rnnfast_requests_failed_total", reason=reason) for reason in REASONS}
        assert {reason: n for reason, n in failures.items() if n} == {
            reason: client[reason] for reason in ("unknown_sequence", "input", "overloaded")
        }
        assert of(samples, "rnnfast_requests_total") == client["done"]
        assert of(samples, "rnnfast_request_seconds_count") == client["answered"]
        assert of(samples, "rnnfast_requests_in_progress") == of(samples, "nv_inference_pending_request_count") == 0
        errors = {reason: samples["rnnfast_error_answers_total", ("reason", reason)] for reason in REASONS}
        assert errors == failures | {"not_found": 2}
        assert of(samples, "rnnfast_queue_seconds_count") == of(samples, "rnnfast_batch_size_sum")
        assert of(samples, "nv_inference_exec_count") == of(samples, "rnnfast_batch_size_count")
        assert of(samples, "nv_inference_request_success") == of(samples, "nv_inference_count") == client["answered"]
        triton = {
            reason: of(samples, "nv_inference_request_failure", reason=reason)
            for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        }
        assert triton == {
            "REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": client["input"] + client["unknown_sequence"]
        }  # fmt: skip
        assert of(samples, "rnnfast_requests_total", "tagger") == 0

        sequences = {
            name: of(samples, f"rnnfast_sequences_{name}")
            for name in ("live", "opened_total", "ended_total", "replaced_total", "dropped_total", "idled_total", "max")
        }
        assert sequences == {
            "live": 5, "opened_total": 9, "ended_total": 2, "replaced_total": 1, "dropped_total": 1, "idled_total": 0,
            "max": 6,
        }  # fmt: skip
        deadline = time.monotonic() + 10
        while len(model.sequences) and time.monotonic() < deadline:
            time.sleep(0.05)
        samples = scraped(server)
        assert of(samples, "rnnfast_sequences_live") == 0 and of(samples, "rnnfast_sequences_idled_total") == 5


def test_grpc_and_websockets_count_too():
    triton = pytest.importorskip("tritonclient.grpc")
    connect = pytest.importorskip("websockets.sync.client").connect
    from tritonclient.utils import InferenceServerException
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    answers = queue.Queue()
    with running("denoiser") as server:
        client = triton.InferenceServerClient(server.address("grpc"))
        given = triton.InferInput("bands", [1, 22], "FP32")
        given.set_data_from_numpy(frame())
        client.infer("denoiser", [given], sequence_id=1, sequence_start=True)
        with pytest.raises(InferenceServerException, match="'nope' is not found"):
            client.infer("nope", [given], sequence_id=1)
        with pytest.raises(InferenceServerException, match="START flag"):
            client.infer("denoiser", [given], sequence_id=9)
        with pytest.raises(InferenceServerException, match="tracing is not supported"):
            client.get_trace_settings()
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer("denoiser", [given], sequence_id=1)
        client.async_stream_infer("denoiser", [given], sequence_id=10)
        told = [answers.get(timeout=20) for _ in range(2)]
        assert sum(error is not None for error in told) == 1
        client.stop_stream()
        client.close()
        with connect(f"ws://{server.address('http')}/v2/models/denoiser/stream") as socket:
            socket.send(frame().tobytes())
            assert len(socket.recv()) == frame().nbytes
            socket.send(b"abc")
            with pytest.raises(ConnectionClosed):
                socket.recv()
        with pytest.raises(InvalidStatus, match="404"):
            connect(f"ws://{server.address('http')}/v2/models/nope/stream")
        samples = settled(server, 3)
        errors = {reason: samples["rnnfast_error_answers_total", ("reason", reason)] for reason in REASONS}
        assert {reason: n for reason, n in errors.items() if n} == {
            "not_found": 2, "unknown_sequence": 2, "missing_extension": 1, "input": 1
        }  # fmt: skip
        assert of(samples, "rnnfast_request_seconds_count") == 3
        assert of(samples, "rnnfast_requests_failed_total", reason="unknown_sequence") == 2
        assert of(samples, "rnnfast_sequences_opened_total") == 2


def test_calls_without_a_sequence_are_batches_of_one():
    with running("denoiser") as server:
        x, state = frame(), np.zeros((1, 1, 32), np.float32)
        inputs = [bands(x), bands(state) | {"name": "state"}]
        for _ in range(3):
            assert ask(server, "POST", "/v2/models/denoiser/infer", {"inputs": inputs})[0] == 200
        for i in range(2):
            assert infer(server, x, sequence_id=5, sequence_start=i == 0)[0] == 200
        samples = settled(server, 5)
        assert of(samples, "rnnfast_batch_size_bucket", le="1.0") == of(samples, "rnnfast_queue_seconds_count") == 5
        assert of(samples, "rnnfast_plans") >= 1


def test_a_batch_that_failed_stays_counted(tmp_path):
    """The first frame of a shape gets a pool, which is given up where it fails."""
    text = """g (float[batch, n] x, float[batch, 3] h) => (float[batch, 3] y, float[batch, 3] h_out)
      { xw = MatMul(x, w)  h_out = Add(h, xw)  y = Tanh(h_out) }"""
    (tmp_path / "open.onnx").write_bytes(parse(text, w=random(0, 4, 3)))

    def step(server, n, **flags):
        x = {"name": "x", "datatype": "FP32", "shape": [1, n], "data": [0.5] * n}
        message = {"inputs": [x], "parameters": {"sequence_id": 1, **flags}}
        return ask(server, "POST", "/v2/models/open/infer", message)[0]

    with running(tmp_path / "open.onnx", states={"h": "h_out"}) as server:
        assert [step(server, 4, sequence_start=True), step(server, 5), step(server, 4)] == [200, 400, 200]
        batchers = server.service.find("open").sequences.batchers
        for _ in range(200):
            if len(batchers) == 1:
                break
            time.sleep(0.01)
            batchers = server.service.find("open").sequences.batchers
        assert batchers[0].stats()["frames"] == 2
        samples = scraped(server)
        assert of(samples, "rnnfast_queue_seconds_count", "open") == 3
        assert (
            of(samples, "rnnfast_batch_size_sum", "open") == of(samples, "rnnfast_compute_seconds_count", "open") == 3
        )
        assert of(samples, "rnnfast_requests_failed_total", "open", reason="input") == 1


def test_histograms_are_cumulative_and_complete(server):
    assert infer(server, frame())[0] == 400  # no state, no sequence
    assert infer(server, frame(), sequence_id=1, sequence_start=True)[0] == 200
    settled(server)
    _, _, body = ask(server, "GET", "/metrics")
    found = {family.name: family for family in families(body.decode())}
    for name in HISTOGRAMS:
        samples = [s for s in found[name].samples if s.labels["model"] == "denoiser"]
        buckets = [s for s in samples if s.name == f"{name}_bucket"]
        bounds, counts = [float(s.labels["le"]) for s in buckets], [s.value for s in buckets]
        assert bounds == sorted(bounds) and bounds[-1] == float("inf")
        assert counts == sorted(counts)
        assert counts[-1] == next(s.value for s in samples if s.name == f"{name}_count") >= 1
        assert next(s.value for s in samples if s.name == f"{name}_sum") > 0


@pytest.mark.parametrize(
    ("accept", "kind", "read"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", families),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8", families),
        (
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text; version=1.0.0",
            openmetrics_families,
        ),
    ],
)
def test_the_accept_header_chooses_the_format(server, accept, kind, read):
    status, headers, body = ask(server, "GET", "/metrics", headers={"accept": accept} if accept else {})
    assert status == 200 and headers["content-type"].startswith(kind)
    found = {family.name: family for family in read(body.decode())}
    for row in (*metrics.OF_SERVER, *metrics.OF_MODEL):
        name = f"{row.name}_info" if row.kind == "info" and read is families else row.name
        assert found[name].documentation == row.help
        assert found[name].samples, name
    assert len(found) == len(metrics.OF_SERVER) + len(metrics.OF_MODEL)


def test_no_registry_is_used(server):
    assert scraped(server)
    assert not any(family.name.startswith(("rnnfast", "nv_")) for family in prometheus_client.REGISTRY.collect())


def test_names_of_models_are_escaped(tmp_path):
    name = 'a "b"\\c\n{d}'
    (tmp_path / f"{name}.onnx").write_bytes((MODELS / "denoiser.onnx").read_bytes())
    with running(tmp_path / f"{name}.onnx") as server:
        assert of(scraped(server), "rnnfast_requests_total", name) == 0


def test_the_numbers_of_processes_are_summed(server):
    assert infer(server, frame(), sequence_id=77, sequence_start=True)[0] == 200
    one = server.call(metrics.numbers, server.service)
    two = metrics.total([one, one | {"server": one["server"] | {"ready": False, "started": 1.0}}])
    assert two["server"]["processes"] == 2 and two["server"]["resident"] == 2 * one["server"]["resident"]
    assert not two["server"]["ready"] and two["server"]["started"] == 1.0
    assert [model["name"] for model in two["models"]] == [model["name"] for model in one["models"]]
    for a, b in zip(one["models"], two["models"]):
        assert (b["weights"], b["batching"], b["last"]) == (a["weights"], a["batching"], a["last"])
        assert b["done"] == 2 * a["done"] and b["seconds"]["bounds"] == a["seconds"]["bounds"]
        for name in ("seconds", "queue_seconds", "compute_seconds", "batch_sizes"):
            assert b[name]["counts"] == [2 * n for n in a[name]["counts"]] and b[name]["sum"] == 2 * a[name]["sum"]
        assert b["sequences"] == {name: 2 * n for name, n in a["sequences"].items()}
        assert b["failed"] == {reason: 2 * n for reason, n in a["failed"].items()}
    assert metrics.total([one]) == one


def test_ready_and_draining_are_told():
    with running("denoiser", drain=20.0) as server:
        assert infer(server, frame(), sequence_id=1, sequence_start=True)[0] == 200
        samples = scraped(server)
        assert (samples[("rnnfast_ready",)], samples[("rnnfast_draining",)]) == (1, 0)
        server.call(server.service.begin_draining)
        samples = scraped(server)
        assert (samples[("rnnfast_ready",)], samples[("rnnfast_draining",)]) == (0, 1)
        assert infer(server, frame(), sequence_id=1, sequence_end=True)[0] == 200


def test_the_page_of_the_documentation_lists_every_metric():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*?) \| ([^|]*?) \|$", PAGE.read_text(), re.M)
    expected = []
    for table in metrics.OF_SERVER, metrics.OF_MODEL:
        for row in table:
            name = row.name + {"counter": "_total", "info": "_info"}.get(row.kind, "")
            labels = ["model", "version"] if table is metrics.OF_MODEL else []
            labels += [row.label] if row.label else ["version"] if row.kind == "info" else []
            expected.append((name, row.kind, ", ".join(labels), row.help))
    assert rows == expected


def test_the_page_of_the_documentation_lists_every_reason():
    assert tuple(re.findall(r"^\| `(\w+)` \| [^|]* \|$", PAGE.read_text(), re.M)) == REASONS


def test_statistics_are_what_perf_analyzer_demands(server):
    """Its windows are differences of counts: `queue` grows with requests, and the parts of computing count the same."""
    client = pytest.importorskip("tritonclient.http").InferenceServerClient(server.address("http"))
    before = client.get_inference_statistics("denoiser")["model_stats"][0]["inference_stats"]
    for i in range(4):
        assert infer(server, frame(), sequence_id=3, sequence_start=i == 0)[0] == 200
    (stats,) = client.get_inference_statistics("denoiser")["model_stats"]
    client.close()
    after = stats["inference_stats"]
    assert (stats["name"], stats["version"]) == ("denoiser", "1")
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after[name]["count"] - before[name]["count"] == 4, name
    assert after["queue"]["ns"] > before["queue"]["ns"]
    assert stats["inference_count"] == after["success"]["count"] and 1 <= stats["execution_count"]
    assert abs(stats["last_inference"] / 1000 - time.time()) < 60
