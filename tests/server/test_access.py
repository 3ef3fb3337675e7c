"""Tokens, TLS, the access log and what is said about open addresses."""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import time

import numpy as np
import pytest

pytest.importorskip("httptools")
pytest.importorskip("orjson")

import rnnfast
from rnnfast.errors import InputError, ModelError
from rnnfast.server import access
from rnnfast.server.access import Access, exposure, is_loopback, tls_context
from rnnfast.server.faults import UnauthorizedError
from rnnfast.server.settings import Settings
from tests.paths import MODELS
from tests.server.processes import answer, ask, connected, received, request, started

DENOISER = MODELS / "denoiser.onnx"
LARGE = [("grpc.max_receive_message_length", -1)]
TOKEN, OTHER = "correct-horse-battery-staple", "another-token-of-length"


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# tokens\n\n{TOKEN}\n")
    return path


def bearer(token, scheme="Bearer"):
    return [(b"host", b"x"), (b"authorization", f"{scheme} {token}".encode())]


def test_tokens(tokens):
    check = Access(str(tokens)).check_token
    check(bearer(TOKEN))
    check(bearer(TOKEN, "bearer"))
    check([("authorization", f"Bearer {TOKEN}")])  # gRPC's metadata are texts
    for headers in (
        [], bearer(OTHER), bearer(TOKEN[:-1]), bearer(TOKEN + "x"), bearer(""), bearer(TOKEN, "Basic"),
        bearer("# tokens"),
        [(b"authorization", TOKEN.encode())], [("authorization", "Bearer \udcff")],
        [*bearer(OTHER), *bearer(TOKEN)],
    ):  # fmt: skip
        with pytest.raises(UnauthorizedError) as e:
            check(headers)
        assert TOKEN not in str(e.value)
    Access(None).check_token([])


@pytest.mark.parametrize(
    "text", ["", "# none\n\n", "short\n", f"{TOKEN} with spaces\n", f"{TOKEN}\x01\n", f"{TOKEN}é\n"]
)
def test_files_without_good_tokens_are_refused(tmp_path, text):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(InputError) as e:
        Access(str(path))
    assert str(path) in str(e.value) and TOKEN not in str(e.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "nope", tmp_path / "fifo", tmp_path):
        with pytest.raises(ModelError, match=path.name):
            Access(str(path))


def test_a_file_is_read_again_when_it_changes(tokens, monkeypatch, capsys):
    monkeypatch.setattr(access, "LOOK_SECONDS", 0.0)
    known = Access(str(tokens))
    tokens.write_text(f"{TOKEN}\n{OTHER}\n")
    known.check_token(bearer(OTHER))
    tokens.write_text(OTHER)
    with pytest.raises(UnauthorizedError):
        known.check_token(bearer(TOKEN))
    tokens.unlink()
    known.check_token(bearer(OTHER))
    known.check_token(bearer(OTHER))
    assert capsys.readouterr().err.count("the tokens stay as they were") == 1
    tokens.write_text("# revoked\n")
    with pytest.raises(UnauthorizedError):
        known.check_token(bearer(OTHER))


def test_a_signal_reads_the_file_again(tokens):
    with started(DENOISER, f"--token-file={tokens}") as server:
        port = server.port()
        for path, status in ("/v2/health/live", 200), ("/v2/health/ready", 200), ("/v2", 401), ("/v2/nope", 401):
            got, headers, body = ask(port, "GET", path)
            assert got == status
            assert ("www-authenticate" in headers) == (status == 401)
        assert ask(port, "POST", "/v2/models/denoiser/infer", b"{}")[0] == 401
        assert ask(port, "GET", "/v2", authorization=f"Bearer {TOKEN}")[0] == 200
        tokens.write_text(OTHER)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while ask(port, "GET", "/v2", authorization=f"Bearer {OTHER}")[0] != 200:
            assert time.monotonic() < deadline
        assert ask(port, "GET", "/v2", authorization=f"Bearer {TOKEN}")[0] == 401


def called(channel, method, metadata=(), stream=False):
    """The code with which a method of the gRPC service answers an empty message."""
    grpc = pytest.importorskip("grpc")
    path = f"/inference.GRPCInferenceService/{method}"
    try:
        if stream:
            list(channel.stream_stream(path)(iter([]), metadata=metadata, timeout=20))
        else:
            channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
    except grpc.RpcError as e:
        return e.code().name
    return "OK"


