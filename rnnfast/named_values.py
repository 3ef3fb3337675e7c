"""Values by name, as a call takes them and gives them back."""

import collections.abc

from rnnfast.errors import InputError, InputTypeError


def merge_inputs(label, feed, inputs, single=None):
    """A mapping of inputs by name, of one mapping and keywords. single: the name of an array that comes without one, or
    None."""
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


class Outputs(dict):
    """Output name -> ndarray, in the graph's order; names that are identifiers are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}, there are {list(self)}") from None
