"""Fused elementwise operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnnfast.onnx.fusions.body import Body, Fusion


def _gelu(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Gelu(X + bias)"""
    return [body.add("Gelu", body.plus(body.input(0), body.input(1)))]


def _fast_gelu(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Gelu(X + bias), by tanh"""
    return [body.add("Gelu", body.plus(body.input(0), body.input(1)), approximate="tanh")]


def _quick_gelu(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """x * sigmoid(alpha * x)"""
    x = body.input(0)
    scaled = x if a["alpha"] == 1 else body.add("Mul", x, body.like(a["alpha"], x))
    return [body.add("Mul", x, body.add("Sigmoid", scaled))]


def _bias_split_gelu(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """left * Gelu(right), the halves of X + bias along the last axis"""
    x = body.add("Add", body.input(0), body.input(1))
    left, right = body.several("Split", [x], 2, axis=-1, num_outputs=2)
    return [body.add("Mul", left, body.add("Gelu", right))]


def _bias_add(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """X + bias + skip"""
    return [body.add("Add", body.add("Add", body.input(0), body.input(1)), body.input(2))]


def _bias_dropout(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Dropout(data + bias, ratio, training_mode) + residual, and the mask"""
    data, bias, residual, ratio, training = map(body.input, range(5))
    y, *mask = body.several("Dropout", [body.add("Add", data, bias), ratio, training], body.n_outputs, **a)
    return [body.plus(y, residual), *mask]


def _complex_mul(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """A * B of complex numbers, whose real and imaginary parts are along the last axis"""
    return [_complex_product(body, "Sub", "Add")]


def _complex_mul_conj(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """A * B, where B is conjugated"""
    return [_complex_product(body, "Add", "Sub")]


def _complex_product(body: Body, of_real: str, of_imaginary: str) -> str:
    """Add a product of complex numbers; the operators join the two terms of its parts."""
    (x, y), (u, v) = (body.several("Split", [body.input(i)], 2, axis=-1, num_outputs=2) for i in range(2))
    real = body.add(of_real, body.add("Mul", x, u), body.add("Mul", y, v))
    imaginary = body.add(of_imaginary, body.add("Mul", y, u), body.add("Mul", x, v))
    return body.add("Concat", real, imaginary, axis=-1)


FUSIONS = {
    "BiasAdd": Fusion(_bias_add, (3, 3), {}),
    "BiasDropout": Fusion(_bias_dropout, (2, 5), {"seed": int}, 2),
    "BiasGelu": Fusion(_gelu, (2, 2), {}),
    "BiasSplitGelu": Fusion(_bias_split_gelu, (2, 2), {}),
    "ComplexMul": Fusion(_complex_mul, (2, 2), {}),
    "ComplexMulConj": Fusion(_complex_mul_conj, (2, 2), {}),
    "FastGelu": Fusion(_fast_gelu, (1, 2), {}),
    "Gelu": Fusion(_gelu, (1, 1), {}),
    "QuickGelu": Fusion(_quick_gelu, (1, 1), {"alpha": 1.702}),
}
