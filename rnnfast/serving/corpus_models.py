"""How `model.map` runs sequences of a model: in batches where that is proven, else one by one."""

from __future__ import annotations

import collections.abc
import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import Error, InputError, UnsupportedError, raise_if_from_handler
from rnnfast.named_values import Outputs, merge_inputs
from rnnfast.onnx.axes.transcript import Transcript
from rnnfast.onnx.inputs import validate
from rnnfast.serving.corpus import Way, length, mapped
from rnnfast.serving.model_sequences import sequences_of
from rnnfast.serving.sequences import padded
from rnnfast.streaming.batch_axes import compare_bits, may_be_batch, output_axes, search, trace_call
from rnnfast.streaming.model_pool import ModelPool
from rnnfast.streaming.model_signature import ModelSignature
from rnnfast.streaming.model_stream import Stream

# Seconds that calls one by one of sequences of one shape take before a proof for this shape is tried, which takes some
# milliseconds itself.
PROOF_SECONDS = 0.01
# The most kinds of sequences, of other shapes or values of fixed inputs, of which proofs and pools are kept.
MAX_KINDS = 1000
MAX_POOLS = 16
# The most sequences in one run of a pool, which holds the states of all.
MAX_STREAMS = 128


def map_model(model, sequences, batch, threads, progress, fixed):
    """The results of sequences, lazily and in order; `Model.map` documents it."""
    return mapped(_way(model, fixed), sequences, batch, threads, progress)


def _way(model, fixed):
    """The Way of a model."""
    try:
        return StreamSequences(ModelSignature(model, None, fixed))
    except InputError as e:
        unclear = e
    signature = ModelSignature(model, {}, fixed)
    if fixed:
        return EqualSequences(signature)
    if model.proven_sequences is None:
        try:
            model.proven_sequences = WholeSequences(sequences_of(model, unclear))
        except Error:
            model.proven_sequences = False
    return model.proven_sequences or EqualSequences(signature)


class Call(NamedTuple):
    """A sequence as the inputs of a call of its model.

    Attributes:
        feed: The inputs by name.
        axes: {output: the axis of the batch, which its result has not}; None where the result has all axes.
        key: The key that `taken` returns.
    """

    feed: dict
    axes: dict | None = None
    key: Any = None


def result_of(outputs, axes, i=0):
    """The result of row i of a call: the array if there is one output, else Outputs by name."""
    if axes is not None:
        outputs = {name: outputs[name][(slice(None),) * axis + (i,)].copy() for name, axis in axes.items()}
    return Outputs(outputs) if len(outputs) > 1 else next(iter(outputs.values()))


def bound(kept, most):
    """Drop the oldest entries of a dict that has more than `most`."""
    for key in list(kept)[: max(len(kept) - most, 0)]:
        kept.pop(key, None)


def _rank(value):
    """The number of axes of a caller's value; None if it is no array, which validating it says."""
    try:
        return np.ndim(value)
    except Exception as e:  # foreign types may raise anything
        raise_if_from_handler(e)
        return None


class WholeSequences(Way):
    """Sequences that a Batcher takes: those of any lengths share a call, which has their lengths."""

    def __init__(self, found):
        self.found, self.layout, self.model = found, found.layout, found.layout.model
        self.label, self.name = self.model.source.label, found.layout.input.name
        self.lengths = None if self.layout.lengths is None else self.layout.lengths.name
        self.type, self.time = found.type, found.time
        self.dtype, self.rank = self.type.dtype, len(self.type.shape)
        # What an array has that needs no conversion, where one comparison tells.
        tail = self.type.shape[1:]
        self.tail = tail if self.time == 0 and all(type(n) is int for n in tail) else None
        self.axes = {output: axis for output, (axis, *_) in found.outputs.items()}

    def taken(self, sequence):
        if type(sequence) is np.ndarray and sequence.dtype is self.dtype and sequence.ndim == self.rank:
            shape = sequence.shape
            if shape[1:] == self.tail and shape[0]:
                return sequence, shape[0], shape if self.found.exact else self.tail
        feed = sequence if isinstance(sequence, collections.abc.Mapping) else {self.name: sequence}
        if self.name not in feed or len(feed) > 1 + (self.lengths in feed) or _rank(feed[self.name]) == self.rank + 1:
            return self._whole_call(feed)
        x = validate(feed[self.name], self.type, f"{self.label}: input {self.name!r}")
        x = np.moveaxis(x, self.time, 0) if self.time else x
        if self.lengths in feed or not len(x):
            call = self._call(x)
            if self.lengths in feed:
                call.feed[self.lengths] = [feed[self.lengths]]
            return call, len(x), None
        return x, len(x), x.shape if self.found.exact else x.shape[1:]

    def _whole_call(self, feed):
        """A sequence that is given with its batch axis; what is wrong with it is an error of its call."""
        if self.lengths is not None and list(feed) == [self.name]:
            feed = {**feed, self.lengths: [np.shape(feed[self.name])[self.layout.time]]}
        return Call(dict(feed)), max(map(length, feed.values()), default=1), None

    def _call(self, x):
        """The Call of one sequence, whose frames are first."""
        return Call(self.layout.feed_with_lengths(x[None], [len(x)]), self.axes)

    def alone(self, item):
        call = item if isinstance(item, Call) else self._call(item)
        return result_of(self.model(call.feed), call.axes)

    def together(self, items):
        return self.found.run_whole(items)


