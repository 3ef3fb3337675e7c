"""Convolutions with constant weights, as products over rows that are windows of channel-last data.

A window's taps along the last axis lie behind each other in memory, so that rows of one product overlap; each position
along the other axis adds its own product. Outputs are channel-last too: what follows finds them so.
"""
import itertools

import numpy as np

from rnnfast import _kernels
from rnnfast.onnx.compile.dense import emit_product
from rnnfast.onnx.ops.windows import attribute, place

MAX_GROUPS = 16         # that have products of their own


def _two_axes(values, fill):
    """For a 1-d convolution: another axis in front."""
    return tuple(values) if len(values) == 2 else (fill, *values)


def _constants(inputs):
    """(weights, bias or None) as two-dimensional convolutions have them; None if they are not constant float32."""
    w = inputs[1].known
    bias = inputs[2] if len(inputs) > 2 else None
    if w is None or w.dtype != np.float32 or w.ndim not in (3, 4) or bias is not None and bias.known is None:
        return None
    return w.reshape(*w.shape[:2], *_two_axes(w.shape[2:], 1)), None if bias is None else bias.known


def _channel_last(b, operand, begin, end, kept):
    """[N, H, W, C] of the operand's first `kept` positions with zeros around them; C is contiguous, so are W and C."""
    view = b.view(operand)
    if view.ndim == 3:
        view = view[:, :, None]
    view = view.transpose(0, 2, 3, 1)[:, :kept[0], :kept[1]]
    channels = view.shape[3]
    dense = (channels == 1 or view.strides[3] == 4) and (view.shape[2] == 1 or view.strides[2] == 4 * channels)
    if not any(begin) and not any(end) and dense:
        return view
    padded = b.new((view.shape[0], begin[0] + kept[0] + end[0], begin[1] + kept[1] + end[1], channels))
    if any(begin) or any(end):
        _clear_around(b, padded, begin, kept)
    b.copy(padded[:, begin[0]:begin[0] + kept[0], begin[1]:begin[1] + kept[1]], view)
    return padded


def _clear_around(b, padded, begin, kept):
    zero = b.constant(np.zeros((), np.float32))
    inside = slice(begin[0], begin[0] + kept[0])
    for part in (padded[:, :begin[0]], padded[:, begin[0] + kept[0]:], padded[:, inside, :begin[1]],
                 padded[:, inside, begin[1] + kept[1]:]):
        if part.size:
            b.copy(part, np.broadcast_to(zero, part.shape))


def _windows(x, first, step, count, taps):
    """[N, count_h, count_w, taps * C]: rows of `taps` positions from `first` on, `step` apart."""
    n, _, _, channels = x.shape
    offset = first[0] * x.strides[1] + first[1] * x.strides[2]
    strides = (x.strides[0], step[0] * x.strides[1], step[1] * x.strides[2], 4)
    start = x[:, first[0]:, first[1]:]
    assert offset >= 0
    return np.ndarray((n, *count, taps * channels), np.float32, _bytes_of(start), 0, strides)


def _bytes_of(view):
    """A buffer that begins where the view does and ends with its memory."""
    base = view
    while isinstance(base.base, np.ndarray):
        base = base.base
    flat = base.reshape(-1).view(np.uint8)
    at = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return flat[at:]


def _matrices(run, key, make):
    """What is packed once for all plans of a node."""
    cache = run.__dict__.setdefault("of_plans", {})
    if key not in cache:
        cache[key] = make()
    return cache[key]


def _emit_taps(b, run, name, x, out, w, bias, taps, step, group):
    """out [N, H, W, M] = bias + sum over taps of windows . w; w [M, C / group, kh, kw].

    taps: (first position, the kernel's row, its columns in the order of memory) of each product.
    """
    outputs, channels = w.shape[0] // group, w.shape[1]
    for g in range(group):
        to = out[..., g * outputs:(g + 1) * outputs]
        source = x[..., g * channels:(g + 1) * channels]
        of_group = w[g * outputs:(g + 1) * outputs]
        for i, (first, row, columns) in enumerate(taps):
            def pack():
                weight = of_group[:, :, row, list(columns)].transpose(2, 1, 0).reshape(-1, outputs)
                own = bias[g * outputs:(g + 1) * outputs] if bias is not None and i == 0 else None
                return _kernels.Matrix(weight, own)
            matrix = _matrices(run, (name, g, row, tuple(columns), i == 0), pack)
            rows = _windows(source, first, step, to.shape[1:3], len(columns)) if group == 1 else source[
                :, first[0]:first[0] + (to.shape[1] - 1) * step[0] + 1:step[0],
                first[1]:first[1] + (to.shape[2] - 1) * step[1] + 1:step[1]]
            emit_product(b, matrix, to, rows, to if i else None)


