"""Products, convolutions and what onnxruntime fuses with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rnnfast.errors import UnsupportedError
from rnnfast.onnx.fusions.body import Body, Fusion

CHANNELS_SECOND, CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
# activation -> (its attributes in the order of activation_params)
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "Elu": ("alpha",),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}


def _activated(body: Body, x: str, activation: str, values: Mapping[str, float]) -> str:
    """Add an activation with those of its attributes that are given."""
    if not activation:
        return x
    if activation == "Clip":
        bounds = [body.like(values[name], x) if name in values else "" for name in ("min", "max")]
        return body.add("Clip", x, *bounds)
    if activation not in ACTIVATIONS:
        raise UnsupportedError(f"attribute 'activation' = {activation!r} is not supported")
    unknown = values.keys() - set(ACTIVATIONS[activation])
    if unknown:
        raise UnsupportedError(f"parameter {min(unknown)!r} of activation {activation!r} is not supported")
    return body.add(activation, x, **values)


def _convolved(body: Body, a: dict[str, Any], x: str, w: str, added: str) -> str:
    """Add act(Conv(X, W, B) + Z)."""
    activation, parameters = a.pop("activation"), a.pop("activation_params")
    names = ("min", "max") if activation == "Clip" else ACTIVATIONS.get(activation, ())
    if len(parameters) > len(names):
        raise UnsupportedError(f"attribute 'activation_params' = {parameters} of activation {activation!r}")
    y = body.add("Conv", x, w, *filter(None, [body.input(2)]), **a)
    return _activated(body, body.plus(y, added), activation, dict(zip(names, parameters)))


def _fused_conv(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(Conv(X, W, B) + Z)"""
    return [_convolved(body, a, body.input(0), body.input(1), body.input(3))]


def _nhwc_fused_conv(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(Conv(X, W, B) + Z) of images whose channels are the last axis; W has the order of Conv."""
    x, added = (name and body.add("Transpose", name, perm=CHANNELS_SECOND) for name in (body.input(0), body.input(3)))
    return [body.add("Transpose", _convolved(body, a, x, body.input(1), added), perm=CHANNELS_LAST)]


def _nhwc_conv(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Conv(X, W, B) of images and weights whose channels are the last axis, as the optimiser writes them"""
    x, w = (body.add("Transpose", body.input(i), perm=CHANNELS_SECOND) for i in range(2))
    a |= {"activation": "", "activation_params": []}
    return [body.add("Transpose", _convolved(body, a, x, w, ""), perm=CHANNELS_LAST)]


def _activation_values(a: dict[str, Any]) -> dict[str, float]:
    """The parameters of an activation that are attributes of their own, taken out of the attributes."""
    values = {name: a.pop(f"activation_{name}") for name in ("alpha", "beta", "gamma")}
    return {name: value for name, value in values.items() if value is not None}


def _fused_gemm(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(alpha * A' B' + beta * C)"""
    activation, values = a.pop("activation"), _activation_values(a)
    y = body.add("Gemm", *filter(None, (body.input(i) for i in range(3))), **a)
    return [_activated(body, y, activation, values)]


def _fused_matmul(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """alpha * A' B', where trans swaps the last two axes and transBatch moves the first axis before the last one."""
    terms = [
        ("m...k", "k...m") if a["transBatchA"] else ("...mk", "...km"),
        ("k...n", "n...k") if a["transBatchB"] else ("...kn", "...nk"),
    ]
    chosen = [pair[a[f"trans{side}"]] for pair, side in zip(terms, "AB")]
    operands = body.input(0), body.input(1)
    if chosen == ["...mk", "...kn"]:
        y = body.add("MatMul", *operands)
    else:
        y = body.add("Einsum", *operands, equation=f"{','.join(chosen)}->...mn")
    return [y if a["alpha"] == 1 else body.add("Mul", y, body.like(a["alpha"], y))]


def _fused_matmul_activation(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(alpha * A' B')"""
    activation, values = a.pop("activation"), _activation_values(a)
    return [_activated(body, _fused_matmul(body, a)[0], activation, values)]


def _gemm_fast_gelu(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Gelu(X . W + bias), by tanh"""
    y = body.plus(body.add("MatMul", body.input(0), body.input(1)), body.input(2))
    return [body.add("Gelu", y, approximate="tanh")]


CONV = {"auto_pad": str, "dilations": list, "group": int, "kernel_shape": list, "pads": list, "strides": list}
FUSED_CONV = CONV | {"activation": "", "activation_params": []}
GEMM = {"alpha": float, "beta": float, "transA": int, "transB": int}
OF_ACTIVATION = {"activation_alpha": float, "activation_beta": float, "activation_gamma": float}
TRANSPOSED = {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}

FUSIONS = {
    "FusedConv": Fusion(_fused_conv, (2, 4), FUSED_CONV),
    "FusedGemm": Fusion(_fused_gemm, (2, 3), GEMM | {"activation": ""} | OF_ACTIVATION),
    "FusedMatMul": Fusion(_fused_matmul, (2, 2), TRANSPOSED),
    "FusedMatMulActivation": Fusion(_fused_matmul_activation, (2, 2), TRANSPOSED | {"activation": ""} | OF_ACTIVATION),
    "GemmFastGelu": Fusion(_gemm_fast_gelu, (2, 3), {}),
    "NhwcConv": Fusion(_nhwc_conv, (2, 3), CONV),
    "NhwcFusedConv": Fusion(_nhwc_fused_conv, (2, 4), FUSED_CONV),
    "TransposeMatMul": Fusion(_fused_matmul, (2, 2), TRANSPOSED),
}
