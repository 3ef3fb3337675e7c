"""WebSockets: frames in, results out, and how connections end."""

import contextlib
import gc
import json
import socket
import time
import urllib.parse

import numpy as np
import pytest

pytest.importorskip("websockets")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import rnnfast
from rnnfast.errors import InputError
from rnnfast.server.websocket import WebSocketProtocol
from tests.graphs import parse, random
from tests.server import client as of_server
from tests.server.client import SECONDS, eventually, frames
from tests.server.conftest import running

# A small graph with the inputs, outputs and states of Silero VAD.
VAD = """agraph (float[batch, n] input, float[2, batch, 7] state, int64 sr)
    => (float[batch, 1] output, float[2, batch, 7] stateN)
{
    half = Constant <value = int64[2] {1, 1}> ()
    first = Constant <value = int64[1] {0}> ()
    h, c = Split <axis = 0> (state, half)
    x = Unsqueeze (input, first)
    y, hn, cn = LSTM <hidden_size = 7> (x, w, r, b, , h, c)
    stateN = Concat <axis = 0> (hn, cn)
    last = Squeeze (hn, first)
    score = Gemm (last, v)
    output = Sigmoid (score)
}"""
# Two outputs beside the state, one of them of integers; and two inputs.
TWO = """agraph (float[batch, 3] x, float[batch, 3] y, float[batch, 3] h)
    => (float[batch, 3] total, int64[batch] best, float[batch, 3] h_out)
{
    xy = Add (x, y)
    h_out = Add (xy, h)
    total = Identity (h_out)
    best = ArgMax <axis = 1, keepdims = 0> (h_out)
}"""
PCM = (random(5, 20, 512) * 3000).astype("<i2")


def alone(x):
    """What a stream of its own gives for frames, as messages."""
    return [y.tobytes() for y in of_server.alone(x)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "vad.onnx").write_bytes(
        parse(VAD, w=random(0, 1, 28, 576) / 5, r=random(1, 1, 28, 7), b=random(2, 1, 56), v=random(3, 7, 1))
    )
    (folder / "two.onnx").write_bytes(parse(TWO))
    return folder


@pytest.fixture(scope="module")
def server(files):
    with running("denoiser", "tagger", files / "vad.onnx", files / "two.onnx") as server:
        yield server


def address(server, path="denoiser/stream"):
    return f"ws://{server.address('http')}/v2/models/{path}"


@contextlib.contextmanager
def opened(server, path="denoiser/stream", **options):
    with connect(address(server, path), **options) as client:
        yield client


def ask(client, frame):
    client.send(frame.tobytes())
    return client.recv(SECONDS)


def closed(client):
    """Code and reason with which the server closes a connection, and what came before."""
    came = []
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            came.append(client.recv(SECONDS))
    return caught.value.rcvd.code, caught.value.rcvd.reason, came


def answered(model):
    """The number of requests of a model that were answered."""
    return sum(model.statistics.durations.counts)


# ------------------------------------------------------------------------------------------ frames
def test_each_connection_is_a_sequence_with_the_bits_of_a_stream_alone(server):
    x = [frames(seed, 12) for seed in range(5)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(server)) for _ in x]
        found = [[ask(client, row[t]) for client, row in zip(clients, x)] for t in range(12)]
    assert [list(column) for column in zip(*found)] == [alone(row) for row in x]
    eventually(lambda: server.service.live_sequences() == 0)


def test_many_frames_at_once_are_answered_in_order(server):
    x = frames(7, 1000)
    with opened(server, "denoiser/versions/1/stream") as client:
        for frame in x:
            client.send(frame.tobytes())
        assert [client.recv(SECONDS) for _ in x] == alone(x)


def test_fragments_are_one_message(server):
    x = frames(8, 2)
    with opened(server) as client:
        client.send([x[0].tobytes()[:1], x[0].tobytes()[1:40], x[0].tobytes()[40:]])
        assert client.recv(SECONDS) == alone(x)[0]
        client.ping().wait(SECONDS)
        assert ask(client, x[1]) == alone(x)[1]


