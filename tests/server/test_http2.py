"""HTTP/2 frames as bytes: what RFC 9113 asks of a server, limits, and random frames beside a call that must go on."""

import gzip
import random
import socket
import struct
import time

import numpy as np
import pytest

pytest.importorskip("hpack")
import hpack

from tests.server.conftest import running

SECONDS = 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 9, 11
PATH = "/inference.GRPCInferenceService/"


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def number(value):
    return struct.pack(">I", value)


def message(data):
    return struct.pack(">BI", 0, len(data)) + data


def fields(method="ServerLive", **more):
    """The headers of a call."""
    found = {":method": "POST", ":scheme": "http", ":path": PATH + method, ":authority": "localhost",
             "te": "trailers", "content-type": "application/grpc"}  # fmt: skip
    return list((found | {name.replace("_", "-"): value for name, value in more.items()}).items())


class Client:
    """A connection.

    Attributes:
        log: (kind, flags, stream, payload) of all frames that came.
    """

    def __init__(self, server, settings=b"", preface=True):
        host, port = server.address("grpc").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SECONDS)
        self.log, self.rest, self.encoder, self.decoder = [], b"", hpack.Encoder(), hpack.Decoder()
        if preface:
            self.socket.sendall(PREFACE + frame(SETTINGS, payload=settings))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def head(self, stream, method="ServerLive", end=False, **more):
        return frame(HEADERS, 4 | end, stream, self.encoder.encode(fields(method, **more)))

    def read(self):
        """The next frame, None at the end."""
        while True:
            if len(self.rest) >= 9 and len(self.rest) >= (size := 9 + int.from_bytes(self.rest[:3], "big")):
                data, self.rest = self.rest[:size], self.rest[size:]
                self.log.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:]))
                return self.log[-1]
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.rest += data

    def until(self, *kinds, stream=None):
        """The next frame of some kinds, but acknowledgements."""
        while (found := self.read()) is not None:
            if found[0] in kinds and not (found[0] == SETTINGS and found[1] & 1) and stream in (None, found[2]):
                return found
        raise AssertionError(f"the connection ended after {self.log[-5:]}")

    def gone(self):
        """The code with which the connection ends."""
        payload = self.until(GOAWAY)[3]
        assert self.read() is None
        return int.from_bytes(payload[4:8], "big")

    def answer(self, stream):
        """(headers and trailers, body) of a call."""
        found, body = {}, b""
        while True:
            kind, flags, _, payload = self.until(HEADERS, DATA, RST_STREAM, stream=stream)
            if kind == RST_STREAM:
                return int.from_bytes(payload, "big")
            if kind == DATA:
                body += payload
            else:
                found |= dict(self.decoder.decode(payload))
            if flags & 1:
                return found, body

    def alive(self, stream, method="ServerLive", **more):
        """Whether a call is answered."""
        self.send(self.head(stream, method, **more), frame(DATA, 1, stream, message(b"")))
        found, body = self.answer(stream)
        return found["grpc-status"] == "0" and body == message(b"\x08\x01")


# ------------------------------------------------------------------------------------------ what is right
def test_calls_one_after_the_other_and_at_the_same_time(server):
    with Client(server) as client:
        assert client.alive(1) and client.alive(3) and client.alive(7)
        client.send(*(client.head(n) for n in (9, 11, 13)))
        client.send(*(frame(DATA, 1, n, message(b"")) for n in (13, 9, 11)))
        for n in (13, 9, 11):
            assert client.answer(n) == (
                {":status": "200", "content-type": "application/grpc", "grpc-status": "0"},
                message(b"\x08\x01"),
            )


def test_every_byte_of_a_call_on_its_own(server):
    with Client(server, preface=False) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in PREFACE + frame(SETTINGS) + client.head(1) + frame(DATA, 1, 1, message(b"")):
            client.send(bytes((byte,)))
        assert client.answer(1)[0]["grpc-status"] == "0"


def test_parts_of_header_blocks_padding_priorities_and_unknown_frames(server):
    with Client(server, settings=struct.pack(">HIHI", 99, 5, 3, 100)) as client:
        block = client.encoder.encode(fields())
        client.send(
            frame(77, 255, 1, b"unknown"),
            frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
            frame(HEADERS, 0x28, 1, b"\x03" + b"\0\0\0\0\x10" + block[:4] + b"pad"),
            frame(CONTINUATION, 0, 1, block[4:9]),
            frame(CONTINUATION, 0, 1),
            frame(CONTINUATION, 4, 1, block[9:]),
            frame(DATA, 8, 1, b"\x02" + message(b"")[:3] + b"\0\0"),
            frame(DATA, 9, 1, b"\x00" + message(b"")[3:]),
        )
        assert client.answer(1)[1] == message(b"\x08\x01")
        client.send(frame(PING, 0, 0, b"12345678"))
        assert client.until(PING) == (PING, 1, 0, b"12345678")
        client.send(
            client.head(3), frame(DATA, 0, 3, message(b"")), frame(HEADERS, 5, 3, client.encoder.encode({"a": "b"}))
        )
        assert client.answer(3)[0]["grpc-status"] == "0"


