"""A model for the Python backend of Triton: live sequences of an LSTM by onnxruntime, batched, states by sequence id.

`BACKEND_PACKAGES` names the folder in which NumPy and onnxruntime are, since PYTHONPATH does not reach this process.
"""

import os
import pathlib
import sys

sys.path[:0] = filter(None, [os.environ.get("BACKEND_PACKAGES")])

import numpy as np  # noqa: E402 - it is found by the line above
import onnxruntime  # noqa: E402
import triton_python_backend_utils as backend  # noqa: E402

SLOTS, UNITS = 1024, 64


class TritonPythonModel:
    """The class that the backend looks for."""

    def initialize(self, arguments):
        """Load the model; one thread runs it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = str(pathlib.Path(__file__).parent / "model.onnx")
        self.run = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run
        self.h, self.c = (np.zeros((1, SLOTS, UNITS), np.float32) for _ in range(2))
        self.slots, self.free = {}, list(range(SLOTS))

    def execute(self, requests):
        """Run the frames of all sequences that have one as one batch."""
        read = backend.get_input_tensor_by_name
        # An answer that stands twice in the list ends the server.
        answers, live, rows, frames, ended = [backend.InferenceResponse([]) for _ in requests], [], [], [], []
        for i, request in enumerate(requests):
            ready, start, end, id_ = (
                read(request, name).as_numpy().flat[0] for name in ("READY", "START", "END", "CORRID")
            )
            if not ready:
                continue
            if start:
                if id_ not in self.slots:
                    self.slots[id_] = self.free.pop()
                self.h[:, self.slots[id_]] = self.c[:, self.slots[id_]] = 0
            if end:
                ended.append(id_)
            live.append(i)
            rows.append(self.slots[id_])
            frames.append(read(request, "x").as_numpy())
        if live:
            x = np.concatenate(frames) if len(frames) > 1 else frames[0]
            feed = {"x": x, "h": self.h[:, rows], "c": self.c[:, rows]}
            y, self.h[:, rows], self.c[:, rows] = self.run(["y", "hn", "cn"], feed)
            for k, i in enumerate(live):
                answers[i] = backend.InferenceResponse([backend.Tensor("y", y[k : k + 1])])
        for id_ in ended:
            self.free.append(self.slots.pop(id_))
        return answers
