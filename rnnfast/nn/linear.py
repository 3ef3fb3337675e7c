"""Layers that are one product or one look-up."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import _kernels
from rnnfast.nn.checks import as_array, as_input, check_flag, check_matmul, check_size, check_weights
from rnnfast.nn.module import Module, SummaryRow


class Linear(Module):
    """y = x W^T + b, with torch's arguments and state dict: weight [out_features, in_features], bias [out_features].

    matmul: "packed" (own kernels, the same bits everywhere), "blas", or None for this processor's default.
    threads: how many a call may use, None for RNNFAST_NUM_THREADS (else one); the bits do not depend on it, and BLAS,
        which has threads of its own, does not heed it.
    rng: a seed or a numpy Generator for the initial weights.
    """

    def __init__(self, in_features, out_features, bias=True, *, matmul=None, threads=None, rng=None):
        self.in_features = check_size(in_features, "in_features")
        self.out_features = check_size(out_features, "out_features")
        self.bias = check_flag(bias, "bias")
        self.matmul = check_matmul(matmul)
        self._use_threads(threads)
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    def shapes(self):
        shapes = {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}
        return shapes if self.bias else {"weight": shapes["weight"]}

    def _draw(self, rng):
        return uniform(self.shapes(), 1 / np.sqrt(self.in_features), rng)

    def _pack(self, parameters):
        return _kernels.Matrix(parameters["weight"].T, parameters.get("bias"), matmul=self.matmul)

    def __call__(self, x):
        """x [..., in_features] float32 -> [..., out_features]"""
        x = as_input(x, "x")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise InputError(f"x: shape is {list(x.shape)}, expected [..., {self.in_features}] (in_features)")
        return self._packed.multiply(x, threads=self._threads)

    def _forward(self, x, rng):
        parameters, _ = self._initialized()
        x = as_input(x, "x")
        return self(x), x, parameters["weight"]

    def _backward(self, dy, x, weight):
        """dx = dy W, by the packed kernel; dW = dy^T x, by NumPy's BLAS, as rows are more than it has columns;
        db = sum of dy over all rows"""
        rows = dy.reshape(-1, self.out_features)
        dweights = {"weight": rows.T @ x.reshape(-1, self.in_features)}
        if self.bias:
            dweights["bias"] = rows.sum(0)
        back = _kernels.Matrix(weight, matmul=self.matmul)
        return back.multiply(rows, threads=self._threads).reshape(x.shape), dweights

    def summary_rows(self, shape=None):
        weights = self.in_features * self.out_features
        parameters = weights + self.bias * self.out_features
        output = (*(shape or ("...", self.in_features))[:-1], self.out_features)
        return [SummaryRow(repr(self), output, parameters, 2 * weights, 4 * parameters)]


class Embedding(Module):
    """y = weight[x], with torch's arguments and state dict: weight [num_embeddings, embedding_dim].

    padding_idx: its row starts as zeros and has no gradient. rng: a seed or a numpy Generator for the initial weights.
    """

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None, *, rng=None):
        self.num_embeddings = check_size(num_embeddings, "num_embeddings")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.padding_idx = padding_idx
        if padding_idx is not None:
            self.padding_idx = check_size(padding_idx, "padding_idx", least=-self.num_embeddings)
            if self.padding_idx >= self.num_embeddings:
                raise InputError(f"padding_idx: {padding_idx}, expected less than num_embeddings = {num_embeddings}")
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    def shapes(self):
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def _draw(self, rng):
        weight = rng.standard_normal((self.num_embeddings, self.embedding_dim), np.float32)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0
        return {"weight": weight}

    def _pack(self, parameters):
        return parameters["weight"]

    def __call__(self, x):
        """x [...] integers from 0 to num_embeddings - 1 -> [..., embedding_dim] float32"""
        x = as_array(x, "x")
        if x.dtype.kind not in "iu":
            raise InputTypeError(f"x: dtype is {x.dtype}, expected integers")
        wrong = np.argwhere((x < 0) | (x >= self.num_embeddings))
        if len(wrong):
            where = wrong[0].tolist()
            raise InputError(f"x: {x[tuple(where)]} at {where}, expected 0 to {self.num_embeddings - 1}")
        return self._packed[x]

    def _forward(self, x, rng):
        x = as_array(x, "x")
        return self(x), x

    def _backward(self, dy, x):
        """dW[k] = sum of dy where x is k; zeros for padding_idx, as in torch"""
        size, x = self.embedding_dim, x.reshape(-1, 1).astype(np.int64)
        places = (x * size + np.arange(size)).ravel()
        dweight = np.bincount(places, dy.ravel(), self.num_embeddings * size).astype(np.float32)
        dweight = dweight.reshape(self.num_embeddings, size)
        if self.padding_idx is not None:
            dweight[self.padding_idx] = 0
        return None, {"weight": dweight}

    def summary_rows(self, shape=None):
        parameters = self.num_embeddings * self.embedding_dim
        return [
            SummaryRow(repr(self), (*(shape or ("...",)), self.embedding_dim), parameters, 0, 4 * self.embedding_dim)
        ]


def uniform(shapes, bound, rng):
    """torch's initial weights of dense and recurrent layers: uniform in +-bound."""
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
