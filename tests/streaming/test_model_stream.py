"""Streams of models and layers: step by step, in one run and by calls the same bits; and what they refuse."""

import pickle
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import Error, InputError, InputTypeError, LimitError
from rnnfast.onnx.graph import Type
from rnnfast.streaming.model_stream import Stream
from rnnfast.streaming.state_pairs import pairs
from tests.cases import bits
from tests.graphs import parse, random
from tests.paths import ROOT, SHARED

MODELS = SHARED / "models"
# file -> the sizes of the open dimensions of a frame
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
# Those that take many frames in one call: a dimension of theirs is time.
WITH_TIME = ("converted_rnnoise__cb", "silero_vad_6.2.3__silero_vad_16k_sequence")
N = 6

# A state of each kind of change, a result besides, and a rate that decides what the plan is.
GRAPH = """g (float[b,n] x, float[b,n] s, int64[2] k, int64 rate) => (float[b,n] y, float[b,n] s_out, int64[2] k_out) {
    usual = Constant <value = int64 {16000}> ()
    is = Equal (rate, usual)
    f = If (is) < then_branch = t () => (float[b,n] ft) { ft = Add (x, s) },
                  else_branch = e () => (float[b,n] fe) { fe = Sub (x, s) } >
    s_out = Tanh (f)
    y = Mul (f, x)
    k_out = Add (k, rate)
}"""
STATES = {"s": "s_out", "k": "k_out"}


@pytest.fixture(params=["native", "python"])
def way(request, monkeypatch):
    """Plans that are one NativeProgram run on a StreamRunner; all others as calls do."""
    if request.param == "python":
        monkeypatch.setattr(Stream, "_native", lambda *args: None)
    return request.param


@pytest.fixture
def denoiser():
    return rnnfast.load(ROOT / "models" / "denoiser.onnx")


@pytest.fixture
def model():
    return rnnfast.load(parse(GRAPH))


def frames_of(rng, model, stream, sizes):
    """N frames of each input that changes."""
    frames = {}
    for name in stream.inputs:
        (type_,) = (v.type for v in model.inputs if v.name == name)
        shape = sizes if isinstance(sizes, tuple) and name == "input" else type_.shape
        shape = (N, *(sizes[n] if isinstance(n, str) else n for n in shape))
        frames[name] = (
            rng.standard_normal(shape) * 0.3 if type_.dtype == np.float32 else rng.integers(0, 30, shape)
        ).astype(type_.dtype)
    return frames


def called(model, stream, frames, fixed, state):
    """Results of all frames and the last state, by calls."""
    found, state = [], dict(state)
    for i in range(len(next(iter(frames.values())))):
        outputs = model({name: v[i] for name, v in frames.items()} | fixed | state)
        state = {name: outputs[after] for name, after in stream.states.items()}
        found.append([outputs[name] for name in stream.outputs])
    return [np.stack(part) for part in zip(*found)], state


def listed(results):
    return list(results.values()) if isinstance(results, dict) else [results]


def check(model, stream, frames, fixed):
    """Steps, runs of the whole and of parts, and calls."""
    stepped = [listed(stream.step({name: v[i] for name, v in frames.items()})) for i in range(N)]
    after = stream.state
    zeros = {name: np.zeros_like(value) for name, value in after.items()}
    expected, state = called(model, stream, frames, fixed, zeros)
    assert bits(np.stack(part) for part in zip(*stepped)) == bits(expected)
    assert bits(after.values()) == bits(state.values()) and any(value.any() for value in after.values())
    stream.reset()
    assert bits(listed(stream.run(frames))) == bits(expected) and bits(stream.state.values()) == bits(state.values())
    stream.reset()
    parts = [
        listed(stream.run({name: v[part] for name, v in frames.items()}))
        for part in (slice(0, 1), slice(1, 1), slice(1, 4), slice(4, N))
    ]
    assert bits(np.concatenate(part) for part in zip(*parts)) == bits(expected)
    assert bits(stream.state.values()) == bits(state.values())


