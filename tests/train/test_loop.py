"""`fit` against a loop written out by hand, and the options of training."""

import json

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError
from tests.train.helpers import assert_close, assert_same_weights, tagged, tagger, uniform


def test_fit_is_the_loop_written_out():
    x, y, lengths = tagged()
    net, other = tagger(), tagger()
    loss = train.CrossEntropy(0.1)
    history = net.fit(
        x,
        y,
        lengths=lengths,
        loss=loss,
        optimizer=train.Adam(0.01),
        epochs=3,
        batch_size=4,
        seed=5,
        metrics="accuracy",
        clip_norm=0.3,
        clip_value=0.1,
    )
    rng, optimizer = np.random.default_rng(5), train.Adam(0.01)
    for epoch in range(3):
        order, sums, count = rng.permutation(10), np.zeros(2), 0
        for start in (0, 4, 8):
            places = order[start : start + 4]
            mask = np.arange(9) < lengths[places, None]
            out, _, saved = other.forward(x[places], lengths=lengths[places], training=True, rng=rng)
            value, dy = loss(out, y[places], mask)
            dweights = other.backward(dy, None, saved)[2]
            gradients = np.concatenate([g.ravel() for g in dweights.values()])
            train.clip_norm(gradients, 0.3)
            train.clip_value(gradients, 0.1)
            values = np.concatenate([a.ravel() for a in other.state_dict().values()])
            optimizer.step(values, gradients)
            ends = np.cumsum([a.size for a in dweights.values()])[:-1]
            other.load_state_dict(
                {name: part.reshape(dweights[name].shape) for name, part in zip(dweights, np.split(values, ends))}
            )
            sums += mask.sum() * np.array([value, train.accuracy(out, y[places], mask)])
            count += mask.sum()
        assert [history["loss"][epoch], history["accuracy"][epoch]] == pytest.approx(list(sums / count), rel=1e-12)
    assert_same_weights(net, other)
    assert history.epochs == 3 and history["learning_rate"] == [0.01] * 3


def test_training_learns():
    x, y, lengths = tagged(200)
    net = nn.Sequential(nn.Embedding(6, 8, rng=1), nn.GRU(8, 16, batch_first=True, rng=2), nn.Linear(16, 3, rng=3))
    history = net.fit(
        x,
        y,
        lengths=lengths,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(0.02),
        epochs=8,
        seed=1,
        batch_size=16,
        metrics=["accuracy"],
        validation_data=(*tagged(50, seed=1),),
    )
    assert history["accuracy"][-1] > 0.97 and history["val_accuracy"][-1] > 0.97
    assert {len(values) for values in history.values()} == {8}
    result = net.evaluate(
        *tagged(50, seed=1)[:2], lengths=tagged(50, seed=1)[2], loss=train.CrossEntropy(), metrics=["accuracy"]
    )
    assert result == {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}


def test_last_step_output_and_regression():
    rng = np.random.default_rng(1)
    x = uniform(rng, 300, 7, 2)
    y = x[:, -1:, 0] - x[:, -2:-1, 1]
    net = nn.Sequential(nn.RNN(2, 12, batch_first=True, return_sequences=False, rng=1), nn.Linear(12, 1, rng=2))
    before = net.evaluate(x, y, loss=train.MSE())["loss"]
    history = net.fit(x, y, loss=train.MSE(), optimizer=train.RMSprop(0.01), epochs=15, seed=1)
    assert history["loss"][-1] < 0.03 * before
    np.testing.assert_array_equal(net.predict(x, batch_size=7), net(x))


@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_sequential_of_recurrent_layers(return_sequences):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    net = nn.Sequential(
        nn.Linear(3, 5, rng=rng),
        nn.Sequential(nn.GRU(5, 4, batch_first=True, rng=rng), nn.Tanh()),
        nn.LSTM(4, 6, batch_first=True, return_sequences=return_sequences, rng=rng),
        nn.Linear(6, 2, rng=rng),
    )
    x, h, states = uniform(rng, 2, 5, 3), uniform(rng, 1, 2, 4), (uniform(rng, 1, 2, 6), uniform(rng, 1, 2, 6))
    y, (h1, (h2, c2)), saved = net.forward(x, (h, states), training=True)
    dy, dlast = uniform(rng, *y.shape), (uniform(rng, 1, 2, 4), (None, uniform(rng, 1, 2, 6)))
    dx, (dh, (dh2, dc2)), dweights = net.backward(dy, dlast, saved)

    t = torch.nn
    parts = [t.Linear(3, 5), t.GRU(5, 4, batch_first=True), t.LSTM(4, 6, batch_first=True), t.Linear(6, 2)]
    with torch.no_grad():
        for part, name in zip(parts, ("0.", "1.0.", "2.", "3.")):
            part.load_state_dict(
                {n.removeprefix(name): torch.tensor(a) for n, a in net.state_dict().items() if n.startswith(name)}
            )
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, h, *states)]
    out, last = parts[1](parts[0](inputs[0]), inputs[1])
    out, (_, c) = parts[2](torch.tanh(out), (inputs[2], inputs[3]))
    out = parts[3](out if return_sequences else out[:, -1])
    torch.autograd.backward([out, last, c], [torch.tensor(a) for a in (dy, dlast[0], dlast[1][1])])
    assert_close(y, out.detach(), 1e-5)
    for got, want in zip((dx, dh, dh2, dc2), inputs):
        assert_close(got, want.grad, 1e-5)
    assert list(dweights) == list(net.state_dict())
    for part, name in zip(parts, ("0.", "1.0.", "2.", "3.")):
        for n, parameter in part.named_parameters():
            assert_close(dweights[name + n], parameter.grad, 1e-5)
    np.testing.assert_array_equal(net.forward(x)[0], net(x))


