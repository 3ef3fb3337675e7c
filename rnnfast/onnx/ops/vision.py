"""Boxes, regions and columns of images (ONNX operator specification, for example RoiAlign-22)."""

import itertools
import math
from typing import Literal

import numpy as np

from rnnfast.errors import InputError, LimitError
from rnnfast.onnx.ops.arguments import check_axes, check_indices, integer, integers
from rnnfast.onnx.ops.numeric import floating, is_floating, numeric, quiet, widen
from rnnfast.onnx.ops.types import Flag, Ints, check_size

# Most samples of a region of RoiAlign whose number follows from its size.
MAX_SAMPLES = 2**12


@quiet
def center_crop_pad(x, shape, *, axes: Ints | None = None):
    """CenterCropPad: the middle of x where an axis is longer than asked for, zeros around it where it is shorter."""
    axes, sizes = check_axes(axes, x.ndim), integers(shape, "shape")
    if len(sizes) != len(axes) or min(sizes, default=0) < 0:
        raise InputError(f"shape is {sizes} for {len(axes)} axes, expected sizes of 0 or more")
    target = list(x.shape)
    for axis, size in zip(axes, sizes):
        target[axis] = size
    check_size(target, x.dtype)
    y = np.zeros(target, x.dtype) if x.dtype != object else np.full(target, "", object)
    to, of = [slice(None)] * x.ndim, [slice(None)] * x.ndim
    for axis, size in zip(axes, sizes):
        n = x.shape[axis]
        count = min(n, size)
        begin, start = (size - count) // 2, (n - count) // 2
        to[axis], of[axis] = slice(begin, begin + count), slice(start, start + count)
    y[tuple(to)] = x[tuple(of)]
    return y