# ------------------------------------------------------------------------------------------------ real models
@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is not there")
@pytest.mark.parametrize("name", STREAMING)
def test_published_models(name):
    model = rnnfast.load(MODELS / f"{name}.onnx")
    fixed = {"sr": np.array(16000)} if "sr" in model.required_inputs else {}
    stream = model.stream(**fixed)
    check(model, stream, frames_of(np.random.default_rng(0), model, stream, STREAMING[name]), fixed)


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is not there")
@pytest.mark.parametrize("name", WITH_TIME)
def test_frames_and_the_whole_sequence(name):
    model = rnnfast.load(MODELS / f"{name}.onnx")
    stream = model.stream()
    frames = frames_of(np.random.default_rng(0), model, stream, STREAMING[name])
    results, state = listed(stream.run(frames)), stream.state
    whole = model({n: v[:, 0] for n, v in frames.items()} | {n: np.zeros_like(v) for n, v in state.items()})
    assert bits(r[:, 0] for r in results) == bits(whole[n] for n in stream.outputs)
    assert bits(state.values()) == bits(whole[n] for n in stream.states.values())


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is not there")
@pytest.mark.parametrize("name", [name for name, sizes in STREAMING.items() if isinstance(sizes, tuple)])
def test_streams_in_a_batch_and_alone(name):
    model = rnnfast.load(MODELS / f"{name}.onnx")
    fixed = {"sr": 16000} if "sr" in model.required_inputs else {}
    x = random(0, N, 3, STREAMING[name][1])
    together = model.stream(**fixed).run(input=x)
    for row in range(3):
        alone = model.stream(**fixed).run(input=np.ascontiguousarray(x[:, row : row + 1]))
        assert bits([alone[:, 0]]) == bits([together[:, row]])


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is not there")
def test_published_models_whose_states_are_not_clear():
    with pytest.raises(InputError, match=r"'input_3' fits 'lstm_1' or 'lstm_1_1'.*states="):
        rnnfast.load(MODELS / "g2p_id_lstm__decoder_model.onnx").stream()
    model = rnnfast.load(MODELS / "g2p_id_lstm__decoder_model.onnx")
    stream = model.stream(states={"input_3": "lstm_1", "input_4": "lstm_1_1"})
    check(model, stream, {"input_2": random(0, N, 1, 1, 32)}, {})


# ------------------------------------------------------------------------------------------------ pairs
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
    return pairs(model, given)


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


# ------------------------------------------------------------------------------------------------ small graphs
def test_small_graph(model, way):
    fixed = {"rate": np.array(16000)}
    frames = {"x": random(0, N, 3, 5)}
    for rate in (16000, 8000):
        fixed = {"rate": np.array(rate)}
        stream = model.stream(**fixed)
        assert stream.states == STATES and stream.inputs == ["x"] and stream.outputs == ["y"]
        check(model, stream, frames, fixed)
    first, second = (model.stream(rate=rate).run(frames) for rate in (16000, 8000))
    assert not np.array_equal(first, second)


def test_values_that_decide_the_plan_may_change(model, way):
    x, rates = random(1, N, 2, 3), np.array([16000, 16000, 8000, 16000, 8000, 8000])
    stream = model.stream()
    stepped = [stream.step(x=x[i], rate=rates[i].copy()) for i in range(N)]
    state = {"s": np.zeros((2, 3), np.float32), "k": np.zeros(2, np.int64)}
    expected, state = called(model, stream, {"x": x, "rate": rates}, {}, state)
    assert bits(stepped) == bits(expected[0]) and bits(stream.state.values()) == bits(state.values())
    for begun in (False, True):
        stream.reset()
        if begun:
            stream.step(x=x[0], rate=16000)
            stream.state = None
        assert bits([stream.run(x=x, rate=rates)]) == bits(expected)
        assert bits(stream.state.values()) == bits(state.values())
    same = stream.run(x=x, rate=8000)  # without the axis of frames: the same for all
    other = model.stream(stream.state | {name: value for name, value in state.items()})
    assert bits([same]) == bits([other.run(x=x, rate=np.full(N, 8000))])


def test_instruction_sets(denoiser, isa):
    check(denoiser, denoiser.stream(), {"bands": random(0, N, 3, 22)}, {})


def test_native(denoiser):
    stream = denoiser.stream()
    stream.step(bands=random(0, 1, 22))
    assert stream._runner is not None


