"""The server by Triton's client over gRPC, and by raw messages where that client would not send them."""

import asyncio
import queue
import threading
import time
import types

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("grpc_health")
import grpc

import rnnfast
from tests.paths import MODELS
from tests.server.client import SECONDS, alone, eventually, frames
from tests.server.conftest import running


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.grpc")


@pytest.fixture
def client(triton, server):
    client = triton.InferenceServerClient(server.address("grpc"))
    yield client
    client.close()


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address("grpc")) as channel:
        yield channel


def bands(triton, x):
    tensor = triton.InferInput("bands", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def call(channel, method, data=b""):
    """The bytes that a method answers to bytes."""
    return channel.unary_unary(f"/inference.GRPCInferenceService/{method}", _registered_method=False)(
        data, timeout=SECONDS
    )


class Stream:
    """A ModelStreamInfer call of Triton's client."""

    def __init__(self, triton, client):
        self.triton, self.client, self.answers = triton, client, queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)))

    def send(self, x, id="", model="denoiser", **parameters):
        self.client.async_stream_infer(model, bands(self.triton, x), request_id=id, **parameters)

    def receive(self):
        return self.answers.get(timeout=SECONDS)

    def gains(self):
        """(id, gains) of the next answer."""
        result, error = self.receive()
        assert error is None, error
        return result.get_response().id, result.as_numpy("gains").tobytes()


@pytest.fixture
def stream(triton, client):
    stream = Stream(triton, client)
    yield stream
    client.stop_stream()


def refused(code, text, function, *args, **keywords):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=text) as caught:
        function(*args, **keywords)
    assert caught.value.status() == f"StatusCode.{code}"


# ------------------------------------------------------------------------------------------ the server and its models
def test_server_and_models(client, server):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("denoiser")
    assert client.is_model_ready("denoiser", "1")
    assert not client.is_model_ready("denoiser", "2") and not client.is_model_ready("nope")
    about = client.get_server_metadata(as_json=True)
    assert about["name"] == "rnnfast" and about["version"] == rnnfast.__version__ and "sequence" in about["extensions"]
    assert client.get_model_metadata("denoiser", as_json=True) == {
        "name": "denoiser",
        "versions": ["1"],
        "platform": "rnnfast_onnx",
        "inputs": [{"name": "bands", "datatype": "FP32", "shape": ["-1", "22"]}],
        "outputs": [{"name": "gains", "datatype": "FP32", "shape": ["-1", "22"]}],
    }
    config = client.get_model_config("denoiser", as_json=True)["config"]
    assert config["input"] == [{"name": "bands", "data_type": "TYPE_FP32", "dims": ["-1", "22"]}]
    assert config["sequence_batching"]["max_sequence_idle_microseconds"] == "60000000"
    for model in server.service.models():  # what it says of itself has a place in the messages
        client.get_model_config(model.name)
    refused("NOT_FOUND", "unknown model: 'nope' is not found", client.get_model_metadata, "nope")
    refused("NOT_FOUND", "unknown model: 'denoiser' version 2 is not found", client.get_model_config, "denoiser", "2")


def test_statistics_count_requests(client, triton):
    def counts():
        (stats,) = client.get_inference_statistics("denoiser", as_json=True)["model_stats"]
        return np.array([
            int(stats["inference_count"]),
            *[int(stats["inference_stats"][kind].get("count", 0)) for kind in ("success", "fail", "queue")],
        ])  # fmt: skip

    client.infer("denoiser", bands(triton, frames(0, 1)[0]), sequence_id=1, sequence_start=True)
    before = counts()
    for _ in range(3):
        client.infer("denoiser", bands(triton, frames(0, 1)[0]), sequence_id=1)
    with pytest.raises(Exception, match="bands"):
        client.infer("denoiser", bands(triton, frames(0, 1)[0, :, :3]), sequence_id=1)
    assert list(counts() - before) == [3, 3, 1, 3]
    assert {m["name"] for m in client.get_inference_statistics(as_json=True)["model_stats"]} >= {"denoiser", "tagger"}


