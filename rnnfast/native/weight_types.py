"""The types in which weights are held, one row of WEIGHT_TYPES each, and how float32 weights are rounded to them."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from rnnfast.errors import InputError

# The integers of an int8 column are at most this, and its scales have so few bits that their products are exact.
LARGEST = 127
SCALE_BITS = 17
# A column of int8 weights that has no larger one is zeros: the arithmetic of its scale would meet denormals.
LEAST = np.float32(2.0**-100)
# What can be an integer times a scale in float32 differs by so much of itself at most.
ROUNDING = 2.0**-22


class WeightType(NamedTuple):
    """A type of weights.

    Attributes:
        name: Its key in WEIGHT_TYPES.
        weights: Its name for users, who choose between types of one name by `activations`.
        rounded: The function that rounds float32 weights [K, N], whose columns are outputs, to values of this type. It
            returns float32 too; what has been rounded stays as it is.
        bytes: The bytes of a weight.
        integers: Whether products are computed in integers where that is faster.
        activation_bits: The bits of the integers by which integer weights are multiplied; 0 of other types.
    """

    name: str
    weights: str
    rounded: Callable[[np.ndarray], np.ndarray]
    bytes: int
    integers: bool
    activation_bits: int = 0

    def nbytes(self, K: int, N: int) -> int:
        """The bytes of weights [K, N], with a float32 scale for each column of integers."""
        return self.bytes * K * N + (4 * N if self.integers else 0)


def integer_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite weights [K, N] as int8 integers [K, N] and float32 scales [N], so that weight = integers * scales.

    A column that already consists of such multiples, to the rounding of float32, keeps them, so that weights which a
    file stores as integers are taken as they are. In any other column the largest weight becomes 127 or -127.
    """
    weight = np.asarray(weight, np.float32)
    with np.errstate(over="ignore"):  # of the largest floats a candidate's multiples may be infinite: they do not fit
        integers, scales, found = _multiples(weight)
    if not np.all(found):
        rest = weight[:, ~found]
        scale = _short(np.max(np.abs(rest), axis=0) / np.float32(LARGEST))
        with np.errstate(over="ignore"):
            integers[:, ~found], scales[~found], found = _multiples(np.rint(rest / scale) * scale)
        assert np.all(found), "multiples of short scales are found"
    return integers, scales


def _short(scale: np.ndarray) -> np.ndarray:
    """Positive scales, rounded down to SCALE_BITS bits, so that no product is larger than the largest weight."""
    mantissa, exponent = np.frexp(scale)
    steps = np.float32(2**SCALE_BITS)
    return np.ldexp(np.floor(mantissa * steps) / steps, exponent)


def _multiples(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The integers and scales of those columns that consist of multiples, with the largest scale, and which these are.

    A scale is the largest magnitude of the column divided by an integer; the first that makes integers of all other
    weights is taken.
    """
    K, N = weight.shape
    integers, scales = np.zeros((K, N), np.int8), np.zeros(N, np.float32)
    magnitude = np.abs(weight)
    largest = np.max(magnitude, axis=0, initial=0)
    found = largest < LEAST
    # A few weights of each column tell nearly always that a scale does not fit.
    few = np.sort(magnitude[:: max(1, K // 16)], axis=0)[-8:]
    for steps in range(1, LARGEST + 2):
        candidates = np.flatnonzero(~found)
        if not candidates.size:
            break
        scale = largest[candidates] / np.float32(steps)
        sample = few[:, candidates] / scale
        likely = np.all(np.abs(sample - np.rint(sample)) <= 2 * LARGEST * ROUNDING, axis=0)
        candidates, scale = candidates[likely], scale[likely]
        columns = weight[:, candidates]
        whole = np.rint(columns / scale)
        fits = np.all(np.abs(whole * scale - columns) <= ROUNDING * magnitude[:, candidates], axis=0)
        fits &= np.max(whole, axis=0, initial=0) <= LARGEST
        integers[:, candidates[fits]] = whole[:, fits].astype(np.int8)
        scales[candidates[fits]] = scale[fits]
        found[candidates[fits]] = True
    return integers, scales, found


def _int8(weight: np.ndarray) -> np.ndarray:
    integers, scales = integer_columns(weight)
    return integers * scales


def _float16(weight: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the caller sees the infinity
        return weight.astype(np.float16).astype(np.float32)


def _bfloat16(weight: np.ndarray) -> np.ndarray:
    """Round to the nearest multiple of the 16th bit, ties to even, as IEEE 754 says for a shorter mantissa."""
    bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(weight), rounded.view(np.float32), weight)


WEIGHT_TYPES = {
    row.name: row
    for row in (
        WeightType("int8", "int8", _int8, 1, True, 15),
        WeightType("int8_a8", "int8", _int8, 1, True, 8),
        WeightType("fp16", "fp16", _float16, 2, False),
        WeightType("bf16", "bf16", _bfloat16, 2, False),
    )
}
NAMES = tuple(dict.fromkeys(row.weights for row in WEIGHT_TYPES.values()))
ACTIVATION_BITS: Literal[15] = 15  # of integer products, unless users ask for fewer


def activation_bits() -> list[int]:
    """The values that `activations` may have, the most bits first."""
    return sorted({row.activation_bits for row in WEIGHT_TYPES.values() if row.integers}, reverse=True)


def weight_type_of(weights: str | None, activations: int = ACTIVATION_BITS) -> str | None:
    """Return the key in WEIGHT_TYPES that the arguments `weights` and `activations` of users mean; None for float32.

    Raises:
        InputError: There is no such type, or `activations` is given without integer weights.
    """
    if weights is not None and (type(weights) is not str or weights not in NAMES):
        raise InputError(f"weights is {weights!r}, expected None or one of {', '.join(map(repr, NAMES))}")
    if type(activations) is not int or activations not in activation_bits():
        raise InputError(f"activations is {activations!r}, expected {' or '.join(map(str, activation_bits()))}")
    for row in WEIGHT_TYPES.values():
        if row.weights == weights and activations == (row.activation_bits or ACTIVATION_BITS):
            return row.name
    if activations != ACTIVATION_BITS:
        raise InputError(f"activations is {activations} with weights {weights!r}: it is an option of integer weights")
    return None


def is_held(weight: np.ndarray, weight_type: str) -> bool:
    """Return whether weights [K, N] are values of this type: those of integers to the rounding of float32."""
    if not np.all(np.isfinite(weight)):
        return False
    row = WEIGHT_TYPES[weight_type]
    rounded = row.rounded(weight)
    return bool(
        np.all(np.abs(rounded - weight) <= 2 * ROUNDING * np.abs(weight) if row.integers else rounded == weight)
    )
