"""rnnfast.plot: numbers are compared with the layers and torch, and figures are checked by their contents."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from rnnfast import nn, plot
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from tests.paths import ROOT

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
KINDS = {"RNN": "h", "GRU": "rznh", "LSTM": "ifgoch"}
TOLERANCE = 2e-6
"""float32 against float64: 3e-7 was measured."""

TORCH = 1e-3
"""Relative, both float32: 3e-5 was measured, where steps multiply the difference."""


def layer_of(kind, *args, rng=0, **options):
    """A layer whose weights are three times as large as the initial ones, so that gates open and close."""
    layer = getattr(nn, kind)(*args, rng=rng, **options)
    layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()})
    return layer


def inputs(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def changed(layer, **arrays):
    layer.load_state_dict(layer.state_dict() | arrays)
    return layer


CASES = [
    *((kind, {}) for kind in KINDS),
    *((kind, {"num_layers": 3, "bidirectional": True}) for kind in KINDS),
    *((kind, {"reverse": True, "bias": False, "batch_first": True}) for kind in KINDS),
    *(("LSTM", {"num_layers": 2, "bidirectional": True, "merge": merge}) for merge in ("sum", "mul", "average")),
    ("RNN", {"nonlinearity": "relu", "clip": 0.4}),
    ("GRU", {"linear_before_reset": False}),
    ("GRU", {"activations": [("HardSigmoid", 0.3, 0.4), "Softsign"], "clip": 0.7}),
    ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True, "peepholes": True}),
    ("LSTM", {"input_forget": True, "clip": 0.3, "activations": ["Sigmoid", "Tanh", ("Affine", 2.0, 0.1)]}),
]


@pytest.mark.parametrize("kind, options", CASES, ids=str)
def test_gate_values_are_those_of_the_layer(kind, options):
    layer = layer_of(kind, 3, 5, **options)
    x = inputs(4, 7, 3) if layer.batch_first else inputs(7, 4, 3)
    directions = 1 + layer.bidirectional
    state = [inputs(layer.num_layers * directions, 4, size, seed=size) for size in (layer.proj_size or 5, 5)][
        : 1 + (kind == "LSTM")
    ]
    state = tuple(state) if kind == "LSTM" else state[0]
    y, last = layer(x, state)
    outputs = []
    for direction in range(directions):
        for index in range(layer.num_layers):
            values = plot.gate_values(layer, x, state, index=index, direction=direction)
            assert "".join(values) == KINDS[kind]
            assert all(v.shape[:2] == x.shape[:2] and v.dtype == np.float32 for v in values.values())
            for name, of_last in zip("hc", last if kind == "LSTM" else (last,)):
                backwards = layer.reverse or direction == 1
                ends = values[name].swapaxes(0, 1) if layer.batch_first else values[name]
                np.testing.assert_allclose(
                    ends[0 if backwards else -1], of_last[index * directions + direction], atol=TOLERANCE
                )
        outputs.append(values["h"])
    merge = {
        "concat": lambda *a: np.concatenate(a, -1),
        "sum": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "average": lambda a, b: (a + b) / 2,
    }[layer.merge]
    np.testing.assert_allclose(merge(*outputs), y, atol=TOLERANCE)


def test_gate_values_obey_the_equations():
    """f and g by hand for the first step; the rest of an LSTM's row follows from its gates."""
    layer, x = layer_of("LSTM", 2, 3), inputs(5, 2)
    w = {name: a.astype(np.float64) for name, a in layer.state_dict().items()}
    v = plot.gate_values(layer, x)
    a = w["weight_ih_l0"] @ x[0] + w["bias_ih_l0"] + w["bias_hh_l0"]
    np.testing.assert_allclose(v["f"][0], 1 / (1 + np.exp(-a[3:6])), rtol=1e-6)
    np.testing.assert_allclose(v["g"][0], np.tanh(a[6:9]), rtol=1e-6)
    np.testing.assert_allclose(v["c"][1:], v["f"][1:] * v["c"][:-1] + v["i"][1:] * v["g"][1:], atol=1e-6)
    np.testing.assert_allclose(v["h"], v["o"] * np.tanh(v["c"]), atol=1e-6)
    v = plot.gate_values(layer_of("GRU", 2, 3), x)
    np.testing.assert_allclose(v["h"][1:], (1 - v["z"][1:]) * v["n"][1:] + v["z"][1:] * v["h"][:-1], atol=1e-6)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: plot.gate_values(nn.Linear(3, 2), inputs(4, 3)), InputTypeError, "got a Linear, expected RNN, LSTM"),
        (lambda: plot.gate_values(nn.GRU(3, 2), inputs(4, 2)), InputError, r"\[4, 2\], expected"),
        (lambda: plot.gate_values(nn.GRU(3, 2), inputs(0, 1, 3)), InputError, "0 steps, 1 rows, expected one or more"),
        (lambda: plot.gate_values(nn.GRU(3, 2, 2), inputs(4, 3), index=2), InputError, "index: 2, expected less than"),
        (lambda: plot.gate_values(nn.GRU(3, 2), inputs(4, 3), direction=1), InputError, "direction: 1 is none of 0"),
        (
            lambda: plot.gate_values(nn.GRU(3, 2), inputs(4, 1, 3), inputs(1, 2, 2)),
            InputError,
            r"h: shape is \[1, 2, 2\], expected \[1, 1, 2\]",
        ),
        (
            lambda: plot.gradient_norms(nn.GRU(3, 2, bidirectional=True), inputs(4, 3)),
            UnsupportedError,
            "runs backwards",
        ),
        (
            lambda: plot.gradient_norms(nn.GRU(3, 2), inputs(4, 3), dlast=inputs(1, 3)),
            InputError,
            r"dlast: shape is \[1, 3\], expected \[1, 2\]",
        ),
        (lambda: plot.gradient_flow([nn.GRU(3, 2)], inputs(4, 3)), InputTypeError, "expected a mapping of name"),
        (lambda: plot.gradient_flow({"GRU": []}, inputs(4, 3)), InputError, "GRU has none, expected one or more"),
        (lambda: plot.gradient_flow({"GRU": nn.GRU(3, 2)}, inputs(4, 3), clip=0), InputError, "clip: 0, expected"),
        (lambda: plot.learning_curves([1.0]), InputTypeError, r"history: got \[1.0\], expected a mapping"),
        (lambda: plot.learning_curves({"loss": [1.0, 2.0], "mae": [1.0]}), InputError, "expected as many of each"),
        (lambda: plot.learning_curves({"loss": ["a"]}), InputError, "expected one number for each epoch"),
        (lambda: plot.learning_curves({"loss": [1.0]}, monitor="mae"), InputError, "monitor: 'mae' is none of 'loss'"),
        (lambda: plot.attention(inputs(2, 3, 4)), InputError, r"shape is \[2, 3, 4\], expected numbers"),
        (lambda: plot.attention(inputs(2, 3), source="ab"), InputError, "source: got 2, expected 3"),
        (
            lambda: plot.gates(nn.GRU(3, 2), inputs(4, 2, 3), row=2),
            InputError,
            "row: 2, expected less than the batch of 2",
        ),
        (lambda: plot.gates(nn.GRU(3, 2), inputs(4, 3), labels="abc"), InputError, "labels: got 3, expected 4"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "batch_first": True}], ids=str)