def test_tokens_over_grpc_and_websockets(tokens):
    grpc, client = pytest.importorskip("grpc"), pytest.importorskip("websockets.sync.client")
    good = (("authorization", f"Bearer {TOKEN}"),)
    with started(DENOISER, f"--token-file={tokens}") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.port('grpc')}") as channel:
            for method in "ServerMetadata", "ModelMetadata", "ModelInfer", "RepositoryIndex", "ModelStatistics":
                assert called(channel, method) == "UNAUTHENTICATED"
                assert called(channel, method, (("authorization", f"Bearer {OTHER}"),)) == "UNAUTHENTICATED"
                assert called(channel, method, good) != "UNAUTHENTICATED"
            assert called(channel, "ModelStreamInfer", stream=True) == "UNAUTHENTICATED"
            assert called(channel, "ModelStreamInfer", good, stream=True) == "OK"
            assert called(channel, "ServerLive") == called(channel, "ServerReady") == "OK"
        url = f"ws://127.0.0.1:{server.port()}/v2/models/denoiser/stream"
        with client.connect(url, additional_headers=dict(good)) as connection:
            connection.send(bytes(88))
            assert len(connection.recv(20)) == 88
        with pytest.raises(Exception, match="401"), client.connect(url):
            pass


def test_a_stream_without_a_token_is_answered_once(tokens):
    """The time of the call, which is over, changes nothing."""
    pytest.importorskip("hpack")
    from tests.server.conftest import running
    from tests.server.test_http2 import HEADERS, PING, RST_STREAM, Client, frame

    with running("denoiser", token_file=str(tokens)) as server, Client(server) as client:
        for n, end in ((1, False), (3, True)):
            client.send(client.head(n, "ModelStreamInfer", end=end, grpc_timeout="20m"))
            assert client.answer(n)[0]["grpc-status"] == "16"
        time.sleep(0.1)
        client.send(frame(PING, 0, 0, bytes(8)))
        client.until(PING)
        assert [found[::2] for found in client.log if found[0] in (HEADERS, RST_STREAM)] == [
            (HEADERS, 1), (RST_STREAM, 1), (HEADERS, 3),
        ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- TLS
@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) of localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed, which makes a certificate for the test")
    return files


def test_tls(certificate):
    certificate, key = certificate
    with started(DENOISER, f"--tls-certificate={certificate}", f"--tls-key={key}", scheme="https") as server:
        port, context = server.port("https"), ssl.create_default_context(cafile=certificate)
        assert ask(port, "GET", "/v2", context=context)[0] == 200
        with connected(port, context) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000)
            assert answer(connection)[0] == 431
        with connected(port) as connection:  # plain HTTP
            connection.sendall(request("GET", "/v2"))
            assert b"HTTP" not in connection.recv(2**16)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(certificate)
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connected(port, old)
        grpc = pytest.importorskip("grpc")
        from rnnfast.server.protocol import methods

        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{server.port('grpc')}", credentials, LARGE) as channel:
            assert called(channel, "ServerLive") == "OK"
            x, state = np.ones((20_000, 22), np.float32), np.ones((1, 20_000, 32), np.float32)
            message = methods()["ModelInfer"].request(model_name="denoiser")
            for name, value in (("bands", x), ("state", state)):
                message.inputs.add(name=name, datatype="FP32", shape=value.shape)
                message.raw_input_contents.append(value.tobytes())
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            found = methods()["ModelInfer"].response.FromString(infer(message.SerializeToString(), timeout=20))
            assert found.raw_output_contents[0] == rnnfast.load(DENOISER)(bands=x, state=state).gains.tobytes()
        with connected(server.port("grpc"), context) as connection:  # TLS without the protocol h2
            assert connection.recv(2**16) == b""
        with grpc.insecure_channel(f"localhost:{server.port('grpc')}") as channel:
            assert called(channel, "ServerLive") == "UNAVAILABLE"