def test_blocks_that_are_remembered_change_with_the_dynamic_table(server):
    """The bytes of a block mean something else after an entry was added."""
    with Client(server) as client:
        rest = b"\x83\x86\x00\x0ccontent-type\x10application/grpc"
        for n, (method, body) in enumerate(
            [("ServerLive", b"\x08\x01"), ("ModelReady", b""), ("ServerLive", b"\x08\x01")]
        ):
            path = (PATH + method).encode()
            added = frame(HEADERS, 4, 8 * n + 1, b"\x44" + bytes((len(path),)) + path + rest)  # as entry 62
            same = [frame(HEADERS, 4, 8 * n + m, b"\xbe" + rest) for m in (3, 5, 7)]
            for m, head in zip((1, 3, 5, 7), [added, *same]):
                client.send(head, frame(DATA, 1, 8 * n + m, message(b"")))
                assert client.answer(8 * n + m)[1] == message(body)


@pytest.mark.parametrize("method", ["ServerLive", "ServerDead", "ModelStreamInfer"])
def test_a_client_with_a_smaller_dynamic_table(server, method):
    """The first header block after it shrank has to say so, whichever it is."""
    with Client(server) as client:
        assert client.alive(1)
        for n, size in ((3, 100), (7, 0)):
            client.send(frame(SETTINGS, payload=struct.pack(">HI", 1, size)))
            client.decoder.max_allowed_table_size = size
            client.send(client.head(n, method), frame(DATA, 1, n, message(b"")))
            assert client.answer(n)[0][":status"] == "200"
            assert client.alive(n + 2)


def test_answers_wait_for_windows(server):
    with Client(server, settings=struct.pack(">HI", 4, 3)) as client:
        client.send(client.head(1), frame(DATA, 1, 1, message(b"")))
        assert client.until(DATA)[3] == message(b"\x08\x01")[:3]
        client.send(frame(WINDOW_UPDATE, 0, 1, number(2)))
        assert client.until(DATA)[3] == message(b"\x08\x01")[3:5]
        client.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1)))  # the window is -2 now
        client.send(frame(PING, 0, 0, b"12345678"))
        assert client.until(PING, DATA)[0] == PING
        client.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1000)))
        found, body = client.answer(1)
        assert body == b"\x08\x01" and found["grpc-status"] == "0"


def test_a_large_answer_keeps_to_the_frame_size_and_both_windows(server):
    x = np.random.default_rng(0).standard_normal((3000, 22)).astype(np.float32)
    from rnnfast.server.protocol import methods

    method = methods()["ModelInfer"]
    request = method.request(model_name="denoiser")
    for name, value in (("bands", x), ("state", np.zeros((1, 3000, 32), np.float32))):
        request.inputs.add(name=name, datatype="FP32", shape=value.shape)
        request.raw_input_contents.append(value.tobytes())
    data = message(request.SerializeToString())
    with Client(server, settings=struct.pack(">HI", 4, 10**6)) as client:
        client.send(client.head(1, "ModelInfer"))
        for at in range(0, len(data), 16384):
            client.send(frame(DATA, at + 16384 >= len(data), 1, data[at : at + 16384]))
        body = b""
        while len(body) < 65535:
            _, flags, _, payload = client.until(DATA)
            assert len(payload) <= 16384 and not flags & 1
            body += payload
        assert len(body) == 65535  # the window of the connection
        client.send(frame(WINDOW_UPDATE, 0, 0, number(10**6)))
        found, rest = client.answer(1)
        assert found["grpc-status"] == "0"
        body += rest
        assert len(body) == 5 + int.from_bytes(body[1:5], "big")
        assert method.response.FromString(body[5:]).model_name == "denoiser"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity"])
def test_compression(server, encoding):
    import zlib

    data = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(b"")
    with Client(server) as client:
        client.send(client.head(1, grpc_encoding=encoding), frame(DATA, 1, 1, b"\1" + number(len(data)) + data))
        found = client.answer(1)[0]
        assert found["grpc-status"] == {"br": "12", "identity": "13"}.get(encoding, "0")
        if encoding == "br":
            assert found["grpc-accept-encoding"] == "identity,deflate,gzip"


@pytest.mark.parametrize("change", [lambda data: data + data, lambda data: data + b"\0", lambda data: data[:-1]])
def test_what_is_not_one_compressed_message(server, change):
    data = change(gzip.compress(b""))
    with Client(server) as client:
        client.send(client.head(1, grpc_encoding="gzip"), frame(DATA, 1, 1, b"\1" + number(len(data)) + data))
        assert client.answer(1)[0]["grpc-status"] == "13"


