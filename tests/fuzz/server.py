"""Fuzzes a server: random bytes and changed requests at its ports, while sequences run that must keep their bits.

    python -m tests.fuzz.server --seconds 600

A finding is an answer 500 or a gRPC code that stands for a defect, a traceback on stderr, a server that ends or does
not answer, a sequence whose results differ by a bit from those of a stream alone, and memory that grows. Findings are
printed, and what was sent goes to build/fuzz. The exit status is 1 if there are any.
"""

import argparse
import base64
import collections
import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time

import numpy as np

import rnnfast
from tests.paths import MODELS, ROOT
from tests.server.processes import Server, answer, command, connected, environment, frame, gains, request

SEQUENCES = 20
# Settings of the server: small, so that the fuzzer reaches the limits.
OPTIONS = ["--max-sequences=4096", "--idle=120", "--request-timeout=2", "--keep-alive=3", "--max-body=1000000"]
MODEL_FILES = [MODELS / f"{name}.onnx" for name in ("denoiser", "tagger", "detector")]
# Memory may grow by this much after the first third of the time: caches and the C library's own arenas do.
MOST_GROWTH = 48 * 2**20
# gRPC codes that stand for a defect of the server.
DEFECTS = ("UNKNOWN", "INTERNAL", "DATA_LOSS")
# Seconds that one case may take.
CASE_SECONDS = 15.0
ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, 1e-320, 0.5,
    "", "a", "\u0000", "é" * 50, "x" * 5000, [], [[]], {}, {"a": 1}, [None], ["a"], [1, "a"], [[1], [2, 3]], 10**30,
]  # fmt: skip
PATHS = [
    "/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/denoiser", "/v2/models/denoiser/ready", "/metrics",
    "/v2/models/denoiser/config", "/v2/models/denoiser/stats", "/v2/models/stats", "/v2/models/tagger/versions/1/infer",
    "/v2/models/denoiser/infer", "/v2/repository/index", "/v2/repository/models/denoiser/load", "/v2/statistics",
    "/v2/systemsharedmemory/status", "/v2/trace/setting", "/openapi.json",
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- requests
def infer_messages(rng):
    """A valid infer request of a random model: (model, message)."""
    name = str(rng.choice(["denoiser", "tagger", "detector"]))
    tensors = {
        "denoiser": [("bands", "FP32", [1, 22])],
        "tagger": [("tokens", "INT64", [1, 3]), ("lengths", "INT32", [1])],
        "detector": [("audio", "FP32", [1, 512]), ("rate", "INT64", [])],
    }[name]
    inputs = []
    for input, datatype, shape in tensors:
        count = int(np.prod(shape))
        data = rng.integers(1, 3, count).tolist() if "INT" in datatype else rng.standard_normal(count).tolist()
        inputs.append(
            {"name": input, "datatype": datatype, "shape": shape, "data": [16000] if input == "rate" else data}
        )
    message = {"id": "x", "inputs": inputs}
    if name != "tagger":
        flags = {name: bool(rng.integers(2)) for name in ("sequence_start", "sequence_end")}
        message["parameters"] = {"sequence_id": int(rng.integers(1, 50)), **flags}
    if rng.integers(3) == 0:
        message["parameters"] = message.get("parameters", {}) | {"timeout": int(rng.integers(1, 10**6)), "priority": 1}
    if rng.integers(3) == 0:
        message["outputs"] = [{"name": "gains", "parameters": {"binary_data": bool(rng.integers(2))}}]
    return name, message


def changed(value, rng):
    """A copy of a JSON value with one change somewhere."""
    if isinstance(value, (dict, list)) and value and rng.integers(6):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(rng.integers(len(keys)))]
        copy = value.copy()
        match int(rng.integers(8)):
            case 0:
                del copy[key]
            case 1 if isinstance(value, list):
                copy.append(copy[key])
            case 2 if isinstance(value, dict):
                copy[ODD[13 + int(rng.integers(5))]] = copy.pop(key)
            case _:
                copy[key] = changed(copy[key], rng)
        return copy
    return ODD[int(rng.integers(len(ODD)))]


