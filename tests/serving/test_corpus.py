"""A corpus: `map` of models and layers gives each sequence, in order, the bits of a call of its own."""

import itertools
import threading

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import Error, InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.native.weight_types import WEIGHT_TYPES
from rnnfast.serving import corpus, corpus_models
from tests.cases import type_options
from tests.graphs import parse, random
from tests.serving.sequence_models import CASES, DENSE, H, I, alone, feed_of, same, sequence, weights

LENGTHS = np.random.default_rng(1).integers(1, 61, 50)

# A model that mixes the frames of a sequence, and takes no lengths: sequences of one length share a call.
SUMMED = parse(
    """g (float[t,n,5] x) => (float[t,n,7] y, float[n,3] z) {
        h, hn = GRU <hidden_size = 7, direction = "bidirectional"> (x, w, r, b)
        s = ReduceSum <keepdims = 0> (h, one)  y = Softmax <axis = 0> (s)
        m = ReduceMean <axes = [0], keepdims = 0> (s)  z = MatMul (m, v) }""",
    one=[1],
    v=random(8, H, 3),
    **weights(3, 2),
)
# Rows meet: the largest value of all rows divides.
MEETING = parse(
    """g (float[batch,t,5] x) => (float[batch,t,5] y) { m = ReduceMax <axes = [0,1,2]> (x)  y = Div (x, m) }"""
)
UNNAMED = parse("""g (float[a,b,5] x) => (float[a,b,5] y) { m = ReduceMax <axes = [0,1,2]> (x)  y = Div (x, m) }""")
TWO_INPUTS = parse(
    """g (float[batch,t,5] x, int64[batch] k, float scale) => (float[batch,t,5] y, int64[batch] j) {
        one = Constant <value_ints = [1]> ()  e = Gather (table, k)  u = Unsqueeze (e, one)  a = Add (x, u)
        y = Mul (a, scale)  j = Add (k, one) }""",
    table=random(3, 4, I),
)
STATES = parse(
    """g (float[batch,5] x, float[1,batch,7] h0) => (float[batch,3] y, float[1,batch,7] hn) {
        zero = Constant <value_ints = [0]> ()
        u = Unsqueeze (x, zero)  h, hn = GRU <hidden_size = 7> (u, w, r, b, , h0)  s = Squeeze (hn, zero)
        y = Gemm (s, v, d) }""",
    **weights(3),
    **DENSE,
)
STATES_RATE = parse(
    """g (float[batch,5] x, float rate, float[batch,5] h0) => (float[batch,5] y, float[batch,5] hn) {
        a = Mul (x, rate)  s = Add (a, h0)  hn = Tanh (s)  y = Exp (hn) }"""
)
STATES_MEETING = parse(
    """g (float[batch,5] x, float[batch,5] h0) => (float[batch,5] y, float[batch,5] hn) {
        m = ReduceMax <axes = [0,1]> (x)  y = Div (x, m)  hn = Add (h0, x) }"""
)


def equal(result, expected):
    """Whether two results of `map` are the same, bit for bit."""
    if isinstance(expected, (tuple, list)):
        return type(result) is type(expected) and all(map(equal, result, expected)) and len(result) == len(expected)
    if isinstance(expected, dict):
        return list(result) == list(expected) and all(equal(result[k], v) for k, v in expected.items())
    return result.shape == expected.shape and result.dtype == expected.dtype and result.tobytes() == expected.tobytes()


def assert_equal(results, expected):
    assert len(results) == len(expected)
    assert [i for i, pair in enumerate(zip(results, expected)) if not equal(*pair)] == []


@pytest.fixture
def calls(monkeypatch):
    """The numbers of sequences of each call of several."""
    counts = []
    for way in (corpus_models.WholeSequences, corpus_models.EqualSequences, corpus_models.StreamSequences):

        def together(self, items, run=way.together):
            counts.append(len(items))
            return run(self, items)

        monkeypatch.setattr(way, "together", together)
    return counts


