"""Pools of models refuse wrong use with a message that says why, and no stream has changed."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import Error, InputError, InputTypeError, LimitError, UnsupportedError
from tests.cases import bits
from tests.graphs import load, parse, random

GRAPH = """g (float[b,5] x, int64[b] word, int64 rate, float[b,1,3] s, float[2,b,5] t, float bias)
    => (float[b,5] y, float[b,1,3] s_out, float[2,b,5] t_out) {
    e = Gather (table, word)
    r = Cast <to = 1> (rate)
    d = Div (e, r)
    sum = Add (x, d)
    three = Slice (sum, zero, limit, one)
    wide = Unsqueeze (three, one)
    s_out = Add (s, wide)
    t_out = Add (t, sum)
    y = Add (sum, bias) }"""
INITIALIZERS = dict(
    table=random(0, 11, 5), zero=np.array([0]), one=np.array([1]), limit=np.array([3]), bias=np.float32(2)
)
# A graph whose frame and state have an open axis besides the batch.
OPEN = "g (float[b,n] x, float[b,n] s) => (float[b,n] y, float[b,n] s_out) { s_out = Add (x, s)  y = Neg (s_out) }"
WORDS = """g (float[b,5] s, int64[b] word) => (float[b,5] y, float[b,5] s_out) {
    e = Gather (table, word)  s_out = Add (e, s)  y = Neg (s_out) }"""
X, W = random(1, 4, 5), np.array([1, 2, 3, 4])


@pytest.fixture
def model():
    return load(parse(GRAPH, **INITIALIZERS))


@pytest.fixture
def pool(model):
    """4 streams at most; 1 and 2 are open and have a state, 0 is closed."""
    pool = model.pool(4, rate=2)
    for _ in range(3):
        pool.open()
    pool.step([0, 1, 2], x=X[:3], word=W[:3])
    pool.close(0)
    return pool


def contents(pool):
    return [(stream, bits(pool.state(stream).values())) for stream in pool.streams.tolist()]


def refused(pool, message, call, *args, error=Error, **options):
    before = contents(pool)
    with pytest.raises(error, match=message):
        call(*args, **options)
    assert contents(pool) == before


def one(**changes):
    """A frame of one stream as it alone takes it; None leaves an input out."""
    frame = {"x": X[:1], "word": W[:1]} | changes
    return {name: value for name, value in frame.items() if value is not None}


def two(**changes):
    """Rows of two streams."""
    frame = {"x": X[:2], "word": W[:2]} | changes
    return {name: value for name, value in frame.items() if value is not None}


NAMES = [
    (dict(x=None), "input 'x' is missing"),
    (dict(z=1), "there is no input 'z'"),
    (dict(s=X), "input 's' is a state of the stream"),
    (dict(rate=1), "input 'rate' is fixed"),
    (dict(bias=np.float32(1)), r"input 'bias' has a value in the file; give another one .*open\(bias=...\)"),
]
FRAMES = [
    (dict(x=X[:1, :4]), "input 'x' .*shape"),
    (dict(x=X[0]), "input 'x'"),
    (dict(x=X[None, :1]), "input 'x'"),
    (dict(x=X[:2]), r"input 'x' is float of shape \(2, 5\), but the frames before were float of shape \(1, 5\)"),
    (dict(x=X[:1].astype(np.float64)), "is double, expected float"),
    (dict(x="a"), "input 'x'"),
    (dict(word=W[:1].astype(np.int32)), "is int32, expected int64"),
    (dict(word=1.5), "input 'word'"),
    (dict(word=3), "input 'word'"),
    (dict(x=[[1, 2], [3]]), "input 'x' is no array"),
    (dict(word=np.array([11])), "11"),
]
ROWS = [
    (dict(x=X[:3]), r"input 'x' has shape \[3, 5\], expected 2 frames along the first axis"),
    (dict(word=W[:1]), r"input 'word' has shape \[1\], expected 2 frames"),
    (dict(word=3), r"shape \[\], expected 2"),
    (dict(x=X[:2, :4]), r"input 'x' has frames of float \[4\], expected float \[5\]"),
    (dict(x=X[:2, None]), r"input 'x' has frames of float \[1, 5\], expected float \[5\]"),
    (dict(x=X[:2].astype(np.float64)), "is double, expected float"),
    (dict(word=np.array([1, -12])), "-12"),
    (dict(word=np.array([11, 1])), "11"),
    (dict(x="a"), "input 'x'"),
]
STATE = {"s": random(2, 1, 1, 3), "t": random(3, 2, 1, 5)}
STATES = [
    (1, "state is int, expected a mapping by"),
    ([STATE], "expected a mapping"),
    ({}, r"state has \[\], expected"),
    ({"s": STATE["s"]}, r"state has \['s'\], expected \['s', 't'\]"),
    (STATE | {"z": 1}, "state has"),
    (STATE | {"s": STATE["s"][0]}, "state 's'"),
    (STATE | {"s": STATE["s"].astype(np.float64)}, "is double"),
    (STATE | {"s": random(0, 1, 1, 4)}, "state 's'"),
    (STATE | {"t": "a"}, "state 't'"),
    (STATE | {"t": random(0, 2, 2, 5)}, r"state 't' has shape \(2, 2, 5\), expected \(2, 1, 5\)"),
]


def test_wrong_ids(pool):
    for ids, message in (
        ([3], "stream 3 was never opened"),
        ([-1], "stream -1 was never"),
        ([0], "stream 0 is closed"),
        ([1.0], "ids are float64"),
        ([True], "ids are bool"),
        (["a"], "ids are"),
        ([None], "ids are"),
    ):
        rows = {name: value[:1] for name, value in two().items()}
        refused(pool, message, pool.step, ids, rows)
        refused(pool, message, pool.step, {ids[0]: one()})
        for call in (pool.close, pool.reset, pool.state):
            refused(pool, message, call, ids[0])
    refused(pool, "stream 2 is given twice", pool.step, [2, 2], two())
    refused(pool, r"ids are int64 of shape \[\]", pool.step, 2, two())
    assert len(pool.step([], x=X[:0], word=W[:0])) == 0
    assert pool.step({}) == {}


def test_wrong_frames(pool):
    for changes, message in NAMES + FRAMES:
        refused(pool, message, pool.step, {2: one(**changes)})
        refused(pool, message, pool.step, {1: one(), 2: one(**changes)})
        refused(pool, message, pool.step, {2: one(**changes), 1: one()})
    for changes, message in NAMES + ROWS:
        refused(pool, message, pool.step, [1, 2], two(**changes))
        refused(pool, message, pool.step, [1, 2], **two(**changes))
    refused(pool, "inputs are ndarray, expected a mapping", pool.step, [1, 2], X[:2], error=InputTypeError)
    refused(pool, "inputs are ndarray, expected a mapping", pool.step, {1: X[:1]}, error=InputTypeError)
    refused(pool, "input 'x' is given twice", pool.step, [1, 2], two(), x=X[:2])
    for options in (dict(out=X), dict(x=X)):
        refused(pool, "a mapping of frames by stream alone", pool.step, {1: one()}, **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_index_that_is_out_of_range(threads, forced):
    pool = rnnfast.load(parse(WORDS, table=random(0, 11, 5)), threads=threads).pool(200)
    ids, words = np.array([pool.open() for _ in range(200)]), np.arange(200) % 11
    pool.step(ids, words)
    for place in (0, 77, 199):
        wrong = words.copy()
        wrong[place] = 11
        refused(pool, "11", pool.step, ids, wrong, error=InputError)
    pool.step(ids, words)


def test_a_run_that_fails_at_a_later_frame(pool):
    """Each stream is as it was before the run, one with another fixed input too."""
    other, words = pool.open(rate=3), np.ones((3, 4), np.int64)
    words[0, 2] = 11
    with pytest.raises(InputError, match="11"):
        pool.run([other, 1], x=random(2, 2, 4, 5), word=words[:2])
    assert pool.state(other) is None
    pool.step([other], x=X[:1], word=W[:1])
    for ids in ([1, 2], [other, 1, 2], [2, other]):
        refused(pool, "11", pool.run, ids, x=random(2, len(ids), 4, 5), word=words[: len(ids)])


def test_more_streams_than_allowed(pool):
    pool.open()
    pool.open()
    refused(pool, "all 4 streams are open", pool.open, error=LimitError)
    refused(pool, "all 4 streams are open", pool.open, STATE, error=LimitError)
    refused(pool, "all 4 streams are open", pool.open, rate=3, error=LimitError)
    pool.close(1)
    assert pool.open(STATE) == 5 and bits(pool.state(5).values()) == bits(STATE.values())


def test_wrong_states(model, pool):
    for state, message in STATES:
        refused(pool, message, pool.open, state)
    assert len(pool) == 2
    for fixed, message in ((dict(z=1), "no input 'z'"), (dict(s=1), "is a state"), (dict(rate=1.5), "rate")):
        refused(pool, message, pool.open, **fixed)
        with pytest.raises(Error, match=message):
            model.pool(2, **fixed)


def test_wrong_out(pool):
    base = random(0, 4, 10)
    read_only = random(0, 2, 5)
    read_only.flags.writeable = False
    for out, message in (
        (X[:3].copy(), r"out 'y' has shape \(3, 5\), expected \(2, 5\)"),
        ([1], "out 'y' is list"),
        (np.zeros((2, 5)), "out 'y' is double"),
        (base[:2, ::2], "not a contiguous"),
        (read_only, "writeable"),
        ({"z": X[:2]}, r"out has \['z'\], expected \['y'\]"),
        ({}, "out has"),
    ):
        refused(pool, message, pool.step, [1, 2], two(), out=out)
    shared = base.reshape(-1)
    refused(pool, "shares memory", pool.step, [1, 2], two(x=shared[:10].reshape(2, 5)), out=shared[5:15].reshape(2, 5))


def test_wrong_pools(model):
    for count in (0, -1, 2**24 + 1, 1.0, True, None, "4"):
        with pytest.raises(InputError, match="max_streams is .*expected an int of 1 to 16777216"):
            model.pool(count)
    with pytest.raises(Error, match="batch"):
        model.pool(2, batch="no")
    with pytest.raises(Error, match="states"):
        model.pool(2, states={"z": "s_out"})
    assert repr(model.pool(2, rate=1)).endswith("0 of 2 streams open, (x, word) -> (y)>")


# ------------------------------------------------------------------------------------------------ the first step
def test_first_frames_that_are_wrong(model):
    pool = model.pool(4, rate=2)
    ids = [pool.open(), pool.open(STATE)]
    for changes, message in NAMES + FRAMES:
        with pytest.raises(Error, match="may be a batch" if "frames before" in message else message):
            pool.step({ids[0]: one(**changes)})
    for changes, message in NAMES + ROWS:
        with pytest.raises(Error, match=r"'b', 5\] without the batch" if "frames of" in message else message):
            pool.step(ids, two(**changes))
    assert pool.state(ids[0]) is None and bits(pool.state(ids[1]).values()) == bits(STATE.values())
    pool.step({ids[0]: one()})


def test_a_first_step_that_fails_settles_nothing():
    pool = load(parse(OPEN)).pool(4)
    ids = [pool.open() for _ in range(3)]
    with pytest.raises(InputError, match=r"shape \(1, 6\), but the frames before were float of shape \(1, 5\)"):
        pool.step({ids[0]: random(0, 1, 5), ids[1]: random(0, 1, 6)})
    with pytest.raises(InputError, match="out 'y' has shape"):
        pool.step(ids[:2], random(0, 2, 5), out=random(0, 2, 4))
    assert pool.state(ids[0]) is None
    x = random(0, 2, 7)
    assert bits([pool.step(ids[:2], x)]) == bits([-x])
    assert bits(pool.state(ids[2]).values()) == bits([np.zeros((1, 7), np.float32)])


def test_initial_states_agree():
    pool, x = load(parse(OPEN)).pool(4), random(0, 2, 5)
    first = pool.open({"s": random(1, 1, 5)})
    with pytest.raises(InputError, match=r"state 's' has shape \(1, 6\), expected \(1, 5\)"):
        pool.open({"s": random(1, 1, 6)})
    second = pool.open()
    assert len(pool) == 2
    assert bits([pool.step([second, first], x)]) == bits([-np.stack([x[0], x[1] + random(1, 1, 5)[0]])])
    pool.reset(first)
    assert bits(pool.state(first).values()) == bits([random(1, 1, 5)])


def test_an_input_that_each_stream_has_for_itself(model):
    pool = model.pool(2)
    stream = pool.open()
    with pytest.raises(UnsupportedError, match=r"'rate' of shape \[\] has no axis .*opened, open\(rate=...\)"):
        pool.step([stream], x=X[:1], word=W[:1], rate=np.array([3]))
    with pytest.raises(UnsupportedError, match=r"opened, open\(rate=...\)"):
        pool.step({stream: one(rate=3)})


def test_sequences_are_no_batch():
    model = load(
        parse(
            "g (seq(float[2]) l, float[b,2] s) => (float[b,2] y, float[b,2] s_out) { zero = Constant "
            "<value = int64 {0}> ()  x = SequenceAt (l, zero)  s_out = Add (x, s)  y = Neg (s_out) }"
        )
    )
    pool = model.pool(2)
    with pytest.raises(UnsupportedError, match="'l' is seq, expected a tensor"):
        pool.step({pool.open({"s": random(0, 1, 2)}): {"l": [random(0, 2)]}})


# ------------------------------------------------------------------------------------------------ one of many
def test_no_stream_touches_another(model):
    pool, x = model.pool(6, rate=2), random(0, 3, 6, 5)
    x[0, 2], x[1, 4] = np.nan, -np.inf
    ids, alone = [pool.open() for _ in range(6)], [model.stream(rate=2) for _ in range(6)]
    for step in x:
        for y, stream, row in zip(pool.step(ids, x=step, word=np.arange(6)), alone, range(6)):
            assert bits([y]) == bits([stream.step(x=step[row : row + 1], word=np.array([row]))])
    for stream, other in zip(ids, alone):
        assert bits(pool.state(stream).values()) == bits(other.state.values())
