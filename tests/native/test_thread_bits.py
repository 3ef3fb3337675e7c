"""The number of threads does not change the bits of a result."""

import threading

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.native import _kernels
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests.cases import DIRECTIONS, bits, cells, random_input, random_layer, run, type_options
from tests.native.test_bits import LAYERS, TYPED
from tests.native.threaded import COUNTS, X, model, outputs, run_all

SIZES = [(1, 1, 3, 2), (19, 37, 9, 1), (40, 130, 5, 3), (30, 260, 3, 3), (11, 23, 4, 67)]
"""input_size, hidden_size, T, B: less than a vector, odd, panels for each of 2 threads, of 8, rows for each of them."""


def check(name, weight_type, direction, size):
    """Assert that a layer has the same bits with each number of threads."""
    input_size, hidden_size, T, B = size
    rng = np.random.default_rng(hidden_size)
    options = LAYERS[name] | {"direction": direction}
    if "activations" in options:
        options["activations"] = options["activations"] * len(DIRECTIONS[direction])
    layer = random_layer(rng, input_size=input_size, hidden_size=hidden_size, **options)
    packed = cells(layer, weight_type=weight_type)
    for states, ragged in ((True, False), (False, True)):
        given = random_input(rng, layer, T, B, states=states, lens=rng.integers(0, T + 1, B) if ragged else None)
        expected = bits(run(packed, layer, *given))
        for count in COUNTS[1:]:
            assert bits(run(packed, layer, *given, threads=count)) == expected


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_bits_do_not_depend_on_the_threads(name, direction, size, isa, forced):
    check(name, None, direction, size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
@pytest.mark.parametrize("name", TYPED)
def test_weight_types(name, weight_type, size, isa, forced):
    check(name, weight_type, "bidirectional", size)


@pytest.mark.parametrize("lengths", [None, [40, 7, 0]])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("RNN", {}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": False}),
        ("LSTM", {}),
        ("LSTM", {"proj_size": 50}),
        ("LSTM", {"batch_first": True}),
        ("GRU", {"merge": "sum"}),
    ],
    ids=str,
)
def test_stacks_of_layers(kind, options, lengths, forced):
    x = np.ascontiguousarray(X.swapaxes(0, 1)) if "batch_first" in options else X
    expected = outputs(model(kind, 1, **options), x, lengths)
    for count in COUNTS[1:]:
        assert outputs(model(kind, count, **options), x, lengths) == expected


@pytest.mark.parametrize("size", [(1, 5, 7), (3, 64, 1000), (300, 70, 130), (1000, 33, 17)], ids=str)
@pytest.mark.parametrize("key", [None, *WEIGHT_TYPES])
def test_dense_layers(key, size, isa, forced):
    def layer(threads):
        made = nn.Linear(k, n, rng=2, threads=threads)
        return made if key is None else made.quantized(**type_options(key))

    rows, k, n = size
    x = np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)
    expected = layer(1)(x).tobytes()
    for count in COUNTS[1:]:
        assert layer(count)(x).tobytes() == expected


def test_many_threads_call_threaded_layers(forced):
    layer, wrong = model(), []
    expected = outputs(layer, X)

    def work():
        for _ in range(5):
            if outputs(layer, X) != expected:
                wrong.append(1)

    run_all([threading.Thread(target=work) for _ in range(6)])
    assert not wrong


def test_the_instruction_set_changes_between_threaded_calls(forced):
    """Workers outlive the choice under which they were made."""
    layer, before = model(), _kernels.get_isa()
    expected = outputs(layer, X)
    try:
        for name in _kernels.isas():
            _kernels.set_isa(name)
            assert outputs(layer, X) == expected
    finally:
        _kernels.set_isa(before)
