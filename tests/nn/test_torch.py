"""Layers and exported graphs against torch: against its results in fixtures/, and live where it is installed."""

import json
import sys

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from tests.paths import FIXTURES

TOLERANCE = 2e-6
"""Largest difference relative to the largest output for up to 100 steps, both sides float32: a few roundings (6e-8
each) per step, as the cells forget. Measured over all of these layers: 5.1e-7."""

KINDS = ("RNN", "GRU", "LSTM")
GRAPHS = sorted(path.stem for path in FIXTURES.glob("*.onnx"))


def cases(kind):
    """Name -> arguments of the layer, for the layers in the kind's fixture."""
    with np.load(FIXTURES / f"{kind.lower()}.npz") as arrays:
        return {name: json.loads(str(arrays[name])) for name in arrays if name.isdigit()}


def assert_close(got, want):
    want = np.asarray(want)
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def outputs(layer, x, initial, lengths=None):
    """y, then the last states."""
    y, last = layer(x, tuple(initial) if layer.kind == "LSTM" else initial[0], lengths)
    return y, *(last if layer.kind == "LSTM" else (last,))


def check_graph(model, arrays):
    """Every run that the arrays hold: inputs "k/<name>", outputs "k/<position>"."""
    for run in sorted({name.partition("/")[0] for name in arrays}):
        of_run = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{run}/")}
        wanted = [of_run.pop(name) for name in sorted(of_run) if name.isdigit()]
        for got, want in zip(model(**of_run).values(), wanted, strict=True):
            assert_close(got, want)


@pytest.mark.parametrize("kind, case", [(kind, case) for kind in KINDS for case in cases(kind)])
def test_layer_is_torchs(kind, case):
    with np.load(FIXTURES / f"{kind.lower()}.npz") as arrays:
        given = {name.removeprefix(f"{case}/"): arrays[name] for name in arrays if name.startswith(f"{case}/")}
    weights = {name.removeprefix("weights/"): array for name, array in given.items() if name.startswith("weights/")}
    layer = getattr(nn, kind)(**cases(kind)[case])
    layer.load_state_dict(weights)
    got = outputs(layer, given["x"], [given[n] for n in ("h0", "c0") if n in given], given.get("lengths"))
    for array, name in zip(got, ("y", "h", "c"), strict=False):
        assert_close(array, given[name])


@pytest.mark.parametrize("graph", GRAPHS)
def test_exported_graph_is_torchs(graph):
    model = rnnfast.load(FIXTURES / f"{graph}.onnx")
    with np.load(FIXTURES / f"{graph}.npz") as arrays:
        check_graph(model, dict(arrays))


# ------------------------------------------------------------------------------------------------- torch itself
@pytest.fixture
def make_torch(monkeypatch):
    """The fixtures' script, and with it torch."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(FIXTURES)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = pytest.importorskip("make_torch")
    torch.manual_seed(3)
    return module


@pytest.mark.parametrize("steps", [9, 100])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_every_variant_of_torch(make_torch, kind, num_layers, bidirectional, batch_first, steps):
    torch = make_torch.torch
    extras = {"RNN": [{"nonlinearity": "tanh"}, {"nonlinearity": "relu"}], "GRU": [{}], "LSTM": [{}, {"proj_size": 5}]}
    for extra in extras[kind]:
        for bias in (True, False):
            arguments = {
                "num_layers": num_layers,
                "bidirectional": bidirectional,
                "batch_first": batch_first,
                "bias": bias,
                **extra,
            }
            theirs = getattr(torch.nn, kind)(7, 19, **arguments)
            ours = getattr(nn, kind)(7, 19, **arguments)
            ours.load_state_dict(theirs.state_dict())
            for rows, lengths in ((1, None), (4, None), (4, torch.tensor([steps // 3, steps, 1, steps - 1]))):
                x = torch.randn((rows, steps, 7) if batch_first else (steps, rows, 7))
                initial = make_torch.states(kind, theirs, rows)
                want = make_torch.run(kind, theirs, x, initial, lengths)
                got = outputs(ours, x, initial, lengths)
                for array, tensor in zip(got, want, strict=True):
                    assert_close(array, tensor.numpy())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_export_and_load(make_torch, kind, num_layers, bidirectional, batch_first):
    nonlinearities = [{"nonlinearity": "relu"}, {"nonlinearity": "tanh"}] if kind == "RNN" else [{}]
    for extra in nonlinearities:
        for bias, stated in ((True, False), (False, True)):
            model, arrays = make_torch.export_case(
                kind,
                "torchscript",
                stated,
                num_layers=num_layers,
                bidirectional=bidirectional,
                batch_first=batch_first,
                bias=bias,
                **extra,
            )
            check_graph(rnnfast.load(model.SerializeToString()), arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_layers": 2, "bias": False, "batch_first": True}, {"num_layers": 2, "bidirectional": True}],
    ids=["plain", "batch_first without bias", "bidirectional"],
)
@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_export_by_dynamo_and_load(make_torch, kind, stated, arguments):
    pytest.importorskip("onnxscript")
    model, arrays = make_torch.export_case(kind, "dynamo", stated, **arguments)
    check_graph(rnnfast.load(model.SerializeToString()), arrays)
