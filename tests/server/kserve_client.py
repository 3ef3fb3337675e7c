"""Calls of kserve's own clients, run where kserve is installed: HOST:PORT of HTTP and of gRPC, and the frames' file.

It prints what the server's answers are, as JSON; `test_clients_of_others` compares.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


def request(x, start, binary=False):
    data = InferInput("bands", list(x.shape), "FP32")
    data.set_data_from_numpy(x, binary_data=binary)
    return InferRequest(
        "denoiser", [data], parameters={"sequence_id": 1 + binary, "sequence_start": start}, request_id="q"
    )


async def main(http, grpc, frames):
    frames = np.load(frames)
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = f"http://{http}"
    remote = InferenceGRPCClient(grpc)
    found = {
        "live": [await rest.is_server_live(url), await remote.is_server_live()],
        "ready": [await rest.is_server_ready(url), await remote.is_server_ready()],
        "model ready": [await rest.is_model_ready(url, "denoiser"), await remote.is_model_ready("denoiser")],
        "http": [], "binary": [], "grpc": [],
    }  # fmt: skip
    for t, x in enumerate(frames):
        for name, binary in ("http", False), ("binary", True):
            answer = await rest.infer(url, request(x, t == 0, binary), model_name="denoiser")
            found[name].append(answer.outputs[0].as_numpy().astype(float).ravel().tolist())
    for t, x in enumerate(frames):
        answer = await remote.infer(request(x, t == 0, True))
        found["grpc"].append(answer.outputs[0].as_numpy().astype(float).ravel().tolist())
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:]))