def test_what_decompresses_to_too_much():
    data = gzip.compress(bytes(10**6))
    with running("denoiser", max_body=10_000) as server, Client(server) as client:
        client.send(client.head(1, grpc_encoding="gzip"), frame(DATA, 1, 1, b"\1" + number(len(data)) + data))
        assert client.answer(1)[0]["grpc-status"] == "8"


# ------------------------------------------------------------------------------------------ calls that are wrong
@pytest.mark.parametrize(
    "headers, body, expected",
    [
        ({}, b"", ("grpc-status", "13")),
        ({}, message(b"") * 2, ("grpc-status", "13")),
        ({}, message(b"abc")[:-1], ("grpc-status", "13")),
        ({}, b"\0\0", ("grpc-status", "13")),
        ({}, b"\0\xff\xff\xff\xff", ("grpc-status", "8")),
        ({"method": "ServerDead"}, message(b""), ("grpc-status", "12")),
        ({"grpc_timeout": "5x"}, message(b""), ("grpc-status", "3")),
        ({"grpc_timeout": "123456789S"}, message(b""), ("grpc-status", "3")),
        ({"content_type": "text/plain"}, message(b""), (":status", "415")),
        ({":method": "GET"}, message(b""), (":status", "405")),
        ({":method": "PUT", ":path": "/"}, message(b""), (":status", "405")),
    ],
)
def test_calls_that_fail(server, headers, body, expected):
    with Client(server) as client:
        client.send(client.head(1, **headers), frame(DATA, 1, 1, body))
        found = client.answer(1)[0]
        assert found[expected[0]] == expected[1]
        assert client.alive(3)


@pytest.mark.parametrize("body", [b"", message(b"") * 2])
def test_a_watch_takes_one_message(server, body):
    with Client(server) as client:
        client.send(client.head(1, **{":path": "/grpc.health.v1.Health/Watch"}), frame(DATA, 1, 1, body))
        assert client.answer(1)[0]["grpc-status"] == "13"
        assert client.alive(3)


def test_a_call_whose_time_is_over(server):
    with Client(server) as client:
        client.send(client.head(1, "ModelStreamInfer", grpc_timeout="30m"))
        found, _ = client.answer(1)
        assert found["grpc-status"] == "4"
        assert client.until(RST_STREAM)[2:] == (1, number(NO_ERROR))
        client.send(frame(DATA, 1, 1, message(b"")))  # it did not know yet
        assert client.alive(3, grpc_timeout="20S")


def text_headers(method="ServerLive", **changes):
    return hpack.Encoder().encode([pair for pair in fields(method, **changes) if pair[1] is not None])


