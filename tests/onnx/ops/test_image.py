"""Resize, Upsample, GridSample and AffineGrid against onnxruntime, over random attributes and sizes."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError
from tests import graphs

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def compare(op, *inputs, opset, **attributes):
    """Compare with onnxruntime through whole models."""
    feed = {f"i{i}": x for i, x in enumerate(inputs) if x is not None}
    model = graphs.one_node(op, feed, opset=opset, **attributes)
    if op == "Resize":  # onnxruntime refuses sizes that are not constant
        for name in [name for name in feed if name != "i0"]:
            model.graph.initializer.append(graphs.numpy_helper.from_array(feed.pop(name), name))
        del model.graph.input[1:]
    model.graph.node[0].input[:] = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    model.graph.output[0].ClearField("type")
    expected, got = graphs.onnxruntime(model, feed)["out0"], graphs.load(model)(feed).out0
    assert got.dtype == expected.dtype and got.shape == expected.shape, attributes
    np.testing.assert_allclose(
        got,
        expected,
        rtol=1e-4,
        atol=1e-5,
        err_msg=str((attributes, [x.tolist() if x is not None and x.size < 9 else np.shape(x) for x in inputs])),
    )


def image(rng, axes=2):
    return rng.standard_normal((1, 2, *map(int, rng.integers(1, 9, axes)))).astype(np.float32)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resize(mode, coordinates):
    rng = np.random.default_rng([len(mode), *coordinates.encode()])
    for opset in (19,) if coordinates == "half_pixel_symmetric" else (11, 13, 18, 19):
        for by_scales in (False, True):
            for _ in range(3):
                attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
                if mode == "nearest":
                    modes = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
                    attributes["nearest_mode"] = str(rng.choice(modes))
                if mode == "cubic":
                    attributes |= {"cubic_coeff_a": float(rng.choice([-0.5, -0.75])), "exclude_outside": 1}
                if opset >= 18 and mode != "nearest":
                    attributes["antialias"] = int(rng.integers(2))
                empty = np.zeros(0, np.float32) if opset == 11 else None
                if by_scales:
                    scales = np.array([1, 1, *rng.choice([0.3, 0.5, 0.6, 0.8, 1, 1.3, 2, 2.7], 2)], np.float32)
                    x = image(rng)
                    if (x.shape * scales).astype(int).tolist() == list(x.shape):
                        continue  # onnxruntime copies the input then, whatever the scales say
                    compare("Resize", x, empty, scales, opset=opset, **attributes)
                else:
                    sizes = np.array([1, 2, *rng.integers(1, 12, 2)])
                    compare("Resize", image(rng), empty, empty, sizes, opset=opset, **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_of_a_crop(mode):
    rng = np.random.default_rng(len(mode))
    for _ in range(8):
        roi = np.array([0, 0, *rng.uniform(0, 0.5, 2), 1, 1, *rng.uniform(0.6, 1.3, 2)], np.float32)
        sizes = np.array([1, 2, *rng.integers(9, 14, 2)])
        attributes = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
        compare("Resize", image(rng), roi, None, sizes, opset=13, mode=mode, **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_versions(mode):
    rng = np.random.default_rng(3)
    for _ in range(8):
        x, scales = image(rng), np.array([1, 1, *rng.choice([1, 1.3, 2, 3], 2)], np.float32)
        compare("Upsample", x, opset=7, mode=mode, scales=scales.tolist())
        compare("Upsample", x, scales, opset=9, mode=mode)
        compare("Resize", x, scales, opset=10, mode=mode)


def test_types():
    rng = np.random.default_rng(4)
    for dtype in (np.uint8, np.int32):
        x = rng.integers(0, 255, (1, 2, 4, 5)).astype(dtype)
        compare("Resize", x, None, None, np.array([1, 2, 7, 3]), opset=13, mode="nearest")


def test_aligned_corners_of_a_fractional_length():
    """The last output is the last input, where ONNX's reference has a place between."""
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)
    scales = np.array([1, 1, 1, 0.6], np.float32)
    compare("Resize", x, None, scales, opset=13, mode="linear", coordinate_transformation_mode="align_corners")


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample(mode, align_corners, padding_mode):
    rng = np.random.default_rng([len(mode), align_corners, len(padding_mode)])
    for axes in (2, 3) if mode != "cubic" else (2,):
        for _ in range(4):
            x, outputs = image(rng, axes), rng.integers(1, 6, axes)
            grid = rng.uniform(-1.6, 1.6, (1, *outputs, axes)).astype(np.float32)
            attributes = {"align_corners": align_corners, "padding_mode": padding_mode}
            compare("GridSample", x, grid, opset=20, mode=mode, **attributes)
            if axes == 2:
                old = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
                compare("GridSample", x, grid, opset=16, mode=old, **attributes)


@pytest.mark.parametrize("align_corners", [0, 1])
def test_affine_grid(align_corners):
    rng = np.random.default_rng(align_corners)
    for axes in (2, 3):
        theta = rng.standard_normal((2, axes, axes + 1)).astype(np.float32)
        sizes = np.array([2, 3, *rng.integers(2, 6, axes)])
        compare("AffineGrid", theta, sizes, opset=20, align_corners=align_corners)


@pytest.mark.parametrize(
    "text, inputs",
    [
        ("y = Resize <mode = 'linear'> (x, , s)", {"s": np.float32([1, 1, -1, 2])}),
        ("y = Resize <mode = 'linear'> (x, , s)", {"s": np.float32([1, 1, np.nan, 2])}),
        ("y = Resize <mode = 'linear'> (x, , s)", {"s": np.float32([1, 2])}),
        ("y = Resize (x, , , n)", {"n": np.array([1, 1, -3, 2])}),
        ("y = Resize (x)", {}),
        (
            "y = Resize <coordinate_transformation_mode = 'tf_crop_and_resize'> (x, , , n)",
            {"n": np.array([1, 1, 3, 2])},
        ),
        ("y = GridSample (x, g)", {"g": np.zeros((1, 2, 2, 3), np.float32)}),
        ("y = GridSample (x, g)", {"g": np.zeros((2, 2, 2, 2), np.float32)}),
        ("y = AffineGrid (x, n)", {"n": np.array([1, 1, 2, 2])}),
    ],
)
def test_wrong_sizes_are_refused(text, inputs):
    text = text.replace("'", '"')
    data = graphs.parse(f"g (float[1,1,2,3] x) => (y) {{ {text} }}", opset=20, **inputs)
    with pytest.raises((InputError, rnnfast.errors.ModelError)):
        rnnfast.load(data).run({"x": np.ones((1, 1, 2, 3), np.float32)})
