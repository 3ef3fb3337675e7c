"""State dicts, copies and initial weights of layers."""

import copy
import pickle
import threading

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import Error, InputTypeError, LimitError, ModelError, UnsupportedError
from rnnfast.native import _kernels
from tests.nn.helpers import GATES, VARIANTS, uniform


class Foreign:
    """A tensor of another framework, which NumPy converts by __array__."""

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
        assert array.dtype == np.float32


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
    monkeypatch.setattr(_kernels, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="matmul: 'blas' needs SciPy"):
        nn.Linear(5, 7, matmul="blas")


@pytest.mark.parametrize("kind", GATES)
def test_initial_weights(kind):
    first, same, other = (getattr(nn, kind)(50, 16, rng=seed).state_dict() for seed in (1, 1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, same[name])
        assert (array != other[name]).any()
        assert np.abs(array).max() <= 1 / 4 and np.abs(array).max() > 0.2


def larger():
    """The state dict of a module with more layers, with torch's names."""
    lstm, fc = nn.LSTM(5, 7, rng=1), nn.Linear(7, 2, rng=2)
    return {
        **{f"encoder.lstm.{name}": a for name, a in lstm.state_dict().items()},
        **{f"fc.{name}": a for name, a in fc.state_dict().items()},
        "step": np.array(3),
    }


@pytest.mark.parametrize("prefix", ["encoder.lstm", "encoder.lstm."])
def test_prefix(prefix):
    layer = nn.LSTM(5, 7)
    assert layer.load_state_dict(larger(), prefix=prefix) is None
    for name, array in nn.LSTM(5, 7, rng=1).state_dict().items():
        np.testing.assert_array_equal(layer.state_dict()[name], array)


@pytest.mark.parametrize(
    "layer, options, message",
    [
        (nn.LSTM(5, 7), {}, "missing weight_ih_l0, .*; expected prefix='encoder.lstm'$"),
        (nn.LSTM(5, 7), {"strict": False}, "expected prefix='encoder.lstm'$"),
        (nn.LSTM(5, 7), {"prefix": "lstm"}, "missing .*, unexpected nothing; expected prefix='encoder.lstm'$"),
        (nn.LSTM(5, 7), {"prefix": "encoder"}, "unexpected lstm.weight_ih_l0, .*; expected prefix='encoder.lstm'$"),
        (
            nn.Sequential(nn.LSTM(5, 7), nn.Tanh(), nn.Linear(7, 2)),
            {},
            "expected each layer to be loaded by itself: layer 0 by prefix='encoder.lstm', layer 2 by prefix='fc'$",
        ),
        (nn.GRU(5, 7, bias=False), {"prefix": "encoder.lstm"}, "unexpected bias_ih_l0, bias_hh_l0"),
        (nn.LayerNorm(7), {"prefix": "norm"}, "missing weight, bias, unexpected nothing; expected prefix='fc'$"),
        (nn.GRU(5, 7), {"prefix": 3}, "prefix: got a int, expected a str"),
        (nn.GRU(5, 7), {"strict": 3}, "strict: 3 is none of"),
    ],
)
def test_the_error_suggests_a_prefix(layer, options, message):
    before = layer.state_dict()
    with pytest.raises(Error, match=message):
        layer.load_state_dict(larger(), **options)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_not_strict():
    layer, other = nn.LSTM(5, 7, rng=1), nn.LSTM(5, 7, rng=2)
    before = layer.state_dict()
    given = {"weight_hh_l0": other.state_dict()["weight_hh_l0"], "extra": 1}
    missing, unexpected = layer.load_state_dict(given, strict=False)
    assert missing == ["weight_ih_l0", "bias_ih_l0", "bias_hh_l0"] and unexpected == ["extra"]
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, (given if name in given else before)[name])
    x = uniform(np.random.default_rng(3), 4, 3, 5)
    again = nn.LSTM(5, 7)
    again.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer(x)[0], again(x)[0])
    with pytest.raises(ModelError, match=r"weight_hh_l0 has shape \[28, 5\], expected \[28, 7\]"):
        layer.load_state_dict({"weight_hh_l0": np.ones((28, 5), np.float32)}, strict=False)
    with pytest.raises(ModelError, match="missing weight_ih_l0, .*unexpected extra"):
        layer.load_state_dict({"extra": 1}, strict=False)
    assert layer.load_state_dict(before, strict=False) == ([], [])
    assert nn.Tanh().load_state_dict({"extra": 1}, strict=False) == ([], ["extra"])
