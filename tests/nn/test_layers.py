"""Layers against the float64 reference and their own promises."""

import copy
import itertools
import pickle
import re
import threading

import numpy as np
import pytest

from rnnfast import nn, reference
from rnnfast.errors import Error, InputError, InputTypeError, LimitError, ModelError, UnsupportedError
from rnnfast.native import cell_activations
from rnnfast.nn import checks

TOLERANCE = 2e-6
"""Largest difference from float64 relative to the largest output: a few roundings of float32 (6e-8 each) per step.
Measured over all variants below: 8.9e-7."""

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": reference.rnn, "GRU": reference.gru, "LSTM": reference.lstm}
DEFAULT_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}

TORCH_TO_ONNX = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}
"""Positions in torch's order (GRU r z n, LSTM i f g o) of ONNX's gates (GRU z r h, LSTM i o f c)."""

VARIANTS = {
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "GRU reset first": ("GRU", {"linear_before_reset": False}),
    "LSTM": ("LSTM", {}),
    "LSTM projected": ("LSTM", {"proj_size": 3}),
    "LSTM coupled, with peepholes": ("LSTM", {"input_forget": True, "peepholes": True}),
    "LSTM clipped": ("LSTM", {"clip": 0.4}),
}
DIRECTIONS = {
    "forward": {},
    "reverse": {"reverse": True},
    "concat": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge": "sum"},
    "mul": {"bidirectional": True, "merge": "mul"},
    "average": {"bidirectional": True, "merge": "average"},
}
MERGES = {
    "concat": lambda y: np.concatenate([y[:, d] for d in range(y.shape[1])], axis=-1),
    "sum": lambda y: y[:, 0] + y[:, 1],
    "mul": lambda y: y[:, 0] * y[:, 1],
    "average": lambda y: (y[:, 0] + y[:, 1]) / 2,
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def uniform(rng, *shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def expected(layer, x, h0=None, c0=None, lengths=None):
    """y and the last states in float64, for x [T, B, I], from the layer's state dict."""
    weights, kind = layer.state_dict(), layer.kind
    ends = ["", "_reverse"][: 1 + layer.bidirectional]

    def stacked(name, layer_index, blocks=None):
        arrays = [weights[f"{name}_l{layer_index}{end}"] for end in ends if f"{name}_l{layer_index}{end}" in weights]
        if not arrays:
            return None
        if blocks is not None:
            arrays = [np.concatenate([np.split(a, len(blocks))[i] for i in blocks]) for a in arrays]
        return np.stack(arrays)

    names = DEFAULT_ACTIVATIONS[kind]
    if getattr(layer, "nonlinearity", "") == "relu":
        names = ["Relu"]
    keywords = {
        "activations": (tuple((n, 0.0, 0.0) for n in names),) * len(ends),
        "clip": layer.clip,
        "direction": "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward",
    }
    if kind == "GRU":
        keywords["linear_before_reset"] = layer.linear_before_reset
    if kind == "LSTM":
        keywords["input_forget"] = layer.input_forget
    last = []
    for k in range(layer.num_layers):
        of_layer = slice(k * len(ends), (k + 1) * len(ends))
        biases = [stacked(name, k, TORCH_TO_ONNX[kind]) for name in ("bias_ih", "bias_hh")]
        inputs = {
            "B": None if biases[0] is None else np.concatenate(biases, axis=1),
            "initial_h": None if h0 is None else h0[of_layer],
        }
        if kind == "LSTM":
            inputs["initial_c"] = None if c0 is None else c0[of_layer]
            inputs["P"] = stacked("weight_peephole", k, [0, 2, 1])
            inputs["projection"] = stacked("weight_hr", k)
        y, *states = FUNCTIONS[kind](
            x,
            stacked("weight_ih", k, TORCH_TO_ONNX[kind]),
            stacked("weight_hh", k, TORCH_TO_ONNX[kind]),
            sequence_lens=lengths,
            **inputs,
            **keywords,
        )
        x = MERGES[layer.merge](y)
        last.append(states)
    return x, [np.concatenate(parts) for parts in zip(*last)]


def assert_close(got, want):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def call(layer, x, states, lengths=None):
    """y and the list of last states."""
    if layer.kind == "LSTM":
        y, last = layer(x, tuple(states) if states else None, lengths)
        return y, list(last)
    y, h = layer(x, states[0] if states else None, lengths)
    return y, [h]


def initial_states(layer, rng, *rows):
    count = layer.num_layers * (1 + layer.bidirectional)
    states = [uniform(rng, count, *rows, layer.proj_size or layer.hidden_size)]
    return states + [uniform(rng, count, *rows, layer.hidden_size)] if layer.kind == "LSTM" else states


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


# ------------------------------------------------------------------------------------------------- state dicts
class Foreign:
    """What a tensor of another framework is to NumPy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_round_trip(variant):
    kind, keywords = VARIANTS[variant]
    rng = np.random.default_rng(2)
    layers = [getattr(nn, kind)(5, 7, 2, bidirectional=True, rng=rng, **keywords) for _ in range(2)]
    x = uniform(rng, 4, 3, 5)
    source = {name: a.copy() for name, a in layers[0].state_dict().items()}
    layers[1].load_state_dict({name: Foreign(a) for name, a in source.items()})
    for array in source.values():
        array[...] = 0
    np.testing.assert_array_equal(layers[0](x)[0], layers[1](x)[0])
    for array in layers[1].state_dict().values():
        assert array.dtype == np.float32 and not array.flags.writeable


def test_state_dict_names_and_shapes_are_torchs():
    assert nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3).shapes() == {
        "weight_ih_l0": (28, 5),
        "weight_hh_l0": (28, 3),
        "bias_ih_l0": (28,),
        "bias_hh_l0": (28,),
        "weight_hr_l0": (3, 7),
        "weight_ih_l0_reverse": (28, 5),
        "weight_hh_l0_reverse": (28, 3),
        "bias_ih_l0_reverse": (28,),
        "bias_hh_l0_reverse": (28,),
        "weight_hr_l0_reverse": (3, 7),
        "weight_ih_l1": (28, 6),
        "weight_hh_l1": (28, 3),
        "bias_ih_l1": (28,),
        "bias_hh_l1": (28,),
        "weight_hr_l1": (3, 7),
        "weight_ih_l1_reverse": (28, 6),
        "weight_hh_l1_reverse": (28, 3),
        "bias_ih_l1_reverse": (28,),
        "bias_hh_l1_reverse": (28,),
        "weight_hr_l1_reverse": (3, 7),
    }
    assert nn.GRU(5, 7, bias=False).shapes() == {"weight_ih_l0": (21, 5), "weight_hh_l0": (21, 7)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_floats_load_exactly(dtype):
    dtype = getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype
    layer, half = nn.GRU(5, 7), nn.GRU(5, 7)
    weights = {name: a.astype(dtype) for name, a in layer.state_dict().items()}
    half.load_state_dict(weights)
    for name, array in half.state_dict().items():
        np.testing.assert_array_equal(array, weights[name].astype(np.float32))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda w: w.pop("bias_hh_l0"), ModelError, "missing bias_hh_l0, unexpected nothing"),
        (lambda w: w.update(extra=1), ModelError, "missing nothing, unexpected extra"),
        (
            lambda w: w.update(weight_hh_l0=np.zeros((21, 5), np.float32)),
            ModelError,
            r"weight_hh_l0 has shape \[21, 5\], expected \[21, 7\]",
        ),
        (lambda w: w.update(bias_ih_l0=np.zeros(21)), InputTypeError, "bias_ih_l0: dtype is float64, expected float32"),
        (lambda w: w.update(bias_ih_l0=np.zeros(21, np.int8)), InputTypeError, "bias_ih_l0: dtype is int8"),
        (lambda w: w.update(bias_ih_l0=["a"] * 21), InputTypeError, "bias_ih_l0: dtype is <U1"),
        (lambda w: w.update(bias_ih_l0=None), InputTypeError, "bias_ih_l0: dtype is object"),
        (lambda w: w.update(bias_ih_l0=[1, [2]]), InputTypeError, "bias_ih_l0: cannot be read as an array"),
    ],
)
def test_a_wrong_state_dict_is_refused_whole(change, error, message):
    layer = nn.GRU(5, 7, rng=1)
    before = layer.state_dict()
    weights = {name: a + 1 for name, a in before.items()}
    change(weights)
    with pytest.raises(error, match=message) as caught:
        layer.load_state_dict(weights)
    assert isinstance(caught.value, Error)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_state_dict_must_be_a_mapping():
    with pytest.raises(InputTypeError, match="got a list, expected a mapping"):
        nn.GRU(5, 7).load_state_dict([1])


def test_a_sequential_is_loaded_whole_or_not_at_all(monkeypatch):
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    before = net.state_dict()

    def fail(parameters):
        raise MemoryError

    monkeypatch.setattr(net.layers[1], "_pack", fail)
    with pytest.raises(LimitError, match=r"Linear\(7, 3\): no memory for the weights"):
        net.load_state_dict({name: a + 1 for name, a in before.items()})
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


LAYERS = {
    "RNN": lambda: nn.RNN(5, 7, nonlinearity="relu", activations=iter(["Elu"])),
    "GRU": lambda: nn.GRU(5, 7, bidirectional=True, merge="sum", linear_before_reset=False, rng=1),
    "LSTM": lambda: nn.LSTM(5, 7, 2, proj_size=3, peepholes=True, clip=0.4),
    "Linear": lambda: nn.Linear(5, 7),
    "Embedding": lambda: nn.Embedding(11, 3, padding_idx=2),
    "activation": lambda: nn.LeakyReLU(0.3),
    "Dropout": lambda: nn.Dropout(0.3),
    "LayerNorm": lambda: nn.LayerNorm(5),
    "Sequential": lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.GRU(4, 3)),
}


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_copies_have_the_same_bits(layer, duplicate):
    layer = LAYERS[layer]()
    x = np.arange(10) if isinstance(layer, nn.Embedding) else uniform(np.random.default_rng(1), 4, 3, 5)
    other = duplicate(layer)
    outputs = [y[0] if isinstance(y, tuple) else y for y in (layer(x), other(x))]
    np.testing.assert_array_equal(*outputs)
    assert repr(other) == repr(layer) and other.state_dict().keys() == layer.state_dict().keys()
    assert not any(array.flags.writeable for array in other.state_dict().values())


def test_a_copy_is_loaded_alone():
    layer = nn.Linear(5, 7)
    other, before = copy.copy(layer), layer.state_dict()
    other.load_state_dict({name: a + 1 for name, a in before.items()})
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_loaded_weights_are_the_only_ones_drawn_or_packed(monkeypatch):
    weights = nn.Linear(5, 7).state_dict()
    packed = []
    pack = nn.Linear._pack
    monkeypatch.setattr(nn.Linear, "_draw", None)
    monkeypatch.setattr(nn.Linear, "_pack", lambda self, parameters: packed.append(1) or pack(self, parameters))
    layer = nn.Linear(5, 7)
    layer.load_state_dict(weights)
    layer(np.zeros(5, np.float32))
    assert packed == [1]


def test_first_calls_at_once_draw_once():
    x = uniform(np.random.default_rng(1), 3, 5)
    for _ in range(20):
        layer, barrier, results = nn.Linear(5, 64), threading.Barrier(4), []

        def work():
            barrier.wait()
            results.append(layer(x))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for y in results:
            np.testing.assert_array_equal(y, layer(x))
        assert len(results) == 4


def test_weights_loaded_during_a_first_call_stay(monkeypatch):
    layer, weights = nn.Linear(5, 7), nn.Linear(5, 7, rng=1).state_dict()
    loading = threading.Thread(target=layer.load_state_dict, args=(weights,))
    draw = nn.Linear._draw

    def slow(self, rng):
        loading.start()
        loading.join(0.1)
        return draw(self, rng)

    monkeypatch.setattr(nn.Linear, "_draw", slow)
    layer(np.zeros(5, np.float32))
    loading.join()
    np.testing.assert_array_equal(layer.state_dict()["weight"], weights["weight"])


def test_initial_weights_without_memory(monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(nn.Linear, "_draw", fail)
    with pytest.raises(LimitError, match=r"Linear\(5, 7\): no memory for the weights"):
        nn.Linear(5, 7)(np.zeros(5, np.float32))
    huge = np.broadcast_to(np.float32(1), (2**40, 2**20))
    with pytest.raises(LimitError, match="weight: weights of"):
        nn.Linear(5, 7, bias=False).load_state_dict({"weight": huge})


def test_blas_without_scipy_is_refused_by_the_constructor(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="matmul: 'blas' needs SciPy"):
        nn.Linear(5, 7, matmul="blas")


@pytest.mark.parametrize("kind", GATES)
def test_initial_weights(kind):
    first, same, other = (getattr(nn, kind)(50, 16, rng=seed).state_dict() for seed in (1, 1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, same[name])
        assert (array != other[name]).any()
        assert np.abs(array).max() <= 1 / 4 and np.abs(array).max() > 0.2


# ------------------------------------------------------------------------------------------------- refusals
X = np.zeros((4, 3, 5), np.float32)
H = np.zeros((1, 3, 7), np.float32)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"x": X[:, :, :4]},
            InputError,
            r"x: shape is \[4, 3, 4\], expected \[T, B, 5\] or, without a batch, \[T, 5\]",
        ),
        ({"x": X[0, 0]}, InputError, r"x: shape is \[5\]"),
        ({"x": X.astype(np.float64)}, InputTypeError, "x: dtype is float64, expected float32"),
        ({"x": "abc"}, InputTypeError, "x: dtype is <U3"),
        ({"x": X, "hx": (H[:, :2], H)}, InputError, r"h0: shape is \[1, 2, 7\], expected \[1, 3, 7\]"),
        ({"x": X, "hx": (H, H[:, :, :6])}, InputError, r"c0: shape is \[1, 3, 6\], expected \[1, 3, 7\]"),
        ({"x": X, "hx": (H, H.astype(int))}, InputTypeError, "c0: dtype is int64"),
        ({"x": X, "hx": H}, InputTypeError, r"hx: got a ndarray, expected \(h, c\)"),
        (
            {"x": X[:, 0], "hx": (H, H)},
            InputError,
            r"h0: shape is \[1, 3, 7\], expected \[layers \* directions, size\]",
        ),
        ({"x": X[:, 0], "lengths": [4]}, InputError, "lengths: x has no batch axis"),
        ({"x": X, "lengths": [4, 4]}, InputError, r"lengths: shape is \[2\], expected \[3\]"),
        ({"x": X, "lengths": [4, 5, 4]}, InputError, "lengths: 5 at row 1, expected 0 to 4"),
        ({"x": X, "lengths": [4, 4, -1]}, InputError, "lengths: -1 at row 2, expected 0 to 4"),
        ({"x": X, "lengths": [4.0, 4.0, np.nan]}, InputTypeError, "lengths: dtype is float64, expected integers"),
        ({"x": X, "lengths": [True, True, False]}, InputTypeError, "lengths: dtype is bool"),
        ({"x": X, "lengths": np.array([4, 2**64 - 1, 1], np.uint64)}, InputError, "at row 1, expected 0 to 4"),
    ],
)
def test_a_wrong_call_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.LSTM(5, 7)(**arguments)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: nn.LSTM(0, 7), InputError, "input_size: 0 is less than 1"),
        (lambda: nn.LSTM(5, 7.0), InputTypeError, "hidden_size: 7.0 is no integer"),
        (lambda: nn.LSTM(5, True), InputTypeError, "hidden_size: True is no integer"),
        (lambda: nn.LSTM(5, 7, 0), InputError, "num_layers: 0 is less than 1"),
        (lambda: nn.LSTM(5, 7, proj_size=7), InputError, "proj_size: 7, expected less than hidden_size = 7"),
        (lambda: nn.LSTM(5, 7, dropout=1.5), InputError, r"dropout: 1.5, expected 0.0 to 1.0"),
        (lambda: nn.LSTM(5, 7, dropout="a"), InputTypeError, "dropout: 'a' is no number"),
        (lambda: nn.LSTM(5, 7, merge="ave"), InputError, "merge: 'ave' is none of 'concat', 'sum', 'mul', 'average'"),
        (lambda: nn.LSTM(5, 7, merge="sum"), InputError, "merge: 'sum' needs bidirectional=True"),
        (lambda: nn.LSTM(5, 7, bidirectional=True, reverse=True), InputError, "reverse: a bidirectional layer"),
        (lambda: nn.LSTM(5, 7, matmul="mkl"), InputError, "matmul: 'mkl' is none of None, 'packed', 'blas'"),
        (lambda: nn.LSTM(5, 7, clip=float("nan")), InputError, "clip: nan, expected 0.0 to inf"),
        (lambda: nn.LSTM(5, 7, clip=0), InputError, "clip: 0, expected more than 0"),
        (lambda: nn.LSTM(5, 7, activations=["Tanh"]), InputError, "activations: got 1, expected 3 for each direction"),
        (lambda: nn.RNN(5, 7, activations=["Tan"]), UnsupportedError, "activation: 'Tan' is none of Relu, Tanh"),
        (lambda: nn.RNN(5, 7, activations=[3]), InputTypeError, "activation: 3 is neither a name nor"),
        (lambda: nn.RNN(5, 7, activations=[("Elu", "1", 0)]), InputTypeError, "Elu: alpha is '1', expected a number"),
        (lambda: nn.RNN(5, 7, activations=[("Elu", np.inf, 0)]), InputError, "Elu: alpha is inf, expected a finite"),
        (lambda: nn.RNN(5, 7, nonlinearity="elu"), InputError, "nonlinearity: 'elu' is none of 'tanh', 'relu'"),
        (lambda: nn.Linear(5, -1), InputError, "out_features: -1 is less than 1"),
        (
            lambda: nn.Embedding(5, 3, padding_idx=5),
            InputError,
            "padding_idx: 5, expected less than num_embeddings = 5",
        ),
        (lambda: nn.Sequential(nn.Tanh(), 3), InputTypeError, "Sequential: layer 1 is a int"),
        (lambda: nn.LSTM(2**40, 2**40), LimitError, r"LSTM\(1099511627776, 1099511627776\): weights of \d+ bytes"),
        (lambda: nn.LSTM(5, 7, 2**40), LimitError, "num_layers: 1099511627776 is more than the limit of 1024"),
        (lambda: nn.Linear(2**40, 1024), LimitError, "more than the limit of 68719476736"),
        (lambda: nn.Embedding(2**40, 2**40), LimitError, "more than the limit of 68719476736"),
        (lambda: nn.LSTM(5, 7, activations=5), InputTypeError, "activations: got 5, expected a list"),
        (lambda: nn.RNN(5, 7, activations="Tanh"), InputTypeError, "activations: got 'Tanh', expected a list"),
        (
            lambda: nn.RNN(5, 7, activations=[("Elu", 10**400, 0)]),
            InputError,
            "alpha is 1000+, expected a finite number",
        ),
        (lambda: nn.LSTM(5, 7, clip=10**400), InputError, "clip: 1000+, expected 0.0 to inf"),
        (lambda: nn.GRU(5, 7, rng="x"), InputTypeError, "rng: 'x' is neither a seed nor a numpy Generator"),
        (lambda: nn.Linear(5, 7, rng=-1), InputError, "rng: -1 is no seed"),
        (lambda: nn.LSTM(5, 7, bidirectional=True, merge=np.array(["sum", "mul"])), InputError, "is none of 'concat'"),
        (lambda: nn.LSTM(5, 7, bias=np.ones(2)), InputError, "bias: .* is none of False, True"),
        (lambda: nn.Module().summary(), UnsupportedError, "Module has no rows for a summary"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ------------------------------------------------------------------------------------------------- other layers
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5), (2, 0, 3, 5)])
def test_linear(shape, bias):
    rng = np.random.default_rng(3)
    layer = nn.Linear(5, 17, bias, rng=rng)
    weights = layer.state_dict()
    assert list(weights) == (["weight", "bias"] if bias else ["weight"])
    x = uniform(rng, *shape)
    want = x.astype(np.float64) @ weights["weight"].T + weights.get("bias", 0)
    got = layer(x)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.zeros((3, 4), np.float32), InputError, r"x: shape is \[3, 4\], expected \[..., 5\] \(in_features\)"),
        (np.float32(1), InputError, r"x: shape is \[\]"),
        (np.zeros((3, 5)), InputTypeError, "x: dtype is float64"),
    ],
)
def test_linear_refuses(x, error, message):
    with pytest.raises(error, match=message):
        nn.Linear(5, 3)(x)


def test_embedding():
    layer = nn.Embedding(11, 3, padding_idx=2, rng=1)
    weight = layer.state_dict()["weight"]
    assert not weight[2].any() and weight[1].all()
    x = np.array([[1, 10, 2], [0, 0, 5]], np.int32)
    y = layer(x)
    np.testing.assert_array_equal(y, weight[x])
    y[...] = 7
    np.testing.assert_array_equal(layer(x), weight[x])
    assert layer(np.zeros((0, 4), np.int64)).shape == (0, 4, 3)
    assert layer(3).shape == (3,)


@pytest.mark.parametrize(
    "x, error, message",
    [
        ([1, 11], InputError, r"x: 11 at \[1\], expected 0 to 10"),
        ([[1], [-1]], InputError, r"x: -1 at \[1, 0\], expected 0 to 10"),
        ([1.0], InputTypeError, "x: dtype is float64, expected integers"),
    ],
)
def test_embedding_refuses(x, error, message):
    with pytest.raises(error, match=message):
        nn.Embedding(11, 3)(x)


ACTIVATIONS = {
    nn.ReLU: ({}, lambda x: np.maximum(x, 0)),
    nn.Tanh: ({}, np.tanh),
    nn.Sigmoid: ({}, sigmoid),
    nn.Softplus: ({}, lambda x: np.log1p(np.exp(x))),
    nn.Softsign: ({}, lambda x: x / (1 + np.abs(x))),
    nn.Hardsigmoid: ({}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    nn.LeakyReLU: ({"negative_slope": 0.3}, lambda x: np.where(x > 0, x, 0.3 * x)),
    nn.ELU: ({"alpha": 1.7}, lambda x: np.where(x > 0, x, 1.7 * np.expm1(x))),
}


@pytest.mark.parametrize("layer_class", ACTIVATIONS)
def test_activation_layers(layer_class):
    keywords, function = ACTIVATIONS[layer_class]
    layer = layer_class(**keywords)
    x = np.linspace(-9, 9, 222, dtype=np.float32).reshape(2, 3, 37)
    for given in (x, x[:, ::2, ::-3], x[0, 0, 0], x[:0]):
        got = layer(given)
        assert got.shape == given.shape
        np.testing.assert_allclose(got, function(np.float64(given)), rtol=TOLERANCE, atol=TOLERANCE)
    assert layer.state_dict() == {}


def test_every_activation_has_the_defaults_of_the_reference():
    assert list(cell_activations.DEFAULTS) == list(reference.ACTIVATIONS)
    for name, values in cell_activations.DEFAULTS.items():
        assert tuple(v or 0.0 for v in values) == reference.defaults(name)


def test_sequential():
    rng = np.random.default_rng(2)
    parts = [
        nn.Embedding(11, 5),
        nn.GRU(5, 7, bidirectional=True),
        nn.Sequential(nn.LSTM(14, 6), nn.Tanh()),
        nn.Linear(6, 3),
    ]
    net = nn.Sequential(*parts)
    x, lengths = rng.integers(0, 11, (6, 4)), [6, 1, 0, 4]
    y = parts[1](parts[0](x), lengths=lengths)[0]
    y = parts[2].layers[0](y, lengths=lengths)[0]
    want = parts[3](nn.Tanh()(y))
    np.testing.assert_array_equal(net(x, lengths=lengths), want)
    assert list(net.state_dict())[:2] == ["0.weight", "1.weight_ih_l0"]
    assert "2.0.weight_ih_l0" in net.state_dict()

    other = nn.Sequential(
        nn.Embedding(11, 5), nn.GRU(5, 7, bidirectional=True), nn.Sequential(nn.LSTM(14, 6), nn.Tanh()), nn.Linear(6, 3)
    )
    other.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(other(x, lengths=lengths), want)
    with pytest.raises(ModelError, match="missing 3.bias, unexpected nothing"):
        other.load_state_dict({name: a for name, a in net.state_dict().items() if name != "3.bias"})


def test_summary():
    net = nn.Sequential(
        nn.Embedding(11, 5),
        nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True, proj_size=3),
        nn.GRU(6, 9, bias=False, batch_first=True),
        nn.Linear(9, 2),
        nn.Sigmoid(),
    )
    rows = net.summary_rows()
    first, second = 2 * (28 * (5 + 3) + 3 * 7), 2 * (28 * (6 + 3) + 3 * 7)
    assert [row.output for row in rows] == [
        ("...", 5),
        ("B", "T", 6),
        ("B", "T", 6),
        ("B", "T", 9),
        ("B", "T", 2),
        ("B", "T", 2),
    ]
    assert [row.parameters for row in rows] == [55, first + 4 * 28, second + 4 * 28, 27 * (6 + 9), 20, 0]
    assert [row.flops for row in rows] == [0, 2 * first, 2 * second, 2 * 27 * (6 + 9), 36, 0]
    assert [row.bytes for row in rows] == [20, 4 * (first + 112), 4 * (second + 112), 4 * 405, 80, 0]
    assert sum(row.parameters for row in rows) == sum(a.size for a in net.state_dict().values())
    lines = net.summary().splitlines()
    assert len(lines) == 12 and re.split("  +", lines[0]) == [
        "Layer (type)",
        "Output shape",
        "Param #",
        "Flops/step",
        "Bytes/step",
    ]
    assert lines[-3].split()[1:] == [f"{sum(row[i] for row in rows):,}" for i in (2, 3, 4)]
    assert lines[-2:] == ["Trainable params: 1,740 (0.01 MB)", "Non-trainable params: 0"]
    assert "[32, 10, 6]" in net.summary((32, 10)) and "[32, 10, 2]" in net.summary((32, 10))
    for empty in (nn.Sequential(), nn.Sequential(nn.Sequential())):
        assert empty.summary().splitlines()[-3].split() == ["total", "0", "0", "0"]


@pytest.mark.parametrize(
    "layer, text",
    [
        (nn.LSTM(5, 7), "LSTM(5, 7)"),
        (
            nn.GRU(5, 7, 2, batch_first=True, bidirectional=True, merge="sum"),
            "GRU(5, 7, num_layers=2, batch_first=True, bidirectional=True, merge='sum')",
        ),
        (nn.RNN(5, 7, nonlinearity="relu", bias=False), "RNN(5, 7, nonlinearity='relu', bias=False)"),
        (nn.Sequential(nn.Linear(5, 3), nn.LeakyReLU(0.2)), "Sequential(Linear(5, 3), LeakyReLU(negative_slope=0.2))"),
    ],
    ids=repr,
)
def test_repr(layer, text):
    assert repr(layer) == text
