"""Sequences, which are Python lists of tensors, and optional values, which are None where empty (ONNX operator
specification, for example SequenceInsert-11).
"""

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, ModelError
from rnnfast.onnx.ops.arguments import check_axis, integer, integers
from rnnfast.onnx.ops.numeric import same_dtype
from rnnfast.onnx.ops.shape import concat, parts
from rnnfast.onnx.ops.types import DeclaredType, Dtype, Flag

# Each tensor of a sequence is a Python object of some hundred bytes, however few elements it has.
MAX_PARTS = 2**20


def _check_sequence(sequence):
    """Raise InputTypeError for a tensor."""
    if not isinstance(sequence, list):
        raise InputTypeError("a tensor, expected a sequence")


def sequence_empty(*, dtype: Dtype | None = None):
    """SequenceEmpty: a sequence without tensors."""
    return []


def sequence_construct(*xs):
    """SequenceConstruct: the sequence of the inputs."""
    same_dtype(xs)
    return list(xs)


def sequence_insert(sequence, tensor, position=None):
    """SequenceInsert: the sequence with a tensor inserted before `position` of [-n, n], by default at the end."""
    _check_sequence(sequence)
    same_dtype((*sequence[:1], tensor))
    n = len(sequence)
    index = n if position is None else integer(position, "position")
    if not -n <= index <= n:
        raise InputError(f"position {index} is out of range for inserting into a sequence of {n} tensors")
    index = index + n if index < 0 else index
    return [*sequence[:index], tensor, *sequence[index:]]


def _position(sequence, position):
    """Return a position in a sequence, counted from the front; InputError if it is out of range."""
    _check_sequence(sequence)
    index, n = integer(position, "position"), len(sequence)
    if not -n <= index < n:
        raise InputError(f"position {index} is out of range for a sequence of {n} tensors")
    return index % n


def sequence_erase(sequence, position=None):
    """SequenceErase: the sequence without the tensor at `position`, by default the last."""
    index = _position(sequence, np.array(-1) if position is None else position)
    return [*sequence[:index], *sequence[index + 1 :]]


def sequence_at(sequence, position):
    """SequenceAt: the tensor at `position`."""
    return sequence[_position(sequence, position)]


def sequence_length(sequence):
    """SequenceLength: the number of tensors."""
    _check_sequence(sequence)
    return np.array(len(sequence), np.int64)


def concat_from_sequence(sequence, *, axis: int, new_axis: Flag = 0):
    """ConcatFromSequence: the tensors concatenated along an axis, or stacked along a new one."""
    _check_sequence(sequence)
    if not sequence:
        raise InputError("an empty sequence has nothing to concatenate")
    if new_axis:
        axis = check_axis(axis, sequence[0].ndim + 1)
        if any(x.shape != sequence[0].shape for x in sequence):
            raise InputError(f"tensors of shapes {', '.join(str(x.shape) for x in sequence)}, expected equal ones")
        sequence = [np.expand_dims(x, axis) for x in sequence]
    return concat(*sequence, axis=axis)


def stack(rows, initial=None, *, axis: int, backwards: Flag = 0):
    """Stack, which loops that gather their results become: the rows [n, ...] along `axis`, the last first if
    `backwards`. They follow `initial` along that axis; without it there must be some.
    """
    axis = check_axis(axis, rows.ndim if initial is None else initial.ndim)
    if initial is None and not len(rows):
        raise InputError("an empty sequence has nothing to concatenate")
    if initial is not None and not len(rows):
        return initial
    stacked = np.moveaxis(rows[::-1] if backwards else rows, 0, axis)
    return stacked if initial is None else concat(initial, stacked, axis=axis)


def split_to_sequence(x, split=None, *, axis: int = 0, keepdims: Flag = 1):
    """SplitToSequence: parts of the sizes in a vector, or of one size, 1 by default; the last may be smaller.

    keepdims=0 drops the axis of parts of one size, if that is 1. ONNX's text says so of the default size only, but
    torch writes `split` as well and means the same, and onnxruntime follows it.
    """
    axis = check_axis(axis, x.ndim)
    n = x.shape[axis]
    if split is not None and split.ndim == 1:
        return list(parts(x, integers(split, "split"), axis))
    size = 1 if split is None else integer(split, "split")
    if size < 1:
        raise InputError(f"split is {size}, expected 1 or more")
    if -(-n // size) > MAX_PARTS:
        raise LimitError(f"a sequence of {-(-n // size)} tensors, more than the limit of {MAX_PARTS}")
    pieces = list(parts(x, [min(size, n - start) for start in range(0, n, size)], axis))
    return pieces if keepdims or size > 1 else [part.squeeze(axis) for part in pieces]


def optional(element=None, *, type: DeclaredType | None = None):
    """Optional: the element itself; None without one, when the type says what it could be."""
    if element is None and type is None:
        raise ModelError("neither an input nor a type")
    return element


def optional_get_element(optional):
    """OptionalGetElement: the element; InputError if there is none."""
    if optional is None:
        raise InputError("the optional value is empty")
    return optional


def optional_has_element(optional=None):
    """OptionalHasElement: whether there is an element."""
    return np.array(optional is not None)


OPS = {
    "SequenceEmpty": {11: sequence_empty},
    "SequenceConstruct": {11: sequence_construct},
    "SequenceInsert": {11: sequence_insert},
    "SequenceErase": {11: sequence_erase},
    "SequenceAt": {11: sequence_at},
    "SequenceLength": {11: sequence_length},
    "ConcatFromSequence": {11: concat_from_sequence},
    "SplitToSequence": {11: split_to_sequence},
    "Optional": {15: optional},
    "OptionalGetElement": {15: optional_get_element},
    "OptionalHasElement": {15: optional_has_element},
}
