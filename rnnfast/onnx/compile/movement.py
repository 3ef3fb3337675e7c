"""Operators that move data: views where NumPy has views, otherwise copy commands."""

import numpy as np

from rnnfast.onnx.compile.builder import memory_of

# Operators whose NumPy function returns a view of its first input, or a copy where no view can do.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand", "Identity", "Dropout")
RESHAPES = ("Reshape", "Flatten")


def emit_view(builder, node, inputs, outputs):
    """Set the views that the operator's NumPy function returns; a reshape emits a copy where it must.

    Return False if the other inputs are not constant, if another operator would copy, or if a tensor is empty.
    """
    others = [None if v is None else v.known for v in inputs[1:]]
    if any(v is not None and known is None for v, known in zip(inputs[1:], others)):
        return False
    if 0 in inputs[0].shape:
        return False
    view = builder.view(inputs[0])
    if node.op_type in RESHAPES:
        builder.set(outputs[0], builder.reshaped(view, outputs[0].shape))
        return True
    if node.op_type == "Expand":
        results = np.broadcast_to(view, outputs[0].shape)
    else:
        results = node.run(view, *others)
    results = results if isinstance(results, tuple) else (results,)
    if any(memory_of(result) is not memory_of(view) for result in results):
        return False
    for operand, result in zip(outputs, results):
        if operand is not None:
            builder.set(operand, result)
    return True


def emit_concat(builder, node, inputs, outputs):
    """Emit a copy command for each input."""
    axis = node.attributes["axis"]
    out = builder.new(outputs[0].shape, outputs[0].dtype)
    start = 0
    for operand in inputs:
        view = builder.view(operand)
        index = [slice(None)] * out.ndim
        index[axis] = slice(start, start + view.shape[axis])
        start += view.shape[axis]
        builder.copy(out[tuple(index)], view)
    builder.set(outputs[0], out)
    return True


def emit_stack(builder, node, inputs, outputs):
    """Emit the copies that put rows behind each other along an axis, or set a view of them; False without rows."""
    rows, initial = builder.view(inputs[0]), inputs[1] if len(inputs) > 1 else None
    if not len(rows):
        return False
    axis = node.attributes["axis"] % len(outputs[0].shape)
    stacked = np.moveaxis(rows[::-1] if node.attributes.get("backwards") else rows, 0, axis)
    if initial is None:
        builder.set(outputs[0], stacked)
        return True
    out = builder.new(outputs[0].shape, outputs[0].dtype)
    behind = (slice(None),) * axis
    start = initial.shape[axis]
    builder.copy(out[(*behind, slice(start, None))], stacked)
    builder.copy(out[(*behind, slice(0, start))], builder.view(initial))
    builder.set(outputs[0], out)
    return True


def emit_reverse_sequence(builder, node, inputs, outputs):
    """Set a view, or emit copies where rows have different lengths; False if the lengths are not known before a run."""
    lengths = inputs[1].known
    if lengths is None or 0 in inputs[0].shape:
        return False
    batch, time = (node.attributes.get(name, default) for name, default in (("batch_axis", 1), ("time_axis", 0)))
    x = builder.view(inputs[0])
    steps = x.shape[time]
    backwards = (slice(None),) * time + (slice(None, None, -1),)
    if np.all(lengths == steps):
        builder.set(outputs[0], x[backwards])
        return True
    out = builder.new(outputs[0].shape, outputs[0].dtype)
    for row, n in enumerate(lengths.tolist()):
        for part, turned in ((slice(0, n), backwards), (slice(n, steps), ())):
            place = [slice(None)] * x.ndim
            place[batch], place[time] = slice(row, row + 1), part
            builder.copy(out[tuple(place)], x[tuple(place)][turned])
    builder.set(outputs[0], out)
    return True


def emit_pad(builder, node, inputs, outputs):
    """Emit copies of the fill value and the input; or of the input, and then along each axis of its margins.

    False for other modes, negative pads, parameters that are not constant, without elements, and for scalars.
    """
    given = [None if v is None else v.known for v in inputs[1:]] + [None] * 3
    if any(v is not None and known is None for v, known in zip(inputs[1:], given)):
        return False
    mode, rank = node.attributes.get("mode", "constant"), len(inputs[0].shape)
    pads = node.attributes.get("pads", given[0])
    padded_axes = range(rank) if given[2] is None else [int(a) % rank for a in given[2]]
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(padded_axes):
        begin[axis], end[axis] = int(pads[i]), int(pads[len(padded_axes) + i])
    if rank == 0 or min(begin + end) < 0 or mode not in ("constant", "reflect", "edge") or 0 in inputs[0].shape:
        return False
    size = inputs[0].shape
    if mode == "reflect" and any(max(pair) >= n for *pair, n in zip(begin, end, size)):
        return False
    out = builder.new(outputs[0].shape, outputs[0].dtype)
    if mode == "constant":
        value = node.attributes.get("value", 0.0) if given[1] is None else given[1]
        fill = builder.constant(np.array(value, out.dtype).reshape(()))
        inside = tuple(slice(at, at + n) for at, n in zip(begin, size))
        if any(begin) or any(end):
            builder.copy(out, fill)
        builder.copy(out[inside], builder.view(inputs[0]))
    else:
        done = [slice(at, at + n) for at, n in zip(begin, size)]
        builder.copy(out[tuple(done)], builder.view(inputs[0]))
        for axis in range(rank):
            at, n = begin[axis], size[axis]
            if mode == "reflect":
                sides = (
                    (slice(0, at), slice(at + 1, 2 * at + 1)),
                    (slice(at + n, None), slice(at + n - 1 - end[axis], at + n - 1)),
                )
                flip = (slice(None),) * axis + (slice(None, None, -1),)
            else:
                sides = (slice(0, at), slice(at, at + 1)), (slice(at + n, None), slice(at + n - 1, at + n))
                flip = ()
            for to, source in sides:
                outside = out[(*done[:axis], to, *done[axis + 1 :])]
                if outside.size:
                    builder.copy(outside, out[(*done[:axis], source, *done[axis + 1 :])][flip])
            done[axis] = slice(None)
    builder.set(outputs[0], out)
    return True


def emit_blocks(builder, node, inputs, outputs):
    """Set the reshaped view of DepthToSpace or SpaceToDepth, for which a copy is emitted; False without elements."""
    if 0 in inputs[0].shape:
        return False
    x, b, by_depth = builder.view(inputs[0]), node.attributes["blocksize"], node.attributes.get("mode", "DCR") == "DCR"
    batch, channels, height, width = x.shape
    if node.op_type == "DepthToSpace":
        channels //= b * b
        first = (b, b, channels) if by_depth else (channels, b, b)
        blocks = builder.reshaped(x, (batch, *first, height, width))
        blocks = blocks.transpose((0, 3, 4, 1, 5, 2) if by_depth else (0, 1, 4, 2, 5, 3))
    else:
        blocks = builder.reshaped(x, (batch, channels, height // b, b, width // b, b))
        blocks = blocks.transpose((0, 3, 5, 1, 2, 4) if by_depth else (0, 1, 3, 5, 2, 4))
    builder.set(outputs[0], builder.reshaped(blocks, outputs[0].shape))
    return True


EMIT = dict.fromkeys(VIEWS, emit_view) | {
    "Concat": emit_concat,
    "DepthToSpace": emit_blocks,
    "Pad": emit_pad,
    "ReverseSequence": emit_reverse_sequence,
    "SpaceToDepth": emit_blocks,
    "Stack": emit_stack,
}