# The headers of a call whose block is remembered, as it changes no table.
LITERALS = [
    b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
    for name, value in ((name.encode(), value.encode()) for name, value in fields())
]
# name: frames after the settings, and the error of stream 1
OF_STREAMS = {
    "no path": ([frame(HEADERS, 5, 1, text_headers(**{":path": None}))], PROTOCOL_ERROR),
    "upper case": ([frame(HEADERS, 5, 1, text_headers() + b"\0\1A\1b")], PROTOCOL_ERROR),
    "space in a name": ([frame(HEADERS, 5, 1, text_headers() + b"\0\3a b\1b")], PROTOCOL_ERROR),
    "colon in a name": ([frame(HEADERS, 5, 1, text_headers() + b"\0\3a:b\1b")], PROTOCOL_ERROR),
    "no name": ([frame(HEADERS, 5, 1, text_headers() + b"\0\0\1b")], PROTOCOL_ERROR),
    "connection": ([frame(HEADERS, 5, 1, text_headers(connection="close"))], PROTOCOL_ERROR),
    "te": ([frame(HEADERS, 5, 1, text_headers(te="gzip"))], PROTOCOL_ERROR),
    "pseudo behind others": ([frame(HEADERS, 5, 1, text_headers() + b"\x83")], PROTOCOL_ERROR),
    "unknown pseudo": ([frame(HEADERS, 5, 1, b"\0\2:a\1b" + text_headers())], PROTOCOL_ERROR),
    "line break": ([frame(HEADERS, 5, 1, text_headers(a="b\r\nc: d"))], PROTOCOL_ERROR),
    "window of 0": ([frame(HEADERS, 4, 1, text_headers()), frame(WINDOW_UPDATE, 0, 1, number(0))], PROTOCOL_ERROR),
    "large window": (
        [frame(HEADERS, 4, 1, text_headers()), frame(WINDOW_UPDATE, 0, 1, number(2**31 - 1))],
        FLOW_CONTROL_ERROR,
    ),
    "trailers that do not end": (
        [frame(HEADERS, 4, 1, text_headers()), frame(HEADERS, 4, 1, b"\0\1a\1b")],
        PROTOCOL_ERROR,
    ),
    "trailers with a pseudo-header": (
        [frame(HEADERS, 4, 1, text_headers()), frame(DATA, 0, 1, message(b"")), frame(HEADERS, 5, 1, b"\x83")],
        PROTOCOL_ERROR,
    ),
    "trailers that are those of a request": (
        [frame(HEADERS, 4, 1, b"".join(LITERALS)), frame(HEADERS, 5, 1, b"".join(LITERALS))],
        PROTOCOL_ERROR,
    ),
    "trailers with upper case": (
        [frame(HEADERS, 4, 1, text_headers()), frame(HEADERS, 5, 1, b"\0\1A\1b")],
        PROTOCOL_ERROR,
    ),
    "data after the end": (
        [frame(HEADERS, 4, 1, text_headers("ModelStreamInfer")), frame(DATA, 1, 1, b""), frame(DATA, 0, 1, b"more")],
        STREAM_CLOSED,
    ),
}
OF_CONNECTIONS = {
    "large frame": ([frame(DATA, 0, 1, bytes(16385))], FRAME_SIZE_ERROR),
    "data on an idle stream": ([frame(DATA, 0, 1)], PROTOCOL_ERROR),
    "data on the connection": ([frame(DATA, 0, 0, b"a")], PROTOCOL_ERROR),
    "reset of an idle stream": ([frame(RST_STREAM, 0, 1, number(8))], PROTOCOL_ERROR),
    "reset of 3 bytes": ([frame(HEADERS, 4, 1, text_headers()), frame(RST_STREAM, 0, 1, b"abc")], FRAME_SIZE_ERROR),
    "window of an idle stream": ([frame(WINDOW_UPDATE, 0, 1, number(1))], PROTOCOL_ERROR),
    "window of 0": ([frame(WINDOW_UPDATE, 0, 0, number(0))], PROTOCOL_ERROR),
    "window of 3 bytes": ([frame(WINDOW_UPDATE, 0, 0, b"abc")], FRAME_SIZE_ERROR),
    "large window": ([frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1))], FLOW_CONTROL_ERROR),
    "even stream": ([frame(HEADERS, 5, 2, text_headers())], PROTOCOL_ERROR),
    "headers on the connection": ([frame(HEADERS, 5, 0, text_headers())], PROTOCOL_ERROR),
    "headers without bytes": ([frame(HEADERS, 8 | 4, 1)], FRAME_SIZE_ERROR),
    "more padding than bytes": ([frame(HEADERS, 8 | 4, 1, b"\x05abc")], PROTOCOL_ERROR),
    "more padding than data": ([frame(HEADERS, 4, 1, text_headers()), frame(DATA, 8, 1, b"\x05abc")], PROTOCOL_ERROR),
    "a stream that is closed": (
        [frame(HEADERS, 5, 3, text_headers()), frame(HEADERS, 5, 1, text_headers())],
        STREAM_CLOSED,
    ),
    "wrong block": ([frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff")], COMPRESSION_ERROR),
    "block that stops": ([frame(HEADERS, 5, 1, text_headers()[:-1])], COMPRESSION_ERROR),
    "continuation alone": ([frame(CONTINUATION, 4, 1, b"")], PROTOCOL_ERROR),
    "not continued": ([frame(HEADERS, 0, 1, text_headers()), frame(PING, 0, 0, bytes(8))], PROTOCOL_ERROR),
    "continued elsewhere": ([frame(HEADERS, 0, 1, b""), frame(CONTINUATION, 4, 3, text_headers())], PROTOCOL_ERROR),
    "endless block": ([frame(HEADERS, 0, 1)] + 40 * [frame(CONTINUATION, 0, 1)], ENHANCE_YOUR_CALM),
    "large block": ([frame(HEADERS, 0, 1)] + 3 * [frame(CONTINUATION, 0, 1, bytes(16000))], ENHANCE_YOUR_CALM),
    "large headers": ([frame(HEADERS, 5, 1, b"\x82" * 1000)], ENHANCE_YOUR_CALM),
    "ping on a stream": ([frame(PING, 0, 1, bytes(8))], PROTOCOL_ERROR),
    "ping of 7 bytes": ([frame(PING, 0, 0, bytes(7))], FRAME_SIZE_ERROR),
    "settings on a stream": ([frame(SETTINGS, 0, 1)], PROTOCOL_ERROR),
    "settings of 5 bytes": ([frame(SETTINGS, 0, 0, bytes(5))], FRAME_SIZE_ERROR),
    "acknowledged settings": ([frame(SETTINGS, 1, 0, bytes(6))], FRAME_SIZE_ERROR),
    "push of 2": ([frame(SETTINGS, 0, 0, struct.pack(">HI", 2, 2))], PROTOCOL_ERROR),
    "windows of 2^31": ([frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31))], FLOW_CONTROL_ERROR),
    "frames of 100": ([frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 100))], PROTOCOL_ERROR),
    "priority of 4 bytes": ([frame(PRIORITY, 0, 1, bytes(4))], FRAME_SIZE_ERROR),
    "promise": ([frame(PUSH_PROMISE, 4, 1, bytes(8))], PROTOCOL_ERROR),
    "goaway on a stream": ([frame(GOAWAY, 0, 1, bytes(8))], PROTOCOL_ERROR),
    "pings": (2100 * [frame(PING, 0, 0, bytes(8))], ENHANCE_YOUR_CALM),
    "settings": (2100 * [frame(SETTINGS)], ENHANCE_YOUR_CALM),
    "resets": (
        [
            frame(HEADERS, 4, 2 * n + 1, text_headers()) + frame(RST_STREAM, 0, 2 * n + 1, number(8))
            for n in range(2100)
        ],
        ENHANCE_YOUR_CALM,
    ),
    "resets that the client brings about": (
        [
            frame(HEADERS, 4, 2 * n + 1, text_headers()) + frame(WINDOW_UPDATE, 0, 2 * n + 1, number(0))
            for n in range(2100)
        ],
        ENHANCE_YOUR_CALM,
    ),
    "empty data": ([frame(HEADERS, 4, 1, text_headers())] + 2100 * [frame(DATA, 0, 1)], ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize("name", OF_STREAMS)
def test_errors_of_streams(server, name):
    frames, code = OF_STREAMS[name]
    with Client(server) as client:
        client.send(*frames)
        assert client.until(RST_STREAM) == (RST_STREAM, 0, 1, number(code))
        client.encoder = hpack.Encoder()
        client.encoder.header_table_size = 0  # the frames were made with tables of their own
        assert client.alive(5)


@pytest.mark.parametrize("name", OF_CONNECTIONS)
def test_errors_of_connections(server, name):
    frames, code = OF_CONNECTIONS[name]
    with Client(server) as client, Client(server) as other:
        assert other.alive(1)
        client.send(*frames)
        assert client.gone() == code
        assert other.alive(3)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", PREFACE + frame(PING, 0, 0, bytes(8)), b"PRI *?"])
def test_another_beginning(server, data):
    with Client(server, preface=False) as client:
        client.send(data)
        assert client.gone() == PROTOCOL_ERROR


# ------------------------------------------------------------------------------------------ limits
def test_too_much_for_the_window_of_a_stream(server):
    """A stream that is not read, since its answers do not leave, has a window only."""
    with Client(server, settings=struct.pack(">HI", 4, 0)) as client:
        client.send(client.head(1, "ModelStreamInfer"))
        try:
            for _ in range(200):
                client.send(frame(DATA, 0, 1, message(b"\xff" * 100) * 156))
        except OSError:
            pass
        assert client.until(RST_STREAM, GOAWAY)[3][-4:] == number(FLOW_CONTROL_ERROR)


def test_what_is_not_complete_in_time():
    with running("denoiser", request_timeout=0.3) as server:
        with Client(server, preface=False) as client:
            assert client.gone() == PROTOCOL_ERROR
        with Client(server) as client:
            client.send(client.head(1), frame(DATA, 0, 1, message(b"abc")[:-1]))
            assert client.answer(1)[0]["grpc-status"] == "4"
            client.send(client.head(3, "ModelStreamInfer"), frame(DATA, 0, 3, message(b"abc")[:-1]))
            assert client.answer(3)[0]["grpc-status"] == "4"
            client.send(client.head(5))
            assert client.answer(5)[0]["grpc-status"] == "4"
            client.send(client.head(7, "ModelStreamInfer"))
            time.sleep(0.6)
            assert client.alive(9)  # a stream may be silent
            client.send(frame(HEADERS, 0, 11))
            assert client.gone() == PROTOCOL_ERROR


def test_an_answer_that_is_not_read_in_time():
    with running("denoiser", request_timeout=0.3) as server:
        with Client(server, settings=struct.pack(">HI", 4, 3)) as client:
            client.send(client.head(1), frame(DATA, 1, 1, message(b"")))
            assert client.answer(1) == 8
            client.send(client.head(3), frame(DATA, 1, 3, message(b"")))
            for _ in range(4):
                time.sleep(0.15)
                client.send(frame(WINDOW_UPDATE, 0, 3, number(1)))
            assert client.answer(3)[1] == message(b"\x08\x01")
            wrong = frame(DATA, 0, 5, message(b"\xff"))
            client.send(client.head(5, "ModelStreamInfer"), wrong, frame(WINDOW_UPDATE, 0, 5, number(1)))
            for _ in range(4):
                time.sleep(0.15)
                client.send(wrong)  # which changes nothing
            assert client.answer(5) == 8
            client.send(client.head(7, "ModelStreamInfer"), frame(DATA, 0, 7, message(b"\xff")))
            client.send(frame(WINDOW_UPDATE, 0, 7, number(2**20)))
            assert client.until(DATA, stream=7)
            time.sleep(0.6)
            client.send(frame(DATA, 1, 7))
            assert client.answer(7)[0]["grpc-status"] == "0"


def test_a_client_may_send_the_rest_of_a_window_when_a_stream_has_ended(server):
    """What it sent in many small frames before it knew ends no connection, and more than the window does."""
    with Client(server) as client:
        wrong = frame(DATA, 0, 1, b"\2" + bytes(4))
        client.send(client.head(1, "ModelStreamInfer"), wrong, frame(DATA, 0, 1, bytes(100)) * 3000)
        assert client.answer(1)[0]["grpc-status"] == "13"
        assert client.alive(3)
        try:
            client.send(frame(DATA, 0, 1, bytes(16000)) * 65)
        except OSError:
            pass
        assert client.gone() == FLOW_CONTROL_ERROR


@pytest.mark.slow
def test_a_client_may_cancel_all_its_calls_at_once(server):
    with Client(server) as client:
        numbers = range(1, 5001, 2)
        client.send(*(client.head(n, "ModelStreamInfer") for n in numbers))
        time.sleep(1.1)  # they are not of the same second
        client.send(*(frame(RST_STREAM, 0, n, number(8)) for n in numbers))
        assert client.alive(5001)


def test_windows_of_many_streams_cost_little(monkeypatch):
    """Frames of some bytes let the server look at no stream that they do not help."""
    from rnnfast.server import http2

    looks, pump = [], http2.Http2Stream.pump
    with running("denoiser") as server, Client(server, settings=struct.pack(">HI", 4, 0)) as client:
        numbers = range(1, 400, 2)
        client.send(*(client.head(n) + frame(DATA, 1, n, message(b"")) for n in numbers))
        for _ in numbers:
            client.until(HEADERS)
        client.send(frame(PING, 0, 0, bytes(8)))  # answered after all calls
        client.until(PING)
        monkeypatch.setattr(http2.Http2Stream, "pump", lambda stream: (looks.append(stream.id), pump(stream)))
        client.send(
            frame(WINDOW_UPDATE, 0, 0, number(1)) * 100, *(frame(WINDOW_UPDATE, 0, n, number(1)) for n in numbers)
        )
        for _ in numbers:
            assert len(client.until(DATA)[3]) == 1
        assert len(looks) <= 2 * len(numbers)
        client.send(frame(SETTINGS, payload=b"".join(struct.pack(">HI", 4, 100 + n % 2) for n in range(2701))))
        for _ in numbers:
            assert client.until(HEADERS)[1] & 1
        client.send(*(client.head(n + 400) for n in range(1, 200, 2)))
        client.send(*(frame(SETTINGS, payload=struct.pack(">HI", 4, 100 + n % 2)) for n in range(1, 1200)))
        assert client.gone() == ENHANCE_YOUR_CALM


def test_answers_that_wait_have_a_limit(server, monkeypatch):
    from rnnfast.server import http2

    monkeypatch.setattr(http2, "MAX_WAITING_BYTES", 10)
    with Client(server, settings=struct.pack(">HI", 4, 0)) as client:
        for n in (1, 3):  # 7 bytes each
            client.send(client.head(n), frame(DATA, 1, n, message(b"")))
            assert client.until(HEADERS)[2] == n
        client.send(frame(PING, 0, 0, bytes(8)))  # answered after both calls
        client.until(PING)
        client.send(client.head(5), frame(DATA, 1, 5, message(b"")))
        assert client.answer(5) == REFUSED_STREAM
        client.send(frame(WINDOW_UPDATE, 0, 1, number(2)), frame(RST_STREAM, 0, 1, number(8)))
        client.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100)))
        assert client.answer(3)[1] == message(b"\x08\x01")
        for n in range(7, 27, 2):
            assert client.alive(n)


