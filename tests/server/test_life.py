"""The life of a server: how it ends, and how its sequences go on in the next one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("httptools")
pytest.importorskip("uvloop")

from rnnfast.server.peers import process_of
from tests.paths import ROOT
from tests.server.running import DENOISER, PATIENCE, Client, Refused, alone, frames_of, in_threads, resident, running

FRAMES = 6


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def children(pid):
    """The ids of the processes that a process has started, in order."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 1), pytest.param(2, 3, marks=pytest.mark.slow), pytest.param(3, 1, marks=pytest.mark.slow)],
)
def test_sequences_go_on_in_the_next_server_with_the_same_bits(tmp_path, before, after):
    port, ids = free_port(), [*range(1, 151), *(f"speaker {i}" for i in range(150))]
    results, halfway = {}, threading.Semaphore(0)

    def play(part):
        client = Client(port)
        for t in range(FRAMES):
            for id in part:
                frame = frames_of(id, FRAMES)[t]
                results.setdefault(id, []).append(client.patient_step(id, frame, start=t == 0, end=t == FRAMES - 1))
                halfway.release()

    options = ("--drain", "0", "--state-dir", str(tmp_path / "states"))
    with running(*options, "--processes", str(before), port=port) as first, in_threads(play, ids):
        for _ in range(len(ids) * FRAMES // 2):  # each thread is in the middle: sequences have 2 to 4 frames
            assert halfway.acquire(timeout=PATIENCE)
        assert first.end() == 0
        assert sum(line.count(" wait in ") for line in first.lines) == before
        files = list((tmp_path / "states").iterdir())
        assert len(files) == before and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
        second = running(*options, "--processes", str(after), port=port)
        server = second.__enter__()
    try:
        for id in ids:
            assert np.array_equal(results[id], alone(frames_of(id, FRAMES))), id
        assert list((tmp_path / "states").iterdir()) == []
        stats = Client(port).get("/v2/models/denoiser/stats")["model_stats"]
        assert len(stats) == 1 and stats[0]["inference_stats"]["fail"]["count"] == 0
        assert server.end() == 0
        assert list((tmp_path / "states").iterdir()) == []  # nothing is live: nothing is kept
    finally:
        second.__exit__(None, None, None)


def test_an_ending_server_refuses_new_sequences_and_lets_live_ones_end():
    frames = frames_of("a", 4)
    with running("--drain", "30") as server:
        client = Client(server.port)
        results = [client.step("a", frames[0], start=True)]
        assert client.get("/v2/health/ready") == {"ready": True}
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while client.request("GET", "/v2/health/ready")[0] == 200:
            assert time.monotonic() < deadline
        status, body, headers = client.request("GET", "/v2/health/ready")
        assert (status, body) == (503, b'{"ready":false}') and headers["Retry-After"]
        assert client.get("/v2/health/live") == {"live": True}
        for id in "new", "a":
            with pytest.raises(Refused, match="takes no new sequences") as refusal:
                client.step(id, frames[0], start=True)
            assert refusal.value.args[0] == 503 and refusal.value.args[2]["Retry-After"]
        results += [client.step("a", frame) for frame in frames[1:3]]
        assert server.process.poll() is None
        results.append(client.step("a", frames[3], end=True))
        assert server.wait() == 0
    assert np.array_equal(results, alone(frames))


def test_a_second_signal_ends_the_server_at_once():
    with running("--drain", "60") as server:
        client = Client(server.port)
        client.step("a", frames_of("a", 1)[0], start=True)
        server.process.send_signal(signal.SIGTERM)
        while client.request("GET", "/v2/health/ready")[0] == 200:
            pass
        assert server.end() == -signal.SIGTERM


def test_sequences_of_a_killed_server_are_unknown(tmp_path):
    port, frames = free_port(), frames_of("a", 2)
    with running("--state-dir", str(tmp_path), port=port) as server:
        Client(port).step("a", frames[0], start=True)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with running("--state-dir", str(tmp_path), port=port):
        client = Client(port)
        with pytest.raises(Refused, match="must specify the START flag"):
            client.step("a", frames[1])
        assert np.array_equal(client.step("a", frames[0], start=True), alone(frames[:1])[0])


def test_clients_that_are_killed_disturb_nobody_and_leak_nothing():
    ids = [f"{i}" for i in range(40)]
    results = {}

    def play(part):
        client = Client(server.port)
        for t in range(10):
            for id in part:
                result = client.step(id, frames_of(id, 10)[t], start=t == 0, end=t == 9)
                results.setdefault(id, []).append(result)

    with running() as server:

        def leave(count):
            """Send requests, whole ones and halves, and go away without reading."""
            for i in range(count):
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    body = b'{"inputs":[{"name":"bands","datatype":"FP32","shape":[1,22],"data":[%s]}]}' % (
                        b",".join([b"1"] * 22)
                    )
                    head = b"POST /v2/models/denoiser/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
                    data = head % len(body) + body
                    connection.sendall(data if i % 2 else data[: len(data) // 2])

        leave(200)
        before = resident(server.process.pid)
        with in_threads(play, ids, 2):
            leave(1000)
        assert resident(server.process.pid) - before < 8 * 2**20  # measured: under 2 MB
        descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        assert descriptors < 50, descriptors
    for id in ids:
        assert np.array_equal(results[id], alone(frames_of(id, 10))), id


# ------------------------------------------------------------------------------------------ several processes
def test_several_processes_are_one_server():
    ids = [*range(1, 9), *"abcdefgh"]
    assert {process_of(id, 2) for id in ids} == {0, 1}
    with running("--processes", "2", "--control") as server:
        clients = [Client(server.port) for _ in range(8)]  # the kernel gives each to one of the processes
        results = {id: [] for id in ids}
        for t in range(4):
            for i, id in enumerate(ids):
                client = clients[(t * 3 + i) % len(clients)]
                results[id].append(client.step(id, frames_of(id, 4)[t], start=t == 0, end=t == 3))
        for id in ids:
            assert np.array_equal(results[id], alone(frames_of(id, 4))), id
        for client in clients:
            with pytest.raises(Refused, match="sequence a to model 'denoiser' .* ended by its client"):
                client.step("a", frames_of("a", 1)[0])
            counts = client.get("/v2/models/stats")["model_stats"][0]["inference_stats"]
            assert counts["success"]["count"] == 4 * len(ids)
        for action, ready in ("unload", 400), ("load", 200):
            assert clients[0].request("POST", f"/v2/repository/models/denoiser/{action}")[0] == 200
            assert {client.request("GET", "/v2/models/denoiser/ready")[0] for client in clients} == {ready}
        assert server.end() == 0


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_and_the_others_go_on():
    ids = range(1, 21)
    with running("--processes", "2", "--drain", "0") as server:
        clients = [Client(server.port) for _ in range(8)]
        results = {id: [clients[id % 8].step(id, frames_of(id, 3)[0], start=True)] for id in ids}
        os.kill(children(server.process.pid)[1], signal.SIGKILL)
        gone, client = 0, Client(server.port)
        for id in ids:
            deadline = time.monotonic() + 30
            if process_of(id, 2) == 0:
                for t in 1, 2:
                    results[id].append(client.patient_step(id, frames_of(id, 3)[t]))
                assert np.array_equal(results[id], alone(frames_of(id, 3))), id
            else:
                with pytest.raises(Refused, match="must specify the START flag"):
                    client.patient_step(id, frames_of(id, 3)[1])
                gone += 1
                assert np.array_equal(client.step(id, frames_of(id, 3)[0], start=True), alone(frames_of(id, 3)[:1])[0])
        assert 0 < gone < len(ids)
        while client.request("GET", "/v2/health/ready")[0] != 200:
            assert time.monotonic() < deadline
        assert any("process 1 ended with status -9" in line for line in server.lines)
        assert server.end() == 0


@pytest.mark.slow
def test_a_server_of_several_processes_tells_once_why_it_does_not_start(tmp_path):
    with pytest.raises(AssertionError) as failure:
        running("--processes", "3", sources=(str(tmp_path / "absent.onnx"),)).__enter__()
    assert str(failure.value).count("there is no such file or folder") == 1


def test_a_port_that_another_server_has_is_refused():
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        with pytest.raises(AssertionError, match="(?i)address already in use"):
            running("--processes", "2", port=listener.getsockname()[1]).__enter__()


def test_a_check_leaves_states_to_the_server(tmp_path):
    frames, port = frames_of("a", 2), free_port()
    options = ("--drain", "0", "--state-dir", str(tmp_path))
    with running(*options, port=port) as server:
        Client(port).step("a", frames[0], start=True)
        assert server.end() == 0
    command = [sys.executable, "-m", "rnnfast", "serve", "--check", DENOISER, *options]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    with running(*options, port=port):
        assert np.array_equal(Client(port).step("a", frames[1]), alone(frames)[1])


def test_streams_of_grpc_go_on_in_the_next_server(tmp_path):
    """A stream breaks as its server ends; its sequences do not, and go on in another stream."""
    triton = pytest.importorskip("tritonclient.grpc")
    ids, options = range(1, 41), ("--drain", "0", "--state-dir", str(tmp_path), "--processes", "1")
    results, errors = {}, []

    def take(result, error):
        if error is None:
            id, t = map(int, result.get_response().id.split())
            results[id, t] = result.as_numpy("gains")
        else:
            errors.append(error)

    def send(client, t):
        for id in ids:
            frame = frames_of(id, FRAMES)[t]
            tensor = triton.InferInput("bands", frame.shape, "FP32").set_data_from_numpy(frame)
            client.async_stream_infer(
                "denoiser", [tensor], request_id=f"{id} {t}", sequence_id=id, sequence_start=t == 0
            )

    with running(*options) as server, triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(take)
        for t in range(FRAMES // 2):
            send(client, t)
        deadline = time.monotonic() + PATIENCE
        while len(results) < len(ids) * (FRAMES // 2):
            assert time.monotonic() < deadline and not errors
            time.sleep(0.01)
        assert server.end() == 0
        assert "the server is ending" in str(errors[0]) and len(errors) == 1
    with running(*options) as server, triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(take)
        for t in range(FRAMES // 2, FRAMES):
            send(client, t)
        client.stop_stream()
    assert len(errors) == 1 and len(results) == len(ids) * FRAMES
    for id in ids:
        assert np.array_equal([results[id, t].reshape(-1) for t in range(FRAMES)], alone(frames_of(id, FRAMES))), id


def test_states_that_nobody_asks_for_are_closed_when_idle(tmp_path):
    port, frames = free_port(), frames_of("a", 2)
    options = ("--drain", "0", "--state-dir", str(tmp_path), "--idle", "1")
    with running(*options, port=port) as server:
        Client(port).step("a", frames[0], start=True)
        assert server.end() == 0
    with running(*options, port=port):
        client, deadline = Client(port), time.monotonic() + PATIENCE
        while client.get("/v2/statistics")["models"][0]["sequences"]["live"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(Refused, match="it was closed after 1 s without a request"):
            client.step("a", frames[1])