def test_empty_fragments_take_no_room(server):
    x = frames(8, 1)
    with opened(server) as client:
        data, fragment, last = x[0].tobytes(), b"\x00\x80\0\0\0\0", b"\x80\x80\0\0\0\0"
        client.socket.sendall(b"\x02\xd8\0\0\0\0" + data + fragment * 20_000)
        (connection,) = server.call(connections)
        eventually(lambda: len(connection._parts) == len(data))
        client.socket.sendall(last)
        assert client.recv(SECONDS) == alone(x)[0]


def connections():
    """The WebSockets of the servers of this process that are receiving a message."""
    # By type(): isinstance() asks weak proxies too, whose objects may be gone.
    return [o for o in gc.get_objects() if issubclass(type(o), WebSocketProtocol) and o._parts]


def test_messages_of_all_connections_together_are_bounded():
    """Halves of messages that nobody completes count too, and those of connections that are gone do not."""
    with running("denoiser", max_body=100_000) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            clients = [stack.enter_context(opened(server)) for _ in range(17)]
            for i, client in enumerate(clients):
                size = 99_000
                head = b"\x02\xff" if i % 2 else b"\x82\xff"  # a part of a message, or of a frame
                client.socket.sendall(head + size.to_bytes(8, "big") + bytes(4) + bytes(size - (i % 2 == 0)))
            eventually(lambda: any(client.protocol.close_rcvd for client in clients))
            assert {client.protocol.close_rcvd.code for client in clients if client.protocol.close_rcvd} == {1013}
            for client in clients:
                client.socket.close()
            with opened(server) as other:
                assert ask(other, frames(1, 1)[0]) == alone(frames(1, 1))[0]


def handshake(server, *more):
    """What a server answers to requests before a handshake, and to bytes right behind it, up to some last bytes."""
    before, behind, last = more
    host, port = server.address("http").split(":")
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    line = b"GET /v2/models/denoiser/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with socket.create_connection((host, int(port)), SECONDS) as raw:
        raw.sendall(before + line + key + behind)
        answer = b""
        while (part := raw.recv(65536)) and not (answer := answer + part).endswith(last):
            pass
        return answer


def test_bytes_right_behind_the_handshake_are_frames(server):
    x = frames(9, 1)
    behind = b"\x82\xd8\0\0\0\0" + x[0].tobytes() + b'\x81\x8d\0\0\0\0{"end": true}'
    answer = handshake(server, b"", behind, b"\x88\x02\x03\xe8")
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\n\x82\x58" + alone(x)[0] + b"\x88\x02\x03\xe8")


def test_a_handshake_behind_a_request_without_its_answer_is_not_taken(server):
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = handshake(server, request * 3, b"", b"nothing")
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b'{"live":true}') == 3
    assert answer.count(b"HTTP/1.1") == 3 and answer.endswith(b'{"live":true}')


def test_samples_of_16_bits_behind_those_before_them(server, files):
    samples = np.concatenate([np.zeros(64), PCM.ravel() / 2.0**15]).astype(np.float32)
    stream = rnnfast.load(files / "vad.onnx").stream(sr=16000)
    right = [stream.step(input=samples[None, 512 * i : 512 * i + 576]).tobytes() for i in range(len(PCM))]
    with opened(server, "vad/stream?format=s16&context=64&sr=16000") as client:
        assert [ask(client, chunk) for chunk in PCM] == right
    with opened(server, "vad/stream?context=64&sr=16000") as client:
        assert [ask(client, chunk / np.float32(2**15)) for chunk in PCM] == right


def test_several_outputs_are_json(server, files):
    x = random(3, 4, 1, 3)
    with opened(server, "two/stream?input=x") as client:
        assert closed_after(client, x[0])[0] == 1003  # y is missing
    with running(files / "two.onnx", fixed={"y": [[1.0, 2.0, 3.0]]}, states={"h": "h_out"}) as fixed:
        with opened(fixed, "two/stream") as client:
            for t in range(4):
                message = json.loads(ask(client, x[t]))
                total = sum(x[: t + 1], start=np.zeros((1, 3), np.float32)) + np.float32([1, 2, 3]) * (t + 1)
                assert message["model_name"] == "two"
                first, second = message["outputs"]
                assert np.allclose(first.pop("data"), total.ravel(), atol=1e-5)  # sums in another order
                assert first == {"name": "total", "datatype": "FP32", "shape": [1, 3]}
                assert second == {
                    "name": "best", "datatype": "INT64", "shape": [1], "data": [int(total.argmax())]
                }  # fmt: skip


