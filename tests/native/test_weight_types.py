"""The types of weights: what is rounded stays as it is, and integers that a file stores are found again."""

import ml_dtypes
import numpy as np
import pytest

from rnnfast.native._kernels import Matrix, isas, set_isa
from rnnfast.native.weight_types import WEIGHT_TYPES, integer_columns

SHAPES = [(64, 40), (3, 17), (2, 7), (1, 5), (0, 4), (5, 0), (300, 33)]


@pytest.mark.parametrize("name", WEIGHT_TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_again_changes_nothing(name, shape):
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    once = WEIGHT_TYPES[name].rounded(weight)
    np.testing.assert_array_equal(WEIGHT_TYPES[name].rounded(once).view(np.int32), once.view(np.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_weights_are_off_by_half_a_step_at_most(shape):
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    integers, scales = integer_columns(weight)
    assert integers.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.all(np.abs(integers * scales - weight) <= scales * np.float32(0.5001))
    if shape[0] > 1:  # one weight alone is once its scale
        np.testing.assert_array_equal(np.max(np.abs(integers), axis=0, initial=0), 127 if shape[0] else 0)


@pytest.mark.parametrize("zero", [0, 128])
def test_stored_integers_are_found_again(zero):
    """Scales of others use all bits of float32, so that their products are rounded, and zero points reach -128."""
    random = np.random.default_rng(3)
    stored = random.integers(0, 256, (64, 40)) - zero if zero else random.integers(-100, 64, (64, 40))
    scales = (0.001 + random.random(40)).astype(np.float32)
    weight = (stored * scales).astype(np.float32)
    integers, found = integer_columns(weight)
    divisor = np.gcd.reduce(stored, axis=0)
    np.testing.assert_array_equal(integers, stored // divisor)
    np.testing.assert_allclose(found, scales * divisor, rtol=3e-7)


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, 3.4e38, 1e38, 2.0**-99])
def test_the_largest_and_the_smallest_floats(largest):
    random = np.random.default_rng(5)
    weight = (random.standard_normal((30, 7)) / 5).clip(-0.9, 0.9).astype(np.float32) * np.float32(largest)
    weight[3] = largest
    integers, scales = integer_columns(weight)
    np.testing.assert_array_equal(integers[3], 127)
    assert np.all(np.isfinite(integers * scales))
    assert np.all(np.abs(weight / largest - integers * (scales / largest)) <= 0.5001 * scales / largest)


def test_columns_of_zeros_and_of_next_to_nothing_are_zeros():
    integers, scales = integer_columns(np.array([[0, 1e-32, 1e-20], [0, -1e-38, 1e-21]], np.float32))
    assert not np.any(integers[:, :2])
    assert not np.any(scales[:2])
    assert integers[0, 2] * scales[2] == pytest.approx(1e-20)


def test_16_bit_types_round_as_their_standards_say():
    bits = np.random.default_rng(4).integers(0, 2**32, 10000, np.uint32)
    weight = np.concatenate([bits, np.arange(0x3F7F7000, 0x3F810000, 0x800, np.uint32)]).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = weight.astype(np.float16).astype(np.float32), weight.astype(ml_dtypes.bfloat16).astype(np.float32)
        rounded = WEIGHT_TYPES["fp16"].rounded(weight), WEIGHT_TYPES["bf16"].rounded(weight)
    for a, b in zip(rounded, expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("columns", [1024, 1072, 1025])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_products_with_weights_held_in_16_bits_have_the_bits_of_float32(name, columns):
    """Weights of more bytes than the second-level cache are held so, with denormals and the largest values too."""
    random = np.random.default_rng(5)
    weight = random.standard_normal((301, columns)).astype(np.float32)
    weight[:3, :7] = [[1e-7], [6e-8], [65504]]
    weight[4:6] *= np.float32(1e-5)
    bias = random.standard_normal(columns).astype(np.float32)
    rounded = WEIGHT_TYPES[name].rounded(weight)
    short, wide = Matrix(weight, bias, weight_type=name), Matrix(rounded, bias)
    assert short.nbytes < 0.51 * wide.nbytes
    assert Matrix(weight, bias, weight_type=name, expanded=True).nbytes == wide.nbytes
    try:
        for isa in isas():
            set_isa(isa)
            for rows in (1, 2, 5, 13, 31):
                x = random.standard_normal((rows, 301)).astype(np.float32)
                assert short.multiply(x).tobytes() == wide.multiply(x).tobytes()
    finally:
        set_isa(isas()[0])
