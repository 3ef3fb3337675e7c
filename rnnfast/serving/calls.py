"""Whole calls of a model in a Batcher: those that wait together run as one call, where rows are proven to stay apart.

For the shapes of a call, without the number of its rows, the rows are followed through the graph as pools do it. Where
an input that is open in the file has no axis of rows, calls run one by one.
"""

import collections
import itertools
from types import SimpleNamespace

import numpy as np

from rnnfast.errors import Error, InputError, raises_limit_error
from rnnfast.named_values import Outputs
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.streaming.batch_axes import MAX_CHOICES, NotApart, compare_bits, output_axes, trace_call

# The most patterns of calls whose proofs are kept.
MAX_PATTERNS = 1024
# The most bytes of inputs without an axis of rows, which are compared as a whole: calls with more run alone.
MAX_SHARED = 4096


class Call:
    """The validated inputs of one call.

    Attributes:
        planned, args: What `Model.prepare` returned.
        shapes: The shapes of its inputs; None for those that are no arrays.
        kind: The types and ranks of the inputs, without which calls cannot run together; None where a call runs alone.
        rows: How many rows it has; 1 before `Calls` knows their axis.
        pattern: What calls that run together have in common; None for a call that runs alone, False if not known yet.
    """

    __slots__ = ("planned", "args", "shapes", "kind", "rows", "pattern")

    def __init__(self, planned, args):
        self.planned, self.args, self.rows, self.pattern = planned, args, 1, False
        self.shapes = (planned, *[getattr(value, "shape", None) for value in args])
        arrays = all(isinstance(value, np.ndarray) and not value.dtype.hasobject for value in args)
        self.kind = (planned, *((value.dtype, value.ndim) for value in args)) if arrays and args else None


