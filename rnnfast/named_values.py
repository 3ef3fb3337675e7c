"""Values by name, as calls take them and return them."""

from __future__ import annotations

import collections.abc
from typing import TYPE_CHECKING, Any

from rnnfast.errors import InputError, InputTypeError

if TYPE_CHECKING:
    import numpy as np


def merge_inputs(label: str, feed: Any, inputs: dict[str, Any], single: str | None = None) -> dict[str, Any]:
    """Merge a mapping of inputs and keyword inputs into one dict.

    Args:
        label: The model's or layer's name, for messages.
        feed: A mapping of name to value, None, or one array without a name.
        inputs: The inputs given by keyword.
        single: The name that an array without one gets; None if there has to be a name.

    Raises:
        InputError: An input is in both.
        InputTypeError: `feed` is no mapping, and cannot be the single input.
    """
    if feed is None:
        return inputs
    if isinstance(feed, collections.abc.Mapping):
        for name in inputs:
            if name in feed:
                raise InputError(f"{label}: input {name!r} is given twice, in the mapping and by keyword")
        return {**feed, **inputs}
    if inputs or single is None:
        raise InputTypeError(f"{label}: inputs are {type(feed).__name__}, expected a mapping by name")
    return {single: feed}


class Outputs(dict[str, Any]):
    """A dict of output name to array, in the graph's order.

    Names that are identifiers can be read as attributes too: ``outputs.logits``.
    """

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}, there are {list(self)}") from None
