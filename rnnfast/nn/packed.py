"""Ragged batches as packed sequences, with the names, arguments and semantics of torch.nn.utils.rnn, on NumPy arrays.

A packed sequence holds what the rows have and no padding: for each step in turn the rows that are as long, the longest
first. Recurrent layers take one in place of x and give one back; so they take torch's own.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError
from rnnfast.nn.checks import as_array, check_flag, check_lengths, check_size


class PackedSequence(NamedTuple):
    """What `pack_padded_sequence` and `pack_sequence` give; not for making by hand."""

    data: np.ndarray
    """[sum of lengths, *]: the elements of step 0 of all rows, then those of step 1 of the rows that have one ..."""
    batch_sizes: np.ndarray
    """[longest length] int64: how many rows have each step; never rising."""
    sorted_indices: np.ndarray | None = None
    """[B] int64: the rows by falling length; None where they stand so."""
    unsorted_indices: np.ndarray | None = None
    """[B] int64: the inverse of sorted_indices."""


def pack_padded_sequence(x, lengths, batch_first=False, enforce_sorted=True):
    """x [T, B, *] ([B, T, *] with `batch_first`) of any dtype, lengths [B] integers from 1 to T -> PackedSequence

    enforce_sorted: refuse lengths that are not in falling order; False sorts the rows, which `pad_packed_sequence` and
    recurrent layers undo.
    """
    x = as_array(x, "x")
    if x.ndim < 2 or not x.size:
        axes = "[B, T, ...]" if batch_first else "[T, B, ...]"
        raise InputError(f"x: shape is {list(x.shape)}, expected {axes} with no axis of size 0")
    if check_flag(batch_first, "batch_first"):
        x = x.swapaxes(0, 1)
    if lengths is None:
        raise InputTypeError("lengths: got None, expected one for each row")
    lengths = check_lengths(lengths, *x.shape[:2])
    batch_sizes, rows, indices = _sort(lengths, enforce_sorted)
    rank, step = _places(batch_sizes)
    return PackedSequence(x[step, rows[rank]], batch_sizes, *indices)


def pad_packed_sequence(packed, batch_first=False, padding_value=0.0, total_length=None):
    """-> x [T, B, *] ([B, T, *] with `batch_first`), lengths [B] int64; the rows in the order that they were packed in.

    padding_value: what stands past a row's end. total_length: T, at least the longest length, which None takes.
    Raises LimitError where there is no memory for the padding.
    """
    packed = checked(packed, "packed")
    batch_first = check_flag(batch_first, "batch_first")
    steps, rows = len(packed.batch_sizes), packed.batch_sizes[0]
    if total_length is not None:
        if check_size(total_length, "total_length") < steps:
            raise InputError(f"total_length: {total_length}, expected at least {steps}, the longest length")
        steps = int(total_length)
    shape = (rows, steps) if batch_first else (steps, rows)
    rank, step = _places(packed.batch_sizes)
    try:
        x = np.full((*shape, *packed.data.shape[1:]), padding_value, packed.data.dtype)
    except MemoryError as error:
        raise LimitError(f"packed: no memory for {rows} rows padded to {steps} steps") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"padding_value: {padding_value!r} is no value of {packed.data.dtype} that can stand in "
            f"{steps} steps of {rows} rows ({error})"
        ) from error
    row = rank if packed.sorted_indices is None else packed.sorted_indices[rank]
    x[(row, step) if batch_first else (step, row)] = packed.data
    return x, unsort(packed, _lengths(packed.batch_sizes))


def pack_sequence(sequences, enforce_sorted=True):
    """sequences: arrays [length, *], of one dtype and one shape but for the length, which is 1 or more
    -> PackedSequence; enforce_sorted as `pack_padded_sequence` has it."""
    if not isinstance(sequences, Iterable):
        raise InputTypeError(f"sequences: got a {type(sequences).__name__}, expected a list of arrays")
    sequences = [as_array(sequence, f"sequences[{i}]") for i, sequence in enumerate(sequences)]
    if not sequences:
        raise InputError("sequences: got none, expected at least one")
    first = sequences[0]
    for i, sequence in enumerate(sequences):
        if not sequence.ndim or not sequence.size or sequence.shape[1:] != first.shape[1:]:
            expected = ", ".join(map(str, ("length", *first.shape[1:])))
            raise InputError(
                f"sequences[{i}]: shape is {list(sequence.shape)}, expected [{expected}] with no axis of size 0"
            )
        if sequence.dtype != first.dtype:
            raise InputTypeError(f"sequences[{i}]: dtype is {sequence.dtype}, expected the first's {first.dtype}")
    lengths = np.array([len(sequence) for sequence in sequences])
    batch_sizes, rows, indices = _sort(lengths, enforce_sorted)
    rank, step = _places(batch_sizes)
    firsts = np.cumsum(lengths) - lengths
    return PackedSequence(np.concatenate(sequences)[firsts[rows][rank] + step], batch_sizes, *indices)


def unpack_sequence(packed):
    """-> the list of arrays [length, *], in the order that they were packed in: views of one array."""
    packed = checked(packed, "packed")
    lengths = unsort(packed, _lengths(packed.batch_sizes))
    ranks = unsort(packed, np.arange(len(lengths)))
    ends = np.cumsum(lengths)
    step = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    starts = np.cumsum(packed.batch_sizes) - packed.batch_sizes
    return np.split(packed.data[starts[step] + np.repeat(ranks, lengths)], ends[:-1])


def is_packed(x):
    """Whether x is a packed sequence, of this module or another (torch's)."""
    return hasattr(x, "batch_sizes")


def checked(packed, name="x"):
    """A packed sequence, whoever's, as a PackedSequence that holds together."""
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
    """Values of rows in the order that they were packed in, by falling length."""
    return rows if packed.sorted_indices is None else rows.take(packed.sorted_indices, axis)


def unsort(packed, rows, axis=0):
    """The inverse of `sort`."""
    return rows if packed.unsorted_indices is None else rows.take(packed.unsorted_indices, axis)


def _integers(value, name):
    array = as_array(value, name)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputTypeError(f"{name}: got {array.dtype} of shape {list(array.shape)}, expected one axis of integers")
    return array.astype(np.int64, copy=False)


def _inverse(indices, rows, name):
    if not np.array_equal(np.sort(indices), np.arange(rows)):
        raise InputError(f"{name}: expected each of the {rows} rows once")
    return np.argsort(indices)


def _sort(lengths, enforce_sorted):
    """-> batch_sizes, the rows by falling length, and (sorted_indices, unsorted_indices)"""
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


def _places(batch_sizes):
    """Of each element of the data, its row among those by falling length and its step."""
    step = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    return np.arange(len(step)) - (np.cumsum(batch_sizes) - batch_sizes)[step], step


def _lengths(batch_sizes):
    """Those of the rows by falling length."""
    return np.searchsorted(-batch_sizes, -np.arange(batch_sizes[0]))
