"""Operators that describe, rearrange or repeat a tensor whatever its elements (ONNX operator specification)."""

import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.onnx.ops.arguments import check_axes, check_axis, integer, integers
from rnnfast.onnx.ops.numeric import same_dtype
from rnnfast.onnx.ops.types import Flag, Ints, check_size


def shape_1(x):
    """Shape before opset 15: all dimensions."""
    return np.array(x.shape, np.int64)


def shape(x, *, start: int = 0, end: int | None = None):
    """Shape: the dimensions from `start` to `end`."""
    return np.array(x.shape[start:end], np.int64)


def size(x):
    """Size: the number of elements."""
    return np.array(x.size, np.int64)


def identity(x):
    """Identity: the input itself."""
    return x


def reshape_5(x, shape):
    """Reshape before opset 14: a dimension of 0 always copies that of the input."""
    return reshape(x, shape)


def reshape(x, shape, *, allowzero: Flag = 0):
    """Reshape: a dimension of 0 copies the input's at that position, unless allowzero is set; -1 takes what is left."""
    wanted = integers(shape, "shape")
    copied = [] if allowzero else [axis for axis, n in enumerate(wanted) if n == 0]
    if copied and copied[-1] >= x.ndim:
        raise InputError(f"shape {wanted} copies dimension {copied[-1]} of a tensor of shape {x.shape}")
    if min(wanted, default=0) < -1 or wanted.count(-1) > 1:
        raise InputError(f"shape {wanted} has a negative dimension other than one -1")
    if -1 in wanted:
        # Copied dimensions cancel, so that -1 is known even if one of them is 0, as in a sequence without steps.
        left = math.prod(n for axis, n in enumerate(x.shape) if axis not in copied)
        given = math.prod(n for axis, n in enumerate(wanted) if n != -1 and axis not in copied)
        if given == 0 or left % given:
            raise InputError(f"a tensor of shape {x.shape} cannot be reshaped to {wanted}")
        wanted[wanted.index(-1)] = left // given
    for axis in copied:
        wanted[axis] = x.shape[axis]
    if math.prod(wanted) != x.size:
        raise InputError(f"a tensor of shape {x.shape} cannot be reshaped to {wanted}")
    check_size(wanted, x.dtype)
    return x.reshape(wanted)


def flatten(x, *, axis: int = 1):
    """Flatten: a matrix whose rows have all elements from `axis` on."""
    if not -x.ndim <= axis <= x.ndim:
        raise InputError(f"axis {axis} is out of range for a tensor of rank {x.ndim}")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze_1(x, *, axes: Ints | None = None):
    """Squeeze before opset 13: without axes all dimensions of 1 are removed; with an empty list, none."""
    if axes is None:
        return x.squeeze()
    dropped = {check_axis(axis, x.ndim) for axis in axes}
    for axis in dropped:
        if x.shape[axis] != 1:
            raise InputError(f"axis {axis} of a tensor of shape {x.shape} is not 1")
    return x.squeeze(tuple(dropped))


def squeeze(x, axes=None):
    """Squeeze: x without the dimensions of 1 that the axes name."""
    return squeeze_1(x, axes=integers(axes, "axes"))


def unsqueeze_1(x, *, axes: Ints):
    """Unsqueeze before opset 13: the axes are an attribute."""
    rank = x.ndim + len(axes)
    inserted = set(check_axes(axes, rank))
    dimensions = iter(x.shape)
    return x.reshape([1 if axis in inserted else next(dimensions) for axis in range(rank)])


def unsqueeze(x, axes):
    """Unsqueeze: x with new dimensions of 1 at the axes of the result."""
    return unsqueeze_1(x, axes=integers(axes, "axes"))


def transpose(x, *, perm: Ints | None = None):
    """Transpose: the axes in the order of `perm`, by default reversed."""
    if perm is not None and sorted(perm) != list(range(x.ndim)):
        raise InputError(f"perm {list(perm)} is no permutation of the axes of a tensor of rank {x.ndim}")
    return x.transpose(perm)