@quiet
def col2im(
    x, image_shape, block_shape, *, dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None
):
    """Col2Im: the sum of blocks [N, C * prod(block), blocks] at their places in images [N, C, *image]."""
    image, block = integers(image_shape, "image_shape"), integers(block_shape, "block_shape")
    axes = len(image)
    dilations, strides, pads = dilations or (1,) * axes, strides or (1,) * axes, pads or (0,) * (2 * axes)
    if not len(block) == len(dilations) == len(strides) == axes or len(pads) != 2 * axes or not axes:
        raise InputError(f"image {image} and block {block}, expected as many axes, strides, dilations and pads")
    if min(*image, *block, *dilations, *strides) < 1 or min(pads) < 0:
        raise InputError(f"image {image}, block {block}, dilations, strides or pads have a value that is too small")
    count = [
        (n + pads[a] + pads[axes + a] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1
        for a, n in enumerate(image)
    ]
    size = math.prod(block)
    if x.ndim != 3 or x.shape[1] % size or min(count) < 1 or x.shape[2] != math.prod(count):
        raise InputError(f"columns {x.shape} for blocks {block} at {count} places of an image {image}")
    channels = x.shape[1] // size
    padded = [n + pads[a] + pads[axes + a] for a, n in enumerate(image)]
    check_size((x.shape[0], channels, *padded), x.dtype)
    columns = x.reshape(x.shape[0], channels, *block, *count)
    y = np.zeros((x.shape[0], channels, *padded), x.dtype)
    for at in itertools.product(*map(range, block)):
        places = [
            slice(i * dilations[a], i * dilations[a] + (count[a] - 1) * strides[a] + 1, strides[a])
            for a, i in enumerate(at)
        ]
        y[(slice(None), slice(None), *places)] += columns[(slice(None), slice(None), *at)]
    return y[(slice(None), slice(None), *(slice(pads[a], pads[a] + n) for a, n in enumerate(image)))]


@quiet
def max_unpool(
    x, indices, output_shape=None, *, kernel_shape: Ints, pads: Ints | None = None, strides: Ints | None = None
):
    """MaxUnpool: zeros with the elements of x at the places that MaxPool gave as its second result."""
    axes = x.ndim - 2
    strides, pads = strides or (1,) * axes, pads or (0,) * (2 * axes)
    if axes < 1 or x.shape != indices.shape or not len(kernel_shape) == len(strides) == axes or len(pads) != 2 * axes:
        raise InputError(f"an input of shape {x.shape}, indices of {indices.shape} and a kernel {list(kernel_shape)}")
    pooled = [(x.shape[2 + a] - 1) * strides[a] - pads[a] - pads[axes + a] + kernel_shape[a] for a in range(axes)]
    inferred = [*x.shape[:2], *pooled]
    shape = inferred if output_shape is None else integers(output_shape, "output_shape")
    if len(shape) != x.ndim or min(*shape, *inferred) < 0 or shape[:2] != list(x.shape[:2]):
        raise InputError(f"an output of shape {shape} for an input of {x.shape}")
    check_size(shape, x.dtype)
    check_size(inferred, x.dtype)
    # Indices count the elements of the tensor that was pooled; a larger output has it at its beginning.
    places = check_indices(indices.reshape(-1), math.prod(inferred))
    whole = np.zeros(math.prod(inferred), x.dtype)
    whole[places] = x.reshape(-1)
    whole = whole.reshape(inferred)
    if shape == inferred:
        return whole
    y = np.zeros(shape, x.dtype)
    common = tuple(slice(min(a, b)) for a, b in zip(shape, inferred))
    y[common] = whole[common]
    return y


@floating
def det(x):
    """Det: the determinants of the matrices that the last two axes hold."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise InputError(f"an input of shape {x.shape}, expected square matrices")
    return np.linalg.det(x.astype(np.float64)).astype(x.dtype)


def _overlap(box, others):
    """Return the intersection over the union of a box [4] (y1, x1, y2, x2) with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.maximum(high - low, 0), 1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = area + areas - both
    return np.where((area <= 0) | (areas <= 0) | (union <= 0), 0, both / np.where(union > 0, union, 1))


@quiet
def non_max_suppression(
    boxes,
    scores,
    max_output_boxes_per_class=None,
    iou_threshold=None,
    score_threshold=None,
    *,
    center_point_box: Flag = 0,
):
    """NonMaxSuppression: (batch, class, box) of the boxes with the highest scores that overlap none before them."""
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.ndim != 3 or scores.shape[::2] != boxes.shape[:2]:
        raise InputError(
            f"boxes {boxes.shape} and scores {scores.shape}, expected [N, boxes, 4] and [N, classes, boxes]"
        )
    most = (
        0 if max_output_boxes_per_class is None else integer(max_output_boxes_per_class, "max_output_boxes_per_class")
    )
    overlap = 0.0 if iou_threshold is None else float(iou_threshold.reshape(()))
    if not 0 <= overlap <= 1:
        raise InputError(f"iou_threshold is {overlap}, expected 0 to 1")
    boxes = boxes.astype(np.float64)
    if center_point_box:
        centre, half = boxes[..., 1::-1], boxes[..., :1:-1] / 2
        boxes = np.concatenate([centre - half, centre + half], 2)
    else:
        boxes = np.concatenate(
            [np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], 2
        )
    selected = []
    for n, c in np.ndindex(scores.shape[:2]):
        row = scores[n, c]
        left = np.arange(len(row)) if score_threshold is None else np.flatnonzero(row > score_threshold.reshape(()))
        left = left[np.argsort(-row[left], kind="stable")]
        kept = 0
        while left.size and kept < most:
            selected.append((n, c, left[0]))
            kept += 1
            left = left[1:][_overlap(boxes[n, left[0]], boxes[n, left[1:]]) <= overlap]
    return np.array(selected, np.int64).reshape(-1, 3)


def _check_regions(x, rois, width, indices=None):
    """Raise an error unless x is [N, C, H, W] and the regions are [R, width]; return the image of each region."""
    if x.ndim != 4 or not is_floating(x.dtype) or rois.ndim != 2 or rois.shape[1] != width or rois.dtype != x.dtype:
        raise InputError(
            f"an input of shape {x.shape} and regions of {rois.shape}, expected [N, C, H, W] and [R, {width}]"
        )
    if not math.prod(x.shape[2:]):
        raise InputError(f"images of shape {x.shape[2:]} have no points")
    if indices is None:
        indices = rois[:, 0].astype(np.int64)
    if indices.shape != rois.shape[:1]:
        raise InputError(f"indices of shape {indices.shape} for {len(rois)} regions")
    if not np.isfinite(rois.astype(np.float64)).all():
        raise InputError("a region has coordinates that are not finite")
    return check_indices(indices, len(x))


@quiet
def roi_align_10(
    x,
    rois,
    batch_indices,
    *,
    mode: Literal["avg", "max"] = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
):
    """RoiAlign before opset 16: coordinates are not shifted by half a pixel."""
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@quiet
def roi_align(
    x,
    rois,
    batch_indices,
    *,
    coordinate_transformation_mode: Literal["half_pixel", "output_half_pixel"] = "half_pixel",
    mode: Literal["avg", "max"] = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
):
    """RoiAlign: the mean or maximum of bilinear samples in each cell of a grid over each region (x1, y1, x2, y2)."""
    images = _check_regions(x, rois, 4, batch_indices)
    outputs = output_height, output_width
    if min(outputs) < 1 or sampling_ratio < 0:
        raise InputError(f"an output of {outputs} and {sampling_ratio} samples, expected positive sizes")
    check_size((len(rois), x.shape[1], *outputs), x.dtype)
    y = np.zeros((len(rois), x.shape[1], *outputs), x.dtype)
    half = coordinate_transformation_mode == "half_pixel"
    for r, (image, roi) in enumerate(zip(images, rois.astype(np.float64) * spatial_scale - (0.5 if half else 0))):
        taps = []
        for axis, size in enumerate(outputs):
            begin, end = roi[1 - axis], roi[3 - axis]
            length = end - begin if half else max(end - begin, 1.0)
            samples = sampling_ratio or max(math.ceil(length / size), 1)
            if samples > MAX_SAMPLES:
                raise LimitError(f"{samples} samples of a cell of region {r}, more than the limit of {MAX_SAMPLES}")
            places = begin + (np.arange(size * samples) + 0.5) * length / (size * samples)
            taps.append((_linear_taps(places, x.shape[2 + axis]), samples))
        (rows, of_rows), (columns, of_columns) = taps
        check_size((x.shape[1], len(rows[0]), len(columns[0])), np.float64)
        found = _bilinear(widen(x[image]), rows, columns, mode)
        cells = found.reshape(x.shape[1], output_height, of_rows, output_width, of_columns)
        y[r] = cells.mean((2, 4)) if mode == "avg" else cells.max((2, 4))
    return y


def _linear_taps(places, size):
    """Return for each place the points below and above it and their weights; both weights are 0 outside of the axis."""
    inside = (places >= -1) & (places <= size)
    places = np.clip(places, 0, size - 1)
    low = np.floor(places).astype(np.int64)
    share = places - low
    return low, np.minimum(low + 1, size - 1), (1 - share) * inside, share * inside


def _bilinear(image, rows, columns, mode):
    """Return [C, rows, columns] of samples of an image [C, H, W]; in mode "max" the largest weighted corner of each."""
    corners = [
        image[:, rows[i]][:, :, columns[j]] * (rows[2 + i][:, None] * columns[2 + j]) for i in (0, 1) for j in (0, 1)
    ]
    return sum(corners) if mode == "avg" else np.maximum.reduce(corners)


@quiet
def max_roi_pool(x, rois, *, pooled_shape: Ints, spatial_scale: float = 1.0):
    """MaxRoiPool: the maximum in each cell of a grid over each region (image, x1, y1, x2, y2); 0 of an empty cell."""
    images = _check_regions(x, rois, 5)
    if len(pooled_shape) != 2 or min(pooled_shape) < 1:
        raise InputError(f"pooled_shape is {list(pooled_shape)}, expected two positive sizes")
    check_size((len(rois), x.shape[1], *pooled_shape), x.dtype)
    y = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
    corners = np.floor(rois[:, 1:].astype(np.float64) * spatial_scale + 0.5)
    for r, (image, corner) in enumerate(zip(images, corners)):
        cells = []
        for axis, size in enumerate(pooled_shape):
            begin, n = corner[1 - axis], x.shape[2 + axis]
            length = max(corner[3 - axis] - begin + 1, 1)
            step = length / size
            low = np.clip(np.floor(np.arange(size) * step) + begin, 0, n).astype(np.int64)
            high = np.clip(np.ceil((np.arange(size) + 1) * step) + begin, 0, n).astype(np.int64)
            cells.append(list(zip(low, high)))
        for i, (top, bottom) in enumerate(cells[0]):
            for j, (left, right) in enumerate(cells[1]):
                if top < bottom and left < right:
                    y[r, :, i, j] = x[image, :, top:bottom, left:right].max((1, 2))
    return y


@numeric
def deform_conv(
    x,
    w,
    offset,
    b=None,
    mask=None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
):
    """DeformConv: a convolution whose taps are read where the offsets say, linearly between points, 0 outside."""
    axes = x.ndim - 2
    dilations, strides, pads = dilations or (1,) * axes, strides or (1,) * axes, pads or (0,) * (2 * axes)
    if axes < 1 or w.ndim != x.ndim or not len(dilations) == len(strides) == axes or len(pads) != 2 * axes:
        raise InputError(
            f"an input of shape {x.shape} and weights of {w.shape}, expected as many axes, strides and pads"
        )
    (n, channels), kernel, outputs = x.shape[:2], w.shape[2:], []
    if group < 1 or offset_group < 1 or channels % group or channels % offset_group or len(w) % group:
        raise InputError(f"{group} groups and {offset_group} groups of offsets for {channels} and {len(w)} channels")
    if w.shape[1] * group != channels or kernel_shape not in (None, kernel) or (b is not None and b.shape != (len(w),)):
        raise InputError(f"weights {w.shape} in {group} groups for {channels} channels")
    if min(*dilations, *strides, *kernel, *x.shape[2:]) < 1:
        raise InputError(f"a kernel {kernel}, dilations, strides or images {x.shape[2:]} with a size below 1")
    for a in range(axes):
        outputs.append(
            (x.shape[2 + a] + pads[a] + pads[axes + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        )
    taps = math.prod(kernel)
    if min(outputs) < 1 or offset.shape != (n, offset_group * taps * axes, *outputs):
        raise InputError(f"offsets of shape {offset.shape}, expected {[n, offset_group * taps * axes, *outputs]}")
    if mask is not None and mask.shape != (n, offset_group * taps, *outputs):
        raise InputError(f"a mask of shape {mask.shape}, expected {[n, offset_group * taps, *outputs]}")
    check_size((n, channels, taps, *outputs), np.float64)
    offset = offset.reshape(n, offset_group, taps, axes, *outputs).astype(np.float64)
    columns = np.zeros((n, offset_group, channels // offset_group, taps, *outputs), x.dtype)
    grouped = np.moveaxis(x.reshape(n, offset_group, channels // offset_group, *x.shape[2:]), 2, -1)
    rows = np.ogrid[tuple(map(slice, (n, offset_group, *outputs)))]
    for t, at in enumerate(np.ndindex(*kernel)):
        places = [rows[2 + a] * strides[a] - pads[a] + at[a] * dilations[a] + offset[:, :, t, a] for a in range(axes)]
        for corner in itertools.product((0, 1), repeat=axes):
            weight, index = 1.0, []
            for a, (place, up) in enumerate(zip(places, corner)):
                point = np.floor(place) + up
                inside = (point >= 0) & (point < x.shape[2 + a])
                weight = weight * np.where(inside, 1 - np.abs(place - point), 0)
                index.append(np.where(inside, point, 0).astype(np.int64))
            columns[:, :, :, t] += np.moveaxis(grouped[(*rows[:2], *index)] * weight[..., None], -1, 2).astype(x.dtype)
    if mask is not None:
        columns *= mask.reshape(n, offset_group, 1, taps, *outputs)
    columns = columns.reshape(n, group, channels // group * taps, -1)
    y = w.reshape(group, len(w) // group, -1) @ columns
    y = y.reshape(n, len(w), *outputs)
    return y if b is None else y + b.reshape(-1, *(1,) * axes)


OPS = {
    "CenterCropPad": {18: center_crop_pad},
    "Col2Im": {18: col2im},
    "DeformConv": {19: deform_conv},
    "Det": {11: det},
    "MaxRoiPool": {1: max_roi_pool},
    "MaxUnpool": {9: max_unpool},
    "NonMaxSuppression": {10: non_max_suppression},
    "RoiAlign": {10: roi_align_10, 16: roi_align},
}
