"""Requests of the Open Inference Protocol as bytes that are made once, and what their answers hold.

Requests over HTTP have their tensors in JSON or behind it as bytes; those over gRPC are protocol buffers, written and
read here without a library: a generator of load copies prepared bytes and does nothing else.
"""

import json
import struct

import numpy as np

JSON, BINARY = "json", "binary"
FP32 = np.dtype("<f4")


class RefusedError(Exception):
    """A server's answer is an error; the text is the server's."""


# ------------------------------------------------------------------------------------------------ HTTP
def http_request(model, inputs, sequence, form):
    """Return the bytes of a request for one inference over HTTP/1.1.

    Args:
        model: The model's name.
        inputs: {name: array}, float32.
        sequence: (id, start, end); None for a request without a sequence.
        form: JSON or BINARY, for the tensors of the request and of the answer.
    """
    parameters = {}
    if sequence is not None:
        id_, start, end = sequence
        parameters = {"sequence_id": id_, "sequence_start": start, "sequence_end": end}
    if form == BINARY:
        parameters["binary_data_output"] = True
    tensors, data, lengths, kind = [], b"", "", "application/json"
    for name, x in inputs.items():
        tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32"}
        if form == BINARY:
            tensor["parameters"] = {"binary_data_size": 4 * x.size}
            data += x.astype(FP32).tobytes()
        else:
            tensor["data"] = x.ravel().tolist()
        tensors.append(tensor)
    header = json.dumps({"parameters": parameters, "inputs": tensors}, separators=(",", ":")).encode()
    if form == BINARY:
        kind, lengths = "application/octet-stream", f"Inference-Header-Content-Length: {len(header)}\r\n"
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{lengths}"
        f"Content-Length: {len(header) + len(data)}\r\n\r\n"
    )
    return head.encode() + header + data


def http_outputs(status, headers, body):
    """Return {name: array} of an answer over HTTP.

    Raises:
        RefusedError: The server answered with an error.
    """
    if status != 200:
        raise RefusedError(f"{status} {body[:300].decode(errors='replace')}")
    size = int(headers.get("inference-header-content-length", len(body)))
    answer, outputs, begin = json.loads(body[:size]), {}, size
    for output in answer["outputs"]:
        length = output.get("parameters", {}).get("binary_data_size")
        if length is None:
            values = np.array(output["data"], np.float32)
        else:
            values, begin = np.frombuffer(body, FP32, length // 4, begin), begin + length
        outputs[output["name"]] = values.reshape(output["shape"])
    return outputs


# ------------------------------------------------------------------------------------------------ protocol buffers
def varint(value):
    """Return an integer of at least 0 as a varint."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def block(number, data):
    """Return a field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field, value):
    """Return a field that is an integer or a bool."""
    return varint(field << 3) + varint(value)


def fields(data):
    """Yield (number, value) of each field of a message; blocks are bytes, everything else is an integer."""
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind == 2:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield key >> 3, value


def _read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def grpc_request(model, name, shape, sequence, id_=""):
    """Return a ModelInferRequest without its tensor, to which `grpc_tensor` is appended.

    Args:
        model: The model's name.
        name: The name of its only input.
        shape: That input's shape.
        sequence: (id, start, end); None for a request without a sequence.
        id_: The request's id, which its answer has too.
    """
    parts = [block(1, model.encode()), block(3, id_.encode())]
    if sequence is not None:
        correlation, start, end = sequence
        for key, value in (
            ("sequence_id", number(2, correlation)),
            ("sequence_start", number(1, start)),
            ("sequence_end", number(1, end)),
        ):
            parts.append(block(4, block(1, key.encode()) + block(2, value)))
    sizes = b"".join(map(varint, shape))
    parts.append(block(5, block(1, name.encode()) + block(2, b"FP32") + block(3, sizes)))
    return b"".join(parts)


def grpc_tensor(x):
    """Return the field of a ModelInferRequest that holds the values of its input."""
    return block(7, x.astype(FP32).tobytes())


def grpc_outputs(answer):
    """Return {name: array} of a ModelInferResponse."""
    tensors, raw = [], []
    for key, value in fields(answer):
        if key == 5:
            tensors.append(value)
        elif key == 6:
            raw.append(value)
    outputs = {}
    for i, tensor in enumerate(tensors):
        name, shape, contents = "", [], b""
        for key, value in fields(tensor):
            if key == 1:
                name = value.decode()
            elif key == 3:
                shape += [value] if isinstance(value, int) else _varints(value)
            elif key == 5:
                contents = dict(fields(value)).get(6, b"")
        outputs[name] = np.frombuffer(raw[i] if raw else contents, FP32).reshape(shape)
    return outputs


def stream_answer(answer):
    """Return the ModelInferResponse of a ModelStreamInferResponse.

    Raises:
        RefusedError: The server answered with an error message.
    """
    found = dict(fields(answer))
    if found.get(1):
        raise RefusedError(found[1].decode(errors="replace"))
    return found.get(2, b"")


def _varints(data):
    values, at = [], 0
    while at < len(data):
        value, at = _read_varint(data, at)
        values.append(value)
    return values


# ------------------------------------------------------------------------------------------------ HTTP/2
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
LARGEST = 2**31 - 1


def frame(kind, flags, stream, payload=b""):
    """Return an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def grpc_headers(method, authority="localhost"):
    """Return the header block of a gRPC call, without Huffman coding and without the dynamic table."""

    def text(value):
        return bytes((len(value),)) + value.encode()

    path = f"/inference.GRPCInferenceService/{method}"
    # POST and http are entries 3 and 6 of the static table; 4, 1 and 31 are the names :path, :authority, content-type.
    return b"".join(
        (
            b"\x83\x86\x04",
            text(path),
            b"\x01",
            text(authority),
            b"\x0f\x10",
            text("application/grpc"),
            b"\x00\x02te\x08trailers",
        )
    )


def grpc_message(data):
    """Return a message with its prefix of five bytes."""
    return struct.pack(">BI", 0, len(data)) + data
