"""Pools of models: each stream gets the bits that it gets alone, whoever else is in the step; and what pools refuse."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given

import rnnfast
from rnnfast.errors import LimitError, UnsupportedError
from rnnfast.native.weight_types import WEIGHT_TYPES
from rnnfast.streaming.model_pool import MAX_GROUPS
from rnnfast.streaming.pool import batch_sizes
from tests.cases import bits, type_options
from tests.graphs import load, parse, random
from tests.playing import USES, in_threads, play, property_test, same_bits

# Model -> samples of a frame. The models of ONE_BY_ONE have no open axis, so their streams run one by one.
SILERO = {
    "silero_vad_5.1.2__silero_vad": 576,
    "silero_vad_6.2.3__silero_vad": 576,
    "silero_vad_6.2.3__silero_vad_half": 576,
    "silero_vad_6.2.3__silero_vad_16k_op15": 576,
    "silero_vad_6.2.3__silero_vad_op18_ifless": 576,
    "silero_vad_v4__silero_vad": 512,
    "silero_vad_v4__silero_vad_legacy": 512,
}
# Pairs that names do not show.
STATES = {"DTLN__model_1": {"input_3": "tf_op_layer_stack_2"}}
ONE_BY_ONE = {
    "DTLN__model_1": {},
    "converted_rnnoise__cb": {"T": 1},
    "gtcrn__gtcrn_simple": {},
    "pythainlp_thai2rom__thai2rom_decoder": {"input_length": 9},
    "silero_vad_6.2.3__silero_vad_openvino_16k": {},
}


def weights(kind, inputs, hidden, seed=0):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * hidden
    return dict(
        W=random(seed, 1, gates, inputs) / 2,
        R=random(seed + 1, 1, gates, hidden) / 2,
        B=random(seed + 2, 1, 2 * gates) / 2,
    )


# A graph, its initializers, and the axis of the streams in each value of a frame and of its result.
GRAPHS = {
    "LSTM, batch on axis 1": (
        """g (float[1,b,5] x, float[1,b,9] h, float[1,b,9] c)
        => (float[1,b,9] y, float[1,b,9] h_out, float[1,b,9] c_out) {
        all, h_out, c_out = LSTM <hidden_size = 9> (x, W, R, B, , h, c)
        zero = Constant <value = int64[1] {0}> ()
        y = Squeeze (all, zero) }""",
        weights("LSTM", 5, 9),
        {"x": 1, "y": 1},
    ),
    "GRU, batch on axis 0": (
        """g (float[b,5] x, float[b,1,7] s) => (float[7,b] y, float[b,1,7] s_out, float[b] m) {
        zero = Constant <value = int64[1] {0}> ()
        three = Unsqueeze (x, zero)
        before = Transpose <perm = [1, 0, 2]> (s)
        all, after = GRU <hidden_size = 7, linear_before_reset = 1> (three, W, R, B, , before)
        s_out = Transpose <perm = [1, 0, 2]> (after)
        flat = Squeeze (after, zero)
        y = Transpose <perm = [1, 0]> (flat)
        m = ReduceMax <axes = [1], keepdims = 0> (x) }""",
        weights("GRU", 5, 7),
        {"x": 0, "y": 1, "m": 0},
    ),
    "three states, integers, a rate": (
        """g (float[b,5] x, int64[b] word, float[b,5] s, int64[b,1] k, float[3,b,2] t,
                                           int64 rate)
        => (float[b,5] y, float[b,5] s_out, int64[b,1] k_out, float[3,b,2] t_out) {
        embedded = Gather (table, word)
        speed = Cast <to = 1> (rate)
        scaled = Div (embedded, speed)
        sum = Add (x, scaled)
        both = Mul (sum, s)
        s_out = Tanh (sum)
        one = Constant <value = int64[1] {1}> ()
        k_out = Add (k, one)
        kf = Cast <to = 1> (k_out)
        y = Add (both, kf)
        part = Slice (x, zero, two, one)
        t_out = Add (t, part) }""",
        dict(table=random(4, 11, 5), zero=np.array([0]), two=np.array([2])),
        {"x": 0, "word": 0, "y": 0},
    ),
    "not native": (
        """g (float[b,5] x, float[b,5] s) => (float[b,5] y, float[b,5] s_out) {
        s_out = Add (x, s)
        y = Hardmax <axis = 1> (s_out) }""",
        {},
        {"x": 0, "y": 0},
    ),
}
FIXED = {"three states, integers, a rate": {"rate": 16000}}


def build(name):
    text, initializers, axes = GRAPHS[name]
    return load(parse(text, **initializers)), axes, FIXED.get(name, {})


def silero(path):
    model = rnnfast.load(path)
    return model, {"input": 0, "output": 0}, {"sr": 16000} if "sr" in model.required_inputs else {}


def frame_of(model, stream, sizes):
    """A function from a generator of random numbers to a frame; sizes: of open dimensions, 1 where it has none."""
    types = {v.name: v.type for v in model.inputs}
    if isinstance(sizes, int):
        return lambda rng: {"input": (rng.standard_normal((1, sizes)) / 3).astype(np.float32)}

    def frame(rng):
        made = {}
        for name in stream.inputs:
            shape = [n if type(n) is int else sizes.get(n, 1) for n in types[name].shape]
            made[name] = rng.integers(0, 11, shape) if types[name].dtype.kind == "i" else rng.standard_normal(shape) / 3
            made[name] = made[name].astype(types[name].dtype)
        return made

    return frame


def use(model, axes, fixed, uses, sizes={}, batch=True, states=None):
    pool = model.pool(9, states=states, batch=batch, **fixed)
    frame = frame_of(model, model.stream(states=states, **fixed), sizes)

    def rows(frames):
        return {
            name: np.stack([np.squeeze(f[name], axes[name]) if batch else f[name] for f in frames])
            for name in frames[0]
        }

    def part(results, i):
        results = results if isinstance(results, dict) else {pool.outputs[0]: results}
        return {name: np.expand_dims(a[i], axes[name]) if batch else a[i] for name, a in results.items()}

    play(pool, lambda state: model.stream(state, states=states, **fixed), frame, uses, rows, part)
    return pool


# ------------------------------------------------------------------------------------------------ the bits of one alone
@pytest.mark.parametrize("name", GRAPHS)
@property_test
@given(uses=USES)
def test_random_uses(name, uses):
    use(*build(name), uses)


@pytest.mark.parametrize("name", SILERO)
def test_published_models(name, published):
    uses = [("open", i) for i in range(7)] + [
        ("frames", 1),
        ("rows", 2),
        ("reset", 3),
        ("out", 4),
        ("close", 5),
        ("begin", 6),
        ("rows", 7),
        ("frames", 8),
        ("out", 9),
    ]
    use(*silero(published(f"models/{name}.onnx")), uses, SILERO[name])


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_published_models_whose_batch_is_fixed(name, published):
    model, states = rnnfast.load(published(f"models/{name}.onnx")), STATES.get(name)
    pool = model.pool(2, states=states)
    stream = pool.open()
    with pytest.raises(UnsupportedError, match=r"has no axis that may be a batch; pool\(batch=False\)"):
        pool.step({stream: frame_of(model, model.stream(states=states), ONE_BY_ONE[name])(np.random.default_rng(0))})
    uses = [("open", 0), ("open", 1), ("frames", 2), ("begin", 3), ("rows", 4), ("out", 5)]
    use(model, {}, {}, uses, ONE_BY_ONE[name], batch=False, states=states)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_and_threads(name, threads, isa, forced):
    check_sizes(name, threads=threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("key", WEIGHT_TYPES)
@pytest.mark.parametrize("name", GRAPHS)
def test_weight_types(name, key, threads, forced):
    check_sizes(name, threads=threads, **type_options(key))


def check_sizes(name, **options):
    """Step batches of several sizes, and compare each stream with itself alone."""
    text, initializers, axes = GRAPHS[name]
    model, fixed = rnnfast.load(parse(text, **initializers), **options), FIXED.get(name, {})
    pool, frame, rng = model.pool(90, **fixed), frame_of(model, model.stream(**fixed), {}), np.random.default_rng(0)
    live = {pool.open(): model.stream(**fixed) for _ in range(90)}
    for count in (3, 90, 1, 37, 64, 5):
        chosen = rng.permutation(list(live))[:count].tolist()
        frames = {stream: frame(rng) for stream in chosen}
        for stream, result in pool.step(frames).items():
            same_bits(result, live[stream].step(frames[stream]))


def test_plans_are_native_where_they_can_be():
    for name in GRAPHS:
        model, _, fixed = build(name)
        pool = model.pool(2, **fixed)
        pool.step({pool.open(): frame_of(model, model.stream(**fixed), {})(np.random.default_rng(0))})
        assert (None in pool._fixed_groups[0].programs.values()) == (name == "not native"), name


def test_many_threads_call_one_pool():
    model, _, _ = build("GRU, batch on axis 0")
    pool = model.pool(40)

    def work(seed):
        rng = np.random.default_rng(seed)
        live = {pool.open(): model.stream() for _ in range(8)}
        for _ in range(20):
            chosen = rng.permutation(list(live))[: rng.integers(1, 9)]
            x = rng.standard_normal((len(chosen), 5), np.float32)
            y = pool.step(chosen, x)
            for i, stream in enumerate(chosen.tolist()):
                alone = live[stream].step(x=x[i : i + 1])
                same_bits((y.y[i], y.m[i]), (alone.y[:, 0], alone.m[0]))

    in_threads(work)
    assert len(pool) == 40


def test_streams_of_different_fixed_inputs():
    model, _, _ = build("three states, integers, a rate")
    pool, rng = model.pool(2 * MAX_GROUPS, rate=16000), np.random.default_rng(0)
    frame = frame_of(model, model.stream(rate=1), {})
    rates = [16000, 8000, 16000, 1, 8000]
    live = {pool.open(**({"rate": rate} if rate != 16000 else {})): model.stream(rate=rate) for rate in rates}
    for count in (5, 2, 4):
        frames = {stream: frame(rng) for stream in rng.permutation(list(live))[:count].tolist()}
        for stream, result in pool.step(frames).items():
            same_bits(result, live[stream].step(frames[stream]))
        found = pool.step(
            list(frames), {name: np.concatenate([f[name] for f in frames.values()]) for name in ("x", "word")}
        )
        for y, (stream, one) in zip(found, frames.items()):
            same_bits(y[None], live[stream].step(one))
    for rate in range(2, MAX_GROUPS - 1):
        pool.open(rate=rate)
    with pytest.raises(LimitError, match="more than 16 different values of fixed inputs"):
        pool.open(rate=10**6)
    pool.close(list(live)[3])
    assert pool.open(rate=10**6) >= 2 * MAX_GROUPS
    assert len(pool._fixed_groups) == MAX_GROUPS


def test_frames_are_arrays_where_there_is_one_input():
    model = load(
        parse(
            "g (float[b,3] x, float[b,3] s, int64 k) => (float[b,3] y, float[b,3] s_out) "
            "{ f = Cast <to = 1> (k)  y = Mul (x, f)  s_out = Add (x, s) }"
        )
    )
    pool, x = model.pool(3), random(0, 1, 3)
    one, two = pool.open(k=2), pool.open(k=3)
    for _ in range(2):
        assert bits(pool.step({one: x, two: x}).values()) == bits([x * 2, x * 3])
        assert bits(pool.step([two, one], np.tile(x, (2, 1)))) == bits([x[0] * 3, x[0] * 2])


def test_memory_is_flat():
    model, _, _ = build("GRU, batch on axis 0")
    pool, x, rng = model.pool(200), random(0, 200, 5), np.random.default_rng(0)
    ids = np.array([pool.open() for _ in range(200)])

    def go_on(count):
        for _ in range(count):
            n = int(rng.integers(1, 201))
            pool.step(ids[:n], x[:n])
            pool.step(dict.fromkeys(ids[: n % 5].tolist(), x[:1]))
            pool.close(int(ids[n - 1]))
            ids[n - 1] = pool.open(pool.state(int(ids[0])) if n > 1 else None)

    for n in range(1, 201):
        pool.step(ids[:n], x[:n])
    go_on(100)
    tracemalloc.start()
    go_on(100)
    before = tracemalloc.get_traced_memory()[0]
    go_on(1000)
    assert tracemalloc.get_traced_memory()[0] < before + 200_000
    tracemalloc.stop()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_sizes_of_batches(threads):
    sizes = set()
    for count in range(1, 700):
        parts = batch_sizes(count, 64, threads)
        assert (
            sum(n for *_, n in parts) == count
            and [first for _, first, _ in parts] == np.cumsum([0, *(n for *_, n in parts[:-1])]).tolist()
        )
        assert all(n <= size <= 1.5 * n and size <= 64 for size, _, n in parts)
        assert len(parts) >= min(count, threads) - threads // 2
        sizes |= {size for size, *_ in parts}
    assert sizes <= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}


# ------------------------------------------------------------------------------------------------ no batch
REFUSED = {
    "softmax over the batch": (
        "p = Softmax <axis = 0> (x)  s_out = Add (p, s)",
        r"\(Softmax\): it normalizes along axis 0",
    ),
    "mean of the batch": (
        "m = ReduceMean <axes = [0], keepdims = 1> (x)  d = Sub (x, m)  s_out = Add (d, s)",
        r"\(ReduceMean\): it reduces the tensor along axis 0, along which the rows lie; pool\(batch=False\)",
    ),
    "mean of states": (
        "m = ReduceMean <axes = [0], keepdims = 1> (s)  d = Sub (s, m)  s_out = Add (d, x)",
        r"\(ReduceMean\): it reduces",
    ),
    "a running sum": (
        "k = Constant <value = int64 {0}> ()  c = CumSum (x, k)  s_out = Add (c, s)",
        r"\(CumSum\): it adds up elements along axis 0",
    ),
    "words of the others": (
        "e = Gather (table, word)  m = ReduceMean <axes = [0], keepdims = 1> (e)  d = Sub (e, m)  "
        "a = Add (d, x)  s_out = Add (a, s)",
        r"\(ReduceMean\): it reduces",
    ),
    "one result for all": ("s_out = Add (x, s)  z = ReduceSum <keepdims = 0> (x)", r"\(ReduceSum\): it reduces"),
    "rows into columns": ("s_out = Add (x, s)  z = Reshape (x, flat)", "output 'z' has the rows within an axis"),
}


def dependent(name):
    body, message = REFUSED[name]
    last = "z" if "z =" in body else "y"
    word = ", int64[b] word" if "word" in body else ""
    shape = "" if last == "z" else "[b,5]"
    text = (
        f"g (float[b,5] x{word}, float[b,5] s) => (float[b,5] s_out, float{shape} {last}) {{ {body} "
        f"{'y = Neg (s_out)' if last == 'y' else ''} }}"
    ).replace("float z", "z")
    return load(parse(text, table=random(0, 11, 5), flat=np.array([-1]))), message


@pytest.mark.parametrize("name", REFUSED)
def test_streams_that_depend_on_one_another(name):
    model, message = dependent(name)
    states = {"s": "s_out"}
    frame = frame_of(model, model.stream(states=states), {})
    pool = model.pool(3, states=states)
    ids, rng = [pool.open(), pool.open()], np.random.default_rng(0)
    frames = {stream: frame(rng) for stream in ids}
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=message):
            pool.step(frames)
        with pytest.raises(UnsupportedError, match=message):
            pool.step(ids, {name: np.concatenate([f[name] for f in frames.values()]) for name in frames[ids[0]]})
    pool = model.pool(3, states=states, batch=False)
    live = {pool.open(): model.stream(states=states) for _ in range(3)}
    for _ in range(3):
        frames = {stream: frame(rng) for stream in live}
        for stream, result in pool.step(frames).items():
            same_bits(result, live[stream].step(frames[stream]))


def test_states_that_are_named():
    """State pairs that are given take the place of those that the names suggest."""
    model = load(
        parse(
            "g (float[b,3] x, float[b,3] a, float[b,3] c) => "
            "(float[b,3] y, float[b,3] a_out, float[b,3] c_out) { y = Sub (a, c)  a_out = Add (x, a)  "
            "c_out = Neg (a_out) }"
        )
    )
    states, x = {"a": "c_out", "c": "a_out"}, random(0, 4, 2, 3)
    pool, alone = model.pool(2, states=states), model.stream(states=states)
    ids = [pool.open(), pool.open()]
    assert bits([pool.step(ids, step) for step in x]) == bits([alone.step(x=step) for step in x])
    assert pool.states == states


def test_a_state_without_a_batch():
    model = load(
        parse("g (float[b,5] x, int64[1] k) => (float[b,5] y, int64[1] k_out) { y = Neg (x)  k_out = Add (k, k) }")
    )
    pool = model.pool(2, states={"k": "k_out"})
    with pytest.raises(UnsupportedError, match=r"'k' of shape \[1\] has no axis that may be a batch; pool"):
        pool.step({pool.open(): random(0, 1, 5)})