def test_repository(client):
    def states():
        return {m["name"]: m["state"] for m in client.get_model_repository_index(as_json=True)["models"]}

    assert states() == dict.fromkeys(("denoiser", "tagger", "detector"), "READY")
    client.unload_model("tagger")
    assert states()["tagger"] == "UNAVAILABLE" and not client.is_model_ready("tagger")
    client.load_model("tagger")
    assert client.is_model_ready("tagger")
    refused("NOT_FOUND", "nope", client.load_model, "nope")
    assert "nope" not in states()
    refused("PERMISSION_DENIED", "the server's own files", client.load_model, "tagger", config="{}")


def test_without_control_models_are_not_loaded(triton):
    with running("denoiser") as server, triton.InferenceServerClient(server.address("grpc")) as client:
        refused("PERMISSION_DENIED", "--control", client.load_model, "denoiser")
        refused("PERMISSION_DENIED", "--control", client.unload_model, "denoiser")


def test_what_is_not_supported_is_refused_by_name(client, channel):
    from rnnfast.server.grpc import REFUSED

    refused("UNIMPLEMENTED", "shared memory", client.get_system_shared_memory_status)
    refused("UNIMPLEMENTED", "tracing", client.get_trace_settings)
    refused("UNIMPLEMENTED", "log settings", client.get_log_settings)
    for name, text in REFUSED.items():
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, name)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED and caught.value.details() == text


def test_health(channel, triton):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    status = health_pb2.HealthCheckResponse
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "inference.GRPCInferenceService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == status.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# ------------------------------------------------------------------------------------------ calls
def test_a_call_without_a_sequence(client, triton):
    rng = np.random.default_rng(3)
    x, state = rng.standard_normal((5, 22), dtype=np.float32), rng.standard_normal((1, 5, 32), dtype=np.float32)
    inputs = bands(triton, x)
    inputs.append(triton.InferInput("state", [1, 5, 32], "FP32"))
    inputs[1].set_data_from_numpy(state)
    result = client.infer("denoiser", inputs, request_id="é")
    found = rnnfast.load(MODELS / "denoiser.onnx")(bands=x, state=state)
    assert result.as_numpy("gains").tobytes() == found.gains.tobytes()
    assert result.as_numpy("new_state").tobytes() == found.new_state.tobytes()
    assert (result.get_response().id, result.get_response().model_version) == ("é", "1")
    result = client.infer("denoiser", inputs, outputs=[triton.InferRequestedOutput("new_state")])
    assert [output.name for output in result.get_response().outputs] == ["new_state"]


@pytest.mark.parametrize("id", [5, 2**63 - 1, "five"])
def test_a_sequence_has_the_bits_of_a_stream_alone(client, triton, id):
    x = frames(1, 7)
    found = [
        client.infer(
            "denoiser", bands(triton, frame), sequence_id=id, sequence_start=t == 0, sequence_end=t == len(x) - 1
        ).as_numpy("gains")
        for t, frame in enumerate(x)
    ]
    assert [y.tobytes() for y in found] == [y.tobytes() for y in alone(x)]
    refused(
        "INVALID_ARGUMENT",
        f"for sequence {id} to model 'denoiser' must specify the START flag on the first request",
        client.infer, "denoiser", bands(triton, x[0]), sequence_id=id,
    )  # fmt: skip