def test_gradient_norms_are_those_of_torch(kind, options):
    """torch keeps the gradient of each step's state in one graph of all steps: another route to the same norms."""
    torch = pytest.importorskip("torch")
    layer = layer_of(kind, 3, 5, **options)
    theirs = getattr(torch.nn, kind)(3, 5, **options)
    theirs.load_state_dict({name: torch.tensor(a) for name, a in layer.state_dict().items()})
    x, dlast = inputs(4, 9, 3) if layer.batch_first else inputs(9, 4, 3), inputs(4, 5)
    got = plot.gradient_norms(layer, x, dlast=dlast)

    state, states = None, []
    for t in range(9):
        step = x[:, t : t + 1] if layer.batch_first else x[t : t + 1]
        _, state = theirs(torch.tensor(step), state)
        states.append(state if kind == "LSTM" else (state,))
    for s in (s for pair in states for s in pair):
        s.retain_grad()
    (states[-1][0][-1] * torch.tensor(dlast)).sum().backward()
    for n, pair in enumerate(reversed(states)):
        whole = [np.zeros(s.shape) if s.grad is None else s.grad.numpy() for s in pair]
        norm = np.sqrt(sum((a.astype(np.float64) ** 2).sum(axis=(0, 2)) for a in whole))
        np.testing.assert_allclose(got.state[n], norm, rtol=TORCH)
    total = np.sqrt(sum((p.grad.numpy().astype(np.float64) ** 2).sum() for p in theirs.parameters())) / 4
    assert got.total == pytest.approx(total, rel=TORCH)