def test_any_strides_of_frames(denoiser, way):
    audio = random(0, 200)
    windows = np.lib.stride_tricks.sliding_window_view(audio, 22)[::10, None]
    plain = denoiser.stream().run(bands=np.ascontiguousarray(windows))
    assert bits([denoiser.stream().run(bands=windows)]) == bits([plain])
    backwards = denoiser.stream().run(bands=windows[::-1])
    assert bits([backwards[0]]) == bits([denoiser.stream().step(bands=windows[-1])])
    swapped = np.asfortranarray(random(1, 4, 3, 22))
    assert bits([denoiser.stream().run(bands=swapped)]) == bits([denoiser.stream().run(bands=swapped.copy(order="C"))])
    assert bits([denoiser.stream().step(bands=swapped[0])]) == bits([denoiser.stream().step(bands=swapped[0].copy())])
    assert bits([denoiser.stream().step(bands=swapped[0].tolist())]) == bits([denoiser.stream().step(bands=swapped[0])])


def test_out(denoiser, model, way):
    x = random(0, N, 3, 22)
    expected, stream = denoiser.stream().run(bands=x), denoiser.stream()
    whole, one = np.full_like(expected, np.nan), np.full_like(expected[0], np.nan)
    assert stream.run(bands=x, out=whole) is whole and bits([whole]) == bits([expected])
    stream.reset()
    for i in range(N):
        assert stream.step(bands=x[i], out=one) is one and bits([one]) == bits([expected[i]])
    stream.reset()
    named = {"gains": one}
    for i in range(N):
        assert stream.step({"bands": x[i]}, out=named) is named and bits([one]) == bits([expected[i]])
    before = stream.state
    for wrong in (
        one[:2],
        one.T,
        one.astype(np.float64),
        {"y": one},
        {},
        [one],
        one[::-1],
        np.broadcast_to(one, (3, 22)),
        {"gains": one, "new_state": one},
    ):
        with pytest.raises((InputError, InputTypeError), match="out"):
            stream.step(bands=x[0], out=wrong)
        with pytest.raises((InputError, InputTypeError), match="out"):
            stream.run(bands=x, out=wrong)
        assert bits(stream.state.values()) == bits(before.values())


def test_out_is_no_input(denoiser):
    stream, x = denoiser.stream(), random(0, 3, 22)
    stream.step(bands=x)
    before = stream.state
    with pytest.raises(InputError, match="shares memory"):
        stream.step(bands=x, out=x)
    assert bits(stream.state.values()) == bits(before.values())


def test_several_results():
    text = """g (float[b,3] x, float[b,3] h) => (float[b,3] y, float[b,3] z, float[b,3] hn) {
        hn = Tanh (h)  y = Add (x, h)  z = Sub (x, h) }"""
    stream = rnnfast.load(parse(text)).stream({"h": np.full((1, 3), 2, np.float32)})
    x = random(0, 1, 3)
    results = stream.step(x=x)
    assert list(results) == ["y", "z"] and np.array_equal(results.y, x + 2) and np.array_equal(results["z"], x - 2)
    with pytest.raises(InputTypeError, match="out is ndarray, expected a mapping"):
        stream.step(x=x, out=x.copy())
    out = np.empty((1, 3), np.float32)
    with pytest.raises(InputError, match="shares memory with an input or another output"):
        stream.step(x=x, out={"y": out, "z": out})


# ------------------------------------------------------------------------------------------------ state
def test_state_is_a_value(denoiser, way):
    x, stream = random(0, N, 3, 22), denoiser.stream()
    assert stream.state is None  # the batch is not known
    stream.run(bands=x[:3])
    state = stream.state
    kept = {name: value.copy() for name, value in state.items()}
    rest = stream.run(bands=x[3:])
    assert bits(state.values()) == bits(kept.values())  # a copy
    copy = pickle.loads(pickle.dumps(state))
    for other in (denoiser.stream(copy), denoiser.stream(), stream):
        other.state = copy
        copy["state"][:] += 0  # whatever is done to it
        assert bits([other.run(bands=x[3:])]) == bits([rest])
    begun = denoiser.stream(state)
    begun.run(bands=x)
    begun.reset()
    state["state"][:] = 9  # it was copied
    assert bits([begun.run(bands=x[3:])]) == bits([rest])
    stream.state = None
    assert not stream.state["state"].any() and bits([stream.run(bands=x[:3])]) != bits([rest])


