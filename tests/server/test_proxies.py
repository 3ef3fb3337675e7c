"""Several servers behind a proxy that hashes the id of a sequence, with the configurations that docs/proxies has."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

pytest.importorskip("httptools")
pytest.importorskip("grpc")
pytest.importorskip("websockets")
from websockets.sync.client import connect

from tests.paths import ROOT
from tests.server.running import PATIENCE, Client, Refused, Server, alone, frames_of

FRAMES = 4
# Ports in the configurations, by what listens there.
PORTS = {"http": 8080, "grpc": 8081, "one": 8000, "one grpc": 8001, "two": 8010, "two grpc": 8011}
COMMANDS = {
    "nginx": ["nginx", "-p", ".", "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"],
    "haproxy": ["haproxy", "-db", "-f", "haproxy.cfg"],
}


def free_ports(count):
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


@contextlib.contextmanager
def behind(proxy, folder):
    """(ports, the two servers) of a proxy that runs."""
    if shutil.which(proxy) is None:
        pytest.skip(f"{proxy} is not installed")
    ports = dict(zip(PORTS, free_ports(len(PORTS))))
    file = COMMANDS[proxy][-1] if proxy == "haproxy" else "nginx.conf"
    text = (ROOT / "docs" / "proxies" / file).read_text()
    for name, port in PORTS.items():
        assert f"127.0.0.1:{port}" in text
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}").replace(
            f" port {port}\n", f" port {ports[name]}\n"
        )
    # The same, but faster, and with folders that a user may write to who has not installed nginx.
    text = text.replace("inter 1s", "inter 50ms").replace("fail_timeout=10s", "fail_timeout=1s")
    paths = "".join(f"{name}_temp_path temp_{name};\n" for name in ("proxy", "fastcgi", "uwsgi", "scgi", "client_body"))
    text = text.replace("http {\n", f"http {{\n{paths}", 1) if proxy == "nginx" else text
    if proxy == "nginx" and os.geteuid() == 0:
        text = f"user root;\n{text}"
    (folder / file).write_text(text)
    with contextlib.ExitStack() as stack:
        servers = []
        for name in "one", "two":
            servers.append(Server("--grpc-port", str(ports[f"{name} grpc"]), port=ports[name]))
            stack.callback(servers[-1].kill)
        process = subprocess.Popen(COMMANDS[proxy], cwd=folder)
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.terminate)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ports["http"])):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield ports, servers


def live(server):
    """The number of live sequences of a server."""
    return Client(server.port).get("/v2/statistics")["models"][0]["sequences"]["live"]


def failures(server):
    """The number of requests of a server that failed."""
    stats = Client(server.port).get("/v2/models/stats")["model_stats"][0]
    return stats["inference_stats"]["fail"]["count"]


@pytest.mark.slow
@pytest.mark.parametrize("proxy", COMMANDS)
def test_sequences_stay_with_their_server(proxy, tmp_path):
    with behind(proxy, tmp_path) as (ports, servers):
        clients = [Client(ports["http"]) for _ in range(4)]
        ids = [*range(1, 26), *(f"speaker {i}" for i in range(25))]
        results, died = {id: [] for id in ids}, False

        def step(id, t, **options):
            client = clients[(hash(id) + t) % 4]
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    return client.step(id, frames_of(id, FRAMES)[t], headers={"x-sequence-id": str(id)}, **options)
                except Refused as e:  # by the proxy, as the server could not be reached: nothing was taken
                    if not died or e.args[0] not in (502, 503, 504) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)

        for t in range(2):
            for id in ids:
                results[id].append(step(id, t, start=t == 0))
        assert all(10 < live(server) < 40 for server in servers) and sum(map(live, servers)) == len(ids)
        for t in range(2, FRAMES - 1):
            for id in ids:
                results[id].append(step(id, t))
        assert sum(map(failures, servers)) == 0
        # One dies. Its sequences are told, and may begin anew; the others go on.
        of_two = live(servers[1])
        servers[1].end(signal.SIGKILL)
        died, told = True, 0
        for id in ids:
            try:
                results[id].append(step(id, FRAMES - 1))
            except Refused as e:
                assert e.args[0] == 400 and "must specify the START flag" in e.args[1], e
                told += 1
                results[id] = [step(id, t, start=t == 0) for t in range(FRAMES)]
            assert np.array_equal(results[id], alone(frames_of(id, FRAMES))), id
        assert told == of_two


@pytest.mark.slow
@pytest.mark.parametrize("proxy", COMMANDS)
def test_streams_of_grpc_and_websockets_pass_through(proxy, tmp_path):
    grpcclient = pytest.importorskip("tritonclient.grpc")
    with behind(proxy, tmp_path) as (ports, servers), contextlib.ExitStack() as stack:
        url = f"ws://127.0.0.1:{ports['http']}/v2/models/denoiser/stream"
        connections = [stack.enter_context(connect(url)) for _ in range(20)]
        results = []
        client = stack.enter_context(grpcclient.InferenceServerClient(f"127.0.0.1:{ports['grpc']}"))

        def request(frame):
            given = grpcclient.InferInput("bands", frame.shape, "FP32")
            return [given.set_data_from_numpy(frame)]

        ids = range(1, 21)
        for t in range(FRAMES):  # unary calls
            for id in ids:
                answer = client.infer(
                    "denoiser",
                    request(frames_of(id, FRAMES)[t]),
                    sequence_id=id,
                    sequence_start=t == 0,
                    sequence_end=t == FRAMES - 1,
                    headers={"x-sequence-id": str(id)},
                )
                results.append((id, t, answer.as_numpy("gains")))
        streamed = []
        for stream in "ab":
            client.start_stream(lambda result, error: streamed.append((result, error)),
                                headers={"x-sequence-id": stream})  # fmt: skip
            for t in range(FRAMES):
                for id in range(100, 105):
                    client.async_stream_infer(
                        "denoiser",
                        request(frames_of(id, FRAMES)[t]),
                        request_id=f"{id} {t}",
                        sequence_id=id,
                        sequence_start=t == 0,
                    )
            client.stop_stream()
        assert len(streamed) == 2 * 5 * FRAMES
        for result, error in streamed:
            assert error is None
            id, t = map(int, result.get_response().id.split())
            results.append((id, t, result.as_numpy("gains")))
        for id, t, result in results:
            assert np.array_equal(result.reshape(-1), alone(frames_of(id, FRAMES))[t]), (id, t)
        for t in range(FRAMES):
            for i, connection in enumerate(connections):
                connection.send(frames_of(i, FRAMES)[t].tobytes())
                result = np.frombuffer(connection.recv(PATIENCE), np.float32)
                assert np.array_equal(result, alone(frames_of(i, FRAMES))[t])
        assert all(live(server) > 0 for server in servers)
        for connection in connections:
            connection.close()
        deadline = time.monotonic() + PATIENCE
        while sum(map(live, servers)):
            assert time.monotonic() < deadline