# ------------------------------------------------------------------------------------------------ models
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("key", [None, *WEIGHT_TYPES])
@pytest.mark.parametrize("threads", [1, 3])
def test_whole_sequences(name, key, threads, calls):
    options = {} if key is None else type_options(key)
    model, (_, axes, outputs) = rnnfast.load(CASES[name][0], **options), CASES[name]
    xs = [sequence(name, k, n) for k, n in enumerate(LENGTHS)]
    results = list(model.map(iter(xs), batch=200, threads=threads))
    assert len(results) == len(xs)
    assert all(same(result, alone(model, x, axes, outputs)) for result, x in zip(results, xs))
    assert max(calls) > 1 and sum(calls) >= (20 if name == "tokens" else 45)
    assert all(result.flags.owndata for result in results if isinstance(result, np.ndarray))


def test_forms_of_a_sequence(calls):
    """Lists, mappings, lengths that are given, sequences without frames and with their batch axis."""
    model, (_, axes, outputs) = rnnfast.load(CASES["bidirectional"][0]), CASES["bidirectional"]
    x = sequence("bidirectional", 0, 6)
    empty, whole = x[:0], x[:, None]
    given = [
        x,
        x.tolist(),
        {"x": x},
        {"x": x, "lens": 4},
        empty,
        whole,
        {"x": whole, "lens": [4]},
        x[::-1],
        x.T.copy().T,
    ]
    results = list(model.map(given))
    expected = alone(model, x, axes, outputs)
    assert all(same(results[i], expected) for i in (0, 1, 2, 8))
    assert same(results[3], [np.squeeze(v, outputs[k][1]) for k, v in model(x=whole, lens=[4]).items()])
    assert same(results[4], alone(model, empty, axes, outputs))
    assert equal(results[5], model(feed_of(model, x, axes)))
    assert equal(results[6], model(x=whole, lens=[4]))
    assert same(results[7], alone(model, x[::-1], axes, outputs))
    assert calls == [5]


def test_equal_sequences(monkeypatch, calls):
    """What cannot share a call with others of another length shares one with those of its length, once it is proven."""
    monkeypatch.setattr(corpus_models, "PROOF_SECONDS", 0)
    model, proofs = rnnfast.load(SUMMED), []
    proven = corpus_models.EqualSequences._is_proven
    monkeypatch.setattr(corpus_models.EqualSequences, "_is_proven", lambda *a: proofs.append(proven(*a)) or proofs[-1])
    xs = [random(k, n, I) for k, n in enumerate(LENGTHS % 5 + 1)]
    expected = [{"y": (out := model(x=x[:, None]))["y"][:, 0], "z": out["z"][0]} for x in xs]
    assert_equal([dict(result) for result in model.map(xs)], expected)
    assert proofs == [True] * 5 and sum(calls) == 50
    assert_equal([dict(result) for result in model.map(xs, batch=1)], expected)
    assert_equal([dict(result) for result in model.map(xs, threads=2)], expected)
    monkeypatch.setattr(corpus_models, "PROOF_SECONDS", 1000)
    assert_equal([dict(result) for result in model.map(xs)], expected)
    assert proofs == [True] * len(proofs)


def test_several_inputs(monkeypatch, calls):
    """Mappings of arrays without their batch axis; a number is the same in one call."""
    monkeypatch.setattr(corpus_models, "PROOF_SECONDS", 0)
    model = rnnfast.load(TWO_INPUTS)
    rng = np.random.default_rng(0)
    given = [
        {"x": random(k, 1 + k % 3, I), "k": np.int64(rng.integers(4)), "scale": np.float32(k % 2 + 0.5)}
        for k in range(40)
    ]
    expected = []
    for feed in given:
        out = model(x=feed["x"][None], k=[int(feed["k"])], scale=feed["scale"])
        expected.append({name: value[0] for name, value in out.items()})
    assert_equal([dict(result) for result in model.map(given)], expected)
    assert sum(calls) == 40 and len(calls) == 6
    half = [{name: feed[name] for name in ("x", "k")} for feed in given]
    expected = [{n: v[0] for n, v in model(x=f["x"][None], k=[int(f["k"])], scale=0.25).items()} for f in half]
    assert_equal([dict(result) for result in model.map(half, scale=0.25)], expected)