def test_reset_lets_another_shape_begin(denoiser, way):
    stream = denoiser.stream()
    assert stream.step(bands=random(0, 3, 22)).shape == (3, 22)
    stream.reset()
    assert stream.step(bands=random(0, 2, 22)).shape == (2, 22)


def test_no_frames(denoiser, way):
    stream = denoiser.stream()
    assert stream.run(bands=np.empty((0, 3, 22), np.float32)).shape == (0, 3, 22) and stream.state is None
    stream.step(bands=random(0, 1, 22))
    before = stream.state
    assert stream.run(bands=np.empty((0, 1, 22), np.float32)).shape == (0, 1, 22)
    assert bits(stream.state.values()) == bits(before.values())


def test_initial_state_of_unknown_shape():
    stream = rnnfast.load(
        parse(
            "g (float[1,t] x, float[p,q] h) => (float y, float[p,q] hn) "
            "{ hn = Tanh (h)  y = ReduceSum <keepdims = 0> (x) }"
        )
    ).stream()
    with pytest.raises(InputError, match="does not settle: give the initial state"):
        stream.step(x=random(0, 1, 4))
    stream.state = {"h": random(1, 2, 2)}
    stream.step(x=random(0, 1, 4))


# ------------------------------------------------------------------------------------------------ errors
def test_errors_leave_the_state(denoiser, way):
    x, stream = random(0, 3, 22), denoiser.stream()
    stream.step(bands=x)
    before = stream.state
    state = before["state"]
    nan = np.full((1, 3, 32), np.nan, np.float32)
    wrong_steps = [
        (dict(bands=x[:2]), "first frame had"),
        (dict(bands=x[:, :5]), "bands"),
        (dict(), "missing"),
        (dict(bands=x.astype(np.float64)), "float"),
        (dict(bands="a"), "bands"),
        (dict(bands=x, z=x), "no input 'z'"),
        (dict(bands=x, state=state), "is a state of the stream"),
        (dict(bands=x[None]), "bands"),
    ]
    for feed, message in wrong_steps:
        with pytest.raises(Error, match=message):
            stream.step(**feed)
        with pytest.raises(Error, match=message):
            stream.step(feed)
        if message != "bands" or np.ndim(feed["bands"]) != 3:
            with pytest.raises(Error):
                stream.run(**feed)
    with pytest.raises(InputError, match="twice"):
        stream.step({"bands": x}, bands=x)
    with pytest.raises(InputTypeError, match="mapping"):
        stream.step(x)
    with pytest.raises(InputError, match="no input has frames"):
        stream.run(bands=x)
    with pytest.raises(InputError, match="first frame had"):
        stream.run(bands=random(0, 4, 2, 22))
    for wrong, message in (
        ({"state": nan[:, :2]}, "shape"),
        ({"state": nan[0]}, "shape"),
        ({"h": nan}, "expected"),
        ({}, "expected"),
        (nan, "mapping"),
        ({"state": nan.astype(np.float64)}, "double"),
    ):
        with pytest.raises(Error, match=message):
            stream.state = wrong
        if message != "shape" or wrong["state"].ndim == 2:
            with pytest.raises(Error, match=message):
                denoiser.stream(wrong)
    assert bits(stream.state.values()) == bits(before.values())
    expected = denoiser(bands=x, state=state)
    assert bits([stream.step(bands=x)]) == bits([expected.gains])


def test_first_frame_that_fails(denoiser, way):
    stream = denoiser.stream({"state": random(0, 1, 2, 32)})
    with pytest.raises(Error, match="initial_h"):
        stream.step(bands=random(0, 3, 22))
    with pytest.raises(Error, match="out"):
        stream.step(bands=random(0, 2, 22), out=random(0, 3, 22))
    assert bits(stream.state.values()) == bits([random(0, 1, 2, 32)])
    assert stream.step(bands=random(0, 2, 22)).shape == (2, 22)


def test_states_that_change_their_shape():
    model = rnnfast.load(
        parse(
            "g (float[b,3] x, float[b,n] h) => (float[b,3] y, float[b,m] hn) "
            "{ hn = Concat <axis = 1> (h, x)  y = Neg (x) }"
        )
    )
    stream = model.stream({"h": np.zeros((1, 2), np.float32)})
    with pytest.raises(InputError, match=r"'hn' is .* shape \(1, 5\), but the state 'h' .* \(1, 2\)"):
        stream.step(x=random(0, 1, 3))
    assert stream.state["h"].shape == (1, 2)


