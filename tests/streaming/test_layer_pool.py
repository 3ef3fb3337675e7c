"""Pools of layers: each stream gets the bits that it gets alone, whoever else is in the step; and what pools refuse."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given

from rnnfast import nn
from rnnfast.errors import Error, InputError, InputTypeError, LimitError
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests.cases import bits, type_options
from tests.graphs import random
from tests.playing import USES, flat, in_threads, play, property_test, same_bits

LAYERS = {
    "RNN": lambda **o: nn.RNN(5, 7, rng=0, **o),
    "LSTM": lambda **o: nn.LSTM(5, 19, 2, proj_size=3, rng=1, **o),
    "batch_first": lambda **o: nn.LSTM(5, 9, batch_first=True, rng=2, **o),
    "GRU": lambda **o: nn.GRU(5, 18, 3, clip=0.5, rng=3, **o),
    "linear before reset": lambda **o: nn.GRU(5, 7, linear_before_reset=False, rng=4, **o),
    "blas": lambda **o: nn.LSTM(5, 7, 2, matmul="blas", rng=5, **o),
    "Sequential": lambda **o: nn.Sequential(
        nn.Linear(5, 6, rng=6),
        nn.LSTM(6, 8, 2, rng=7, **o),
        nn.LayerNorm(8),
        nn.Sequential(nn.GRU(8, 4, rng=8, **o), nn.Tanh()),
        nn.Linear(4, 2, rng=9),
    ),
    "Embedding": lambda **o: nn.Sequential(nn.Embedding(11, 6, rng=6), nn.LSTM(6, 8, rng=7, **o)),
} | {
    key: lambda key=key, **o: nn.Sequential(
        nn.Linear(5, 6, rng=6), nn.LSTM(6, 19, 2, rng=7, **o), nn.GRU(19, 4, rng=8, **o), nn.RNN(4, 2, rng=9, **o)
    ).quantized(**type_options(key))
    for key in WEIGHT_TYPES
}


def frame_of(layer):
    if isinstance(layer, nn.Sequential) and isinstance(layer.layers[0], nn.Embedding):
        return lambda rng: rng.integers(0, 11)
    return lambda rng: rng.standard_normal(5).astype(np.float32)


def close_to(found, expected):
    for a, b in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def contents(pool):
    """All that a pool shows, as bytes."""
    return [(stream, bits(flat(pool.state(stream)))) for stream in pool.streams.tolist()]


# ------------------------------------------------------------------------------------------------ the bits of one alone
@pytest.mark.parametrize("name", LAYERS)
@property_test
@given(uses=USES)
def test_random_uses(name, uses):
    layer = LAYERS[name]()
    play(layer.pool(9), layer.stream, frame_of(layer), uses, same=close_to if name == "blas" else same_bits)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_sizes_and_threads(name, threads, isa, forced):
    layer = LAYERS[name](threads=threads)
    pool, frame, rng = layer.pool(70), frame_of(layer), np.random.default_rng(0)
    live = {pool.open(): layer.stream() for _ in range(70)}
    for count in (70, 1, 37, 5, 64):
        chosen = rng.permutation(list(live))[:count]
        frames = [frame(rng) for _ in chosen]
        found = pool.step(chosen, np.stack(frames))
        for y, stream, x in zip(found, chosen.tolist(), frames, strict=True):
            (close_to if name == "blas" else same_bits)(y, live[stream].step(x))


def test_ten_thousand_streams():
    layer, rng = nn.LSTM(3, 8, rng=0), np.random.default_rng(1)
    pool = layer.pool(10_000)
    ids = np.array([pool.open() for _ in range(10_000)])
    steps = []
    for _ in range(6):
        chosen = rng.permutation(ids)[: rng.integers(1, 10_001)]
        x = rng.standard_normal((len(chosen), 3), np.float32)
        steps.append((chosen, x, pool.step(chosen, x)))
    for stream in rng.choice(ids, 100, replace=False):
        alone = layer.stream(None)
        for chosen, x, y in steps:
            for place in np.flatnonzero(chosen == stream):
                same_bits(y[place], alone.step(x[place]))
        if alone.state is not None:
            same_bits(pool.state(stream), alone.state)
    assert len(pool) == 10_000
    with pytest.raises(LimitError, match="all 10000 streams are open"):
        pool.open()


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_call_one_pool(threads, forced):
    layer = nn.GRU(5, 33, 2, rng=0, threads=threads)
    pool = layer.pool(40)

    def work(seed):
        rng = np.random.default_rng(seed)
        live = {pool.open(): layer.stream() for _ in range(8)}
        for _ in range(40):
            chosen = rng.permutation(list(live))[: rng.integers(1, 9)]
            x = rng.standard_normal((len(chosen), 5), np.float32)
            for y, stream, one in zip(pool.step(chosen, x), chosen.tolist(), x):
                same_bits(y, live[stream].step(one))
            if rng.random() < 0.3:
                pool.close(int(chosen[0]))
                del live[int(chosen[0])]
                live[pool.open()] = layer.stream()

    in_threads(work)
    assert len(pool) == 40


def test_weights_that_are_loaded_while_streams_go_on():
    layer, other, x = nn.GRU(5, 7, rng=0), nn.GRU(5, 7, rng=1), random(0, 2, 3, 5)
    pool, ids = layer.pool(3), []
    ids = [pool.open() for _ in range(3)]
    pool.step(ids, x[0])
    states = [pool.state(stream) for stream in ids]
    layer.load_state_dict(other.state_dict())
    for y, state, one in zip(pool.step(ids, x[1]), states, x[1]):
        same_bits(y, other.stream(state).step(one))


def test_no_stream_touches_another():
    layer, x = LAYERS["Sequential"](), random(0, 4, 6, 5)
    pool = layer.pool(6)
    ids, alone = [pool.open() for _ in range(6)], [layer.stream() for _ in range(6)]
    x[1, 2], x[2, 4] = np.nan, np.inf
    for step in x:
        for y, stream, one in zip(pool.step(ids, step), alone, step):
            same_bits(y, stream.step(one))
    assert np.isnan(pool.state(ids[2])[0][0]).any() and np.isfinite(pool.state(ids[1])[0][0]).all()


def test_any_strides_of_rows():
    layer, x = nn.LSTM(5, 7, rng=0), random(0, 6, 10, 7)
    pool = layer.pool(6)
    for rows in (x[:, 0, 1:6], x[::-1, 1, :5], x[:, :5, 2], np.broadcast_to(x[0, 0, :5], (6, 5)), x[::2, 0, :5]):
        ids = [pool.open() for _ in rows]
        same_bits(pool.step(ids, rows), np.stack([layer.stream().step(np.ascontiguousarray(row)) for row in rows]))
        for stream in ids:
            pool.close(stream)


def test_ids_never_come_back():
    pool, seen = nn.RNN(2, 3).pool(3), set()
    for _ in range(50):
        stream = pool.open()
        assert type(stream) is int and stream not in seen
        seen.add(stream)
        pool.close(stream)


def test_no_streams():
    pool = nn.RNN(2, 3).pool(3)
    assert pool.step({}) == {} and pool.streams.tolist() == [] and len(pool) == 0
    assert pool.step([], np.empty((0, 2), np.float32)).shape == (0, 3)


def test_memory_is_flat():
    layer, rng = nn.LSTM(5, 16, rng=0), np.random.default_rng(0)
    pool = layer.pool(300)
    ids, x = np.array([pool.open() for _ in range(300)]), random(0, 300, 5)

    def use(count):
        for _ in range(count):
            n = int(rng.integers(1, 301))
            pool.step(ids[:n], x[:n])
            pool.step(dict(zip(ids[: n % 7].tolist(), x)))
            stream = int(ids[n - 1])
            pool.close(stream)
            ids[n - 1] = pool.open(pool.state(ids[0]) if n > 1 else None)

    for n in range(1, 301):
        pool.step(ids[:n], x[:n])
    use(200)
    tracemalloc.start()
    use(200)
    before = tracemalloc.get_traced_memory()[0]
    use(1500)
    assert tracemalloc.get_traced_memory()[0] < before + 200_000
    tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ bad input
H = random(0, 1, 7)
WRONG_IDS = [
    ([10**6], "was never opened"),
    ([-1], "was never opened"),
    ([0], "is closed"),
    ([1, 1], "stream 1 is given twice"),
    ([1.0], r"stream ids are float64 of shape \[1\], expected integers"),
    (["a"], "ids are <U1"),
    ([[1]], r"shape \[1, 1\]"),
    (1, r"shape \[\]"),
    ([True], "ids are bool"),
    ([2**70], "ids are object"),
    (None, "ids are"),
    ([[1], 2], "ids are no array"),
    ([2**64 - 1], "was never opened"),
]
WRONG_ROWS = [
    (random(0, 2, 4), r"shape is \[2, 4\], expected \[2, 5\]"),
    (random(0, 2), r"shape is \[2\], expected \[2, 5\]"),
    (random(0, 2, 1, 5), r"shape is \[2, 1, 5\]"),
    (random(0, 3, 5), "expected 2 frames along the first axis"),
    (random(0, 5), "expected 2 frames"),
    (np.float32(1), "expected 2 frames"),
    (np.zeros((2, 5), int), "int64"),
    (None, r"inputs are \[\], expected 'x'"),
    ({"z": 1}, r"inputs are \['z'\], expected 'x'"),
    ("a", "x has shape"),
    ({"x": random(0, 2, 5), "z": 1}, "expected 'x'"),
]
WRONG_FRAMES = [
    (random(0, 4), r"a frame is float32 \[4\], expected float32 \[5\]"),
    (random(0, 1, 5), r"a frame is float32 \[1, 5\]"),
    (np.float32(1), r"a frame is float32 \[\]"),
    (np.zeros(5, int), "a frame is int64"),
    ("a", "a frame is <U1"),
    (None, r"inputs are \[\], expected 'x'"),
    ({"z": random(0, 5)}, r"inputs are \['z'\], expected 'x'"),
    ({"x": random(0, 5), "z": 1}, "expected 'x'"),
]
WRONG_STATES = [
    (1, "h: dtype is int64"),
    ((H, H), r"shape \[2, 1, 7\]"),
    (random(0, 1, 6), r"expected \[1, batch, 7\]"),
    (random(0, 7), "expected"),
    (random(0, 1, 1, 7), r"shape \[1, 1, 7\], expected \[1, 7\]"),
    (H.astype(int), "int64"),
    ("a", "dtype"),
    ({"h": H}, "h: dtype is object"),
    ([], r"state h has shape \[0\]"),
]


@pytest.fixture
def used():
    """A pool of 4 with the streams 1 and 2, that have a state; 0 is closed."""
    pool = nn.GRU(5, 7, rng=0).pool(4)
    for _ in range(3):
        pool.open()
    pool.step([1, 2], random(0, 2, 5))
    pool.close(0)
    return pool


def refused(pool, message, call, *args, error=Error, **options):
    before = contents(pool)
    with pytest.raises(error, match=message):
        call(*args, **options)
    assert contents(pool) == before


def test_wrong_ids(used):
    for ids, message in WRONG_IDS:
        count = len(ids) if isinstance(ids, list) else 1
        refused(used, message, used.step, ids, random(0, count, 5))
        if isinstance(ids, list) and count == 1 and not isinstance(ids[0], list):
            for call in (used.close, used.reset, used.state):
                refused(used, message, call, ids[0])
            refused(used, message, used.step, {ids[0]: random(0, 5)})
    for call in (used.close, used.reset, used.state):
        refused(used, "ids are", call, [1], error=InputTypeError)
    refused(used, "ids are", used.step, {1: random(0, 5), (1, 2): random(0, 5)})


def test_wrong_frames(used):
    for rows, message in WRONG_ROWS:
        refused(used, message, used.step, [1, 2], rows)
    for frame, message in WRONG_FRAMES:
        refused(used, message, used.step, {1: frame})
        refused(used, message, used.step, {1: random(0, 5), 2: frame})
    refused(used, "twice", used.step, [1], {"x": random(0, 1, 5)}, x=random(0, 1, 5))
    refused(used, "mapping of frames", used.step, {1: random(0, 5)}, random(0, 1, 5))
    refused(used, "mapping of frames", used.step, {1: random(0, 5)}, out=random(0, 1, 7))


def test_wrong_runs(used):
    x = random(0, 2, 3, 5)
    for rows, lengths, message in (
        (x[:1], None, r"'x' begins with the axes \[1, 3\], expected \[2, frames\]"),
        (x, [4, 1], "lengths: 4 at row 0"),
        (x, [-1, 1], "lengths: -1 at row 0"),
        (x[..., :4], None, "shape is"),
        (x.astype(int), None, "int64"),
        ([[1], [2, 3]], None, "x: cannot be read"),
        (None, None, "inputs|axes"),
    ):
        refused(used, message, used.run, [1, 2], rows, lengths=lengths)
    refused(used, "twice", used.run, [1, 1], x)


def test_wrong_states(used):
    for state, message in WRONG_STATES:
        refused(used, message, used.open, state)
    refused(used, "no input 'sr' to be fixed", used.open, sr=1, error=InputError)
    pair = nn.LSTM(5, 7).pool(2)
    for state, message in (
        (H, "state"),
        ((H,), "expected h and c"),
        ((H, random(0, 1, 6)), "state c"),
        ((H, None), "float32"),
    ):
        refused(pair, message, pair.open, state)
    stack = LAYERS["Sequential"]().pool(2)
    for state in (H, (H, H, H), ((H, H),)):
        refused(stack, "expected the states of 2 layers|expected h and c", stack.open, state)
    assert len(pair) == len(stack) == 0


def test_states_of_some_layers():
    layer, x = LAYERS["Sequential"](), random(0, 5)
    state = (None, random(1, 1, 4))
    pool = layer.pool(1)
    stream, alone = pool.open(state), layer.stream(state)
    same_bits(pool.step({stream: x})[stream], alone.step(x))


def test_wrong_out(used):
    x, base = random(0, 2, 5), random(0, 4, 14)
    read_only = random(0, 2, 7)
    read_only.flags.writeable = False
    for out, message in (
        (random(0, 3, 7), r"out is float32 \[3, 7\], expected float32 \[2, 7\]"),
        (np.zeros((2, 7)), "out is float64"),
        (base[:2, ::2], "contiguous"),
        (base[:2, :7], "contiguous"),
        (read_only, "writeable"),
        ([1], "out is list"),
        ({"y": random(0, 2, 7)}, "out is dict"),
    ):
        refused(used, message, used.step, [1, 2], x, out=out)
    shared = base.reshape(-1)
    refused(used, "shares memory", used.step, [1, 2], shared[:10].reshape(2, 5), out=shared[4:18].reshape(2, 7))


def test_an_index_that_is_out_of_range():
    pool = LAYERS["Embedding"]().pool(3)
    ids = [pool.open() for _ in range(3)]
    pool.step(ids, np.array([1, 2, 3]))
    refused(pool, "11", pool.step, ids, np.array([1, 11, 3]), error=InputError)
    refused(pool, "11", pool.step, {ids[0]: 1, ids[2]: 11}, error=InputError)


class Own(nn.Module):
    """A layer of a user, of whose sizes a Sequential knows nothing."""

    def __call__(self, x):
        return nn.Linear(6, 2)(x)


def test_a_layer_that_fails_behind_one_that_ran():
    pool = nn.Sequential(nn.GRU(5, 7, rng=0), Own()).pool(2)
    ids = [pool.open(), pool.open()]
    refused(pool, "shape", pool.step, ids, random(0, 2, 5))


def test_wrong_pools():
    for count in (0, -1, 2**24 + 1, 1.0, True, None, "4"):
        with pytest.raises(InputError, match="max_streams is .*expected an int of 1 to 16777216"):
            nn.RNN(2, 3).pool(count)
    for layer in (nn.LSTM(3, 4, bidirectional=True), nn.GRU(3, 4, reverse=True)):
        with pytest.raises(InputError, match="begins at the end of a sequence"):
            layer.pool(3)
    assert repr(nn.GRU(5, 7).pool(3)) == "<rnnfast.nn.Pool of GRU: 0 of 3 streams open>"
