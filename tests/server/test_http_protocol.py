"""Connections of HTTP/1.1 without a socket: what is written for what came, however it is cut."""

import asyncio
import http.client
import io
import random
import re
import sys

import pytest

pytest.importorskip("httptools")
pytest.importorskip("orjson")

from rnnfast.server import http_protocol
from rnnfast.server.http_protocol import HEADER_BYTES, MAX_PIPELINED, HttpProtocol, HttpServer
from rnnfast.server.settings import Settings


class Transport:
    """A transport that remembers what is written; bytes of a paused one wait as they do in a socket."""

    def __init__(self):
        self.writes, self.closed, self.aborted, self.ended, self.reading = [], False, False, False, True
        self.protocol = None

    def write(self, data):
        assert not self.ended
        if not self.closed:
            self.writes.append(bytes(data))

    def get_write_buffer_size(self):
        return sum(map(len, self.writes))

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.ended = True

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True

    def set_protocol(self, protocol):
        self.protocol = protocol


class Echo:
    """Answers with what came; paths say how: /early does not read, /wait waits until `go` is set."""

    def __init__(self):
        self.go, self.lost = asyncio.Event(), 0

    async def answer(self, request):
        try:
            body = b"" if request.path == "/early" else await request.read()
        except http_protocol.Disconnected:
            self.lost += 1
            raise
        if request.path == "/wait":
            await self.go.wait()
        return 200, [request.method, b" ", request.path.encode(), b" ", body], b"x-echo: 1\r\n"


class WebSocket(asyncio.Protocol):
    """Remembers what it gets."""

    def __init__(self, server):
        self.connections, self.data = server.connections, b""

    def connection_made(self, transport):
        self.connections.add(self)

    def data_received(self, data):
        self.data += data


class Connection:
    """A connection to a server of its own with an Echo."""

    def __init__(self, **settings):
        self.echo = Echo()
        self.server = HttpServer(self.echo, WebSocket, Settings(("x",), **settings))
        self.transport = Transport()
        self.protocol = HttpProtocol(self.server)
        self.protocol.connection_made(self.transport)

    async def send(self, *parts):
        """Let the protocol take bytes, and requests run as far as they can."""
        for part in parts:
            assert self.transport.reading or self.protocol._ignores_input, "the transport reads no more"
            self.protocol.data_received(part)
            await self.settle()

    async def settle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    def answers(self, *methods):
        """[(status, headers, body)] of what was written, in answer to methods; GET for those that are not given."""
        stream, found = io.BytesIO(b"".join(self.transport.writes)), []
        stream.close = lambda: None
        while stream.tell() < len(stream.getvalue()):
            method = methods[len(found)] if len(found) < len(methods) else "GET"
            response = http.client.HTTPResponse(
                type("Socket", (), {"makefile": lambda self, mode: stream})(), 0, method
            )
            response.begin()
            found.append((response.status, dict(response.getheaders()), response.read()))
        return found


def call(function):
    """Run a coroutine function in an event loop of its own."""
    asyncio.run(asyncio.wait_for(function(), 20))


REQUESTS = (
    b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /b%20c HTTP/1.1\r\nContent-Length: 5\r\nX-Y:  z \r\n\r\nhello",
    b"\r\nPOST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n",
    b"HEAD /d HTTP/1.1\r\n\r\n",
    b"GET http://host:1/e?f HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
    b"PUT /f HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"POST /early HTTP/1.1\r\nContent-Length: 6\r\n\r\nunread",
    b"POST /g HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
    b"GET /h HTTP/1.1\r\nConnection: close\r\n\r\n",
)
BODIES = [
    b"GET /a ", b"POST /b c hello", b"POST /c abcdefg", b"", b"GET /e ", b"PUT /f ", b"POST /early ", b"POST /g hi",
    b"GET /h ",
]  # fmt: skip
METHODS = [request.split()[0].decode() for request in REQUESTS]


