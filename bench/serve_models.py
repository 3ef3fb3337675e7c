"""The models that are served, their inputs and right outputs, and each server's folder of them."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np

from bench.streams import FILE as SILERO

PEERS = pathlib.Path(__file__).parent / "peers"
RATE, SAMPLES = 16000, 576  # of the sound for Silero VAD, and of a frame of it
UNITS, OUTPUTS = 64, 8
CLIENTS, STEPS = 8, 20  # sequences at a time, and the steps of each
TURNS = 4  # sequences of a client, one after the other, before it sends the same again

TRITON = """\
name: "lstm"
backend: "python"
max_batch_size: 64
instance_group [{ kind: KIND_CPU count: 1 }]
input [{ name: "x" data_type: TYPE_FP32 dims: [1, 64] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1, 8] }]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  %s
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
    { name: "END" control [{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }] },
    { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }] },
    { name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
}
"""


# ------------------------------------------------------------------------------------------------ the LSTM
def weights():
    """Return the weights of the LSTM and of the dense layer behind it, as ONNX has them."""
    rng, gates = np.random.default_rng(7), 4 * UNITS
    shapes = {
        "W": (1, gates, UNITS),
        "R": (1, gates, UNITS),
        "b": (1, 2 * gates),
        "V": (UNITS, OUTPUTS),
        "v": (OUTPUTS,),
    }
    return {name: rng.uniform(-0.25, 0.25, shape).astype(np.float32) for name, shape in shapes.items()}


def lstm():
    """Return an ONNX file of them: x [B,T,64], h and c [1,B,64] -> y [B,T,8], hn, cn."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(value, name) for name, value in weights().items()]
    constants.append(numpy_helper.from_array(np.array([1]), "directions"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "W", "R", "b", "", "h", "c"], ["all", "hn", "cn"], hidden_size=UNITS),
        helper.make_node("Squeeze", ["all", "directions"], ["hidden"]),
        helper.make_node("Transpose", ["hidden"], ["rows"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["rows", "V"], ["product"]),
        helper.make_node("Add", ["product", "v"], ["y"]),
    ]

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = (1, "B", UNITS)
    graph = helper.make_graph(
        nodes,
        "lstm",
        [value("x", "B", "T", UNITS), value("h", *state), value("c", *state)],
        [value("y", "B", "T", OUTPUTS), value("hn", *state), value("cn", *state)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@dataclasses.dataclass(frozen=True)
class Sequences:
    """What the clients send, and what they must get.

    Attributes:
        x: [CLIENTS, TURNS * STEPS, 1, 1, UNITS], each client's frames; a sequence begins at every STEPS-th.
        right: [CLIENTS, TURNS * STEPS, 1, 1, OUTPUTS], float64's results.
    """

    x: np.ndarray
    right: np.ndarray

    def sequence(self, client, step):
        """Return (id, start, end) of a client's frame; no other sequence has the id."""
        turn, at = divmod(step, STEPS)
        return 1 + client + CLIENTS * turn, at == 0, at == STEPS - 1


def sequences():
    """Return random sequences for the LSTM."""
    from rnnfast import reference

    x = np.random.default_rng(3).standard_normal((CLIENTS, TURNS, STEPS, UNITS), dtype=np.float32)
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    rows = x.reshape(CLIENTS * TURNS, STEPS, UNITS).swapaxes(0, 1).astype(np.float64)
    functions = tuple((name, *reference.defaults(name)) for name in ("Sigmoid", "Tanh", "Tanh"))
    hidden = reference.lstm(rows, w["W"], w["R"], w["b"], activations=[functions])[0][:, 0]
    right = (hidden @ w["V"] + w["v"]).swapaxes(0, 1)
    steps = (CLIENTS, TURNS * STEPS, 1, 1)
    return Sequences(x.reshape(*steps, UNITS), right.reshape(*steps, OUTPUTS))


# ------------------------------------------------------------------------------------------------ folders
def make_models(folder):
    """Write each server's folder of models into a folder; the server's name is that of its folder."""
    model = lstm()
    _write(folder / "rnnfast/lstm/1/model.onnx", model)
    _write(folder / "rnnfast/lstm/config.json", json.dumps({"warm": {"x": [1, 1, UNITS]}}).encode())
    if SILERO.exists():
        _write(folder / "rnnfast/silero/1/model.onnx", SILERO.read_bytes())
        _write(
            folder / "rnnfast/silero/config.json",
            json.dumps({"fixed": {"sr": RATE}, "warm": {"input": [1, SAMPLES]}}).encode(),
        )
    for name, strategy in (("triton", ""), ("triton-oldest", "oldest { max_candidate_sequences: 1024 }")):
        _write(folder / name / "lstm/1/model.onnx", model)
        shutil.copy(PEERS / "triton_model.py", folder / name / "lstm/1/model.py")
        _write(folder / name / "lstm/config.pbtxt", (TRITON % strategy).encode())
    _write(folder / "mlserver/lstm/model.onnx", model)
    shutil.copy(PEERS / "mlserver_model.py", folder / "mlserver/lstm/runtime.py")
    _write(
        folder / "mlserver/lstm/model-settings.json",
        json.dumps({"name": "lstm", "implementation": "runtime.Model"}).encode(),
    )


def _write(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
