"""Ragged batches as packed sequences, with the names, arguments and semantics of torch.nn.utils.rnn, on NumPy arrays.

A packed sequence holds the elements of all rows without padding: for each time step in turn, those of the rows that are
long enough, the longest row first. Recurrent layers take one, rnnfast's or torch's, in place of x and return one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError
from rnnfast.nn.checks import as_array, check_flag, check_lengths, check_size

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import IntArray


class PackedSequence(NamedTuple):
    """A ragged batch, as `pack_padded_sequence` and `pack_sequence` return it; it is not meant to be made by hand."""

    data: np.ndarray
    """[sum of lengths, *]: the elements of step 0 of all rows, then those of step 1 of the rows that have one, etc."""
    batch_sizes: IntArray
    """[longest length] int64: the number of rows that have each step; it never increases."""
    sorted_indices: IntArray | None = None
    """[B] int64: the rows by descending length; None if they were in this order."""
    unsorted_indices: IntArray | None = None
    """[B] int64: the inverse of sorted_indices."""


def pack_padded_sequence(
    x: ArrayLike, lengths: ArrayLike, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Pack a padded batch, as torch.nn.utils.rnn.pack_padded_sequence.

    Args:
        x: [T, B, *], or [B, T, *] with batch_first, of any dtype.
        lengths: Integers [B] from 1 to T.
        batch_first: Whether the first axis is the batch.
        enforce_sorted: Whether to refuse lengths that are not in descending order. False sorts the rows, which
            `pad_packed_sequence` and recurrent layers undo.

    Raises:
        InputError: A shape or length does not fit.
        InputTypeError: The lengths are no integers.
    """
    padded = as_array(x, "x")
    if padded.ndim < 2 or not padded.size:
        axes = "[B, T, ...]" if batch_first else "[T, B, ...]"
        raise InputError(f"x: shape is {list(padded.shape)}, expected {axes} with no axis of size 0")
    if check_flag(batch_first, "batch_first"):
        padded = padded.swapaxes(0, 1)
    if lengths is None:
        raise InputTypeError("lengths: got None, expected one for each row")
    batch_sizes, rows, indices = _sort(check_lengths(lengths, *padded.shape[:2]), enforce_sorted)
    rank, step = _positions(batch_sizes)
    return PackedSequence(padded[step, rows[rank]], batch_sizes, *indices)


def pad_packed_sequence(
    packed: Any, batch_first: bool = False, padding_value: Any = 0.0, total_length: int | None = None
) -> tuple[np.ndarray, IntArray]:
    """Pad a packed sequence, as torch.nn.utils.rnn.pad_packed_sequence.

    Args:
        packed: A PackedSequence, rnnfast's or torch's.
        batch_first: Whether the first axis of the result is the batch.
        padding_value: The value after a row's end.
        total_length: T, at least the longest length; None is the longest length.

    Returns:
        The batch [T, B, *], or [B, T, *] with batch_first, and its lengths [B] int64; the rows are in the order in
        which they were packed.

    Raises:
        InputError: The packed sequence is inconsistent, total_length is too short, or padding_value does not fit.
        InputTypeError: `packed` is no packed sequence, or an argument has the wrong type.
        LimitError: There is no memory for the padded batch.
    """
    packed = checked(packed, "packed")
    batch_first = check_flag(batch_first, "batch_first")
    steps, rows = len(packed.batch_sizes), packed.batch_sizes[0]
    if total_length is not None:
        if check_size(total_length, "total_length") < steps:
            raise InputError(f"total_length: {total_length}, expected at least {steps}, the longest length")
        steps = int(total_length)
    shape = (rows, steps) if batch_first else (steps, rows)
    rank, step = _positions(packed.batch_sizes)
    try:
        x = np.full((*shape, *packed.data.shape[1:]), padding_value, packed.data.dtype)
    except MemoryError as error:
        raise LimitError(f"packed: no memory for {rows} rows padded to {steps} steps") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"padding_value: {padding_value!r} is no value of {packed.data.dtype} for a padded batch of "
            f"{steps} steps of {rows} rows ({error})"
        ) from error
    row = rank if packed.sorted_indices is None else packed.sorted_indices[rank]
    x[(row, step) if batch_first else (step, row)] = packed.data
    return x, unsort(packed, _lengths(packed.batch_sizes))


def pack_sequence(sequences: Iterable[ArrayLike], enforce_sorted: bool = True) -> PackedSequence:
    """Pack a list of sequences, as torch.nn.utils.rnn.pack_sequence.

    Args:
        sequences: Arrays [length, *] of one dtype and, except for the length, one shape; a length is at least 1.
        enforce_sorted: Whether to refuse lengths that are not in descending order; False sorts the rows.

    Raises:
        InputError: There are no sequences, or a shape or length does not fit.
        InputTypeError: `sequences` cannot be iterated, or the dtypes differ.
    """
    if not isinstance(sequences, Iterable):
        raise InputTypeError(f"sequences: got a {type(sequences).__name__}, expected a list of arrays")
    arrays = [as_array(sequence, f"sequences[{i}]") for i, sequence in enumerate(sequences)]
    if not arrays:
        raise InputError("sequences: got none, expected at least one")
    first = arrays[0]
    for i, array in enumerate(arrays):
        if not array.ndim or not array.size or array.shape[1:] != first.shape[1:]:
            expected = ", ".join(map(str, ("length", *first.shape[1:])))
            raise InputError(
                f"sequences[{i}]: shape is {list(array.shape)}, expected [{expected}] with no axis of size 0"
            )
        if array.dtype != first.dtype:
            raise InputTypeError(f"sequences[{i}]: dtype is {array.dtype}, expected the first's {first.dtype}")
    lengths = np.array([len(array) for array in arrays])
    batch_sizes, rows, indices = _sort(lengths, enforce_sorted)
    rank, step = _positions(batch_sizes)
    firsts = np.cumsum(lengths) - lengths
    return PackedSequence(np.concatenate(arrays)[firsts[rows][rank] + step], batch_sizes, *indices)