def test_wrong_calls_have_the_code_of_their_kind(client, triton, channel):
    x = frames(2, 1)[0]
    refused("NOT_FOUND", "unknown model: 'nope'", client.infer, "nope", bands(triton, x))
    refused("INVALID_ARGUMENT", "non-empty correlation ID", client.infer, "denoiser", bands(triton, x))
    refused(
        "INVALID_ARGUMENT", "'tagger' has no sequences", client.infer, "tagger", [], sequence_id=1, sequence_start=True
    )
    wrong = triton.InferRequestedOutput("gains", class_count=2)
    refused("UNIMPLEMENTED", "classification is not done", client.infer, "denoiser", bands(triton, x), outputs=[wrong])
    shared = bands(triton, x)
    shared[0].set_shared_memory("region", 88)
    refused("UNIMPLEMENTED", "shared memory", client.infer, "denoiser", shared)
    for data in b"\xff\xff\xff", b"\x0a\x05abc":
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", data)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "unable to parse the request: its bytes are no ModelInferRequest"
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "Nope")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_that_is_too_large(triton):
    with running("denoiser", max_body=10_000) as server, triton.InferenceServerClient(server.address("grpc")) as client:
        x = np.zeros((1000, 22), np.float32)
        refused("RESOURCE_EXHAUSTED", "larger than max", client.infer, "denoiser", bands(triton, x))
        assert client.is_server_live()


# ------------------------------------------------------------------------------------------ streams
def test_many_sequences_in_a_stream(stream):
    ids = [1, 2, "a", "b", 2**40, "1"]
    x = {id: frames(10 + n, 20) for n, id in enumerate(ids)}
    for t in range(20):
        for id in ids:
            stream.send(x[id][t], f"{id!r} {t}", sequence_id=id, sequence_start=t == 0, sequence_end=t == 19)
    found = {id: [] for id in ids}
    for _ in range(20 * len(ids)):
        name, gains = stream.gains()
        id, t = name.rsplit(" ", 1)
        found[eval(id)].append((int(t), gains))
    for id in ids:
        assert found[id] == [(t, y.tobytes()) for t, y in enumerate(alone(x[id]))]


def test_answers_say_that_they_are_final(stream):
    stream.send(frames(0, 1)[0], "7", sequence_id=3, sequence_start=True, enable_empty_final_response=True)
    result, error = stream.receive()
    assert error is None and result.get_response().parameters["triton_final_response"].bool_param


def test_errors_in_a_stream_name_their_request_and_others_go_on(stream):
    x = frames(4, 3)
    stream.send(x[0], "1", sequence_id=4, sequence_start=True)
    assert stream.gains()[0] == "1"
    for id, text, parameters in [
        ("2", "must specify the START flag", {"sequence_id": 44}),
        ("3", "unknown model: 'nope'", {"model": "nope", "sequence_id": 4}),
        ("4", "expected an integer of at least 0", {"sequence_id": 4, "timeout": -1}),
        ("5", "non-empty correlation ID", {}),
    ]:
        stream.send(x[0], id, **parameters)
        result, error = stream.receive()
        assert result is None and text in str(error)
    stream.send(x[1, :, :3], "6", sequence_id=4)
    assert "bands" in str(stream.receive()[1])
    stream.send(x[1], "7", sequence_id=4)
    assert stream.gains() == ("7", alone(x)[1].tobytes())


def test_errors_in_a_stream_as_messages(channel, server):
    """What Triton sends: the text, and a response that has the id alone."""
    from rnnfast.server.protocol import methods

    method = methods()["ModelStreamInfer"]
    rpc = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", _registered_method=False)
    requests = [method.request(model_name="nope", id="7").SerializeToString(), b"\xff", b""]
    found = [method.response.FromString(data) for data in rpc(iter(requests), timeout=SECONDS)]
    assert {answer.error_message: answer.infer_response.id for answer in found} == {
        "Request for unknown model: 'nope' is not found": "7",
        "unable to parse the request: its bytes are no ModelInferRequest": "",
        "Request for unknown model: '' is not found": "",
    }
    assert len(found) == 3 and all(answer.HasField("infer_response") for answer in found)
    for answer in found:
        answer.infer_response.id = ""
        assert answer.infer_response.ByteSize() == 0