def concat(*xs, axis: int):
    """Concat: the inputs one after the other along an axis."""
    dtype = same_dtype(xs)
    first = xs[0].shape
    axis = check_axis(axis, len(first))
    for x in xs[1:]:
        if len(x.shape) != len(first) or any(n != m for i, (n, m) in enumerate(zip(x.shape, first)) if i != axis):
            raise InputError(f"tensors of shapes {', '.join(str(x.shape) for x in xs)} differ besides axis {axis}")
    check_size((*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :]), dtype)
    return np.concatenate(xs, axis)


def parts(x, sizes, axis):
    """Return views of x: consecutive parts of these sizes along `axis`."""
    axis = check_axis(axis, x.ndim)
    if min(sizes, default=0) < 0 or sum(sizes) != x.shape[axis]:
        raise InputError(f"split {list(sizes)} does not cover axis {axis} of a tensor of shape {x.shape}")
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    return tuple(x[(slice(None),) * axis + (slice(end - n, end),)] for n, end in zip(sizes, ends))


def split_2(x, *, split: Ints | None = None, axis: int = 0, n_outputs: int):
    """Split before opset 13: `split` is an attribute; without it the parts are equal."""
    if split is None:
        n = x.shape[check_axis(axis, x.ndim)]
        if n % n_outputs:
            raise InputError(f"axis {axis} of a tensor of shape {x.shape} is not divisible into {n_outputs} parts")
        split = [n // n_outputs] * n_outputs
    if len(split) != n_outputs:
        raise InputError(f"split {list(split)} has {len(split)} parts for {n_outputs} outputs")
    return parts(x, split, axis)


def split_13(x, split=None, *, axis: int = 0, n_outputs: int):
    """Split before opset 18: `split` is an input."""
    return split_2(x, split=integers(split, "split"), axis=axis, n_outputs=n_outputs)


def split(x, split=None, *, num_outputs: int | None = None, axis: int = 0, n_outputs: int):
    """Split: parts of the sizes in `split`, or one equal part per output, of which the last may be smaller."""
    if split is not None:
        if num_outputs is not None:
            raise InputError("both the input split and the attribute num_outputs are given")
        return split_13(x, split, axis=axis, n_outputs=n_outputs)
    if num_outputs not in (None, n_outputs):
        raise InputError(f"num_outputs is {num_outputs}, but the node has {n_outputs} outputs")
    n = x.shape[check_axis(axis, x.ndim)]
    part = -(-n // n_outputs)
    return parts(x, [part] * (n_outputs - 1) + [n - part * (n_outputs - 1)], axis)


def zero(dtype):
    """Return 0, False or the empty string."""
    return np.array("", object) if dtype == np.object_ else np.zeros((), dtype)


def expand(x, shape):
    """Expand: x broadcast to a shape, in both directions."""
    wanted = integers(shape, "shape")
    if min(wanted, default=0) < 0:
        raise InputError(f"shape {wanted} has a negative dimension")
    rank = max(x.ndim, len(wanted))
    wanted = [1] * (rank - len(wanted)) + wanted
    own = (1,) * (rank - x.ndim) + x.shape
    if any(n != m and n != 1 and m != 1 for n, m in zip(own, wanted)):
        raise InputError(f"a tensor of shape {x.shape} does not broadcast to {wanted}")
    result = [m if n == 1 else n for n, m in zip(own, wanted)]
    check_size(result, x.dtype)
    return np.broadcast_to(x, result).copy()


def tile(x, repeats):
    """Tile: x repeated along each axis."""
    counts = integers(repeats, "repeats")
    if len(counts) != x.ndim or min(counts, default=0) < 0:
        raise InputError(f"repeats {counts} are not {x.ndim} counts of 0 or more")
    result = [n * count for n, count in zip(x.shape, counts)]
    check_size(result, x.dtype)
    blocks = x.reshape([m for n in x.shape for m in (1, n)])
    blocks = np.broadcast_to(blocks, [m for pair in zip(counts, x.shape) for m in pair])
    return np.asarray(blocks.reshape(result), order="C")


def _source_positions(n, before, after, mode):
    """Return for each position of a padded axis the position that it copies from, in an axis of n elements.

    Negative pads crop the axis first; the padding then continues the rest.
    """
    start, length = max(-before, 0), n - max(-before, 0) - max(-after, 0)
    if length < 1:
        raise InputError(f"mode {mode} has nothing to pad from: pads {before} and {after} of an axis of {n} elements")
    check_size((n + before + after,), np.int64)
    position = np.arange(-max(before, 0), length + max(after, 0))
    if mode == "edge":
        position = position.clip(0, length - 1)
    elif mode == "wrap":
        position %= length
    else:
        period = max(2 * (length - 1), 1)
        position %= period
        position = np.minimum(position, period - position) if length > 1 else position
    return position + start


def _pad(x, pads, constant, axes, mode):
    """Return x padded along the axes by Python lists, with a constant or by its own elements."""
    axes = check_axes(axes, x.ndim)
    if len(pads) != 2 * len(axes):
        raise InputError(f"{len(pads)} pads for {len(axes)} axes, expected two for each")
    pads = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    result = [n + sum(pads.get(axis, (0, 0))) for axis, n in enumerate(x.shape)]
    if min(result, default=0) < 0:
        raise InputError(f"pads remove more than there is of a tensor of shape {x.shape}: {pads}")
    check_size(result, x.dtype)
    if mode != "constant":
        for axis, (before, after) in pads.items():
            if before or after:
                x = x.take(_source_positions(x.shape[axis], before, after, mode), axis)
        return x
    y = np.full(result, constant, x.dtype)
    inner, outer = [], []
    for axis, n in enumerate(x.shape):
        before, after = pads.get(axis, (0, 0))
        inner.append(slice(max(-before, 0), max(n - max(-after, 0), 0)))
        outer.append(slice(max(before, 0), max(result[axis] - max(after, 0), 0)))
    kept = x[tuple(inner)]
    if kept.size:
        y[tuple(outer)] = kept
    return y


def _padding(x, constant_value):
    """Return the constant that fills; by default 0, False or the empty string."""
    if constant_value is None:
        return zero(x.dtype)
    if constant_value.size != 1 or constant_value.dtype != x.dtype:
        raise InputTypeError(
            f"constant_value of shape {constant_value.shape} and type {constant_value.dtype}, "
            f"expected one element of type {x.dtype}"
        )
    return constant_value.reshape(-1)[0]


def pad_2(x, *, pads: Ints, mode: Literal["constant", "reflect", "edge"] = "constant", value: float = 0.0):
    """Pad before opset 11: pads and value are attributes."""
    return _pad(x, pads, np.array(value).astype(x.dtype), None, mode)


def pad_11(x, pads, constant_value=None, *, mode: Literal["constant", "reflect", "edge"] = "constant"):
    """Pad before opset 18: all axes are padded."""
    return _pad(x, integers(pads, "pads"), _padding(x, constant_value), None, mode)


def pad_18(x, pads, constant_value=None, axes=None, *, mode: Literal["constant", "reflect", "edge"] = "constant"):
    """Pad before opset 19: without the mode wrap."""
    return _pad(x, integers(pads, "pads"), _padding(x, constant_value), integers(axes, "axes"), mode)


def pad(x, pads, constant_value=None, axes=None, *, mode: Literal["constant", "reflect", "edge", "wrap"] = "constant"):
    """Pad: x with elements added or, by negative pads, removed at both ends of the axes."""
    return _pad(x, integers(pads, "pads"), _padding(x, constant_value), integers(axes, "axes"), mode)


def _check_blocks(x, blocksize, multiples):
    """Raise InputError unless x is [N,C,H,W] and its dimensions are multiples of these."""
    if x.ndim != 4 or blocksize < 1 or any(n % m for n, m in zip(x.shape, multiples)):
        raise InputError(f"a tensor of shape {x.shape}, expected [N,C,H,W] that blocks of {blocksize} divide")


def depth_to_space_1(x, *, blocksize: int):
    """DepthToSpace before opset 11: the mode DCR."""
    return depth_to_space(x, blocksize=blocksize)


def depth_to_space(x, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR"):
    """DepthToSpace: channels become blocks of blocksize x blocksize positions, in the channel order of `mode`."""
    b = blocksize
    _check_blocks(x, b, (1, b * b, 1, 1))
    batch, channels, height, width = x.shape
    channels //= b * b
    if mode == "DCR":
        blocks = x.reshape(batch, b, b, channels, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(batch, channels, b, b, height, width).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, channels, height * b, width * b)


def space_to_depth_1(x, *, blocksize: int):
    """SpaceToDepth before opset 28: the mode DCR."""
    return space_to_depth(x, blocksize=blocksize)


def space_to_depth(x, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR"):
    """SpaceToDepth: blocks of blocksize x blocksize positions become channels, in the channel order of `mode`."""
    b = blocksize
    _check_blocks(x, b, (1, 1, b, b))
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // b, b, width // b, b)
    blocks = blocks.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return blocks.reshape(batch, channels * b * b, height // b, width // b)


def dropout_7(x, *, ratio: float = 0.5, n_outputs: int):
    """Dropout before opset 10: the input, as inference drops nothing, and a mask of ones of the input's type."""
    return (x, np.ones(x.shape, x.dtype)) if n_outputs > 1 else x


def dropout_10(x, *, ratio: float = 0.5, n_outputs: int):
    """Dropout before opset 12: the input, and a mask of True."""
    return (x, np.ones(x.shape, bool)) if n_outputs > 1 else x


def dropout(x, ratio=None, training_mode=None, *, seed: int | None = None, n_outputs: int):
    """Dropout: the input, and a mask of True; UnsupportedError for training with a ratio other than 0."""
    if training_mode is not None and training_mode.any() and (ratio is None or ratio.any()):
        raise UnsupportedError("training_mode true with a ratio other than 0 drops at random, which is not computed")
    return dropout_10(x, n_outputs=n_outputs)


def reverse_sequence(x, sequence_lens, *, batch_axis: Flag = 1, time_axis: Flag = 0):
    """ReverseSequence: the first sequence_lens elements of each row of the batch reversed along time_axis."""
    if x.ndim < 2 or batch_axis == time_axis:
        raise InputError(f"a tensor of shape {x.shape} with batch_axis {batch_axis} and time_axis {time_axis}")
    lengths = integers(sequence_lens, "sequence_lens")
    steps, batch = x.shape[time_axis], x.shape[batch_axis]
    if len(lengths) != batch:
        raise InputError(f"{len(lengths)} sequence_lens for a batch of {batch}")
    for n in lengths:
        if not 0 <= n <= steps:
            raise InputError(f"sequence_lens has a length that is not from 0 to {steps}")  # as a native step says it
    y = x.swapaxes(0, batch_axis).copy()
    for row, n in zip(y, lengths):
        row[:n] = row[:n][::-1]
    return y.swapaxes(0, batch_axis)


def trilu(x, k=None, *, upper: Flag = 1):
    """Trilu: the upper or lower triangle of each matrix, bounded by diagonal k; zeros elsewhere."""
    if x.ndim < 2:
        raise InputError(f"a tensor of shape {x.shape}, expected a matrix or a batch of them")
    n, m = x.shape[-2:]
    diagonal = 0 if k is None else min(max(integer(k, "k"), -n - 1), m + 1)
    check_size((n, m), bool)
    lower = np.tri(n, m, diagonal - 1 if upper else diagonal, bool)
    return np.where(lower, zero(x.dtype), x) if upper else np.where(lower, x, zero(x.dtype))


OPS = {
    "Shape": {1: shape_1, 15: shape},
    "Size": {1: size},
    "Identity": {1: identity},
    "Reshape": {5: reshape_5, 14: reshape},
    "Flatten": {1: flatten},
    "Squeeze": {1: squeeze_1, 13: squeeze},
    "Unsqueeze": {1: unsqueeze_1, 13: unsqueeze},
    "Transpose": {1: transpose},
    "Concat": {4: concat},
    "Split": {2: split_2, 13: split_13, 18: split},
    "Expand": {8: expand},
    "Tile": {6: tile},
    "Pad": {2: pad_2, 11: pad_11, 18: pad_18, 19: pad},
    "DepthToSpace": {1: depth_to_space_1, 11: depth_to_space},
    "SpaceToDepth": {1: space_to_depth_1, 28: space_to_depth},
    "Dropout": {7: dropout_7, 10: dropout_10, 12: dropout},
    "ReverseSequence": {10: reverse_sequence},
    "Trilu": {14: trilu},
}
