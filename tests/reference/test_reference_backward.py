"""The reference's gradients against central differences of the reference itself, and against torch's in float64."""

import itertools
from unittest import mock

import numpy as np
import pytest

from rnnfast import reference
from tests.cases import DEFAULT, DIRECTIONS, GATES, activation

STEP = 1e-6
"""Step of central differences, whose error is about STEP**2 times a third derivative + 1e-16 / STEP times the loss."""

DIFFERENCE_TOLERANCE = 1e-7
"""Largest difference relative to the largest gradient of an argument (or 1). Measured: 3.0e-8."""

TORCH_TOLERANCE = 1e-13
"""The same next to torch, both float64. Measured: 7.9e-16."""

KINKS = {
    "Relu": lambda alpha, beta: [0.0],
    "LeakyRelu": lambda alpha, beta: [0.0],
    "ThresholdedRelu": lambda alpha, beta: [alpha],
    "HardSigmoid": lambda alpha, beta: [-beta / alpha, (1 - beta) / alpha],
    "Elu": lambda alpha, beta: [0.0],
}
"""Activation -> where it has no derivative; the others have one everywhere."""

FORMS = {
    "RNN": [{}],
    "GRU": [{"linear_before_reset": form} for form in (False, True)],
    "LSTM": [{"input_forget": form, "projected": projected} for form in (False, True) for projected in (False, True)],
}
CASES = [(kind, form) for kind, forms in FORMS.items() for form in forms]
OPTIONAL = ("B", "sequence_lens", "initial_h", "initial_c", "P")
WITH_ROWS = ("X", "initial_h", "initial_c")


def forward(kind, arguments):
    return getattr(reference, kind.lower())(**arguments)


def backward(kind, gradients, arguments):
    return getattr(reference, f"{kind.lower()}_backward")(*gradients, **arguments)


def draw(rng, kind, *, direction="forward", names=None, given=OPTIONAL, layout=0, projected=False, **attributes):
    """Arguments of the reference's function: T 4, B 3, I 3, H 5, N 2; of ragged rows the second has no steps."""
    D, H, G = len(DIRECTIONS[direction]), 5, GATES[kind]
    N = 2 if projected else H

    def normal(*shape):
        return rng.standard_normal(shape) * 0.5

    arrays = {
        "X": normal(4, 3, 3),
        "W": normal(D, G * H, 3),
        "R": normal(D, G * H, N),
        "B": normal(D, 2 * G * H),
        "sequence_lens": np.array([3, 0, 4]),
        "initial_h": normal(D, 3, N),
    }
    if kind == "LSTM":
        arrays |= {"initial_c": normal(D, 3, H), "P": normal(D, 3 * H)}
    arrays = {name: a for name, a in arrays.items() if name in ("X", "W", "R", *given)}
    if layout:
        arrays |= {name: arrays[name].swapaxes(0, 1) for name in WITH_ROWS if name in arrays}
    if projected:
        arrays["projection"] = normal(D, N, H)
    activations = tuple(tuple(activation(n) for n in row) for row in names or (DEFAULT[kind],) * D)
    return arrays | attributes | {"direction": direction, "layout": layout, "activations": activations}


def draw_gradients(rng, kind, arguments):
    return [rng.standard_normal(y.shape) for y in forward(kind, arguments)]


def loss_and_sides(kind, gradients, arguments):
    """sum(gradients * outputs), and for every argument of an activation between which kinks it lies."""
    sides, clip = [], arguments.get("clip")

    def watched(name, function):
        def f(x, alpha, beta):
            kinks = KINKS[name](alpha, beta) if name in KINKS else []
            kinks = sorted(kinks if clip is None else [*kinks, -clip, clip])
            sides.append(np.searchsorted(kinks, x, "left") + np.searchsorted(kinks, x, "right"))
            return function(x, alpha, beta)

        return f

    with mock.patch.dict(reference.ACTIVATIONS, {n: watched(n, f) for n, f in reference.ACTIVATIONS.items()}):
        outputs = forward(kind, arguments)
    return sum((g * y).sum() for g, y in zip(gradients, outputs, strict=True)), np.array(sides)


def difference(kind, gradients, arguments, name, direction):
    """Central difference of the loss, where an argument moves in a direction."""
    (up, sides), (down, other_sides) = (
        loss_and_sides(kind, gradients, arguments | {name: arguments[name] + step * direction})
        for step in (STEP, -STEP)
    )
    assert np.array_equal(sides, other_sides), "a kink lies within the step: draw other data"
    return (up - down) / (2 * STEP)


def assert_close(got, want, largest, tolerance, name):
    assert np.abs(got - want).max() <= tolerance * max(1, np.abs(largest).max()), name


def assert_gradients(rng, kind, arguments):
    """For each argument along a random direction, in which every element takes part."""
    gradients = draw_gradients(rng, kind, arguments)
    got = backward(kind, gradients, arguments)
    assert set(got) == {n for n, a in arguments.items() if isinstance(a, np.ndarray)} - {"sequence_lens"}
    for name, g in got.items():
        assert g.dtype == np.float64 and g.shape == arguments[name].shape
        direction = rng.standard_normal(g.shape)
        want = difference(kind, gradients, arguments, name, direction)
        assert_close((g * direction).sum(), want, g, DIFFERENCE_TOLERANCE, name)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
