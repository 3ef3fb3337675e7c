"""Native views and copies: transposition, slices, concatenation, padding, and inputs of any layout."""

import numpy as np
import onnx
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile import reductions
from tests.onnx.compile.helpers import compare, plain


@pytest.mark.parametrize(
    "expression",
    [
        "Transpose <perm = [2, 0, 1]> (x)",
        "Slice (x, from, to, axes, steps)",
        "Reshape (t, shape)",
        "Unsqueeze (x, axes)",
        "Flatten (t)",
        "Dropout (t)",
        "Dropout (t, value, kept)",
        "Expand (r, wide)",
        "Gather <axis = 1> (x, index)",
        "Gather <axis = 2> (x, indices)",
        "Concat <axis = 1> (x, x, t2)",
        "Pad (x, pads)",
        "Pad (x, pads, value)",
        'Pad <mode = "reflect"> (x, pads)',
        'Pad <mode = "edge"> (x, pads)',
        "ReverseSequence <batch_axis = 0, time_axis = 1> (x, whole)",
        "ReverseSequence <batch_axis = 0, time_axis = 1> (x, ragged)",
        "ReverseSequence <batch_axis = 1, time_axis = 0> (t, some)",
    ],
)
def test_movement(isa, expression):
    shape = (3, 5, 7)
    model = load(
        parse(
            f"""g (float[a,b,c] x) => (z) {{
        t = Transpose <perm = [0, 2, 1]> (x)  t2 = Transpose <perm = [0, 2, 1]> (t)  r = Slice (x, nil, first, mid)
        y = {expression}  z = Neg (y) }}""",
            **{
                "from": np.array([4, -1]),
                "to": np.array([0, -99]),
                "axes": np.array([1, 2]),
                "steps": np.array([-2, -3]),
                "shape": np.array([5, -1]),
                "wide": np.array([2, 3, 4, 7]),
                "nil": np.array([0]),
                "first": np.array([1]),
                "mid": np.array([1]),
                "index": np.array(-2),
                "indices": np.array([[1, -1], [0, 6]]),
                "pads": np.array([2, 1, 3, 0, 2, 1]),
                "value": np.float32(-1.5),
                "kept": np.array(False),
                "whole": np.array([5, 5, 5]),
                "ragged": np.array([5, 1, 4]),
                "some": np.array([0, 3, 2, 1, 3, 2, 0]),
            },
        )
    )
    compare(model, x=random(0, *shape))


def test_split_and_squeeze(isa):
    model = load(
        parse(
            """g (float[a,6,1] x) => (p, q) {
        s = Squeeze (x, last)  a1, a2 = Split <axis = 1> (s, sizes)  p = Neg (a1)  q = Mul (a2, a2) }""",
            last=np.array([2]),
            sizes=np.array([2, 4]),
        )
    )
    compare(model, x=random(0, 3, 6, 1))


def test_outputs_are_arrays_of_their_own():
    """Outputs are an input, a view, and a constant twice: writing to one changes no other."""
    model = load(
        parse(
            """g (float[n] x) => (y, a, b, c) {
        y = Neg (x)  a = Reshape (y, all)  b = Identity (x)  c = Identity (k) }""",
            all=np.array([-1]),
            k=random(1, 3),
        )
    )
    x = random(0, 4)
    before = {name: v.copy() for name, v in model(x=x).items()}
    outputs = model(x=x)
    for array in outputs.values():
        array[...] = 9
    for name, array in model(x=x).items():
        np.testing.assert_array_equal(array, before[name])
    assert not np.any(x == 9)


def test_inputs_of_any_layout():
    model = load(parse("g (float[m,n] x) => (y) { t = Transpose (x)  y = Sub (t, one) }", one=np.float32(1)))
    x = random(0, 6, 8)
    for given_x in (x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1][::-1]):
        np.testing.assert_array_equal(model(x=given_x).y, x.T - 1)


@pytest.mark.parametrize(
    "expression",
    [
        "ReduceMax (x, even)",
        "Softmax (t)",
        "Add (t, v)",
        "Concat <axis = 1> (t, t)",
        "Identity (t)",
        "Gather <axis = 7> (t, i)",
        "ArgMax <axis = 3> (t)",
    ],
)
def test_more_axes_than_a_command_has(expression):
    """Such steps stay NumPy's, behind native ones; their inputs may be the model's."""
    axes = [",".join(f"{name}{i}" for i in range(14)) for name in "xv"]
    model = load(
        parse(
            f"""g (float[n] a, int64[2] i, float[{axes[0]}] x, float[{axes[1]}] v) => (y, z) {{
        y = Neg (a)  t = Transpose <perm = [0, 2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11, 13]> (x)  z = {expression} }}""",
            opset=18,
            even=np.arange(0, 14, 2),
        )
    )
    feed = {"a": random(0, 3), "i": np.array([1, 0]), "x": random(1, *[2, 2] * 7), "v": random(2, *[1, 2] * 7)}
    for y, expected in zip(model(feed).values(), plain(model, **feed)):
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype, of", [("float", np.float32), ("int64", np.int64), ("bool", np.bool_)])
def test_gather_of_one_item_of_a_vector(dtype, of):
    model = load(
        parse(
            f"""g ({dtype}[n] x) => (y, z) {{
        y = Gather (x, k)  u = Unsqueeze (y, first)  z = Concat <axis = 0> (u, x) }}""",
            k=np.array(-2),
            first=np.array([0]),
        )
    )
    compare(model, x=np.arange(5).astype(of))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_of_a_scalar(mode):
    """There is no axis to pad: the scalar itself."""
    text = f'g (float x) => (z) {{ y = Tanh (x)  p = Pad <mode = "{mode}"> (y, pads)  z = Neg (p) }}'
    model = load(parse(text, pads=np.zeros(0, np.int64)))
    for _ in range(2):
        np.testing.assert_allclose(model(x=2.0).z, -np.tanh(2), rtol=1e-6)


@pytest.mark.parametrize("op, opset", [("DepthToSpace", 13), ("SpaceToDepth", 13), ("SpaceToDepth", 28)])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks(op, opset, mode):
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this onnx has no opset {opset}")
    attributes = {"blocksize": 2} | ({"mode": mode} if (op, opset) != ("SpaceToDepth", 13) else {})
    reductions.compare(op, random(3, 2, 12, 4, 6), {}, opset, tolerance=None, **attributes)
