"""Numbers of several processes as those of one server."""

from __future__ import annotations

from typing import Any

# Numbers of which the latest counts, not the sum.
LATEST = frozenset({"last_inference", "last"})
# Lists of numbers that are the same in all: the upper bounds of a histogram.
SAME = frozenset({"bounds"})
# What tells the entries of a list apart: entries with the same values of these are one.
KEYS = ("name", "version", "batch_size")


def summed(values: list[Any], name: str = "") -> Any:
    """Sum numbers within objects and lists that have the same form.

    Entries of lists of objects belong together where their KEYS are the same. Lists of numbers are summed element by
    element, a truth value is whether one is true, and texts are those of the first value.
    """
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(key for value in values for key in value)
        return {
            key: first[key] if key in KEYS and key in first else summed([v[key] for v in values if key in v], key)
            for key in names
        }
    if isinstance(first, list):
        entries = [entry for value in values for entry in value]
        if not all(isinstance(entry, dict) for entry in entries):
            return first if name in SAME else [summed(list(numbers), name) for numbers in zip(*values)]
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for entry in entries:
            groups.setdefault(tuple(entry.get(key) for key in KEYS), []).append(entry)
        return [summed(group) for group in groups.values()]
    if isinstance(first, bool):
        return any(values)
    if isinstance(first, (int, float)):
        return max(values) if name in LATEST else sum(values)
    return first