@pytest.mark.parametrize("kind, form", CASES)
def test_every_activation(kind, form, name, clip):
    rng = np.random.default_rng(2)
    assert_gradients(rng, kind, draw(rng, kind, names=[[name] * len(DEFAULT[kind])], clip=clip, **form))


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind, form", CASES)
def test_every_attribute_and_input(kind, form, direction, layout, clip):
    """Each place has an activation of its own; optional inputs are there or not."""
    rng = np.random.default_rng([len(direction), layout, clip is None])
    names = rng.choice(list(reference.ACTIVATIONS), (len(DIRECTIONS[direction]), len(DEFAULT[kind]))).tolist()
    given = [name for name in OPTIONAL if rng.random() < 0.7]
    assert_gradients(
        rng, kind, draw(rng, kind, direction=direction, layout=layout, names=names, given=given, clip=clip, **form)
    )


# ------------------------------------------------------------------------------------------------- activations
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_derivative(name):
    """Central differences on both sides of every kink."""
    _, alpha, beta = activation(name)
    x = np.random.default_rng(5).uniform(-4, 4, 200)
    kinks = KINKS[name](alpha, beta) if name in KINKS else []
    x = x[[all(abs(v - k) > STEP for k in kinks) for v in x]]
    function = reference.ACTIVATIONS[name]
    want = (function(x + STEP, alpha, beta) - function(x - STEP, alpha, beta)) / (2 * STEP)
    got = reference.DERIVATIVES[name](x, alpha, beta)
    assert got.dtype == np.float64 and len({np.searchsorted(sorted(kinks), v) for v in x}) == len(kinks) + 1
    assert_close(got, want, got, DIFFERENCE_TOLERANCE, name)


def test_every_activation_has_its_derivative():
    assert list(reference.DERIVATIVES) == list(reference.ACTIVATIONS)


@pytest.mark.parametrize(
    "name, at, derivative",
    [
        ("Relu", 0.0, 0.0),
        ("LeakyRelu", 0.0, 1.0),
        ("ThresholdedRelu", 0.5, 1.0),
        ("HardSigmoid", -1.0, 0.0),
        ("HardSigmoid", 1.0, 0.0),
        ("Elu", 0.0, 1.0),
    ],
)
def test_derivative_at_a_kink(name, at, derivative):
    for x in {at, -at} if at == 0 else {at}:
        assert reference.DERIVATIVES[name](np.array([x]), 0.5, 0.5) == derivative


def test_derivatives_far_out():
    """Derivatives far from 0 neither overflow nor cancel."""
    x = np.array([-np.inf, -1e300, -800.0, -30.0, 30.0, 800.0, 1e300, np.inf])
    with np.errstate(all="raise", under="ignore"):
        got = {name: function(x, 1.5, 0.5) for name, function in reference.DERIVATIVES.items()}
    ends, ramp = [0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]
    near = np.exp(-30.0) / (1 + np.exp(-30.0)) ** 2
    np.testing.assert_allclose(got["Sigmoid"], [*ends, near, near, *ends], rtol=1e-15)
    near = 4 * np.exp(-60.0) / (1 + np.exp(-60.0)) ** 2
    np.testing.assert_allclose(got["Tanh"], [*ends, near, near, *ends], rtol=1e-15)
    np.testing.assert_allclose(got["Softplus"], [*ends, np.exp(-30.0), 1, 1, 1, 1], rtol=1e-12)
    np.testing.assert_allclose(got["Elu"], [*ends, 1.5 * np.exp(-30.0), 1, 1, 1, 1], rtol=1e-15)
    np.testing.assert_array_equal(got["ThresholdedRelu"], ramp)
    np.testing.assert_array_equal(got["Relu"], ramp)


def test_clip_has_gradients_up_to_its_limits():
    """x = 0.5 on a clip of 0.5 is inside."""
    one = np.ones((1, 1, 1))
    for x, want in ((0.5, 1), (-0.5, 1), (0.500001, 0), (-0.500001, 0), (0.0, 1)):
        got = reference.rnn_backward(
            one[None], None, one * x, one, one * 0, activations=[[("Affine", 1.0, 0.0)]], clip=0.5
        )
        assert got["X"] == want


