"""Resampling along axes and at points (ONNX operator specification, Resize-19, GridSample-22, AffineGrid-20)."""

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.arguments import check_axes, integers
from rnnfast.onnx.ops.numeric import is_floating, quiet
from rnnfast.onnx.ops.types import Flag, Floats, Ints, check_size

MODES = Literal["nearest", "linear", "cubic"]
COORDINATES = Literal[
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
]
NEAREST = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
# Positions of the nearest inputs in longer axes are not computed in float32.
FLOAT32_LENGTH = 2**20
POLICIES = Literal["stretch", "not_larger", "not_smaller"]


# ----------------------------------------------------------------------------------------------------- Resize
class _Settings(NamedTuple):
    """The attributes of a Resize that say where it reads and how it weighs."""

    mode: str
    coordinates: str
    nearest: str = "floor"
    a: float = -0.75
    excludes_outside: bool = False
    antialias: bool = False
    extrapolated: float = 0.0


def _positions(size, target, scale, roi, coordinates, kind):
    """Return where in an axis of `size` each of `target` outputs lies, computed in the type `kind`.

    scale: the length of the output, which may be a fraction, to that of the input. roi: the begin and the end of what
    is resized, as shares of the axis.
    """
    o, scale = np.arange(target, dtype=kind), kind(scale)
    if coordinates == "align_corners":
        # With the integer length, as torch and onnxruntime have it, where `scale` would give a fraction.
        return o * ((size - 1) / (target - 1) if target > 1 else 0)
    if coordinates == "asymmetric":
        return o / scale
    if coordinates == "tf_half_pixel_for_nn":
        return (o + 0.5) / scale
    if coordinates == "tf_crop_and_resize":
        begin, end = roi
        if target == 1:
            return np.full(1, 0.5 * (begin + end) * (size - 1))
        return begin * (size - 1) + o * ((end - begin) * (size - 1) / (target - 1))
    if coordinates == "pytorch_half_pixel" and target == 1:
        return np.zeros(1)
    x = (o + 0.5) / scale - 0.5
    if coordinates == "half_pixel_symmetric":
        x += size / 2 * (1 - target / (scale * size))
    return x


