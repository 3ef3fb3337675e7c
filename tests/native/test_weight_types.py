"""The types of weights: what is rounded stays as it is, and integers that a file stores are found again."""

import ml_dtypes
import numpy as np
import pytest

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