def unpack_sequence(packed: Any) -> list[np.ndarray]:
    """Return the sequences of a packed sequence, as torch.nn.utils.rnn.unpack_sequence.

    Args:
        packed: A PackedSequence, rnnfast's or torch's.

    Returns:
        Arrays [length, *] in the order in which they were packed; they are views of one array.

    Raises:
        InputError: The packed sequence is inconsistent.
        InputTypeError: `packed` is no packed sequence.
    """
    packed = checked(packed, "packed")
    lengths = unsort(packed, _lengths(packed.batch_sizes))
    ranks = unsort(packed, np.arange(len(lengths)))
    ends = np.cumsum(lengths)
    step = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    starts = np.cumsum(packed.batch_sizes) - packed.batch_sizes
    return np.split(packed.data[starts[step] + np.repeat(ranks, lengths)], ends[:-1])


def is_packed(x: Any) -> bool:
    """Return whether x is a packed sequence, rnnfast's or torch's."""
    return hasattr(x, "batch_sizes")


def checked(packed: Any, name: str = "x") -> PackedSequence:
    """Convert a packed sequence, rnnfast's or torch's, to a PackedSequence whose fields are consistent."""
    try:
        data, *rest = (getattr(packed, field) for field in PackedSequence._fields)
    except AttributeError:
        raise InputTypeError(f"{name}: got a {type(packed).__name__}, expected a PackedSequence") from None
    data = as_array(data, f"{name}.data")
    sizes, indices, inverse = (
        None if a is None else _integers(a, f"{name}.{field}") for a, field in zip(rest, PackedSequence._fields[1:])
    )
    if sizes is None or not sizes.size or sizes[-1] < 1 or (sizes[1:] > sizes[:-1]).any():
        raise InputError(f"{name}.batch_sizes: expected numbers of rows that never rise, from B down to at least 1")
    if not data.ndim or sizes.max() > len(data) or len(data) != sizes.sum():
        raise InputError(
            f"{name}.data: shape is {list(data.shape)}, expected [{sizes.sum()}, ...], the sum of batch_sizes"
        )
    if indices is None and inverse is None:
        return PackedSequence(data, sizes)
    indices = _inverse(inverse, sizes[0], f"{name}.unsorted_indices") if indices is None else indices
    expected = _inverse(indices, sizes[0], f"{name}.sorted_indices")
    if inverse is not None and not np.array_equal(inverse, expected):
        raise InputError(f"{name}.unsorted_indices: not the inverse of sorted_indices")
    return PackedSequence(data, sizes, indices, expected)


def sort(packed, rows, axis=0):
    """Sort values of rows from their original order to that of the packed data, by descending length."""
    return rows if packed.sorted_indices is None else rows.take(packed.sorted_indices, axis)


def unsort(packed, rows, axis=0):
    """Sort values of rows back to their original order: the inverse of `sort`."""
    return rows if packed.unsorted_indices is None else rows.take(packed.unsorted_indices, axis)


def _integers(value, name):
    """Return a vector of integers as int64."""
    array = as_array(value, name)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputTypeError(f"{name}: got {array.dtype} of shape {list(array.shape)}, expected one axis of integers")
    return np.array(array, np.int64)  # a copy: what is checked is what is used


def _inverse(indices, rows, name):
    """Return the inverse of a permutation of the rows."""
    if not np.array_equal(np.sort(indices), np.arange(rows)):
        raise InputError(f"{name}: expected each of the {rows} rows once")
    return np.argsort(indices)


def _sort(lengths, enforce_sorted):
    """Return batch_sizes, the rows by descending length, and (sorted_indices, unsorted_indices)."""
    if lengths.min() < 1:
        raise InputError(
            f"lengths: 0 at row {lengths.argmin()}, expected at least 1, as a packed sequence has no empty rows"
        )
    if check_flag(enforce_sorted, "enforce_sorted"):
        rising = np.flatnonzero(lengths[1:] > lengths[:-1])
        if rising.size:
            row = rising[0] + 1
            raise InputError(
                f"lengths: {lengths[row]} at row {row} after {lengths[row - 1]}, expected falling order "
                "with enforce_sorted=True; enforce_sorted=False sorts the rows"
            )
        rows, indices = np.arange(len(lengths)), (None, None)
    else:
        rows = np.argsort(-lengths, kind="stable")
        indices = rows, np.argsort(rows)
    return np.searchsorted(-lengths[rows], -np.arange(lengths.max())), rows, indices


def _positions(batch_sizes):
    """Return for each element of the data its row, counted by descending length, and its time step."""
    step = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    return np.arange(len(step)) - (np.cumsum(batch_sizes) - batch_sizes)[step], step


def _lengths(batch_sizes):
    """Return the lengths of the rows, in descending order."""
    return np.searchsorted(-batch_sizes, -np.arange(batch_sizes[0]))
