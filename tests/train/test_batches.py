"""Batches from generators, lists and DataLoaders, and targets that do not count."""

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import Error, InputError, InputTypeError

RNG = np.random.default_rng(2)
X = RNG.uniform(-1, 1, (20, 5, 3)).astype(np.float32)
Y = (X.sum(-1) > 0).astype(int) + (X[..., 0] > 0.5)
LENGTHS = RNG.integers(1, 6, 20)
OPTIONS = {"loss": "cross_entropy", "seed": 0}


def tagger():
    return nn.Sequential(nn.GRU(3, 6, batch_first=True, rng=1), nn.Dropout(0.2), nn.Linear(6, 3, rng=2))


def generator():
    for start in range(0, 20, 8):
        yield X[start : start + 8], Y[start : start + 8], LENGTHS[start : start + 8]


class Again:
    """An iterable with a length."""

    def __iter__(self):
        return generator()

    def __len__(self):
        return 3


def weights(net):
    return np.concatenate([a.ravel() for a in net.state_dict().values()])


@pytest.mark.parametrize(
    "source", [generator, list(generator()), Again(), lambda: iter([list(b) for b in generator()])]
)
def test_batches_are_those_of_arrays(source):
    one, other = tagger(), tagger()
    options = OPTIONS | {"epochs": 3, "metrics": "accuracy"}
    expected = one.fit(
        X, Y, lengths=LENGTHS, batch_size=8, shuffle=False, optimizer=train.Adam(0.01),
        validation_data=(X, Y, LENGTHS), **options,
    )  # fmt: skip
    history = other.fit(source, optimizer=train.Adam(0.01), validation_data=source, **options)
    assert np.array_equal(weights(other), weights(one))
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, rel=1e-6), name
    assert other.evaluate(source, loss="cross_entropy")["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)


def test_a_torch_data_loader():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    one, other = tagger(), tagger()
    one.fit(X, Y, batch_size=8, shuffle=False, optimizer="adam", epochs=2, **OPTIONS)
    other.fit(loader, optimizer="adam", epochs=2, validation_data=loader, **OPTIONS)
    assert np.array_equal(weights(other), weights(one))


def test_checkpoints_at_epochs(tmp_path):
    pytest.importorskip("safetensors")
    whole, parts = tagger(), tagger()
    expected = whole.fit(generator, optimizer=train.Adam(0.01), epochs=4, **OPTIONS)
    for epochs in (2, 4):
        options = OPTIONS | {"checkpoint": tmp_path / "c.safetensors", "resume": True}
        history = parts.fit(generator, optimizer=train.Adam(0.01), epochs=epochs, **options)
    assert np.array_equal(weights(parts), weights(whole)) and history == expected


def test_class_weights_and_batches_of_nothing():
    def source():
        yield from generator()
        yield X[:2], Y[:2], [0, 0]

    one, other = tagger(), tagger()
    one.fit(generator, optimizer="adam", class_weight=[1, 2, 3], **OPTIONS)
    other.fit(source, optimizer="adam", class_weight=[1, 2, 3], **OPTIONS)
    assert np.array_equal(weights(other), weights(one))
    with pytest.raises(InputError, match="nothing is left of all examples"):
        tagger().fit([(X[:2], Y[:2], [0, 0])], optimizer="adam", **OPTIONS)
    with pytest.raises(InputError, match="nothing is left of all examples"):
        tagger().evaluate([(X[:2], Y[:2], [0, 0])], loss="cross_entropy")


@pytest.mark.parametrize(
    "x, options, error, message",
    [
        (X, {}, InputTypeError, "y: got None, expected the targets"),
        ((X, X), {}, InputTypeError, "y: got None, expected the targets"),
        (X.tolist(), {}, InputTypeError, "y: got None, expected the targets"),
        (3, {}, InputTypeError, "y: got None, expected the targets"),
        (list(generator()), {"lengths": LENGTHS}, InputError, "lengths: x gives batches, expected None"),
        (generator, {"mask": Y}, InputError, "mask: x gives batches"),
        (generator, {"tbptt": 2}, InputError, "tbptt: x gives batches"),
        (generator, {"validation_split": 0.2}, InputError, "validation_split: x gives batches"),
        (generator, {"sample_weight": Y}, InputError, "sample_weight: x gives batches"),
        (generator(), {"epochs": 2}, InputError, "x: gave no batch; a generator gives its batches once"),
        ([], {}, InputTypeError, "y: got None"),
        (list, {}, InputError, "x: gave no batch"),
        ([(X,)], {}, InputTypeError, r"x: batch 1: got a tuple, expected \(x, y\)"),
        ([(X, Y), (X, None)], {}, InputTypeError, "x: batch 2: y: got None"),
        ({"x": X}, {}, InputTypeError, "x: batch 1: got a str, expected"),
        ([(X, Y[:3])], {}, InputError, r"x: batch 1: y: shape is \[3, 5\], expected 20 examples"),
        ([(X, Y + 9)], {}, InputError, "epoch 1, batch 1, step 1: target: "),
    ],
)
def test_refused(x, options, error, message):
    with pytest.raises(error, match=message):
        tagger().fit(x, optimizer="adam", **OPTIONS, **options)


def test_validation_batches_that_end():
    with pytest.raises(InputError, match="validation_data: batches: gave no batch"):
        tagger().fit(X, Y, optimizer="adam", epochs=2, validation_data=generator(), **OPTIONS)


# ------------------------------------------------------------------------------------------ ignore_index
def test_ignored_targets_do_not_count():
    """They count neither for the loss nor for metrics, nor for the weight of a batch in the epoch's means."""
    padded = np.where(np.arange(5) < LENGTHS[:, None], Y, -100)
    mask = padded != -100
    one, other = tagger(), tagger()
    options = {"optimizer": "adam", "epochs": 2, "metrics": "accuracy", "seed": 0, "batch_size": 8}
    expected = one.fit(X, np.where(mask, Y, 0), loss="cross_entropy", mask=mask, **options)
    loss = train.CrossEntropy(ignore_index=-100)
    history = other.fit(X, padded, loss=loss, validation_data=(X, padded), **options)
    assert np.array_equal(weights(other), weights(one)) and history["accuracy"] == expected["accuracy"]
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    found = one.evaluate(X, padded, loss=loss, metrics="accuracy")
    assert found["accuracy"] == pytest.approx((one(X).argmax(-1) == padded)[mask].mean())
    assert found["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_ignored_targets_of_a_loss(weight):
    y, mask = one_batch(), RNG.uniform(0, 2, (4, 5))
    target = Y[:4].copy()
    target[1:, ::2] = 7
    kept = target != 7
    loss, plain = train.CrossEntropy(weight=weight, ignore_index=7), train.CrossEntropy(weight=weight)
    for given in (None, mask, mask > 1):
        value, dy = loss(y, target, given)
        want, dwant = plain(y, np.where(kept, target, 0), kept if given is None else kept * given)
        assert value == pytest.approx(want, rel=1e-6) and not dy[~kept].any()
        np.testing.assert_allclose(dy, dwant, rtol=1e-5, atol=1e-8)


def one_batch():
    return RNG.standard_normal((4, 5, 3)).astype(np.float32)


def test_wrong_ignore_index():
    for value in (1.5, True, "a"):
        with pytest.raises(InputTypeError, match="ignore_index: .* is no integer"):
            train.CrossEntropy(ignore_index=value)
    with pytest.raises(InputError, match=r"target: holds -1 \(ignore_index\) alone where the mask counts"):
        train.CrossEntropy(ignore_index=-1)(one_batch(), np.full((4, 5), -1))
    with pytest.raises(Error, match="target: -2 at"):
        train.CrossEntropy(ignore_index=-1)(one_batch(), np.full((4, 5), -2))


def test_huber():
    y = np.array([0.5, -3, 2, 0], np.float32)
    value, dy = train.Huber(2.0)(y, np.zeros(4))
    assert value == pytest.approx((0.125 + 2 * (3 - 1) + 2 + 0) / 4)
    np.testing.assert_array_equal(dy, np.float32([0.5, -2, 2, 0]) / 4)
    for delta, error in ((0, InputError), (-1, InputError), ("a", InputTypeError)):
        with pytest.raises(error, match="delta: "):
            train.Huber(delta)
    history = nn.Linear(3, 1, rng=1).fit(X[:, 0], X[:, 0, :1], loss="huber", optimizer=train.Adam(0.05), epochs=20)
    assert history["loss"][-1] < history["loss"][0] / 5
