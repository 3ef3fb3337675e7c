"""Resize and Upsample: gather commands, and weighted sums of what they gather."""

import numpy as np

from rnnfast.onnx.compile.expressions import ADD, MUL, Instruction, written
from rnnfast.onnx.compile.indexing import emit_constant_gather
from rnnfast.onnx.ops import image

MOST_TAPS = 8  # inputs that are summed for an output along one axis


def emit_resize(builder, node, inputs, outputs):
    """Emit the commands of one axis after the other; False if scales or sizes are not constant, for crops, for weighted
    sums of many taps or of other types than float32, or without elements.
    """
    others = [None if o is None else o.known for o in inputs[1:]]
    missing = any(o is not None and known is None for o, known in zip(inputs[1:], others))
    if missing or 0 in inputs[0].shape or 0 in outputs[0].shape:
        return False
    targets, scales, rois, settings = image.RESAMPLINGS[node.function](inputs[0], *others, **node.attributes)
    if settings.coordinates == "tf_crop_and_resize":
        return False
    resized = [i for i, n in enumerate(inputs[0].shape) if targets[i] != n or scales[i] != 1]
    taps = {i: image.taps_along(inputs[0].shape[i], targets[i], scales[i], rois[i], settings)[1:] for i in resized}
    for index, weight in taps.values():
        if weight is not None and (inputs[0].dtype != np.float32 or index.shape[1] > MOST_TAPS):
            return False
    view = builder.view(inputs[0])
    for axis, (index, weight) in taps.items():
        view = _resized(builder, view, axis, index, weight)
    builder.set(outputs[0], view)
    return True


def _resized(builder, view, axis, index, weight):
    """Return the view of an array resized along one axis; see `image._taps` for index and weight."""
    if weight is None:
        return emit_constant_gather(builder, view, index[:, 0], axis)
    total = None
    for tap in range(index.shape[1]):
        factor = builder.constant(weight[:, tap].astype(np.float32).reshape(-1, *(1,) * (view.ndim - axis - 1)))
        product = Instruction(MUL, (emit_constant_gather(builder, view, index[:, tap], axis), factor))
        total = product if total is None else Instruction(ADD, (total, product))
    return written(builder, total, (*view.shape[:axis], len(index), *view.shape[axis + 1 :]))


EMIT = {"Resize": emit_resize, "Upsample": emit_resize}
