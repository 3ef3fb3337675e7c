"""Encoder-decoder networks: gradients against torch and finite differences, decoding, training, ONNX files."""

import copy
import itertools
import pickle

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast import nn, train
from rnnfast.errors import DivergedError, InputError, InputTypeError
from rnnfast.nn import decoding
from tests.graphs import random

TOLERANCE = 3e-6
"""Largest difference from torch in float64, relative to the largest value where that is over 1. Measured: 2.3e-7."""

SLOPE = 2e-3
"""Largest error of finite differences of float32 losses, whose slopes are of the order of 10. Measured: 2.2e-4."""

CASES = list(itertools.product(("GRU", "LSTM"), (False, True), ("dot", "additive"), (1, 2)))
LENGTHS = [6, 1, 4], [2, 5, 3]
START, END = 0, 1


def network(cell, bidirectional, attention, num_layers, **options):
    return nn.Seq2Seq(
        9, 7, 4, 5, cell=cell, bidirectional=bidirectional, attention=attention, num_layers=num_layers, rng=1, **options
    )


def tokens(seed=0, batch=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (batch, 6)), rng.integers(0, 7, (batch, 5))


def by_torch(net, source, target, source_lengths, target_lengths, dy):
    """logits, {name: gradient} by torch's layers and autograd, in float64."""
    torch = pytest.importorskip("torch")
    p = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in net.state_dict().items()}

    def recurrent(name, x, state, lengths, bidirectional):
        layer = getattr(torch.nn, net.cell)(
            net.embedding_dim,
            net.hidden_size,
            net.num_layers,
            batch_first=True,
            bidirectional=bidirectional,
            dtype=torch.float64,
        )
        weights = {n.split(".", 1)[1]: a for n, a in p.items() if n.startswith(f"{name}.")}
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, state = torch.func.functional_call(layer, weights, (packed, state))
        return torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], state

    def linear(name, x):
        return torch.nn.functional.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    memory, state = recurrent("encoder", p["source_embedding.weight"][source], None, source_lengths, net.bidirectional)
    if net.bidirectional:
        states = [
            linear(f"bridge_{letter}", s.swapaxes(0, 1).reshape(len(source), -1))
            .reshape(len(source), net.num_layers, -1)
            .swapaxes(0, 1)
            .contiguous()
            for letter, s in zip("hc", state if net.cell == "LSTM" else [state])
        ]
        state = tuple(states) if net.cell == "LSTM" else states[0]
    hidden, _ = recurrent("decoder", p["target_embedding.weight"][target], state, target_lengths, False)
    keys = linear("attention.key", memory) if "attention.key.weight" in p else memory
    if net.attention == "dot":
        scores = hidden @ keys.transpose(1, 2)
    else:
        scores = linear("attention.score", torch.tanh(linear("attention.query", hidden)[:, :, None] + keys[:, None]))
        scores = scores[..., 0]
    within = torch.arange(source.shape[1]) < torch.tensor(source_lengths)[:, None]
    weights = torch.softmax(scores.masked_fill(~within[:, None], -1e300), -1)
    joint = torch.tanh(linear("combine", torch.cat([hidden, weights @ memory], -1)))
    logits = linear("output", joint)
    logits.backward(torch.tensor(dy, dtype=torch.float64))
    return logits.detach().numpy(), {n: a.grad.numpy() for n, a in p.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_torch(case):
    net = network(*case)
    source, target = tokens()
    dy = random(1, 3, 5, 7)
    logits, state, saved = net.forward((source, target), lengths=LENGTHS, training=True)
    assert state is None and saved.nbytes > 0
    dx, dstate, dweights = net.backward(dy, None, saved)
    assert dx is None and dstate is None
    assert {n: a.shape for n, a in dweights.items()} == net.shapes() and list(dweights) == list(net.state_dict())
    within = (np.arange(5) < np.array(LENGTHS[1])[:, None])[..., None]
    expected, gradients = by_torch(net, source, target, *LENGTHS, dy * within)
    np.testing.assert_allclose(logits, expected * within, rtol=0, atol=TOLERANCE)
    assert not logits[~within[..., 0]].any()
    for name, want in gradients.items():
        assert dweights[name].dtype == np.float32
        most = max(1, np.abs(want).max())
        np.testing.assert_allclose(dweights[name] / most, want / most, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_finite_differences(case):
    """Along random directions, with dropout: the same seed drops the same."""
    net = network(*case, dropout=0.3)
    x, dy = tokens(), random(1, 3, 5, 7)
    values = net.state_dict()
    direction = {name: random(i, *a.shape) for i, (name, a) in enumerate(values.items())}

    def loss(step):
        moved = copy.deepcopy(net)
        moved.load_state_dict({name: a + np.float32(step) * direction[name] for name, a in values.items()})
        return float((moved.forward(x, lengths=LENGTHS, training=True, rng=5)[0].astype(np.float64) * dy).sum())

    saved = net.forward(x, lengths=LENGTHS, training=True, rng=5)[2]
    dweights = net.backward(dy, None, saved)[2]
    slope = sum(float((dweights[name].astype(np.float64) * direction[name]).sum()) for name in values)
    step = 2e-3
    measured = (8 * (loss(step) - loss(-step)) - (loss(2 * step) - loss(-2 * step))) / (12 * step)
    assert measured == pytest.approx(slope, rel=0, abs=SLOPE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_their_own(case):
    """A row's bits do not depend on the others, on padding, or on whether the target comes at once or step by step."""
    net = network(*case)
    (source, target), (of_source, of_target) = tokens(), LENGTHS
    logits = net((source, target), lengths=LENGTHS)
    weights = net.align((source, target), lengths=LENGTHS)
    assert weights.shape == (3, 5, 6)
    for b, (s, t) in enumerate(zip(of_source, of_target)):
        alone = (source[b : b + 1, :s], target[b : b + 1, :t])
        np.testing.assert_array_equal(net(alone)[0], logits[b, :t])
        np.testing.assert_array_equal(net.align(alone)[0], weights[b, :t, :s])
        assert not weights[b, :, s:].any()
    memory, state = net.encode(source, of_source)
    for t in range(2):
        step, state, attention = net.step(target[:, t], state, memory, of_source)
        np.testing.assert_array_equal(step, logits[:, t])
        np.testing.assert_array_equal(attention, weights[:, t])


def test_copies_and_state_dicts():
    net, x = network("LSTM", True, "additive", 2), tokens()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), network("LSTM", True, "additive", 2)):
        np.testing.assert_array_equal(other(x), net(x))
    other = nn.Seq2Seq(9, 7, 4, 5, cell="LSTM", bidirectional=True, attention="additive", num_layers=2)
    other.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(other(x), net(x))
    assert repr(other) == "Seq2Seq(9, 7, 4, 5, cell='LSTM', num_layers=2, bidirectional=True, attention='additive')"
    assert f"{sum(a.size for a in net.state_dict().values()):,}" in net.summary()


class Table:
    """A model whose logits are a table's: of the source's first token, the step and the token before."""

    def __init__(self, steps, vocabulary, seed):
        self.logits = 2 * random(seed, 2, steps, vocabulary, vocabulary)

    def encode(self, source, lengths):
        return (source[:, :, None].astype(np.float32),), (np.zeros((1, len(source), 1), np.float32),)

    def step(self, token, state, memory, lengths):
        (memory,), (step,) = memory, state
        logits = self.logits[memory[:, 0, 0].astype(int), step[0, :, 0].astype(int), token]
        return logits, (step + 1,), np.broadcast_to(step[0], memory.shape[:2])


def best_of_all(table, kind, steps):
    """(score, tokens) by looking at every sequence that ends, or has all steps."""
    likely = table.logits[kind] - np.log(np.exp(table.logits[kind]).sum(-1, keepdims=True))
    found = []
    for n in range(1, steps + 1):
        for sequence in itertools.product(range(table.logits.shape[-1]), repeat=n):
            if END in sequence[:-1] or n < steps and sequence[-1] != END:
                continue
            total = sum(likely[t, before, token] for t, (before, token) in enumerate(zip((START, *sequence), sequence)))
            found.append((total / n, [token for token in sequence if token != END]))
    return max(found)


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_finds_the_best_of_all(seed):
    table = Table(4, 4, seed)
    source = np.array([[0, 5], [1, 5]])
    found = decoding.beam(table, source, start=START, end=END, max_steps=4, width=4**5)
    for b in range(2):
        score, best = best_of_all(table, b, 4)
        assert found.tokens[b, : found.lengths[b]].tolist() == best
        assert found.scores[b] == pytest.approx(score, abs=1e-6)
        assert (found.tokens[b, found.lengths[b] :] == END).all()
        steps = np.arange(found.tokens.shape[1])
        np.testing.assert_array_equal(found.attention[b, :, 0], np.where(steps < found.lengths[b], steps, 0))
    greedy = decoding.greedy(table, source, start=START, end=END, max_steps=4)
    narrow = decoding.beam(table, source, start=START, end=END, max_steps=4, width=1)
    for got, want in zip(narrow, greedy):
        np.testing.assert_array_equal(got, want)
    assert (found.scores >= greedy.scores - 1e-6).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_files_decode_the_same(case, tmp_path):
    """Files decode alike in rnnfast and onnxruntime, greedily and with a beam; one source is empty."""
    net = network(*case)
    net.save(tmp_path / "g2p")
    paths = [tmp_path / "g2p" / f"{name}.onnx" for name in ("encoder", "decoder_step")]
    for path in paths:
        onnx.checker.check_model(path, full_check=True)
    source, lengths = tokens()[0], [6, 0, 3]
    options = {"start": START, "end": END, "max_steps": 5}
    expected = net.greedy(source, lengths, **options), net.beam(source, lengths, **options)
    for runtime in (rnnfast, pytest.importorskip("onnxruntime")):
        files = decoding.Exported(*(runtime.InferenceSession(str(path)) for path in paths))
        found = [search(files, source, lengths, **options) for search in (decoding.greedy, decoding.beam)]
        for got, want in zip(found, expected):
            np.testing.assert_array_equal(got.tokens, want.tokens)
            np.testing.assert_array_equal(got.lengths, want.lengths)
            np.testing.assert_allclose(got.scores, want.scores, rtol=0, atol=1e-5)
            np.testing.assert_allclose(got.attention, want.attention, rtol=0, atol=1e-5)


def test_a_stream_of_the_decoder_step(tmp_path):
    net = network("LSTM", True, "additive", 2)
    net.save(tmp_path)
    source, target = tokens()
    (memory, keys), state = net.encode(source, LENGTHS[0])
    stream = rnnfast.load(tmp_path / "decoder_step.onnx").stream(
        memory=memory, keys=keys, lengths=np.array(LENGTHS[0], np.int32)
    )
    stream.state = dict(zip(("h0", "c0"), state))
    logits = np.stack([stream.step(token=letters).logits for letters in target.T], axis=1)
    expected = net((source, target), lengths=(LENGTHS[0], None))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)