@pytest.mark.parametrize("seed", range(60))
def test_requests_cut_anywhere_have_the_same_answers(seed):
    """All at once, each byte alone, and random parts, which come while requests before them run."""
    data, rng = b"".join(REQUESTS), random.Random(seed)
    cuts = range(1, len(data)) if seed == 0 else sorted(rng.sample(range(1, len(data)), rng.randrange(20)))

    async def run():
        connection = Connection()
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        for part in [data] if seed == 1 else parts:
            while not connection.transport.reading:
                await asyncio.sleep(0)
            connection.protocol.data_received(part)
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        while not connection.transport.closed:
            await asyncio.sleep(0)
        answers = connection.answers(*METHODS)
        assert [body for _, _, body in answers] == BODIES
        assert all(status == 200 and headers["x-echo"] == "1" for status, headers, _ in answers)
        assert [headers.get("connection") for _, headers, _ in answers] == [None] * 8 + ["close"]
        assert len(connection.transport.writes) == len(REQUESTS) and connection.server.held == 0

    call(run)


def test_a_head_says_how_long_the_body_would_be():
    async def run():
        connection = Connection()
        await connection.send(b"HEAD /abc HTTP/1.1\r\n\r\n")
        ((status, headers, body),) = connection.answers("HEAD")
        assert (status, headers["content-length"], body) == (200, "10", b"")

    call(run)


@pytest.mark.parametrize(
    "url, path",
    [(b"http://a:1", b"/"), (b"http://a?b", b"/"), (b"http://a/b?c", b"/b"), (b"*", b"*"), (b"//a/b?c", b"//a/b")],
)
def test_whole_addresses_have_their_paths(url, path):
    async def run():
        connection = Connection()
        await connection.send(b"GET " + url + b" HTTP/1.1\r\n\r\n")
        assert [(status, body) for status, _, body in connection.answers()] == [(200, b"GET " + path + b" ")]

    call(run)


