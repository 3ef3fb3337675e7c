"""A result of a batch is an array of its own: who keeps one keeps no more memory than it has."""

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from tests.graphs import load, parse

LAYERS = {
    "LSTM": lambda: nn.LSTM(3, 5, rng=0),
    "Sequential": lambda: nn.Sequential(nn.GRU(3, 4, rng=0), nn.Linear(4, 2, rng=1)),
    "BLAS": lambda: nn.GRU(3, 4, rng=0, matmul="blas"),
    "large": lambda: nn.Sequential(nn.RNN(3, 4, rng=0), nn.Linear(4, 20_000, rng=1)),
}
MODELS = {
    "float": "agraph (float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] h2) { h2 = Add(x, h) y = Tanh(h2) }",
    "two": "agraph (float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] z, float[n, 3] h2) "
    "{ h2 = Add(x, h) y = Tanh(h2) z = Exp(y) }",
    "batch second": "agraph (float[1, n, 3] x, float[1, n, 3] h) => (float[1, n, 3] y, float[1, n, 3] h2) "
    "{ h2 = Add(x, h) y = Tanh(h2) }",
    "integers": "agraph (float[n, 3] x, float[n, 3] h) => (int64[n, 3] y, float[n, 3] h2) "
    "{ h2 = Add(x, h) y = Cast<to = 7>(h2) }",
    "bool": "agraph (float[n, 3] x, float[n, 3] h) => (bool[n, 3] y, float[n, 3] h2) "
    "{ h2 = Add(x, h) y = Greater(h2, x) }",
    "strings": "agraph (float[n, 3] x, float[n, 3] h) => (string[n, 3] y, float[n, 3] h2) "
    "{ h2 = Add(x, h) y = Cast<to = 8>(h2) }",
}


def assert_own(results):
    """No two of the arrays share memory; each owns its data and can be written to."""
    for i, array in enumerate(results):
        assert isinstance(array, np.ndarray) and array.flags.owndata and array.base is None and array.flags.writeable
        assert not any(np.shares_memory(array, other) for other in results[:i])


@pytest.mark.parametrize("count", [1, 2, 7, 300])
@pytest.mark.parametrize("name", LAYERS)
def test_pools_of_layers(name, count):
    layer = LAYERS[name]()
    pool, x = layer.pool(count), np.random.default_rng(0).standard_normal((3, count, 3)).astype(np.float32)
    ids = [pool.open() for _ in range(count)]
    one = layer.stream()
    for frames in x[: 1 if name == "large" else 3]:
        results = pool.step(dict(zip(ids, frames)))
        assert_own(list(results.values())[:20])
        assert name == "BLAS" or results[ids[0]].tobytes() == one.step(frames[0]).tobytes()


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_pools_of_models(name, batch):
    model = load(parse(MODELS[name]))
    if name == "strings":
        batch = False  # no axis is looked for among strings
    pool = model.pool(8, states={"h": "h2"}, batch=batch)
    shape = (1, 1, 3) if name == "batch second" else (1, 3)
    ids, one = [pool.open() for _ in range(5)], model.stream(states={"h": "h2"})
    for value in (1.5, -2, 0.25):
        frames = {id_: np.full(shape, value + i, np.float32) for i, id_ in enumerate(ids)}
        results = pool.step(frames)
        expected = one.step(x=frames[ids[0]])
        arrays = [a for r in results.values() for a in (r.values() if isinstance(r, dict) else [r])]
        assert_own(arrays)
        first = results[ids[0]]
        for got, want in zip(*([r.values()] if isinstance(r, dict) else [[r]] for r in (first, expected))):
            for a, b in zip(got, want):
                assert a.shape == b.shape and a.dtype == b.dtype and (a == b).all()


@pytest.mark.parametrize("name", ["LSTM", "Sequential"])
def test_batchers(name):
    layer = LAYERS[name]()
    x = np.ones(3, np.float32)
    with rnnfast.Batcher(layer.pool(24), max_batch=16) as batcher:
        ids = [batcher.open() for _ in range(16)]
        for _ in range(3):
            assert_own([f.result() for f in [batcher.submit(i, x) for i in ids]])
        assert_own([f.result() for f in [batcher.submit_run(np.ones((t, 3), np.float32)) for t in (3, 40, 1, 17)]])


def test_results_of_calls_hold_nothing_else():
    """Outputs and states of a layer's call do not keep each other alive where that costs memory."""
    x = np.ones((50, 4, 3), np.float32)
    for layer in (nn.LSTM(3, 5, 2, bidirectional=True, rng=0), nn.GRU(3, 5, rng=0), nn.RNN(3, 5, rng=0)):
        y, last = layer(x)
        for array in (y, *(last if isinstance(last, tuple) else (last,))):
            owner = array if array.base is None else array.base
            assert owner.nbytes <= 2 * array.nbytes