# ------------------------------------------------------------------------------------------------- what goes together
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind, form", CASES)
def test_each_row_is_what_it_is_alone_and_cut(kind, form, direction):
    """Weights have the sum of their rows' gradients; nothing comes from steps that a row does not have."""
    rng = np.random.default_rng(6)
    arguments = draw(rng, kind, direction=direction, **form)
    dY, *dlast = draw_gradients(rng, kind, arguments)
    whole = backward(kind, (dY, *dlast), arguments)
    total = {name: 0.0 for name in whole if name not in WITH_ROWS}
    for b, length in enumerate(arguments["sequence_lens"]):
        alone = arguments | {name: arguments[name][:, b : b + 1] for name in WITH_ROWS if name in arguments}
        alone |= {"X": alone["X"][:length], "sequence_lens": None}
        got = backward(kind, [dY[:length, :, b : b + 1], *(g[:, b : b + 1] for g in dlast)], alone)
        for name, g in got.items():
            assert length or not g.any()
            if name in WITH_ROWS:
                np.testing.assert_array_equal(whole[name][: len(g), b], g[:, 0])
                assert not whole[name][len(g) :, b].any()
            else:
                total[name] = total[name] + g
    for name, g in total.items():
        np.testing.assert_allclose(whole[name], g, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind, form", CASES)
def test_none_is_zeros(kind, form):
    rng = np.random.default_rng(7)
    arguments = draw(rng, kind, direction="bidirectional", **form)
    gradients = draw_gradients(rng, kind, arguments)
    for present in itertools.product((False, True), repeat=len(gradients)):
        got = backward(kind, [g if there else None for g, there in zip(gradients, present)], arguments)
        want = backward(kind, [g * there for g, there in zip(gradients, present)], arguments)
        assert list(got) == list(want) and any(g.any() for g in got.values()) == any(present)
        for name, g in got.items():
            np.testing.assert_array_equal(g, want[name])


@pytest.mark.parametrize("kind", GATES)
def test_without_steps_all_gradients_are_0(kind):
    rng = np.random.default_rng(8)
    arguments = draw(rng, kind, given=("B", "initial_h", "initial_c"))
    arguments["X"] = arguments["X"][:0]
    got = backward(kind, draw_gradients(rng, kind, arguments), arguments)
    assert got["X"].shape == (0, 3, 3) and not any(g.any() for g in got.values())


# ------------------------------------------------------------------------------------------------- torch
ORDER = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}
"""Positions in torch's blocks of gates of those of ONNX: z, r, n in r, z, n and i, o, f, c in i, f, g, o."""

TORCH = [
    ("RNN", {"nonlinearity": "tanh"}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
]


def of_torch(kind, layer, gradients):
    """ONNX's arrays from the layer's weights, or from their gradients."""

    def gates(name):
        blocks = np.split(part(name), GATES[kind])
        return np.concatenate([blocks[k] for k in ORDER[kind]])

    def part(name):
        tensor = getattr(layer, name)
        return (tensor.grad if gradients else tensor.detach()).numpy()

    suffixes = ("l0", "l0_reverse")[: 1 + layer.bidirectional]
    arrays = {
        "W": np.stack([gates(f"weight_ih_{s}") for s in suffixes]),
        "R": np.stack([gates(f"weight_hh_{s}") for s in suffixes]),
    }
    if layer.bias:
        arrays["B"] = np.stack([np.concatenate([gates(f"bias_ih_{s}"), gates(f"bias_hh_{s}")]) for s in suffixes])
    if layer.proj_size:
        arrays["projection"] = np.stack([part(f"weight_hr_{s}") for s in suffixes])
    return arrays


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind, extra", TORCH)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_gradients_are_torchs(kind, extra, bidirectional, bias, ragged):
    torch = pytest.importorskip("torch")
    torch.manual_seed(9)
    T, B, I, H, D = 7, 4, 3, 5, 1 + bidirectional
    N = extra.get("proj_size", H)
    layer = getattr(torch.nn, kind)(I, H, bias=bias, bidirectional=bidirectional, dtype=torch.float64, **extra)
    lengths = torch.tensor([3, 7, 1, 6]) if ragged else torch.full((B,), T)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(D, B, n, dtype=torch.float64, requires_grad=True) for n in (N, H)[: 1 + (kind == "LSTM")]]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = layer(packed, tuple(states) if kind == "LSTM" else states[0])
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    outputs = [y, *(last if kind == "LSTM" else (last,))]
    gradients = [torch.randn(o.shape, dtype=torch.float64) for o in outputs]
    torch.autograd.backward(outputs, gradients)

    names = ("initial_h", "initial_c")
    arguments = of_torch(kind, layer, False) | {"X": x.detach().numpy(), "sequence_lens": lengths.numpy()}
    arguments |= {name: s.detach().numpy() for name, s in zip(names, states)}
    arguments |= {"direction": "bidirectional" if bidirectional else "forward"}
    default = (extra["nonlinearity"].title(),) if kind == "RNN" else DEFAULT[kind]
    arguments["activations"] = [[(name, 0.0, 0.0) for name in default]] * D
    if kind == "GRU":
        arguments["linear_before_reset"] = True
    dY, *dlast = (g.numpy() for g in gradients)
    got = backward(kind, (dY.reshape(T, B, D, N).swapaxes(1, 2), *dlast), arguments)
    want = of_torch(kind, layer, True) | {"X": x.grad.numpy()}
    want |= {name: s.grad.numpy() for name, s in zip(names, states)}
    assert set(got) == set(want)
    for name, g in got.items():
        assert g.shape == want[name].shape
        assert_close(g, want[name], want[name], TORCH_TOLERANCE, name)