def closed_after(client, frame):
    client.send(frame.tobytes())
    return closed(client)


# ------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("nope/stream", 404, "unknown model: 'nope' is not found"),
        ("denoiser/versions/9/stream", 404, "version 9 is not found"),
        ("denoiser/infer", 404, "there is no WebSocket at /v2/models/denoiser/infer"),
        ("tagger/stream", 400, "model 'tagger' has no sequences: "),
        ("denoiser/stream?format=mp3", 400, "format=mp3: expected f32 or s16"),
        ("denoiser/stream?foo=1", 400, "foo= is unknown: the options are format, input, context and shape"),
        ("denoiser/stream?foo", 400, "the query of the URL is not understood"),
        ("denoiser/stream?format=f32&format=f32", 400, "has a key twice"),
        ("denoiser/stream?input=state", 400, "input=state: model 'denoiser' has bands"),
        ("denoiser/stream?context=-1", 400, "context=-1: expected an integer of 0 to"),
        ("denoiser/stream?shape=1,x", 400, "expected sizes such as 1,-1,40"),
        ("denoiser/stream?shape=1,21", 400, "shape=1,21: input 'bands' is"),
        ("denoiser/stream?shape=-1,22,1", 400, "input 'bands' is"),
        ("denoiser/stream?shape=2,22&context=3", 400, "are no samples in a row"),
        ("two/stream", 400, "choose one by input="),
        ("vad/stream?sr=fast", 400, "sr=fast: expected numbers"),
        ("vad/stream?sr=1,2", 400, "sr=1,2 has 2 elements, expected 1"),
        ("vad/stream?shape=-1,-1", 400, "choose the shape of frames by shape=, with one -1"),
    ],
)
def test_what_the_url_says_is_checked_before_the_connection_opens(server, path, status, text):
    with pytest.raises(InvalidStatus) as caught, opened(server, path):
        pass
    response = caught.value.response
    assert response.status_code == status and text in json.loads(bytes(response.body))["error"]


def test_pages_of_others_are_refused(server):
    with pytest.raises(InvalidStatus) as caught, opened(server, origin="https://example.com"):
        pass
    assert caught.value.response.status_code == 403
    with opened(server, origin=f"http://{server.address('http')}") as client:
        assert ask(client, frames(0, 1)[0]) == alone(frames(0, 1))[0]


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (b"", 1003, "0 bytes came, expected 88 bytes"),
        (b"1" * 87, 1003, "87 bytes came, expected 88 bytes"),
        (b"1" * 176, 1003, "176 bytes came, expected 88 bytes"),
        ("hello", 1003, "text 'hello' came, expected {\"end\": true} or bytes"),
        ("é" * 200, 1003, ""),
        ('{"end": false}', 1003, 'expected {"end": true}'),
    ],
)
def test_a_wrong_message_closes_the_connection_with_the_reason(server, message, code, reason):
    x = frames(9, 2)
    with opened(server) as good, opened(server) as client:
        assert ask(good, x[0]) == alone(x)[0]
        assert ask(client, x[0]) == alone(x)[0]
        client.send(message)
        found = closed(client)
        assert found[0] == code and reason in found[1] and found[2] == []
        assert ask(good, x[1]) == alone(x)[1]
    eventually(lambda: server.service.live_sequences() == 0)


def test_a_message_that_is_too_large(files):
    with running("denoiser", max_body=100) as server, opened(server) as client:
        client.send(b"1" * 101)
        assert closed(client)[0] == 1009


def test_more_sequences_than_may_be_live(files):
    x = frames(1, 2)
    with running("denoiser", max_sequences=2) as server:
        with opened(server) as first, opened(server) as second, opened(server) as third:
            assert ask(first, x[0]) == ask(second, x[0]) == alone(x)[0]
            code, reason, _ = closed_after(third, x[0])
            assert code == 1013 and "all 2 sequences are live" in reason
            assert ask(first, x[1]) == alone(x)[1]
            first.close()
            with opened(server) as later:
                eventually(lambda: server.service.live_sequences() == 1)
                assert ask(later, x[0]) == alone(x)[0]


