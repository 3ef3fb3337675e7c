"""Bad clients: whatever they send, the server answers or closes, lives, and other sequences keep their bits."""

import contextlib
import json
import socket
import time

import numpy as np
import pytest

import rnnfast

pytest.importorskip("httptools")
pytest.importorskip("orjson")

from rnnfast.server.http_protocol import BODIES
from tests.paths import MODELS
from tests.server.processes import answer, ask, connected, frame, gains, received, request, started
from tests.server.running import resident

INFER = "/v2/models/denoiser/infer"
# Settings so small that tests reach them.
TIMEOUT, KEEP_ALIVE, MAX_BODY, MAX_CONNECTIONS = 0.7, 0.9, 100_000, 40


@pytest.fixture(scope="module")
def server():
    with started(
        MODELS / "denoiser.onnx", f"--request-timeout={TIMEOUT}", f"--keep-alive={KEEP_ALIVE}",
        f"--max-body={MAX_BODY}", f"--max-connections={MAX_CONNECTIONS}",
    ) as server:  # fmt: skip
        yield server


@pytest.fixture(autouse=True)
def other_sequence(server):
    """A sequence that runs while the test does; its results have the bits of a stream alone."""
    port, rng = server.port(), np.random.default_rng(5)
    stream, frames = rnnfast.load(MODELS / "denoiser.onnx").stream(), rng.standard_normal((4, 1, 22)).astype(np.float32)
    expected = [stream.step(bands=bands) for bands in frames]

    def step(i):
        status, _, body = ask(port, "POST", INFER, frame(frames[i], 7, start=i == 0, end=i == 3))
        assert status == 200, body
        np.testing.assert_array_equal(gains(body), expected[i], strict=True)

    step(0)
    step(1)
    yield
    step(2)
    step(3)


def refused(connection, status):
    """The error of an answer with a status, behind which the server closes the connection."""
    got, headers, body = answer(connection)
    assert got == status, (got, body)
    assert headers["connection"] == "close" and headers["content-type"] == "application/json"
    assert received(connection) == b""
    return json.loads(body)["error"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2 HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(100)) + b"\r\n",
        b"GET /v2 HTTP/1.1\r\nx: " + b"y" * 100_000,
        b"GET /v2 HTTP/1.1\r\n" + b"x" * 100_000,
        b"GET /" + b"v" * 100_000,
        b"GET /v2 HTTP/1.1\r\n" + b"x:\r\n" * 30_000 + b"\r\n",
    ],
    ids=["many", "value", "name", "path", "empty"],
)
def test_large_headers_are_refused(server, sent):
    with connected(server.port()) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        assert "more than 65536 bytes" in refused(connection, 431)


def test_headers_below_the_limit_are_taken(server):
    assert ask(server.port(), "GET", "/v2", x="y" * 60_000)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2 HTTP/1.1\r\nhost: x",
        b"POST /v2/models/denoiser/infer HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{",
        b"POST /v2/models/denoiser/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{    \r\n",
    ],
    ids=["headers", "body", "chunks"],
)
def test_half_a_request_times_out(server, sent):
    with connected(server.port()) as connection:
        begun = time.monotonic()
        connection.sendall(sent)
        assert "not complete" in refused(connection, 408)
        assert TIMEOUT - 0.1 < time.monotonic() - begun < 3 * TIMEOUT


def test_a_drip_of_bytes_times_out(server):
    """Each byte of a request comes in time, the whole does not."""
    with connected(server.port()) as connection:
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            for byte in b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - begun < 6 * TIMEOUT


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n", request("GET", "/v2")], ids=["nothing", "line ends", "a request"])
def test_an_idle_connection_is_closed(server, sent):
    with connected(server.port()) as connection:
        begun = time.monotonic()
        connection.sendall(sent)
        if sent.startswith(b"GET"):
            assert answer(connection)[0] == 200
        assert received(connection) == b""
        assert min(TIMEOUT, KEEP_ALIVE) - 0.1 < time.monotonic() - begun < 3 * KEEP_ALIVE


def test_a_body_is_refused_before_it_is_read(server):
    with connected(server.port()) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\ncontent-length: 100001\r\n\r\n" % INFER.encode())
        assert refused(connection, 413) == "the request has 100001 bytes, more than 100000"


def test_a_body_in_chunks_is_refused(server):
    with connected(server.port()) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" % INFER.encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert "more than 100000" in refused(connection, 413)


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /v2 HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/denoiser/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server, sent):
    with connected(server.port()) as connection:
        connection.sendall(sent)
        assert refused(connection, 400)


