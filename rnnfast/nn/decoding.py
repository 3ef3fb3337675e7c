"""Writing a target from a source, token by token: greedy, and with a beam.

A model here has two methods, as Seq2Seq and Exported have them:
    encode(source [B, S], lengths [B]) -> memory: a tuple of arrays [B, S, ...], state: one of arrays [layers, B, size]
    step(tokens [B], state, memory, lengths) -> logits [B, V], state, attention [B, S]
"""

from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn.checks import as_array, check_lengths, check_size


class Decoded(NamedTuple):
    """What was written for each source."""

    tokens: np.ndarray
    """[B, N] int64, without the end token; past a row's length the end token."""
    lengths: np.ndarray
    """[B] int64"""
    scores: np.ndarray
    """[B] float32: the mean log-probability of a row's tokens, of its end token too."""
    attention: np.ndarray
    """[B, N, S] float32: for each token how much of it comes from each position of the source."""


class Exported:
    """A model from the two files that `Seq2Seq.save` writes, loaded as InferenceSession of rnnfast or onnxruntime."""

    def __init__(self, encoder, decoder_step):
        self._encoder, self._decoder_step = encoder, decoder_step
        self._inputs = [i.name for i in decoder_step.get_inputs()]

    def encode(self, source, lengths):
        memory, state = (), ()
        feed = {"source": np.asarray(source, np.int64), "lengths": np.asarray(lengths, np.int32)}
        for output, value in zip(self._encoder.get_outputs(), self._encoder.run(None, feed), strict=True):
            if output.name in ("memory", "keys"):
                memory += (value,)
            else:
                state += (value,)
        return memory, state

    def step(self, tokens, state, memory, lengths):
        values = np.asarray(tokens, np.int64), np.asarray(lengths, np.int32), *memory, *state
        logits, *state, attention = self._decoder_step.run(None, dict(zip(self._inputs, values, strict=True)))
        return logits, tuple(state), attention


def greedy(model, source, lengths=None, *, start, end, max_steps=100):
    """-> Decoded: after the token `start` always the likeliest token, until that is `end` or `max_steps` are written.

    source [B, S] integers, lengths [B]. A row that has ended costs no more steps.
    """
    source, lengths = _checked(source, lengths, start, end, max_steps)
    memory, state = model.encode(source, lengths)
    rows, token = np.arange(len(source)), np.full(len(source), start)
    found = [_Hypothesis() for _ in rows]
    of_memory = lengths
    for _ in range(max_steps):
        if not rows.size:
            break
        logits, state, attention = model.step(token, state, memory, of_memory)
        likely = _log_probabilities(logits, end)
        token = likely.argmax(-1)
        for i, row in enumerate(rows):
            found[row] = found[row].then(token[i], likely[i, token[i]], attention[i])
        on = np.flatnonzero(token != end)
        if on.size < rows.size:
            rows, token, of_memory = rows[on], token[on], of_memory[on]
            memory, state = tuple(m[on] for m in memory), tuple(s[:, on] for s in state)
    return _decoded(found, source.shape[1], end)


def beam(model, source, lengths=None, *, start, end, max_steps=100, width=4):
    """-> Decoded: for each source by itself the best of what a beam search ends with.

    In each step the `width` likeliest hypotheses go on, those that end leave the beam; it stops when `width` have
    ended, or after `max_steps`. The best has the highest mean log-probability of its tokens, of its end token too.
    """
    source, lengths = _checked(source, lengths, start, end, max_steps)
    width = check_size(width, "width")
    memory, state = model.encode(source, lengths)
    found = [
        _beam(
            model,
            tuple(m[b : b + 1, : max(n, 1)] for m in memory),
            tuple(s[:, b : b + 1] for s in state),
            lengths[b : b + 1],
            start,
            end,
            max_steps,
            width,
        )
        for b, n in enumerate(lengths)
    ]
    return _decoded(found, source.shape[1], end)


def _beam(model, memory, state, lengths, start, end, max_steps, width):
    """The best hypothesis for one source."""
    live, ended, tokens = [_Hypothesis()], [], np.array([start])
    for _ in range(max_steps):
        count = len(live)
        logits, state, attention = model.step(
            tokens, state, tuple(np.repeat(m, count, axis=0) for m in memory), np.repeat(lengths, count)
        )
        likely = _log_probabilities(logits, end)
        totals = (likely + np.array([h.total for h in live])[:, None]).ravel()
        best = np.argsort(-totals, kind="stable")[:width]
        parents, tokens = np.divmod(best, likely.shape[1])
        grown = [live[p].then(t, likely[p, t], attention[p]) for p, t in zip(parents, tokens, strict=True)]
        ended += [h for h, t in zip(grown, tokens, strict=True) if t == end]
        on = np.flatnonzero(tokens != end)
        live, tokens = [grown[i] for i in on], tokens[on]
        state = tuple(s[:, parents[on]] for s in state)
        if not live or len(ended) >= width:
            break
    else:
        ended += live
    return max(ended, key=lambda h: h.score)


class _Hypothesis(NamedTuple):
    """Tokens and their attention, and the sum of their log-probabilities."""

    tokens: tuple = ()
    attention: tuple = ()
    total: float = 0.0

    def then(self, token, likely, attention):
        return _Hypothesis((*self.tokens, int(token)), (*self.attention, attention), self.total + float(likely))

    @property
    def score(self):
        return self.total / len(self.tokens)


def _decoded(found, positions, end):
    written = [h.tokens[:-1] if h.tokens[-1] == end else h.tokens for h in found]
    lengths = np.array([len(tokens) for tokens in written], np.int64)
    steps = lengths.max(initial=0)
    tokens = np.full((len(found), steps), end, np.int64)
    attention = np.zeros((len(found), steps, positions), np.float32)
    for b, (h, of_row) in enumerate(zip(found, written, strict=True)):
        tokens[b, : len(of_row)] = of_row
        for t in range(len(of_row)):
            attention[b, t, : len(h.attention[t])] = h.attention[t]
    return Decoded(tokens, lengths, np.array([h.score for h in found], np.float32), attention)


def _log_probabilities(logits, end):
    """[B, V] float64"""
    if end >= logits.shape[1]:
        raise InputError(f"end: {end}, expected 0 to {logits.shape[1] - 1}")
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _checked(source, lengths, start, end, max_steps):
    source = as_array(source, "source")
    if source.dtype.kind not in "iu":
        raise InputTypeError(f"source: dtype is {source.dtype}, expected integers")
    if source.ndim != 2 or not source.shape[1]:
        raise InputError(f"source: shape is {list(source.shape)}, expected [B, S], with one or more steps")
    lengths = check_lengths(lengths, source.shape[1], len(source))
    for value, name in ((start, "start"), (end, "end")):
        check_size(value, name, least=0)
    check_size(max_steps, "max_steps")
    return source, np.full(len(source), source.shape[1]) if lengths is None else lengths
