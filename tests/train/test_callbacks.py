"""Callbacks: when they are called, what they see, and what they may change."""

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError, InputTypeError

RNG = np.random.default_rng(1)
X = RNG.uniform(-1, 1, (20, 3)).astype(np.float32)
Y = X[:, :1] - 2 * X[:, 1:2]
OPTIONS = {"loss": "mse", "batch_size": 8, "seed": 0}


def net():
    return nn.Sequential(nn.Linear(3, 4, rng=1), nn.Tanh(), nn.Linear(4, 1, rng=2))


class Recorder:
    """Both methods; what each call saw."""

    def __init__(self):
        self.batches, self.epochs = [], []

    def on_batch_end(self, training):
        weights = training.net.state_dict()["0.weight"]
        self.batches.append((training.epoch, training.step, dict(training.values), training.learning_rate, weights))

    def on_epoch_end(self, training):
        self.epochs.append((training.epoch, training.step, training.values, training.learning_rate))


def test_what_callbacks_see():
    seen, one = Recorder(), net()
    rate = train.ExponentialDecay(0.1, 0.5, 3)
    history = one.fit(X, Y, optimizer=train.SGD(rate), epochs=2, validation_data=(X, Y), callbacks=[seen], **OPTIONS)
    assert [(epoch, step) for epoch, step, *_ in seen.batches] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]
    assert [(epoch, step) for epoch, step, *_ in seen.epochs] == [(1, 3), (2, 6)]
    for i, (_, _, values, _) in enumerate(seen.epochs):
        assert values == {name: numbers[i] for name, numbers in history.items()} and "val_loss" in values
    assert seen.batches[2][2]["loss"] == history["loss"][0] and set(seen.batches[0][2]) == {"loss"}
    assert [batch[3] for batch in seen.batches] == [rate(step) for step in range(1, 7)]
    weights = [batch[4] for batch in seen.batches]
    assert all((a != b).any() for a, b in zip(weights, weights[1:]))
    assert np.array_equal(weights[-1], one.state_dict()["0.weight"]) and not history.stopped


def test_callbacks_that_change_nothing_change_no_bit():
    results = []
    for callbacks in ((), Recorder(), [Recorder(), train.Callback()]):
        one = net()
        history = one.fit(X, Y, optimizer="adam", epochs=3, callbacks=callbacks, **OPTIONS)
        results.append((history, one.state_dict()))
    for history, weights in results[1:]:
        assert history == results[0][0]
        assert all(np.array_equal(a, results[0][1][name]) for name, a in weights.items())


def test_the_learning_rate():
    class Halve(train.Callback):
        def on_epoch_end(self, training):
            training.learning_rate /= 2

    optimizer = train.SGD(0.1)
    history = net().fit(X, Y, optimizer=optimizer, epochs=3, callbacks=Halve(), **OPTIONS)
    assert history["learning_rate"] == [0.1, 0.05, 0.025] and optimizer.learning_rate == 0.0125
    one, other = net(), net()
    one.fit(X, Y, optimizer=train.SGD(0.1), epochs=2, callbacks=Halve(), **OPTIONS)
    other.fit(X, Y, optimizer=train.SGD(lambda step: 0.1 if step < 3 else 0.05), epochs=2, **OPTIONS)
    for name, array in one.state_dict().items():
        assert np.array_equal(array, other.state_dict()[name])


class StopAt:
    def __init__(self, step, name="on_batch_end"):
        self.step = step
        setattr(self, name, self.end)

    def end(self, training):
        training.stop = training.stop or training.step >= self.step


@pytest.mark.parametrize("name, epochs, steps", [("on_batch_end", 2, 5), ("on_epoch_end", 2, 6)])
def test_stop(name, epochs, steps, tmp_path):
    pytest.importorskip("safetensors")
    optimizer, seen = train.Adam(), Recorder()
    callbacks = [StopAt(5, name), seen]
    options = OPTIONS | {"checkpoint": tmp_path / "c.safetensors"}
    history = net().fit(X, Y, optimizer=optimizer, epochs=9, callbacks=callbacks, **options)
    assert history.epochs == epochs and optimizer.steps == steps == len(seen.batches) and history.stopped
    assert len(seen.epochs) == 2 and train.load_checkpoint(tmp_path / "c.safetensors", net()) == history
    again = net().fit(X, Y, optimizer=train.Adam(), epochs=3, resume=True, **options)
    assert again.epochs == 3 and again["loss"][:2] == history["loss"]


def test_an_error_of_a_callback_is_the_callers():
    class Own(Exception):
        pass

    class Broken:
        def on_batch_end(self, training):
            raise Own

    with pytest.raises(Own):
        net().fit(X, Y, optimizer="adam", callbacks=Broken(), **OPTIONS)


@pytest.mark.parametrize("callbacks", [print, 3, [Recorder], train.Callback, [object()], "stop"])
def test_what_is_no_callback(callbacks):
    with pytest.raises(InputTypeError, match="callbacks: got .*, expected objects with on_batch_end or on_epoch_end"):
        net().fit(X, Y, optimizer="adam", callbacks=callbacks, **OPTIONS)


@pytest.mark.parametrize("rate, error", [(-1, InputError), ("fast", InputTypeError), (float("nan"), InputError)])
def test_a_rate_that_is_none(rate, error):
    class Set:
        def on_epoch_end(self, training):
            training.learning_rate = rate

    with pytest.raises(error, match="learning_rate: "):
        net().fit(X, Y, optimizer="adam", callbacks=Set(), **OPTIONS)
