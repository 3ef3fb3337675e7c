"""The operators that onnxruntime's optimisers and quantisers write: each is a body of ONNX's own operators.

A graph reads the body in place of the node, as for one of the model's own functions, so that all that holds for ONNX's
operators (native steps, packed weights, the proof of axes) holds for these. Definitions: ContribOperators.md of
onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import ModelError, UnsupportedError
from rnnfast.onnx.fusions import attention, elementwise, forms, normalizations, products, quantized
from rnnfast.onnx.fusions.body import REQUIRED, Body, Fusion

OPSET = 23  # of the bodies
DOMAIN = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"  # of operators on the layout of one processor

MODULES = attention, elementwise, forms, normalizations, products, quantized
FUSIONS: dict[tuple[str, str], Fusion] = {
    (DOMAIN, op_type): fusion for module in MODULES for op_type, fusion in module.FUSIONS.items()
} | {("", op_type): fusion for op_type, fusion in normalizations.IN_ONNX.items()}
SINCE = {"LayerNormalization": 17}  # ONNX's own from this opset on

# What onnxruntime's optimisers write too, operator of com.microsoft -> why it is not computed.
_FOR_GPUS = "it is of a model without padding, which onnxruntime runs on GPUs alone"
_SEARCH = "it is a search with the model inside"
REFUSED = {
    "BeamSearch": _SEARCH,
    "BitmaskBiasDropout": "its mask is of bits, for training",
    "BitmaskDropout": "its mask is of bits, for training",
    "ConvTransposeWithDynamicPads": "the size of its output is no formula of its documentation",
    "DecoderMaskedMultiHeadAttention": "its past is a buffer that it changes in place",
    "DecoderMaskedSelfAttention": "its past is a buffer that it changes in place",
    "GreedySearch": _SEARCH,
    "Inverse": "ONNX has no inverse of a matrix",
    "Irfft": "its documentation and onnxruntime give its output different sizes",
    "LongformerAttention": "its attention is sparse",
    "PackedAttention": _FOR_GPUS,
    "PackedMultiHeadAttention": _FOR_GPUS,
    "RemovePadding": _FOR_GPUS,
    "RestorePadding": _FOR_GPUS,
    "Sampling": _SEARCH,
    "SparseAttention": "its attention is sparse",
    "WhisperBeamSearch": _SEARCH,
}


def find(domain: str, op_type: str, opset: int | None) -> Fusion | None:
    """The fused operator of a node, or None if it is another one."""
    if not domain and (opset or 0) >= SINCE.get(op_type, 2**31):
        return None
    return FUSIONS.get((domain, op_type))


def why_refused(domain: str, op_type: str) -> str:
    """The reason why an operator of onnxruntime is not computed, to follow the message that it is not; or ""."""
    if domain == BLOCKED:
        return (
            ": the file was saved at ORT_ENABLE_ALL for one processor, and does not tell the order of its weights; "
            "save it anew from the original model, with graph_optimization_level at ORT_ENABLE_EXTENDED"
        )
    return f": {REFUSED[op_type]}" if domain == DOMAIN and op_type in REFUSED else ""


def body_of(
    fusion: Fusion,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, Any],
    dtypes: Sequence[np.dtype | None] = (),
) -> tuple[Body, list[str]]:
    """The body of a node and the names of its outputs in it.

    inputs, outputs: the names of the node's. attributes: its AttributeProtos by name. dtypes: those of the inputs, None
    where one is not known. Raises UnsupportedError for an attribute, an input or an output that the body would not
    compute, and ModelError for one that the operator lacks.
    """
    least, most = fusion.inputs
    if not least <= len(inputs) <= most or "" in inputs[:1]:
        raise ModelError(f"{len(inputs)} inputs, expected {least} to {most}")
    if not 1 <= len(outputs) <= fusion.outputs:
        raise ModelError(f"{len(outputs)} outputs, expected 1 to {fusion.outputs}")
    values = _values(fusion.attributes, attributes)
    body = Body(name, [bool(name) for name in inputs], len(outputs), dtypes)
    results = list(fusion.expand(body, values))[: len(outputs)]
    for i, (wanted, result) in enumerate(zip(outputs, results)):
        if wanted and not result:
            raise UnsupportedError(f"output {i} ({wanted!r}) is not computed")
    return body, results


def _values(expected: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of attributes, with their defaults; None for optional ones that are absent."""
    from onnx import helper

    values = {name: None if isinstance(default, type) else default for name, default in expected.items()}
    for name, proto in given.items():
        if name not in expected:
            raise UnsupportedError(f"attribute {name!r} is not supported")
        value: Any = helper.get_attribute_value(proto)
        if type(value) is bytes:
            value = value.decode("utf-8", "replace")
        elif proto.type == proto.STRINGS:
            value = [text.decode("utf-8", "replace") for text in value]
        default = expected[name]
        kind = default if isinstance(default, type) else int if default is REQUIRED else type(default)
        given_kind: Any = str if proto.type == proto.STRING else type(value)
        if given_kind is not kind and not (kind is list and proto.type in (proto.INTS, proto.FLOATS, proto.STRINGS)):
            raise ModelError(f"attribute {name!r} = {value!r}, expected {kind.__name__}")
        if kind is float and not math.isfinite(value) and name != "mask_filter_value":
            raise UnsupportedError(f"attribute {name!r} = {value} is not supported")
        if name.startswith("trans") and value not in (0, 1):
            raise UnsupportedError(f"attribute {name!r} = {value} is not supported, expected 0 or 1")
        values[name] = list(value) if kind is list else value
    for name, value in values.items():
        if value is REQUIRED:
            raise ModelError(f"attribute {name!r} is missing")
    return values
