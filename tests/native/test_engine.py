"""The engine against the float64 reference and against plain NumPy, on every instruction set."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rnnfast.errors import IsaError
from rnnfast.native import _engine, _kernels
from rnnfast.native.cell_activations import resolve
from tests.cases import ALPHA_BETA, DEFAULT, DIRECTIONS, FUNCTIONS, bits, cells, expect, random_input, random_layer, run

# Rounding of float32 chains of at most 110 terms over 7 steps, relative to the largest output; measured 3e-6.
TOLERANCE = 1e-5
NAMES = list(_kernels.ACTIVATIONS)


def assert_close(got, want, tolerance=TOLERANCE):
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert np.all(np.isfinite(w))
        worst = np.max(np.abs(g - w), initial=0.0)
        assert worst <= tolerance * max(1.0, np.max(np.abs(w), initial=0.0)), worst


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(list(DEFAULT)))
    direction = draw(st.sampled_from(list(DIRECTIONS)))
    options = dict(
        kind=kind,
        direction=direction,
        bias=draw(st.booleans()),
        input_size=draw(st.integers(1, 40)),
        hidden_size=draw(st.integers(1, 70)),
    )
    if draw(st.booleans()):
        options["activations"] = tuple(
            tuple(draw(st.sampled_from(NAMES)) for _ in range(FUNCTIONS[kind])) for _ in DIRECTIONS[direction]
        )
    if draw(st.booleans()):
        options["clip"] = draw(st.sampled_from([0.35, 1.7]))
    if kind == "GRU":
        options["linear_before_reset"] = draw(st.booleans())
    if kind == "LSTM":
        options |= dict(peepholes=draw(st.booleans()), input_forget=draw(st.booleans()))
    return options


@settings(max_examples=250, derandomize=True, deadline=None)
@given(
    options=layers(),
    T=st.integers(0, 7),
    B=st.integers(1, 9),
    states=st.booleans(),
    ragged=st.booleans(),
    matmul=st.sampled_from(_kernels.MATMULS),
    seed=st.integers(0, 2**31),
)
def test_conformance(options, T, B, states, ragged, matmul, seed):
    """Every attribute of every cell, sampled together, on every instruction set."""
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, **options)
    lens = rng.integers(0, T + 1, B) if ragged else None
    inputs = random_input(rng, layer, T, B, states=states, lens=lens)
    want = expect(layer, *inputs)
    assume(np.max(np.abs(want[0]), initial=0.0) < 1e3)
    if "ThresholdedRelu" in str(layer.activations):
        # it jumps: rounding may fall on the other side, so only inputs that are not near the jump say anything
        near = random_layer(np.random.default_rng(seed), **options)
        near.activations = tuple(
            tuple((n, a + 1e-4 * (n == "ThresholdedRelu"), b) for n, a, b in f) for f in layer.activations
        )
        assume(np.allclose(expect(near, *inputs)[0], want[0], atol=2e-3))
    before, results = _kernels.get_isa(), []
    try:
        for isa in _kernels.isas():
            _kernels.set_isa(isa)
            got = run(cells(layer, matmul), layer, *inputs)
            assert_close(got, want)
            results.append(bits(got))
    finally:
        _kernels.set_isa(before)
    assert matmul == "blas" or all(r == results[0] for r in results)


@pytest.mark.parametrize("kind", DEFAULT)
@pytest.mark.parametrize("matmul", _kernels.MATMULS)
def test_long_and_wide(isa, kind, matmul):
    """More steps than input projections are held at once, sizes over several panels."""
    rng = np.random.default_rng(3)
    layer = random_layer(rng, kind, 67, 131, direction="bidirectional")
    x, h, c, _ = random_input(rng, layer, 77, 5)
    assert_close(run(cells(layer, matmul), layer, x, h, c), expect(layer, x, h, c), 3e-5)
    lens = np.array([77, 3, 0, 50, 76])
    assert_close(run(cells(layer, matmul), layer, x, h, c, lens), expect(layer, x, h, c, lens), 3e-5)


@pytest.mark.parametrize("kind", DEFAULT)
@pytest.mark.parametrize("matmul", _kernels.MATMULS)
def test_strides(isa, kind, matmul):
    """x and y in any order of axes, with gaps, backwards: the same bits as contiguous arrays."""
    rng = np.random.default_rng(4)
    layer = random_layer(rng, kind, 5, 19, direction="bidirectional")
    packed = cells(layer, matmul)
    x, h, c, _ = random_input(rng, layer, 6, 4)
    y, *_ = run(packed, layer, x, h, c)
    batch_first = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    gaps = np.full((6, 4, 9), np.nan, np.float32)
    gaps[:, :, 2:7] = x
    backwards = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    for view in (batch_first, gaps[:, :, 2:7], backwards):
        out = np.full((4, 6, 2, 19), np.nan, np.float32).transpose(1, 2, 0, 3)
        _engine.recurrent(packed, (False, True), view, out, h, c)
        assert bits([out]) == bits([y]) if matmul == "packed" else np.allclose(out, y, atol=1e-5)


@pytest.mark.parametrize("T,B", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", DEFAULT)
def test_empty(isa, kind, T, B):
    layer = random_layer(np.random.default_rng(0), kind, 3, 5, direction="bidirectional")
    y, *last = run(cells(layer), layer, np.zeros((T, B, 3), np.float32))
    assert y.shape == (T, 2, B, 5)
    for state in last:
        assert state.shape == (2, B, 5) and not state.any()


def test_projection(isa):
    """h = projection (o * tanh(c)), as torch's proj_size: written out step by step from the cell without it."""
    rng = np.random.default_rng(6)
    H, P, I, B, T = 21, 5, 4, 3, 6
    W, R, proj = (rng.standard_normal(s).astype(np.float32) * np.float32(0.4) for s in ((4 * H, I), (4 * H, P), (P, H)))
    functions = (("Sigmoid", 0, 0), ("Tanh", 0, 0), ("Tanh", 0, 0))
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    for matmul in _kernels.MATMULS:
        cell = _engine.Cell("LSTM", W, R, activations=functions, projection=proj, matmul=matmul)
        y = np.empty((T, 1, B, P), np.float32)
        y_h, y_c = _engine.recurrent((cell,), (False,), x, y)
        h, c = np.zeros((B, P)), np.zeros((B, H))
        for t in range(T):
            i, o, f, g = np.split(x[t] @ W.T.astype(np.float64) + h @ R.T, 4, axis=1)
            i, o, f = (1 / (1 + np.exp(-v)) for v in (i, o, f))
            c = f * c + i * np.tanh(g)
            h = (o * np.tanh(c)) @ proj.T.astype(np.float64)
            assert_close([y[t, 0]], [h])
        assert_close([y_h[0], y_c[0]], [h, c])


