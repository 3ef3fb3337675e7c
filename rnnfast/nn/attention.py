"""Attention: what of a memory belongs to a query."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import _kernels
from rnnfast.nn.checks import (
    as_generator,
    as_input,
    check_choice,
    check_flag,
    check_lengths,
    check_matmul,
    check_shape,
    check_size,
)
from rnnfast.nn.linear import Linear
from rnnfast.nn.module import Container, Saved, SummaryRow, joined

SCORES = ("dot", "additive")


class Attention(Container):
    """context_t = sum over s of a_ts m_s, where a_t = softmax over s of score(q_t, m_s), for s within the length

    score="dot":      score(q, m) = q . m          or, where query_size is not memory_size, q . (W_k m)  (Luong)
    score="additive": score(q, m) = v . tanh(W_q q + W_k m)                                              (Bahdanau)

    State dict: key.weight W_k [query_size, memory_size], query.weight W_q [query_size, query_size], score.weight v
    [1, query_size], as far as there are any. A row's results do not depend on the others or on what stands past its
    length; a row of length 0 has zeros. matmul, threads, rng: as in Linear.
    """

    def __init__(self, query_size, memory_size, score="dot", *, matmul=None, threads=None, rng=None):
        self.query_size, self.memory_size = check_size(query_size, "query_size"), check_size(memory_size, "memory_size")
        self.score = check_choice(score, "score", SCORES)
        self.matmul = check_matmul(matmul)
        self._use_threads(threads)
        rng = None if rng is None else as_generator(rng)
        options = {"bias": False, "matmul": matmul, "threads": threads, "rng": rng}
        self._layers = {}
        if score == "additive" or query_size != memory_size:
            self._layers["key"] = Linear(memory_size, query_size, **options)
        if score == "additive":
            self._layers["query"] = Linear(query_size, query_size, **options)
            self._layers["score"] = Linear(query_size, 1, **options)

    def members(self):
        return self._layers

    def __call__(self, query, memory, lengths=None, query_lengths=None):
        """query [B, T, query_size], memory [B, S, memory_size] float32, lengths [B] of the memory and of the query

        -> context [B, T, memory_size], weights a [B, T, S]; both are zeros past the lengths.
        """
        return self.forward(query, memory, lengths=lengths, query_lengths=query_lengths)[:2]

    def keys(self, memory):
        """W_k m, or the memory itself where there is no W_k: for calls of `forward` with the same memory."""
        return self._projected("key", memory, False)[0]

    def forward(self, query, memory, *, keys=None, lengths=None, query_lengths=None, training=False):
        """-> context, weights, as a call gives them, and saved: what `backward` needs, or None without `training`.

        keys: `keys(memory)`, if that was made before, in inference.
        """
        query, memory = self._checked(query, memory)
        lengths = list(zip(_lengths(query_lengths, query), _lengths(lengths, memory)))
        check_flag(training, "training")
        keys, of_key = self._projected("key", memory, training) if keys is None else (keys, None)
        queries, of_query = self._projected("query", query, training)
        weights = np.zeros((*query.shape[:2], memory.shape[1]), np.float32)
        context = np.zeros((*query.shape[:2], memory.shape[2]), np.float32)
        for b, (m, n) in enumerate(lengths):
            if m and n:
                a = _softmax(self._scores(queries[b, :m], keys[b, :n]))
                weights[b, :m, :n] = a
                context[b, :m] = self._product(a, memory[b, :n])
        if not training:
            return context, weights, None
        nbytes = sum(a.nbytes for a, given in ((keys, memory), (queries, query)) if a is not given)
        return (
            context,
            weights,
            Saved((queries, keys, memory, weights, lengths, of_query, of_key, self._v()), context.shape, nbytes),
        )

    def backward(self, dcontext, saved):
        """-> dquery, dmemory, dweights: the gradients of the query, of the memory and, by name, of the parameters."""
        dcontext = self._checked_gradient(dcontext, saved)
        queries, keys, memory, weights, lengths, of_query, of_key, v = saved.values
        dqueries, dkeys, dmemory, dv = map(np.zeros_like, (queries, keys, memory, v))
        for b, (m, n) in enumerate(lengths):
            a, d, q, k = weights[b, :m, :n], dcontext[b, :m], queries[b, :m], keys[b, :n]
            dmemory[b, :n] = a.T @ d
            da = d @ memory[b, :n].T
            dscores = a * (da - (da * a).sum(-1, keepdims=True))
            if self.score == "dot":
                dqueries[b, :m], dkeys[b, :n] = dscores @ k, dscores.T @ q
            else:
                hidden = self._hidden(q, k)
                dv += dscores.ravel() @ hidden.reshape(dscores.size, len(v))
                np.subtract(1, hidden * hidden, out=hidden)  # now the derivative of tanh
                hidden *= v
                hidden *= dscores[..., None]
                dqueries[b, :m], dkeys[b, :n] = hidden.sum(1), hidden.sum(0)
        dweights = {"score": {"weight": dv[None]}} if self.score == "additive" else {}
        dquery, dweights["query"] = self._projected_backward("query", dqueries, of_query)
        dkeys, dweights["key"] = self._projected_backward("key", dkeys, of_key)
        return dquery, dmemory + dkeys, joined({name: dweights[name] for name in self._layers})

    def _scores(self, q, k):
        """q [T, query_size], k [n, query_size] -> [T, n]"""
        return self._product(q, k.T) if self.score == "dot" else self._layers["score"](self._hidden(q, k))[..., 0]

    def _hidden(self, q, k):
        """tanh of all sums of both, [T, n, query_size]"""
        return _kernels.unary("Tanh", q[:, None] + k)

    def _product(self, a, b):
        return _kernels.Matrix(b, matmul=self.matmul).multiply(a, None, self._threads)

    def _v(self):
        return self._layers["score"].state_dict()["weight"][0] if self.score == "additive" else np.zeros(0, np.float32)

    def _projected(self, name, x, training):
        """x by the layer of this name, if there is one, and what that saves."""
        return self._layers[name].forward(x, training=training)[::2] if name in self._layers else (x, None)

    def _projected_backward(self, name, dy, saved):
        return self._layers[name].backward(dy, None, saved)[::2] if name in self._layers else (dy, {})

    def _checked(self, query, memory):
        query, memory = as_input(query, "query"), as_input(memory, "memory")
        for name, array, size in (("query", query, self.query_size), ("memory", memory, self.memory_size)):
            if array.ndim != 3 or array.shape[-1] != size:
                raise InputError(f"{name}: shape is {list(array.shape)}, expected [B, {'ST'[name == 'query']}, {size}]")
        if len(query) != len(memory):
            raise InputError(f"query has {len(query)} rows and memory {len(memory)}, expected the same number")
        return query, memory

    def _checked_gradient(self, dcontext, saved):
        if not isinstance(saved, Saved):
            raise InputTypeError(f"saved: got a {type(saved).__name__}, expected what forward(training=True) returned")
        dcontext = as_input(dcontext, "dcontext")
        check_shape(dcontext, saved.shape, "dcontext", "that of context")
        return dcontext

    def summary_rows(self, shape=None):
        shape = (shape or ("B", "T", self.query_size))[:-1]
        parameters = {name: layer.shapes()["weight"] for name, layer in self._layers.items()}
        count = sum(a * b for a, b in parameters.values())
        return [SummaryRow(repr(self), (*shape, self.memory_size), count, 2 * count, 4 * count)]


def _lengths(lengths, x):
    """One for each row of x [B, T, ...], as a list."""
    lengths = check_lengths(lengths, x.shape[1], len(x))
    return [x.shape[1]] * len(x) if lengths is None else lengths.tolist()


def _softmax(x):
    """Of each row [T, n]."""
    e = _kernels.unary("Exp", x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
