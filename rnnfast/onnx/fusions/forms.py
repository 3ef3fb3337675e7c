"""Operators that ONNX has too, in another form: exporters wrote them before it had them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnnfast.errors import UnsupportedError
from rnnfast.onnx.fusions.body import Body, Fusion, refuse_unless

MODES = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


def _cdist(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """The distance of each row of A to each row of B, [rows of A, rows of B]"""
    if a["metric"] not in ("euclidean", "sqeuclidean"):
        raise UnsupportedError(f"attribute 'metric' = {a['metric']!r}, expected 'euclidean' or 'sqeuclidean'")
    rows, others = (body.add("Unsqueeze", body.input(i), body.constant([1 - i])) for i in range(2))
    squares = body.add("ReduceSumSquare", body.add("Sub", rows, others), body.constant([2]), keepdims=0)
    return [body.add("Sqrt", squares) if a["metric"] == "euclidean" else squares]


def _expand_dims(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """X with a new axis of size 1"""
    axis = body.add("Cast", body.add("Reshape", body.input(1), body.constant([1])), to=7)
    return [body.add("Unsqueeze", body.input(0), axis)]


def _gather_nd(body: Body, a: dict[str, Any]) -> Sequence[str]:
    return [body.add("GatherND", body.input(0), body.add("Cast", body.input(1), to=7))]


def _grid_sample(body: Body, a: dict[str, Any]) -> Sequence[str]:
    mode = a["mode"]
    if mode not in MODES:
        raise UnsupportedError(f"attribute 'mode' = {mode!r} is not supported, expected one of {sorted(MODES)}")
    return [body.add("GridSample", body.input(0), body.input(1), **a | {"mode": MODES[mode]})]


def _pad(body: Body, a: dict[str, Any]) -> Sequence[str]:
    data, pads, value = map(body.input, range(3))
    pads = body.add("Reshape", pads, body.constant([-1]))
    return [body.add("Pad", data, pads, *([body.number(value)] if value else []), **a)]


def _range(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """The numbers from start to limit by steps of delta, 1 if it is absent"""
    start, limit, delta = map(body.input, range(3))
    return [body.add("Range", *map(body.number, (start, limit, delta or body.like(1, start))))]


def _rfft(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """The transform of real numbers along the last axis, [..., n // 2 + 1, 2]"""
    refuse_unless(a, normalized=0, onesided=1, signal_ndim=1)
    x = body.add("Unsqueeze", body.input(0), body.constant([-1]))
    return [body.add("DFT", x, "", body.constant(-2), onesided=1)]


def _trilu(body: Body, a: dict[str, Any]) -> Sequence[str]:
    return [body.add("Trilu", *filter(None, [body.input(0), body.input(1)]), **a)]


def _unique(body: Body, a: dict[str, Any]) -> Sequence[str]:
    """The different values in the order of their first places, which of them each value is, and how often they occur"""
    values, _, which, counts = body.several("Unique", [body.input(0)], 4, sorted=0)
    return [values, which, counts]


FUSIONS = {
    "CDist": Fusion(_cdist, (2, 2), {"metric": "sqeuclidean"}),
    "ExpandDims": Fusion(_expand_dims, (2, 2), {}),
    "GatherND": Fusion(_gather_nd, (2, 2), {}),
    "GridSample": Fusion(_grid_sample, (2, 2), {"align_corners": 0, "mode": "bilinear", "padding_mode": "zeros"}),
    "Pad": Fusion(_pad, (2, 3), {"mode": "constant"}),
    "Range": Fusion(_range, (2, 3), {}),
    "Rfft": Fusion(_rfft, (1, 1), {"normalized": 0, "onesided": 1, "signal_ndim": 1}),
    "Trilu": Fusion(_trilu, (1, 2), {"upper": 1}),
    "Unique": Fusion(_unique, (1, 1), {}, 3),
}