def damaged(data, rng):
    """Bytes with some flipped, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, size = int(rng.integers(len(data) + 1)), int(2 ** rng.uniform(0, 8))
        match int(rng.integers(4)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case _:
                data[at:at] = rng.bytes(size % 64)
    return bytes(data)


def http_bytes(rng):
    """What is sent to the HTTP port."""
    kind = int(rng.integers(6))
    if kind == 0:
        return rng.bytes(int(2 ** rng.uniform(0, 18)))
    name, message = infer_messages(rng)
    for _ in range(int(rng.integers(3))):
        message = changed(message, rng)
    body, headers = json.dumps(message).encode(), {}
    if kind == 1 and isinstance(message, dict) and isinstance(message.get("inputs"), list):
        body, headers = as_binary(message, rng)
    path = f"/v2/models/{name}/infer"
    if kind == 2:
        method = str(rng.choice(["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"]))
        path = str(rng.choice(PATHS))
        data = request(method, path, body if method in ("POST", "PUT") else b"")
    else:
        data = request("POST", path, body, **headers)
    if kind == 3:
        data *= int(rng.integers(2, 60))
    if kind >= 4 or rng.integers(3) == 0:
        data = damaged(data, rng)
    return data


def as_binary(message, rng):
    """(body, headers) of a request whose tensors are bytes behind its JSON."""
    parts = []
    for tensor in message["inputs"]:
        if isinstance(tensor, dict):
            part = rng.bytes(int(rng.choice([0, 4, 24, 88, 2048])))
            tensor.pop("data", None)
            tensor["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
    text = json.dumps(message).encode()
    length = len(text) + (int(rng.integers(-3, 4)) if rng.integers(4) == 0 else 0)
    return text + b"".join(parts), {"Inference_Header_Content_Length": length}


def websocket_bytes(rng):
    """The bytes of a WebSocket's handshake, and of what follows it."""
    name, query = (
        str(rng.choice(["denoiser", "detector", "tagger"])),
        str(rng.choice(["", "?format=s16", "?rate=16000&input=audio"])),
    )
    head = request(
        "GET", f"/v2/models/{name}/stream{query}", connection="Upgrade", upgrade="websocket", sec_websocket_version=13,
        sec_websocket_key=base64.b64encode(rng.bytes(16)).decode(),
    )  # fmt: skip
    if rng.integers(4) == 0:
        head = damaged(head, rng)
    data = b""
    for _ in range(int(rng.integers(1, 20))):
        payload = rng.bytes(int(rng.choice([0, 1, 88, 2048, 70000]))) if rng.integers(3) else b'{"end": true}'
        first = int(rng.integers(256)) if rng.integers(4) == 0 else 0x80 | int(rng.choice([1, 2, 2, 2, 8, 9]))
        size, length = len(payload), bytes([0x80 | min(len(payload), 126)])
        if size >= 126:
            length = b"\xfe" + size.to_bytes(2, "big") if size < 2**16 else b"\xff" + size.to_bytes(8, "big")
        data += bytes([first]) + length + bytes(4) + payload  # a mask of zeros
    return head + (damaged(data, rng) if rng.integers(2) else data)


