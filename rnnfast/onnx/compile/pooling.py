"""MaxPool and AveragePool over one or two axes, on channel-last data as convolutions make it."""

import numpy as np

from rnnfast.onnx.ops.pooling import windows_of_node


def emit_pool(builder, node, inputs, outputs):
    """Emit a pool command; False for other types than float32, more than two axes, without elements, or if the indices
    of MaxPool are needed.
    """
    x = inputs[0]
    rank = len(x.shape) - 2
    if x.dtype != np.float32 or rank not in (1, 2) or 0 in x.shape or 0 in outputs[0].shape:
        return False
    if any(o is not None and o.uses for o in outputs[1:]):
        return False
    view = builder.view(x)
    windows = windows_of_node(view, node.attributes)
    view = (view if rank == 2 else view[:, :, None]).transpose(0, 2, 3, 1)
    if view.shape[3] > 1 and view.strides[3] != view.itemsize:
        view = builder.contiguous(view)
    axis_words = [(1, 1, 1, 1, 1, 0, 0, 1)] * (2 - rank)
    for axis, size in enumerate(windows.size):
        low, high = 0, size
        if node.attributes.get("count_include_pad"):
            low, high = -windows.begin[axis], size + windows.end[axis]
        axis_words.append(
            (
                size,
                windows.output[axis],
                windows.kernel[axis],
                windows.strides[axis],
                windows.dilations[axis],
                windows.begin[axis],
                low,
                high,
            )
        )
    out = builder.new((view.shape[0], axis_words[0][1], axis_words[1][1], view.shape[3]))
    builder.emit(
        "pool",
        view,
        out,
        node.op_type == "MaxPool",
        view.shape[0],
        view.shape[3],
        *(s // 4 for s in view.strides[:3]),
        *(s // 4 for s in out.strides[:3]),
        *axis_words[0],
        *axis_words[1],
        out=out,
        flops=out.size * axis_words[0][2] * axis_words[1][2],
    )
    result = out.transpose(0, 3, 1, 2)
    builder.set(outputs[0], result if rank == 2 else result[:, :, 0])
    return True


EMIT = {"MaxPool": emit_pool, "AveragePool": emit_pool}
