"""Native plans of real models, where their files are at hand."""

import numpy as np
import pytest

import rnnfast
from rnnfast.native import _programs
from tests.published import published_models

# Beginning of a file's name -> shapes of its inputs with the batch axis as None; integers are fixed values.
BATCHES = {
    "silero_vad_6.2.3__silero_vad.onnx": {"input": (None, 576), "state": (2, None, 128), "sr": 16000},
    "silero_vad_6.2.3__silero_vad_16k_op15": {"input": (None, 576), "state": (2, None, 128), "sr": 16000},
    "silero_vad_6.2.3__silero_vad_half": {"input": (None, 576), "state": (2, None, 128)},
    "silero_vad_6.2.3__silero_vad_op18": {"input": (None, 576), "state": (2, None, 128), "sr": 16000},
    "silero_vad_5": {"input": (None, 288), "state": (2, None, 128), "sr": 8000},
    "silero_vad_v4": {"input": (None, 512), "h": (2, None, 64), "c": (2, None, 64), "sr": 16000},
    "nsnet2": {"input": (None, 7, 161)},
    "speechmos_plcmos": {"degraded_audio": (None, 1, 37, 257), "rater_embed": (None, 64)},
    "g2p_id_lstm__encoder": {"input_1": (None, 9, 28)},
    "g2p_id_lstm__decoder": {"input_2": (None, 9, 32), "input_3": (None, 256), "input_4": (None, 256)},
    "nnsplit": {"input": (None, 34)},
    "stressrnn": {"bidirectional_1_input": (None, 40, 36)},
    "tract_byte": {"input": (None, 21)},
}
# Models of which some steps are NumPy's.
NOT_NATIVE = set()


def stored(file, model):
    with np.load(file.with_suffix(".npz")) as data:
        return {v.name: data[f"in_{v.name}"] for v in model.inputs if f"in_{v.name}" in data}


@pytest.mark.parametrize("file", published_models())
def test_a_plan_is_one_native_step(file):
    """Its arena is at most 1.5 times the bytes that must live at one time."""
    model = rnnfast.load(file)
    model(stored(file, model))
    (plan,) = model.planned.plans.kept
    programs = [run for run, *_ in plan.steps if isinstance(run, _programs.NativeProgram)]
    assert len(plan.steps) == len(programs) == 1 or file.stem in NOT_NATIVE
    for program in programs:
        assert program.live <= program.arena <= 1.5 * program.live


@pytest.mark.parametrize("start", BATCHES)
def test_a_row_has_the_bits_that_it_has_alone(start, published):
    files = [file for file in sorted(published("models").glob("*.onnx")) if file.name.startswith(start)]
    assert files
    for file in files:
        model, like = rnnfast.load(file), BATCHES[start]
        types = {v.name: v.type.dtype for v in model.inputs}
        rng = np.random.default_rng(3)

        def value(name, rows):
            spec = like[name]
            if isinstance(spec, int):
                return spec
            shape = [rows if n is None else n for n in spec]
            if types[name].kind in "iu":
                return rng.integers(0, 50, shape).astype(types[name])
            return (0.3 * rng.standard_normal(shape)).astype(types[name])

        def row(array, spec, i):
            return array if isinstance(spec, int) else np.take(array, [i], axis=spec.index(None))

        batch = {name: value(name, 5) for name in like}
        together = model(batch)
        for i in (0, 3, 4):
            alone = model({name: row(batch[name], like[name], i) for name in like})
            for name, y in together.items():
                axis = next((a for a, (n, m) in enumerate(zip(y.shape, alone[name].shape)) if n != m), None)
                if axis is None:
                    assert start == "speechmos_plcmos"  # the mean over the batch, which its graph asks for
                else:
                    np.testing.assert_array_equal(np.take(y, [i], axis=axis), alone[name])
