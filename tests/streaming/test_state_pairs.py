"""Which inputs of a model are states, and the outputs that they come back as."""

from types import SimpleNamespace

import numpy as np
import pytest

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.graph import Type
from rnnfast.streaming.state_pairs import find_state_pairs
from tests import graphs


def described(values):
    return tuple(
        SimpleNamespace(name=name, type=Type("tensor", np.dtype(dtype), shape)) for name, dtype, shape in values
    )


def found(inputs, outputs, given=None):
    inputs, outputs = described(inputs), described(outputs)
    names, results = [v.name for v in inputs], [v.name for v in outputs]
    mix = SimpleNamespace(op_type="Mix", domain="", function=found, inputs=names, needs={*names}, outputs=results)
    model = SimpleNamespace(
        inputs=inputs,
        outputs=outputs,
        required_inputs=[v.name for v in inputs],
        source=SimpleNamespace(label="m.onnx"),
        folded=SimpleNamespace(nodes=(mix,), inputs=inputs, outputs=outputs, constants={}),
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


OTHER = (F, (1, 2, 3))


@pytest.mark.parametrize(
    "inputs, outputs, message",
    [
        ([FRAME], [RESULT], "no output has the type and shape of an input; states={}"),
        ([FRAME, ("p", *STATE)], [RESULT, ("q", *STATE)], r"'p' fits 'q'; .*stream\(states={'p': 'q'}\)"),
        (
            [FRAME, ("speaker", F, (1, 256))],
            [("y", F, ("b", 5)), ("embedding", F, (1, 256))],
            r"shapes alone make no state; 'x' fits 'y'.*'speaker' fits 'embedding'.*states={'speaker': 'embedding'}",
        ),
        ([("p", *STATE), FRAME], [("q", *STATE), RESULT], r"'p' fits 'q'; name the pairs.*{'input': 'output'}"),
        (
            [FRAME, ("p", *STATE), ("r", *OTHER)],
            [RESULT, ("q", *OTHER), ("t", *STATE)],
            r"'p' fits 't', 'r' fits 'q'.*stream\(states={'r': 'q'}\)",
        ),
        (
            [FRAME, ("p", *STATE), ("r", *STATE)],
            [RESULT, ("q", *STATE), ("t", *STATE)],
            "'p' fits 'q' or 't', 'r' fits 'q' or 't'",
        ),
        ([FRAME, ("mask", *STATE)], [RESULT, ("attention", *STATE)], "'mask' fits 'attention'"),
        ([FRAME, ("h", *STATE)], [RESULT, ("embedding", *STATE)], "'h' fits 'embedding'"),
        ([FRAME, ("p", "int64", (1, "b", 8))], [RESULT, ("q", *STATE)], "no output has the type and shape"),
        ([FRAME, ("p", *STATE)], [RESULT, ("q", F, (2, "b", 8))], "no output has the type and shape"),
    ],
)
def test_shapes_make_no_pairs(inputs, outputs, message):
    with pytest.raises(InputError, match=f"m.onnx: which inputs are states is not clear.*{message}"):
        found(inputs, outputs)


def test_pairs_that_are_named():
    inputs, outputs = [FRAME, ("h", *STATE), ("c", *STATE)], [RESULT, ("hn", *STATE), ("cn", *STATE)]
    assert found(inputs, outputs, {"c": "hn"}) == {"c": "hn"} and found(inputs, outputs, {}) == {}
    for given in ({"z": "hn"}, {"h": "z"}, {"x": "hn"}, {"h": "hn", "c": "hn"}):
        with pytest.raises(InputError, match="states"):
            found(inputs, outputs, given)
    with pytest.raises(InputTypeError, match="states is list"):
        found(inputs, outputs, ["h"])


# ------------------------------------------------------------------------------------------------ idle states
UNCHANGED = "the output 's_out' is the input unchanged"
UNUSED = "no output depends on its values"
IDLE = {
    "identity": ("s_out = Identity (s)", UNCHANGED),
    "two identities": ("t = Identity (s)  s_out = Identity (t)", UNCHANGED),
    "another shape and back": (
        "t = Unsqueeze (s, zero)  u = Squeeze (t, zero)  f = Reshape (u, flat)  s_out = Reshape (f, shape)",
        UNCHANGED,
    ),
    "transposed twice": ("t = Transpose <perm = [1,0]> (s)  s_out = Transpose <perm = [1,0]> (t)", UNCHANGED),
    "plus zero times one": ("t = Add (s, nought)  u = Mul (t, one)  s_out = Dropout (u)", UNCHANGED),
    "through a function": ("s_out = local.same (s)", UNCHANGED),
    "through the branch that is taken": (
        "s_out = If (yes) <then_branch = t () => (float[1,4] u) { u = Identity (s) },"
        " else_branch = e () => (float[1,4] v) { v = Neg (s) }>",
        UNCHANGED,
    ),
    "unchanged, and used": ("y2 = Mul (x, s)  s_out = Identity (s)", UNCHANGED),
    "never used": ("s_out = Neg (x)", UNUSED),
    "used by what nothing needs": ("t = Neg (s)  s_out = Abs (x)", UNUSED),
    "only its shape is used": ("n = Shape (s)  s_out = Expand (x, n)", UNUSED),
    "used in the branch that is not taken": (
        "s_out = If (yes) <then_branch = t () => (float[1,4] u) { u = Identity (x) },"
        " else_branch = e () => (float[1,4] v) { v = Neg (s) }>",
        UNUSED,
    ),
}
LIVE = {
    "a sum": "s_out = Add (s, x)",
    "reversed": "t = Transpose <perm = [1,0]> (s)  u = Reshape (t, shape)  s_out = Add (u, x)",
    "the last frame, which the next one sees": "y2 = Sub (x, s)  s_out = Identity (x)",
    "in a branch": (
        "m = ReduceMax <keepdims = 0> (x)  c = Greater (m, nought)  "
        "s_out = If (c) <then_branch = t () => (float[1,4] u) { u = Identity (s) },"
        " else_branch = e () => (float[1,4] v) { v = Identity (x) }>"
    ),
    "through a function": "s_out = local.more (s)",
}
SAME = """<domain: "local", opset_import: ["" : 17]> same (a) => (c) { c = Identity (a) }
    <domain: "local", opset_import: ["" : 17]> more (a) => (c) { c = Neg (a) }"""


def with_state(body, dtype):
    y2 = ", float[1,4] y2" if "y2" in body else ""
    text = f"g (float[1,4] x, float[1,4] s) => (float[1,4] y, float[1,4] s_out{y2}) {{ y = Tanh (x)  {body} }}{SAME}"
    text = text.replace("float[", "float16[") if dtype == np.float16 else text
    constants = {"zero": [0], "flat": [-1], "shape": [1, 4], "nought": dtype(0), "one": dtype(1)}
    return graphs.load(graphs.parse(text, **constants, yes=np.array(True)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", IDLE)
def test_states_that_are_none(name, dtype):
    body, why = IDLE[name]
    model = with_state(body, dtype)
    with pytest.raises(InputError, match=rf"'s' and output 's_out' have the names of a state, but {why}; .*states="):
        model.stream()
    with pytest.raises(InputError, match=why):
        model.pool(2)
    assert model.stream(states={"s": "s_out"}).states == {"s": "s_out"}
    assert model.stream(states={}, s=[[1.0] * 4]).step(x=[[2.0] * 4]).keys() >= {"y", "s_out"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", [*LIVE, "rounded to integers"])
def test_states_that_are_used(name, dtype):
    kind = {np.float32: 1, np.float16: 10}[dtype]
    body = LIVE.get(name, f"i = Cast <to = 7> (s)  s_out = Cast <to = {kind}> (i)")
    assert with_state(body, dtype).stream().states == {"s": "s_out"}
