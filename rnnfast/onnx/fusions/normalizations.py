"""Normalizations and softmax with the sums before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnnfast.errors import UnsupportedError
from rnnfast.onnx.fusions.body import REQUIRED, Body, Fusion


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


# ------------------------------------------------------------------------------------------------ groups
def _group_norm(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(GroupNormalization(X))"""
    return [_of_groups(body, body.input(0), a)]


def _skip_group_norm(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """act(GroupNormalization(S)) and S = X + skip + bias, where skip is [N, H, W, C], [N, 1, 1, C] or [N, C]"""
    if not a["channels_last"]:
        raise UnsupportedError("attribute 'channels_last' = 0 is not supported: the shapes of skip are for 1")
    given = body.input(3)
    skip = body.choose(
        body.add("Equal", body.rank(given), body.constant(2)),
        lambda: body.add("Unsqueeze", given, body.constant([1, 2])),
        lambda: body.add("Transpose", given, perm=[0, 1, 2, 3]),  # refuses other ranks
    )
    added = body.add("Add", body.input(0), skip)
    added = body.plus(added, body.input(4))
    return [_of_groups(body, added, a), added]


def _of_groups(body: Body, x: str, a: dict[str, Any]) -> str:
    """Add a GroupNormalization of images and its activation, computed in the type of gamma, float32 for halves too."""
    if a["activation"] not in (0, 1):
        raise UnsupportedError(f"attribute 'activation' = {a['activation']} is not supported, expected 0 or 1")
    last = a["channels_last"]
    given, gamma = x, body.input(1)
    x = body.add("CastLike", x, gamma)
    x = body.add("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    y = body.add("GroupNormalization", x, gamma, body.input(2), epsilon=a["epsilon"], num_groups=a["groups"])
    y = body.add("Mul", y, body.add("Sigmoid", y)) if a["activation"] else y
    y = body.add("Transpose", y, perm=[0, 2, 3, 1]) if last else y
    return body.add("CastLike", y, given)


# ------------------------------------------------------------------------------------------------ softmax
def _bias_softmax(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """softmax(data + bias) over all axes from `axis` on

    The bias has either the axes of data, with 1 before `axis` where it is the same for all (is_inner_broadcast), or
    only the last ones of them: both are ONNX's broadcasting.
    """
    if a["is_inner_broadcast"] not in (0, 1):
        raise UnsupportedError(f"attribute 'is_inner_broadcast' = {a['is_inner_broadcast']}, expected 0 or 1")
    data = body.input(0)
    flat = body.add("Flatten", body.add("Add", data, body.input(1)), axis=a["axis"])
    return [body.add("Reshape", body.add("Softmax", flat, axis=1), body.add("Shape", data))]


NORMALIZED = {"axis": int, "epsilon": float, "stash_type": int}
OF_GROUPS = {"activation": REQUIRED, "channels_last": 1, "epsilon": 1e-5, "groups": REQUIRED}

FUSIONS = {
    "BiasSoftmax": Fusion(_bias_softmax, (2, 2), {"axis": 1, "is_inner_broadcast": REQUIRED}),
    "EmbedLayerNormalization": Fusion(_embed_layer_normalization, (7, 9), {"epsilon": 1e-12, "mask_index_type": 0}, 3),
    "GroupNorm": Fusion(_group_norm, (3, 3), OF_GROUPS),
    "SkipGroupNorm": Fusion(_skip_group_norm, (4, 5), OF_GROUPS, 2),
    "SkipLayerNormalization": Fusion(_skip_layer_normalization, (3, 5), {"epsilon": 1e-12}, 4),
    "SkipSimplifiedLayerNormalization": Fusion(_skip_rms_normalization, (3, 4), {"epsilon": 1e-5}, 4),
}
# onnxruntime's own, from before ONNX had them; it leaves them in ONNX's domain at any opset.
IN_ONNX = {
    "SimplifiedLayerNormalization": Fusion(_rms_normalization, (2, 2), NORMALIZED),
    "LayerNormalization": Fusion(_layer_normalization, (2, 3), NORMALIZED, 3),
}
