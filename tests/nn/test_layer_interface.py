"""The internal interface of layers: pickles of older versions, results written to given arrays, and imports."""

import subprocess
import sys

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError
from tests.nn.helpers import uniform

OLD_NAMES = {
    "loaded_weights": "_weights",
    "thread_count": "_threads",
    "reversed_directions": "_reverse",
    "resolved_activations": "_activations",
}

LAYERS = {
    "LSTM": lambda: nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3, activations=("HardSigmoid", "Tanh", "Tanh")),
    "GRU": lambda: nn.GRU(5, 7, reverse=True),
    "Linear": lambda: nn.Linear(5, 7),
    "Embedding": lambda: nn.Embedding(10, 5),
    "Attention": lambda: nn.Attention(5, 5, "additive", threads=2),
    "Sequential": lambda: nn.Sequential(nn.GRU(5, 3), nn.Linear(3, 2)),
}


def old_state(layer):
    """The attributes of a layer as pickles of older versions have them."""
    state = {OLD_NAMES.get(name, name): value for name, value in layer.__getstate__().items()}
    if hasattr(layer, "state_widths"):
        state |= {"_count": layer.state_count, "_widths": layer.state_widths}
        state |= {"_output_size": layer.output_size, "_merged_size": layer.merged_size}
    return state


@pytest.mark.parametrize("name", LAYERS)
def test_pickles_of_older_versions_load(name):
    layer = LAYERS[name]()
    other = type(layer).__new__(type(layer))
    other.__setstate__(old_state(layer))
    assert vars(other).keys() == vars(layer).keys()
    assert repr(other) == repr(layer)
    state, expected = other.state_dict(), layer.state_dict()
    assert state.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(state[key], array)
    x = np.arange(10) if name == "Embedding" else uniform(np.random.default_rng(1), 4, 3, 5)
    results = [one(x, x) if name == "Attention" else one(x) for one in (layer, other)]
    y, z = (result[0] if isinstance(result, tuple) else result for result in results)
    np.testing.assert_array_equal(y, z)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 7),
        nn.ReLU(),
        nn.LeakyReLU(0.3),
        nn.Hardsigmoid(),
        nn.Dropout(),
        nn.LayerNorm(5),
        nn.GRU(5, 7),
        nn.Sequential(nn.Linear(5, 4), nn.Tanh()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (0, 5)])
def test_call_into_writes_the_bits_of_a_call(layer, shape):
    x = uniform(np.random.default_rng(1), *shape)
    expected = layer(x)[0] if isinstance(layer, nn.GRU) else layer(x)
    out = np.full(expected.shape, np.nan, np.float32)
    assert layer.call_into(x, out) is None
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_call_into_of_an_embedding(dtype, shape):
    layer = nn.Embedding(10, 5)
    x = np.random.default_rng(1).integers(0, 10, shape).astype(dtype)
    out = np.full((*shape, 5), np.nan, np.float32)
    layer.call_into(x, out)
    np.testing.assert_array_equal(out, layer(x))


@pytest.mark.parametrize("x", [-1, 10])
def test_call_into_of_an_embedding_refuses_what_a_call_refuses(x):
    layer, out = nn.Embedding(10, 5), np.zeros((2, 5), np.float32)
    with pytest.raises(InputError, match=rf"x: {x} at \[1\], expected 0 to 9"):
        layer.call_into(np.array([0, x]), out)
    with pytest.raises(InputTypeError, match="expected integers"):
        layer.call_into(np.zeros(2), out)
    assert not out.any()


def test_layers_import_nothing_that_builds_on_them():
    code = (
        "import sys, rnnfast.nn; names = {name.split('.')[1] for name in sys.modules if name.startswith('rnnfast.')};"
        "print(sorted(names & {'streaming', 'serving', 'train', 'export', 'onnx', 'cli', 'plot', 'model'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
