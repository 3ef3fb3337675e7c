"""Convolutions with constant weights, as products over rows that are windows of channel-last data.

A window's taps along the last axis lie behind each other in memory, so that rows overlap: a run. Those along the other
axis are further runs of the same chain, left out where they lie outside of the input. Outputs are channel-last too:
what follows finds them so.
"""

import itertools
from typing import NamedTuple

import numpy as np

from rnnfast.native import _kernels
from rnnfast.native._programs import address
from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile import expressions
from rnnfast.onnx.compile.dense import emit_product
from rnnfast.onnx.ops.convolution import transposed_windows_for
from rnnfast.onnx.ops.windows import windows_for

MAX_GROUPS = 64  # that have products of their own
SHORT = 16  # outputs of a padded 1-d convolution up to which its padding is left out, not written
MIRRORED = 32  # taps from which on kernels that are their own mirror images are worth half the products


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


class _Run(NamedTuple):
    """Taps of a kernel whose inputs lie behind each other: `columns` of its row `row`, in that order."""

    line: int  # of the first output's input
    position: int  # along the last axis, of the first tap
    row: int
    columns: tuple


def _channel_last(b, operand, begin, end, repeat=1):
    """[N, H, W, C * repeat] of the operand with zeros before and behind W; C is contiguous, so are W and C."""
    if operand.view is None and operand.expression is not None and repeat == 1 and (begin or end):
        n, channels, *size = operand.shape
        padded, inside = _padded(b, (n, *_two_axes(size, 1), channels), begin, end)
        view = inside.transpose(0, 3, 1, 2)
        b.set(operand, operand.expression.compute(b, view if len(size) == 2 else view[:, :, 0]))
        _clear_ends(b, padded, begin, end)
        return padded
    view = b.view(operand)
    if view.ndim == 3:
        view = view[:, :, None]
    view = view.transpose(0, 2, 3, 1)
    channels = view.shape[3]
    dense = (channels == 1 or view.strides[3] == 4) and (view.shape[2] == 1 or view.strides[2] == 4 * channels)
    if not begin and not end and dense and repeat == 1:
        return view
    padded, inside = _padded(b, (*view.shape[:3], channels * repeat), begin, end)
    source = np.broadcast_to(view[..., None], (*view.shape, repeat))
    _clear_ends(b, padded, begin, end)
    b.copy(np.ndarray(source.shape, np.float32, _bytes_of(inside), 0, (*inside.strides[:3], 4 * repeat, 4)), source)
    return padded


def _padded(b, shape, begin, end):
    """(view with room along W, its inside)"""
    padded = b.new((*shape[:2], begin + shape[2] + end, shape[3]))
    return padded, padded[:, :, begin : begin + shape[2]]


def _clear_ends(b, padded, begin, end):
    zero = b.constant(np.zeros((), np.float32))
    for part in (padded[:, :, :begin], padded[:, :, padded.shape[2] - end :]):
        if part.size:
            b.copy(part, zero)


def _lines(view):
    """[N, 1, W, C] as [1, W, N, C]"""
    return view.transpose(1, 2, 0, 3)


def _mirrored(w):
    """(first, even) if all kernels of a 1-d convolution of one channel are, from the tap `first` on, their own mirror
    images, of the same sign for the outputs below `even` and of the other one for the rest; else None. Short-time
    Fourier transforms by windowed cosines and sines are."""
    if w.shape[1:3] != (1, 1) or w.shape[3] < MIRRORED:
        return None
    for first in (0, 1):
        taps = w[:, 0, 0, first:]
        same, opposite = ((taps == sign * taps[:, ::-1]).all(axis=1) for sign in (1, -1))
        even = len(w) if same.all() else int(np.argmin(same))
        if even and opposite[even:].all():
            return first, even
    return None


def _bytes_of(view):
    """A buffer that begins where the view does and ends with its memory."""
    base = owner(view)
    flat = base.reshape(-1).view(np.uint8)
    return flat[address(view) - address(base) :]


def _packed(run, key, sources, make):
    """What is made once of the arrays `sources` for all plans of a node."""
    cache = run.__dict__.setdefault("of_plans", {})
    if key not in cache or any(a is not b for a, b in zip(cache[key][0], sources)):
        cache[key] = sources, make()
    return cache[key][1]


