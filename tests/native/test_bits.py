"""A row's result has the same bits whatever the batch, the split in time, the threads and the instruction set."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast.native import _kernels
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests.cases import DIRECTIONS, bits, cells, random_input, random_layer, run

LAYERS = {
    "RNN tanh": dict(kind="RNN"),
    "RNN relu": dict(kind="RNN", activations=(("Relu",),)),
    "RNN general": dict(kind="RNN", activations=(("ScaledTanh",),), clip=0.9),
    "LSTM": dict(kind="LSTM"),
    "LSTM general": dict(kind="LSTM", peepholes=True, clip=1.5, activations=(("HardSigmoid", "Softsign", "Elu"),)),
    "LSTM coupled": dict(kind="LSTM", input_forget=True),
    "GRU": dict(kind="GRU", linear_before_reset=True),
    "GRU reset first": dict(kind="GRU"),
    "GRU general": dict(kind="GRU", activations=(("Affine", "Softplus"),), clip=0.8, linear_before_reset=True),
    "GRU reset first general": dict(kind="GRU", activations=(("Sigmoid", "LeakyRelu"),), clip=1.1),
}
# Every layer in float32, and with weights of each type some: bounded and unbounded states, with all forms of products.
TYPED = ("RNN relu", "LSTM", "LSTM general", "GRU", "GRU reset first general")
CASES = [(name, None) for name in LAYERS] + [(name, key) for key in WEIGHT_TYPES for name in TYPED]
# Largest error of sums of 5,003 equal products of int8 weights, relative: each is rounded in float32, and all roundings
# may go the same way. Measured: 0 where weights are 1 and 0.5.
LONG_ROWS = 1e-4
sizes = st.tuples(st.integers(1, 70), st.integers(1, 40))


def make(name, weight_type, sizes, seed):
    rng = np.random.default_rng(seed)
    hidden_size, input_size = sizes
    layer = random_layer(rng, input_size=input_size, hidden_size=hidden_size, **LAYERS[name])
    return rng, layer, cells(layer, weight_type=weight_type)


@pytest.mark.parametrize("name, weight_type", CASES)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=sizes, T=st.integers(1, 7), B=st.integers(2, 21), seed=st.integers(0, 2**31))
def test_a_row_alone_and_in_any_batch(name, weight_type, sizes, T, B, seed):
    rng, layer, packed = make(name, weight_type, sizes, seed)
    x, h, c, _ = random_input(rng, layer, T, B)
    whole = run(packed, layer, x, h, c)
    order = rng.permutation(B)
    shuffled = run(packed, layer, np.ascontiguousarray(x[:, order]), h[:, order], None if c is None else c[:, order])
    assert bits(shuffled) == bits([whole[0][:, :, order], *(s[:, order] for s in whole[1:])])
    for b in (0, B // 2, B - 1):
        row = slice(b, b + 1)
        alone = run(packed, layer, np.ascontiguousarray(x[:, row]), h[:, row], None if c is None else c[:, row])
        assert bits(alone) == bits([whole[0][:, :, row], *(s[:, row] for s in whole[1:])])


@pytest.mark.parametrize("name, weight_type", CASES)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=sizes, T=st.integers(2, 150), B=st.integers(1, 5), seed=st.integers(0, 2**31), data=st.data())
def test_whole_in_chunks_and_frame_by_frame(name, weight_type, sizes, T, B, seed, data):
    rng, layer, packed = make(name, weight_type, sizes, seed)
    x, h, c, _ = random_input(rng, layer, T, B)
    whole = run(packed, layer, x, h, c)
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=4)))
    for borders in ([0, *cuts, T], range(T + 1)):
        state, outputs = (h, c), []
        for start, end in zip(borders, borders[1:]):
            y, *last = run(packed, layer, x[start:end], *state)
            outputs.append(y)
            state = (last + [None])[:2]
        assert bits([np.concatenate(outputs), *last]) == bits(whole)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name, weight_type", CASES)
@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    sizes=sizes,
    T=st.integers(1, 9),
    lens=st.lists(st.integers(0, 9), min_size=2, max_size=9),
    seed=st.integers(0, 2**31),
)
def test_a_ragged_row_is_the_row_alone(name, weight_type, direction, sizes, T, lens, seed):
    rng = np.random.default_rng(seed)
    kinds = LAYERS[name] | {"direction": direction}
    if "activations" in kinds:
        kinds["activations"] = kinds["activations"] * len(DIRECTIONS[direction])
    layer = random_layer(rng, input_size=sizes[1], hidden_size=sizes[0], **kinds)
    packed = cells(layer, weight_type=weight_type)
    lens = np.minimum(lens, T)
    x, h, c, _ = random_input(rng, layer, T, len(lens))
    whole = run(packed, layer, x, h, c, lens)
    for b, n in enumerate(lens):
        row = slice(b, b + 1)
        assert not np.any(whole[0][n:, :, b]), "padding is zeros"
        if n == 0:
            assert not any(np.any(s[:, b]) for s in whole[1:])
            continue
        alone = run(packed, layer, np.ascontiguousarray(x[:n, row]), h[:, row], None if c is None else c[:, row])
        assert bits(alone) == bits([whole[0][:n, :, row], *(s[:, row] for s in whole[1:])])


@pytest.mark.parametrize("name, weight_type", CASES)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=sizes, T=st.integers(1, 5), B=st.integers(1, 11), seed=st.integers(0, 2**31))
def test_every_instruction_set(name, weight_type, sizes, T, B, seed):
    rng, layer, packed = make(name, weight_type, sizes, seed)
    x, h, c, _ = random_input(rng, layer, T, B)
    before, results = _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            results.append(bits(run(packed, layer, x, h, c)))
    finally:
        _kernels.set_isa(before)
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("name, weight_type", CASES)
def test_threads_calling_at_once(name, weight_type):
    rng, layer, packed = make(name, weight_type, (37, 19), 5)
    x, h, c, _ = random_input(rng, layer, 60, 6)
    expected = bits(run(packed, layer, x, h, c))
    wrong = []

    def work():
        for _ in range(20):
            if bits(run(packed, layer, x, h, c)) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("weight_type", [None, *WEIGHT_TYPES])
@settings(max_examples=30, derandomize=True, deadline=None)
@given(rows=st.integers(1, 40), k=st.integers(0, 70), n=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_matrix_rows(weight_type, rows, k, n, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((k, n)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    matrix = _kernels.Matrix(weight, bias, matmul="packed", weight_type=weight_type)
    before, results = _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            whole = matrix.multiply(x)
            results.append(whole.tobytes())
            assert np.concatenate([matrix.multiply(x[i : i + 1]) for i in range(rows)]).tobytes() == whole.tobytes()
    finally:
        _kernels.set_isa(before)
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("weight_type", [None, *WEIGHT_TYPES])
def test_long_rows_of_the_largest_values(weight_type):
    """Sums of 5,003 equal products of the largest integers, on every instruction set."""
    weight = np.ones((5003, 19), np.float32) * np.float32([1, -1] * 9 + [0.5])
    weight[7] *= 0.5  # so that no column is one integer for all
    x = np.full((3, 5003), 2, np.float32)
    x[1] *= -1
    x[2, 11:] = 0
    matrix = _kernels.Matrix(weight, matmul="packed", weight_type=weight_type)
    before, results = _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            results.append(matrix.multiply(x))
    finally:
        _kernels.set_isa(before)
    assert all(bits([y]) == bits([results[0]]) for y in results)
    held = weight if weight_type is None else WEIGHT_TYPES[weight_type].rounded(weight)
    np.testing.assert_allclose(results[0], x.astype(np.float64) @ held, rtol=LONG_ROWS)
