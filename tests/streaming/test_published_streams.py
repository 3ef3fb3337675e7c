"""Streams of real models: steps, runs and calls give the same bits."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError
from tests.cases import bits
from tests.graphs import random
from tests.streaming.streams import N, check, frames_of, listed

# The name of a model -> the sizes of the open dimensions of a frame, or the shape of its input.
STREAMING = {
    "DTLN__model_1": {},
    "DTLN__model_2": {},
    "converted_rnnoise__cb": {"T": 1},
    "gtcrn__gtcrn": {},
    "gtcrn__gtcrn_simple": {},
    "pythainlp_thai2rom__thai2rom_decoder": {"input_length": 9},
    "silero_vad_5.1.2__silero_vad": (1, 576),
    "silero_vad_6.2.3__silero_vad": (1, 576),
    "silero_vad_6.2.3__silero_vad_16k_op15": (1, 576),
    "silero_vad_6.2.3__silero_vad_16k_sequence": {"sequence_length": 1},
    "silero_vad_6.2.3__silero_vad_half": (1, 576),
    "silero_vad_6.2.3__silero_vad_op18_ifless": (1, 576),
    "silero_vad_6.2.3__silero_vad_openvino_16k": {},
    "silero_vad_v4__silero_vad": (1, 512),
    "silero_vad_v4__silero_vad_legacy": (1, 512),
}
# Pairs that names do not show.
STATES = {"DTLN__model_1": {"input_3": "tf_op_layer_stack_2"}, "DTLN__model_2": {"input_5": "tf_op_layer_stack_5"}}
# Models that take many frames in one call, along a dimension that is time.
WITH_TIME = ("converted_rnnoise__cb", "silero_vad_6.2.3__silero_vad_16k_sequence")


@pytest.mark.parametrize("name", STREAMING)
def test_published_models(name, published):
    model = rnnfast.load(published(f"models/{name}.onnx"))
    fixed = {"sr": np.array(16000)} if "sr" in model.required_inputs else {}
    stream = model.stream(states=STATES.get(name), **fixed)
    check(model, stream, frames_of(np.random.default_rng(0), model, stream, STREAMING[name]), fixed)


@pytest.mark.parametrize("name", WITH_TIME)
def test_frames_and_the_whole_sequence(name, published):
    model = rnnfast.load(published(f"models/{name}.onnx"))
    stream = model.stream()
    frames = frames_of(np.random.default_rng(0), model, stream, STREAMING[name])
    results, state = listed(stream.run(frames)), stream.state
    whole = model({n: v[:, 0] for n, v in frames.items()} | {n: np.zeros_like(v) for n, v in state.items()})
    assert bits(r[:, 0] for r in results) == bits(whole[n] for n in stream.outputs)
    assert bits(state.values()) == bits(whole[n] for n in stream.states.values())


@pytest.mark.parametrize("name", [name for name, sizes in STREAMING.items() if isinstance(sizes, tuple)])
def test_streams_in_a_batch_and_alone(name, published):
    model = rnnfast.load(published(f"models/{name}.onnx"))
    fixed = {"sr": 16000} if "sr" in model.required_inputs else {}
    x = random(0, N, 3, STREAMING[name][1])
    together = model.stream(**fixed).run(input=x)
    for row in range(3):
        alone = model.stream(**fixed).run(input=np.ascontiguousarray(x[:, row : row + 1]))
        assert bits([alone[:, 0]]) == bits([together[:, row]])


def test_published_models_whose_states_are_not_clear(published):
    model = rnnfast.load(published("models/g2p_id_lstm__decoder_model.onnx"))
    with pytest.raises(InputError, match=r"'input_3' fits 'lstm_1' or 'lstm_1_1'.*states="):
        model.stream()
    stream = model.stream(states={"input_3": "lstm_1", "input_4": "lstm_1_1"})
    check(model, stream, {"input_2": random(0, N, 1, 1, 32)}, {})
