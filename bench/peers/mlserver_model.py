"""A runtime for MLServer: live sequences of an LSTM by onnxruntime, states by the parameter `sequence_id`.

MLServer knows no sequences, so the runtime does what Triton's sequence batcher does. Its requests come one by one.
"""

import pathlib

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput

UNITS = 64


class Model(MLModel):
    """The class that model-settings.json names."""

    async def load(self):
        """Load the model; one thread runs it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = str(pathlib.Path(__file__).parent / "model.onnx")
        self.run = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run
        self.zeros = np.zeros((1, 1, UNITS), np.float32)
        self.states = {}
        return True

    async def predict(self, payload):
        """Run one frame; a call for one frame is not worth another thread."""
        tensor, sequence = payload.inputs[0], payload.parameters
        data = tensor.data.root
        x = np.frombuffer(data, np.float32) if isinstance(data, bytes) else np.array(data, np.float32)
        id_ = sequence.sequence_id
        state = (self.zeros, self.zeros) if sequence.sequence_start else self.states[id_]
        feed = {"x": x.reshape(tensor.shape), "h": state[0], "c": state[1]}
        y, h, c = self.run(["y", "hn", "cn"], feed)
        if sequence.sequence_end:
            self.states.pop(id_, None)
        else:
            self.states[id_] = h, c
        output = ResponseOutput(name="y", shape=list(y.shape), datatype="FP32", data=y.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