class Calls:
    """Calls of a Model; the Batcher's thread runs them.

    Args:
        model: The Model.
        most: The most rows of calls that run together.
    """

    def __init__(self, model, most):
        self.model, self.most = model, most
        self._types = {v.name: v.type for v in model.inputs}
        self._names = [v.name for v in model.outputs]
        self._axes = {}  # kind -> {input or output: axis of the rows, None for an input that is the same for all}
        self._proven = collections.OrderedDict()  # pattern, or the shapes of a call without axes -> whether they are

    def validate(self, feed):
        """Check the inputs of a call and return a Call, or raise."""
        return Call(*self.model.prepare(feed))

    def join(self, calls, other):
        """Return whether another Call may run together with these, which run together."""
        if other.kind is None or other.kind != calls[0].kind:
            return False
        for call in (calls[0], other):
            if call.pattern is False:
                call.pattern = self._pattern(call)
        rows = sum(call.rows for call in calls) + other.rows
        return other.pattern is not None and other.pattern == calls[0].pattern and rows <= self.most

    def key(self, calls):
        """Return what tells calls that may run together from those that need other plans or proofs.

        That is their shapes and, of several, the values of inputs that all of them must have.
        """
        shapes = tuple([call.shapes for call in calls])
        return shapes if len(calls) == 1 else (shapes, *{self._shared(call) for call in calls})

    def is_planned(self, calls):
        """Return whether calls whose `key` ran before make no plan: that of one call may depend on its values."""
        return len(calls) > 1 or calls[0].planned.plans.find(calls[0].args) is not None

    @raises_limit_error
    def run(self, calls):
        """The Outputs of each of some Calls that run together."""
        planned = calls[0].planned
        if len(calls) == 1:
            return [Outputs(zip(self._names, planned.run(calls[0].args)))]
        axes, ends = self._axes[calls[0].kind], list(itertools.accumulate(call.rows for call in calls))
        args = [
            values[0] if axes[name] is None else np.concatenate(values, axes[name])
            for name, values in zip(planned.names, zip(*(call.args for call in calls)))
        ]
        results = [Outputs() for _ in calls]
        for name, values in zip(self._names, planned.run(args)):
            if values.shape[axes[name]] != ends[-1]:
                raise InputError(f"{self.model.source.label}: output {name!r} of {ends[-1]} rows is {values.shape}")
            before = (slice(None),) * axes[name]
            for result, call, end in zip(results, calls, ends):
                result[name] = values[(*before, slice(end - call.rows, end))].copy()
        return results

    # ------------------------------------------------------------------------------------------ the proof
    def _pattern(self, call):
        """The `pattern` of a Call, whose `rows` are set; the first of its kind finds the axes."""
        sample = dict(zip(call.planned.names, call.args))
        closed = [name for name in sample if not self._open_axes(name, sample[name])]
        shared = self._shared(call)
        if shared is None:
            return None
        if call.kind not in self._axes:
            shapes = call.kind, tuple(value.shape for value in call.args), shared
            if not self._kept(shapes, lambda: self._search(call.kind, sample, closed)):
                return None
        axes = self._axes[call.kind]
        if not _rows(sample, axes):
            return None
        shapes = tuple(_without(value.shape, axes[name]) for name, value in sample.items())
        pattern = call.kind, shapes, shared
        if not self._kept(pattern, lambda: self._prove(sample, axes, closed) is not None):
            return None
        call.rows = _rows(sample, axes)
        return pattern

    def _shared(self, call):
        """The values of the inputs that have no axis of rows; None for a call that runs alone."""
        if call.kind is None:
            return None
        closed = [value for name, value in zip(call.planned.names, call.args) if not self._open_axes(name, value)]
        return tuple([value.tobytes() for value in closed]) if sum(v.nbytes for v in closed) <= MAX_SHARED else None

    def _kept(self, key, find):
        """Return what find() says, from an earlier call if there was one with this key."""
        if key not in self._proven:
            self._proven[key] = find()
            while len(self._proven) > MAX_PATTERNS:
                self._proven.popitem(last=False)
        return self._proven[key]

    def _open_axes(self, name, value):
        """The axes of an input that may have the rows: those that the file leaves open."""
        shape = self._types[name].shape
        return [axis for axis in range(value.ndim) if shape is None or type(shape[axis]) is not int]

    def _search(self, kind, sample, closed):
        """Find the axes of a kind by one of its calls; return whether there are any."""
        transcript = Transcript()
        try:
            trace_call(self.model, sample, transcript)
        except Error:
            return False
        candidates = [[None] if name in closed else self._open_axes(name, value) for name, value in sample.items()]
        for choice in itertools.islice(itertools.product(*candidates), MAX_CHOICES):
            axes = dict(zip(sample, choice))
            rows = _rows(sample, axes)
            try:
                if rows:
                    output_axes(self.model, axes, transcript, rows)
            except NotApart:
                continue
            found = self._prove(sample, axes, closed) if rows else None
            if found is not None:
                self._axes[kind] = found
                return True
        return False

    def _prove(self, sample, axes, closed):
        """The axes of inputs and outputs, if the rows of such calls stay apart; else None.

        One row is followed through the graph, and three together are compared with each of them alone.
        """
        one = {name: value if axes[name] is None else value.take([0], axes[name]) for name, value in sample.items()}
        transcript = Transcript()
        try:
            trace_call(self.model, one, transcript)
            found = output_axes(self.model, {name: axes[name] for name in sample}, transcript)
            compare_bits(SimpleNamespace(model=self.model, fixed=closed), one, found)
        except Error:
            return None
        return found


class NoCalls:
    """Stands for Calls where a Batcher has no model."""

    def __init__(self, label):
        self.label = label

    def validate(self, feed):
        raise InputError(f"{self.label}: call is for a model, and the Batcher is of a layer")


def _rows(sample, axes):
    """How many rows the inputs have along their axes; 0 where they differ, or where no input has rows."""
    counts = {value.shape[axes[name]] for name, value in sample.items() if axes[name] is not None}
    return counts.pop() if len(counts) == 1 else 0


def _without(shape, axis):
    """A shape with 1 in place of the number of rows."""
    return shape if axis is None else (*shape[:axis], 1, *shape[axis + 1 :])
