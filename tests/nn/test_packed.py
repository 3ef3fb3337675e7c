"""Packed sequences: packing as torch does it, and layers on them with the bits that lengths= gives."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.native import _engine

TOLERANCE = 2e-6
"""Largest difference, as in test_torch.py: both sides compute in float32, with a few roundings a step."""

LENGTHS = [3, 7, 1, 7, 4]
LAYERS = {
    "RNN": ("RNN", {}),
    "GRU reversed": ("GRU", {"reverse": True}),
    "GRU reset first, both": ("GRU", {"bidirectional": True, "linear_before_reset": False, "num_layers": 2}),
    "LSTM stack": ("LSTM", {"num_layers": 3, "batch_first": True}),
    "LSTM projected": ("LSTM", {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
    "LSTM sum": ("LSTM", {"bidirectional": True, "merge": "sum", "num_layers": 2, "batch_first": True}),
    "GRU mul, last output": ("GRU", {"bidirectional": True, "merge": "mul", "return_sequences": False}),
    "LSTM last output": ("LSTM", {"return_sequences": False}),
    "LSTM peepholes": ("LSTM", {"peepholes": True, "clip": 0.5}),
    "RNN two threads": ("RNN", {"threads": 2, "bidirectional": True}),
    "LSTM BLAS": ("LSTM", {"matmul": "blas"}),
}


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def run(layer, x, states, lengths=None):
    """y and the tuple of last states."""
    if layer.kind == "LSTM":
        return layer(x, tuple(states), lengths)
    y, h = layer(x, states[0], lengths)
    return y, (h,)


def random_states(rng, layer, rows):
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: 2 if layer.kind == "LSTM" else 1]
    return [normal(rng, count, rows, size) for size in sizes]


def assert_same(got, want):
    """torch's packed sequence and ours."""
    for field, value in zip(nn.PackedSequence._fields, got, strict=True):
        theirs = getattr(want, field)
        if theirs is None:
            assert value is None
        else:
            assert np.array_equal(value, theirs.numpy()) and value.dtype == theirs.numpy().dtype


# ------------------------------------------------------------------------------------------------ packing
@pytest.mark.parametrize(
    "batch_first, enforce_sorted, dtype, rest",
    list(itertools.product((False, True), (False, True), (np.float32, np.float64, np.int64), ((), (3,), (2, 5)))),
)
def test_padded_sequences_are_packed_as_in_torch(batch_first, enforce_sorted, dtype, rest):
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn
    rng = np.random.default_rng(5)
    lengths = sorted(LENGTHS, reverse=True) if enforce_sorted else LENGTHS
    shape = (5, 9) if batch_first else (9, 5)  # longer than the longest
    x = (100 * rng.standard_normal((*shape, *rest))).astype(dtype)
    want = rnn.pack_padded_sequence(torch.from_numpy(x), torch.tensor(lengths), batch_first, enforce_sorted)
    for given_as in (list, tuple, np.array, lambda n: np.array(n, np.int32), torch.tensor):
        packed = nn.pack_padded_sequence(x, given_as(lengths), batch_first, enforce_sorted)
        assert_same(packed, want)
    for out_first, value, total in itertools.product((False, True), (0, -7), (None, 7, 11)):
        y, counts = nn.pad_packed_sequence(packed, out_first, value, total)
        theirs, their_counts = rnn.pad_packed_sequence(want, out_first, value, total)
        assert np.array_equal(y, theirs.numpy()) and y.dtype == dtype
        assert np.array_equal(counts, their_counts.numpy()) and counts.tolist() == lengths
    for one, theirs in zip(nn.unpack_sequence(packed), rnn.unpack_sequence(want), strict=True):
        assert np.array_equal(one, theirs.numpy())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_sequences_come_back_as_they_were_packed(lengths):
    sequences = [np.arange(2 * n).reshape(n, 2) + 100 * i for i, n in enumerate(lengths)]
    packed = nn.pack_sequence(sequences, enforce_sorted=False)
    assert packed.data.shape == (sum(lengths), 2) and packed.batch_sizes.sum() == sum(lengths)
    x, counts = nn.pad_packed_sequence(packed)
    assert counts.tolist() == lengths
    for i, (one, sequence) in enumerate(zip(nn.unpack_sequence(packed), sequences, strict=True)):
        assert np.array_equal(one, sequence) and np.array_equal(x[: len(sequence), i], sequence)
        assert not x[len(sequence) :, i].any()
    again = nn.pack_padded_sequence(x, counts, enforce_sorted=False)
    assert all(np.array_equal(a, b) for a, b in zip(packed, again, strict=True))