def _cubic(distance, a):
    """Return the weight of a tap of the cubic kernel at a distance (Keys 1981, equation 4)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _taps(x, size, scale, settings):
    """Return indices and weights [outputs, taps] of the inputs that are summed for the outputs at positions x."""
    if settings.mode == "nearest":
        rounded = {
            "round_prefer_floor": lambda: np.ceil(x - 0.5),
            "round_prefer_ceil": lambda: np.floor(x + 0.5),
            "floor": lambda: np.floor(x),
            "ceil": lambda: np.ceil(x),
        }[settings.nearest]()
        return np.clip(rounded, 0, size - 1).astype(np.int64)[:, None], None
    reach = 1 if settings.mode == "linear" else 2
    stretch = min(scale, 1.0) if settings.antialias else 1.0
    first = math.floor(-reach / stretch) + 1
    count = 2 - 2 * first if settings.antialias else 2 * reach
    check_size((len(x), count), np.float64)
    base = np.floor(x)
    index = base[:, None] + np.arange(first, first + count)
    distance = (index - x[:, None]) * stretch
    weight = np.maximum(0, 1 - np.abs(distance)) if reach == 1 else _cubic(distance, settings.a)
    if settings.excludes_outside:
        weight = np.where((index < 0) | (index >= size), 0, weight)
    if settings.excludes_outside or settings.antialias:
        weight = weight / weight.sum(1, keepdims=True)
    return np.clip(index, 0, size - 1).astype(np.int64), weight


def taps_along(size, target, scale, roi, settings):
    """Return (positions, indices, weights) of the outputs of an axis: see `_positions` and `_taps`."""
    # The nearest input is chosen in float32, as by onnxruntime: 3 / 0.6 is 5 there, but less in float64, since the file
    # has 0.6 as a float32, which is a little more.
    short = settings.mode == "nearest" and max(size, target) < FLOAT32_LENGTH
    kind = np.float32 if short else np.float64
    position = _positions(size, target, scale, roi, settings.coordinates, kind)
    return position, *_taps(position, size, scale, settings)


def _along(x, axis, target, scale, roi, settings):
    """Return x resized along one axis; weighted sums are in float64."""
    size = x.shape[axis]
    position, index, weight = taps_along(size, target, scale, roi, settings)
    shape = (*x.shape[:axis], target, *x.shape[axis + 1 :])
    check_size(shape, np.float64)
    if weight is None:
        y = x.take(index[:, 0], axis)
    else:
        y, tail = np.zeros(shape), (1,) * (x.ndim - axis - 1)
        if index.shape[1] <= target:
            for tap in range(index.shape[1]):
                y += x.take(index[:, tap], axis) * weight[:, tap].reshape(-1, *tail)
        else:  # few outputs of many taps
            for o in range(target):
                y[(slice(None),) * axis + (o,)] = (x.take(index[o], axis) * weight[o].reshape(-1, *tail)).sum(axis)
    if settings.coordinates == "tf_crop_and_resize":
        outside = (position < 0) | (position > size - 1)
        y[(slice(None),) * axis + (outside,)] = settings.extrapolated
    return y


def _resized(x, targets, scales, rois, settings):
    """Return x with other sizes of its axes; axes that stay as they are cost nothing."""
    dtype = x.dtype
    for axis in range(x.ndim):
        crops = settings.coordinates == "tf_crop_and_resize" and rois[axis] != (0.0, 1.0)
        if targets[axis] != x.shape[axis] or scales[axis] != 1 or crops:
            if not x.shape[axis]:
                raise InputError(f"axis {axis} of {list(x.shape)} is empty, and cannot have {targets[axis]} elements")
            x = _along(x, axis, targets[axis], scales[axis], rois[axis], settings)
    if settings.mode != "nearest" and dtype.kind in "iu":
        info = np.iinfo(dtype)
        x = np.clip(x, info.min, info.max)  # weights below 0 lead beyond the range
    return x.astype(dtype, copy=False)


def _by_scales(x, scales):
    """Return the sizes of an output and the scales of the axes; sizes are rounded down in float32, as in onnxruntime.

    ONNX's text multiplies a size by the share that roi leaves of an axis too; its reference and onnxruntime do not.
    """
    if not all(0 < s < math.inf for s in scales):
        raise InputError(f"scales are {scales}, expected positive numbers")
    lengths = [np.float32(n) * np.float32(s) for n, s in zip(x.shape, scales)]
    if not all(0 <= n < 2**62 for n in lengths):
        raise InputError(f"scales {scales} of {list(x.shape)}, expected sizes that there can be")
    return [int(n) for n in lengths], scales


def _by_sizes(x, sizes, axes, policy):
    """Return the sizes of an output and the scales of the axes."""
    if min(sizes, default=0) < 0:
        raise InputError(f"sizes are {sizes}, expected 0 or more")
    targets, scales = list(x.shape), [1.0] * len(x.shape)
    if any(not x.shape[axis] for axis in axes):
        raise InputError(f"a tensor of shape {x.shape} has empty axes, and cannot be resized")
    if policy != "stretch" and axes:
        pick = min if policy == "not_larger" else max
        scale = pick(size / x.shape[axis] for axis, size in zip(axes, sizes))
        for axis in axes:
            targets[axis], scales[axis] = math.floor(scale * x.shape[axis] + 0.5), scale
    else:
        for axis, size in zip(axes, sizes):
            targets[axis], scales[axis] = size, size / x.shape[axis]
    return targets, scales


def _spread(values, axes, rank, default):
    """Return one value for each axis: those that are given for some axes, and the default for others."""
    spread = [default] * rank
    for axis, value in zip(axes, values):
        spread[axis] = value
    return spread


class Resampling(NamedTuple):
    """How a Resize treats each axis: the length of its result, the scale, and what is resized, as shares of it."""

    targets: list
    scales: list
    rois: list
    settings: _Settings


def _resampling(
    x,
    roi=None,
    scales=None,
    sizes=None,
    *,
    antialias=0,
    axes=None,
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    keep_aspect_ratio_policy="stretch",
    mode="nearest",
    nearest_mode="round_prefer_floor",
):
    """Return the Resampling of a Resize; x is anything with a shape and a type."""
    rank = len(x.shape)
    axes = check_axes(axes, rank)
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    if crops and (roi is None or roi.size != 2 * len(axes)):
        shape = "none" if roi is None else list(roi.shape)
        raise InputError(f"roi is {shape}, expected the begins and the ends of {len(axes)} axes")
    rois = [(0.0, 1.0)] * rank
    if crops:
        ends = roi.astype(np.float64).reshape(2, -1).T.tolist()
        rois = _spread([tuple(pair) for pair in ends], axes, rank, (0.0, 1.0))
        if not np.isfinite(ends).all():
            raise InputError("roi has values that are not finite")
    by_scales, by_sizes = (v is not None and v.size > 0 for v in (scales, sizes))
    if by_scales == by_sizes and axes:
        raise InputError(f"{'both' if by_scales else 'neither'} of scales and sizes given, expected one of them")
    given = scales if by_scales else sizes
    if axes and (given.ndim != 1 or len(given) != len(axes)):
        raise InputError(f"{given.size} scales or sizes for {len(axes)} axes")
    if by_scales:
        every = _spread(scales.astype(np.float64).tolist(), axes, rank, 1.0)
        targets, factors = _by_scales(x, every)
    else:
        targets, factors = _by_sizes(x, integers(sizes, "sizes") if axes else [], axes, keep_aspect_ratio_policy)
    check_size(targets, x.dtype)
    settings = _Settings(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(exclude_outside),
        bool(antialias) and mode != "nearest",
        extrapolation_value,
    )
    return Resampling(targets, factors, rois, settings)


@quiet
def resize(
    x,
    roi=None,
    scales=None,
    sizes=None,
    *,
    antialias: Flag = 0,
    axes: Ints | None = None,
    coordinate_transformation_mode: COORDINATES = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: Flag = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: POLICIES = "stretch",
    mode: MODES = "nearest",
    nearest_mode: NEAREST = "round_prefer_floor",
):
    """Resize: each output is the nearest input, or a weighted sum of inputs around its place along each axis."""
    return _resized(
        x,
        *_resampling(
            x,
            roi,
            scales,
            sizes,
            antialias=antialias,
            axes=axes,
            coordinate_transformation_mode=coordinate_transformation_mode,
            cubic_coeff_a=cubic_coeff_a,
            exclude_outside=exclude_outside,
            extrapolation_value=extrapolation_value,
            keep_aspect_ratio_policy=keep_aspect_ratio_policy,
            mode=mode,
            nearest_mode=nearest_mode,
        ),
    )


@quiet
def resize_10(x, scales, *, mode: Literal["nearest", "linear"] = "nearest"):
    """Resize before opset 11: the place of output o is o / scale, and the nearest input the one below."""
    return _resized(x, *_resampling_10(x, scales, mode=mode))


@quiet
def upsample_7(x, *, scales: Floats, mode: Literal["nearest", "linear"] = "nearest"):
    """Upsample before opset 9: the scales are an attribute."""
    return _resized(x, *_resampling_7(x, scales=scales, mode=mode))


def _resampling_10(x, scales, *, mode="nearest"):
    return _by_vector(x, scales.astype(np.float64).tolist() if scales.ndim == 1 else None, mode)


def _resampling_7(x, *, scales, mode="nearest"):
    return _by_vector(x, list(scales), mode)


def _by_vector(x, scales, mode):
    """Return the Resampling by a scale for each axis, as before opset 11."""
    rank = len(x.shape)
    if scales is None or len(scales) != rank:
        raise InputError(f"scales {scales} for {rank} axes")
    targets, scales = _by_scales(x, scales)
    check_size(targets, x.dtype)
    return Resampling(targets, scales, [(0.0, 1.0)] * rank, _Settings(mode, "asymmetric"))


# The function of a node -> the function that takes the same and returns its Resampling.
RESAMPLINGS = {resize: _resampling, resize_10: _resampling_10, upsample_7: _resampling_7}


# ------------------------------------------------------------------------------------------------- GridSample
def _reflected(x, size, align_corners):
    """Return positions mirrored at the ends of an axis until they lie in it."""
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    span = high - low
    if span <= 0:
        return np.zeros_like(x)
    distance = np.mod(x - low, 2 * span)
    return low + np.minimum(distance, 2 * span - distance)


def _sampled(x, grid, mode, padding_mode, align_corners):
    """Return x [N, C, *sizes] at the points of grid [N, *outputs, axes], x first: [N, C, *outputs]."""
    axes = x.ndim - 2
    if axes < 1 or grid.ndim != x.ndim or grid.shape[-1] != axes or grid.shape[0] != x.shape[0]:
        raise InputError(
            f"input and grid of shapes {x.shape} and {grid.shape}, expected [N, C, ...] and [N, ..., axes]"
        )
    sizes, outputs = x.shape[2:], grid.shape[1:-1]
    check_size((*x.shape[:2], *outputs), np.float64)
    if not math.prod(sizes):
        raise InputError(f"an input of shape {x.shape} has no points")
    places = []
    for axis, size in enumerate(sizes):
        place = grid[..., axes - 1 - axis].astype(np.float64)
        place = (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
        if mode != "cubic" or padding_mode == "zeros":
            if padding_mode == "border":
                place = np.clip(place, 0, size - 1)
            elif padding_mode == "reflection":
                place = _reflected(place, size, align_corners)
        places.append(place)
    reach = {"nearest": 0, "linear": 1, "cubic": 2}[mode]
    taps = []  # for each axis pairs of positions and weights
    for place in places:
        if not reach:
            taps.append([(np.rint(place), None)])
            continue
        base = np.floor(place)
        shifts = range(1 - reach, 1 + reach)
        weigh = (lambda d: 1 - np.abs(d)) if reach == 1 else (lambda d: _cubic(d, -0.75))
        taps.append([(base + shift, weigh(base + shift - place)) for shift in shifts])
    y = np.zeros((*x.shape[:2], *outputs))
    rows = np.arange(x.shape[0]).reshape(-1, *(1,) * len(outputs))
    flat = np.moveaxis(x, 1, -1)
    for chosen in itertools.product(*taps):
        index, weight = [], None
        for (position, w), size in zip(chosen, sizes):
            if padding_mode == "border":
                position = np.clip(position, 0, size - 1)
            elif padding_mode == "reflection":
                position = np.clip(np.rint(_reflected(position, size, align_corners)), 0, size - 1)
            inside = (position >= 0) & (position <= size - 1)  # False for NaN
            w = np.where(inside, 1.0 if w is None else w, 0.0)
            weight = w if weight is None else weight * w
            index.append(np.where(inside, position, 0).astype(np.int64))
        values = np.moveaxis(flat[(rows, *index)], -1, 1)
        y += np.where(weight[:, None] != 0, values * weight[:, None], 0)
    return y.astype(x.dtype)


def grid_sample_16(
    x,
    grid,
    *,
    align_corners: Flag = 0,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros",
):
    """GridSample before opset 20, on two axes: other names of the modes."""
    if x.ndim != 4:
        raise InputError(f"an input of shape {x.shape}, expected four axes")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return grid_sample(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


@quiet
def grid_sample(
    x,
    grid,
    *,
    align_corners: Flag = 0,
    mode: MODES = "linear",
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros",
):
    """GridSample: the input at points, whose coordinates are -1 to 1 along each axis."""
    if mode == "cubic" and x.ndim != 4:
        raise InputError(f"mode cubic for an input of shape {x.shape}, expected two axes behind N and C")
    return _sampled(x, grid, mode, padding_mode, bool(align_corners))


@quiet
def affine_grid(theta, size, *, align_corners: Flag = 0):
    """AffineGrid: the points [N, *sizes, axes] of affine maps [N, axes, axes + 1], for GridSample."""
    if not is_floating(theta.dtype):
        raise InputTypeError(f"theta of type {theta.dtype}, expected a floating-point type")
    n, _, *sizes = integers(size, "size") if size.size in (4, 5) else (None, None)
    axes = len(sizes)
    if not sizes or theta.shape != (n, axes, axes + 1) or min(sizes) < 1:
        raise InputError(f"theta of shape {theta.shape} and size {size.tolist()}, expected [N, axes, axes + 1]")
    check_size((n, *sizes, axes + 1), np.float64)
    ends = [1.0 if align_corners else 1 - 1 / m for m in sizes]
    lines = [np.linspace(-end, end, m) if m > 1 else np.zeros(1) for end, m in zip(ends, sizes)]
    points = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(sizes)], -1)
    return (points.reshape(-1, axes + 1) @ theta.astype(np.float64).mT).reshape(n, *sizes, axes).astype(theta.dtype)


OPS = {
    "Resize": {10: resize_10, 11: resize},
    "Upsample": {7: upsample_7, 9: resize_10},
    "GridSample": {16: grid_sample_16, 20: grid_sample},
    "AffineGrid": {20: affine_grid},
}
