"""What `save` writes comes back as the same layers with the same bits, and what it did not write is refused."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest

from rnnfast import nn, train
from rnnfast.errors import Error, InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.nn import description
from tests.export.test_export import CASES
from tests.nn.helpers import uniform

LAYERS = {
    "Attention": lambda: nn.Attention(4, 5, "additive", rng=1),
    "BatchNorm1d": lambda: nn.BatchNorm1d(5, momentum=0.3, channels_last=True),
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, padding="causal", dilation=2, groups=2, bias=False, rng=1),
    "Dropout": lambda: nn.Dropout(0.3),
    "ELU": lambda: nn.ELU(0.7),
    "Embedding": lambda: nn.Embedding(9, 5, padding_idx=-2, rng=1),
    "GRU": lambda: nn.GRU(5, 7, 2, linear_before_reset=False, return_sequences=False, threads=2, rng=1),
    "GRUCell": lambda: nn.GRUCell(5, 7, rng=1),
    "Hardsigmoid": lambda: nn.Hardsigmoid(),
    "LSTM": lambda: nn.LSTM(5, 7, 2, proj_size=3, bidirectional=True, merge="sum", batch_first=True, rng=1),
    "LSTMCell": lambda: nn.LSTMCell(5, 7, bias=False, rng=1),
    "LayerNorm": lambda: nn.LayerNorm(5, eps=1e-3),
    "LeakyReLU": lambda: nn.LeakyReLU(0.3),
    "Linear": lambda: nn.Linear(5, 5, rng=1),
    "RNN": lambda: nn.RNN(5, 7, nonlinearity="relu", reverse=True, clip=np.float32(0.3), dropout=0.25, rng=1),
    "RNNCell": lambda: nn.RNNCell(5, 7, nonlinearity="relu", rng=1),
    "ReLU": lambda: nn.ReLU(),
    "Seq2Seq": lambda: nn.Seq2Seq(6, 7, 4, 5, cell="LSTM", bidirectional=True, attention="additive", rng=1),
    "Sequential": lambda: nn.Sequential(
        nn.Embedding(9, np.int64(5), rng=1),
        nn.Sequential(nn.LSTM(5, 7, 2, batch_first=True, return_sequences=False, rng=2), nn.Dropout(0.1)),
        nn.LayerNorm(7),
        nn.Linear(7, 7, rng=3),
        nn.Tanh(),
        nn.Linear(7, 2, bias=False, matmul="packed", rng=4),
    ),
    "Sigmoid": lambda: nn.Sigmoid(),
    "Softmax": lambda: nn.Softmax(dim=1),
    "Softplus": lambda: nn.Softplus(),
    "Softsign": lambda: nn.Softsign(),
    "Tanh": lambda: nn.Tanh(),
}
NOT_ONNX = {"Attention": "no ONNX form", "LSTM": "no projection", "Seq2Seq": "ends in .onnx, but a Seq2Seq is two"}


def same(got, expected):
    """The same classes, arguments and weights."""
    assert type(got) is type(expected) and repr(got) == repr(expected)
    weights = expected.state_dict()
    assert list(got.state_dict()) == list(weights)
    for name, array in got.state_dict().items():
        assert array.dtype == np.float32 and np.array_equal(array, weights[name])


def test_each_layer_has_a_case():
    assert LAYERS.keys() == description.layer_classes().keys() - {"Module"}


@pytest.mark.parametrize("name", LAYERS)
def test_safetensors(name, tmp_path):
    pytest.importorskip("safetensors")
    layer = LAYERS[name]()
    layer.save(tmp_path / "net.safetensors")
    same(nn.load(tmp_path / "net.safetensors"), layer)
    same(type(layer).load(str(tmp_path / "net.safetensors")), layer)


@pytest.mark.parametrize("name", LAYERS)
def test_onnx(name, tmp_path):
    layer = LAYERS[name]()
    if name in NOT_ONNX:
        with pytest.raises((InputError, UnsupportedError), match=NOT_ONNX[name]):
            layer.save(tmp_path / "net.onnx")
        assert not os.listdir(tmp_path)
        return
    layer.save(tmp_path / "net.onnx")
    same(nn.load(tmp_path / "net.onnx"), layer)


@pytest.mark.parametrize("case", CASES)
def test_recurrent_layers_as_onnx(case, tmp_path):
    kind, options = CASES[case]
    layer = getattr(nn, kind)(4, 4, rng=1, **options)
    layer.save(tmp_path / "net.onnx", lengths=True, states=True)
    got = nn.load(tmp_path / "net.onnx")
    same(got, layer)
    x = uniform(np.random.default_rng(2), 5, 3, 4)
    assert np.array_equal(got(x, lengths=[5, 2, 0])[0], layer(x, lengths=[5, 2, 0])[0])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_square_matrix_is_not_turned(rank, bias, tmp_path):
    layer = nn.Linear(5, 5, bias, rng=1)
    layer.save(tmp_path / "net.onnx", rank=rank)
    same(nn.load(tmp_path / "net.onnx"), layer)


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
@pytest.mark.parametrize("attention", ["dot", "additive"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_folder_of_a_seq2seq(cell, attention, bidirectional, tmp_path):
    net = nn.Seq2Seq(6, 7, 4, 5, cell=cell, attention=attention, bidirectional=bidirectional, num_layers=2, rng=1)
    net.save(tmp_path / "net")
    same(nn.Seq2Seq.load(tmp_path / "net"), net)
    with pytest.raises(ModelError, match="is one file of a Seq2Seq, expected the folder with both"):
        nn.load(tmp_path / "net" / "encoder.onnx")
    (tmp_path / "net" / "encoder.onnx").unlink()
    with pytest.raises(ModelError, match="encoder.onnx: cannot be read: No such file"):
        nn.load(tmp_path / "net")


@pytest.mark.parametrize("ending", ["onnx", "safetensors"])
def test_training_goes_on(ending, tmp_path):
    pytest.importorskip("safetensors")
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 9, (12, 6)), rng.integers(0, 3, 12)

    def net():
        return nn.Sequential(
            nn.Embedding(9, 5, rng=1),
            nn.GRU(5, 7, batch_first=True, return_sequences=False, rng=2),
            nn.Dropout(0.2),
            nn.Linear(7, 3, rng=3),
        )

    options = {"loss": "cross_entropy", "seed": 0}
    first = net()
    first.fit(x, y, optimizer=train.SGD(0.1), epochs=2, **options)
    first.save(tmp_path / f"net.{ending}")
    again = nn.load(tmp_path / f"net.{ending}")
    histories = [one.fit(x, y, optimizer=train.SGD(0.1), epochs=2, **options) for one in (first, again)]
    assert histories[0] == histories[1]
    same(again, first)


@pytest.mark.parametrize("path", ["net", "net.pt", "net.onnx.txt", "net.ONNX", "net.npz", ".onnx", "net.onnx/"])
def test_other_endings_are_refused(path, tmp_path):
    path = f"{tmp_path}/{path}"
    if path.endswith("/"):
        os.mkdir(path)
    before = os.listdir(tmp_path)
    with pytest.raises(InputError, match="expected .onnx or .safetensors|Is a directory"):
        nn.Linear(2, 3, rng=1).save(path)
    assert os.listdir(tmp_path) == before


def test_options_of_onnx_files(tmp_path):
    for options in ({"lengths": True}, {"states": True}, {"rank": 3}):
        with pytest.raises(InputError, match="lengths, states, rank: are options of ONNX files"):
            nn.GRU(2, 3).save(tmp_path / "net.safetensors", **options)


def test_a_file_of_another_class(tmp_path):
    nn.GRU(2, 3, rng=1).save(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net.onnx: holds GRU\(2, 3\), expected a Sequential"):
        nn.Sequential.load(tmp_path / "net.onnx")
    assert nn.Module.load(tmp_path / "net.onnx").hidden_size == 3


class Twice(nn.Module):
    """A layer of a user."""


def test_a_layer_of_a_user_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    for net in (Twice(), nn.Sequential(Twice()), nn.Module()):
        with pytest.raises(UnsupportedError, match="is none of rnnfast's own layers"):
            net.save(tmp_path / "net.safetensors")
    assert not os.listdir(tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    pytest.importorskip("safetensors")
    for name in ("none.onnx", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="cannot be read: No such file"):
            nn.load(tmp_path / name)
    for name in ("net.onnx", "net.safetensors"):
        (tmp_path / name).write_bytes(b"\xffnothing")
        with pytest.raises(ModelError, match=r"is no (ONNX|safetensors) file"):
            nn.load(tmp_path / name)
        os.unlink(tmp_path / name)
        os.mkfifo(tmp_path / name)
        with pytest.raises(ModelError, match="not a regular file"):
            nn.load(tmp_path / name)
    with pytest.raises(InputTypeError, match="path: 5 is no path"):
        nn.load(5)


def test_files_of_others(tmp_path):
    from safetensors.numpy import save_file

    layer = nn.Linear(2, 3, rng=1)
    save_file(layer.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match="does not say what its layers are.*bias, weight, for load_state_dict"):
        nn.load(tmp_path / "net.safetensors")
    layer.save(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="does not say what its layers are.*rnnfast.load runs any file"):
        nn.load(tmp_path / "net.onnx")


def changed(model, change):
    """A copy of a model with one change."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    change(other)
    return other


