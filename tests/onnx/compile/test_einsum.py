"""Einsum as native products: any equation, constant operands packed at load, and rows that do not depend on others."""

import numpy as np
import pytest

from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import compare, segment_of

SIZES = dict(zip("btgihjkn", (3, 4, 2, 5, 7, 3, 6, 2)))
# float32 sums of up to 60 products of size 1, added in other orders by NumPy: 6e-7 was seen
TOLERANCE = 5e-6
EQUATIONS = [
    "btgi,gih->btgh",
    "btgi,gih->bthg",
    "btgi,gih->hgtb",
    "bi,ij->bj",
    "bi,ji->bj",
    "ib,ij->jb",
    "bt,ij->btij",
    "bti,i->bt",
    "i,bti->bt",
    "bij,bjk->bik",
    "bij,bkj->bki",
    "bij,bjk->kib",
    "bhtk,bhgk->bhtg",
    "bhtk,bghk->bthg",
    "bij,ij->b",
    "bij,jin->bn",
    "bij,jin->nb",
    "bi,bi->b",
    "bi,bi->bi",
    "b,i->ib",
    "bij,kjn->bik",
    "bi,bj->ij",
    "bijg,ijkn->bgkn",
]


def shapes_of(equation):
    return [[SIZES[label] for label in term] for term in equation.partition("->")[0].split(",")]


def model_of(equation, shapes, constants=()):
    names = "xyzw"[: len(shapes)]
    types = ", ".join(
        f"float[{','.join(f'{name}{i}' for i in range(len(shape)))}] {name}" if shape else f"float {name}"
        for name, shape in zip(names, shapes)
        if name not in constants
    )
    values = {name: random(i, *shape) for i, (name, shape) in enumerate(zip(names, shapes))}
    text = f'g ({types}) => (r) {{ e = Einsum <equation = "{equation}"> ({", ".join(names)})  r = Neg (e) }}'
    model = load(parse(text, **{name: values[name] for name in constants}))
    return model, {name: value for name, value in values.items() if name not in constants}


@pytest.mark.parametrize("constants", ["", "x", "y"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_two_operands(isa, equation, constants):
    model, feed = model_of(equation, shapes_of(equation), constants)
    (y,) = compare(model, TOLERANCE, **feed)
    operands = [feed.get(name, random("xy".index(name), *shape)) for name, shape in zip("xy", shapes_of(equation))]
    expected = -np.einsum(equation, *(a.astype(np.float64) for a in operands))
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "equation, shapes, constants",
    [
        ("ij->ji", [(3, 4)], ""),
        ("ij->j", [(3, 4)], ""),
        ("ii->i", [(3, 3)], ""),
        ("ii", [(3, 3)], ""),
        ("iji->j", [(3, 4, 3)], ""),
        ("bii,bij->bj", [(2, 3, 3), (2, 3, 4)], ""),
        ("...ij,...jk->...ik", [(5, 2, 3), (3, 4)], ""),
        ("...ij,...jk->...ik", [(5, 2, 3), (3, 4)], "y"),
        ("...ij,jk->...ik", [(2, 5, 2, 3), (3, 4)], "y"),
        ("...j,jk", [(2, 5, 3), (3, 4)], "y"),
        ("b...,b...->...", [(3, 1, 4), (3, 2, 1)], ""),
        ("ij,jk,kn->in", [(2, 3), (3, 4), (4, 5)], ""),
        ("ij,jk,kn->in", [(2, 3), (3, 4), (4, 5)], "yz"),
        ("bij,bj,bk,kin->n", [(2, 3, 4), (2, 4), (2, 5), (5, 3, 6)], "w"),
        ("i,j,k->kij", [(3,), (4,), (5,)], ""),
        (",i->i", [(), (3,)], ""),
        ("bfgi,fih->bfgh", [(2, 70, 3, 4), (70, 4, 5)], "y"),
    ],
)
def test_other_equations(isa, equation, shapes, constants):
    model, feed = model_of(equation, shapes, constants)
    compare(model, TOLERANCE, **feed)


@pytest.mark.parametrize("constants", ["", "y"])
def test_a_row_has_the_bits_that_it_has_alone(isa, constants):
    model, feed = model_of("btgi,gih->btgh", [(9, 4, 3, 33), (3, 33, 17)], constants)
    (together,) = model(feed).values()
    for row in range(9):
        np.testing.assert_array_equal(model(feed | {"x": feed["x"][row : row + 1]})["r"][0], together[row])


def test_a_result_is_one_chain_of_multiply_adds(isa):
    """The shared labels are added in the order of the left operand's axes: as a product with these axes flattened."""
    model, feed = model_of("bij,jin->bn", [(3, 5, 7), (7, 5, 6)])
    x, y = feed.values()
    product = load(parse("g (float[b,k] x, float[k,n] y) => (r) { m = MatMul (x, y)  r = Neg (m) }"))
    expected = product(x=x.reshape(3, 35), y=np.ascontiguousarray(y.transpose(1, 0, 2)).reshape(35, 6))["r"]
    np.testing.assert_array_equal(model(feed)["r"], expected)
    packed, feed = model_of("bij,jin->bn", [(3, 5, 7), (7, 5, 6)], "y")
    np.testing.assert_array_equal(packed(feed)["r"], expected)
    assert "multiply" in {note.command for note in segment_of(model).notes}
    assert "product" in {note.command for note in segment_of(packed).notes}
