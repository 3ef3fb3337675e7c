"""Examples as people have them: float64, lists, arrays of different lengths, targets without the axis of size 1."""

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError, InputTypeError

RNG = np.random.default_rng(8)
ROWS = [RNG.standard_normal((n, 5)) for n in (4, 7, 2, 1, 5)]
LENGTHS = [len(row) for row in ROWS]
PADDED = np.zeros((5, 7, 5))
for row, values in zip(PADDED, ROWS, strict=True):
    row[: len(values)] = values
TAGS = [RNG.integers(0, 3, n) for n in LENGTHS]
PADDED_TAGS = np.zeros((5, 7), int)
for row, values in zip(PADDED_TAGS, TAGS, strict=True):
    row[: len(values)] = values
OPTIONS = {"optimizer": "adam", "epochs": 3, "seed": 0, "batch_size": 2}


def tagger():
    return nn.Sequential(nn.GRU(5, 6, batch_first=True, rng=1), nn.Linear(6, 3, rng=2))


def regressor():
    return nn.Sequential(nn.GRU(5, 6, batch_first=True, return_sequences=False, rng=1), nn.Linear(6, 1, rng=2))


def weights(net):
    return np.concatenate([a.ravel() for a in net.state_dict().values()])


def fitted(net, x, y, **options):
    history = net.fit(x, y, **OPTIONS, **options)
    return weights(net), history


@pytest.mark.parametrize("x", [PADDED, PADDED.tolist(), list(PADDED)])
@pytest.mark.parametrize("of_target", [np.asarray, np.ndarray.tolist, np.float32])
def test_float64_and_lists(x, of_target):
    y = RNG.standard_normal((5, 1))
    got, history = fitted(regressor(), x, of_target(y), loss="mse", lengths=LENGTHS)
    expected, other = fitted(regressor(), PADDED.astype(np.float32), y.astype(np.float32), loss="mse", lengths=LENGTHS)
    assert np.array_equal(got, expected) and history == other
    net = regressor()
    assert np.array_equal(net.predict(x), net.predict(PADDED.astype(np.float32)))
    values = net.evaluate(x, of_target(y), loss="mse")
    assert values == net.evaluate(PADDED.astype(np.float32), y.astype(np.float32), loss="mse")


def test_lists_of_whole_numbers():
    net = nn.Linear(2, 1, rng=1)
    x, y = [[1, 2], [3, 4], [5, 7]], [1, 2, 3]
    assert np.array_equal(net.predict(x), net(np.float32(x)))
    assert net.evaluate(x, y, loss="mae") == net.evaluate(np.float32(x), np.float32(y)[:, None], loss="mae")
    with pytest.raises(InputTypeError, match="x: dtype is int64, expected float32"):
        net.predict(np.array(x))
    with pytest.raises(InputError, match="x: holds numbers beyond the range of float32"):
        net.predict([[1e300, 1]])


@pytest.mark.parametrize("lengths", [LENGTHS, np.array(LENGTHS), np.array(LENGTHS, np.uint8)])
def test_arrays_of_different_lengths_are_a_ragged_batch(lengths):
    options = {"loss": "cross_entropy", "metrics": "accuracy"}
    got, history = fitted(tagger(), ROWS, TAGS, **options)
    expected, other = fitted(tagger(), PADDED, PADDED_TAGS, lengths=lengths, **options)
    assert np.array_equal(got, expected) and history == other
    net = tagger()
    assert np.array_equal(net.predict(ROWS), net.predict(PADDED, lengths=lengths))
    values = net.evaluate(ROWS, TAGS, **options)
    assert values == net.evaluate(PADDED, PADDED_TAGS, lengths=lengths, **options)
    assert values["accuracy"] == pytest.approx(
        np.mean(np.concatenate([net(row[None])[0].argmax(-1) == tags for row, tags in zip(ROWS, TAGS, strict=True)]))
    )


def test_tokens_of_different_lengths():
    net = nn.Sequential(nn.Embedding(3, 4, rng=1), nn.LSTM(4, 5, batch_first=True, rng=2), nn.Linear(5, 3, rng=3))
    lists = [tags.tolist() for tags in TAGS]
    assert np.array_equal(net.predict(lists), net.predict(PADDED_TAGS, lengths=LENGTHS))


def test_ragged_validation_data():
    history = tagger().fit(ROWS, TAGS, loss="cross_entropy", validation_data=(ROWS, TAGS), **OPTIONS)
    net = tagger()
    expected = net.fit(PADDED, PADDED_TAGS, loss="cross_entropy", lengths=LENGTHS, **OPTIONS)
    assert history["loss"] == expected["loss"]
    assert history["val_loss"][-1] == pytest.approx(net.evaluate(ROWS, TAGS, loss="cross_entropy")["loss"])


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (ROWS, TAGS[::-1], {}, "y: arrays of different lengths, expected those of x, or lengths="),
        (PADDED, TAGS, {}, "y: arrays of different lengths, expected those of x, or lengths="),
        (ROWS, TAGS, {"lengths": LENGTHS}, "lengths: given beside a list of arrays of different lengths"),
        (ROWS, TAGS, {"mask": [np.ones(n) for n in LENGTHS]}, "mask: .* different lengths"),
        ([*ROWS, np.ones((3, 4))], TAGS, {}, "x: cannot be read as an array"),
    ],
)
def test_lengths_that_do_not_fit(x, y, options, message):
    with pytest.raises((InputError, InputTypeError), match=message):
        tagger().fit(x, y, loss="cross_entropy", **options, **OPTIONS)


@pytest.mark.parametrize("loss", ["mse", "mae", "binary_cross_entropy"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, bool, list])
def test_targets_without_the_last_axis_of_size_1(loss, kind):
    y = np.array([1, 0, 1, 1, 0])
    flat = y.tolist() if kind is list else y.astype(kind)
    options = {"loss": loss, "metrics": ["accuracy", "mae"]}
    got, history = fitted(regressor(), ROWS, flat, sample_weight=[1, 2, 3, 4, 5], **options)
    weights = {"sample_weight": [1, 2, 3, 4, 5]}
    expected, other = fitted(regressor(), ROWS, np.float32(y)[:, None], **weights, **options)
    assert np.array_equal(got, expected) and history == other
    net = regressor()
    correct = (net.predict(ROWS)[:, 0] > 0) == y  # the sign decides, not the only class
    assert net.evaluate(ROWS, flat, **options)["accuracy"] == correct.mean() > 0


def test_a_target_that_would_be_broadcast_is_refused():
    with pytest.raises(InputError, match=r"target: shape is \[5\], expected \[5, 3\]"):
        train.MSE()(np.ones((5, 3), np.float32), np.ones(5))
    with pytest.raises(InputError, match=r"target: shape is \[1\], expected \[5, 1\]"):
        train.MSE()(np.ones((5, 1), np.float32), np.ones(1))