def test_answers_that_wait_have_a_limit_for_all_connections_together():
    with running("denoiser", max_body=100) as server:  # and so 1600 bytes may be held
        calls = calls_of(server)
        with Client(server, settings=struct.pack(">HI", 4, 0)) as first, Client(server) as other:
            with Client(server, settings=struct.pack(">HI", 4, 0)) as second:
                for client in (first, second):
                    client.send(*(client.head(n, "ModelStreamInfer") for n in range(1, 41, 2)))
                    client.send(*(frame(DATA, 0, n, message(b"\xff")) for n in range(1, 41, 2)))
                    client.send(frame(PING, 0, 0, bytes(8)))
                    client.until(PING)
                assert not [found for found in first.log if found[0] == RST_STREAM]
                cut = [found[2:] for found in second.log if found[0] == RST_STREAM]
                assert 10 < len(cut) < 20 and set(dict(cut).values()) == {number(ENHANCE_YOUR_CALM)}
                assert calls.held <= calls.most_held == 1600 and other.alive(1)
            first.send(frame(SETTINGS, payload=struct.pack(">HI", 4, 1000)))
            for _ in range(20):
                assert first.until(DATA)
        end = time.monotonic() + SECONDS
        while calls.held:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_client_that_does_not_read_may_not_send_on(server, monkeypatch):
    from rnnfast.server import http2

    monkeypatch.setattr(http2, "MAX_WAITING_BYTES", 10)
    monkeypatch.setattr(http2, "CONNECTION_WINDOW", 2**17)
    with Client(server, settings=struct.pack(">HI", 4, 0)) as client:
        client.send(client.head(1, "ModelStreamInfer"), *[frame(DATA, 0, 1, message(b"\xff" * 15995))] * 8)
        client.send(frame(PING, 0, 0, bytes(8)))
        client.until(PING)
        assert [found[2] for found in client.log if found[0] == WINDOW_UPDATE] == [0]  # which is from the beginning
        client.send(frame(WINDOW_UPDATE, 0, 1, number(2**20)))
        assert client.until(WINDOW_UPDATE)[2:] == (0, number(8 * 16000))
        client.send(frame(DATA, 1, 1))
        assert client.answer(1)[0]["grpc-status"] == "0"
        client.send(frame(SETTINGS, payload=struct.pack(">HI", 4, 1000)))
        assert client.alive(3)
        client.send(client.head(5, "ModelStreamInfer"))
        client.send(frame(SETTINGS, payload=struct.pack(">HI", 4, 0)), client.head(7, "ModelStreamInfer"))
        client.send(*[frame(DATA, 0, 7, message(b"\xff" * 15995))] * 7, frame(RST_STREAM, 0, 7, number(8)))
        assert client.until(WINDOW_UPDATE)[2] == 0