def test_requests_without_a_sequence_are_answered_in_order(channel):
    from rnnfast.server.protocol import methods

    method = methods()["ModelStreamInfer"]
    rng = np.random.default_rng(5)
    model, requests, expected = rnnfast.load(MODELS / "denoiser.onnx"), [], []
    for i in range(40):
        x, state = rng.standard_normal((1 + i % 3, 22), dtype=np.float32), np.ones((1, 1 + i % 3, 32), np.float32)
        message = method.request(model_name="denoiser", id=str(i))
        for name, value in (("bands", x), ("state", state)):
            message.inputs.add(name=name, datatype="FP32", shape=value.shape)
            message.raw_input_contents.append(value.tobytes())
        requests.append(message.SerializeToString())
        expected.append((str(i), model(bands=x, state=state).gains.tobytes()))
    rpc = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", _registered_method=False)
    found = [method.response.FromString(data).infer_response for data in rpc(iter(requests), timeout=SECONDS)]
    assert [(answer.id, answer.raw_output_contents[0]) for answer in found] == expected


def test_the_sequences_of_a_stream_end_with_it(triton, client, server):
    x = frames(6, 2)
    live = server.service.live_sequences
    before = live()
    stream = Stream(triton, client)
    for id in "pqr":
        stream.send(x[0], id, sequence_id=id, sequence_start=True)
    stream.send(x[1], "q", sequence_id="q", sequence_end=True)
    for _ in range(4):
        stream.gains()
    assert live() == before + 2
    client.infer("denoiser", bands(triton, x[0]), sequence_id="r", sequence_start=True)  # r begins anew, elsewhere
    client.stop_stream()
    eventually(lambda: live() == before + 1)
    refused("INVALID_ARGUMENT", "START flag.*: it was closed as the stream that began it ended",
            client.infer, "denoiser", bands(triton, x[0]), sequence_id="p")  # fmt: skip
    assert (
        client.infer("denoiser", bands(triton, x[1]), sequence_id="r", sequence_end=True).as_numpy("gains").tobytes()
        == alone(x)[1].tobytes()
    )


def test_a_client_that_breaks_off_leaves_nothing(server, channel):
    from rnnfast.server.protocol import methods

    x, live = frames(7, 1), server.service.live_sequences
    before = live()
    message = methods()["ModelInfer"].request(model_name="denoiser", raw_input_contents=[x[0].tobytes()])
    message.inputs.add(name="bands", datatype="FP32", shape=[1, 22])
    message.parameters["sequence_start"].bool_param = True
    requests = []
    for i in range(1, 200):
        message.parameters["sequence_id"].int64_param = 1000 + i
        requests.append(message.SerializeToString())
    never = threading.Event()

    def send():
        yield from requests
        never.wait(SECONDS)

    with grpc.insecure_channel(server.address("grpc")) as own:
        rpc = own.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", _registered_method=False)(send())
        for _ in range(50):
            next(rpc)
        assert live() > before
        rpc.cancel()
    never.set()
    eventually(lambda: live() == before)


def test_a_client_that_does_not_read_is_not_read_from(server):
    """Requests in flight are bounded, and so is memory."""
    from rnnfast.server.grpc import MAX_IN_FLIGHT
    from rnnfast.server.protocol import methods

    x, state = np.zeros((500, 22), np.float32), np.zeros((1, 500, 32), np.float32)
    message = methods()["ModelInfer"].request(model_name="denoiser", raw_input_contents=[x.tobytes(), state.tobytes()])
    message.inputs.add(name="bands", datatype="FP32", shape=x.shape)
    message.inputs.add(name="state", datatype="FP32", shape=state.shape)
    data, sent, stop = message.SerializeToString(), [0], threading.Event()

    def send():
        while not stop.is_set() and sent[0] < 20_000:
            sent[0] += 1
            yield data

    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address("grpc"), options=options) as own:
        rpc = own.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", _registered_method=False)(send())
        last = -1
        while sent[0] != last:
            last = sent[0]
            time.sleep(0.5)
        stop.set()
        assert MAX_IN_FLIGHT / 4 < last < 4 * MAX_IN_FLIGHT
        assert sum(1 for _ in rpc) == sent[0]