def test_random_bytes(server):
    rng = np.random.default_rng(11)
    for i in range(40):
        with connected(server.port()) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /v2 HTTP/1.1\r\n"[: i % 20] + rng.bytes(1 + 500 * i))
                connection.shutdown(socket.SHUT_WR)
                data = received(connection)
                assert not data or data.split()[1] in (b"400", b"431"), data[:200]


def test_an_upgrade_to_another_protocol_is_an_ordinary_request(server):
    with connected(server.port()) as connection:
        connection.sendall(request("GET", "/v2", connection="upgrade", upgrade="h2c"))
        assert answer(connection)[0] == 200
        assert received(connection) == b""


def test_a_body_longer_than_it_says(server):
    """What is behind the body is no request: the first one is answered, the rest refused."""
    with connected(server.port()) as connection:
        connection.sendall(request("POST", INFER, frame(np.ones(22), 8, True, True)) + b"garbage\r\n")
        assert answer(connection)[0] == 200
        assert received(connection)[9:12] in (b"", b"400")


def test_an_early_answer_leaves_the_connection_usable(server):
    with connected(server.port()) as connection:
        head = b"POST /v2/models/nope/infer HTTP/1.1\r\ncontent-length: 5\r\n\r\n"
        connection.sendall(head + b"{")
        assert answer(connection)[0] == 404
        connection.sendall(b"    " + request("GET", "/v2"))
        assert answer(connection)[0] == 200


def test_an_early_answer_is_the_only_one(server):
    """A request that was answered before its body came, and never ends, is no second answer."""
    with connected(server.port()) as connection:
        connection.sendall(b"POST /v2/models/nope/infer HTTP/1.1\r\ncontent-length: 5\r\n\r\n{")
        assert answer(connection)[0] == 404
        assert received(connection) == b""


def test_pipelined_requests_are_answered_in_order(server):
    with connected(server.port()) as connection:
        connection.sendall(b"".join(request("GET", path) for path in ["/v2", "/v2/nope"] * 10))
        data = b""
        while data.count(b"HTTP/1.1 ") < 20:
            data += connection.recv(2**16)
        assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404"] * 10


def test_a_flood_of_pipelined_requests_is_cut(server):
    with connected(server.port()) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request("GET", "/v2") * 20_000)
        count = received(connection).count(b"HTTP/1.1 ")
        assert 1 <= count < 2000


def test_connections_above_the_limit_are_refused(server):
    with contextlib.ExitStack() as stack:
        time.sleep(0.1)  # until those of the tests before are gone
        held = [stack.enter_context(connected(server.port())) for _ in range(MAX_CONNECTIONS)]
        for connection in held:
            connection.sendall(b"GET")
        with connected(server.port()) as connection:
            connection.sendall(request("GET", "/v2"))
            assert "connections" in refused(connection, 503)
        held[0].sendall(b" /v2 HTTP/1.1\r\n\r\n")
        assert answer(held[0])[0] == 200
    time.sleep(0.1)


def test_bodies_of_all_connections_are_bounded(server):
    """Half bodies fill what the server holds of all connections; it has room again when their clients are gone."""
    head = b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (INFER.encode(), MAX_BODY)
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connected(server.port())) for _ in range(BODIES + 2)]
            for connection in held:
                connection.sendall(head + bytes(MAX_BODY - 1))
            statuses = [answer(connection)[0] for connection in held]
        assert statuses.count(503) in (1, 2) and statuses.count(408) == len(held) - statuses.count(503)
        time.sleep(0.1)


def test_a_client_that_does_not_read_costs_no_memory(server):
    """Answers that nobody reads fill the socket; then no more are made, and the connection is cut after a time."""
    document = ask(server.port(), "GET", "/openapi.json")[2]
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port()))
        before = resident(server.process.pid)
        with contextlib.suppress(ConnectionError):  # if the machine is so slow that it is cut meanwhile
            for _ in range(200):
                connection.sendall(request("GET", "/openapi.json"))
                time.sleep(0.002)
        assert resident(server.process.pid) - before < 4 * len(document) + 2**22
        time.sleep(2 * TIMEOUT)
        assert len(received(connection)) < 20 * len(document)


def test_clients_that_leave_say_nothing_in_the_log(server):
    """Requests whose connection broke, also those behind others, end without a traceback, as `started` checks."""
    for _ in range(30):
        with connected(server.port()) as connection:
            connection.sendall(request("POST", INFER, frame(np.ones(22), 9, True, True)) * 5)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
