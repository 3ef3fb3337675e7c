"""Quantisers of what is quantised already are left out, and change no bit."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rnnfast.onnx import quantizer_grids
from tests.graphs import load, model_of

RNG = np.random.default_rng(41)
CONSTANTS = {
    "s": np.float32(0.037),
    "z": np.uint8(113),
    "other_s": np.float32(0.041),
    "other_z": np.uint8(7),
    "signed_z": np.int8(-5),
    "shape": np.array([3, 2, 5], np.int64),
    "wider": np.array([2, 3, 5], np.int64),
    "twice": np.array([1, 2, 1], np.int64),
    "one": np.array([1], np.int64),
    "four": np.array([4], np.int64),
    "parts": np.array([2, 3], np.int64),
    "index": np.array([2, 0], np.int64),
    "index_nd": np.array([[1, 2], [0, 1]], np.int64),
    "elements": RNG.integers(0, 3, (2, 2, 5)),
    "pads": np.array([0, 1, 0, 0, 0, 2], np.int64),
    "nothing": np.float32(0),
    "negative": np.float32(-0.0),
    "something": np.float32(0.3),
    "mask": RNG.random((2, 3, 5)) < 0.5,
}
SHAPES = [(name, TensorProto.FLOAT, [2, 3, 5]) for name in ("x", "w")]
# operator -> (inputs, attributes); "a" and "b" are quantised alike
CASES = {
    "Concat": (["a", "b"], {"axis": 1}),
    "Expand": (["a", "wider"], {}),
    "Flatten": (["a"], {}),
    "Gather": (["a", "index"], {"axis": 1}),
    "GatherElements": (["a", "elements"], {"axis": 1}),
    "GatherND": (["a", "index_nd"], {}),
    "Identity": (["a"], {}),
    "Max": (["a", "b"], {}),
    "Min": (["a", "b"], {}),
    "Pad": (["a", "pads", "nothing"], {}),
    "Relu": (["a"], {}),
    "Reshape": (["a", "shape"], {}),
    "ScatterND": (["a", "index_nd", "updates"], {}),
    "Slice": (["a", "one", "four", "one"], {}),
    "Split": (["a", "parts"], {"axis": 2}),
    "Squeeze": (["a"], {}),
    "Tile": (["a", "twice"], {}),
    "Transpose": (["a"], {"perm": [2, 0, 1]}),
    "Unsqueeze": (["a", "one"], {}),
    "Where": (["mask", "a", "b"], {}),
}


def pair(x, y, scale="s", zero="z"):
    """The nodes that quantise x and dequantise it as y."""
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{y}_q"]),
        helper.make_node("DequantizeLinear", [f"{y}_q", scale, zero], [y]),
    ]


def graph_of(op_type, inputs=None, before=("s", "z"), behind=("s", "z"), **attributes):
    """The model that quantises x and w, runs one operator on them as a and b, and quantises its results."""
    inputs, attributes = (inputs, attributes) if inputs else CASES[op_type]
    results = ["r", "r2"] if op_type == "Split" else ["r"]
    nodes = [
        *pair("x", "a", *before),
        *pair("w", "b"),
        helper.make_node("GatherND", ["b", "index_nd"], ["updates"]),
        helper.make_node(op_type, inputs, results, **attributes),
        *pair("r", "y", *behind),
        helper.make_node("Reciprocal", ["y"], ["inverse"]),  # shows the sign of zeros
    ]
    return model_of(nodes, SHAPES, [(r, TensorProto.FLOAT, None) for r in ("inverse", *results[1:])], CONSTANTS, 18)


def quantisers(model):
    return sum(node.op_type == "QuantizeLinear" for node in model.folded.nodes)


def check(monkeypatch, file, dropped):
    """Check that so many quantisers are left out, and that the results are those of the whole graph."""
    feed = {name: (RNG.standard_normal((2, 3, 5)) * 4).astype(np.float32) for name in "xw"}
    model = load(file)
    with monkeypatch.context() as patch:
        patch.setattr("rnnfast.model.without_repeats", lambda graph: graph)
        whole = load(file)
        expected = whole(feed)
    assert quantisers(whole) - quantisers(model) == dropped
    for name, y in model(feed).items():
        np.testing.assert_array_equal(y.view(np.uint32), expected[name].view(np.uint32))


def test_there_is_a_case_of_each_operator():
    assert set(CASES) == quantizer_grids.MOVES | quantizer_grids.JOINS.keys() | {"Pad"}


@pytest.mark.parametrize("op_type", CASES)
def test_what_moves_values(monkeypatch, op_type):
    check(monkeypatch, graph_of(op_type), 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"op_type": "Transpose", "behind": ("other_s", "z")},
        {"op_type": "Transpose", "behind": ("s", "other_z")},
        {"op_type": "Transpose", "behind": ("s", "signed_z")},
        {"op_type": "Concat", "before": ("other_s", "z")},
        {"op_type": "Concat", "inputs": ["a", "x"], "axis": 1},
        {"op_type": "Add", "inputs": ["a", "b"]},
        {"op_type": "Sigmoid", "inputs": ["a"]},
        {"op_type": "Pad", "inputs": ["a", "pads", "something"]},
        {"op_type": "Pad", "inputs": ["a", "pads", "negative"]},
        {"op_type": "ScatterND", "inputs": ["a", "index_nd", "updates"], "reduction": "add"},
    ],
)
def test_what_may_leave_the_grid(monkeypatch, settings):
    check(monkeypatch, graph_of(**settings), 0)


def test_integers_that_are_read_themselves(monkeypatch):
    """A QuantizeLinear of what a DequantizeLinear gave is the integers; what the graph returns keeps its nodes."""
    nodes = [
        *pair("x", "a"),
        *pair("a", "b"),
        *pair("b", "c"),
        helper.make_node("Cast", ["b_q"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["b", "w"], ["sum"]),
    ]
    outputs = [(name, TensorProto.FLOAT, None) for name in ("number", "sum", "c")]
    check(monkeypatch, model_of(nodes, SHAPES, outputs, CONSTANTS, 18), 2)


@pytest.mark.parametrize("dtype", sorted(quantizer_grids.INTEGERS, key=str))
def test_multiples_stay_multiples(dtype):
    """A quantiser rounds each multiple of its own scale to itself, for all integers, with zero points at the ends."""
    limits = np.iinfo(dtype)
    n = np.arange(limits.min - limits.max, limits.max - limits.min + 1).astype(np.float32)
    for scale in np.float32([*RNG.uniform(0.5, 1, 50), 1 + 2.0**-23, 2 - 2.0**-23, *quantizer_grids.SCALES]):
        np.testing.assert_array_equal(np.rint(n * scale / scale), n)
