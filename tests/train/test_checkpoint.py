"""Training that is interrupted and resumed has the same bits; broken checkpoints are refused."""

import os

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError, ModelError, UnsupportedError
from rnnfast.train import checkpoint as checkpoints
from tests.train.helpers import GOOD, X, Y, assert_same_weights, tagged, tagger


class Interrupt(Exception):
    pass


class Interrupted:
    """A loss that fails at one of its calls."""

    def __init__(self, at):
        self.loss, self.at = train.CrossEntropy(), at

    def __call__(self, y, target, mask=None):
        self.at -= 1
        if self.at == 0:
            raise Interrupt
        return self.loss(y, target, mask)


@pytest.mark.parametrize(
    "optimizer, options",
    [
        (train.Adam, {}),
        (train.Adam, {"tbptt": 5, "checkpoint_every": 1}),
        (train.RMSprop, {"checkpoint_every": 3, "validation_data": tagged(5, seed=1), "patience": 2}),
        (lambda: train.SGD(0.3, momentum=0.9), {"checkpoint_every": 2, "shuffle": False, "metrics": "accuracy"}),
        (train.SGD, {"tbptt": 2, "checkpoint_every": 7}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_resumed_training_has_the_same_bits(tmp_path, optimizer, options):
    x, y, lengths = tagged(13)
    options = {"lengths": lengths, "epochs": 4, "batch_size": 5, "seed": 7, **options}
    whole, loss = tagger(), train.CrossEntropy()
    history = whole.fit(x, y, loss=loss, optimizer=optimizer(), checkpoint=tmp_path / "whole", **options)
    done = 0
    for at in (3, 8, 11):
        path = tmp_path / f"{at}"
        first, second, used = tagger(), tagger(), optimizer()
        with pytest.raises(Interrupt):
            first.fit(x, y, loss=Interrupted(at), optimizer=optimizer(), checkpoint=path, resume=True, **options)
        done += path.exists()
        again = second.fit(x, y, loss=loss, optimizer=used, checkpoint=path, resume=True, **options)
        assert_same_weights(whole, second)
        assert again == history and again.stopped == history.stopped and used.steps
    assert done >= 2
    third = tagger()
    again = third.fit(x, y, loss=Interrupted(1), optimizer=optimizer(), checkpoint=path, resume=True, **options)
    assert again == history
    assert_same_weights(whole, third)
    loaded = tagger()
    assert train.load_checkpoint(path, loaded) == history
    assert ("patience" in options) or assert_same_weights(whole, loaded) is None


def test_trained_on_from_a_checkpoint(tmp_path):
    x, y, lengths = tagged(13)
    options = {"lengths": lengths, "loss": train.CrossEntropy(), "seed": 1, "checkpoint": tmp_path / "c"}
    whole, part = tagger(), tagger()
    history = whole.fit(x, y, optimizer=train.Adam(), epochs=5, **options)
    with pytest.raises(ModelError, match="c: has no weights of a best epoch, as its training had no patience"):
        tagger().fit(x, y, optimizer=train.Adam(), epochs=9, patience=2, resume=True, **options)
    (tmp_path / "c").unlink()
    part.fit(x, y, optimizer=train.Adam(), epochs=2, **options)
    assert part.fit(x, y, optimizer=train.Adam(), epochs=5, resume=True, **options) == history
    assert_same_weights(whole, part)


def test_a_checkpoint_is_whole_or_as_before(tmp_path, monkeypatch):
    x, y, lengths = tagged(8)
    path = tmp_path / "c.safetensors"
    options = {"lengths": lengths, "loss": train.CrossEntropy(), "checkpoint": path}
    net = tagger()
    net.fit(x, y, optimizer=train.Adam(), **options)
    before = path.read_bytes()
    assert os.listdir(tmp_path) == ["c.safetensors"]

    def fail(*names):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="c.safetensors cannot be written: no room"):
        net.fit(x, y, optimizer=train.Adam(), **options)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.safetensors"]


def test_checkpoints_that_do_not_fit(tmp_path):
    x, y, lengths = tagged(8)
    path = tmp_path / "c"
    options = {"lengths": lengths, "loss": train.CrossEntropy(), "checkpoint": path, "batch_size": 4}
    tagger().fit(x, y, optimizer=train.Adam(), **options)
    whole = path.read_bytes()
    net, optimizer = tagger(), train.Adam()
    weights = net.state_dict()

    def refused(message, optimizer=optimizer, net=net, **changed):
        with pytest.raises(ModelError, match=message):
            net.fit(x, y, optimizer=optimizer, resume=True, **options | changed)

    refused("is of another training: optimizer 'Adam', expected 'SGD'", train.SGD())
    refused("is of another training: batch_size 4, expected 2", batch_size=2)
    refused(r"c: optimizer and best have .*607.*, expected mean, square of shape \(24,\)", net=nn.Embedding(6, 4))
    refused("missing weight, unexpected 0.weight, ", net=nn.Embedding(607, 1))
    for broken in (
        whole[:-3],
        whole[:40],
        b"",
        b"{}",
        whole.replace(b"version", b"versiom"),
        whole.replace(b"generator", b"generatox"),
        whole.replace(b"PCG64", b"PCG65"),
        whole.replace(b"optimizer.mean", b"optimizer.meen"),
        whole.replace(b"steps_done", b"steps_dome"),
        whole.replace(b"history", b"histery"),
        whole.replace(rb"\"weight\": ", rb"\"weight\":-1"),
        whole.replace(rb"\"sums\": {", rb"\"sums\": ["),
    ):
        assert broken != whole
        path.write_bytes(broken)
        refused(r"c: (is no|optimizer and best)")
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])
    assert optimizer.steps == 0


def test_a_checkpoint_is_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    x, y, lengths = tagged(8)
    net = tagger()
    net.fit(x, y, lengths=lengths, loss=train.CrossEntropy(), optimizer=train.Adam(), checkpoint=str(tmp_path / "c"))
    arrays = safetensors.load_file(tmp_path / "c")
    assert {name.partition(".")[0] for name in arrays} == {"net", "optimizer"}
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(arrays[f"net.{name}"], array)


def test_without_safetensors(monkeypatch):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="needs safetensors, which is not installed: pip install"):
        tagger().fit(X, Y, checkpoint="c", **GOOD)
