"""The generator of load counts answers that are wrong, late or lost, and speaks HTTP/2 as servers need."""

import contextlib
import socket
import struct
import threading
import time

import pytest

from bench import serve_load as load
from bench import serve_messages as messages

REQUESTS = [b"one", b"three", b"eleven chars"]


class Fake:
    """A server in a thread: each connection is handled by a function of a socket."""

    def __init__(self, handle):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.handle, self.threads, self.sockets = self.listener.getsockname()[1], handle, [], []
        self.errors = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                found, _ = self.listener.accept()
                self.sockets.append(found)
                thread = threading.Thread(target=self._serve, args=(found,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _serve(self, found):
        try:
            self.handle(found)
        except ConnectionError:
            pass
        except Exception as e:
            self.errors.append(e)
        finally:
            found.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for found in self.sockets:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        assert not self.errors


@pytest.fixture
def connect():
    """A function that makes a connection of a class to a port; all are closed in the end."""
    connections = []

    def connected(kind, port):
        connections.append(kind(port))
        return connections[-1]

    yield connected
    for connection in connections:
        connection.close()


# ------------------------------------------------------------------------------------------------ HTTP
def http_server(status=200, pieces=1, delay=0.0, silent=()):
    """Answer each request with its body in capitals, in pieces, after a time; those in `silent` not at all."""

    def handle(found):
        file = found.makefile("rb")
        while file.readline():
            size = 0
            while (line := file.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                size = int(value) if name == b"Content-Length" else size
            body = file.read(size)
            if body in silent:
                continue
            time.sleep(delay)
            answer = body.upper()
            data = b"HTTP/1.1 %d OK\r\nX: a\r\ncontent-length: %d\r\n\r\n%s" % (status, len(answer), answer)
            step = -(-len(data) // pieces)
            for i in range(0, len(data), step):
                found.sendall(data[i : i + step])
                time.sleep(0.001 * (pieces > 1))

    return Fake(handle)


@pytest.fixture
def http_clients(connect):
    """A function that makes clients of a port."""

    def clients(port, count, right=True):
        answers = [body.upper() if right else b"other" for body in REQUESTS]
        return [load.Client(connect(load.Http, port), requests, answers) for _ in range(count)]

    requests = [b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in REQUESTS]
    return clients


@pytest.mark.parametrize("pieces", [1, 7])
def test_closed_loop_over_http(pieces, http_clients):
    """All answers are right, however they are cut; a wrong one is counted."""
    with http_server(pieces=pieces) as server:
        found = load.closed_loop(http_clients(server.port, 3), 0.1)
        assert found["wrong"] == 0 and len(found["seconds"]) >= 6 and found["rate"] > 0
        found = load.closed_loop(http_clients(server.port, 2, right=False), 0.05)
        assert found["wrong"] == len(found["seconds"]) > 0


def test_ask(http_clients):
    """Each request of each client is asked once, in order."""
    with http_server(pieces=2) as server:
        clients = http_clients(server.port, 2)
        answers = load.ask(clients)
    assert [[client.connection.body(a) for a in found] for client, found in zip(clients, answers)] == [
        [body.upper() for body in REQUESTS]
    ] * 2


def test_a_connection_that_was_silent(http_clients):
    """Servers close connections that are silent for a while: each measurement has new ones."""
    with http_server() as server:
        clients = http_clients(server.port, 2)
        load.closed_loop(clients, 0.02)
        for opened in server.sockets:
            with contextlib.suppress(OSError):  # some were closed before
                opened.shutdown(socket.SHUT_RDWR)
        found = load.open_loop(clients, 100, 0.05)
    assert (len(found["seconds"]), found["wrong"]) == (5, 0)


def test_open_loop_keeps_its_rate(http_clients):
    """Requests are sent when they are due; where answers are slower, waiting counts from then."""
    with http_server() as server:
        found = load.open_loop(http_clients(server.port, 2), 200, 0.2)
        assert (len(found["seconds"]), found["lost"], found["wrong"]) == (40, 0, 0)
    with http_server(delay=0.02) as server:  # 50 a second, of which 200 are sent
        found = load.open_loop(http_clients(server.port, 1), 200, 0.1)
        assert len(found["seconds"]) == 20 and found["lost"] == 0
        assert found["seconds"][-1] > found["seconds"][0] + 19 * (0.02 - 0.005) - 0.01


def test_open_loop_counts_what_is_lost(monkeypatch, http_clients):
    monkeypatch.setattr(load, "PATIENCE", 0.1)
    with http_server(silent=[REQUESTS[1]]) as server:
        found = load.open_loop(http_clients(server.port, 1), 100, 0.05)
    assert (len(found["seconds"]), found["lost"]) == (1, 4)


def test_http_errors(http_clients):
    """An error of the server, or a closed connection, ends a measurement with the reason."""
    with http_server(status=503) as server, pytest.raises(load.RefusedError, match="503 ONE"):
        load.closed_loop(http_clients(server.port, 1), 1)
    with Fake(lambda found: found.recv(3)) as server, pytest.raises((load.RefusedError, ConnectionError)):
        load.closed_loop(http_clients(server.port, 1), 1)


# ------------------------------------------------------------------------------------------------ gRPC
class Frames:
    """HTTP/2 frames of a connection, as a server reads them."""

    def __init__(self, found, window=2**16 - 1):
        self.file, self.found = found.makefile("rb"), found
        assert self.file.read(len(messages.PREFACE)) == messages.PREFACE
        self.send(messages.SETTINGS, 0, 0, struct.pack(">HI", 4, window))
        self.send(messages.PING, 0, 0, b"12345678")
        self.pinged = self.settled = False

    def __iter__(self):
        while len(head := self.file.read(9)) == 9:
            size = int.from_bytes(head[:3], "big")
            payload = self.file.read(size)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == messages.PING:
                assert (flags, payload) == (messages.ACK, b"12345678")
                self.pinged = True
            elif kind == messages.SETTINGS and flags == messages.ACK:
                self.settled = True
            elif kind in (messages.HEADERS, messages.DATA):
                yield kind, flags, stream, payload

    def send(self, kind, flags, stream, payload):
        self.found.sendall(messages.frame(kind, flags, stream, payload))


def test_unary_calls(connect):
    """Each call is a stream of its own with headers; its answer may come in several frames, trailers end it."""
    begun = []

    def handle(found):
        frames = Frames(found)
        for kind, flags, stream, payload in frames:
            if kind == messages.HEADERS:
                begun.append((flags, stream, payload))
                continue
            assert flags == messages.END_STREAM and stream == begun[-1][1]
            answer = messages.grpc_message(payload[5:].upper())
            frames.send(messages.HEADERS, messages.END_HEADERS, stream, b"\x88")
            frames.send(messages.DATA, 0, stream, answer[:6])
            frames.send(messages.DATA, 0, stream, answer[6:])
            frames.send(messages.HEADERS, messages.END_HEADERS | messages.END_STREAM, stream, b"\x88")
        assert frames.pinged and frames.settled

    with Fake(handle) as server:
        requests = [load.GrpcUnary.request(body) for body in REQUESTS]
        client = load.Client(connect(load.GrpcUnary, server.port), requests, [body.upper() for body in REQUESTS])
        found = load.closed_loop([client], 0.1)
    assert found["wrong"] == 0 and len(found["seconds"]) > 2
    assert [stream for _, stream, _ in begun[:3]] == [1, 3, 5]
    assert b"/inference.GRPCInferenceService/ModelInfer" in begun[0][2] and begun[0][0] == messages.END_HEADERS


def test_a_failed_call(connect):
    """A call that ends without a message raises, with the trailers, which name the error."""

    def handle(found):
        frames = Frames(found)
        for kind, _, stream, _ in frames:
            if kind == messages.DATA:
                frames.send(messages.HEADERS, messages.END_HEADERS | messages.END_STREAM, stream, b"no such model")

    with Fake(handle) as server, pytest.raises(load.RefusedError, match="no such model"):
        load.closed_loop([load.Client(connect(load.GrpcUnary, server.port), [load.GrpcUnary.request(b"x")])], 1)


def answer_of(number, data):
    """Return a message of ModelStreamInfer with an id and bytes."""
    response = messages.block(1, b"model") + messages.block(3, str(number).encode()) + messages.block(6, data)
    return messages.grpc_message(messages.block(2, response))


@pytest.mark.parametrize("numbered", [True, False])
def test_answers_in_another_order(numbered, connect):
    """Ids tell which request is answered; without them answers are of requests in order, and these here are wrong."""

    def handle(found):
        frames, count = Frames(found), 0
        for kind, _, stream, _ in frames:
            if kind == messages.DATA:
                count += 1
                if count == 4:  # a later request is answered before the others, and two of them in one frame
                    frames.send(messages.DATA, 0, stream, b"".join(answer_of(i, b"%d" % i) for i in (3, 1)))
                    frames.send(messages.DATA, 0, stream, b"".join(answer_of(i, b"%d" % i) for i in (0, 2)))

    with Fake(handle) as server:
        right = [messages.block(6, b"%d" % i) for i in range(4)]
        requests = [load.GrpcStream.request(b"request")] * 4
        client = load.Client(connect(load.GrpcStream, server.port), requests, right, numbered)
        found = load.open_loop([client], 1000, 0.0041)
    assert (len(found["seconds"]), found["lost"]) == (4, 0) and (found["wrong"] == 0) == numbered


def test_flow_control(connect):
    """No more is sent than the server takes: the windows of the connection and of the stream hold requests back."""
    size, taken, most = 1000, [], 5000

    def handle(found):
        frames, unread = Frames(found, window=most), 0
        for kind, _, stream, payload in frames:
            if kind != messages.DATA:
                continue
            taken.append(len(payload))
            unread += len(payload)
            assert unread <= most or not frames.settled
            if unread > most - size - 5:
                time.sleep(0.002)
                for which in (0, stream):
                    frames.send(messages.WINDOW_UPDATE, 0, which, struct.pack(">I", unread))
                unread = 0
            frames.send(messages.DATA, 0, stream, answer_of(0, b"y"))

    with Fake(handle) as server:
        connection = connect(load.GrpcStream, server.port)
        while connection.initial != most:
            assert connection.receive() == []
        client = load.Client(connection, [load.GrpcStream.request(b"x" * size)])
        found = load.open_loop([client], 1e6, 40e-6)
    assert (len(found["seconds"]), found["lost"]) == (40, 0) and taken == [size + 5] * 40


def test_errors_in_a_stream(connect):
    """An error message raises with its text, and so does a stream that ends."""

    def handle(found):
        frames = Frames(found)
        for kind, _, stream, payload in frames:
            if kind == messages.DATA and b"end" in payload:
                frames.send(messages.HEADERS, messages.END_HEADERS | messages.END_STREAM, stream, b"ended")
            elif kind == messages.DATA:
                frames.send(messages.DATA, 0, stream, messages.grpc_message(messages.block(1, b"unknown sequence")))

    with Fake(handle) as server:
        for request, text in ((b"x", "unknown sequence"), (b"end", "the stream ended; trailers: b'ended'")):
            client = load.Client(connect(load.GrpcStream, server.port), [load.GrpcStream.request(request)])
            with pytest.raises(load.RefusedError, match=text):
                load.closed_loop([client], 1)


def test_percentile():
    assert [load.percentile(list(range(100, 0, -1)), q) for q in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert load.percentile([3.0], 99) == 3.0