def test_a_server_that_ends_answers_what_runs():
    with running("denoiser") as server, Client(server) as client, Client(server) as silent:
        assert client.alive(1) and silent.alive(1)
        client.send(client.head(3, "ModelStreamInfer"), client.head(5), frame(DATA, 0, 3, message(b"\xff")))
        assert client.until(DATA)[2] == 3
        server.loop.call_soon_threadsafe(server.ended.set)
        client.send(*[frame(DATA, 0, 3, message(b"\xff"))] * 100)
        assert client.answer(3)[0]["grpc-status"] == "14"
        client.send(frame(DATA, 1, 5, message(b"")))
        assert client.answer(5)[1] == message(b"\x08\x01")
        assert GOAWAY in [kind for kind, *_ in client.log]
        assert silent.gone() == NO_ERROR


def test_a_server_that_ends_takes_no_stream_of_which_it_said_that_it_does_not():
    with running("denoiser") as server, Client(server) as client:
        client.send(client.head(1), client.head(3))
        client.send(frame(PING, 0, 0, bytes(8)))
        client.until(PING)
        server.loop.call_soon_threadsafe(server.ended.set)
        assert client.until(GOAWAY)[3] == number(3) + number(NO_ERROR)
        client.send(client.head(5), frame(DATA, 1, 1, message(b"")))
        assert client.until(RST_STREAM)[2:] == (5, number(REFUSED_STREAM))
        assert client.answer(1)[1] == message(b"\x08\x01")
        client.send(frame(PING, 0, 0, bytes(7)))
        assert client.until(GOAWAY)[3][:8] == number(3) + number(FRAME_SIZE_ERROR)