def emit_conv(b, node, inputs, outputs):
    constants = _constants(inputs)
    if constants is None or b.target.blas or outputs[0].dtype != np.float32:
        return False
    w, bias = constants
    settings = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None} | node.attributes
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    if 0 in outputs[0].shape or 0 in w.shape:
        return False
    windows = place(inputs[0].shape[2:], inputs[1].shape[2:], **settings)
    rank = len(windows.size)
    step, dilation = _two_axes(windows.strides, 1), _two_axes(windows.dilations, 1)
    begin, size = _two_axes(windows.begin, 0), _two_axes(windows.size, 1)
    covered = _two_axes(tuple(windows.covered(axis) for axis in range(rank)), 1)
    kept = tuple(min(n, max(0, total - at)) for n, total, at in zip(size, covered, begin))
    end = tuple(total - at - n for total, at, n in zip(covered, begin, kept))
    depthwise = group > 1 and w.shape[1] == 1 and w.shape[0] == group
    if group > MAX_GROUPS and not depthwise or 0 in kept:
        return False
    x = _channel_last(b, inputs[0], begin, end, kept)
    out = b.new((x.shape[0], *_two_axes(windows.output, 1), w.shape[0]))
    kh, kw = w.shape[2:]
    if depthwise:
        _emit_depthwise(b, x, out, w, bias, step, dilation)
    else:
        joined = group == 1 and dilation[1] == 1
        taps = [((i * dilation[0], j * dilation[1]), i, columns) for i in range(kh)
                for j, columns in ([(0, range(kw))] if joined else [(j, (j,)) for j in range(kw)])]
        _emit_taps(b, node.run, "conv", x, out, w, bias, taps, step, group)
    result = out.transpose(0, 3, 1, 2)
    b.set(outputs[0], result if rank == 2 else result[:, :, 0])
    return True


def _emit_depthwise(b, x, out, w, bias, step, dilation):
    """Each channel with its own taps, all channels of a position at once."""
    taps, channels = w.shape[2] * w.shape[3], w.shape[0]
    weights = b.constant(np.ascontiguousarray(w.reshape(channels, taps).T))
    start = b.constant(np.zeros(channels, np.float32) if bias is None else np.ascontiguousarray(bias))
    offsets = [(i * dilation[0] * x.strides[1] + j * dilation[1] * x.strides[2]) // 4
               for i, j in itertools.product(range(w.shape[2]), range(w.shape[3]))]
    of_x = (x.strides[0], step[0] * x.strides[1], step[1] * x.strides[2])
    b.emit("depthwise", x, out, weights, start, channels, taps, *out.shape[:3], *(s // 4 for s in of_x),
           *(s // 4 for s in out.strides[:3]), *offsets, out=out, flops=2 * out.size * taps)


def emit_conv_transpose(b, node, inputs, outputs):
    """The outputs whose position has the same remainder by the stride are a convolution of the input by every
    stride-th tap."""
    constants = _constants(inputs)
    if constants is None or b.target.blas or outputs[0].dtype != np.float32:
        return False
    w, bias = constants
    a = node.attributes
    group, rank = a.get("group", 1), len(inputs[0].shape) - 2
    if group > MAX_GROUPS or 0 in inputs[0].shape or 0 in outputs[0].shape:
        return False
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "") or a.get("output_shape") is not None:
        return False
    step = _two_axes(attribute(a.get("strides"), 1, rank, 1, "strides"), 1)
    dilation = _two_axes(attribute(a.get("dilations"), 1, rank, 1, "dilations"), 1)
    pads = attribute(a.get("pads"), 0, 2 * rank, 0, "pads")
    begin = _two_axes(pads[:rank], 0)
    size, output, kernel = _two_axes(inputs[0].shape[2:], 1), _two_axes(outputs[0].shape[2:], 1), w.shape[2:]
    if any(d != 1 for d in dilation) or any(k < s for k, s in zip(kernel, step)):
        return False
    # w [C, M / group, kh, kw] as a convolution has it: [M, C / group, kh, kw]
    parts = np.split(w, group)
    w = np.concatenate([part.swapaxes(0, 1) for part in parts])
    # position o + begin = i * step + k: remainder r, quotient q, taps k = r + step * j with i = q - j
    before = [-(-k // s) - 1 for k, s in zip(kernel, step)]
    last = [(o - 1 + at) // s for o, at, s in zip(output, begin, step)]
    after = [max(0, q + 1 - n) for q, n in zip(last, size)]
    x = _channel_last(b, inputs[0], before, after, size)
    out = b.new((x.shape[0], *output, w.shape[0]))
    for rest in itertools.product(range(step[0]), range(step[1])):
        starts = [(r - at) % s for r, at, s in zip(rest, begin, step)]
        to = out[:, starts[0]::step[0], starts[1]::step[1]]
        if to.size == 0:
            continue
        first = [(o + at) // s for o, at, s in zip(starts, begin, step)]
        rows = range(rest[0], kernel[0], step[0])
        columns = list(range(rest[1], kernel[1], step[1]))
        taps = []
        for j, row in enumerate(rows):
            at = first[0] - j + before[0]
            if group == 1:
                taps.append(((at, first[1] - len(columns) + 1 + before[1]), row, columns[::-1]))
            else:
                taps += [((at, first[1] - i + before[1]), row, (column,)) for i, column in enumerate(columns)]
        _emit_taps(b, node.run, ("transposed", rest), x, to, w, bias, taps, (1, 1), group)
    result = out.transpose(0, 3, 1, 2)
    b.set(outputs[0], result if rank == 2 else result[:, :, 0])
    return True


EMIT = {"Conv": emit_conv, "ConvTranspose": emit_conv_transpose}
