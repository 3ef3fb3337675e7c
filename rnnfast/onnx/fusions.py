"""The fused operators that onnxruntime saves after it has optimised a graph: each is a body of ONNX's own operators.

A graph reads the body in place of the node, as for one of the model's own functions, so that all that holds for ONNX's
operators (native steps, packed weights, the proof of axes) holds for these. Definitions: ContribOperators.md of
onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import ModelError, UnsupportedError

OPSET = 23  # of the bodies
REQUIRED = object()  # in place of an attribute's default
DOMAIN = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"  # of operators on the layout of one processor


class Fusion(NamedTuple):
    """A fused operator.

    Attributes:
        expand: function(body, attributes) that adds the nodes to a Body and returns the names of the outputs.
        inputs: How many inputs are required, and how many there may be.
        attributes: name -> default, REQUIRED if it must be given, or a type if it is optional.
        outputs: The most outputs.
    """

    expand: Callable[[Body, dict[str, Any]], Sequence[str]]
    inputs: tuple[int, int]
    attributes: Mapping[str, Any]
    outputs: int = 1


class Body:
    """The nodes and constants of a body while it is made."""

    def __init__(self, name: str, present: Sequence[bool], n_outputs: int) -> None:
        self.name, self.n_outputs = name, n_outputs
        self.inputs = [f"input {i}" if there else "" for i, there in enumerate(present)]
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def input(self, index: int) -> str:
        """The name of an input; "" if it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def several(self, op_type: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Add a node; return the names of its outputs."""
        from onnx import helper

        outputs = [f"value {len(self.nodes)} {i}" for i in range(count)]
        attributes = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, self.name, **attributes))
        return outputs

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        return self.several(op_type, inputs, 1, **attributes)[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant; return its name."""
        name = f"constant {len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def like(self, value: float, other: str) -> str:
        """Add a number of the type of another value; return its name."""
        return self.add("CastLike", self.constant(value, np.float32), other)

    def plus(self, x: str, y: str) -> str:
        """Add the sum of two values, of which one may be absent."""
        return self.add("Add", x, y) if x and y else x or y

    def refuse_inputs(self, first: int) -> None:
        """Raise UnsupportedError if one of the inputs from `first` on is given."""
        for i, name in enumerate(self.inputs[first:], first):
            if name:
                raise UnsupportedError(f"input {i} is not supported")

    def refuse_outputs(self, most: int) -> None:
        if self.n_outputs > most:
            raise UnsupportedError(f"output {most} is not supported")


# ------------------------------------------------------------------------------------------------ activations
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


def _fused_conv(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(Conv(X, W, B) + Z)"""
    activation, parameters = a.pop("activation"), a.pop("activation_params")
    names = ("min", "max") if activation == "Clip" else ACTIVATIONS.get(activation, ())
    if len(parameters) > len(names):
        raise UnsupportedError(f"attribute 'activation_params' = {parameters} of activation {activation!r}")
    y = body.add("Conv", *filter(None, (body.input(i) for i in range(3))), **a)
    return [_activated(body, body.plus(y, body.input(3)), activation, dict(zip(names, parameters)))]


def _fused_gemm(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(alpha * A' B' + beta * C)"""
    activation = a.pop("activation")
    values = {name: a.pop(f"activation_{name}") for name in ("alpha", "beta", "gamma")}
    y = body.add("Gemm", *filter(None, (body.input(i) for i in range(3))), **a)
    return [_activated(body, y, activation, {name: value for name, value in values.items() if value is not None})]


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


# ------------------------------------------------------------------------------------------------ elementwise
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


# ------------------------------------------------------------------------------------------------ normalizations
def _normalized(body: Body, x: str, gamma: str, beta: str, epsilon: float) -> str:
    """Add a LayerNormalization over the last axis."""
    return body.add("LayerNormalization", x, gamma, *filter(None, [beta]), axis=-1, epsilon=epsilon)


def _skip_layer_normalization(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """LayerNormalization(input + skip + bias); the fourth output is that sum."""
    x = body.plus(body.add("Add", body.input(0), body.input(1)), body.input(4))
    return [_normalized(body, x, body.input(2), body.input(3), a["epsilon"]), "", "", x]


def _skip_rms_normalization(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """RMSNormalization(input + skip + bias); the fourth output is that sum."""
    x = body.plus(body.add("Add", body.input(0), body.input(1)), body.input(3))
    return [body.add("RMSNormalization", x, body.input(2), axis=-1, epsilon=a["epsilon"]), "", "", x]


def _rms_normalization(body: Body, a: dict[str, Any]) -> Sequence[str]:
    return [body.add("RMSNormalization", body.input(0), body.input(1), **a)]


def _layer_normalization(body: Body, a: dict[str, Any]) -> Sequence[str]:
    inputs = [name for name in (body.input(i) for i in range(3)) if name]
    return body.several("LayerNormalization", inputs, body.n_outputs, **a)


def _embed_layer_normalization(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """LayerNormalization of the sum of embeddings of words, positions and segments."""
    ids, segments, words, positions, of_segments, gamma, beta, mask, position_ids = map(body.input, range(9))
    if position_ids:
        places = body.add("Gather", positions, position_ids)
    else:
        length = body.add("Slice", body.add("Shape", ids), body.constant([1]), body.constant([2]))
        places = body.add("Slice", positions, body.constant([0]), length, body.constant([0]))
    x = body.add("Add", body.add("Gather", words, ids), places)
    if segments:
        x = body.add("Add", x, body.add("Gather", of_segments, segments))
    counts = ""
    if body.n_outputs > 1:
        if not mask and a["mask_index_type"]:
            raise UnsupportedError("output 1 without an input 'mask' is not supported")
        zeros = body.add("Sub", ids, ids)
        counted = body.add("ReduceSum", mask or zeros, body.constant([1]), keepdims=0)
        counts = body.add("Cast", counted, to=6)
    return [_normalized(body, x, gamma, beta, a["epsilon"]), counts, x]


# ------------------------------------------------------------------------------------------------ attention
def _mask_of(body: Body, mask: str, x: str, filtered: float, bias: str) -> str:
    """Add what is added to the scores: `filtered` where the mask [batch, keys] is 0, and the bias of positions."""
    if not mask:
        return bias
    matrix = body.add("Transpose", mask, perm=[0, 1])  # refuses the other forms of a mask, which have other ranks
    absent = body.add("Sub", body.like(1, x), body.add("CastLike", matrix, x))
    added = body.add("Mul", absent, body.like(filtered, x))
    return body.plus(body.add("Unsqueeze", added, body.constant([1, 2])), bias)


def _attention(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Attention of the three parts of input . weights + bias"""
    x, weights, bias, mask, past, added = map(body.input, range(6))
    if past:
        raise UnsupportedError("input 'past' is not supported")
    for name in ("do_rotary", "past_present_share_buffer"):
        if a[name]:
            raise UnsupportedError(f"attribute {name!r} = {a[name]} is not supported")
    body.refuse_outputs(1)
    projected = body.plus(body.add("MatMul", x, weights), bias)
    sizes = a["qkv_hidden_sizes"]
    if sizes:
        parts = body.several("Split", [projected, body.constant(sizes)], 3, axis=-1)
    else:
        parts = body.several("Split", [projected], 3, axis=-1, num_outputs=3)
    mask = _mask_of(body, mask, x, a["mask_filter_value"], added)
    return [_attended(body, [*parts, mask], a, 1)[0]]


def _attended(body: Body, inputs: Sequence[str], a: dict[str, Any], outputs: int) -> list[str]:
    """Add an Attention with as many heads of keys as of queries."""
    inputs = list(inputs)
    while not inputs[-1]:
        inputs.pop()
    heads = a["num_heads"]
    return body.several(
        "Attention",
        inputs,
        outputs,
        q_num_heads=heads,
        kv_num_heads=heads,
        is_causal=a["unidirectional"],
        scale=a["scale"] or None,
    )


def _multi_head_attention(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Attention of queries, keys and values that are given apart."""
    *parts, bias, mask, added, past_key, past_value = map(body.input, range(8))
    if not all(parts):
        raise UnsupportedError("queries, keys and values in one input are not supported")
    body.refuse_inputs(8)
    if bias:
        of_parts = body.several("Split", [bias], 3, axis=0, num_outputs=3)
        parts = [body.add("Add", x, b) for x, b in zip(parts, of_parts)]
    mask = _mask_of(body, mask, parts[0], a["mask_filter_value"], added)
    return _attended(body, [*parts, mask, past_key, past_value], a, body.n_outputs)


# ------------------------------------------------------------------------------------------------ quantised products
def _integer_product(body: Body, a: Sequence[str], b: Sequence[str], bias: str) -> str:
    """Add the product of quantised matrices, each as (values, scale, zero point), as floats, plus a bias."""
    (x, x_scale, x_zero), (w, w_scale, w_zero) = a, b
    zeros = [x_zero, w_zero] if w_zero else [x_zero] if x_zero else []
    y = body.add("CastLike", body.add("MatMulInteger", x, w, *zeros), x_scale)
    return body.plus(body.add("Mul", y, body.add("Mul", x_scale, w_scale)), bias)


def _matmul_integer_to_float(body: Body, a: dict[str, Any]) -> Sequence[str]:
    x, w, x_scale, w_scale, x_zero, w_zero, bias = map(body.input, range(7))
    return [_integer_product(body, (x, x_scale, x_zero), (w, w_scale, w_zero), bias)]


def _dynamic_quantize_matmul(body: Body, a: dict[str, Any]) -> Sequence[str]:
    x, w, w_scale, w_zero, bias = map(body.input, range(5))
    quantised = body.several("DynamicQuantizeLinear", [x], 3)
    return [_integer_product(body, quantised, (w, w_scale, w_zero), bias)]


CONV = {"auto_pad": str, "dilations": list, "group": int, "kernel_shape": list, "pads": list, "strides": list}
GEMM = {"alpha": float, "beta": float, "transA": int, "transB": int}
OF_ACTIVATION = {"activation_alpha": float, "activation_beta": float, "activation_gamma": float}
OF_HEADS = {"num_heads": REQUIRED, "unidirectional": 0, "scale": 0.0, "mask_filter_value": -10000.0}
TRANSPOSED = {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}
NORMALIZED = {"axis": int, "epsilon": float, "stash_type": int}

FUSIONS: dict[tuple[str, str], Fusion] = {
    (DOMAIN, "Attention"): Fusion(
        _attention, (2, 6), OF_HEADS | {"qkv_hidden_sizes": [], "do_rotary": 0, "past_present_share_buffer": 0}, 2
    ),
    (DOMAIN, "BiasGelu"): Fusion(_gelu, (2, 2), {}),
    (DOMAIN, "DynamicQuantizeMatMul"): Fusion(_dynamic_quantize_matmul, (3, 5), {}),
    (DOMAIN, "EmbedLayerNormalization"): Fusion(
        _embed_layer_normalization, (7, 9), {"epsilon": 1e-12, "mask_index_type": 0}, 3
    ),
    (DOMAIN, "FastGelu"): Fusion(_fast_gelu, (1, 2), {}),
    (DOMAIN, "FusedConv"): Fusion(_fused_conv, (2, 4), CONV | {"activation": "", "activation_params": []}),
    (DOMAIN, "FusedGemm"): Fusion(_fused_gemm, (2, 3), GEMM | {"activation": ""} | OF_ACTIVATION),
    (DOMAIN, "FusedMatMul"): Fusion(_fused_matmul, (2, 2), TRANSPOSED),
    (DOMAIN, "Gelu"): Fusion(_gelu, (1, 1), {}),
    (DOMAIN, "MatMulIntegerToFloat"): Fusion(_matmul_integer_to_float, (4, 7), {}),
    (DOMAIN, "MultiHeadAttention"): Fusion(_multi_head_attention, (1, 10), OF_HEADS, 3),
    (DOMAIN, "QuickGelu"): Fusion(_quick_gelu, (1, 1), {"alpha": 1.702}),
    (DOMAIN, "SkipLayerNormalization"): Fusion(_skip_layer_normalization, (3, 5), {"epsilon": 1e-12}, 4),
    (DOMAIN, "SkipSimplifiedLayerNormalization"): Fusion(_skip_rms_normalization, (3, 4), {"epsilon": 1e-5}, 4),
    (DOMAIN, "TransposeMatMul"): Fusion(_fused_matmul, (2, 2), TRANSPOSED),
    # onnxruntime's own, from before ONNX had them; it leaves them in ONNX's domain at any opset.
    ("", "SimplifiedLayerNormalization"): Fusion(_rms_normalization, (2, 2), NORMALIZED),
    ("", "LayerNormalization"): Fusion(_layer_normalization, (2, 3), NORMALIZED, 3),
}
SINCE = {"LayerNormalization": 17}  # ONNX's own from this opset on


def find(domain: str, op_type: str, opset: int | None) -> Fusion | None:
    """The fused operator of a node, or None if it is another one."""
    if not domain and (opset or 0) >= SINCE.get(op_type, 2**31):
        return None
    return FUSIONS.get((domain, op_type))


def body_of(
    fusion: Fusion, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Any]
) -> tuple[Body, list[str]]:
    """The body of a node and the names of its outputs in it.

    inputs, outputs: the names of the node's. attributes: its AttributeProtos by name. Raises UnsupportedError for an
    attribute, an input or an output that the body would not compute, and ModelError for one that the operator lacks.
    """
    least, most = fusion.inputs
    if not least <= len(inputs) <= most or "" in inputs[:1]:
        raise ModelError(f"{len(inputs)} inputs, expected {least} to {most}")
    if not 1 <= len(outputs) <= fusion.outputs:
        raise ModelError(f"{len(outputs)} outputs, expected 1 to {fusion.outputs}")
    values = _values(fusion.attributes, attributes)
    body = Body(name, [bool(name) for name in inputs], len(outputs))
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
        default = expected[name]
        kind = default if isinstance(default, type) else int if default is REQUIRED else type(default)
        given_kind: Any = str if proto.type == proto.STRING else type(value)
        if given_kind is not kind and not (kind is list and proto.type in (proto.INTS, proto.FLOATS)):
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
