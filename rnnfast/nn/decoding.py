"""Decoding: a target sequence is generated from a source, token by token, by greedy or beam search.

A model has two methods, as Seq2Seq and Exported do:

    encode(source [B, S], lengths [B]) -> memory (a tuple of arrays [B, S, ...]), state (a tuple of [layers, B, size])
    step(tokens [B], state, memory, lengths) -> logits [B, V], state, attention [B, S]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn.checks import as_array, check_lengths, check_size

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, IntArray


class Decoder(Protocol):
    """A model that `greedy` and `beam` can decode with; the module's docstring gives shapes."""

    def encode(self, source: Any, lengths: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the memory and the decoder's first state."""
        ...

    def step(self, tokens: Any, state: Any, memory: Any, lengths: Any) -> tuple[Any, tuple[Any, ...], Any]:
        """Return the logits of the next token, the new state and the attention weights."""
        ...


class Decoded(NamedTuple):
    """The generated sequence of each source."""

    tokens: IntArray
    """[B, N] int64: the tokens before the end token; after a row's length, the end token."""
    lengths: IntArray
    """[B] int64: the number of tokens of each row."""
    scores: FloatArray
    """[B] float32: the mean log-probability of a row's tokens, its end token included."""
    attention: FloatArray
    """[B, N, S] float32: for each token, its attention weights over the positions of the source."""


class Exported:
    """A model of the two files that `Seq2Seq.save` writes.

    Args:
        encoder: An InferenceSession, rnnfast's or onnxruntime's, of encoder.onnx.
        decoder_step: An InferenceSession of decoder_step.onnx.
    """

    def __init__(self, encoder: Any, decoder_step: Any) -> None:
        self._encoder, self._decoder_step = encoder, decoder_step
        self._inputs = [i.name for i in decoder_step.get_inputs()]

    def encode(self, source: ArrayLike, lengths: ArrayLike) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Run the encoder; see `Seq2Seq.encode`."""
        memory: tuple[Any, ...] = ()
        state: tuple[Any, ...] = ()
        feed = {"source": np.asarray(source, np.int64), "lengths": np.asarray(lengths, np.int32)}
        for output, value in zip(self._encoder.get_outputs(), self._encoder.run(None, feed), strict=True):
            if output.name in ("memory", "keys"):
                memory += (value,)
            else:
                state += (value,)
        return memory, state

    def step(
        self, tokens: ArrayLike, state: tuple[Any, ...], memory: tuple[Any, ...], lengths: ArrayLike
    ) -> tuple[FloatArray, tuple[Any, ...], FloatArray]:
        """Run one step of the decoder; see `Seq2Seq.step`."""
        values = np.asarray(tokens, np.int64), np.asarray(lengths, np.int32), *memory, *state
        logits, *new_state, attention = self._decoder_step.run(None, dict(zip(self._inputs, values, strict=True)))
        return logits, tuple(new_state), attention


def greedy(model: Decoder, source: Any, lengths: Any = None, *, start: int, end: int, max_steps: int = 100) -> Decoded:
    """Decode by taking the most likely token in each step, from the token `start` on.

    A row stops at the token `end` or after `max_steps`; a row that has ended costs no further steps.

    Args:
        model: A Seq2Seq, an Exported, or an object with their methods `encode` and `step`.
        source: Integers [B, S].
        lengths: Integers [B], the number of valid tokens of each source; None is S for all.
        start: The token that decoding starts with.
        end: The token that ends a sequence.
        max_steps: The maximum number of tokens.

    Raises:
        InputError: A shape, length or token does not fit.
        InputTypeError: A dtype or type does not fit.
    """
    source, lengths = _checked(source, lengths, start, end, max_steps)
    memory, state = model.encode(source, lengths)
    rows, token = np.arange(len(source)), np.full(len(source), start)
    found = [_Hypothesis() for _ in rows]
    memory_lengths = lengths
    for _ in range(max_steps):
        if not rows.size:
            break
        logits, state, attention = model.step(token, state, memory, memory_lengths)
        log_probabilities = _log_probabilities(logits, end)
        token = log_probabilities.argmax(-1)
        for i, row in enumerate(rows):
            found[row] = found[row].then(token[i], log_probabilities[i, token[i]], attention[i])
        on = np.flatnonzero(token != end)
        if on.size < rows.size:
            rows, token, memory_lengths = rows[on], token[on], memory_lengths[on]
            memory, state = tuple(m[on] for m in memory), tuple(s[:, on] for s in state)
    return _decoded(found, source.shape[1], end)


def beam(
    model: Decoder, source: Any, lengths: Any = None, *, start: int, end: int, max_steps: int = 100, width: int = 4
) -> Decoded:
    """Decode by beam search, each source on its own.

    Each step keeps the `width` most likely hypotheses; those that end leave the beam. The search stops when `width`
    hypotheses have ended, or after `max_steps`. The result is the one with the highest mean log-probability of its
    tokens, its end token included.

    Args:
        model: A Seq2Seq, an Exported, or an object with their methods `encode` and `step`.
        source: Integers [B, S].
        lengths: Integers [B], the number of valid tokens of each source; None is S for all.
        start: The token that decoding starts with.
        end: The token that ends a sequence.
        max_steps: The maximum number of tokens.
        width: The number of hypotheses in the beam.

    Raises:
        InputError: A shape, length or token does not fit.
        InputTypeError: A dtype or type does not fit.
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
    """Return the best hypothesis for one source."""
    live: list[_Hypothesis] = [_Hypothesis()]
    ended: list[_Hypothesis] = []
    tokens = np.array([start])
    for _ in range(max_steps):
        count = len(live)
        logits, state, attention = model.step(
            tokens, state, tuple(np.repeat(m, count, axis=0) for m in memory), np.repeat(lengths, count)
        )
        log_probabilities = _log_probabilities(logits, end)
        totals = (log_probabilities + np.array([h.total for h in live])[:, None]).ravel()
        best = np.argsort(-totals, kind="stable")[:width]
        parents, tokens = np.divmod(best, log_probabilities.shape[1])
        grown = [live[p].then(t, log_probabilities[p, t], attention[p]) for p, t in zip(parents, tokens, strict=True)]
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
    """A sequence of tokens with their attention weights and the sum of their log-probabilities."""

    tokens: tuple[int, ...] = ()
    attention: tuple[Any, ...] = ()
    total: float = 0.0

    def then(self, token, log_probability, attention):
        """Return the hypothesis with one more token."""
        total = self.total + float(log_probability)
        return _Hypothesis((*self.tokens, int(token)), (*self.attention, attention), total)

    @property
    def score(self) -> float:
        """The mean log-probability of the tokens."""
        return self.total / len(self.tokens)


def _decoded(found, positions, end):
    """Return hypotheses, one for each source, as padded arrays."""
    sequences = [h.tokens[:-1] if h.tokens[-1] == end else h.tokens for h in found]
    lengths = np.array([len(tokens) for tokens in sequences], np.int64)
    steps = lengths.max(initial=0)
    tokens = np.full((len(found), steps), end, np.int64)
    attention = np.zeros((len(found), steps, positions), np.float32)
    for b, (h, sequence) in enumerate(zip(found, sequences, strict=True)):
        tokens[b, : len(sequence)] = sequence
        for t in range(len(sequence)):
            attention[b, t, : len(h.attention[t])] = h.attention[t]
    return Decoded(tokens, lengths, np.array([h.score for h in found], np.float32), attention)


def _log_probabilities(logits, end):
    """Return the log-softmax of logits [B, V] in float64."""
    if end >= logits.shape[1]:
        raise InputError(f"end: {end}, expected 0 to {logits.shape[1] - 1}")
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _checked(source, lengths, start, end, max_steps):
    """Return source [B, S] and lengths [B], after checking all arguments."""
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
