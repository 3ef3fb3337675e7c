"""Attention of several heads, and the positions that it is told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnfast.errors import ModelError, UnsupportedError
from rnnfast.onnx.fusions.body import REQUIRED, Body, Fusion, refuse_unless

INT32, INT64, DOUBLE = 6, 7, 11  # of TensorProto
# Distances whose logarithm is a whole number of buckets begin one, though the computed quotient may lie an ULP below.
ROUNDING = 1e-6


def _attention(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Attention of the three parts of input . weights + bias; present is [2, batch, heads, steps, size], as past is."""
    x, weights, bias, mask, past, added = map(body.input, range(6))
    refuse_unless(a, do_rotary=0, past_present_share_buffer=0)
    projected = body.plus(body.add("MatMul", x, weights), bias)
    sizes = a["qkv_hidden_sizes"]
    if sizes:
        parts = body.several("Split", [projected, body.constant(sizes)], 3, axis=-1)
    else:
        parts = body.several("Split", [projected], 3, axis=-1, num_outputs=3)
    pasts = ["", ""]
    if past:
        halves = body.several("Split", [past], 2, axis=0, num_outputs=2)
        pasts = [body.add("Squeeze", half, body.constant([0])) for half in halves]
    mask = mask_of(body, mask, x, total_keys(body, parts[1], pasts[0]), a["mask_filter_value"], added)
    y, *present = attended(body, [*parts, mask, *pasts], a, 3)
    joined = [body.add("Unsqueeze", x, body.constant([0])) for x in present] if body.n_outputs > 1 else []
    return [y, body.add("Concat", *joined, axis=0) if joined else ""]