# ------------------------------------------------------------------------------------------ the end of a server
def test_a_server_that_ends_tells_its_clients(triton):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    x = frames(8, 3)
    with running("denoiser", drain=20.0) as server:
        with (
            triton.InferenceServerClient(server.address("grpc")) as client,
            grpc.insecure_channel(server.address("grpc")) as channel,
        ):
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            stream = Stream(triton, client)
            stream.send(x[0], "1", sequence_id=1, sequence_start=True)
            assert stream.gains()[1] == alone(x)[0].tobytes()
            server.loop.call_soon_threadsafe(server.ended.set)
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watched.cancel()
            assert not client.is_server_ready() and client.is_server_live()
            stream.send(x[0], "2", sequence_id=2, sequence_start=True)
            assert "takes no new sequences" in str(stream.receive()[1])
            stream.send(x[1], "3", sequence_id=1)  # a live sequence goes on, and the server ends with it
            assert stream.gains()[1] == alone(x)[1].tobytes()
            stream.send(x[2], "4", sequence_id=1, sequence_end=True)
            assert stream.gains()[1] == alone(x)[2].tobytes()
            assert "the server is ending" in str(stream.receive()[1])
            server.thread.join(SECONDS)
            assert not server.thread.is_alive()


def test_a_taken_port_is_an_error(server):
    with pytest.raises(OSError, match="gRPC cannot listen at 127.0.0.1"):
        with running("denoiser", grpc_port=int(server.address("grpc").split(":")[1])):
            pass


def test_a_sequence_ends_with_its_stream_though_that_breaks_before_its_first_answer():
    """A first request may have run in another process whose answer is on its way when the call is cancelled."""
    from rnnfast.errors import InputError
    from rnnfast.server.grpc import Stream as ServerStream
    from rnnfast.server.grpc_messages import Decoder
    from rnnfast.server.grpc_transport import Calls
    from rnnfast.server.protocol import methods

    def message(id):
        request = methods()["ModelInfer"].request(model_name="denoiser", raw_input_contents=[frames(0, 1).tobytes()])
        request.inputs.add(name="bands", datatype="FP32", shape=[1, 22])
        request.parameters["sequence_start"].bool_param = True
        request.parameters["sequence_id"].string_param = id
        return request.SerializeToString()

    class Service:
        def __init__(self):
            self.settings, self.errors, self.dropped = types.SimpleNamespace(max_body=2**20), {}, []
            self.runs = asyncio.Event()

        def new_owner(self):
            return 0, 7

        def find(self, name, version):
            return name

        def submit(self, request, then):
            return None

        async def infer(self, request):
            if request.parameters["sequence_id"] == "wrong":
                raise InputError("wrong")
            assert request.owner == (0, 7)
            self.runs.set()
            await asyncio.Event().wait()

        def drop(self, model, id, why, owner):
            self.dropped.append((model, id, owner))

    async def run():
        service, written, loop = Service(), [], asyncio.get_running_loop()
        stream = types.SimpleNamespace(
            connection=types.SimpleNamespace(loop=loop),
            send_headers=lambda block: None,
            send=lambda data: written.append(data) or True,
        )
        calls = Calls({}, 10, 2**20, SECONDS)
        call = stream.handler = ServerStream(calls, stream, None, service, set(), Decoder())
        call.message(message("wrong"))
        call.message(message("a"))
        await asyncio.wait_for(service.runs.wait(), SECONDS)
        await asyncio.sleep(0)
        stream.handler = None
        call.lost()
        while not service.dropped:
            await asyncio.sleep(0)
        assert len(written) == 1 and service.dropped == [("denoiser", "a", (0, 7))]

    asyncio.run(asyncio.wait_for(run(), SECONDS))


