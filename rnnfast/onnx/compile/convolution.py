"""Convolutions with constant weights, as matrix products whose rows are windows of channel-last data.

The taps of a window along the last axis are adjacent in memory and form a run, and the rows overlap. The taps along
the other axis are further runs of the same sum, which are left out where they lie outside of the input. Outputs are
channel-last too, so that the next operator finds its input in that layout.
"""

import itertools
from typing import NamedTuple

import numpy as np

from rnnfast.native import _kernels
from rnnfast.native.weight_types import is_held
from rnnfast.onnx.compile.builder import strided
from rnnfast.onnx.compile.dense import emit_product
from rnnfast.onnx.compile.expressions import ADD, SUB, emit_views
from rnnfast.onnx.ops.convolution import transposed_windows_for
from rnnfast.onnx.ops.windows import windows_for

MAX_GROUPS = 64  # each group has a product of its own
MAX_SHORT = 16  # a padded 1-d convolution of at most so many outputs skips its padding instead of writing zeros
MIN_MIRRORED = 32  # kernels that are their own mirror images save half the products from so many taps on


def two_axes(values, fill):
    """Return values of two axes; those of a 1-d convolution get another axis in front."""
    return tuple(values) if len(values) == 2 else (fill, *values)


def _constant_weights(inputs):
    """Return (weights, bias or None) as those of a 2-d convolution; None if they are not constant float32."""
    w = inputs[1].known
    bias = inputs[2] if len(inputs) > 2 else None
    if w is None or w.dtype != np.float32 or w.ndim not in (3, 4) or bias is not None and bias.known is None:
        return None
    return w.reshape(*w.shape[:2], *two_axes(w.shape[2:], 1)), None if bias is None else bias.known


class _Run(NamedTuple):
    """Taps whose inputs are adjacent in memory: `columns` of the kernel's row `row`, in that order."""

    line: int  # the input line that the first output reads
    position: int  # of the first tap's input along the last axis
    row: int
    columns: tuple


def _channel_last(builder, operand, begin, end, repeat=1):
    """Return the operand as [N, H, begin + W + end, C * repeat], padded by zeros along W, with W and C contiguous.

    repeat: how often each channel stands there. A padded copy is emitted where there is no such view.
    """
    if operand.view is None and operand.expression is not None and repeat == 1 and (begin or end):
        n, channels, *size = operand.shape
        padded, inside = _padded(builder, (n, *two_axes(size, 1), channels), begin, end)
        view = inside.transpose(0, 3, 1, 2)
        view = view if len(size) == 2 else view[:, :, 0]
        if operand.expression.is_fast_in(view):
            builder.set(operand, operand.expression.compute(builder, view))
            _clear_ends(builder, padded, begin, end)
            return padded
    view = builder.view(operand)
    if view.ndim == 3:
        view = view[:, :, None]
    view = view.transpose(0, 2, 3, 1)
    channels = view.shape[3]
    dense = (channels == 1 or view.strides[3] == 4) and (view.shape[2] == 1 or view.strides[2] == 4 * channels)
    if not begin and not end and dense and repeat == 1:
        return view
    padded, inside = _padded(builder, (*view.shape[:3], channels * repeat), begin, end)
    source = np.broadcast_to(view[..., None], (*view.shape, repeat))
    _clear_ends(builder, padded, begin, end)
    builder.copy(strided(inside, source.shape, (*inside.strides[:3], 4 * repeat, 4)), source)
    return padded


def _padded(builder, shape, begin, end):
    """Return (a new view of this shape with room before and after W, its part without the room)."""
    padded = builder.new((*shape[:2], begin + shape[2] + end, shape[3]))
    return padded, padded[:, :, begin : begin + shape[2]]


def _clear_ends(builder, padded, begin, end):
    """Emit copies of zero to the padding along W."""
    zero = builder.constant(np.zeros((), np.float32))
    for part in (padded[:, :, :begin], padded[:, :, padded.shape[2] - end :]):
        if part.size:
            builder.copy(part, zero)