def test_gradient_norms_of_each_step():
    layer, x = layer_of("GRU", 3, 5), inputs(6, 2, 3)
    norms = plot.gradient_norms(layer, x, rng=3)
    assert norms.state.shape == (6, 2) and norms.weights.shape == (6,)
    np.testing.assert_allclose(norms.state[0], 1, rtol=1e-6)
    np.testing.assert_array_equal(norms.state, plot.gradient_norms(layer, x, rng=3).state)
    assert not np.array_equal(norms.state, plot.gradient_norms(layer, x, rng=4).state)
    # the last step alone, from the state before it, is what n = 0 says
    _, before = layer(x[:-1])
    last = plot.gradient_norms(layer, x[-1:], before, rng=3)
    assert last.total == pytest.approx(norms.weights[0], rel=1e-6)
    # without a batch axis, one row
    alone = plot.gradient_norms(layer, x[:, 0], dlast=np.eye(1, 5, dtype=np.float32))
    both = plot.gradient_norms(layer, x, dlast=np.eye(1, 5, dtype=np.float32)[[0, 0]])
    np.testing.assert_allclose(alone.state[:, 0], both.state[:, 0], rtol=1e-6)


def test_a_linear_network_is_a_power_of_its_weights():
    """relu where all units are on: h' = s P h + 1 with a permutation P, so n steps back the norm is s**n."""
    permutation = np.eye(6, dtype=np.float32)[[2, 0, 1, 5, 3, 4]]
    for s in (0.5, 1.0, 1.7):
        layer = changed(
            nn.RNN(2, 6, nonlinearity="relu", rng=0),
            weight_ih_l0=np.zeros((6, 2), np.float32),
            weight_hh_l0=np.float32(s) * permutation,
            bias_ih_l0=np.ones(6, np.float32),
        )
        norms = plot.gradient_norms(layer, np.zeros((30, 3, 2), np.float32))
        np.testing.assert_allclose(norms.state, np.repeat([[s**n] for n in range(30)], 3, axis=1), rtol=1e-4)


def test_gradients_vanish_and_explode_as_the_theory_says():
    """50 steps back, medians of 16 rows; between the cells lie orders of magnitude."""
    x = inputs(51, 16, 3)

    def reach(layer):
        return np.median(plot.gradient_norms(layer, x).state[50])

    def recurrent(factor, nonlinearity):
        weights = inputs(32, 32, seed=2) * np.float32(factor / np.sqrt(32))
        return changed(nn.RNN(3, 32, nonlinearity=nonlinearity, rng=0), weight_hh_l0=weights)

    def forgetting(bias):
        layer = nn.LSTM(3, 32, rng=0)
        return changed(layer, bias_ih_l0=np.repeat(np.float32([0, bias, 0, 0]), 32))

    assert reach(recurrent(0.5, "tanh")) < 1e-14
    assert reach(recurrent(2.2, "relu")) > 1e5
    assert reach(recurrent(3.0, "tanh")) > 10
    assert reach(nn.RNN(3, 32, rng=0)) < 1e-4 * reach(forgetting(1.0))
    lstm = [reach(forgetting(bias)) for bias in (-1.0, 0.0, 1.0, 5.0)]
    assert lstm == sorted(lstm) and lstm[0] < 1e-12 and 0.3 < lstm[3] < 3.0

    def updating(bias):
        return changed(nn.GRU(3, 32, rng=0), bias_ih_l0=np.repeat(np.float32([0, bias, 0]), 32))

    gru = [reach(updating(bias)) for bias in (-2.0, 0.0, 1.0, 5.0)]
    assert gru == sorted(gru) and gru[0] < 1e-8 and 0.3 < gru[3] < 3.0


