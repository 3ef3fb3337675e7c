"""Rules of resampling, spectra and determinants: the axes along which they work are others than the rows'."""

from __future__ import annotations

from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, apart_from, check_shared, integers, known, rows_in
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Linear, Meets, Rows, Value, objects
from rnnfast.onnx.ops import image, signal


def resize(follower: Follower, event: Event, x: Value, *inputs: Value | None) -> Rows | None:
    """Resize from opset 11 on: the axis of the rows stays as it is."""
    roi, scales, sizes = (*inputs, None, None, None)[:3]
    attributes, rows = event.node.attributes, rows_in(x)
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        check_shared([roi], "the parts that it crops")
        raise Meets("it crops")
    axes = [axis % x.ndim for axis in attributes.get("axes") or range(x.ndim)]
    if scales is not None and scales.shape != (0,):
        return _scaled(rows, dict(zip(axes, known(scales, "its scales").tolist())))
    if sizes is None:
        raise Meets("it has neither scales nor sizes")
    wanted = dict(zip(axes, list(objects(sizes)) if sizes.shared or sizes.sizes is not None else ()))
    if not wanted:
        raise Meets("its sizes depend on the value of one row")
    own = wanted.pop(rows.axis, None)
    if own is None and not any(isinstance(n, Linear) for n in wanted.values()):
        return rows
    stretches = attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    stays = isinstance(own, Linear) and own == Linear(rows.outer * rows.inner)
    if not (stretches and stays) or any(isinstance(n, Linear) for n in wanted.values()):
        raise Meets(f"it resizes axis {rows.axis}, along which the rows lie, or others by their number")
    return rows


def _scaled(rows: Rows, scales: dict[int, float]) -> Rows:
    if scales.get(rows.axis, 1) != 1:
        raise Meets(f"it resizes axis {rows.axis}, along which the rows lie")
    return rows


def upsample(follower: Follower, event: Event, x: Value, scales: Value | None = None) -> Rows | None:
    """Upsample, and Resize before opset 11: one scale for each axis."""
    given = event.node.attributes["scales"] if scales is None else known(scales, "its scales").tolist()
    return _scaled(rows_in(x), dict(enumerate(given)))


def of_opset(follower: Follower, event: Event, x: Value, *inputs: Value | None) -> Rows | None:
    rule = resize if event.node.function is image.OPS["Resize"][11] else upsample
    return rule(follower, event, x, *inputs)


def grid_sample(follower: Follower, event: Event, x: Value, grid: Value) -> Rows | None:
    rows = rows_in(x)
    if rows.axis == 1:
        check_shared([grid], "the points")
        return rows
    if rows.axis or grid.rows != rows:
        raise Meets("its inputs do not both have the rows along axis 0")
    return rows


def dft(follower: Follower, event: Event, x: Value, length: Value | None = None, axis: Value | None = None) -> Any:
    integers(length, "the numbers of points")
    if event.node.function is signal.OPS["DFT"][17]:
        along = event.node.attributes.get("axis", 1)
    else:
        (along,) = integers(axis, "its axis") or (-2,)
    return apart_from(x, [along, -1], "it transforms")


def stft(follower: Follower, event: Event, x: Value, *others: Value | None) -> Rows | None:
    check_shared(others, "its steps, lengths or windows")
    return apart_from(x, range(1, x.ndim), "it transforms")


def determinant(follower: Follower, event: Event, x: Value) -> Rows | None:
    return apart_from(x, [-1, -2], "it multiplies")


def columns_to_image(follower: Follower, event: Event, x: Value, *others: Value | None) -> Rows | None:
    check_shared(others, "its sizes")
    return apart_from(x, [1, 2], "it adds up columns")


RULES = {
    "Col2Im": columns_to_image,
    "DFT": dft,
    "Det": determinant,
    "GridSample": grid_sample,
    "Resize": of_opset,
    "STFT": stft,
    "Upsample": upsample,
}