def test_tls_carries_many_and_large_requests(certificate):
    certificate, key = certificate
    x = np.random.default_rng(5).standard_normal((20_000, 22)).astype(np.float32)
    state = np.zeros((1, 20_000, 32), np.float32)
    inputs = [
        {"name": name, "datatype": "FP32", "shape": value.shape, "parameters": {"binary_data_size": value.nbytes}}
        for name, value in (("bands", x), ("state", state))
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    large = request(
        "POST", "/v2/models/denoiser/infer", head + x.tobytes() + state.tobytes(),
        Inference_Header_Content_Length=len(head),
    )  # fmt: skip
    with started(DENOISER, f"--tls-certificate={certificate}", f"--tls-key={key}", scheme="https") as server:
        with connected(server.port("https"), ssl.create_default_context(cafile=certificate)) as connection:
            for _ in range(3):
                connection.sendall(request("GET", "/v2"))
                assert answer(connection)[0] == 200
                connection.sendall(large)
                status, headers, body = answer(connection)
                assert status == 200
                gains = body[int(headers["inference-header-content-length"]) :][: x.nbytes]
                assert gains == rnnfast.load(DENOISER)(bands=x, state=state).gains.tobytes()
            connection.sendall(request("GET", "/v2", connection="close") * 2)
            assert received(connection).count(b"HTTP/1.1 200 OK") == 1


def test_clients_of_tls_that_leave_before_their_answers_fill_no_log(certificate):
    """`started` finds that nothing is said on stderr."""
    pytest.importorskip("hpack")
    from tests.server.client import frames
    from tests.server.test_grpc_messages import request as grpc_request
    from tests.server.test_grpc_messages import tensor
    from tests.server.test_http2 import DATA, PREFACE, SETTINGS, Client, frame

    certificate, key = certificate
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2"])
    message = grpc_request(
        [tensor("bands", "FP32", (1, 22)), tensor("state", "FP32", (1, 1, 32))],
        [frames(0, 1)[0].tobytes(), bytes(4 * 32)],
    )
    message.model_name, message.model_version = "denoiser", ""
    data = message.SerializeToString()
    data = b"\0" + len(data).to_bytes(4, "big") + data
    with started(DENOISER, f"--tls-certificate={certificate}", f"--tls-key={key}", scheme="https") as server:
        server.address = lambda scheme: f"127.0.0.1:{server.port(scheme)}"
        for _ in range(4):
            client = Client(server, preface=False)
            plain = client.socket.dup()
            client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
            client.send(PREFACE + frame(SETTINGS))
            for stream in range(1, 301, 2):
                client.send(client.head(stream, "ModelStreamInfer"), frame(DATA, 0, stream, data * 30))
            client.socket.settimeout(0.05)
            with contextlib.suppress(OSError):
                client.socket.unwrap()
            time.sleep(0.2)
            client.socket.close()
            plain.close()
        assert ask(server.port("https"), "GET", "/v2/health/live", context=context)[0] == 200


def test_wrong_tls_files(certificate, tmp_path):
    certificate, key = map(str, certificate)
    (tmp_path / "other").write_text("no key")
    for files in (certificate, str(tmp_path / "other")), (str(tmp_path / "nope"), key), (key, certificate):
        with pytest.raises(ModelError, match=os.path.basename(files[0])):
            tls_context(Settings((str(DENOISER),), tls_certificate=files[0], tls_key=files[1]))
    with pytest.raises(InputError, match="belong together"):
        Settings((str(DENOISER),), tls_certificate=certificate)


# ---------------------------------------------------------------------------------------------------- addresses, log
def test_open_addresses(tokens):
    def lacks(host, **values):
        return exposure(Settings((str(DENOISER),), host=host, **values))

    assert is_loopback("127.8.9.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("localhost.example")
    tls = {"tls_certificate": "c", "tls_key": "k"}
    assert lacks("127.0.0.1") is None and lacks("0.0.0.0", token_file="t", **tls) is None
    assert "without tokens" in lacks("0.0.0.0", **tls) and "TLS" not in lacks("0.0.0.0", **tls)
    assert "without TLS" in lacks("::", token_file="t") and "tokens" not in lacks("::", token_file="t")
    assert "without tokens" in lacks("10.0.0.1") and "without TLS" in lacks("10.0.0.1")


def test_an_open_address_is_warned_of_once(tmp_path):
    with open(tmp_path / "stderr", "w+") as stderr:
        with started(DENOISER, "--host=0.0.0.0", stderr=stderr) as server:
            ask(server.port(), "GET", "/v2")
        stderr.seek(0)
        assert stderr.read().splitlines() == [
            "rnnfast: 0.0.0.0 is open to other machines without tokens (--token-file) and without TLS "
            "(--tls-certificate)"
        ]


def test_access_log(tmp_path, tokens):
    with open(tmp_path / "stderr", "w+") as stderr:
        with started(DENOISER, "--access-log", f"--token-file={tokens}", stderr=stderr) as server:
            for path in ("/v2?token=secret", "/v2/%0aGET%20/forged", "/v2/\x7f", "/" + "x" * 1000):
                ask(server.port(), "GET", path, authorization=f"Bearer {TOKEN}")
            ask(server.port(), "GET", "/v2")
            with connected(server.port()) as connection:
                connection.sendall(b"\x1b[31m\r\n\r\n")
                answer(connection)
        stderr.seek(0)
        lines = stderr.read().splitlines()
    fields = [line.split(" ") for line in lines]
    assert all(map(str.isprintable, lines))
    assert [(line[0], line[1][:30], line[2]) for line in fields] == [
        ("GET", "/v2", "200"),
        ("GET", "/v2/%0aGET%20/forged", "404"),
        ("-", "-", "400"),
        ("GET", "/" + "x" * 29, "404"),
        ("GET", "/v2", "401"),
        ("-", "-", "400"),
    ]
    assert all(len(line) == 5 and int(line[3]) > 0 and float(line[4]) >= 0 for line in fields)
    assert "secret" not in "".join(lines) and TOKEN not in "".join(lines)


def test_no_headers_for_other_origins():
    """A page of another origin cannot read answers: there is no CORS."""
    with started(DENOISER) as server:
        headers = {"origin": "http://evil.example", "access_control_request_method": "POST"}
        status, got, _ = ask(server.port(), "OPTIONS", "/v2/models/denoiser/infer", **headers)
        assert status == 405 and "POST" in got["allow"]
        _, more, _ = ask(server.port(), "GET", "/v2", **headers)
        assert not [name for name in (*got, *more) if name.startswith("access-control")]
