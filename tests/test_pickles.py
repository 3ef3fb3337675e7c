"""Models, sessions, layers and optimizers pickle; what has a thread or a state of its own says why it does not."""

import concurrent.futures
import copy
import multiprocessing
import os
import pickle

import numpy as np
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import InputTypeError, UnsupportedError
from rnnfast.onnx.graph import read
from tests.cases import bits
from tests.graphs import parse
from tests.published import published_models

COPIES = [
    *(lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol)) for protocol in range(2, 6)),
    copy.copy,
    copy.deepcopy,
]
STATEFUL = "g (float[b,3] x, float[b,3] h) => (float[b,3] y, float[b,3] hn) { hn = Add (x, h)  y = Tanh (hn) }"
# Constants that are outputs, nested graphs, a function's own name of a domain, attributes that are tensors and strings.
GRAPH = """g (float[b,3] x, bool c) => (float[b,3] y, int64[2] k) {
    k = Constant <value = int64[2] {16000, 3}> ()
    one = ai.onnx.Identity (x)
    y = If (c) <then_branch = t () => (float[b,3] p) { w = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
                                                       p = Mul (one, w) },
                else_branch = e () => (float[b,3] q) { q = Softmax <axis = -1> (one) }>
}"""


@pytest.mark.parametrize("twin", COPIES)
def test_models(twin):
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    model = rnnfast.load(parse(GRAPH), matmul="packed", threads=2, plans=3)
    other = twin(model)
    for c in (True, False):
        ours, theirs = model(x=x, c=c), other(x=x, c=c)
        assert list(ours) == list(theirs) and bits(ours.values()) == bits(theirs.values())
        assert bits(model.reference(x=x, c=c).values()) == bits(other.reference(x=x, c=c).values())
    assert (other.threads, other.matmul, other._max_plans) == (2, "packed", 3)
    assert repr(other.source) == repr(model.source)
    assert str(other.inputs) == str(model.inputs) and repr(other) == repr(model)
    theirs["k"][:] = 0  # a result, not the model's own constant
    assert other(x=x, c=False)["k"].tolist() == [16000, 3]


def test_models_by_file_need_no_file(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(parse(STATEFUL))
    monkeypatch.chdir(tmp_path)
    stored = pickle.dumps([rnnfast.load("model.onnx"), rnnfast.InferenceSession("model.onnx")])
    os.remove("model.onnx")
    model, session = pickle.loads(stored)
    feed = {"x": np.ones((1, 3), np.float32), "h": np.zeros((1, 3), np.float32)}
    assert bits(model(feed).values()) == bits(session.run(None, feed))
    assert model.source.label == "model.onnx"


def test_default_threads_are_those_of_the_process(monkeypatch):
    stored = pickle.dumps([rnnfast.load(parse(STATEFUL)), rnnfast.load(parse(STATEFUL), threads=3)])
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "2")
    assert [model.threads for model in pickle.loads(stored)] == [2, 2]
    monkeypatch.delenv("RNNFAST_NUM_THREADS")
    assert [model.threads for model in pickle.loads(stored)] == [1, 3]


def test_altered_models():
    model = rnnfast.load(parse(STATEFUL))
    with pytest.raises(UnsupportedError, match="altered"):
        pickle.dumps(model.altered(model.folded))


@pytest.mark.parametrize("twin", COPIES)
def test_sessions(twin):
    class Foreign:
        """Options of another class, such as onnxruntime's, which cannot be pickled."""

        intra_op_num_threads = 2
        logid = "mine"

        def __reduce__(self):
            raise TypeError("cannot pickle")

    for options in (None, rnnfast.SessionOptions(), Foreign()):
        session = rnnfast.InferenceSession(parse(STATEFUL), options)
        if twin is copy.copy:
            session.get_session_options()
        other = twin(session)
        feed = {"x": np.ones((1, 3), np.float32), "h": np.zeros((1, 3), np.float32)}
        assert bits(other.run(None, feed)) == bits(session.run(None, feed))
        assert bits(other.run(["hn"], feed)) == bits(session.run(["hn"], feed))
        assert [v.name for v in other.get_inputs()] == ["x", "h"]
        ours = getattr(options, "intra_op_num_threads", 0)
        assert other.get_session_options().intra_op_num_threads == ours
        assert other.model.threads == (ours or 1)


