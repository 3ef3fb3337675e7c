"""A loss or gradient that is not finite stops training with a message that names its origin."""

import numpy as np
import pytest

from rnnfast import nn, train
from rnnfast.errors import DivergedError
from tests.train.helpers import assert_same_weights, tagged


class Exploding(nn.Module):
    """Infinite from its third training call on."""

    calls = 0

    def __call__(self, x):
        return x

    def _forward(self, x, rng):
        self.calls += 1
        return (x * np.float32(np.inf), x) if self.calls > 2 else (x, x)

    def _backward(self, dy, x):
        return dy, {}


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    x, y, lengths = tagged(8)
    net = nn.Sequential(nn.Embedding(6, 5, rng=1), nn.Sequential(nn.Tanh(), Exploding()), nn.Linear(5, 3, rng=2))
    path = tmp_path / "c"
    with pytest.raises(
        DivergedError,
        match=r"epoch 2, batch 1 of 2, step 3 \(examples 0, 1, 2, 3\): the loss is nan; "
        r"the first output that is not finite is that of layer 1.1 Exploding\(\)",
    ):
        net.fit(
            x,
            y,
            loss=train.CrossEntropy(),
            optimizer=train.SGD(0.1),
            epochs=9,
            batch_size=4,
            shuffle=False,
            checkpoint=path,
        )
    saved = nn.Sequential(nn.Embedding(6, 5), nn.Sequential(nn.Tanh(), nn.Tanh()), nn.Linear(5, 3))
    assert train.load_checkpoint(path, saved).epochs == 1
    assert_same_weights(net, saved)


def test_divergence_names_what_is_wrong():
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    options = {"loss": train.MSE(), "optimizer": train.SGD(1e30), "epochs": 5, "seed": 1}
    net = nn.Linear(3, 2, rng=1)
    with pytest.raises(DivergedError, match=r"step [23] .*: the loss is inf; all outputs are finite"):
        net.fit(x, y, **options)
    for wrong, message in (
        ((x * np.nan, y), "the input x is not finite"),
        ((x, y * np.inf), "the target is not finite"),
    ):
        with pytest.raises(DivergedError, match=message):
            nn.Linear(3, 2, rng=1).fit(*wrong, **options)
    with pytest.raises(DivergedError, match="the loss is inf; all outputs are finite"):
        nn.Linear(3, 2, rng=1).fit(x * np.float32(1e30), y, **options)
    with pytest.raises(DivergedError, match="epoch 1: the loss of validation_data is nan"):
        nn.Linear(3, 2, rng=1).fit(x, y, validation_data=(x * np.nan, y), **options)
    dead = nn.Sequential(nn.Linear(3, 2, rng=1))
    with pytest.raises(DivergedError, match=r"step \d .*: the loss is 1, the gradient of 0.weight is not finite"):
        dead.fit(x, y, **options | {"loss": lambda y, t, mask: (1.0, y * np.float32(np.nan))})
