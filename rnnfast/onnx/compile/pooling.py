"""MaxPool and AveragePool over one or two axes, on channel-last data as convolutions make it."""

import numpy as np

from rnnfast.onnx.ops.pooling import windows_of_node


def emit_pool(b, node, inputs, outputs):
    x = inputs[0]
    rank = len(x.shape) - 2
    if x.dtype != np.float32 or rank not in (1, 2) or 0 in outputs[0].shape:
        return False
    if any(o is not None and o.uses for o in outputs[1:]):
        return False
    view = b.view(x)
    windows = windows_of_node(view, node.attributes)
    view = (view if rank == 2 else view[:, :, None]).transpose(0, 2, 3, 1)
    if view.shape[3] > 1 and view.strides[3] != view.itemsize:
        view = b.contiguous(view)
    of = [(1, 1, 1, 1, 1, 0, 0, 1)] * (2 - rank)
    for axis, size in enumerate(windows.size):
        low, high = 0, size
        if node.attributes.get("count_include_pad"):
            low, high = -windows.begin[axis], size + windows.end[axis]
        of.append(
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
    out = b.new((view.shape[0], of[0][1], of[1][1], view.shape[3]))
    b.emit(
        "pool",
        view,
        out,
        node.op_type == "MaxPool",
        view.shape[0],
        view.shape[3],
        *(s // 4 for s in view.strides[:3]),
        *(s // 4 for s in out.strides[:3]),
        *of[0],
        *of[1],
        out=out,
        flops=out.size * of[0][2] * of[1][2],
    )
    result = out.transpose(0, 3, 1, 2)
    b.set(outputs[0], result if rank == 2 else result[:, :, 0])
    return True


EMIT = {"MaxPool": emit_pool, "AveragePool": emit_pool}