def reversal(count, seed):
    """Sources [count, 7] of letters from 2 on, their lengths, and the letters backwards: after START, and until END."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, count)
    source = rng.integers(2, 8, (count, 7))
    target = np.full((count, 8), END)
    for b, n in enumerate(lengths):
        target[b, :n] = source[b, :n][::-1]
    target_in = np.concatenate([np.full((count, 1), START), target[:, :-1]], axis=1)
    return source, lengths, target_in, target


@pytest.fixture(scope="module", params=(("GRU", "dot"), ("LSTM", "additive")), ids=str)
def trained(request):
    cell, attention = request.param
    net = nn.Seq2Seq(8, 8, 12, 24, cell=cell, bidirectional=True, attention=attention, rng=3)
    source, lengths, target_in, target = reversal(800, 1)
    history = net.fit(
        (source, target_in),
        target,
        lengths=(lengths, lengths + 1),
        loss=train.CrossEntropy(),
        optimizer=train.Adam(train.CosineDecay(0.015, 320)),
        epochs=8,
        batch_size=20,
        seed=4,
        clip_norm=1.0,
        metrics="accuracy",
        verbose=False,
    )
    return net, history


def test_training_learns_to_write_backwards(trained):
    net, history = trained
    assert history["loss"][-1] < history["loss"][0] / 3
    source, lengths, target_in, target = reversal(100, 2)
    scores = net.evaluate(
        (source, target_in), target, lengths=(lengths, lengths + 1), loss=train.CrossEntropy(), metrics="accuracy"
    )
    assert scores["accuracy"] > 0.95
    for found in (
        net.greedy(source, lengths, start=START, end=END, max_steps=12),
        net.beam(source[:20], lengths[:20], start=START, end=END, max_steps=12, width=3),
    ):
        count = len(found.tokens)
        right = [
            list(found.tokens[b, : found.lengths[b]]) == list(target[b, :n]) for b, n in enumerate(lengths[:count])
        ]
        assert np.mean(right) > 0.8
        assert (found.scores <= 0).all() and found.attention.shape == (*found.tokens.shape, 7)
    alone = net.greedy(source[5:6], lengths[5:6], start=START, end=END, max_steps=12)
    all_of_them = net.greedy(source, lengths, start=START, end=END, max_steps=12)
    np.testing.assert_array_equal(alone.tokens[0], all_of_them.tokens[5, : alone.lengths[0]])
    np.testing.assert_array_equal(alone.scores[0], all_of_them.scores[5])


def test_divergence_names_the_layer():
    net, (source, target) = network("GRU", True, "dot", 1), tokens()
    weights = net.state_dict()
    for name, layer in (
        ("decoder.bias_hh_l0", r"decoder GRU\("),
        ("combine.bias", r"combine Linear\("),
        ("attention.key.weight", r"attention Attention\("),
        ("output.weight", r"output Linear\("),
    ):
        net.load_state_dict(weights | {name: weights[name] * np.float32(np.nan)})
        with pytest.raises(DivergedError, match=f"the first output that is not finite is that of {layer}"):
            net.fit((source, target), target, loss=train.CrossEntropy(), optimizer=train.SGD())


def test_decoding_stops_at_max_steps():
    net = network("GRU", False, "dot", 1)
    for search in (net.greedy, net.beam):
        found = search(tokens()[0], start=START, end=6, max_steps=3)
        assert found.tokens.shape[1] <= 3 and (found.lengths <= 3).all()
    for bidirectional in (False, True):
        net = network("LSTM", bidirectional, "dot", 1)
        for search in (net.greedy, net.beam):
            assert search(np.zeros((0, 4), int), start=START, end=END).tokens.shape == (0, 0)


NET = network("GRU", True, "dot", 1)
X = tokens()


@pytest.mark.parametrize(
    "call, error, text",
    (
        (lambda: network("RNN", False, "dot", 1), InputError, "cell: 'RNN' is none of 'GRU', 'LSTM'"),
        (lambda: network("GRU", False, None, 1), InputError, "attention: None is none of 'dot', 'additive'"),
        (lambda: nn.Seq2Seq(0, 7, 4, 5), InputError, "num_embeddings: 0 is less than 1"),
        (lambda: NET(X[0]), InputTypeError, "x: got a ndarray, expected a pair"),
        (lambda: NET(X, lengths=[6, 6, 6]), InputTypeError, "lengths: got a list of 3, expected a pair"),
        (lambda: NET((X[0], X[1][:2])), InputError, r"x: shapes are \[3, 6\] and \[2, 5\], expected \[B, S\] and"),
        (lambda: NET.step(3, (), ()), InputError, r"tokens: shape is \[\], expected \[B\]"),
        (lambda: NET((X[0] + 5, X[1])), InputError, "expected 0 to 8"),
        (lambda: NET(X, lengths=([6, 6, 7], None)), InputError, "lengths: 7 at row 2, expected 0 to 6"),
        (lambda: NET.forward(X, X), InputError, "state: Seq2Seq has none"),
        (lambda: NET.backward(None, None, None), InputTypeError, "saved: got a NoneType"),
        (lambda: NET.greedy(X[0].astype(float), start=0, end=1), InputTypeError, "source: dtype is float64"),
        (lambda: NET.greedy(X[0][0], start=0, end=1), InputError, r"source: shape is \[6\], expected \[B, S\]"),
        (lambda: NET.greedy(X[0], start=-1, end=1), InputError, "start: -1 is less than 0"),
        (lambda: NET.greedy(X[0], start=9, end=1), InputError, "x: 9 at"),
        (lambda: NET.greedy(X[0], start=0, end=7), InputError, "end: 7, expected 0 to 6"),
        (lambda: NET.beam(X[0], start=0, end=7), InputError, "end: 7, expected 0 to 6"),
        (lambda: NET.beam(X[0], start=0, end=1, width=0), InputError, "width: 0 is less than 1"),
        (lambda: NET.beam(X[0], [6, 6], start=0, end=1), InputError, r"lengths: shape is \[2\], expected \[3\]"),
        (
            lambda: NET.fit(X, X[1], lengths=[1, 2, 3, 4], loss=train.CrossEntropy(), optimizer=train.Adam()),
            InputTypeError,
            "lengths: got a list of 4, expected one for each of the 2 arrays of x",
        ),
    ),
)
def test_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
