"""`Model.batch_axes`: the axes of rows that are proven, or the node that stands in the way."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError, InputTypeError
from tests.graphs import load, parse, random
from tests.paths import MODELS

GRU = {"w": random(1, 1, 9, 5), "r": random(2, 1, 9, 3)}


def test_rows_of_a_model():
    found = rnnfast.load(MODELS / "denoiser.onnx").batch_axes()
    assert found.inputs == {"bands": 0, "state": 1} and found.outputs == {"gains": 0, "new_state": 1}
    assert found.problem is None
    assert str(found) == "batch axes: bands axis 0, state axis 1 -> gains axis 0, new_state axis 1"


def test_rows_of_a_call():
    """A call with several rows shows the same as one with one row; inputs choose a branch."""
    model = rnnfast.load(MODELS / "detector.onnx")
    for count in (1, 3):
        found = model.batch_axes(audio=np.zeros((count, 512), np.float32), rate=16000)
        assert found.inputs == {"audio": 0, "rate": None} and found.outputs == {"probability": 0}
    model = rnnfast.load(MODELS / "tagger.onnx")
    found = model.batch_axes(tokens=[[1, 2, 3]] * 2, lengths=[3, 2])
    assert found.inputs == {"tokens": 0, "lengths": 0} and found.outputs == {"tags": 0}


@pytest.mark.parametrize("layout, axes", [(0, (1, 2)), (1, (0, 0))])
def test_time_is_no_batch(layout, axes):
    """Both axes are open and of length 1; the frames of a recurrent layer depend on each other."""
    text = f"g (float[a,b,5] x) => (y) {{ y = GRU <hidden_size = 3, layout = {layout}> (x, w, r) }}"
    found = load(parse(text, **GRU)).batch_axes()
    assert (found.inputs, found.outputs, found.problem) == ({"x": axes[0]}, {"y": axes[1]}, None)


def test_a_node_stands_in_the_way():
    model = load(
        parse(
            "g (float[b,5] x, float[b,5] s) => (y, s_out) { m = ReduceMax <axes = [0]> (x)  t = Max (m, ten)  "
            "y = Div (x, t)  s_out = Add (s, x) }",
            ten=np.float32(10),
        )
    )
    found = model.batch_axes()
    assert not found.inputs and not found.outputs
    assert found.problem == "node #0 (ReduceMax): it reduces the tensor along axis 0, along which the rows lie"
    assert str(found) == f"no batch axis: {found.problem}"


@pytest.mark.parametrize(
    "text, problem",
    [
        ("g (float[1,5] x) => (y) { y = Neg (x) }", "no input has a dimension that the file leaves open"),
        ("g (float[b,5] x, float[5,b] h) => (y, h_out) { y = Neg (x)  h_out = Add (x, h) }", "axes"),
        ("g (float[b,5] x) => (y) { s = Shape (x)  y = Gather (s, zero) }", "'y' is the same for any number of rows"),
        ("g (float[b,5] x) => (y) { y = Reshape (x, flat) }", "'y' has the rows within an axis"),
        ("g (float[b,5] x) => (y) { y = Reshape (x, wrong) }", "a call with such inputs fails: node #0"),
        (
            "g (float[b,5] x, float[c,d,5] h) => (float[b,5] y, float[d,c,5] h_out) { y = Neg (x)  "
            "u = Unsqueeze (x, one)  t = Add (u, h)  h_out = Transpose <perm = [1,0,2]> (t) }",
            "the state 'h' has them along axis 0, the output 'h_out' along 1",
        ),
    ],
)
def test_there_is_none(text, problem):
    found = load(parse(text, zero=0, flat=[-1], wrong=[7], one=[1])).batch_axes()
    assert found.problem is not None and problem in found.problem
    assert not found.inputs and not found.outputs


def test_a_constant_sequence_beside_a_costly_result():
    """A trace leaves the costly result out, and types and shapes of the outputs do not say what the sequence is."""
    text = "g (float[b,2,17,c] x) => (y, z) { y = MaxPool <kernel_shape = [4,3]> (x)  z = SplitToSequence (w) }"
    found = load(parse(text, w=random(3, 3, 5))).batch_axes(x=random(4, 17, 2, 17, 17))
    assert found.problem is not None and "an output is no array" in found.problem


def test_wrong_inputs():
    model = rnnfast.load(MODELS / "denoiser.onnx")
    with pytest.raises(InputError, match="there is no input 'audio'"):
        model.batch_axes(audio=[1.0])
    with pytest.raises(InputTypeError, match="bands"):
        model.batch_axes(bands=np.zeros((1, 22)))
    with pytest.raises(InputError, match="bands"):
        model.batch_axes({"bands": np.zeros((1, 21), np.float32)})
