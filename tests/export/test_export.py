"""Layers as ONNX files: the same results as the layer's, in rnnfast and in onnxruntime."""

import itertools
import os

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import Error, InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.export import layers as exporting
from rnnfast.export.layers import export
from rnnfast.nn.module import Container
from tests.graphs import load, onnxruntime, random

TOLERANCE = 1e-5
"""To onnxruntime, whose order of sums and activations are other ones; relative to the largest output where that
is over 1. Measured: 3.3e-7."""

ROUNDED = 1e-6
"""To rnnfast itself where the file rounds once more than the layer: LayerNorm, and Linear on other than two axes.
Measured: 1.2e-7."""

RECURRENT = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
PARTS = {
    "plain": {},
    "no bias": {"bias": False},
    "stacked": {"num_layers": 3},
    "reverse": {"reverse": True},
    "concat": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge": "sum"},
    "mul": {"bidirectional": True, "merge": "mul"},
    "average": {"bidirectional": True, "merge": "average"},
    "stacked concat": {"bidirectional": True, "num_layers": 2},
    "stacked sum": {"bidirectional": True, "num_layers": 2, "merge": "sum"},
    "clip": {"clip": 0.3},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}
OWN = {
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "reset first": ("GRU", {"linear_before_reset": False}),
    "reset first, both ways": ("GRU", {"linear_before_reset": False, "bidirectional": True, "num_layers": 2}),
    "peepholes": ("LSTM", {"peepholes": True}),
    "peepholes, both ways, no bias": ("LSTM", {"peepholes": True, "bidirectional": True, "bias": False}),
    "input_forget": ("LSTM", {"input_forget": True}),
    "all of LSTM": (
        "LSTM",
        {
            "input_forget": True,
            "peepholes": True,
            "clip": 0.7,
            "num_layers": 2,
            "bidirectional": True,
            "merge": "average",
            "activations": [("HardSigmoid", 0.3, 0.4), "Softsign", "Tanh"],
        },
    ),
    "one with alpha of two": ("GRU", {"activations": [("Affine", 0.3, 0.1), ("LeakyRelu", 0.2, 0.0)]}),
    "each direction's": (
        "GRU",
        {
            "bidirectional": True,
            "activations": ["Sigmoid", ("Elu", 0.7, 0.0), ("HardSigmoid", 0.1, 0.6), ("ScaledTanh", 0.9, 0.8)],
        },
    ),
    "activations as they are": ("LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
    "rnn's": ("RNN", {"activations": [("ThresholdedRelu", 0.1, 0.0)]}),
    "rnn's both ways": ("RNN", {"bidirectional": True, "activations": ["Softplus", ("Elu", 0.5, 0.0)], "clip": 2.0}),
}
CASES = {f"{kind} {name}": (kind, options) for kind in RECURRENT for name, options in PARTS.items()} | OWN
ACTIVATIONS = [
    nn.ELU(0.7),
    nn.Hardsigmoid(),
    nn.LeakyReLU(0.3),
    nn.ReLU(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Softsign(),
    nn.Tanh(),
]
LENGTHS = np.array([3, 0, 5], np.int32)


def state_of(layer, rows, seed=3):
    """A random initial state as a call takes it, and as feed of the file."""
    count = layer.num_layers * (1 + layer.bidirectional)
    names = ["h0", "c0"][: 1 + (layer.kind == "LSTM")]
    feed = {name: random(seed + i, count, rows, layer.hidden_size) for i, name in enumerate(names)}
    return tuple(feed.values()) if len(feed) > 1 else feed["h0"], feed


def check(layer, feed, expected, *, exact=True, **options):
    """The file's outputs are `expected`: bit for bit in rnnfast (nearly unless `exact`), nearly in onnxruntime."""
    proto = export(layer, **options)
    onnx.checker.check_model(proto, full_check=True)
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)
    model = load(proto)
    assert [v.name for v in model.inputs] == list(feed)
    got = model(**feed)
    assert list(got) == list(expected)
    others = onnxruntime(proto, feed)
    for name, value in expected.items():
        scale = max(1, np.abs(value).max(initial=0))
        np.testing.assert_allclose(got[name] / scale, value / scale, rtol=0, atol=0 if exact else ROUNDED, err_msg=name)
        np.testing.assert_allclose(others[name] / scale, value / scale, rtol=0, atol=TOLERANCE, err_msg=name)
        declared = next(v.type.shape for v in model.outputs if v.name == name)
        assert len(declared) == value.ndim
        assert all(n in (m, "time", "batch") or type(n) is str for n, m in zip(declared, value.shape))
    return proto


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("name", CASES)
def test_recurrent_layers(name, batch_first):
    """Export with and without lengths and states, with all steps and with the last one only."""
    kind, options = CASES[name]
    for sequences, lengths, states in (
        (True, None, False),
        (True, LENGTHS, True),
        (False, LENGTHS, False),
        (False, None, True),
    ):
        layer = RECURRENT[kind](4, 5, batch_first=batch_first, return_sequences=sequences, rng=1, **options)
        x = random(2, 3, 5, 4) if batch_first else random(2, 5, 3, 4)
        state, feed = state_of(layer, 3) if states else (None, {})
        y, last, _ = layer.forward(x, state, lengths=lengths)
        last = last if isinstance(last, tuple) else (last,)
        feed = {"x": x} | ({} if lengths is None else {"lengths": lengths}) | feed
        expected = {"y": y} | (dict(zip(("hn", "cn"), last)) if states else {})
        check(layer, feed, expected, lengths=lengths is not None, states=states)


def test_the_attributes_that_are_defaults_are_left_out():
    node = export(nn.LSTM(3, 2, rng=1)).graph.node[0]
    assert [a.name for a in node.attribute] == ["hidden_size"]
    assert len(node.input) == 4


def test_every_layer_has_a_form():
    kinds = {
        kind
        for name in nn.__all__
        if isinstance(kind := getattr(nn, name), type)
        and issubclass(kind, nn.Module)
        and not issubclass(kind, Container)
        and kind is not nn.Module
    }
    assert kinds == set(exporting.FORMS)
    assert {type(layer) for layer in ACTIVATIONS} <= kinds


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("rank", (1, 2, 3, 4))
def test_activations(layer, rank):
    x = 2 * random(rank, *(3, 4, 5, 2)[:rank])
    proto = export(layer, rank=rank)
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_allclose(load(proto)(x=x).y, layer(x), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(onnxruntime(proto, {"x": x})["y"], layer(x), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("rank", (1, 2, 3, 4))
def test_linear(rank, bias):
    layer = nn.Linear(7, 5, bias=bias, rng=1)
    x = random(2, *(2, 3, 4)[: rank - 1], 7)
    check(layer, {"x": x}, {"y": layer(x)}, rank=rank, exact=rank == 2 or not bias)


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_layer_norm(rank):
    layer = nn.LayerNorm(7, eps=0.01)
    layer.load_state_dict({"weight": random(3, 7), "bias": random(4, 7)})
    x = random(2, *(2, 3)[: rank - 1], 7)
    check(layer, {"x": x}, {"y": layer(x)}, rank=rank, exact=False)


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_embedding(rank):
    layer = nn.Embedding(9, 4, padding_idx=2, rng=1)
    x = np.random.default_rng(rank).integers(0, 9, (5, 3, 2)[:rank])
    check(layer, {"x": x}, {"y": layer(x)}, rank=rank)


@pytest.mark.parametrize("batch_first", list(itertools.product((False, True), repeat=2)))
def test_sequential(batch_first):
    """Layers that take x in different orders: each as its call does."""
    net = nn.Sequential(
        nn.Embedding(11, 4, rng=1),
        nn.Dropout(),
        nn.Tanh(),
        nn.LayerNorm(4),
        nn.Sequential(
            nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=batch_first[0], rng=2), nn.Linear(12, 5, rng=3)
        ),
        nn.GRU(5, 3, batch_first=batch_first[1], rng=4),
        nn.Linear(3, 2, bias=False, rng=5),
    )
    x = np.random.default_rng(1).integers(0, 11, (3, 5))
    check(net, {"x": x}, {"y": net(x)}, exact=False)
    if batch_first[0] == batch_first[1]:
        lengths = np.array([2, 0, 5] if batch_first[0] else [3, 1, 0, 2, 3], np.int32)
        check(net, {"x": x, "lengths": lengths}, {"y": net(x, lengths=lengths)}, lengths=True, exact=False)


def test_many_to_one():
    net = nn.Sequential(
        nn.LSTM(4, 6, batch_first=True, rng=1),
        nn.ReLU(),
        nn.GRU(6, 5, batch_first=True, bidirectional=True, return_sequences=False, rng=2),
        nn.Linear(10, 3, rng=3),
    )
    x = random(1, 3, 5, 4)
    proto = check(net, {"x": x, "lengths": LENGTHS}, {"y": net(x, lengths=LENGTHS)}, lengths=True)
    assert [node.op_type for node in proto.graph.node].count("Gemm") == 1
    check(nn.Sequential(), {"x": x}, {"y": x}, rank=3)


def test_states_of_several_layers():
    net = nn.Sequential(nn.LSTM(4, 6, rng=1), nn.Sequential(nn.GRU(6, 5, num_layers=2, rng=2)), nn.Linear(5, 3, rng=3))
    x = random(1, 5, 3, 4)
    h, c, g = random(2, 1, 3, 6), random(3, 1, 3, 6), random(4, 2, 3, 5)
    y, ((hn, cn), gn), _ = net.forward(x, ((h, c), g))
    check(
        net,
        {"x": x, "layer0_h0": h, "layer0_c0": c, "layer1_0_h0": g},
        {"y": y, "layer0_hn": hn, "layer0_cn": cn, "layer1_0_hn": gn},
        states=True,
        exact=False,
    )


def test_a_language_model_streams():
    net = nn.Sequential(
        nn.Embedding(11, 4, rng=1), nn.LSTM(4, 6, num_layers=2, rng=2), nn.GRU(6, 5, rng=3), nn.Linear(5, 11, rng=4)
    )
    text = np.random.default_rng(1).integers(0, 11, (7, 2))
    stream = load(export(net, states=True)).stream()
    steps = np.concatenate([stream.step(x=letters[None]) for letters in text])
    np.testing.assert_allclose(steps, net(text), rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("feed", ({"x": np.zeros((0, 3, 4), np.float32)}, {"x": np.zeros((5, 0, 4), np.float32)}))
@pytest.mark.parametrize("options", ({"bidirectional": True}, {"bidirectional": True, "merge": "sum"}, {}))
def test_empty(feed, options):
    layer = nn.LSTM(4, 5, rng=1, **options)
    np.testing.assert_array_equal(load(export(layer))(**feed), layer(feed["x"])[0])


class Own(nn.Module):
    pass


class Faster(nn.Linear):
    pass


@pytest.mark.parametrize(
    "layer, options, error, text",
    (
        (nn.LSTM(4, 5, proj_size=3, rng=1), {}, UnsupportedError, "no projection"),
        (Own(), {}, UnsupportedError, "has no ONNX form; it is none of BatchNorm1d, Conv1d, Dropout"),
        (nn.Sequential(nn.ReLU(), nn.Sequential(Faster(2, 3, rng=1))), {}, UnsupportedError, "layer 1.0: Faster"),
        (nn.Linear(4, 5, rng=1), {"lengths": True}, InputError, "lengths: Linear.4, 5. has no recurrent layer"),
        (nn.Linear(4, 5, rng=1), {"states": True}, InputError, "states: Linear.4, 5. has no recurrent layer"),
        (nn.GRU(4, 5, rng=1), {"rank": 3}, InputError, "rank: 3, but"),
        (nn.Linear(4, 5, rng=1), {"rank": 0}, InputError, "rank: 0 is less than 1"),
        (nn.Linear(4, 5, rng=1), {"lengths": 3}, InputError, "lengths: 3 is none of"),
        ("net", {}, Error, "layer: got a str, expected an nn.Module"),
    ),
)
def test_refused(layer, options, error, text):
    with pytest.raises(error, match=text):
        export(layer, **options)


def test_too_large(monkeypatch):
    monkeypatch.setattr(exporting, "MAX_FILE_BYTES", 99)
    with pytest.raises(LimitError, match="weights of 100 bytes"):
        export(nn.Linear(4, 5, rng=1))


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    layer = nn.GRU(4, 5, batch_first=True, rng=1)
    layer.save(path, lengths=True, states=True)
    model = rnnfast.load(path)
    assert [(v.name, v.type.shape) for v in model.inputs] == [
        ("x", ("batch", "time", 4)),
        ("lengths", ("batch",)),
        ("h0", (1, "batch", 5)),
    ]
    assert [(v.name, v.type.shape) for v in model.outputs] == [("y", ("batch", "time", 5)), ("hn", (1, "batch", 5))]
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~_umask())
    before = path.read_bytes()
    assert onnx.load(path).producer_name == "rnnfast"

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(InputError, match="cannot be written: no space"):
        layer.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("net", [nn.Linear(2, 3, rng=1), nn.Seq2Seq(2, 3, 4, 5, rng=1)], ids=["Linear", "Seq2Seq"])
def test_no_place_for_a_file(net, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    ending = ".onnx" if isinstance(net, nn.Linear) else ""
    with pytest.raises(InputError, match="file.net.* (cannot be written|is no folder.*): Not a directory"):
        net.save(tmp_path / "file" / f"net{ending}")
    with pytest.raises(InputTypeError, match="path: 5 is no path"):
        net.save(5)
    with pytest.raises(InputError, match=".*: (Is a directory|File exists)"):
        net.save(tmp_path / ("folder.onnx" if ending else "file"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.onnx"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