class EqualSequences(Way):
    """Sequences of one shape share a call, along a batch axis that was proven for this shape.

    The first sequence that lacks its batch axis settles where it is. Where no axis is proven, each is a call.
    """

    def __init__(self, signature):
        self.signature, self.model, self.label = signature, signature.model, signature.label
        self.axes = None  # {input or output: batch axis, None for an input that is the same for all}
        self.is_batched = True
        self.proven = {}  # key -> whether the axes were proven for it
        self.seconds = {}  # key -> seconds that calls one by one took

    def taken(self, sequence):
        feed = merge_inputs(self.label, sequence, {}, self.signature.single_input)
        self.signature.check_names(feed)
        rows, others = {}, dict(self.signature.fixed)
        for name, value in feed.items():
            type_ = self.signature.types[name]
            if type_.kind == "tensor" and type_.shape is not None and _rank(value) == len(type_.shape) - 1:
                type_ = dataclasses.replace(type_, shape=None)
                rows[name] = validate(value, type_, f"{self.label}: input {name!r}")
            else:
                others[name] = self.signature.validate_input(name, value)
        frames = max(map(length, (rows or others).values()), default=1)
        if not rows:
            return Call(others), frames, None
        if self.axes is None:
            self._settle(rows, others)
        for name, value in rows.items():
            if self.axes.get(name) is None:
                raise InputError(f"{self.label}: input {name!r} lacks an axis, which earlier sequences had")
            rows[name] = np.expand_dims(value, self.axes[name])
        key = None
        if self.is_batched and all(isinstance(value, np.ndarray) for value in others.values()):
            key = tuple([(name, value.shape, value.dtype) for name, value in rows.items()])
            key += tuple([(name, value.shape, value.dtype, value.tobytes()) for name, value in others.items()])
        call = Call(rows | others, {v.name: self.axes[v.name] for v in self.model.outputs}, key)
        return call, frames, key

    def _settle(self, rows, others):
        """Find the batch axes from the first sequence that lacks them."""
        signature = ModelSignature(self.model, {}, others)
        try:
            self.axes = search(signature, rows, True, None)[0]
        except UnsupportedError as e:
            self.is_batched, self.axes = False, named_axes(self.model, rows)
            if self.axes is None:
                reason = str(e).removeprefix(f"{self.label}: ")
                raise UnsupportedError(
                    f"{self.label}: give sequences with their batch axis, as a call takes them, because which axis it "
                    f"is could not be proven: {reason}"
                ) from e

    def alone(self, call):
        return result_of(self.model(call.feed), call.axes)

    def together(self, calls):
        first, key = calls[0], calls[0].key
        if self.proven.get(key) is None and self.seconds.get(key, 0) >= PROOF_SECONDS:
            self.proven[key] = self._is_proven(first)
            bound(self.proven, MAX_KINDS)
        if not self.proven.get(key):
            start = time.perf_counter()
            results = [self.alone(call) for call in calls]
            self.seconds[key] = self.seconds.get(key, 0) + time.perf_counter() - start
            bound(self.seconds, MAX_KINDS)
            return results
        feed = {
            name: value
            if self.axes.get(name) is None
            else np.concatenate([call.feed[name] for call in calls], self.axes[name])
            for name, value in first.feed.items()
        }
        outputs = self.model(feed)
        return [result_of(outputs, first.axes, i) for i in range(len(calls))]

    def _is_proven(self, call):
        """Return whether rows along the batch axes do not depend on each other in calls of such a shape."""
        axes, transcript = {name: self.axes.get(name) for name in call.feed}, Transcript()
        fixed = {name: value for name, value in call.feed.items() if axes[name] is None}
        try:
            trace_call(self.model, call.feed, transcript)
            found = output_axes(self.model, axes, transcript)
            compare_bits(ModelSignature(self.model, {}, fixed), call.feed, found)
        except Error:
            return False
        return all(found[name] == axis for name, axis in call.axes.items())


