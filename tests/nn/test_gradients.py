"""Gradients of recurrent layers: torch's autograd and the float64 reference are the oracles."""

import itertools
import re
import tracemalloc

import numpy as np
import pytest

from rnnfast import nn, reference
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.native import _kernels
from rnnfast.nn import convert
from tests.paths import ROOT

# Relative to the largest gradient of its kind (x, a state, all weights). A gradient that is a sum over all steps whose
# terms cancel, as that of a single unit's only weight, has no better scale of its own. Measured: 6e-6 at most.
TOLERANCE = 1e-5
AUTOGRAD = ROOT / "docs" / "howto" / "autograd.md"
KINDS = ("RNN", "RNN relu", "LSTM", "LSTM projected", "GRU", "GRU reset first")


def layer_of(kind, input_size, hidden_size, **options):
    name, *more = kind.split(" ", 1)
    if more == ["relu"]:
        options["nonlinearity"] = "relu"
    elif more == ["projected"]:
        options["proj_size"] = max(1, hidden_size // 2)
        hidden_size = max(2, hidden_size)
    elif more == ["reset first"]:
        options["linear_before_reset"] = False
    return getattr(nn, name)(input_size, hidden_size, **options)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def packed(layer, states):
    return states if layer.kind == "LSTM" else states[0]


def unpacked(layer, state):
    return list(state) if layer.kind == "LSTM" else [state]


def problem(layer, rng, steps, rows, lengths=None, states=True):
    """x, the initial state or None, and gradients dy and dstate as `forward` gives y and the state."""
    x = random(rng, *((rows, steps) if layer.batch_first else (steps, rows)), layer.input_size)
    count = layer.num_layers * (1 + layer.bidirectional)
    shapes = [(count, rows, layer.proj_size or layer.hidden_size), (count, rows, layer.hidden_size)]
    shapes = shapes[: 1 + (layer.kind == "LSTM")]
    state = packed(layer, [random(rng, *shape) for shape in shapes]) if states else None
    dstate = packed(layer, [random(rng, *shape) for shape in shapes])
    y, _ = layer(x, state, lengths)
    return x, state, random(rng, *y.shape), dstate


def gradients(layer, x, state, dy, dstate, lengths=None):
    """All of them by name."""
    _, _, saved = layer.forward(x, state, lengths=lengths, training=True)
    dx, dinitial, dweights = layer.backward(dy, dstate, saved)
    return named(layer, dx, dinitial) | dweights


def named(layer, dx, dinitial):
    return {"x": dx} | {f"{name}0": d for name, d in zip("hc", unpacked(layer, dinitial))}


def worst(found, right):
    """(error, name) of the largest difference, relative to the largest right gradient of its kind."""
    scale = {name: np.abs(a).max(initial=1e-30) for name, a in right.items()}
    of_weights = max(s for name, s in scale.items() if "_" in name)
    return max(
        (np.abs(found[name] - right[name]).max() / (of_weights if "_" in name else scale[name]), name) for name in right
    )


# ------------------------------------------------------------------------------------------------- torch
def torch_gradients(layer, x, state, dy, dstate, lengths):
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn
    options = {name: getattr(layer, name) for name in ("num_layers", "bias", "batch_first", "bidirectional")}
    if layer.kind == "RNN":
        options["nonlinearity"] = layer.nonlinearity
    elif layer.kind == "LSTM":
        options["proj_size"] = layer.proj_size
    module = getattr(torch.nn, layer.kind)(layer.input_size, layer.hidden_size, **options).double()
    module.load_state_dict({name: torch.tensor(a.astype(np.float64)) for name, a in layer.state_dict().items()})

    def leaf(a):
        return torch.tensor(a.astype(np.float64), requires_grad=True)

    # torch takes no rows without steps; their gradients are zeros
    taken = slice(None) if lengths is None else np.flatnonzero(lengths)
    inputs = leaf(x)
    given = inputs[taken] if layer.batch_first else inputs[:, taken]
    initial = None if state is None else [leaf(s) for s in unpacked(layer, state)]
    first = None if state is None else packed(layer, tuple(s[:, taken] for s in initial))
    if lengths is None:
        y, last = module(given, first)
    else:
        sequence = rnn.pack_padded_sequence(given, torch.tensor(np.asarray(lengths)[taken]), layer.batch_first, False)
        y, last = module(sequence, first)
        y, _ = rnn.pad_packed_sequence(y, layer.batch_first, total_length=x.shape[1 if layer.batch_first else 0])
    last = unpacked(layer, last)
    if layer.return_sequences:
        dy = dy[taken] if layer.batch_first else dy[:, taken]
    else:
        y, dy = torch.cat(list(last[0][-(1 + layer.bidirectional) :]), -1), dy[taken]
    torch.autograd.backward(
        [y, *last], [torch.tensor(d.astype(np.float64)) for d in (dy, *(d[:, taken] for d in unpacked(layer, dstate)))]
    )
    right = {name: p.grad.numpy() for name, p in module.named_parameters()} | {"x": inputs.grad.numpy()}
    if state is not None:
        right |= {f"{name}0": s.grad.numpy() for name, s in zip("hc", initial)}
    return right


def sampled(n):
    """Configuration n: kinds and options in turn, sizes from 1 to 300, more often small."""
    rng = np.random.default_rng([7, n])
    kind = KINDS[:5][n % 5]
    steps, rows, inputs, hidden = (int(300 ** rng.random() ** 1.5) for _ in range(4))
    while steps * rows * hidden * (inputs + hidden) > 2e8:
        steps, rows = max(1, steps // 2), max(1, rows // 2)
    layer = layer_of(
        kind,
        inputs,
        hidden,
        num_layers=int(rng.integers(1, 4)) if hidden < 100 else 1,
        bidirectional=bool(rng.integers(2)),
        batch_first=bool(rng.integers(2)),
        bias=bool(rng.integers(4)),
        return_sequences=bool(rng.integers(4)),
        rng=n,
    )
    lengths = rng.integers(0, steps + 1, rows) if rng.integers(2) else None
    if lengths is not None:
        lengths[rng.integers(rows)] = steps
    return layer, problem(layer, rng, steps, rows, lengths, states=bool(rng.integers(2))), lengths


@pytest.mark.parametrize("n", range(200))
def test_as_torch(n):
    layer, (x, state, dy, dstate), lengths = sampled(n)
    found = gradients(layer, x, state, dy, dstate, lengths)
    error, name = worst(found, torch_gradients(layer, x, state, dy, dstate, lengths))
    assert error <= TOLERANCE, (repr(layer), x.shape, name)


# ------------------------------------------------------------------------------------------------- the reference
@pytest.mark.parametrize(
    "kind, direction, lengths",
    list(itertools.product(KINDS, ("forward", "reverse", "bidirectional"), (None, [5, 0, 7, 3]))),
)
def test_as_the_reference(isa, kind, direction, lengths):
    rng = np.random.default_rng(5)
    layer = layer_of(kind, 9, 19, bidirectional=direction == "bidirectional", reverse=direction == "reverse", rng=1)
    x, state, dy, dstate = problem(layer, rng, 7, 4, lengths)
    directions = 1 + layer.bidirectional
    arrays = [convert.to_onnx(layer.kind, layer.state_dict(), convert.suffix(0, d)) for d in range(directions)]
    weights = {name: np.stack([a[name] for a in arrays]) for name in "WRB"}
    states = unpacked(layer, state)
    options = {"activations": layer.resolved_activations, "direction": direction}
    if layer.kind == "GRU":
        options["linear_before_reset"] = layer.linear_before_reset
    if layer.proj_size:
        options["projection"] = np.stack([a["projection"] for a in arrays])
    dY = dy.reshape(*dy.shape[:2], directions, -1).swapaxes(1, 2)
    right = getattr(reference, f"{layer.kind.lower()}_backward")(
        dY, *unpacked(layer, dstate), x, *(weights[name] for name in "WRB"), lengths, *states, **options
    )
    wanted = {"x": right["X"]} | {f"{name}0": right[f"initial_{name}"] for name, _ in zip("hc", states)}
    order = convert.GATES[layer.kind]
    for d in range(directions):
        end = convert.suffix(0, d)
        halves = np.split(right["B"][d], 2)
        for name, a in (
            ("weight_ih", right["W"][d]),
            ("weight_hh", right["R"][d]),
            ("bias_ih", halves[0]),
            ("bias_hh", halves[1]),
        ):
            wanted[f"{name}_{end}"] = convert.reorder(a, order["onnx"], order["torch"])
        if layer.proj_size:
            wanted[f"weight_hr_{end}"] = right["projection"][d]
    found = gradients(layer, x, state, dy, dstate, lengths)
    assert found.keys() == wanted.keys()
    error, name = worst(found, wanted)
    assert error <= TOLERANCE, name


# ------------------------------------------------------------------------------------------------- what is promised
@pytest.mark.parametrize("kind, lengths", list(itertools.product(KINDS, (None, [30, 4, 0, 29, 30, 17, 1, 8, 2]))))
def test_the_same_bits_on_every_instruction_set_and_with_threads(kind, lengths):
    rows = 9 if lengths else 40
    layer = layer_of(kind, 33, 70, bidirectional=True, num_layers=2, rng=2)
    values = problem(layer, np.random.default_rng(0), 30, rows, lengths)
    before, found = _kernels.get_isa(), []
    try:
        for isa, threads in itertools.product(_kernels.isas()[:2], (1, 2, 3)):
            _kernels.set_isa(isa)
            _kernels.force_threads(threads if threads > 1 else 0)
            shared = layer_of(kind, 33, 70, bidirectional=True, num_layers=2, threads=threads, rng=2)
            found.append({name: a.tobytes() for name, a in gradients(shared, *values, lengths).items()})
    finally:
        _kernels.set_isa(before)
        _kernels.force_threads(0)
    assert all(f == found[0] for f in found[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_denormal_sums_have_the_same_bits_with_threads(kind):
    rng, found = np.random.default_rng(0), []
    x, dy = random(rng, 6, 9, 5), random(rng, 6, 9, 36) * np.float32(1e-36)
    try:
        for threads in (1, 2):
            layer = layer_of(kind, 5, 18, bidirectional=True, threads=threads, rng=1)
            _kernels.force_threads(threads if threads > 1 else 0)
            y, _, saved = layer.forward(x, training=True)
            found.append(layer.backward(dy[..., : y.shape[-1]], None, saved)[0])
    finally:
        _kernels.force_threads(0)
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_has_the_same_bits(kind):
    layer = layer_of(kind, 13, 37, bidirectional=True, rng=2)
    lengths = [5, 11, 0, 8, 11]
    x, state, dy, dstate = problem(layer, np.random.default_rng(0), 11, 5, lengths)
    found = gradients(layer, x, state, dy, dstate, lengths)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        states = packed(layer, [s[:, one] for s in unpacked(layer, state)])
        dstates = packed(layer, [s[:, one] for s in unpacked(layer, dstate)])
        alone = gradients(layer, x[:length, one], states, dy[:length, one], dstates)
        assert alone["x"].tobytes() == found["x"][:length, one].tobytes()
        assert not found["x"][length:, one].any()
        for name in ("h0", "c0")[: 1 + (layer.kind == "LSTM")]:
            assert alone[name].tobytes() == found[name][:, one].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_bits_of_inference_and_changes_nothing(kind):
    layer = layer_of(kind, 7, 21, num_layers=2, bidirectional=True, rng=3)
    x, state, dy, dstate = problem(layer, np.random.default_rng(1), 6, 5)
    y, last = layer(x, state)
    plain = layer.forward(x, state)
    assert plain[2] is None
    recorded = layer.forward(x, state, training=True)
    for result in (plain, recorded):
        assert result[0].tobytes() == y.tobytes()
        for a, b in zip(unpacked(layer, result[1]), unpacked(layer, last)):
            assert a.tobytes() == b.tobytes()
    first, again = (layer.backward(dy, dstate, recorded[2]) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert all(first[2][name].tobytes() == again[2][name].tobytes() for name in layer.shapes())
    assert list(first[2]) == list(layer.state_dict())


@pytest.mark.parametrize("kind, lengths, threads", list(itertools.product(KINDS, (None, [5, 2, 6]), (1, 2))))
def test_without_the_gradient_of_x(forced, kind, lengths, threads):
    layer = layer_of(kind, 5, 9, num_layers=2, bidirectional=True, threads=threads, rng=3)
    x, state, dy, dstate = problem(layer, np.random.default_rng(1), 6, 3, lengths)
    _, _, saved = layer.forward(x, state, lengths=lengths, training=True)
    _, dinitial, dweights = layer.backward(dy, dstate, saved)
    none, same, also = layer.backward(dy, dstate, saved, dx=False)
    assert none is None
    assert [a.tobytes() for a in unpacked(layer, same)] == [a.tobytes() for a in unpacked(layer, dinitial)]
    assert [also[name].tobytes() for name in dweights] == [a.tobytes() for a in dweights.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_is_one_of_zeros(kind):
    layer = layer_of(kind, 5, 9, rng=3)
    x, state, dy, dstate = problem(layer, np.random.default_rng(1), 6, 3)
    nothing = packed(layer, [np.zeros_like(d) for d in unpacked(layer, dstate)])
    for given, none in ((dy, None), (None, dstate)):
        a = gradients(layer, x, state, given, none)
        b = gradients(layer, x, state, np.zeros_like(dy) if given is None else dy, nothing if none is None else dstate)
        assert worst(a, b)[0] == 0


@pytest.mark.parametrize(
    "kind, merge, sequences",
    list(itertools.product(("RNN", "LSTM", "GRU"), ("concat", "sum", "mul", "average"), (True, False))),
)
def test_merges(kind, merge, sequences):
    """The gradient of one merged layer under another, in the direction of a random change of its weights."""
    rng = np.random.default_rng(0)
    layer = layer_of(kind, 5, 6, num_layers=2, bidirectional=True, merge=merge, return_sequences=sequences, rng=1)
    x, state, dy, dstate = problem(layer, rng, 5, 3, [5, 2, 4])
    found = gradients(
        layer, x, state, dy, packed(layer, [np.zeros_like(d) for d in unpacked(layer, dstate)]), [5, 2, 4]
    )
    weights = layer.state_dict()
    change = {name: random(rng, *a.shape) for name, a in weights.items()}
    step, sums = 1e-3, []
    for sign in (1, -1):
        layer.load_state_dict({name: a + np.float32(sign * step) * change[name] for name, a in weights.items()})
        sums.append(np.vdot(layer(x, state, [5, 2, 4])[0].astype(np.float64), dy))
    wanted = (sums[0] - sums[1]) / (2 * step)
    got = sum(np.vdot(found[name], change[name]) for name in weights)
    assert abs(got - wanted) <= 5e-3 * max(abs(wanted), 1)  # rounding, and the third order of the step


def test_dropout_between_layers():
    rng = np.random.default_rng(0)
    layer = nn.LSTM(6, 50, num_layers=2, dropout=0.4, rng=1)
    x, state, dy, dstate = problem(layer, rng, 40, 8)
    y, _, saved = layer.forward(x, state, training=True, rng=5)
    same = layer.forward(x, state, training=True, rng=5)[0]
    other = layer.forward(x, state, training=True, rng=6)[0]
    assert y.tobytes() == same.tobytes() and (y != other).any() and (y != layer(x, state)[0]).any()
    assert layer.forward(x, state, rng=5)[0].tobytes() == layer(x, state)[0].tobytes()
    kept = saved.layers[0][1]
    assert abs(kept.mean() - 0.6) < 0.02 and saved.layers[1][1] is None
    # what was dropped reaches nothing: one more unit of the first layer's output there would change no gradient
    first, second = nn.LSTM(6, 50), nn.LSTM(50, 50)
    for part, of_layer in ((first, 0), (second, 1)):
        part.load_state_dict(
            {
                name.replace(f"l{of_layer}", "l0"): a
                for name, a in layer.state_dict().items()
                if name.endswith(f"l{of_layer}")
            }
        )
    h, c = state
    inner, _, saved_first = first.forward(x, (h[:1], c[:1]), training=True)
    dropped = inner * kept * np.float32(1 / 0.6)
    _, _, saved_second = second.forward(dropped, (h[1:], c[1:]), training=True)
    (dh, dc) = dstate
    dinner, _, d_second = second.backward(dy, (dh[1:], dc[1:]), saved_second)
    dx, _, d_first = first.backward(dinner * kept * np.float32(1 / 0.6), (dh[:1], dc[:1]), saved_first)
    found, _, dweights = layer.backward(dy, dstate, saved)
    assert found.tobytes() == dx.tobytes()
    for of_layer, part in enumerate((d_first, d_second)):
        for name, a in part.items():
            assert dweights[name.replace("l0", f"l{of_layer}")].tobytes() == a.tobytes()


@pytest.mark.parametrize("kind, floats", [("RNN", 1), ("LSTM", 6), ("GRU", 4), ("GRU reset first", 4)])
@pytest.mark.parametrize("layers, lengths", [(1, [11, 3, 0, 7]), (2, [11, 11, 11, 11])])
def test_what_is_saved(kind, floats, layers, lengths):
    """At most 1.2 times the gates and states of the steps that were taken; nothing without training."""
    layer = layer_of(kind, 5, 21, bidirectional=True, num_layers=layers, rng=1)
    x = problem(layer, np.random.default_rng(0), 11, 4, lengths)[0]
    saved = layer.forward(x, lengths=lengths, training=True)[2]
    assert saved.nbytes <= 1.2 * 4 * floats * 21 * sum(lengths) * 2 * layers
    assert layer.forward(x, lengths=lengths)[2] is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"num_layers": 2, "dropout": 0.5, "batch_first": True},
        {"return_sequences": False},
        {"num_layers": 2, "bidirectional": True, "merge": "sum", "dropout": 0.5},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_what_is_saved_is_that_of_the_memory(kind, options):
    layer = layer_of(kind, 8, 64, rng=1, **options)
    x = np.ones((50, 40, 8), np.float32)
    layer.forward(x, training=True, rng=0)
    tracemalloc.start()
    y, state, saved = layer.forward(x, training=True, rng=0)
    held = tracemalloc.get_traced_memory()[0] - y.nbytes - sum(s.nbytes for s in unpacked(layer, state))
    tracemalloc.stop()
    assert abs(held - saved.nbytes) < 50000


@pytest.mark.parametrize("steps, rows", [(0, 3), (4, 0), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_single(kind, steps, rows):
    layer = layer_of(kind, 5, 7, rng=0)
    found = gradients(layer, *problem(layer, np.random.default_rng(0), steps, rows))
    for name, shape in layer.shapes().items():
        assert found[name].shape == shape
        assert found[name].any() == (steps * rows > 0)


@pytest.mark.parametrize(
    "options",
    [{"clip": 1.0}, {"peepholes": True}, {"input_forget": True}, {"activations": ("HardSigmoid", "Tanh", "Tanh")}],
)
def test_what_has_no_gradient_is_refused(options):
    layer = nn.LSTM(3, 4, rng=0, **options)
    x = np.ones((2, 1, 3), np.float32)
    layer.forward(x)
    with pytest.raises(UnsupportedError, match="has no gradients: they need the default activations"):
        layer.forward(x, training=True)


def test_wrong_gradients_are_refused():
    layer = nn.LSTM(3, 4, batch_first=True, rng=0)
    x = np.ones((2, 5, 3), np.float32)
    y, (h, c), saved = layer.forward(x, training=True)
    with pytest.raises(InputError, match=r"dy: shape is \[5, 2, 4\], expected \[2, 5, 4\]"):
        layer.backward(y.swapaxes(0, 1), None, saved)
    with pytest.raises(InputError, match=r"dh: shape is \[1, 1, 4\], expected \[1, 2, 4\]"):
        layer.backward(y, (h[:, :1], c), saved)
    with pytest.raises(InputTypeError, match="dstate: got a ndarray, expected"):
        layer.backward(y, h, saved)
    with pytest.raises(InputTypeError, match="dy: dtype is int64"):
        layer.backward(y.astype(int), None, saved)
    with pytest.raises(InputTypeError, match="saved: got a NoneType"):
        layer.backward(y, None, None)


@pytest.mark.parametrize(
    "other",
    [nn.LSTM(3, 64, rng=0), nn.LSTM(3, 4, 2, rng=0), nn.GRU(3, 4, rng=0), nn.LSTM(3, 4, return_sequences=False, rng=0)],
)
def test_what_another_layer_saved_is_refused(other):
    """Its arrays have other shapes, or the results would be of another function."""
    layer = nn.LSTM(3, 4, rng=0)
    x = np.ones((2, 5, 3), np.float32)
    saved = other.forward(x, training=True)[2]
    with pytest.raises(InputError, match=rf"saved: the forward of another layer, {re.escape(repr(other))}, returned"):
        layer.backward(layer(x)[0], None, saved)


def test_nan_goes_through_a_relu():
    """Its gradient is known where h' is at most 0, or more; NaN is neither."""
    layer = nn.RNN(3, 20, nonlinearity="relu", rng=0)
    x = np.ones((4, 2, 3), np.float32)
    x[1, 0, 2] = np.nan
    y, _, saved = layer.forward(x, training=True)
    assert np.isnan(y[1:, 0]).all() and np.isfinite(y[:, 1]).all()
    dx, _, dweights = layer.backward(y, None, saved)
    assert np.isnan(dx[:, 0]).all() and np.isfinite(dx[:, 1]).all()
    assert all(np.isnan(d).all() for d in dweights.values())


def test_in_torch():
    """A GRU of both directions in torch's autograd, by the class that docs/howto/autograd.md shows."""
    torch = pytest.importorskip("torch")
    code = re.search(r"```python\n(import torch\n.*?)```", AUTOGRAD.read_text(), re.S)[1]
    names = {}
    exec(code, names)
    Layer = names["Layer"]
    layer = nn.GRU(4, 6, bidirectional=True, rng=0)
    module = torch.nn.GRU(4, 6, bidirectional=True)
    weights = {name: torch.tensor(a, requires_grad=True) for name, a in layer.state_dict().items()}
    module.load_state_dict(weights)
    x = torch.randn(5, 3, 4, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    (Layer.apply(x, layer, *weights.values()) ** 2).sum().backward()
    (module(other)[0] ** 2).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    for name, p in module.named_parameters():
        torch.testing.assert_close(weights[name].grad, p.grad)