def grpc_bytes(rng):
    """What is sent to the gRPC port without a client's library."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
    frames = b""
    for _ in range(int(rng.integers(1, 20))):
        payload = rng.bytes(int(rng.integers(0, 200)))
        frames += len(payload).to_bytes(3, "big") + bytes([int(rng.integers(12)), int(rng.integers(256))])
        frames += int(rng.integers(0, 9)).to_bytes(4, "big") + payload
    return rng.bytes(int(rng.integers(1, 5000))) if rng.integers(3) == 0 else preface + frames


# ---------------------------------------------------------------------------------------------------- the run
class Run:
    """A server that is fuzzed.

    Args:
        server: The Server.
        seed: The first seed.
        seconds: How long.
        stderr: The file of its stderr.
    """

    def __init__(self, server, seed, seconds, stderr):
        self.server, self.seed, self.stderr = server, seed, stderr
        self.http, self.grpc = server.port(), server.port("grpc")
        self.deadline = time.monotonic() + seconds
        self.counts, self.statuses, self.findings = collections.Counter(), collections.Counter(), []
        self.frames, self.lock = 0, threading.Lock()

    def found(self, seed, kind, text, sent=b""):
        """Note a finding and keep what was sent."""
        with self.lock:
            self.findings.append(f"{kind} (seed {seed}): {text}")
        folder = ROOT / "build" / "fuzz"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"server-{seed}-{kind}.bin").write_bytes(sent)
        print(self.findings[-1], flush=True)

    def going(self):
        """Whether there is time left, and a server."""
        return time.monotonic() < self.deadline and self.server.process.poll() is None

    def well_behaved(self, numbers):
        """Run sequences to the end, and compare each frame's result with that of a stream alone."""
        model, rng = rnnfast.load(MODEL_FILES[0]), np.random.default_rng(numbers[0])
        streams = {number: model.stream() for number in numbers}
        begun, connection = set(), connected(self.http)
        try:
            while self.going():
                for number, stream in streams.items():
                    bands = rng.standard_normal((1, 22)).astype(np.float32)
                    body = frame(bands, f"well-behaved-{number}", start=number not in begun)
                    connection.sendall(request("POST", "/v2/models/denoiser/infer", body))
                    status, _, body = answer(connection)
                    if status in (429, 503):
                        time.sleep(0.1)
                        connection.close()
                        connection = connected(self.http)
                        continue
                    begun.add(number)
                    if status != 200 or not np.array_equal(gains(body), stream.step(bands=bands)):
                        self.found(number, "bits", f"sequence {number} got {status} {body[:300]!r}")
                        return
                    self.frames += 1
                time.sleep(0.02)
        except Exception as e:
            if self.going():
                self.found(numbers[0], "lost", f"a well-behaved client failed: {type(e).__name__}: {e}")
        finally:
            connection.close()

    def attack(self, first, step):
        """Send cases of the seeds first, first + step and so on."""
        seed = first
        while self.going():
            rng = np.random.default_rng([self.seed, seed])
            kind = str(rng.choice(["http", "http", "http", "websocket", "grpc", "calls"]))
            sent = b""
            try:
                if kind == "calls":
                    self.grpc_calls(seed, rng)
                else:
                    make = {"http": http_bytes, "websocket": websocket_bytes, "grpc": grpc_bytes}[kind]
                    sent = make(rng)
                    self.send(seed, kind, sent, rng)
            except Exception as e:
                self.found(seed, "fuzzer", f"{kind}: {type(e).__name__}: {e}", sent)
            self.counts[kind] += 1
            seed += step

    def send(self, seed, kind, sent, rng):
        """Send bytes to a port, and look at what comes back."""
        data, begun = b"", time.monotonic()
        with contextlib.suppress(OSError), connected(self.grpc if kind == "grpc" else self.http) as connection:
            connection.settimeout(0.3 if kind != "http" else 1.0)
            at = int(rng.integers(len(sent) + 1)) if rng.integers(4) == 0 else len(sent)
            connection.sendall(sent[:at])
            if at < len(sent):
                if rng.integers(2):
                    return  # half of it, and gone
                time.sleep(0.005)
                connection.sendall(sent[at:])
            if rng.integers(2):
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                while time.monotonic() < begun + CASE_SECONDS and (part := connection.recv(2**16)):
                    data += part
        if kind != "grpc":
            for part in re.split(rb"HTTP/1\.1 (?=\d{3} )", data)[1:]:
                status = part[:3].decode("latin-1")
                self.statuses[status] += 1
                if status == "500":
                    self.found(seed, "500", part[:500].decode("latin-1"), sent)

    def grpc_calls(self, seed, rng):
        """Call methods with damaged messages by gRPC's own library."""
        import grpc

        from rnnfast.server.protocol import SERVICE, methods

        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            for _ in range(10):
                name = str(rng.choice(list(methods())))
                sent = damaged(infer_bytes(rng), rng) if rng.integers(8) else rng.bytes(int(rng.integers(200)))
                path = f"/{SERVICE}/{name}"
                try:
                    if name == "ModelStreamInfer":
                        call = channel.stream_stream(path)
                        list(call(iter([sent, infer_bytes(rng), sent]), timeout=CASE_SECONDS))
                    else:
                        channel.unary_unary(path)(sent, timeout=CASE_SECONDS)
                    self.statuses["OK"] += 1
                except grpc.RpcError as e:
                    self.statuses[e.code().name] += 1
                    if e.code().name in DEFECTS:
                        self.found(seed, e.code().name, f"{name}: {e.details()}", sent)

    def resident(self):
        """Bytes of the server's memory."""
        with open(f"/proc/{self.server.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def run(self, attackers):
        """Fuzz until the time is over; True if nothing was found."""
        groups = np.array_split(np.arange(1, SEQUENCES + 1), 4)
        threads = [threading.Thread(target=self.well_behaved, args=(group.tolist(),)) for group in groups]
        threads += [threading.Thread(target=self.attack, args=(i, attackers)) for i in range(attackers)]
        begun, seconds, sizes = time.monotonic(), self.deadline - time.monotonic(), []
        for thread in threads:
            thread.start()
        while self.going():
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                sizes.append((time.monotonic() - begun, self.resident()))
        for thread in threads:
            thread.join(60)
        if self.server.process.poll() is not None:
            self.found(0, "died", f"the server ended with status {self.server.process.returncode}")
        settled = [size for at, size in sizes if at > seconds / 3]
        if settled and max(settled) - settled[0] > MOST_GROWTH:
            self.found(0, "memory", f"{settled[0] >> 20} MiB became {max(settled) >> 20} MiB")
        with open(self.stderr, errors="replace") as file:
            errors = file.read()
        if errors:
            self.found(0, "stderr", errors[:3000])
        memory = f"{settled[0] >> 20} to {settled[-1] >> 20} MiB" if settled else "unknown"
        print(f"{dict(self.counts)} cases, {self.frames} frames of {SEQUENCES} sequences, memory {memory}")
        print(f"answers: {dict(sorted(self.statuses.items()))}")
        print(f"{len(self.findings)} findings")
        return not self.findings


def infer_bytes(rng):
    """A ModelInferRequest as bytes."""
    from rnnfast.server.protocol import methods

    name, message = infer_messages(rng)
    kind = methods()["ModelInfer"].request
    result = kind(model_name=name, id="x")
    for tensor in message["inputs"]:
        added = result.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        dtype = {"FP32": np.float32, "INT64": np.int64, "INT32": np.int32}[added.datatype]
        result.raw_input_contents.append(np.array(tensor["data"], dtype).tobytes())
    for key, value in message.get("parameters", {}).items():
        result.parameters[key].__setattr__("bool_param" if type(value) is bool else "int64_param", value)
    return result.SerializeToString()


def fuzz(seconds, seed=0, attackers=4):
    """Start a server and fuzz it; True if nothing was found."""
    with tempfile.NamedTemporaryFile() as stderr:
        process = subprocess.Popen(
            command(*MODEL_FILES, *OPTIONS),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(),
        )
        try:
            return Run(Server(process), seed, seconds, stderr.name).run(attackers)
        finally:
            process.terminate()
            process.communicate(timeout=60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--attackers", type=int, default=4, help="threads that send cases (default: 4)")
    arguments = parser.parse_args()
    raise SystemExit(not fuzz(arguments.seconds, arguments.seed, arguments.attackers))