def test_overlapping_rows(isa):
    """A framed signal is a view with a leading dimension smaller than K: no copy, the same bits."""
    rng = np.random.default_rng(1)
    signal = rng.standard_normal(400).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(signal, 65)[::13]
    weight = rng.standard_normal((65, 37)).astype(np.float32)
    for matmul in _kernels.MATMULS:
        matrix = _kernels.Matrix(weight, matmul=matmul)
        got = matrix.multiply(frames)
        np.testing.assert_allclose(got, frames.astype(np.float64) @ weight, atol=1e-4)
        if matmul == "packed":
            assert got.tobytes() == matrix.multiply(frames.copy()).tobytes()


def test_the_chain_is_fma_in_order_from_the_bias(isa):
    """The rule behind law 2, written out with exactly rounded float64 arithmetic (53 bits hold a product of 24)."""
    rng = np.random.default_rng(2)
    k, n = 40, 19
    weight, bias = rng.standard_normal((k, n)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal(k).astype(np.float32)
    chain = bias.astype(np.float32)
    for i in range(k):
        exact = np.float64(x[i]) * weight[i].astype(np.float64)
        total = exact + chain
        # round to odd: where the float64 sum is inexact, its last bit keeps the rounding to float32 from tying
        lost = (total - exact) != chain
        odd = (total.view(np.int64) | lost).view(np.float64)
        chain = np.where(lost, odd, total).astype(np.float32)
    got = _kernels.Matrix(weight, bias, matmul="packed").multiply(x)
    assert np.max(np.abs(got.view(np.int32) - chain.view(np.int32))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_activations(isa, name):
    alpha, beta = ALPHA_BETA.get(name, (0.0, 0.0))
    x = np.random.default_rng(0).standard_normal(1003).astype(np.float32) * 3
    from rnnfast.reference import ACTIVATIONS

    np.testing.assert_allclose(
        _kernels.unary(name, x, alpha, beta), ACTIVATIONS[name](x.astype(np.float64), alpha, beta), rtol=4e-7, atol=1e-7
    )
    assert np.isnan(_kernels.unary(name, np.float32([np.nan]), alpha, beta)).all()


def test_denormals_are_flushed_inside_and_the_caller_keeps_its_mode(isa):
    tiny = np.float32([1e-40, -1e-40])
    before = (tiny * np.float32(0.5)).tobytes()
    assert not np.any(_kernels.unary("Affine", tiny, 1.0, 0.0))
    assert (tiny * np.float32(0.5)).tobytes() == before
    assert sys.float_info.min / 2 != 0


def test_isa_choice():
    before = _kernels.get_isa()
    for name in _kernels.isas():
        _kernels.set_isa(name)
        assert _kernels.get_isa() == name
    with pytest.raises(IsaError, match="sse9.*generic"):
        _kernels.set_isa("sse9")
    assert _kernels.get_isa() == "generic"
    _kernels.set_isa(before)


def test_wrong_calls_are_refused():
    rng = np.random.default_rng(0)
    layer = random_layer(rng, "LSTM", 3, 5)
    packed = cells(layer)
    x, h, c, _ = random_input(rng, layer, 4, 2)
    y = np.empty((4, 1, 2, 5), np.float32)
    for bad in (
        (packed, (False,), x[:, :, :2], y),
        (packed, (False,), x, y[:, :, :1]),
        (packed, (False, True), x, y),
        (packed, (False,), x, y, h[:, :1]),
        (packed, (False,), x, y, h, c[:, :, :4]),
        (packed, (False,), x, y, h, c, [5, 1]),
        (packed, (False,), x, y, h, c, [1, 2, 3]),
    ):
        with pytest.raises(ValueError):
            _engine.recurrent(*bad)
    with pytest.raises(ValueError, match="expected"):
        _kernels.Matrix(np.zeros((3, 4), np.float32)).multiply(np.zeros((2, 5), np.float32))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="matmul"):
        _kernels.Matrix(np.zeros((3, 4), np.float32), matmul="fast")


# ------------------------------------------------------------------------------------------------ default gates
def kept(kind, state, **biases):
    """The state (c of LSTM, h of GRU) after one step in which each gate is its bias alone, unit by unit."""
    gates, n = {"LSTM": "iofc", "GRU": "zrh"}[kind], len(state)
    cell = _engine.Cell(
        kind,
        np.zeros((len(gates) * n, 1), np.float32),
        np.zeros((len(gates) * n, n), np.float32),
        np.concatenate(
            [biases.get(name, np.zeros(n, np.float32)) for name in gates] + [np.zeros(len(gates) * n, np.float32)]
        ),
        activations=resolve(DEFAULT[kind]),
        linear_before_reset=True,
    )
    states = (np.zeros((1, 1, n), np.float32),) * (kind == "LSTM") + (state[None, None],)
    y = np.empty((1, 1, 1, n), np.float32)
    h, c = _engine.recurrent((cell,), (False,), np.zeros((1, 1, 1), np.float32), y, *states)
    return (h if kind == "GRU" else c).ravel()


@pytest.mark.parametrize("kind, gate", [("LSTM", "f"), ("GRU", "z")])
def test_the_gate_of_a_state(kind, gate, isa):
    """f and z are sigmoids within 3.5 ULP down to 2^-62; what lies below is 2^-62. The candidate is tanh(0)."""
    worst = 0
    for x in np.linspace(-43, 43, 20_000).astype(np.float32).reshape(-1, 200):
        right = 1 / (1 + np.exp(-x.astype(np.float64)))
        error = kept(kind, np.ones(200, np.float32), **{gate: x}) - right
        worst = max(worst, np.max(np.abs(error) / np.spacing(right.astype(np.float32))))
    assert worst <= 3.5
    x = np.float32([-np.inf, -1e30, -100, -43.5, 43.5, 100, np.inf, np.nan])
    got = kept(kind, np.ones(8, np.float32), **{gate: x})
    np.testing.assert_allclose(got[:4], 2.0**-62, rtol=0.4)
    assert list(got[4:7]) == [1, 1, 1] and np.isnan(got[7])


@pytest.mark.parametrize("kind, gate, other", [("LSTM", "f", "i"), ("GRU", "z", "r")])
def test_an_open_gate_keeps_its_state(kind, gate, other, isa):
    """Bit for bit, whatever the other gate is, so that a state does not decay over many steps."""
    rng = np.random.default_rng(5)
    for _ in range(10):
        state, x = rng.standard_normal((2, 200)).astype(np.float32)
        got = kept(kind, state, **{gate: np.full(200, 30, np.float32), other: 8 * x})
        assert got.tobytes() == state.tobytes()
