"""Recurrent layers against the float64 reference, and the bits that they promise."""

import itertools
import threading

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError
from tests.nn.helpers import (
    DIRECTIONS,
    GATES,
    TOLERANCE,
    VARIANTS,
    assert_close,
    call,
    expected,
    initial_states,
    uniform,
)


# ------------------------------------------------------------------------------------------------- every variant
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_reference(variant, direction):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(len(variant) * 10 + len(direction))
    lengths = np.array([3, 5, 0, 1])
    for num_layers, bias, batch_first, ragged, stated in itertools.product((1, 2), *[(False, True)] * 4):
        layer = getattr(nn, kind)(
            5, 7, num_layers, bias=bias, batch_first=batch_first, rng=rng, **keywords, **DIRECTIONS[direction]
        )
        x = uniform(rng, 5, 4, 5)
        states = initial_states(layer, rng, 4) if stated else []
        used = lengths if ragged else None
        y, last = call(layer, x.swapaxes(0, 1) if batch_first else x, states, used)
        want, want_last = expected(layer, x, *states, lengths=used)
        assert_close(y, want.swapaxes(0, 1) if batch_first else want)
        for got, state in zip(last, want_last, strict=True):
            assert_close(got, state)
        if ragged:
            for row, length in enumerate(lengths):
                assert not (y[row, length:] if batch_first else y[length:, row]).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_at_the_edges_of_a_vector(variant, isa):
    kind, keywords = VARIANTS[variant]
    for hidden_size in (4, 15, 16, 17, 33):
        rng = np.random.default_rng(hidden_size)
        layer = getattr(nn, kind)(3, hidden_size, bidirectional=True, rng=rng, **keywords)
        x, states = uniform(rng, 4, 3, 3), initial_states(layer, rng, 3)
        y, last = call(layer, x, states)
        want, want_last = expected(layer, x, *states)
        for got, right in zip([y, *last], [want, *want_last], strict=True):
            assert_close(got, right)


@pytest.mark.parametrize("variant", VARIANTS)
def test_blas_is_close(variant):
    pytest.importorskip("scipy")
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(5)
    layer = getattr(nn, kind)(5, 9, 2, bidirectional=True, matmul="blas", rng=rng, **keywords)
    x, states, lengths = uniform(rng, 6, 3, 5), initial_states(layer, rng, 3), [2, 6, 3]
    y, last = call(layer, x, states, lengths)
    want, want_last = expected(layer, x, *states, lengths=lengths)
    for got, right in zip([y, *last], [want, *want_last], strict=True):
        assert_close(got, right)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_batch(variant, batch_first):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(3)
    layer = getattr(nn, kind)(5, 7, 2, bidirectional=True, batch_first=batch_first, rng=rng, **keywords)
    x, states = uniform(rng, 6, 5), initial_states(layer, rng)
    y, last = call(layer, x, states)
    want, want_last = call(layer, x[None] if batch_first else x[:, None], [s[:, None] for s in states])
    np.testing.assert_array_equal(y, want[0] if batch_first else want[:, 0])
    for got, state in zip(last, want_last, strict=True):
        np.testing.assert_array_equal(got, state[:, 0])