def test_more_streams_than_there_may_be():
    with running("denoiser", max_connections=3) as server, Client(server) as client:
        client.send(*(client.head(n, "ModelStreamInfer") for n in (1, 3, 5)))
        client.send(client.head(7))
        assert client.until(RST_STREAM) == (RST_STREAM, 0, 7, number(REFUSED_STREAM))
        client.send(frame(RST_STREAM, 0, 1, number(8)))
        assert client.alive(9)
        with Client(server) as second, Client(server) as third, Client(server) as fourth:
            assert second.alive(1) and third.alive(1)
            assert fourth.read() is None


# ------------------------------------------------------------------------------------------ random frames
def random_frames(rng):
    """Frames, most of them wrong."""
    parts = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.choice([DATA, HEADERS, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, PRIORITY])
        stream, flags = (
            rng.choice([0, 1, 1, 1, 3, 3, 5, 2**31 - 1]),
            rng.choice([0, 1, 4, 5, 8, 0x2C, rng.randrange(256)]),
        )
        payload = rng.choice([
            b"", bytes(4), bytes(8), number(rng.randrange(2**31)), rng.randbytes(rng.randrange(40)),
            text_headers(rng.choice(["ServerLive", "ModelInfer", "ModelStreamInfer"])), message(rng.randbytes(9)),
            struct.pack(">HI", rng.randrange(8), rng.randrange(2**32)),
        ])  # fmt: skip
        data = bytearray(frame(kind, flags, stream, payload))
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] = rng.randrange(256)
        parts.append(bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data))
    return b"".join(parts)