CHANGES = {
    "node": lambda m: m.graph.node[-1].__setattr__("op_type", "Relu"),
    "node more": lambda m: m.graph.node.append(onnx.helper.make_node("Relu", ["y"], ["z"])),
    "output": lambda m: m.graph.output.pop(),
    "no weights": lambda m: m.graph.ClearField("initializer"),
    "weight of another shape": lambda m: m.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.ones((2, 9), np.float32), m.graph.initializer[0].name)
    ),
    "weight of another type": lambda m: m.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.ones((3, 2), np.int8), m.graph.initializer[0].name)
    ),
    "weight in another file": lambda m: onnx.external_data_helper.set_external_data(m.graph.initializer[0], "net.onnx"),
    "weight without data": lambda m: m.graph.initializer[0].ClearField("raw_data"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_onnx_file_is_refused(change, tmp_path):
    nn.Sequential(nn.Linear(2, 3, rng=1), nn.Tanh()).save(tmp_path / "net.onnx")
    model = changed(onnx.load(tmp_path / "net.onnx"), CHANGES[change])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Error, match="were changed since|is no whole file|shape|dtype|has external data"):
        nn.load(tmp_path / "net.onnx")


def test_a_rewritten_onnx_file_loads(tmp_path):
    """Other tools read and write files; new weights are new weights."""
    layer = nn.Linear(2, 3, rng=1)
    layer.save(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]) + 1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
    onnx.save(model, tmp_path / "net.onnx")
    assert np.array_equal(nn.load(tmp_path / "net.onnx").state_dict()["weight"], layer.state_dict()["weight"] + 1)