@pytest.mark.parametrize("headers", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_has_one_request_a_connection(headers):
    async def run():
        connection = Connection()
        await connection.send(b"GET /a HTTP/1.0\r\n" + headers + b"\r\n" + REQUESTS[0])
        ((_, headers_, _),) = connection.answers()
        assert headers_["connection"] == "close" and connection.transport.closed

    call(run)


def test_http_1_0_asks_for_no_word_before_the_body():
    async def run():
        connection = Connection()
        await connection.send(b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert connection.transport.writes == []
        await connection.send(b"ab")
        assert connection.answers()[0][2] == b"POST /a ab"

    call(run)


def test_a_client_that_asks_may_send_the_body():
    head = b"POST /a HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"

    async def run():
        connection = Connection()
        await connection.send(head)
        assert connection.transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        await connection.send(b"ab", head + b"cd")  # which needs no word
        assert len(connection.transport.writes) == 3
        assert [body for _, _, body in connection.answers()] == [b"POST /a ab", b"POST /a cd"]

    call(run)


def test_a_client_that_asks_and_gets_an_answer_has_its_last():
    """Nobody could tell whether what comes next is the body."""

    async def run():
        connection = Connection()
        await connection.send(b"POST /early HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        ((_, headers, _),) = connection.answers()
        assert headers["connection"] == "close" and connection.transport.ended

    call(run)


def test_a_client_that_still_sends_can_read_its_last_answer(monkeypatch):
    """Its connection is not closed under what it sends, which would reset it, but ended soon."""
    monkeypatch.setattr(http_protocol, "LINGER_SECONDS", 0.05)

    async def run():
        connection = Connection()
        await connection.send(b"POST /early HTTP/1.1\r\nConnection: close\r\nContent-Length: 9\r\n\r\n")
        assert connection.answers()[0][2] == b"POST /early "
        assert connection.transport.ended and connection.transport.reading and not connection.transport.closed
        await connection.send(b"123456789", REQUESTS[0])
        assert len(connection.answers()) == 1 and not connection.transport.closed
        await asyncio.sleep(0.1)
        assert connection.transport.aborted

    call(run)


def test_words_to_the_client_keep_their_order():
    """The go-ahead for a body is not written before the answers to the requests before."""

    async def run():
        connection = Connection()
        await connection.send(
            b"GET /wait HTTP/1.1\r\n\r\nPOST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
        )
        assert connection.transport.writes == [] and not connection.transport.reading
        connection.echo.go.set()
        await connection.settle()
        assert b"/wait" in connection.transport.writes[0] and b" 100 " in connection.transport.writes[1]
        await connection.send(b"x")
        assert [body for _, _, body in connection.answers()] == [b"GET /wait ", b"POST /a x"]

    call(run)


def test_requests_that_wait_are_bounded():
    """Those that may wait are answered, and their answers are the last ones."""

    async def run():
        connection = Connection()
        await connection.send(b"GET /wait HTTP/1.1\r\n\r\n" + REQUESTS[0] * (MAX_PIPELINED + 5))
        connection.echo.go.set()
        for _ in range(5):
            await connection.settle()
        answers = connection.answers()
        assert len(answers) == 1 + MAX_PIPELINED and connection.transport.closed
        assert [headers.get("connection") for _, headers, _ in answers] == [None] * MAX_PIPELINED + ["close"]

    call(run)


@pytest.mark.parametrize(
    "bad", [b"nonsense\r\n\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n",
            b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
)  # fmt: skip
def test_answers_come_before_the_end_that_a_bad_request_brings(bad):
    async def run():
        connection = Connection(max_body=100)
        await connection.send(b"GET /wait HTTP/1.1\r\n\r\n" + REQUESTS[0] + bad)
        connection.echo.go.set()
        await connection.settle()
        assert [body for _, _, body in connection.answers()] == [b"GET /wait ", b"GET /a "]
        assert connection.transport.closed and connection.server.held == 0

    call(run)


@pytest.mark.parametrize(
    "head, more",
    [
        (b"GET /a HTTP/1.1\r\nx: ", b"y" * 1000),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nTrailer: ", b"y" * 1000),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n" * 200),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;", b"y" * 1000),
    ],
    ids=["header", "trailer", "trailers", "extension"],
)
def test_what_brings_no_body_is_bounded(head, more):
    async def run():
        connection = Connection()
        await connection.send(head)
        for _ in range(HEADER_BYTES // 1000 + 2):
            if not connection.transport.writes:
                await connection.send(more)
        ((status, _, _),) = connection.answers()
        assert status == 431 and connection.transport.ended

    call(run)


@pytest.mark.parametrize("before", [b"", REQUESTS[0]], ids=["first", "second"])
def test_the_limit_of_headers_is_exact(before):
    async def run():
        for more in 0, 1:
            connection = Connection()
            value = b"y" * (HEADER_BYTES - len(b"/a") - len(b"x") - 4 + more)
            await connection.send(before + b"GET /a HTTP/1.1\r\nx: " + value + b"\r\n\r\n")
            statuses = [status for status, _, _ in connection.answers()]
            expected = [200] if before else []  # behind which a refusal is not written
            assert statuses == ([*expected, 200] if not more else expected or [431])
            assert connection.protocol._ignores_input == bool(more)

    call(run)


def test_headers_in_large_parts_are_bounded():
    async def run():
        connection = Connection()
        await connection.send(b"GET /a HTTP/1.1\r\nx: " + b"y" * 40_000, b"y" * 30_000)
        assert connection.answers()[0][0] == 431

    call(run)


def test_trailers_that_come_at_once_are_bounded():
    async def run():
        connection = Connection()
        await connection.send(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await connection.send(b"0\r\n" + b"a: b\r\n" * 12_000 + b"\r\n")
        assert connection.answers()[0][0] == 431

    call(run)


@pytest.mark.parametrize("size, status", [(300_000, 200), (300_001, 413)])
def test_a_body_is_bounded_by_its_own_limit(size, status):
    """It may be larger than headers, and comes in parts that are larger; what is refused is not held."""

    async def run():
        connection = Connection(max_body=300_000)
        parts = [b"x" * 100_000] * 3 + [b"x" * (size - 300_000)]
        await connection.send(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.send(*(b"%x\r\n%b\r\n" % (len(part), part) for part in parts))
        assert [status for status, _, _ in connection.answers()] == [status]
        assert connection.server.held == 0 and connection.transport.reading

    call(run)


def test_a_body_of_many_small_parts_takes_little_more_than_its_bytes():
    async def run():
        connection = Connection()
        await connection.send(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n" * 5000)
        assert type(connection.protocol._running.body) is bytearray and connection.server.held == 10_000
        await connection.send(b"0\r\n\r\n")
        assert connection.answers()[0][2] == b"POST /a " + b"ab" * 5000 and connection.server.held == 0

    call(run)


def test_a_client_that_does_not_read_gets_no_more_answers():
    async def run():
        connection = Connection()
        connection.protocol.pause_writing()
        await connection.send(REQUESTS[0] * 3)
        assert connection.transport.writes == [] and not connection.transport.reading
        connection.protocol.resume_writing()
        await connection.settle()
        assert len(connection.answers()) == 3 and connection.transport.reading

    call(run)


def test_answers_that_nobody_reads_are_bounded_together():
    """While there are too many, bodies are refused: what they bring could become answers too."""
    request = b"POST /a HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + bytes(100)

    async def run():
        connection, other = Connection(max_body=100), Connection()
        other.protocol._server = connection.server
        await connection.send(request)
        connection.protocol.pause_writing()
        assert connection.server.held == len(connection.transport.writes[0])
        connection.server.most_held = 150
        await other.send(request)
        assert other.answers()[0][0] == 503
        connection.protocol.resume_writing()
        assert connection.server.held == 0
        connection.protocol.pause_writing()
        connection.protocol.connection_lost(None)
        assert connection.server.held == 0

    call(run)


def test_a_client_that_reads_again_changes_no_order():
    async def run():
        connection = Connection()
        await connection.send(b"GET /wait HTTP/1.1\r\n\r\n" + REQUESTS[0])
        connection.protocol.pause_writing()
        connection.protocol.resume_writing()
        await connection.settle()
        assert connection.transport.writes == []
        connection.echo.go.set()
        await connection.settle()
        assert [body for _, _, body in connection.answers()] == [b"GET /wait ", b"GET /a "]

    call(run)


def test_no_request_runs_behind_the_last_answer():
    """Not even when the client has read that answer, and the connection is about to close."""

    async def run():
        connection, paths = Connection(), []
        answer = connection.protocol._answer
        connection.protocol._answer = lambda request: (paths.append(request.path), answer(request))[1]
        await connection.send(b"GET /wait HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + REQUESTS[1])
        connection.protocol.pause_writing()
        connection.echo.go.set()
        await connection.settle()
        connection.protocol.resume_writing()
        await connection.settle()
        assert paths == ["/wait"] and connection.transport.closed and connection.server.held == 0

    call(run)


def test_a_client_that_reads_nothing_is_cut():
    async def run():
        connection = Connection(request_timeout=0.05)
        await connection.send(REQUESTS[0])
        connection.protocol.pause_writing()
        await asyncio.sleep(0.1)
        assert connection.transport.aborted

    call(run)


@pytest.mark.parametrize("first", [REQUESTS[0], REQUESTS[8]], ids=["idle", "closed"])
def test_a_connection_that_is_over_does_not_linger(first):
    """One that is closed is cut, if its client does not take what is left."""

    async def run():
        connection = Connection(keep_alive=0.05, request_timeout=0.1)
        await connection.send(first)
        await asyncio.sleep(0.07)
        assert connection.transport.closed and not connection.transport.aborted
        await asyncio.sleep(0.15)
        assert connection.transport.aborted

    call(run)


def test_one_timer_serves_all_requests(monkeypatch):
    """Requests that come at once touch no timer, and their connection is closed in time after the last one."""

    async def run():
        connection, calls = Connection(keep_alive=0.2, request_timeout=0.3), []
        loop = asyncio.get_running_loop()
        call_at = loop.call_at
        monkeypatch.setattr(loop, "call_at", lambda *args, **more: (calls.append(args), call_at(*args, **more))[1])
        begun = loop.time()
        await connection.send(REQUESTS[0])
        first = len(calls)
        for _ in range(20):
            await connection.send(REQUESTS[0])
        assert first == 1 and len(calls) == 1
        await asyncio.sleep(0.1)
        await connection.send(REQUESTS[0])
        while not connection.transport.closed:
            await asyncio.sleep(0.005)
        assert 0.3 <= loop.time() - begun < 0.45

    call(run)


def test_the_rest_of_a_request_that_has_its_answer_has_the_time_of_a_request():
    head = b"POST /early HTTP/1.1\r\nContent-Length: 2\r\n\r\n"

    async def run():
        whole, half = (Connection(keep_alive=0.05, request_timeout=0.2) for _ in range(2))
        await whole.send(head, b"ab")
        await half.send(head, b"a")
        await asyncio.sleep(0.1)
        assert whole.transport.closed and not half.transport.closed
        await asyncio.sleep(0.2)
        assert half.transport.ended and len(half.transport.writes) == 1

    call(run)


def test_the_time_of_a_request_ends_with_its_body():
    """Its answer may take as long as it likes."""

    async def run():
        connection = Connection(keep_alive=0.05, request_timeout=0.05)
        await connection.send(b"POST /wait HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"a", b"b")
        await asyncio.sleep(0.1)
        assert not connection.transport.closed
        connection.echo.go.set()
        await connection.settle()
        assert connection.answers()[0][2] == b"POST /wait ab"

    call(run)


def test_a_drip_of_bytes_does_not_extend_the_time_of_a_request():
    async def run():
        connection, begun = Connection(request_timeout=0.1), asyncio.get_running_loop().time()
        while not connection.transport.writes:
            connection.protocol.data_received(b"x" if connection.protocol._in_message else b"GET /")
            await asyncio.sleep(0.02)
            assert asyncio.get_running_loop().time() - begun < 1
        assert connection.answers()[0][0] == 408

    call(run)


@pytest.mark.parametrize("data", [b"GET /a HT", b"nonsense\r\n\r\n"], ids=["late", "bad"])
def test_a_log_that_nobody_reads_keeps_no_connection_open(monkeypatch, data):
    """Its reader may have ended, so that a line for it is an error."""

    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(http_protocol, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", Broken())

    async def run():
        connection = Connection(request_timeout=0.05, access_log=True)
        await connection.send(data)
        while not connection.transport.closed:  # `call` waits for so long and no longer
            await asyncio.sleep(0.01)
        assert len(connection.answers()) == 1

    call(run)


def test_a_client_that_is_gone_is_not_refused():
    async def run():
        connection = Connection(request_timeout=0.05)
        await connection.send(b"GET /a HT")
        connection.transport.closed = True
        await asyncio.sleep(0.1)
        assert not connection.transport.ended

    call(run)


def test_half_a_request_behind_one_that_runs_ends_the_connection_in_time():
    async def run():
        connection = Connection(request_timeout=0.05)
        await connection.send(b"GET /wait HTTP/1.1\r\n\r\n" + REQUESTS[0][:10])
        await asyncio.sleep(0.1)
        assert connection.transport.writes == []
        connection.echo.go.set()
        await connection.settle()
        ((_, headers, _),) = connection.answers()
        assert headers["connection"] == "close" and connection.transport.closed

    call(run)


def test_a_body_that_the_server_does_not_read_is_not_late():
    """Its time goes on when the requests before it are answered, and ends then."""

    async def run():
        for more in b"b", b"":
            connection = Connection(request_timeout=0.1)
            await connection.send(b"GET /wait HTTP/1.1\r\n\r\nPOST /a HT", b"TP/1.1\r\nContent-Length: 2\r\n\r\na")
            await asyncio.sleep(0.15)
            connection.echo.go.set()
            await connection.settle()
            await connection.send(*[more] * bool(more))
            await asyncio.sleep(0.15)
            assert [status for status, _, _ in connection.answers()] == [200, 200 if more else 408]

    call(run)


def test_a_request_whose_client_left_is_told():
    async def run():
        connection = Connection()
        await connection.send(b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
        assert connection.server.held == 2
        connection.protocol.connection_lost(None)
        await connection.settle()
        assert (connection.echo.lost, connection.server.held, connection.server.connections) == (1, 0, set())

    call(run)


def test_a_body_is_held_while_its_request_runs_though_the_client_left():
    """Else clients that leave could make the server hold any number of bodies."""

    async def run():
        connection = Connection()
        request = b"POST /wait HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
        await connection.send(request * 2)
        assert connection.server.held == 10
        connection.protocol.connection_lost(None)
        await connection.settle()
        assert connection.server.held == 5
        connection.echo.go.set()
        await connection.settle()
        assert connection.server.held == 0

    call(run)


def test_a_client_that_leaves_with_the_last_byte_has_sent_no_empty_body():
    async def run():
        connection = Connection()
        await connection.send(b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\na")
        connection.protocol.data_received(b"b")
        connection.protocol.connection_lost(ConnectionResetError())
        await connection.settle()
        assert (connection.echo.lost, connection.server.held) == (1, 0)

    call(run)


def test_a_client_that_sends_no_more_gets_its_answers():
    async def run():
        idle, half, whole = (Connection() for _ in range(3))
        await half.send(REQUESTS[1][:-1])
        await whole.send(b"GET /wait HTTP/1.1\r\n\r\n" + REQUESTS[0])
        assert not idle.protocol.eof_received() and not half.protocol.eof_received()  # The transport closes.
        assert whole.protocol.eof_received()
        whole.echo.go.set()
        await whole.settle()
        assert [headers.get("connection") for _, headers, _ in whole.answers()] == [None, "close"]
        assert whole.transport.closed

    call(run)


def test_an_answer_that_nobody_waits_for_is_not_written():
    async def run():
        connection = Connection()
        await connection.send(b"GET /wait HTTP/1.1\r\n\r\n")
        connection.transport.write = None
        connection.protocol.connection_lost(ConnectionResetError())
        connection.echo.go.set()
        await connection.settle()
        assert connection.protocol._task.done() and connection.protocol._task.exception() is None

    call(run)


def test_a_connection_becomes_a_web_socket():
    async def run():
        connection = Connection()
        head = b"GET /s?t HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nOrigin: a\r\nOrigin: b\r\n\r\n"
        await connection.send(REQUESTS[0], head + b"\x00rest")
        socket = connection.transport.protocol
        assert isinstance(socket, WebSocket) and connection.server.connections == {socket}
        found, _, rest = socket.data.partition(b"\r\n\r\n")
        assert found.split(b"\r\n") == [
            b"GET /s?t HTTP/1.1", b"connection: Upgrade", b"upgrade: WebSocket", b"origin: a", b"origin: b"
        ]  # fmt: skip
        assert rest == b"\x00rest"

    call(run)


def test_a_web_socket_does_not_begin_before_an_answer():
    async def run():
        connection = Connection()
        await connection.send(
            b"GET /wait HTTP/1.1\r\n\r\nGET /s HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        connection.echo.go.set()
        await connection.settle()
        ((_, headers, _),) = connection.answers()
        assert headers["connection"] == "close" and connection.transport.protocol is None

    call(run)


def test_a_web_socket_does_not_begin_while_its_client_does_not_read():
    async def run():
        connection = Connection()
        connection.protocol.pause_writing()
        await connection.send(b"GET /s HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert connection.transport.closed and connection.transport.protocol is None

    call(run)


def test_the_end_of_the_server_waits_for_answers():
    async def run():
        idle, half, busy = Connection(), Connection(), Connection()
        await half.send(b"GET /a HT")
        await busy.send(b"GET /wait HTTP/1.1\r\n\r\n" + REQUESTS[0])
        for connection in idle, half, busy:
            connection.protocol.shutdown()
        assert idle.transport.closed and half.transport.closed and not busy.transport.closed
        busy.echo.go.set()
        await busy.settle()
        assert [headers.get("connection") for _, headers, _ in busy.answers()] == [None, "close"]
        assert busy.transport.closed

    call(run)


def test_an_end_that_takes_too_long_is_cut():
    async def run():
        connection = Connection()
        await connection.send(b"GET /wait HTTP/1.1\r\n\r\n")
        await connection.server.stop(0.05)
        await connection.settle()
        assert connection.transport.aborted and connection.protocol._task.cancelled()

    call(run)


def test_a_defect_of_the_application_ends_the_connection():
    async def run():
        connection = Connection()

        async def answer(request):
            raise RuntimeError("a defect")

        connection.protocol._answer = answer
        await connection.send(REQUESTS[0])
        assert connection.transport.aborted
        assert re.search("a defect", str(connection.protocol._task.exception()))

    call(run)


# ------------------------------------------------------------------------------------------ known heads
# Whole requests, and bytes that look like them: the head of one, the body of another, two at once, what is no HTTP.
PIECES = (
    *REQUESTS,
    b"POST /d HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
    b"hello",
    b"POST /d HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /d HTTP/1.1\r\nContent-Length: 5\r\n\r\nhellohello",
    b"POST /d HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloPOST /d HTTP/1.1\r\nContent-Length: 5\r\n\r\nagain",
    b"POST /d HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n..",
    b"POST /d HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST /d HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"POST /d HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /d HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
    b"GET /d HTTP/1.1\nHost: x\n\nGET /e HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\r\n\r\nPOST /d HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /a HTTP/1.1\r\n\r\n",
    b"GET /a HTTP/1.1\r\n\r\nhello",
    b"POST /x HTTP/1.1\r\nA: ",
    b"GET /f HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"POST /g HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /early HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"HEAD /h HTTP/1.1\r\n\r\n",
    b"PUT /" + b"x" * 1100 + b" HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"{}",
)


def test_requests_with_a_known_head_are_answered_as_those_with_a_new_one(monkeypatch):
    rng = random.Random(5)

    heads = {}  # of all connections of a server

    async def pieces_to(parts, knows):
        connection = Connection()
        if knows:
            connection.server.heads = heads
        else:
            monkeypatch.setattr(HttpProtocol, "_learn", lambda *_: None)
        known = 0
        for part, waits in parts:
            if connection.transport.closed or not connection.transport.reading:
                break
            known += b"\r\n\r\n" in part and part.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" in connection.server.heads
            connection.protocol.data_received(part)
            if waits:
                await connection.settle()
        await connection.settle()
        monkeypatch.undo()
        end = connection.transport.closed, connection.transport.ended, connection.server.held
        connection.protocol.connection_lost(None)
        return b"".join(connection.transport.writes), end, known

    async def test():
        known = 0
        for _ in range(1500):
            some = rng.sample(PIECES, 4)
            parts = [(rng.choice(some), rng.random() < 0.8) for _ in range(rng.randint(3, 14))]
            *found, came_again = await pieces_to(parts, True)
            *right, _ = await pieces_to(parts, False)
            assert found == right, parts
            known += came_again
        assert known > 300

    call(test)


def test_a_request_with_a_known_head_is_parsed_no_more():
    async def test():
        connection = Connection()
        head = b"POST /d HTTP/1.1\r\nContent-Length: 5\r\nAuthorization: Bearer a\r\n\r\n"
        await connection.send(head + b"hello")
        connection.protocol._parser = None
        await connection.send(head + b"again")
        assert [body for _, _, body in connection.answers()] == [b"POST /d hello", b"POST /d again"]
        assert connection.server.held == 0

    call(test)


def test_heads_that_are_known_are_bounded(monkeypatch):
    monkeypatch.setattr(http_protocol, "MAX_KNOWN", 8)

    async def test():
        connection = Connection()
        for k in range(50):
            await connection.send(b"GET /%d HTTP/1.1\r\n\r\n" % k)
            assert len(connection.server.heads) <= 8
        before = len(connection.server.heads)
        await connection.send(b"GET /" + b"x" * http_protocol.KNOWN_BYTES + b" HTTP/1.1\r\n\r\n")
        assert len(connection.server.heads) == before and len(connection.answers()) == 51

    call(test)