def test_random_frames_break_nothing(server, recwarn):
    problems = []
    server.call(lambda: server.loop.set_exception_handler(lambda loop, context: problems.append(context)))
    with Client(server) as other:
        for seed in range(300):
            rng = random.Random(seed)
            with Client(server, preface=rng.random() < 0.95) as client:
                try:
                    client.send(random_frames(rng))
                    if rng.random() < 0.3:
                        client.socket.shutdown(socket.SHUT_WR)
                        while client.read() is not None:
                            pass
                except OSError:
                    pass
            assert other.alive(2 * seed + 1)
    server.call(lambda: server.loop.set_exception_handler(None))
    assert not problems, problems[:3]


def calls_of(server):
    """The Calls of a server, by a new connection: what a server has when it starts is hidden from `gc.get_objects`."""
    import gc

    from rnnfast.server.http2 import Http2Protocol

    with Client(server) as client:
        assert client.alive(1)
        found = {id(x._application): x._application for x in gc.get_objects() if type(x) is Http2Protocol}
    [calls] = [calls for calls in found.values() if not calls.ending]
    return calls


def test_what_comes_for_a_call_that_has_ended_is_not_kept(server):
    """The end of a call waits for the client to read, while it still sends."""
    calls = calls_of(server)
    with Client(server, settings=struct.pack(">HI", 4, 0)) as client:
        client.send(client.head(1, "ModelStreamInfer"), frame(DATA, 0, 1, message(b"\xff")))
        assert client.until(HEADERS)[2] == 1
        client.send(frame(DATA, 0, 1, b"\2" + bytes(4)))  # a wrong flag
        client.send(frame(DATA, 0, 1, message(b"\xff") * 3), frame(DATA, 0, 1, message(bytes(10000))[:-1]))
        client.send(frame(WINDOW_UPDATE, 0, 1, number(2**20)))
        found, body = client.answer(1)
        assert found["grpc-status"] == "13" and len(body) == 5 + int.from_bytes(body[1:5], "big")
        client.send(frame(SETTINGS, payload=struct.pack(">HI", 4, 1000)))
        assert client.alive(3)
    assert calls.held == 0


def test_nothing_is_kept_of_a_stream_that_sends_more_than_its_window(server):
    calls = calls_of(server)
    with Client(server, settings=struct.pack(">HI", 4, 0)) as client:
        client.send(client.head(1, "ModelStreamInfer"))
        try:
            for _ in range(200):
                client.send(frame(DATA, 0, 1, message(b"\xff" * 100) * 156))
        except OSError:
            pass
        client.until(RST_STREAM, GOAWAY)
    end = time.monotonic() + SECONDS
    while calls.held or calls.connections:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_messages_that_wait_have_a_limit_together_by_what_they_become(method, monkeypatch):
    """Those of streams wait in them, and those of other calls for the end of the request."""
    import asyncio

    from rnnfast.server.protocol import methods
    from rnnfast.server.service import Service

    async def never(self, request):
        await asyncio.Event().wait()

    monkeypatch.setattr(Service, "infer", never)
    request = methods()["ModelInfer"].request(model_name="denoiser")
    for name, size in (("bands", 22), ("state", 32)):
        request.inputs.add(name=name, datatype="FP32", shape=[1, size])
        request.raw_input_contents.append(bytes(4 * size))
    request.id = "x" * 9000
    data = gzip.compress(request.SerializeToString())
    with running("denoiser", max_body=10_000) as server, Client(server) as client:
        calls = calls_of(server)
        call = [client.head(n, method, grpc_encoding="gzip") for n in range(1, 61, 2)]
        client.send(*(
            head + frame(DATA, 0, n, b"\1" + number(len(data)) + data) for head, n in zip(call, range(1, 61, 2))
        ))  # fmt: skip
        for n in range(35, 61, 2):
            assert client.answer(n)[0]["grpc-status"] == "8"
        client.send(frame(PING, 0, 0, bytes(8)))
        client.until(PING)
        assert 9000 * 15 < calls.held <= calls.most_held == 160_000
        client.send(*(frame(RST_STREAM, 0, n, number(8)) for n in range(1, 35, 2)))
        assert client.alive(61)
        assert calls.held == 0


def test_nothing_is_left_of_closed_connections(server):
    calls = calls_of(server)
    with Client(server) as client:
        client.send(client.head(1, "ModelStreamInfer"), frame(DATA, 0, 1, message(bytes(100))[:50]))
        assert client.alive(3)
        assert calls.held == 50 and calls.connections
    end = time.monotonic() + SECONDS
    while calls.connections or calls.held:
        assert time.monotonic() < end
        time.sleep(0.01)