DESCRIPTIONS = [
    "",
    "{}",
    "[" * 100000,
    '{"version": 2}',
    '{"version": 1, "network": {"class": "eval", "arguments": {}}}',
    '{"version": 1, "network": {"class": "Module", "arguments": {"x": 1}}}',
    '{"version": 1, "network": {"class": "PackedSequence", "arguments": {}}}',
    '{"version": 1, "network": {"class": "Linear", "arguments": {"in_features": -1, "out_features": 2}}}',
    '{"version": 1, "network": {"class": "Linear", "arguments": {"in_features": 1e99, "out_features": 2}}}',
    '{"version": 1, "network": {"class": "Linear", "arguments": {"in_features": 99999999, "out_features": 99999999}}}',
    '{"version": 1, "network": {"class": "Linear", "arguments": 3}}',
    '{"version": 1, "network": {"class": "Sequential", "layers": [3]}}',
    '{"version": 1, "network": ' + '{"class": "Sequential", "layers": [' * 9999 + "]}" * 9999 + "}",
]


@pytest.mark.parametrize("text", DESCRIPTIONS, ids=range(len(DESCRIPTIONS)))
def test_descriptions_of_strangers(text, tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.ones((2, 3), np.float32)}, tmp_path / "net.safetensors", {description.KEY: text})
    with pytest.raises(ModelError, match="net.safetensors: describes no network of rnnfast"):
        nn.load(tmp_path / "net.safetensors")


def test_weights_that_do_not_fit_the_description(tmp_path):
    from safetensors.numpy import save_file

    text = description.describe(nn.Linear(3, 2))
    for tensors in ({}, {"weight": np.ones((2, 3), np.float32)}, {"weight": np.ones(3), "bias": np.ones(2)}):
        save_file(tensors, tmp_path / "net.safetensors", {description.KEY: text})
        with pytest.raises(Error, match="missing|dtype"):
            nn.load(tmp_path / "net.safetensors")


def test_a_description_is_json_of_the_given_arguments():
    layer = nn.LSTM(5, np.int32(7), activations=["Sigmoid", ("Elu", 0.5, 0.0), "Tanh"], rng=1)
    assert json.loads(description.describe(layer))["network"] == {
        "class": "LSTM",
        "arguments": {"input_size": 5, "hidden_size": 7, "activations": ["Sigmoid", ["Elu", 0.5, 0.0], "Tanh"]},
    }


def test_a_copied_file_needs_nothing_beside_it(tmp_path):
    nn.Linear(2, 3, rng=1).save(tmp_path / "net.onnx")
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "net.onnx", tmp_path / "other" / "name.onnx")
    same(nn.load(tmp_path / "other" / "name.onnx"), nn.Linear(2, 3, rng=1))
