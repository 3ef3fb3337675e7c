"""Batch, layer, group and instance normalisation against their formulas in float64."""

import re

import numpy as np
import pytest

from rnnfast.errors import InputError, UnsupportedError
from tests.graphs import load, one_node
from tests.onnx.ops.helpers import assert_close, floats, run


def test_batch_normalization_forms():
    rng = np.random.default_rng(15)
    x = floats(rng, 4, 3, 5)
    scale, bias, mean, variance = (floats(rng, 3) for _ in range(4))
    variance = np.abs(variance)
    exact = x.astype(np.float64)
    column = [p.astype(np.float64)[:, None] for p in (scale, bias, mean, variance)]
    expected = ((exact - column[2]) / np.sqrt(column[3] + 0.1) * column[0] + column[1]).astype(np.float32)
    for opset, attributes in [(6, dict(is_test=1)), (7, {}), (8, dict(spatial=1)), (9, {}), (14, {}), (15, {})]:
        y = run("BatchNormalization", [x, scale, bias, mean, variance], opset, epsilon=0.1, **attributes)
        assert_close(y[0] if isinstance(y, tuple) else y, expected)
    place = [floats(rng, 3, 5) for _ in range(4)]
    y = run("BatchNormalization", [x, *place[:3], np.abs(place[3])], 7, spatial=0)
    assert_close(y, ((x - place[2]) / np.sqrt(np.abs(place[3]) + 1e-5) * place[0] + place[1]))
    y, running_mean, running_variance = run(
        "BatchNormalization",
        [x, scale, bias, mean, variance],
        15,
        epsilon=0.1,
        momentum=0.8,
        training_mode=1,
        n_outputs=3,
    )
    batch_mean, batch_variance = exact.mean((0, 2))[:, None], exact.var((0, 2))[:, None]
    assert_close(y, ((exact - batch_mean) / np.sqrt(batch_variance + 0.1) * column[0] + column[1]).astype(np.float32))
    assert_close(running_mean, (0.8 * mean + 0.2 * batch_mean[:, 0]).astype(np.float32))
    assert_close(running_variance, (0.8 * variance + 0.2 * batch_variance[:, 0]).astype(np.float32))
    with pytest.raises(UnsupportedError, match="training"):
        run("BatchNormalization", [x, scale, bias, mean, variance], 9, n_outputs=5)


def test_normalization_over_trailing_axes_and_groups():
    rng = np.random.default_rng(16)
    x, scale, bias = floats(rng, 2, 6, 5), floats(rng, 6, 5), floats(rng, 5)
    exact = x.astype(np.float64)
    mean, deviation = exact.mean((1, 2), keepdims=True), np.sqrt(exact.var((1, 2), keepdims=True) + 0.1)
    y, saved_mean, inverse = run("LayerNormalization", [x, scale, bias], axis=-2, epsilon=0.1)
    assert_close(y, ((exact - mean) / deviation * scale + bias).astype(np.float32))
    assert_close(saved_mean, mean.astype(np.float32))
    assert_close(inverse, (1 / deviation).astype(np.float32))
    groups = exact.reshape(2, 3, 10)
    normal = ((groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)).reshape(2, 6, 5)
    per_channel, per_group = floats(rng, 6), floats(rng, 3)
    y = run("GroupNormalization", [x, per_channel, per_channel], 21, num_groups=3)
    assert_close(y, ((normal + 1) * per_channel[:, None]).astype(np.float32))
    y = run("GroupNormalization", [x, per_group, per_group], 18, num_groups=3)
    assert_close(y, ((normal + 1) * np.repeat(per_group, 2)[:, None]).astype(np.float32))
    y = run("InstanceNormalization", [x, per_channel, per_channel])
    each = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + 1e-5)
    assert_close(y, ((each + 1) * per_channel[:, None]).astype(np.float32))


# name -> (operator, opset, the shapes of its parameters, attributes, error, its message)
REFUSED = {
    "training before opset 7": ("BatchNormalization", 6, [(3,)] * 4, {}, UnsupportedError, "is_test = 0"),
    "parameters of positions": ("BatchNormalization", 7, [(3,)] * 4, {"spatial": 0}, InputError, "scale has shape"),
    "parameters of groups": ("GroupNormalization", 18, [(3,)] * 2, {"num_groups": 1}, InputError, "expected (1,)"),
    "no groups": ("GroupNormalization", 21, [(3,)] * 2, {"num_groups": -1}, InputError, "do not make -1 groups"),
    "a scale": ("LayerNormalization", 17, [(7,)], {}, InputError, "scale of shape (7,)"),
    "a bias": ("LayerNormalization", 17, [(1,), (7,)], {}, InputError, "bias of shape (7,)"),
}


@pytest.mark.parametrize("length", [2, 500])
@pytest.mark.parametrize("name", REFUSED)
def test_results_that_a_trace_does_not_compute_are_refused_too(name, length):
    """It computes small results, and of large ones only the shapes."""
    op, opset, shapes, attributes, error, message = REFUSED[name]
    parameters = {f"p{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    x = np.ones((2, 3, length), np.float32)
    model = load(one_node(op, {"x": x} | parameters, opset=opset, constants=parameters, **attributes))
    with pytest.raises(error, match=re.escape(message)):
        model(x=x)
