"""Operators that move data: views where NumPy's are views, else copies."""

import numpy as np

from rnnfast.onnx.budget import owner

# Those whose NumPy function makes a view of its first input, or a copy of one where that cannot be.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand", "Identity")
COPIED = ("Reshape", "Flatten")


def emit_view(b, node, inputs, outputs):
    """The operator's own function on views; what it copies is made contiguous first."""
    others = [None if v is None else v.known for v in inputs[1:]]
    if any(v is not None and known is None for v, known in zip(inputs[1:], others)):
        return False
    if 0 in inputs[0].shape:
        return False
    view = b.view(inputs[0])
    if node.op_type in COPIED:
        b.set(outputs[0], b.reshaped(view, outputs[0].shape))
        return True
    if node.op_type == "Expand":
        results = np.broadcast_to(view, outputs[0].shape)
    else:
        results = node.run(view, *others)
    results = results if isinstance(results, tuple) else (results,)
    if any(owner(result) is not owner(view) for result in results):
        return False
    for operand, result in zip(outputs, results):
        if operand is not None:
            b.set(operand, result)
    return True


def emit_concat(b, node, inputs, outputs):
    axis = node.attributes["axis"]
    out = b.new(outputs[0].shape, outputs[0].dtype)
    at = 0
    for operand in inputs:
        view = b.view(operand)
        index = [slice(None)] * out.ndim
        index[axis] = slice(at, at + view.shape[axis])
        at += view.shape[axis]
        b.copy(out[tuple(index)], view)
    b.set(outputs[0], out)
    return True


def emit_pad(b, node, inputs, outputs):
    """The inside first, then along each axis what is outside of it, from what is there by then."""
    given = [None if v is None else v.known for v in inputs[1:]] + [None] * 3
    if any(v is not None and known is None for v, known in zip(inputs[1:], given)):
        return False
    mode, rank = node.attributes.get("mode", "constant"), len(inputs[0].shape)
    pads = node.attributes.get("pads", given[0])
    chosen = range(rank) if given[2] is None else [int(a) % rank for a in given[2]]
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(chosen):
        begin[axis], end[axis] = int(pads[i]), int(pads[len(chosen) + i])
    if min(begin + end) < 0 or mode not in ("constant", "reflect", "edge") or 0 in inputs[0].shape:
        return False
    size = inputs[0].shape
    if mode == "reflect" and any(max(pair) >= n for *pair, n in zip(begin, end, size)):
        return False
    out = b.new(outputs[0].shape, outputs[0].dtype)
    if mode == "constant":
        value = node.attributes.get("value", 0.0) if given[1] is None else given[1]
        fill = b.constant(np.array(value, out.dtype).reshape(()))
        inside = tuple(slice(at, at + n) for at, n in zip(begin, size))
        if any(begin) or any(end):
            b.copy(out, fill)
        b.copy(out[inside], b.view(inputs[0]))
    else:
        done = [slice(at, at + n) for at, n in zip(begin, size)]
        b.copy(out[tuple(done)], b.view(inputs[0]))
        for axis in range(rank):
            at, n = begin[axis], size[axis]
            if mode == "reflect":
                sides = (
                    (slice(0, at), slice(at + 1, 2 * at + 1)),
                    (slice(at + n, None), slice(at + n - 1 - end[axis], at + n - 1)),
                )
                turned = (slice(None),) * axis + (slice(None, None, -1),)
            else:
                sides = (slice(0, at), slice(at, at + 1)), (slice(at + n, None), slice(at + n - 1, at + n))
                turned = ()
            for to, source in sides:
                outside = out[(*done[:axis], to, *done[axis + 1 :])]
                if outside.size:
                    b.copy(outside, out[(*done[:axis], source, *done[axis + 1 :])][turned])
            done[axis] = slice(None)
    b.set(outputs[0], out)
    return True


EMIT = dict.fromkeys(VIEWS, emit_view) | {"Concat": emit_concat, "Pad": emit_pad}