def test_rows_that_meet(calls):
    """Sequences of a model without a batch axis are calls of their own, never refused where it has a name."""
    model = rnnfast.load(MEETING)
    xs = [random(k, n, I) for k, n in enumerate(LENGTHS[:9])]
    expected = [model(x=x[None]).y for x in xs]
    assert_equal(list(model.map(xs)), [y[0] for y in expected])
    assert_equal(list(model.map([x[None] for x in xs])), expected)
    unnamed = rnnfast.load(UNNAMED)
    assert_equal(list(unnamed.map([x[None] for x in xs])), expected)
    with pytest.raises(UnsupportedError, match=r"sequence 0: give sequences with their batch axis.*ReduceMax"):
        next(unnamed.map(xs))
    assert calls == []


def test_states(calls):
    """Each sequence is a stream that begins with zeros."""
    model = rnnfast.load(STATES)
    xs = [random(k, n, I) for k, n in enumerate(LENGTHS)]
    expected = [model.stream().run(x=x[:, None])[:, 0] for x in xs]
    assert_equal(list(model.map(xs, batch=300)), expected)
    assert len(calls) < 20
    assert_equal(list(model.map(iter(xs), batch=100, threads=3)), expected)
    assert_equal(
        list(model.map([xs[0][:, None], xs[1][:0], {"x": xs[2].tolist()}])),
        [expected[0][:, None], expected[1][:0], expected[2]],
    )
    frozen = rnnfast.load(STATES_MEETING)
    expected = [frozen.stream().run(x=x[:, None])[:, 0] for x in xs]
    assert_equal(list(frozen.map(xs)), expected)


def test_fixed_inputs(monkeypatch, calls):
    """An input that is the same for all sequences, or a number for each."""
    model = rnnfast.load(STATES_RATE)
    xs = [random(k, n, I) for k, n in enumerate(LENGTHS[:12])]
    expected = [model.stream(rate=2.0).run(x=x[:, None])[:, 0] for x in xs]
    assert_equal(list(model.map(xs, rate=2.0)), expected)
    assert_equal(list(model.map([{"x": x, "rate": 2.0} for x in xs])), expected)
    assert calls == [12, 12]
    expected = [model.stream(rate=k % 2).run(x=x[:, None])[:, 0] for k, x in enumerate(xs)]
    assert_equal(list(model.map([{"x": x, "rate": k % 2} for k, x in enumerate(xs)])), expected)
    assert calls == [12, 12, 6, 6]
    with pytest.raises(InputError, match="there is no input 'tempo'"):
        model.map(xs, tempo=3)
    monkeypatch.setattr(corpus_models, "PROOF_SECONDS", 0)
    detector = rnnfast.load("models/detector.onnx")
    xs = [random(k, 400 + k % 2 * 200) for k in range(6)]
    expected = [detector(audio=x[None], rate=16000).probability[0] for x in xs]
    assert_equal(list(detector.map(xs, rate=16000)), expected)


