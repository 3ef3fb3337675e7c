"""Training of small digits is right, and an engine that trains wrongly is not timed."""

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import mnist
from tests.bench.helpers import EFFORT, FIT, of_training


@pytest.mark.parametrize("engine", of_training(mnist.ENGINES), ids=lambda engine: engine.name)
def test_fits_are_right(engine):
    if not engine.installed():
        pytest.skip(f"{engine.name} is not installed")
    result = mnist.measure(FIT, [engine], 1, **EFFORT)[engine.name]
    assert result["status"] == "ok" and 0 < result["error"] < 1e-5 and result["seconds"][1] > 0, result


def test_a_wrong_fit_is_not_timed():
    pytest.importorskip("torch")

    class Wrong(mnist.Torch):
        def build(self, *args):
            fit, values = super().build(*args)
            return fit, lambda: {name: a * np.float32(1.001) for name, a in values().items()}

    result = mnist.measure(FIT, [Wrong()], 1, **EFFORT)["torch"]
    assert result["status"] == "wrong" and "seconds" not in result


def test_images(monkeypatch, tmp_path):
    """The digits, or random images of their form."""
    monkeypatch.setattr(mnist, "DATA", tmp_path / "digits.npz")
    random = mnist.data(5)
    images, labels = np.arange(7 * 28 * 28).reshape(7, 28, 28) % 256, np.arange(7)
    np.savez(mnist.DATA, images=images.astype(np.uint8), labels=labels.astype(np.uint8))
    digits = mnist.data(5)
    for x, y in (random, digits):
        assert x.shape == (5, 28, 28) and x.dtype == np.float32 and 0 <= x.min() and 0.9 < x.max() <= 1
        assert y.shape == (5,) and y.dtype == np.int64 and y.min() >= 0 and y.max() < 10
    assert np.array_equal(digits[1], labels[:5]) and np.allclose(digits[0] * 255, images[:5])
