"""Native Resize and Upsample."""

import numpy as np
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import compare

# Weights are float32 natively and float64 in NumPy's function.
TOLERANCE = 2e-6
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize_of(attributes, **constants):
    inputs = "x, , scales" if "scales" in constants else "x, , , sizes"
    text = f"g (float[n,c,h,w] x) => (z) {{ y = Resize <{attributes}> ({inputs})  z = Neg (y) }}"
    return load(parse(text, opset=19, **constants))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 0.6, 1), (1, 1, 1.7, 0.3), (2, 1, 1, 1)])
def test_scales(isa, mode, coordinates, scales):
    model = resize_of(
        f'mode = "{mode}", coordinate_transformation_mode = "{coordinates}"', scales=np.array(scales, np.float32)
    )
    compare(model, 0 if mode == "nearest" else TOLERANCE, x=random(1, 2, 3, 6, 5))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_of_the_first_axes(isa, mode):
    model = resize_of(f'mode = "{mode}"', sizes=np.array([4, 2, 3, 9]))
    compare(model, 0 if mode == "nearest" else TOLERANCE, x=random(1, 2, 3, 6, 5))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(isa, mode):
    text = f'g (float[n,c,h,w] x) => (z) {{ y = Upsample <mode = "{mode}"> (x, s)  z = Neg (y) }}'
    model = load(parse(text, opset=9, s=np.float32([1, 1, 2, 2])))
    compare(model, 0 if mode == "nearest" else TOLERANCE, x=random(1, 2, 3, 4, 5))


def test_nearest_of_integers(isa):
    model = load(
        parse(
            "g (int64[n,c,h,w] x) => (z) { y = Resize (x, , scales)  z = Add (y, y) }",
            opset=19,
            scales=np.float32([1, 1, 2.5, 2]),
        )
    )
    compare(model, x=np.arange(120).reshape(2, 3, 4, 5))