def test_a_frame_that_is_not_taken_leaves_the_sequence_as_it_was(files):
    """Replies stay in order; the sequence, and the samples before a frame, go on with the next frame."""
    x = random(6, 8, 60, 512)
    with running(files / "vad.onnx", max_queue=1, max_batch=1) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(server, "vad/stream?context=64&sr=16000")) for _ in x]
        found = [[ask(client, row[0])] for client, row in zip(clients, x)]
        for t in range(1, 60):
            for client, row in zip(clients, x):
                client.send(row[t].tobytes())
        for client, replies in zip(clients, found):
            replies += [client.recv(SECONDS) for _ in range(59)]
    refused = [reply for replies in found for reply in replies if isinstance(reply, str)]
    assert refused and all(json.loads(reply).keys() == {"error"} for reply in refused)
    stream = rnnfast.load(files / "vad.onnx").stream(sr=16000)
    for row, replies in zip(x, found):
        stream.reset()
        taken = np.concatenate([np.zeros(64, np.float32), *(f for f, r in zip(row, replies) if isinstance(r, bytes))])
        right = [stream.step(input=taken[None, i : i + 576]).tobytes() for i in range(0, len(taken) - 64, 512)]
        assert [reply for reply in replies if isinstance(reply, bytes)] == right


def test_a_model_is_warm_for_fixed_inputs(files):
    """Its plans are there before the first frame, with the value that the requests have."""
    x = random(8, 3, 576)
    with running(files / "vad.onnx", warm={"input": [1, 576], "sr": 16000}) as server:
        (model,) = server.service.models()
        before = model.model.planned.plans.count
        with opened(server, "vad/stream?sr=16000") as client:
            got = [ask(client, row) for row in x]
        assert model.model.planned.plans.count == before > 0
    stream = rnnfast.load(files / "vad.onnx").stream(sr=16000)
    assert got == [stream.step(input=row[None]).tobytes() for row in x]


def test_a_model_is_warm_for_a_fraction(tmp_path):
    """A number that float32 rounds is the input that it becomes."""
    (tmp_path / "scaled.onnx").write_bytes(
        parse("""agraph (float[batch, 3] x, float[1] scale, float[batch, 3] h)
            => (float[batch, 3] y, float[batch, 3] h_out)
        {
            scaled = Mul (x, scale)
            h_out = Add (scaled, h)
            y = Identity (h_out)
        }""")
    )
    with running(tmp_path / "scaled.onnx", warm={"x": [1, 3], "scale": 0.1}) as server:
        (model,) = server.service.models()
        before = model.model.planned.plans.count
        with opened(server, "scaled/stream?scale=0.1") as client:
            assert ask(client, np.ones(3, np.float32)) == np.full(3, 0.1, np.float32).tobytes()
        assert model.model.planned.plans.count == before > 0


@pytest.mark.parametrize(
    "warm, text",
    [
        ({"input": 1}, "input 'input' the number 1, but its shape is open"),
        ({"sr": 0.5}, "the number 0.5"),
        ({"sr": 2**70}, "the number 1180591620717411303424"),
    ],
)
def test_a_model_is_not_warm_for_wrong_numbers(files, warm, text):
    with pytest.raises(InputError, match=text), running(files / "vad.onnx", warm=warm):
        pass


# ------------------------------------------------------------------------------------------ how connections end
def test_a_client_ends_its_sequence(server):
    x = frames(2, 2)
    (model,) = (model for model in server.service.models() if model.name == "denoiser")
    before = model.statistics.ended, model.statistics.dropped
    with opened(server) as client:
        client.send(x[0].tobytes())
        client.send('{"end": true}')
        with contextlib.suppress(ConnectionClosed):  # if the server was quick
            client.send(x[1].tobytes())
        assert closed(client) == (1000, "", [alone(x)[0]])
    with opened(server) as client:
        ask(client, x[0])
    eventually(lambda: (model.statistics.ended, model.statistics.dropped) == (before[0] + 2, before[1]))


