"""Spectra, windows and mel filters against onnxruntime and NumPy; random numbers by their moments and seeds."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError, InputTypeError
from tests.graphs import parse
from tests.onnx.ops.test_image import compare


# ----------------------------------------------------------------------------------------------------- spectra
@pytest.mark.parametrize("onesided, inverse, parts", [(0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 1)])
def test_dft(onesided, inverse, parts):
    rng = np.random.default_rng([onesided, inverse, parts])
    attributes = {"onesided": onesided, "inverse": inverse}
    for _ in range(6):
        x = rng.standard_normal((*map(int, rng.integers(1, 9, 3)), parts)).astype(np.float32)
        axis, length = int(rng.integers(3)), np.array(rng.integers(1, 11)) if rng.random() < 0.5 else None
        compare("DFT", x, length, opset=17, axis=axis, **attributes)
        compare("DFT", x, length, np.array(axis - 4), opset=20, **attributes)


def test_dft_of_half_a_spectrum_gives_back_the_signal():
    x = np.random.default_rng(0).standard_normal((3, 8, 1)).astype(np.float32)
    nodes = "y = DFT <onesided = 1> (x)  z = DFT <onesided = 1, inverse = 1> (y)"
    data = parse(f"g (float[a,b,1] x) => (float[a,b,1] z) {{ {nodes} }}", opset=20)
    np.testing.assert_allclose(rnnfast.load(data)(x=x).z, x, atol=1e-6)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided):
    rng = np.random.default_rng(onesided)
    for _ in range(6):
        n = int(rng.integers(1, 9))
        signal = rng.standard_normal((2, int(rng.integers(8, 40)), 1)).astype(np.float32)
        step, window = np.array(rng.integers(1, 6)), rng.standard_normal(n).astype(np.float32)
        compare("STFT", signal, step, window, np.array(n), opset=17, onesided=onesided)
        compare("STFT", signal, step, window, opset=17, onesided=onesided)
        compare("STFT", signal, step, None, np.array(n), opset=17, onesided=onesided)
        compare("STFT", signal[..., 0], step, window, opset=17, onesided=onesided)  # as torch writes it


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(op):
    for size in (0, 1, 2, 5, 8):
        for periodic in (0, 1):
            compare(op, np.array(size), opset=17, periodic=periodic)


def test_mel_filters():
    rng = np.random.default_rng(1)
    for _ in range(20):
        inputs = [
            np.array(rng.integers(1, 12)),
            np.array(rng.choice([16, 32, 64])),
            np.array(rng.choice([8000, 16000])),
        ]
        edges = [np.array(rng.uniform(low, high), np.float32) for low, high in ((0, 200), (500, 4000))]
        compare("MelWeightMatrix", *inputs, *edges, opset=17)


@pytest.mark.parametrize(
    "text, inputs",
    [
        ("y = STFT (x, s, w)", {"s": 0, "w": np.ones(4, np.float32)}),
        ("y = STFT (x, s, w)", {"s": 1, "w": np.ones(9, np.float32)}),
        ("y = STFT (x, s, w, n)", {"s": 1, "w": np.ones(4, np.float32), "n": 3}),
        ("y = STFT (x, s, w)", {"s": 1, "w": np.ones((2, 2), np.float32)}),
        ("y = STFT (x, s, w)", {"s": 1, "w": np.ones(4)}),
        ("y = DFT <axis = 2> (x)", {}),
        ("y = DFT <axis = 3> (x)", {}),
        ("y = DFT <axis = 1> (x, n)", {"n": 0}),
        ("y = MelWeightMatrix (n, m, r, low, high)", {"n": 8, "m": 16, "r": 8000, "low": 5.0, "high": 4.0}),
        ("y = MelWeightMatrix (n, m, r, low, high)", {"n": 8, "m": 16, "r": 8000, "low": 5.0, "high": 9e4}),
        ("y = HannWindow (n)", {"n": -1}),
    ],
)
def test_wrong_values_are_refused(text, inputs):
    inputs = {
        n: v if isinstance(v, np.ndarray) else np.array(v, np.float32 if n in ("low", "high") else np.int64)
        for n, v in inputs.items()
    }
    with pytest.raises((InputError, InputTypeError, rnnfast.errors.ModelError)):
        rnnfast.load(parse(f"g (float[1,8,1] x) => (y) {{ {text} }}", **inputs)).run(
            {"x": np.ones((1, 8, 1), np.float32)}
        )


# ---------------------------------------------------------------------------------------------- random numbers
def drawn(text, x, **inputs):
    return rnnfast.load(parse(f"g (float[a,b] x) => (y) {{ y = {text} }}", opset=15, **inputs)).run({"x": x})[0]


X = np.full((200, 300), 0.25, np.float32)
DRAWS = {
    "RandomNormal <shape = [200, 300], mean = 2.0, scale = 3.0{}> ()": (2, 3),
    "RandomNormalLike <mean = 2.0, scale = 3.0{}> (x)": (2, 3),
    "RandomUniform <shape = [200, 300], low = -1.0, high = 5.0{}> ()": (2, 3**0.5),
    "RandomUniformLike <low = -1.0, high = 5.0{}> (x)": (2, 3**0.5),
    "Bernoulli <dtype = 1{}> (x)": (0.25, 0.1875**0.5),
    "Multinomial <sample_size = 300{}> (x)": (149.5, (300**2 / 12) ** 0.5),
}


@pytest.mark.parametrize("text", DRAWS)
def test_moments_and_seeds(text):
    mean, deviation = DRAWS[text]
    y = drawn(text.format(""), X)
    assert y.shape == (200, 300) and abs(y.mean() - mean) < 0.02 * deviation and abs(y.std() / deviation - 1) < 0.02
    assert not np.array_equal(y, drawn(text.format(""), X))
    seeded = text.format(", seed = 7.0")
    np.testing.assert_array_equal(drawn(seeded, X), drawn(seeded, X))
    assert not np.array_equal(drawn(seeded, X), drawn(text.format(", seed = 8.0"), X))


@pytest.mark.parametrize("text", DRAWS)
def test_each_call_draws_anew_without_a_seed(text):
    model = rnnfast.load(parse(f"g (float[a,b] x) => (y) {{ y = {text.format('')} }}", opset=15))
    (a,), (b,), (c,) = (model.run({"x": X}) for _ in range(3))
    assert not np.array_equal(a, b) and not np.array_equal(b, c)
    model = rnnfast.load(parse(f"g (float[a,b] x) => (y) {{ y = {text.format(', seed = 3.0')} }}", opset=15))
    np.testing.assert_array_equal(model.run({"x": X})[0], model.run({"x": X})[0])


def test_noise_that_depends_on_constants_alone_is_no_constant():
    data = parse(
        "g (float[a] x) => (float[a] y) { n = RandomNormalLike (w)  m = Mul (n, w)  y = Add (x, m) }",
        w=np.ones(3, np.float32),
    )
    model, zeros = rnnfast.load(data), np.zeros(3, np.float32)
    assert not np.array_equal(model(x=zeros).y, model(x=zeros).y)


@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan])
def test_probabilities_are_checked(p):
    with pytest.raises(InputError, match="probabilities"):
        drawn("Bernoulli (x)", np.full((1, 1), p, np.float32))
