"""Inputs that another thread writes during a call: what was checked is what is used."""

import contextlib
import threading
import time

import numpy as np
import pytest
from onnx import helper

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError
from rnnfast.train import losses
from tests.graphs import by_numpy
from tests.onnx.mutations import Case, native, reference

SECONDS = 0.15
ROWS = 3000
X = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)


@contextlib.contextmanager
def written(array, *values):
    """Write one value after the other to the whole array until the end of the block."""
    done = threading.Event()

    def write():
        while not done.is_set():
            for value in values:
                array[...] = value

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def survives(call, array, *values):
    """Call while the array is written: each call gives a result or says that a value is out of range."""
    with written(array, *values):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                call()
            except rnnfast.Error as e:
                text = str(e)
                assert "IndexError" not in text and "RuntimeError" not in text and "broadcast" not in text, text


CASES = {
    "Gather": ("Gather", [X, np.zeros(ROWS, np.int64)], 1, (5, 10**15, -3), {}),
    "Gather int32": ("Gather", [X, np.zeros(ROWS, np.int32)], 1, (5, 2**31 - 1, -(2**31)), {}),
    "GatherElements": ("GatherElements", [X, np.zeros((ROWS, 2), np.int64)], 1, (5, 10**15, -3), {}),
    "GatherND": ("GatherND", [X, np.zeros((ROWS, 2), np.int64)], 1, (1, -(10**15), -1), {}),
    "ScatterElements": ("ScatterElements", [X, np.zeros((ROWS, 2), np.int64), X], 1, (5, 10**15, -3), {}),
    "ScatterElements add": (
        "ScatterElements",
        [X, np.zeros((ROWS, 2), np.int64), X],
        1,
        (5, -(10**15)),
        {"reduction": "add"},
    ),
    "ScatterND": ("ScatterND", [X, np.zeros((ROWS, 1), np.int64), X], 1, (5, 10**15, -3), {}),
    "OneHot": ("OneHot", [np.zeros(ROWS, np.int64), np.array(9), np.array([0, 1], np.float32)], 0, (5, 10**15, -3), {}),
    "OneHot float": ("OneHot", [np.zeros(ROWS, np.float32), np.array(9), X[0]], 0, (5, 1e30, -3, np.nan), {}),
    "Compress": ("Compress", [X, np.zeros(ROWS, bool)], 1, (True, False), {"axis": 0}),
    "NonZero": ("NonZero", [np.zeros((ROWS, 2), bool)], 0, (True, False), {}),
    "NonZero float": ("NonZero", [np.zeros((ROWS, 2), np.float32)], 0, (1, 0, np.nan), {}),
    "TopK int8": ("TopK", [np.zeros((2, ROWS), np.int8), np.array([7])], 0, (1, -100, 100), {}),
    "TopK uint8": ("TopK", [np.zeros((2, ROWS), np.uint8), np.array([7])], 0, (1, 0, 200), {"largest": 0}),
    "TopK float": ("TopK", [np.zeros((2, ROWS), np.float32), np.array([7])], 0, (1, -1, np.nan), {}),
    "ArgMax": ("ArgMax", [np.zeros((2, ROWS), np.float32)], 0, (1, -1, np.nan), {"axis": 1}),
    "Unique": ("Unique", [np.zeros(ROWS, np.int64)], 0, (1, 10**15, -3), {}),
    "ReverseSequence": ("ReverseSequence", [X, np.zeros(2, np.int64)], 1, (5, 10**15, -3), {"time_axis": 0}),
    "Div": ("Div", [np.ones(ROWS, np.int64), np.ones(ROWS, np.int64)], 1, (1, 0, -1), {}),
    "Mod": ("Mod", [np.ones(ROWS, np.int32), np.ones(ROWS, np.int32)], 1, (1, 0, -1), {}),
    "Pow": ("Pow", [np.ones(ROWS, np.int64), np.ones(ROWS, np.int64)], 1, (1, -5, 60), {}),
    "DequantizeLinear": ("DequantizeLinear", [np.zeros(ROWS, np.int8), np.array(0.5, np.float32)], 0, (1, -128), {}),
}


@pytest.mark.parametrize("way", [native, by_numpy, reference])
@pytest.mark.parametrize("name", CASES)
def test_inputs_of_operators(name, way):
    op, inputs, place, values, attributes = CASES[name]
    inputs = [np.array(x) for x in inputs]
    n_outputs = 2 if op == "TopK" else 1
    node = helper.make_node(op, ["x"] * len(inputs), ["y", "z"][:n_outputs], **attributes)
    case = Case(node, inputs, 17)
    data, feed = case.model()
    model = rnnfast.load(data)
    survives(lambda: way(model, feed), inputs[place], *values)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("way", [native, by_numpy, reference])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_lengths_of_recurrent_nodes(op, way, constant):
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    rng = np.random.default_rng(0)
    x, w, r = (rng.standard_normal(s).astype(np.float32) for s in ((7, 40, 3), (1, gates * 4, 3), (1, gates * 4, 4)))
    lengths = np.full(40, 7, np.int32)
    node = helper.make_node(op, ["x"] * 5, ["y", "h"], hidden_size=4)
    case = Case(node, [x, w, r, None, lengths], 17, frozenset(("x1", "x2") if constant else ()))
    data, feed = case.model()
    model = rnnfast.load(data)
    survives(lambda: way(model, feed), lengths, 3, 2**31 - 1, -1, 7, 0)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_indices_of_layers_and_losses(dtype):
    x = np.zeros((30, 40), dtype)
    wild = (5, 99, 0) if dtype == np.uint8 else (5, 2**31 - 1, -1)
    embedding = nn.Embedding(11, 3, rng=0)
    out = np.empty((30, 40, 3), np.float32)
    survives(lambda: embedding(x), x, *wild)
    survives(lambda: embedding.call_into(x, out), x, *wild)
    survives(lambda: nn.Sequential(embedding, nn.Linear(3, 2, rng=0))(x), x, *wild)

    def trained():
        y, _, saved = embedding.forward(x, training=True)
        embedding.backward(np.ones_like(y), None, saved)

    survives(trained, x, *wild)
    logits, mask = np.zeros((30, 40, 11), np.float32), np.ones((30, 40), bool)
    survives(lambda: losses.CrossEntropy()(logits, x), x, *wild)
    survives(lambda: losses.CrossEntropy(label_smoothing=0.1)(logits, x, mask), x, *wild)
    survives(lambda: losses.MSE()(logits, logits, mask), mask, True, False)
    survives(lambda: losses.BinaryCrossEntropy()(logits, logits, mask), mask, True, False)
    lengths = np.full(30, 40, dtype)
    layer, values = nn.GRU(3, 5, batch_first=True, rng=0), np.zeros((30, 40, 3), np.float32)
    survives(lambda: layer(values, lengths=lengths), lengths, *wild)
    survives(lambda: nn.pack_padded_sequence(values, lengths, batch_first=True), lengths, *wild)


def test_backward_checks_the_indices_again():
    embedding, x = nn.Embedding(5, 2, rng=0), np.array([[1, 4, 1]])
    y, _, saved = embedding.forward(x, training=True)
    x[...] = 99
    with pytest.raises(InputError, match="x: 99 at"):
        embedding.backward(np.ones_like(y), None, saved)
    x[...] = 1, 4, 1
    _, _, gradients = embedding.backward(np.ones_like(y), None, saved)
    assert gradients["weight"][:, 0].tolist() == [0, 2, 0, 0, 1]
