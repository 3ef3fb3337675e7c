"""The examples of fit, evaluate and predict: they are checked once and cut into batches and chunks of time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import Error, InputError, InputTypeError, with_location
from rnnfast.nn.checks import as_array, as_floats, check_lengths, is_ragged
from rnnfast.nn.module import layers_of, takes_floats
from rnnfast.train.losses import check_weights


class Batch(NamedTuple):
    """Some examples: the arrays of `Examples`, with the batch as their first axis."""

    x: Any
    y: Any
    lengths: Any = None
    mask: Any = None

    @property
    def weight(self) -> float:
        """The weight of the batch's mean in that of the epoch: the number of its elements that count, or their weights.

        Without a mask it is the product of y's first two axes, as chunks of tbptt differ in their time steps.
        """
        if self.mask is None:
            return math.prod(self.y.shape[:2]) or 1
        return int(np.count_nonzero(self.mask)) if self.mask.dtype == bool else float(self.mask.sum())

    def chunk(self, start: int, stop: int) -> Batch:
        """Return the time steps from `start` to `stop`, which is excluded."""
        steps = slice(start, stop)
        lengths = None if self.lengths is None else np.clip(self.lengths - start, 0, stop - start)
        return Batch(self.x[:, steps], self.y[:, steps], lengths, None if self.mask is None else self.mask[:, steps])


class Examples:
    """The arrays x, y, lengths and mask, whose first axes are the examples; y may be None.

    x may be a tuple of arrays, and lengths then is a tuple too. The lengths of the last array of x are those of y. With
    weights of samples or classes the mask is the weight of each element. Lists of arrays of different lengths are
    padded with zeros; the lengths of x are then those of its arrays. Elements whose y is `ignore_index` do not count.
    """

    def __init__(
        self,
        net,
        x,
        y=None,
        lengths=None,
        mask=None,
        sample_weight=None,
        class_weight=None,
        ignore_index=None,
        may_count_nothing=False,
    ):
        check_batch_first(net)
        read = as_floats if takes_floats(net) else as_array
        lengths = _given_lengths(x, lengths)
        self.x = (
            tuple(_read(a, f"x[{i}]", read) for i, a in enumerate(x)) if isinstance(x, tuple) else _read(x, "x", read)
        )
        self.y: Any = None if y is None else _read(y, "y", as_array)
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
        if is_ragged(y):
            expected = last(self.lengths)
            if expected is None or [len(a) for a in y] != expected.tolist():
                raise InputError("y: arrays of different lengths, expected those of x, or lengths=")
        self.mask = self._mask(mask, returns_sequences(net))
        ignored = None if ignore_index is None or self.y is None else self.y != ignore_index
        for weights in (self._weights(sample_weight, "sample_weight"), self._class_weights(class_weight), ignored):
            self.mask = weights if self.mask is None else self.mask if weights is None else _product(self.mask, weights)
        if self.mask is not None and not self.mask.any() and not may_count_nothing:
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
            return self._weights(mask, "mask")
        x, lengths = last(self.x), last(self.lengths)
        if lengths is None or self.y is None or not sequences or self.y.shape[:2] != x.shape[:2]:
            return None
        return np.arange(self.y.shape[1]) < lengths[:, None]

    def _weights(self, weights, name):
        """Return a mask or weights of elements, checked: bool or float64."""
        if weights is None:
            return None
        weights = as_array(weights, name)
        check_weights(weights, name)
        if self.y is None or weights.ndim == 0 or weights.shape != self.y.shape[: weights.ndim]:
            shape = None if self.y is None else list(self.y.shape)
            raise InputError(f"{name}: shape is {list(weights.shape)}, expected {shape}, that of y, or its first axes")
        return weights if weights.dtype == bool else weights.astype(np.float64)

    def _class_weights(self, weights):
        """Return the weight of the class of each element."""
        if weights is None:
            return None
        if self.y is None or self.y.dtype.kind not in "biu":
            raise InputTypeError("class_weight: y holds no classes, expected integers")
        if isinstance(weights, Mapping):
            classes = range(max([-1, *weights]) + 1) if all(isinstance(c, int) for c in weights) else ()
            if not classes or min(weights) < 0:
                raise InputError(f"class_weight: classes are {list(weights)}, expected integers of 0 or more")
            weights = [weights.get(c, 1.0) for c in classes]
        weights = as_array(weights, "class_weight")
        check_weights(weights, "class_weight")
        if weights.ndim != 1:
            raise InputError(f"class_weight: shape is {list(weights.shape)}, expected [classes]")
        known = (self.y >= 0) & (self.y < len(weights))
        return np.where(known, weights[np.where(known, self.y, 0)], 1.0)

    def split(self, share):
        """Return (the first examples, the last ones): `share` of all, rounded down, are last; neither may be none."""
        cut = self.count - int(share * self.count)
        if not 0 < cut < self.count:
            raise InputError(f"validation_split: {share} of {self.count} examples, expected at least one, and not all")
        return self._part(slice(None, cut)), self._part(slice(cut, None))

    def _part(self, indices):
        """Return some of the examples."""
        part = copy.copy(self)
        part.x, part.y, part.lengths, part.mask = self.batch(indices)
        part.count = len(first(part.x))
        if part.mask is not None and not part.mask.any():
            raise InputError("validation_split: nothing counts in one of the parts")
        return part

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
            if not layer.is_stepwise:
                raise InputError(f"tbptt: {layer!r} mixes time steps")
        if not returns_sequences(net):
            raise InputError("tbptt: a recurrent layer has return_sequences=False, expected an output for each step")
        return range(0, self.x.shape[1], steps)


class Batches:
    """Batches that come from elsewhere: of an iterable of (x, y), (x, y, lengths) or (x, y, lengths, mask).

    It is iterated anew for each epoch; a function is called for an iterable. Each batch is checked as Examples are.
    """

    count = None
    """The number of examples, which is not known."""

    def __init__(self, net, source, name, **options):
        self.net, self.source, self.name, self.options = net, source, name, options

    def __len__(self):
        """Return the number of batches; raise TypeError if it is not known."""
        return len(self.source)

    def batches(self, size=None):
        """Yield the batches of one epoch, whose size is theirs."""
        number = -1
        for number, fields in enumerate(self.source() if callable(self.source) else self.source):
            try:
                if not isinstance(fields, (tuple, list)) or not 2 <= len(fields) <= 4:
                    raise InputTypeError(
                        f"got a {type(fields).__name__}, expected (x, y), (x, y, lengths) or (x, y, lengths, mask)"
                    )
                if fields[1] is None:
                    raise InputTypeError("y: got None, expected the targets")
                examples = Examples(self.net, *fields, **self.options, may_count_nothing=True)
            except Error as error:
                raise with_location(error, f"{self.name}: batch {number + 1}") from error
            yield examples.batch(slice(None))
        if number < 0:
            raise InputError(
                f"{self.name}: gave no batch; a generator gives its batches once, expected a function that makes one"
            )


def are_batches(x):
    """Return whether x, without targets, gives batches: a function, an iterable that is no array, or a list of tuples.

    Arrays and tuples of them are the inputs of a call whose targets were forgotten.
    """
    if isinstance(x, (np.ndarray, tuple, str, bytes)) or hasattr(x, "__array__"):
        return False
    if isinstance(x, list):
        return bool(x) and all(isinstance(one, tuple) for one in x)
    return callable(x) or isinstance(x, Iterable)


def _given_lengths(x, lengths):
    """Return the lengths of x, which are those of its arrays where these differ."""
    if isinstance(x, tuple):
        of_each = tuple(_given_lengths(a, None) for a in x)
        if all(one is None for one in of_each):
            return lengths
        lengths = (None,) * len(x) if lengths is None else lengths
        if not isinstance(lengths, (tuple, list)) or len(lengths) != len(x):
            return lengths  # which is refused later
        return tuple(_given_lengths(a, one) for a, one in zip(x, lengths, strict=True))
    if not is_ragged(x):
        return lengths
    if lengths is not None:
        raise InputError("lengths: given beside a list of arrays of different lengths, expected one of them")
    return [len(a) for a in x]


def _read(value, name, read):
    """Return a value as an array by `read`; a list of arrays of different lengths is padded with zeros."""
    if not is_ragged(value):
        return read(value, name)
    arrays = [read(a, f"{name}[{i}]") for i, a in enumerate(value)]
    padded = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), np.result_type(*arrays))
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _product(a, b):
    """Return the product of masks or weights of the first axes of one shape; that of two masks is a mask."""
    rank = max(a.ndim, b.ndim)
    a, b = (array.reshape(array.shape + (1,) * (rank - array.ndim)) for array in (a, b))
    return a & b if a.dtype == b.dtype == bool else a.astype(np.float64) * b


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
