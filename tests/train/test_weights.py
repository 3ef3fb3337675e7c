"""Weights of elements and classes, validation_split, and losses and optimizers by name."""

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import InputError, InputTypeError

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((5, 4, 3)).astype(np.float32)
CLASSES = RNG.integers(0, 3, (5, 4))
WEIGHT = np.array([1, 5, 0.5])
ELEMENTS = RNG.uniform(0, 2, (5, 4)) * (RNG.random((5, 4)) < 0.7)


def cross_entropy(y, target, elements, of_class, smoothing):
    """The weighted mean in float64, from the definition."""
    logs = y - np.log(np.exp(y).sum(-1, keepdims=True))
    at_target = np.take_along_axis(logs, target[..., None], -1)[..., 0]
    loss = -(1 - smoothing) * of_class[target] * at_target - smoothing / len(of_class) * (of_class * logs).sum(-1)
    return (elements * loss).sum() / (elements * of_class[target]).sum()


def gradient(function, y, step=1e-5):
    """Central differences."""
    found = np.zeros(y.shape)
    for at in np.ndindex(y.shape):
        for sign in (1, -1):
            moved = y.astype(np.float64)
            moved[at] += sign * step
            found[at] += sign * function(moved) / (2 * step)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("of_class", [None, WEIGHT])
@pytest.mark.parametrize("elements", [None, ELEMENTS, ELEMENTS > 0, ELEMENTS.astype(np.float32), (ELEMENTS > 0) * 1])
def test_weighted_cross_entropy(smoothing, of_class, elements):
    loss = train.CrossEntropy(smoothing, of_class)
    value, dy = loss(LOGITS, CLASSES, elements)
    given = (np.ones((5, 4)) if elements is None else elements, np.ones(3) if of_class is None else of_class)

    def expected(y):
        return cross_entropy(y, CLASSES, *given, smoothing)

    assert value == pytest.approx(expected(LOGITS.astype(np.float64)), rel=1e-5)
    np.testing.assert_allclose(dy, gradient(expected, LOGITS), atol=1e-5)