def test_nothing_further_of_a_sequence_runs_when_its_stream_ends_as_a_frame_has_its_result():
    """The answer of a frame without a task comes behind the end of the call."""
    from rnnfast.server.grpc import Stream as ServerStream
    from rnnfast.server.grpc_transport import Calls
    from rnnfast.server.requests import InferRequest, InferResponse

    async def run():
        loop, ran = asyncio.get_running_loop(), []
        futures = []

        def submit(request, then):
            future = loop.create_future()
            future.add_done_callback(lambda _: then(InferResponse("denoiser", "1", "", {}), None))
            futures.append(future)
            return future

        async def infer(request):
            ran.append(request)

        service = types.SimpleNamespace(new_owner=lambda: 0, find=lambda *names: names, submit=submit, infer=infer)
        stream = types.SimpleNamespace(connection=types.SimpleNamespace(loop=loop))
        request = InferRequest("denoiser", "", "", {}, [], {"sequence_id": 1})
        decoder = types.SimpleNamespace(decode=lambda _: request)
        call = stream.handler = ServerStream(Calls({}, 10, 2**20, SECONDS), stream, None, service, set(), decoder)
        call.message(b"first")
        call.message(b"second")
        futures[0].set_result(None)
        stream.handler = None
        call.lost()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(futures) == 1 and not ran

    asyncio.run(asyncio.wait_for(run(), SECONDS))


# ------------------------------------------------------------------------------------------ other clients
@pytest.mark.parametrize("compression", ["NoCompression", "Gzip", "Deflate"])
def test_an_asynchronous_client_with_many_streams_and_large_messages(server, compression):
    import asyncio

    import grpc.aio

    from rnnfast.server.protocol import methods

    method, path = methods()["ModelInfer"], "/inference.GRPCInferenceService/"
    x = frames(9, 5)
    expected = [y.tobytes() for y in alone(x)]
    rng = np.random.default_rng(10)
    large, state = rng.standard_normal((20_000, 22), dtype=np.float32), np.ones((1, 20_000, 32), np.float32)

    def request(tensors, **parameters):
        message = method.request(model_name="denoiser")
        for name, value in tensors.items():
            message.inputs.add(name=name, datatype="FP32", shape=value.shape)
            message.raw_input_contents.append(value.tobytes())
        for name, value in parameters.items():
            setattr(message.parameters[name], "bool_param" if value is True else "int64_param", value)
        return message.SerializeToString()

    async def stream(channel, id):
        rpc, found = channel.stream_stream(path + "ModelStreamInfer")(timeout=SECONDS), []
        for t, frame in enumerate(x):
            start = {"sequence_start": True} if t == 0 else {}
            await rpc.write(request({"bands": frame}, sequence_id=id, **start))
            answer = methods()["ModelStreamInfer"].response.FromString(await rpc.read())
            found.append(answer.infer_response.raw_output_contents[0])
        await rpc.done_writing()
        assert await rpc.read() is grpc.aio.EOF
        assert await rpc.code() is grpc.StatusCode.OK
        return found

    async def run():
        kind = getattr(grpc.Compression, compression)
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(server.address("grpc"), options, compression=kind) as channel:
            infer = channel.unary_unary(path + "ModelInfer")
            data = request({"bands": large, "state": state})
            calls = [infer(data, timeout=SECONDS) for _ in range(3)]
            streams = [stream(channel, 5000 + n) for n in range(200)]
            found, answers = await asyncio.gather(asyncio.gather(*streams), asyncio.gather(*calls))
            assert found == [expected] * 200
            right = rnnfast.load(MODELS / "denoiser.onnx")(bands=large, state=state).gains.tobytes()
            for answer in answers:
                assert method.response.FromString(answer).raw_output_contents[0] == right

    asyncio.run(run())
