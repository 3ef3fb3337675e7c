"""Ragged columns of a batch as sequences, and results as columns.

A batch is a dict of arrays, a pandas DataFrame or a pyarrow Table. Neither package is imported here: a batch that is
theirs comes from a program that has imported it.
"""

from __future__ import annotations

import collections.abc
import sys
from typing import Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError

LARGEST_OFFSET = 2**31 - 1  # of pyarrow's lists


def kind_of(batch: Any) -> str | None:
    """Return which table a batch is ("dict", "frame" or "arrow"), or None if it is one column."""
    pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if isinstance(batch, collections.abc.Mapping):
        return "dict"
    if pandas is not None and isinstance(batch, pandas.DataFrame):
        return "frame"
    if pyarrow is not None and isinstance(batch, (pyarrow.Table, pyarrow.RecordBatch)):
        return "arrow"
    return None


def names_of(batch: Any, kind: str) -> list[str]:
    """Return the names of a table's columns."""
    return list(batch.schema.names if kind == "arrow" else batch)


def sequences_of(column: Any, where: str) -> list[Any]:
    """Return the rows of a column as arrays or, where they are lists of numbers, as those.

    Raises:
        InputError: A row has no value, or its parts have different lengths.
    """
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None and isinstance(column, pyarrow.ChunkedArray):
        return [row for chunk in column.chunks for row in _arrow_rows(chunk, where)]
    if pyarrow is not None and isinstance(column, pyarrow.Array):
        return _arrow_rows(column, where)
    if not isinstance(column, collections.abc.Iterable):
        raise InputTypeError(f"Map: {where} is a {type(column).__name__}, expected a table or sequences")
    return [_sequence(value, f"{where}, row {row}") for row, value in enumerate(column)]


def _sequence(value, where):
    """One row: a mapping of several inputs, an array, or a list that stays one."""
    if isinstance(value, collections.abc.Mapping):
        return {name: _sequence(part, f"{where}, {name!r}") for name, part in value.items()}
    if value is None or isinstance(value, float):
        raise InputError(f"Map: {where} is {value!r}, expected a sequence")
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim:
        # Rows of nested lists, as pandas reads them from a file.
        return _stacked([_sequence(part, where) if _is_array(part) else part for part in value], where)
    return value


def _is_array(value):
    return isinstance(value, np.ndarray)


def _stacked(parts, where):
    """The steps of a row as one array."""
    if any(part is None for part in parts):
        raise InputError(f"Map: {where} has a step without a value")
    if len({np.shape(part) for part in parts}) > 1:
        raise InputError(f"Map: {where} has steps of different shapes {sorted({np.shape(part) for part in parts})}")
    return np.stack(parts) if all(map(_is_array, parts)) else [p.tolist() if _is_array(p) else p for p in parts]


def _arrow_rows(array, where):
    """The rows of a pyarrow array of lists, which share its memory where they can."""
    from pyarrow import types

    if array.null_count:
        raise InputError(f"Map: {where}, row {array.is_null().index(True).as_py()} is null, expected a sequence")
    kind = array.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return list(array.to_numpy(zero_copy_only=False))  # Ray's tensors, and what is no sequence
    ends = np.cumsum(_lengths(array))
    steps = _block(array.flatten())
    if steps is not None:
        return [steps[begin:end] for begin, end in zip([0, *ends.tolist()], ends.tolist())]
    rows = [_block(array[row].values) for row in range(len(array))]  # rows of other numbers of features
    for row, value in enumerate(rows):
        if value is None:
            raise InputError(f"Map: {where}, row {row} has null values, or steps of different lengths")
    return rows


def _lengths(array):
    """How many values each list of an array has."""
    from pyarrow import compute

    return compute.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)


def _block(array):
    """Nested lists of equal lengths as one array [n, ...]; None where lengths differ or a value is null."""
    from pyarrow import types

    if array.null_count:
        return None
    kind = array.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return array.to_numpy(zero_copy_only=False)
    lengths = _lengths(array)
    size = int(lengths[0]) if len(lengths) else 0
    values = _block(array.flatten()) if (lengths == size).all() else None
    return None if values is None else values.reshape(len(array), size, *values.shape[1:])


def with_results(batch: Any, kind: str, keep: list[str], results: dict[str, list[Any]]) -> Any:
    """Return a table of the same kind with some columns of `batch`, and results as further columns."""
    if kind == "dict":
        return {name: batch[name] for name in keep} | {name: as_objects(rows) for name, rows in results.items()}
    if kind == "frame":
        lists = {name: as_objects([as_lists(row) for row in rows]) for name, rows in results.items()}
        return batch[keep].assign(**lists)
    table = batch.select(keep)
    for name, rows in results.items():
        index = table.schema.get_field_index(name)
        column = _arrow_column(rows)
        table = table.append_column(name, column) if index < 0 else table.set_column(index, name, column)
    return table


def as_objects(rows: list[Any]) -> np.ndarray:
    """Return the rows as an array of objects, one for each row."""
    column = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        column[index] = row
    return column


def as_lists(row: Any) -> Any:
    """Return a row as pandas' writers take it: numbers and one axis as they are, several axes as a list of arrays."""
    return list(map(as_lists, row)) if np.ndim(row) > 1 else row


def _arrow_column(rows):
    """Arrays [T, ...] as a pyarrow array of nested lists."""
    import pyarrow

    if not rows:
        return pyarrow.nulls(0)
    if np.ndim(rows[0]) == 0:
        return pyarrow.array(np.array(rows))
    if len({row.shape[1:] for row in rows}) > 1:
        return pyarrow.array([row.tolist() for row in rows])
    steps = np.concatenate(rows)
    column = pyarrow.array(steps.reshape(-1))
    for size in reversed(steps.shape[1:]):
        column = _lists(np.arange(0, len(column) + 1, size) if size else np.zeros(len(steps) + 1, int), column)
    return _lists(np.cumsum([0, *map(len, rows)]), column)


def _lists(offsets, values):
    import pyarrow

    if offsets[-1] > LARGEST_OFFSET:
        return pyarrow.LargeListArray.from_arrays(offsets, values)
    return pyarrow.ListArray.from_arrays(offsets.astype(np.int32), values)