def _axis_as_lines(view):
    """Return a view [N, 1, W, C] as [1, W, N, C]: the positions of a 1-d convolution become lines."""
    return view.transpose(1, 2, 0, 3)


def _mirrored(w):
    """Return (first, even) if all kernels of a 1-d convolution of one channel are their own mirror images, else None.

    The symmetry is that of the taps from `first` on: even for the outputs below `even`, odd for the rest. Short-time
    Fourier transforms by windowed cosines and sines have it.
    """
    if w.shape[1:3] != (1, 1) or w.shape[3] < MIN_MIRRORED:
        return None
    for first in (0, 1):
        taps = w[:, 0, 0, first:]
        same, opposite = ((taps == sign * taps[:, ::-1]).all(axis=1) for sign in (1, -1))
        even = len(w) if same.all() else int(np.argmin(same))
        if even and opposite[even:].all():
            return first, even
    return None


def cached(run, key, sources, make):
    """Return make(), computed once for all plans of a node as long as the arrays `sources` are the same."""
    cache = run.__dict__.setdefault("plan_cache", {})
    found = cache.get(key)
    if found is None or any(old is not new for old, new in zip(found[0], sources)):
        found = cache[key] = sources, make()
    return found[1]


class _ConvolutionEmitter:
    """Emits the commands of one convolution by w [M, C / group, kh, kw] and bias [M], and can scale its outputs later.

    sources: the constant arrays of the node, the key of what is packed from them.
    """

    def __init__(self, builder, node, sources, w, bias, group):
        self.builder, self.node, self.sources, self.w, self.bias, self.group = builder, node, sources, w, bias, group
        self.depthwise = group > 1 and w.shape[1] == 1
        self.commands = []  # (index of a command, key, function(w, bias) that packs its weights)

    def emit(self, key, x, out, step, runs):
        """Emit out [N, H, W, M] = bias + sum over runs of x . w.

        key: distinguishes packed weights of one node. step: the positions in x between outputs, along both axes.
        """
        if self.depthwise:
            self._emit_depthwise(key, x, out, step, runs)
            return
        inputs, outputs = self.w.shape[1], out.shape[3] // self.group
        for g in range(self.group):

            def pack(w, bias, g=g):
                part = slice(g * outputs, (g + 1) * outputs)
                rows = [w[part, :, r.row, list(r.columns)].transpose(2, 1, 0).reshape(-1, outputs) for r in runs]
                rows = np.concatenate(rows) if rows else np.empty((0, outputs), np.float32)
                return self._matrix(rows, None if bias is None else bias[part])

            self._emit_runs(
                (key, g),
                pack,
                x[..., g * inputs : (g + 1) * inputs],
                out[..., g * outputs : (g + 1) * outputs],
                step,
                runs,
            )

    def _matrix(self, rows, bias):
        """Return the packed matrix of weights [K, N] in the node's type; in float32 if it has none, or if a scale that
        was folded into the weights has made other values of them.
        """
        weight_type = self.node.weight_type
        if weight_type is not None and not is_held(rows, weight_type):
            weight_type = None
        return _kernels.Matrix(rows, bias, weight_type=weight_type, expanded=True)

    def _emit_runs(self, key, pack, x, out, step, runs):
        """Emit a product command if one run inside of the input is all, otherwise a convolution command."""
        matrix = cached(self.node.run, key, self.sources, lambda: pack(self.w, self.bias))
        self.commands.append((len(self.builder.commands), key, pack))
        last = (out.shape[1] - 1) * step[0]
        if len(runs) == 1 and 0 <= runs[0].line and last + runs[0].line < x.shape[1]:
            rows = x[:, runs[0].line :, runs[0].position :]
            strides = (x.strides[0], step[0] * x.strides[1], step[1] * x.strides[2], 4)
            emit_product(self.builder, matrix, out, strided(rows, (*out.shape[:3], matrix.K), strides))
            return
        total = out.size // out.shape[3]
        self.builder.keep.append(matrix)
        self.builder.emit(
            "convolution",
            matrix.address,
            x,
            out,
            matrix.N,
            *self._layout_words(x, out, step),
            self.builder.computed(matrix.cost, total),
            matrix.K // max(1, len(runs)),
            len(runs),
            *self._run_words(x, runs),
            out=out,
            weights=matrix.nbytes,
            flops=2 * total * matrix.K * matrix.N,
        )

    def _emit_depthwise(self, key, x, out, step, runs):
        """Emit a depthwise command, whose taps are the runs' columns one by one."""
        taps = [_Run(r.line, r.position + i, r.row, (column,)) for r in runs for i, column in enumerate(r.columns)]

        def pack(w, bias):
            rows = [w[:, 0, r.row, r.columns[0]] for r in taps]
            return (
                np.array(rows, np.float32).reshape(len(taps), len(w)),
                np.zeros(len(w), np.float32) if bias is None else np.array(bias, np.float32),
            )

        packed = cached(self.node.run, key, self.sources, lambda: pack(self.w, self.bias))
        weights, start = map(self.builder.constant, packed)
        self.commands.append((len(self.builder.commands), key, pack))
        self.builder.emit(
            "depthwise",
            x,
            out,
            weights,
            start,
            out.shape[3],
            len(taps),
            *self._layout_words(x, out, step),
            *self._run_words(x, taps),
            out=out,
            flops=2 * out.size * len(taps),
        )

    def emit_mirrored(self, x, out, step, first, even):
        """Emit out [N, W, M] of x [N, L, 1], where `_mirrored` returned `first` and `even`.

        Inputs whose taps have the same weight, or opposite weights, are added or subtracted before they are multiplied.
        Silero VAD: one stream takes 0.86 of the time, 256 streams 0.81.
        """
        taps = self.w.shape[3]
        n, single = (taps - first) // 2, [*range(first), *([(taps + first) // 2] if (taps - first) % 2 else [])]
        strides = (x.strides[0], step * x.strides[1], 4)
        windows = strided(x, (*out.shape[:2], taps), strides)
        front, back = windows[..., first : first + n], windows[..., : taps - n - 1 : -1]
        folded = self.builder.new(windows.shape)  # the sums, the taps without a partner, the differences
        emit_views(self.builder, ADD, folded[..., :n], front, back)
        for i, tap in enumerate(single):
            self.builder.copy(folded[..., n + i : n + i + 1], windows[..., tap : tap + 1])
        if even < out.shape[2]:
            emit_views(self.builder, SUB, folded[..., n + len(single) :], front, back)
        pairs = list(range(first, first + n))
        for key, order, rows, outputs in (
            ("even", pairs + single, folded[..., : n + len(single)], slice(even)),
            ("odd", single + pairs, folded[..., n:], slice(even, None)),
        ):

            def pack(w, bias, order=order, outputs=outputs):
                return self._matrix(w[outputs, 0, 0][:, order].T, None if bias is None else bias[outputs])

            if out[..., outputs].size:
                matrix = cached(self.node.run, key, self.sources, lambda pack=pack: pack(self.w, self.bias))
                self.commands.append((len(self.builder.commands), key, pack))
                emit_product(self.builder, matrix, out[..., outputs], rows)

    def _layout_words(self, x, out, step):
        """Return the words that describe x and out: shape, strides in floats, lines between outputs, lines of x."""
        strides = (x.strides[0], step[0] * x.strides[1], step[1] * x.strides[2], *out.strides[:3])
        return (*out.shape[:3], *(s // 4 for s in strides), step[0], x.shape[1])

    def _run_words(self, x, runs):
        """Return the words of the runs: for each its offset in floats and its line."""
        return [word for r in runs for word in ((r.line * x.strides[1] + r.position * x.strides[2]) // 4, r.line)]

    def fold(self, scale, shift):
        """Change the commands so that the outputs are multiplied by scale [M], and shift [M] is added."""
        w = self.w * scale.reshape(-1, 1, 1, 1)
        bias = shift if self.bias is None else self.bias * scale + shift
        for index, key, pack in self.commands:
            name, words = self.builder.commands[index]
            packed = cached(
                self.node.run, (key, "folded"), (*self.sources, scale, shift), lambda pack=pack: pack(w, bias)
            )
            if self.depthwise:
                words = (*words[:2], *map(self.builder.constant, packed), *words[4:])
            else:
                self.builder.keep.append(packed)
                words = (packed.address, *words[1:])
            self.builder.commands[index] = name, words


def _set_output(builder, emitter, operand, out):
    """Give the operand its view of out [N, H, W, M], and tell the builder what later steps may merge into it."""
    result = out.transpose(0, 3, 1, 2)
    builder.set(operand, result if len(operand.shape) == 4 else result[:, :, 0])
    builder.folds[id(operand)] = emitter.fold
    if builder.commands[-1][0] == "convolution" and len(emitter.commands) == 1 and len(operand.shape) == 4:
        builder.last_convolution = operand, out, len(builder.commands) - 1


def emit_conv(builder, node, inputs, outputs):
    """Emit a convolution.

    Return False if its weights are not constant float32, if BLAS multiplies, if there are too many groups, or if a
    tensor is empty.
    """
    constants = _constant_weights(inputs)
    if constants is None or outputs[0].dtype != np.float32:
        return False
    sources = [v.known for v in inputs[1:] if v is not None]
    return convolve(builder, node, sources, *constants, lambda: inputs[0], inputs[0].shape, outputs[0])


def convolve(builder, node, sources, w, bias, operand, shape, output):
    """Emit the convolution of an operand of this shape by float32 weights, as the attributes of the node say.

    sources: the constant arrays from which the weights w [M, C / group, kh, kw] and the bias come. operand: called for
    the operand, once it is needed. Return False if BLAS multiplies, if there are too many groups, or if a tensor is
    empty.
    """
    settings = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None} | node.attributes
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    emitter = _ConvolutionEmitter(builder, node, sources, w, bias, group)
    if builder.target.blas or 0 in shape or 0 in output.shape or 0 in w.shape:
        return False
    if group > MAX_GROUPS and not emitter.depthwise:
        return False
    windows = windows_for(shape[2:], w.shape[4 - len(shape[2:]) :], **settings)
    step, dilation = two_axes(windows.strides, 1), two_axes(windows.dilations, 1)
    begin = two_axes(windows.begin, 0)
    end = max(0, windows.covered(-1) - begin[1] - windows.size[-1])
    one_axis = len(windows.size) == 1
    short = one_axis and (begin[1] or end) and windows.output[0] <= MAX_SHORT
    padding = (0, 0) if short else (begin[1], end)
    x = _channel_last(builder, operand(), *padding, w.shape[0] // group if emitter.depthwise else 1)
    out = builder.new((x.shape[0], *two_axes(windows.output, 1), w.shape[0]))
    kh, kw = w.shape[2:]
    joined = kw == 1 or dilation[1] == 1 and group == 1
    if short:
        emitter.emit(
            "lines",
            _axis_as_lines(x),
            _axis_as_lines(out),
            (step[1], 1),
            [_Run(i * dilation[1] - begin[1], 0, 0, (i,)) for i in range(kw)],
        )
    elif one_axis and joined and (mirrored := _mirrored(w)) is not None:
        emitter.emit_mirrored(x[:, 0], out[:, 0], step[1], *mirrored)
    else:
        columns = [tuple(range(kw))] if joined else [(j,) for j in range(kw)]
        runs = [_Run(i * dilation[0] - begin[0], taps[0] * dilation[1], i, taps) for i in range(kh) for taps in columns]
        emitter.emit("conv", x, out, step, runs)
    _set_output(builder, emitter, output, out)
    return True


def emit_conv_transpose(builder, node, inputs, outputs):
    """Emit a transposed convolution: for each remainder of the output positions modulo the strides, one convolution of
    the input by some of the taps. False for the same reasons as `emit_conv`.
    """
    constants = _constant_weights(inputs)
    if constants is None or builder.target.blas or outputs[0].dtype != np.float32:
        return False
    w, bias = constants
    settings = dict(node.attributes)
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    if 0 in inputs[0].shape or 0 in outputs[0].shape or 0 in w.shape:
        return False
    # From [C, M / group, kh, kw] to the layout of a convolution: [M, C / group, kh, kw]
    w = np.concatenate([part.swapaxes(0, 1) for part in np.split(w, group)])
    emitter = _ConvolutionEmitter(builder, node, [v.known for v in inputs[1:] if v is not None], w, bias, group)
    if group > MAX_GROUPS and not emitter.depthwise:
        return False
    strides, dilations, begin, output = transposed_windows_for(inputs[0].shape[2:], inputs[1].shape[2:], **settings)
    step, dilation, begin = two_axes(strides, 1), two_axes(dilations, 1), two_axes(begin, 0)
    size, output = two_axes(inputs[0].shape[2:], 1), two_axes(output, 1)
    remainders = [
        [_remainder(*settings_of_axis, r) for r in range(settings_of_axis[0])]
        for settings_of_axis in zip(step, w.shape[2:], dilation, begin, output)
    ]
    reach = [
        (first - max(taps.values()), first + count - 1 - min(taps.values()))
        for _, count, first, taps in remainders[1]
        if count and taps
    ]
    before = max([0, *(-low for low, _ in reach)])
    after = max([0, *(high + 1 - size[1] for _, high in reach)])
    x = _channel_last(builder, inputs[0], before, after, w.shape[0] // group if emitter.depthwise else 1)
    out = builder.new((x.shape[0], *output, w.shape[0]))
    for r, (remainder_h, remainder_w) in enumerate(itertools.product(*remainders)):
        (start_h, count_h, first_h, rows), (start_w, count_w, first_w, taps) = remainder_h, remainder_w
        if not count_h or not count_w:
            continue
        columns = sorted(taps, key=lambda k: -taps[k])  # by their positions in memory
        if columns and group == 1 and taps[columns[0]] - taps[columns[-1]] == len(columns) - 1:
            columns = [tuple(columns)]
        else:
            columns = [(k,) for k in columns]
        runs = [_Run(first_h - rows[i], first_w - taps[run[0]] + before, i, run) for i in rows for run in columns]
        emitter.emit(("transposed", r), x, out[:, start_h :: step[0], start_w :: step[1]], (1, 1), runs)
    _set_output(builder, emitter, outputs[0], out)
    return True


def _remainder(stride, kernel, dilation, begin, output, r):
    """Describe the outputs o for which o + begin = q * stride + r with an integer q: those with the remainder r.

    A tap of the kernel reads their input q - distance, where the distance depends on the tap alone.

    Returns (the first such output, the number of them, q of the first one, {tap: distance}).
    """
    start = (r - begin) % stride
    taps = {k: (k * dilation - r) // stride for k in range(kernel) if (k * dilation - r) % stride == 0}
    return start, len(range(start, output, stride)), (start + begin) // stride, taps


def emit_batch_normalization(builder, node, inputs, outputs):
    """Fold a constant BatchNormalization into the convolution before it, if nothing else reads that; else False."""
    constants = [v.known for v in inputs[1:]]
    settings = {"epsilon": 1e-5, "training_mode": 0, "spatial": 1} | node.attributes
    if id(inputs[0]) not in builder.folds or inputs[0].uses != 1 or any(v is None for v in constants):
        return False
    if any(o is not None for o in outputs[1:]) or settings["training_mode"] or not settings["spatial"]:
        return False
    scale, shift, mean, var = (v.astype(np.float64) for v in constants)

    def factors():
        factor = scale / np.sqrt(var + settings["epsilon"])
        return factor.astype(np.float32), (shift - mean * factor).astype(np.float32)

    builder.folds[id(inputs[0])](*cached(node.run, "factors", constants, factors))
    builder.set(outputs[0], builder.view(inputs[0])[...])
    if builder.last_convolution is not None and builder.last_convolution[0] is inputs[0]:
        builder.last_convolution = outputs[0], *builder.last_convolution[1:]
    return True


EMIT = {"Conv": emit_conv, "ConvTranspose": emit_conv_transpose, "BatchNormalization": emit_batch_normalization}
