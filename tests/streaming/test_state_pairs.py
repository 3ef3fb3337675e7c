"""Which inputs of a model are states, and the outputs that they come back as."""

from types import SimpleNamespace

import numpy as np
import pytest

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.graph import Type
from rnnfast.streaming.state_pairs import find_state_pairs


def described(values):
    return tuple(
        SimpleNamespace(name=name, type=Type("tensor", np.dtype(dtype), shape)) for name, dtype, shape in values
    )


def found(inputs, outputs, given=None):
    inputs = described(inputs)
    model = SimpleNamespace(
        inputs=inputs,
        outputs=described(outputs),
        required_inputs=[v.name for v in inputs],
        source=SimpleNamespace(label="m.onnx"),
    )
    return find_state_pairs(model, given)


F, STATE = "float32", ("float32", (1, "b", 8))
FRAME, RESULT = ("x", F, ("b", 5)), ("y", F, ("b", 2))


@pytest.mark.parametrize(
    "names",
    [
        {"h": "hn"},
        {"h0": "hn", "c0": "cn"},
        {"h": "hn", "c": "cn"},
        {"h_in": "h_out"},
        {"h_0": "h_n", "c_0": "c_n"},
        {"state": "stateN"},
        {"state": "new_state"},
        {"prev_state": "state"},
        {"conv_cache": "conv_cache_out"},
        {"hx": "hy", "cx": "cy"},
        {"inState": "outState"},
        {"state_1": "state_1_out", "state_2": "state_2_out"},
        {"hidden_1": "hidden_2"},
        {"past.key": "present.key"},
        {"cache_last_time": "cache_last_time_next"},
        {"h_in_0": "h_out_0", "h_in_1": "h_out_1"},
    ],
)
def test_pairs_by_names(names):
    inputs, outputs = [(name, *STATE) for name in names], [(name, *STATE) for name in names.values()]
    assert found([FRAME, *inputs], [RESULT, *outputs]) == names
    assert found([*inputs[::-1], FRAME], [*outputs, RESULT]) == {name: names[name] for name in list(names)[::-1]}


def test_pairs_leave_a_frame_and_a_result():
    inputs, outputs = [("audio_in", *STATE), ("h_in", *STATE)], [("audio_out", *STATE), ("h_out", *STATE)]
    assert found(inputs, outputs) == {"h_in": "h_out"}


def test_pairs_by_shapes():
    other = (F, (1, 2, 3))
    same = ("y", F, ("b", 5))
    assert found([FRAME, ("p", *STATE)], [same, ("q", *STATE)]) == {"p": "q"}
    assert found([FRAME, ("p", *STATE), ("r", *other)], [same, ("q", *other), ("t", *STATE)]) == {"p": "t", "r": "q"}
    for inputs, outputs in (
        ([FRAME], [same]),
        ([FRAME, ("p", "int64", (1, "b", 8))], [same, ("q", *STATE)]),
        ([FRAME, ("p", *STATE), ("r", *STATE)], [same, ("q", *STATE), ("t", *STATE)]),
        ([FRAME, ("p", *STATE)], [same, ("q", F, (2, "b", 8))]),
    ):
        with pytest.raises(InputError, match="m.onnx: which inputs are states is not clear.*states="):
            found(inputs, outputs)


def test_pairs_that_are_named():
    inputs, outputs = [FRAME, ("h", *STATE), ("c", *STATE)], [RESULT, ("hn", *STATE), ("cn", *STATE)]
    assert found(inputs, outputs, {"c": "hn"}) == {"c": "hn"} and found(inputs, outputs, {}) == {}
    for given in ({"z": "hn"}, {"h": "z"}, {"x": "hn"}, {"h": "hn", "c": "hn"}):
        with pytest.raises(InputError, match="states"):
            found(inputs, outputs, given)
    with pytest.raises(InputTypeError, match="states is list"):
        found(inputs, outputs, ["h"])