def test_no_recurrent_layer_follows_one_that_returns_no_sequences():
    with pytest.raises(InputError, match=r"Sequential: LSTM\(4, 3\) follows GRU\(3, 4.*which returns no sequences"):
        nn.Sequential(nn.GRU(3, 4, return_sequences=False), nn.Tanh(), nn.Sequential(nn.LSTM(4, 3)))


def test_tbptt_carries_the_state_and_cuts_the_gradient():
    x, y, lengths = tagged(3, steps=10)
    net, other = tagger(), tagger()
    net.fit(x, y, lengths=lengths, loss=train.CrossEntropy(), optimizer=train.SGD(0.1), seed=2, tbptt=4, shuffle=False)
    rng, state = np.random.default_rng(2), None
    for start in (0, 4, 8):
        part, of_part = slice(start, min(start + 4, 10)), np.clip(lengths - start, 0, min(4, 10 - start))
        mask = np.arange(10)[part] < lengths[:, None]
        out, state, saved = other.forward(x[:, part], state, lengths=of_part, training=True, rng=rng)
        dweights = other.backward(train.CrossEntropy()(out, y[:, part], mask)[1], None, saved)[2]
        other.load_state_dict({name: a - np.float32(0.1) * dweights[name] for name, a in other.state_dict().items()})
    assert_same_weights(net, other)


def test_the_loss_of_an_epoch_in_chunks_is_the_mean_of_all_steps():
    x, y, _ = tagged(5, steps=9)
    net = nn.Sequential(nn.Embedding(6, 5, rng=1), nn.GRU(5, 3, batch_first=True, rng=2))
    options = {"loss": train.CrossEntropy(), "batch_size": 2}
    history = net.fit(x, y, optimizer=train.SGD(0.0), tbptt=4, **options)
    assert history["loss"][0] == pytest.approx(net.evaluate(x, y, **options)["loss"], rel=1e-6)


def test_early_stopping_restores_the_best():
    x, y, lengths = tagged(20)
    net = tagger()
    history = net.fit(
        x,
        y,
        lengths=lengths,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(0.1),
        epochs=100,
        seed=1,
        validation_data=tagged(20, seed=1),
        patience=3,
    )
    assert history.stopped and history.epochs == history.best_epoch + 4 < 100
    assert min(history["val_loss"]) == history["val_loss"][history.best_epoch] < history["val_loss"][-1]
    a, b, n = tagged(20, seed=1)
    assert net.evaluate(a, b, lengths=n, loss=train.CrossEntropy())["loss"] == history["val_loss"][history.best_epoch]
    last = tagger()
    last.fit(
        x,
        y,
        lengths=lengths,
        loss=train.CrossEntropy(),
        optimizer=train.Adam(0.1),
        epochs=100,
        seed=1,
        validation_data=tagged(20, seed=1),
        patience=3,
        restore_best=False,
    )
    assert last.evaluate(a, b, lengths=n, loss=train.CrossEntropy())["loss"] == history["val_loss"][-1]


def test_a_batch_without_a_counted_element_makes_no_step():
    x, y, _ = tagged(4)
    optimizer, mask = train.Adam(), np.zeros((4, 9), bool)
    mask[2] = True
    history = tagger().fit(x, y, mask=mask, loss=train.CrossEntropy(), optimizer=optimizer, batch_size=1, seed=1)
    assert optimizer.steps == 1 and history["loss"][0] > 0


class Half:
    """A metric, and a loss, that gives a float32."""

    def __call__(self, y, target, mask=None):
        return np.float32(0.5)


def test_metrics_of_ones_own(tmp_path):
    x, y = np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32)
    loss = train.MSE()
    options = {
        "loss": lambda *of: (np.float32(loss(*of)[0]), loss(*of)[1]),
        "metrics": [Half(), train.MAE()],
        "checkpoint": tmp_path / "c",
        "seed": 1,
        "batch_size": 2,
    }
    nets = [nn.Linear(3, 2, rng=1) for _ in range(2)]
    first = nets[0].fit(x, y, optimizer=train.SGD(0.1), **options)
    assert first["Half"] == [0.5] and first["MAE"][0] > 0
    assert {type(value) for values in first.values() for value in values} == {float}
    assert nets[1].fit(x, y, optimizer=train.SGD(0.1), resume=True, **options) == first
    assert_same_weights(*nets)
    found = nets[0].evaluate(x, y, loss=loss, metrics=train.MAE())
    assert found["MAE"] == pytest.approx(train.MAE()(nets[0](x), y)[0])


def test_history_is_plain():
    history = train.History()
    assert history.best_epoch is None and history.epochs == 0
    for loss in (3.0, 1.0, 2.0):
        history.append({"loss": loss})
    assert json.loads(json.dumps(history)) == {"loss": [3.0, 1.0, 2.0]} and history.best_epoch == 1
