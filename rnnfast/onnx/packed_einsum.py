"""Einsum of a computed operand and a constant one, as products with matrices that are packed at load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

import rnnfast.native._kernels as _kernels
from rnnfast.onnx.ops.linear import labels_of

MOST_MATRICES = 64  # a constant that would become more of them is packed in each call


class PackedEinsum:
    """y[batch, rows, columns] = the sum over inner labels of x[batch, rows, inner] * weights[batch, inner, columns].

    The batch labels are those of both operands and of the output, the inner labels those of both operands alone.
    matrices: one packed matrix [inner, columns] for each combination of the batch labels, in their order. at: which of
    the two operands is x. A result is one chain of fused multiply-adds over the inner labels, the last one the fastest,
    in the order in which x has them.
    """

    def __init__(self, equation: str, weights: np.ndarray, at: int, matmul: str | None) -> None:
        self.equation, self.at = equation, at
        terms, _, output = equation.replace(" ", "").partition("->")
        x_term, w_term = terms.split(",")[at], terms.split(",")[1 - at]
        self.batch = [label for label in output if label in w_term and label in x_term]
        self.columns = [label for label in output if label in w_term and label not in x_term]
        self.inner = [label for label in x_term if label in w_term and label not in output]
        groups = (self.batch, self.inner, self.columns)
        self.sizes = dict(zip(w_term, weights.shape))
        shapes = [[self.sizes[label] for label in group] for group in groups]
        arranged = weights.transpose([w_term.index(label) for group in groups for label in group])
        self.matrices = [
            _kernels.Matrix(arranged[place].reshape(math.prod(shapes[1]), math.prod(shapes[2])), matmul=matmul)
            for place in itertools.product(*map(range, shapes[0]))
        ]

    def arranged(self, x: Any, w: Any) -> tuple[Any, list[Hashable], list[Hashable], dict[Hashable, int]]:
        """Return x with its axes in the order batch, rows, inner; the row labels, the output's labels and all sizes.

        x, w: anything with a shape and, x, with `transpose`.
        """
        both = (x, w) if self.at == 0 else (w, x)
        terms, output, sizes = labels_of(self.equation, [operand.shape for operand in both])
        labels = terms[self.at]
        rows = [label for label in output if label in labels and label not in self.batch]
        return x.transpose([labels.index(i) for i in (*self.batch, *rows, *self.inner)]), rows, output, sizes

    def __call__(self, *operands: np.ndarray, threads: int = 1) -> np.ndarray:
        x, rows, output, sizes = self.arranged(operands[self.at], operands[1 - self.at])
        matrices, outer = len(self.matrices), math.prod(sizes[label] for label in rows)
        x = np.ascontiguousarray(x).reshape(matrices, outer, -1)
        y = np.empty((matrices, outer, self.matrices[0].N), np.float32)
        for part, matrix, out in zip(x, self.matrices, y):
            matrix.multiply(part, out, threads)
        labels = [*self.batch, *rows, *self.columns]
        return y.reshape([sizes[label] for label in labels]).transpose([labels.index(label) for label in output])


def fits(equation: str, constants: Sequence[Any], at: int) -> bool:
    """Return whether an Einsum with operand number `at` computed and the other constant can be such a product."""
    terms, arrow, output = equation.replace(" ", "").partition("->")
    weights = constants[1 - at]
    if not arrow or terms.count(",") != 1 or constants[at] is not None or weights is None:
        return False
    x_term, w_term = terms.split(",")[at], terms.split(",")[1 - at]
    letters = x_term.replace("...", "", 1)
    if len(w_term) != weights.ndim or not w_term.isalpha() or 0 in weights.shape or weights.dtype != np.float32:
        return False
    if any(term.count(label) > 1 for term in (letters, w_term) for label in term):
        return False
    inner = set(letters) & set(w_term) - set(output)
    summed_apart = (set(letters) ^ set(w_term)) - set(output)
    matrices = math.prod(n for label, n in zip(w_term, weights.shape) if label in letters and label in output)
    return bool(inner) and not summed_apart and matrices <= MOST_MATRICES