@needs_matplotlib
@pytest.mark.filterwarnings("error")
def test_beyond_float32():
    """Values that overflow or underflow are no error, and are left out of the picture."""
    x = np.zeros((60, 2, 2), np.float32)
    tiny = changed(nn.RNN(2, 3, rng=0), weight_hh_l0=np.full((3, 3), 1e-3, np.float32))
    assert plot.gradient_norms(tiny, x).state[-1].max() == 0
    huge = changed(
        nn.RNN(2, 3, nonlinearity="relu", rng=0),
        weight_hh_l0=np.full((3, 3), 1e3, np.float32),
        bias_ih_l0=np.ones(3, np.float32),
    )
    assert not np.isfinite(plot.gradient_norms(huge, x).total)
    figure = plot.gradient_flow({"tiny": tiny, "huge": huge}, x, clip=1.0)
    for line in figure.axes[0].lines:
        points = line.get_ydata()
        assert 5 < len(points) < 30 and np.isfinite(points).all() and (points > 0).all()


@needs_matplotlib
def test_gradient_flow_draws_the_norms():
    x = inputs(12, 5, 3)
    layers = {"RNN": [layer_of("RNN", 3, 4, rng=seed) for seed in range(3)], "LSTM": nn.LSTM(3, 4, rng=0)}
    figure = plot.gradient_flow(layers, x, clip=0.05, rng=7)
    rng = np.random.default_rng(7)
    norms = [plot.gradient_norms(layer, x, rng=rng) for layer in (*layers["RNN"], layers["LSTM"])]
    left, right = figure.axes
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "log"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["RNN", "LSTM"]
    rnn, lstm = left.lines
    np.testing.assert_allclose(rnn.get_ydata(), np.median(np.hstack([n.state for n in norms[:3]]), axis=1))
    np.testing.assert_allclose(lstm.get_ydata(), np.median(norms[3].state, axis=1))
    np.testing.assert_array_equal(lstm.get_xdata(), np.arange(12))
    assert len(left.collections) == 2 and len(right.collections) == 1  # bands where there is more than one line
    plain, clipped = right.lines[2:]
    np.testing.assert_allclose(plain.get_ydata(), norms[3].weights)
    assert norms[3].total > 0.05
    np.testing.assert_allclose(clipped.get_ydata(), norms[3].weights * 0.05 / norms[3].total)
    loose = plot.gradient_flow(layers, x, clip=100.0, rng=7).axes[1].lines
    np.testing.assert_array_equal(loose[2].get_ydata(), loose[3].get_ydata())


@needs_matplotlib
def test_learning_curves():
    history = {"loss": [3, 2, 1, 0.5], "val_loss": [3.0, 1.5, 1.7, float("nan")], "accuracy": [0.1, 0.4, 0.6, 0.9]}
    figure = plot.learning_curves(history)
    loss, accuracy = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["loss", "accuracy"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation", "best epoch: 2"]
    training, best, validation = loss.lines[:3]
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(training.get_ydata(), history["loss"])
    np.testing.assert_array_equal(validation.get_ydata(), history["val_loss"])
    assert (best.get_xdata(), best.get_ydata()) == ([2], [2.0])
    assert len(accuracy.lines) == 3  # no validation
    best = plot.learning_curves(history, monitor="accuracy", mode="max").axes[0].get_legend().get_texts()[-1]
    assert best.get_text() == "best epoch: 4"
    history["learning_rate"] = [1e-3] * 4
    assert [panel.get_title() for panel in plot.learning_curves(history).axes] == ["loss", "accuracy"]
    only = plot.learning_curves(history, metrics=["learning_rate"])
    assert [panel.get_title() for panel in only.axes] == ["learning_rate"]
    assert len(plot.learning_curves({"loss": [float("nan")]}).axes[0].lines) == 1


@needs_matplotlib
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "batch_first": True, "bidirectional": True}], ids=str)
def test_gates(kind, options):
    layer, x = layer_of(kind, 3, 5, **options), inputs(6, 4, 3)
    x = x.swapaxes(0, 1) if layer.batch_first else x
    chosen = {"index": 1, "direction": 1} if options else {}
    values = plot.gate_values(layer, x, **chosen)
    figure = plot.gates(layer, x, row=2, labels="abcdef", **chosen)
    panels = figure.axes[: len(values)]
    for panel, (name, a) in zip(panels, values.items(), strict=True):
        (image,) = panel.images
        np.testing.assert_array_equal(image.get_array(), (a[2] if layer.batch_first else a[:, 2]).T)
        assert panel.get_title(loc="left").endswith(f" {name}")
        assert image.get_clim()[0] == (0 if name in "ifozr" else -image.get_clim()[1])
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == list("abcdef")