def _run(model, feed):
    return model(feed)["y"]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_process_pools(method):
    model, feed = rnnfast.load(parse(STATEFUL)), {"x": np.ones((1, 3), np.float32), "h": np.ones((1, 3), np.float32)}
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(_run, [model] * 3, [feed] * 3))
    assert bits(results) == bits([model(feed)["y"]] * 3)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "Linear", "Sequential", "Embedding"])
@pytest.mark.parametrize("twin", COPIES)
def test_layers(name, twin):
    layer = {
        "Linear": lambda: nn.Linear(3, 4, rng=1),
        "Embedding": lambda: nn.Embedding(5, 3, rng=1),
        "Sequential": lambda: nn.Sequential(nn.GRU(3, 4, rng=1), nn.Linear(4, 2, rng=2)),
    }.get(name, lambda: getattr(nn, name)(3, 4, rng=1))()
    other = twin(layer)
    x = np.arange(5) if name == "Embedding" else np.ones((2, 5, 3), np.float32)

    def first(y):
        return y[0] if isinstance(y, tuple) else y

    assert bits([first(other(x))]) == bits([first(layer(x))])
    if twin is not copy.copy:
        layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})
        assert bits([first(other(x))]) != bits([first(layer(x))])


@pytest.mark.parametrize("make", [train.SGD, train.Adam, train.AdamW, train.RMSprop])
def test_optimizers(make):
    values, gradients = np.ones(8, np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    optimizer = make(learning_rate=0.1)
    optimizer.step(values, gradients.copy())
    other = pickle.loads(pickle.dumps(optimizer))
    copied = values.copy()
    for _ in range(3):
        optimizer.step(values, gradients.copy())
        other.step(copied, gradients.copy())
    assert bits([values]) == bits([copied])


def things():
    model, layer = rnnfast.load(parse(STATEFUL)), nn.GRU(3, 4, rng=0)
    batcher = rnnfast.Batcher(layer.pool(2))
    return [
        (model.stream(), "`state`"),
        (layer.stream(), "`state`"),
        (model.pool(2), "`state`"),
        (layer.pool(2), "`state`"),
        (batcher, r"`state\(id\)`"),
    ]


@pytest.mark.parametrize("twin", COPIES)
def test_streams_pools_and_batchers_do_not(twin):
    for value, message in things():
        with pytest.raises(InputTypeError, match=f"cannot be pickled or copied.*{message}") as caught:
            twin(value)
        assert isinstance(caught.value, TypeError)


def test_states_do(tmp_path):
    """The message is right: the state goes on in another process."""
    model = rnnfast.load(parse(STATEFUL))
    x = np.random.default_rng(0).standard_normal((4, 1, 3)).astype(np.float32)
    stream, pool = model.stream(), model.pool(2)
    slot = pool.open()
    for frame in x[:2]:
        stream.step(x=frame), pool.step({slot: frame})
    copied, state, of_pool = pickle.loads(pickle.dumps((model, stream.state, pool.state(slot))))
    other, its_pool = copied.stream(state), copied.pool(1)
    its_slot = its_pool.open(of_pool)
    for frame in x[2:]:
        expected = bits([stream.step(x=frame)])
        assert expected == bits([other.step(x=frame)]) == bits([its_pool.step({its_slot: frame})[its_slot]])


@pytest.mark.parametrize("path", published_models())
def test_published_models(path):
    graph, source = read(path)
    other, its_source = pickle.loads(pickle.dumps((graph, source)))
    assert repr(its_source) == repr(source)
    check_same(graph, other)


def check_same(a, b):
    assert repr((a.inputs, a.outputs)) == repr((b.inputs, b.outputs)) and a.captures == b.captures
    assert list(a.constants) == list(b.constants) and bits(a.constants.values()) == bits(b.constants.values())
    assert len(a.nodes) == len(b.nodes)
    for x, y in zip(a.nodes, b.nodes):
        assert (x.where, x.inputs, x.outputs, x.op_type, x.needs) == (y.where, y.inputs, y.outputs, y.op_type, y.needs)
        assert x.function is y.function and list(x.attributes) == list(y.attributes)
        for name, graph in x.graphs.items():
            check_same(graph, y.graphs[name])