class _Emission:
    """The commands of one convolution, which its node and constants describe: w [M, C / group, kh, kw], bias [M]."""

    def __init__(self, b, node, sources, w, bias, group):
        self.b, self.node, self.sources, self.w, self.bias, self.group = b, node, sources, w, bias, group
        self.depthwise = group > 1 and w.shape[1] == 1
        self.commands = []  # (index, key, function(w, bias) of what is packed)

    def emit(self, key, x, out, step, runs):
        """out [N, H, W, M] = bias + sum over runs of x . w; step: of the positions in x between outputs."""
        if self.depthwise:
            self._emit_depthwise(key, x, out, step, runs)
            return
        inputs, outputs = self.w.shape[1], out.shape[3] // self.group
        for g in range(self.group):

            def pack(w, bias, g=g):
                of_group = slice(g * outputs, (g + 1) * outputs)
                rows = [w[of_group, :, r.row, list(r.columns)].transpose(2, 1, 0).reshape(-1, outputs) for r in runs]
                rows = np.concatenate(rows) if rows else np.empty((0, outputs), np.float32)
                return _kernels.Matrix(rows, None if bias is None else bias[of_group])

            self._emit_runs(
                (key, g),
                pack,
                x[..., g * inputs : (g + 1) * inputs],
                out[..., g * outputs : (g + 1) * outputs],
                step,
                runs,
            )

    def _emit_runs(self, key, pack, x, out, step, runs):
        matrix = _packed(self.node.run, key, self.sources, lambda: pack(self.w, self.bias))
        self.commands.append((len(self.b.commands), key, pack))
        last = (out.shape[1] - 1) * step[0]
        if len(runs) == 1 and 0 <= runs[0].line and last + runs[0].line < x.shape[1]:
            rows = x[:, runs[0].line :, runs[0].position :]
            strides = (x.strides[0], step[0] * x.strides[1], step[1] * x.strides[2], 4)
            rows = np.ndarray((*out.shape[:3], matrix.K), np.float32, _bytes_of(rows), 0, strides)
            emit_product(self.b, matrix, out, rows)
            return
        total = out.size // out.shape[3]
        self.b.keep.append(matrix)
        self.b.emit(
            "convolution",
            matrix.address,
            x,
            out,
            matrix.N,
            *self._places(x, out, step),
            int(matrix.cost(total)),
            matrix.K // max(1, len(runs)),
            len(runs),
            *self._runs(x, runs),
            out=out,
            weights=matrix.nbytes,
            flops=2 * total * matrix.K * matrix.N,
        )

    def _emit_depthwise(self, key, x, out, step, runs):
        taps = [_Run(r.line, r.position + i, r.row, (column,)) for r in runs for i, column in enumerate(r.columns)]

        def pack(w, bias):
            rows = [w[:, 0, r.row, r.columns[0]] for r in taps]
            return (
                np.array(rows, np.float32).reshape(len(taps), len(w)),
                np.zeros(len(w), np.float32) if bias is None else np.array(bias, np.float32),
            )

        packed = _packed(self.node.run, key, self.sources, lambda: pack(self.w, self.bias))
        weights, start = map(self.b.constant, packed)
        self.commands.append((len(self.b.commands), key, pack))
        self.b.emit(
            "depthwise",
            x,
            out,
            weights,
            start,
            out.shape[3],
            len(taps),
            *self._places(x, out, step),
            *self._runs(x, taps),
            out=out,
            flops=2 * out.size * len(taps),
        )

    def emit_mirrored(self, x, out, step, first, even):
        """out [N, W, M] of x [N, L, 1], where `_mirrored` gave `first` and `even`: taps that have the same weight, but
        for a sign, are added or subtracted before they are multiplied. Silero VAD: a stream 0.86 of the time, 256
        of them 0.81."""
        taps = self.w.shape[3]
        n, single = (taps - first) // 2, [*range(first), *([(taps + first) // 2] if (taps - first) % 2 else [])]
        strides = (x.strides[0], step * x.strides[1], 4)
        windows = np.ndarray((*out.shape[:2], taps), np.float32, _bytes_of(x), 0, strides)
        front, back = windows[..., first : first + n], windows[..., : taps - n - 1 : -1]
        folded = self.b.new(windows.shape)  # the sums, what has no partner, the differences
        expressions.emit_views(self.b, expressions.ADD, folded[..., :n], front, back)
        for i, tap in enumerate(single):
            self.b.copy(folded[..., n + i : n + i + 1], windows[..., tap : tap + 1])
        if even < out.shape[2]:
            expressions.emit_views(self.b, expressions.SUB, folded[..., n + len(single) :], front, back)
        pairs = list(range(first, first + n))
        for key, order, rows, outputs in (
            ("even", pairs + single, folded[..., : n + len(single)], slice(even)),
            ("odd", single + pairs, folded[..., n:], slice(even, None)),
        ):

            def pack(w, bias, order=order, outputs=outputs):
                return _kernels.Matrix(w[outputs, 0, 0][:, order].T, None if bias is None else bias[outputs])

            if out[..., outputs].size:
                matrix = _packed(self.node.run, key, self.sources, lambda pack=pack: pack(self.w, self.bias))
                self.commands.append((len(self.b.commands), key, pack))
                emit_product(self.b, matrix, out[..., outputs], rows)

    def _places(self, x, out, step):
        strides = (x.strides[0], step[0] * x.strides[1], step[1] * x.strides[2], *out.strides[:3])
        return (*out.shape[:3], *(s // 4 for s in strides), step[0], x.shape[1])

    def _runs(self, x, runs):
        return [word for r in runs for word in ((r.line * x.strides[1] + r.position * x.strides[2]) // 4, r.line)]

    def fold(self, scale, shift):
        """The outputs are scale * (what they were) + shift, [M] each."""
        w = self.w * scale.reshape(-1, 1, 1, 1)
        bias = shift if self.bias is None else self.bias * scale + shift
        for index, key, pack in self.commands:
            name, words = self.b.commands[index]
            packed = _packed(
                self.node.run, (key, "folded"), (*self.sources, scale, shift), lambda pack=pack: pack(w, bias)
            )
            if self.depthwise:
                words = (*words[:2], *map(self.b.constant, packed), *words[4:])
            else:
                self.b.keep.append(packed)
                words = (packed.address, *words[1:])
            self.b.commands[index] = name, words


def _set(b, emission, operand, out):
    result = out.transpose(0, 3, 1, 2)
    b.set(operand, result if len(operand.shape) == 4 else result[:, :, 0])
    b.folds[id(operand)] = emission.fold
    if b.commands[-1][0] == "convolution" and len(emission.commands) == 1 and len(operand.shape) == 4:
        b.convolved = operand, out


def emit_conv(b, node, inputs, outputs):
    constants = _constants(inputs)
    if constants is None or b.target.blas or outputs[0].dtype != np.float32:
        return False
    w, bias = constants
    settings = {"auto_pad": "NOTSET", "pads": None, "strides": None, "dilations": None} | node.attributes
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    emission = _Emission(b, node, [v.known for v in inputs[1:] if v is not None], w, bias, group)
    if 0 in inputs[0].shape or 0 in outputs[0].shape or 0 in w.shape or group > MAX_GROUPS and not emission.depthwise:
        return False
    windows = windows_for(inputs[0].shape[2:], inputs[1].shape[2:], **settings)
    step, dilation = _two_axes(windows.strides, 1), _two_axes(windows.dilations, 1)
    begin = _two_axes(windows.begin, 0)
    end = max(0, windows.covered(-1) - begin[1] - windows.size[-1])
    line = len(windows.size) == 1
    short = line and (begin[1] or end) and windows.output[0] <= SHORT
    padding = (0, 0) if short else (begin[1], end)
    x = _channel_last(b, inputs[0], *padding, w.shape[0] // group if emission.depthwise else 1)
    out = b.new((x.shape[0], *_two_axes(windows.output, 1), w.shape[0]))
    kh, kw = w.shape[2:]
    joined = kw == 1 or dilation[1] == 1 and group == 1
    if short:
        emission.emit(
            "lines",
            _lines(x),
            _lines(out),
            (step[1], 1),
            [_Run(i * dilation[1] - begin[1], 0, 0, (i,)) for i in range(kw)],
        )
    elif line and joined and (mirrored := _mirrored(w)) is not None:
        emission.emit_mirrored(x[:, 0], out[:, 0], step[1], *mirrored)
    else:
        columns = [tuple(range(kw))] if joined else [(j,) for j in range(kw)]
        runs = [
            _Run(i * dilation[0] - begin[0], of_run[0] * dilation[1], i, of_run)
            for i in range(kh)
            for of_run in columns
        ]
        emission.emit("conv", x, out, step, runs)
    _set(b, emission, outputs[0], out)
    return True


def emit_conv_transpose(b, node, inputs, outputs):
    """The outputs whose position has the same remainder by the stride are a convolution of the input by some taps."""
    constants = _constants(inputs)
    if constants is None or b.target.blas or outputs[0].dtype != np.float32:
        return False
    w, bias = constants
    settings = dict(node.attributes)
    group = settings.pop("group", 1)
    settings.pop("kernel_shape", None)
    if 0 in inputs[0].shape or 0 in outputs[0].shape or 0 in w.shape:
        return False
    # w [C, M / group, kh, kw] as a convolution has it: [M, C / group, kh, kw]
    w = np.concatenate([part.swapaxes(0, 1) for part in np.split(w, group)])
    emission = _Emission(b, node, [v.known for v in inputs[1:] if v is not None], w, bias, group)
    if group > MAX_GROUPS and not emission.depthwise:
        return False
    strides, dilations, begin, output = transposed_windows_for(inputs[0].shape[2:], inputs[1].shape[2:], **settings)
    step, dilation, begin = _two_axes(strides, 1), _two_axes(dilations, 1), _two_axes(begin, 0)
    size, output = _two_axes(inputs[0].shape[2:], 1), _two_axes(output, 1)
    remainders = [
        [_remainder(*of_axis, r) for r in range(of_axis[0])]
        for of_axis in zip(step, w.shape[2:], dilation, begin, output)
    ]
    reach = [
        (at - max(taps.values()), at + count - 1 - min(taps.values()))
        for _, count, at, taps in remainders[1]
        if count and taps
    ]
    before = max([0, *(-low for low, _ in reach)])
    after = max([0, *(high + 1 - size[1] for _, high in reach)])
    x = _channel_last(b, inputs[0], before, after, w.shape[0] // group if emission.depthwise else 1)
    out = b.new((x.shape[0], *output, w.shape[0]))
    for r, (of_h, of_w) in enumerate(itertools.product(*remainders)):
        (start_h, count_h, at_h, rows), (start_w, count_w, at_w, taps) = of_h, of_w
        if not count_h or not count_w:
            continue
        columns = sorted(taps, key=lambda k: -taps[k])  # in the order of memory
        if columns and group == 1 and taps[columns[0]] - taps[columns[-1]] == len(columns) - 1:
            columns = [tuple(columns)]
        else:
            columns = [(k,) for k in columns]
        runs = [_Run(at_h - rows[i], at_w - taps[of_run[0]] + before, i, of_run) for i in rows for of_run in columns]
        emission.emit(("transposed", r), x, out[:, start_h :: step[0], start_w :: step[1]], (1, 1), runs)
    _set(b, emission, outputs[0], out)
    return True


def _remainder(stride, kernel, dilation, begin, output, r):
    """(first output, their number, q of the first one, tap -> its distance) for the outputs o with this remainder.

    o + begin = q * stride + r; a tap's input is at q - distance.
    """
    start = (r - begin) % stride
    taps = {k: (k * dilation - r) // stride for k in range(kernel) if (k * dilation - r) % stride == 0}
    return start, len(range(start, output, stride)), (start + begin) // stride, taps


def emit_batch_normalization(b, node, inputs, outputs):
    """By constants, behind a convolution whose outputs nothing else needs: of its weights."""
    constants = [v.known for v in inputs[1:]]
    settings = {"epsilon": 1e-5, "training_mode": 0, "spatial": 1} | node.attributes
    if id(inputs[0]) not in b.folds or inputs[0].uses != 1 or any(v is None for v in constants):
        return False
    if any(o is not None for o in outputs[1:]) or settings["training_mode"] or not settings["spatial"]:
        return False
    scale, shift, mean, var = (v.astype(np.float64) for v in constants)

    def factors():
        factor = scale / np.sqrt(var + settings["epsilon"])
        return factor.astype(np.float32), (shift - mean * factor).astype(np.float32)

    b.folds[id(inputs[0])](*_packed(node.run, "factors", constants, factors))
    b.set(outputs[0], b.view(inputs[0])[...])
    if b.convolved is not None and b.convolved[0] is inputs[0]:
        b.convolved = outputs[0], b.convolved[1]
    return True


EMIT = {"Conv": emit_conv, "ConvTranspose": emit_conv_transpose, "BatchNormalization": emit_batch_normalization}
