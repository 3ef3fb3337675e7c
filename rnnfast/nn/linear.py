"""Layers that are one matrix product or one look-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import _kernels
from rnnfast.nn.checks import as_array, as_input, check_flag, check_size, check_weights
from rnnfast.nn.module import Module, Sizes, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, Matmul, Seed, Shape, SummaryShape


class Linear(Module):
    """A dense layer: y = x W^T + b.

    Arguments, formula and state dict are those of torch.nn.Linear: weight W [out_features, in_features], and bias b
    [out_features] unless bias=False. Initial values are uniform in +-1/sqrt(in_features).

    Args:
        in_features: The size of x's last axis.
        out_features: The size of y's last axis.
        bias: Whether to add b.
        matmul: "packed" (rnnfast's own kernels, the same bits on every machine), "blas", or None for this processor's
            default.
        threads: The number of threads that a call may use; None is RNNFAST_NUM_THREADS, or 1 if that is not set. The
            bits do not depend on it. BLAS has threads of its own and ignores it.
        rng: A seed or a numpy Generator for the initial weights; None draws them from fresh entropy.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
        UnsupportedError: matmul="blas" without SciPy.
    """

    takes_floats = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
        self.in_features = check_size(in_features, "in_features")
        self.out_features = check_size(out_features, "out_features")
        self.bias = check_flag(bias, "bias")
        self.matmul = _kernels.check_matmul(matmul)
        self._use_threads(threads)
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    def shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}
        return shapes if self.bias else {"weight": shapes["weight"]}

    def product_weights(self):
        return ("weight",)

    def sizes(self) -> Sizes:
        return "last", self.in_features, self.out_features

    def _draw(self, rng):
        return uniform(self.shapes(), 1 / np.sqrt(self.in_features), rng)

    def _pack(self, parameters):
        bias = parameters.get("bias")
        return _kernels.Matrix(parameters["weight"].T, bias, matmul=self.matmul, weight_type=self.weight_type)

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Compute x W^T + b.

        Args:
            x: float32 [..., in_features].

        Returns:
            float32 [..., out_features].

        Raises:
            InputError: The last axis of x has another size.
            InputTypeError: x is not float32.
        """
        return self._packed.multiply(self._validated(x), threads=self.thread_count)

    def call_into(self, x, out):
        self._packed.multiply(self._validated(x), out, self.thread_count)

    def _validated(self, x):
        """Return x as a float32 array [..., in_features]."""
        x = as_input(x, "x")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise InputError(f"x: shape is {list(x.shape)}, expected [..., {self.in_features}] (in_features)")
        return x

    def _forward(self, x, rng):
        parameters, _ = self.current_weights()
        x = as_input(x, "x")
        return self(x), x, parameters["weight"]

    def _backward(self, dy, x, weight):
        """Compute dx = dy W, dW = dy^T x, and db, the sum of dy over all rows.

        dx is computed by the packed kernel; dW by NumPy's BLAS, as it is a product with a long inner axis, that of the
        rows.
        """
        rows = dy.reshape(-1, self.out_features)
        dweights = {"weight": rows.T @ x.reshape(-1, self.in_features)}
        if self.bias:
            dweights["bias"] = rows.sum(0)
        back = _kernels.Matrix(weight, matmul=self.matmul)
        return back.multiply(rows, threads=self.thread_count).reshape(x.shape), dweights

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        weights = self.in_features * self.out_features
        parameters = weights + self.bias * self.out_features
        output = (*(shape or ("...", self.in_features))[:-1], self.out_features)
        return [SummaryRow(repr(self), output, parameters, 2 * weights, self._nbytes(self.shapes()))]


class Embedding(Module):
    """A table of vectors: y = weight[x].

    Arguments and state dict are those of torch.nn.Embedding: weight [num_embeddings, embedding_dim], initially drawn
    from the standard normal distribution.

    Args:
        num_embeddings: The number of vectors.
        embedding_dim: The size of a vector.
        padding_idx: The index of a vector that starts as zeros and has no gradient; a negative one counts from the end.
        rng: A seed or a numpy Generator for the initial weights; None draws them from fresh entropy.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *, rng: Seed = None
    ) -> None:
        self.num_embeddings = check_size(num_embeddings, "num_embeddings")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.padding_idx = padding_idx
        if padding_idx is not None:
            self.padding_idx = check_size(padding_idx, "padding_idx", least=-self.num_embeddings)
            if self.padding_idx >= self.num_embeddings:
                raise InputError(f"padding_idx: {padding_idx}, expected less than num_embeddings = {num_embeddings}")
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    def shapes(self) -> dict[str, Shape]:
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def sizes(self) -> Sizes:
        return "new", None, self.embedding_dim

    def _draw(self, rng):
        weight = rng.standard_normal((self.num_embeddings, self.embedding_dim), np.float32)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0
        return {"weight": weight}

    def _pack(self, parameters):
        return parameters["weight"]

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Look up the vectors of x.

        Args:
            x: Integers [...] from 0 to num_embeddings - 1.

        Returns:
            float32 [..., embedding_dim].

        Raises:
            InputError: An index is out of range.
            InputTypeError: x holds no integers.
        """
        return self._packed[self._validated(x)]

    def call_into(self, x, out):
        # In its default mode, np.take buffers `out`; the indices have been checked, so that nothing is clipped.
        np.take(self._packed, self._validated(x).astype(np.intp, copy=False), axis=0, out=out, mode="clip")

    def _validated(self, x):
        """Return x as a new array of valid indices, which no other thread can change behind the check."""
        x = as_array(x, "x")
        if x.dtype.kind not in "iu":
            raise InputTypeError(f"x: dtype is {x.dtype}, expected integers")
        x = np.array(x)
        if x.size and (x.min() < 0 or x.max() >= self.num_embeddings):
            where = np.argwhere((x < 0) | (x >= self.num_embeddings))[0].tolist()
            raise InputError(f"x: {x[tuple(where)]} at {where}, expected 0 to {self.num_embeddings - 1}")
        return x

    def _forward(self, x, rng):
        x = as_array(x, "x")
        return self(x), x

    def _backward(self, dy, x):
        """Compute dW[k], the sum of dy where x is k; it is zero for padding_idx, as in torch."""
        size, x = self.embedding_dim, self._validated(x).reshape(-1, 1).astype(np.int64)
        indices = (x * size + np.arange(size)).ravel()
        dweight = np.bincount(indices, dy.ravel(), self.num_embeddings * size).astype(np.float32)
        dweight = dweight.reshape(self.num_embeddings, size)
        if self.padding_idx is not None:
            dweight[self.padding_idx] = 0
        return None, {"weight": dweight}

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        parameters = self.num_embeddings * self.embedding_dim
        return [
            SummaryRow(repr(self), (*(shape or ("...",)), self.embedding_dim), parameters, 0, 4 * self.embedding_dim)
        ]


def uniform(shapes, bound, rng):
    """Draw initial weights, uniform in +-bound, as torch does for dense and recurrent layers."""
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
