"""Attention: a weighted mean of memory vectors for each query vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import _kernels
from rnnfast.nn.checks import as_generator, as_input, check_choice, check_lengths, check_shape, check_size
from rnnfast.nn.linear import Linear
from rnnfast.nn.module import Container, Saved, SummaryRow, joined

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, Gradients, Matmul, Seed, SummaryShape

SCORES = ("dot", "additive")


class Attention(Container):
    """Attention of query vectors q to memory vectors m:

        context_t = sum over s of a_ts m_s, where a_t = softmax over s of score(q_t, m_s)

    The sums run over the valid time steps s of the memory. There are two scores:

        dot       score(q, m) = q . m, or q . (W_k m) if query_size is not memory_size
        additive  score(q, m) = v . tanh(W_q q + W_k m)

    "dot" is from Luong et al. (2015), "Effective Approaches to Attention-based Neural Machine Translation"; "additive"
    is from Bahdanau et al. (2015), "Neural Machine Translation by Jointly Learning to Align and Translate".

    State dict, of the weights that a score has: key.weight W_k [query_size, memory_size], query.weight W_q
    [query_size, query_size], score.weight v [1, query_size]. A row's results do not depend on other rows, nor on values
    after its length; a row of length 0 gets zeros.

    Args:
        query_size: The size of a query vector.
        memory_size: The size of a memory vector.
        score: "dot" or "additive".
        matmul: As in Linear.
        threads: As in Linear.
        rng: As in Linear.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
        UnsupportedError: matmul="blas" without SciPy.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        score: str = "dot",
        *,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
        self.query_size, self.memory_size = check_size(query_size, "query_size"), check_size(memory_size, "memory_size")
        self.score = check_choice(score, "score", SCORES)
        self.matmul = _kernels.check_matmul(matmul)
        self._use_threads(threads)
        rng = None if rng is None else as_generator(rng)
        options: dict[str, Any] = {"bias": False, "matmul": matmul, "threads": threads, "rng": rng}
        self._layers: dict[str, Any] = {}
        if score == "additive" or query_size != memory_size:
            self._layers["key"] = Linear(memory_size, query_size, **options)
        if score == "additive":
            self._layers["query"] = Linear(query_size, query_size, **options)
            self._layers["score"] = Linear(query_size, 1, **options)

    def members(self) -> dict[str, Any]:
        return self._layers

    def __call__(
        self,
        query: ArrayLike,
        memory: ArrayLike,
        lengths: ArrayLike | None = None,
        query_lengths: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Compute the context and the attention weights of each query.

        Args:
            query: float32 [B, T, query_size].
            memory: float32 [B, S, memory_size].
            lengths: Integers [B], the number of valid time steps of each row of the memory; None is S for all.
            query_lengths: Integers [B], that of each row of the query; None is T for all.

        Returns:
            The context [B, T, memory_size] and the weights a [B, T, S], float32; both are zeros after the lengths.

        Raises:
            InputError: A shape or length does not fit.
            InputTypeError: A dtype does not fit.
        """
        return self.forward(query, memory, lengths=lengths, query_lengths=query_lengths)[:2]

    def keys(self, memory: FloatArray) -> FloatArray:
        """Return W_k m [B, S, query_size], or the memory itself if there is no W_k.

        Repeated calls of `forward` with the same memory can share it.
        """
        return self._projected("key", memory, False)[0]

    def forward(  # type: ignore[override]
        self,
        query: ArrayLike,
        memory: ArrayLike,
        *,
        keys: FloatArray | None = None,
        lengths: ArrayLike | None = None,
        query_lengths: ArrayLike | None = None,
        training: bool = False,
    ) -> tuple[FloatArray, FloatArray, Saved | None]:
        """Compute context and weights, as a call does, and save what `backward` needs.

        Args:
            query: As in a call.
            memory: As in a call.
            keys: The result of `keys(memory)`, to compute it once for many calls; in inference only.
            lengths: As in a call.
            query_lengths: As in a call.
            training: Whether to save.

        Returns:
            The context, the weights, and an object for `backward` (None unless training).

        Raises:
            InputError: A shape or length does not fit.
            InputTypeError: A dtype does not fit.
        """
        query_array, memory_array = self._checked_inputs(query, memory)
        pairs = list(zip(_lengths(query_lengths, query_array), _lengths(lengths, memory_array)))
        self._check_training(training)
        saved_key = None
        if keys is None:
            keys, saved_key = self._projected("key", memory_array, training)
        queries, saved_query = self._projected("query", query_array, training)
        weights = np.zeros((*query_array.shape[:2], memory_array.shape[1]), np.float32)
        context = np.zeros((*query_array.shape[:2], memory_array.shape[2]), np.float32)
        for b, (m, n) in enumerate(pairs):
            if m and n:
                a = _softmax(self._scores(queries[b, :m], keys[b, :n]))
                weights[b, :m, :n] = a
                context[b, :m] = self._product(a, memory_array[b, :n])
        if not training:
            return context, weights, None
        nbytes = sum(a.nbytes for a, argument in ((keys, memory_array), (queries, query_array)) if a is not argument)
        values = queries, keys, memory_array, weights, pairs, saved_query, saved_key, self._v()
        return context, weights, Saved(values, context.shape, nbytes)

    def backward(  # type: ignore[override]
        self, dcontext: ArrayLike, saved: Any
    ) -> tuple[FloatArray, FloatArray, Gradients]:
        """Compute gradients from that of the context.

        Args:
            dcontext: float32 [B, T, memory_size].
            saved: The third result of `forward` with training=True.

        Returns:
            The gradients of the query and of the memory, and those of the parameters by name.

        Raises:
            InputError: A shape does not fit.
            InputTypeError: A dtype is wrong, or `saved` is not an object that `forward` returned.
        """
        self.refuse_training()
        gradient = self._checked_gradient(dcontext, saved)
        queries, keys, memory, weights, pairs, saved_query, saved_key, v = saved.values
        dqueries, dkeys, dmemory, dv = map(np.zeros_like, (queries, keys, memory, v))
        for b, (m, n) in enumerate(pairs):
            a, d, q, k = weights[b, :m, :n], gradient[b, :m], queries[b, :m], keys[b, :n]
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
        dweights: dict[str, Any] = {"score": {"weight": dv[None]}} if self.score == "additive" else {}
        dquery, dweights["query"] = self._projected_backward("query", dqueries, saved_query)
        dkeys, dweights["key"] = self._projected_backward("key", dkeys, saved_key)
        return dquery, dmemory + dkeys, joined({name: dweights[name] for name in self._layers})

    def _scores(self, q, k):
        """Return the scores [T, n] of queries q [T, query_size] and keys k [n, query_size]."""
        return self._product(q, k.T) if self.score == "dot" else self._layers["score"](self._hidden(q, k))[..., 0]

    def _hidden(self, q, k):
        """Return tanh(q_t + k_s) for all pairs, [T, n, query_size]."""
        return _kernels.unary("Tanh", q[:, None] + k)

    def _product(self, a, b):
        """Return the matrix product a b."""
        return _kernels.Matrix(b, matmul=self.matmul).multiply(a, None, self.thread_count)

    def _v(self):
        """Return the score's vector v, empty if there is none."""
        return (
            self._layers["score"].current_weights()[0]["weight"][0]
            if self.score == "additive"
            else np.zeros(0, np.float32)
        )

    def _projected(self, name: str, x: FloatArray, training: bool) -> Any:
        """Apply the layer of this name, if there is one: return its output (else x), and the object that it saves."""
        return self._layers[name].forward(x, training=training)[::2] if name in self._layers else (x, None)

    def _projected_backward(self, name, dy, saved):
        """Return dx and the parameters' gradients of the layer of this name, if there is one."""
        return self._layers[name].backward(dy, None, saved)[::2] if name in self._layers else (dy, {})

    def _checked_inputs(self, query, memory):
        """Return both as float32 arrays whose shapes fit."""
        query, memory = as_input(query, "query"), as_input(memory, "memory")
        for name, array, size in (("query", query, self.query_size), ("memory", memory, self.memory_size)):
            if array.ndim != 3 or array.shape[-1] != size:
                raise InputError(f"{name}: shape is {list(array.shape)}, expected [B, {'ST'[name == 'query']}, {size}]")
        if len(query) != len(memory):
            raise InputError(f"query has {len(query)} rows and memory {len(memory)}, expected the same number")
        return query, memory

    def _checked_gradient(self, dcontext, saved):
        """Return dcontext as a float32 array of the context's shape."""
        if not isinstance(saved, Saved):
            raise InputTypeError(f"saved: got a {type(saved).__name__}, expected what forward(training=True) returned")
        dcontext = as_input(dcontext, "dcontext")
        check_shape(dcontext, saved.shape, "dcontext", "that of context")
        return dcontext

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        lead = (shape or ("B", "T", self.query_size))[:-1]
        parameters = {name: layer.shapes()["weight"] for name, layer in self._layers.items()}
        count = sum(a * b for a, b in parameters.values())
        nbytes = sum(row.bytes for layer in self._layers.values() for row in layer.summary_rows())
        return [SummaryRow(repr(self), (*lead, self.memory_size), count, 2 * count, nbytes)]


def _lengths(lengths, x):
    """Return the length of each row of x [B, T, ...], as a list."""
    lengths = check_lengths(lengths, x.shape[1], len(x))
    return [x.shape[1]] * len(x) if lengths is None else lengths.tolist()


def _softmax(x):
    """Return the softmax of each row of x [T, n]."""
    e = _kernels.unary("Exp", x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