# ------------------------------------------------------------------------------------------------ layers
NETS = {
    "lstm": (lambda: nn.LSTM(I, H, rng=0), I),
    "batch first": (lambda: nn.GRU(I, H, 2, batch_first=True, bidirectional=True, rng=0), I),
    "last": (lambda: nn.Sequential(nn.RNN(I, H, return_sequences=False, rng=0), nn.Linear(H, 3, rng=1)), I),
    "dense": (
        lambda: nn.Sequential(
            nn.LayerNorm(I),
            nn.Linear(I, 4, rng=0),
            nn.ELU(),
            nn.Sequential(nn.LSTM(4, H, rng=0)),
            nn.Softmax(),
            nn.Dropout(),
        ),
        I,
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(9, I, rng=0), nn.GRU(I, H, batch_first=True, reverse=True, rng=1)),
        None,
    ),
    "int8": (lambda: nn.LSTM(I, H, rng=0).quantized("int8"), I),
}
BY_ONE = {
    "no recurrent": lambda: nn.Sequential(nn.Linear(I, 3, rng=0)),
    "softmax over time": lambda: nn.Sequential(nn.LSTM(I, H, rng=0), nn.Softmax(0)),
    "two orders": lambda: nn.Sequential(nn.LSTM(I, H, rng=0), nn.LSTM(H, 3, batch_first=True, rng=0)),
    "normal": lambda: nn.Sequential(nn.LSTM(I, H, rng=0), nn.BatchNorm1d(H)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_layers(name, threads, monkeypatch):
    make, size = NETS[name]
    net, counts = make(), []
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((n, size), np.float32) if size else rng.integers(0, 9, n) for n in LENGTHS]
    from rnnfast.serving.corpus_layers import LayerSequences

    together = LayerSequences.together
    monkeypatch.setattr(LayerSequences, "together", lambda s, items: counts.append(len(items)) or together(s, items))
    assert_equal(list(net.map(iter(xs), batch=200, threads=threads)), [net(x) for x in xs])
    assert sum(counts) >= 45 and len(counts) < 25


@pytest.mark.parametrize("name", BY_ONE)
def test_layers_one_by_one(name):
    net = BY_ONE[name]()
    xs = [random(k, n, I) for k, n in enumerate(LENGTHS[:9])]
    assert_equal(list(net.map(xs)), [net(x) for x in xs])


def test_layers_of_others():
    """A layer of a user's own is called with each sequence, as it may mix steps."""

    class Mean(nn.Module):
        def __call__(self, x):
            return np.asarray(x - x.mean(0))

    net = nn.Sequential(Mean(), nn.LSTM(I, H, rng=0))
    xs = [random(k, n, I) for k, n in enumerate(LENGTHS[:9])]
    assert_equal(list(net.map(xs)), [net(x) for x in xs])
    lstm = nn.LSTM(I, H, rng=0)
    batched = [x[:, None] for x in xs]
    assert_equal(list(lstm.map(batched)), [lstm(x) for x in batched])


# ------------------------------------------------------------------------------------------------ the corpus
def tagger():
    return rnnfast.load("models/tagger.onnx")


def test_lazy_and_bounded():
    """An endless corpus is read a window at a time, and not at all before the first result is asked for."""
    read = itertools.count()
    corpus_of = ([next(read) % 7] * 5 for _ in itertools.count())
    results = tagger().map(corpus_of, batch=10)
    assert next(read) == 0
    assert next(results).shape == (5, 5)
    assert next(read) <= corpus.WINDOW * 2 + 2
    for _ in range(500):
        next(results)
    assert next(read) <= 500 + 2 * corpus.WINDOW * 2
    assert list(tagger().map([])) == []


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("index", [0, 5, 100])
def test_errors(threads, index):
    """The error of a sequence names its index, after the results before it."""
    model = tagger()
    good = [[1, 2, 3], [4, 5], [6]] * 60
    expected = [model.map([x]).__next__() for x in good]
    for bad, kind, words in (
        ([[1.5, 2.5]], InputError, "shape"),
        ([1.5, 2.5], InputError, "int64"),
        (object(), InputTypeError, "object"),
        ([10**6, 1], InputError, "1000000"),
        (None, InputTypeError, "NoneType"),
        ({"tokens": [1], "other": 3}, InputError, "'other'"),
    ):
        found = []
        with pytest.raises(Error, match=rf"^tagger.onnx: sequence {index}: .*") as caught:
            for result in model.map([*good[:index], bad, *good[index:]], batch=20, threads=threads):
                found.append(result)
        assert words in str(caught.value) or kind is not None and isinstance(caught.value, kind)
        assert_equal(found, expected[:index])
    assert_equal(list(model.map(good)), expected)


def test_errors_of_the_caller():
    """What the iterable raises comes after the results of what it gave, as it is."""

    def broken():
        yield [1, 2]
        yield [3]
        raise RuntimeError("the file ended")

    results, found = tagger().map(broken(), threads=2), []
    with pytest.raises(RuntimeError, match="the file ended"):
        for result in results:
            found.append(result)
    assert [len(result) for result in found] == [2, 1]


@pytest.mark.parametrize(
    "options, kind",
    [
        ({"batch": 0}, InputError),
        ({"batch": 2.0}, InputError),
        ({"threads": 0}, InputError),
        ({"threads": None}, InputError),
        ({"progress": 3}, InputTypeError),
        ({"length": 3}, InputError),
    ],
)
def test_arguments(options, kind):
    """A wrong argument is an error of the call, before anything is read."""
    with pytest.raises(kind):
        tagger().map([[1]], **options)
    if "length" not in options:
        with pytest.raises(kind):
            nn.LSTM(2, 3).map([[1]], **options)


@pytest.mark.parametrize("sequences", [3, "words", b"words", None, {"tokens": [1]}])
def test_no_iterable(sequences):
    with pytest.raises(InputTypeError, match="sequences is a"):
        tagger().map(sequences)


def test_progress():
    model, seen = tagger(), []
    list(model.map([[1], [2, 3]] * 20, batch=4, progress=lambda *counts: seen.append(counts)))
    assert seen[-1] == (40, 40) and [done for done, _ in seen] == sorted({done for done, _ in seen})
    list(model.map(iter([[1], [2, 3]]), progress=lambda *counts: seen.append(counts)))
    assert seen[-1] == (2, None)


def test_bar(monkeypatch, capfd):
    """A bar is shown where stderr is a terminal; nothing is where it is none."""
    pytest.importorskip("rich")
    assert len(list(tagger().map([[1], [2]], progress=True))) == 2
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert len(list(tagger().map([[1], [2]], progress=True))) == 2
    assert "tagger.onnx" in capfd.readouterr().err


def test_without_rich(monkeypatch):
    monkeypatch.setattr(corpus, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'rnnfast\[cli\]'"):
        tagger().map([[1]], progress=True)


def test_ends_early():
    """A corpus that is left in its midst leaves no thread behind, and the model as it was."""
    before = threading.active_count()
    model = tagger()
    for leave in ("close", "drop", "throw"):
        results = model.map(([1, 2, 3] for _ in itertools.count()), batch=30, threads=3)
        next(results)
        assert threading.active_count() > before
        if leave == "close":
            results.close()
        elif leave == "throw":
            with pytest.raises(KeyError):
                results.throw(KeyError("no more"))
        del results
        assert threading.active_count() == before
    assert next(model.map([[1, 2, 3]])).shape == (3, 5)


def test_many_kinds(monkeypatch):
    """What is kept for kinds of sequences is bounded, where each is of another one."""
    for name in ("MAX_POOLS", "MAX_KINDS"):
        monkeypatch.setattr(corpus_models, name, 3)
    ways = []
    made = corpus_models._way
    monkeypatch.setattr(corpus_models, "_way", lambda *a: ways.append(made(*a)) or ways[-1])
    model, x = rnnfast.load(STATES_RATE), random(0, 4, I)
    given = [{"x": x, "rate": float(k // 2)} for k in range(20)]
    expected = [model.stream(rate=k // 2).run(x=x[:, None])[:, 0] for k in range(20)]
    assert_equal(list(model.map(given, threads=2)), expected)
    xs = [random(0, 1 + k // 2, I) for k in range(20)]
    summed = rnnfast.load(SUMMED)
    assert_equal([out.y for out in summed.map(xs)], [summed(x=x[:, None]).y[:, 0] for x in xs])
    assert len(ways[0].pools) <= 3 and len(ways[1].seconds) <= 3


def test_one_bad_row_of_a_batch(monkeypatch):
    """A batch that fails is run one by one; where none of its sequences fails by itself, all have their results."""
    model = tagger()
    expected = list(model.map([[1, 2], [3]]))

    def fails(self, xs):
        raise LimitError("no memory")

    monkeypatch.setattr(type(model.proven_sequences.found), "run_whole", fails)
    assert_equal(list(model.map([[1, 2], [3]])), expected)


def test_pickled_after_map():
    """What was proven stays behind: the copy proves it anew."""
    import pickle

    model = tagger()
    expected = list(model.map([[1, 2], [3]]))
    copy = pickle.loads(pickle.dumps(model))
    assert copy.proven_sequences is None
    assert_equal(list(copy.map([[1, 2], [3]])), expected)
