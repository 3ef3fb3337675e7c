"""A row's result has the same bits whatever the batch, the split in time, the threads and the instruction set."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast.native import _kernels
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
sizes = st.tuples(st.integers(1, 70), st.integers(1, 40))


def make(name, sizes, seed):
    rng = np.random.default_rng(seed)
    hidden_size, input_size = sizes
    layer = random_layer(rng, input_size=input_size, hidden_size=hidden_size, **LAYERS[name])
    return rng, layer, cells(layer)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=sizes, T=st.integers(1, 7), B=st.integers(2, 21), seed=st.integers(0, 2**31))
def test_a_row_alone_and_in_any_batch(name, sizes, T, B, seed):
    rng, layer, packed = make(name, sizes, seed)
    x, h, c, _ = random_input(rng, layer, T, B)
    whole = run(packed, layer, x, h, c)
    order = rng.permutation(B)
    shuffled = run(packed, layer, np.ascontiguousarray(x[:, order]), h[:, order], None if c is None else c[:, order])
    assert bits(shuffled) == bits([whole[0][:, :, order], *(s[:, order] for s in whole[1:])])
    for b in (0, B // 2, B - 1):
        row = slice(b, b + 1)
        alone = run(packed, layer, np.ascontiguousarray(x[:, row]), h[:, row], None if c is None else c[:, row])
        assert bits(alone) == bits([whole[0][:, :, row], *(s[:, row] for s in whole[1:])])


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=sizes, T=st.integers(2, 150), B=st.integers(1, 5), seed=st.integers(0, 2**31), data=st.data())
def test_whole_in_chunks_and_frame_by_frame(name, sizes, T, B, seed, data):
    rng, layer, packed = make(name, sizes, seed)
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
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    sizes=sizes,
    T=st.integers(1, 9),
    lens=st.lists(st.integers(0, 9), min_size=2, max_size=9),
    seed=st.integers(0, 2**31),
)
def test_a_ragged_row_is_the_row_alone(name, direction, sizes, T, lens, seed):
    rng = np.random.default_rng(seed)
    kinds = LAYERS[name] | {"direction": direction}
    if "activations" in kinds:
        kinds["activations"] = kinds["activations"] * len(DIRECTIONS[direction])
    layer = random_layer(rng, input_size=sizes[1], hidden_size=sizes[0], **kinds)
    packed = cells(layer)
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


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=sizes, T=st.integers(1, 5), B=st.integers(1, 11), seed=st.integers(0, 2**31))
def test_every_instruction_set(name, sizes, T, B, seed):
    rng, layer, packed = make(name, sizes, seed)
    x, h, c, _ = random_input(rng, layer, T, B)
    before, results = _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            results.append(bits(run(packed, layer, x, h, c)))
    finally:
        _kernels.set_isa(before)
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("name", LAYERS)
def test_threads_calling_at_once(name):
    rng, layer, packed = make(name, (37, 19), 5)
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


@settings(max_examples=30, derandomize=True, deadline=None)
@given(rows=st.integers(1, 40), k=st.integers(0, 70), n=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_matrix_rows(rows, k, n, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((k, n)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    matrix = _kernels.Matrix(weight, bias, matmul="packed")
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