@needs_matplotlib
def test_attention():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=3)
    figure = plot.attention(weights, source=["w", "o", "r", "d"], target=["W", "ER", "D"])
    panel = figure.axes[0]
    np.testing.assert_array_equal(panel.images[0].get_array(), weights)
    assert [text.get_text() for text in panel.get_xticklabels()] == ["w", "o", "r", "d"]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["W", "ER", "D"]


@needs_matplotlib
def test_draws_into_a_given_figure(tmp_path):
    from matplotlib.figure import Figure

    page = Figure(layout="constrained")
    upper, lower = page.subfigures(2, 1)
    assert plot.attention(np.eye(3), figure=upper) is upper
    assert plot.learning_curves({"loss": [1.0]}, figure=lower) is lower
    assert len(upper.axes) == 2 and len(lower.axes) == 1
    page.savefig(tmp_path / "page.svg")
    assert (tmp_path / "page.svg").stat().st_size > 1000


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@needs_matplotlib
def test_pyplot_is_left_alone():
    assert (
        run(
            "import sys, numpy, matplotlib, rnnfast\n"
            "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
            "before = settings()\n"
            "rnnfast.plot.attention(numpy.eye(2))\n"
            "print('matplotlib.pyplot' in sys.modules, before == settings())"
        )
        == "False True\n"
    )


def test_without_matplotlib():
    assert run(
        "import sys, numpy, rnnfast\n"
        "sys.modules['matplotlib'] = None\n"
        "x = numpy.zeros((3, 2), numpy.float32)\n"
        "rnnfast.plot.gradient_norms(rnnfast.nn.GRU(2, 3), x)\n"
        "try: rnnfast.plot.gates(rnnfast.nn.GRU(2, 3), x)\n"
        "except rnnfast.errors.UnsupportedError as error: print(error)"
    ) == ("rnnfast.plot: pictures need matplotlib, which is not installed: pip install 'rnnfast[plot]'\n")


@needs_matplotlib
@pytest.mark.slow
def test_the_model_of_gradient_flow(tmp_path):
    """models/gradient_flow.py: the gated cells learn what lies 39 steps back, the plain RNN does not."""
    root = ROOT
    printed = subprocess.run(
        [sys.executable, root / "models" / "gradient_flow.py", tmp_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    ).stdout
    table = {line[:23].strip(): [float(number) for number in line[23:].split()] for line in printed.splitlines()[2:]}
    assert table["RNN tanh"][0] < 1e-8 and table["RNN tanh"][2] > 0.15
    assert table["RNN relu, large weights"][0] > 1e3 and table["RNN relu, large weights"][3] > 0.16
    for name in ("GRU", "LSTM", "LSTM, forget bias 1"):
        _, reach, error, not_clipped = table[name]
        assert reach > 1e-2 and error < 0.01 and not_clipped < 0.01
    for name in ("gradient_flow.svg", "gradient_flow_gates.svg"):
        assert 10_000 < (tmp_path / name).stat().st_size < 200_000
