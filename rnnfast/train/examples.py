"""The examples of fit, evaluate and predict: they are checked once and cut into batches and chunks of time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn.checks import as_array, check_lengths
from rnnfast.nn.module import layers_of


class Batch(NamedTuple):
    """Some examples: the arrays of `Examples`, with the batch as their first axis."""

    x: Any
    y: Any
    lengths: Any = None
    mask: Any = None

    @property
    def weight(self) -> int:
        """The weight of the batch's mean in that of the epoch: the number of its elements that count.

        Without a mask it is the product of y's first two axes, as chunks of tbptt differ in their time steps.
        """
        return (math.prod(self.y.shape[:2]) or 1) if self.mask is None else int(np.count_nonzero(self.mask))

    def chunk(self, start: int, stop: int) -> Batch:
        """Return the time steps from `start` to `stop`, which is excluded."""
        steps = slice(start, stop)
        lengths = None if self.lengths is None else np.clip(self.lengths - start, 0, stop - start)
        return Batch(self.x[:, steps], self.y[:, steps], lengths, None if self.mask is None else self.mask[:, steps])


class Examples:
    """The arrays x, y, lengths and mask, whose first axes are the examples; y may be None.

    x may be a tuple of arrays, and lengths then is a tuple too. The lengths of the last array of x are those of y.
    """

    def __init__(self, net, x, y=None, lengths=None, mask=None):
        check_batch_first(net)
        self.x = tuple(as_array(a, f"x[{i}]") for i, a in enumerate(x)) if isinstance(x, tuple) else as_array(x, "x")
        self.y: Any = None if y is None else as_array(y, "y")
        lead = first(self.x)
        for name, array in [("x", lead), *([] if self.y is None else [("y", self.y)])]:
            if array.ndim == 0:
                raise InputError(f"{name}: got a single number, expected one or more examples along the first axis")
        self.count = len(lead)
        if not self.count:
            raise InputError(f"x: shape is {list(lead.shape)}: no example")
        others = self.x[1:] if isinstance(self.x, tuple) else ()
        for name, array in [*((f"x[{i + 1}]", a) for i, a in enumerate(others)), ("y", self.y)]:
            if array is not None and (array.ndim == 0 or len(array) != self.count):
                raise InputError(f"{name}: shape is {list(array.shape)}, expected {self.count} examples, as in x")
        self.lengths = self._lengths(lengths)
        self.mask = self._mask(mask, returns_sequences(net))
        if self.mask is not None and not self.mask.any():
            raise InputError("mask: nothing is left of all examples")

    def _lengths(self, lengths):
        """Return the lengths: one vector or None, or for a tuple x one of these for each of its arrays."""
        if not isinstance(self.x, tuple) or lengths is None:
            return self._lengths_of(self.x, lengths)
        if not isinstance(lengths, (tuple, list)) or len(lengths) != len(self.x):
            received = f" of {len(lengths)}" if isinstance(lengths, (tuple, list)) else ""
            raise InputTypeError(
                f"lengths: got a {type(lengths).__name__}{received}, expected one for each of the "
                f"{len(self.x)} arrays of x"
            )
        return tuple(self._lengths_of(a, one) for a, one in zip(self.x, lengths, strict=True))

    def _lengths_of(self, array, lengths):
        """Return the lengths of one array of x."""
        if lengths is not None and array.ndim < 2:
            raise InputError(f"lengths: x has shape {list(array.shape)}, without a time axis")
        return None if lengths is None else check_lengths(lengths, array.shape[1], self.count)

    def _mask(self, mask, sequences):
        """Return the given mask, or else that of the steps within the lengths if y has an output for each step."""
        if mask is not None:
            mask = as_array(mask, "mask")
            if mask.dtype != bool:
                raise InputTypeError(f"mask: dtype is {mask.dtype}, expected bool")
            if self.y is None or mask.ndim == 0 or mask.shape != self.y.shape[: mask.ndim]:
                shape = None if self.y is None else list(self.y.shape)
                raise InputError(f"mask: shape is {list(mask.shape)}, expected {shape}, that of y, or its first axes")
            return mask
        x, lengths = last(self.x), last(self.lengths)
        if lengths is None or self.y is None or not sequences or self.y.shape[:2] != x.shape[:2]:
            return None
        return np.arange(self.y.shape[1]) < lengths[:, None]

    def batch(self, indices):
        """Return the examples of a slice or an array of indices."""

        def take(a):
            return None if a is None else tuple(map(take, a)) if isinstance(a, tuple) else a[indices]

        return Batch(*map(take, (self.x, self.y, self.lengths, self.mask)))

    def batches(self, size):
        """Yield all examples in order, `size` at a time."""
        for start in range(0, self.count, size):
            yield self.batch(slice(start, start + size))

    def chunks(self, net, steps):
        """Return where the chunks of `steps` time steps begin; refuse networks whose state cannot be carried over."""
        if isinstance(self.x, tuple) or self.x.ndim < 2 or self.y.shape[:2] != self.x.shape[:2]:
            shape = "a tuple" if isinstance(self.x, tuple) else f"of shape {list(self.x.shape)}"
            raise InputError(
                f"tbptt: x is {shape}, y of shape {list(self.y.shape)}, expected the same examples and "
                "time steps for both"
            )
        if self.mask is not None and self.mask.ndim < 2:
            raise InputError(f"tbptt: mask has shape {list(self.mask.shape)}, expected [examples, time ...]")
        for layer in layers_of(net):
            if getattr(layer, "bidirectional", False) or getattr(layer, "reverse", False):
                raise InputError(f"tbptt: {layer!r} begins at the end of a sequence")
        if not returns_sequences(net):
            raise InputError("tbptt: a recurrent layer has return_sequences=False, expected an output for each step")
        return range(0, self.x.shape[1], steps)


def first(x):
    """Return the first array of a tuple, or an array itself."""
    return x[0] if isinstance(x, tuple) else x


def last(x):
    """Return the last array of a tuple, or an array itself."""
    return x[-1] if isinstance(x, tuple) else x


def check_batch_first(net):
    """Refuse networks whose arrays have time, not examples, along the first axis."""
    for layer in layers_of(net):
        if not getattr(layer, "batch_first", True):
            raise InputError(f"{layer!r}: batch_first is False, expected True: examples lie along the first axis")


def returns_sequences(net):
    """Return whether the network has an output for each time step."""
    return all(getattr(layer, "return_sequences", True) for layer in layers_of(net))
