"""Where there is no memory, a LimitError comes, of rnnfast's family and a MemoryError, and everything is as it was."""

import subprocess
import sys

import numpy as np
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import LimitError
from tests.graphs import load, parse
from tests.paths import ROOT


@pytest.fixture
def failing(monkeypatch):
    """failing(run): call `run` again and again while NumPy's first, second ... function that allocates fails.

    It yields the number of the call after each failure, and ends when a run made fewer calls.
    """
    names = ("empty", "zeros", "empty_like", "zeros_like", "concatenate", "stack", "ascontiguousarray", "array", "full")
    state = {"left": 0}

    def wrap(real):
        def allocate(*args, **more):
            state["left"] -= 1
            if state["left"] == 0:
                raise MemoryError("Unable to allocate 64. GiB")
            return real(*args, **more)

        return allocate

    def attempts(run):
        number = 0
        while True:
            number += 1
            with monkeypatch.context() as patched:
                for name in names:
                    patched.setattr(np, name, wrap(getattr(np, name)))
                state["left"] = number
                try:
                    run()
                except LimitError as error:
                    assert isinstance(error, rnnfast.Error) and isinstance(error, MemoryError)
                finally:
                    failed = state["left"] <= 0
                    state["left"] = -1
            if not failed:
                return
            yield number

    return attempts


LAYERS = {
    "LSTM": lambda: nn.LSTM(3, 4, 2, batch_first=True, rng=0),
    "merged GRU": lambda: nn.GRU(3, 4, bidirectional=True, merge="sum", batch_first=True, rng=0),
    "Linear": lambda: nn.Linear(3, 4, rng=0),
    "LayerNorm": lambda: nn.LayerNorm(3),
    "Tanh": nn.Tanh,
    "Sequential": lambda: nn.Sequential(nn.RNN(3, 4, batch_first=True, rng=0), nn.Dropout(0.1), nn.Linear(4, 2, rng=1)),
}
X = np.linspace(-1, 1, 40 * 3, dtype=np.float32).reshape(8, 5, 3)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, failing):
    layer = LAYERS[name]()
    lengths = {"lengths": [5, 3, 1, 0, 2, 5, 4, 1]} if isinstance(layer, (nn.LSTM, nn.GRU, nn.Sequential)) else {}

    def work():
        y, _, saved = layer.forward(X, training=True, rng=0, **lengths)
        return y, layer(X, **lengths), layer.backward(np.ones_like(y), None, saved), layer.state_dict()

    before = work()[0]
    for _ in failing(work):
        np.testing.assert_array_equal(work()[0], before)


def test_training_and_predicting(failing):
    net = LAYERS["Sequential"]()
    y = np.zeros((8, 5, 2), np.float32)

    def work():
        fresh = LAYERS["Sequential"]()
        fresh.fit(X, y, loss=train.MSE(), optimizer=train.Adam(), batch_size=4, seed=0, metrics=train.MSE())
        fresh.evaluate(X, y, loss=train.MSE())
        return fresh.predict(X, batch_size=3)

    before = work()
    for number in failing(work):
        if number % 10 == 0:
            np.testing.assert_array_equal(work(), before)
    assert net.predict(X).shape == (8, 5, 2)


@pytest.mark.parametrize("name", ["LSTM", "Sequential"])
def test_pools_and_streams_of_layers(name, failing):
    """A call that raises is as if it had not been; the states go on with the same bits."""
    layer = nn.LSTM(3, 4, 2, rng=0) if name == "LSTM" else nn.Sequential(nn.GRU(3, 4, rng=0), nn.Linear(4, 3, rng=1))
    for run in (
        lambda pool, ids, stream: pool.step(dict(zip(ids, X[0]))),
        lambda pool, ids, stream: pool.step(ids, X[0]),
        lambda pool, ids, stream: pool.step(
            ids, X[0], out=np.ones((5, layer(X[0, :1])[0].shape[-1]), np.float32)[:, :]
        ),
        lambda pool, ids, stream: pool.run(ids, X[:5], lengths=[5, 3, 0, 1, 2]),
        lambda pool, ids, stream: stream.step(X[0, 0]),
        lambda pool, ids, stream: stream.run(X[0]),
    ):
        pool, stream = layer.pool(8), layer.stream()
        ids = [pool.open() for _ in range(5)]
        stream.step(X[0, 0])

        def states(pool=pool, ids=ids, stream=stream):
            return [np.concatenate([np.ravel(a) for a in flat(s)]) for s in (*map(pool.state, ids), stream.state)]

        check_kept(failing, lambda run=run, pool=pool, ids=ids, stream=stream: run(pool, ids, stream), states)