def test_fixed_inputs(model):
    rate = np.array(16000)
    stream = model.stream(rate=rate)
    before = stream.step(x=random(0, 2, 3))
    rate[...] = 8000  # it was copied
    stream.reset()
    assert bits([stream.step(x=random(0, 2, 3))]) == bits([before])
    for wrong, message in ((dict(z=1), "no input 'z'"), (dict(s=1), "is a state"), (dict(rate=1.5), "rate")):
        with pytest.raises(Error, match=message):
            model.stream(**wrong)
    with pytest.raises(InputError, match="is fixed"):
        stream.step(x=random(0, 2, 3), rate=16000)
    with pytest.raises(InputError, match="different numbers of frames"):
        model.stream().run(x=random(0, 4, 2, 3), rate=np.full(3, 16000))


def test_memory_is_limited(denoiser, way):
    with pytest.raises(LimitError, match="fewer"):
        denoiser.stream().run(bands=np.broadcast_to(random(0, 1, 22), (2**40, 1, 22)))


def test_copies_of_frames_are_limited(denoiser, monkeypatch):
    monkeypatch.setattr("rnnfast.streaming.model_stream.MAX_RUN_BYTES", 2**80)
    with pytest.raises(LimitError, match="no memory for contiguous frames"):
        denoiser.stream().run(bands=np.broadcast_to(np.float32(0), (2**40, 1, 22)))


def closed_uses(stream, step, frames):
    def assign():
        stream.state = None

    return [lambda: stream.step(step), lambda: stream.run(frames), lambda: stream.state, assign, stream.reset]


def check_closed(stream, step, frames):
    with stream as entered:
        assert entered is stream and not stream.closed
        stream.step(step)
    stream.close()
    assert stream.closed
    for use in closed_uses(stream, step, frames):
        with pytest.raises(InputError, match="closed"):
            use()


def check_busy(stream, step, frames):
    """As if another thread were in a step; close, too, has to wait."""
    stream.step(step)
    before = pickle.dumps(stream.state)
    stream._busy.acquire()
    for use in [*closed_uses(stream, step, frames), stream.close]:
        with pytest.raises(InputError, match="in use by another thread"):
            use()
    stream._busy.release()
    assert pickle.dumps(stream.state) == before
    stream.step(step)


def test_closed_and_busy(denoiser, way):
    step, frames = {"bands": random(0, 1, 22)}, {"bands": random(0, 4, 1, 22)}
    check_closed(denoiser.stream(), step, frames)
    check_busy(denoiser.stream(), step, frames)


def test_one_thread_at_a_time(denoiser):
    """While one thread runs a long loop without the GIL, another is refused."""
    stream, refused = denoiser.stream(), []
    x = random(0, 1, 1, 22)
    frames = np.broadcast_to(x, (100_000, 1, 22))
    thread = threading.Thread(target=stream.run, kwargs={"bands": frames})
    thread.start()
    while thread.is_alive():
        try:
            stream.step(bands=x[0])
        except InputError as e:
            refused.append(str(e))
    thread.join()
    assert refused and "in use by another thread" in refused[0]
    assert stream.step(bands=x[0]).shape == (1, 22)