def test_lists_of_sequences_are_packed_as_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    for lengths, enforce_sorted in (([7, 4, 4, 1], True), (LENGTHS, False), ([4], True)):
        sequences = [normal(rng, n, 3) for n in lengths]
        want = torch.nn.utils.rnn.pack_sequence([torch.from_numpy(s) for s in sequences], enforce_sorted)
        assert_same(nn.pack_sequence(sequences, enforce_sorted), want)
        assert_same(nn.pack_sequence(iter(sequences), enforce_sorted), want)


# ------------------------------------------------------------------------------------------------ layers
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("enforce_sorted", (False, True))
def test_a_packed_call_has_the_bits_of_lengths(name, enforce_sorted):
    kind, options = LAYERS[name]
    if options.get("matmul"):
        pytest.importorskip("scipy")
    layer = getattr(nn, kind)(5, 11, rng=1, **options)
    rng = np.random.default_rng(7)
    for lengths in (LENGTHS, [6] * 4, [9], [1, 1], rng.integers(1, 40, 33)):
        lengths = sorted(lengths, reverse=True) if enforce_sorted else lengths
        rows, steps = len(lengths), max(lengths)
        x = normal(rng, *((rows, steps) if layer.batch_first else (steps, rows)), 5)
        packed = nn.pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted)
        for states in (random_states(rng, layer, rows), [None] * (1 + (kind == "LSTM"))):
            want, want_last = run(layer, x, states, lengths)
            got, last = run(layer, packed, states)
            if layer.return_sequences:
                assert isinstance(got, nn.PackedSequence) and all(map(np.array_equal, got[1:], packed[1:]))
                got, counts = nn.pad_packed_sequence(got, layer.batch_first)
                assert counts.tolist() == list(lengths)
            for a, b in zip((got, *last), (want, *want_last), strict=True):
                assert a.dtype == np.float32 and a.shape == b.shape
                if options.get("matmul"):
                    assert np.abs(a - b).max() <= TOLERANCE
                else:
                    assert np.array_equal(a, b)
        first = np.asarray(layer.forward(packed)[0][0])
        assert np.array_equal(first, np.asarray(layer(packed)[0][0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(0, 99))
def test_a_row_has_the_bits_of_a_call_alone(lengths, seed):
    layer = nn.GRU(3, 6, bidirectional=True, rng=2)
    sequences = [normal(np.random.default_rng(seed), n, 3) for n in lengths]
    y, h = layer(nn.pack_sequence(sequences, enforce_sorted=False))
    for i, (one, x) in enumerate(zip(nn.unpack_sequence(y), sequences, strict=True)):
        alone, last = layer(x)
        assert np.array_equal(one, alone) and np.array_equal(h[:, i], last)


@pytest.mark.parametrize("kind", ("RNN", "GRU", "LSTM"))
@pytest.mark.parametrize("enforce_sorted", (False, True))
def test_layers_take_torchs_packed_sequences(kind, enforce_sorted):
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn
    torch.manual_seed(0)
    lengths = sorted(LENGTHS, reverse=True) if enforce_sorted else LENGTHS
    theirs = getattr(torch.nn, kind)(5, 11, num_layers=2, bidirectional=True)
    ours = getattr(nn, kind)(5, 11, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    packed = rnn.pack_padded_sequence(torch.randn(7, 5, 5), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    states = [torch.randn(4, 5, 11) for _ in range(1 + (kind == "LSTM"))]
    with torch.no_grad():
        want, want_last = theirs(packed, tuple(states) if kind == "LSTM" else states[0])
    got, last = run(ours, packed, [s.numpy() for s in states])
    assert_same(got._replace(data=want.data.numpy()), want)
    assert np.abs(got.data - want.data.numpy()).max() <= TOLERANCE
    for a, b in zip(last, want_last if kind == "LSTM" else (want_last,), strict=True):
        assert np.abs(a - b.numpy()).max() <= TOLERANCE


def test_data_may_have_any_strides():
    layer = nn.GRU(3, 4, rng=3)
    packed = nn.pack_sequence([normal(np.random.default_rng(8), n, 3) for n in (5, 2, 1)])
    want = layer(packed)[0].data
    wide = np.zeros((8, 2, 3, 2), np.float32)
    wide[::-1, 1, :, 0] = packed.data
    for data in (np.asfortranarray(packed.data), wide[::-1, 1, :, 0]):
        assert np.array_equal(layer(packed._replace(data=data))[0].data, want)


def test_indices_may_come_one_sided():
    layer = nn.GRU(3, 4, rng=3)
    packed = nn.pack_sequence([normal(np.random.default_rng(8), n, 3) for n in (1, 5, 2)], enforce_sorted=False)
    want, h = layer(packed)
    for given_ in ({"unsorted_indices": None}, {"sorted_indices": None}):
        y, last = layer(packed._replace(**given_))
        assert np.array_equal(last, h) and all(np.array_equal(a, b) for a, b in zip(y, want, strict=True))


def test_sequential_takes_packed_sequences():
    rng = np.random.default_rng(9)
    net = nn.Sequential(
        nn.Embedding(13, 5, rng=1),
        nn.LayerNorm(5),
        nn.Sequential(nn.LSTM(5, 7, batch_first=True, rng=2), nn.Dropout(0.3)),
        nn.GRU(7, 4, bidirectional=True, batch_first=True, rng=3),
        nn.Tanh(),
        nn.Linear(8, 3, rng=4),
    )
    sequences = [rng.integers(0, 13, n) for n in LENGTHS]
    packed = nn.pack_sequence(sequences, enforce_sorted=False)
    y, counts = nn.pad_packed_sequence(net(packed), batch_first=True)
    padded, _ = nn.pad_packed_sequence(packed, batch_first=True)
    want = net(padded, lengths=LENGTHS)
    for i, n in enumerate(counts):
        assert np.array_equal(y[i, :n], want[i, :n])
    assert np.array_equal(net.forward(packed)[0].data, net(packed).data)
    last = nn.Sequential(
        nn.Embedding(13, 5, rng=1), nn.LSTM(5, 7, return_sequences=False, rng=2), nn.Linear(7, 2, rng=3)
    )
    assert np.array_equal(last(packed), last(padded.T, lengths=LENGTHS))
    with pytest.raises(UnsupportedError, match="x: a packed sequence, which has no gradients"):
        net.forward(packed, training=True)
    with pytest.raises(InputError, match="layer 2: layer 0 .*: lengths: x is a packed sequence"):
        net(packed, lengths=LENGTHS)


# ------------------------------------------------------------------------------------------------ bad input
X = np.zeros((4, 3, 5), np.float32)
GOOD = nn.pack_padded_sequence(X, [2, 4, 1], enforce_sorted=False)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((X, [4, 3]), InputError, r"lengths: shape is \[2\], expected \[3\]"),
        (
            (X, [4, 3, 0]),
            InputError,
            "lengths: 0 at row 2, expected at least 1, as a packed sequence has no empty rows",
        ),
        ((X, [4, 3, -1]), InputError, "lengths: -1 at row 2, expected 0 to 4"),
        ((X, [5, 3, 1]), InputError, "lengths: 5 at row 0, expected 0 to 4"),
        ((X, [4, 1, 3]), InputError, "lengths: 3 at row 2 after 1, expected falling order with enforce_sorted=True"),
        ((X, [4.0, 3.0, 1.0]), InputTypeError, "lengths: dtype is float64"),
        ((X, None), InputTypeError, "lengths: got None"),
        ((X, [4, 3, 1, 1], True), InputError, "lengths: shape|lengths: 4 at row 0"),
        ((X[0, 0], [4]), InputError, r"x: shape is \[5\], expected \[T, B, ...\] with no axis of size 0"),
        ((X[:, :0], []), InputError, r"x: shape is \[4, 0, 5\], expected \[T, B, ...\] with no axis of size 0"),
        ((X, [3, 2, 1], 2), InputError, "batch_first: 2 is none of"),
        ((X, [3, 2, 1], False, "no"), InputError, "enforce_sorted: 'no' is none of"),
    ],
)
def test_padded_sequences_that_cannot_be_packed(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.pack_padded_sequence(*arguments)


@pytest.mark.parametrize(
    "sequences, error, message",
    [
        (3, InputTypeError, "sequences: got a int"),
        ([], InputError, "sequences: got none"),
        ([X[:, 0], X[:, 0, :2]], InputError, r"sequences\[1\]: shape is \[4, 2\], expected \[length, 5\]"),
        ([X[:, 0], X[:0, 0]], InputError, r"sequences\[1\]: shape is \[0, 5\]"),
        (
            [X[:, 0], X[:, 0].astype(int)],
            InputTypeError,
            r"sequences\[1\]: dtype is int64, expected the first's float32",
        ),
        ([1.0], InputError, r"sequences\[0\]: shape is \[\]"),
        ([X[:1, 0], X[:, 0]], InputError, "lengths: 4 at row 1 after 1"),
    ],
)
def test_sequences_that_cannot_be_packed(sequences, error, message):
    with pytest.raises(error, match=message):
        nn.pack_sequence(sequences)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"total_length": 3}, InputError, "total_length: 3, expected at least 4, the longest length"),
        ({"total_length": 4.0}, InputTypeError, "total_length: 4.0 is no integer"),
        ({"total_length": 2**50}, LimitError, "packed: no memory for 3 rows padded to"),
        ({"total_length": 2**62}, (InputError, LimitError), "packed|padding_value"),
        ({"padding_value": "x"}, InputError, "padding_value: 'x' is no value of float32"),
        ({"batch_first": None}, InputError, "batch_first: None is none of"),
    ],
)
def test_packed_sequences_that_cannot_be_padded(options, error, message):
    with pytest.raises(error, match=message):
        nn.pad_packed_sequence(GOOD, **options)