@pytest.mark.parametrize("steps, rows", [(0, 3), (4, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_and_single(variant, steps, rows):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(3)
    layer = getattr(nn, kind)(5, 7, 2, bidirectional=True, rng=rng, **keywords)
    x, states = uniform(rng, steps, rows, 5), initial_states(layer, rng, rows)
    y, last = call(layer, x, states)
    want, want_last = expected(layer, x, *states)
    for got, right in zip([y, *last], [want, *want_last], strict=True):
        assert got.shape == right.shape
        np.testing.assert_allclose(got, right, atol=TOLERANCE)


def test_no_lengths_for_no_rows():
    assert nn.LSTM(5, 7)(np.zeros((4, 0, 5), np.float32), lengths=[])[0].shape == (4, 0, 7)
    with pytest.raises(InputError, match=r"lengths: shape is \[0\], expected \[3\]"):
        nn.LSTM(5, 7)(np.zeros((4, 3, 5), np.float32), lengths=[])


def test_either_state_of_an_lstm_may_be_absent():
    rng = np.random.default_rng(1)
    layer = nn.LSTM(5, 7, rng=rng)
    x, (h0, c0) = uniform(rng, 4, 2, 5), initial_states(layer, rng, 2)
    for hx, same in (((h0, None), (h0, 0 * c0)), ((None, c0), (0 * h0, c0)), (None, (0 * h0, 0 * c0))):
        np.testing.assert_array_equal(layer(x, hx)[0], layer(x, same)[0])


@pytest.mark.parametrize("view", ["step", "reversed", "last axis", "unaligned", "read-only", "broadcast"])
def test_any_memory_layout_of_x(view):
    rng = np.random.default_rng(1)
    layer = nn.GRU(5, 7, bidirectional=True, rng=rng)
    whole = uniform(rng, 8, 6, 10)
    x = {
        "step": whole[::2, 1::2, :5],
        "reversed": whole[::-1, ::-1, :5],
        "last axis": whole[:, :, ::2],
        "unaligned": np.frombuffer(b"\0" + whole[:, :, :5].tobytes(), np.uint8)[1:].view(np.float32).reshape(8, 6, 5),
        "read-only": whole[:, :, :5].copy(),
        "broadcast": np.broadcast_to(whole[:1, :, :5], (8, 6, 5)),
    }[view]
    if view == "read-only":
        x.flags.writeable = False
    y, h = layer(x)
    want, want_h = layer(x.copy())
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(h, want_h)


# ------------------------------------------------------------------------------------------------- promises
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_has_the_bits_that_it_has_alone(variant):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(8)
    layer = getattr(nn, kind)(5, 19, 2, bidirectional=True, rng=rng, **keywords)
    x, states, lengths = uniform(rng, 6, 9, 5), initial_states(layer, rng, 9), rng.integers(0, 7, 9)
    y, last = call(layer, x, states, lengths)
    for b, length in enumerate(lengths):
        alone, alone_last = call(layer, x[:length, b : b + 1], [s[:, b : b + 1] for s in states])
        np.testing.assert_array_equal(y[:length, b], alone[:, 0])
        for got, state in zip(last, alone_last, strict=True):
            np.testing.assert_array_equal(got[:, b], state[:, 0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_native_call_for_a_stack_has_the_bits_of_its_layers(variant, batch_first):
    """Whole sequences with contiguous states take one native call; strided states or lengths go layer by layer."""
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(12)
    layer = getattr(nn, kind)(5, 19, 3, bidirectional=True, batch_first=batch_first, rng=rng, **keywords)
    x, states = uniform(rng, 7, 4, 5), initial_states(layer, rng, 4)
    x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    y, last = call(layer, x, states)
    for other in (call(layer, x, [np.asfortranarray(s) for s in states]), call(layer, x, states, [7] * 4)):
        np.testing.assert_array_equal(other[0], y)
        for got, want in zip(other[1], last, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frame_by_frame_has_the_bits_of_the_whole(variant):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(9)
    layer = getattr(nn, kind)(5, 19, 2, rng=rng, **keywords)
    x, states = uniform(rng, 11, 3, 5), initial_states(layer, rng, 3)
    whole, whole_last = call(layer, x, states)
    for cuts in ([1] * 11, [4, 1, 6], [10, 1]):
        parts, last = [], states
        for part in np.split(x, np.cumsum(cuts)[:-1]):
            y, last = call(layer, part, last)
            parts.append(y)
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        for got, state in zip(last, whole_last, strict=True):
            np.testing.assert_array_equal(got, state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_share_one_layer(variant):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(4)
    layer = getattr(nn, kind)(5, 33, 2, bidirectional=True, rng=rng, **keywords)
    jobs = [(uniform(rng, 20, 1 + i % 3, 5), initial_states(layer, rng, 1 + i % 3)) for i in range(8)]
    want = [call(layer, *job) for job in jobs]
    wrong, barrier = [], threading.Barrier(len(jobs))

    def work(i):
        barrier.wait()
        for _ in range(5):
            y, last = call(layer, *jobs[i])
            if any(not np.array_equal(a, b) for a, b in zip([y, *last], [want[i][0], *want[i][1]], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", GATES)
def test_a_call_changes_nothing(kind):
    rng = np.random.default_rng(2)
    layer = getattr(nn, kind)(5, 7, rng=rng)
    x, states = uniform(rng, 4, 3, 5), initial_states(layer, rng, 3)
    kept = [a.copy() for a in (x, *states, *layer.state_dict().values())]
    first, first_last = call(layer, x, states)
    second, second_last = call(layer, x, states)
    for a, b in zip([first, *first_last], [second, *second_last], strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, b)
    for a, b in zip([x, *states, *layer.state_dict().values()], kept, strict=True):
        np.testing.assert_array_equal(a, b)