def _multi_head_attention(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Attention of queries, keys and values that are given apart or packed."""
    query, key, value, bias, mask, added, *pasts = map(body.input, range(8))
    body.refuse_inputs(8)
    if body.n_outputs > 3:
        refuse_unless(a, unidirectional=0)  # whose scores onnxruntime fills with a number
    if key and value:
        parts = [query, key, value]
    elif key:
        if bias:
            raise UnsupportedError("input 'bias' beside keys and values in one input is not supported")
        parts = [query, *_unpacked(body, key, 2)]
    elif value:
        raise UnsupportedError("values without keys are not supported")
    else:
        parts = _unpacked(body, query, 3)
    if bias:
        sizes = body.joined(*(body.size(x, -1) for x in parts))
        of_parts = body.several("Split", [bias, sizes], 3, axis=0)
        parts = [body.add("Add", x, b) for x, b in zip(parts, of_parts)]
    mask = mask_of(body, mask, query, total_keys(body, parts[1], pasts[0]), a["mask_filter_value"], added)
    return attended(body, [*parts, mask, *pasts], a, body.n_outputs)


def _unpacked(body: Body, x: str, count: int) -> list[str]:
    """Add the parts [batch, steps, heads * size] of a tensor [batch, steps, heads, parts, size]."""
    parts = body.several("Split", [x, body.constant([1] * count)], count, axis=3)
    return [body.add("Reshape", part, body.constant([0, 0, -1])) for part in parts]


def total_keys(body: Body, key: str, past: str) -> str:
    """Add the number of past and new keys, in a tensor of one element."""
    return body.plus(body.size(key, -2), past and body.size(past, -2))


def mask_of(body: Body, mask: str, x: str, total: str, filtered: float, bias: str) -> str:
    """Add what is added to the scores: `filtered` where a mask forbids to attend, and the bias of positions.

    The mask is either of numbers, which allow if they are greater than 0, as [batch, keys], [batch, queries, keys]
    or [batch, 1, queries, keys]; or it tells where the keys of each row end, [batch], or where they end and begin,
    [2 * batch].
    """
    if not mask:
        return bias

    def of_numbers() -> str:
        wide = body.joined(body.size(mask, 0), body.constant([1, -1]), body.size(mask, -1))
        matrix = body.add("Greater", body.add("Reshape", mask, wide), body.constant(0, np.int32))
        return body.add("Expand", matrix, body.joined(body.constant([1, 1, 1]), total))  # refuses others than `total`

    def of_places() -> str:
        return body.choose(body.add("Equal", body.number(body.size(mask, 0)), body.number(batch)), of_ends, of_both)

    def of_ends() -> str:
        return body.add("Less", keys, body.add("Unsqueeze", mask, body.constant([1, 2, 3])))

    def of_both() -> str:
        shape = body.joined(body.constant([2]), batch, body.constant([1, 1, 1]))
        places = body.several("Split", [body.add("Reshape", mask, shape), body.constant([1, 1])], 2, axis=0)
        end, begin = (body.add("Squeeze", place, body.constant([0])) for place in places)
        return body.add("And", body.add("Less", keys, end), body.add("GreaterOrEqual", keys, begin))

    batch, keys = body.size(x, 0), body.add("Cast", body.counted(total), to=INT32)
    allowed = body.choose(body.add("Equal", body.rank(mask), body.constant(1)), of_places, of_numbers)
    return body.plus(body.add("Where", allowed, body.like(0, x), body.like(filtered, x)), bias)


def attended(body: Body, inputs: Sequence[str], a: dict[str, Any], outputs: int) -> list[str]:
    """Add an Attention with as many heads of keys as of queries; the fourth output has the masked scores."""
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
        qk_matmul_output_mode=2 if outputs > 3 else None,
        scale=a["scale"] or None,
    )


def _check_groups(body: Body, a: dict[str, Any]) -> None:
    """Raise an error unless a GroupQueryAttention has what it needs and asks for nothing else."""
    body.refuse_inputs(9)
    for name, i in (("key", 1), ("past_key", 3), ("cos_cache", 7)):
        if bool(body.input(i)) != bool(body.input(i + 1)):
            raise ModelError(f"input {name!r} and the one behind it, expected both or neither")
    if not (body.input(5) and body.input(6)) or a["do_rotary"] and not body.input(7):
        raise ModelError("an input that is required is absent: seqlens_k, total_sequence_length, or caches of angles")
    refuse_unless(a, causal=1, qk_output=0, sliding_window_cache=0, kv_cache_bit_width=0)
    refuse_unless(a, k_quant_type="NONE", v_quant_type="NONE", do_rotary=int(a["do_rotary"] != 0))
    if a["local_window_size"] < 1 and a["local_window_size"] != -1:
        raise UnsupportedError(f"attribute 'local_window_size' = {a['local_window_size']}, expected -1 or more than 0")
    if a["smooth_softmax"] > 0:
        raise UnsupportedError(f"attribute 'smooth_softmax' = {a['smooth_softmax']} is not supported")


def _group_query_attention(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Attention of groups of heads over a past of which each row has filled another part, and the past with new keys

    Row b has seqlens_k[b] + 1 keys, of which the last are new. Where the whole sequence is new, its rows begin at 0 and
    are padded at their ends. Places of the present that no key has are 0.
    """
    _check_groups(body, a)
    query, key, value, *pasts, lengths, total, cos, sin = map(body.input, range(9))
    heads, of_keys = a["num_heads"], a["kv_num_heads"]
    if key:
        parts = [_of_heads(body, x, n) for x, n in ((query, heads), (key, of_keys), (value, of_keys))]
    else:
        whole = _of_heads(body, query, heads + 2 * of_keys)
        parts = body.several("Split", [whole, body.constant([heads, of_keys, of_keys])], 3, axis=1)
    steps, total = body.size(query, 1), body.add("Cast", body.add("Reshape", total, body.constant([1])), to=INT64)
    ends = body.add("Cast", body.add("Reshape", lengths, body.size(query, 0)), to=INT64)
    begin = body.add("Sub", body.add("Add", ends, body.constant(1)), steps)
    begin = body.add("Where", body.add("Equal", steps, total), body.constant(0), begin)
    begin = body.add("Unsqueeze", begin, body.constant([1]))
    positions = body.add("Add", begin, body.counted(steps))
    if a["do_rotary"]:
        turned = _turned(body, positions, cos, sin, a["rotary_interleaved"], None)
        parts[:2] = map(turned, parts[:2])
    before = body.size(pasts[0], 2) if pasts[0] else body.constant([0])
    rows = body.add("Max", before, total)  # of the present
    places = body.add("Unsqueeze", body.counted(rows), body.constant([0]))
    sources = _sources(body, places, begin, steps, before, rows)
    presents = [_present(body, past, x, sources) for past, x in zip(pasts, parts[1:])]
    positions = body.add("Unsqueeze", positions, body.constant([1, 3]))
    allowed = body.add("LessOrEqual", places, positions)
    if a["local_window_size"] > 0:
        first = body.add("Sub", positions, body.constant(a["local_window_size"]))
        allowed = body.add("And", allowed, body.add("Greater", places, first))
    y = body.add("Attention", parts[0], *presents, allowed, scale=a["scale"] or None, softcap=a["softcap"])
    y = body.add("Reshape", body.add("Transpose", y, perm=[0, 2, 1, 3]), body.constant([0, 0, -1]))
    return [y, *presents]


def _sources(body: Body, places: str, begin: str, steps: str, before: str, rows: str) -> str:
    """Add where each of the places [1, rows] of a present comes from: a row of `before` past ones, of new ones, or 0.

    begin: the place of the first new key, [batch, 1]. steps, before, rows: how many are new, past and present, [1].
    """
    zero = body.constant(0)
    since = body.add("Sub", places, begin)
    new = body.add("And", body.add("GreaterOrEqual", since, zero), body.add("Less", since, steps))
    old = body.add("Where", body.add("Less", since, zero), places, body.add("Add", before, steps))
    sources = body.add("Where", new, body.add("Add", since, before), old)
    # New keys that are not next to the past, or not within the present, are an error of the Gather that follows.
    most = body.add("Min", before, body.add("Sub", rows, steps))
    within = body.add("And", body.add("GreaterOrEqual", begin, zero), body.add("LessOrEqual", begin, most))
    return body.add("Where", within, sources, body.constant(2**62))


def _of_heads(body: Body, x: str, count: int) -> str:
    """Add [batch, heads, steps, size] of a tensor [batch, steps, heads * size]."""
    return body.add("Transpose", body.add("Reshape", x, body.constant([0, 0, count, -1])), perm=[0, 2, 1, 3])


def _present(body: Body, past: str, x: str, sources: str) -> str:
    """Add the rows that `sources` [batch, rows] tells of a past, x and zeros, each [batch, heads, rows, size]."""
    batch, heads, size = (body.size(x, axis) for axis in (0, 1, 3))
    zeros = body.add("Expand", body.like(0, x), body.joined(batch, heads, body.constant([1]), size))
    whole = body.add("Concat", *filter(None, [past]), x, zeros, axis=2)
    first = body.add("Mul", body.counted(batch), body.number(body.size(whole, 2)))  # row of each of the batch
    whole = body.add("Transpose", whole, perm=[0, 2, 1, 3])
    whole = body.add("Reshape", whole, body.joined(body.constant([-1]), heads, size))
    sources = body.add("Add", sources, body.add("Unsqueeze", first, body.constant([1])))
    return body.add("Transpose", body.add("Gather", whole, sources), perm=[0, 2, 1, 3])


# ------------------------------------------------------------------------------------------------ positions
def _rotary_embedding(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """Pairs of numbers of each head, turned by the angle of their position; positions may be the first one alone"""
    x, positions, cos, sin = map(body.input, range(4))
    refuse_unless(a, is_packed_batching=0, scale=1.0)
    steps = body.size(x, -2)
    whole = body.add("Div", body.rank(positions), body.constant(2))  # 1 for [batch, steps], 0 for the first alone
    begin = body.add("Reshape", body.add("Mul", whole, body.constant(2)), body.constant([1]))
    shape = body.joined(body.constant([1, 1]), body.add("Shape", positions))
    shape = body.add("Slice", shape, begin, body.add("Add", begin, body.constant([2])))
    further = body.add("Mul", body.counted(steps), body.add("Sub", body.constant(1), whole))
    positions = body.add("Add", body.add("Reshape", positions, shape), further)
    positions = body.add("Expand", positions, body.joined(body.size(x, 0), steps))
    turned = _turned(body, positions, cos, sin, a["interleaved"], a["rotary_embedding_dim"])

    def of_steps() -> str:
        size = body.constant([-1]) if a["rotary_embedding_dim"] else _doubled(body, body.size(cos, -1))
        heads = body.add("Reshape", x, body.joined(body.constant([0, 0, a["num_heads"] or -1]), size))
        y = turned(body.add("Transpose", heads, perm=[0, 2, 1, 3]))
        return body.add("Reshape", body.add("Transpose", y, perm=[0, 2, 1, 3]), body.add("Shape", x))

    return [body.choose(body.add("Equal", body.rank(x), body.constant(3)), of_steps, lambda: turned(x))]


def _doubled(body: Body, x: str) -> str:
    """Add twice a value."""
    return body.add("Add", x, x)


def _turned(
    body: Body, positions: str, cos: str, sin: str, interleaved: int, rotated: int | None
) -> Callable[[str], str]:
    """A function that adds heads [batch, heads, steps, size] turned by the angles of their positions [batch, steps].

    rotated: How many numbers of a head are turned, the first ones; 0 for all of them, None for as many as the caches
    [positions, rotated / 2] have angles for.
    """
    # A negative position is an error, as one beyond the caches is.
    beyond = body.size(cos, 0)
    positions = body.add("Where", body.add("Less", positions, body.constant(0)), beyond, positions)
    half = body.size(cos, -1)
    sizes = [half, body.constant([2])] if interleaved else [body.constant([2]), half]
    pairs, axis = body.joined(body.constant([0, 0, 0]), *sizes), -1 if interleaved else -2
    sin = body.add("Reshape", sin, body.add("Shape", cos))
    of_axes = [body.add("Unsqueeze", body.add("Gather", x, positions), body.constant([1, axis])) for x in (cos, sin)]

    def whole(heads: str) -> str:
        x, y = body.several("Split", [body.add("Reshape", heads, pairs)], 2, axis=axis, num_outputs=2)
        cos, sin = of_axes
        real = body.add("Sub", body.add("Mul", x, cos), body.add("Mul", y, sin))
        imaginary = body.add("Add", body.add("Mul", x, sin), body.add("Mul", y, cos))
        return body.add("Reshape", body.add("Concat", real, imaginary, axis=axis), body.add("Shape", heads))

    def partly(heads: str) -> str:
        count = body.constant([rotated]) if rotated else _doubled(body, half)
        sizes = body.joined(count, body.add("Sub", body.size(heads, -1), count))
        first, rest = body.several("Split", [heads, sizes], 2, axis=-1)
        return body.add("Concat", whole(first), rest, axis=-1)

    def by_caches(heads: str) -> str:
        same = body.add("Equal", body.number(body.size(heads, -1)), body.number(_doubled(body, half)))
        return body.choose(same, lambda: whole(heads), lambda: partly(heads))

    return by_caches if rotated is None else partly if rotated else whole


def _relative_position_bias(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """T5's bias of distances, [1, heads, keys, keys], of a table [buckets, heads] that is stored column by column

    A short distance has a bucket of its own, longer ones up to max_distance share buckets by their logarithm. In both
    directions, keys behind the query have half of the buckets; in one, they count as distance 0.
    """
    table, query_length, key_length = map(body.input, range(3))
    if a["is_bidirectional"] not in (0, 1):
        raise UnsupportedError(f"attribute 'is_bidirectional' = {a['is_bidirectional']}, expected 0 or 1")
    zero, two = body.constant(0), body.constant(2)
    keys = body.counted(key_length)
    one_axis = body.constant([1])
    queries = body.add("Reshape", keys, body.add("Reshape", query_length, one_axis))  # as many as keys, or an error
    behind = body.add("Sub", keys, body.add("Unsqueeze", queries, one_axis))
    buckets = body.number(body.size(table, 0))
    if a["is_bidirectional"]:
        buckets = body.add("Div", buckets, two)
        distance = body.add("Abs", behind)
        first = body.add("Where", body.add("Greater", behind, zero), buckets, zero)
    else:
        distance = body.add("Max", body.add("Neg", behind), zero)
        first = zero
    short = body.add("Div", buckets, two)
    shared = body.add("Sub", buckets, short)

    def logarithm(x: str) -> str:
        """Add the logarithm of x to the number of short distances."""
        return body.add("Log", body.add("Div", *(body.add("Cast", value, to=DOUBLE) for value in (x, short))))

    whole = body.add("Div", logarithm(body.add("Max", distance, short)), logarithm(body.constant(a["max_distance"])))
    place = body.add("Mul", whole, body.add("Cast", shared, to=DOUBLE))
    place = body.add("Cast", body.add("Add", place, body.constant(ROUNDING, np.float64)), to=INT64)
    last = body.add("Sub", buckets, body.constant(1))
    long = body.add("Min", body.add("Add", short, place), last)
    bucket = body.add("Where", body.add("Less", distance, short), distance, long)
    columns = body.add("Reshape", table, body.joined(body.size(table, 1), body.size(table, 0)))
    biases = body.add("Gather", columns, body.add("Add", first, bucket), axis=1)
    return [body.add("Unsqueeze", biases, body.constant([0]))]


def _gated_relative_position_bias(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """(u * (r * eco_a - 1) + 2) * rel_pos, where u and r, sigmoid(query . weight + bias), are each the sum of a half"""
    query, query_bias, biases, weight, bias, eco = map(body.input, range(6))
    if body.input(6):
        raise UnsupportedError("input 'token_offset' is not supported")
    heads = body.add("Reshape", body.add("Add", query, query_bias), body.constant([0, 0, a["num_heads"], -1]))
    gates = body.add("MatMul", body.add("Transpose", heads, perm=[0, 2, 1, 3]), weight)
    halves = body.several("Split", [body.add("Add", gates, bias)], 2, axis=-1, num_outputs=2)
    u, r = (body.add("Sigmoid", body.add("ReduceSum", half, body.constant([-1]))) for half in halves)
    gate = body.add("Mul", u, body.add("Sub", body.add("Mul", r, eco), body.like(1, query)))
    return [body.add("Mul", body.add("Add", gate, body.like(2, query)), biases)]


OF_HEADS = {"num_heads": REQUIRED, "unidirectional": 0, "scale": 0.0, "mask_filter_value": -10000.0}
GROUPED = {"causal": 1, "do_rotary": 0, "k_quant_type": "NONE", "kv_cache_bit_width": 0, "kv_num_heads": REQUIRED}
GROUPED |= {"local_window_size": -1, "num_heads": REQUIRED, "qk_output": 0, "rotary_interleaved": 0, "scale": 0.0}
GROUPED |= {"sliding_window_cache": 0, "smooth_softmax": -1, "softcap": 0.0, "v_quant_type": "NONE"}
OF_ROTATION = {"interleaved": 0, "is_packed_batching": 0, "num_heads": 0, "rotary_embedding_dim": 0, "scale": 1.0}

FUSIONS = {
    "Attention": Fusion(
        _attention, (2, 6), OF_HEADS | {"qkv_hidden_sizes": [], "do_rotary": 0, "past_present_share_buffer": 0}, 2
    ),
    "GatedRelativePositionBias": Fusion(_gated_relative_position_bias, (6, 7), {"num_heads": REQUIRED}),
    "GroupQueryAttention": Fusion(_group_query_attention, (7, 17), GROUPED, 4),
    "MultiHeadAttention": Fusion(_multi_head_attention, (1, 10), OF_HEADS, 4),
    "RelativePositionBias": Fusion(_relative_position_bias, (3, 3), {"is_bidirectional": 0, "max_distance": REQUIRED}),
    "RotaryEmbedding": Fusion(_rotary_embedding, (4, 4), OF_ROTATION),
}