BROKEN = [
    ({"data": X}, InputError, r"\.data: shape is \[4, 3, 5\], expected \[7, ...\], the sum of batch_sizes"),
    ({"data": None}, InputError, r"\.data: shape is \[\]"),
    ({"batch_sizes": None}, InputError, r"\.batch_sizes: expected numbers of rows that never rise"),
    ({"batch_sizes": [3, 1, 2, 1]}, InputError, r"\.batch_sizes: expected numbers of rows that never rise"),
    ({"batch_sizes": [3, 2, 1, 1, 0]}, InputError, r"\.batch_sizes: expected numbers of rows that never rise"),
    ({"batch_sizes": []}, (InputError, InputTypeError), r"\.batch_sizes"),
    ({"batch_sizes": [2**62, 2**62, 2**62, 2**62]}, InputError, r"\.data: shape"),
    ({"batch_sizes": [3.0, 2.0, 1.0, 1.0]}, InputTypeError, r"\.batch_sizes: got float64 of shape \[4\]"),
    ({"sorted_indices": [0, 0, 1]}, InputError, r"\.sorted_indices: expected each of the 3 rows once"),
    ({"sorted_indices": [1, 0]}, InputError, r"\.sorted_indices: expected each of the 3 rows once"),
    ({"unsorted_indices": [0, 1, 2]}, InputError, r"\.unsorted_indices: not the inverse of sorted_indices"),
    ({"sorted_indices": None, "unsorted_indices": [3, 4, 5]}, InputError, r"\.unsorted_indices: expected each of"),
]