def test_a_client_that_vanishes_leaves_nothing(server):
    (model,) = (model for model in server.service.models() if model.name == "denoiser")
    before = model.statistics.dropped
    with opened(server) as client:
        ask(client, frames(3, 1)[0])
        for frame in frames(3, 50):
            client.send(frame.tobytes())
        client.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: server.service.live_sequences() == 0)
    assert model.statistics.dropped == before + 1
    done = answered(model)
    time.sleep(0.05)
    assert answered(model) == done


def test_silence_closes_connections(files):
    with running("denoiser", idle=0.3) as server, opened(server) as client, opened(server) as silent:
        ask(client, frames(3, 1)[0])
        assert closed(silent)[:2] == (1001, "no frame came")
        assert closed(client)[:2] == (1001, "the sequence was closed after 0.3 s without a request")


def test_the_end_of_the_server_closes_connections():
    x = frames(4, 500)
    with running("denoiser") as server:
        with opened(server) as busy, opened(server) as quiet:
            ask(busy, x[0])
            for frame in x[1:]:
                busy.send(frame.tobytes())
            server.loop.call_soon_threadsafe(server.ended.set)
            code, reason, came = closed(busy)
            assert (code, reason) == (1001, "the server is ending") and came == alone(x)[1 : len(came) + 1]
            assert closed(quiet)[:2] == (1001, "the server is ending")


def test_no_connection_begins_while_the_server_drains():
    x = frames(5, 3)
    with running("denoiser", drain=20.0) as server:
        with opened(server) as live, opened(server) as unused:
            ask(live, x[0])
            server.loop.call_soon_threadsafe(server.ended.set)
            eventually(lambda: server.service.draining)
            assert closed_after(unused, x[0])[:2] == (
                1001, "model 'denoiser': the server is ending and takes no new sequences"
            )  # fmt: skip
            with pytest.raises(InvalidStatus) as caught, opened(server):
                pass
            assert caught.value.response.status_code == 503
            assert ask(live, x[1]) == alone(x)[1]
            live.send('{"end": true}')
            assert closed(live)[:2] == (1000, "")


@pytest.mark.parametrize("kind", [b"\x82", b"\x89"], ids=["frames", "pings"])
def test_a_client_that_does_not_read_is_not_read_from(server, kind):
    """Neither frames nor results nor answers to pings pile up in the server."""
    place = urllib.parse.urlsplit(address(server))
    frame = frames(6, 1)[0].tobytes()
    message = kind + bytes([128 + len(frame), 0, 0, 0, 0]) + frame
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((place.hostname, place.port))
        raw.sendall(
            f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in raw.recv(10_000)
        raw.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 50e6:
                sent += raw.send(message * 1000)
        (model,) = (model for model in server.service.models() if model.name == "denoiser")
        done = answered(model)
        with opened(server) as other:
            assert ask(other, frames(6, 1)[0]) == alone(frames(6, 1))[0]
        assert answered(model) - done < 1000
    eventually(lambda: server.service.live_sequences() == 0)


@pytest.mark.parametrize(
    "data", [b"\x82\x05hello", b"\xff" * 50, b"\x83\x80\0\0\0\0", b"\x81\x82\0\0\0\0\xff\xff", b"\x80\x80\0\0\0\0"]
)
def test_bytes_that_break_the_protocol(server, data):
    with opened(server) as client, opened(server) as good:
        ask(client, frames(6, 1)[0])
        client.socket.sendall(data)
        assert closed(client)[0] in (1002, 1003, 1007)
        assert ask(good, frames(6, 1)[0]) == alone(frames(6, 1))[0]
    eventually(lambda: server.service.live_sequences() == 0)


@pytest.mark.parametrize("headers", [[("Host", "other")], [("Origin", "http://a"), ("Origin", "http://b")]])
def test_headers_that_stand_twice_are_refused(server, headers):
    with pytest.raises(InvalidStatus) as caught, opened(server, additional_headers=headers):
        pass
    assert caught.value.response.status_code == 400
    assert "twice" in json.loads(bytes(caught.value.response.body))["error"]


def test_an_origin_that_is_no_url_is_refused(server):
    with pytest.raises(InvalidStatus) as caught, opened(server, origin="http://[::"):
        pass
    assert caught.value.response.status_code == 403