def test_streams_in_threads(denoiser):
    inputs = [random(seed, 300, 1, 22) for seed in range(4)]
    expected = [denoiser.stream().run(bands=x) for x in inputs]
    results = [None] * len(inputs)

    def work(i):
        stream = denoiser.stream()
        results[i] = np.stack([stream.step(bands=frame) for frame in inputs[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bits(results) == bits(expected)


# ------------------------------------------------------------------------------------------------ layers
LAYERS = {
    "LSTM": lambda **o: nn.LSTM(5, 7, rng=0, **o),
    "GRU": lambda **o: nn.GRU(5, 7, rng=1, **o),
    "RNN": lambda **o: nn.RNN(5, 7, rng=2, **o),
    "stack": lambda **o: nn.LSTM(5, 9, 3, proj_size=3, rng=3, **o),
    "three GRUs": lambda **o: nn.GRU(5, 18, 3, clip=0.5, rng=4, **o),
    "blas": lambda **o: nn.LSTM(5, 7, 2, matmul="blas", rng=5, **o),
    "Sequential": lambda **o: nn.Sequential(
        nn.Linear(5, 6, rng=6),
        nn.LSTM(6, 8, 2, rng=7, **o),
        nn.Tanh(),
        nn.Sequential(nn.GRU(8, 4, rng=8, **o)),
        nn.Linear(4, 2, rng=9),
    ),
}


def flat(state):
    return [a for part in state for a in flat(part)] if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("batch", [(), (1,), (3,)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, batch_first, batch):
    layer, x = LAYERS[name](batch_first=batch_first), random(0, 8, *batch, 5)
    swap = batch_first and batch
    called = layer(x.swapaxes(0, 1) if swap else x)
    y, state = called if isinstance(called, tuple) else (called, None)
    y = y.swapaxes(0, 1) if swap else y
    same = np.testing.assert_array_equal if name != "blas" else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    stream = layer.stream()
    assert stream.state is None
    same(np.stack([stream.step(frame) for frame in x]), y)
    after = stream.state
    for got, expected in zip(flat(after), flat(after if state is None else state), strict=True):
        same(got, expected)
    stream.reset()
    parts = [stream.run(x[:3]), stream.run(x[3:3]), stream.step(x[3])[None]]
    other = layer.stream(pickle.loads(pickle.dumps(stream.state)))
    same(np.concatenate([*parts, stream.run(x[4:])]), y)
    same(np.concatenate([*parts, *(other.step(frame)[None] for frame in x[4:])]), y)
    one, whole = np.empty_like(y[0]), np.empty(y.shape, np.float32)
    stream.reset()
    assert stream.run(x, out=whole) is whole
    same(whole, y)
    stream.state = None if batch else stream.state
    stream.reset()
    for frame, expected in zip(x, y):
        assert stream.step(frame, out=one) is one
        same(one, expected)


def test_layer_instruction_sets(isa):
    layer, x = nn.GRU(5, 21, 2, rng=0), random(0, 6, 2, 5)
    stream = layer.stream()
    assert bits([np.stack([stream.step(frame) for frame in x])]) == bits([layer(x)[0]])


@pytest.mark.parametrize("name", LAYERS)
def test_layer_errors(name):
    layer, x = LAYERS[name](), random(0, 4, 3, 5)
    stream = layer.stream()
    stream.step(x[0])
    before = stream.state
    wrong = [x[0, :2], x[0, 0], x[0, :, :4], x, np.float32(1), x[0].astype(np.float64), "a", None]
    for value in wrong:
        with pytest.raises(Error):
            stream.step(value)
    for value in (x[:, :2], x[0], x[..., :4], x[None], np.float32(1), x.astype(np.float64)):
        with pytest.raises(Error):
            stream.run(value)
    for out in (np.empty((2, 7), np.float32), [1], np.empty((3, 9, 7), np.float32)):
        with pytest.raises(Error):
            stream.step(x[0], out=out)
    for state in (1, (1,), random(0, 1, 1, 1), (random(0, 2, 3, 4),) * 2, ((random(0, 1, 2, 7),) * 2,)):
        with pytest.raises(Error):
            stream.state = state
    assert bits(flat(stream.state)) == bits(flat(before))
    check_closed(layer.stream(), x[0], x)
    check_busy(layer.stream(), x[0], x)


def test_layers_that_run_backwards():
    for layer in (
        nn.LSTM(3, 4, bidirectional=True),
        nn.GRU(3, 4, reverse=True),
        nn.Sequential(nn.RNN(3, 4, reverse=True)),
    ):
        with pytest.raises(InputError, match="begins at the end of a sequence"):
            layer.stream()


def test_weights_that_are_loaded_while_a_stream_goes_on():
    layer, other, x = nn.GRU(5, 7, rng=0), nn.GRU(5, 7, rng=1), random(0, 2, 1, 5)
    stream = layer.stream()
    stream.step(x[0])
    state = stream.state
    layer.load_state_dict(other.state_dict())
    assert bits([stream.step(x[1])]) == bits([other(x[1:], state)[0][0]])