@pytest.mark.parametrize("fields, error, message", BROKEN)
def test_broken_packed_sequences(fields, error, message):
    broken = GOOD._replace(**fields)
    for call in (nn.pad_packed_sequence, nn.unpack_sequence, nn.LSTM(5, 4), nn.Sequential(nn.Linear(5, 4))):
        with pytest.raises(error, match=message):
            call(broken)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda layer: layer(GOOD, lengths=[2, 4, 1]),
            InputError,
            "lengths: x is a packed sequence, which has its own",
        ),
        (lambda layer: layer(GOOD._replace(data=GOOD.data[:, :4])), InputError, r"x.data: shape is \[7, 4\], expected"),
        (lambda layer: layer(GOOD._replace(data=GOOD.data[:, 0])), InputError, r"x.data: shape is \[7\], expected"),
        (lambda layer: layer(GOOD._replace(data=GOOD.data.astype(int))), InputTypeError, "x.data: dtype is int64"),
        (
            lambda layer: layer(GOOD, np.zeros((1, 2, 4), np.float32)),
            InputError,
            r"h0: shape is .*, expected \[1, 3, 4\]",
        ),
        (lambda layer: layer.forward(GOOD, training=True), UnsupportedError, "x: a packed sequence, which has no grad"),
        (lambda layer: layer(SimpleNamespace(batch_sizes=[1])), InputTypeError, "x: got a SimpleNamespace, expected"),
        (lambda _: nn.pad_packed_sequence(X), InputTypeError, "packed: got a ndarray, expected a PackedSequence"),
    ],
)
def test_calls_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.GRU(5, 4))


@pytest.mark.parametrize("sizes", ([3, 2, 1], [3, 2, 2, 0], [2, 3, 2], [7, 0], [], [-1, 8], [[3, 4]]))
def test_the_engine_refuses_sizes_that_leave_its_arrays(sizes):
    cell = _engine.Cell("RNN", np.ones((2, 5)), np.ones((2, 2)), activations=(("Tanh", 0.0, 0.0),))
    x, y = GOOD.data[:, None], np.empty((7, 1, 1, 2), np.float32)
    with pytest.raises(ValueError, match="batch_sizes must fall"):
        _engine.recurrent((cell,), (False,), x, y, batch_sizes=sizes)