def check_kept(failing, use, states):
    """Let each allocation of a use fail, and check that a use that was refused left all states as they were."""
    raised, before = [], states()

    def work():
        try:
            return use()
        except LimitError:
            raised.append(True)
            raise

    for _ in failing(work):
        if raised:
            for now, then in zip(states(), before, strict=True):
                np.testing.assert_array_equal(now, then)
        raised, before = [], states()


def flat(value):
    return [a for part in value for a in flat(part)] if isinstance(value, (tuple, list)) else [value]


@pytest.mark.parametrize("batch", [True, False])
def test_pools_and_streams_of_models(batch, failing):
    model = load(
        parse(
            "agraph (float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] h2) { h2 = Add(x, h) y = Tanh(h2) }"
        )
    )
    for run in (
        lambda pool, ids, stream: pool.step(dict.fromkeys(ids, X[0, :1])),
        lambda pool, ids, stream: pool.step(ids, X[0] if batch else X[0][:, None]),
        lambda pool, ids, stream: pool.run(ids, X[:5] if batch else X[:5, :, None], lengths=[5, 3, 0, 1, 2]),
        lambda pool, ids, stream: stream.step(x=X[0, :1]),
        lambda pool, ids, stream: stream.run(x=X[0][:, None]),
    ):
        pool, stream = model.pool(8, batch=batch), model.stream()
        ids = [pool.open() for _ in range(5)]
        pool.step(dict.fromkeys(ids, X[0, :1])), stream.step(x=X[0, :1])

        def states(pool=pool, ids=ids, stream=stream):
            return [s["h"].copy() for s in (*map(pool.state, ids), stream.state)]

        check_kept(failing, lambda run=run, pool=pool, ids=ids, stream=stream: run(pool, ids, stream), states)


def test_loading_and_calling(failing):
    data = parse("agraph (float[n, 3] x) => (float[n, 3] y) { a = Add(x, w) y = Tanh(a) }", w=X[0, 0])
    loaded = rnnfast.load(data)

    def work():
        return rnnfast.load(data)(x=X[0]).y, loaded(x=X[0]).y, loaded.reference(x=X[0]).y

    before = work()
    for _ in failing(work):
        for now, then in zip(work(), before):
            np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    "work",
    [
        "nn.Linear(64, 4096, rng=0)(np.ones((60_000, 64), np.float32))",
        "nn.LSTM(8, 512, rng=0)(np.ones((400_000, 1, 8), np.float32))",
        "nn.LSTM(8, 64, rng=0, batch_first=True).forward(np.ones((100, 20_000, 8), np.float32), training=True)",
        "nn.Linear(1, 4000, rng=0).predict(np.ones((60_000, 1), np.float32), verbose=False)",
        "nn.LSTM(8, 256, rng=0).pool(2**20)",
        "nn.LSTM(2**13, 2**13, rng=0)",
        "nn.GRU(8, 512, rng=0).stream().run(np.ones((400_000, 8), np.float32))",
        "rnnfast.load(model)(x=np.ones(2**27, np.float32))",
        "rnnfast.load(model).reference(x=np.ones(2**26, np.float32))",
    ],
)
@pytest.mark.usefixtures("unsanitized")
def test_a_process_with_little_memory(work):
    """Under a limit of the address space each of these is a LimitError, and the process goes on."""
    program = f"""if True:
        import resource, onnx, numpy as np, rnnfast
        from rnnfast import nn, train
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) {{ a = Exp(x) y = Tanh(a) }}'
        ).SerializeToString()
        rnnfast.load(model)(x=np.ones(3, np.float32)), nn.LSTM(2, 2, rng=0)(np.ones((3, 1, 2), np.float32))
        nn.LSTM(2, 2, rng=0).pool(2), nn.Linear(2, 2, rng=0).predict(np.ones((3, 2), np.float32)), rnnfast.Batcher
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**29 + 2**28, -1))
        try:
            {work}
            print("done")
        except rnnfast.Error as error:
            print(type(error).__name__, isinstance(error, MemoryError))
        assert nn.Linear(2, 2, rng=0)(np.ones((3, 2), np.float32)).shape == (3, 2)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout == "LimitError True\n", done.stdout + done.stderr[-800:]