def test_cross_entropy_is_torchs():
    torch = pytest.importorskip("torch")
    for smoothing in (0.0, 0.3):
        theirs = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHT, dtype=torch.float32), label_smoothing=smoothing)
        y = torch.tensor(LOGITS.reshape(-1, 3), requires_grad=True)
        expected = theirs(y, torch.tensor(CLASSES.ravel()))
        expected.backward()
        value, dy = train.CrossEntropy(smoothing, WEIGHT)(LOGITS, CLASSES)
        assert value == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(dy.reshape(-1, 3), y.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("loss", [train.MSE(), train.MAE(), train.BinaryCrossEntropy()])
def test_weighted_elementwise_losses(loss):
    y, target = LOGITS, RNG.random(LOGITS.shape).astype(np.float32)
    weights = RNG.uniform(0, 2, y.shape) * (RNG.random(y.shape) < 0.7)
    value, dy = loss(y, target, weights)
    values, derivatives = loss.elements(y, target)
    assert value == pytest.approx((weights * values).sum() / weights.sum(), rel=1e-5)
    np.testing.assert_allclose(dy, weights * derivatives / weights.sum(), atol=1e-6)


def test_weight_zero_is_not_read():
    y, target, weights = LOGITS.copy(), CLASSES.copy(), ELEMENTS.copy()
    weights[0, 0] = 0
    expected = train.CrossEntropy()(y, target, weights)
    y[0, 0], target[0, 0] = np.nan, 99
    value, dy = train.CrossEntropy()(y, target, weights)
    assert value == expected[0]
    np.testing.assert_array_equal(dy, expected[1])


def net():
    return nn.Sequential(nn.LSTM(4, 6, rng=1, batch_first=True), nn.Linear(6, 3, rng=2))


X = RNG.standard_normal((30, 7, 4)).astype(np.float32)
Y = RNG.integers(0, 3, (30, 7))
LENGTHS = RNG.integers(1, 8, 30)
OPTIONS = {"lengths": LENGTHS, "optimizer": "sgd", "verbose": False, "shuffle": False, "epochs": 2, "batch_size": 8}


def test_all_ways_to_weigh_are_one():
    """Weights of classes, of samples, and a mask of numbers train to the same weights, bit for bit."""
    valid = np.arange(7) < LENGTHS[:, None]
    ways = (
        {"class_weight": {0: 1, 1: 5, 2: 0.5}},
        {"class_weight": WEIGHT},
        {"class_weight": {1: 5, 2: 0.5}},  # 1 for others
        {"sample_weight": WEIGHT[Y]},
        {"mask": WEIGHT[Y] * valid},
    )
    trained = []
    for way in ways:
        one = net()
        history = one.fit(X, Y, loss="cross_entropy", metrics="accuracy", **OPTIONS, **way)
        trained.append((history["loss"], history["accuracy"], one.state_dict()))
    plain = net().fit(X, Y, loss="cross_entropy", **OPTIONS)
    assert trained[0][0] != plain["loss"]
    for loss, accuracy, state in trained[1:]:
        assert (loss, accuracy) == (trained[0][0], trained[0][1])
        for name, value in state.items():
            np.testing.assert_array_equal(value, trained[0][2][name])


def test_weights_of_samples_count_in_all_their_steps():
    weights = RNG.uniform(0, 2, 30)
    a = net().fit(X, Y, loss="cross_entropy", sample_weight=weights, **OPTIONS)
    b = net().fit(X, Y, loss="cross_entropy", sample_weight=np.repeat(weights[:, None], 7, 1), **OPTIONS)
    assert a["loss"] == b["loss"]


def test_the_mean_of_an_epoch_is_weighted():
    """One batch or many, without a step between: the same mean."""
    weights, frozen = RNG.uniform(0, 2, 30), {"optimizer": train.SGD(0.0)}
    one, many = (
        net().fit(X, Y, loss="cross_entropy", sample_weight=weights, **OPTIONS | frozen | {"batch_size": size})
        for size in (30, 4)
    )
    assert one["loss"][0] == pytest.approx(many["loss"][0], rel=1e-6)


def test_validation_split_takes_the_last_examples():
    parts = {"validation_split": 0.2, "seed": 3, "shuffle": True}
    a, b = net(), net()
    split = a.fit(X, Y, loss="cross_entropy", **OPTIONS | parts)
    given = {"lengths": LENGTHS[:24], "seed": 3, "shuffle": True, "validation_data": (X[24:], Y[24:], LENGTHS[24:])}
    expected = b.fit(X[:24], Y[:24], loss="cross_entropy", **OPTIONS | given)
    assert split["loss"] == expected["loss"] and split["val_loss"] == expected["val_loss"]


def test_names_are_those_of_classes_with_their_defaults():
    x, y = RNG.standard_normal((8, 4)).astype(np.float32), RNG.standard_normal((8, 2)).astype(np.float32)
    for name, loss in (("mse", train.MSE()), ("mae", train.MAE())):
        for by_name, optimizer in (("adam", train.Adam()), ("adamw", train.AdamW()), ("rmsprop", train.RMSprop())):
            a, b = (
                nn.Linear(4, 2, rng=1).fit(x, y, loss=one, optimizer=other, metrics=["mae"], verbose=False)
                for one, other in ((name, by_name), (loss, optimizer))
            )
            assert a["loss"] == b["loss"] and a["mae"] == b["mae"]
        assert nn.Linear(4, 2, rng=1).evaluate(x, y, loss=name) == nn.Linear(4, 2, rng=1).evaluate(x, y, loss=loss)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"loss": "mean"}, InputError, "loss: 'mean' is none of .*mse"),
        ({"optimizer": "adams"}, InputError, "optimizer: 'adams' is none of adam"),
        ({"sample_weight": np.ones(29)}, InputError, "sample_weight: shape is .29."),
        ({"sample_weight": -np.ones(30)}, InputError, "sample_weight: holds -1"),
        ({"sample_weight": np.full(30, np.nan)}, InputError, "sample_weight: holds nan"),
        ({"sample_weight": np.zeros(30)}, InputError, "nothing is left"),
        ({"sample_weight": ["a"] * 30}, InputTypeError, "sample_weight: dtype"),
        ({"class_weight": {}}, InputError, "class_weight: classes are"),
        ({"class_weight": {-1: 2.0}}, InputError, "class_weight: classes are"),
        ({"class_weight": {"a": 2.0}}, InputError, "class_weight: classes are"),
        ({"class_weight": np.ones((2, 2))}, InputError, "class_weight: shape"),
        ({"validation_split": 0.0}, InputError, "validation_split: 0.0 of 30"),
        ({"validation_split": 1.0}, InputError, "validation_split: 1.0 of 30"),
        ({"validation_split": 2.0}, InputError, "validation_split"),
        ({"validation_split": 0.5, "validation_data": (X, Y)}, InputError, "beside validation_data"),
    ],
)
def test_wrong_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        net().fit(X, Y, **OPTIONS | {"loss": "cross_entropy"} | options)


@pytest.mark.parametrize("weight", [[], [0, 0], [-1, 1], [np.inf], np.ones((2, 2))])
def test_wrong_class_weights_of_a_loss_are_refused(weight):
    with pytest.raises(InputError, match="weight"):
        train.CrossEntropy(weight=weight)


def test_classes_without_a_weight_are_refused():
    with pytest.raises(InputError, match=r"weight: shape is \[2\], expected \[3\]"):
        train.CrossEntropy(weight=[1, 2])(LOGITS, CLASSES)
    with pytest.raises(InputError, match="of classes of weight 0"):
        train.CrossEntropy(weight=[1, 0, 0])(LOGITS[:1, :1], np.array([[1]]))