class StreamSequences(Way):
    """Sequences of a model with states, each of which is a stream that begins with zeros."""

    most = MAX_STREAMS

    def __init__(self, signature):
        self.signature, self.model, self.label = signature, signature.model, signature.label
        self.pools = {}  # key -> pools that no thread uses now; None where no pool is possible

    def taken(self, sequence):
        signature = self.signature
        feed = merge_inputs(self.label, sequence, {}, signature.single_input)
        signature.check_names(feed)
        frames, fixed, is_row = {}, {}, True
        for name, value in feed.items():
            type_ = signature.types[name]
            rank = None if type_.kind != "tensor" or type_.shape is None else len(type_.shape)
            if _rank(value) == rank == 0:
                fixed[name] = signature.validate_input(name, value)
                continue
            is_row &= _rank(value) == rank
            type_ = type_ if rank is None else dataclasses.replace(type_, shape=None)
            frames[name] = validate(value, type_, f"{self.label}: input {name!r}")
        counts = {length(value) for value in frames.values()}
        n, key = max(counts, default=1), None
        if is_row and len(counts) == 1:
            key = tuple([(name, value.shape[1:], value.dtype) for name, value in frames.items()])
            key += tuple([(name, value.item()) for name, value in fixed.items()])
        return Frames(frames, fixed, key), n, key if n else None

    def alone(self, item):
        frames, fixed, key = item
        if key is not None and self.pools.get(key, ()) is not None and length(next(iter(frames.values()))):
            try:
                return self._of_pool([item])[0]
            except UnsupportedError:  # no batch axis
                self.pools[key] = None
        axes = None
        if key is not None:  # streams take frames with their batch axis
            axes = named_axes(self.model, {name: np.zeros(v.shape[1:]) for name, v in frames.items()})
            if axes is None:
                raise UnsupportedError(
                    f"{self.label}: give sequences whose frames have their batch axis, as a stream takes them: which "
                    "axis it is could not be proven"
                )
            frames = {name: np.expand_dims(value, 1 + axes[name]) for name, value in frames.items()}
        result = Stream(self.model, None, None, self.signature.fixed | fixed).run(frames)
        outputs = result if isinstance(result, dict) else {self.signature.outputs[0]: result}
        return result_of(outputs, axes and {name: 1 + axes[name] for name in self.signature.outputs})

    def together(self, items):
        if self.pools.get(items[0].key, ()) is not None:
            return self._of_pool(items)
        return [self.alone(item) for item in items]

    def _of_pool(self, items):
        """The results of sequences as streams of a pool."""
        first, lengths = items[0], [length(next(iter(item.frames.values()))) for item in items]
        free = self.pools.setdefault(first.key, [])
        bound(self.pools, MAX_POOLS)
        try:
            pool = free.pop()
        except IndexError:
            pool = ModelPool(self.model, self.most, None, True, self.signature.fixed | first.fixed)
        streams = [pool.open() for _ in items]
        try:
            feed = {name: padded([i.frames[name] for i in items], len(items), lengths[0]) for name in first.frames}
            result = pool.run(streams, feed, lengths=lengths)
        finally:
            for stream in streams:
                pool.close(stream)
            free.append(pool)
        if not isinstance(result, dict):
            return [row[:n].copy() for row, n in zip(result, lengths)]
        return [Outputs((name, y[i, :n].copy()) for name, y in result.items()) for i, n in enumerate(lengths)]


class Frames(NamedTuple):
    """A sequence of frames of a model with states.

    Attributes:
        frames: {input: values [T, ...]}.
        fixed: {input: value} of inputs that are the same for each frame.
        key: Which sequences may share a pool; with None the frames have their batch axis.
    """

    frames: dict
    fixed: dict
    key: Any


def named_axes(model, rows):
    """The batch axes where the file names them, and nothing is proven.

    Args:
        model: The Model.
        rows: {input: a value that lacks its batch axis}.

    Returns:
        {name: axis} of these inputs and of all outputs whose shape has such an axis; None where it is not clear which
        axis it is.
    """
    types, axes, sizes = {v.name: v.type for v in model.inputs}, {}, set()
    for name, value in rows.items():
        declared, shape = types[name].shape, np.shape(value)
        fits = [
            axis
            for axis, size in enumerate(declared)
            if size == 1 or type(size) is not int and may_be_batch(declared, (*shape[:axis], 1, *shape[axis:]), axis)
        ]
        fits = [axis for axis in fits if "batch" in str(declared[axis]).lower()] or fits
        if len(fits) != 1:
            return None
        axes[name] = fits[0]
        sizes.add(declared[fits[0]])
    if len(sizes) != 1:
        return None
    (size,) = sizes
    for output in model.outputs:
        if output.type.shape is None or output.type.shape.count(size) != 1:
            return None
        axes[output.name] = output.type.shape.index(size)
    return axes
